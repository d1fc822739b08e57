"""The border of the field of view, where generators fail first: is it a circle, is it sharp, is it dark beyond?

Every picture's field is found as in the data pipeline; its border is then measured along rays from the centre, between
pixels. A field whose top or bottom the sensor cut off is a circle with chords, and its border lies on either.

Positions are (x, y) in pixels, pixel centres at integers; radii are shares of the field's radius unless said in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dr_platform.data.fundus import FieldOfView, brightest, find_field_of_view
from dr_platform.errors import DataError, EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.two_sample import Distance, distance

Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]
Crop = Literal["linear", "area"]
Region = Literal["rim", "centre", "whole"]

RIM = (0.85, 1.05)  # of the radius
CROP = 0.8  # of the width ("linear") or of the area ("area")
RADII = 40  # of the rim's profile
MEASURES = ("residual_px", "rim_width_px", "outside")

_RAYS = 256
_STEP_PX = 0.25
_NEAR = 0.06  # of the radius: a border point further in lies on a chord, or shows no border
_CHORD_SHARE = 0.04  # of the rays that must end on a chord
_EDGE_PX = 8.0  # how far from the border the edge is followed
_PLATEAU_PX = 4.0  # further in, the light that the edge is measured against
_SCALES = (1.0, 2.0, 4.0)  # pixels, of the local features
_CELLS = 8  # sectors of the rim


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Measures of n pictures; NaN where no field was found.

    residual_px: root mean square distance of border points from the fitted circle or its chords. rim_width_px: 10-90 %
    width of the edge, median over rays. outside: share of the picture's energy (squared brightness) beyond 1.05 radii.
    profiles: mean brightness, grey levels, on `RADII` circles evenly from 0.85 to 1.05 radii; NaN outside the frame.
    """

    fields: tuple[FieldOfView | None, ...]
    residual_px: Floats  # [n]
    rim_width_px: Floats  # [n]
    outside: Floats  # [n]
    profiles: Floats  # [n, RADII]

    @property
    def missing(self) -> int:
        """How many pictures show no field of view."""
        return sum(field is None for field in self.fields)


@dataclass(frozen=True)
class BoundaryDifference:
    """Fakes against reals: `Distance` by measure as in `MEASURES`, and of the profile.

    profile: of the sets' brightness on each circle, averaged over the circles that most pictures show, in grey levels.
    found: share of pictures with a field, reals and fakes.
    """

    measures: dict[str, Distance]
    profile: Distance
    found: tuple[float, float]


def boundaries(images: Pixels) -> Boundaries:
    """The border of each picture, uint8 [n, R, R, 3]. Raises EvaluationError for other shapes."""
    _check(images)
    fields, rows, profiles = [], [], []
    for image in images:
        field = _field(image)
        fields.append(field)
        if field is None:
            rows.append((math.nan, math.nan, math.nan))
            profiles.append(np.full(RADII, math.nan))
            continue
        rays = _rays(image, field)
        rows.append((_residual(rays), _rim_width(rays), _outside(image, field)))
        profiles.append(_profile(image, field))
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES))
    residual, width, outside = table.T
    return Boundaries(tuple(fields), residual, width, outside, np.array(profiles).reshape(-1, RADII))


def compare(
    real: Boundaries,
    fake: Boundaries,
    groups_real: NDArray | None = None,
    groups_fake: NDArray | None = None,
    *,
    repeats: int = 400,
    seed: int = 0,
) -> BoundaryDifference:
    """Distances between the sets' measures, with intervals and p by patient; pictures without a field are left out.

    Raises EvaluationError where fewer than 4 patients on either side show a field.
    """
    owners = intervals.patients(groups_real, len(real.fields)), intervals.patients(groups_fake, len(fake.fields))
    measures = {
        name: distance(getattr(real, name), getattr(fake, name), *owners, repeats=repeats, seed=seed)
        for name in MEASURES
    }
    seen = np.minimum(np.isfinite(real.profiles).mean(axis=0), np.isfinite(fake.profiles).mean(axis=0)) > 0.5
    if not seen.any():
        raise EvaluationError(
            "most pictures show no rim: there is no field, or it fills the frame. Give whole pictures."
        )
    profile = distance(real.profiles[:, seen], fake.profiles[:, seen], *owners, repeats=repeats, seed=seed)
    found = 1 - real.missing / len(real.fields), 1 - fake.missing / len(fake.fields)
    return BoundaryDifference(measures, profile, found)


