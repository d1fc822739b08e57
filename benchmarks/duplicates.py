"""How well near-duplicates are found: planted copies, second photographs of one eye, and strangers. From the root:

    python benchmarks/duplicates.py [--phantoms 100] [--seed 0]    # writes benchmarks/results/duplicates.json

Sources are the real photographs of 512 pixels in ../shared/data/fundus-mini and phantoms of 256 and 512. Of each source
one copy of every kind is planted. The threshold is chosen on one half of the sources (whole patients) and everything
reported is of the other half. Beside it, on the same pictures: a 16 x 16 difference hash at 6 bits of 256.

A second photograph of the same eye is the retina of a source seen through a smaller field, twice: moved by 4-20 % of
the radius, turned by up to 3 degrees, relit, with noise of its own and its own JPEG. It is not a copy.
"""

from __future__ import annotations

import argparse
import io
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dr_platform import files  # noqa: E402
from dr_platform.data import duplicates  # noqa: E402
from dr_platform.data.fundus import find_field_of_view  # noqa: E402
from dr_platform.data.phantom import phantom  # noqa: E402

PHOTOGRAPHS = ROOT / "../shared/data/fundus-mini"
RESULT = ROOT / "benchmarks/results/duplicates.json"
DHASH_BITS = 6

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A picture that copies are made of."""

    name: str
    real: bool
    patient: str
    pixels: Pixels


# ---- what is done to a picture -------------------------------------------------------------------------------------


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def scaled(pixels: Pixels, factor: float) -> Pixels:
    size = tuple(max(16, round(factor * n)) for n in pixels.shape[1::-1])
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def cropped(pixels: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """Without up to `share` of its width and height, taken off either side."""
    height, width = pixels.shape[:2]
    (top, bottom), (left, right) = ((rng.dirichlet((1, 1)) * share * n).astype(int) for n in (height, width))
    return pixels[top : height - bottom, left : width - right]


def recoloured(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    gamma, gain = rng.uniform(0.75, 1.33), rng.uniform(0.8, 1.2, 3)
    return np.clip(255 * (pixels / 255) ** gamma * gain, 0, 255).round().astype(np.uint8)


def relit(pixels: Pixels, factor: float) -> Pixels:
    return np.clip(pixels * factor, 0, 255).round().astype(np.uint8)


def everything(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    picture = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    picture = recoloured(cropped(picture, rng, 0.05), rng)
    return jpeg(scaled(picture, rng.uniform(0.5, 1.5)), 60)


KINDS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "JPEG 30": lambda p, rng: jpeg(p, 30),
    "resized x0.25": lambda p, rng: scaled(p, 0.25),
    "resized x0.5": lambda p, rng: scaled(p, 0.5),
    "resized x2": lambda p, rng: scaled(p, 2),
    "border cropped by 5 %": lambda p, rng: cropped(p, rng, 0.05),
    "border cropped by 10 %": lambda p, rng: cropped(p, rng, 0.10),
    "mirrored": lambda p, rng: p[:, ::-1],
    "turned by 180 degrees": lambda p, rng: p[::-1, ::-1],
    "colours shifted": recoloured,
    "brightness x0.6-1.3": lambda p, rng: relit(p, rng.uniform(0.6, 1.3)),
    "crop 5 %, colours, size, JPEG 60, mirrored or not": everything,
}


def second_photographs(pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Two exposures of one retina: a smaller field cut from the picture at two places, 4-20 % of its radius apart."""
    fov = find_field_of_view(pixels)
    radius = 0.8 * fov.radius
    room, angle = rng.uniform(0.04, 0.20) * radius / 2, rng.uniform(0, 2 * math.pi)
    step = room * np.array((math.cos(angle), math.sin(angle)))
    return tuple(_exposure(pixels, fov.cx + s * step[0], fov.cy + s * step[1], radius, rng) for s in (-1, 1))  # type: ignore[return-value]


def _exposure(pixels: Pixels, cx: float, cy: float, radius: float, rng: np.random.Generator) -> Pixels:
    side = 2 * round(1.04 * radius)
    turn, zoom = math.radians(rng.uniform(-1.5, 1.5)), rng.uniform(0.99, 1.01)
    c, s, half = zoom * math.cos(turn), zoom * math.sin(turn), side / 2
    matrix = (c, -s, cx + 0.5 - (c - s) * half, s, c, cy + 0.5 - (s + c) * half)
    retina = Image.fromarray(pixels).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    line = (np.arange(side) + 0.5 - half) / radius
    y, x = line[:, None], line[None, :]
    light = 1 + rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.15, 0.15) * y
    light = light * rng.uniform(0.85, 1.15) * np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1)
    noisy = np.asarray(retina) * light[..., None] + rng.normal(0, 1.5, (side, side, 3))
    return jpeg(np.clip(noisy, 0, 255).round().astype(np.uint8), 92)


