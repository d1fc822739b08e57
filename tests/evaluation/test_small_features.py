"""drp-small-v1: closed forms, and the pin that makes a changed feature a changed name."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from dr_platform.evaluation import small_features as small

BANK = small.filter_bank()


def features(pictures: np.ndarray) -> np.ndarray:
    return small.small_features(torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2), BANK).numpy()


def grating(wavelength_px: float, amplitude: float) -> np.ndarray:
    wave = 128 + amplitude * np.cos(2 * np.pi * np.arange(64) / wavelength_px)
    return np.broadcast_to(np.round(wave).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3))


def test_a_gratings_modulus_is_its_amplitude_times_the_filters_gain() -> None:
    found = np.expm1(features(grating(8, 60))[0, :16].reshape(4, 4))
    gain = [math.exp(-(math.log(w / 8) ** 2) / (2 * math.log(0.65) ** 2)) for w in small.WAVELENGTHS_PX]
    # Orientation 0 looks along x, where the wave runs. Rounding to grey levels moves the amplitude by up to a half.
    np.testing.assert_allclose(found[:, 0], 60 * np.array(gain), atol=0.5)
    assert (found[:, 2] < 0.01 * found[:, 0].max()).all()


def test_a_uniform_picture_has_colour_and_nothing_else_at_any_size() -> None:
    for size in (16, 64, 200):
        found = features(np.full((1, size, size, 3), (200, 100, 50), dtype=np.uint8))[0]
        assert np.abs(found[:-48]).max() < 1e-9
        layout = found[-48:].reshape(3, 16) / small.LAYOUT_GAIN * 255
        np.testing.assert_allclose(layout, np.broadcast_to([[350 / 3], [100], [100]], (3, 16)), atol=1e-9)


def test_blur_lowers_and_noise_raises_the_finest_moduli(blobs: np.ndarray) -> None:
    pictures = blobs[:20].repeat(2, axis=1).repeat(2, axis=2)
    noise = np.random.default_rng(0).normal(0, 15, pictures.shape)
    noisy = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    blurred = gaussian_filter(pictures.astype(float), (0, 1.5, 1.5, 0)).astype(np.uint8)
    finest = [features(p)[:, :4].mean(axis=1) for p in (blurred, pictures, noisy)]
    assert (finest[0] < finest[1]).all()
    assert (finest[1] < finest[2]).all()


def test_a_periodic_shift_leaves_the_global_moduli_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(features(picture)[0, :16], features(np.roll(picture, 5, axis=2))[0, :16], atol=1e-12)


def test_the_features_belong_to_their_identity() -> None:
    """If this fails, the features have changed: give the extractor a new name, since old numbers no longer compare."""
    y, x = np.mgrid[:48, :48]
    picture = np.stack([(x * 5 + y) % 256, (y * 3) % 256, (x * y // 9) % 256], axis=-1)[None].astype(np.uint8)
    found = features(picture)[0]
    assert found.shape == (small.FEATURES,) == (95,)
    assert small.WEIGHTS_SHA256 == "75ac97a384b30f18bb5f080426be54b6d56e379c4b9e8de5b714ca28d6191297"
    np.testing.assert_allclose(
        found[[0, 7, 20, 35, 44, 46, 47, 94]],
        [1.22970931, 1.00558375, 1.25544954, 2.65228042, 3.78044193, 3.69365210, 0.27479573, -0.86141770],
        atol=1e-6,
    )
