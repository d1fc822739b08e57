"""The ten ways in which "a bootstrap of the FID" can have been computed, from features that are there already.

A published "FID 17.29, bootstrap mean 21.18 (95 % CI 20.83-21.56)" does not say what was resampled. Each protocol has a
shift from the point value and a spread of its own, both proportional to the trace of the real covariance; so the pair
tells which was used, and what it means. Where the reals were drawn with replacement against the fakes, the mean is no
baseline but the same generator's FID with its small-sample bias applied twice: 2 point - mean takes it out once.

None of these is an interval to decide by; those are in frechet.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import frechet
from dr_platform.evaluation.estimate import Estimate
from dr_platform.evaluation.frechet import Array, Rows

PROTOCOLS = {
    "A": "all generated images, fixed, against the reals drawn with replacement",
    "B": "as many fresh generated images as reals, against the reals",
    "C": "generated images and reals both drawn with replacement, from as many as there are reals",
    "D": "reals drawn with replacement against reals drawn with replacement",
    "E": "one half of the reals against the other",
    "F": "reals drawn with replacement against the reals",
    "G": "generated images drawn with replacement, from as many as there are reals, against the reals",
    "H": "all generated images, fixed, against 80 % of the reals without replacement",
    "I": "1,000 fresh generated images against 1,000 of the reals",
    "J": "as many fresh generated images as reals, against the reals drawn with replacement",
}
PUBLISHED_SHIFT, PUBLISHED_SD = 3.89, 0.186
_SHARE_H, _SIZE_I = 0.8, 1000
_SLOW_STEPS = 36  # of `frechet.bootstrap`, with as many eigendecompositions

T = TypeVar("T")


@dataclass(frozen=True)
class Replication:
    """What one protocol gives. All numbers are distances but the counts and `trace`.

    point: FID of all generated images against all reals, whatever the protocol. mean, sd, low, high: of the protocol's
    repetitions, low and high their 2.5 and 97.5 percentiles. real, generated: images on either side of one repetition;
    `generated` is the second set of reals in D, E and F. note: what differs from the protocol because there are too few
    images, or "". error: root mean square error of one repetition, 0 where each is exact. trace: of the real
    covariance.
    """

    protocol: str
    description: str
    point: float
    mean: float
    sd: float
    low: float
    high: float
    repetitions: int
    real: int
    generated: int
    note: str
    error: float
    trace: float

    @property
    def shift(self) -> float:
        """mean - point."""
        return self.mean - self.point


@dataclass(frozen=True)
class Match:
    """How near a protocol comes to a published shift and standard deviation.

    misfit: root of the sum of squares of the two log ratios; infinite where the shift has the other sign.
    trace_needed: the trace of the real covariance at which the shift would be met. sd_there: the spread it implies.
    """

    protocol: str
    misfit: float
    trace_needed: float
    sd_there: float


@dataclass(frozen=True, eq=False)
class _Sets:
    real: Rows
    generated: Rows
    groups: Rows | None
    known: frechet.Reference  # of the reals
    rng: np.random.Generator
    seed: int
    tell: Callable[[int, int], None]  # repetitions done, of how many

    @property
    def fresh(self) -> int:
        """Images to draw anew each time: half of the pool at most, or the draws would be all but the same."""
        return min(len(self.real), max(2, len(self.generated) // 2))

    def counted(self, items: Iterable[T], times: int) -> Iterator[T]:
        """The items; each is told of when the next is asked for."""
        for done, item in enumerate(items, start=1):
            yield item
            self.tell(done, times)

    def draw(self, rows: Rows, size: int) -> Rows:
        return rows[self.rng.choice(len(rows), size, replace=False)]

    def parts(self, rows: Rows, size: int, times: int) -> Iterator[Rows]:
        """`times` random parts of `size` rows: disjoint ones if the rows suffice, else subsets that overlap."""
        if times * size > len(rows):
            yield from (self.draw(rows, size) for _ in range(times))
        else:
            yield from (rows[part] for part in self.rng.permutation(len(rows))[: times * size].reshape(times, size))

    def weights(self, count: int) -> Rows:
        return np.bincount(self.rng.integers(0, count, count), minlength=count)

    def paired(self) -> Rows:
        """As many generated images as there are reals."""
        return self.generated[: len(self.real)]


@dataclass(frozen=True, eq=False)
class _Outcome:
    values: Array
    real: int
    generated: int
    note: str = ""
    error: float = 0.0


def replicate(
    protocols: Sequence[str],
    real: Rows,
    generated: Rows,
    *,
    groups: Rows | None = None,
    repetitions: int = 1000,
    exact_repetitions: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Replication, ...]:
    """Run protocols, "A" to "J", on features float [n, d] of the real and the generated images.

    groups: int [n], the patient of each real image; E splits patients, the others images, as the published code would.
    repetitions: of A, F and G, where only one side is drawn and `frechet.bootstrap` is fast. exact_repetitions: of the
    others; a standard deviation from r repetitions is good to 1/√(2 r), 16 % at 20. progress: hears of the distances
    that take long, done and in all.
    Raises EvaluationError for an unknown protocol, or fewer than 4 images on either side.
    """
    require_known(protocols)
    if min(len(real), len(generated)) < 4 or min(repetitions, exact_repetitions) < 2:
        raise EvaluationError(
            f"{len(real)} real and {len(generated)} generated images cannot be resampled, or fewer than 2 repetitions "
            "are asked for. Give at least 4 images on either side, and 2 repetitions."
        )
    times = {name: repetitions if name in _FAST else exact_repetitions for name in protocols}
    parts = {name: min(count, _SLOW_STEPS) if name in _FAST else count for name, count in times.items()}
    known = frechet.reference(real)
    point = frechet.distance(known, generated)
    results = []
    for index, name in enumerate(protocols):
        before = sum(parts[earlier] for earlier in protocols[:index])

        def tell(done: int, of: int, before: int = before, part: int = parts[name]) -> None:
            progress(before + part * done // of, sum(parts[each] for each in protocols))

        rng = np.random.default_rng((seed, ord(name)))
        sets = _Sets(real, generated, groups, known, rng, seed, tell)
        results.append(_summary(name, point, known.trace, _RUN[name](sets, times[name])))
    return tuple(results)


def best_match(
    results: Sequence[Replication],
    *,
    shift: float = PUBLISHED_SHIFT,
    sd: float = PUBLISHED_SD,
) -> tuple[Match, ...]:
    """The protocols in order of how well they reproduce a published shift and standard deviation, the best first."""
    matches = []
    for result in results:
        ratio = shift / result.shift if result.shift else math.inf
        misfit = math.hypot(math.log(ratio), math.log(sd / result.sd)) if ratio > 0 and result.sd > 0 else math.inf
        matches.append(Match(result.protocol, misfit, result.trace * ratio, result.sd * ratio))
    return tuple(sorted(matches, key=lambda match: match.misfit))


def bias_corrected(result: Replication) -> Estimate:
    """2 point - mean with its basic-bootstrap 95 % interval: the point value less the bias that the resampling shows.

    Under A it repairs most of the bias of the reals' sampling. Under J and C the excess holds that of the fakes too,
    and the value is a lower bound. Raises EvaluationError for a protocol that only compares reals.
    """
    require_correcting(result.protocol)
    kind = f"standard deviation and basic interval of {result.repetitions} repetitions of protocol {result.protocol}"
    value = 2 * result.point - result.mean
    return Estimate(value, result.sd, kind, 2 * result.point - result.high, 2 * result.point - result.low)


def require_known(protocols: Sequence[str]) -> None:
    """Raise EvaluationError if one of them is no protocol."""
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise EvaluationError(f"there is no protocol {unknown[0]!r}. Take any of {', '.join(PROTOCOLS)}.")


def require_correcting(protocol: str) -> None:
    """Raise EvaluationError if the bias of a generator's FID cannot be seen from a protocol."""
    if protocol in _REALS_ALONE:
        raise EvaluationError(
            f"protocol {protocol} compares reals with reals, which says nothing of the bias of a generator's "
            "FID. Take A."
        )


