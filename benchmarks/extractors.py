"""How fast extractors are on one CPU thread, and whether their distances order damage. Run from the project's root:

    python benchmarks/extractors.py    # 3 minutes; writes benchmarks/results/extractors.json

Needs ../shared: MobileNetV2's weights, and photographs. A distance stands for one half of the photographs against the
damaged other half, mean and standard deviation over random halvings; it is comparable only along its own row.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform.evaluation.features import FeatureExtractor, choose_extractor, extract  # noqa: E402

SHARED = ROOT / "../shared"
PHOTOGRAPHS = SHARED / "data" / "fundus-mini" / "images"
RESULT = ROOT / "benchmarks" / "results" / "extractors.json"
SEED, SPLITS, REPEATS = 0, 10, 7
# name: folders, how many (None: all), side to which they are brought first, blur in pixels of that side
SETS = {
    "HRF and IDRiD, 224 px": (("hrf", "idrid"), None, 224, (1, 2, 4, 8)),
    "RetinaMNIST, 28 px as 64 px": (("retinamnist28",), 536, 64, (0.7, 1.4, 2.8)),
}
NOISE = (5, 15, 40)  # standard deviation, grey levels


def main() -> None:
    torch.set_num_threads(1)
    extractors = {name: choose_extractor(name, weights_dir=SHARED / "weights") for name in ("mobilenet-v2", "small")}
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seed": SEED,
        "images_per_cpu_second": speeds(extractors),
        "distances": {name: distances(name, extractors) for name in SETS},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def speeds(extractors: dict[str, FeatureExtractor]) -> dict[str, dict[str, float | int]]:
    """Images per second of processor time on one thread, batch 32; the extractors take turns."""
    rng = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {}
    for repeat in range(REPEATS + 1):
        for side in (224, 512):
            images = rng.integers(0, 256, (32, side, side, 3), dtype=np.uint8)
            for name, extractor in extractors.items():
                start = time.process_time()
                extract(images, extractor)
                if repeat:  # the first warms up
                    found.setdefault(f"{name}, {side} px", []).append(len(images) / (time.process_time() - start))
    return {
        name: {"median": round(float(np.median(v)), 1), "low": round(min(v), 1), "high": round(max(v), 1), "n": len(v)}
        for name, v in found.items()
    }


def distances(name: str, extractors: dict[str, FeatureExtractor]) -> dict[str, dict[str, str]]:
    """Per extractor and damage: mean and standard deviation over halvings."""
    folders, count, side, blurs = SETS[name]
    paths = [path for folder in folders for path in sorted((PHOTOGRAPHS / folder).iterdir())]
    rng = np.random.default_rng(SEED)
    chosen = [paths[index] for index in sorted(rng.permutation(len(paths))[:count])]
    clean = np.stack(
        [np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for path in chosen]
    ).astype(float)
    noise = rng.normal(size=clean.shape)
    damaged = {"clean": clean}
    damaged.update({f"blur {sigma}": gaussian_filter(clean, (0, sigma, sigma, 0)) for sigma in blurs})
    damaged.update({f"noise {deviation}": clean + deviation * noise for deviation in NOISE})
    half = len(clean) // 2
    splits = [rng.permutation(len(clean)) for _ in range(SPLITS)]
    table: dict[str, dict[str, str]] = {}
    for label, extractor in extractors.items():
        rows = {
            kind: extract(np.clip(np.round(pictures), 0, 255).astype(np.uint8), extractor)
            for kind, pictures in damaged.items()
        }
        row = table.setdefault(f"{label}, n {half} against {half}, {SPLITS} halvings", {})
        for kind, features in rows.items():
            values = [frechet(rows["clean"][order[:half]], features[order[half : 2 * half]]) for order in splits]
            row[kind] = f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}"
    return table


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """The Fréchet distance in float64. With X = C_r^½, Y = C_f^½ as centred rows, tr (C_r C_f)^½ = |X Yᵀ| (nuclear)."""
    (mean_r, mean_f), scaled = (real.mean(axis=0), fake.mean(axis=0)), []
    for rows, mean in ((real, mean_r), (fake, mean_f)):
        scaled.append((rows - mean) / np.sqrt(len(rows) - 1))
    shared = np.linalg.svd(scaled[0] @ scaled[1].T, compute_uv=False).sum()
    return float(((mean_r - mean_f) ** 2).sum() + sum((part**2).sum() for part in scaled) - 2 * shared)


if __name__ == "__main__":
    main()