def centre_crop(images: Pixels, kind: Crop = "linear") -> Pixels:
    """The middle of pictures [n, R, R, 3]: 80 % of the width ("linear", 410 of 512) or of the area ("area", 458).

    The side is the nearest that leaves the same margin all around. Raises EvaluationError for another kind.
    """
    if kind not in ("linear", "area"):
        raise EvaluationError(f"a centre crop is 'linear' or 'area', not {kind!r}.")
    size = images.shape[1]
    off = margin(size, kind)
    return images[:, off : size - off, off : size - off]


def margin(size: int, kind: Crop = "linear") -> int:
    """What `centre_crop` takes off each side of a picture `size` wide, in pixels."""
    return round(size * (1 - (CROP if kind == "linear" else math.sqrt(CROP))) / 2)


def region(images: Pixels, which: Region, crop: Crop = "linear") -> Pixels:
    """Pictures that show only a part, for any extractor: the rim's ring on black, the centre crop, or the whole.

    A picture without a field of view has its ring around the largest circle in the frame.
    Raises EvaluationError for another region.
    """
    _check(images)
    if which == "whole":
        return images
    if which == "centre":
        return centre_crop(images, crop)
    if which != "rim":
        raise EvaluationError(f"a region is 'rim', 'centre' or 'whole', not {which!r}.")
    shown = images.copy()
    for picture in shown:
        distance_from = _distances(picture, _field_or_frame(picture))
        picture[(distance_from < RIM[0]) | (distance_from > RIM[1])] = 0
    return shown


def local_features(images: Pixels, which: Region, crop: Crop = "linear") -> Floats:
    """Simple local features [n, d] of a region, for `two_sample.separability`; float64.

    rim: brightness and its roughness along each of `RADII` circles. centre, whole: per colour channel mean, deviation
    and the logarithm of the energy of differences and of blobs at 1, 2 and 4 pixels.
    """
    if which == "rim":
        _check(images)
        return np.stack([_rim_features(image) for image in images])
    return np.stack([_texture_features(image) for image in region(images, which, crop)])


# ---- along rays ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rays:
    """Brightness on rays, [rays, steps], NaN beyond the frame; where each crosses half of its light, NaN if nowhere."""

    field: FieldOfView
    angles: Floats
    radii: Floats  # [steps], pixels
    values: Floats  # share of the light just inside, 0 in the dark
    border: Floats  # [rays], pixels from the centre


def _rays(image: Pixels, field: FieldOfView) -> _Rays:
    angles = np.arange(_RAYS) * (2 * math.pi / _RAYS)
    radii = np.arange(0.6 * field.radius, 1.12 * field.radius + _EDGE_PX, _STEP_PX)
    values = _sample(brightest(image), field, angles, radii)
    beyond = values[:, radii > 1.04 * field.radius]
    dark = float(np.nanmedian(beyond)) if np.isfinite(beyond).any() else 0.0
    light = _light(values, radii, field.radius) - dark
    values = (values - dark) / np.where(light > 0, light, np.nan)[:, None]
    return _Rays(field, angles, radii, values, _crossing(values, radii))


def _light(values: Floats, radii: Floats, radius: float) -> Floats:
    """The light of each ray just inside the border, whether that is the circle or a chord: [rays]."""
    near = _medians(values[:, (radii > 0.78 * radius) & (radii < 0.9 * radius)])
    inner = _medians(values[:, radii < 0.7 * radius])
    return np.where(near > 0.4 * inner, near, inner)


