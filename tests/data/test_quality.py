"""Claims about photographs of poor quality and pictures that are none: what is measured, what is refused, and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.config import QualityConfig
from dr_platform.data.phantom import phantom
from dr_platform.data.phantom_scene import DEFAULT_GRADES, sample_scene
from dr_platform.data.quality import Quality, judge, measure
from dr_platform.errors import DataError

SIDE = 256
Y, X = np.mgrid[:SIDE, :SIDE]
DISC = (np.hypot(X - 127.5, Y - 127.5) < 120)[..., None].astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def text_page() -> np.ndarray:
    page = Image.new("RGB", (SIDE, SIDE), "white")
    for line in range(20):
        ImageDraw.Draw(page).text((8, 8 + 12 * line), "The left eye shows no sign of retinopathy.", fill="black")
    return np.asarray(page)


def scene() -> np.ndarray:
    rng = np.random.default_rng(1)
    clouds = sum(ndimage.zoom(rng.normal(size=(k, k)), SIDE / k, order=1) / k for k in (2, 4, 8, 16, 32, 64))
    ground = np.clip(128 + 800 * clouds[..., None] / 6 * np.array([1, 0.9, 0.7]), 0, 255).astype(np.uint8)
    ground[:90] = (120, 170, 230)
    return ground


def oct_scan() -> np.ndarray:
    speckle = 40 * np.random.default_rng(2).random((SIDE, SIDE))
    layers = [150 * np.exp(-(((Y - level - 15 * np.sin(X / 40)) / 8) ** 2)) for level in (110, 145)]
    return grey(speckle + sum(layers))


PICTURES = {
    "noise": noise(),
    "text": text_page(),
    "ramp": grey(X.astype(float)),
    "scene": scene(),
    "OCT": oct_scan(),
    "black": grey(np.zeros((SIDE, SIDE))),
    "grey": grey(np.full((SIDE, SIDE), 128.0)),
    "white": grey(np.full((SIDE, SIDE), 255.0)),
}


@pytest.mark.parametrize("round_", [False, True], ids=["whole", "in a disc"])
@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_fundus_is_refused_even_in_a_disc(name: str, round_: bool) -> None:
    assert judge(measure(PICTURES[name] * DISC if round_ else PICTURES[name]))


def test_an_even_orange_disc_is_refused() -> None:
    assert judge(measure(DISC * np.array([200, 90, 40], np.uint8)))


@pytest.mark.parametrize("size", [64, 256, 512])
def test_phantoms_are_accepted(size: int) -> None:
    for index in range(5):
        assert judge(measure(phantom(5, index, size).image)) == []


def test_radius_and_light_are_those_that_were_drawn() -> None:
    p = phantom(4, 0, 512)
    quality = measure(p.image)
    assert quality.field_found
    assert quality.radius == pytest.approx(p.fov_radius, rel=0.02)
    flat = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    flat[:, :SIDE] = DISC * np.array([150, 80, 30], np.uint8)
    even = measure(flat)
    assert (even.red, even.green, even.blue) == (150, 80, 30)
    assert even.exposure == pytest.approx(0.299 * 150 + 0.587 * 80 + 0.114 * 30)
    assert even.aspect == 2
    assert (even.dark, even.bright) == (0, 0)
    assert max(even.contrast, even.focus) < 1e-4  # rounding of 32-bit sums


def test_the_share_cut_off_is_the_circle_s_beyond_the_chord() -> None:
    whole = next(i for i in range(20) if np.isinf(sample_scene(6, i, DEFAULT_GRADES, None).eye.cut))
    for cut in (0.65, 0.8, 0.9):  # chords at this share of the radius, above and below
        truth = 2 * (np.arccos(cut) - cut * np.sqrt(1 - cut**2)) / np.pi
        p = phantom(6, whole, 256)
        y = np.abs(np.arange(256) - p.fov_xy[1])[:, None, None]
        black = np.where(y <= cut * p.fov_radius, p.image, 0)
        smaller = p.image[(y <= cut * p.fov_radius)[:, 0, 0]]
        for picture in (black, smaller):
            assert measure(picture).truncated == pytest.approx(truth, abs=0.02)
    assert measure(p.image).truncated < 0.02


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(c, sigma) for c in np.moveaxis(pixels, 2, 0)], axis=-1)


def relit(pixels: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(pixels * float(factor), 0, 255).round().astype(np.uint8)


WORSE = {  # ever worse: the first is accepted, the last refused, and once refused always refused
    "blur": (lambda p, s: blurred(p, s), (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 7.0)),
    "dark": (relit, (1.0, 0.6, 0.4, 0.3, 0.2, 0.12, 0.08)),
    "light": (relit, (1.0, 1.3, 1.7, 2.2, 3.0, 4.0, 6.0)),
}


@pytest.mark.parametrize("how", WORSE)
def test_what_is_refused_stays_refused_when_it_gets_worse(how: str) -> None:
    change, levels = WORSE[how]
    for index in range(3):
        image = phantom(9, index, 256).image
        refused = [bool(judge(measure(change(image, level)))) for level in levels]
        assert refused == sorted(refused)
        assert not refused[0]
        assert refused[-1]


def test_focus_falls_with_every_blur() -> None:
    for index in range(3):
        image = phantom(9, index, 256).image
        focus = [measure(blurred(image, sigma)).focus for sigma in (0, 0.7, 1.4, 2.1, 3)]
        assert np.all(np.diff(focus) < 0)


def test_noise_and_size_hardly_move_the_focus() -> None:
    rng = np.random.default_rng(0)
    for index in range(2):
        image = phantom(9, index, 512).image
        sharp, dull = (measure(p).focus for p in (image, blurred(image, 6)))
        for picture, other in ((image, dull), (blurred(image, 6), sharp)):
            own = measure(picture).focus
            noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
            half = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS))
            for again in (noisy, half):  # nearer to what it was than to the other, by far
                assert abs(measure(again).focus - own) < 0.25 * abs(other - own)


def test_a_negative_is_named() -> None:
    for index in range(3):
        (reason,) = judge(measure(255 - phantom(5, index, 256).image))
        assert "inverted" in reason


def test_a_grey_copy_is_not_a_colour_photograph() -> None:
    quality = measure(grey(phantom(5, 0, 256).image[..., 1]))
    assert quality.fundus_like < 0.5
    assert any("likeness" in reason for reason in judge(quality))


def test_every_reason_has_the_number_found_and_the_one_needed() -> None:
    good = measure(phantom(5, 0, 256).image)
    bad = replace(
        good, radius=3.0, aspect=4.0, coverage=0.2, truncated=0.7, exposure=250.0, dark=0.9, bright=0.8, fundus_like=0.1
    )
    reasons = judge(bad)
    assert len(reasons) == 8  # focus and contrast are not judged at this radius
    for reason, found in zip(reasons, ("3", "4.00", "0.20", "0.70", "250", "0.90", "0.80", "0.10"), strict=True):
        assert f"is {found}" in reason
        assert reason.endswith(("is needed", "is allowed"))
    assert len(judge(replace(good, focus=0.1, contrast=0.01))) == 2


def test_thresholds_of_a_site_are_used() -> None:
    quality = measure(phantom(5, 0, 256).image)
    assert judge(quality, QualityConfig(min_radius=500)) == [
        f"the field's radius is {quality.radius:.0f} px; at least 500 px is needed"
    ]


def test_a_picture_without_a_field_has_one_reason() -> None:
    (reason,) = judge(Quality(field_found=False, aspect=9.0))
    assert "no field of view" in reason


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (8, 8, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="needed"):
        measure(np.zeros(shape, np.uint8))


@needs_photographs
@pytest.mark.parametrize(("folder", "every", "many"), [("hrf", 1, 20), ("idrid", 1, 20), ("retinamnist28", 10, 160)])
def test_98_of_100_real_photographs_are_accepted(folder: str, every: int, many: int) -> None:
    found = sorted((FUNDUS_MINI / "images" / folder).glob("*.*"))[::every]
    refused = [f.name for f in found if judge(measure(np.asarray(Image.open(f).convert("RGB"))))]
    assert len(found) == many
    assert len(refused) <= 0.02 * many
