"""What the kernel is tried on: every distinct layer of configurations T and R, at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One call of the filtered leaky ReLU. side: of the input, large enough to leave a few outputs."""

    up: int
    down: int
    pad: tuple[int, int]
    radial: bool
    side: int
    channels: int = 5  # no multiple of anything
    batch: int = 1
    clamp: float | None = 0.8  # reached by about one sample in three
    dtype: str = "float32"

    @property
    def name(self) -> str:
        shape = f"up{self.up}-down{self.down}-pad{self.pad[0]},{self.pad[1]}{'-radial' if self.radial else ''}"
        return f"{shape}-{self.dtype}{'' if self.clamp else '-unclamped'}"


# (up, down, padding, radial, side): all that occur with filters in the tables of T-256, T-512, R-256 and R-512.
LAYERS = [
    (2, 2, (9, 8), False, 10),
    (4, 2, (-6, -9), False, 14),
    (2, 2, (-11, -12), False, 27),
    (2, 2, (11, 10), True, 8),
    (4, 2, (-2, -5), True, 12),
    (2, 2, (11, 10), False, 8),
    (2, 2, (-9, -10), False, 25),
]
CASES = [Case(*layer, dtype=dtype) for layer in LAYERS for dtype in ("float32", "float16")]
CASES += [Case(*layer, dtype="bfloat16") for layer in (LAYERS[0], LAYERS[3])]
CASES += [Case(*LAYERS[0], clamp=None, batch=2, channels=18)]
BY_NAME = {case.name: case for case in CASES}


def child(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script beside this file, on one thread and with our modules on its path; interprets only if told to."""
    here = Path(__file__).parent
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(str(folder) for folder in (here.parents[2], here.parent))
    return subprocess.run(
        [sys.executable, str(here / script), *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )
