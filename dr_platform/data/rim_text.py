"""Text burned into a photograph beside the retina or on its rim: names, dates, numbers that de-identification missed.

Letters are thin strokes, lighter than what is behind them (darker on a white surround), of one height and side by side.
So strokes are what a morphological opening removes; those beyond the field, or on its rim, are gathered into lines, and
a line is text when a cut through its middle meets several strokes. Notches and orientation tabs are single and thick,
the ringing of JPEG is faint. What is found is for a person to look at; nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import csgraph

from dr_platform.data.fundus import FieldOfView, Pixels, white_surround

Mask = NDArray[np.bool_]
Array = NDArray[Any]

_WORKING_SIDE = 1024  # longer side at which strokes are sought, at least
_MIN_RADIUS = 32  # pixels: what is smaller holds no legible text
_RIM = 0.90  # share of the radius from which strokes count
_OUTSIDE = 0.96  # share of the radius that the outermost part of most letters must pass
_MIN_STEP = 24  # grey levels of a stroke over what is behind it beyond the field, and of a stroke on the rim:
_MIN_STEP_RIM = 45
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
    away = np.hypot(x - fov.cx, y - fov.cy) / fov.radius
    beyond = away > 1.02
    to_edge = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    away = np.maximum(away, 1 - to_edge / fov.radius)
    size = 2 * round(max(3.0, 0.03 * fov.radius)) + 1
    over = np.zeros((height, width), np.uint8)  # steps over the background, of the channel that shows them best
    white = white_surround(image)
    on_white = bool((white & beyond).sum() > 0.5 * beyond.sum()) if beyond.any() else False
    for channel in np.moveaxis(image, 2, 0):
        raised = channel - np.minimum(ndimage.grey_opening(channel, (size, size)), channel)
        if on_white:
            sunk = np.maximum(ndimage.grey_closing(channel, (size, size)), channel) - channel
            raised = np.where(beyond, sunk, raised)
        over = np.maximum(over, raised)
    noise = float(np.median(over[beyond])) if beyond.any() else 0.0
    step = np.where(beyond, _MIN_STEP + 4 * noise, _MIN_STEP_RIM + 4 * noise)
    return (over > step) & (away > _RIM), away


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
