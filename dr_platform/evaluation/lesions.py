"""Microaneurysm candidates: how many small round red dots a photograph shows, which no general distance sees.

Dark blobs of several sizes on the flattened green channel, in units of the local noise. Whatever a straight line of
`_LINE_MM` fits into is vessel and is taken off; what is left must be curved both ways, or it is an edge. The threshold
was set on phantoms with known truth (`benchmarks/lesions.py`), so a count serves to compare sets, and is no diagnosis.

Scale: the field is taken as 45°, 13.0 mm of retina. A microaneurysm is at most 125 µm wide (ETDRS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dr_platform.data.fundus import FieldOfView
from dr_platform.errors import EvaluationError
from dr_platform.evaluation.anatomy import FIELD_MM, darkness, field_of, seen_in, smooth
from dr_platform.evaluation.estimate import Estimate

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

LARGEST_UM = 125.0
COARSEST_UM_PER_PX = 40.0  # a 45° field of 325 pixels: coarser ones hide most microaneurysms in less than a pixel
THRESHOLD = 4.0  # of `score`: at most one false one per phantom of grades 0 and 1
WEAKEST = 2.0  # candidates below this score are not kept

_SIGMAS_UM = (27.0, 40.0, 54.0)  # of the blobs sought; a disc of diameter d answers most at d / 2.8
_LINE_MM = 0.4  # three widths of the largest lesion
_LINES = 12  # directions
_NOISE_MM = 0.8  # sigma of the local noise level
_MARGIN = 0.95  # of the radius: where candidates are kept
_MOST = 400  # candidates of one photograph


@dataclass(frozen=True)
class Candidate:
    """What may be a microaneurysm; (x, y) in pixels, pixel centres at integers."""

    x_px: float
    y_px: float
    diameter_px: float  # full width at half of its contrast
    contrast: float  # share of the surrounding green light that is missing, in [0, 1]
    score: float  # curvature across its narrower direction, over the local noise


@dataclass(frozen=True)
class Microaneurysms:
    """Candidates of one photograph by falling score, or None and the reason why nothing can be said."""

    candidates: tuple[Candidate, ...] | None
    reason: str | None = None

    def count(self, threshold: float = THRESHOLD) -> int | None:
        """How many candidates score at least `threshold`; None where nothing can be said."""
        return None if self.candidates is None else sum(c.score >= threshold for c in self.candidates)


def microaneurysms(image: Pixels, fov: FieldOfView | None = None) -> Microaneurysms:
    """The candidates in a photograph, uint8 [R, R, 3], that score at least `WEAKEST`.

    fov: its field, found if not given. Fields coarser than `COARSEST_UM_PER_PX` give None with the reason.
    Raises EvaluationError for what is no such picture.
    """
    fov = field_of(image) if fov is None else fov
    um_per_px = 500 * FIELD_MM / fov.radius
    if um_per_px > COARSEST_UM_PER_PX:
        return Microaneurysms(
            None,
            f"{um_per_px:.0f} µm per pixel: microaneurysms need {COARSEST_UM_PER_PX:.0f} or finer, that is a 45° field "
            f"of {1000 * FIELD_MM / COARSEST_UM_PER_PX:.0f} pixels",
        )
    seen, rho = seen_in(image, fov)
    dark = darkness(image[..., 1], seen, fov.radius)
    score = _score(dark, seen, fov.radius)
    score[rho > _MARGIN] = 0
    return Microaneurysms(tuple(_pick(score, dark, um_per_px)))


def _score(dark: NDArray[np.float32], seen: NDArray[np.bool_], radius: float) -> NDArray[np.float32]:
    """Blob likeness [H, W] over the local noise, the largest over the sizes."""
    px_per_um = radius / (500 * FIELD_MM)
    softened = ndimage.gaussian_filter(dark, 16 * px_per_um, truncate=3)
    without_lines = softened - _lines(softened, round(1000 * _LINE_MM * px_per_um))
    best = np.zeros_like(dark)
    for sigma_um in _SIGMAS_UM:
        sigma = sigma_um * px_per_um
        rest = math.sqrt(max(sigma**2 - (16 * px_per_um) ** 2, 0.01))
        curved = np.minimum(_least_curvature(softened, rest), _least_curvature(without_lines, rest)) * sigma**2
        size = np.abs(curved)
        typical = float(np.median(size[seen])) + 1e-6 if seen.any() else 1.0
        noise = smooth(np.minimum(size, 4 * typical), seen, _NOISE_MM / (FIELD_MM / 2) * radius)
        np.maximum(best, curved / (noise + 0.3 * typical), out=best)
    best[~seen] = 0
    return best


def _least_curvature(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """The smaller of the two principal curvatures of a bright blob, at a scale: about 0 on a ridge."""
    v = np.pad(ndimage.gaussian_filter(values, sigma, truncate=3), 1, mode="edge")
    centre = 2 * v[1:-1, 1:-1]
    across = centre - v[1:-1, 2:] - v[1:-1, :-2]
    down = centre - v[2:, 1:-1] - v[:-2, 1:-1]
    mixed = (v[2:, 2:] + v[:-2, :-2] - v[2:, :-2] - v[:-2, 2:]) / 4
    return (across + down) / 2 - np.sqrt(((across - down) / 2) ** 2 + mixed**2)


def _lines(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """The largest over directions of grey openings by a straight line: bright lines stay, blobs shorter than it go."""
    best = np.full_like(values, -np.inf)
    for turn in np.arange(_LINES) * math.pi / _LINES:
        along = np.arange(length) - (length - 1) / 2
        steps = np.unique(np.rint(np.outer(along, (math.sin(turn), math.cos(turn)))).astype(int), axis=0)
        opened = _extreme(_extreme(values, steps, np.minimum), -steps, np.maximum)
        np.maximum(best, opened, out=best)
    return best


def _extreme(values: NDArray[np.float32], steps: NDArray[np.int_], pick: np.ufunc) -> NDArray[np.float32]:
    """The least or largest value over shifts [k, 2] as (y, x)."""
    height, width = values.shape
    pad = int(np.abs(steps).max())
    padded = np.pad(values, pad, mode="edge")
    result = padded[pad + steps[0, 0] :, pad + steps[0, 1] :][:height, :width].copy()
    for dy, dx in steps[1:]:
        pick(result, padded[pad + dy : pad + dy + height, pad + dx : pad + dx + width], out=result)
    return result


def _pick(score: NDArray[np.float32], dark: NDArray[np.float32], um_per_px: float) -> list[Candidate]:
    """Peaks of the score that are no wider than a microaneurysm, best first."""
    near = 2 * round(50 / um_per_px) + 1
    y, x = np.nonzero((score >= WEAKEST) & (score == ndimage.maximum_filter(score, near)))
    best = np.argsort(-score[y, x], kind="stable")[:_MOST]
    y, x = y[best], x[best]
    if not len(y):
        return []
    reach = math.ceil(1.6 * LARGEST_UM / um_per_px)
    span = np.arange(-reach, reach + 1)
    around = np.pad(dark, reach)[y[:, None, None] + reach + span[:, None], x[:, None, None] + reach + span]
    diameter, contrast, dx, dy = _profile(around.reshape(len(y), -1).astype(np.float64), span)
    return [
        Candidate(
            float(x[i] + dx[i]), float(y[i] + dy[i]), float(diameter[i]), float(contrast[i]), float(score[y[i], x[i]])
        )
        for i in np.flatnonzero((diameter * um_per_px <= LARGEST_UM) & (contrast > 0))
    ]


def _profile(around: Floats, span: NDArray[np.int_]) -> tuple[Floats, Floats, Floats, Floats]:
    """Diameter at half height, height, and centre (x, y) off the middle, of blobs on patches [n, k * k]."""
    dy, dx = (grid.ravel().astype(np.float64) for grid in np.meshgrid(span, span, indexing="ij"))
    away = np.hypot(dx, dy)
    core = np.clip(around, 0, None) * (away < 2)
    mass = np.maximum(core.sum(axis=1), 1e-9)
    cx, cy = core @ dx / mass, core @ dy / mass
    away = np.hypot(dx - cx[:, None], dy - cy[:, None])
    radii = np.arange(0, span[-1] + 0.01, 0.5)
    weight = np.clip(1 - np.abs(away[:, None] - radii[:, None]), 0, None)  # triangular rings, [n, rings, k * k]
    ring = np.einsum("nrk,nk->nr", weight, around) / np.maximum(weight.sum(axis=2), 1e-9)
    ground = ring[:, radii > 0.7 * span[-1]].min(axis=1)
    height = ring[:, 0] - ground
    below = ring - ground[:, None] < height[:, None] / 2
    first = np.maximum(below.argmax(axis=1), 1)
    rows = np.arange(len(ring))
    inner, outer = ring[rows, first - 1] - ground, ring[rows, first] - ground
    part = np.clip((inner - height / 2) / np.maximum(inner - outer, 1e-9), 0, 1)
    return 2 * (radii[first - 1] + 0.5 * part), height, cx, cy


# ---- calibration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrocPoint:
    """Sensitivity, with a 95 % interval, where there are so many false positives per photograph."""

    false_positives: float  # asked for
    threshold: float  # the lowest score with at most that many
    sensitivity: Estimate
    found: int
    lesions: int
    images: int


def froc(
    found: Sequence[Microaneurysms],
    truth: Sequence[Floats],
    *,
    at: Sequence[float] = (0.125, 0.25, 0.5, 1, 2, 4, 8),
    seed: int,
    draws: int = 1000,
) -> list[FrocPoint]:
    """Free-response curve: sensitivity over lesions against false positives per photograph.

    truth: for each photograph [k, 3], x, y and diameter in pixels. A candidate finds the nearest lesion if it lies
    within its radius and 2 pixels; further ones on it count neither way. Interval: photographs drawn with replacement
    `draws` times, the threshold chosen anew each time. Raises EvaluationError without a photograph or a lesion.
    """
    lesions = np.array([len(t) for t in truth])
    if len(found) != len(truth) or not lesions.sum():
        raise EvaluationError(
            f"{len(found)} results, {len(truth)} photographs with truth, {lesions.sum()} lesions: a curve needs one "
            "result for each photograph and a lesion at least."
        )
    scores, owner, hit = _judged(found, truth)
    grid = np.unique(np.quantile(scores, np.linspace(0, 1, min(500, len(scores)))))[::-1] if len(scores) else np.ones(1)
    grid = np.concatenate(([np.inf], grid))
    above = scores[:, None] >= grid
    tally = [np.zeros((len(found), len(grid))) for _ in range(2)]
    for counts, which in zip(tally, (hit, ~hit), strict=True):
        np.add.at(counts, owner[which], above[which])
    hits, false = tally
    once = np.ones((1, len(found)))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), size=draws).astype(np.float64)
    points = []
    for limit in at:
        sensitivity, cut = _at_limit(once, hits, false, lesions, limit)
        drawn, _ = _at_limit(weights, hits, false, lesions, limit)
        low, high = np.quantile(drawn, (0.025, 0.975))
        value = Estimate(float(sensitivity[0]), float(drawn.std()), f"bootstrap of {len(found)} photographs", low, high)
        points.append(FrocPoint(
            limit, float(grid[cut[0]]), value, int(hits[:, cut[0]].sum()), int(lesions.sum()), len(found)
        ))  # fmt: skip
    return points


def _judged(
    found: Sequence[Microaneurysms], truth: Sequence[Floats]
) -> tuple[Floats, NDArray[np.int_], NDArray[np.bool_]]:
    """Score, photograph and whether it found a lesion, of every candidate that counts."""
    rows: list[tuple[float, int, bool]] = []
    for i, (result, lesions) in enumerate(zip(found, truth, strict=True)):
        taken: set[int] = set()
        for c in result.candidates or ():
            away = np.hypot(lesions[:, 0] - c.x_px, lesions[:, 1] - c.y_px)
            nearest = int(away.argmin()) if len(away) else -1
            hit = nearest >= 0 and bool(away[nearest] <= lesions[nearest, 2] / 2 + 2)
            if hit and nearest in taken:
                continue
            taken |= {nearest} if hit else set()
            rows.append((c.score, i, hit))
    scores, owner, hit_ = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    return scores.astype(np.float64), owner.astype(int), hit_.astype(bool)


def _at_limit(
    weights: Floats, hits: Floats, false: Floats, lesions: NDArray[np.int_], limit: float
) -> tuple[Floats, NDArray[np.int_]]:
    """Sensitivity of every draw, and the last column of the grid that keeps to the limit; column 0 has no candidate."""
    column = ((weights @ false) / weights.sum(axis=1, keepdims=True) <= limit).sum(axis=1) - 1
    found = np.take_along_axis(weights @ hits, column[:, None], axis=1)[:, 0]
    return found / np.maximum(weights @ lesions, 1), column
