"""How a training speaks: once per tick in numbers, in between in progress. It never knows who listens.

Rank 0 writes into the run directory, which every worker sees: `ticks.jsonl` is the durable history, cut back to the
checkpoint a restart resumes from, so that no tick stands in it twice. Whoever drives the training follows that file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dr_platform import files
from dr_platform.pictures import Generated, sheet_png
from dr_platform.records import Tick

TICKS_FILE = "ticks.jsonl"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where a training is within a tick."""

    images_seen: int
    images_total: int
    images_per_second: float
    eta_seconds: float


class Reporter(Protocol):
    """What the loop tells the world; only rank 0 has one that listens."""

    def resume(self, images_seen: int) -> None:
        """Forget what was reported after `images_seen`: the training repeats it."""

    def progress(self, progress: Progress) -> None:
        """Tell how far the training is; cheap, and may be called every step."""

    def samples(self, name: str, images: Generated) -> str:
        """Keep a grid of generated images; returns its path relative to the run directory."""

    def tick(self, tick: Tick) -> None:
        """Report a tick."""


class SilentReporter:
    """Hears nothing: ranks other than 0, and tests."""

    def resume(self, images_seen: int) -> None:
        """Nothing to forget."""

    def progress(self, progress: Progress) -> None:
        """Not told on."""

    def samples(self, name: str, images: Generated) -> str:
        """Not kept."""
        return name

    def tick(self, tick: Tick) -> None:
        """Not told on."""


class DirectoryReporter:
    """Writes ticks, progress and sample grids into a run directory."""

    def __init__(self, run_directory: Path) -> None:
        self._root = run_directory
        self._ticks = run_directory / TICKS_FILE

    def resume(self, images_seen: int) -> None:
        """Cut the history back to the ticks of the checkpoint that the training resumes from."""
        kept = [tick for tick in read_ticks(self._root) if tick.images_seen <= images_seen]
        files.write_text(self._ticks, "".join(f"{tick.model_dump_json()}\n" for tick in kept))

    def progress(self, progress: Progress) -> None:
        """Replace `progress.json`; not synced to disk, since losing it loses nothing."""
        aside = self._root / f".{PROGRESS_FILE}.partial"
        aside.write_text(json.dumps(progress.__dict__), encoding="utf-8")
        os.replace(aside, self._root / PROGRESS_FILE)

    def samples(self, name: str, images: Generated) -> str:
        """Draw the grid into `samples/NAME`."""
        path = self._root / "samples" / name
        files.write_bytes(path, sheet_png(images, "everyone", said={"Run": self._root.name}))
        return path.relative_to(self._root).as_posix()

    def tick(self, tick: Tick) -> None:
        """Append one line to `ticks.jsonl` and wait until it is on disk."""
        with open(self._ticks, "a", encoding="utf-8") as stream:
            stream.write(f"{tick.model_dump_json()}\n")
            stream.flush()
            os.fsync(stream.fileno())


def read_ticks(run_directory: Path) -> Iterator[Tick]:
    """The ticks reported so far, oldest first. A last line cut short by a crash is left out."""
    path = run_directory / TICKS_FILE
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield Tick.model_validate_json(line)


def read_progress(run_directory: Path) -> Progress | None:
    """The last progress told, or None."""
    try:
        return Progress(**json.loads((run_directory / PROGRESS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