# ---- the hash to compare with --------------------------------------------------------------------------------------


def dhash(pixels: Pixels) -> NDArray[np.uint8]:
    """32 bytes: whether grey rises from each of 16 x 17 samples to the next along its row."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((17, 16), Image.Resampling.LANCZOS)).astype(int)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def dhash_pairs(hashes: NDArray[np.uint8], bits: int) -> set[tuple[int, int]]:
    ones = np.unpackbits(hashes, axis=1).astype(np.float32)
    distance = ones.sum(axis=1)[:, None] + ones.sum(axis=1)[None] - 2 * ones @ ones.T
    rows, columns = np.nonzero(np.triu(distance <= bits, 1))
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


# ---- counting ------------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson 1927)."""
    if n == 0:
        return {"hits": 0, "n": 0}
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    share, low, high = (float(f"{v:.3g}") for v in (p, low if hits else 0.0, high if hits < n else 1.0))
    return {"hits": hits, "n": n, "share": share, "low": low, "high": high}


def load_sources(phantoms: int, seed: int) -> list[Source]:
    found = sorted((PHOTOGRAPHS / "images").glob("[hi]*/*.jpg"))
    sources = [Source(f.stem, True, f.stem, np.asarray(Image.open(f).convert("RGB"))) for f in found]
    for index in range(phantoms):
        p = phantom(seed, index, 256 if index % 10 < 5 else 512)
        sources.append(Source(f"phantom {index}", False, p.patient, p.image))
    return sources


def in_first_half(sources: list[Source]) -> NDArray[np.bool_]:
    """Whole patients alternate between the halves."""
    patients = list(dict.fromkeys(s.patient for s in sources))
    order = {patient: n for n, patient in enumerate(patients)}
    return np.array([order[s.patient] % 2 == 0 for s in sources])


def make_copies(sources: list[Source], kind: str, seed: int) -> list[Pixels]:
    number = list(KINDS).index(kind)
    streams = (np.random.default_rng([seed, number, n]) for n in range(len(sources)))
    return [np.ascontiguousarray(KINDS[kind](s.pixels, rng)) for s, rng in zip(sources, streams, strict=True)]


def fingerprints(pictures: list[Pixels]) -> NDArray[np.int8]:
    return np.stack([duplicates.fingerprint(p) for p in pictures])