def _summary(name: str, point: float, trace: float, outcome: _Outcome) -> Replication:
    values = outcome.values
    low, high = (float(value) for value in np.quantile(values, (0.025, 0.975)))
    return Replication(
        protocol=name,
        description=PROTOCOLS[name],
        point=point,
        mean=float(values.mean()),
        sd=math.hypot(float(values.std(ddof=1)), outcome.error),  # what a surrogate leaves out varies too
        low=low,
        high=high,
        repetitions=len(values),
        real=outcome.real,
        generated=outcome.generated,
        note=outcome.note,
        error=outcome.error,
        trace=trace,
    )


# ---- the protocols ------------------------------------------------------------------------------------------------


def _all_against_resampled(sets: _Sets, times: int) -> _Outcome:
    drawn = frechet.bootstrap(
        frechet.reference(sets.generated), sets.real, repetitions=times, seed=sets.seed, progress=sets.tell
    )
    return _Outcome(drawn.values, len(sets.real), len(sets.generated), _fixed_note(sets), drawn.error)


def _fresh(sets: _Sets, times: int) -> _Outcome:
    values = [
        frechet.distance(sets.known, part)
        for part in sets.counted(sets.parts(sets.generated, sets.fresh, times), times)
    ]
    return _Outcome(np.array(values), len(sets.real), sets.fresh, _fresh_note(sets, times))


