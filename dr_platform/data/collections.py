"""Raw collections: photographs as they came, each under a name and a visibility that never changes.

    data/raw/<visibility>/<name>/collection.json       what it is (records.Collection), written last
                                 labels.csv            one row per image, `ImageRow`
                                 measurements.parquet  what was seen in each image, `measurements.Measurement`
                                 images/               the files
                                 truth.jsonl           phantoms only: what was drawn

A collection is written aside and renamed, and its files are checked against their digests whenever they are read: a
damaged raw image is an error, not one image fewer. It holds no name of a file, a patient or an image of the delivery:
those stay in the import report, which is never versioned (see ingest.py).
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dr_platform import files
from dr_platform.config import PhantomConfig
from dr_platform.data import measurements
from dr_platform.data.listing import Eye, Scale
from dr_platform.data.measurements import Measurement, measure
from dr_platform.data.phantom import phantom
from dr_platform.errors import DataError
from dr_platform.records import Collection, Visibility

COLLECTION_FILE = "collection.json"
LABELS_FILE = "labels.csv"
TRUTH_FILE = "truth.jsonl"
IMAGES_DIRECTORY = "images"
PHANTOM_NAME = "phantom"
VISIBILITIES: tuple[Visibility, ...] = ("public", "proprietary")

# Phantoms of the two visibilities are drawn from disjoint indices, hence of disjoint patients. A multiple of the five
# photographs in which a patient is whole.
_FIRST_PHANTOM: dict[Visibility, int] = {"public": 0, "proprietary": 10_000_000}

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Progress = Callable[[int, int], None]
"""Called with (done, total) after each image."""


def silent(done: int, total: int) -> None:
    """The `Progress` that says nothing."""


@dataclass(frozen=True)
class ImageRow:
    """An image of a raw collection. What a source does not tell is None, or an empty text."""

    image_id: str  # a pseudonym, save of phantoms
    file: str  # relative to the collection, with forward slashes
    grade: int | None  # ICDR 0-4
    grade_given: str  # as the delivery had it
    grade_scale: Scale  # how that is to be read
    patient_id: str | None  # likewise a pseudonym
    eye: Eye | None
    source: str
    license: str
    orientation: int  # of EXIF, 1 to 8; the pixels are upright
    sha256: str  # of the file
    source_sha256: str  # of the delivered file
    width: int
    height: int


def collection_directory(raw_root: Path, visibility: Visibility, name: str) -> Path:
    """Where the collection `name` lies. Raises DataError if that is not a name a collection can have."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot be the name of a collection. Use small letters, digits, - and _, a letter or digit first."
        )
    return raw_root / visibility / name


def is_there(raw_root: Path, name: str) -> bool:
    """Whether there is a collection of that name, whatever its state."""
    return any((raw_root / visibility / name / COLLECTION_FILE).is_file() for visibility in VISIBILITIES)


def list_collections(raw_root: Path) -> list[Collection]:
    """Every collection under `raw_root`, public ones first, by name. Raises DataError for a damaged one."""
    return [
        Collection.read(path)
        for visibility in VISIBILITIES
        for path in sorted((raw_root / visibility).glob(f"[!.]*/{COLLECTION_FILE}"))
    ]


def read_collection(directory: Path) -> tuple[Collection, list[ImageRow]]:
    """A collection and its rows, in the order of its table. Raises DataError if the table is not the recorded one."""
    record = Collection.read(directory / COLLECTION_FILE)
    path = directory / LABELS_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist. {Collection.remedy}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.labels_sha256:
        raise DataError(f"{path} was changed after it was written. {Collection.remedy}")
    rows = [_row(values) for values in csv.DictReader(io.StringIO(content.decode(), newline=""))]
    _require_unique(path, rows)
    return record, rows


