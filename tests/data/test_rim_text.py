"""Claims about burned-in text: it is found beside the retina and on its rim, and nothing else is taken for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.data.fundus import FieldOfView, find_field_of_view
from dr_platform.data.phantom import phantom
from dr_platform.data.rim_text import Box, find_text

Writing = tuple[np.ndarray, tuple[int, int, int, int]]
TEXTS = ("SMITH JOHN", "2019-03-14", "MRN 402211", "Nguyen, T.", "OD 12:31:07")
WHITE, YELLOW, GREEN, GREY = (255, 255, 255), (255, 255, 0), (0, 200, 0), (110, 110, 110)


def rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def write(pixels: np.ndarray, at: tuple[float, float], text: str, size: float, colour: tuple[int, int, int]) -> Writing:
    """The picture with text around a point, moved inside, after a JPEG round trip; and the text's rectangle."""
    picture = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x, y = (
        int(np.clip(c - n / 2, 2, side - n - 2))
        for c, n, side in zip(at, (right - left, bottom - top), picture.size, strict=True)
    )
    ink = Image.new("L", picture.size)
    for canvas, fill in ((draw, colour), (ImageDraw.Draw(ink), 255)):
        canvas.text((x - left, y - top), text, font=font, fill=fill)
    place = ink.getbbox()
    assert place is not None
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return np.asarray(Image.open(stream).convert("RGB")), place


def meets(box: Box, place: tuple[int, int, int, int]) -> bool:
    return box.left < place[2] and place[0] < box.right and box.top < place[3] and place[1] < box.bottom


def on_rim(fov: FieldOfView, angle: float) -> tuple[float, float]:
    return fov.cx + fov.radius * np.cos(angle), fov.cy + fov.radius * np.sin(angle)