def _both_resampled(sets: _Sets, times: int) -> _Outcome:
    fakes = sets.paired()
    values = [_distance_of_resamples(sets, fakes) for _ in sets.counted(range(times), times)]
    return _Outcome(np.array(values), len(sets.real), len(fakes), _paired_note(sets))


def _reals_resampled_twice(sets: _Sets, times: int) -> _Outcome:
    values = [_distance_of_resamples(sets, sets.real) for _ in sets.counted(range(times), times)]
    return _Outcome(np.array(values), len(sets.real), len(sets.real))


def _distance_of_resamples(sets: _Sets, other: Rows) -> float:
    known = frechet.reference(sets.real, sets.weights(len(sets.real)))
    return frechet.distance(known, other, sets.weights(len(other)))


def _reals_in_halves(sets: _Sets, times: int) -> _Outcome:
    values, size = np.empty(times), (0, 0)
    for i in sets.counted(range(times), times):
        first, second = frechet.halves(sets.rng, len(sets.real), sets.groups)
        values[i] = frechet.distance(frechet.reference(sets.real[first]), sets.real[second])
        size = (len(first), len(second))
    return _Outcome(values, *size)


def _reals_resampled(sets: _Sets, times: int) -> _Outcome:
    drawn = frechet.bootstrap(sets.known, sets.real, repetitions=times, seed=sets.seed, progress=sets.tell)
    return _Outcome(drawn.values, len(sets.real), len(sets.real), "", drawn.error)


def _resampled_against_reals(sets: _Sets, times: int) -> _Outcome:
    fakes = sets.paired()
    drawn = frechet.bootstrap(sets.known, fakes, repetitions=times, seed=sets.seed, progress=sets.tell)
    return _Outcome(drawn.values, len(sets.real), len(fakes), _paired_note(sets), drawn.error)


def _all_against_most(sets: _Sets, times: int) -> _Outcome:
    known, size = frechet.reference(sets.generated), max(2, round(_SHARE_H * len(sets.real)))
    values = [frechet.distance(known, sets.draw(sets.real, size)) for _ in sets.counted(range(times), times)]
    return _Outcome(np.array(values), size, len(sets.generated), _fixed_note(sets))


def _a_thousand_each(sets: _Sets, times: int) -> _Outcome:
    size = min(_SIZE_I, len(sets.real) // 2, len(sets.generated) // 2)
    fresh = sets.counted(sets.parts(sets.generated, size, times), times)
    values = [frechet.distance(frechet.reference(sets.draw(sets.real, size)), part) for part in fresh]
    notes = [] if size == _SIZE_I else [f"{size} images a side instead of 1,000"]
    return _Outcome(np.array(values), size, size, "; ".join(notes + _overlap(sets, size, times)))


def _fresh_against_resampled(sets: _Sets, times: int) -> _Outcome:
    values = [
        frechet.distance(frechet.reference(part), sets.real, sets.weights(len(sets.real)))
        for part in sets.counted(sets.parts(sets.generated, sets.fresh, times), times)
    ]
    return _Outcome(np.array(values), len(sets.real), sets.fresh, _fresh_note(sets, times))


def _fixed_note(sets: _Sets) -> str:
    return "" if len(sets.generated) >= 50_000 else f"{len(sets.generated)} generated images instead of 50,000"


def _fresh_note(sets: _Sets, times: int) -> str:
    notes = [f"{sets.fresh} fresh images instead of {len(sets.real)}"] if sets.fresh < len(sets.real) else []
    return "; ".join(notes + _overlap(sets, sets.fresh, times))


def _overlap(sets: _Sets, size: int, times: int) -> list[str]:
    pool = len(sets.generated)
    what = f"fresh images are random subsets of {pool}, which overlap: the spread is too small"
    return [what] if times * size > pool else []


def _paired_note(sets: _Sets) -> str:
    size = len(sets.paired())
    return "" if size == len(sets.real) else f"{size} generated images instead of {len(sets.real)}"


_FAST = frozenset("AFG")
_REALS_ALONE = frozenset("DEF")
_RUN: dict[str, Callable[[_Sets, int], _Outcome]] = {
    "A": _all_against_resampled,
    "B": _fresh,
    "C": _both_resampled,
    "D": _reals_resampled_twice,
    "E": _reals_in_halves,
    "F": _reals_resampled,
    "G": _resampled_against_reals,
    "H": _all_against_most,
    "I": _a_thousand_each,
    "J": _fresh_against_resampled,
}
