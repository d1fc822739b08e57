"""Claims about finding the field of view and bringing photographs to one form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.data.fundus import (
    FieldOfView,
    crop_to_field,
    find_field_of_view,
    pad_to_square,
    resize,
    standardise,
    white_surround,
)
from dr_platform.data.phantom import Phantom, phantom
from dr_platform.errors import DataError


def rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_found(image: np.ndarray, p: Phantom, dx: float = 0.0, dy: float = 0.0) -> FieldOfView:
    """The field is where it was drawn, moved by (dx, dy), to 2 % of its radius."""
    fov = find_field_of_view(image)
    assert np.hypot(fov.cx - p.fov_xy[0] - dx, fov.cy - p.fov_xy[1] - dy) < 0.02 * p.fov_radius
    assert abs(fov.radius - p.fov_radius) < 0.02 * p.fov_radius
    return fov


@pytest.mark.parametrize(("size", "many"), [(64, 40), (128, 30), (512, 8)])
def test_the_field_is_found_where_it_was_drawn(size: int, many: int) -> None:
    for index in range(many):
        p = phantom(5, index, size)
        assert_found(p.image, p)


def test_the_field_is_found_in_a_dark_noisy_photograph() -> None:
    rng = np.random.default_rng(0)
    for index in range(5):
        p = phantom(3, index, 128)
        dark = np.clip(0.12 * p.image + rng.normal(0, 2, p.image.shape), 0, 255)
        assert_found(dark.astype(np.uint8), p)


@pytest.mark.parametrize("size", [64, 256])
def test_a_sensor_that_cuts_the_field_does_not_shrink_it(size: int) -> None:
    for index in range(5):
        p, cut = phantom(3, index, size), size // 10
        assert assert_found(p.image[cut:-cut], p, 0, -cut).coverage < 0.96  # wide sensor: top and bottom
        assert_found(p.image[2 * cut :], p, 0, -2 * cut)
        assert_found(p.image[:, 2 * cut :], p, -2 * cut, 0)


def test_a_wide_frame_does_not_move_the_field() -> None:
    p = phantom(3, 1, 128)
    wide = np.zeros((128, 300, 3), np.uint8)
    wide[:, 50:178] = p.image
    assert_found(wide, p, 50)


def test_the_field_of_an_enlarged_photograph_is_enlarged() -> None:
    """Large pictures are reduced before the search; the answer is in the pixels of the original."""
    p = phantom(3, 2, 256)
    fov = find_field_of_view(np.kron(p.image, np.ones((4, 4, 1), np.uint8)))
    # Pixel x of the original becomes pixels 4x ... 4x + 3, centred at 4x + 1.5.
    assert abs(fov.cx - (4 * p.fov_xy[0] + 1.5)) < 0.01 * fov.radius
    assert abs(fov.radius - 4 * p.fov_radius) < 0.01 * fov.radius


def white_cornered(p: Phantom) -> np.ndarray:
    y, x = np.ogrid[: p.image.shape[0], : p.image.shape[1]]
    image = p.image.copy()
    image[np.hypot(x - p.fov_xy[0], y - p.fov_xy[1]) > p.fov_radius + 0.5] = 255
    return image


def test_a_white_surround_is_no_part_of_the_field_and_becomes_black() -> None:
    p = phantom(3, 0, 128)
    image = white_cornered(p)
    fov = assert_found(image, p)
    assert white_surround(image)[0, 0]
    assert crop_to_field(image, fov)[0, 0].tolist() == [0, 0, 0]
    assert not white_surround(standardise(image, 64)).any()


def test_a_dark_surround_is_left_as_it_was() -> None:
    p = phantom(3, 0, 128)
    fov = find_field_of_view(p.image)
    cropped = crop_to_field(p.image, fov)
    top, left = round(fov.cy - fov.radius + 0.5), round(fov.cx - fov.radius + 0.5)
    np.testing.assert_array_equal(cropped, p.image[top : top + cropped.shape[0], left : left + cropped.shape[1]])


def drawing(shape: str) -> np.ndarray:
    image = Image.new("RGB", (300, 200))
    draw, colour = ImageDraw.Draw(image), (200, 80, 30)
    if shape == "square":
        draw.rectangle((100, 50, 200, 150), fill=colour)
    elif shape == "wide rectangle":
        draw.rectangle((20, 20, 280, 180), fill=colour)
    elif shape == "triangle":
        draw.polygon([(30, 180), (270, 180), (150, 10)], fill=colour)
    elif shape == "ellipse":
        draw.ellipse((50, 30, 250, 170), fill=colour)
    elif shape == "half":
        draw.rectangle((0, 0, 150, 200), fill=colour)
    return np.asarray(image)


@pytest.mark.parametrize("shape", ["nothing", "square", "wide rectangle", "triangle", "ellipse", "half"])
def test_what_is_no_disc_is_no_field(shape: str) -> None:
    with pytest.raises(DataError, match="no field of view"):
        find_field_of_view(drawing(shape))


@pytest.mark.parametrize("level", [0, 90, 255])
def test_an_even_picture_has_no_field(level: int) -> None:
    with pytest.raises(DataError, match="no field of view"):
        find_field_of_view(np.full((120, 160, 3), level, np.uint8))


def test_noise_has_no_field() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="no field of view"):
        find_field_of_view(noise)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3)),
        np.zeros((8, 64, 3), np.uint8),
    ],
    ids=["grey", "RGBA", "float", "tiny"],
)
def test_what_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError):
        find_field_of_view(image)


def test_padding_keeps_every_pixel_and_centres_it() -> None:
    image = np.full((10, 20, 3), 7, np.uint8)
    square = pad_to_square(image)
    assert square.shape == (20, 20, 3)
    assert (square[5:15] == 7).all()
    assert square.sum() == image.sum()


def test_padding_puts_the_given_centre_in_the_middle() -> None:
    """A field cut only at the top: 4 rows are missing, so 4 black ones appear there."""
    image = np.full((16, 20, 3), 7, np.uint8)
    square = pad_to_square(image, (9.5, 5.5))
    assert square.shape == (20, 20, 3)
    assert not square[:4].any()
    assert (square[4:] == 7).all()


@pytest.mark.parametrize(("before", "after"), [(28, 32), (64, 32), (300, 64), (64, 64)])
def test_resizing_keeps_an_even_picture_even(before: int, after: int) -> None:
    """Unit gain at zero frequency, at the borders too."""
    image = np.full((before, before, 3), (200, 90, 40), np.uint8)
    np.testing.assert_array_equal(resize(image, after), np.full((after, after, 3), (200, 90, 40), np.uint8))


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    """A one-pixel chequerboard is its mean when shrunk four times: nearest would give black or white."""
    chequers = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize(np.repeat(chequers[..., None], 3, axis=2), 32)
    assert np.abs(small.astype(int) - 127.5).max() < 4


@pytest.mark.parametrize("resolution", [0, 8, 24, 500, -32])
def test_a_resolution_that_is_no_power_of_two_is_refused(resolution: int) -> None:
    with pytest.raises(DataError, match="power of two"):
        standardise(phantom(0, 0, 32).image, resolution)


@pytest.mark.parametrize("resolution", [16, 32, 128])
def test_a_standardised_photograph_is_filled_by_its_field(resolution: int) -> None:
    p = phantom(3, 0, 128)
    image = standardise(p.image, resolution)
    assert (image.shape, image.dtype) == ((resolution, resolution, 3), np.uint8)
    if resolution >= 32:
        fov = find_field_of_view(image)
        middle = (resolution - 1) / 2
        assert np.hypot(fov.cx - middle, fov.cy - middle) < 0.03 * resolution
        assert abs(fov.radius - resolution / 2) < 0.03 * resolution


def test_where_the_frame_cut_the_field_does_not_show_in_the_scale() -> None:
    """The same retina, whole and with the top of its field missing, standardises to the same pixels below the cut."""
    p = phantom(3, 5, 256)
    whole, cut = standardise(p.image, 64).astype(int), standardise(p.image[50:], 64).astype(int)
    assert np.abs(whole[20:] - cut[20:]).mean() < 4  # half a pixel of shift at most


@needs_photographs
@pytest.mark.parametrize(("folder", "radius"), [("hrf", 0.465), ("idrid", 0.40)])
def test_the_field_of_wide_photographs_is_found(folder: str, radius: float) -> None:
    """Lit widths as the collection's README states them: 93 % of the width (HRF) and 80 % (IDRiD)."""
    paths = sorted((FUNDUS_MINI / "images" / folder).glob("*.jpg"))
    assert len(paths) == 20
    radii = []
    for path in paths:
        image = rgb(path)
        fov = find_field_of_view(image)
        radii.append(fov.radius / image.shape[1])
        assert abs(fov.cx / image.shape[1] - 0.48) < 0.04
        assert abs(fov.cy / image.shape[0] - 0.5) < 0.02
        assert 0.78 < fov.coverage < 0.95  # cut at top and bottom
    assert np.median(radii) == pytest.approx(radius, abs=0.005)


