"""From a delivered folder or archive to a raw collection: a fault in a table stops it, one in an image does not.

A table is written by a person who can mend it, so its first mistake is an error that names row, column and value. Among
thousands of images some are broken for good: each is listed with its reason, and the rest goes on.

Only pixels are kept, and no name: images and patients get pseudonyms, hashes under a key that lies outside the project
(a published one for public collections, so that everyone's pseudonyms of them are the same). Who is who, and what
became of each file, stands in `import-reports/`, which is neither versioned nor sent anywhere.

Images are taken by several processes. What is finished is noted in a journal beside it, so an ingest that was killed
goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dr_platform import files
from dr_platform.data import archives, collections, layouts, pixels, pool, pseudonyms, screening, tables
from dr_platform.data.collections import VISIBILITIES, ImageRow, Progress
from dr_platform.data.containers import is_dicom
from dr_platform.data.dicom import decode_dicom
from dr_platform.data.duplicates import SIDE
from dr_platform.data.listing import Listed, Listing
from dr_platform.data.measurements import Measurement, measure
from dr_platform.data.pixels import UnusableImageError
from dr_platform.data.quality import Quality
from dr_platform.data.screening import Seen
from dr_platform.errors import DataError
from dr_platform.records import Collection, Visibility

logger = logging.getLogger(__name__)

REPORTS = "import-reports"
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm")


@dataclass(frozen=True)
class IngestResult:
    """What became of a delivery. `report` lists every file of it; it stays on this machine."""

    collection: Collection
    directory: Path
    report: Path
    layout: str
    reason: str  # why the delivery was read in this layout
    notes: tuple[str, ...]
    rejected: int
    without_grade: int
    without_patient: int
    known: Mapping[str, int]  # other collections that hold some of the same files -> how many


@dataclass(frozen=True)
class _Task:
    """An image to take, complete in itself: another process does it."""

    source: Path  # the delivered folder
    listed: Listed
    image_id: str
    patient_id: str | None
    directory: Path


@dataclass(frozen=True)
class _Taken:
    """An image that lies in the collection now."""

    row: ImageRow
    measurement: Measurement
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Refused:
    """An image that cannot be used, and why."""

    reason: str


def ingest(
    source: Path,
    labels: Path | None,
    name: str,
    visibility: Visibility,
    raw_root: Path,
    *,
    layout: str = "csv",
    options: layouts.Options | None = None,
    key: pseudonyms.Key | None = None,
    license: str | None = None,
    strict: bool = False,
    replace: bool = False,
    processes: int = 1,
    progress: Progress = collections.silent,
    version: Callable[[IngestResult], object] = lambda _: None,
) -> IngestResult:
    """Make the collection `name` under `raw_root` from a delivered folder, zip or tar; see `layouts` for its tables.

    labels: the table of layout csv, or one that other layouts take too. options: what else a layout takes.
    key: for pseudonyms of names; public collections take the published one. license: in place of what the layout knows.
    strict: the first unusable image is an error. replace: take the place of a collection of that name and visibility.
    version: called with the result once the collection is in its place; if it fails, everything is as it was before.
    An ingest that was killed goes on where it was if it is asked for the same again.
    Raises DataError, with nothing written, for a mistake in a table, a name that is taken, or no usable image.
    """
    with collections.changing(raw_root):
        target = _free_target(raw_root, visibility, name, replace)
        if source.resolve().is_relative_to(raw_root.resolve()):
            raise DataError(
                f"{source} is a part of this project's raw data, which was taken in already. Give a delivery."
            )
        key = pseudonyms.PUBLIC_KEY if visibility == "public" else key
        if key is None:
            raise DataError(
                "a proprietary collection needs a key for its pseudonyms. Pass one: see pseudonyms.load_key"
            )
        wanted = _Wanted(name, visibility, target, key, _withdrawn(target))
        private = _private_photographs(raw_root) if visibility == "public" else []
        with _delivered(source, raw_root) as folder:
            listing = layouts.list_images(folder, layout, labels=labels, options=options)
            with _unfinished(target, _plan_of(listing, key, license)) as aside:
                tasks = [_task(folder, listed, key, license, aside) for listed in listing.images]
                stay = [task for task in tasks if task.patient_id not in wanted.withdrawn]
                outcomes = _take_all(stay, aside, strict, processes, progress)
                gone = (task for task in tasks if task.patient_id in wanted.withdrawn)
                outcomes += [(task, _Refused("the patient has withdrawn")) for task in gone]
                _require_unknown(outcomes, private)
                return _finish(outcomes, listing, wanted, aside, version)


@dataclass(frozen=True)
class _Wanted:
    """The collection that is to be made."""

    name: str
    visibility: Visibility
    target: Path
    key: pseudonyms.Key
    withdrawn: tuple[str, ...]  # patients who stay out

    @property
    def report(self) -> Path:
        return report_file(self.target.parent.parent, self.visibility, self.name)


def _free_target(raw_root: Path, visibility: Visibility, name: str, replace: bool) -> Path:
    for label in VISIBILITIES:
        taken = collections.collection_directory(raw_root, label, name)
        if label != visibility and taken.exists():
            raise DataError(
                f"There is a {label} collection {name} already ({taken}), and a name has one visibility. "
                f"Choose another name, or remove that one."
            )
    target = collections.collection_directory(raw_root, visibility, name)
    if target.exists() and not replace:
        raise DataError(f"There is a collection {name} already ({target}). Choose another name, or use --replace.")
    return target


def _withdrawn(target: Path) -> tuple[str, ...]:
    """Patients whose images were taken out of the collection that is replaced, of whatever version; they stay out."""
    record = target / collections.COLLECTION_FILE
    if not record.is_file():
        return ()
    try:
        return tuple(str(patient) for patient in json.loads(record.read_text(encoding="utf-8")).get("withdrawn", ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{record} is damaged ({error}), and who has withdrawn from the collection stands in it. Fetch it again: "
            f"dvc checkout {target}.dvc"
        ) from None


def _private_photographs(raw_root: Path) -> list[tuple[str, Seen]]:
    """Every photograph of the proprietary collections, with the name of its collection."""
    return [
        (path.parent.name, seen)
        for path in sorted((raw_root / "proprietary").glob(f"[!.]*/{collections.COLLECTION_FILE}"))
        if Collection.read(path).origin == "ingest"
        for seen in screening.seen(path.parent)
    ]


def _require_unknown(outcomes: Iterable[tuple[_Task, _Taken | _Refused]], private: Sequence[tuple[str, Seen]]) -> None:
    """Raise DataError if one of the private photographs is about to become public."""
    taken = [(task, outcome) for task, outcome in outcomes if isinstance(outcome, _Taken)]
    ours = [(outcome.row, outcome.measurement) for _, outcome in taken]
    for i, j in screening.same_photographs(ours, [seen for _, seen in private]):
        raise DataError(
            f"{taken[i][0].listed.file} is a photograph of the proprietary collection {private[j][0]}, and this one "
            f"would be public. Take it out of the delivery, or ingest it as proprietary."
        )


@contextmanager
def _delivered(source: Path, raw_root: Path) -> Iterator[Path]:
    """The delivered folder; of an archive, a copy that is gone afterwards."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise DataError(f"{source} is neither a folder nor an archive. Give the one that holds the images.")
    raw_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".delivery-", dir=raw_root) as place:
        folder = archives.open_delivery(source, Path(place) / "files")
        packed = source.stat().st_mtime_ns  # so that an ingest which was killed knows the files again
        for file in folder.rglob("*"):
            os.utime(file, ns=(packed, packed))
        inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
        if len(inside) == 1 and inside[0].is_dir():  # as a file manager packs a folder
            folder = inside[0]
        try:
            yield folder
        except DataError as error:
            raise DataError(str(error).replace(str(folder), str(source))) from None


