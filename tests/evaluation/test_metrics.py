"""FID and KID of features: closed forms, the published arithmetic, and spreads that are true."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from shared_data import GOLDEN, needs_golden

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features, metrics


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ np.diag(np.linspace(0.5, 1.5, d)) + shift


def test_fid_of_a_set_with_itself_is_zero() -> None:
    sample = gaussian(200, 8, seed=0)
    # Rounding of the covariance, 1e-16, appears under a square root.
    assert abs(metrics.fid(sample, sample).value) < 1e-7


def test_fid_of_shifted_gaussians_is_the_squared_shift() -> None:
    sample, shift = gaussian(200, 8, seed=0), np.linspace(-1, 1, 8)
    assert metrics.fid(sample, sample + shift).value == pytest.approx(shift @ shift, abs=1e-7)


def test_fid_of_a_stretched_set_is_known() -> None:
    sample = gaussian(200, 8, seed=0, shift=0.3)
    # X and aX: the means differ by (a-1) mean, the roots of the covariances by (a-1) of the root.
    size = sample.mean(axis=0) @ sample.mean(axis=0) + np.cov(sample, rowvar=False).trace()
    assert metrics.fid(sample, 1.5 * sample).value == pytest.approx(0.25 * size, rel=1e-7)


def test_fid_is_symmetric() -> None:
    a, b = gaussian(150, 8, seed=1), gaussian(300, 8, seed=2, shift=0.2) ** 3
    there, back = metrics.fid(a, b), metrics.fid(b, a)
    assert there.value == pytest.approx(back.value, rel=1e-9)
    assert there.spread == pytest.approx(back.spread, rel=1e-6)


def test_fid_of_torch_fidelity_is_the_symmetric_form() -> None:
    a, b = gaussian(150, 12, seed=1), gaussian(300, 12, seed=2, shift=0.2)
    moments = [argument for x in (a, b) for argument in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert metrics.frechet_distance(*moments) == pytest.approx(features.frechet_distance(a, b), rel=1e-9)


def test_fid_spread_is_the_spread_of_repeated_experiments() -> None:
    estimates = [
        metrics.fid(gaussian(400, 4, seed=2 * i), gaussian(300, 4, seed=2 * i + 1, shift=0.4)) for i in range(300)
    ]
    values = np.array([estimate.value for estimate in estimates])
    spreads = np.array([estimate.spread for estimate in estimates])
    # 300 repetitions fix a standard deviation to 1/√600 = 4 %; three of those are allowed.
    assert spreads.mean() == pytest.approx(values.std(ddof=1), rel=0.12)


def test_fid_spread_holds_for_a_generator_without_width_in_some_direction() -> None:
    flat = np.array([1.0, 1.0, 1.0, 0.0])
    estimates = [
        metrics.fid(gaussian(400, 4, seed=2 * i), gaussian(300, 4, seed=2 * i + 1, shift=0.4) * flat)
        for i in range(200)
    ]
    values = np.array([estimate.value for estimate in estimates])
    spreads = np.array([estimate.spread for estimate in estimates])
    assert spreads.mean() == pytest.approx(values.std(ddof=1), rel=0.15)  # 200 repetitions: 5 %, three of those


def test_fid_of_fewer_images_than_features_has_no_spread_and_says_why() -> None:
    estimate = metrics.fid(gaussian(20, 30, seed=0), gaussian(100, 30, seed=1))
    assert estimate.spread is None
    assert estimate.spread_kind == "none: needs more than 30 images on either side"


def test_kid_is_unbiased_for_equal_distributions() -> None:
    values = [metrics.mmd2_jackknife(gaussian(40, 4, seed=2 * i), gaussian(30, 4, seed=2 * i + 1)) for i in range(200)]
    mean = np.mean([value for value, _ in values])
    assert abs(mean) < 4 * np.std([value for value, _ in values]) / math.sqrt(200)


def test_kid_spread_is_the_spread_of_repeated_experiments() -> None:
    estimates = [
        metrics.kid(
            gaussian(120, 4, seed=2 * i),
            gaussian(100, 4, seed=2 * i + 1, shift=0.4),
            subsets=20,
            subset_size=50,
            seed=i,
        )
        for i in range(200)
    ]
    values = np.array([estimate.value for estimate in estimates])
    spreads = np.array([estimate.spread for estimate in estimates])
    # 200 repetitions fix a standard deviation to 5 %, the skewed values to about twice that; three of those.
    assert np.sqrt((spreads**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.3)


def test_the_jackknife_in_closed_form_is_the_jackknife_by_leaving_out() -> None:
    real, fake = gaussian(12, 3, seed=0), gaussian(9, 3, seed=1, shift=0.3)
    value, spread = metrics.mmd2_jackknife(real, fake)
    without_real = np.array([metrics.mmd2_jackknife(np.delete(real, i, axis=0), fake)[0] for i in range(12)])
    without_fake = np.array([metrics.mmd2_jackknife(real, np.delete(fake, i, axis=0))[0] for i in range(9)])
    assert spread == pytest.approx(math.sqrt(11 * without_real.var() + 8 * without_fake.var()), rel=1e-9)
    assert metrics.mmd2_jackknife(fake, real)[0] == pytest.approx(value, rel=1e-12)


def test_kid_over_one_subset_of_everything_is_the_value_over_all_pairs() -> None:
    real, fake = gaussian(80, 6, seed=0), gaussian(80, 6, seed=1, shift=0.2)
    estimate = metrics.kid(real, fake, subsets=3, subset_size=80, seed=0)
    assert estimate.value == pytest.approx(metrics.mmd2_jackknife(real, fake)[0], rel=1e-9)


def test_kid_takes_no_more_than_there_is_and_says_so() -> None:
    estimate = metrics.kid(gaussian(40, 6, seed=0), gaussian(25, 6, seed=1), subsets=7, subset_size=1000, seed=0)
    assert estimate.spread_kind == "jackknife standard error; 7 subsets of 25 images"
    assert estimate.spread is not None


def test_kid_of_two_images_has_no_spread() -> None:
    estimate = metrics.kid(gaussian(2, 3, seed=0), gaussian(2, 3, seed=1), subsets=1, subset_size=10, seed=0)
    assert estimate.spread is None
    assert "needs 3 images" in estimate.spread_kind


def test_rows_beyond_a_block_are_counted_once() -> None:
    real, fake = gaussian(1100, 3, seed=0), gaussian(600, 3, seed=1, shift=0.1)
    kernel = (np.vstack([real, fake]) @ np.vstack([real, fake]).T / 3 + 1) ** 3
    within_real, within_fake, across = kernel[:1100, :1100], kernel[1100:, 1100:], kernel[:1100, 1100:]
    expected = (within_real.sum() - within_real.trace()) / (1100 * 1099)
    expected += (within_fake.sum() - within_fake.trace()) / (600 * 599) - 2 * across.mean()
    assert metrics.mmd2_jackknife(real, fake)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", [metrics.fid, lambda a, b: metrics.kid(a, b, subsets=2, subset_size=5, seed=0)])
def test_one_image_or_a_value_that_is_not_finite_is_refused(metric: object) -> None:
    good, broken = gaussian(10, 3, seed=0), gaussian(10, 3, seed=1)
    broken[4, 1] = np.nan
    with pytest.raises(EvaluationError, match="there are 10 real and 1 generated"):
        metric(good, good[:1])
    with pytest.raises(EvaluationError, match="not finite"):
        metric(good, broken)


@needs_golden
def test_fid_is_the_published_arithmetic() -> None:
    golden = np.load(GOLDEN / "metrics_math.npz", allow_pickle=False)
    moments = [golden[key] for key in ("real_mean", "real_cov", "gen_mean", "gen_cov")]
    assert metrics.frechet_distance(*moments) == pytest.approx(float(golden["fid"]), rel=1e-9)
    # The published code divides the covariance by n, torch-fidelity by n - 1: that and no more is the difference.
    real, fake = golden["real_features"].astype(np.float64), golden["gen_features"].astype(np.float64)
    moments[1], moments[3] = moments[1] * 700 / 699, moments[3] * 600 / 599
    assert metrics.fid(real, fake).value == pytest.approx(metrics.frechet_distance(*moments), rel=1e-6)
    assert metrics.fid(real, fake).value == pytest.approx(float(golden["fid"]), rel=3e-3)


@needs_golden
def test_kid_is_the_published_arithmetic_on_the_published_subsets() -> None:
    golden = np.load(GOLDEN / "metrics_math.npz", allow_pickle=False)
    real, fake = golden["real_features"].astype(np.float64), golden["gen_features"].astype(np.float64)
    rows = zip(golden["kid_subset_idx_real"], golden["kid_subset_idx_gen"], strict=True)
    ours = np.mean([metrics.mmd2_jackknife(real[i], fake[j])[0] for i, j in rows])
    # The published sums are float32.
    assert ours == pytest.approx(float(golden["kid"]), rel=1e-5)
    options = json.loads(str(golden["meta"]))["kid"]
    estimate = metrics.kid(real, fake, subsets=options["num_subsets"], subset_size=options["max_subset_size"], seed=0)
    assert abs(estimate.value - float(golden["kid"])) < 4 * estimate.spread
