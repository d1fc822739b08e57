"""How long `dvc repro` takes that has nothing to do, with many images. Run from the project's root:

    python benchmarks/noop.py                   # 35,000 images, a quarter of an hour; writes results/noop.json
    python benchmarks/noop.py --images 1000     # fewer

In a directory that is gone afterwards: photographs of 48 pixels are drawn, ingested by `drp data ingest` and versioned,
the whole road runs once at 16 pixels, and then `dvc repro` runs five times more. What it costs is that DVC looks at
every file of the raw collection; the size of an image plays no part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/integration")]

from small_project import environment, make_project  # noqa: E402

RESULTS = ROOT / "benchmarks/results/noop.json"
SIDE = 48
REPEATS = 5


def photographs(folder: Path, count: int) -> None:
    """Discs of a colour and a texture of their own, each in a file, and their table."""
    folder.mkdir()
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc = (np.hypot(y, x) < 0.47 * SIDE)[..., None]
    rng = np.random.default_rng(0)
    rows = ["image_id,grade,patient_id"]
    for number in range(count):
        light = np.array([190, 110, 60]) * rng.uniform(0.8, 1.2) + rng.normal(0, 6, (SIDE, SIDE, 1))
        pixels = np.clip(light * disc, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number:05d}.png", compress_level=1)
        rows.append(f"p{number:05d},{number % 5},patient-{number // 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def run(root: Path, *command: str) -> tuple[float, str]:
    """Seconds that a command took, and what it said. Ends here if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start, done.stdout + done.stderr


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=35_000)
    count = parser.parse_args().images
    drp, dvc = (sys.executable, "-m", "dr_platform.cli.main"), (sys.executable, "-m", "dvc")
    with tempfile.TemporaryDirectory() as place:
        root = make_project(
            Path(place) / "project",
            phantom={"visibilities": []},
            prepare={"collections": ["many"], "quality": {"enabled": False}},
            train={"kimg": 0.016, "tick_kimg": 0.016},
        )
        photographs(Path(place) / "delivery", count)
        run(root, "git", "init", "-q")
        run(root, *drp, "init")
        delivery = str(Path(place) / "delivery")
        ingest, _ = run(root, *drp, "data", "ingest", delivery, "--name", "many", "--visibility", "public")
        print(f"ingested in {ingest:.0f} s", file=sys.stderr, flush=True)
        first, _ = run(root, *dvc, "repro")
        print(f"the road took {first:.0f} s", file=sys.stderr, flush=True)
        repeats = []
        for _ in range(REPEATS):
            seconds, said = run(root, *dvc, "repro")
            if "Running stage" in said:
                sys.exit(f"something ran: {said}")
            repeats.append(seconds)
            print(f"again: {seconds:.1f} s", file=sys.stderr, flush=True)
    document = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/noop.py --images {count}",
        "machine": f"{os.cpu_count()} cores",
        "images": count,
        "ingest_s": ingest,
        "first_repro_s": first,
        "noop_repro_s": {"median": float(np.median(repeats)), "all": repeats},
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
