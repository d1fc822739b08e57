"""The parts of a page that recur: the page itself, tables, headings, pictures, and how numbers are written.

A page runs no script, fetches nothing and says so by a content security policy: whoever opens it tells nobody. Whatever
is not ours is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

from dr_platform.pages.style import CSS
from dr_platform.records import Visibility

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Section = tuple[str, str, str]  # id, title, content


def document(title: str, head: str, sections: Sequence[Section], footer: str, style: str = "") -> str:
    """The page as HTML; the same arguments give the same text. head: what stands above the contents."""
    links = "".join(f'<li><a href="#{name}">{escape(said)}</a></li>' for name, said, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(said)}</h2>{content}'
        f"</section>\n"
        for name, said, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n"
        f'{head}<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer><p>{escape(footer)}</p></footer>\n</body>\n</html>\n"
    )


def alarm(title: str, said: str) -> str:
    """A band over the whole width, for what nobody may miss."""
    return f'<div class="alarm" role="note"><strong>{escape(title)}</strong> {escape(said)}</div>\n'


def definitions(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """Names with their values, which are HTML."""
    return f'<dl class="{kind}">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)}</dl>'


def img(content: bytes, width: int, height: int, alt: str, style: str = "") -> str:
    """A JPEG or PNG within the page. style: a class of the style sheet."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode()
    named = f' class="{style}"' if style else ""
    return f'<img{named} src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'


def table(caption: str, head: str, rows: Sequence[str], nothing: str = "entry") -> str:
    """A table that scrolls inside its own box where the window is narrow."""
    body = "".join(rows) or f'<tr><td colspan="20">No {nothing}.</td></tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def heads(*names: str, rows: int = 1) -> str:
    """Heads of columns, each over `rows` rows; those of numbers start with >."""
    span = f' rowspan="{rows}"' if rows > 1 else ""
    return "".join(
        f'<th scope="col"{span} class="{"n" if name.startswith(">") else "t"}">{escape(name.removeprefix(">"))}</th>'
        for name in names
    )


def heading(title: str, said: str, chip: str = "") -> str:
    """A title, and what is said beside it."""
    return f'<div class="heading"><h3>{escape(title)}</h3>{chip}<p class="soft">{escape(said)}</p></div>'


def chip(visibility: Visibility) -> str:
    """The visibility, in a small frame."""
    return f'<span class="chip {visibility}">{visibility}</span>'


def count_cell(value: int) -> str:
    """A cell with an amount; none is pale."""
    return f'<td class="n{"" if value else " zero"}">{amount(value)}</td>'


def grade_name(grade: int | None) -> str:
    """A grade in words."""
    return "Ungraded" if grade is None else f"Grade {grade}"


def amount(value: int) -> str:
    """A number of things, thousands set apart by a narrow space."""
    return f"{value:,}".replace(",", "\u202f")


def percent(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.1f}\u202f%" if whole else "–"


def number_cells(values: Iterable[float]) -> str:
    """Cells with measurements."""
    return "".join(f'<td class="n">{number(value)}</td>' for value in values)


def number(value: float) -> str:
    """A number with three digits that count, thousands set apart."""
    value = float(f"{value:.3g}") if abs(value) < 100 else value
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\u202f")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"
