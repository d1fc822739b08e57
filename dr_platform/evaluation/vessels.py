"""Vessels of a photograph in numbers: their share of the field, calibre, tortuosity and fractal dimension.

Which pixels are vessel is said by W-Net, where its weights are given, or by a classical filter: dark ridges of several
widths in twelve directions, in units of the noise, kept where they hang together with certain ones (hysteresis). The
two differ in what they call a vessel, so only numbers of one and the same are compared; `source` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from dr_platform.data.fundus import FieldOfView, Pixels
from dr_platform.evaluation import wnet
from dr_platform.evaluation.anatomy import FIELD_MM, darkness, field_of, seen_in

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

COARSEST_UM_PER_PX = 60.0  # a 45° field of 217 pixels: coarser ones show the trunks alone
CLASSICAL = "ridge-filter-v1"

_WIDTHS_UM = (28.0, 48.0)  # sigmas across; a vessel answers most at a sigma of about a third of its calibre
_SLENDER = 3.0  # sigma along over sigma across
_DIRECTIONS = 12
_CERTAIN, _POSSIBLE = 7.0, 3.5  # of the ridge response, over its median size
_FAINTEST = 0.001  # ... which is no less than that: what an even picture shows is rounding
_LEAST_MM = 0.5  # length of the smallest part that is kept, and of the smallest segment whose course is measured
_SMOOTH_MM = 0.12  # of a course: half the window of its running mean; of calibres along it: sigma


@dataclass(frozen=True)
class Vessels:
    """The vessels of one photograph. All are None where `reason` says why."""

    source: str  # what told vessel from ground
    share: float | None = None  # of the seen field's area, in [0, 1]
    calibre_um: tuple[float, float, float] | None = None  # quartiles over the centre line
    tortuosity: float | None = None  # course over chord, ≥ 1, weighted by course
    fractal_dimension: float | None = None  # of the centre line, by box counting, in [0, 2]
    reason: str | None = None


def vessels(image: Pixels, fov: FieldOfView | None = None, network: wnet.WNet | None = None) -> Vessels:
    """The vessels of a photograph, uint8 [R, R, 3], as W-Net sees them if `network` is given.

    fov: its field, found if not given. Fields coarser than `COARSEST_UM_PER_PX`, and such as show next to no vessel,
    give None with the reason. Raises EvaluationError for what is no such picture.
    """
    fov = field_of(image) if fov is None else fov
    um_per_px = 500 * FIELD_MM / fov.radius
    source = CLASSICAL if network is None else f"wnet-{network.weights_sha256[:12]}"
    if um_per_px > COARSEST_UM_PER_PX:
        return Vessels(
            source,
            reason=f"{um_per_px:.0f} µm per pixel: vessels need {COARSEST_UM_PER_PX:.0f} or finer, that is a 45° field "
            f"of {1000 * FIELD_MM / COARSEST_UM_PER_PX:.0f} pixels",
        )
    seen, _ = seen_in(image, fov)
    return measure(vessel_mask(image, fov, seen, network), seen, um_per_px, source)


def vessel_mask(image: Pixels, fov: FieldOfView, seen: Mask, network: wnet.WNet | None = None) -> Mask:
    """Which pixels [R, R] are vessel."""
    um_per_px = 500 * FIELD_MM / fov.radius
    if network is not None:
        found = (network.probability(image) > wnet.THRESHOLD) & seen
    else:
        response = _ridges(darkness(image[..., 1], seen, fov.radius), um_per_px)
        typical = max(float(np.median(np.abs(response[seen]))) if seen.any() else 0.0, _FAINTEST)
        response[~seen] = 0
        labels, count = ndimage.label(response > _POSSIBLE * typical, np.ones((3, 3)))
        certain = np.zeros(count + 1, bool)
        certain[np.unique(labels[response > _CERTAIN * typical])] = True
        certain[0] = False
        found = certain[labels]
    return _without_specks(found, 1000 * _LEAST_MM / um_per_px)


def measure(mask: Mask, seen: Mask, um_per_px: float, source: str = "given") -> Vessels:
    """The numbers of a vessel mask [H, W], within what is seen."""
    line = skeleton(mask)
    if line.sum() * um_per_px < 1000 * FIELD_MM / 4:
        return Vessels(source, reason="the vessels found are shorter together than a quarter of the field's width")
    return Vessels(
        source,
        share=float(mask.sum() / max(int(seen.sum()), 1)),
        calibre_um=calibre(mask, line, um_per_px),
        tortuosity=tortuosity(line, um_per_px),
        fractal_dimension=fractal_dimension(line),
    )


# ---- which pixels --------------------------------------------------------------------------------------------------


def _ridges(dark: NDArray[np.float32], um_per_px: float) -> NDArray[np.float32]:
    """How much of a bright ridge each pixel lies on, the largest over widths and directions.

    Second derivatives of slender Gaussians, multiplied in the frequency domain; even widths of one ridge answer alike.
    """
    sigmas = [max(width / um_per_px, 0.8) for width in _WIDTHS_UM]
    pad = math.ceil(_SLENDER * sigmas[-1])
    shape = tuple(scipy.fft.next_fast_len(n + pad, real=True) for n in dark.shape)
    spectrum = scipy.fft.rfft2(dark, shape)
    fy = 2 * math.pi * scipy.fft.fftfreq(shape[0])[:, None].astype(np.float32)
    fx = 2 * math.pi * scipy.fft.rfftfreq(shape[1])[None].astype(np.float32)
    best = np.zeros_like(dark)
    for sigma in sigmas:
        for turn in np.arange(_DIRECTIONS) * math.pi / _DIRECTIONS:
            across = fx * math.cos(turn) + fy * math.sin(turn)
            along = fy * math.cos(turn) - fx * math.sin(turn)
            gain = (sigma * across) ** 2 * np.exp(-(sigma**2 / 2) * (across**2 + (_SLENDER * along) ** 2))
            response = scipy.fft.irfft2(spectrum * gain, shape)[: dark.shape[0], : dark.shape[1]]
            np.maximum(best, response, out=best)
    return best


def _without_specks(mask: Mask, least_px: float) -> Mask:
    """Without connected parts whose larger extent is below `least_px`."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    keep = np.array([False] + [max(b.stop - b.start for b in box) >= least_px for box in boxes])
    return keep[labels]


