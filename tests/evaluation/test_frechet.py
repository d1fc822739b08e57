"""The Fréchet distance: closed forms, the published arithmetic, invariances, and errors that are true."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from shared_data import GOLDEN, needs_golden

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features, frechet


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, with a spectrum as uneven as that of real features: deviations from 1 to 0.01."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(99).normal(size=(d, d)))[0]
    return rng.normal(size=(n, d)) * np.geomspace(1, 0.01, d) @ axes + shift


def by_definition(real: np.ndarray, fake: np.ndarray, ddof: int = 1) -> float:
    """|μ1-μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) by scipy's matrix root."""
    (mean_r, cov_r), (mean_f, cov_f) = ((x.mean(axis=0), np.cov(x, rowvar=False, ddof=ddof)) for x in (real, fake))
    cross = scipy.linalg.sqrtm(cov_r @ cov_f).real
    return float((mean_r - mean_f) @ (mean_r - mean_f) + np.trace(cov_r + cov_f - 2 * cross))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(200, 150), (700, 900)])
def test_fid_is_its_definition(n: int, m: int, ddof: int) -> None:
    real, fake = sample(n, 60, seed=1), 1.3 * sample(m, 60, seed=2, shift=0.05)
    assert frechet.fid(real, fake, ddof=ddof) == pytest.approx(by_definition(real, fake, ddof), rel=1e-6)


def test_large_products_go_another_way_to_the_same_value() -> None:
    d = frechet._SVD_UP_TO + 40
    real, fake = sample(900, d, seed=1), 1.3 * sample(1000, d, seed=2, shift=0.02)
    moments = [argument for x in (real, fake) for argument in (x.mean(axis=0), np.cov(x, rowvar=False))]
    expected = frechet.frechet_distance(*moments)
    assert frechet.fid(real, fake, spread=False) == pytest.approx(expected, rel=1e-9)
    assert frechet.fid(real, fake[:650]) == pytest.approx(frechet.fid(real, fake[:650], spread=False), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 200), (200, 20), (25, 30), (61, 60), (60, 61)])
def test_fewer_images_than_features_give_the_nuclear_norm(n: int, m: int) -> None:
    real, fake = sample(n, 60, seed=3), sample(m, 60, seed=4, shift=0.1)
    a, b = real - real.mean(axis=0), fake - fake.mean(axis=0)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum() / math.sqrt((n - 1) * (m - 1))
    shift = real.mean(axis=0) - fake.mean(axis=0)
    expected = shift @ shift + (a**2).sum() / (n - 1) + (b**2).sum() / (m - 1) - 2 * cross
    assert frechet.fid(real, fake).value == pytest.approx(expected, rel=1e-9)
    # torch-fidelity's general eigenvalues carry the rounding of the null spaces: √1e-16 of the traces.
    assert frechet.fid(real, fake).value == pytest.approx(features.frechet_distance(real, fake), rel=1e-4)


def test_fid_is_torch_fidelitys() -> None:
    real, fake = sample(300, 40, seed=5), sample(250, 40, seed=6, shift=0.1)
    assert frechet.fid(real, fake) == pytest.approx(features.frechet_distance(real, fake), rel=1e-6)


def test_gaussians_of_known_moments_are_at_their_known_distance() -> None:
    # Samples made to have exactly these means and variances on common axes.
    raw = np.random.default_rng(0).normal(size=(300, 5))
    white = (raw - raw.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    first, second, shift = np.array([1, 2, 3, 0.5, 1.0]), np.array([2, 2, 1, 0.1, 0.0]), np.arange(5.0)
    expected = (shift**2).sum() + ((first - second) ** 2).sum()
    # One direction of no width: its singular value 0 comes out as 1e-8 of the largest at worst.
    assert frechet.fid(white * first, white * second + shift) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(150, 200), (20, 200), (20, 25)])