@needs_photographs
def test_an_original_and_its_reduction_have_the_same_field() -> None:
    for large, small in (("05_dr.jpg", "hrf/05_dr.jpg"), ("IDRiD_12.jpg", "idrid/IDRiD_12.jpg")):
        a, b = rgb(FUNDUS_MINI / "originals" / large), rgb(FUNDUS_MINI / "images" / small)
        scale = a.shape[1] / b.shape[1]
        one, other = find_field_of_view(a), find_field_of_view(b)
        assert abs(one.radius / scale - other.radius) < 0.01 * other.radius
        assert abs((one.cx + 0.5) / scale - 0.5 - other.cx) < 0.01 * other.radius
        assert abs((one.cy + 0.5) / scale - 0.5 - other.cy) < 0.01 * other.radius


@needs_photographs
def test_every_photograph_of_28_pixels_has_a_field() -> None:
    """All 20 with white corners among them; in those the field is wider than the frame."""
    paths = sorted((FUNDUS_MINI / "images/retinamnist28").glob("*.png"))
    assert len(paths) == 1600
    white = 0
    for path in paths:
        image = rgb(path)
        fov = find_field_of_view(image)
        assert 11 < fov.radius < 17
        assert np.hypot(fov.cx - 13.5, fov.cy - 13.5) < 2
        white += bool(white_surround(image).any())
    assert white == 20
