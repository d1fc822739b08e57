"""How fast and how true the Fréchet distance, its bootstrap and its intervals are. Run from the project's root:

    python benchmarks/statistics_fid.py                    # writes benchmarks/results/statistics-fid.json
    python benchmarks/statistics_fid.py --generated 50000  # the protocols as published; 6 GB of memory
    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/statistics_fid.py --cpu-time  # where others compute too

Features are Gaussian with variances ∝ 1 / i and trace 60, each row stretched by a log-normal factor of 20 %: 2,602 of
2,048 numbers, as one medical collection has them. Both ways of every comparison run in turn in one process, and their
results are compared before a time counts. The peers are scipy.linalg.sqrtm on the product of two numpy covariances, and
torch-fidelity's function, whose heart is numpy.linalg.eigvals of that product; they start from features, as ours does.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform import files  # noqa: E402
from dr_platform.evaluation import features, frechet, protocols  # noqa: E402

RESULT = ROOT / "benchmarks/results/statistics-fid.json"
IMAGES, WIDTH, TRACE = 2602, 2048, 60.0
PROC_STAT = Path("/proc/stat")
CPU_TIME = "--cpu-time" in sys.argv
QUIET = 0.15  # cores that others may keep busy during a time that counts

Array = np.ndarray


def deviations() -> Array:
    variances = 1 / np.arange(1, WIDTH + 1)
    return np.sqrt(variances * TRACE / variances.sum())


def real_like(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, WIDTH)) * deviations() * np.exp(0.2 * rng.normal(size=(count, 1)))


def generated_like(count: int, seed: int) -> Array:
    """As the reals, with every direction wider or narrower by up to 30 %, and moved a little."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, WIDTH)) * deviations() * (1 + 0.3 * np.cos(np.arange(WIDTH))) + 0.02


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds by the clock (of the processor, with --cpu-time), and how many cores others kept busy meanwhile."""

    seconds: float
    others: float

    @property
    def quiet(self) -> bool:
        return CPU_TIME or self.others < QUIET


def timed(function: Callable[[], Any], patience: float = 20) -> tuple[Timing, Any]:
    """Call after waiting up to `patience` seconds for a moment in which nobody else computes."""
    until = time.perf_counter() + patience
    while not CPU_TIME and time.perf_counter() < until:
        before = busy()
        time.sleep(0.25)
        if busy() - before < 0.25 * QUIET:
            break
    start, others, own = time.perf_counter(), busy(), time.process_time()
    result = function()
    taken = time.perf_counter() - start
    others, own = busy() - others, time.process_time() - own
    return Timing(own if CPU_TIME else taken, max(0.0, others - own) / taken), result


def busy() -> float:
    """Core-seconds that all processes have used since the machine started."""
    user, nice, system, _, _, irq, soft, steal = (int(word) for word in PROC_STAT.read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def by_matrix_root(real: Array, fake: Array) -> float:
    """The definition with scipy.linalg.sqrtm."""
    (mean_r, cov_r), (mean_f, cov_f) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real, fake))
    cross = scipy.linalg.sqrtm(cov_r @ cov_f).real
    return float((mean_r - mean_f) @ (mean_r - mean_f) + np.trace(cov_r) + np.trace(cov_f) - 2 * np.trace(cross))


def one_distance(real: Array, fake: Array, pairs: int) -> dict[str, Any]:
    """Seconds of each way, in turn, until each has `pairs` quiet ones; the first turn warms up and is not counted.

    Under load from others a threaded factorisation waits for its slowest core at every column and takes up to twenty
    times longer, so such times say nothing of the code; where too few were quiet, the quickest stand for them.
    """
    known = frechet.reference(real)
    covariances = [np.cov(x, rowvar=False) for x in (real, fake)]
    ways: dict[str, Callable[[], Any]] = {
        "ours_cached_reals": lambda: frechet.distance(known, fake),
        "scipy_sqrtm": lambda: by_matrix_root(real, fake),
        "ours": lambda: frechet.distance(frechet.reference(real), fake),
        "torch_fidelity": lambda: features.frechet_distance(real, fake),
        "scipy_sqrtm_alone": lambda: scipy.linalg.sqrtm(covariances[0] @ covariances[1]),
        "ours_with_standard_error": lambda: frechet.fid(known, fake),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    for turn in range(3 * pairs + 1):
        for name, way in ways.items():
            if sum(timing.quiet for timing in timings[name]) >= pairs or (not turn and name.startswith("scipy")):
                continue  # half a minute each: their warm-up is the others'
            taken, value = timed(way)
            if name != "scipy_sqrtm_alone":
                values[name] = float(value)
            if turn:
                timings[name].append(taken)
    kept = {name: quickest(found, pairs) for name, found in timings.items()}
    truth = values["scipy_sqrtm"]
    relative = {name: abs(value / truth - 1) for name, value in values.items() if name != "scipy_sqrtm"}
    if max(relative.values()) > 1e-6:
        sys.exit(f"the values differ, so no time counts: {relative}")
    return {
        "pairs": pairs,
        "value": truth,
        "relative_difference_from_sqrtm": relative,
        "quiet_times": {name: sum(timing.quiet for timing in found) for name, found in timings.items()},
        "all_times_s": {name: [round(t.seconds, 3) for t in found] for name, found in timings.items()},
        "median_s": {name: round(float(np.median(found)), 3) for name, found in kept.items()},
        "ratios": {
            f"{peer} / {ours}": round(float(np.median(kept[peer]) / np.median(kept[ours])), 1)
            for peer in ("scipy_sqrtm", "scipy_sqrtm_alone", "torch_fidelity")
            for ours in ("ours_cached_reals", "ours")
        },
    }


def quickest(found: list[Timing], count: int) -> list[float]:
    """The quiet times; where there are fewer than two, the quickest of all."""
    quiet = [timing.seconds for timing in found if timing.quiet]
    return quiet if len(quiet) > 1 else sorted(timing.seconds for timing in found)[: max(2, count // 2)]


def thousand_resamples(
    real: Array, fake: Array, repetitions: int, peer_calls: int, runs: int, verified: int
) -> dict[str, Any]:
    """Protocol A: the fakes fixed, the reals drawn with replacement; the peer's calls before, between and after."""
    rng, known = np.random.default_rng(1), frechet.reference(fake)
    mean_f, cov_f = fake.mean(axis=0), np.cov(fake, rowvar=False)
    drawn = np.stack([np.bincount(row, minlength=len(real)) for row in resamples(rng, len(real), repetitions)])

    def eigenvalues(index: int) -> float:
        sample = np.repeat(real, drawn[index], axis=0)
        cov, shift = np.cov(sample, rowvar=False), sample.mean(axis=0) - mean_f
        cross = np.sqrt(np.linalg.eigvals(cov @ cov_f).astype(complex)).real.sum()
        return float(shift @ shift + np.trace(cov) + np.trace(cov_f) - 2 * cross)

    peer_s, peer_values, ours_s = [], [], []
    for index in range(peer_calls):
        taken, value = timed(lambda index=index: eigenvalues(index))
        peer_s.append(taken)
        peer_values.append(value)
        if index < runs:
            taken, ours = timed(lambda: frechet.bootstrap(known, real, repetitions=repetitions, seed=1))
            ours_s.append(taken)
    picked = np.random.default_rng(2).choice(repetitions - ours.checked, verified, replace=False)
    exact_s, exact = timed(lambda: np.array([frechet.distance(known, real, drawn[index]) for index in picked]))
    off = ours.values[picked] - exact
    return {
        "repetitions": repetitions,
        "peer": f"numpy.linalg.eigvals of the product, fakes' covariance kept, {peer_calls} calls scaled",
        "peer_s_per_call": [dataclasses.asdict(taken) for taken in peer_s],
        "ours_s": [dataclasses.asdict(taken) for taken in ours_s],
        "ours_exact_s_per_resample": exact_s.seconds / verified,
        "ratio": round(min(t.seconds for t in peer_s) * repetitions / min(t.seconds for t in ours_s), 1),
        "ratio_exact": round(min(t.seconds for t in peer_s) / (exact_s.seconds / verified), 1),
        "peer_and_exact_differ_relatively": max(
            abs(frechet.distance(known, real, drawn[index]) / value - 1) for index, value in enumerate(peer_values)
        ),
        "value": frechet.distance(known, real),
        "mean": float(ours.values.mean()),
        "sd": math.hypot(float(ours.values.std(ddof=1)), ours.error),
        "stated_error": ours.error,
        "stated_largest_of": [ours.largest_error, ours.checked],
        "verified_error": float(np.sqrt((off**2).mean())),
        "verified_largest_of": [float(abs(off).max()), verified],
        "verified_relative_error": float(np.sqrt((off**2).mean()) / exact.mean()),
        "verified_largest_relative_error": float(abs(off / exact).max()),
        "verified_error_over_sd": float(np.sqrt((off**2).mean()) / exact.std(ddof=1)),
        "mean_of_verified": {"ours": float(ours.values[picked].mean()), "exact": float(exact.mean())},
    }


