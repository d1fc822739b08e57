"""KID, CMMD and MIND: the definitions, the published arithmetic, spreads that are true, and memory that is bounded."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from shared_data import GOLDEN, needs_golden

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import kernel_distance, metrics


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def kid_by_definition(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, m = len(real), len(fake)
    k_r, k_f = kernel(real, real), kernel(fake, fake)
    within = (k_r.sum() - np.trace(k_r)) / (n * (n - 1)) + (k_f.sum() - np.trace(k_f)) / (m * (m - 1))
    return float(within - 2 * kernel(real, fake).mean())


def clustered(patients: int, each: int, d: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patients whose images share three quarters of their variance, and who owns each image."""
    own = np.sqrt(0.75) * rng.normal(size=(patients, 1, d)) + 0.5 * rng.normal(size=(patients, each, d))
    return own.reshape(-1, d), np.repeat(np.arange(patients), each)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(2, 3), (50, 40), (1500, 1100)])  # the last takes several tiles
def test_kid_without_arguments_is_the_definition_over_all_pairs(n: int, m: int, dtype: type) -> None:
    real, fake = sample(n, 5, 0).astype(dtype), sample(m, 5, 1, shift=0.3).astype(dtype)
    expected = kid_by_definition(real.astype(np.float64), fake.astype(np.float64))
    assert metrics.kid(real, fake).value == pytest.approx(expected, rel=1e-9)


def test_kid_keeps_its_digits_far_from_the_origin() -> None:
    real, fake = sample(300, 8, 0, shift=20.0), sample(200, 8, 1, shift=20.01)
    # Kernels are near 401³ = 6e7 and their rounding 1e-16 of that, over means of as many pairs: 1e-8 is left room.
    assert metrics.kid(real, fake).value == pytest.approx(kid_by_definition(real, fake), abs=1e-6, rel=1e-6)


@needs_golden
def test_exact_kid_over_published_subsets_is_the_published_value() -> None:
    golden = np.load(GOLDEN / "metrics_math.npz", allow_pickle=False)
    rows = zip(golden["kid_subset_idx_real"], golden["kid_subset_idx_gen"], strict=True)
    ours = [metrics.kid(golden["real_features"][i], golden["gen_features"][j]).value for i, j in rows]
    assert np.mean(ours) == pytest.approx(float(golden["kid"]), rel=1e-5)  # the published sums are float32


def test_the_published_form_stays_and_says_what_it_took() -> None:
    real, fake = sample(60, 4, 0), sample(50, 4, 1)
    estimate = metrics.kid(real, fake, subsets=9, subset_size=1000, seed=3)
    assert estimate.spread_kind == "jackknife standard error; 9 subsets of 50 images"
    assert metrics.kid(real, fake).spread_kind == "jackknife standard error; all pairs"


@pytest.mark.parametrize("biased", [False, True])
def test_leaving_out_patients_in_closed_form_is_leaving_them_out(biased: bool) -> None:
    real, fake = sample(13, 3, 0), sample(11, 3, 1, shift=0.4)
    groups = np.array([7, 7, 7, 1, 1, 2, 3, 3, 9, 9, 9, 9, 5])
    fake_groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4])

    def value(r: np.ndarray, f: np.ndarray) -> float:
        return kernel_distance.mmd2(r, f, kernel_distance.cubic(3), biased=biased).value

    found = kernel_distance.mmd2(
        real, fake, kernel_distance.cubic(3), biased=biased, groups=groups, fake_groups=fake_groups
    )
    without_real = np.array([value(real[groups != g], fake) for g in np.unique(groups)])
    without_fake = np.array([value(real, fake[fake_groups != g]) for g in np.unique(fake_groups)])
    np.testing.assert_allclose(found.without_real, without_real, rtol=1e-10)
    np.testing.assert_allclose(found.without_fake, without_fake, rtol=1e-10)
    assert found.spread == pytest.approx(math.sqrt(5 * without_real.var() + 4 * without_fake.var()), rel=1e-9)


