"""Intervals, paired comparisons and verdicts: how far a statistic can be trusted, and what may be concluded from it.

Patients, not images, are what was sampled, so every spread here is over patients where they are known. Subsampling is
without replacement, since a copy of an image is a neighbour at distance 0 that no new sample would have: the bootstrap
breaks statistics of pairs. "No worse" and "the same" are tests with a margin, never the absence of significance.

Politis and Romano 1994, "Large Sample Confidence Regions Based on Subsamples"; DeLong et al. 1988; Holm 1979;
Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats

from dr_platform.errors import EvaluationError
from dr_platform.evaluation.estimate import Estimate

Scale = Literal["difference", "ratio"]


@dataclass(frozen=True)
class Decision:
    """What a test with a margin says.

    estimate: the difference or ratio with its standard error. low, high: the interval that the test inverts, of level
    1 - 2 alpha. p: of the hypothesis that the margin is passed. margin: the limits, which may be infinite.
    verdict: "equivalent" or "not inferior" if p < alpha, else "not shown", which is no proof of the contrary.
    """

    estimate: Estimate
    low: float
    high: float
    p: float
    margin: tuple[float, float]
    alpha: float
    verdict: Literal["equivalent", "not inferior", "not shown"]

    @property
    def shown(self) -> bool:
        """Whether the claim is shown."""
        return self.verdict != "not shown"


@dataclass(frozen=True)
class PairedComparison:
    """Statistic of A minus that of B on the same reals and seeds; p is two-sided, of no difference."""

    difference: Estimate
    p: float
    repeats: int


@dataclass(frozen=True)
class SeedSpread:
    """Spread of a metric over seeds. mean: its interval is over training seeds, or none with fewer than two.

    training: standard deviation between training seeds with that of generator seeds taken off, 0 where it drowns;
    None with one training seed. generator: standard deviation between generator seeds of one training; None if no
    training has two.
    """

    mean: Estimate
    training: float | None
    generator: float | None
    training_seeds: int
    generator_seeds: tuple[int, ...]


def quantile(level: float) -> float:
    """Half-width of the two-sided normal interval of this level, in standard errors: 1.96 for 0.95."""
    return float(scipy.stats.norm.ppf(0.5 + level / 2))


def normal(value: float, spread: float, kind: str, *, level: float = 0.95) -> Estimate:
    """The value with the interval value ± z spread."""
    half = quantile(level) * spread
    return Estimate(value, spread, kind, value - half, value + half)


def patients(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Patients numbered from 0, one per row: int [n]. Without `groups` every row is a patient."""
    if groups is None:
        return np.arange(n)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise EvaluationError(f"groups have shape {groups.shape} for {n} images. Give one patient per image.")
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def share(flags: np.ndarray, groups: np.ndarray | None = None, *, level: float = 0.95) -> Estimate:
    """Share of true flags with Wilson's interval.

    flags: bool [n], n ≥ 1. With `groups` (int [n]) the interval is that of as many independent images as these patients
    are worth: n over the design effect, which is the variance over patients by the binomial one, at least 1.
    """
    flags = np.asarray(flags, dtype=np.float64)
    _need(len(flags), 1, "share", "flags")
    n, p = float(len(flags)), float(flags.mean())
    kind = "Wilson interval"
    if groups is not None:
        codes = patients(groups, len(flags))
        clusters, binomial = cluster_variance(flags, codes), p * (1 - p) / n
        # With all flags alike nothing shows how alike a patient's images are, so a patient counts once.
        n = n / max(clusters / binomial, 1.0) if binomial > 0 else float(codes.max() + 1)
        kind = f"Wilson interval over {codes.max() + 1} patients"
    z = quantile(level)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return Estimate(p, math.sqrt(p * (1 - p) / n), kind, low if p > 0 else 0.0, high if p < 1 else 1.0)


def mean(values: np.ndarray, groups: np.ndarray | None = None, *, level: float = 0.95) -> Estimate:
    """Mean of values [n] over images with its standard error over patients, and Student's interval."""
    values = np.asarray(values, dtype=np.float64)
    codes = patients(groups, len(values))
    count = int(codes.max(initial=-1)) + 1
    _need(count, 2, "a mean's interval", "patients")
    value, spread = float(values.mean()), math.sqrt(cluster_variance(values, codes))
    half = float(scipy.stats.t.ppf(0.5 + level / 2, count - 1)) * spread
    return Estimate(value, spread, f"standard error over {count} patients", value - half, value + half)


