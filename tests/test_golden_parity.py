"""The table of golden comparisons: it leaves no file out, and a broken bound does not pass."""

from __future__ import annotations

import fnmatch
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from shared_data import GOLDEN, needs_golden

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "golden_parity.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_parity"] = module
    spec.loader.exec_module(module)
    return module


def heard(table: ModuleType, folder: Path) -> tuple[int, str]:
    lines: list[str] = []
    return table.compare(folder, lines.append), "\n".join(lines)


@needs_golden
def test_every_golden_file_is_compared_with_something(table):
    names = [path.name for path in GOLDEN.iterdir() if path.suffix in (".npz", ".json")]
    assert [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in table.PARITY)] == []


@needs_golden
def test_a_number_that_is_not_the_published_one_is_a_broken_bound(table, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PARITY", {"filters.npz": table.filters})
    shutil.copy(GOLDEN / "filters.npz", tmp_path)
    assert heard(table, tmp_path)[0] == 0
    with np.load(GOLDEN / "filters.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    arrays["04/filter"][3] += 1e-5
    np.savez(tmp_path / "filters.npz", **arrays)
    faults, text = heard(table, tmp_path)
    assert faults == 1
    assert text.count("BROKEN") == 1


def test_a_file_nothing_compares_and_one_that_is_not_there_are_faults(table, tmp_path):
    (tmp_path / "surprise.npz").touch()
    faults, text = heard(table, tmp_path)
    assert faults == 1 + len(table.PARITY)
    assert "compared with nothing: surprise.npz" in text


def test_what_is_no_number_or_of_another_shape_is_worse_than_any(table):
    assert table.relative(np.ones(2), np.ones(3)) == float("inf")
    (error,) = table.worst(iter([table.Error("x", 1e-5, 0.0), table.Error("x", 1e-5, float("nan"))]))
    assert error.value == float("inf")
