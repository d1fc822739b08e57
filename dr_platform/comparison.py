"""Whether two reports' numbers mean the same thing, and by how much they then differ. No I/O.

A number has an identity: what was computed, by which extractor, of how many images of which set, from which seed. Every
place that sets two numbers beside each other asks here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dr_platform.errors import EvaluationError
from dr_platform.records import EvalReport, Extractor, Metric


@dataclass(frozen=True)
class Difference:
    """A part of two numbers' identities that is not the same, as a person reads it."""

    what: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.what} {self.first} and {self.second}"


@dataclass(frozen=True)
class Comparison:
    """One metric of two reports. `difference` is second minus first; `spread` joins both where both have one."""

    first: Metric
    second: Metric
    difference: float
    spread: float | None


def differences(first: EvalReport, a: Metric, second: EvalReport, b: Metric) -> tuple[Difference, ...]:
    """In what the identities of metric `a` of `first` and `b` of `second` differ; nothing where they compare."""
    pairs = {
        "metric": (a.name, b.name),
        "definition": (a.definition, b.definition),
        "region": (a.region, b.region),
        "extractor": (_extractor(a.extractor), _extractor(b.extractor)),
        "number of generated images": (a.n_fake, b.n_fake),
        "number of real images": (a.n_real, b.n_real),
        "seed": (a.seed, b.seed),
        "grade": (first.grade, second.grade),
        "resolution": (first.resolution, second.resolution),
        "set of real images": (short(first.reference_sha256), short(second.reference_sha256)),
    }
    return tuple(Difference(what, str(one), str(two)) for what, (one, two) in pairs.items() if one != two)


def compare(first: EvalReport, second: EvalReport, stem: str) -> Comparison:
    """The metric `stem` (fid, kid, eq_t_int_db, ...) of two reports.

    Raises EvaluationError if a report lacks it, or if the numbers' identities differ: their difference means nothing.
    """
    a, b = first.metric(stem), second.metric(stem)
    for report, metric in ((first, a), (second, b)):
        if metric is None:
            raise EvaluationError(f"the report of {report.run} has no {stem}. {EvalReport.remedy}")
    assert a is not None
    assert b is not None
    if found := differences(first, a, second, b):
        raise EvaluationError(
            f"{stem} of {first.run} and of {second.run} are not comparable: {'; '.join(map(str, found))}. "
            "Evaluate both in the same way."
        )
    spread = None if a.spread is None or b.spread is None else math.hypot(a.spread, b.spread)
    return Comparison(a, b, b.value - a.value, spread)


def short(digest: str) -> str:
    """The beginning of a digest, for people."""
    return f"{digest[:12]}…"


def _extractor(extractor: Extractor | None) -> str:
    if extractor is None:
        return "none"
    return (
        f"{extractor.name} ({short(extractor.weights_sha256)}, {extractor.resize}, definition {extractor.definition})"
    )
