"""Near-duplicates: one photograph stored twice, re-encoded, resized, cropped, recoloured, mirrored or upside down.

Fundus photographs are all alike: a bright disc, a dark macula, arcades between. A hash of what they look like from afar
therefore confuses strangers, and forgets a mirrored copy. So a fingerprint is the vessel-scale structure of the lit
field, laid on the fitted circle (borders, crops and sizes drop out), freed of illumination and contrast. Pairs are
found in two stages: the correlation of 32 x 32 vectors, as matrix products over all pairs and four orientations, then
the correlation at 128 x 128 after a small registration.

The registration may move the retina against the rim of the field by hardly more than the circle is uncertain. That is
what tells a copy from a second photograph of the same eye: the eye moves between two exposures, the mask of the camera
does not.

35,000 fingerprints take 0.57 GB; the time is in benchmarks/results/duplicates.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from dr_platform.data.fundus import FieldOfView, Pixels, find_field_of_view, mean_over_seen, on_field
from dr_platform.errors import DataError

Fingerprint = NDArray[np.int8]
Array = NDArray[Any]  # of 32-bit floats

THRESHOLD = 0.84  # least similarity of a copy, as benchmarks/duplicates.py chose it
COARSE_THRESHOLD = 0.70  # correlation of the 32 x 32 vectors, below which a pair is not looked at further

SIDE = 128  # of a fingerprint
_COARSE_SIDE = 32
_UNSEEN = -128  # beyond the field or the sensor
_STEPS_PER_UNIT = 32  # int8 steps per local standard deviation
_FIELD = 0.92  # share of the radius that is looked at: the rim has stray light, notches and text
_WORKING_SIDE = 512  # longer side at which a photograph is looked at, at least
_FLOOR = 1.5  # grey levels of local contrast, below which it is noise and not amplified

# How far a copy's circle may lie off: of planted copies whose circle is found 98 % are within 0.002 and 0.007.
_MAX_SHIFT = 0.01  # of the radius
_MAX_STRETCH = 0.015
_HOPELESS = 0.5  # similarity at half size below which the full size is not looked at
_MIN_COMMON = 0.5  # share of the field that both pictures must show

ORIENTATIONS = ("same", "mirrored", "upside down", "turned")  # as it is, left-right, top-bottom, both


@dataclass(frozen=True)
class Pair:
    """Two pictures, by position, first < second; `how` is the orientation of the second: one of ORIENTATIONS.

    `similarity` is the correlation of their structure after registration, at most 1."""

    first: int
    second: int
    similarity: float
    how: str


def fingerprint(pixels: Pixels, fov: FieldOfView | None = None) -> Fingerprint:
    """What identifies a photograph, uint8 [H, W, 3]: int8 [128, 128], its field's structure, -128 where unseen.

    fov: its field, for one of less than 1,024 pixels whose field is known. A picture without a field of view is taken
    whole. Raises DataError on what is no uint8 [H, W, 3] of 16 or more."""
    small, fov = (pixels, fov) if fov is not None else _look(pixels)
    green, seen = _on_circle(small[..., 1], fov)
    blurred = mean_over_seen(green, seen, 0.8)
    structure = blurred - mean_over_seen(green, seen, 7.0)
    contrast = np.sqrt(np.maximum(mean_over_seen(structure**2, seen, 14.0), 0))
    units = structure / np.maximum(contrast, _FLOOR)
    steps = np.clip(np.rint(units * _STEPS_PER_UNIT), -127, 127)
    return np.where(seen > 0, steps, _UNSEEN).astype(np.int8)


def similarity(first: Fingerprint, second: Fingerprint) -> tuple[float, str]:
    """The largest correlation of two fingerprints over the four orientations of the second, and that orientation."""
    found = [(_registered(first, _oriented(second, how)), how) for how in ORIENTATIONS]
    return max(found, key=lambda pair: pair[0])


def near_duplicates(
    fingerprints: NDArray[np.int8],
    *,
    threshold: float = THRESHOLD,
    coarse_threshold: float = COARSE_THRESHOLD,
    block: int = 2048,
) -> list[Pair]:
    """All pairs of fingerprints [n, 128, 128] at least `threshold` alike, in order of position.

    block: rows and columns of the correlation matrix held at a time; 2048 take 16 MB. Raises DataError on another
    shape or type.
    """
    _require_fingerprints(fingerprints)
    return _best(fingerprints, fingerprints, candidates(fingerprints, coarse_threshold, block=block), threshold)


def near_duplicates_between(
    first: NDArray[np.int8],
    second: NDArray[np.int8],
    *,
    threshold: float = THRESHOLD,
    coarse_threshold: float = COARSE_THRESHOLD,
    block: int = 2048,
) -> list[Pair]:
    """As `near_duplicates`, but pairs of one of `first` [n, 128, 128] and one of `second` [m, 128, 128] alone.

    A pair's positions are those within either. Raises DataError on another shape or type.
    """
    for fingerprints in (first, second):
        _require_fingerprints(fingerprints)
    return _best(first, second, candidates(first, coarse_threshold, second, block=block), threshold)


def _require_fingerprints(fingerprints: NDArray[np.int8]) -> None:
    if fingerprints.dtype != np.int8 or fingerprints.shape[1:] != (SIDE, SIDE):
        found = f"{fingerprints.dtype} {list(fingerprints.shape)}"
        raise DataError(f"fingerprints are {found}; int8 [n, {SIDE}, {SIDE}] is needed. Stack those of fingerprint().")


def _best(
    first: NDArray[np.int8], second: NDArray[np.int8], found: Iterator[tuple[int, int, str]], threshold: float
) -> list[Pair]:
    """The candidates that are alike, each pair in its best orientation, in order of position."""
    best: dict[tuple[int, int], Pair] = {}
    for i, j, how in found:
        alike = _registered(first[i], _oriented(second[j], how))
        known = best.get((i, j))
        if alike >= threshold and (known is None or alike > known.similarity):
            best[i, j] = Pair(i, j, alike, how)
    return [best[key] for key in sorted(best)]


def groups(pairs: Sequence[Pair], n: int) -> list[list[int]]:
    """The pictures 0 .. n-1 that pairs join, directly or over others: each group sorted, of two or more."""
    rows, columns = [p.first for p in pairs], [p.second for p in pairs]
    links = sparse.coo_array((np.ones(len(pairs), np.int8), (rows, columns)), shape=(n, n))
    count, label = csgraph.connected_components(links, directed=False)
    sizes = np.bincount(label, minlength=count)
    members = np.split(np.argsort(label, kind="stable"), np.cumsum(sizes)[:-1])
    return sorted([int(i) for i in group] for group in members if len(group) > 1)


def candidates(
    fingerprints: NDArray[np.int8], threshold: float, others: NDArray[np.int8] | None = None, *, block: int = 2048
) -> Iterator[tuple[int, int, str]]:
    """Pairs whose coarse vectors correlate by `threshold` or more, with the second's orientation.

    Of the fingerprints among each other, first < second: 2 n² products of vectors of about 700 numbers, for four
    orientations; with others, of one of these and one of those: 4 n m.
    """
    inside = _radius(_COARSE_SIDE) <= _FIELD
    maps = _coarse_maps(fingerprints, block)
    first_vectors = _unit(maps, inside)
    other_maps = maps if others is None else _coarse_maps(others, block)
    for how in ORIENTATIONS:
        vectors = _unit(_oriented(other_maps, how), inside)
        for i in range(0, len(maps), block):
            for j in range(i if others is None else 0, len(other_maps), block):
                products = first_vectors[i : i + block] @ vectors[j : j + block].T
                rows, columns = np.nonzero(products >= threshold)
                for row, column in zip((rows + i).tolist(), (columns + j).tolist(), strict=True):
                    if others is not None or row < column:
                        yield row, column, how


def _coarse_maps(fingerprints: NDArray[np.int8], block: int) -> Array:
    maps = np.zeros((len(fingerprints), _COARSE_SIDE, _COARSE_SIDE), np.float32)
    for i in range(0, len(fingerprints), block):
        maps[i : i + block] = _coarse(fingerprints[i : i + block])
    return maps


# ---- one fingerprint -----------------------------------------------------------------------------------------------


def _look(pixels: Pixels) -> tuple[Pixels, FieldOfView]:
    """The photograph, reduced by a whole factor, and the circle that its field fills; failing that, the whole frame."""
    small = pixels
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        factor = max(1, max(pixels.shape[:2]) // _WORKING_SIDE)
        if factor > 1 and min(pixels.shape[:2]) // factor >= 16:
            small = np.asarray(Image.fromarray(pixels).reduce(factor))
    elif pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise DataError(f"an image is {pixels.dtype} {list(pixels.shape)}; uint8 [height, width, 3] is needed (RGB).")
    height, width = small.shape[:2]
    try:
        return small, find_field_of_view(small)
    except DataError:
        if small.shape[2] != 3 or min(height, width) < 16:
            raise
        # As a field that the sensor cuts on all sides: a crop of it then keeps its centre at least.
        return small, FieldOfView((width - 1) / 2, (height - 1) / 2, max(height, width) / 2, 1.0)


def _on_circle(channel: NDArray[np.uint8], fov: FieldOfView) -> tuple[Array, Array]:
    """A channel on the field's bounding square, [SIDE, SIDE], and which of its pixels are seen, 0 or 1."""
    values, seen = on_field(channel, fov, SIDE, Image.Resampling.BICUBIC)
    return values, (seen & (_radius(SIDE) <= _FIELD)).astype(np.float32)


