"""The parts of the page that recur: tables, headings, cells, and how numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dr_platform.data.report.figures import number
from dr_platform.records import Visibility


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
