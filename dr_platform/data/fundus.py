"""From a photograph as the camera left it to a square one: find the lit field, crop to it, pad, resize. Array to array.

The field of view is a circle, of which a sensor may cut off top and bottom. So a circle is fitted, not a bounding box:
the box of a cut field is not square, and a dark rim would shrink it. Where the border between lit and dark lies differs
from camera to camera (black is not 0, rims fade), so several thresholds are tried and the one whose border is most
nearly a circle wins; nothing is tuned to one camera.

Positions are in pixels, (x, y), with pixel centres at integers; the left edge of a picture is at x = -0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dr_platform.errors import DataError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_WORKING_SIDE = 320  # longer side at which the field is sought, at most: it is found to 0.1 % of that
_LEVELS = (0.06, 0.12, 0.25, 0.45)  # thresholds tried, between the dark level (0) and the lit one (1)
_TRIES = 200  # circles through three border points; with half of the points outliers one in eight is good
_JURY = 300  # border points that vote on each of them
_TOLERANCE = 0.02  # of the radius: how near a border point lies to a circle that it supports
_MIN_SUPPORT = 0.45  # share of border points on the circle; the two chords of a cut field take up to half
_BETTER = 0.02  # by which the support of a later threshold's circle must be larger
_MIN_CONTRAST = 12  # grey levels between dark and lit, five times the noise of a dark photograph
_WHITE = 225  # darkest channel of a white corner; no retina is that pale in blue


@dataclass(frozen=True)
class FieldOfView:
    """The circle of light in a photograph, pixels. `coverage` is the share of its area that is lit, in [0, 1]."""

    cx: float
    cy: float
    radius: float
    coverage: float


def find_field_of_view(image: Pixels) -> FieldOfView:
    """The circular field in a photograph, uint8 [H, W, 3], dark or white outside; its border may be cut anywhere.

    Raises DataError where there is none: an even picture, no dark surround, a lit shape that is no circle.
    """
    _check(image)
    height, width = image.shape[:2]
    factor = -(-max(height, width) // _WORKING_SIDE)
    small = np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image
    white = white_surround(small)
    grey = np.where(white, np.uint8(0), brightest(small))
    dark, lit = _dark_level(grey), float(np.percentile(grey, 95))
    if lit - dark < _MIN_CONTRAST:
        raise DataError(f"no field of view: brightness runs from {dark:.0f} to {lit:.0f}. Give a lit disc on black.")
    smooth = ndimage.median_filter(grey, 3).astype(np.float64)  # without single hot pixels
    best: tuple[float, FieldOfView] | None = None
    for level in _LEVELS:
        found = _fit(smooth, dark, dark + level * (lit - dark))
        if found and (best is None or found[0] > best[0] + _BETTER):
            best = found
        if best and best[0] + _BETTER >= 1:
            break  # no other can win: support is a share
    if best is None:
        raise DataError("no field of view: the lit part has no circular border. Give a lit disc on black.")
    fov = best[1]
    scale, shift = float(factor), (factor - 1) / 2
    return FieldOfView(fov.cx * scale + shift, fov.cy * scale + shift, fov.radius * scale, fov.coverage)


def brightest(image: Pixels) -> Pixels:
    """The brightest channel of each pixel, [H, W] of [H, W, 3]: red, nearly always."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def white_surround(image: Pixels) -> NDArray[np.bool_]:
    """Which pixels [H, W] of an image uint8 [H, W, 3] belong to a white region that reaches a corner."""
    if max(int(image[y, x].min()) for y in (0, -1) for x in (0, -1)) < _WHITE:
        return np.zeros(image.shape[:2], dtype=np.bool_)  # nearly all photographs, and finding regions takes long
    labels, _ = ndimage.label(image.min(axis=2) >= _WHITE)
    corners = {int(labels[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
    return np.isin(labels, list(corners))


def crop_to_field(image: Pixels, fov: FieldOfView) -> Pixels:
    """The part of the image inside the field's bounding square: less than square where the sensor cut the field.

    White outside the field becomes black, the surround of all other cameras, so that a generator has one surround to
    learn. A dark surround is left as it is: its noise and orientation tabs are part of the photograph."""
    left, top, right, bottom = _box(image, fov)
    cropped = image[top:bottom, left:right].copy()
    if white_surround(image).any():
        y, x = np.ogrid[top:bottom, left:right]
        cropped[np.hypot(x - fov.cx, y - fov.cy) > fov.radius - 0.5] = 0
    return cropped


def pad_to_square(image: Pixels, centre: tuple[float, float] | None = None) -> Pixels:
    """The image on the smallest black square that holds it with `centre` (x, y; default its own) in the middle."""
    height, width = image.shape[:2]
    cx, cy = centre if centre is not None else ((width - 1) / 2, (height - 1) / 2)
    side = round(2 * max(cx + 0.5, width - 0.5 - cx, cy + 0.5, height - 0.5 - cy))
    left, top = (min(max(round((side - 1) / 2 - c), 0), side - n) for c, n in ((cx, width), (cy, height)))
    square = np.zeros((side, side, *image.shape[2:]), image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def resize(image: Pixels, resolution: int) -> Pixels:
    """The image at `resolution` x `resolution`: whole factors by area, the rest by Lanczos; enlarged bicubically."""
    smaller = resolution < image.shape[0]
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), how, reducing_gap=3.0))


def standardise(image: Pixels, resolution: int) -> Pixels:
    """The photograph, uint8 [H, W, 3], as the networks see it: its field centred in a square, uint8 [R, R, 3].

    Raises DataError if `resolution` is no power of two of at least 16, or if the image shows no field of view.
    """
    if resolution < 16 or resolution & (resolution - 1):
        raise DataError(f"resolution is {resolution}; it must be a power of two of at least 16, such as 32 or 512.")
    fov = find_field_of_view(image)
    left, top, _, _ = _box(image, fov)
    return resize(pad_to_square(crop_to_field(image, fov), (fov.cx - left, fov.cy - top)), resolution)


# ---- looking at the field ------------------------------------------------------------------------------------------


def on_field(
    channel: NDArray[np.uint8], fov: FieldOfView, side: int, how: Image.Resampling
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A channel [H, W] on the field's bounding square: values [side, side], and which of them the sensor saw."""
    height, width = channel.shape
    left, top = fov.cx + 0.5 - fov.radius, fov.cy + 0.5 - fov.radius
    pad = max(0, int(np.ceil(max(-left, -top, left + 2 * fov.radius - width, top + 2 * fov.radius - height))) + 1)
    box = (left + pad, top + pad, left + pad + 2 * fov.radius, top + pad + 2 * fov.radius)
    # Beyond the sensor the nearest pixel is repeated, so that resampling does not drag black into the last seen ones.
    values = Image.fromarray(np.pad(channel, pad, mode="edge").astype(np.float32))
    seen = Image.fromarray(np.pad(np.ones((height, width), np.float32), pad))
    values, seen = (picture.resize((side, side), how, box=box) for picture in (values, seen))
    return np.asarray(values), np.asarray(seen) > 0.99


def mean_over_seen(values: NDArray[Any], seen: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Gaussian mean over what is seen (0 or 1): normalised convolution, Knutsson and Westin 1993."""
    weight = ndimage.gaussian_filter(seen.astype(np.float32), sigma, truncate=3, mode="constant")
    return ndimage.gaussian_filter(values * seen, sigma, truncate=3, mode="constant") / np.maximum(weight, 1e-3)


# ---- finding the circle --------------------------------------------------------------------------------------------


def _check(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image is {image.dtype} {list(image.shape)}; uint8 [height, width, 3] is needed (RGB).")
    if min(image.shape[:2]) < 16:
        raise DataError(f"an image is {image.shape[1]} x {image.shape[0]} pixels; at least 16 x 16 are needed.")


def _box(image: Pixels, fov: FieldOfView) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of the field's bounding square, inside the image."""
    height, width = image.shape[:2]
    left, right = max(round(fov.cx - fov.radius + 0.5), 0), min(round(fov.cx + fov.radius + 0.5), width)
    top, bottom = max(round(fov.cy - fov.radius + 0.5), 0), min(round(fov.cy + fov.radius + 0.5), height)
    return left, top, right, bottom


def _dark_level(grey: Pixels) -> float:
    """Brightness outside the field: the darkest corner, averaged over a patch against noise."""
    side = max(2, min(grey.shape) // 32)
    corners = (grey[y, x] for y in (slice(side), slice(-side, None)) for x in (slice(side), slice(-side, None)))
    return float(min(np.median(corner) for corner in corners))


def _fit(grey: Floats, dark: float, threshold: float) -> tuple[float, FieldOfView] | None:
    """Support (share of border points) and circle of the largest region above the threshold, if it is a field."""
    labels, _ = ndimage.label(grey > threshold)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if len(sizes) < 2 or sizes.max() < 0.05 * grey.size:
        return None
    lit = ndimage.binary_fill_holes(labels == sizes.argmax())
    border = _border(grey, lit, dark)
    if len(border) < 12:
        return None
    circle = _circle(border, limit=max(grey.shape))
    if circle is None:
        return None
    (cx, cy, radius), support = circle
    y, x = np.ogrid[: grey.shape[0], : grey.shape[1]]
    away = (x - cx) ** 2 + (y - cy) ** 2
    coverage = min(1.0, float((lit & (away <= radius**2)).sum() / (np.pi * radius**2)))
    outside = (lit & (away > (1.03 * radius + 1) ** 2)).sum() / lit.sum()
    if support < _MIN_SUPPORT or coverage < 0.5 or outside > 0.05 or radius < 0.2 * min(grey.shape):
        return None
    return support, FieldOfView(cx, cy, radius, coverage)


def _border(grey: Floats, lit: NDArray[np.bool_], dark: float) -> Floats:
    """Where the region begins and ends in every row and column, [n, 2] as (x, y), but not at the picture's own edge.

    Between pixels the border lies where the light that the edge pixels hold, as a share of the light a little further
    in, is used up: a pixel half covered counts half."""
    points = []
    for values, mask, flip in ((grey, lit, False), (grey.T, lit.T, True)):
        lines = np.flatnonzero(mask.sum(axis=1) >= 6)
        for sign in (1, -1):
            v, m = values[lines][:, ::sign], mask[lines][:, ::sign]
            first = m.argmax(axis=1)
            off_edge = first >= 1
            row = np.flatnonzero(off_edge)
            near = first[off_edge][:, None] + np.arange(-1, 2)
            full = np.maximum(v[row, first[off_edge] + 2], v[row, first[off_edge] + 3]) - dark
            share = np.clip((v[row[:, None], near] - dark) / np.maximum(full, 1)[:, None], 0, 1).sum(axis=1)
            at = near[:, 2] + 0.5 - share
            along = at if sign == 1 else values.shape[1] - 1 - at
            across = lines[off_edge].astype(np.float64)
            points.append(np.column_stack((across, along) if flip else (along, across)))
    return np.concatenate(points)


def _circle(points: Floats, limit: float) -> tuple[tuple[float, float, float], float] | None:
    """Centre, radius and support of the circle nearest most points: consensus of three-point circles (Fischler and
    Bolles 1981) from a fixed seed, then least squares on the distances of the points that agree."""
    jury = points[:: -(-len(points) // _JURY)]
    a, b, c = jury[np.random.default_rng(0).integers(0, len(jury), (_TRIES, 3))].transpose(1, 0, 2)
    ab, ac = b - a, c - a
    area = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        bb, cc = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
        centre = a + np.column_stack((ac[:, 1] * bb - ab[:, 1] * cc, ab[:, 0] * cc - ac[:, 0] * bb)) / area[:, None]
        radius = np.hypot(*(centre - a).T)
    fine = np.isfinite(radius) & (radius < limit) & (radius > 4)
    if not fine.any():
        return None
    centre, radius = centre[fine], radius[fine]
    miss = np.abs(np.hypot(*(jury[None] - centre[:, None]).transpose(2, 0, 1)) - radius[:, None])
    winner = int((miss < np.maximum(_TOLERANCE * radius, 0.7)[:, None]).sum(axis=1).argmax())
    (cx, cy), r = centre[winner], radius[winner]
    for _ in range(5):  # Gauss-Newton; agreement is judged again each time
        agree = np.abs(np.hypot(*(points - (cx, cy)).T) - r) < max(_TOLERANCE * r, 0.7)
        if agree.sum() < 8:
            return None
        x, y = (points[agree] - (cx, cy)).T
        away = np.hypot(x, y)
        step = np.linalg.lstsq(np.column_stack((x / away, y / away, np.ones_like(x))), away - r, rcond=None)[0]
        cx, cy, r = cx + step[0], cy + step[1], r + step[2]
    return (float(cx), float(cy), float(r)), float(agree.mean())
