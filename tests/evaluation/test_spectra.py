"""Spectra: closed forms, planted grids, crosses and lost detail, and no alarm where there is nothing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import spectra

SIZE, COUNT = 64, 40


@lru_cache
def phantoms(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [40, 64, 64, 3] of the collection `seed`, and their patients."""
    drawn = [phantom(seed, index, SIZE) for index in range(COUNT)]
    return np.stack([p.image for p in drawn]), np.array([p.patient for p in drawn])


@lru_cache
def pairs() -> list[tuple[spectra.Spectra, spectra.Spectra]]:
    """Twelve pairs of clean collections: one as the real ones, with halves, one as the generated."""
    found = []
    for seed in range(10, 34, 2):
        images, patients = phantoms(seed)
        others, owners = phantoms(seed + 1)
        mean, std = spectra.whitening(images)
        real = spectra.spectra(images, patients, mean=mean, std=std, halvings=99, seed=seed)
        found.append((real, spectra.spectra(others, owners, mean=mean, std=std)))
    return found


@lru_cache
def reals() -> spectra.Spectra:
    images, patients = phantoms(0)
    mean, std = spectra.whitening(images)
    return spectra.spectra(images, patients, mean=mean, std=std, halvings=spectra.HALVINGS, seed=1)


def against_reals(pictures: np.ndarray) -> spectra.SpectralDifference:
    """Pictures of the collection 1, changed in some way, against the collection 0."""
    real = reals()
    pictures = np.clip(np.round(pictures), 0, 255).astype(np.uint8)
    fake = spectra.spectra(pictures, phantoms(1)[1], mean=real.mean, std=real.std)
    return spectra.compare(real, fake)


