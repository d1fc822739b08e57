"""What can be said of a photograph's quality without a grader: is it a fundus photograph, lit well, in focus, whole?

Everything is measured on the lit field, at one size of it, so that cameras compare. Measuring and judging are apart:
`measure` gives numbers, `judge` compares them with limits that a site may move, and names each number that fails. A
picture without a circular field is not judged further: noise, text, scenes and OCT scans end there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dr_platform.config import QualityConfig
from dr_platform.data.fundus import (
    FieldOfView,
    Pixels,
    brightest,
    find_field_of_view,
    mean_over_seen,
    on_field,
    white_surround,
)
from dr_platform.errors import DataError

Array = NDArray[Any]  # of 32-bit floats

_WORKING_SIDE = 512  # longer side at which a photograph is measured, at least
_DIAMETER = 256  # pixels across the field at which structure is measured, at most: 51 µm a pixel at 45°
_INSIDE = 0.9  # share of the radius that is measured: the rim has stray light, notches and text
_DARK, _BRIGHT = 10, 250  # grey levels at which a pixel holds no more detail
_LIT = 0.06  # between dark (0) and lit (1): the least light of a pixel within the field


@dataclass(frozen=True)
class Quality:
    """Measurements of one photograph. Where `field_found` is false only `aspect` means anything; the rest is 0."""

    field_found: bool
    aspect: float  # width over height of the picture
    radius: float = 0.0  # of the field, pixels of the picture as given
    coverage: float = 0.0  # share of the circle's area that is lit
    truncated: float = 0.0  # share of the circle's area that the sensor cut off
    exposure: float = 0.0  # mean brightness within the field, 0 to 255
    dark: float = 0.0  # share of the field without detail: all channels at most 10
    bright: float = 0.0  # share of the field without detail: two channels at 250 or more
    focus: float = 0.0  # root energy of the green channel's detail at 1-2 px over that at 4-8 px, at 256 px across
    contrast: float = 0.0  # standard deviation of green without its illumination, over its mean
    red: float = 0.0  # means within the field, 0 to 255
    green: float = 0.0
    blue: float = 0.0
    inverted: bool = False  # a negative: blue outshines green and green red
    fundus_like: float = 0.0  # 0 to 1: see `_fundus_like`


def measure(pixels: Pixels, fov: FieldOfView | None = None) -> Quality:
    """The quality of a photograph, uint8 [H, W, 3]. Raises DataError on another shape, type, or less than 16 pixels.

    fov: its field, for one of less than 1,024 pixels whose field is known.
    """
    _check(pixels)
    height, width = pixels.shape[:2]
    factor = max(1, max(height, width) // _WORKING_SIDE)
    small = pixels
    if factor > 1 and min(height, width) // factor >= 16:
        small = np.asarray(Image.fromarray(pixels).reduce(factor))
    try:
        fov = fov or find_field_of_view(small)
    except DataError:
        return Quality(field_found=False, aspect=width / height)
    colours = small[_within(small.shape[:2], fov, _INSIDE) & ~white_surround(small)]
    if not len(colours):
        return Quality(field_found=False, aspect=width / height)
    red, green, blue = (float(channel) for channel in colours.mean(axis=0))
    middle, most = _two_brightest(colours)
    focus, contrast, detail = _structure(small[..., 1], fov)
    return Quality(
        field_found=True,
        aspect=width / height,
        radius=fov.radius * factor,
        coverage=fov.coverage,
        truncated=_truncated(small, fov),
        exposure=0.299 * red + 0.587 * green + 0.114 * blue,
        dark=float((most <= _DARK).mean()),
        bright=float((middle >= _BRIGHT).mean()),
        focus=focus,
        contrast=contrast,
        red=red,
        green=green,
        blue=blue,
        inverted=red < green < blue,
        fundus_like=_fundus_like(red, green, blue, detail),
    )


def judge(quality: Quality, limits: QualityConfig | None = None) -> list[str]:
    """Why a photograph should not be used, each reason with the number found and the one needed; empty if fine."""
    q, t = quality, limits or QualityConfig()  # type: ignore[call-arg]  # mypy sees no default in Field(1.0)
    if not q.field_found:
        return ["no field of view is found; a lit disc on a dark or white surround is needed"]
    if q.inverted:
        return [
            f"colours are inverted: red {q.red:.0f} < green {q.green:.0f} < blue {q.blue:.0f}; a positive is needed"
        ]
    aspect = max(q.aspect, 1 / q.aspect)
    detailed = q.radius >= t.detail_radius
    checks = (
        ("the field's radius is", q.radius, ".0f", t.min_radius, math.inf, " px"),
        ("the longer side over the shorter is", aspect, ".2f", 1.0, t.max_aspect, ""),
        ("the lit share of the field is", q.coverage, ".2f", t.min_coverage, math.inf, ""),
        ("the share of the field cut off is", q.truncated, ".2f", 0.0, t.max_truncated, ""),
        ("mean brightness is", q.exposure, ".0f", t.min_exposure, t.max_exposure, ""),
        ("the share too dark for detail is", q.dark, ".2f", 0.0, t.max_dark, ""),
        ("the share too bright for detail is", q.bright, ".2f", 0.0, t.max_bright, ""),
        ("contrast is", q.contrast, ".3f", t.min_contrast if detailed else 0.0, math.inf, ""),
        ("focus is", q.focus, ".3f", t.min_focus if detailed else 0.0, math.inf, ""),
        ("likeness to a fundus is", q.fundus_like, ".2f", t.min_fundus_like, math.inf, ""),
    )
    reasons = []
    for what, value, form, least, most, unit in checks:
        if value < least:
            reasons.append(f"{what} {value:{form}}{unit}; at least {least:{form}}{unit} is needed")
        elif value > most:
            reasons.append(f"{what} {value:{form}}{unit}; at most {most:{form}}{unit} is allowed")
    return reasons


# ---- measurements --------------------------------------------------------------------------------------------------


def _check(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        found = f"{image.dtype} {list(image.shape)}"
        raise DataError(f"an image is {found}; uint8 [height, width, 3] of at least 16 x 16 is needed (RGB).")


def _within(shape: tuple[int, ...], fov: FieldOfView, share: float) -> NDArray[np.bool_]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x - fov.cx) ** 2 + (y - fov.cy) ** 2 <= (share * fov.radius) ** 2


def _two_brightest(colours: Pixels) -> tuple[Pixels, Pixels]:
    """The middle and the largest of each pixel's three channels, [n, 3]."""
    a, b, c = np.ascontiguousarray(colours.T)
    lower, higher = np.minimum(a, b), np.maximum(a, b)
    return np.maximum(lower, np.minimum(higher, c)), np.maximum(higher, c)


