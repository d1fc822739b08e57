"""Raw collections to prepared images: one grade, one resolution, split by patient, in shards with an index.

Two passes. The first reads tables alone: it leaves out what is of poor quality or a copy (see screening.py) and gives
every image its split and its place. The second opens the images in that order, in several processes, so they stream
into shards and a large collection needs no memory. Both visibilities are always written, an empty one as an index
without shards: whoever reads them can tell "none" from "not there". Equal input gives equal bytes, because DVC
recognises a result by them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dr_platform import files
from dr_platform.config import PrepareConfig
from dr_platform.data import collections, manifest, pool, screening, shards
from dr_platform.data.collections import VISIBILITIES, ImageRow, Progress
from dr_platform.data.fundus import standardise
from dr_platform.data.listing import Eye
from dr_platform.data.manifest import Candidate, ManifestRow, Split
from dr_platform.data.screening import Screening, Source
from dr_platform.data.views import View, view_of
from dr_platform.errors import DataError
from dr_platform.records import Manifest, Visibility

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.csv"
_OTHER: dict[Eye, Eye] = {"left": "right", "right": "left"}


@dataclass
class _Visibility:
    """The images of one visibility on their way into shards."""

    label: Visibility
    directories: dict[str, Path]  # of the raw collections, by name
    candidates: list[Candidate]  # in order of subsets
    rows: list[ManifestRow] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # collection, image_id, reason
    views: dict[tuple[str, str], View] = field(default_factory=dict)  # collection, image_id


def prepare(
    raw_root: Path,
    out_root: Path,
    config: PrepareConfig,
    progress: Progress = collections.silent,
    *,
    processes: int = 1,
) -> dict[Visibility, Manifest]:
    """Write `out_root`/<visibility>/grade-<g>/ for both visibilities and return their manifests.

    An image that is left out (poor quality, no field of view, a copy of another) is listed in skipped.csv with the
    reason. Raises DataError, with earlier results intact, if a collection is missing or damaged, if no training image
    remains, or if the disk is full.
    """
    sources = [source for name in dict.fromkeys(config.collections) for source in _find(raw_root, name, config)]
    parts = _plan(raw_root, sources, config)
    total = sum(len(part.candidates) for part in parts)
    if not total:
        raise DataError(_no_image(sources, parts, config))
    _report_unknown_patients(sources, config)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    manifests: dict[Visibility, Manifest] = {}
    seen: set[str] = set()
    with ExitStack() as stack:
        for part in parts:
            target = manifest.prepared_directory(out_root, part.label, config.grade)
            directory = stack.enter_context(files.directory_aside(target, failure=DataError))
            manifests[part.label] = _write(directory, part, config, processes, count, seen)
        if not any(record.train for record in manifests.values()):
            held_out = sum(record.held_out_images for record in manifests.values())
            raise DataError(
                f"No training image of grade {config.grade} remains: of {total}, {held_out} are held out and "
                f"{total - held_out} show no field of view. Lower prepare.held_out or ingest more images."
            )
    return manifests


def read_skipped(directory: Path) -> list[dict[str, str]]:
    """What was left out of a prepared directory: collection, image_id and reason of each image."""
    path = directory / SKIPPED_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _find(raw_root: Path, name: str, config: PrepareConfig) -> list[Source]:
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
    return [read_source(collections.collection_directory(raw_root, label, name)) for label in used]


def read_source(directory: Path) -> Source:
    """A raw collection with its measurements. Raises DataError if any of it is damaged."""
    record, rows = collections.read_collection(directory)
    return Source(record, rows, collections.read_measurements(directory, record))


def _plan(raw_root: Path, sources: list[Source], config: PrepareConfig) -> list[_Visibility]:
    """The candidates of each visibility, and what is left out. Copies count once, and as public if one of them is."""
    screened = screening.screen(sources, config)
    parts = []
    for label in VISIBILITIES:
        mine = [source for source in sources if source.record.visibility == label]
        names = [source.record.name for source in mine]
        part = _Visibility(label, {n: collections.collection_directory(raw_root, label, n) for n in names}, [])
        for source in mine:
            part.candidates += _choose(source, screened, part, config)
        part.candidates = manifest.in_order(part.candidates)
        parts.append(part)
    return parts


def _choose(source: Source, screened: Screening, part: _Visibility, config: PrepareConfig) -> list[Candidate]:
    """The candidates of a collection; what is left out goes to `part.skipped` if it is of the wanted grade."""
    rows = []
    for row in source.rows:
        key = (source.record.visibility, source.record.name, row.image_id)
        row = screening.with_grade(row, screened.grades.get(key))
        if key not in screened.left_out:
            view = view_of(row.eye, source.measured[row.image_id].disc, config)
            part.views[source.record.name, row.image_id] = view
            # A mirrored picture shows the other eye to whoever looks at it.
            rows.append(dataclasses.replace(row, eye=_OTHER[row.eye]) if view.mirrored and row.eye else row)
        elif row.grade == config.grade:
            part.skipped.append((source.record.name, row.image_id, screened.left_out[key]))
    return manifest.choose(source.record, rows, config, screened.joined)


def _no_image(sources: list[Source], parts: list[_Visibility], config: PrepareConfig) -> str:
    skipped = [reason for part in parts for _, _, reason in part.skipped]
    if skipped:
        reason, count = Counter(skipped).most_common(1)[0]
        return (
            f"All {len(skipped)} images of grade {config.grade} are left out; {count} of them: {reason}. "
            f"See prepare.quality, prepare.rim_text and prepare.near_duplicates, or ingest more images."
        )
    grades = Counter(row.grade for source in sources for row in source.rows)
    known = ", ".join(f"{grades[grade]} of grade {grade}" for grade in range(5) if grades[grade])
    unknown = f"{'; ' if known else ''}{grades[None]} without a grade" if grades[None] else ""
    return (
        f"No image of grade {config.grade} in {', '.join(config.collections)} ({config.visibility}): "
        f"found {known}{unknown}. Set prepare.grade to a grade that is there, or ingest more images."
    )


def _report_unknown_patients(sources: list[Source], config: PrepareConfig) -> None:
    for source in sources:
        wanted = [row for row in source.rows if row.grade == config.grade]
        unknown = sum(row.patient_id is None for row in wanted)
        if unknown:
            logger.warning(
                "%d of %d images of grade %d in %s name no patient; each is split as a patient of its own.",
                unknown, len(wanted), config.grade, source.record.name,
            )  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """An image to standardise, complete in itself: another process does it."""

    directory: Path
    row: ImageRow
    view: View
    resolution: int


def _write(
    directory: Path,
    part: _Visibility,
    config: PrepareConfig,
    processes: int,
    count: Callable[[], None],
    seen: set[str],
) -> Manifest:
    """Fill a prepared directory: shards, then the manifest, then the index."""
    written = []
    for split in manifest.SPLITS:
        images = _standardised(part, split, config, processes, count, seen)
        written += shards.write_shards(directory, split, images, config.resolution, config.shard_images)
    header = ("collection", "image_id", "reason")
    (directory / SKIPPED_FILE).write_bytes(collections.csv_bytes(header, sorted(part.skipped)))
    record = manifest.write_manifest(directory, part.rows, part.label, config, len(part.skipped), part.directories)
    shards.write_index(directory, record, written)
    return record


def _standardised(
    part: _Visibility,
    split: Split,
    config: PrepareConfig,
    processes: int,
    count: Callable[[], None],
    seen: set[str],
) -> Iterator[shards.PreparedImage]:
    """The prepared images of a split in order, each with its row; what has no field of view goes to `part.skipped`.

    seen: digests of what was prepared so far. Copies too small to be told by their look may turn out equal only here,
    when they have been mirrored or turned to one side; public images come first, so they never yield to others.
    """
    candidates = [candidate for candidate in part.candidates if candidate.split == split]
    tasks = [
        _Task(part.directories[c.collection], c.raw, part.views[c.collection, c.raw.image_id], config.resolution)
        for c in candidates
    ]
    rank = 0
    for candidate, result in zip(candidates, pool.in_order(_standardise, tasks, processes), strict=True):
        digest = None if isinstance(result, str) else shards.pixels_sha256(result)
        if digest in seen:
            result = "prepared, it has the pixels of another image"
        if isinstance(result, str):
            part.skipped.append((candidate.collection, candidate.raw.image_id, result))
        elif digest is not None:
            seen.add(digest)
            row = manifest.row_of(candidate, config.grade, rank, digest)
            part.rows.append(row)
            rank += 1
            yield row, result
        count()


def _standardise(task: _Task) -> shards.Pixels | str:
    """The prepared pixels of an image, or why there are none."""
    raw = collections.read_image(task.directory, task.row, smallest=2 * task.resolution)
    try:
        return standardise(task.view.apply(raw), task.resolution)
    except DataError as error:
        return str(error)
