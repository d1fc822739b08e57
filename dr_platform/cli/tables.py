"""Records as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.table import Table

from dr_platform.records import LEADING, stem_of

if TYPE_CHECKING:
    from dr_platform.records import EvalReport, Metric, RuleOutcome


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table with a rule under its head and nothing else; a column whose name starts with > is right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for position, column in enumerate(columns):
        # The first column names the row: where space is short, others fold before it does.
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, no_wrap=position == 0)
    return table


def metric_table(report: EvalReport) -> Table:
    """A report: one row per metric with value, spread, counts, extractor and seed; what leads first."""
    table = plain_table("metric", ">value", ">± 1 SE", ">n fake", ">n real", "extractor", ">seed")
    for metric in sorted(report.metrics, key=_rank):
        table.add_row(*metric_cells(metric))
    return table


def is_leading(name: str) -> bool:
    """Whether a metric, with or without an extractor's suffix, is one of `records.LEADING`."""
    return stem_of(name) in LEADING


def _rank(metric: Metric) -> int:
    return LEADING.index(metric.stem) if metric.stem in LEADING else len(LEADING)


def metric_cells(metric: Metric) -> Sequence[str]:
    """The cells of a metric's row, in the order of `metric_table`."""
    return (
        metric.name,
        f"{metric.value:.4g}",
        f"{metric.spread:.2g}" if metric.spread is not None else "–",
        str(metric.n_fake),
        str(metric.n_real) if metric.n_real is not None else "–",
        metric.extractor.name if metric.extractor else "–",
        str(metric.seed),
    )


def rule_table(outcomes: Sequence[RuleOutcome]) -> Table:
    """The rules of a promotion: one row each with what was found, what was needed, and whether that is met.

    What is only a part of the rule that follows, and binds by it alone, is indented.
    """
    table = plain_table("rule", ">value", ">bound", ">margin", "verdict")
    for outcome in outcomes:
        table.add_row(
            outcome.rule if outcome.binding else f"  {outcome.rule}",
            _number(outcome.value),
            _number(outcome.bound),
            f"{outcome.margin:.1%}" if outcome.margin is not None else "–",
            outcome.verdict,
        )
    return table


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None else "–"