def test_rotation_scale_and_swap(n: int, m: int) -> None:
    real, fake = sample(n, 30, seed=7), sample(m, 30, seed=8, shift=0.1)
    value = frechet.fid(real, fake)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(30, 30)))[0]
    turned = frechet.fid(real @ turn, fake @ turn)
    assert turned == pytest.approx(value, rel=1e-9)
    assert frechet.fid(fake, real) == pytest.approx(value, rel=1e-9)
    assert frechet.fid(3 * real + 1, 3 * fake + 1) == pytest.approx(9 * value, rel=1e-9)
    if value.spread is not None:
        assert turned.spread == pytest.approx(value.spread, rel=1e-6)


@pytest.mark.parametrize("n", [40, 300])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    real = sample(n, 60, seed=9)
    assert abs(frechet.fid(real, real[::-1], spread=False)) < 1e-9


def test_features_that_never_vary_do_no_harm() -> None:
    real, fake = sample(200, 10, seed=1), sample(150, 10, seed=2, shift=0.1)
    wide_r, wide_f = (np.hstack([x, np.full((len(x), 3), 0.25)]) for x in (real, fake))
    plain, padded = frechet.fid(real, fake), frechet.fid(wide_r, wide_f)
    assert padded == pytest.approx(plain, rel=1e-9)
    assert padded.spread == pytest.approx(plain.spread, rel=1e-6)


def test_a_prepared_side_gives_the_same() -> None:
    real, fake = sample(200, 20, seed=1), sample(150, 20, seed=2, shift=0.1)
    plain, prepared = frechet.fid(real, fake), frechet.fid(frechet.reference(real), fake)
    assert (prepared.value, prepared.spread) == (plain.value, plain.spread)


@pytest.mark.parametrize("d", [20, 200])
def test_weights_are_repetitions(d: int) -> None:
    real, fake, rng = sample(150, d, seed=1), sample(120, d, seed=2, shift=0.1), np.random.default_rng(0)
    ours, theirs = rng.integers(0, 150, 150), rng.integers(0, 120, 120)
    weighted = frechet.distance(
        frechet.reference(real, np.bincount(ours, minlength=150)), fake, np.bincount(theirs, minlength=120)
    )
    # The definition on repeated rows meets the null spaces' rounding; the nuclear norm of distinct ones does not.
    assert weighted == pytest.approx(by_definition(real[ours], fake[theirs]), rel=1e-4 if d == 200 else 1e-6)


@needs_golden
def test_fid_with_divisor_n_is_the_published_value() -> None:
    golden = np.load(GOLDEN / "metrics_math.npz", allow_pickle=False)
    real, fake = golden["real_features"], golden["gen_features"]
    assert frechet.fid(real, fake, ddof=0).value == pytest.approx(float(golden["fid"]), rel=1e-6)


# ---- errors -------------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_expected_distance() -> None:
    estimates = [frechet.fid(sample(400, 6, 2 * i), sample(300, 6, 2 * i + 1, shift=0.3)) for i in range(400)]
    expected = np.mean(estimates)
    covered = np.mean([estimate.low <= expected <= estimate.high for estimate in estimates])
    # 400 repetitions fix a coverage of 95 % to 1.1 %; three of those.
    assert abs(covered - 0.95) < 0.033