def _truncated(image: Pixels, fov: FieldOfView) -> float:
    """Share of the circle's area beyond the sensor: outside the picture, or in the black bands some cameras add."""
    grey = brightest(image)
    dark, lit = (float(level) for level in np.percentile(grey, (1, 95)))
    bright = (grey > dark + _LIT * (lit - dark)) & _within(grey.shape, fov, 1.0)
    line = (np.arange(200) + 0.5) / 100 - 1
    kept = []
    for axis, centre in ((1, fov.cy), (0, fov.cx)):
        many = bright.sum(axis=axis)
        used = np.flatnonzero(many >= max(1.0, 0.1 * fov.radius))
        low, high = (used[0], used[-1]) if len(used) else (0, -1)
        # A cut ends in a chord, the circle itself in a short row: only what lies clearly within it counts as cut.
        low, high = (low - 0.5 - centre) / fov.radius, (high + 0.5 - centre) / fov.radius
        kept.append((line >= (low if low > -0.95 else -1)) & (line <= (high if high < 0.95 else 1)))
    circle = np.hypot(line[:, None], line[None, :]) <= 1
    return float(1 - (circle & kept[0][:, None] & kept[1][None, :]).sum() / circle.sum())


def _structure(green: NDArray[np.uint8], fov: FieldOfView) -> tuple[float, float, float]:
    """Focus, contrast, and the share of energy in the finest detail, of the field at up to 256 pixels across."""
    diameter = int(min(_DIAMETER, 2 * fov.radius))
    values, seen = _on_circle(green, fov, diameter)
    flat = values - mean_over_seen(values, seen, diameter / 16)
    core = seen & (ndimage.distance_transform_edt(np.pad(seen, 1))[1:-1, 1:-1] > 3)
    if core.sum() < 16:
        return 0.0, 0.0, 1.0
    blurred = {0.0: flat} | {sigma: mean_over_seen(flat, seen, sigma) for sigma in (1.0, 2.0, 4.0, 8.0)}
    energy = {low: float(((blurred[low] - blurred[high])[core] ** 2).mean())
              for low, high in ((0.0, 1.0), (1.0, 2.0), (4.0, 8.0))}  # fmt: skip
    # Of the energy of white noise the finest band holds 0.761 and the next 0.036. What the finest holds is taken as
    # noise, so that noise does not pass for focus.
    fine = max(energy[1.0] - 0.036 / 0.761 * energy[0.0], 0.0)
    focus = math.sqrt(fine / max(energy[4.0], 1e-3))
    total = float(flat[core].var())
    return focus, math.sqrt(total) / max(float(values[core].mean()), 1.0), energy[0.0] / max(total, 1e-6)


def _on_circle(channel: NDArray[np.uint8], fov: FieldOfView, side: int) -> tuple[Array, NDArray[np.bool_]]:
    """A channel on the field's bounding square, [side, side], and which of its pixels are well within the field."""
    # By area, which leaves white noise white: `_structure` counts on it.
    values, seen = on_field(channel, fov, side, Image.Resampling.BOX)
    centre = FieldOfView((side - 1) / 2, (side - 1) / 2, side / 2, 1.0)
    return values, seen & _within((side, side), centre, _INSIDE)


def _fundus_like(red: float, green: float, blue: float, detail: float) -> float:
    """The weaker of two memberships, 0 to 1.

    Colour: blood and pigment leave red more than green and green more than blue. Smoothness: a retina's energy is in
    its large structures; in noise, text and textures it is in the finest."""
    colour = min(red / max(green, 1.0), red / max(blue, 1.0))
    return min(_ramp(colour, 0.95, 1.15), _ramp(-detail, -0.75, -0.45))


def _ramp(value: float, none: float, full: float) -> float:
    return min(max((value - none) / (full - none), 0.0), 1.0)
