"""The border of the field: edges and circles in closed form, planted faults, and no alarm where there is none."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import ndtr

from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import boundary, two_sample

SIZE, COUNT = 96, 40
CENTRE = (SIZE - 1) / 2
Y, X = np.mgrid[:SIZE, :SIZE] - CENTRE


@lru_cache
def phantoms(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [40, 96, 96, 3] of the collection `seed`, and their patients."""
    drawn = [phantom(seed, index, SIZE) for index in range(COUNT)]
    return np.stack([p.image for p in drawn]), np.array([p.patient for p in drawn])


def disc(blur: float = 0.7, jag: float = 0.0, teeth: int = 24, cut: int = 0, outside: float = 0.0) -> np.ndarray:
    """A disc of radius 40 off the centre: edge an integral of a Gaussian, radius 40 + jag · sin."""
    x, y = X - 0.3, Y + 0.2
    radius = 40 + jag * np.sin(teeth * np.arctan2(y, x))
    grey = outside + (200 - outside) * ndtr((radius - np.hypot(x, y)) / blur)
    if cut:
        grey[:cut] = grey[-cut:] = 0
    return np.round(grey).astype(np.uint8)[None, :, :, None].repeat(3, axis=3)


def with_soft_rims(images: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    soft = ndimage.gaussian_filter(images.astype(float), (0, sigma, sigma, 0))
    return np.where((np.hypot(X, Y) > 0.42 * SIZE)[None, :, :, None], soft, images).round().astype(np.uint8)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("cut", [0, 18])
def test_the_rim_is_as_wide_as_the_gaussian_it_is_made_of(sigma: float, cut: int) -> None:
    # 10 to 90 % of a Gaussian edge: 2.563 σ. Linear interpolation between pixels adds some 1/6 px² of variance.
    expected = 2.563 * math.sqrt(sigma**2 + 1 / 6)
    assert boundary.boundaries(disc(sigma, cut=cut)).rim_width_px[0] == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(("jag", "cut"), [(0.5, 0), (1.0, 0), (1.5, 0), (0.5, 12), (1.0, 12)])
def test_the_residual_is_the_root_mean_square_of_the_teeth(jag: float, cut: int) -> None:
    found = boundary.boundaries(disc(jag=jag, cut=cut)).residual_px[0]
    # Of a sine: amplitude / √2, on the share of the border that is the circle (a chord is straight).
    angle = math.asin((CENTRE + 1 - cut) / 40) if cut else math.pi / 2
    expected = jag / math.sqrt(2) * math.sqrt(angle / (math.pi / 2))
    assert found == pytest.approx(expected, abs=0.15)


def test_a_circle_has_no_residual_cut_or_not() -> None:
    assert boundary.boundaries(disc()).residual_px[0] < 0.05
    assert boundary.boundaries(disc(cut=18)).residual_px[0] < 0.2  # where chord and circle meet, corners are rounded


def test_energy_outside_is_measured_and_a_black_surround_has_none() -> None:
    clean, lit = boundary.boundaries(disc()), boundary.boundaries(disc(outside=20.0))
    assert clean.outside[0] == 0
    area = (np.hypot(X - 0.3, Y + 0.2) > 42).sum()
    energy = np.square(disc(outside=20.0)[0, :, :, 0].astype(float)).sum()
    assert lit.outside[0] == pytest.approx(400 * area / energy, rel=0.05)


def test_the_profile_falls_at_the_radius() -> None:
    profile = boundary.boundaries(disc()).profiles[0]
    radii = np.linspace(*boundary.RIM, boundary.RADII)
    assert profile[radii < 0.93] == pytest.approx(200, abs=1)
    # The edge falls by 200 / (0.7 √2π) = 114 per pixel, and the radius is found to a fifth of one.
    assert np.interp(1.0, radii, profile) == pytest.approx(100, abs=23)
    assert (profile[radii > 1.045] < 10).all()


def test_phantoms_fields_are_found_and_a_picture_without_one_is_counted_as_missing() -> None:
    images = np.concatenate((phantoms(0)[0][:5], np.zeros((2, SIZE, SIZE, 3), np.uint8)))
    found = boundary.boundaries(images)
    assert found.missing == 2
    assert np.isnan(found.residual_px[5:]).all()
    assert np.isfinite(found.rim_width_px[:5]).all()
    truth = [phantom(0, index, SIZE) for index in range(5)]
    np.testing.assert_allclose([f.radius for f in found.fields[:5]], [t.fov_radius for t in truth], rtol=0.02)


def test_soft_rims_are_found_and_known_rims_leave_the_circle_alone() -> None:
    (real, patients), (fake, others) = phantoms(0), phantoms(1)
    clean = boundary.boundaries(real)
    found = boundary.compare(clean, boundary.boundaries(with_soft_rims(fake)), patients, others, repeats=199)
    width = found.measures["rim_width_px"]
    sharp = float(np.nanmean(clean.rim_width_px))
    assert width.p == 1 / 200
    assert width.shift.low > 0
    # Blurs add in quadrature, and what is there is no more than the reals' mean width.
    assert width.shift.value == pytest.approx(math.hypot(2.563 * 2.0, sharp) - sharp, rel=0.25)
    assert found.profile.p <= 0.01
    assert found.measures["residual_px"].shift.value < 0.3
    assert found.found == (1.0, 1.0)


def test_jagged_circles_are_found() -> None:
    (real, patients), (fake, others) = phantoms(0), phantoms(1)
    wave = 1 + 0.03 * np.sin(20 * np.arctan2(Y, X))
    jagged = np.stack(
        [
            np.stack([ndimage.map_coordinates(c, [CENTRE + Y * wave, CENTRE + X * wave], order=1) for c in image], -1)
            for image in np.moveaxis(fake, 3, 1)
        ]
    )
    measured = [boundary.boundaries(images) for images in (real, jagged)]
    found = boundary.compare(*measured, patients, others, repeats=199).measures["residual_px"]
    assert found.p == 1 / 200
    radius = np.mean([field.radius for field in measured[0].fields if field])
    # The teeth are about 3 % of the radius high; the field's own centre is a little off the picture's.
    assert found.shift.value == pytest.approx(0.03 * radius / math.sqrt(2), rel=0.2)


def test_clean_phantoms_do_not_differ_from_other_clean_phantoms() -> None:
    p = []
    for seed in (10, 12, 14, 16):
        (real, patients), (fake, others) = phantoms(seed), phantoms(seed + 1)
        found = boundary.compare(
            boundary.boundaries(real), boundary.boundaries(fake), patients, others, repeats=199, seed=seed
        )
        p += [d.p for d in (*found.measures.values(), found.profile)]
    # 16 tests at 1 %: three or more together 0.05 % of the time.
    assert np.sum(np.array(p) <= 0.01) <= 2


def test_a_probe_on_the_rim_sees_soft_rims_and_one_on_the_centre_does_not() -> None:
    (real, patients), (fake, others) = phantoms(0), phantoms(1)
    soft = with_soft_rims(fake)

    def probe(which: boundary.Region, pictures: np.ndarray) -> two_sample.Separability:
        features = (boundary.local_features(images, which) for images in (real, pictures))
        return two_sample.separability(*features, patients, others, shuffles=99)

    rim, clean = probe("rim", soft), probe("rim", fake)
    assert rim.auc.value > 0.95
    assert rim.auc.low > 0.8  # 24 patients in perfect order say no more than 0.86
    assert rim.p <= 0.01
    assert clean.auc.low < 0.5 < clean.auc.high or clean.p > 0.01
    assert rim.control.low < 0.5 < rim.control.high
    # 80 % of the width as a square reaches out to the soft ring (0.42 of the width) in its corners only.
    crop = boundary.centre_crop(soft)
    middle = slice(crop.shape[1] // 2 - 28, crop.shape[1] // 2 + 28)
    assert np.array_equal(crop[:, middle, middle], boundary.centre_crop(fake)[:, middle, middle])


@pytest.mark.parametrize(("size", "linear", "area"), [(512, 410, 458), (256, 204, 228), (64, 52, 58)])
def test_the_centre_crop_is_80_per_cent_and_central(size: int, linear: int, area: int) -> None:
    ramp = np.broadcast_to(np.arange(size, dtype=np.int64)[None, None, :, None], (1, size, size, 3))
    for kind, side in (("linear", linear), ("area", area)):
        crop = boundary.centre_crop(ramp, kind)
        assert crop.shape == (1, side, side, 3)
        assert crop[0, 0, 0, 0] == size - 1 - crop[0, 0, -1, 0]
    assert boundary.centre_crop(ramp).shape[1] == linear


def test_a_region_shows_only_itself() -> None:
    images = phantoms(0)[0][:3]
    rim = boundary.region(images, "rim")
    field = boundary.boundaries(images).fields[0]
    assert field is not None
    away = np.hypot(X + CENTRE - field.cx, Y + CENTRE - field.cy) / field.radius
    inside = (away >= boundary.RIM[0]) & (away <= boundary.RIM[1])
    assert np.array_equal(rim[0][inside], images[0][inside])
    assert not rim[0][~inside].any()
    assert boundary.region(images, "whole") is images
    assert np.array_equal(boundary.region(images, "centre", "area"), boundary.centre_crop(images, "area"))


def test_bad_input_is_refused() -> None:
    with pytest.raises(EvaluationError, match="uint8"):
        boundary.boundaries(np.zeros((1, 32, 32), np.uint8))
    with pytest.raises(EvaluationError, match="'linear' or 'area'"):
        boundary.centre_crop(phantoms(0)[0], "round")
    with pytest.raises(EvaluationError, match="'rim', 'centre' or 'whole'"):
        boundary.region(phantoms(0)[0], "macula")
    blank = boundary.boundaries(np.zeros((8, 32, 32, 3), np.uint8))
    with pytest.raises(EvaluationError, match="4 patients"):
        boundary.compare(blank, blank)
