"""Text burned into a photograph beside the retina or on its rim: names, dates, numbers that de-identification missed.

Letters are thin strokes, lighter than what is behind them (darker on a white surround), of one height and side by side.
So strokes are what a morphological opening removes; those beyond the field, or on its rim, are gathered into lines, and
a line is text when a cut through its middle meets several strokes. Notches and orientation tabs are single and thick,
the ringing of JPEG is faint. An opening also removes the retina between two vessels, so on the rim a stroke must be
lighter than the retina around it as well. What is found is for a person to look at; nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import csgraph

from dr_platform.data.fundus import FieldOfView, Pixels, mean_over_seen, white_surround

Mask = NDArray[np.bool_]
Array = NDArray[Any]

_WORKING_SIDE = 1024  # longer side at which strokes are sought, at least
_MIN_RADIUS = 32  # pixels: what is smaller holds no legible text
_RIM = 0.90  # share of the radius from which strokes count
_BEYOND = 1.02  # ... and from which a pixel lies beyond the field
_OUTSIDE = 0.96  # share of the radius that the outermost part of most letters must pass
_MIN_STEP = 24  # grey levels of a stroke over what is behind it beyond the field, and of a stroke on the rim:
_MIN_STEP_RIM = 45
_AROUND = 0.06  # of the radius: standard deviation of the Gaussian that says what the retina around a stroke is like
_BLOCK = 8  # pixels: a mean that wide is taken of a picture reduced by that
_MIN_HEIGHT = 5  # pixels of a letter
_MAX_HEIGHT = 0.25  # of the radius
_MIN_STROKES = 3  # that a cut along the line meets


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def find_text(pixels: Pixels, fov: FieldOfView) -> list[Box]:
    """Where text is burned into a photograph, uint8 [H, W, 3], beyond its field or on its rim; a box for each line.

    Letters of 5 pixels and more (at 1,024 to 2,047 along the longer side, to which larger pictures are reduced), three
    strokes and more to a line, level or upright. Nothing is sought in a field of less than 64 pixels across."""
    factor = max(1, max(pixels.shape[:2]) // _WORKING_SIDE)
    small = np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels
    shift = (factor - 1) / 2
    fov = FieldOfView((fov.cx - shift) / factor, (fov.cy - shift) / factor, fov.radius / factor, fov.coverage)
    if fov.radius < _MIN_RADIUS:
        return []
    strokes, away = _strokes(small, fov)
    boxes = _lines(strokes, away, fov.radius)
    boxes += [Box(b.top, b.left, b.bottom, b.right) for b in _lines(strokes.T, away.T, fov.radius)]
    height, width = pixels.shape[:2]
    return [
        Box(b.left * factor, b.top * factor, min(b.right * factor, width), min(b.bottom * factor, height))
        for b in _merged(boxes)
    ]


def _strokes(image: Pixels, fov: FieldOfView) -> tuple[Mask, Array]:
    """Which pixels belong to thin strokes beyond the field or on its rim, and how far out every pixel lies, in radii.

    Where the sensor cuts the field its rim is the picture's edge."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    away = np.sqrt((x - fov.cx) ** 2 + (y - fov.cy) ** 2, dtype=np.float32) / np.float32(fov.radius)
    beyond = away > _BEYOND
    retina = np.asarray(_retina_around(image, fov))
    white = white_surround(image)
    on_white = bool((white & beyond).sum() > 0.5 * beyond.sum()) if beyond.any() else False
    size = 2 * round(max(3.0, 0.03 * fov.radius)) + 1
    over = np.zeros((height, width), np.uint8)  # steps over the background, of the channel that shows them best
    lighter = np.zeros((height, width), np.uint8)  # ... and over the retina
    for band in range(3):
        channel = np.ascontiguousarray(image[..., band])
        raised = channel - _opened(channel, size)
        above = channel - np.minimum(retina[..., band], channel)
        if on_white:
            raised = np.where(beyond, 255 - channel - _opened(255 - channel, size), raised)
        np.maximum(over, raised, out=over)
        np.maximum(lighter, np.minimum(raised, above), out=lighter)
    noise = float(np.median(over[beyond])) if beyond.any() else 0.0
    to_edge = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    away = np.maximum(away, (1 - to_edge / fov.radius).astype(np.float32))
    found = np.where(beyond, over > _MIN_STEP + 4 * noise, lighter > _MIN_STEP_RIM + 4 * noise)
    return found & (away > _RIM), away


