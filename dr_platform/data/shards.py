"""Parquet shards of prepared images, and their index, written last.

A shard is self-contained: the pixels as raw bytes (a fixed-size column, R·R·3 each, RGB, row-major) beside the
manifest's row of each image. Raw, not PNG: decoding PNG is what limits a loader, and a shard without compression or
dictionary is read at disk speed. Row groups of 64 keep writing at a constant memory. A file whose bytes differ from the
index is refused by name before anything in it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dr_platform import files
from dr_platform.data import manifest
from dr_platform.data.manifest import ManifestRow, Split
from dr_platform.errors import DataError
from dr_platform.records import Manifest, Shard, ShardIndex

INDEX_FILE = "index.json"
IMAGE_COLUMN = "image"
_ROW_GROUP = 64
_REPEATED_COLUMNS = ["eye", "grade", "collection", "visibility", "source", "license", "split"]

Pixels = NDArray[np.uint8]
PreparedImage = tuple[ManifestRow, Pixels]


def pixels_sha256(pixels: Pixels) -> str:
    """SHA-256 of an image's bytes, [R, R, 3] row-major: the identity of a prepared image."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def write_shards(
    directory: Path, split: Split, images: Iterable[PreparedImage], resolution: int, shard_images: int
) -> list[Shard]:
    """Store images, uint8 [R, R, 3], in the order given, `shard_images` to a file; returns the index's entries.

    Holds at most 64 images in memory. No image gives no file.
    """
    schema = manifest.SCHEMA.append(pa.field(IMAGE_COLUMN, pa.binary(resolution * resolution * 3), nullable=False))
    shards: list[Shard] = []
    remaining = iter(images)
    for first in remaining:
        path = directory / f"shard-{split}-{len(shards):05d}.parquet"
        rows = _write_shard(path, schema, chain([first], islice(remaining, shard_images - 1)))
        size, sha256 = path.stat().st_size, files.sha256_file(path)
        shards.append(Shard(file=path.name, split=split, rows=rows, bytes=size, sha256=sha256))
    return shards


def _write_shard(path: Path, schema: pa.Schema, images: Iterator[PreparedImage]) -> int:
    """Write all of `images` into one file, row group by row group; returns how many they were."""
    written = 0
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=_REPEATED_COLUMNS) as writer:
        while group := list(islice(images, _ROW_GROUP)):
            writer.write_table(_to_table(group, schema))
            written += len(group)
    return written


def _to_table(images: Sequence[PreparedImage], schema: pa.Schema) -> pa.Table:
    column = schema.field(IMAGE_COLUMN)
    pixels = pa.array([image.tobytes() for _, image in images], type=column.type)
    return manifest.to_table([row for row, _ in images]).append_column(column, pixels)


def write_index(directory: Path, record: Manifest, shards: Sequence[Shard]) -> ShardIndex:
    """Store the index of `shards` in `directory`: the last file of a prepared directory."""
    index = ShardIndex(
        visibility=record.visibility,
        resolution=record.resolution,
        grade=record.grade,
        manifest_sha256=record.digest(),
        shards=tuple(shards),
    )
    index.write(directory / INDEX_FILE)
    return index


def read_index(directory: Path) -> tuple[ShardIndex, Manifest, list[ManifestRow]]:
    """The index in `directory`, its manifest and the rows of that. Raises DataError if they do not belong together."""
    index = ShardIndex.read(directory / INDEX_FILE)
    record, rows = manifest.read_manifest(directory)
    if index.manifest_sha256 != record.digest():
        raise DataError(
            f"{directory / INDEX_FILE} was made from another manifest ({index.manifest_sha256[:8]}… instead of "
            f"{record.digest()[:8]}…). {ShardIndex.remedy}"
        )
    for split in manifest.SPLITS:
        listed, stored = sum(row.split == split for row in rows), index.rows(split)
        if listed != stored:
            raise DataError(
                f"{directory / INDEX_FILE} has {stored} {split} images, its manifest {listed}. {ShardIndex.remedy}"
            )
    return index, record, rows


def read_shards(directory: Path, index: ShardIndex, split: Split, limit: int | None = None) -> Iterator[Pixels]:
    """The images of a split in order of rank, shard by shard, at most `limit`: uint8 [n, R, R, 3], read-only.

    Shards beyond the limit are not opened. Raises DataError naming a shard that is missing or differs from the index.
    """
    missing = index.rows(split) if limit is None else limit
    for shard in index.shards:
        if shard.split != split:
            continue
        if missing <= 0:
            return
        images = _read_shard(directory / shard.file, shard, index.resolution)[:missing]
        missing -= len(images)
        yield images


def _read_shard(path: Path, shard: Shard, resolution: int) -> Pixels:
    if not path.is_file():
        raise DataError(f"{path} is missing, though {INDEX_FILE} lists it. {ShardIndex.remedy}")
    found = files.sha256_file(path)
    if found != shard.sha256:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {found[:12]}… instead of {shard.sha256[:12]}…. {ShardIndex.remedy}"
        )
    # One thread: the workers of a training read at the same time.
    column = pq.read_table(path, columns=[IMAGE_COLUMN], use_threads=False).column(IMAGE_COLUMN).combine_chunks()
    return np.frombuffer(column.buffers()[1], dtype=np.uint8).reshape(shard.rows, resolution, resolution, 3)
