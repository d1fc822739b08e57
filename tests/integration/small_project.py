"""A project that walks the whole road at 16 px in seconds, and the processes that are started in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dr_platform import road
from dr_platform.config import load_params

ROOT = Path(__file__).parents[2]

# Of the pseudonyms of proprietary collections; made by the first command that needs it.
KEY_FILE = Path(tempfile.gettempdir()) / f"drp-tests-{os.getuid()}" / "pseudonym.key"

SMALL: dict[str, dict[str, Any]] = {
    "phantom": {"images": {"public": 60, "proprietary": 30}, "size": 32, "grade_weights": [0, 0.6, 0.4, 0, 0]},
    "prepare": {"resolution": 16, "shard_images": 16},
    "train": {
        "kimg": 1.6, "batch": 8, "z_dim": 8, "w_dim": 8, "num_layers": 4, "channel_base": 128, "channel_max": 8,
        "discriminator_channel_base": 128, "discriminator_channel_max": 8, "r1_interval": 4, "tick_kimg": 0.16,
        "checkpoint_ticks": 1,
    },
    "evaluate": {"images": 48, "kid_subsets": 4, "kid_subset_size": 20, "equivariance_images": 8, "batch": 16},
    "promote": {"min_images": 48, "memorisation": "ignore"},  # too few patients are held out to ask
    "sweep": {"sizes": [8, 16], "gammas": [0.1, 1.0], "kimg": 0.16},
    "transfer": {"targets": [], "parent": None, "kimg": 0.16},
    "site": {"workers": 1},
}  # fmt: skip


def make_project(root: Path, **sections: dict[str, Any]) -> Path:
    """A directory with params.yaml, dvc.yaml and empty raw collections; `sections` change SMALL."""
    root.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for changes in (SMALL, sections):
        for section, values in changes.items():
            params[section] = {**params.get(section, {}), **values}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for name in ("dr_platform", "pipelines"):
        (root / name).symlink_to(ROOT / name)
    for visibility in ("public", "proprietary"):
        for stage in ("raw", "classes"):
            (root / "data" / stage / visibility).mkdir(parents=True)
    return root


def prepared_project(root: Path, **sections: dict[str, Any]) -> Path:
    """`make_project` with phantoms drawn and prepared."""
    make_project(root, **sections)
    project = road.Project(root, load_params(root))
    for visibility in ("public", "proprietary"):
        road.draw_phantoms(project, visibility, lambda done, total: None)
    road.prepare(project, lambda done, total: None)
    return root


def environment() -> dict[str, str]:
    """The tests' environment with this Python first on the path, one thread, and no site file."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("DRP_SITE", "RAY_ADDRESS")}
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DRP_KEY_FILE": str(KEY_FILE)}


def run(root: Path, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in the project to its end."""
    return subprocess.run(
        command, cwd=root, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def drp(root: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `drp` in the project to its end."""
    return run(root, sys.executable, "-m", "dr_platform.cli.main", *arguments, timeout=timeout)


def start(root: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command in the project, in a process group of its own; it hears Ctrl-C even where we do not."""
    return subprocess.Popen(
        command,
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Wait until `condition` holds; fail if the process ends or time runs out before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended before with {process.returncode}: {process.stdout.read()}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"nothing for {timeout} s")
        time.sleep(0.05)


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 1, and exactly one line of error with these words and no traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]