def _plan_of(listing: Listing, key: pseudonyms.Key, license: str | None) -> str:
    """A digest of all that decides what an ingest makes, save the bytes of the images."""
    plan = [listing.layout, key.fingerprint, license, [asdict(listed) for listed in listing.images]]
    return files.sha256_json(plan)


def _task(folder: Path, listed: Listed, key: pseudonyms.Key, license: str | None, aside: Path) -> _Task:
    patient = listed.patient_id and pseudonyms.pseudonym(key, "patient", listed.patient_id)
    terms = listed.license if license is None else license
    # Free text goes into a table that people open.
    source, terms = (str(tables.harmless(_utf8(text))) for text in (listed.source, terms))
    listed = dataclasses.replace(listed, source=source, license=terms)
    return _Task(folder, listed, pseudonyms.pseudonym(key, "image", listed.image_id), patient, aside)


def _utf8(text: str) -> str:
    """The text; bytes of a command line that are no UTF-8 are spelt out."""
    return text.encode(errors="backslashreplace").decode()


# ---- going on where a killed ingest was ------------------------------------------------------------------------------


@contextmanager
def _unfinished(target: Path, plan: str) -> Iterator[Path]:
    """The directory in which `target` is being made: one that a killed ingest of the same plan left, or a new one.

    It is removed where the delivery is at fault, and stays if anything else stopped the block.
    """
    aside = target.with_name(f".{target.name}.unfinished")
    journal = _journal(aside)
    try:
        aside.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        if not journal.is_file() or _header_of(journal) != plan:
            for left in aside.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            (aside / collections.IMAGES_DIRECTORY).mkdir(mode=0o700)
            journal.write_text(json.dumps(plan) + "\n", encoding="utf-8")
        yield aside
    except OSError as error:
        raise _not_written(target, error) from error
    except DataError:
        shutil.rmtree(aside, ignore_errors=True)
        journal.unlink(missing_ok=True)
        raise
    journal.unlink(missing_ok=True)


