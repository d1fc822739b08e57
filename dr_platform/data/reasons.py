"""Why images were left out, in words that are counted: what a reason is about, what was found, what is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


def read_reason(reason: str) -> tuple[str, str, str]:
    """What the first reason for leaving an image out is about, what was found, and what is needed.

    "focus is 0.081; at least 0.120 is needed" is about "Focus", found 0.081, needs "at least 0.120 is needed".
    """
    first, _, rest = reason.partition("; ")
    needed = rest.partition("; ")[0] if rest.startswith(("at least ", "at most ", "a ")) else ""
    what, colon, found = first.partition(": ")
    if not colon and (match := re.fullmatch(r"(.+?)(?: is|,)? (\(?\d.*|in \d.*)", first)):
        what, found = match[1], match[2].strip("()")
    what = what.removeprefix("the ")
    return what[:1].upper() + what[1:], found.partition(". ")[0], needed


def often(reasons: Iterable[str], most: int = 3) -> str:
    """The most frequent reasons, each with its number: "21 which eye it shows is not known, 3 focus"."""
    counts = Counter(read_reason(reason)[0] for reason in reasons)
    said = [f"{count} {what[:1].lower()}{what[1:]}" for what, count in counts.most_common(most)]
    return ", ".join(said) + (", …" if len(counts) > most else "")
