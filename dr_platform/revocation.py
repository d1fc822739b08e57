"""A patient who withdraws: what in a project follows from that patient's images, and the next version without them.

A checkpoint does not list its patients. It holds one digest over the images it was trained on, so a table of prepared
images whose rows give that digest is what it was trained on: the present table, or an earlier one in DVC's cache. Where
no table gives the digest, nobody can tell, and the checkpoint counts as affected. What starts from an affected model is
affected too, and so is a report that an affected set of images was the reference of.

Only pseudonyms leave the raw collection. The model versions are marked before the collection is written anew, so that a
kill in between leaves a patient who is still found; the same command completes the work.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dr_platform import files, lineage
from dr_platform.checkpoint import RECORD_FILE as CHECKPOINT_FILE
from dr_platform.data import collections, ingest, manifest, pseudonyms, screening
from dr_platform.data.collections import ImageRow
from dr_platform.data.loader import classes_sha256
from dr_platform.data.prepare import SKIPPED_FILE, read_skipped
from dr_platform.data.pseudonyms import Key
from dr_platform.data.screening import Seen
from dr_platform.errors import DataError, DrpError
from dr_platform.evaluation import kept
from dr_platform.pages import writing
from dr_platform.records import Checkpoint, Collection, EvalReport
from dr_platform.road import REPORT_FILE, Project

if TYPE_CHECKING:
    from dr_platform.tracking import ModelVersion, Tracker

logger = logging.getLogger(__name__)

Kind = Literal["image", "table", "shard", "features", "checkpoint", "weights", "report", "model version"]

_COLUMNS = ["patient", "sha256", "split", "rank_key", "image_id"]
_NOT_TOLD = (
    "it was made from images that are not here any more, and nothing proves that the patient's are not among them"
)


@dataclass(frozen=True)
class Affected:
    """Something that follows, or may follow, from the patient's images."""

    kind: Kind
    name: str  # path below the project, or NAME/VERSION
    reason: str
    certain: bool = True  # False: nothing proves that it does not


@dataclass(frozen=True)
class Elsewhere:
    """Photographs of the patient, or copies of them, that are listed as another's or in another collection."""

    collection: str
    patient: str | None  # in that collection's own table; None: they name no patient
    images: int


@dataclass(frozen=True)
class Revocation:
    """A patient of a collection, and everything that follows from the images."""

    collection: str
    stored: str  # the patient in the collection's own table: a pseudonym, save of phantoms
    patient: str  # the pseudonym of that, which is what manifests and the registry hold
    affected: tuple[Affected, ...]
    elsewhere: tuple[Elsewhere, ...] = ()

    def of(self, kind: Kind) -> list[Affected]:
        """What is affected of one kind."""
        return [item for item in self.affected if item.kind == kind]


@dataclass(frozen=True)
class _Row:
    patient: str
    sha256: str
    split: str
    rank_key: str
    image_id: str


@dataclass(frozen=True)
class _Table:
    """The rows of one prepared directory, present or earlier, in order of subsets."""

    visibility: str
    grade: int
    resolution: int
    rows: tuple[_Row, ...]
    directory: Path | None = field(default=None, compare=False)  # None: of an earlier version

    @cached_property
    def patients(self) -> frozenset[str]:
        return frozenset(row.patient for row in self.rows)


