"""Two reports' numbers: what keeps them from being compared, and the difference where nothing does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_promotion import SMALL, metric, report

from dr_platform.comparison import differences, side_by_side

OTHER = "cd" * 32


def test_numbers_of_one_identity_are_compared_and_their_errors_joined() -> None:
    first, second = (
        report(metric(40.0, spread=3.0)),
        report(metric(47.0, spread=4.0), checkpoint_sha256=OTHER, run="t-2"),
    )
    (pair,) = side_by_side(first, second)
    assert (pair.name, pair.difference, pair.spread, pair.why_not) == ("fid__small", 7.0, 5.0, "")
    (bare,) = side_by_side(first, report(metric(1.0)))
    assert (bare.difference, bare.spread) == (-39.0, None)


def test_of_several_spaces_each_number_stands_beside_its_own() -> None:
    other = metric(5.0, "fid", extractor=SMALL.model_copy(update={"name": "inception-v3-2015-12-05"}))
    first, second = report(metric(40.0), other), report(other.model_copy(update={"value": 4.0}), metric(44.0))
    assert {pair.name: pair.difference for pair in side_by_side(first, second)} == {"fid__small": 4.0, "fid": -1.0}


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
    (pair,) = side_by_side(first, second)
    assert (pair.difference, pair.spread) == (None, None)
    assert re.fullmatch(f"{what} .* and .*", pair.why_not)


def test_a_metric_that_one_report_lacks_is_shown_and_not_compared() -> None:
    pairs = side_by_side(report(metric(1.0)), report(metric(1.0), metric(2.0, "kid__small")))
    assert [(pair.name, pair.difference, pair.why_not) for pair in pairs] == [
        ("fid__small", 0.0, ""), ("kid__small", None, "in one of them alone"),
    ]  # fmt: skip
