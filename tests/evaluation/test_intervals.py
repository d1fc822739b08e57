"""Intervals cover at their rate, tests err at theirs, and decisions are the textbook's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.estimate import Estimate


def within(hits: int, n: int, rate: float) -> bool:
    """Whether a count is one of the middle 99.9 % that this rate gives: repeated seeds may show no more."""
    low, high = scipy.stats.binom.interval(0.999, n, rate)
    return bool(low <= hits <= high)


def eyes(patients: int, rng: np.random.Generator, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Normal values of 1-3 images per patient, correlated by 0.8 within one, and whose they are."""
    sizes = rng.integers(1, 4, patients)
    groups = np.repeat(np.arange(patients), sizes)
    own = math.sqrt(0.8) * rng.normal(size=patients)[groups]
    return own + math.sqrt(0.2) * rng.normal(size=len(groups)) + shift, groups


def test_wilson_is_the_textbook_interval() -> None:
    # Solutions of |p - 0.2| = 1.959964 √(p (1 - p) / 10), found with Newcombe 1998's formula: 0.0567 and 0.5098.
    estimate = intervals.share(np.arange(10) < 2)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.2, 0.05668, 0.50984), abs=1e-5)
    for limit in (estimate.low, estimate.high):
        assert abs(limit - 0.2) == pytest.approx(1.959964 * math.sqrt(limit * (1 - limit) / 10), abs=1e-6)