@pytest.mark.parametrize("colour", [WHITE, YELLOW, GREEN, GREY])
@pytest.mark.parametrize("size", [9, 14, 24])
def test_text_in_a_corner_is_found_where_it_stands(size: int, colour: tuple[int, int, int]) -> None:
    for index, text in enumerate(TEXTS):
        p = phantom(5, index, 512)
        wide = np.pad(p.image, ((0, 0), (150, 150), (0, 0)))
        corner = (800 * (index % 2), 512 * (index // 2 % 2))
        picture, place = write(wide, corner, text, size, colour)
        boxes = find_text(picture, find_field_of_view(picture))
        assert boxes
        assert all(meets(box, place) for box in boxes)
        for box in boxes:  # 2 px: the JPEG blurs the strokes
            assert box.left >= place[0] - 2
            assert box.right <= place[2] + 2
            assert box.top >= place[1] - 2
            assert box.bottom <= place[3] + 2


def test_white_text_on_the_rim_is_found() -> None:
    rng, found, many = np.random.default_rng(3), 0, 24
    for index in range(many):
        p = phantom(5, index % 8, 384)
        fov = find_field_of_view(p.image)
        text, size = TEXTS[index % len(TEXTS)], rng.uniform(9, 20)
        picture, place = write(p.image, on_rim(fov, rng.uniform(0, 2 * np.pi)), text, size, WHITE)
        found += any(meets(box, place) for box in find_text(picture, fov))
    assert found >= 0.9 * many


def test_upright_text_and_dark_text_on_white_are_found() -> None:
    p = phantom(5, 1, 512)
    wide = np.pad(p.image, ((0, 0), (0, 120), (0, 0)))
    picture, _ = write(wide, (600, 20), TEXTS[0], 14, WHITE)
    upright = np.rot90(picture).copy()
    assert len(find_text(upright, find_field_of_view(upright))) == 1
    y, x = np.ogrid[:512, :632]
    outside = np.hypot(x - p.fov_xy[0], y - p.fov_xy[1]) > p.fov_radius
    white = np.where(outside[..., None], 255, wide).astype(np.uint8)
    assert find_text(white, find_field_of_view(white)) == []
    picture, place = write(white, (600, 20), TEXTS[0], 14, (0, 0, 0))
    (box,) = find_text(picture, find_field_of_view(picture))
    assert meets(box, place)


def test_two_lines_are_two_boxes() -> None:
    p = phantom(5, 1, 512)
    wide = np.pad(p.image, ((0, 0), (0, 160), (0, 0)))
    picture, upper = write(wide, (640, 20), TEXTS[0], 14, WHITE)
    picture, lower = write(picture, (640, 60), TEXTS[1], 14, WHITE)
    first, second = find_text(picture, find_field_of_view(picture))
    assert meets(first, upper)
    assert meets(second, lower)


def test_boxes_are_in_pixels_of_the_picture_given() -> None:
    image = np.asarray(Image.fromarray(phantom(5, 1, 512).image).resize((2300, 2300)))
    wide = np.pad(image, ((0, 0), (600, 600), (0, 0)))
    picture, place = write(wide, (200, 100), TEXTS[2], 60, WHITE)
    (box,) = find_text(picture, find_field_of_view(picture))
    assert np.abs(np.subtract((box.left, box.top, box.right, box.bottom), place)).max() <= 6  # two reduced pixels


@pytest.mark.parametrize("size", [64, 256, 512])
def test_notches_tabs_and_lesions_are_no_text(size: int) -> None:
    for index in range(20 if size < 512 else 8):
        p = phantom(5, index, size)
        assert find_text(p.image, find_field_of_view(p.image)) == []


@pytest.mark.parametrize("quality", [10, 30])
def test_jpeg_noise_and_sensor_noise_are_no_text(quality: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        p = phantom(5, index, 256)
        noisy = np.clip(p.image + rng.normal(0, 6, p.image.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=quality)
        picture = np.asarray(Image.open(stream).convert("RGB"))
        assert find_text(picture, find_field_of_view(picture)) == []


def test_single_marks_are_no_text() -> None:
    p = phantom(5, 1, 512)
    picture = Image.fromarray(np.pad(p.image, ((0, 0), (0, 100), (0, 0))))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((540, 20, 560, 30), fill=WHITE)
    draw.line((530, 480, 600, 480), fill=WHITE, width=3)
    draw.ellipse((560, 250, 575, 265), fill=WHITE)
    draw.text((580, 60), "R", font=ImageFont.load_default(20), fill=WHITE)
    assert find_text(np.asarray(picture), find_field_of_view(np.asarray(picture))) == []


@needs_photographs
@pytest.mark.parametrize(("pattern", "every", "many"), [("images/[hi]*/*.jpg", 1, 40), ("originals/*.jpg", 1, 4),
                                                        ("images/ret*/*.png", 40, 40)])  # fmt: skip
def test_no_real_photograph_is_accused(pattern: str, every: int, many: int) -> None:
    found = sorted(FUNDUS_MINI.glob(pattern))[::every]
    assert len(found) == many
    accused = [f.name for f in found if find_text(rgb(f), find_field_of_view(rgb(f)))]
    assert accused == []


@needs_photographs
def test_text_on_real_photographs_is_found() -> None:
    rng = np.random.default_rng(4)
    found = {"corner": 0, "rim": 0}
    photographs = sorted(FUNDUS_MINI.glob("images/[hi]*/*.jpg"))[::2]
    for index, file in enumerate(photographs):
        image = rgb(file)
        fov = find_field_of_view(image)
        corner = (image.shape[1] * (index % 2), image.shape[0] * (index // 2 % 2))
        for where, at in (("corner", corner), ("rim", on_rim(fov, rng.uniform(0, 2 * np.pi)))):
            picture, place = write(image, at, TEXTS[index % len(TEXTS)], rng.uniform(9, 18), WHITE)
            found[where] += any(meets(box, place) for box in find_text(picture, fov))
    assert found["corner"] == len(photographs) == 20
    assert found["rim"] >= 18
