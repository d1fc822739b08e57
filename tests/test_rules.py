"""The rules of promotion, each with evidence that meets it, evidence that does not, and none."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_promotion import MODEL, POLICY, SMALL, metric, report

from dr_platform.promotion import decide
from dr_platform.records import Decision
from dr_platform.rules import judge

DINO = SMALL.model_copy(update={"name": "dino"})


def fids(small: float, dino: float | None, **changes: Any) -> Any:
    found = [metric(small, spread=0.1)]
    if dino is not None:
        found.append(metric(dino, "fid__dino", extractor=DINO, spread=0.1))
    return report(*found, **changes)


def by_rule(decision: Decision) -> dict[str, str]:
    return {outcome.rule: outcome.verdict for outcome in decision.rules}


EQUAL = POLICY.model_copy(update={"min_gain": None, "spaces": 2, "margin": 0.05})


@pytest.mark.parametrize(
    ("small", "dino", "verdict"),
    [
        (10.0, 20.0, "pass"),  # equal: the joint error of 0.14 is within 5 %
        (9.0, 19.0, "pass"),
        (10.4, 20.0, "fail"),  # 10.4 + 1.645 * 0.14 > 10.5
        (9.0, 21.5, "fail"),  # better in one space does not make up for the other
        (9.0, None, "missing"),
    ],
)
def test_the_champion_must_be_equalled_in_two_spaces(small: float, dino: float | None, verdict: str) -> None:
    decision = decide(fids(small, dino), 7, fids(10.0, 20.0), 3, EQUAL, MODEL)
    assert by_rule(decision)["feature spaces"] == verdict
    assert decision.promote is (verdict == "pass")


def test_numbers_of_another_identity_are_no_evidence() -> None:
    champion = fids(10.0, 20.0)
    for change in ({"n_fake": 501}, {"seed": 1}, {"definition": "2"}, {"n_real": 9}):
        other = report(*(each.model_copy(update=change) for each in champion.metrics))
        outcomes = judge(other, champion, EQUAL)
        assert {outcome.verdict for outcome in outcomes if outcome.rule.startswith("not worse")} == {"missing"}


def test_without_a_champion_nothing_is_compared() -> None:
    assert judge(fids(10.0, None), None, EQUAL) == []


@pytest.mark.parametrize(
    ("field", "bound", "name", "good", "bad"),
    [
        ("max_rfd", 1.5, "rfd__small", 1.2, 1.6),
        ("max_kid", 0.01, "kid__small", -0.001, 0.02),
        ("min_coverage", 0.4, "coverage__small", 0.5, 0.3),
        ("max_rim_auc", 0.7, "c2st_rim", 0.6, 0.8),
        ("max_lesion_distance", 0.3, "microaneurysms_w1", 0.1, 0.5),
        ("max_geometry_distance", 0.3, "disc_upright_w1", 0.1, 0.5),
    ],
)
def test_bounds_hold_and_what_is_not_measured_fails(
    field: str, bound: float, name: str, good: float, bad: float
) -> None:
    policy = POLICY.model_copy(update={field: bound})
    for value, promoted in ((good, True), (bad, False), (math.nan, False), (None, False)):
        extra = [] if value is None else [metric(value, name)]
        decision = decide(report(metric(1.0), *extra), 7, None, None, policy, MODEL)
        assert decision.promote is promoted
        (outcome,) = decision.rules
        assert (outcome.verdict == "pass") is promoted
        assert outcome.bound == bound


@pytest.mark.parametrize(("field", "name"), [("spectrum", "spectrum_alarm"), ("memorisation", "memorisation_alarm")])
def test_an_alarm_refuses_and_so_does_silence_that_nobody_listened_to(field: str, name: str) -> None:
    policy = POLICY.model_copy(update={field: "refuse"})
    for value, promoted in ((0.0, True), (1.0, False), (None, False)):
        extra = [] if value is None else [metric(value, name, extractor=None, said="a grid of 8 px")]
        decision = decide(report(metric(1.0), *extra), 7, None, None, policy, MODEL)
        assert decision.promote is promoted
    assert not decide(report(metric(1.0)), 7, None, None, policy, MODEL).promote


@pytest.mark.parametrize(
    ("changes", "note", "said"),
    [
        ({"memorisation": "refuse"}, "memorisation: 12 held-out images; at least 20 are needed", "12 held-out images"),
        ({"max_lesion_distance": 0.5}, "microaneurysms, vessel_share: the field is 30 pixels wide", "30 pixels wide"),
        ({"max_rim_auc": 0.9}, "c2st: 4 patients are too few", "4 patients"),
        ({"max_rfd": 2.0}, "rfd (drp-small-v1): 6 patients are too few", "6 patients"),
        ({"max_rfd": 2.0}, "spectrum: 6 patients are too few", "dvc repro evaluate"),
    ],
)
def test_evidence_that_could_not_be_had_is_explained_by_the_report(
    changes: dict[str, Any], note: str, said: str
) -> None:
    held = decide(report(metric(1.0), notes=(note,)), 7, None, None, POLICY.model_copy(update=changes), MODEL)
    assert not held.promote
    assert said in held.reasons[0]


def test_a_private_model_is_no_public_champion() -> None:
    policy = POLICY.model_copy(update={"visibility": "public"})
    assert decide(report(metric(1.0)), 7, None, None, policy, MODEL).promote
    held = decide(report(metric(1.0), visibility="proprietary"), 7, None, None, policy, MODEL)
    assert by_rule(held) == {"visibility": "fail"}
    assert "visibility: the model was trained on proprietary images; the policy asks for public ones." in held.reasons
