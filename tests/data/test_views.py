"""Claims about which way photographs face: the disc's side is found, and turning and mirroring follow from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collection_rows import prepare_config as config
from PIL import Image
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.data.fundus import find_field_of_view
from dr_platform.data.phantom import phantom
from dr_platform.data.views import CERTAIN, View, disc_side, fault, is_inverted, view_of

# By eye, from a sheet of the pictures: where the disc lies. Of the others it lies on the left.
RIGHT = {"01_g", "01_h", "02_dr", "03_g", "03_h", "04_dr", "05_g", "05_h", "06_dr", "07_g", "IDRiD_01", "IDRiD_05",
         "IDRiD_06", "IDRiD_07", "IDRiD_08", "IDRiD_09", "IDRiD_13", "IDRiD_15", "IDRiD_17", "IDRiD_18", "IDRiD_19",
         "IDRiD_20"}  # fmt: skip


def side(pixels: np.ndarray) -> float:
    return disc_side(pixels, find_field_of_view(pixels))


def test_the_disc_of_phantoms_is_found_and_follows_what_is_done_to_the_picture() -> None:
    for index in range(40):
        p = phantom(8, index, 192)
        found = side(p.image)
        assert (found > CERTAIN) == (p.disc_xy[0] > p.fov_xy[0])
        assert (found < -CERTAIN) == (p.disc_xy[0] < p.fov_xy[0])
        assert is_inverted(p.eye, found) is False
        assert is_inverted(p.eye, side(np.ascontiguousarray(p.image[::-1, ::-1])))
        assert is_inverted(None, -found) is False


@needs_photographs
def test_the_disc_of_real_photographs_is_found() -> None:
    certain = 0
    for file in sorted(FUNDUS_MINI.glob("images/[hi]*/*.jpg")):
        found = side(np.asarray(Image.open(file).convert("RGB")))
        if abs(found) >= CERTAIN:
            certain += 1
            assert (found > 0) == (Path(file).stem in RIGHT), file.name
    assert certain == 38  # of 40: the disc lies in the middle of one, a large exudate of another is brighter


def test_a_field_too_narrow_for_two_sides_says_nothing() -> None:
    p = phantom(8, 0, 192)
    assert abs(disc_side(np.full((64, 64, 3), 90, np.uint8), find_field_of_view(p.image))) < CERTAIN


def test_views_turn_and_mirror() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(View().apply(pixels), pixels)
    assert np.array_equal(View(mirrored=True).apply(pixels), pixels[:, ::-1])
    assert np.array_equal(View(turned=True).apply(pixels), np.rot90(pixels, 2))
    assert np.array_equal(View(turned=True, mirrored=True).apply(pixels), pixels[::-1])


@pytest.mark.parametrize(
    ("eye", "disc", "turned", "mirrored"),
    [
        ("right", 9.0, False, False),
        ("left", -9.0, False, True),
        ("right", -9.0, True, False),
        ("left", 9.0, True, True),
        ("right", -1.0, False, False),
    ],
)
def test_everything_becomes_a_right_eye_seen_directly(eye: str, disc: float, turned: bool, mirrored: bool) -> None:
    wanted = config(laterality="right", inverted_views="turn")
    assert fault(eye, disc, wanted) is None
    assert view_of(eye, disc, wanted) == View(turned, mirrored)
    assert view_of(eye, disc, config()) == View()


def test_after_normalising_the_disc_lies_right_of_the_macula() -> None:
    wanted = config(laterality="right", inverted_views="turn")
    for index in range(10):
        p = phantom(5, index, 64)
        marked = np.zeros_like(p.image)
        for (x, y), value in ((p.disc_xy, 200), (p.macula_xy, 100)):
            marked[round(y), round(x)] = value
        disc = 9.0 if p.disc_xy[0] > p.macula_xy[0] else -9.0
        for upside_down in (False, True):
            given = np.ascontiguousarray(marked[::-1, ::-1]) if upside_down else marked
            seen = view_of(p.eye, -disc if upside_down else disc, wanted).apply(given)[..., 0]
            assert np.argwhere(seen == 200)[0][1] > np.argwhere(seen == 100)[0][1]
