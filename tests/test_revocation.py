"""A patient withdraws: what is said to be affected against a walk over every file, and what is left afterwards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors
import yaml
from integration.small_project import make_project
from PIL import Image
from typer.testing import CliRunner

from dr_platform import checkpoint, files, lineage, revocation, road
from dr_platform.cli.main import app
from dr_platform.config import load_params
from dr_platform.data import collections
from dr_platform.data.ingest import ingest
from dr_platform.data.loader import select_images
from dr_platform.data.phantom import phantom
from dr_platform.data.pseudonyms import Key, pseudonym
from dr_platform.errors import DataError
from dr_platform.records import EvalReport
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS, make_plan
from dr_platform.training.report import SilentReporter
from dr_platform.training.worker import work

MODEL, CHILD = "fundus-dr1-stylegan3", "fundus-dr2-stylegan3"
SUBSET = 12
KEY = Key(b"k" * 32)


def silent(done: int, total: int) -> None:
    pass


def stands_for(collection: str, patient: str) -> str:
    return hashlib.sha256(f"{collection}/{patient}".encode()).hexdigest()[:16]


@dataclass
class Walked:
    """A project, and what each thing in it was made from, as noted while it was made."""

    root: Path
    patients: dict[str, set[str]]  # of every derived thing, pseudonyms
    in_subset: str  # ids of patients of the proprietary collection
    beyond_subset: str
    held_out: str
    public: str

    @property
    def project(self) -> road.Project:
        return road.Project(self.root, load_params(self.root))

    def truth(self, collection: str, patient: str) -> set[tuple[str, str]]:
        """What is affected, from every file below the data, and from the notes."""
        found = {("image", name) for name in self.photographs(collection, patient)}
        name = stands_for(collection, patient)
        for path in (self.root / "data/prepared").rglob("*.parquet"):
            if any(row["patient"] == name for row in pq.read_table(path).to_pylist()):
                kind = "table" if path.name == "manifest.parquet" else "shard"
                found.add((kind, path.relative_to(self.root).as_posix()))
        affected = {thing for thing, patients in self.patients.items() if name in patients or not patients}
        if f"model version {MODEL}/1" in affected:
            affected.add(f"model version {CHILD}/1")
        return found | {split_kind(thing) for thing in affected}

    def photographs(self, collection: str, patient: str) -> list[str]:
        found = []
        for table in (self.root / "data/raw").glob(f"*/{collection}/labels.csv"):
            with open(table, newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if row["patient_id"] == patient]
            found += [(table.parent / row["file"]).relative_to(self.root).as_posix() for row in rows]
        return found


def split_kind(thing: str) -> tuple[str, str]:
    kind = next(kind for kind in ("model version", "checkpoint", "report", "features") if thing.startswith(f"{kind} "))
    return kind, thing.removeprefix(f"{kind} ")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Walked:
    """Two collections; a model of 12 images of both; another of the public ones; one of images that are lost; a child
    of the first; and then the images prepared anew with another split, so that the first one's table is in DVC alone.
    """
    root = make_project(
        tmp_path_factory.mktemp("revocation") / "project",
        prepare={"collections": ["open", "clinic"], "held_out": 0.3, "shard_images": 8},
        train={"kimg": 0.008, "tick_kimg": 0.008, "subset": SUBSET},
    )
    (root / "dvc.yaml").unlink()  # the stages are called in this process
    lineage.init_project(root)
    project = road.Project(root, load_params(root))
    for name, visibility in (("open", "public"), ("clinic", "proprietary")):
        drawn = root.parent / name
        collections.write_phantoms(drawn, project.params.phantom, visibility)
        ingest(drawn, drawn / "labels.csv", name, visibility, project.raw, key=KEY)
        lineage.track(root, project.raw / visibility / name, visibility)
    road.prepare(project, silent)
    for visibility in ("public", "proprietary"):
        lineage._dvc(root, "add", "--quiet", f"data/prepared/{visibility}/grade-1")
    notes: dict[str, set[str]] = {}

    plan = make_plan(project.params, project.prepared, project.storage)
    seen = {row.patient for row in plan.load().rows}
    work(plan, Group(), SilentReporter())
    road._export(checkpoint.newest(plan.run_directory / CHECKPOINTS), project.model, None)
    road.evaluate(project)
    road.register(project)
    reference = select_images(project.prepared, 1).rows
    every = {row.patient for row in reference}
    for path in (root / "runs").glob("*/checkpoints/step-*"):
        notes[f"checkpoint {path.relative_to(root)}"] = seen
    notes |= {"checkpoint models/dr1": seen, f"model version {MODEL}/1": seen, "report results/dr1/report.json": every}
    held_out = {row.patient for row in select_images(project.prepared, 1, "held-out").rows}
    described = {"data": every, "checkpoint": seen, "held-out": held_out}
    unseen = select_images(project.prepared, 1, "held-out").sha256
    for path in (root / "cache/features").iterdir():
        with safetensors.safe_open(path, "numpy") as stored:
            made_of = json.loads(stored.metadata()["made_of"])
        kind = "checkpoint" if "checkpoint" in made_of else "held-out" if made_of["data"] == unseen else "data"
        notes[f"features {path.relative_to(root)}"] = described[kind]
    assert len([thing for thing in notes if thing.startswith("features")]) == 4  # also of the middles of the real ones

    public = select_images(project.prepared, 1, visibility="public-only")
    open_patients = {row.patient for row in public.rows}
    of_public = {"data_sha256": public.sha256, "train_images": len(public), "visibility": "public"}
    another_model(project, "averaged/public", MODEL, {**of_public, "run": "public"})
    another_model(project, "averaged/lost", MODEL, {"data_sha256": "f" * 64, "run": "lost"})
    another_model(project, "averaged/child", CHILD, {**of_public, "run": "child", "parent": f"{MODEL}/1"})
    notes |= {"checkpoint averaged/public/step-00000001": open_patients, f"model version {MODEL}/2": open_patients}
    notes |= {
        "checkpoint averaged/lost/step-00000001": set(),
        f"model version {MODEL}/3": set(),
    }  # none proven: affected
    notes |= {
        "checkpoint averaged/child/step-00000001": open_patients | seen,
        f"model version {CHILD}/1": open_patients,
    }

    clinic = {
        stands_for("clinic", row.patient_id): row.patient_id
        for row in collections.read_collection(project.raw / "proprietary/clinic")[1]
        if row.grade == 1
    }
    held = {row.patient for row in select_images(project.prepared, 1, "held-out").rows}
    chosen = Walked(
        root=root,
        patients=notes,
        in_subset=clinic[min(clinic.keys() & seen)],
        beyond_subset=clinic[min(clinic.keys() & every - seen)],
        held_out=clinic[min(clinic.keys() & held)],
        public=collections.read_collection(project.raw / "public/open")[1][0].patient_id,
    )
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["prepare"]["seed"] = 7
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    road.prepare(chosen.project, silent)
    return chosen


def another_model(project: road.Project, where: str, model: str, changes: dict) -> None:
    """A checkpoint and a version with the weights of the first, said to be of other images."""
    record, tensors, state = checkpoint.read(project.model)
    describe = {**record.model_dump(exclude={"files", "version"}), **changes, "step": 1}
    written = checkpoint.write(project.root / where, tensors, state, describe)
    report = EvalReport.read(project.results / road.REPORT_FILE)
    report = report.model_copy(update={"checkpoint_sha256": written.digest(), "data_sha256": written.data_sha256})
    weights = project.root / where / checkpoint.directory_name(1) / checkpoint.GENERATOR_FILE
    project.tracker().register(model, written, weights, report, tags={}, run_name=written.run)


def said(found: revocation.Revocation) -> set[tuple[str, str]]:
    return {(item.kind, item.name) for item in found.affected}


@pytest.mark.parametrize(
    ("who", "collection"),
    [("in_subset", "clinic"), ("beyond_subset", "clinic"), ("held_out", "clinic"), ("public", "open")],
)
def test_what_is_affected_is_what_a_walk_over_every_file_finds(made, who, collection):
    patient = getattr(made, who)
    found = revocation.find(made.project, patient)
    assert (found.collection, found.patient) == (collection, stands_for(collection, patient))
    assert said(found) == made.truth(collection, patient)
    assert len(said(found)) == len(found.affected)
    uncertain = {(item.kind, item.name) for item in found.affected if not item.certain}
    assert uncertain == {("checkpoint", "averaged/lost/step-00000001"), ("model version", f"{MODEL}/3")}


def test_a_patient_is_known_by_the_name_that_the_delivery_had_to_whoever_has_the_key(made):
    _, delivered = collections.read_collection(made.root.parent / "clinic")
    names = {pseudonym(KEY, "patient", row.patient_id): row.patient_id for row in delivered}
    found = revocation.find(made.project, names[made.in_subset], key=KEY)
    assert (found.collection, found.stored) == ("clinic", made.in_subset)
    assert found == revocation.find(made.project, made.in_subset)
    for key in (None, Key(b"x" * 32)):
        with pytest.raises(DataError, match=rf"without their keys .* clinic \(key {KEY.fingerprint}\)"):
            revocation.find(made.project, names[made.in_subset], key=key)


def test_the_four_patients_differ_in_what_follows_from_them(made):
    """So that the comparison above is one of unlike cases."""
    versions = {
        who: {item.name for item in revocation.find(made.project, getattr(made, who)).of("model version")}
        for who in ("in_subset", "beyond_subset", "held_out")
    }
    assert versions["in_subset"] == {f"{MODEL}/1", f"{MODEL}/3", f"{CHILD}/1"}
    assert versions["beyond_subset"] == versions["held_out"] == {f"{MODEL}/3"}
    assert revocation.find(made.project, made.beyond_subset).of("report")
    assert not revocation.find(made.project, made.held_out).of("report")


@pytest.mark.parametrize(
    ("patient", "collection", "words"),
    [
        ("nobody", None, "No patient 'nobody' in clinic, open"),
        ("", None, "No patient ''"),
        ("nobody", "clinic", "No patient 'nobody' in clinic"),
        ("nobody", "elsewhere", "There is no collection 'elsewhere'; there: clinic, open"),
    ],
)
def test_an_unknown_patient_is_one_line(made, patient, collection, words):
    with pytest.raises(DataError, match=words) as caught:
        revocation.find(made.project, patient, collection, KEY)
    assert "\n" not in str(caught.value)


def test_a_name_that_two_collections_know_needs_one_of_them(made):
    drawn, target = made.root.parent / "clinic", made.root / "data/raw/proprietary/second"
    ingest(drawn, drawn / "labels.csv", "second", "proprietary", made.project.raw, key=KEY)
    try:
        with pytest.raises(DataError, match=r"is in clinic and in second, .* --collection clinic"):
            revocation.find(made.project, made.held_out)
        assert revocation.find(made.project, made.held_out, "clinic").collection == "clinic"
    finally:
        shutil.rmtree(target)


def invoke(root: Path, monkeypatch, *arguments: str) -> dict:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["data", "revoke", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_a_dry_run_changes_nothing(made, monkeypatch):
    before = files.content_digest(made.root, lambda path: path.suffix != ".lock" and ".dvc/tmp" not in str(path))
    shown = invoke(made.root, monkeypatch, "--patient", made.in_subset)
    assert (shown["carried_out"], shown["images_removed"]) == (False, 0)
    assert {(item["kind"], item["name"]) for item in shown["affected"]} == made.truth("clinic", made.in_subset)
    after = files.content_digest(made.root, lambda path: path.suffix != ".lock" and ".dvc/tmp" not in str(path))
    assert after == before


def test_a_revocation_takes_the_images_out_marks_the_versions_and_bears_repetition(made, monkeypatch):
    directory = made.root / "data/raw/proprietary/clinic"
    gone = made.photographs("clinic", made.in_subset)
    _, before = collections.read_collection(directory)
    kept = {row.file: (directory / row.file).read_bytes() for row in before if row.patient_id != made.in_subset}
    version = lineage.data_versions(made.root)["clinic/proprietary"]
    expected = {name for kind, name in made.truth("clinic", made.in_subset) if kind == "model version"}
    shown = invoke(made.root, monkeypatch, "--patient", made.in_subset, "--yes")
    assert (shown["carried_out"], shown["images_removed"]) == (True, len(gone))

    record, rows = collections.read_collection(directory)
    assert record.images == len(rows) == len(kept)
    assert not made.photographs("clinic", made.in_subset)
    assert {f"images/{path.name}": path.read_bytes() for path in (directory / "images").iterdir()} == kept
    assert lineage.data_versions(made.root)["clinic/proprietary"] != version
    assert "remote: private" in directory.with_name("clinic.dvc").read_text()

    marker = stands_for("clinic", made.in_subset)
    tracker = made.project.tracker()
    marked = {
        f"{model}/{each.number}": each.tags["revoked_patients"]
        for model in tracker.models()
        for each in tracker.versions(model)
        if "revoked_patients" in each.tags
    }
    assert marked.keys() == expected
    assert all(tag.split()[0] == marker for tag in marked.values())
    for name in expected:
        model, _, number = name.rpartition("/")
        description = tracker._client.get_model_version(model, number).description
        assert description.count(marker) == 1
        assert ("may follow" in description) == (name == f"{MODEL}/3")
    for path in [made.root / "mlflow.db", *(path for path in (made.root / "mlartifacts").rglob("*") if path.is_file())]:
        assert made.in_subset.encode() not in path.read_bytes(), path

    # As after a kill between the two halves: the tables still know the patient, and nothing is done twice.
    again = invoke(made.root, monkeypatch, "--patient", made.in_subset, "--yes")
    assert again["images_removed"] == 0
    assert {item["name"] for item in again["affected"] if item["kind"] == "model version"} == expected
    assert made.project.tracker().version(MODEL, 1).tags["revoked_patients"] == marked[f"{MODEL}/1"]

    # Nor does the next delivery bring the patient back.
    drawn = made.root.parent / "clinic"
    result = ingest(drawn, drawn / "labels.csv", "clinic", "proprietary", made.project.raw, key=KEY, replace=True)
    assert result.collection.withdrawn == (made.in_subset,)
    again_there = {row.image_id for row in collections.read_collection(result.directory)[1]}
    assert again_there == {row.image_id for row in rows}
    assert "the patient has withdrawn" in result.report.read_text()


def test_who_else_has_the_photographs_is_said_and_the_import_report_forgets_the_name(tmp_path, monkeypatch):
    """Another delivery has the same files, and smaller copies of them, under other names of other patients."""
    root = make_project(tmp_path / "project", phantom={"visibilities": []}, prepare={"collections": ["clinic"]})
    lineage.init_project(root)
    project = road.Project(root, load_params(root))
    drawn = [phantom(7, index, 256, grades=(0, 1, 0, 0, 0)) for index in (0, 1, 10, 20)]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    for index, picture in enumerate(drawn):
        (first / f"a{index}.jpg").write_bytes(picture.jpeg)
    (first / "labels.csv").write_text("image_id,patient_id,grade\na0,anna,1\na1,anna,1\na2,bert,1\na3,carl,1\n")
    (second / "b0.jpg").write_bytes(drawn[0].jpeg)
    Image.open(io.BytesIO(drawn[1].jpeg)).resize((224, 224)).save(second / "b1.png")
    (second / "b2.jpg").write_bytes(drawn[3].jpeg)
    (second / "labels.csv").write_text("image_id,patient_id,grade\nb0,x17,1\nb1,,1\nb2,x18,1\n")
    made_first = ingest(first, first / "labels.csv", "clinic", "proprietary", project.raw, key=KEY)
    made_second = ingest(second, second / "labels.csv", "again", "proprietary", project.raw, key=KEY)
    assert (made_first.known, made_second.known) == ({}, {"clinic": 2})

    found = revocation.find(project, "anna", key=KEY)
    theirs = {row.image_id: row.patient_id for row in collections.read_collection(made_second.directory)[1]}
    named = next(patient for patient in theirs.values() if patient == pseudonym(KEY, "patient", "x17"))
    assert found.elsewhere == (
        revocation.Elsewhere("again", None, 1),
        revocation.Elsewhere("again", named, 1),
    )
    revocation.carry_out(project, found, date(2026, 1, 1))
    told = made_first.report.read_text()
    assert not [name for name in ("anna", "a0", "a1") if name in told]
    assert [name for name in ("bert", "carl", "a2", "a3") if name in told] == ["bert", "carl", "a2", "a3"]
    assert told.count("withdrawn") == 2
    assert "x17" in made_second.report.read_text()
    assert revocation.find(project, named, key=KEY).collection == "again"


def test_phantoms_are_not_revoked(tmp_path):
    root = make_project(tmp_path / "project", phantom={"images": {"public": 5, "proprietary": 5}})
    lineage.init_project(root)
    project = road.Project(root, load_params(root))
    road.draw_phantoms(project, "public", silent)
    patient = collections.read_collection(project.raw / "public/phantom")[1][0].patient_id
    found = revocation.find(project, patient)
    assert found.of("image")
    with pytest.raises(DataError, match="drawn by dvc repro"):
        revocation.carry_out(project, found, date(2026, 1, 1))
    assert os.listdir(project.raw / "public") == ["phantom"]


def test_a_patient_of_a_further_class_of_a_conditional_training_counts(tmp_path):
    """The grade that the model is registered for does not show the patient; the training saw the image all the same."""
    root = make_project(
        tmp_path / "project",
        phantom={"visibilities": ["public"]},
        prepare={"collections": ["phantom"], "held_out": 0.3},
        train={"kimg": 0.008, "tick_kimg": 0.008, "condition_on": [2]},
    )
    (root / "dvc.yaml").unlink()
    lineage.init_project(root)
    project = road.Project(root, load_params(root))
    road.draw_phantoms(project, "public", silent)
    road.prepare(project, silent)
    road.prepare(project.for_grade(2), silent, as_class=True)
    plan = make_plan(project.params, project.prepared, project.storage)
    work(plan, Group(), SilentReporter())
    road._export(checkpoint.newest(plan.run_directory / CHECKPOINTS), project.model, None)
    trained = {row.patient for row in select_images(project.classes, 2).rows}
    other_grade = {row.patient for row in select_images(project.prepared, 1).rows}
    apart = {row.patient for row in select_images(project.classes, 2, "held-out").rows}
    ids = {stands_for("phantom", row.patient_id): row.patient_id
           for row in collections.read_collection(project.raw / "public/phantom")[1]}  # fmt: skip
    for patient, affected in ((min(trained - other_grade), True), (min(apart - other_grade), False)):
        found = revocation.find(project, ids[patient])
        assert bool(found.of("checkpoint")) is affected
        assert any("data/classes/" in item.name for item in found.of("table"))
