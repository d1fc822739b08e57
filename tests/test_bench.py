"""The benchmark of the CPU: that it runs, refuses, and says what was measured. Its figures are no test's business."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402


def row(**changes):
    values = {
        "id": "C1",
        "what": "x",
        "threads": 1,
        "peer_s": 0.3,
        "ours_s": 0.1,
        "ratio": 3.0,
        "low": 2.9,
        "high": 3.1,
    }
    return bench.Row(**{**values, "error": 2e-7, "inputs": "0" * 12, "ratios": [2.0, 3.0, 4.0], **changes})


def test_a_quick_run_prints_every_row_and_publishes_nothing():
    published = [path.stat().st_mtime for path in (bench.RESULTS, bench.PAGE) if path.exists()]
    command = [sys.executable, "benchmarks/bench.py", "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    rows = done.stdout.splitlines()
    for name in ("C1", "C2", "C3", "EMA", "Adam", "R", "drp --help"):
        assert any(line.startswith(name) for line in rows), name
    assert [path.stat().st_mtime for path in (bench.RESULTS, bench.PAGE) if path.exists()] == published


def test_a_busy_machine_publishes_nothing_and_says_why(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (os.cpu_count() + 1.0, 0.0, 0.0))
    with pytest.raises(SystemExit, match="so nothing was published"):
        bench.refuse_under_load(publish=True)
    bench.refuse_under_load(publish=False)


def test_nothing_is_timed_where_the_forms_differ():
    def run():
        raise RuntimeError("timed")

    with pytest.raises(AssertionError, match=r"differ by 1\.0e-05"):
        bench.compare("C1", "x", run, run, error=1e-5, limit=1e-6, inputs=[torch.ones(1)], pairs=1)


def test_the_ratio_is_the_median_inside_its_interval():
    ratio, low, high = bench.summary([3.0, 2.0, 2.5, 100.0, 2.2])
    assert ratio == 2.5
    assert 2.0 <= low <= ratio <= high <= 100.0


def test_the_geometric_mean_of_rows_is_taken_pair_by_pair():
    mean = bench.geometric_mean("C1", "mean", [row(ratios=[2.0, 2.0]), row(ratios=[8.0, 2.0])])
    assert mean.ratios == pytest.approx([4.0, 2.0])
    assert mean.peer_s == pytest.approx(0.3)


def test_the_page_holds_every_row_and_no_place_of_this_machine():
    environment = {
        "date": "2026-01-01",
        "machine": "2 cores, AVX-512",
        "torch": "2",
        "python": "3",
        "load_average": 0.5,
    }
    document = {"environment": {**environment, "command": "make bench"}, "help_seconds": 0.2, "rows": [asdict(row())]}
    text = bench.page(document)
    assert "**3.00** | 2.90 to 3.10 | 300.0 | 100.0 | 2e-07" in text
    assert str(ROOT) not in text