def test_kid_spread_is_that_of_repeated_experiments_when_patients_have_several_images() -> None:
    rng = np.random.default_rng(4)
    by_patient, by_image, values = [], [], []
    for _ in range(200):
        real, groups = clustered(40, 4, 4, rng)
        fake = rng.normal(size=(300, 4)) + 0.5
        by_patient.append(metrics.kid(real, fake, groups=groups))
        by_image.append(metrics.kid(real, fake))
        values.append(by_patient[-1].value)
    true = np.std(values, ddof=1)
    # 200 repetitions fix a standard deviation to 5 %, heavier tails to about 7 %; three of those.
    assert math.sqrt(np.mean([e.spread**2 for e in by_patient])) == pytest.approx(true, rel=0.2)
    assert math.sqrt(np.mean([e.spread**2 for e in by_image])) < 0.8 * true


def test_kid_interval_covers_the_true_distance() -> None:
    d, shift, covered = 4, 0.5, 0
    # x ~ N(0, I), y ~ N(s, I): with a = x·y / d, E (a + 1)³ = E a³ + 3 E a² + 3 E a + 1 for independent pairs.
    one, identity = np.full(d, shift), np.eye(d)

    def moment(mean_x: np.ndarray, mean_y: np.ndarray) -> float:
        second = [identity + np.outer(m, m) for m in (mean_x, mean_y)]
        third = [
            np.einsum("i,j,k->ijk", m, m, m)
            + np.einsum("i,jk->ijk", m, identity)
            + np.einsum("j,ik->ijk", m, identity)
            + np.einsum("k,ij->ijk", m, identity)
            for m in (mean_x, mean_y)
        ]
        a1, a2, a3 = mean_x @ mean_y, (second[0] * second[1]).sum(), (third[0] * third[1]).sum()
        return float(a3 / d**3 + 3 * a2 / d**2 + 3 * a1 / d + 1)

    zero = np.zeros(d)
    truth = moment(zero, zero) + moment(one, one) - 2 * moment(zero, one)
    for i in range(300):
        estimate = metrics.kid(sample(100, d, 2 * i), sample(150, d, 2 * i + 1, shift=shift))
        covered += estimate.low <= truth <= estimate.high
    assert 0.95 * 300 - 3.5 * math.sqrt(300 * 0.95 * 0.05) <= covered  # 271: 95 % less three and a half deviations


def test_memory_stays_within_tiles() -> None:
    real, fake = sample(6000, 16, 0).astype(np.float32), sample(2000, 16, 1).astype(np.float32)
    tracemalloc.start()
    metrics.kid(real, fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # the matrix of 6,000² would be 275 MiB; tiles are 8


def test_paired_difference_of_kid_is_the_difference_and_its_permutations_are_exchanges() -> None:
    real, a, b = sample(30, 3, 0), sample(12, 3, 1), sample(12, 3, 2, shift=0.2)
    found = kernel_distance.kid_difference(real, a, b, seed=5, repeats=499)
    value = kid_by_definition(real, a) - kid_by_definition(real, b)
    assert found.difference.value == pytest.approx(value, rel=1e-9)
    rng = np.random.default_rng(6)
    under = []
    for _ in range(2000):
        swap = rng.random((12, 1)) < 0.5
        under.append(kid_by_definition(real, np.where(swap, b, a)) - kid_by_definition(real, np.where(swap, a, b)))
    expected = np.mean(np.abs(under) >= abs(value))
    assert found.p == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 499 + 0.25 / 2000))


def test_pairing_removes_what_the_same_seeds_and_reals_share() -> None:
    real, a = sample(200, 3, 0), sample(150, 3, 1, shift=0.3)
    b = a + 0.02 * sample(150, 3, 2)
    found = kernel_distance.kid_difference(real, a, b, seed=0)
    alone = [metrics.kid(real, x).spread for x in (a, b)]
    assert found.difference.spread < 0.3 * math.hypot(*alone)


