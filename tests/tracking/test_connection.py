"""Connecting: the store is made once, where the project says, and an address that is wrong is told within seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dr_platform import tracking
from dr_platform.errors import RegistryError


def test_a_relative_store_lies_in_the_project_wherever_the_command_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = tracking.connect("sqlite:///mlflow.db", "mlartifacts", project).run_for("a", {})
    assert tracking.connect(f"sqlite:///{project}/mlflow.db", "mlartifacts", elsewhere).run_for("a", {}) == before
    assert list(elsewhere.iterdir()) == []


def test_processes_that_meet_a_new_store_at_once_make_it_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dr_platform import tracking;"
        "print(tracking.connect('sqlite:///new/mlflow.db', 'files', Path(sys.argv[1])).run_for(sys.argv[2], {}))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    runs = [process.communicate(timeout=300)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(runs)) == 2


@pytest.mark.parametrize(
    "uri", ["http://someone:hunter2hunter2@127.0.0.1:9", "postgresql+psycopg://someone:hunter2hunter2@127.0.0.1:9/db"]
)
def test_an_unreachable_server_is_one_line_within_seconds_and_keeps_the_password(uri: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9") as caught:
        tracking.connect(uri, "mlartifacts", tmp_path)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04 something else", b"x"])
def test_a_file_that_is_no_database_is_named_and_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(RegistryError, match=r"mlflow\.db is no SQLite database"):
        tracking.connect("sqlite:///mlflow.db", "mlartifacts", tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == content


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_without_a_file_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="names no file"):
        tracking.connect(uri, "mlartifacts", tmp_path)
