"""The rules a version must meet to become champion, one outcome each: value, bound, margin, verdict. No I/O.

A rule that is asked for and has no evidence fails: a number that was not measured is no reason to promote. What a rule
compares is one number of each report with equal identity; numbers of different identity are never compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from dr_platform import comparison
from dr_platform.config import PromoteConfig
from dr_platform.records import EvalReport, Metric, RuleOutcome, Verdict

_Z = 1.645  # of a one-sided bound of 95 %

Check = Callable[[EvalReport, EvalReport | None, PromoteConfig], Iterator[RuleOutcome]]


def judge(candidate: EvalReport, champion: EvalReport | None, policy: PromoteConfig) -> list[RuleOutcome]:
    """The outcome of every rule that the policy asks for, in a fixed order.

    champion: None where there is none yet; what compares with it is then left out.
    """
    checks: tuple[Check, ...] = (_visibility, _not_worse, _bounds, _alarms)
    return [outcome for check in checks for outcome in check(candidate, champion, policy)]


def _visibility(candidate: EvalReport, _: EvalReport | None, policy: PromoteConfig) -> Iterator[RuleOutcome]:
    if policy.visibility != "any":
        verdict: Verdict = "pass" if candidate.visibility == policy.visibility else "fail"
        said = f"the model was trained on {candidate.visibility} images; the policy asks for {policy.visibility} ones."
        yield RuleOutcome(
            rule="visibility", metric=None, value=None, bound=None, margin=None, verdict=verdict, said=said
        )


def _not_worse(candidate: EvalReport, champion: EvalReport | None, policy: PromoteConfig) -> Iterator[RuleOutcome]:
    """Non-inferiority to the champion in at least `spaces` feature spaces, each by its FID and the joint error."""
    if champion is None or not policy.spaces:
        return
    outcomes = [_against(candidate, metric, champion, policy) for metric in _spaces(candidate)]
    yield from outcomes
    good = sum(outcome.verdict == "pass" for outcome in outcomes)
    said = f"not worse than the champion in {good} of {len(outcomes)} feature spaces; {policy.spaces} are needed."
    verdict: Verdict = "pass" if good >= policy.spaces else "missing" if len(outcomes) < policy.spaces else "fail"
    yield RuleOutcome(
        rule="feature spaces", metric=None, value=float(good), bound=float(policy.spaces), margin=None,
        verdict=verdict, said=said,
    )  # fmt: skip


def _spaces(report: EvalReport) -> list[Metric]:
    return [m for m in report.metrics if m.stem == "fid" and m.region == "whole"]


def _against(candidate: EvalReport, metric: Metric, champion: EvalReport, policy: PromoteConfig) -> RuleOutcome:
    rival = next((other for other in _spaces(champion) if other.name == metric.name), None)
    rule = f"not worse, {metric.name}"
    wrong = "the champion's report has none" if rival is None else _not_compared(candidate, metric, champion, rival)
    if rival is None or wrong:
        said = f"it cannot be compared: {wrong}. Evaluate both in the same way."
        return RuleOutcome(
            rule=rule, metric=metric.name, value=_finite(metric.value), bound=None, margin=policy.margin,
            verdict="missing", said=said, binding=False,
        )  # fmt: skip
    error = math.hypot(metric.spread or 0.0, rival.spread or 0.0)
    worst = metric.value + _Z * error
    bound = rival.value + policy.margin * abs(rival.value)
    verdict: Verdict = "pass" if worst <= bound else "fail"
    said = (
        f"{metric.value:.4g}, at worst {worst:.4g} (95 %), against the champion's {rival.value:.4g} and a margin of "
        f"{policy.margin:.1%} ({bound:.4g})."
    )
    return RuleOutcome(
        rule=rule, metric=metric.name, value=metric.value, bound=bound, margin=policy.margin, verdict=verdict,
        said=said, binding=False,
    )  # fmt: skip


def _not_compared(candidate: EvalReport, metric: Metric, champion: EvalReport, rival: Metric) -> str:
    """Why two numbers cannot be compared, in words; empty where they can."""
    if None in (_finite(metric.value), _finite(rival.value)):
        return f"the values are {metric.value} and {rival.value}"
    return "; ".join(map(str, comparison.differences(candidate, metric, champion, rival)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bounds(candidate: EvalReport, _: EvalReport | None, policy: PromoteConfig) -> Iterator[RuleOutcome]:
    """Numbers that must stay below or above a bound, whoever the champion is."""
    limits = (
        ("relative FD", "rfd", policy.max_rfd, True),
        ("KID", "kid", policy.max_kid, True),
        ("coverage", "coverage", policy.min_coverage, False),
        ("rim", "c2st_rim", policy.max_rim_auc, True),
        ("lesions", "microaneurysms_w1", policy.max_lesion_distance, True),
        ("geometry", "disc_upright_w1", policy.max_geometry_distance, True),
    )
    for rule, stem, bound, below in limits:
        if bound is None:
            continue
        metric = candidate.metric(stem)
        if metric is None or not math.isfinite(metric.value):
            said = f"the report has no {stem}, which the policy asks for. {_why_missing(candidate, stem)}"
            yield RuleOutcome(
                rule=rule, metric=stem, value=None, bound=bound, margin=None, verdict="missing", said=said
            )
            continue
        fine = metric.value <= bound if below else metric.value >= bound
        said = f"{metric.name} is {metric.value:.4g}; {'at most' if below else 'at least'} {bound:g} is needed."
        yield RuleOutcome(
            rule=rule, metric=metric.name, value=metric.value, bound=bound, margin=None,
            verdict="pass" if fine else "fail", said=said,
        )  # fmt: skip


def _alarms(candidate: EvalReport, _: EvalReport | None, policy: PromoteConfig) -> Iterator[RuleOutcome]:
    """What rings or does not: 0 is silence."""
    for rule, stem, wanted in (
        ("spectrum", "spectrum_alarm", policy.spectrum),
        ("memorisation", "memorisation_alarm", policy.memorisation),
    ):
        if wanted == "ignore":
            continue
        metric = candidate.metric(stem)
        if metric is None:
            said = f"the report has no {stem}, which the policy asks for. {_why_missing(candidate, stem)}"
            yield RuleOutcome(rule=rule, metric=stem, value=None, bound=0.0, margin=None, verdict="missing", said=said)
            continue
        rings = metric.value > 0
        said = f"{metric.said or stem} {'rings' if rings else 'is silent'}."
        yield RuleOutcome(
            rule=rule, metric=metric.name, value=metric.value, bound=0.0, margin=None,
            verdict="fail" if rings else "pass", said=said,
        )  # fmt: skip


def _why_missing(report: EvalReport, stem: str) -> str:
    """What the report's notes say of a metric that is not there, or what to do."""
    core = stem.removesuffix("_w1").removesuffix("_alarm")
    for note in report.notes:
        names, colon, why = note.partition(": ")
        if colon and any(core in name or name in core for name in re.split(r"[ ,()]+", names) if name):
            return f"It could not be measured: {why}"
    return "Evaluate again: dvc repro evaluate"
