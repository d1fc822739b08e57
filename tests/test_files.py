"""Writes are whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dr_platform import files
from dr_platform.errors import DataError


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    target = tmp_path / "out"
    with files.directory_aside(target, failure=DataError) as aside:
        (aside / "a").write_text("old")

    def fail() -> None:
        with files.directory_aside(target, failure=DataError) as aside:
            (aside / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_new_directory_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "out"
    for name in ("a", "b"):
        with files.directory_aside(target, failure=DataError) as aside:
            (aside / name).write_text(name)
    assert os.listdir(target) == ["b"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["write", "sync"])
def test_a_kill_while_writing_leaves_no_directory(tmp_path, moment):
    script = f"""
import os, signal
from pathlib import Path
from dr_platform import files
from dr_platform.errors import DataError
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "sync": files.sync = die
with files.directory_aside(Path({str(tmp_path / "out")!r}), failure=DataError) as aside:
    (aside / "a").write_text("half")
    if {moment!r} == "write": die()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_what_a_killed_process_moved_away_returns_unless_something_took_its_place(replaced, tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    old = tmp_path / f".out.x.{done.stdout.strip()}.old"
    old.mkdir()
    (old / "a").write_text("old")
    if replaced:
        (tmp_path / "out.x").mkdir()
        (tmp_path / "out.x" / "a").write_text("new")
    files.mend(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out.x"]
    assert (tmp_path / "out.x" / "a").read_text() == ("new" if replaced else "old")


def test_a_directory_that_did_not_stay_in_its_place_is_back_where_it_was(tmp_path):
    for name in ("aside", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    read = []
    with pytest.raises(KeyError, match="stop"), files.placed(tmp_path / "aside", tmp_path / "target"):
        raise KeyError("stop", read.append((tmp_path / "target" / "a").read_text()))
    assert read == ["aside"]
    assert {path.name: (path / "a").read_text() for path in tmp_path.iterdir()} == {
        "aside": "aside",
        "target": "target",
    }


def test_equal_values_have_equal_digests_whatever_their_order():
    assert files.sha256_json({"a": 1, "b": [2, 3]}) == files.sha256_json({"b": [2, 3], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_the_digest_of_a_directory_follows_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    before = files.content_digest(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert files.content_digest(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.content_digest(tmp_path) != before


@pytest.mark.parametrize("place", ["/", "there", "missing/below-a-file"], ids=["root", "directory", "below a file"])
def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(place, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "missing").write_text("a file")
    with pytest.raises(OSError, match=r"directory|exists") as caught:
        files.write_bytes(tmp_path / place, b"content")
    assert "partial" not in str(caught.value.filename)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["missing", "there"]
