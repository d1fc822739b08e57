"""What the lesion and anatomy measures are worth, on phantoms with known truth and on photographs. From the root:

    python benchmarks/lesions.py [--phantoms 100] [--seed 0]    # writes benchmarks/results/lesions.json and .png

The threshold of the microaneurysm count is the lowest score with at most one false positive per photograph on
calibration phantoms of grades 0 and 1; curves are of other phantoms. The dose series draws the same scenes with 0 to 4
times their microaneurysms and compares each set with one reference set of other eyes, by the count and by FID.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform import files  # noqa: E402
from dr_platform.data.fundus import standardise  # noqa: E402
from dr_platform.data.phantom import Phantom, phantom  # noqa: E402
from dr_platform.evaluation import features, lesions, metrics, vessels  # noqa: E402
from dr_platform.evaluation.anatomy import disc_and_macula, distance_between, field_of  # noqa: E402
from dr_platform.evaluation.estimate import Estimate  # noqa: E402
from dr_platform.evaluation.wnet import load_wnet  # noqa: E402

SHARED = ROOT / "../shared"
RESULT = ROOT / "benchmarks/results/lesions.json"
SIZE = 512
DOSES = (0.0, 0.5, 1.0, 2.0, 4.0)
BANDS_UM = (25, 45, 65, 85, 100)


def truth(p: Phantom) -> np.ndarray:
    rows = [(m.x_px, m.y_px, m.diameter_px) for m in p.lesions if m.kind == "microaneurysm"]
    return np.array(rows, np.float64).reshape(-1, 3)


def told(e: Estimate) -> dict[str, Any]:
    return {"value": round(float(e), 4), "se": e.spread and round(e.spread, 4), "low": e.low, "high": e.high}


def curve(found: list[lesions.Microaneurysms], phantoms: list[Phantom], seed: int) -> list[dict[str, Any]]:
    return [
        {"false positives per image": q.false_positives, "threshold": round(q.threshold, 3), "found": q.found,
         "lesions": q.lesions, "images": q.images, "sensitivity": told(q.sensitivity)}
        for q in lesions.froc(found, [truth(p) for p in phantoms], seed=seed)
    ]  # fmt: skip


def calibration(n: int, seed: int) -> dict[str, Any]:
    """Threshold on one set, curves on others; who the false ones are; sensitivity by diameter; coarser pictures."""
    fit = [phantom(seed + 100, i, SIZE, grade=i % 2) for i in range(n)]
    point = lesions.froc([lesions.microaneurysms(p.image) for p in fit], [truth(p) for p in fit], at=(1,), seed=seed)[0]
    result: dict[str, Any] = {"calibrated threshold": round(point.threshold, 2), "threshold in use": lesions.THRESHOLD}
    for name, size, grades in (
        ("grades 0 and 1", SIZE, (0, 1)),
        ("all grades as in a screening clinic", SIZE, None),
        ("grades 0 and 1 at 384", 384, (0, 1)),
    ):
        test = [phantom(seed + 200, i, size, grade=grades and grades[i % 2]) for i in range(n)]
        found = [lesions.microaneurysms(p.image) for p in test]
        result[name] = {"froc": curve(found, test, seed), **at_threshold(found, test)}
    return result


def at_threshold(found: list[lesions.Microaneurysms], phantoms: list[Phantom]) -> dict[str, Any]:
    """What is found with the threshold in use, by diameter, and what the false ones lie on."""
    hits, all_, false_on = np.zeros(4), np.zeros(4), Counter[str]()
    for result, p in zip(found, phantoms, strict=True):
        kept = [c for c in result.candidates or () if c.score >= lesions.THRESHOLD]
        for m in p.lesions:
            if m.kind == "microaneurysm":
                band = min(int(np.searchsorted(BANDS_UM, m.diameter_um, side="right")) - 1, 3)
                near = [c for c in kept if math.dist((c.x_px, c.y_px), (m.x_px, m.y_px)) <= m.diameter_px / 2 + 2]
                all_[band] += 1
                hits[band] += bool(near)
        for c in kept:
            on = [m.kind for m in sorted(p.lesions, key=lambda m: m.kind != "microaneurysm")
                  if math.dist((c.x_px, c.y_px), (m.x_px, m.y_px)) <= m.diameter_px / 2 + 2]  # fmt: skip
            false_on[on[0] if on else "none"] += 1
    bands = [f"{a}-{b} um" for a, b in itertools.pairwise(BANDS_UM)]
    return {
        "sensitivity by diameter": {b: [int(h), int(a)] for b, h, a in zip(bands, hits, all_, strict=True)},
        "candidates lie on": dict(false_on),
    }


def doses(n: int, seed: int) -> list[dict[str, Any]]:
    """The count and FID of sets that differ in nothing but their microaneurysms, against a reference set."""
    extractor = features.choose_extractor("small")

    def measured(first_seed: int, times: float) -> tuple[np.ndarray, np.ndarray, float]:
        images = [phantom(first_seed, i, SIZE, grade=1, microaneurysms=times) for i in range(n)]
        counts = [lesions.microaneurysms(p.image).count() for p in images]
        drawn = np.mean([len(truth(p)) for p in images])
        return features.extract(np.stack([p.image for p in images]), extractor), np.array(counts, float), float(drawn)

    real, real_counts, _ = measured(seed + 300, 1.0)
    rows = []
    for times in DOSES:
        fake, counts, drawn = measured(seed + 400, times)
        rows.append({
            "dose": times, "drawn per image": round(drawn, 3), "images": n,
            "counted per image": told(Estimate(counts.mean(), counts.std(ddof=1) / math.sqrt(n))),
            "w1 of counts": told(distance_between(real_counts, counts, kind="w1", seed=seed)),
            "ks of counts": told(distance_between(real_counts, counts, kind="ks", seed=seed)),
            "fid__drp-small-v1": told(metrics.fid(real, fake)),
        })  # fmt: skip
    return rows


def geometry(n: int, seed: int) -> dict[str, Any]:
    errors = []
    for i in range(n):
        p = phantom(seed + 500, i, 256)
        found = disc_and_macula(p.image)
        if found.disc_xy and found.macula_xy:
            pair = (math.dist(found.disc_xy, p.disc_xy), math.dist(found.macula_xy, p.macula_xy))
            errors.append([e / p.fov_radius for e in pair])
    quantiles = np.quantile(errors, (0.5, 0.9, 0.95, 1), axis=0).round(4)
    return {"images": n, "measured": len(errors), "unit": "radii of the field; the disc's radius is 0.14",
            "disc: median, 90, 95, 100 %": quantiles[:, 0].tolist(),
            "macula: median, 90, 95, 100 %": quantiles[:, 1].tolist()}  # fmt: skip


def photographs() -> dict[str, Any] | None:
    """The real photographs at hand, by set; none is graded lesion by lesion."""
    paths = sorted((SHARED / "data/fundus-mini").glob("images/[hi]*/*.jpg"))
    if not paths:
        return None
    network = load_wnet(SHARED / "weights/wnet_drive_vessels.safetensors")
    sets: dict[str, list[list[float]]] = {}
    for path in paths:
        image = standardise(np.asarray(Image.open(path).convert("RGB")), SIZE)
        fov = field_of(image)
        place = disc_and_macula(image, fov)
        both = [vessels.vessels(image, fov, net) for net in (network, None)]
        name = {"h": "HRF healthy", "dr": "HRF diabetic", "g": "HRF glaucoma"}.get(path.stem[3:], "IDRiD diabetic")
        counts = lesions.microaneurysms(image, fov).count()
        numbers = [counts, place.distance, place.angle_deg, both[0].share, both[1].share,
                   both[0].calibre_um and both[0].calibre_um[1], both[0].tortuosity,
                   both[0].fractal_dimension]  # fmt: skip
        sets.setdefault(name, []).append([math.nan if v is None else float(v) for v in numbers])
    names = ("microaneurysm count", "disc-macula distance, radii", "angle, degrees", "vessel share, W-Net",
             "vessel share, classical", "calibre, um", "tortuosity", "fractal dimension")  # fmt: skip
    return {
        group: {"images": len(rows)}
        | {name: [round(float(f(column)), 4) for f in (np.nanmean, np.nanmin, np.nanmax)]
           for name, column in zip(names, np.array(rows).T, strict=True)}
        for group, rows in sets.items()
    }  # fmt: skip


def speed(seed: int) -> dict[str, float]:
    """Photographs of 512 pixels per second of one core, the field being given."""
    images = [phantom(seed + 600, i, SIZE).image for i in range(5)]
    fields = [field_of(image) for image in images]
    network = load_wnet(SHARED / "weights/wnet_drive_vessels.safetensors") if SHARED.is_dir() else None
    jobs = {
        "field": lambda image, fov: field_of(image),
        "microaneurysms": lesions.microaneurysms,
        "vessels, classical": vessels.vessels,
        "vessels, W-Net": lambda image, fov: vessels.vessels(image, fov, network),
        "disc and macula": disc_and_macula,
    }
    result = {}
    for name, job in jobs.items():
        start = time.process_time()
        for image, fov in zip(images, fields, strict=True):
            job(image, fov)
        result[name] = round(len(images) / (time.process_time() - start), 1)
    return result


def plot(rows: list[dict[str, Any]], froc: list[dict[str, Any]]) -> bytes:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    dose = [r["dose"] for r in rows]
    # Each over the difference it shows between halves: both start where the sets have one dose.
    for key, label in (
        ("w1 of counts", "W1 of counts, in SD"),
        ("fid__drp-small-v1", "FID (drp-small-v1) over dose 1"),
    ):
        own = next(r[key]["value"] for r in rows if r["dose"] == 1)
        scale = own if key.startswith("fid") else 1.0
        left.plot(dose, [r[key]["value"] / scale for r in rows], "o-", label=label)
    counted = [r["counted per image"] for r in rows]
    left.errorbar(
        dose, [c["value"] for c in counted], [1.96 * c["se"] for c in counted], fmt="s-", label="count per image"
    )
    left.set(xlabel="dose of microaneurysms", title=f"{rows[0]['images']} phantoms against {rows[0]['images']} others")
    left.legend()
    x, s = [q["false positives per image"] for q in froc], [q["sensitivity"] for q in froc]
    right.semilogx(x, [v["value"] for v in s], "o-")
    right.fill_between(x, [v["low"] for v in s], [v["high"] for v in s], alpha=0.2)
    right.set(xlabel="false positives per photograph", ylabel="sensitivity", ylim=(0, 1), title="FROC, grades 0 and 1")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=100, help="in each set")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, seed = given.phantoms, given.seed
    result: dict[str, Any] = {"phantoms": n, "seed": seed, "size": SIZE, "python": platform.python_version()}
    result["images per second, one core"] = speed(seed)
    result["microaneurysms"] = calibration(n, seed)
    result["dose series"] = doses(n, seed)
    result["disc and macula of phantoms"] = geometry(n, seed)
    result["photographs: mean, least, largest"] = photographs()
    files.write_json(RESULT, result)
    files.write_bytes(
        RESULT.with_suffix(".png"), plot(result["dose series"], result["microaneurysms"]["grades 0 and 1"]["froc"])
    )


if __name__ == "__main__":
    main()