@pytest.mark.parametrize("flags", [np.zeros(20, bool), np.ones(20, bool)])
def test_a_share_of_none_or_all_keeps_an_interval(flags: np.ndarray) -> None:
    estimate = intervals.share(flags)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low > 0.1
    by_patient = intervals.share(flags, np.arange(20) // 4)
    assert by_patient.high - by_patient.low > estimate.high - estimate.low


def test_the_interval_of_a_share_covers_over_patients_and_not_over_images() -> None:
    rng, truth = np.random.default_rng(0), scipy.stats.norm.sf(0.5)
    by_patient = by_image = 0
    for _ in range(400):
        values, groups = eyes(100, rng)
        flags = values > 0.5
        one, other = intervals.share(flags, groups), intervals.share(flags)
        by_patient += one.low <= truth <= one.high
        by_image += other.low <= truth <= other.high
    assert within(by_patient, 400, 0.95)
    assert by_image < 0.92 * 400


def test_the_interval_of_a_mean_covers_over_patients() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        estimate = intervals.mean(*eyes(60, rng))
        hits += estimate.low <= 0 <= estimate.high
    assert within(hits, 400, 0.95)


def test_auc_is_mann_whitney_with_ties_half() -> None:
    higher, lower = np.array([1, 2, 2, 5.0]), np.array([0, 2, 3.0])
    expected = np.mean((higher[:, None] > lower) + 0.5 * (higher[:, None] == lower))
    assert intervals.auc(higher, lower).value == pytest.approx(expected)
    assert intervals.auc(lower, higher).value == pytest.approx(1 - expected)


def test_the_interval_of_an_auc_covers_over_patients() -> None:
    rng, hits, truth = np.random.default_rng(2), 0, scipy.stats.norm.cdf(0.6 / math.sqrt(2))
    for _ in range(400):
        higher, lower = eyes(50, rng, shift=0.6), eyes(40, rng)
        estimate = intervals.auc(higher[0], lower[0], higher[1], lower[1])
        hits += estimate.low <= truth <= estimate.high
    assert within(hits, 400, 0.95)


def test_scores_that_do_not_overlap_have_no_spread() -> None:
    estimate = intervals.auc(np.array([3.0, 4]), np.array([1.0, 2]))
    assert (estimate.value, estimate.spread) == (1.0, None)


def test_subsampling_gives_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(size=200)
    found = intervals.subsample(lambda rows: values[rows].mean(), np.arange(200), seed=0, repeats=2000)
    # Without replacement the variance over subsamples is s² (1/b - 1/n) exactly; 2,000 fix the deviation to 1.6 %.
    assert found.spread == pytest.approx(values.std(ddof=1) / math.sqrt(200), rel=0.05)
    assert found.value == values.mean()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_subsampling_covers_whatever_the_fraction_with_patients(fraction: float) -> None:
    rng, hits = np.random.default_rng(4), 0
    for i in range(150):
        values, groups = eyes(80, rng)
        found = intervals.subsample(
            lambda rows, v=values: float(v[rows].mean()), groups, seed=i, fraction=fraction, repeats=200
        )
        hits += found.low <= 0 <= found.high
    assert within(hits, 150, 0.95)


def test_subsampling_two_samples_covers_a_biased_distance_once_its_bias_is_removed() -> None:
    # Squared distance of the means in d dimensions: biased by d (1/n + 1/m), and 1 in truth.
    rng, d, n = np.random.default_rng(5), 10, 100
    hits, biased = 0, 0
    for i in range(150):
        real, fake = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 1 / math.sqrt(d)

        def distance(r: np.ndarray, f: np.ndarray, real: np.ndarray = real, fake: np.ndarray = fake) -> float:
            return float(((real[r].mean(axis=0) - fake[f].mean(axis=0)) ** 2).sum())

        both = [
            intervals.subsample(distance, np.arange(n), np.arange(n), seed=i, repeats=100, remove_bias=remove)
            for remove in (True, False)
        ]
        hits, biased = (count + (one.low <= 1 <= one.high) for count, one in zip((hits, biased), both, strict=True))
    assert within(hits, 150, 0.95)
    assert biased < hits


def test_subsamples_hold_no_patient_twice_and_all_images_of_one() -> None:
    groups = np.repeat(np.arange(10), 3)
    seen = []
    intervals.subsample(lambda rows: seen.append(rows) or 0.0, groups, seed=0, repeats=20)
    for rows in seen[1:]:
        assert len(rows) == len(set(rows)) == 15
        assert len(set(groups[rows])) == 5


def test_a_paired_comparison_is_sharper_than_its_sides() -> None:
    rng = np.random.default_rng(6)
    real, noise = rng.normal(size=100), rng.normal(size=100)
    a, b = noise + 0.3, noise + 0.2

    def distance(fake: np.ndarray) -> object:
        return lambda r, f: float(abs(real[r].mean() - fake[f].mean()))

    groups = np.arange(100), np.arange(100)
    found = intervals.paired_subsample(distance(a), distance(b), *groups, seed=0)
    alone = intervals.subsample(distance(a), *groups, seed=0)
    assert found.difference.spread < 0.5 * alone.spread
    same = intervals.paired_subsample(distance(a), distance(a), *groups, seed=0)
    assert (same.difference.value, same.p) == (0, 1)


def test_permutation_p_is_uniform_without_a_difference_and_small_with_one() -> None:
    rng, below = np.random.default_rng(7), 0
    for i in range(200):
        noise = rng.normal(size=(30, 2))
        a, b = (noise + rng.normal(size=(30, 2)) for _ in range(2))
        below += (
            intervals.paired_permutation(lambda x: float((x.mean(axis=0) ** 2).sum()), a, b, seed=i, repeats=99).p
            <= 0.1
        )
    assert within(below, 200, 0.1)
    a = rng.normal(size=(30, 2))
    assert intervals.paired_permutation(lambda x: float(x.mean()), a + 1, a, seed=0).p == 0.001


def test_pairs_of_unequal_shape_are_refused() -> None:
    with pytest.raises(EvaluationError, match="equal shapes"):
        intervals.paired_permutation(lambda x: 0.0, np.zeros((3, 2)), np.zeros((4, 2)), seed=0)


def test_holm_is_the_textbook_procedure() -> None:
    adjusted = intervals.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert intervals.holm({}) == {}
    with pytest.raises(EvaluationError, match="lie in"):
        intervals.holm({"a": 1.2})


def test_holm_bounds_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(8)
    wrong = sum(
        min(intervals.holm({str(j): p for j, p in enumerate(rng.random(5))}).values()) < 0.05 for _ in range(1000)
    )
    assert within(wrong, 1000, 1 - 0.99**5)  # independent: 1 - (1 - 0.05 / 5)⁵


def test_equivalence_is_the_interval_of_ninety_per_cent_within_the_margin() -> None:
    z = scipy.stats.norm.ppf(0.95)
    inside = intervals.equivalence(Estimate(0.1, 0.1), 0.1 + 1.001 * z * 0.1)
    outside = intervals.equivalence(Estimate(0.1, 0.1), 0.1 + 0.999 * z * 0.1)
    assert (inside.verdict, outside.verdict) == ("equivalent", "not shown")
    assert (inside.low, inside.high) == pytest.approx((0.1 - z * 0.1, 0.1 + z * 0.1))
    assert inside.shown
    with pytest.raises(dataclasses.FrozenInstanceError):
        inside.p = 0.0


def test_equivalence_errs_at_alpha_on_the_margin() -> None:
    draws = 1 + 0.2 * np.random.default_rng(9).normal(size=2000)
    wrong = sum(intervals.equivalence(Estimate(x, 0.2), 1.0).shown for x in draws)
    assert within(wrong, 2000, 0.05)


def test_a_wide_estimate_shows_neither_equality_nor_no_harm() -> None:
    assert not intervals.equivalence(Estimate(0.0, 1.0), 0.5).shown
    assert not intervals.non_inferiority(Estimate(0.0, 1.0), 0.5).shown


def test_non_inferiority_looks_to_the_worse_side_only() -> None:
    much_better = Estimate(-5.0, 0.1)
    assert intervals.non_inferiority(much_better, 0.5).verdict == "not inferior"
    assert intervals.non_inferiority(much_better, 0.5, lower_is_better=False).verdict == "not shown"
    assert intervals.non_inferiority(much_better, 0.5).margin == (-math.inf, 0.5)
    assert intervals.equivalence(much_better, 0.5).verdict == "not shown"


def test_a_ratio_is_tested_on_the_scale_of_its_logarithm() -> None:
    new, old = Estimate(10.0, 0.1), Estimate(10.2, 0.1)
    ratio = intervals.ratio(new, old)
    assert ratio.spread == pytest.approx(ratio * math.hypot(0.1 / 10, 0.1 / 10.2))
    decision = intervals.non_inferiority(ratio, 1.05, scale="ratio")
    room = (math.log(1.05) - math.log(ratio)) / math.hypot(0.1 / 10, 0.1 / 10.2)
    assert decision.p == pytest.approx(scipy.stats.norm.sf(room))
    assert decision.margin == pytest.approx((0.0, 1.05))
    turned = intervals.equivalence(intervals.ratio(old, new), 1.05, scale="ratio")
    assert turned.p == pytest.approx(intervals.equivalence(ratio, 1.05, scale="ratio").p)


def test_what_is_shared_sharpens_a_difference() -> None:
    a, b = Estimate(3.0, 0.5), Estimate(2.0, 0.5)
    assert intervals.difference(a, b).spread == pytest.approx(0.5 * math.sqrt(2))
    assert intervals.difference(a, b, covariance=0.25).spread == 0
    assert intervals.difference(a, b).value == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.equivalence(Estimate(1.0), 0.5), "no standard error"),
        (lambda: intervals.equivalence(Estimate(1.0, 0.1), 0.0), "must exceed 0"),
        (lambda: intervals.non_inferiority(Estimate(1.0, 0.1), 1.0, scale="ratio"), "must exceed 1"),
        (lambda: intervals.ratio(Estimate(1.0, 0.1), Estimate(-1.0, 0.1)), "positive values"),
        (lambda: intervals.subsample(lambda rows: 0.0, np.arange(3), seed=0), "at least 4 patients"),
        (lambda: intervals.subsample(lambda rows: 0.0, np.arange(9), seed=0, fraction=1.0), "between 0 and 1"),
        (lambda: intervals.mean(np.ones(3), np.zeros(3)), "at least 2 patients"),
        (lambda: intervals.seed_spread([[1.0], []]), "one list of values per training"),
    ],
)
def test_what_cannot_be_concluded_is_refused(call: object, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        call()


def test_few_training_seeds_widen_a_decision() -> None:
    estimate = Estimate(0.0, 0.1)
    assert intervals.equivalence(estimate, 0.2).shown
    assert not intervals.equivalence(estimate, 0.2, df=2).shown


def test_spreads_of_training_and_of_generator_seeds_are_told_apart() -> None:
    rng = np.random.default_rng(10)
    values = 5 + 2.0 * rng.normal(size=(400, 1)) + 0.5 * rng.normal(size=(400, 3))
    found = intervals.seed_spread(values.tolist())
    assert found.training == pytest.approx(2.0, rel=4 / math.sqrt(800))
    assert found.generator == pytest.approx(0.5, rel=4 / math.sqrt(1600))
    assert (found.training_seeds, found.generator_seeds[:2]) == (400, (3, 3))


def test_one_training_seed_says_nothing_of_training_seeds() -> None:
    found = intervals.seed_spread([[1.0, 2.0, 3.0]])
    assert (found.training, found.generator, found.mean.low) == (None, 1.0, None)
    assert found.mean.spread_kind.startswith("none over trainings")
    single = intervals.seed_spread([[1.0], [3.0]])
    assert (single.training, single.generator, single.mean.value) == (pytest.approx(math.sqrt(2)), None, 2.0)


def test_the_interval_over_three_training_seeds_covers() -> None:
    rng, hits = np.random.default_rng(11), 0
    for _ in range(400):
        rows = rng.normal(size=(3, 1)) + 0.5 * rng.normal(size=(3, 2))
        mean = intervals.seed_spread(rows.tolist()).mean
        hits += mean.low <= 0 <= mean.high
    assert within(hits, 400, 0.95)