def noise(seed: int, count: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_white_noise_has_power_one_everywhere() -> None:
    images = noise(0, count=200)
    mean, std = spectra.whitening(images)
    assert (mean, std) == (pytest.approx(images.mean(), rel=1e-12), pytest.approx(images.std(), rel=1e-9))
    found = spectra.spectra(images, mean=mean, std=std)
    # 600 planes of exponential power: 1/√600 = 4 % per frequency; 544 frequencies reach some 4.2 of those.
    assert np.abs(found.power - 1).max() < 4.2 * 0.041 * np.sqrt(2)  # self-conjugate frequencies vary √2 as much
    np.testing.assert_allclose(found.profiles.mean(axis=0)[4:], 1, atol=0.05)


def test_a_wave_shows_at_its_frequency_with_its_power() -> None:
    x = np.arange(SIZE)
    wave = np.round(128 + 50 * np.cos(2 * np.pi * 16 * x / SIZE))
    images = np.broadcast_to(wave[None, None, :, None], (2, SIZE, SIZE, 3)).astype(np.uint8)
    found = spectra.spectra(images, mean=128.0, std=1.0)
    row, column = np.unravel_index(found.power.argmax(), found.power.shape)
    assert (row, column) == (0, 16)
    window = np.kaiser(SIZE, 8.0)
    # A cosine of amplitude a under a window w: (a/2)² (Σ w)² / Σ w² for each axis; rows see no wave, hence the square.
    gain = (window.sum() ** 2 / np.square(window).sum()) ** 2
    assert found.power.max() == pytest.approx(25.0**2 * gain, rel=1e-3)


def test_bands_share_the_frequencies_and_the_lesion_band_is_the_last_two() -> None:
    frequencies = np.arange(1, 33) / 64
    parts = [spectra.in_band(frequencies, band) for name, band in spectra.BANDS.items() if name != spectra.LESION]
    assert np.array_equal(np.sum(parts, axis=0), (frequencies >= 1 / 32).astype(int))
    lesion = spectra.in_band(frequencies, spectra.BANDS[spectra.LESION])
    assert np.array_equal(lesion, parts[-1] | parts[-2])
    assert spectra.BANDS[spectra.LESION] == (0.125, 0.5)


def test_halves_hold_the_sums_of_their_pictures() -> None:
    images, real, split = phantoms(0)[0], reals(), 7
    alone = spectra.spectra(images[real.halves[split]], mean=real.mean, std=real.std)
    found = real.shape_sums[split].reshape(real.shape.shape) / real.halves[split].sum()
    np.testing.assert_allclose(found, alone.shape, atol=1e-4)  # summed in float32


def test_clean_phantoms_raise_no_alarm_against_other_clean_phantoms() -> None:
    p = []
    for real, fake in pairs():
        found = spectra.compare(real, fake)
        p.append([found.peak.p, found.harmonic.p, found.bands[spectra.LESION].p])
    # Each test errs in 1 of 100 cases by design; two or more of 12 happen with a probability below 0.7 %.
    assert (np.sum(np.array(p) <= 0.01, axis=0) <= 1).all()
    # And p is no constant: under a uniform law all 12 exceed a half once in 4,000 times.
    assert (np.min(p, axis=0) < 0.5).all()


def test_a_pixel_grid_raises_both_alarms_and_is_located() -> None:
    grid = phantoms(1)[0].astype(float)
    grid[:, ::8] += 4
    grid[:, :, ::8] += 4
    found = against_reals(grid)
    assert found.peak.raised
    assert found.peak.p == 1 / (spectra.HALVINGS + 1)
    at = [abs(float(number)) * 8 for number in found.peak.where.split(" cycles")[0].split(", ")]
    np.testing.assert_allclose(at, np.round(at), atol=0.01)  # a multiple of the grid's frequency, along either axis
    assert found.harmonic.raised


@pytest.mark.parametrize("shape", ["cross", "diamonds"])
def test_diagonal_lines_raise_the_harmonic_alarm(shape: str) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    away = np.abs(np.abs(x) - np.abs(y)) if shape == "cross" else np.abs((np.abs(x) + np.abs(y)) % 16 - 8)
    found = against_reals(phantoms(1)[0] + 14.0 * (away < 1.5)[None, :, :, None])
    assert found.harmonic.raised
    assert found.peak.raised


def test_lost_detail_shows_in_the_lesion_band_and_not_in_the_coarse_one() -> None:
    blurred = ndimage.gaussian_filter(phantoms(1)[0].astype(float), (0, 0.7, 0.7, 0))
    found = against_reals(blurred).bands
    assert found[spectra.LESION].differs
    assert found[spectra.LESION].level_db.high < -2
    assert found[spectra.LESION].rms_db.low > found[spectra.LESION].threshold_db
    assert not found["1/32-1/16"].differs


def test_a_known_loss_is_measured_in_decibels() -> None:
    real = reals()
    images = phantoms(0)[0]
    half = spectra.spectra(images, phantoms(0)[1], mean=real.mean, std=2 * real.std)
    weaker = spectra.Spectra(**{**half.__dict__, "std": real.std})
    for band in spectra.compare(real, weaker).bands.values():
        assert band.level_db.value == pytest.approx(20 * np.log10(0.5), abs=1e-9)
        assert band.rms_db.value == pytest.approx(20 * np.log10(2), abs=1e-9)
        assert band.differs


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    covered = []
    for seed in range(60):
        loud = np.random.default_rng(seed).gamma(4, 0.25, (48, 1, 1, 1))  # pictures differ in contrast
        shown = np.clip(128 + (noise(seed, 48) - 127.5) * 0.3 * np.sqrt(loud), 0, 255).round().astype(np.uint8)
        parts = [spectra.spectra(part, mean=128.0, std=20.0, halvings=99) for part in (shown[:24], shown[24:])]
        band = spectra.compare(*parts).bands[spectra.LESION]
        covered.append(band.level_db.low < 0 < band.level_db.high)
    # 60 trials: standard error 2.8 %; the bootstrap of 24 patients is a few per cent short.
    assert np.mean(covered) >= 0.95 - 3 * 0.028 - 0.03


def test_profiles_of_other_phantoms_lie_within_chance() -> None:
    outside = []
    for real, fake in pairs():
        low, high = np.quantile(spectra.angular_chance(real, fake), (0.025, 0.975), axis=0)
        moved = fake.angular.mean(axis=0) - real.angular.mean(axis=0)
        outside.append(((moved < low) | (moved > high)).mean())
    # 12 curves of 36 directions, of which perhaps 10 are independent: 5 % is found within 2 %.
    assert np.mean(outside) < 0.05 + 3 * 0.02


def test_what_cannot_be_compared_is_refused() -> None:
    real = reals()
    with pytest.raises(EvaluationError, match="whitening"):
        spectra.compare(real, spectra.spectra(phantoms(1)[0], mean=0.0, std=1.0))
    with pytest.raises(EvaluationError, match="halvings=99"):
        spectra.compare(spectra.spectra(noise(0), mean=0, std=1), spectra.spectra(noise(1), mean=0, std=1))
    few = spectra.spectra(noise(1, count=7), mean=0, std=1, halvings=99)
    with pytest.raises(EvaluationError, match="at least 8"):
        spectra.compare(few, few)
    with pytest.raises(EvaluationError, match="uint8"):
        spectra.spectra(noise(0).astype(np.float32), mean=0, std=1)
    with pytest.raises(EvaluationError, match="even width"):
        spectra.spectra(noise(0)[:, :31, :31], mean=0, std=1)
    with pytest.raises(EvaluationError, match="one value"):
        spectra.whitening(np.zeros((2, 32, 32, 3), dtype=np.uint8))
