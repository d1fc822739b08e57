"""Where disc and macula lie in a photograph, and how far apart two sets are in any number taken of each photograph.

The disc is a bright blob where upright vessels meet, as in `data.views.disc_likeness`. The macula is the darkest region
without vessels where it can lie: 15.5° from the disc towards the temple and a little below. On which side that is, is
not asked of the file: it is where the field has more room, unless the disc lies in the middle.

Distances between sets are of whole distributions: a generator that draws the mean count in every photograph is far off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dr_platform.data.fundus import FieldOfView, Pixels, brightest, find_field_of_view, mean_over_seen, on_field
from dr_platform.data.views import LIKENESS_SIDE, disc_likeness
from dr_platform.errors import DataError, EvaluationError
from dr_platform.evaluation.estimate import Estimate

FIELD_MM = 13.0  # retina across a field of 45°
_DARK = 12  # grey levels, of the brightest channel: not seen
_RIM = 0.975  # of the radius
_GROUND_MM = 0.4  # sigma of the local ground
_SMALLER = 4  # what is smooth is found on a grid so many times coarser

# Of the disc, in radii of the field: where it is sought. Of the macula, as seen from the disc: where it is expected
# and how far it strays, in radii and degrees (below the horizontal). 15.5° are 0.69 radii of a 45° field, 0.52 of 60°.
_DISC_WITHIN, _DISC_HIGH = 0.85, 0.45
_NO_SIDE = 0.25  # a disc nearer to the middle lies on no side of it
_AWAY, _AWAY_SD = 0.65, 0.12
_BELOW, _BELOW_SD = 6.0, 8.0
_EITHER = 0.15  # a disc so near to the middle may have its macula on either side
CERTAIN_DISC = 3.0  # standard deviations of likeness
COARSEST_FIELD_PX = 100  # across

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Disc and macula of one photograph; all are None where `reason` says why. (x, y) in pixels."""

    disc_xy: tuple[float, float] | None = None
    macula_xy: tuple[float, float] | None = None
    distance: float | None = None  # between them, in radii of the field
    angle_deg: float | None = None  # of the macula below the horizontal through the disc
    certainty: float = 0.0  # of the disc: its likeness in standard deviations
    upright: float | None = None  # how much more to the left or right looks like a disc than above and below; likewise
    reason: str | None = None


def disc_and_macula(image: Pixels, fov: FieldOfView | None = None) -> Geometry:
    """Where disc and macula lie in a photograph, uint8 [R, R, 3], that is upright.

    fov: its field, found if not given. A field below `COARSEST_FIELD_PX` across, or one in which nothing looks like a
    disc, gives None with the reason. Raises EvaluationError for what is no such picture.
    """
    fov = field_of(image) if fov is None else fov
    if 2 * fov.radius < COARSEST_FIELD_PX:
        return Geometry(
            reason=f"the field is {2 * fov.radius:.0f} pixels wide; disc and macula need {COARSEST_FIELD_PX}"
        )
    likeness, seen = disc_likeness(image, fov)
    y, x = (np.mgrid[:LIKENESS_SIDE, :LIKENESS_SIDE] - (LIKENESS_SIDE - 1) / 2) / (LIKENESS_SIDE / 2)
    place = seen & (np.hypot(x, y) < _DISC_WITHIN) & (np.abs(y) < _DISC_HIGH)
    best = float(likeness[place].max()) if place.any() else 0.0
    upright = _upright(likeness, x, y, seen)
    if best < CERTAIN_DISC:
        why = f"nothing looks like a disc: likeness {best:.1f} of at least {CERTAIN_DISC:.1f} SD"
        return Geometry(certainty=best, upright=upright, reason=why)
    disc = _centre(likeness, x, y, place, 0.10)
    macula = _macula(image, fov, seen, x, y, disc)
    if macula is None:
        why = "the field holds no place where the macula of such a disc can lie"
        return Geometry(certainty=best, upright=upright, reason=why)
    across, down = macula[0] - disc[0], macula[1] - disc[1]
    disc_xy, macula_xy = ((fov.cx + fov.radius * a, fov.cy + fov.radius * b) for a, b in (disc, macula))
    angle = math.degrees(math.atan2(down, abs(across)))
    return Geometry(disc_xy, macula_xy, math.hypot(across, down), angle, best, upright)


def _upright(likeness: NDArray[Any], x: Floats, y: Floats, seen: NDArray[np.bool_]) -> float | None:
    """Positive where a disc lies beside the middle, as in an upright eye; negative where one lies above or below it."""
    around = seen & (np.hypot(x, y) < _DISC_WITHIN) & (np.hypot(x, y) > _NO_SIDE)
    beside, apart = around & (np.abs(x) > np.abs(y)), around & (np.abs(x) < np.abs(y))
    if not beside.any() or not apart.any():
        return None
    return float(likeness[beside].max() - likeness[apart].max())


