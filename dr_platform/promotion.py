"""What "better" means: two evaluation reports and the policy in, a decision with its reasons out. No I/O.

A candidate must first stand on its own (enough images, finite numbers, equivariance) and meet the rules (see rules.py).
Against a champion it must then be compared on equal evidence, and unless the policy asks for no gain, win by more than
the policy's share and by more than chance explains. Whatever cannot be compared is held, never promoted: the champion
stays until evidence of the same kind speaks against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from dr_platform import comparison, rules
from dr_platform.config import PromoteConfig
from dr_platform.records import Decision, EvalReport, Metric

EQ_T = "eq_t_int_db"


def decide(
    candidate: EvalReport,
    candidate_version: int,
    champion: EvalReport | None,
    champion_version: int | None,
    policy: PromoteConfig,
    model: str,
) -> Decision:
    """Promote or hold version `candidate_version` of `model`, with every reason as a sentence.

    champion, champion_version: both None where the model has no champion yet; the candidate then has to meet the
    policy's absolute demands only. Lower values of the deciding metric are better (FID, KID).
    """
    metric = candidate.metric(policy.metric)
    rival = champion.metric(policy.metric) if champion else None
    reasons = list(_shortcomings(candidate, metric, policy, f"Version {candidate_version}"))
    outcomes = rules.judge(candidate, champion if candidate_version != champion_version else None, policy)
    reasons += [f"{each.rule}: {each.said}" for each in outcomes if each.binding and each.verdict != "pass"]
    promote = not reasons
    if candidate_version == champion_version:
        promote, reasons = False, [f"Version {candidate_version} is the champion already.", *reasons]
    elif promote and champion is None:
        reasons = [f"{model} has no champion yet, and version {candidate_version} meets the policy's demands."]
    elif promote and champion is not None:
        differences = list(_differences(candidate, metric, champion, rival, policy.metric))
        if differences:
            promote, reasons = False, differences
        elif policy.min_gain is not None:
            promote, reasons = _contest(metric, rival, policy.min_gain, policy.spreads)
        else:
            reasons = [f"Version {candidate_version} meets every rule against version {champion_version}."]
    return Decision(
        model=model,
        model_version=candidate_version,
        champion=champion_version,
        promote=promote,
        reasons=tuple(reasons),
        metric=metric.name if metric else None,
        candidate_value=_finite(metric),
        champion_value=_finite(rival),
        rules=tuple(outcomes),
    )


def _shortcomings(report: EvalReport, metric: Metric | None, policy: PromoteConfig, who: str) -> Iterator[str]:
    """What keeps a report from being enough evidence, whoever the champion is."""
    if metric is None:
        yield f"{who}'s report has no {policy.metric}, which the policy decides by; its metrics are {_names(report)}."
        return
    if not math.isfinite(metric.value):
        yield f"{who}'s {metric.name} is {metric.value}, which is no result."
    if metric.n_fake < policy.min_images:
        yield f"{who}'s {metric.name} rests on {metric.n_fake} images; the policy asks for {policy.min_images}."
    if policy.min_eq_t_db is None:
        return
    equivariance = report.metric(EQ_T)
    if equivariance is None:
        yield f"{who}'s report has no {EQ_T}, of which the policy asks for {policy.min_eq_t_db:g} dB."
    elif not equivariance.value >= policy.min_eq_t_db:
        yield f"{who}'s {EQ_T} is {equivariance.value:.2f} dB; the policy asks for {policy.min_eq_t_db:g} dB."


def _differences(
    candidate: EvalReport, metric: Metric | None, champion: EvalReport, rival: Metric | None, stem: str
) -> Iterator[str]:
    """Why the two reports must not be compared; nothing where they may."""
    if rival is None:
        yield f"The champion's report has no {stem} to compare with; its metrics are {_names(champion)}."
        return
    assert metric is not None  # a candidate without the metric was held before
    if not math.isfinite(rival.value):
        yield f"The champion's {rival.name} is {rival.value}, which is no result to compare with."
    for found in comparison.differences(candidate, metric, champion, rival):
        yield (
            f"The {stem} values cannot be compared: the candidate's {found.what} is {found.first}, the champion's "
            f"{found.second}. Evaluate both in the same way."
        )


def _contest(metric: Metric | None, rival: Metric | None, min_gain: float, multiple: float) -> tuple[bool, list[str]]:
    """Whether a comparable candidate beats the champion by the policy's margin, and the sentence that says so."""
    assert metric is not None  # both were looked at before
    assert rival is not None
    gain = rival.value - metric.value
    share = min_gain * abs(rival.value)
    spreads = [value.spread for value in (metric, rival) if value.spread is not None]
    noise = multiple * math.hypot(*spreads)
    compared = f"{metric.name} is {metric.value:.4g} against the champion's {rival.value:.4g}"
    if gain <= 0:
        return False, [f"{compared}: no improvement."]
    reasons = []
    if gain < share:
        reasons.append(
            f"{compared}: the gain of {gain:.3g} is less than {min_gain:.1%} of the champion's ({share:.3g})."
        )
    if spreads and gain <= noise:
        reasons.append(
            f"{compared}: the gain of {gain:.3g} is within {multiple:g} combined standard errors ({noise:.3g})."
        )
    if reasons:
        return False, reasons
    beyond = f" and {multiple:g} combined standard errors ({noise:.3g})" if spreads else ""
    return True, [f"{compared}: the gain of {gain:.3g} exceeds {min_gain:.1%} ({share:.3g}){beyond}."]


def _names(report: EvalReport) -> str:
    return ", ".join(metric.name for metric in report.metrics) or "none"


def _finite(metric: Metric | None) -> float | None:
    return metric.value if metric is not None and math.isfinite(metric.value) else None
