"""Claims about disc, macula and distances between sets: truth is found, and intervals hold it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.data.fundus import standardise
from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation.anatomy import disc_and_macula, distance_between, field_of


@pytest.mark.parametrize("size", [128, 256])
def test_disc_and_macula_of_phantoms_are_found(size: int) -> None:
    disc, macula = [], []
    for index in range(30):
        p = phantom(21, index, size)
        found = disc_and_macula(p.image)
        assert found.disc_xy is not None
        assert found.macula_xy is not None
        disc.append(math.dist(found.disc_xy, p.disc_xy) / p.disc_radius)
        macula.append(math.dist(found.macula_xy, p.macula_xy) / p.disc_radius)
        assert found.distance == pytest.approx(math.dist(found.disc_xy, found.macula_xy) / field_of(p.image).radius)
    assert max(disc) < 1  # within the disc
    assert np.median(macula) < 0.5
    assert np.quantile(macula, 0.9) < 1


def test_geometry_follows_a_mirrored_picture() -> None:
    p = phantom(21, 4, 192)
    here, there = disc_and_macula(p.image), disc_and_macula(np.ascontiguousarray(p.image[:, ::-1]))
    assert here.disc_xy is not None
    assert there.disc_xy is not None
    assert here.disc_xy[0] + there.disc_xy[0] == pytest.approx(191, abs=3)
    assert here.distance == pytest.approx(there.distance, abs=0.03)


def test_what_cannot_be_measured_says_why() -> None:
    assert "pixels wide" in (disc_and_macula(phantom(21, 0, 64).image).reason or "")
    empty = disc_and_macula(np.full((256, 256, 3), 90, np.uint8))
    assert empty.distance is None
    assert "nothing looks like a disc" in (empty.reason or "")
    with pytest.raises(EvaluationError, match=r"uint8 \[R, R, 3\]"):
        disc_and_macula(np.zeros((64, 32, 3), np.uint8))


@needs_photographs
def test_real_photographs_show_the_macula_where_it_is_in_an_eye() -> None:
    found = []
    for file in sorted(FUNDUS_MINI.glob("images/[hi]*/*.jpg"))[::4]:
        found.append(disc_and_macula(standardise(np.asarray(Image.open(file).convert("RGB")), 512)))
    assert all(f.reason is None for f in found)
    assert 0.45 < np.median([f.distance for f in found if f.distance is not None]) < 0.8  # 45° to 60° fields


def test_distances_are_the_textbook_ones() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.poisson(3, 60).astype(float), rng.poisson(4, 90).astype(float)  # with ties
    ks, w1 = (distance_between(real, fake, kind=kind, seed=1) for kind in ("ks", "w1"))
    assert ks == pytest.approx(stats.ks_2samp(real, fake).statistic)
    assert w1 == pytest.approx(stats.wasserstein_distance(real, fake) / real.std())
    assert distance_between(real, real, kind="w1", seed=1) == pytest.approx(0, abs=1e-12)
    holes = np.append(real, np.nan)
    assert distance_between(holes, fake, kind="ks", seed=1) == ks
    assert "1 of 151 not measured" in distance_between(holes, fake, kind="ks", seed=1).spread_kind


@pytest.mark.parametrize(("kind", "shift"), [("ks", 0.3), ("w1", 0.3), ("w1", 0.8), ("w1", 0.0)])
def test_intervals_hold_the_truth_though_patients_have_several_photographs(kind: str, shift: float) -> None:
    """Between photographs of a patient the correlation is 0.5. With 120 runs a 95 % interval misses 6 ± 2.4."""
    truth = {"ks": 2 * stats.norm.cdf(shift / 2) - 1, "w1": shift}[kind]
    owner = np.repeat(np.arange(60), 2)
    missed = 0
    for run in range(120):
        rng = np.random.default_rng((3, run))
        real, fake = (
            (rng.standard_normal(60)[owner] + rng.standard_normal(120)) / math.sqrt(2) + move for move in (0, shift)
        )
        d = distance_between(real, fake, kind=kind, seed=run, groups=owner, fake_groups=owner, draws=200)  # type: ignore[arg-type]
        assert d.low is not None
        assert d.high is not None
        missed += not d.low <= truth <= d.high
    assert missed <= 6 + 3 * 2.4


def test_too_few_patients_are_refused() -> None:
    values = np.arange(20.0)
    with pytest.raises(EvaluationError, match="at least 8"):
        distance_between(values, values, kind="ks", seed=0, groups=np.arange(20) // 4)
    with pytest.raises(EvaluationError, match="all real values are equal"):
        distance_between(np.ones(20), values, kind="w1", seed=0)


def test_counts_that_are_mostly_equal_have_a_spread_of_their_own_size() -> None:
    """A quarter of 16 counts may hold one value only: it has no standard deviation to measure by."""
    rng = np.random.default_rng(3)
    real, fake = rng.poisson(1.0, 16).astype(float), rng.poisson(1.0, 16).astype(float)
    found = distance_between(real, fake, kind="w1", seed=0)
    assert found.spread is not None
    assert found.spread < 2
    with pytest.raises(EvaluationError, match="of the quarters all real values are equal"):
        distance_between(np.r_[np.zeros(31), 1.0], np.zeros(32), kind="w1", seed=0)


def test_a_quarter_turn_is_told_from_an_upright_eye() -> None:
    upright = [phantom(4, index, 192, grade=1).image for index in range(0, 40, 5)]
    assert all(disc_and_macula(image).upright > 0 for image in upright)
    assert all(disc_and_macula(np.rot90(image).copy()).upright < 0 for image in upright)
    assert all(disc_and_macula(np.rot90(image, 2).copy()).upright > 0 for image in upright)