def _macula(
    image: Pixels, fov: FieldOfView, seen: NDArray[np.bool_], x: Floats, y: Floats, disc: tuple[float, float]
) -> tuple[float, float] | None:
    """Centre (x, y) of the macula in radii from the field's centre."""
    green, _ = on_field(np.ascontiguousarray(image[..., 1]), fov, LIKENESS_SIDE, Image.Resampling.BOX)
    side = LIKENESS_SIDE
    ground = mean_over_seen(green, seen, 0.17 * side)
    dark = 1 - mean_over_seen(green, seen, 0.035 * side) / np.maximum(ground, 4)
    fine = np.abs(green - mean_over_seen(green, seen, 0.012 * side)) / np.maximum(ground, 4)
    vessels = mean_over_seen(fine, seen, 0.03 * side)
    likeness = (dark - np.median(dark[seen])) / dark[seen].std() - 0.5 * (vessels / np.median(vessels[seen]) - 1)
    across, down = x - disc[0], y - disc[1]
    off = (np.hypot(across, down) - _AWAY) / _AWAY_SD
    turned = (np.degrees(np.arctan2(down, np.abs(across))) - _BELOW) / _BELOW_SD
    likely = likeness - 0.2 * (off**2 + turned**2)
    temporal = np.ones_like(seen) if abs(disc[0]) < _EITHER else across * disc[0] < 0
    place = seen & temporal & (np.abs(off) < 3) & (np.abs(turned) < 3)
    return _centre(likely, x, y, place, 0.08) if place.any() else None


def _centre(likeness: Floats, x: Floats, y: Floats, place: NDArray[np.bool_], reach: float) -> tuple[float, float]:
    """Centre of mass of what exceeds half a standard deviation below the peak, within reach of it."""
    peak = int(np.where(place, likeness, -np.inf).argmax())
    near = np.hypot(x - x.flat[peak], y - y.flat[peak]) < reach
    weight = np.clip(likeness - likeness.flat[peak] + 1.0, 0, None) * near
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


# ---- the field -----------------------------------------------------------------------------------------------------


def field_of(image: Pixels) -> FieldOfView:
    """The field of a prepared photograph, uint8 [R, R, 3]: as found in it, or else the circle that fills the square.

    Raises EvaluationError for what is no such picture.
    """
    check_image(image)
    try:
        return find_field_of_view(image)
    except DataError:  # a generated picture need not show any
        side = image.shape[0]
        return FieldOfView((side - 1) / 2, (side - 1) / 2, side / 2, 1.0)


def check_image(image: Pixels) -> None:
    """Raises EvaluationError for anything but uint8 [R, R, 3] with R ≥ 16."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise EvaluationError(
            f"an image is {image.dtype} {list(image.shape)}; a prepared one, uint8 [R, R, 3], is needed."
        )
    if image.shape[0] < 16:
        raise EvaluationError(f"an image is {image.shape[0]} pixels wide; at least 16 are needed.")


def seen_in(image: Pixels, fov: FieldOfView) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which pixels [R, R] show retina, a margin left out, and their distance from the field's centre in radii."""
    side = image.shape[0]
    y, x = np.ogrid[:side, :side]
    rho = (np.hypot(x - fov.cx, y - fov.cy) / fov.radius).astype(np.float32)
    lit = ndimage.binary_closing(np.pad(brightest(image) > _DARK, 2, mode="edge"), iterations=2)[2:-2, 2:-2]
    margin = max(1, round(0.01 * fov.radius))
    lit = ndimage.minimum_filter(lit.astype(np.uint8), 2 * margin + 1, mode="nearest").astype(bool)
    return lit & (rho < _RIM), rho


def darkness(green: Pixels, seen: NDArray[np.bool_], radius: float) -> NDArray[np.float32]:
    """Share of the local ground's light that is missing, negative where there is more; 0 where nothing is seen."""
    ground = smooth(green.astype(np.float32), seen, _GROUND_MM / (FIELD_MM / 2) * radius)
    return np.where(seen, 1 - green / np.maximum(ground, 4), 0).astype(np.float32)