def _radius(side: int) -> Array:
    """Distance from the centre of a square [side, side], 1 at the middle of its edges."""
    line = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    return np.hypot(line[:, None], line[None, :])


# ---- pairs ---------------------------------------------------------------------------------------------------------


def _oriented(picture: Array, how: str) -> Array:
    rows = slice(None, None, -1 if how in ("upside down", "turned") else 1)
    columns = slice(None, None, -1 if how in ("mirrored", "turned") else 1)
    return picture[..., rows, columns]


def _coarse(fingerprints: NDArray[np.int8]) -> Array:
    """[n, 32, 32]: the fingerprints at a quarter of their size, 0 where unseen."""
    n, factor = len(fingerprints), SIDE // _COARSE_SIDE
    values = np.where(fingerprints == _UNSEEN, 0, fingerprints).astype(np.float32)
    return values.reshape(n, _COARSE_SIDE, factor, _COARSE_SIDE, factor).mean(axis=(2, 4))


def _unit(maps: Array, inside: NDArray[np.bool_]) -> Array:
    """The maps as vectors [n, m] of length 1 and mean 0; an empty one is zero."""
    vectors = maps[:, inside]
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _registered(first: Fingerprint, second: Fingerprint) -> float:
    """Correlation of two fingerprints after the best small shift and stretch of the second along each axis."""
    a, b = (np.where(f == _UNSEEN, 0, f).astype(np.float32) for f in (first, second))
    seen_a, seen_b = ((f != _UNSEEN).astype(np.float32) for f in (first, second))
    move = np.array([0.0, 1.0, 0.0, 1.0])  # shift (radii) and stretch along y, then along x
    move, alike = _descend(_halved(a), _halved(seen_a), _halved(b), _halved(seen_b), move, 4)
    if alike < _HOPELESS:
        return alike
    _, alike = _descend(a, seen_a, b, seen_b, move, 3)
    return alike


