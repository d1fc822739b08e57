"""Claims about near-duplicates: what is a copy, what is not, and that every pair is found once."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform.data.duplicates import (
    ORIENTATIONS,
    SIDE,
    THRESHOLD,
    Pair,
    fingerprint,
    groups,
    near_duplicates,
    near_duplicates_between,
    similarity,
)
from dr_platform.data.phantom import phantom
from dr_platform.errors import DataError


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [phantom(7, index, 256).image for index in range(10)]  # two blocks: four patients with both eyes


@pytest.fixture(scope="module")
def prints(photographs: list[np.ndarray]) -> np.ndarray:
    return np.stack([fingerprint(p) for p in photographs])


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


COPIES = {
    "re-encoded": lambda p: jpeg(p, 30),
    "smaller": lambda p: scaled(p, 0.25),
    "larger": lambda p: scaled(p, 2),
    "cropped": lambda p: p[round(0.06 * len(p)) :, : -round(0.04 * len(p))],
    "bordered": lambda p: np.pad(p, ((10, 40), (100, 20), (0, 0))),
    "recoloured": lambda p: np.clip(255 * (p / 255) ** 0.8 * (0.8, 1.1, 1.2), 0, 255).astype(np.uint8),
    "darker": lambda p: (p * 0.6).astype(np.uint8),
}
TURNS = {
    "same": lambda p: p,
    "mirrored": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "turned": lambda p: p[::-1, ::-1],
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_with_its_original_and_nothing_else(
    change: str, photographs: list[np.ndarray], prints: np.ndarray
) -> None:
    copies = np.stack([fingerprint(COPIES[change](p)) for p in photographs])
    found = near_duplicates(np.concatenate((prints, copies)))
    assert [(p.first, p.second, p.how) for p in found] == [(i, i + len(prints), "same") for i in range(len(prints))]


@pytest.mark.parametrize("how", ORIENTATIONS)
def test_a_turned_copy_is_found_and_its_orientation_named(
    how: str, photographs: list[np.ndarray], prints: np.ndarray
) -> None:
    turned = np.stack([fingerprint(np.ascontiguousarray(TURNS[how](p))) for p in photographs[:4]])
    found = near_duplicates(np.concatenate((prints, turned)))
    assert [(p.first, p.second, p.how) for p in found] == [(i, i + len(prints), how) for i in range(4)]


def test_both_eyes_of_a_patient_are_not_copies(prints: np.ndarray) -> None:
    patients = [phantom(7, index, 16).patient for index in range(len(prints))]
    assert len(set(patients)) < len(patients)  # there are fellow eyes among them
    assert near_duplicates(prints) == []


def test_a_retina_that_moved_against_the_rim_is_another_photograph() -> None:
    y, x = np.ogrid[:400, :400]
    field = np.hypot(x - 199.5, y - 199.5) <= 195
    for index in range(6):
        retina = phantom(8, index, 512).image
        first, second = (np.where(field[..., None], retina[56:456, left : left + 400], 0) for left in (50, 62))
        assert similarity(fingerprint(first), fingerprint(second))[0] < THRESHOLD  # 6 % of the radius apart
        assert similarity(fingerprint(first), fingerprint(jpeg(first, 50)))[0] >= THRESHOLD


def test_similarity_is_one_with_itself_and_the_same_both_ways(prints: np.ndarray) -> None:
    assert similarity(prints[0], prints[0])[0] == pytest.approx(1, abs=1e-5)
    there, back = similarity(prints[0], prints[1])[0], similarity(prints[1], prints[0])[0]
    assert there < THRESHOLD > back


def test_pictures_that_show_nothing_are_like_nothing() -> None:
    rng = np.random.default_rng(0)
    black, grey = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 128, np.uint8)
    noise = [rng.integers(0, 256, (64, 80, 3), dtype=np.uint8) for _ in range(2)]
    prints = np.stack([fingerprint(p) for p in (black, black, grey, *noise)])
    assert near_duplicates(prints) == []


def test_blocks_do_not_change_what_is_found(photographs: list[np.ndarray], prints: np.ndarray) -> None:
    every = np.concatenate((prints, np.stack([fingerprint(jpeg(p, 60)) for p in photographs]), prints[:3]))
    whole = near_duplicates(every)
    assert [(p.first, p.second) for p in near_duplicates(every, block=3)] == [(p.first, p.second) for p in whole]
    assert groups(whole, len(every))[:3] == [[0, 10, 20], [1, 11, 21], [2, 12, 22]]
    assert len(whole) == 10 + 2 * 3


@pytest.mark.parametrize("block", [3, 2048])
def test_pairs_between_two_sets_are_those_of_both_together_that_cross(
    block: int, photographs: list[np.ndarray], prints: np.ndarray
) -> None:
    copies = np.stack([fingerprint(jpeg(p[:, ::-1], 60)) for p in photographs[:4]])
    first, second = np.concatenate((prints, prints[:2])), np.concatenate((prints[5:7], copies))
    together = near_duplicates(np.concatenate((first, second)))
    crossing = [(p.first, p.second - 12, p.how) for p in together if p.first < 12 <= p.second]
    between = near_duplicates_between(first, second, block=block)
    assert [(p.first, p.second, p.how) for p in between] == crossing
    assert len(crossing) == 2 + 4 + 2
    assert near_duplicates_between(first[:0], second) == near_duplicates_between(first, second[:0]) == []


def test_groups_join_over_others_and_leave_single_pictures_out() -> None:
    pairs = [Pair(0, 4, 0.9, "same"), Pair(4, 2, 0.9, "same"), Pair(5, 6, 0.9, "mirrored")]
    assert groups(pairs, 8) == [[0, 2, 4], [5, 6]]
    assert groups([], 3) == []
    assert groups([], 0) == []


def test_no_or_one_fingerprint_makes_no_pair(prints: np.ndarray) -> None:
    assert near_duplicates(prints[:0]) == []
    assert near_duplicates(prints[:1]) == []


@pytest.mark.parametrize(
    "bad", [np.zeros((4, SIDE, SIDE), np.float32), np.zeros((4, 64, 64), np.int8), np.zeros((SIDE, SIDE), np.int8)]
)
def test_other_arrays_are_refused_as_fingerprints(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="int8"):
        near_duplicates(bad)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (8, 8, 3)])
def test_other_arrays_are_refused_as_photographs(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="needed"):
        fingerprint(np.zeros(shape, np.uint8))


@needs_photographs
def test_real_photographs_are_strangers_and_their_copies_are_not() -> None:
    found = sorted((FUNDUS_MINI / "images").glob("[hi]*/*.jpg"))
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in found]
    assert len(pictures) == 40
    copies = [jpeg(scaled(p, 0.6), 60)[:, ::-1] for p in pictures[::4]]
    pairs = near_duplicates(np.stack([fingerprint(np.ascontiguousarray(p)) for p in pictures + copies]))
    assert [(p.first, p.second, p.how) for p in pairs] == [(4 * i, 40 + i, "mirrored") for i in range(10)]


@needs_photographs
def test_a_camera_s_own_size_and_a_small_copy_are_one_photograph() -> None:
    for original, small in (("05_dr.jpg", "hrf/05_dr.jpg"), ("IDRiD_12.jpg", "idrid/IDRiD_12.jpg")):
        files = (FUNDUS_MINI / "originals" / original, FUNDUS_MINI / "images" / small)
        large, little = (fingerprint(np.asarray(Image.open(f).convert("RGB"))) for f in files)
        alike, how = similarity(large, little)
        assert alike >= THRESHOLD
        assert how == "same"
