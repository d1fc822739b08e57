"""Prepared images in memory, in one order for both visibilities, as batches of tensors.

All images of a split are read once into one uint8 array: 2,602 photographs at 512 pixels are 2 GB, and any batch is
then a gather at memory speed, whichever worker asks. The order is that of `rank_key`, a hash over the raw file, in
which both visibilities take their places, so the first n images are the nested subset of size n.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_platform import files
from dr_platform.data import manifest, shards
from dr_platform.data.manifest import ManifestRow, Split
from dr_platform.errors import DataError
from dr_platform.records import Manifest, ShardIndex, TrainedOn, Visibility, licences_in_words, stricter


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Real images in order of subsets, and what identifies them."""

    images: NDArray[np.uint8]  # [n, R, R, 3], RGB
    rows: tuple[ManifestRow, ...]  # of the same n images
    sha256: str  # over the digests of the images in order
    visibility: Visibility  # the strictest of the images contained
    class_sizes: tuple[int, ...] = ()  # for several grades: images of each, which stand one grade after the other

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Side of the images, pixels."""
        return int(self.images.shape[1])

    @property
    def has_both_eyes(self) -> bool:
        """Whether left and right eyes are known to be among the images, so that a mirrored eye is a plausible one."""
        return {"left", "right"} <= {row.eye for row in self.rows}

    @property
    def patients(self) -> NDArray[np.int64]:
        """A number for the patient of each image, [n]; equal for one patient."""
        return np.unique([row.patient for row in self.rows], return_inverse=True)[1].astype(np.int64)

    @property
    def labels(self) -> dict[str, str]:
        """Who may see the images, and under which licences they were given: what goes along with all made of them."""
        licences = licences_in_words(source.license for source in sources_of(self.rows))
        return {"visibility": self.visibility, "licence": licences}

    def pixels_near(self, device: torch.device) -> Tensor:
        """uint8 [n, R, R, 3], to draw batches from: on `device` if they take no more than half of its free memory."""
        pixels = torch.from_numpy(self.images)
        if device.type != "cuda" or 2 * pixels.numel() > torch.cuda.mem_get_info(device)[0]:
            return pixels
        return pixels.to(device)


def batch_of(pixels: Tensor, indices: NDArray[np.int64], mirror: NDArray[np.bool_] | None = None) -> Tensor:
    """Images as float32 [B, 3, R, R] in [-1, 1], x / 127.5 - 1, in memory of their own, on the device of the pixels.

    pixels: uint8 [n, R, R, 3]. indices: [B] positions, repeats allowed. mirror: [B], whether to swap left and right.
    """
    chosen = pixels[torch.from_numpy(indices).to(pixels.device)]
    if mirror is not None:
        flips = torch.from_numpy(mirror).to(pixels.device)[:, None, None, None]
        chosen = torch.where(flips, chosen.flip(2), chosen)
    planes = chosen.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


@dataclass(frozen=True)
class _Source:
    """A prepared directory and its table."""

    directory: Path
    index: ShardIndex
    manifest: Manifest
    rows: list[ManifestRow]  # of the wanted split


@dataclass(frozen=True)
class Selection:
    """Which images of a grade are wanted, by their tables alone: no pixel is read to know what identifies them."""

    rows: tuple[ManifestRow, ...]
    sha256: str  # over the digests of the images in order
    visibility: Visibility  # the strictest of the images contained
    resolution: int
    sources: tuple[_Source, ...]

    def __len__(self) -> int:
        return len(self.rows)


def sources_of(rows: Iterable[ManifestRow]) -> tuple[TrainedOn, ...]:
    """How many of the images came from which collection under which licence, in alphabetical order.

    What a clinic wrote into its table of licences stays with its images: it goes no further than `proprietary`.
    """
    licenses = ((row, row.license if row.visibility == "public" else "proprietary") for row in rows)
    counts = Counter((row.collection, row.visibility, license) for row, license in licenses)
    return tuple(
        TrainedOn(collection=name, visibility=visibility, license=licence, images=count)
        for (name, visibility, licence), count in sorted(counts.items())
    )


def load_images(
    prepared_root: Path, grade: int, split: Split = "train", subset: int | None = None, visibility: str = "all"
) -> ImageSet:
    """The images that `select_images` chooses, with their pixels. Raises DataError also for a damaged shard."""
    chosen = select_images(prepared_root, grade, split, subset, visibility)
    return ImageSet(_read(chosen, split), chosen.rows, chosen.sha256, chosen.visibility)


def count_images(prepared_root: Path, grade: int, split: Split, visibility: str = "all") -> int:
    """How many images of a split there are, which may be none. Raises DataError for a damaged table."""
    wanted: tuple[Visibility, ...] = ("public",) if visibility == "public-only" else ("public", "proprietary")
    return sum(len(_open(manifest.prepared_directory(prepared_root, label, grade), split).rows) for label in wanted)


def join_classes(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of several grades as one set, grade after grade; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return ImageSet(
        images=np.concatenate([part.images for part in parts]),
        rows=tuple(row for part in parts for row in part.rows),
        sha256=classes_sha256([part.sha256 for part in parts]),
        visibility=stricter(*(part.visibility for part in parts)),
        class_sizes=tuple(len(part) for part in parts),
    )


def classes_sha256(digests: Sequence[str]) -> str:
    """The digest of a set joined from parts with these digests."""
    return digests[0] if len(digests) == 1 else files.sha256_json(list(digests))


def select_images(
    prepared_root: Path, grade: int, split: Split = "train", subset: int | None = None, visibility: str = "all"
) -> Selection:
    """The images of a grade: all of a split, or its nested subset of `subset` images.

    visibility: "all", or "public-only" to leave the proprietary directory unopened.
    Raises DataError if a table is missing or damaged, if the two visibilities were prepared differently, or if there
    are fewer images than asked for.
    """
    wanted: tuple[Visibility, ...] = ("public",) if visibility == "public-only" else ("public", "proprietary")
    sources = [_open(manifest.prepared_directory(prepared_root, label, grade), split) for label in wanted]
    _require_equal_preparation(sources)
    order = manifest.in_order(row for source in sources for row in source.rows)
    if subset is not None and subset > len(order):
        raise DataError(
            f"A subset of {subset} images was asked for, but {prepared_root} has {len(order)} {split} images of grade "
            f"{grade} ({visibility}). Lower train.subset to at most {len(order)}, or ingest more images."
        )
    rows = order[:subset]
    if not rows:
        raise DataError(
            f"{prepared_root} has no {split} images of grade {grade} ({visibility}). "
            f"Ingest more images, or change prepare.held_out or prepare.visibility."
        )
    return Selection(
        rows=tuple(rows),
        sha256=files.sha256_json([row.sha256 for row in rows]),
        visibility=stricter(*(row.visibility for row in rows)),
        resolution=sources[0].index.resolution,
        sources=tuple(sources),
    )


def _open(directory: Path, split: Split) -> _Source:
    index, record, rows = shards.read_index(directory)
    return _Source(directory, index, record, [row for row in rows if row.split == split])


def _require_equal_preparation(sources: list[_Source]) -> None:
    """Ranks and splits of two directories fit together only if grade, resolution, seed and share are the same."""
    first = sources[0]
    for other in sources[1:]:
        for field in ("grade", "resolution", "seed", "held_out"):
            here, there = getattr(first.manifest, field), getattr(other.manifest, field)
            if here != there:
                raise DataError(
                    f"{first.directory} and {other.directory} were prepared differently: "
                    f"{field} is {here} and {there}. {ShardIndex.remedy}"
                )


def load_rows(chosen: Selection, split: Split, wanted: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
    """Wanted row of a selection -> its pixels [R, R, 3]; a visibility of which none is wanted stays unread."""
    left = set(wanted)
    found = {}
    for source in chosen.sources:
        places = [place for place, row in enumerate(chosen.rows) if row.visibility == source.index.visibility]
        last = max((i for i, place in enumerate(places) if place in left), default=-1)
        filled = 0
        for chunk in shards.read_shards(source.directory, source.index, split, limit=last + 1) if last >= 0 else ():
            for place, pixels in zip(places[filled : filled + len(chunk)], chunk, strict=True):
                if place in left:
                    found[place] = pixels.copy()
            filled += len(chunk)
    return found


def _read(chosen: Selection, split: Split) -> NDArray[np.uint8]:
    """The pixels of the chosen images, which take a leading part of each source's ranks."""
    side = chosen.resolution
    images = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
    for source in chosen.sources:
        places = [place for place, row in enumerate(chosen.rows) if row.visibility == source.index.visibility]
        filled = 0
        for chunk in shards.read_shards(source.directory, source.index, split, limit=len(places)):
            images[places[filled : filled + len(chunk)]] = chunk
            filled += len(chunk)
    return images