def clustered(patients: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Four photographs of each patient, nine tenths of whose variance they share."""
    rng, groups = np.random.default_rng(seed), np.repeat(np.arange(patients), 4)
    shared = rng.normal(size=(patients, 4))[groups]
    return math.sqrt(0.9) * shared + math.sqrt(0.1) * rng.normal(size=shared.shape) + shift, groups


def test_the_error_by_patient_is_that_of_repeated_experiments_and_the_other_is_not() -> None:
    values, robust, naive = [], [], []
    for i in range(300):
        (real, groups), fake = clustered(100, seed=i), np.random.default_rng(1000 + i).normal(size=(400, 4)) + 0.5
        estimate = frechet.fid(real, fake, groups=groups)
        values.append(estimate.value)
        robust.append(estimate.spread)
        naive.append(frechet.fid(real, fake).spread)
    # 300 repetitions fix a standard deviation to 4 %; three of those.
    assert np.mean(robust) == pytest.approx(np.std(values, ddof=1), rel=0.12)
    assert np.mean(naive) < 0.8 * np.std(values, ddof=1)


def test_groups_of_one_are_no_groups_and_names_do_not_matter() -> None:
    real, fake = sample(100, 5, seed=0), sample(80, 5, seed=1, shift=0.2)
    plain = frechet.fid(real, fake)
    single = frechet.fid(real, fake, groups=np.arange(100)[::-1] * 7)
    assert single.spread == pytest.approx(plain.spread, rel=1e-12)
    assert single.spread_kind == "influence-function standard error, reals and fakes, by patient"


def test_subsampling_gives_the_error_of_repeated_experiments() -> None:
    values = [float(frechet.fid(sample(400, 5, 2 * i), sample(400, 5, 2 * i + 1, 0.3))) for i in range(300)]
    intervals = [
        frechet.subsampled_interval(sample(400, 5, 2 * i), sample(400, 5, 2 * i + 1, 0.3), repetitions=60, seed=i)
        for i in range(15)
    ]
    # 4 % by 300 repetitions, 9 % / √15 by 60 subsamples in each of 15, about 10 % between data sets / √15.
    assert np.mean([interval.spread for interval in intervals]) == pytest.approx(np.std(values, ddof=1), rel=0.17)
    assert all(interval.low < interval.value < interval.high for interval in intervals)


def test_subsampling_by_patient_is_wider_where_patients_images_are_alike() -> None:
    (real, groups), fake = clustered(100, seed=0), np.random.default_rng(1).normal(size=(400, 4)) + 0.5
    by_patient = frechet.subsampled_interval(real, fake, groups=groups, repetitions=150)
    by_image = frechet.subsampled_interval(real, fake, repetitions=150)
    assert by_patient.spread > 1.2 * by_image.spread


# ---- sizes --------------------------------------------------------------------------------------------------------


def test_extrapolation_removes_the_bias() -> None:
    # Equal distributions are at distance 0; at 600 images of 40 features it reads far above that.
    results = [frechet.fd_infinity(sample(600, 40, 2 * i), sample(600, 40, 2 * i + 1), seed=i) for i in range(10)]
    biased = [float(frechet.fid(sample(600, 40, 2 * i), sample(600, 40, 2 * i + 1))) for i in range(10)]
    assert abs(np.mean(results)) < 0.1 * np.mean(biased)
    assert "15 sizes from 120 to 600 images" in results[0].spread_kind


def test_extrapolation_finds_a_planted_distance() -> None:
    results = [
        frechet.fd_infinity(sample(500, 20, 2 * i), sample(700, 20, 2 * i + 1, shift=0.2), seed=i) for i in range(30)
    ]
    truth = 20 * 0.2**2
    error = np.std(results, ddof=1) / math.sqrt(30)
    assert abs(np.mean(results) - truth) < 4 * error
    inside = np.mean([result.low <= truth <= result.high for result in results])
    assert inside >= 0.8  # 30 intervals of 95 %: fewer than 24 have probability 2e-3


def test_extrapolation_counts_patients_where_images_are_alike() -> None:
    results = []
    for i in range(20):
        (real, groups), fake = clustered(100, seed=i), np.random.default_rng(1000 + i).normal(size=(600, 4)) + 0.5
        results.append(frechet.fd_infinity(real, fake, groups=groups, seed=i))
    assert "from 48 to 400 images" in results[0].spread_kind
    assert abs(np.mean(results) - 1) < 4 * np.std(results, ddof=1) / math.sqrt(20)  # 4 features moved by 0.5


def test_extrapolation_from_too_few_images_says_so() -> None:
    estimate = frechet.fd_infinity(sample(60, 40, 0), sample(60, 40, 1), sizes=5)
    assert estimate.spread_kind.endswith(
        "5 sizes from 30 to 60 images; too few for so many features, the value is too small"
    )


def test_equal_sizes_have_equal_bias() -> None:
    real = sample(900, 20, seed=1)
    few, many = (frechet.fid_at(real, sample(n, 20, seed=2), 200, splits=10) for n in (300, 900))
    assert few == pytest.approx(many, rel=0.3)
    assert frechet.fid_at(real, sample(900, 20, seed=2), 800, splits=3) < 0.5 * many
    assert many.spread_kind == "standard deviation over 10 splits of 200 + 200 images"
    assert few.low < few < few.high


def test_draws_take_whole_patients() -> None:
    groups = np.repeat(np.arange(50), 4)
    rows = frechet._draw(np.random.default_rng(0), 200, groups, 10)
    assert len(rows) == 40
    assert (np.bincount(groups[rows])[np.unique(groups[rows])] == 4).all()
    first, second = frechet.halves(np.random.default_rng(0), 200, groups)
    assert not set(groups[first]) & set(groups[second])
    assert len(first) + len(second) == 200


def test_relative_distance_is_one_for_the_same_distribution_and_more_for_another() -> None:
    real = sample(400, 10, seed=1)
    same = frechet.relative_fid(real, sample(4000, 10, seed=2))
    other = frechet.relative_fid(real, sample(4000, 10, seed=2, shift=0.2))
    assert same.low < 1 < same.high
    assert other.low > 1
    assert "20 splits" in same.spread_kind


def test_relative_distance_of_copied_patients_is_below_one() -> None:
    real, groups = clustered(60, seed=3)
    copies = real[np.random.default_rng(0).permutation(240)]
    assert frechet.relative_fid(real, copies, groups=groups) < 1


# ---- resampling with replacement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(400, 450, 350), (330, 700, 500)])
def test_the_fast_bootstrap_is_the_exact_one_within_its_stated_error(n: int, m: int, d: int) -> None:
    fixed, drawn = frechet.reference(sample(m, d, seed=1)), sample(n, d, seed=2, shift=0.01)
    fast = frechet.bootstrap(fixed, drawn, repetitions=120, seed=5)
    exact = frechet.bootstrap(fixed, drawn, repetitions=120, seed=5, exact=True).values
    off = fast.values - exact
    assert abs(off[-24:]).max() < 1e-9 * exact.mean()  # these were computed
    # The error is known from 24 residuals, to 14 %; three of those. The same for the constant.
    assert np.sqrt((off[:-24] ** 2).mean()) < 1.45 * fast.error
    assert abs(off).max() < 5 * fast.error  # of 96 normal residuals one in 10,000 times
    assert fast.values.mean() == pytest.approx(exact.mean(), abs=4 * fast.error / math.sqrt(24))
    # A quarter of the spread left out makes the spread 3 % too small, which adding its square mends.
    assert fast.error < 0.25 * exact.std()
    assert math.hypot(fast.values.std(), fast.error) == pytest.approx(exact.std(), rel=0.1)


def test_a_short_bootstrap_is_exact_and_lies_above_the_distance() -> None:
    fixed, drawn = frechet.reference(sample(150, 100, seed=1)), sample(150, 100, seed=2, shift=0.02)
    short = frechet.bootstrap(fixed, drawn, repetitions=10)
    assert (short.error, short.checked) == (0.0, 10)
    assert short.values.min() > frechet.distance(fixed, drawn)


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_unfit_input_is_refused_in_one_line() -> None:
    real, fake = sample(20, 4, seed=0), sample(30, 4, seed=1)
    with pytest.raises(EvaluationError, match="there are 1 real and 30 generated"):
        frechet.fid(real[:1], fake)
    with pytest.raises(EvaluationError, match="4 features and generated ones 3"):
        frechet.fid(real, fake[:, :3])
    with pytest.raises(EvaluationError, match="20 images and 3 patients"):
        frechet.fid(real, fake, groups=np.arange(3))
    with pytest.raises(EvaluationError, match="all images are of one patient"):
        frechet.fid(real, fake, groups=np.zeros(20))
    with pytest.raises(EvaluationError, match="21 images are to be taken of either side"):
        frechet.fid_at(real, fake, 21)
    with pytest.raises(EvaluationError, match=r"share of 1\.5"):
        frechet.subsampled_interval(real, fake, share=1.5)
    with pytest.raises(EvaluationError, match="cannot be extrapolated"):
        frechet.fd_infinity(real, fake, sizes=2)
    with pytest.raises(EvaluationError, match="cannot be split into halves"):
        frechet.relative_fid(real[:3], fake)