def split(similarity: dict[str, list[float]], first: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Similarities of all copies, and of all second photographs, in the first half."""
    copies = [v for kind in KINDS for v, here in zip(similarity[kind], first, strict=True) if here]
    seconds = [v for v, here in zip(similarity["second photograph"], first, strict=True) if here]
    return copies, seconds


def choose_threshold(copies: list[float], others: list[float]) -> float:
    """Midway between the 1 % least alike copies and the most alike of what is none, to 0.01."""
    return round((float(np.quantile(copies, 0.01)) + max(others)) / 2, 2)


def table(kind: str, planted: int, ours: set[tuple[int, int]], hashed: set[tuple[int, int]]) -> dict[str, Any]:
    """Precision and recall among the originals 0 .. n-1 and their copies n .. 2n-1."""
    truth = {(i, i + planted) for i in range(planted)}
    row: dict[str, Any] = {"kind": kind}
    for name, found in (("ours", ours), ("dhash", hashed)):
        row[name] = {"recall": wilson(len(found & truth), planted), "precision": wilson(len(found & truth), len(found))}
    return row


def time_all_pairs(prints: NDArray[np.int8], n: int, full: int) -> dict[str, Any]:
    """Time of the coarse stage over n fingerprints (shifted ones among them), and what `full` of them would take."""
    rng = np.random.default_rng(0)
    many = np.stack([np.roll(prints[i % len(prints)], rng.integers(-64, 64, 2), (0, 1)) for i in range(n)])
    started = time.process_time()
    found = sum(1 for _ in duplicates.candidates(many, duplicates.COARSE_THRESHOLD))
    seconds = time.process_time() - started
    return {
        "fingerprints": n,
        "coarse_seconds": round(seconds, 1),
        "candidates": found,
        f"coarse_seconds_for_{full}_scaled_by_n2": round(seconds * (full / n) ** 2),
        f"fingerprint_megabytes_for_{full}": round(full * prints[0].nbytes / 1e6),
        f"coarse_vector_megabytes_for_{full}": round(full * 4 * (1024 + 2 * 700) / 1e6),
    }


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return round(1000 * float(np.median(times)), 1)


def run(phantoms: int, seed: int) -> dict[str, Any]:
    sources = load_sources(phantoms, seed)
    first = in_first_half(sources)
    originals = fingerprints([s.pixels for s in sources])
    seconds = [second_photographs(s.pixels, np.random.default_rng([seed, 99, n])) for n, s in enumerate(sources)]
    copies = {kind: make_copies(sources, kind, seed) for kind in KINDS}
    prints = {kind: fingerprints(pictures) for kind, pictures in copies.items()}
    second_prints = [fingerprints([a for a, _ in seconds]), fingerprints([b for _, b in seconds])]

    alike = {
        kind: [duplicates.similarity(a, b)[0] for a, b in zip(originals, prints[kind], strict=True)] for kind in KINDS
    }
    alike["second photograph"] = [duplicates.similarity(a, b)[0] for a, b in zip(*second_prints, strict=True)]
    strangers = duplicates.near_duplicates(originals[first], threshold=0.0, coarse_threshold=0.5)
    chosen_copies, chosen_others = split(alike, first)
    chosen_others += [p.similarity for p in strangers]
    threshold = choose_threshold(chosen_copies, chosen_others)

    rows, rest = [], np.flatnonzero(~first)
    hashes = np.stack([dhash(s.pixels) for s in sources])[rest]
    for kind in KINDS:
        both = np.concatenate((originals[rest], prints[kind][rest]))
        ours = {(p.first, p.second) for p in duplicates.near_duplicates(both, threshold=threshold)}
        both_hashes = np.concatenate((hashes, np.stack([dhash(copies[kind][i]) for i in rest])))
        row = table(kind, len(rest), ours, dhash_pairs(both_hashes, DHASH_BITS))
        rows.append(row | {"least_similarity": round(min(alike[kind][i] for i in rest), 3)})
    second_alike = [alike["second photograph"][i] for i in rest]
    second_hashed = [int(np.unpackbits(dhash(seconds[i][0]) ^ dhash(seconds[i][1])).sum()) for i in rest]
    negatives = [
        {
            "pairs": "different photographs, the second half",
            "ours": wilson(
                len(duplicates.near_duplicates(originals[rest], threshold=threshold)), math.comb(len(rest), 2)
            ),
            "dhash": wilson(len(dhash_pairs(hashes, DHASH_BITS)), math.comb(len(rest), 2)),
        },
        {
            "pairs": "two photographs of one eye, the second half",
            "ours": wilson(sum(v >= threshold for v in second_alike), len(rest)),
            "dhash": wilson(sum(bits <= DHASH_BITS for bits in second_hashed), len(rest)),
            "largest_similarity": round(max(second_alike), 3),
        },
        thumbnails(threshold),
    ]
    return {
        "environment": {"python": platform.python_version(), "numpy": np.__version__, "threads": 1},
        "command": f"python benchmarks/duplicates.py --phantoms {phantoms} --seed {seed}",
        "sources": {"real": sum(s.real for s in sources), "phantoms": phantoms, "reported": len(rest)},
        "threshold": {
            "chosen": threshold,
            "first_half_copies_1_percent": round(float(np.quantile(chosen_copies, 0.01)), 3),
            "first_half_others_largest": round(max(chosen_others), 3),
            "in_use": duplicates.THRESHOLD,
        },
        "copies": rows,
        "not_copies": negatives,
        "time": times(originals, sources),
    }


def thumbnails(threshold: float) -> dict[str, Any]:
    """RetinaMNIST, 28 pixels: two pictures of each eye, so what is found may be true; nobody says which are."""
    pictures = [
        np.asarray(Image.open(f).convert("RGB")) for f in sorted((PHOTOGRAPHS / "images/retinamnist28").glob("*"))
    ]
    found = duplicates.near_duplicates(fingerprints(pictures), threshold=threshold)
    pairs = math.comb(len(pictures), 2)
    return {
        "pairs": "RetinaMNIST, 28 pixels, truth unknown",
        "ours": wilson(len(found), pairs),
        "dhash": wilson(len(dhash_pairs(np.stack([dhash(p) for p in pictures]), DHASH_BITS)), pairs),
    }


def times(prints: NDArray[np.int8], sources: list[Source]) -> dict[str, Any]:
    """Median processor times of one thread, in milliseconds."""
    photograph = next(s.pixels for s in sources if max(s.pixels.shape) == 512)
    large = np.asarray(Image.open(PHOTOGRAPHS / "originals/05_dr.jpg").convert("RGB"))
    return {
        "fingerprint_512_ms": milliseconds(lambda: duplicates.fingerprint(photograph), 20),
        "fingerprint_3504x2336_ms": milliseconds(lambda: duplicates.fingerprint(large), 5),
        "similarity_of_a_pair_in_four_orientations_ms": milliseconds(
            lambda: duplicates.similarity(prints[0], prints[1]), 20
        ),
        "all_pairs": time_all_pairs(prints, 5000, 35_000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.phantoms, arguments.seed)
    files.write_json(RESULT, result)
    print(RESULT)


if __name__ == "__main__":
    main()