def read_image(directory: Path, row: ImageRow, smallest: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a collection's image, [height, width, 3]. Raises DataError if its file is not the recorded one.

    smallest: sides down to which a JPEG may be decoded at a half, a quarter or an eighth of its size, which is faster
    by as much and, at twice the size that is wanted, hardly to be seen (benchmarks/intake.py gives the PSNR).
    """
    path = directory / row.file
    if not path.is_file():
        raise DataError(f"{path} is missing, though {LABELS_FILE} lists it. {Collection.remedy}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not the one in {LABELS_FILE}. {Collection.remedy}")
    return _decoded(content, smallest)


def _decoded(content: bytes, smallest: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a file that the platform wrote."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if smallest is not None:
            image.draft("RGB", (smallest, smallest))
        return np.asarray(image.convert("RGB"))


def read_measurements(directory: Path, record: Collection) -> dict[str, Measurement]:
    """What was seen in each image, by image_id. Raises DataError if the file is not the recorded one."""
    path = directory / measurements.FILE
    if not path.is_file() or files.sha256_file(path) != record.measurements_sha256:
        raise DataError(f"{path} is missing or was changed after it was written. {Collection.remedy}")
    return measurements.read(directory)


def image_file(image_id: str, ending: str) -> str:
    """The file of an image within a collection. image_id: a pseudonym, safe on every file system."""
    return f"{IMAGES_DIRECTORY}/{image_id}.{ending}"


def finish_collection(
    directory: Path,
    rows: Sequence[ImageRow],
    measured: Sequence[Measurement],
    name: str,
    visibility: Visibility,
    origin: Literal["ingest", "phantom"],
    *,
    rejected: int = 0,
    layout: str = "phantom",
    key: str | None = None,
    withdrawn: Sequence[str] = (),
) -> Collection:
    """Write the tables and last the record of a collection whose images are in `directory` already."""
    _require_unique(directory / LABELS_FILE, rows)
    labels = csv_bytes([field.name for field in fields(ImageRow)], (asdict(row).values() for row in rows))
    (directory / LABELS_FILE).write_bytes(labels)
    measurements.write(directory, measured)
    record = Collection(
        name=name,
        visibility=visibility,
        images=len(rows),
        rejected=rejected,
        origin=origin,
        layout=layout,
        licenses=tuple(sorted({row.license for row in rows if row.license})),
        key=key,
        withdrawn=tuple(withdrawn),
        labels_sha256=hashlib.sha256(labels).hexdigest(),
        measurements_sha256=files.sha256_file(directory / measurements.FILE),
    )
    record.write(directory / COLLECTION_FILE)
    return record


def write_phantoms(
    directory: Path, config: PhantomConfig, visibility: Visibility, progress: Progress = silent
) -> Collection:
    """Draw the collection of synthetic photographs of a visibility into `directory`, replacing what was there.

    The two visibilities share no photograph and no patient. Same configuration, same bytes. Raises DataError if the
    disk is full, or if `config` has no count for the visibility.
    """
    if visibility not in config.images:
        raise DataError(f"phantom.images has no count for {visibility}. Add one to params.yaml.")
    total = config.images[visibility]
    with files.directory_aside(directory, failure=DataError) as aside:
        (aside / IMAGES_DIRECTORY).mkdir()
        rows, truths, measured = [], [], []
        for done, (row, truth, jpeg) in enumerate(_draw(config, visibility, total), start=1):
            (aside / row.file).write_bytes(jpeg)
            rows.append(row)
            measured.append(measure(row.image_id, _decoded(jpeg)))
            truths.append(json.dumps({"image_id": row.image_id, **truth}) + "\n")
            progress(done, total)
        (aside / TRUTH_FILE).write_text("".join(truths), encoding="utf-8")
        return finish_collection(aside, rows, measured, PHANTOM_NAME, visibility, "phantom")


def _draw(
    config: PhantomConfig, visibility: Visibility, total: int
) -> Iterator[tuple[ImageRow, dict[str, object], bytes]]:
    first = _FIRST_PHANTOM[visibility]
    for index in range(first, first + total):
        drawn = phantom(config.seed, index, config.size, grades=config.grade_weights)
        image_id = f"phantom-{config.seed}-{index:08d}"
        row = ImageRow(
            image_id=image_id,
            file=f"{IMAGES_DIRECTORY}/{image_id}.jpg",
            grade=drawn.grade,
            grade_given=str(drawn.grade),
            grade_scale="icdr",
            patient_id=drawn.patient,
            eye=drawn.eye,
            source="dr_platform.data.phantom",
            license="synthetic",
            orientation=1,
            sha256=hashlib.sha256(drawn.jpeg).hexdigest(),
            source_sha256=hashlib.sha256(drawn.jpeg).hexdigest(),
            width=config.size,
            height=config.size,
        )
        yield row, drawn.truth(), drawn.jpeg


@contextmanager
def changing(raw_root: Path) -> Iterator[None]:
    """Hold the raw data against other ingests and revocations while the block runs; the lock of a dead process is none.

    A collection that a killed one was about to replace is back before the block begins. Raises DataError if another one
    is changing them.
    """
    raw_root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(raw_root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                "another ingest or revocation is running in this project. Wait for it, or end it and run this again."
            ) from None
        for visibility in VISIBILITIES:
            files.mend(raw_root / visibility)
        yield
    finally:
        os.close(descriptor)


def csv_bytes(header: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A table as UTF-8 CSV with LF; None is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # a name that is no UTF-8 is shown all the same


def _row(values: dict[str, str]) -> ImageRow:
    return ImageRow(
        image_id=values["image_id"],
        file=values["file"],
        grade=int(values["grade"]) if values["grade"] else None,
        grade_given=values["grade_given"],
        grade_scale=values["grade_scale"],  # type: ignore[arg-type]
        patient_id=values["patient_id"] or None,
        eye=values["eye"] or None,  # type: ignore[arg-type]
        source=values["source"],
        license=values["license"],
        orientation=int(values["orientation"]),
        sha256=values["sha256"],
        source_sha256=values["source_sha256"],
        width=int(values["width"]),
        height=int(values["height"]),
    )


def _require_unique(path: Path, rows: Sequence[ImageRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.image_id in seen:
            raise DataError(f"{path} has image_id {row.image_id!r} twice; an image is in a collection once.")
        seen.add(row.image_id)