def smooth(values: NDArray[np.float32], seen: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Gaussian mean over what is seen, found on the coarser grid."""
    height, width = values.shape
    coarse = (math.ceil(width / _SMALLER), math.ceil(height / _SMALLER))
    share = _resized(seen.astype(np.float32), coarse, Image.Resampling.BOX)
    total = _resized(np.where(seen, values, 0).astype(np.float32), coarse, Image.Resampling.BOX)
    mean = mean_over_seen(total / np.maximum(share, 1e-6), share, sigma / _SMALLER)
    return _resized(mean.astype(np.float32), (width, height), Image.Resampling.BILINEAR)


def _resized(values: NDArray[np.float32], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(values).resize(size, how))


# ---- two sets ------------------------------------------------------------------------------------------------------


def distance_between(
    real: Floats,
    fake: Floats,
    *,
    kind: Literal["ks", "w1"],
    seed: int,
    groups: NDArray[np.int_] | None = None,
    fake_groups: NDArray[np.int_] | None = None,
    draws: int = 500,
) -> Estimate:
    """Distance between the distributions of a number taken of each photograph, with a 95 % interval.

    ks: the largest gap of the distribution functions, in [0, 1]. w1: how far values move on average to make one set the
    other, in standard deviations of the real ones. groups, fake_groups: the patient of each photograph.
    real, fake: [n]; NaN, what could not be measured, is left out, and `spread_kind` says of how many.

    Interval: quarters of the patients drawn without replacement on both sides; deviations shrink by √3, the
    finite-population factor. Those in which all real values are equal have no w1 and are left out. Distances of samples
    are too large. Where the sets are alike the excess falls with 1 / √n, so that quarters exceed the value by what it
    exceeds the truth; that is taken off the lower end. Where they differ it is smaller, by an unknown share, so the
    upper end is left, and takes the longer of the two tails: near 0 that of small values is cut short. In simulations
    of 80 patients a side it misses the truth in 1-6 %, but ks of sets that are alike in 5-10 %: whether sets differ at
    all is a question for a permutation test.
    Raises EvaluationError with fewer than 8 patients on either side, or for w1 real values that are equal, all or in
    most quarters.
    """
    sides = [_measured(real, groups, "real"), _measured(fake, fake_groups, "generated")]
    rng = np.random.default_rng(seed)
    values = np.concatenate([values for values, _ in sides])
    order = np.argsort(values, kind="stable")
    split = len(sides[0][0])
    whole = np.ones((1, len(values)))
    drawn = np.concatenate([_quarters(rng, owner, draws) for _, owner in sides], axis=1)
    if kind == "w1" and not np.ptp(sides[0][0]) > 0:
        raise EvaluationError("all real values are equal: they have no standard deviation. Use kind ks.")
    value = float(_gap(values, whole, order, split, kind)[0])
    sample = np.concatenate([_gap(values, part, order, split, kind) for part in np.array_split(drawn, 20)])
    there = np.isfinite(sample)
    if there.mean() < 0.5:
        raise EvaluationError(
            f"in {1 - there.mean():.0%} of the quarters all real values are equal: they have no standard deviation. "
            "Use kind ks, or more images."
        )
    sample = sample[there]
    excess, off = sample.mean() - value, (sample - sample.mean()) / math.sqrt(3)
    below, above = np.quantile(off, (0.975, 0.025))
    low, high = value - excess - below, value + max(below, -above)
    left_out = len(real) + len(fake) - len(values)
    everyone = len(real) + len(fake)
    how = f"{draws} quarters of the patients without replacement; {left_out} of {everyone} not measured"
    return Estimate(value, float(off.std()), how, max(0.0, float(low)), max(0.0, float(high)))


def _measured(values: Floats, groups: NDArray[np.int_] | None, side: str) -> tuple[Floats, NDArray[np.int_]]:
    """The values that are finite, and their patients counted from 0."""
    values = np.asarray(values, np.float64)
    owner = np.arange(len(values)) if groups is None else np.asarray(groups)
    if len(owner) != len(values):
        raise EvaluationError(f"{len(values)} {side} values have {len(owner)} patients; give one for each value.")
    there = np.isfinite(values)
    owner = np.unique(owner[there], return_inverse=True)[1]
    patients = int(owner.max()) + 1 if len(owner) else 0
    if patients < 8:
        raise EvaluationError(f"{patients} {side} patients could be measured; an interval needs at least 8.")
    return values[there], owner


def _quarters(rng: np.random.Generator, owner: NDArray[np.int_], draws: int) -> Floats:
    """Weights [draws, n] of 1 for the photographs of a random quarter of the patients, else 0."""
    patients = int(owner.max()) + 1
    chosen = rng.random((draws, patients)).argsort(axis=1).argsort(axis=1) < round(patients / 4)
    return chosen[:, owner].astype(np.float64)


def _gap(values: Floats, weights: Floats, order: NDArray[np.int_], split: int, kind: str) -> Floats:
    """Distance of the weighted real values (the first `split`) from the other ones, for each row of weights.

    w1 is over the standard deviation of the same weighted values, whose own error then counts too; NaN where that is 0.
    """
    share = np.concatenate(
        [
            weights[:, :split] / weights[:, :split].sum(axis=1, keepdims=True),
            -weights[:, split:] / weights[:, split:].sum(axis=1, keepdims=True),
        ],
        axis=1,
    )
    ahead = np.abs(np.cumsum(share[:, order], axis=1))[:, :-1]
    steps = np.diff(values[order])
    if kind == "ks":
        return (ahead * (steps > 0)).max(axis=1)
    real = values[:split] - values[:split].mean()
    mean, square = share[:, :split] @ real, share[:, :split] @ real**2
    variance = square - mean**2
    variance[variance <= 1e-12 * np.square(real).mean()] = np.nan  # equal values, but for rounding
    return (ahead @ steps) / np.sqrt(variance)
