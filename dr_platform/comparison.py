"""Whether two reports' numbers mean the same thing, and by how much they then differ. No I/O.

A number has an identity: what was computed, by which extractor, of how many images of which set, from which seed. Every
place that sets two numbers beside each other asks here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
class Pair:
    """A metric of two reports, by its whole name; None in the one that has it not."""

    name: str
    first: Metric | None
    second: Metric | None
    unlike: tuple[Difference, ...]  # in what their identities differ

    @property
    def difference(self) -> float | None:
        """Second minus first, where the two mean the same thing."""
        if self.first is None or self.second is None or self.unlike:
            return None
        return self.second.value - self.first.value

    @property
    def spread(self) -> float | None:
        """Standard error of the difference, where both have one."""
        spreads = [each.spread for each in (self.first, self.second) if each is not None and each.spread is not None]
        return math.hypot(*spreads) if self.difference is not None and len(spreads) == 2 else None

    @property
    def why_not(self) -> str:
        """Why there is no difference, in words; empty where there is one."""
        if self.first is None or self.second is None:
            return "in one of them alone"
        return "; ".join(map(str, self.unlike))


def side_by_side(first: EvalReport, second: EvalReport) -> tuple[Pair, ...]:
    """Every metric of two reports, in the order of the first and then of the second."""
    ours, theirs = ({metric.name: metric for metric in report.metrics} for report in (first, second))
    pairs = []
    for name in {**ours, **theirs}:
        a, b = ours.get(name), theirs.get(name)
        pairs.append(Pair(name, a, b, differences(first, a, second, b) if a is not None and b is not None else ()))
    return tuple(pairs)


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


def short(digest: str) -> str:
    """The beginning of a digest, for people."""
    return f"{digest[:12]}…"


def _extractor(extractor: Extractor | None) -> str:
    if extractor is None:
        return "none"
    return (
        f"{extractor.name} ({short(extractor.weights_sha256)}, {extractor.resize}, definition {extractor.definition})"
    )