def _journal(aside: Path) -> Path:
    """What was finished so far: beside the directory, so that nothing but the collection is versioned."""
    return aside.with_name(f"{aside.name}.jsonl")


def _not_written(target: Path, error: OSError) -> DataError:
    return DataError(
        f"{target} could not be written: {error.strerror or error}. Free some space and run the same again."
    )


def _header_of(journal: Path) -> str | None:
    with open(journal, encoding="utf-8", errors="replace") as stream:
        try:
            header = json.loads(stream.readline())
        except ValueError:
            return None
    return header if isinstance(header, str) else None


def _stamp(path: Path) -> list[int]:
    """What tells whether a delivered file is still the same, without reading it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _note(aside: Path, task: _Task, outcome: _Taken | _Refused) -> None:
    """Add a finished image to the journal. Refused ones are tried again: they may be mended in the meantime."""
    if isinstance(outcome, _Refused):
        return
    measured = outcome.measurement
    entry = {
        "stamp": _stamp(_locate(task.source, task.listed)),
        "row": asdict(outcome.row),
        "quality": asdict(measured.quality),
        "text": measured.text,
        "disc": measured.disc,
        "fingerprint": base64.b64encode(measured.fingerprint.tobytes()).decode(),
        "notes": outcome.notes,
    }
    with open(_journal(aside), "a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def _noted(aside: Path) -> dict[str, dict[str, Any]]:
    """The entries of the journal by image_id; a last line that was cut off counts as none."""
    entries = {}
    with open(_journal(aside), encoding="utf-8", errors="replace") as stream:
        next(stream)
        for line in stream:
            try:
                entry = json.loads(line)
                entries[entry["row"]["image_id"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
    return entries


def _again(task: _Task, entry: dict[str, Any]) -> _Taken | None:
    """The image of a journal's entry, if its source is unchanged and what was stored is whole; else None."""
    try:
        row = ImageRow(**entry["row"])
        if entry["stamp"] != _stamp(_locate(task.source, task.listed)):
            return None
        if files.sha256_file(task.directory / row.file) != row.sha256:
            return None
        fingerprint = np.frombuffer(base64.b64decode(entry["fingerprint"]), np.int8)
        measured = Measurement(
            row.image_id, Quality(**entry["quality"]), entry["text"], entry["disc"], fingerprint.reshape(SIDE, SIDE)
        )
        return _Taken(row, measured, tuple(entry["notes"]))
    except (OSError, UnusableImageError, KeyError, TypeError, ValueError):
        return None


# ---- the images ------------------------------------------------------------------------------------------------------