def _opened(channel: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Grey opening of [H, W] by a square of an odd number of pixels; the picture's edge is no background."""
    least = _running(_running(channel, size, 0, np.minimum), size, 1, np.minimum)
    return _running(_running(least, size, 0, np.maximum), size, 1, np.maximum)


def _running(channel: NDArray[np.uint8], size: int, axis: int, take: np.ufunc) -> NDArray[np.uint8]:
    """Minimum or maximum over a window of `size` along an axis, from windows of 1, 2, 4, ...: each from two halves.

    scipy's filter, one value at a time, takes ten times as long."""
    neutral = 255 if take is np.minimum else 0
    margin = [(size // 2, size // 2) if dimension == axis else (0, 0) for dimension in (0, 1)]
    windows = np.moveaxis(np.pad(channel, margin, constant_values=neutral), axis, 0)
    width, count = 1, channel.shape[axis]
    while 2 * width <= size:
        windows, width = take(windows[:-width], windows[width:]), 2 * width
    return np.moveaxis(take(windows[:count], windows[size - width : size - width + count]), 0, axis)


def _retina_around(image: Pixels, fov: FieldOfView) -> Image.Image:
    """What each pixel of the field would be without structure: a picture of the image's size, smooth."""
    coarse = Image.fromarray(image).reduce(_BLOCK)
    y, x = np.ogrid[: coarse.height, : coarse.width]
    shift = (_BLOCK - 1) / 2
    away = np.hypot(x * _BLOCK + shift - fov.cx, y * _BLOCK + shift - fov.cy)
    seen = (away < fov.radius - _BLOCK).astype(np.float32)
    sigma = _AROUND * fov.radius / _BLOCK
    means = [mean_over_seen(np.asarray(band, np.float32), seen, sigma) for band in coarse.split()]
    smooth = Image.fromarray(np.clip(np.rint(np.stack(means, axis=2)), 0, 255).astype(np.uint8))
    height, width = image.shape[:2]
    return smooth.resize((width, height), Image.Resampling.BILINEAR, box=(0, 0, width / _BLOCK, height / _BLOCK))


def _lines(strokes: Mask, away: Array, radius: float) -> list[Box]:
    """Boxes of the rows of letters that run level."""
    labels, count = ndimage.label(strokes, np.ones((3, 3)))
    if not count:
        return []
    spans = ndimage.find_objects(labels)
    letters = np.array([(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in spans])
    height = letters[:, 3] - letters[:, 1]
    furthest = np.zeros(count + 1)
    np.maximum.at(furthest, labels[strokes], away[strokes])  # over the strokes alone, which are few
    outermost = furthest[1:]
    fits = (height >= _MIN_HEIGHT) & (height <= _MAX_HEIGHT * radius)
    letters, outermost, numbers = letters[fits], outermost[fits], np.flatnonzero(fits) + 1
    boxes = []
    for line in _chains(letters):
        left, top = letters[line, :2].min(axis=0)
        right, bottom = letters[line, 2:].max(axis=0)
        if (outermost[line] > _OUTSIDE).mean() < 0.5 or right - left < 1.3 * (bottom - top):
            continue
        if bottom - top > _MAX_HEIGHT * radius:
            continue
        cut = np.isin(labels[top:bottom, left:right], numbers[line])
        if _crossings(cut) >= _MIN_STROKES:
            boxes.append(Box(int(left), int(top), int(right), int(bottom)))
    return boxes


def _chains(letters: Array) -> list[Array]:
    """Letters, [n, 4] as left, top, right, bottom, that stand side by side: positions of each line's."""
    if not len(letters):
        return []
    left, top, right, bottom = letters.T
    height = bottom - top
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    gap = np.maximum(left[:, None], left) - np.minimum(right[:, None], right)
    lower, higher = np.minimum(height[:, None], height), np.maximum(height[:, None], height)
    near = (shared >= 0.5 * lower) & (gap <= 1.2 * higher) & (higher <= 2.2 * lower)
    count, chain = csgraph.connected_components(near, directed=False)
    return [np.flatnonzero(chain == i) for i in range(count)]


def _crossings(cut: Mask) -> float:
    """How many strokes a level cut meets: the median over the middle rows of a line."""
    rows = cut[len(cut) // 4 : max(len(cut) // 4 + 1, len(cut) - len(cut) // 4)]
    starts = rows & ~np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
    return float(np.median(starts.sum(axis=1)))


def _merged(boxes: list[Box]) -> list[Box]:
    """The boxes without those that overlap a larger one."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: (b.left - b.right) * (b.bottom - b.top)):
        if not any(
            box.left < k.right and k.left < box.right and box.top < k.bottom and k.top < box.bottom for k in kept
        ):
            kept.append(box)
    return sorted(kept, key=lambda b: (b.top, b.left))