def find(project: Project, name: str, collection: str | None = None, key: Key | None = None) -> Revocation:
    """Everything in the project that follows from the images of a patient; changes nothing.

    name: the patient as the delivery had it, or as labels.csv of the raw collection has it. collection: needed where
    several know a patient of that name. key: the one behind the pseudonyms of proprietary collections.
    Raises DataError if none knows the patient.
    """
    with collections.changing(project.raw):  # what a killed revocation left is settled
        pass
    tables = _tables(project)
    home, patient_id = _identify(project, tables, name, collection, key)
    patient = manifest.pseudonym(f"{home}/{patient_id}")
    sets = _ImageSets(tables)
    shown = _Namer(project.root)
    tracker = project.tracker()
    affected = [
        *_images(project, home, patient_id, shown),
        *_prepared(tables, project, home, patient_id, patient, shown),
    ]
    verdicts = _Verdicts(sets, patient)
    versions = _versions(tracker, verdicts)
    saved = _checkpoints(project, verdicts, versions)
    affected += [Affected("checkpoint", shown(path), *verdict) for path, _, verdict in saved if verdict]
    affected += _weights(project, versions, shown)
    reports = list(_reports(project))
    models = _by_checkpoint(saved, versions)
    affected += _judged_reports(reports, models, verdicts, shown)
    affected += _pages(project, home, shown)
    affected += _features(project, models, sets, patient, shown)
    affected += [
        Affected(
            "model version", name, reason + (", and is the champion" if "champion" in version.aliases else ""), sure
        )
        for name, (version, verdict) in versions.items()
        if verdict
        for reason, sure in [verdict]
    ]
    return Revocation(home, patient_id, patient, tuple(affected), _elsewhere(project, home, patient_id))


def carry_out(project: Project, revocation: Revocation, day: date) -> int:
    """Mark the affected model versions, then write and version the raw collection without the patient's images.

    The collection's import report, here alone, no longer names the patient. Returns how many images were taken out. Old
    versions stay in DVC's cache and remotes until `dvc gc`. Raises DataError, with nothing changed, for phantoms, or if
    no image would remain.
    """
    with collections.changing(project.raw):
        return _carry_out(project, revocation, day)


def _carry_out(project: Project, revocation: Revocation, day: date) -> int:
    from dr_platform.tracking.revoked import mark_revoked

    directory, record, rows = _raw(project, revocation.collection)
    kept = [row for row in rows if row.patient_id != revocation.stored]
    if record.origin == "phantom":
        raise DataError(
            f"{directory} is drawn by dvc repro, and so would its patients be again. Change phantom in params.yaml."
        )
    if not kept:
        raise DataError(
            f"{directory} has images of this patient alone, so nothing would remain of it. Remove it: "
            f"dvc remove {directory.name}.dvc in {directory.parent}"
        )
    tracker = project.tracker()
    for item in revocation.of("model version"):
        model, _, number = item.name.rpartition("/")
        mark_revoked(tracker, model, int(number), revocation.patient, day, certain=item.certain)
    gone = {row.image_id for row in rows if row.patient_id == revocation.stored}
    ingest.forget_names(project.raw, record.visibility, record.name, gone)
    if len(kept) < len(rows):
        _write_without(directory, record, kept, revocation.stored)
    lineage.track(project.root, directory, record.visibility)
    return len(rows) - len(kept)


# -- the patient -------------------------------------------------------------------------------------------------------


def _identify(
    project: Project, tables: list[_Table], called: str, collection: str | None, key: Key | None
) -> tuple[str, str]:
    """The one collection that knows the patient, and what it calls the patient."""
    known = {record.name for record in collections.list_collections(project.raw)}
    if collection is not None and collection not in known:
        raise DataError(
            f"There is no collection {collection!r}; there: {', '.join(sorted(known)) or 'none'}. See: drp data list"
        )
    found = {}
    locked = []
    for name in sorted(known) if collection is None else [collection]:
        _, record, rows = _raw(project, name)
        keys = [each for each in (pseudonyms.PUBLIC_KEY, key) if each and each.fingerprint == record.key]
        if record.key and not keys:
            locked.append(f"{name} (key {record.key})")
        for stored in [called, *(pseudonyms.pseudonym(each, "patient", called) for each in keys)]:
            patient = manifest.pseudonym(f"{name}/{stored}")
            listed = any(row.patient_id == stored for row in rows)
            if called and (listed or any(patient in table.patients for table in tables)):
                found[name] = stored
    if not found:
        where = collection or ", ".join(sorted(known)) or "any collection"
        if locked:
            raise DataError(
                f"No patient {called!r} was found, but without their keys nobody can tell for {', '.join(locked)}. "
                f"Name the key's file by --key."
            )
        raise DataError(f"No patient {called!r} in {where}. Write the id as the delivery had it.")
    if len(found) > 1:
        raise DataError(
            f"Patient {called!r} is in {' and in '.join(found)}, which may be different people. "
            f"Say which: --collection {next(iter(found))}"
        )
    return next(iter(found.items()))


