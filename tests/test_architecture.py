"""The shape of the package: cheap to start, one way of imports, nothing that runs a stranger's code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "dr_platform").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])


def test_importing_the_cli_spares_the_heavy_libraries():
    script = (
        "import sys, dr_platform.cli.main; print(*{'torch','ray','mlflow','dvc','pyarrow','numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "pattern",
    [r"\bimport pickle\b", r"pyfunc\.load_model", r"weights_only\s*=\s*False", r"torch\.jit\.load", r"yaml\.load\("],
)
def test_nothing_runs_code_from_a_file(pattern):
    assert [path.name for path in SOURCES if re.search(pattern, path.read_text())] == []


def test_every_module_opens_with_a_sentence():
    assert [path.name for path in SOURCES if not path.read_text().startswith('"""')] == []


def test_no_module_is_called_utils():
    assert [path.name for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")] == []


def test_gan_imports_itself_relatively():
    """The folder is copied into registered models under another name."""
    for path in (ROOT / "dr_platform" / "gan").rglob("*.py"):
        assert "dr_platform" not in re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL), path.name
