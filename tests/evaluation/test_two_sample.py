"""Two sets told apart, or not: closed forms, false alarms at their rate, intervals that hold, patients as units."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals, two_sample


def gaussian(seed: int, n: int = 60, d: int = 6, shift: float = 0.0) -> np.ndarray:
    sample = np.random.default_rng(seed).normal(size=(n, d))
    sample[:, 0] += shift
    return sample


def test_the_distance_is_the_1_wasserstein_distance() -> None:
    real, fake = gaussian(0)[:, 0], gaussian(1, n=45, shift=0.7)[:, 0]
    found = two_sample.distance(real, fake)
    assert found.w1.value == pytest.approx(stats.wasserstein_distance(real, fake), rel=1e-12)
    assert found.shift.value == pytest.approx(fake.mean() - real.mean(), rel=1e-12)
    assert (found.n_real, found.n_fake) == (60, 45)


def test_numbers_that_are_missing_are_left_out() -> None:
    real, fake = gaussian(0)[:, 0], gaussian(1)[:, 0]
    holed = np.concatenate((real, [np.nan, np.nan]))
    assert two_sample.distance(holed, fake).w1.value == two_sample.distance(real, fake).w1.value
    assert two_sample.distance(holed, fake).n_real == 60


def test_equal_distributions_are_found_different_at_the_stated_rate_and_moved_ones_are_covered() -> None:
    p, covered = [], []
    for seed in range(150):
        real = gaussian(2 * seed, n=30)[:, 0]
        p.append(two_sample.distance(real, gaussian(2 * seed + 1, n=40)[:, 0], repeats=99, seed=seed).p)
        moved = two_sample.distance(real, gaussian(2 * seed + 1, n=40, shift=2.0)[:, 0], repeats=199, seed=seed)
        covered.append((moved.shift.low < 2.0 < moved.shift.high, moved.w1.low < 2.0 < moved.w1.high))
    # 150 repetitions: a rate of 5 % is found within 1.8 % (one standard error); four of those, and 4 % bootstrap error.
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 4 * 0.018
    assert (np.mean(covered, axis=0) >= 0.95 - 4 * 0.018 - 0.04).all()


def test_copies_of_a_patient_do_not_count_as_evidence() -> None:
    p = []
    for seed in range(60):
        real, fake = gaussian(2 * seed, n=12)[:, 0], gaussian(2 * seed + 1, n=12)[:, 0]
        owners = np.repeat(np.arange(12), 6)
        p.append(two_sample.distance(np.repeat(real, 6), np.repeat(fake, 6), owners, owners, repeats=99).p)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 4 * 0.028  # with images as the unit it is about one half


def test_halves_share_no_patient_and_are_equal_in_patients() -> None:
    groups = intervals.patients(np.array(["a", "b", "a", "c", "d", "b", "c", "c"]), 8)
    for half in two_sample.halves(groups, 20, seed=1):
        assert not set(groups[half]) & set(groups[~half])
        assert len(set(groups[half])) == 2


def test_an_auc_is_the_mann_whitney_statistic() -> None:
    # One feature that orders everything: the probe's scores are the feature, so the AUC is within-fold Mann-Whitney.
    real, fake = gaussian(0, n=200, d=1), gaussian(1, n=200, d=1, shift=1.0)
    found = two_sample.separability(real, fake, folds=2)
    assert found.auc.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=3 * found.auc.spread)
    assert found.auc.low < stats.norm.cdf(1 / np.sqrt(2)) < found.auc.high


def test_sets_that_differ_are_told_apart_and_shuffled_labels_are_not() -> None:
    found = two_sample.separability(gaussian(0), gaussian(1, shift=3.0))
    assert found.auc.low > 0.9
    assert found.p <= 0.01
    assert found.control.low < 0.5 < found.control.high
    assert found.control.value == pytest.approx(0.5, abs=4 * found.control.spread / np.sqrt(99))


def test_equal_sets_are_told_apart_at_the_stated_rate() -> None:
    found = [two_sample.separability(gaussian(2 * s), gaussian(2 * s + 1), shuffles=39, seed=s) for s in range(100)]
    aucs = np.array([f.auc.value for f in found])
    assert aucs.mean() == pytest.approx(0.5, abs=4 * aucs.std() / 10)
    # Standard error of a rate of 5 % in 100 trials: 2.2 %.
    assert np.mean([f.p <= 0.05 for f in found]) <= 0.05 + 4 * 0.022
    assert np.mean([f.auc.low < 0.5 < f.auc.high for f in found]) >= 0.95 - 4 * 0.022


def test_more_features_than_images_and_constant_features_do_no_harm() -> None:
    real, fake = gaussian(0, d=200), gaussian(1, d=200, shift=6.0)
    real[:, 7] = fake[:, 7] = 0.25
    found = two_sample.separability(real, fake)
    assert found.auc.low > 0.5
    assert found.p <= 0.01


def test_the_wide_and_the_tall_form_of_the_probe_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, unseen, labels = gaussian(0, n=30, d=31), gaussian(1, n=9, d=31), (np.arange(30) % 2 == 0)[:, None] * 1.0
    # Doubled rows make it tall, and change neither means, deviations, nor n · ridge as a share of the Gram matrix; they
    # would change which ridge is chosen, so there is one.
    monkeypatch.setattr(two_sample, "_RIDGES", np.array([0.1]))
    wide = two_sample._probe(x, labels, unseen)
    tall = two_sample._probe(np.vstack((x, x)), np.vstack((labels, labels)), unseen)
    np.testing.assert_allclose(wide, tall, rtol=1e-8, atol=1e-10)


def test_a_patient_on_both_sides_of_a_fold_would_give_itself_away() -> None:
    # Ten patients of eight near-copies: by image their likeness tells them apart, by patient nothing does.
    rng, owners = np.random.default_rng(3), np.repeat(np.arange(10), 8)
    real, fake = (rng.normal(size=(10, 30))[owners] + 0.01 * rng.normal(size=(80, 30)) for _ in range(2))
    assert two_sample.separability(real, fake).auc.value > 0.95
    assert two_sample.separability(real, fake, owners, owners).auc.low < 0.75


def test_copies_of_the_reals_fall_below_one_half() -> None:
    real = gaussian(0, d=30)
    assert two_sample.separability(real, real + 1e-3 * gaussian(1, d=30)).auc.value < 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(EvaluationError, match="10 patients on either side"):
        two_sample.separability(gaussian(0, n=9), gaussian(1))
    with pytest.raises(EvaluationError, match="one width"):
        two_sample.separability(gaussian(0, d=5), gaussian(1, d=6))
    with pytest.raises(EvaluationError, match="not finite"):
        two_sample.separability(gaussian(0) * np.nan, gaussian(1))
    with pytest.raises(EvaluationError, match="one patient per image"):
        two_sample.distance(gaussian(0)[:, 0], gaussian(1)[:, 0], np.arange(3))
    with pytest.raises(EvaluationError, match="4 patients"):
        two_sample.distance(gaussian(0)[:, 0], np.zeros(3))