def _raw(project: Project, name: str) -> tuple[Path, Collection, list[ImageRow]]:
    """A raw collection; a name has one visibility, but for phantoms, whose visibilities share no patient."""
    directories = [
        directory
        for label in collections.VISIBILITIES
        if ((directory := project.raw / label / name) / collections.COLLECTION_FILE).is_file()
    ]
    read = [collections.read_collection(directory) for directory in directories]
    return directories[0], read[0][0], [row for _, rows in read for row in rows]


def _images(project: Project, name: str, patient_id: str, shown: Callable[[Path], str]) -> Iterator[Affected]:
    for label in collections.VISIBILITIES:
        directory = project.raw / label / name
        if (directory / collections.COLLECTION_FILE).is_file():
            for row in collections.read_collection(directory)[1]:
                if row.patient_id == patient_id:
                    yield Affected("image", shown(directory / row.file), "a photograph of the patient")


def _elsewhere(project: Project, name: str, patient_id: str) -> tuple[Elsewhere, ...]:
    """Who else has the patient's photographs, or copies of them."""
    mine: list[Seen] = []
    others: list[Seen] = []
    homes: list[str] = []
    for record in collections.list_collections(project.raw):
        for row, measured in screening.seen(project.raw / record.visibility / record.name):
            if record.name == name and row.patient_id == patient_id:
                mine.append((row, measured))
            else:
                others.append((row, measured))
                homes.append(record.name)
    found = {j for _, j in screening.same_photographs(mine, others)}
    counts = Counter((homes[j], others[j][0].patient_id) for j in found)
    ordered = sorted(counts, key=lambda place: (place[0], place[1] or ""))
    return tuple(Elsewhere(*place, counts[place]) for place in ordered)


class _Namer:
    """Paths as a user knows them: below the project where they are."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def __call__(self, path: Path) -> str:
        path = path.absolute()
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)


# -- prepared images ---------------------------------------------------------------------------------------------------


def _tables(project: Project) -> list[_Table]:
    """The tables of prepared images, present ones first, and earlier ones as far as DVC's cache has them."""
    present = [
        directory
        for root in (project.prepared, project.classes)
        for directory in sorted(root.glob("*/grade-*"))
        if (directory / manifest.RECORD_FILE).is_file()
    ]
    found = [
        _table(directory / manifest.RECORD_FILE, directory / manifest.ROWS_FILE, directory) for directory in present
    ]
    if (project.root / ".dvc").is_dir():
        names = {manifest.RECORD_FILE, manifest.ROWS_FILE}
        for version in lineage.versions_with(project.root, names):
            found.append(_table(version[manifest.RECORD_FILE], version[manifest.ROWS_FILE]))
    return list({table: table for table in reversed(found) if table}.values())[::-1]


def _table(record: Path, rows: Path, directory: Path | None = None) -> _Table | None:
    """What was prepared, by the few fields that every version of a manifest has; None if it cannot be read."""
    try:
        described = json.loads(record.read_text(encoding="utf-8"))
        read = [_Row(**row) for row in pq.read_table(rows, columns=_COLUMNS).to_pylist()]
        order = sorted(read, key=lambda row: (row.rank_key, row.image_id))
        return _Table(described["visibility"], described["grade"], described["resolution"], tuple(order), directory)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if directory is not None:
            raise DataError(f"{directory} cannot be read ({type(error).__name__}). Run: dvc repro prepare") from None
        logger.warning("An earlier table of prepared images cannot be read: %s", type(error).__name__)
        return None