def _medians(values: Floats) -> Floats:
    """Of each row, over what lies within the frame; NaN where nothing does."""
    there = np.isfinite(values).any(axis=1)
    medians = np.full(len(values), np.nan)
    medians[there] = np.nanmedian(values[there], axis=1)
    return medians


def _crossing(values: Floats, radii: Floats) -> Floats:
    """The outermost place where a ray falls through one half, between its samples."""
    above = values >= 0.5
    falls = above[:, :-1] & (values[:, 1:] < 0.5)
    last = falls.shape[1] - 1 - falls[:, ::-1].argmax(axis=1)
    row = np.arange(len(values))
    upper, lower = values[row, last], values[row, last + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        at = radii[last] + _STEP_PX * (upper - 0.5) / (upper - lower)
    return np.where(falls.any(axis=1), at, np.nan)


def _residual(rays: _Rays) -> float:
    """Root mean square distance of the border from a circle fitted to it, or from the chords that cut it."""
    there = np.isfinite(rays.border)
    r, angle = rays.border[there], rays.angles[there]
    if len(r) < _RAYS // 4:
        return math.nan
    x, y = r * np.cos(angle), r * np.sin(angle)
    radius = float(np.quantile(r, 0.85))  # a blurred rim is found too far out; chords take up to half of the rays
    on_circle = np.abs(r - radius) < _NEAR * radius
    cx = cy = 0.0
    for _ in range(3):  # Gauss-Newton on distances
        away = np.hypot(x - cx, y - cy)
        design = np.column_stack(((x - cx) / away, (y - cy) / away, np.ones_like(x)))
        if on_circle.sum() < _RAYS // 8:
            return math.nan
        step = np.linalg.lstsq(design[on_circle], (away - radius)[on_circle], rcond=None)[0]
        cx, cy, radius = cx + float(step[0]), cy + float(step[1]), radius + float(step[2])
    apart = np.abs(np.hypot(x - cx, y - cy) - radius)
    inside = np.hypot(x - cx, y - cy) < radius * (1 - _NEAR / 2)
    for across in (x - cx, cx - x, y - cy, cy - y):
        cut = inside & (across > 0.5 * radius)
        if cut.sum() < _CHORD_SHARE * _RAYS:
            continue
        level = float(np.median(across[cut]))
        straight = np.abs(across - level)
        if (straight[cut] < 0.015 * radius).mean() > 0.6:
            apart = np.where(across > 0.5 * radius, np.minimum(apart, straight), apart)
    # What is still far off is no border but a shadow or a lash, unless it is most of them.
    kept = apart < _NEAR * radius
    return float(np.sqrt(np.square(apart[kept]).mean())) if kept.mean() > 0.5 else math.nan


def _rim_width(rays: _Rays) -> float:
    """From 90 to 10 % of the light, pixels, on the edge that is the median of all rays, each laid on its border."""
    near = np.isfinite(rays.border) & (np.abs(rays.border - rays.field.radius) < _NEAR * rays.field.radius + 1)
    if near.sum() < _RAYS // 8:
        return math.nan
    offsets = np.arange(-_EDGE_PX - _PLATEAU_PX, _EDGE_PX + _STEP_PX / 2, _STEP_PX)
    at = (rays.border[near, None] + offsets - rays.radii[0]) / _STEP_PX
    rows = np.broadcast_to(np.flatnonzero(near)[:, None], at.shape)
    edges = ndimage.map_coordinates(np.nan_to_num(rays.values), [rows, at], order=1, mode="nearest")
    edge = np.median(edges, axis=0)
    plateau = offsets < -_EDGE_PX
    fading = np.polyval(np.polyfit(offsets[plateau], edge[plateau], 1), np.minimum(offsets, 0))
    edge /= np.maximum(fading, 0.1)  # light fades towards the rim: that is no blur
    middle = int(np.searchsorted(offsets, 0))
    high = np.flatnonzero(edge[: middle + 1] >= 0.9)
    low = np.flatnonzero(edge[middle:] <= 0.1)
    if not len(high) or not len(low):
        return math.nan
    i, j = int(high[-1]), int(low[0]) + middle
    inner = offsets[i] + _STEP_PX * (edge[i] - 0.9) / max(edge[i] - edge[i + 1], 1e-9)
    outer = offsets[j] - _STEP_PX * (0.1 - edge[j]) / max(edge[j - 1] - edge[j], 1e-9)
    return float(outer - inner)


def _profile(image: Pixels, field: FieldOfView) -> Floats:
    values = _sample(brightest(image), field, np.arange(_RAYS) * (2 * math.pi / _RAYS), _rim_radii(field))
    seen = np.isfinite(values)
    return np.where(seen.sum(axis=0) >= _RAYS // 8, np.nansum(values, axis=0) / np.maximum(seen.sum(axis=0), 1), np.nan)


def _outside(image: Pixels, field: FieldOfView) -> float:
    squares = np.square(brightest(image).astype(np.float64))
    return float(squares[_distances(image, field) > RIM[1]].sum() / max(squares.sum(), 1.0))


def _sample(grey: Pixels, field: FieldOfView, angles: Floats, radii: Floats) -> Floats:
    """Bilinear values on rays, [rays, steps]; NaN beyond the outermost pixel centres."""
    x = field.cx + np.cos(angles)[:, None] * radii
    y = field.cy + np.sin(angles)[:, None] * radii
    return ndimage.map_coordinates(grey.astype(np.float64), [y, x], order=1, mode="constant", cval=math.nan)


def _rim_radii(field: FieldOfView) -> Floats:
    return np.linspace(*RIM, RADII) * field.radius


# ---- features ------------------------------------------------------------------------------------------------------


def _rim_features(image: Pixels) -> Floats:
    field = _field_or_frame(image)
    angles = np.arange(_RAYS) * (2 * math.pi / _RAYS)
    values = np.nan_to_num(_sample(brightest(image), field, angles, _rim_radii(field)))
    rough = np.sqrt(np.square(np.diff(values, axis=0, append=values[:1])).mean(axis=0))
    return np.concatenate((values.mean(axis=0), np.log(rough + 0.5)))


def _texture_features(image: Pixels) -> Floats:
    features: list[float] = []
    for channel in np.moveaxis(image.astype(np.float64), 2, 0):
        features += [float(channel.mean()), float(channel.std())]
        below = channel
        for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
            moved = np.roll(channel, shift, axis=(0, 1))
            features.append(_log_energy((channel - moved)[1:-1, 1:-1]))
        for scale in _SCALES:
            smooth = ndimage.gaussian_filter(channel, scale)
            features.append(_log_energy(below - smooth))
            below = smooth
    return np.array(features)


def _log_energy(values: Floats) -> float:
    # A quarter of a grey level, about the rounding of 8 bits: less energy than its square is none.
    return math.log(float(np.square(values).mean()) + 1 / 16)


# ---- fields --------------------------------------------------------------------------------------------------------


def _field(image: Pixels) -> FieldOfView | None:
    try:
        return find_field_of_view(image)
    except DataError:
        return None


def _field_or_frame(image: Pixels) -> FieldOfView:
    middle = (image.shape[0] - 1) / 2
    return _field(image) or FieldOfView(middle, middle, image.shape[0] / 2, 1.0)


def _distances(image: Pixels, field: FieldOfView) -> Floats:
    """Of each pixel from the field's centre, in radii: [H, W]."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    return np.hypot(x - field.cx, y - field.cy) / field.radius


def _check(images: Pixels) -> None:
    shape = list(np.shape(images))
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0] or min(shape[1:3]) < 16:
        raise EvaluationError(f"images are {images.dtype} {shape}; uint8 [n, R, R, 3], R at least 16, is needed.")
