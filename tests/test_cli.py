"""The command line: help for everything, one line for what the user can mend, JSON for programs."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dr_platform.cli.console import Console, TrainingView, duration, one_line_errors
from dr_platform.cli.main import app
from dr_platform.errors import ConfigError
from dr_platform.records import Finding, Tick

ROOT = Path(__file__).parents[1]


def commands(
    group: typer.Typer, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], typer.models.CommandInfo]]:
    for command in group.registered_commands:
        yield (*path, command.name or command.callback.__name__), command
    for sub in group.registered_groups:
        yield from commands(sub.typer_instance, (*path, sub.name))


ALL = dict(commands(app))


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_an_example_and_a_place_in_the_readme(path):
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"drp {' '.join(path)}" in shown.output
    assert f"drp {' '.join(path)}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_has_help(path):
    for parameter in inspect.signature(ALL[path].callback, eval_str=True).parameters.values():
        (information,) = (item for item in parameter.annotation.__metadata__)
        assert information.help, parameter.name


def test_a_mendable_failure_is_one_line_and_status_1(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise ConfigError("found 3,\n needed 4")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: found 3, needed 4\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0


def test_profile_use_prints_what_changed(project):
    shown = CliRunner().invoke(app, ["profile", "use", "public-only"])
    assert 'prepare.visibility: "all" -> "public-only"' in shown.stdout
    again = CliRunner().invoke(app, ["profile", "use", "public-only", "--json"])
    assert json.loads(again.stdout) == []


def test_data_use_refuses_a_collection_that_is_not_there(project):
    with pytest.raises(ConfigError, match=r"no collection 'clinic'\. Known: phantom"):
        CliRunner().invoke(app, ["data", "use", "clinic"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (4 * 3600 + 3 * 86400, "3 d 4 h")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_a_sign_of_trouble_is_told_once_and_again_only_when_it_worsens(capsys):
    view = TrainingView(Console())
    plain = Tick(
        step=1, images_seen=8, images_total=80, seconds=1.0, images_per_second=8.0, eta_seconds=9.0,
        memory_gib=0.5, scalars={}, samples=None, checkpoint=False,
    )  # fmt: skip
    for severity in ("warning", "warning", "notice", "critical", "critical"):
        slow = Finding(kind="slow", severity=severity, sentence="2 found.", advice=("wait", "train.batch"))
        view.tick(plain.model_copy(update={"findings": (slow,)}))
    told = [line for line in capsys.readouterr().err.splitlines() if "slow" in line]
    assert told == [
        "warning: slow: 2 found. Try: wait; train.batch.",
        "critical: slow: 2 found. Try: wait; train.batch.",
    ]


def test_help_is_quick():
    """0.2 s on a quiet machine; four times that, because tests share the cores."""
    command = [sys.executable, "-m", "dr_platform.cli.main", "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.8