def _prepared(
    tables: list[_Table], project: Project, name: str, patient_id: str, patient: str, shown: Callable[[Path], str]
) -> Iterator[Affected]:
    """Shards and tables that hold the patient, found row by row."""
    ids = {row.image_id for row in _raw(project, name)[2] if row.patient_id == patient_id}
    for directory in [table.directory for table in tables if table.directory is not None]:
        for path in sorted(directory.glob("*.parquet")):
            rows = pq.read_table(path, columns=["patient"]).column("patient").to_pylist().count(patient)
            if rows:
                kind: Kind = "table" if path.name == manifest.ROWS_FILE else "shard"
                yield Affected(kind, shown(path), f"{rows} of its rows are the patient's")
        rows = sum(row["collection"] == name and row["image_id"] in ids for row in read_skipped(directory))
        if rows:
            yield Affected("table", shown(directory / SKIPPED_FILE), f"{rows} of its rows are the patient's")


class _ImageSets:
    """Which patients a set of images holds, by the set's digest alone."""

    def __init__(self, tables: list[_Table]) -> None:
        self._by_grade: dict[int, list[tuple[int, list[_Row]]]] = {}
        for grade in {table.grade for table in tables}:
            self._by_grade[grade] = list(_joined([table for table in tables if table.grade == grade]))

    def whole(self, split: str) -> Iterator[tuple[str, frozenset[str]]]:
        """Every whole set of a split: its digest, its patients."""
        for grade in self._by_grade:
            for chosen in self._selections(grade, split):
                yield _digest(chosen), _patients(chosen)

    def patients(self, digest: str, grade: int, count: int, split: str = "train") -> frozenset[str] | None:
        """The patients of the first `count` images of a grade, if any known table has them with that digest."""
        for chosen in self._selections(grade, split):
            if count <= len(chosen) and _digest(chosen[:count]) == digest:
                return _patients(chosen[:count])
        return None

    def patients_of_classes(self, digest: str, grades: tuple[int, ...], own: int, count: int) -> frozenset[str] | None:
        """The same of a conditional training: the whole of each further grade, and a subset of its own."""
        others = [list(self._selections(grade, "train")) if grade != own else [None] for grade in grades]
        for combination in itertools.product(*others):
            rest = count - sum(len(part) for part in combination if part is not None)
            for mine in self._selections(own, "train"):
                if not 0 < rest <= len(mine):
                    continue
                parts = [mine[:rest] if part is None else part for part in combination]
                if classes_sha256([_digest(part) for part in parts]) == digest:
                    return frozenset().union(*(_patients(part) for part in parts))
        return None

    def _selections(self, grade: int, split: str) -> Iterator[list[_Row]]:
        for _, rows in self._by_grade.get(grade, []):
            yield [row for row in rows if row.split == split]


def _joined(tables: list[_Table]) -> Iterator[tuple[int, list[_Row]]]:
    """The images of a grade as a training sees them: of the public table, or of both in one order."""
    public = [table for table in tables if table.visibility == "public"]
    private = [table for table in tables if table.visibility != "public"]
    for first in public:
        yield first.resolution, list(first.rows)
    for first, second in itertools.product(public, private):
        if first.resolution == second.resolution:
            both = sorted((*first.rows, *second.rows), key=lambda row: (row.rank_key, row.image_id))
            yield first.resolution, both


def _digest(rows: Iterable[_Row]) -> str:
    return files.sha256_json([row.sha256 for row in rows])


def _patients(rows: Iterable[_Row]) -> frozenset[str]:
    return frozenset(row.patient for row in rows)


# -- what was made from them -------------------------------------------------------------------------------------------

