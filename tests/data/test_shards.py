"""Shards: what went in comes out in the same order, and nothing that was changed since comes out at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dr_platform.config import PrepareConfig
from dr_platform.data import manifest, shards
from dr_platform.data.manifest import ManifestRow
from dr_platform.errors import DataError
from dr_platform.records import ShardIndex

R = 16
CONFIG = PrepareConfig(collections=["c"], visibility="all", grade=1, resolution=R, held_out=0.2, seed=0, shard_images=8)


def pixels(rank: int) -> shards.Pixels:
    return np.random.default_rng(rank).integers(0, 256, (R, R, 3), dtype=np.uint8)


def row(rank: int, split: manifest.Split = "train") -> ManifestRow:
    digest = shards.pixels_sha256(pixels(rank))
    return ManifestRow(
        image_id=f"{rank:016x}", patient=f"{rank:016x}", eye=None, grade=1, collection="c", visibility="public",
        source="s", license="l", sha256=digest, raw_sha256=digest, split=split, rank=rank, rank_key=f"{rank:064x}",
    )  # fmt: skip


def write(directory: Path, count: int, shard_images: int = 8) -> ShardIndex:
    """A prepared directory of `count` training images."""
    directory.mkdir(exist_ok=True)
    rows = [row(rank) for rank in range(count)]
    written = shards.write_shards(directory, "train", ((r, pixels(r.rank)) for r in rows), R, shard_images)
    record = manifest.write_manifest(directory, rows, "public", CONFIG, skipped=0)
    return shards.write_index(directory, record, written)


def flip_a_byte(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("count", "shard_images", "sizes"),
    [(0, 8, []), (1, 8, [1]), (8, 8, [8]), (9, 8, [8, 1]), (3, 1, [1, 1, 1]), (150, 100, [100, 50])],
)
def test_images_come_out_as_they_went_in(count: int, shard_images: int, sizes: list[int], tmp_path: Path) -> None:
    write(tmp_path, count, shard_images)
    index, _, rows = shards.read_index(tmp_path)
    assert [shard.rows for shard in index.shards] == sizes
    found = [image for chunk in shards.read_shards(tmp_path, index, "train") for image in chunk]
    assert len(found) == count
    for image, expected in zip(found, rows, strict=True):
        assert np.array_equal(image, pixels(expected.rank))


def test_a_shard_tells_all_about_its_images(tmp_path: Path) -> None:
    index = write(tmp_path, 70, shard_images=70)
    file = pq.ParquetFile(tmp_path / index.shards[0].file)
    assert file.metadata.num_row_groups == 2
    for stored in file.read().to_pylist():
        image = np.frombuffer(stored.pop("image"), dtype=np.uint8).reshape(R, R, 3)
        assert ManifestRow(**stored) == row(stored["rank"])
        assert shards.pixels_sha256(image) == stored["sha256"]


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_in_a_shard_is_refused_by_name(position: float, tmp_path: Path) -> None:
    index = write(tmp_path, 20)
    damaged = index.shards[1].file
    flip_a_byte(tmp_path / damaged, position)
    chunks = shards.read_shards(tmp_path, index, "train")
    assert len(next(chunks)) == 8
    with pytest.raises(DataError, match=rf"{damaged} is damaged.*dvc repro prepare"):
        next(chunks)


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    index = write(tmp_path, 9)
    (tmp_path / index.shards[1].file).unlink()
    with pytest.raises(DataError, match=rf"{index.shards[1].file} is missing"):
        list(shards.read_shards(tmp_path, index, "train"))


def test_a_limit_opens_no_shard_beyond_it(tmp_path: Path) -> None:
    index = write(tmp_path, 20)
    for shard in index.shards[2:]:
        (tmp_path / shard.file).unlink()
    assert [len(chunk) for chunk in shards.read_shards(tmp_path, index, "train", limit=11)] == [8, 3]
    assert [len(chunk) for chunk in shards.read_shards(tmp_path, index, "train", limit=16)] == [8, 8]


def test_an_index_of_another_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 9)
    write(tmp_path / "b", 10)
    for name in (manifest.ROWS_FILE, manifest.RECORD_FILE):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(DataError, match="made from another manifest"):
        shards.read_index(tmp_path / "a")


def test_shards_that_lack_an_image_of_the_manifest_are_refused(tmp_path: Path) -> None:
    index = write(tmp_path, 9)
    index.model_copy(update={"shards": index.shards[:1]}).write(tmp_path / shards.INDEX_FILE)
    with pytest.raises(DataError, match="has 8 train images, its manifest 9"):
        shards.read_index(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2}'])
def test_an_unreadable_index_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / shards.INDEX_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json is not a ShardIndex of version 1.*dvc repro prepare") as caught:
        shards.read_index(tmp_path)
    assert "\n" not in str(caught.value)
