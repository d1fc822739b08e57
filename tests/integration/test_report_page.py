"""`drp data report` in a project: a page where it is asked for, the numbers on stdout, one line for each mistake."""

from __future__ import annotations

import json
import stat

import pytest
from small_project import assert_one_line_error, drp, make_project, prepared_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return prepared_project(tmp_path_factory.mktemp("report") / "project")


def test_the_command_writes_the_page_and_prints_the_numbers(project):
    done = drp(project, "data", "report", "--json", "--date", "2026-11-20")
    assert done.returncode == 0, done.stderr
    page = (project / "results" / "data-report.html").read_text()
    numbers = json.loads(done.stdout)
    assert numbers["collections"][0]["images"] == 60
    assert numbers["withheld"]["images"] == 30
    assert numbers["date"] == "2026-11-20"
    assert f"<code>{numbers['digest'][:12]}</code>" in page


def test_the_command_keeps_a_proprietary_page_at_its_owner(project):
    done = drp(project, "data", "report", "--include-proprietary")
    assert done.returncode == 0, done.stderr
    path = project / "data" / "import-reports" / "data-report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Holds proprietary photographs" in path.read_text()


def test_a_mistake_is_one_line(project):
    done = drp(project, "data", "report", "--include-proprietary", "--out", "results/page.html")
    assert_one_line_error(done, "results/page.html", "data/import-reports")


def test_without_data_the_command_says_what_to_run(tmp_path):
    root = make_project(tmp_path / "empty")
    assert_one_line_error(drp(root, "data", "report"), "no collection phantom", "drp data ingest")
    assert not (root / "results").exists()