def cluster_variance(values: np.ndarray, codes: np.ndarray) -> float:
    """Variance of the mean of `values` [n], linearised over patients, with n and the number of images both sampled.

    codes: int [n], patients numbered from 0, at least 2 of them (else 0 comes back).
    """
    count = int(codes.max()) + 1
    if count < 2:
        return 0.0
    sums = np.bincount(codes, weights=values - values.mean(), minlength=count)
    return float(sums @ sums * count / (count - 1) / len(values) ** 2)


def auc(
    higher: np.ndarray,
    lower: np.ndarray,
    higher_groups: np.ndarray | None = None,
    lower_groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """Probability that a score of `higher` [n] exceeds one of `lower` [m], ties half; DeLong's spread over patients.

    The interval is taken on the logit's scale and stays within [0, 1]; at exactly 0 or 1 there is none.
    """
    higher, lower = np.asarray(higher, dtype=np.float64), np.asarray(lower, dtype=np.float64)
    _need(min(len(higher), len(lower)), 1, "an AUC", "images on either side")
    above, below = placements(higher, lower), 1 - placements(lower, higher)
    value = float(above.mean())
    codes = patients(higher_groups, len(higher)), patients(lower_groups, len(lower))
    if min(codes[0].max(), codes[1].max()) < 1 or value in (0.0, 1.0):
        return Estimate(value, None, "none: needs two patients on either side and scores that overlap")
    spread = math.sqrt(cluster_variance(above, codes[0]) + cluster_variance(below, codes[1]))
    kind = f"DeLong over {codes[0].max() + 1} and {codes[1].max() + 1} patients"
    odds, half = math.log(value / (1 - value)), quantile(level) * spread / (value * (1 - value))
    return Estimate(value, spread, kind, _sigmoid(odds - half), _sigmoid(odds + half))


def placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score the share of `others` below it, ties half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(others))


def basic(value: float, resampled: np.ndarray, kind: str, least: float = -math.inf) -> Estimate:
    """A value with the basic 95 % interval of its bootstrap, nothing of it below `least`.

    It turns the bootstrap's bias around instead of doubling it: a distance is biased upwards.
    """
    low, high = 2 * value - np.quantile(resampled, (0.975, 0.025))
    return Estimate(value, float(resampled.std(ddof=1)), kind, max(least, float(low)), max(least, float(high)))


def subsample(
    statistic: Callable[..., float],
    *groups: np.ndarray,
    seed: int,
    fraction: float = 0.5,
    repeats: int = 200,
    level: float = 0.95,
    remove_bias: bool = False,
) -> Estimate:
    """A statistic of one or more samples, with its interval from subsamples of patients without replacement.

    statistic: called with one int array of row numbers per sample, and returns a float.
    groups: per sample, the patient of each row; `np.arange(n)` where every row is one.
    fraction: of each sample's patients that a subsample takes. Deviations are rescaled from b to n patients by
    √(b / (n - b)), which allows for the overlap of a subsample with the whole.
    remove_bias: subtract a bias that falls as 1 / n, as subsamples show it; else the interval is for what is expected
    at this n, bias included, and is centred so.
    """
    values, deviations, shift = _subsamples(statistic, groups, seed, fraction, repeats)
    value = values - (shift if remove_bias else 0.0)
    low, high = np.quantile(deviations, [0.5 + level / 2, 0.5 - level / 2])
    kind = f"{repeats} subsamples of {fraction:.0%} of the patients, seed {seed}"
    return Estimate(value, float(deviations.std(ddof=1)), kind, float(value - low), float(value - high))


def paired_subsample(
    statistic_a: Callable[..., float],
    statistic_b: Callable[..., float],
    *groups: np.ndarray,
    seed: int,
    fraction: float = 0.5,
    repeats: int = 200,
    level: float = 0.95,
) -> PairedComparison:
    """Difference of two generators' statistics, both taken on the same patients and the same seeds each time.

    statistic_a, statistic_b, groups: as in `subsample`; row i of the generated sample must be made from the same seed
    by both. What the shared reals add to both cancels. p is from the normal law with the subsamples' spread.
    """

    def difference(*rows: np.ndarray) -> float:
        return statistic_a(*rows) - statistic_b(*rows)

    found = subsample(difference, *groups, seed=seed, fraction=fraction, repeats=repeats, level=level)
    spread = found.spread or 0.0
    p = 2 * float(scipy.stats.norm.sf(abs(found) / spread)) if spread > 0 else float(float(found) == 0.0)
    return PairedComparison(found, p, repeats)