def _take_all(
    tasks: Sequence[_Task], aside: Path, strict: bool, processes: int, progress: Progress
) -> list[tuple[_Task, _Taken | _Refused]]:
    """The outcome of every task, in their order."""
    noted = _noted(aside)
    known = {task.image_id: _again(task, noted[task.image_id]) for task in tasks if task.image_id in noted}
    todo = [task for task in tasks if known.get(task.image_id) is None]
    outcomes: dict[str, _Taken | _Refused] = {name: taken for name, taken in known.items() if taken is not None}
    if outcomes:
        logger.warning(
            "%d of %d images were taken by an ingest before; going on with the rest.", len(outcomes), len(tasks)
        )
    done = len(outcomes)
    for task, outcome in zip(todo, pool.in_order(_take, todo, processes), strict=True):
        if strict and isinstance(outcome, _Refused):
            raise DataError(
                f"{task.listed.where}: {task.listed.file} cannot be used: {outcome.reason}. "
                f"Mend or remove it, or leave out --strict to list it and go on."
            )
        _note(aside, task, outcome)
        outcomes[task.image_id] = outcome
        done += 1
        progress(done, len(tasks))
    return [(task, outcomes[task.image_id]) for task in tasks]


def _take(task: _Task) -> _Taken | _Refused:
    """Put the pixels of an image into the collection."""
    listed = task.listed
    try:
        path = _locate(task.source, listed)
        content = pixels.read_file(path)
        eye = listed.eye
        if is_dicom(content):
            decoded, shown = decode_dicom(content, path.name)
            eye = eye or shown
        else:
            decoded = pixels.decode(content, path.name)
    except UnusableImageError as error:
        return _Refused(str(error))
    try:
        measured = measure(task.image_id, decoded.pixels)
    except DataError as error:  # fewer pixels than anything can be seen in
        return _Refused(str(error).rstrip("."))
    stored = pixels.encode(decoded.pixels, decoded.lossless)
    file = collections.image_file(task.image_id, "png" if decoded.lossless else "jpg")
    (task.directory / file).write_bytes(stored)
    row = ImageRow(
        image_id=task.image_id,
        file=file,
        grade=listed.grade,
        grade_given=listed.grade_given,
        grade_scale=listed.scale,
        patient_id=task.patient_id,
        eye=eye,
        source=listed.source,
        license=listed.license,
        orientation=decoded.orientation,
        sha256=hashlib.sha256(stored).hexdigest(),
        source_sha256=hashlib.sha256(content).hexdigest(),
        width=decoded.pixels.shape[1],
        height=decoded.pixels.shape[0],
    )
    return _Taken(row, measured, decoded.notes)


def _locate(source: Path, listed: Listed) -> Path:
    """The file of a listed image, which must lie in the folder also after its symbolic links are followed."""
    try:
        path = _find(source, PurePosixPath(listed.file.replace("\\", "/")))
    except OSError as error:  # a name that no file system takes
        raise UnusableImageError(f"it cannot be opened ({error.strerror})") from None
    if not path.resolve().is_relative_to(source.resolve()):
        raise UnusableImageError("it is a link that leads out of the folder")
    return path


def _find(source: Path, name: PurePosixPath) -> Path:
    """The file of that name, or the only one called so with an ending of an image."""
    if name.is_absolute() or ".." in name.parts:
        raise UnusableImageError("its path leads out of the folder")
    if (source / name).exists():
        return source / name
    if name.suffix.lower() in ENDINGS:
        raise UnusableImageError("there is no such file")
    # A file system that ignores case finds one file under both spellings.
    variants = (source / f"{name}{spelling}" for ending in ENDINGS for spelling in (ending, ending.upper()))
    found = list({path.stat().st_ino: path for path in variants if path.is_file()}.values())
    if not found:
        raise UnusableImageError(f"there is no file of that name ending in {', '.join(ENDINGS)}")
    if len(found) > 1:
        raise UnusableImageError(f"several files have that name: {', '.join(path.name for path in found)}")
    return found[0]


# ---- the end ---------------------------------------------------------------------------------------------------------


