"""Do 95 % intervals cover in 95 % of experiments, and do tests err at their rate? From the root:

    OMP_NUM_THREADS=1 python benchmarks/calibration.py    # writes benchmarks/results/calibration.json

Every experiment draws new data from Gaussians whose truth is known in closed form (CMMD's: from 20,000 images a side).
Where it says patients, each has one to three images that share 80 % of their variance, and n counts patients.
`low`, `high`: Wilson's 95 % interval of the rate found. `nominal`: what it should be. Rates of tests are at a true
hypothesis, or on the margin.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform import files  # noqa: E402
from dr_platform.evaluation import intervals, kernel_distance, memorisation, metrics, neighbours  # noqa: E402
from dr_platform.evaluation.estimate import Estimate  # noqa: E402

RESULT = ROOT / "benchmarks/results/calibration.json"
WIDTH = 8
SHIFT = 0.3  # of every coordinate of the generated sample

Experiment = Callable[[int, np.random.Generator], bool]


def images(n: int, rng: np.random.Generator, shift: float = 0.0, width: int = WIDTH) -> np.ndarray:
    return rng.normal(size=(n, width)) + shift


def patients(n: int, rng: np.random.Generator, shift: float = 0.0, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    groups = np.repeat(np.arange(n), rng.integers(1, 4, n))
    own = math.sqrt(0.8) * rng.normal(size=(n, width))[groups]
    return own + math.sqrt(0.2) * rng.normal(size=(len(groups), width)) + shift, groups


def kid_truth(width: int, shift: float) -> float:
    """E (x·y / d + 1)³ for independent Gaussians of unit covariance, from their first three moments."""
    identity = np.eye(width)

    def moments(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        third = np.einsum("i,j,k->ijk", mean, mean, mean)
        for which in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            third = third + np.einsum(which, mean, identity)
        return mean, identity + np.outer(mean, mean), third

    def kernel(x: tuple[np.ndarray, ...], y: tuple[np.ndarray, ...]) -> float:
        first, second, third = (
            float((a * b).sum()) / width ** (i + 1) for i, (a, b) in enumerate(zip(x, y, strict=True))
        )
        return third + 3 * second + 3 * first + 1

    real, fake = moments(np.zeros(width)), moments(np.full(width, shift))
    return kernel(real, real) + kernel(fake, fake) - 2 * kernel(real, fake)


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    moments = [m for x in (real, fake) for m in (x.mean(axis=0), np.cov(x, rowvar=False))]
    return metrics.frechet_distance(*moments)


def share_of(rows: np.ndarray, groups: np.ndarray) -> Estimate:
    return intervals.share(rows[:, 0] > 0.5, groups)


def mean_of(rows: np.ndarray, groups: np.ndarray) -> Estimate:
    return intervals.mean(rows[:, 0], groups)


def experiments() -> Iterator[tuple[str, str, float, list[int], int, Experiment]]:
    """Statistic, how its interval or test is had, nominal rate, sizes, repetitions at most, one experiment."""
    kid = kid_truth(WIDTH, SHIFT)
    rng = np.random.default_rng(99)
    cmmd = float(kernel_distance.cmmd(images(20_000, rng), images(20_000, rng, SHIFT)))
    auc = float(scipy.stats.norm.cdf(0.6 / math.sqrt(2)))
    above = float(scipy.stats.norm.sf(0.5))
    ones = np.arange

    yield (
        "KID",
        "jackknife",
        0.95,
        [50, 200, 1000],
        400,
        lambda n, g: holds(kernel_distance.kid(images(n, g), images(n, g, SHIFT)), kid),
    )

    def kid_patients(n: int, g: np.random.Generator, by_patient: bool = True) -> bool:
        real, groups = patients(n, g)
        return holds(kernel_distance.kid(real, images(4 * n, g, SHIFT), groups=groups if by_patient else None), kid)

    yield "KID of patients", "jackknife over patients", 0.95, [50, 200], 400, kid_patients
    yield (
        "KID of patients",
        "jackknife over images (wrong)",
        0.95,
        [50, 200],
        400,
        lambda n, g: kid_patients(n, g, False),
    )
    yield (
        "CMMD",
        "jackknife",
        0.95,
        [50, 200, 1000],
        200,
        lambda n, g: holds(kernel_distance.cmmd(images(n, g), images(n, g, SHIFT)), cmmd),
    )
    yield (
        "MIND",
        "influence function, bias left",
        0.95,
        [200, 1000],
        200,
        lambda n, g: holds(
            kernel_distance.mind(images(n, g), images(n, g, SHIFT), projections=100, seed=int(g.integers(1 << 30))),
            3 * WIDTH * SHIFT**2,
        ),
    )

    def fd(n: int, g: np.random.Generator, remove_bias: bool) -> bool:
        real, fake = images(n, g), images(n, g, SHIFT)

        def value(r: np.ndarray, f: np.ndarray) -> float:
            return frechet(real[r], fake[f])

        found = intervals.subsample(value, ones(n), ones(n), seed=n, repeats=100, remove_bias=remove_bias)
        return holds(found, WIDTH * SHIFT**2)

    yield "Fréchet distance", "100 half-samples, bias removed", 0.95, [100, 400, 1000], 300, lambda n, g: fd(n, g, True)
    yield "Fréchet distance", "100 half-samples, bias left", 0.95, [100, 400, 1000], 300, lambda n, g: fd(n, g, False)
    yield (
        "density",
        "standard error over both",
        0.95,
        [100, 400],
        200,
        lambda n, g: holds(neighbours.density_coverage(images(n, g), images(n, g))[0], 1.0),
    )
    yield (
        "coverage",
        "Wilson",
        0.95,
        [100, 400, 1000],
        200,
        lambda n, g: holds(
            neighbours.density_coverage(images(n, g), images(n, g))[1], neighbours.expected_coverage(n, n, 5)
        ),
    )
    yield (
        "share of patients",
        "Wilson over patients",
        0.95,
        [50, 200, 1000],
        1000,
        lambda n, g: holds(share_of(*patients(n, g)), above),
    )
    yield (
        "mean of patients",
        "Student over patients",
        0.95,
        [20, 200],
        1000,
        lambda n, g: holds(mean_of(*patients(n, g)), 0.0),
    )

    def auc_patients(n: int, g: np.random.Generator) -> bool:
        (high, of_high), (low, of_low) = patients(n, g, 0.6, 1), patients(n, g, 0.0, 1)
        return holds(intervals.auc(high[:, 0], low[:, 0], of_high, of_low), auc)

    yield "AUC of patients", "DeLong over patients", 0.95, [30, 100, 300], 1000, auc_patients
    yield (
        "mean over training seeds",
        "Student over seeds",
        0.95,
        [3, 5],
        2000,
        lambda n, g: holds(
            intervals.seed_spread((g.normal(size=(n, 1)) + 0.5 * g.normal(size=(n, 2))).tolist()).mean, 0.0
        ),
    )

    def kid_pairs(n: int, g: np.random.Generator) -> bool:
        noise = images(n, g)
        a, b = (noise + 0.5 * images(n, g) for _ in range(2))
        return kernel_distance.kid_difference(images(n, g), a, b, seed=n, repeats=199).p <= 0.05

    yield "KID of two equal generators", "permutation of pairs, p ≤ 0.05", 0.05, [50, 200], 400, kid_pairs
    yield (
        "equivalence on the margin",
        "two one-sided tests, p < 0.05",
        0.05,
        [100],
        2000,
        lambda n, g: intervals.equivalence(intervals.mean(g.normal(size=n) + 0.5), 0.5).shown,
    )

    def ct(n: int, g: np.random.Generator) -> bool:
        return neighbours.copying(images(2 * n, g), images(n, g), images(n, g), seed=n).p <= 0.05

    yield "C_T without copying", "Mann-Whitney, p ≤ 0.05", 0.05, [100, 400], 300, ct

    def space(n: int, g: np.random.Generator) -> memorisation.Space:
        (train, of_train), (out, of_out) = patients(3 * n, g), patients(n, g)
        return memorisation.Space("gaussian", train, out, images(100, g), of_train, of_out)

    yield (
        "distance ratio without memory",
        "exchange of patients, p ≤ 0.05",
        0.05,
        [30, 100],
        200,
        lambda n, g: memorisation.distance_ratio(space(n, g), seed=n, exchanges=99).p <= 0.05,
    )
    yield (
        "membership without memory",
        "DeLong over patients, p ≤ 0.05",
        0.05,
        [30, 100],
        200,
        lambda n, g: memorisation.membership(space(n, g), seed=n, splits=20).p <= 0.05,
    )


def table(seed: int, share: float, only: str) -> list[dict[str, Any]]:
    rows = []
    for number, (statistic, how, nominal, sizes, most, experiment) in enumerate(experiments()):
        if only not in statistic:
            continue
        for n in sizes:
            repeats, started = max(2, round(most * share)), time.perf_counter()
            flags = [experiment(n, np.random.default_rng([seed, number, n, i])) for i in range(repeats)]
            rate = intervals.share(np.array(flags))
            rows.append(
                {
                    "statistic": statistic,
                    "how": how,
                    "n": n,
                    "nominal": nominal,
                    "rate": round(float(rate), 4),
                    "low": round(rate.low or 0.0, 4),
                    "high": round(1.0 if rate.high is None else rate.high, 4),
                    "repetitions": repeats,
                    "seconds": round(time.perf_counter() - started, 1),
                }
            )
            print("{statistic}, {how}, n = {n}: {rate} for {nominal} in {seconds} s".format(**rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the repetitions")
    parser.add_argument("--only", default="", help="statistics whose name holds this; the others' rows are kept")
    arguments = parser.parse_args()
    rows = table(arguments.seed, arguments.share, arguments.only)
    if arguments.only:
        rows = [row for row in json.loads(RESULT.read_text())["rows"] if arguments.only not in row["statistic"]] + rows
    result = {
        "environment": {"python": platform.python_version(), "numpy": np.__version__},
        "command": f"python benchmarks/calibration.py --seed {arguments.seed} --share {arguments.share:g}",
        "rows": rows,
    }
    files.write_json(RESULT, result)
    print(RESULT)


if __name__ == "__main__":
    main()