def paired_permutation(
    statistic: Callable[[np.ndarray], float],
    fake_a: np.ndarray,
    fake_b: np.ndarray,
    *,
    seed: int,
    repeats: int = 999,
) -> PairedComparison:
    """Exact test that two generators are one: images of the same seed change sides at random.

    statistic: of generated rows [n, ...] alone, against whatever reals it holds. fake_a, fake_b: [n, ...], row i from
    the same seed. The difference's spread is that under the hypothesis, so it is no interval's.
    """
    if fake_a.shape != fake_b.shape:
        raise EvaluationError(f"pairs need equal shapes, not {fake_a.shape} and {fake_b.shape}. Use the same seeds.")
    rng = np.random.default_rng(seed)
    found = statistic(fake_a) - statistic(fake_b)
    under = np.empty(repeats)
    for repeat in range(repeats):
        swap = rng.random(len(fake_a)) < 0.5
        swap = swap.reshape(-1, *[1] * (fake_a.ndim - 1))
        under[repeat] = statistic(np.where(swap, fake_b, fake_a)) - statistic(np.where(swap, fake_a, fake_b))
    kind = f"standard deviation under {repeats} exchanges, seed {seed}"
    return PairedComparison(Estimate(found, float(under.std(ddof=1)), kind), permutation_p(found, under), repeats)


def permutation_p(found: float, under: np.ndarray) -> float:
    """Two-sided p of a value against those under the hypothesis [r], itself counted: never 0."""
    slack = 1e-9 * max(abs(found), float(np.abs(under).max(initial=0)))  # rounding must not decide a tie
    return float((1 + (np.abs(under) >= abs(found) - slack).sum()) / (1 + len(under)))


def one_sided_p(excess: Estimate) -> float:
    """p of an excess that is 0 or below, by the normal law; 1 or 0 where it has no spread."""
    spread = _spread(excess)
    return float(scipy.stats.norm.sf(float(excess) / spread)) if spread > 0 else float(excess <= 0)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p by name: those below alpha may be claimed together, with a family-wise error below alpha."""
    wrong = {name: value for name, value in p.items() if not 0 <= value <= 1}
    if wrong:
        raise EvaluationError(f"p values lie in [0, 1]; found {wrong}. Mend what gave them.")
    ranked, adjusted, largest = sorted(p, key=lambda name: p[name]), {}, 0.0
    for rank, name in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def difference(new: Estimate, old: Estimate, *, covariance: float = 0.0) -> Estimate:
    """new - old with its standard error; covariance: of the two estimates, 0 if they share nothing."""
    variance = _spread(new) ** 2 + _spread(old) ** 2 - 2 * covariance
    return normal(float(new) - float(old), math.sqrt(max(variance, 0.0)), "difference of two estimates")


def ratio(new: Estimate, old: Estimate, *, covariance: float = 0.0) -> Estimate:
    """new / old, both positive, with its standard error by the delta method and an interval on the log's scale."""
    if not (new > 0 and old > 0):
        raise EvaluationError(f"a ratio needs positive values, not {new!r} and {old!r}. Compare the difference.")
    value, relative = float(new) / float(old), covariance / (float(new) * float(old))
    log_spread = math.sqrt(max((_spread(new) / new) ** 2 + (_spread(old) / old) ** 2 - 2 * relative, 0.0))
    half = quantile(0.95) * log_spread
    return Estimate(
        value, value * log_spread, "ratio of two estimates", value * math.exp(-half), value * math.exp(half)
    )


def equivalence(
    estimate: Estimate, margin: float, *, scale: Scale = "difference", alpha: float = 0.05, df: float | None = None
) -> Decision:
    """Two one-sided tests that a difference lies within ± margin, or a ratio within [1 / margin, margin].

    estimate: needs a standard error. margin: > 0, or > 1 for a ratio. df: degrees of freedom of the standard error
    (training seeds - 1, say); None: many. A ratio is tested on the log's scale.
    """
    return _decide(estimate, margin, scale, alpha, df, lower=True, upper=True, verdict="equivalent")


def non_inferiority(
    estimate: Estimate,
    margin: float,
    *,
    scale: Scale = "difference",
    lower_is_better: bool = True,
    alpha: float = 0.05,
    df: float | None = None,
) -> Decision:
    """One-sided test that new is worse than old by less than the margin; estimate, margin and df as in `equivalence`.

    estimate: new - old, or new / old. lower_is_better: as for distances; False for recall, say.
    """
    return _decide(
        estimate, margin, scale, alpha, df, lower=not lower_is_better, upper=lower_is_better, verdict="not inferior"
    )