Verdict = tuple[str, bool] | None  # reason and certainty, or not affected


class _Verdicts:
    """Whether a training saw the patient, remembered by what identifies its images."""

    def __init__(self, sets: _ImageSets, patient: str) -> None:
        self._sets, self._patient = sets, patient
        self._known: dict[tuple, Verdict] = {}

    def training(self, digest: str, grade: int, classes: tuple[int, ...], count: int) -> Verdict:
        """The verdict on images with this digest."""
        key = (digest, grade, classes, count)
        if key not in self._known:
            if classes:
                patients = self._sets.patients_of_classes(digest, classes, grade, count)
            else:
                patients = self._sets.patients(digest, grade, count)
            self._known[key] = self._judge(patients, "it was trained on the patient's images")
        return self._known[key]

    def reference(self, report: EvalReport) -> Verdict:
        """The verdict on the real images of a report."""
        told = re.fullmatch(r"(train|held-out), (\d+) images", report.reference)
        patients = self._sets.patients(report.reference_sha256, report.grade, int(told[2]), told[1]) if told else None
        return self._judge(patients, "the patient's images were among its reference")

    def _judge(self, patients: frozenset[str] | None, reason: str) -> Verdict:
        if patients is None:
            return _NOT_TOLD, False
        return (reason, True) if self._patient in patients else None


def _versions(tracker: Tracker, verdicts: _Verdicts) -> dict[str, tuple[ModelVersion, Verdict]]:
    """Every version in the registry, by NAME/VERSION, with its verdict, which its parent's may decide."""
    found: dict[str, tuple[ModelVersion, Verdict]] = {}
    for model in tracker.models():
        for version in tracker.versions(model):
            found[f"{model}/{version.number}"] = version, _verdict_of_tags(version.tags, verdicts)
    while changed := {
        name: (version, _inherited(version.tags.get("parent"), found))
        for name, (version, verdict) in found.items()
        if not (verdict and verdict[1]) and _inherited(version.tags.get("parent"), found) not in (None, verdict)
    }:
        found |= changed
    return found


def _verdict_of_tags(tags: dict[str, str], verdicts: _Verdicts) -> Verdict:
    try:
        classes = tuple(int(grade) for grade in tags["classes"].split(", ")) if tags.get("classes") else ()
        own = verdicts.training(tags["data_sha256"], int(tags["grade"]), classes, int(tags["train_images"]))
    except (KeyError, ValueError):
        own = "it was not registered by drp, so nothing tells what it was trained on", False
    return own


def _inherited(parent: str | None, versions: dict[str, tuple[ModelVersion, Verdict]]) -> Verdict:
    verdict = versions[parent][1] if parent in versions else None
    return (f"it started from {parent}, which is affected", verdict[1]) if verdict else None


Saved = list[tuple[Path, str, Verdict]]  # directory, digest of the record, verdict


def _checkpoints(project: Project, verdicts: _Verdicts, versions: dict[str, tuple[ModelVersion, Verdict]]) -> Saved:
    roots = [project.root / "models", project.storage, project.root / "averaged", project.root / "sweeps"]
    found = sorted({path.absolute() for root in roots for path in root.rglob(CHECKPOINT_FILE)})
    saved: Saved = []
    for path in found:
        try:
            record = Checkpoint.read(path)
        except DrpError as error:
            logger.warning("Counted as affected: %s", error)
            saved.append((path.parent, "", ("it cannot be read, so nothing tells what it was trained on", False)))
            continue
        own = verdicts.training(record.data_sha256, record.grade, record.classes, record.train_images)
        inherited = _inherited(record.parent, versions)
        certain = own if own and own[1] else inherited if inherited and inherited[1] else own or inherited
        saved.append((path.parent, record.digest(), certain))
    return saved


