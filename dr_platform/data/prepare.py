"""Raw collections to prepared images: one grade, one resolution, split by patient, in shards with an index.

Two passes. The first reads tables alone and gives every image its split and its place; the second opens the images in
that order, so they stream into shards and a large collection needs no memory. Both visibilities are always written, an
empty one as an index without shards: whoever reads them can tell "none" from "not there". Equal input gives equal
bytes, because DVC recognises a result by them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dr_platform import files
from dr_platform.config import PrepareConfig
from dr_platform.data import collections, manifest, shards
from dr_platform.data.collections import VISIBILITIES, ImageRow, Progress
from dr_platform.data.fundus import standardise
from dr_platform.data.manifest import Candidate, ManifestRow, Split
from dr_platform.errors import DataError
from dr_platform.records import Collection, Manifest, Visibility

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.csv"


@dataclass(frozen=True)
class _Source:
    """A raw collection that is to be prepared."""

    directory: Path
    record: Collection
    rows: list[ImageRow]


@dataclass
class _Visibility:
    """The images of one visibility on their way into shards."""

    label: Visibility
    directories: dict[str, Path]  # of the raw collections, by name
    candidates: list[Candidate]  # in order of subsets
    rows: list[ManifestRow] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # collection, image_id, reason


def prepare(
    raw_root: Path, out_root: Path, config: PrepareConfig, progress: Progress = collections.silent
) -> dict[Visibility, Manifest]:
    """Write `out_root`/<visibility>/grade-<g>/ for both visibilities and return their manifests.

    An image in which no field of view is found is left out and listed in skipped.csv, as is one whose file is in the
    collections already. Raises DataError, with earlier results intact, if a collection is missing or damaged, if no
    training image remains, or if the disk is full.
    """
    sources = [source for name in dict.fromkeys(config.collections) for source in _find(raw_root, name, config)]
    parts = _plan(sources, config)
    total = sum(len(part.candidates) for part in parts)
    if not total:
        raise DataError(_no_image(sources, config))
    _report_unknown_patients(sources, config)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    manifests: dict[Visibility, Manifest] = {}
    with ExitStack() as stack:
        for part in parts:
            target = manifest.prepared_directory(out_root, part.label, config.grade)
            directory = stack.enter_context(files.directory_aside(target, failure=DataError))
            manifests[part.label] = _write(directory, part, config, count)
        if not any(record.train for record in manifests.values()):
            held_out = sum(record.held_out_images for record in manifests.values())
            raise DataError(
                f"No training image of grade {config.grade} remains: of {total}, {held_out} are held out and "
                f"{total - held_out} show no field of view. Lower prepare.held_out or ingest more images."
            )
    return manifests


def _find(raw_root: Path, name: str, config: PrepareConfig) -> list[_Source]:
    """The collection `name` under each visibility that is to be used; there must be one."""
    present = [
        label
        for label in VISIBILITIES
        if (collections.collection_directory(raw_root, label, name) / collections.COLLECTION_FILE).is_file()
    ]
    used: list[Visibility] = [label for label in present if label == "public" or config.visibility == "all"]
    if present and not used:
        raise DataError(
            f"Collection {name} is proprietary, and prepare.visibility is public-only. "
            f"Take it out of prepare.collections, or set prepare.visibility to all."
        )
    if not used:
        raise DataError(
            f"There is no collection {name} under {raw_root}, though prepare.collections names it. "
            f"Run: drp data ingest DIR --labels FILE --name {name} --visibility public"
        )
    directories = [collections.collection_directory(raw_root, label, name) for label in used]
    return [_Source(directory, *collections.read_collection(directory)) for directory in directories]


def _plan(sources: list[_Source], config: PrepareConfig) -> list[_Visibility]:
    """The candidates of each visibility. A file that occurs twice counts once, and as public if it is."""
    parts = []
    seen: set[str] = set()
    for label in VISIBILITIES:
        mine = [source for source in sources if source.record.visibility == label]
        part = _Visibility(label, {source.record.name: source.directory for source in mine}, [])
        chosen = [candidate for source in mine for candidate in manifest.choose(source.record, source.rows, config)]
        for candidate in manifest.in_order(chosen):
            if candidate.raw.sha256 in seen:
                part.skipped.append((candidate.collection, candidate.raw.image_id, "the same file as another image"))
            else:
                seen.add(candidate.raw.sha256)
                part.candidates.append(candidate)
        parts.append(part)
    return parts


def _no_image(sources: list[_Source], config: PrepareConfig) -> str:
    grades = Counter(row.grade for source in sources for row in source.rows)
    known = ", ".join(f"{grades[grade]} of grade {grade}" for grade in range(5) if grades[grade])
    unknown = f"{'; ' if known else ''}{grades[None]} without a grade" if grades[None] else ""
    return (
        f"No image of grade {config.grade} in {', '.join(config.collections)} ({config.visibility}): "
        f"found {known}{unknown}. Set prepare.grade to a grade that is there, or ingest more images."
    )


def _report_unknown_patients(sources: list[_Source], config: PrepareConfig) -> None:
    for source in sources:
        wanted = [row for row in source.rows if row.grade == config.grade]
        unknown = sum(row.patient_id is None for row in wanted)
        if unknown:
            logger.warning(
                "%d of %d images of grade %d in %s name no patient; each is split as a patient of its own.",
                unknown, len(wanted), config.grade, source.record.name,
            )  # fmt: skip


def _write(directory: Path, part: _Visibility, config: PrepareConfig, count: Callable[[], None]) -> Manifest:
    """Fill a prepared directory: shards, then the manifest, then the index."""
    written = []
    for split in manifest.SPLITS:
        images = _standardised(part, split, config, count)
        written += shards.write_shards(directory, split, images, config.resolution, config.shard_images)
    header = ("collection", "image_id", "reason")
    (directory / SKIPPED_FILE).write_bytes(collections.csv_bytes(header, sorted(part.skipped)))
    record = manifest.write_manifest(directory, part.rows, part.label, config, len(part.skipped), part.directories)
    shards.write_index(directory, record, written)
    return record


def _standardised(
    part: _Visibility, split: Split, config: PrepareConfig, count: Callable[[], None]
) -> Iterator[shards.PreparedImage]:
    """The prepared images of a split in order, each with its row; what has no field of view goes to `part.skipped`."""
    rank = 0
    for candidate in part.candidates:
        if candidate.split != split:
            continue
        raw = collections.read_image(part.directories[candidate.collection], candidate.raw)
        try:
            pixels = standardise(raw, config.resolution)
        except DataError as error:
            part.skipped.append((candidate.collection, candidate.raw.image_id, str(error)))
        else:
            row = manifest.row_of(candidate, config.grade, rank, shards.pixels_sha256(pixels))
            part.rows.append(row)
            rank += 1
            yield row, pixels
        count()