def test_the_permutation_p_is_uniform_for_equal_generators() -> None:
    rng = np.random.default_rng(8)
    p = []
    for i in range(200):
        noise = rng.normal(size=(40, 3))
        a, b = (noise + 0.5 * rng.normal(size=(40, 3)) for _ in range(2))
        p.append(kernel_distance.kid_difference(sample(50, 3, i), a, b, seed=i, repeats=199).p)
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=3.5 * math.sqrt(0.09 / 200))


def test_cmmd_is_the_reference_in_its_biased_form() -> None:
    real, fake = sample(40, 6, 0), sample(30, 6, 1, shift=0.5)
    x, y = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (real, fake))

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.exp(-((p[:, None] - q[None]) ** 2).sum(axis=2) / 200)

    k_x, k_y, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)
    biased = 1000 * (k_x.mean() + k_y.mean() - 2 * k_xy.mean())
    unbiased = 1000 * ((k_x.sum() - 40) / (40 * 39) + (k_y.sum() - 30) / (30 * 29) - 2 * k_xy.mean())
    assert kernel_distance.cmmd(real, fake, biased=True).value == pytest.approx(biased, rel=1e-9)
    assert kernel_distance.cmmd(real, fake).value == pytest.approx(unbiased, rel=1e-9)
    assert kernel_distance.cmmd(3 * real, fake).value == pytest.approx(unbiased, rel=1e-9)


def test_cmmd_refuses_a_row_without_direction() -> None:
    real = sample(5, 3, 0)
    real[2] = 0
    with pytest.raises(EvaluationError, match="row 2 of the features is 0"):
        kernel_distance.cmmd(real, sample(5, 3, 1))


def test_mind_of_a_shift_is_three_times_its_square() -> None:
    real, shift = sample(100, 6, 0), np.linspace(-1, 1, 6)
    found = kernel_distance.mind(real, real + shift, projections=20000)
    # Each direction gives (shift·u)², with mean |shift|² / d and relative variance 2 (d - 1) / (d + 2).
    relative = math.sqrt(2 * 5 / 8 / 20000)
    assert found.value == pytest.approx(3 * shift @ shift, rel=4 * relative)
    assert kernel_distance.mind(real, real).value == 0


def test_mind_of_unequal_numbers_is_that_of_repeated_rows() -> None:
    x, y = sample(6, 3, 0), sample(4, 3, 1, shift=0.5)
    equal = kernel_distance.mind(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0), projections=50, seed=2)
    assert kernel_distance.mind(x, y, projections=50, seed=2).value == pytest.approx(equal.value, rel=1e-12)


def test_mind_is_symmetric_with_its_spread() -> None:
    x, y = sample(70, 4, 0), sample(50, 4, 1, shift=0.5)
    there, back = kernel_distance.mind(x, y, projections=100), kernel_distance.mind(y, x, projections=100)
    assert there.value == pytest.approx(back.value, rel=1e-12)
    assert there.spread == pytest.approx(back.spread, rel=1e-9)


@pytest.mark.parametrize("m", [150, 200])
def test_mind_spread_is_that_of_repeated_experiments(m: int) -> None:
    found = [
        kernel_distance.mind(sample(150, 4, 2 * i), sample(m, 4, 2 * i + 1, shift=0.6), projections=64, seed=i)
        for i in range(200)
    ]
    values, spreads = np.array([f.value for f in found]), np.array([f.spread for f in found])
    assert np.sqrt((spreads**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.2)  # three times 5-7 %


@pytest.mark.parametrize("distance", [metrics.kid, kernel_distance.cmmd, kernel_distance.mind])
def test_features_that_cannot_be_compared_are_refused(distance: object) -> None:
    good, broken = sample(10, 3, 0), sample(10, 3, 1)
    broken[4, 1] = np.inf
    with pytest.raises(EvaluationError, match="there are 10 real and 1 generated"):
        distance(good, good[:1])
    with pytest.raises(EvaluationError, match="not finite"):
        distance(good, broken)
    with pytest.raises(EvaluationError, match="one d"):
        distance(good, good[:, :2])
    with pytest.raises(EvaluationError, match="groups have shape"):
        distance(good, good, groups=np.arange(9))