def resamples(rng: np.random.Generator, count: int, repetitions: int) -> list[Array]:
    return [rng.integers(0, count, count) for _ in range(repetitions)]


def coverage(trials: int) -> list[dict[str, Any]]:
    """How often 95 % intervals hold the truth: the expectation at these sizes, or the distance of distributions."""
    rows = []
    for n, m, d, per_patient in ((400, 600, 16, 1), (600, 600, 64, 1), (400, 600, 16, 4)):
        spread_by: dict[str, list[tuple[float, float, float]]] = {"influence": [], "subsamples": [], "infinity": []}
        for trial in range(trials):
            real, fake, groups = planted(n, m, d, per_patient, trial)
            influence = frechet.fid(real, fake, groups=groups)
            spread_by["influence"].append((influence.value, influence.low, influence.high))
            if trial < trials // 5:
                few = frechet.subsampled_interval(real, fake, groups=groups, repetitions=100, seed=trial)
                spread_by["subsamples"].append((few.value, few.low, few.high))
                beyond = frechet.fd_infinity(real, fake, groups=groups, seed=trial)
                spread_by["infinity"].append((beyond.value, beyond.low, beyond.high))
        expected = float(np.mean([value for value, _, _ in spread_by["influence"]]))
        for name, found in spread_by.items():
            truth = d * 0.2**2 if name == "infinity" else expected
            inside = float(np.mean([low <= truth <= high for _, low, high in found]))
            rows.append(
                {
                    "interval": name,
                    "real": n,
                    "generated": m,
                    "features": d,
                    "images_per_patient": per_patient,
                    "trials": len(found),
                    "truth": truth,
                    "mean": float(np.mean([value for value, _, _ in found])),
                    "coverage": inside,
                    "coverage_error": math.sqrt(max(inside * (1 - inside), 0.0475) / len(found)),
                }
            )
    return rows


