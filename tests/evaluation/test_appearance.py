"""Claims about what is measured on pictures: planted faults are seen, honest pictures are not blamed, few are noted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from dr_platform.data.phantom import phantom
from dr_platform.evaluation.appearance import Findings, Pictures, look, some_patients
from dr_platform.records import Figures, Metric


def phantoms(seed: int, count: int, size: int = 64, **options: float) -> np.ndarray:
    return np.stack([phantom(seed, number, size, **options).image for number in range(count)])


def metrics(found: Findings) -> dict[str, Metric]:
    return {metric.name: metric for metric in found.metrics}


def against_reals(fake: np.ndarray, real: np.ndarray) -> Findings:
    return look(Pictures(real, fake, np.arange(len(real)) // 2, 0))


@pytest.fixture(scope="module")
def reals() -> np.ndarray:
    return phantoms(70, 64)


@pytest.fixture(scope="module")
def honest(reals: np.ndarray) -> Findings:
    return against_reals(phantoms(71, 64), reals)


def test_pictures_of_the_same_kind_are_not_blamed(honest: Findings) -> None:
    found = metrics(honest)
    assert found["spectrum_alarm"].value == 0
    assert found["rim_found"].value == 1
    for region in ("rim", "centre", "whole"):
        assert found[f"c2st_{region}"].low < 0.5
        assert found[f"c2st_{region}"].region == ("centre" if region == "centre" else "whole")


def test_what_is_too_coarse_to_see_is_noted_and_left_out(honest: Findings) -> None:
    assert not any(name.startswith(("microaneurysms", "vessel", "disc")) for name in metrics(honest))
    assert [note.partition(": ")[0] for note in honest.notes] == [
        "microaneurysms",
        "vessel_share, vessel_calibre, vessel_tortuosity, vessel_dimension",
        "disc_upright, disc_macula_distance, disc_macula_angle",
    ]
    assert "microaneurysms need 40 or finer" in honest.notes[0]


def test_a_grid_over_the_pictures_rings_and_is_named(reals: np.ndarray, honest: Findings) -> None:
    y, x = np.mgrid[:64, :64]
    grid = (3 * np.cos(2 * np.pi * x / 4) * np.cos(2 * np.pi * y / 4))[..., None]
    found = metrics(against_reals(np.clip(phantoms(71, 64) + grid, 0, 255).astype(np.uint8), reals))
    assert found["spectrum_alarm"].value == 1
    assert "0.250, " in found["spectrum_alarm"].said
    assert found["spectrum_grid"].value > 3 * metrics(honest)["spectrum_grid"].value


def test_soft_pictures_lack_the_lesion_band_and_have_wide_rims(reals: np.ndarray, honest: Findings) -> None:
    soft = ndimage.gaussian_filter(phantoms(71, 64).astype(np.float32), (0, 1.5, 1.5, 0)).astype(np.uint8)
    found, before = metrics(against_reals(soft, reals)), metrics(honest)
    assert found["spectrum_db_lesions"].low > before["spectrum_db_lesions"].high
    assert found["rim_width_w1"].low > before["rim_width_w1"].high
    assert found["c2st_rim"].low > before["c2st_rim"].high


def test_curves_and_distributions_are_kept_for_figures(honest: Findings) -> None:
    figures = Figures(curves=tuple(honest.curves), distributions=tuple(honest.distributions))
    assert [curve.name for curve in figures.curves] == ["spectrum", "direction", "rim"]
    for curve in figures.curves:
        assert len({len(line) for line in (curve.x, curve.real, curve.fake, curve.low, curve.high)}) == 1
        inside = np.less_equal(curve.low, curve.fake) & np.less_equal(curve.fake, curve.high)
        assert inside.mean() > 0.5
        assert all(math.isfinite(value) for value in (*curve.real, *curve.fake))
    assert Figures.model_validate_json(figures.model_dump_json()) == figures


def test_lesions_vessels_and_macula_are_measured_where_they_can_be_seen() -> None:
    real, alike, dosed = (
        phantoms(seed, 9, 360, grade=1, microaneurysms=dose) for seed, dose in ((1, 1), (2, 1), (3, 6))
    )
    same, other = (look(Pictures(real, fake, np.arange(9), 0)) for fake in (alike, dosed))
    assert metrics(other)["microaneurysms_w1"].value > 2 * metrics(same)["microaneurysms_w1"].value
    names = [distribution.name for distribution in other.distributions]
    assert names == [
        "microaneurysms", "vessel_share", "vessel_calibre", "vessel_tortuosity", "vessel_dimension",
        "disc_upright", "disc_macula_distance", "disc_macula_angle",
    ]  # fmt: skip
    assert {f"{name}_w1" for name in names} <= metrics(other).keys()
    counts = other.distributions[0]
    assert (counts.n_real, counts.n_fake, len(counts.fake)) == (9, 9, 9)
    assert list(counts.fake) == sorted(counts.fake)
    assert np.mean(counts.fake) > np.mean(counts.real)


@pytest.mark.parametrize(
    ("count", "size", "missing"),
    [
        (5, 64, {"spectrum", "rim", "c2st"}),
        (30, 16, {"spectrum", "rim"}),
        (30, 8, {"spectrum", "rim", "c2st", "photographs"}),
    ],
)
def test_pictures_too_few_or_too_small_are_noted_part_by_part(count: int, size: int, missing: set[str]) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (2, count, size, size, 3), dtype=np.uint8)
    found = look(Pictures(pictures[0], pictures[1], np.arange(count), 0))
    heads = {note.partition(":")[0] for note in found.notes}
    assert heads & {"spectrum", "rim", "c2st", "photographs"} == missing


def test_whole_patients_are_drawn_at_random_up_to_a_count() -> None:
    patients = np.repeat(np.arange(50), 2)[np.random.default_rng(1).permutation(100)]
    rows = some_patients(patients, 41, 5)
    assert len(rows) == 40
    assert list(rows) == sorted(set(rows))
    assert set(np.bincount(patients[rows], minlength=50)) == {0, 2}
    assert list(some_patients(patients, 100, 5)) == list(range(100))
    assert set(some_patients(patients, 41, 6)) != set(rows)
