"""Which way a photograph faces: on which side its disc lies, and how it is turned and mirrored on demand.

Looked at directly, the disc lies on the right in a right eye and on the left in a left one. A lens that inverts turns
the picture by half a turn, so the disc lies on the other side; so it does if the eye was named wrongly, or a picture
was mirrored on the way, and nothing in the picture tells these apart. Therefore the disc is only measured, what does
not agree is told, and a site says whether it is turned or left out. An eye that is not known is never guessed: some
would be mirrored and others not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dr_platform.config import PrepareConfig
from dr_platform.data.fundus import FieldOfView, Pixels, mean_over_seen, on_field

CERTAIN = 2.5  # of `disc_side`: 38 of 40 real photographs and 150 of 150 phantoms reach it, all on the right side
LIKENESS_SIDE = 128  # pixels across the field

_RIM = 0.93  # share of the radius that is looked at
_FAR, _HIGH = 0.82, 0.35  # where a disc is sought, in radii: from the centre, and above or below it
_NEAR = 0.2  # ... and at least so far to one side


@dataclass(frozen=True)
class View:
    """What is done to a photograph before it is prepared."""

    turned: bool = False  # by half a turn
    mirrored: bool = False  # left and right

    def apply(self, pixels: Pixels) -> Pixels:
        """The photograph, [H, W, 3], turned and mirrored."""
        if self.turned:
            pixels = pixels[::-1, ::-1]
        return np.ascontiguousarray(pixels[:, ::-1] if self.mirrored else pixels)


def disc_side(pixels: Pixels, fov: FieldOfView) -> float:
    """How much more the right half of a field holds a disc than the left, in standard deviations; left: negative.

    A disc is a bright blob of its size, in red and in green, where upright edges, those of the vessels, meet. From
    `CERTAIN` on the side is certain; less where the disc lies in the middle, beyond the field, or beside a larger
    bright lesion. pixels: uint8 [H, W, 3].
    """
    likeness, seen = disc_likeness(pixels, fov)
    y, x = (np.mgrid[:LIKENESS_SIDE, :LIKENESS_SIDE] - (LIKENESS_SIDE - 1) / 2) / (LIKENESS_SIDE / 2)
    place = seen & (np.hypot(x, y) < _FAR) & (np.abs(y) < _HIGH)
    right, left = place & (x > _NEAR), place & (x < -_NEAR)
    if not right.any() or not left.any():
        return 0.0
    return float(likeness[right].max() - likeness[left].max())


def disc_likeness(pixels: Pixels, fov: FieldOfView) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """How much each place looks like the middle of the disc, in standard deviations, and which places are seen.

    Both [LIKENESS_SIDE, LIKENESS_SIDE], on the field's bounding square. pixels: uint8 [H, W, 3].
    """
    side = LIKENESS_SIDE
    (red, seen), (green, _) = (
        on_field(np.ascontiguousarray(pixels[..., band]), fov, side, Image.Resampling.BOX) for band in (0, 1)
    )
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2)
    seen = seen & (np.hypot(x, y) < _RIM)
    if not seen.any():
        return np.zeros((side, side)), seen
    edges = np.abs(ndimage.sobel(mean_over_seen(green, seen, 0.8), axis=1)) / (1 + mean_over_seen(green, seen, 4.0))
    likeness = _standard(mean_over_seen(edges, seen, 0.045 * side), seen)
    for channel in (red, green):
        flat = channel - mean_over_seen(channel, seen, 0.13 * side)
        likeness = likeness + _standard(mean_over_seen(flat, seen, 0.035 * side), seen)
    return likeness, seen


def _standard(values: NDArray[Any], seen: NDArray[np.bool_]) -> NDArray[Any]:
    """Values less their mean over what is seen, over their standard deviation there."""
    return (values - values[seen].mean()) / max(float(values[seen].std()), 1e-3)


def is_inverted(eye: str | None, disc: float) -> bool:
    """Whether the disc certainly lies on the side of the other eye. disc: of `disc_side`."""
    return (eye == "right" and disc <= -CERTAIN) or (eye == "left" and disc >= CERTAIN)


def fault(eye: str | None, disc: float, config: PrepareConfig) -> str | None:
    """Why a photograph is left out by how it faces, or None."""
    if config.laterality != "as-is" and eye is None:
        return f"which eye it shows is not known; prepare.laterality {config.laterality} needs it"
    if config.inverted_views == "leave-out" and is_inverted(eye, disc):
        return f"the disc lies where that of the other eye does; a {eye} eye, upright, is needed"
    return None


def view_of(eye: str | None, disc: float, config: PrepareConfig) -> View:
    """How a photograph of that eye is turned and mirrored."""
    return View(
        turned=config.inverted_views == "turn" and is_inverted(eye, disc),
        mirrored=config.laterality != "as-is" and eye is not None and eye != config.laterality,
    )
