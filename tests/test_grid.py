"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from dr_platform.grid import contact_sheet

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def test_pictures_stand_in_reading_order_unchanged() -> None:
    sheet = np.asarray(contact_sheet(PICTURES, columns=3))
    assert sheet.shape == (2 * (6 + 2) + 2, 3 * (8 + 2) + 2, 3)
    for index, picture in enumerate(PICTURES):
        top, left = 2 + index // 3 * 8, 2 + index % 3 * 10
        assert np.array_equal(sheet[top : top + 6, left : left + 8], picture)


def test_enlarging_repeats_pixels() -> None:
    sheet = np.asarray(contact_sheet(PICTURES[:1], scale=3))
    assert np.array_equal(sheet[2:20:3, 2:26:3], PICTURES[0])
    assert np.array_equal(sheet[4:20:3, 4:26:3], PICTURES[0])


def test_captions_stand_below_and_leave_the_pictures_alone() -> None:
    plain = np.asarray(contact_sheet(PICTURES, columns=5, scale=8))
    captioned = np.asarray(contact_sheet(PICTURES, columns=5, scale=8, captions=["a long caption", "", "", "", "5"]))
    assert np.array_equal(captioned[: 2 + 48], plain[: 2 + 48])
    below = captioned[50:64]
    assert (below[:, 2:66] > 100).any()
    assert not (below[:, 68:132] > 100).any()  # the second caption is empty, the first one is cut at its picture


def test_a_sheet_without_columns_is_about_square() -> None:
    assert contact_sheet(np.repeat(PICTURES[:1], 9, axis=0)).size == (3 * 10 + 2, 3 * 8 + 2)


@pytest.mark.parametrize("wrong", [PICTURES[:0], PICTURES.astype(np.float32), PICTURES[..., :1], PICTURES[0]])
def test_anything_but_8_bit_rgb_pictures_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contact sheet takes uint8"):
        contact_sheet(wrong)


def test_a_caption_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="5 images have 1 captions"):
        contact_sheet(PICTURES, captions=["one"])
