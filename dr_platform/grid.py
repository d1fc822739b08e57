"""Contact sheets: many small pictures on one, in reading order. Pure: arrays in, a Pillow image out.

For `pictures` alone, which knows who may see what.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 2
_CAPTION_PX = 14
_BACKGROUND = (24, 24, 24)
_INK = (230, 230, 230)


def contact_sheet(
    images: np.ndarray,
    columns: int | None = None,
    *,
    scale: int = 1,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """One RGB picture with `images` from left to right, top to bottom.

    images: uint8 [n, H, W, 3], n ≥ 1.
    columns: pictures per row; None makes the sheet about square.
    scale: each pixel becomes a square of that side, without interpolation, so that what is seen is what was made.
    captions: a line under each picture, cut to its width.
    Raises ValueError for another shape or type, or a caption too few.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(f"a contact sheet takes uint8 [n, H, W, 3] with n >= 1, not {images.dtype} {images.shape}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images have {len(captions)} captions")
    columns = min(len(images), columns or int(np.ceil(np.sqrt(len(images)))))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] * scale, images.shape[2] * scale
    step_x = width + _GAP_PX
    step_y = height + _GAP_PX + (_CAPTION_PX if captions is not None else 0)
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _BACKGROUND)
    for index, pixels in enumerate(images):
        corner = (_GAP_PX + index % columns * step_x, _GAP_PX + index // columns * step_y)
        sheet.paste(Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)), corner)
        if captions is not None:
            _write(sheet, captions[index], corner[0], corner[1] + height, width)
    return sheet


def _write(sheet: Image.Image, text: str, left: int, top: int, width: int) -> None:
    # A caption gets a picture of its own, so that a long one ends at its image's edge and not in its neighbour.
    line = Image.new("RGB", (width, _CAPTION_PX), _BACKGROUND)
    ImageDraw.Draw(line).text((1, 1), text, fill=_INK, font=ImageFont.load_default(size=10))
    sheet.paste(line, (left, top))
