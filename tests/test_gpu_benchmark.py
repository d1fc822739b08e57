"""The GPU benchmark rehearsed on a CPU: the same code at toy size, with the kernel in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("triton-interpreter")

ROOT = Path(__file__).parents[1]
STAGES = ["ceilings", "checks", "kernels", "training", "r1", "profile", "learning"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "results.json"
    done = run("--dry-run", "--output", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_its_results(results, stage):
    assert results[stage]
    assert results["stage_seconds"][stage] >= 0


def test_the_kernel_is_checked_before_it_is_timed(results):
    assert all(row["ok"] for row in results["checks"])


def test_training_is_timed_in_every_mode(results):
    assert [row["mode"] for row in results["training"]] == ["triton", "graphs", "plain"]
    assert all(row["seconds_per_kimg"] > 0 for row in results["training"])


def test_the_functional_gradient_of_the_penalty_equals_double_backward(results):
    # Two orders of summation in float32 over a few layers.
    assert all(row["largest_difference"] < 1e-4 for row in results["r1"])


def test_losses_stay_finite(results):
    assert results["learning"]["finite"]


def test_a_call_cut_short_leaves_what_it_has_and_names_the_rest(tmp_path):
    path = tmp_path / "results.json"
    done = run("--dry-run", "--minutes", "0", "--stages", "ceilings", "learning", "--output", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert "were left" in found["ceilings"]["left out"]
    assert "were left" in found["learning"]["left out"]


def test_without_a_gpu_it_says_how_to_rehearse(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run()
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
