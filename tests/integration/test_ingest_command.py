"""Claims about `drp data ingest` as a person types it: columns kept for next time, JSON, Ctrl-C, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_project import assert_one_line_error, drp, make_project, run, start, wait_for

from dr_platform.data.phantom import phantom

MANY = 90  # enough for several processes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("ingest") / "project")
    for command in (("git", "init", "-q"), (sys.executable, "-m", "dr_platform.cli.main", "init")):
        done = run(root, *command)
        assert done.returncode == 0, done.stderr
    return root


def deliver(folder: Path, count: int, size: int = 48, header: str = "image_id,grade,patient_id") -> Path:
    folder.mkdir()
    lines = [header]
    for number in range(count):
        pixels = phantom(1, number, 48, grade=1).image
        Image.fromarray(pixels).resize((size, size)).save(folder / f"p{number}.png", compress_level=0)
        lines.append(f"p{number},{number % 3},patient-{number}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_columns_are_named_once_and_kept(project: Path, tmp_path: Path) -> None:
    first = deliver(tmp_path / "spring", 3, header="bild,schwere,fall")
    common = ("--visibility", "proprietary", "--json")
    named = (
        "--image-id",
        "bild",
        "--grade",
        "schwere",
        "--patient-id",
        "fall",
        "--save-mapping",
        str(tmp_path / "m.yaml"),
    )
    done = drp(project, "data", "ingest", str(first), "--name", "spring", *named, *common)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["collection"]["images"], said["not_used"], said["without_patient"]) == (3, 0, 0)
    assert (said["layout"], said["report"]) == ("csv", "data/import-reports/proprietary/spring.csv")
    kept = yaml.safe_load((tmp_path / "m.yaml").read_text())
    assert (kept["image_id"], kept["grade"], kept["patient_id"]) == ("bild", "schwere", "fall")
    second = deliver(tmp_path / "autumn", 4, header="bild,schwere,fall")
    again = ("--mapping", str(tmp_path / "m.yaml"), "--name", "autumn")
    done = drp(project, "data", "ingest", str(second), *again, *common)
    assert json.loads(done.stdout)["collection"]["images"] == 4
    assert json.loads(done.stdout)["known"] == {"spring": 3}
    both = drp(project, "data", "ingest", str(second), *again, "--grade", "x", *common)
    assert_one_line_error(both, "--mapping names the columns already")


@pytest.mark.parametrize(
    "content",
    ["grade: 2001-13-45", "grade: 0x_", "grade: !!int abc", "grade: !!timestamp abc", "[" * 3000, "a: [", "- x",
     "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\ngrade: [*b,*b,*b,*b,*b]", "level: x", "grade: 7", "\0", "x" * 70_000],
)  # fmt: skip
def test_a_damaged_mapping_is_one_short_line(project: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "m.yaml").write_text(content)
    options = ("--name", "x", "--visibility", "public", "--json", "--mapping", str(tmp_path / "m.yaml"))
    done = drp(project, "data", "ingest", str(tmp_path), *options)
    assert_one_line_error(done, "m.yaml")
    assert (done.stdout, len(done.stderr) < 1000) == ("", True)


def test_a_mapping_that_could_not_be_kept_is_told_before_the_work(project: Path, tmp_path: Path) -> None:
    delivery = deliver(tmp_path / "kept", 2)
    options = ("data", "ingest", str(delivery), "--name", "kept", "--visibility", "public")
    for place in (
        tmp_path,
        tmp_path / "no" / "m.yaml",
        delivery / "m.yaml",
        delivery / "table.csv",
        Path("data/raw/m.yaml"),
    ):
        assert_one_line_error(drp(project, *options, "--save-mapping", str(place)), "--save-mapping")
    assert not (project / "data/raw/public/kept").exists()


def test_messidor_is_mapped_as_told_or_not_at_all(project: Path, tmp_path: Path) -> None:
    options = ("--name", "messidor", "--visibility", "public", "--layout", "messidor")
    for wrong in ("0:0,1:1,2:2", "0:0,1:1,2:2,3:9", "zero", "0:0,0:1,1:1,2:2,3:3"):
        done = drp(project, "data", "ingest", str(tmp_path), *options, "--messidor-grades", wrong)
        assert_one_line_error(done, "essidor")
    done = drp(project, "data", "ingest", str(tmp_path), *options, "--errata", str(tmp_path / "none.csv"))
    assert_one_line_error(done)


def test_ctrl_c_keeps_what_was_taken_and_the_same_command_goes_on(project: Path, tmp_path: Path) -> None:
    delivery = deliver(tmp_path / "many", MANY, size=700)
    command = ("data", "ingest", str(delivery), "--name", "many", "--visibility", "public")
    journal = project / "data/raw/public/.many.unfinished.jsonl"
    running = start(project, sys.executable, "-m", "dr_platform.cli.main", *command)
    wait_for(lambda: journal.is_file() and len(journal.read_text().splitlines()) > 4, running)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped: what was taken so far is kept. The same command goes on with the rest." in said
    assert "Traceback" not in said
    assert not (project / "data/raw/public/many").exists()
    done = drp(project, *command)
    assert done.returncode == 0, done.stderr
    assert f"of {MANY} images were taken by an ingest before" in done.stderr
    assert f"{MANY} images taken, 0 not used" in done.stdout


def test_a_collection_that_is_named_but_not_there_is_told(project: Path) -> None:
    done = drp(project, "status")
    assert done.returncode == 0, done.stderr
    assert "prepare.collections names phantom, but there is no such collection. Run: dvc repro phantom" in done.stderr
