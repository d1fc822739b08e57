"""Two reports' numbers: what keeps them from being compared, and the difference where nothing does."""

from __future__ import annotations

from typing import Any

import pytest
from test_promotion import SMALL, metric, report

from dr_platform.comparison import compare, differences
from dr_platform.errors import EvaluationError

OTHER = "cd" * 32


def test_numbers_of_one_identity_are_compared_and_their_errors_joined() -> None:
    first, second = (
        report(metric(40.0, spread=3.0)),
        report(metric(47.0, spread=4.0), checkpoint_sha256=OTHER, run="t-2"),
    )
    found = compare(first, second, "fid")
    assert (found.difference, found.spread) == (7.0, 5.0)
    assert compare(first, report(metric(1.0)), "fid").spread is None


@pytest.mark.parametrize(
    ("what", "of_metric", "of_report"),
    [
        ("definition", {"definition": "2"}, {}),
        ("region", {"region": "centre"}, {}),
        ("extractor", {"extractor": SMALL.model_copy(update={"name": "inception-v3-2015-12-05"})}, {}),
        ("extractor", {"extractor": SMALL.model_copy(update={"weights_sha256": OTHER})}, {}),
        ("extractor", {"extractor": SMALL.model_copy(update={"resize": "bicubic"})}, {}),
        ("number of generated images", {"n_fake": 499}, {}),
        ("number of real images", {"n_real": 479}, {}),
        ("seed", {"seed": 1}, {}),
        ("grade", {}, {"grade": 2}),
        ("resolution", {}, {"resolution": 64}),
        ("set of real images", {}, {"reference_sha256": OTHER}),
    ],
)
def test_every_part_of_an_identity_keeps_others_from_being_compared(
    what: str, of_metric: dict[str, Any], of_report: dict[str, Any]
) -> None:
    first, second = report(metric(40.0)), report(metric(40.0, **of_metric), **of_report)
    found = differences(first, first.metrics[0], second, second.metrics[0])
    assert [each.what for each in found] == [what]
    with pytest.raises(EvaluationError, match=f"not comparable: {what} .* and ") as caught:
        compare(first, second, "fid")
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(EvaluationError, match="has no lpips"):
        compare(report(metric(1.0)), report(metric(1.0)), "lpips")