# ---- centre line ---------------------------------------------------------------------------------------------------

_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # neighbours P2 to P9, clockwise


def _deletable() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each code of the eight neighbours, whether Zhang and Suen 1984 delete the pixel in either half of a step."""
    codes = np.arange(256)
    p = ((codes[:, None] >> np.arange(8)) & 1).astype(bool)
    neighbours, turns = p.sum(axis=1), (~p & np.roll(p, -1, axis=1)).sum(axis=1)
    edge = (neighbours >= 2) & (neighbours <= 6) & (turns == 1)
    north, east, south, west = p[:, 0], p[:, 2], p[:, 4], p[:, 6]
    return (
        edge & ~(north & east & south) & ~(east & south & west),
        edge & ~(north & east & west) & ~(north & south & west),
    )


_DELETABLE = _deletable()


def skeleton(mask: Mask) -> Mask:
    """The mask thinned to lines one pixel wide, by Zhang and Suen 1984; connected parts stay connected."""
    padded = np.pad(mask, 1)
    height, width = padded.shape
    flat = padded.ravel()
    steps = np.array([dy * width + dx for dy, dx in _RING])
    bits = (1 << np.arange(8)).astype(np.uint8)
    alive = np.flatnonzero(flat)
    while True:
        before = len(alive)
        for table in _DELETABLE:
            codes = (flat[alive[:, None] + steps] * bits).sum(axis=1, dtype=np.uint8)
            gone = table[codes]
            flat[alive[gone]] = False
            alive = alive[~gone]
        if len(alive) == before:
            return flat.reshape(height, width)[1:-1, 1:-1]


def calibre(mask: Mask, line: Mask, um_per_px: float) -> tuple[float, float, float]:
    """Quartiles of the calibre in µm: twice the way from the centre line out of the mask, less half a pixel.

    Distances run from pixel centre to pixel centre, which makes a band of w pixels w or w + 1 wide, by whether it has a
    middle pixel; and they are whole numbers but for slants, so they are averaged along the line before they are ranked.
    """
    # Beyond the picture there is nothing that a vessel could end at.
    out = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    sigma = 1000 * _SMOOTH_MM / um_per_px
    weight = ndimage.gaussian_filter(line.astype(np.float32), sigma, truncate=3)
    width = 2 * ndimage.gaussian_filter((out * line).astype(np.float32), sigma, truncate=3)[line] / weight[line] - 0.5
    low, middle, high = np.quantile(width * um_per_px, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def tortuosity(line: Mask, um_per_px: float) -> float | None:
    """Course over chord of the segments between ends and branchings, averaged by course; None without a long one.

    A course along pixels is too long by up to 8 % (it has but eight directions), so it is smoothed first; segments
    below `_LEAST_MM` say nothing, and loops have no chord.
    """
    y, x, part, along = _courses(line)
    if not len(part):
        return None
    window = max(2, round(1000 * _SMOOTH_MM / um_per_px))
    first = np.flatnonzero(np.diff(part, prepend=-1))
    size = np.diff(np.append(first, len(part)))
    place = np.arange(len(part)) - np.repeat(first, size)
    half = np.minimum(window, np.minimum(place, np.repeat(size, size) - 1 - place))
    sums = [np.concatenate(([0.0], np.cumsum(v))) for v in (y, x)]
    at = np.arange(len(part))
    y, x = ((s[at + half + 1] - s[at - half]) / (2 * half + 1) for s in sums)
    moves = np.hypot(np.diff(y), np.diff(x)) * (np.diff(part) == 0)
    course = np.add.reduceat(np.append(moves, 0.0), first)
    last = first + size - 1
    chord = np.hypot(y[last] - y[first], x[last] - x[first])
    single = course < 1.1 * along[last] + 1  # in rings, and where a branching was missed, the order jumps to and fro
    fine = single & (course * um_per_px >= 1000 * _LEAST_MM) & (chord > 0)
    return float(np.average(course[fine] / chord[fine], weights=course[fine])) if fine.any() else None


def _courses(line: Mask) -> tuple[Floats, Floats, NDArray[np.int_], Floats]:
    """Pixels (y, x) of the segments in the order of their course, the segment of each, and its way from the end."""
    single = line & ~ndimage.maximum_filter(_branchings(line), 3)
    y, x = np.nonzero(single)
    number = np.full(np.array(single.shape) + 2, -1)
    number[y + 1, x + 1] = np.arange(len(y))
    ends, others, lengths = [], [], []
    for dy, dx in _RING[1:5]:  # one of every two opposite neighbours
        beside = number[y + 1 + dy, x + 1 + dx]
        there = np.flatnonzero(beside >= 0)
        ends.append(there)
        others.append(beside[there])
        lengths.append(np.full(len(there), math.hypot(dy, dx)))
    a, b, weight = (np.concatenate(parts) for parts in (ends, others, lengths))
    graph = sparse.csr_matrix((weight, (a, b)), shape=(len(y), len(y)))
    parts, part = csgraph.connected_components(graph, directed=False)
    if not parts:
        return np.zeros(0), np.zeros(0), np.zeros(0, int), np.zeros(0)
    start = np.unique(part, return_index=True)[1]
    for _ in range(2):  # what is farthest from any pixel is an end; what is farthest from that, the other
        along = csgraph.dijkstra(graph, directed=False, indices=start, min_only=True)
        order = np.lexsort((along, part))
        start = order[np.flatnonzero(np.diff(part[order], append=-1))]
    return y[order].astype(np.float64), x[order].astype(np.float64), part[order], along[order]


def _branchings(line: Mask) -> Mask:
    """Pixels at which three courses meet or more: as many times a line begins on the way round them."""
    padded = np.pad(line, 1)
    height, width = line.shape
    ring = [padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in _RING]
    begins = sum(((~a & b).astype(np.uint8) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)), np.uint8(0))
    return line & (begins > 2)


def fractal_dimension(shape: Mask) -> float:
    """Box-counting dimension: the slope of log count on log box size, from 2 pixels to an eighth of the side.

    Counts are the least over four offsets of the grid. 1 for a line, 2 for an area, 0 for nothing.
    """
    if not shape.any():
        return 0.0
    sizes = 2 ** np.arange(1, max(3, int(math.log2(max(shape.shape) / 8)) + 1))
    counts = [min(_boxes(shape, int(s), int(s) * k // 4) for k in range(4)) for s in sizes]
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def _boxes(shape: Mask, size: int, shift: int) -> int:
    """How many boxes of a grid hold some of the shape."""
    height, width = (-(-(n + shift) // size) * size for n in shape.shape)
    padded = np.zeros((height, width), bool)
    padded[shift : shift + shape.shape[0], shift : shift + shape.shape[1]] = shape
    return int(padded.reshape(height // size, size, width // size, size).any(axis=(1, 3)).sum())
