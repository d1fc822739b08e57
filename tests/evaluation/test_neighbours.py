"""Neighbour statistics: exact neighbours, published definitions, expectations in closed form, planted copying."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from shared_data import GOLDEN, needs_golden

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import neighbours


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(("m", "n"), [(7, 5), (5000, 700)])  # the last takes several tiles
def test_neighbours_are_those_of_all_distances(m: int, n: int, k: int) -> None:
    reference, queries = sample(m, 6, 0, shift=100.0), sample(n, 6, 1, shift=100.0)
    distances = cdist(queries, reference)
    found = neighbours.nearest(reference, queries, k)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1)[:, :k])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :k], rtol=1e-12)


def test_a_copy_far_from_the_origin_is_at_distance_zero() -> None:
    reference = sample(50, 8, 0, shift=1e4)
    found = neighbours.nearest(reference, reference[::-1].copy())
    assert (found.distances == 0).all()
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(50)[::-1])


def test_radii_leave_out_the_image_itself_and_not_its_double() -> None:
    x = sample(30, 3, 0)
    np.testing.assert_allclose(neighbours.radii(x, 2), np.sort(cdist(x, x), axis=1)[:, 2], rtol=1e-9)
    assert (neighbours.radii(np.concatenate([x, x]), 1) == 0).all()


@needs_golden
def test_precision_and_recall_are_the_published_arithmetic() -> None:
    golden = np.load(GOLDEN / "metrics_math.npz", allow_pickle=False)
    real, fake = golden["real_features"], golden["gen_features"]
    precision = (neighbours.ball_counts(real, neighbours.radii(real, 3), fake) > 0).mean()
    recall = (neighbours.ball_counts(fake, neighbours.radii(fake, 3), real) > 0).mean()
    # Shares of 600 and 700 images, so that half an image is far more than float32's rounding of a share.
    np.testing.assert_allclose([precision, recall], golden["precision_recall_fp32_distances"], atol=0.5 / 700)


def test_sides_of_unequal_size_are_refused_or_cut_down_by_a_seed() -> None:
    real, fake = sample(60, 3, 0), sample(40, 3, 1)
    with pytest.raises(EvaluationError, match="60 real and 40 generated images; manifolds compare at equal"):
        neighbours.precision_recall(real, fake)
    once, again = (neighbours.precision_recall(real, fake, seed=2, groups=np.arange(60)) for _ in range(2))
    assert [e.value for e in once] == [e.value for e in again]
    kept, _, groups = neighbours.equal_size(real, fake, 2, np.arange(60))
    np.testing.assert_array_equal(kept, real[groups])


def test_precision_falls_with_noise_and_recall_with_lost_modes() -> None:
    rng = np.random.default_rng(0)
    modes = np.array([[-10.0, 0], [10, 0]])
    real = modes[np.arange(200) % 2] + rng.normal(size=(200, 2))
    one_mode = modes[0] + rng.normal(size=(200, 2))
    noisy = real + rng.normal(size=(200, 2)) * 10
    precision, recall = neighbours.precision_recall(real, one_mode)
    assert precision > 0.9
    assert recall.high < 0.6
    assert neighbours.precision_recall(real, noisy)[0].high < 0.6


def test_density_and_coverage_of_equal_distributions_are_what_is_expected() -> None:
    n, k = 120, 5
    found = [neighbours.density_coverage(sample(n, 4, 2 * i), sample(n, 4, 2 * i + 1), k=k) for i in range(100)]
    density, coverage = (np.array([pair[i].value for pair in found]) for i in range(2))
    assert density.mean() == pytest.approx(1, abs=4 * density.std(ddof=1) / 10)
    expected = neighbours.expected_coverage(n, n, k)
    assert coverage.mean() == pytest.approx(expected, abs=4 * coverage.std(ddof=1) / 10)
    assert expected == pytest.approx(1 - 1 / 2**k, abs=0.01)


def test_one_outlier_among_the_reals_moves_recall_of_far_fakes_and_not_their_density() -> None:
    real, fake = sample(100, 2, 0), sample(100, 2, 1, shift=30.0)
    real[0] = 60.0
    assert neighbours.precision_recall(real, fake)[0].value == 1  # the outlier's ball holds them all
    density, coverage = neighbours.density_coverage(real, fake)
    assert density.value == pytest.approx(1 / 5)
    assert coverage.value == 0.01


def test_authenticity_is_none_for_copies_and_full_for_strangers() -> None:
    train = sample(200, 5, 0)
    copies = train[:50] + 1e-3 * sample(50, 5, 1)
    assert neighbours.auth_pct(train, copies).value == 0
    assert neighbours.auth_pct(train, sample(50, 5, 2, shift=50.0)).value == 100


def test_ct_is_centred_without_copying_and_negative_with_it() -> None:
    train = sample(400, 8, 0)
    z, scaled = [], []
    for i in range(60):
        found = neighbours.copying(train, sample(200, 8, 3 * i + 1), sample(200, 8, 3 * i + 2), seed=i, cells=4)
        z.append(found.z.value)
        scaled.append(found.z.value / found.z.spread)
    assert abs(np.mean(scaled)) < 4 / math.sqrt(60)
    assert np.std(scaled, ddof=1) == pytest.approx(1, abs=4 / math.sqrt(2 * 60))
    copied = train[:200] + 0.3 * sample(200, 8, 900)
    found = neighbours.copying(train, sample(200, 8, 901), copied, seed=0, cells=4)
    assert found.z.high < 0
    assert found.p < 1e-6
    assert neighbours.copying(train, sample(200, 8, 902), 2 * sample(200, 8, 903), seed=0, cells=1).z.low > 0


def test_ct_sees_copying_in_one_region_only() -> None:
    centres = np.array([[-20.0] + [0.0] * 5, [20.0] + [0.0] * 5])
    train, held_out, fake = (centres[np.arange(200) % 2] + sample(200, 6, seed) for seed in range(3))
    fake[::2] = train[::2] + 0.05 * sample(100, 6, 9)
    found = neighbours.copying(train, held_out, fake, seed=0, cells=2)
    assert min(z for _, _, z in found.cells) < -5
    assert max(z for _, _, z in found.cells) > -4


def test_ct_without_a_filled_cell_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no cell holds 20 held-out"):
        neighbours.copying(sample(50, 3, 0), sample(10, 3, 1), sample(50, 3, 2), seed=0)


def test_the_matrix_of_all_distances_is_never_held() -> None:
    x = sample(8000, 4, 0).astype(np.float32)
    tracemalloc.start()
    neighbours.radii(x, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 << 20  # all of them would be 488 MiB


@pytest.mark.parametrize(
    ("reference", "queries", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "one d"),
        (np.zeros((3, 2)), np.zeros((0, 2)), "no images"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "cannot hold the 4"),
        (np.full((5, 2), np.nan), np.zeros((3, 2)), "not finite"),
    ],
)
def test_what_has_no_neighbours_is_refused(reference: np.ndarray, queries: np.ndarray, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        neighbours.nearest(reference, queries, 4)