def _finish(
    outcomes: Sequence[tuple[_Task, _Taken | _Refused]],
    listing: Listing,
    wanted: _Wanted,
    aside: Path,
    version: Callable[[IngestResult], object],
) -> IngestResult:
    """Write the tables and the report, and place the collection; all is as before if it cannot be versioned."""
    taken = [outcome for _, outcome in outcomes if isinstance(outcome, _Taken)]
    refused = [outcome for _, outcome in outcomes if isinstance(outcome, _Refused)]
    if not taken:
        reason, count = Counter(outcome.reason for outcome in refused).most_common(1)[0]
        raise DataError(
            f"None of the {len(outcomes)} listed images can be used; {count} of them: {reason}. "
            f"Is this the folder that the table's files are relative to?"
        )
    rows = [outcome.row for outcome in taken]
    record = collections.finish_collection(
        aside,
        rows,
        [outcome.measurement for outcome in taken],
        wanted.name,
        wanted.visibility,
        "ingest",
        rejected=len(refused),
        layout=listing.layout,
        key=wanted.key.fingerprint,
        withdrawn=wanted.withdrawn,
    )
    for file in aside.rglob("*"):
        if file.is_file():
            files.sync(file)
    result = IngestResult(
        collection=record,
        directory=wanted.target,
        report=wanted.report,
        layout=listing.layout,
        reason=listing.reason,
        notes=listing.notes,
        rejected=len(refused),
        without_grade=sum(row.grade is None for row in rows),
        without_patient=sum(row.patient_id is None for row in rows),
        known=_held_by_others(rows, wanted.target),
    )
    with _reported(wanted.report, outcomes), files.placed(aside, wanted.target):
        version(result)
    return result


def _held_by_others(rows: Sequence[ImageRow], target: Path) -> dict[str, int]:
    """Other collections that were made from some of the same files, with their number."""
    delivered = {row.source_sha256 for row in rows}
    counts = {}
    for path in sorted(target.parent.parent.glob(f"*/[!.]*/{collections.COLLECTION_FILE}")):
        if path.parent == target:
            continue
        try:
            others = collections.read_collection(path.parent)[1]
        except DataError as error:  # of that collection, and no fault of this one
            logger.warning("Not compared with this delivery: %s", error)
            continue
        counts[path.parent.name] = sum(row.source_sha256 in delivered for row in others)
    return {name: count for name, count in counts.items() if count}


def report_file(raw_root: Path, visibility: Visibility, name: str) -> Path:
    """Where the import report of a collection lies: beside the raw data, never among it."""
    return raw_root.parent / REPORTS / visibility / f"{name}.csv"


def forget_names(raw_root: Path, visibility: Visibility, name: str, images: AbstractSet[str]) -> None:
    """Take out of an import report what names these images, pseudonyms, and the patients whose they are."""
    path = report_file(raw_root, visibility, name)
    if not images or not path.is_file():
        return
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    header, body = rows[0], [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
    patients = {row["patient_id"] for row in body if row["pseudonym"] in images} - {""}
    for row in body:
        if row["pseudonym"] in images or row["patient_id"] in patients:
            row.update(dict.fromkeys(header, ""), outcome="withdrawn")
    _write_private(path, tables.safe_csv(header, [[row[column] for column in header] for row in body]))


@contextmanager
def _reported(path: Path, outcomes: Iterable[tuple[_Task, _Taken | _Refused]]) -> Iterator[None]:
    """Write the import report, to stay only if the block succeeds; an earlier one comes back if it does not."""
    before = path.read_bytes() if path.is_file() else None
    _write_report(path, outcomes)
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink()
        else:
            _write_private(path, before)
        raise


def _write_report(path: Path, outcomes: Iterable[tuple[_Task, _Taken | _Refused]]) -> None:
    """Every file of the delivery, under its own name, with its pseudonym and what became of it."""
    header = ("file", "image_id", "patient_id", "where", "outcome", "pseudonym", "said")
    rows = []
    for task, outcome in outcomes:
        listed = task.listed
        named = (listed.file, listed.image_id, listed.patient_id or "", listed.where)
        if isinstance(outcome, _Taken):
            rows.append((*named, "taken", task.image_id, "; ".join(outcome.notes)))
        else:
            rows.append((*named, "not used", "", outcome.reason))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The directory keeps itself out of git and DVC, wherever the project's own lists stand.
    for name in (".gitignore", ".dvcignore"):
        files.write_text(path.parent.parent / name, "*\n")
    _write_private(path, tables.safe_csv(header, rows))


def _write_private(path: Path, content: bytes) -> None:
    files.write_bytes(path, content)
    path.chmod(0o600)