def _weights(
    project: Project, versions: dict[str, tuple[ModelVersion, Verdict]], shown: Callable[[Path], str]
) -> Iterator[Affected]:
    """Weights of affected versions that were fetched as the start of a transfer."""
    initial = project.storage / "initial"
    for directory in sorted(initial.iterdir()) if initial.is_dir() else []:
        for name, (_, verdict) in versions.items():
            stem = name.replace("/", "-")
            if verdict and (directory.name == stem or directory.name.startswith(f"{stem}-to-dr")):
                yield Affected("weights", shown(directory), f"they are those of {name}, which is affected", verdict[1])


def _reports(project: Project) -> Iterator[tuple[Path, EvalReport]]:
    for path in sorted((project.root / "results").glob(f"*/{REPORT_FILE}")):
        yield path, EvalReport.read(path)


def _pages(project: Project, home: str, shown: Callable[[Path], str]) -> Iterator[Affected]:
    """Pages of `drp data report` and `drp report` where they usually lie; what they show is chosen by a seed."""
    for page in writing.pages(project.root):
        yield Affected("report", shown(page), f"it may show photographs of {home}: write it again", certain=False)


def _by_checkpoint(saved: Saved, versions: dict[str, tuple[ModelVersion, Verdict]]) -> dict[str, Verdict]:
    models: dict[str, Verdict] = {digest: verdict for _, digest, verdict in saved}
    models |= {version.tags.get("checkpoint_sha256", ""): verdict for version, verdict in versions.values()}
    return models


def _of_checkpoint(models: dict[str, Verdict], digest: str) -> Verdict:
    """The verdict on what was made from a checkpoint."""
    own = models.get(digest, ("it is about a checkpoint that is not here", False))
    return (f"the checkpoint it is about: {own[0]}", own[1]) if own else None


def _judged_reports(
    reports: list[tuple[Path, EvalReport]],
    models: dict[str, Verdict],
    verdicts: _Verdicts,
    shown: Callable[[Path], str],
) -> Iterator[Affected]:
    for path, report in reports:
        verdict = _of_checkpoint(models, report.checkpoint_sha256)
        reference = verdicts.reference(report)
        if reference and (verdict is None or (reference[1] and not verdict[1])):
            verdict = reference
        if verdict:
            yield Affected("report", shown(path), *verdict)


def _features(
    project: Project, models: dict[str, Verdict], sets: _ImageSets, patient: str, shown: Callable[[Path], str]
) -> Iterator[Affected]:
    """Kept features, by what each file says it was made of: a set of real images, or a checkpoint's."""
    known = {digest: patients for split in manifest.SPLITS for digest, patients in sets.whole(split)}
    for path in sorted(project.features.glob("*.safetensors")):
        key = kept.made_of(path) or {}
        patients = known.get(kept.images_of(key))
        if "checkpoint" in key:
            verdict = _of_checkpoint(models, key["checkpoint"])
        elif patients is None:
            verdict = _NOT_TOLD, False
        else:
            verdict = ("the patient's images are among those it describes", True) if patient in patients else None
        if verdict:
            yield Affected("features", shown(path), *verdict)


# -- the next version --------------------------------------------------------------------------------------------------


def _write_without(directory: Path, record: Collection, kept: list[ImageRow], patient: str) -> None:
    """Replace a raw collection by one of the kept images alone, atomically; hard links where the system allows."""
    measured = collections.read_measurements(directory, record)
    with files.directory_aside(directory, failure=DataError) as aside:
        (aside / collections.IMAGES_DIRECTORY).mkdir()
        for row in kept:
            try:
                os.link(directory / row.file, aside / row.file)
            except OSError:
                shutil.copy2(directory / row.file, aside / row.file)
        collections.finish_collection(
            aside,
            kept,
            [measured[row.image_id] for row in kept],
            record.name,
            record.visibility,
            record.origin,
            rejected=record.rejected,
            layout=record.layout,
            key=record.key,
            withdrawn=sorted({*record.withdrawn, patient}),
        )
