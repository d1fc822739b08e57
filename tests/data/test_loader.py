"""Images as tensors: subsets nest, both visibilities take their places in one order, and no value is lost."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dr_platform.config import PhantomConfig, PrepareConfig
from dr_platform.data import collections, manifest
from dr_platform.data.loader import ImageSet, batch_of, join_classes, load_images, load_rows, select_images
from dr_platform.data.prepare import prepare
from dr_platform.errors import DataError

PHANTOMS = PhantomConfig(
    visibilities=["public", "proprietary"],
    images={"public": 30, "proprietary": 15},
    size=32,
    grade_weights=[0, 1, 0, 0, 0],
    seed=1,
)
CONFIG = PrepareConfig(
    collections=["phantom"], visibility="all", grade=1, resolution=16, held_out=0.2, seed=0, shard_images=7
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for visibility in PHANTOMS.visibilities:
        collections.write_phantoms(root / visibility / "phantom", PHANTOMS, visibility)
    return root


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    prepare(raw, root, CONFIG)
    return root


def ids(images: ImageSet) -> list[str]:
    return [row.image_id for row in images.rows]


def test_a_subset_is_the_beginning_of_every_larger_one(prepared: Path) -> None:
    everything = load_images(prepared, 1)
    for size in range(1, len(everything) + 1, 5):
        subset = load_images(prepared, 1, subset=size)
        assert np.array_equal(subset.images, everything.images[:size])
        assert ids(subset) == ids(everything)[:size]


def test_a_subset_holds_the_same_photographs_at_any_resolution(prepared: Path, raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path, CONFIG.model_copy(update={"resolution": 32}))
    small, large = (load_images(root, 1, subset=12) for root in (prepared, tmp_path))
    assert (small.resolution, large.resolution) == (16, 32)
    assert ids(small) == ids(large)
    assert small.sha256 != large.sha256


def test_each_image_is_the_one_its_row_describes(prepared: Path) -> None:
    images = load_images(prepared, 1)
    for image, row in zip(images.images, images.rows, strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest() == row.sha256


def test_public_images_keep_their_order_among_all(prepared: Path) -> None:
    everything, public = load_images(prepared, 1), load_images(prepared, 1, visibility="public-only")
    assert [row.image_id for row in everything.rows if row.visibility == "public"] == ids(public)
    assert {row.visibility for row in everything.rows} == {"public", "proprietary"}


def test_the_visibility_is_the_strictest_contained(prepared: Path) -> None:
    everything = load_images(prepared, 1)
    assert everything.visibility == "proprietary"
    assert load_images(prepared, 1, visibility="public-only").visibility == "public"
    leading = next(n for n, row in enumerate(everything.rows) if row.visibility != everything.rows[0].visibility)
    assert load_images(prepared, 1, subset=leading).visibility == everything.rows[0].visibility


def test_training_and_held_out_images_share_no_patient(prepared: Path) -> None:
    train, held_out = (load_images(prepared, 1, split=split) for split in manifest.SPLITS)
    assert len(train) + len(held_out) == 45
    assert not {row.patient for row in train.rows} & {row.patient for row in held_out.rows}


def test_public_only_needs_no_proprietary_directory(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "public", tmp_path / "public")
    assert load_images(tmp_path, 1, visibility="public-only").sha256 == (
        load_images(prepared, 1, visibility="public-only").sha256
    )
    with pytest.raises(DataError, match=r"proprietary.*index\.json does not exist"):
        load_images(tmp_path, 1)


def test_a_batch_maps_0_to_minus_1_and_255_to_1() -> None:
    image = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    image[0, 0, 0], image[0, 2, 5] = (255, 0, 51), (0, 255, 0)
    batch = batch_of(torch.from_numpy(image), np.array([0]))
    assert (batch.shape, batch.dtype, batch.is_contiguous()) == ((1, 3, 16, 16), torch.float32, True)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([1, -1, 51 / 127.5 - 1], abs=2**-23)
    assert batch[0, 1, 2, 5] == 1
    assert batch.sum().item() == pytest.approx(-16 * 16 * 3 + 2 + 2 + 0.4, abs=1e-4)


def test_a_batch_takes_images_in_the_order_asked_for_and_mirrors_those_told(prepared: Path) -> None:
    images = load_images(prepared, 1)
    before = images.images.copy()
    indices = np.array([5, 0, 5])
    pixels = images.pixels_near(torch.device("cpu"))
    plain = batch_of(pixels, indices)
    mirrored = batch_of(pixels, indices, np.array([True, False, False]))
    assert torch.equal(plain[0], plain[2])
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    assert torch.equal(mirrored[1:], plain[1:])
    assert np.array_equal(images.images, before)


def test_a_batch_returns_to_the_stored_bytes(prepared: Path) -> None:
    images = load_images(prepared, 1)
    batch = batch_of(torch.from_numpy(images.images), np.arange(len(images)))
    restored = ((batch + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(restored, images.images)


def test_a_subset_larger_than_the_collection_names_both_numbers(prepared: Path) -> None:
    available = len(load_images(prepared, 1))
    with pytest.raises(DataError, match=rf"subset of {available + 1} images.* has {available} train images"):
        load_images(prepared, 1, subset=available + 1)


def test_a_grade_that_was_not_prepared_names_the_command(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"grade-3.*does not exist.*dvc repro prepare"):
        load_images(prepared, 3)


def test_visibilities_prepared_differently_are_refused(prepared: Path, raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path, CONFIG.model_copy(update={"seed": 9}))
    shutil.rmtree(tmp_path / "public")
    shutil.copytree(prepared / "public", tmp_path / "public")
    with pytest.raises(DataError, match="prepared differently: seed is 0 and 9"):
        load_images(tmp_path, 1)


def test_several_grades_stand_one_after_the_other_under_the_stricter_label(prepared: Path) -> None:
    one = load_images(prepared, 1, visibility="public-only")
    other = load_images(prepared, 1, subset=5)
    joined = join_classes([one, other])
    assert joined.class_sizes == (len(one), 5)
    assert np.array_equal(joined.images, np.concatenate([one.images, other.images]))
    assert joined.rows == one.rows + other.rows
    assert joined.visibility == other.visibility == "proprietary"
    assert joined.sha256 not in (one.sha256, other.sha256)
    assert join_classes([one]) is one


def test_both_eyes_must_be_known_before_a_mirrored_one_is_plausible(prepared: Path) -> None:
    images = load_images(prepared, 1)
    assert images.has_both_eyes
    left = tuple(row for row in images.rows if row.eye == "left")
    assert not ImageSet(images.images[: len(left)], left, "", "public").has_both_eyes


def test_single_rows_are_those_of_the_whole_and_a_visibility_that_is_not_asked_for_stays_unread(
    prepared: Path, tmp_path: Path
) -> None:
    whole = load_images(prepared, 1)
    wanted = [0, 3, len(whole) - 1]
    found = load_rows(select_images(prepared, 1), "train", wanted)
    assert sorted(found) == wanted
    assert all(np.array_equal(found[row], whole.images[row]) for row in wanted)
    shutil.copytree(prepared, tmp_path / "prepared")
    for shard in (tmp_path / "prepared/proprietary/grade-1").glob("train*.parquet"):
        shard.unlink()
    public = [row for row, each in enumerate(whole.rows) if each.visibility == "public"][:4]
    again = load_rows(select_images(tmp_path / "prepared", 1), "train", public)
    assert all(np.array_equal(again[row], whole.images[row]) for row in public)