def seed_spread(values: Sequence[Sequence[float]], *, level: float = 0.95) -> SeedSpread:
    """Components of a metric's spread: values[t][g] is the metric of training seed t with generator seed g.

    Moments of the one-way random-effects layout; rows may differ in length. What trainings differ by and what one
    training's samples differ by are two things: the second cannot stand for the first.
    """
    if not values or not all(len(row) for row in values):
        raise EvaluationError("a training without a value says nothing of seeds. Give one list of values per training.")
    rows = [np.asarray(row, dtype=np.float64) for row in values]
    sizes, means = np.array([len(row) for row in rows]), np.array([row.mean() for row in rows])
    freedom = int(sizes.sum()) - len(rows)
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / freedom if freedom else None
    generator = None if within is None else math.sqrt(within)
    value = float(means.mean())
    if len(rows) < 2:
        spread = None if generator is None else generator / math.sqrt(sizes[0])
        kind = "none over trainings: one training seed; the spread is over generator seeds alone"
        return SeedSpread(Estimate(value, spread, kind), None, generator, 1, tuple(sizes.tolist()))
    between = float(means.var(ddof=1)) - (within or 0.0) * float((1 / sizes).mean())
    spread = float(means.std(ddof=1)) / math.sqrt(len(rows))
    half = float(scipy.stats.t.ppf(0.5 + level / 2, len(rows) - 1)) * spread
    estimate = Estimate(value, spread, f"standard error over {len(rows)} training seeds", value - half, value + half)
    return SeedSpread(estimate, math.sqrt(max(between, 0.0)), generator, len(rows), tuple(sizes.tolist()))


def _decide(
    estimate: Estimate,
    margin: float,
    scale: Scale,
    alpha: float,
    df: float | None,
    *,
    lower: bool,
    upper: bool,
    verdict: Literal["equivalent", "not inferior"],
) -> Decision:
    least = 1.0 if scale == "ratio" else 0.0
    if not margin > least:
        raise EvaluationError(f"the margin of a {scale} is {margin:g}; it must exceed {least:g}. Set it beforehand.")
    value, spread, limit = float(estimate), _spread(estimate), margin
    if scale == "ratio":
        if value <= 0:
            raise EvaluationError(f"a ratio of {value:g} has no logarithm. Compare the difference.")
        value, spread, limit = math.log(value), spread / value, math.log(margin)
    law = scipy.stats.norm if df is None else scipy.stats.t(df)
    tails = [limit + sign * value for sign, wanted in ((1, lower), (-1, upper)) if wanted]  # room to each limit
    p = max(float(law.sf(room / spread)) if spread > 0 else float(room <= 0) for room in tails)
    half = float(law.ppf(1 - alpha)) * spread
    ends = value - half, value + half
    limits = (-limit if lower else -math.inf), (limit if upper else math.inf)
    if scale == "ratio":
        ends = math.exp(ends[0]), math.exp(ends[1])
        limits = math.exp(limits[0]), math.exp(limits[1])
    return Decision(estimate, *ends, p, limits, alpha, verdict if p < alpha else "not shown")


def _subsamples(
    statistic: Callable[..., float], groups: tuple[np.ndarray, ...], seed: int, fraction: float, repeats: int
) -> tuple[float, np.ndarray, float]:
    """The value, the rescaled and centred deviations of subsamples [repeats], and the bias that they show."""
    if not 0 < fraction < 1 or repeats < 2:
        raise EvaluationError(
            f"subsampling takes a fraction between 0 and 1, twice or more; not {fraction:g}, {repeats} times."
        )
    rows_of = [_rows_by_patient(np.asarray(one)) for one in groups]
    _need(min(len(one) for one in rows_of), 4, "subsampling", "patients in every sample")
    taken = [min(max(round(fraction * len(one)), 2), len(one) - 1) for one in rows_of]
    rng = np.random.default_rng(seed)
    value = statistic(*(np.sort(np.concatenate(one)) for one in rows_of))
    found = np.empty(repeats)
    for repeat in range(repeats):
        drawn = [rng.choice(len(one), size, replace=False) for one, size in zip(rows_of, taken, strict=True)]
        found[repeat] = statistic(
            *(np.sort(np.concatenate([one[i] for i in chosen])) for one, chosen in zip(rows_of, drawn, strict=True))
        )
    odds = float(np.mean([size / (len(one) - size) for one, size in zip(rows_of, taken, strict=True)]))
    return value, (found - found.mean()) * math.sqrt(odds), (float(found.mean()) - value) * odds


def _rows_by_patient(groups: np.ndarray) -> list[np.ndarray]:
    codes = patients(groups, len(groups))
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _spread(estimate: Estimate) -> float:
    spread = getattr(estimate, "spread", None)
    if spread is None or not math.isfinite(spread):
        raise EvaluationError(f"{float(estimate):g} has no standard error, so it cannot be compared. Give an interval.")
    return float(spread)


def _need(found: int, needed: int, what: str, of: str) -> None:
    if found < needed:
        raise EvaluationError(f"{what} needs at least {needed} {of}; there are {found}. Use more images.")
