"""Charts as SVG that takes its colours from the page: lines with a band, and bars of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_LEFT, _RIGHT, _TOP, _FLOOR = 46, 322, 22, 170  # of the area of a line chart, in its own units


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


def lines(
    x: Sequence[float],
    series: Sequence[tuple[str, str, Sequence[float]]],
    said: str,
    *,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    log_x: bool = False,
    unit: str = "",
) -> str:
    """Lines over x: (name, class of the style sheet, values) each. band: what chance allows, low and high.

    said: what the chart shows, for whoever does not see it. What is not finite is left out.
    """
    keep = [i for i, at in enumerate(x) if math.isfinite(at) and (at > 0 or not log_x)]
    every = [v for _, _, values in series for v in (values[i] for i in keep) if math.isfinite(v)]
    if band is not None:
        every += [v for side in band for v in (side[i] for i in keep) if math.isfinite(v)]
    if len(keep) < 2 or not every:
        return '<p class="soft">Too few values to draw.</p>'
    at = [math.log10(x[i]) if log_x else float(x[i]) for i in keep]
    start, end, low, high = min(at), max(at), min(every), max(every)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def place(a: float, v: float) -> str:
        across = _LEFT + (_RIGHT - _LEFT) * (a - start) / (end - start or 1)
        return f"{across:.1f} {_FLOOR - (_FLOOR - _TOP) * (v - low) / (high - low):.1f}"

    marks = []
    for tick in ticks(low, high):
        y = _FLOOR - (_FLOOR - _TOP) * (tick - low) / (high - low)
        marks.append(f'<path class="base" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in _x_ticks(start, end, log_x):
        across = _LEFT + (_RIGHT - _LEFT) * (tick - start) / (end - start or 1)
        label = tick_label(10**tick if log_x else tick)
        marks.append(f'<text x="{across:.1f}" y="{_FLOOR + 16}" text-anchor="middle">{label}</text>')
    if band is not None:
        there = [(a, band[0][i], band[1][i]) for a, i in zip(at, keep, strict=True)]
        there = [each for each in there if math.isfinite(each[1]) and math.isfinite(each[2])]
        if there:
            path = "L".join([*(place(a, v) for a, v, _ in there), *(place(a, v) for a, _, v in reversed(there))])
            marks.append(f'<path class="band" d="M{path}Z"/>')
    for i, (name, kind, values) in enumerate(series):
        points = [(a, values[k]) for a, k in zip(at, keep, strict=True) if math.isfinite(values[k])]
        marks.append(f'<path class="line {kind}" d="M{"L".join(place(a, v) for a, v in points)}"/>')
        marks.append(f'<text class="name {kind}" x="{_LEFT + 4 + 92 * i}" y="12">{escape(name)}</text>')
    marks.append(f'<text x="{_RIGHT}" y="{_FLOOR + 32}" text-anchor="end">{escape(unit)}</text>')
    return (
        f'<svg viewBox="0 0 {_RIGHT + 8} {_FLOOR + 38}" role="img" aria-label="{escape(said)}">{"".join(marks)}</svg>'
    )


def _x_ticks(start: float, end: float, log_x: bool) -> list[float]:
    if end <= start:
        return [start]
    if not log_x:
        return ticks(start, end)
    powers = [math.log10(factor) + power for power in range(-9, 9) for factor in (1, 2, 5)]
    return [tick for tick in powers if start - 1e-9 <= tick <= end + 1e-9]
