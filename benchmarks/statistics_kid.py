"""KID over all pairs with its jackknife interval, against 100 subsets of 1,000 images. From the root:

    OMP_NUM_THREADS=1 python benchmarks/statistics_kid.py    # writes benchmarks/results/statistics-kid.json

Features are random, float64 [n, 2048], 2,602 real ones by 1,301 patients; their decay over coordinates is that of
Inception's, roughly. Every measurement runs in a process of its own, whose peak memory holds the interpreter and both
samples. `plain` is the same computation as written down: whole rows, every pair twice, the cube by `**`.

The bound: (n² + m² + 2 n m) d flops, a multiplication and an addition for every pair once. `peak_share` is the part of
this machine's speed at a 1,024 x 1,024 x 2,048 float64 product that the whole computation reaches, interval included.
Times are the processor's, on one thread, so that what else runs counts for little.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform import files  # noqa: E402
from dr_platform.evaluation import features, kernel_distance  # noqa: E402

RESULT = ROOT / "benchmarks/results/statistics-kid.json"
WIDTH = 2048
REALS = 2602
SUBSETS, SUBSET_SIZE = 100, 1000


def sample(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rows = np.empty((n, WIDTH))
    np.random.default_rng(seed).standard_normal(out=rows)
    rows *= np.arange(1, WIDTH + 1) ** -0.5
    rows += 0.4 + shift
    return rows


def exact(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    estimate = kernel_distance.kid(real, fake, groups=np.arange(len(real)) // 2)
    return float(estimate), float(estimate.spread or 0.0)


def subsets(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    value, deviation = features.kernel_distance(real, fake, subsets=SUBSETS, subset_size=SUBSET_SIZE, seed=0)
    return value, deviation / math.sqrt(SUBSETS)


def plain(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    def rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.concatenate([((x[i : i + 512] @ y.T / WIDTH + 1) ** 3).sum(axis=1) for i in range(0, len(x), 512)])

    def within(x: np.ndarray) -> np.ndarray:
        return rows(x, x) - (np.einsum("ij,ij->i", x, x) / WIDTH + 1) ** 3

    n, m, r, f, c, d = len(real), len(fake), within(real), within(fake), rows(real, fake), rows(fake, real)
    value = r.sum() / (n * (n - 1)) + f.sum() / (m * (m - 1)) - 2 * c.sum() / (n * m)
    no_r = (r.sum() - 2 * r) / ((n - 1) * (n - 2)) - 2 * (c.sum() - c) / ((n - 1) * m)
    no_f = (f.sum() - 2 * f) / ((m - 1) * (m - 2)) - 2 * (c.sum() - d) / ((m - 1) * n)
    return float(value), math.sqrt(float(no_r.var() * (n - 1) + no_f.var() * (m - 1)))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "exact": exact,
    "subsets": subsets,
    "plain": plain,
}


def measure(method: str, fakes: int, queue: multiprocessing.Queue[dict[str, Any]]) -> None:
    real, fake = sample(REALS, 0), sample(fakes, 1, shift=0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    value, spread = METHODS[method](real, fake)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put(
        {
            "seconds": round(seconds, 2),
            "value": float(f"{value:.8g}"),
            "standard_error": float(f"{spread:.3g}"),
            "peak_mib": round(peak / 1024),
            "above_both_samples_mib": round((peak - before) / 1024),
        }
    )


def alone(method: str, fakes: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(method, fakes, queue))
    process.start()
    found = queue.get()
    process.join()
    return dict(found)


def product_gflops() -> float:
    x = sample(1024, 0)
    times = []
    for _ in range(10):
        started = time.process_time()
        x @ x.T
        times.append(time.process_time() - started)
    return 2 * 1024**2 * WIDTH / float(np.median(times)) / 1e9


def row(fakes: int, methods: list[str]) -> dict[str, Any]:
    found = {method: alone(method, fakes) for method in methods}
    flops, speed = (REALS**2 + fakes**2 + 2 * REALS * fakes) * WIDTH, product_gflops()
    result: dict[str, Any] = {"reals": REALS, "generated": fakes, "width": WIDTH} | found
    result["bound_gflop"] = round(flops / 1e9, 1)
    result["product_gflop_per_s"] = round(speed, 1)
    result["peak_share"] = round(flops / 1e9 / found["exact"]["seconds"] / speed, 2)
    for other in methods[1:]:
        result[f"{other}_over_exact_time"] = round(found[other]["seconds"] / found["exact"]["seconds"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, nargs="+", default=[2602, 5000, 50_000])
    arguments = parser.parse_args()
    rows = []
    for fakes in arguments.generated:
        rows.append(row(fakes, ["exact", "subsets", "plain"] if fakes <= 10_000 else ["exact", "subsets"]))
    result = {
        "environment": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        },
        "note": "subsets' standard error is what their choice adds to that of the images, which it does not tell",
        "rows": rows,
    }
    files.write_json(RESULT, result)
    print(RESULT)


if __name__ == "__main__":
    main()
