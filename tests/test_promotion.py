"""Promotion: what "better" means, tried on hand-made reports."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dr_platform.config import PromoteConfig
from dr_platform.promotion import decide
from dr_platform.records import Decision, EvalReport, Extractor, Metric

SHA = "ab" * 32
OTHER_SHA = "cd" * 32
MODEL = "fundus-dr1-stylegan3"
POLICY = PromoteConfig(metric="fid", min_gain=0.02, spreads=1.0, min_images=256, min_eq_t_db=None)
SMALL = Extractor(name="small", weights_sha256=SHA, input_size=64, features=96)


def metric(value: float, name: str = "fid__small", **changes: Any) -> Metric:
    plain: dict[str, Any] = {
        "name": name, "value": value, "spread": None, "spread_kind": None, "n_fake": 500, "n_real": 480,
        "extractor": SMALL, "seed": 0, "higher_is_better": False,
    }  # fmt: skip
    return Metric(**{**plain, **changes})


def report(*metrics: Metric, **changes: Any) -> EvalReport:
    plain: dict[str, Any] = {
        "checkpoint_sha256": SHA, "run": "t-1", "step": 10, "images_seen": 160, "grade": 1, "resolution": 32,
        "visibility": "public", "data_sha256": SHA, "reference": "train, 480 images", "reference_sha256": SHA,
        "seed": 0,
    }  # fmt: skip
    return EvalReport(**{**plain, **changes}, metrics=metrics)


def against(candidate: EvalReport, champion: EvalReport | None, policy: PromoteConfig = POLICY) -> Decision:
    return decide(candidate, 7, champion, None if champion is None else 3, policy, MODEL)


def test_the_first_sound_version_becomes_champion() -> None:
    decision = against(report(metric(40.0)), None)
    assert decision.promote
    assert (decision.champion, decision.metric, decision.candidate_value) == (None, "fid__small", 40.0)


def test_a_clear_gain_promotes_and_the_reason_tells_both_values() -> None:
    decision = against(report(metric(40.0)), report(metric(50.0)))
    assert decision.promote
    assert "is 40 against the champion's 50" in decision.reasons[0]
    assert (decision.candidate_value, decision.champion_value, decision.champion) == (40.0, 50.0, 3)


@pytest.mark.parametrize("value", [50.0, 50.1, 1e6])
def test_no_improvement_is_held(value: float) -> None:
    decision = against(report(metric(value)), report(metric(50.0)))
    assert not decision.promote
    assert "no improvement" in decision.reasons[0]


def test_a_gain_below_the_asked_share_is_held_and_one_of_exactly_the_share_is_not() -> None:
    assert not against(report(metric(98.5)), report(metric(100.0))).promote
    assert against(report(metric(98.0)), report(metric(100.0))).promote


@pytest.mark.parametrize(("ours", "theirs"), [(3.0, 4.0), (5.0, None), (None, 5.0)])
def test_a_gain_within_the_spread_is_held(ours: float | None, theirs: float | None) -> None:
    # The combined standard error is 5 in every case: hypot(3, 4), or the only one there is.
    def at(value: float) -> Decision:
        return against(report(metric(value, spread=ours)), report(metric(100.0, spread=theirs)))

    assert not at(95.0).promote
    assert "combined standard errors (5)" in at(95.0).reasons[0]
    assert at(94.9).promote


def test_spreads_count_as_often_as_the_policy_says() -> None:
    strict = POLICY.model_copy(update={"spreads": 2.0})
    candidate, champion = report(metric(91.0, spread=3.0)), report(metric(100.0, spread=4.0))
    assert against(candidate, champion).promote
    assert not against(candidate, champion, strict).promote


def test_a_gain_over_a_negative_kid_must_still_be_a_gain() -> None:
    # KID is unbiased, so a perfect generator's may be below zero.
    policy = POLICY.model_copy(update={"metric": "kid"})
    champion = report(metric(-0.0010, "kid__small"))
    assert not against(report(metric(-0.0009, "kid__small")), champion, policy).promote
    assert against(report(metric(-0.0012, "kid__small")), champion, policy).promote


@pytest.mark.parametrize(
    ("changed_metric", "changed_report", "word"),
    [
        ({"name": "fid", "extractor": SMALL.model_copy(update={"name": "inception-v3"})}, {}, "extractor"),
        ({"extractor": SMALL.model_copy(update={"weights_sha256": OTHER_SHA})}, {}, "extractor"),
        ({"n_fake": 5000}, {}, "generated images is 500, the champion's 5000"),
        ({"n_real": 100}, {}, "real images"),
        ({}, {"reference_sha256": OTHER_SHA}, "set of real images"),
        ({}, {"grade": 2}, "grade"),
        ({}, {"resolution": 64}, "resolution"),
    ],
)
def test_unequal_evidence_is_never_compared(
    changed_metric: dict[str, Any], changed_report: dict[str, Any], word: str
) -> None:
    champion = report(metric(1000.0, **changed_metric), **changed_report)
    decision = against(report(metric(1.0)), champion)
    assert not decision.promote
    assert any("cannot be compared" in reason and word in reason for reason in decision.reasons)


def test_too_few_images_hold_even_the_first_version() -> None:
    decision = against(report(metric(1.0, n_fake=255)), None)
    assert not decision.promote
    assert "rests on 255 images; the policy asks for 256" in decision.reasons[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_held_on_either_side(value: float) -> None:
    assert not against(report(metric(value)), None).promote
    decision = against(report(metric(1.0)), report(metric(value)))
    assert not decision.promote
    assert decision.champion_value is None


def test_a_missing_metric_is_held_on_either_side() -> None:
    other = report(metric(0.01, "kid__small"))
    assert "no fid" in against(other, None).reasons[0]
    assert "no fid" in against(report(metric(1.0)), other).reasons[0]


@pytest.mark.parametrize(("eq_t", "promoted"), [(None, False), (29.9, False), (math.nan, False), (30.0, True)])
def test_equivariance_below_the_floor_is_held(eq_t: float | None, promoted: bool) -> None:
    policy = POLICY.model_copy(update={"min_eq_t_db": 30.0})
    metrics = [metric(1.0)] + ([] if eq_t is None else [metric(eq_t, "eq_t_int_db", extractor=None)])
    assert against(report(*metrics), None, policy).promote is promoted


def test_the_champion_is_not_promoted_over_itself() -> None:
    decision = decide(report(metric(1.0)), 3, report(metric(1.0)), 3, POLICY, MODEL)
    assert not decision.promote
    assert decision.reasons == ("Version 3 is the champion already.",)


def test_every_reason_is_a_sentence() -> None:
    decisions = [
        against(report(metric(40.0)), None),
        against(report(metric(40.0)), report(metric(50.0))),
        against(report(metric(49.9)), report(metric(50.0, spread=1.0))),
        against(report(metric(1.0, n_fake=2)), report(metric(50.0, n_fake=3), grade=4)),
    ]
    for reason in (reason for decision in decisions for reason in decision.reasons):
        assert reason.endswith(".")
        assert "\n" not in reason