def planted(n: int, m: int, d: int, per_patient: int, seed: int) -> tuple[Array, Array, Array]:
    """Standard normal features moved by 0.2; where a patient has several images they share 0.8 of their variance."""
    rng, groups = np.random.default_rng((seed, d, per_patient)), np.repeat(np.arange(n // per_patient), per_patient)
    shared = 0.8 if per_patient > 1 else 0.0
    real = math.sqrt(shared) * rng.normal(size=(len(groups), d))[groups]
    real += math.sqrt(1 - shared) * rng.normal(size=(n, d))
    return real, rng.normal(size=(m, d)) + 0.2, groups


def every_protocol(real: Array, generated: int) -> dict[str, Any]:
    fake = generated_like(generated, seed=7)
    taken, results = timed(lambda: protocols.replicate(tuple(protocols.PROTOCOLS), real, fake))
    corrected = protocols.bias_corrected(results[0])
    return {
        "seconds": round(taken.seconds, 1),
        "results": [dataclasses.asdict(result) | {"shift": result.shift} for result in results],
        "matches": [dataclasses.asdict(match) for match in protocols.best_match(results)],
        "bias_corrected_by_A": [corrected.value, corrected.low, corrected.high],
        "distance_of_distributions": distance_of_distributions(),
    }


def distance_of_distributions() -> float:
    """Of the planted Gaussians: their axes are common. A log-normal factor e^{0.2 z} has mean square e^{0.08}."""
    wide = deviations() * (1 + 0.3 * np.cos(np.arange(WIDTH)))
    return float(((deviations() * math.exp(0.04) - wide) ** 2).sum() + WIDTH * 0.02**2)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--peer-calls", type=int, default=3)
    parser.add_argument("--verified", type=int, default=40)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--cpu-time", action="store_true", help="time by the processor; set one thread")
    parser.add_argument("--resamplings", type=int, default=2, help="runs of our bootstrap between the peer's calls")
    parser.add_argument("--generated", type=int, default=0, help="run the protocols with so many generated images")
    options = parser.parse_args()
    conditions = {
        "command": f"python benchmarks/statistics_fid.py {' '.join(sys.argv[1:])}".strip(),
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)),
        "clock": "processor" if CPU_TIME else "wall",
        "shared_machine": "other work ran on these cores; `others` is how many of them it kept busy during a time",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "images": IMAGES,
        "features": WIDTH,
    }
    real, fake = real_like(IMAGES, seed=0), generated_like(IMAGES, seed=1)
    parts: dict[str, Callable[[], Any]] = {
        "one_distance": lambda: one_distance(real, fake, options.pairs),
        "bootstrap": lambda: thousand_resamples(
            real, fake, options.repetitions, options.peer_calls, options.resamplings, options.verified
        ),
        "coverage": lambda: coverage(options.trials),
    }
    if options.generated:
        parts["protocols"] = lambda: every_protocol(real, options.generated)
    result: dict[str, Any] = {}
    for name, part in parts.items():
        load = os.getloadavg()[0]
        found = part()
        result[name] = {"load_before": round(load, 2), "load_after": round(os.getloadavg()[0], 2), "found": found}
        files.write_json(RESULT, conditions | result)  # what is measured is kept if the rest is interrupted


if __name__ == "__main__":
    main()
