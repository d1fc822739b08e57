"""Charts as SVG that takes its colours from the page: lines with a band, and bars of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def ticks(start: float, end: float) -> list[float]:
    """Three to six round numbers from `start` to `end`, which is larger."""
    rough = (end - start) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [round(count * step, 10) for count in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number below an axis."""
    return f"{value:,.4g}".replace(",", "\u202f") if abs(value) < 10_000 else f"{value:,.0f}".replace(",", "\u202f")


def shares(counts: Sequence[int], names: Sequence[str], classes: Sequence[str], most: int) -> str:
    """A bar of parts, as long as their sum is to `most`; what it says stands beside it in numbers."""
    total = sum(counts)
    title = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True) if count)
    parts, x = [], 0.0
    for count, kind in zip(counts, classes, strict=True):
        width = 160 * count / most if most else 0
        if count:
            parts.append(f'<rect class="{kind}" x="{x:.2f}" y="0" width="{max(width, 0.6):.2f}" height="10"/>')
        x += width
    return (
        f'<svg class="shares" viewBox="0 0 160 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title or str(total))}">{"".join(parts)}</svg>'
    )