def _halved(picture: Array) -> Array:
    side = len(picture) // 2
    return picture.reshape(side, 2, side, 2).mean(axis=(1, 3))


def _descend(a: Array, seen_a: Array, b: Array, seen_b: Array, move: Array, steps: int) -> tuple[Array, float]:
    """The best move among `steps` Gauss-Newton steps on the difference of the pictures, and its correlation.

    Shift and stretch act on the axes apart, so a resampling is two products with banded matrices."""
    side = len(a)
    line = (np.arange(side) + 0.5) * (2 / side) - 1
    best, best_alike = move, -1.0
    for step in range(steps + 1):
        across_y, across_x = _interpolation(line, move[0], move[1]), _interpolation(line, move[2], move[3])
        moved = across_y @ b @ across_x.T
        common = (across_y @ seen_b @ across_x.T > 0.99) & (seen_a > 0.99)
        if common.sum() < _MIN_COMMON * np.pi / 4 * _FIELD**2 * side**2:
            break
        x, y = a[common], moved[common]
        x, y = x - x.mean(), y - y.mean()
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        alike = float(x @ y) / norm if norm > 0 else 0.0
        if alike > best_alike:
            best, best_alike = move, alike
        if step == steps or norm == 0:
            break
        slope_y, slope_x = (g[common] * (side / 2) for g in np.gradient(moved))
        rows, columns = np.nonzero(common)
        jacobian = np.stack((slope_y, slope_y * line[rows], slope_x, slope_x * line[columns]))
        gain = float(x @ y) / max(float(y @ y), 1e-6)
        normal = jacobian @ jacobian.T
        ridge = np.diag(1e-3 * np.diag(normal) + 1e-6)
        change = np.linalg.solve(normal + ridge, jacobian @ (x / max(gain, 0.2) - y))
        low, high = np.array([-_MAX_SHIFT, 1 - _MAX_STRETCH] * 2), np.array([_MAX_SHIFT, 1 + _MAX_STRETCH] * 2)
        move = np.clip(move + change, low, high)
    return best, best_alike


def _interpolation(line: Array, shift: float, stretch: float) -> Array:
    """Matrix [n, n] of linear interpolation at stretch · line + shift; rows that fall off the line are short."""
    side = len(line)
    at = (stretch * line + shift + 1) * (side / 2) - 0.5
    return np.clip(1 - np.abs(at[:, None] - np.arange(side)[None, :]), 0, None).astype(np.float32)
