"""How fast photographs get in: ingest and prepare against a plain Pillow loop. Run from the project's root:

    python benchmarks/intake.py                # 200 photographs of 3,500 x 2,300, minutes; writes results/intake.json
    python benchmarks/intake.py --images 80    # fewer; several processes start from 64 on

The plain loop does what a script would: open, turn upright, convert to RGB, save without metadata; then open again,
cut to the lit part, pad to a square, resize to 512 with Lanczos, save as PNG. It measures nothing, finds no copies,
checks no digest. Ours runs with as many processes as there are cores, the loop with one, as it would. Both take turns;
a ratio is the median of three pairs. Reading 512 px shards is compared with a folder of PNG files of the same images.
Memory is that of all our processes together, shared pages counted once (PSS), at its highest of ten looks a second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from dr_platform.config import PrepareConfig  # noqa: E402
from dr_platform.data import collections, pool  # noqa: E402
from dr_platform.data.fundus import standardise  # noqa: E402
from dr_platform.data.ingest import ingest  # noqa: E402
from dr_platform.data.phantom import phantom  # noqa: E402
from dr_platform.data.prepare import prepare  # noqa: E402

RESULTS = ROOT / "benchmarks/results/intake.json"
WIDTH, HEIGHT = 3500, 2300
RESOLUTION = 512
PAIRS = 3


def photographs(folder: Path, count: int) -> None:
    """Phantoms drawn at 575 px, enlarged to the size of a camera's picture with a camera's noise, as JPEG."""
    folder.mkdir(parents=True)
    for _ in pool.in_order(photograph, [(folder, number) for number in range(count)], pool.processes()):
        pass
    rows = ["image_id,grade,patient_id", *(f"p{number:05d},1,patient-{number}" for number in range(count))]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def photograph(task: tuple[Path, int]) -> None:
    """One of them."""
    folder, number = task
    rng = np.random.default_rng(number)
    disc = Image.fromarray(phantom(0, number, 575, grade=1).image).resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 3, (HEIGHT, HEIGHT, 1)).astype(np.float32)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    left = (WIDTH - HEIGHT) // 2
    picture[:, left : left + HEIGHT] = np.clip(np.asarray(disc) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / f"p{number:05d}.jpg", quality=92)


def plain(folder: Path, out: Path) -> None:
    """The plain Pillow loop."""
    (out / "raw").mkdir(parents=True)
    (out / "prepared").mkdir()
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(out / "raw" / path.name, quality=95, subsampling=0)
    for path in sorted((out / "raw").glob("*.jpg")):
        with Image.open(path) as image:
            cut = image.crop(image.convert("L").point(lambda value: 255 * (value > 12)).getbbox())
        side = max(cut.size)
        square = Image.new("RGB", (side, side))
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        small = square.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)
        small.save(out / "prepared" / f"{path.stem}.png")


def config() -> PrepareConfig:
    """Everything on: quality, writing, copies."""
    return PrepareConfig(
        collections=["camera"], visibility="all", grade=1, resolution=RESOLUTION, held_out=0.0, seed=0, shard_images=64
    )  # type: ignore[call-arg]


def ours(folder: Path, out: Path) -> None:
    """`drp data ingest` and the stage `prepare`, without DVC."""
    raw = out / "data" / "raw"
    ingest(folder, folder / "labels.csv", "camera", "public", raw, processes=pool.processes())
    prepare(raw, out / "data" / "prepared", config(), processes=pool.processes())


class Memory:
    """The most memory that this process and its children held together while the block ran, MiB."""

    def __enter__(self) -> Memory:
        self.peak = 0.0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            self.peak = max(self.peak, sum(proportional_mib(pid) for pid in ("self", *children)))


def proportional_mib(pid: str) -> float:
    """MiB that a process holds, pages that it shares counted by its part; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def timed(run: Callable[[], object]) -> float:
    """Seconds by the wall."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def psnr(folder: Path) -> list[float]:
    """dB of prepared images decoded at a fraction of their size against fully decoded ones, of some photographs."""
    found = []
    for path in sorted(folder.glob("*.jpg"))[:8]:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            whole = standardise(np.asarray(image.convert("RGB")), RESOLUTION)
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (2 * RESOLUTION, 2 * RESOLUTION))
            quick = standardise(np.asarray(image.convert("RGB")), RESOLUTION)
        error = np.mean((whole.astype(np.float64) - quick) ** 2)
        found.append(float(10 * np.log10(255**2 / error)))
    return found


def read_pngs(folder: Path) -> int:
    """Every PNG of a folder as an array; returns how many."""
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    return len(np.stack(images))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    arguments = parser.parse_args()
    count, pair_count = arguments.images, arguments.pairs
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "delivery"
        photographs(folder, count)
        pairs, peaks, memory = [], [], Memory()
        for _ in range(pair_count):
            for name in ("plain", "ours"):
                shutil.rmtree(Path(place) / name, ignore_errors=True)
            peer = timed(lambda: plain(folder, Path(place) / "plain"))
            with memory:
                mine = timed(lambda: ours(folder, Path(place) / "ours"))
            peaks.append(memory.peak)
            pairs.append((peer, mine))
            print(f"plain {peer:.1f} s, ours {mine:.1f} s, {peer / mine:.2f} x", file=sys.stderr, flush=True)
        from dr_platform.data.loader import load_images  # not before: it brings torch, which workers would load too

        prepared = Path(place) / "ours" / "data" / "prepared"
        taken = len(load_images(prepared, 1))
        pngs = Path(place) / "plain" / "prepared"
        readings = [(timed(lambda: read_pngs(pngs)), timed(lambda: load_images(prepared, 1))) for _ in range(5)]
        quality = psnr(folder)
        _, rows = collections.read_collection(Path(place) / "ours/data/raw/public/camera")
    document = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/intake.py --images {count} --pairs {pair_count}",
        "machine": f"{os.cpu_count()} cores",
        "processes": pool.processes(),
        "images": count,
        "ingested": len(rows),
        "prepared": taken,
        "pixels": f"{WIDTH} x {HEIGHT} to {RESOLUTION}",
        "intake_s": {"plain": [peer for peer, _ in pairs], "ours": [mine for _, mine in pairs]},
        "intake_ratio": float(np.median([peer / mine for peer, mine in pairs])),
        "peak_mib_together": max(peaks),
        "reading_images_per_s": {
            "png": taken / float(np.median([png for png, _ in readings])),
            "shards": taken / float(np.median([shard for _, shard in readings])),
        },
        "reading_ratio": float(np.median([png / shard for png, shard in readings])),
        "draft_psnr_db": {"least": min(quality), "median": float(np.median(quality)), "n": len(quality)},
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
