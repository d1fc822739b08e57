"""Figures of a data report as SVG that takes its colours from the page: histograms in small multiples."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dr_platform.data.report.facts import Measure, Spread
from dr_platform.pages.charts import tick_label, ticks
from dr_platform.pages.markup import number

_WIDTH = 340
_ROW = 58  # height of a collection: a line of text over its histogram
_HISTOGRAM = 28
_AXIS = 22
_NAME = 24  # letters of a name that have room
_CHANNELS = ("red", "green", "blue")


def small_multiples(measures: Sequence[Measure], title: str, position: int) -> str:
    """The histogram of a measurement for each collection, on one axis; several measures are drawn over one another.

    position: of the figure in the page, for ids.
    """
    first = measures[0]
    height = _ROW * len(first.spreads) + _AXIS
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="figure-{position}">',
        f'<title id="figure-{position}">{escape(_described(measures, title))}</title>',
    ]
    for row in range(len(first.spreads)):
        parts.append(_row(measures, row))
    parts.append(_axis(first, height - _AXIS))
    return "".join([*parts, "</svg>"])


def _described(measures: Sequence[Measure], title: str) -> str:
    """The figure in words."""
    sentences = []
    for row, spread in enumerate(measures[0].spreads):
        medians = ", ".join(number(measure.spreads[row].median) for measure in measures)
        sentences.append(f"{spread.collection} ({spread.visibility}): median {medians} of {spread.images} images")
    return f"{title}. {'; '.join(sentences)}."


def _row(measures: Sequence[Measure], row: int) -> str:
    spread = measures[0].spreads[row]
    base = _ROW * (row + 1)
    name = spread.collection if len(spread.collection) <= _NAME else spread.collection[: _NAME - 1] + "…"
    medians = " · ".join(number(measure.spreads[row].median) for measure in measures) if spread.images else "none"
    kind = " proprietary" if spread.visibility == "proprietary" else ""
    text = (
        f'<text class="name{kind}" x="0" y="{base - _HISTOGRAM - 7}">{escape(name)}</text>'
        f'<text class="value" x="{_WIDTH}" y="{base - _HISTOGRAM - 7}" text-anchor="end">{medians}</text>'
    )
    shapes = "".join(_histogram(measure, measure.spreads[row], base) for measure in measures)
    for x in (_x(limit, measures[0]) for limit in measures[0].limits):
        shapes += "" if x is None else f'<path class="limit" d="M{x:.1f} {base - _HISTOGRAM}V{base}"/>'
    return f'{text}<path class="base" d="M0 {base}H{_WIDTH}"/>{shapes}'


def _histogram(measure: Measure, spread: Spread, base: int) -> str:
    """An outline of the bins, and a tick at the median."""
    filled = [bin_ for bin_, count in enumerate(spread.bins) if count]
    if not filled:
        return ""
    width, peak = _WIDTH / len(spread.bins), max(spread.bins)
    steps = "".join(
        f"V{base - _HISTOGRAM * spread.bins[bin_] / peak:.1f}H{width * (bin_ + 1):.1f}"
        for bin_ in range(filled[0], filled[-1] + 1)
    )
    kind = measure.name if measure.name in _CHANNELS else "plain"
    outline = f'<path class="histogram {kind}" d="M{width * filled[0]:.1f} {base}{steps}V{base}Z"/>'
    x = _x(spread.median, measure)
    return outline if x is None else f'{outline}<path class="median {kind}" d="M{x:.1f} {base + 3}V{base - 5}"/>'


def _x(value: float, measure: Measure) -> float | None:
    """Where a value lies; None if that is beyond the figure."""
    share = (value - measure.start) / (measure.end - measure.start)
    return _WIDTH * share if 0 <= share <= 1 else None


def _axis(measure: Measure, top: int) -> str:
    marks = []
    for tick in ticks(measure.start, measure.end):
        x = _x(tick, measure) or 0.0
        anchor = "start" if x < 14 else "end" if x > _WIDTH - 14 else "middle"
        marks.append(f'<text class="tick" x="{x:.1f}" y="{top + 15}" text-anchor="{anchor}">{tick_label(tick)}</text>')
    return "".join(marks)
