"""A sweep: a grid of trainings, killed in the middle and continued."""

from __future__ import annotations

import csv
import json
import sys

import psutil
import pytest
import yaml
from PIL import Image
from small_project import assert_one_line_error, drp, prepared_project, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return prepared_project(tmp_path_factory.mktemp("sweep") / "project")


def test_a_killed_sweep_continues_and_repeats_no_finished_trial(project):
    trials = project / "runs" / "sweeps"
    process = start(project, sys.executable, "-m", "dr_platform.cli.main", "sweep")
    wait_for(lambda: len(list(trials.glob("*/trial-*.json"))) >= 1, process, timeout=240)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trials.glob("*/trial-*.json")}
    assert 1 <= len(finished) < 4

    done = drp(project, "sweep", "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    assert f"4 trials, {len(finished)} finished before" in done.stderr
    ranked = json.loads(done.stdout)
    assert sorted((trial["size"], trial["gamma"]) for trial in ranked) == [(8, 0.1), (8, 1.0), (16, 0.1), (16, 1.0)]
    assert [trial["value"] for trial in ranked] == sorted(trial["value"] for trial in ranked)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished
    with open(project / "results/sweep/sweep.csv", newline="") as table:
        assert [float(row["value"]) for row in csv.DictReader(table)] == [trial["value"] for trial in ranked]
    assert Image.open(project / "results/sweep/sweep.png").size[0] > 400


def test_asha_stops_trials_early_and_ranks_them_all(project):
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["sweep"]["kimg"] = 2.4  # long enough that a trial is measured, and stopped, while it trains
    path.write_text(yaml.safe_dump(params))
    done = drp(project, "sweep", "--asha", "--gammas", "0.1,50,100,500", "--sizes", "16", "--json", timeout=500)
    assert done.returncode == 0, done.stderr
    ranked = json.loads(done.stdout)
    assert len(ranked) == 4
    stopped = [trial for trial in ranked if trial["stopped_early"]]
    assert stopped
    assert all(trial["images_seen"] < 2400 for trial in stopped)
    assert any(not trial["stopped_early"] and trial["images_seen"] == 2400 for trial in ranked)


def test_a_size_beyond_the_images_is_refused_before_anything_runs(project):
    done = drp(project, "sweep", "--sizes", "8,100000")
    assert_one_line_error(done, "asks for 100000 training images", "are prepared")


@pytest.mark.parametrize("options", [("--sizes", "many"), ("--gammas", "1,,2"), ("--sizes", "0")])
def test_a_grid_that_is_no_list_of_numbers_is_refused(project, options):
    assert_one_line_error(drp(project, "sweep", *options), options[0], options[1])
