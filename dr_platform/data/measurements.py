"""What is seen in each image of a collection, once and for all: quality, text at the rim, the disc, a fingerprint.

Measuring takes longer than judging, so it is done while an image is taken in, and thresholds can change afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dr_platform.data import duplicates, quality, rim_text, views
from dr_platform.data.fundus import FieldOfView, find_field_of_view
from dr_platform.data.quality import Quality
from dr_platform.errors import DataError

FILE = "measurements.parquet"

_TEXT_SIDE = 1024  # pixels of the longer side that suffice for letters
_SIDE = 512  # ... and for everything else

_ARROW = {"bool": pa.bool_(), "float": pa.float64()}
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        *(pa.field(field.name, _ARROW[str(field.type)]) for field in dataclasses.fields(Quality)),
        pa.field("text", pa.int32()),
        pa.field("disc", pa.float64()),
        pa.field("fingerprint", pa.binary(duplicates.SIDE**2)),
    ]
)


@dataclass(frozen=True)
class Measurement:
    """What is seen in an image. text: places at the rim that look like writing. disc: on which side, see `views`.
    fingerprint: int8 [128, 128]."""

    image_id: str
    quality: Quality
    text: int
    disc: float
    fingerprint: NDArray[np.int8]


def measure(image_id: str, pixels: NDArray[np.uint8]) -> Measurement:
    """Measure an upright photograph, uint8 [H, W, 3].

    The field is sought once, and each part sees the photograph as small as it can use it.
    """
    height, width = pixels.shape[:2]
    large, by = _reduced(pixels, _TEXT_SIDE)
    small, further = _reduced(large, _SIDE)
    try:
        fov = find_field_of_view(small)
    except DataError:
        return Measurement(image_id, quality.measure(small), 0, 0.0, duplicates.fingerprint(small))
    shift = (further - 1) / 2
    wide = FieldOfView(fov.cx * further + shift, fov.cy * further + shift, fov.radius * further, fov.coverage)
    seen = quality.measure(small, fov)
    seen = dataclasses.replace(seen, radius=seen.radius * by * further, aspect=width / height)
    text = len(rim_text.find_text(large, wide))
    return Measurement(image_id, seen, text, views.disc_side(small, fov), duplicates.fingerprint(small, fov))


def _reduced(pixels: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], int]:
    """The photograph reduced by the whole factor that leaves `side` pixels or more of its longer side."""
    factor = max(1, min(max(pixels.shape[:2]) // side, min(pixels.shape[:2]) // 16))
    return (np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels), factor


def write(directory: Path, measured: Sequence[Measurement]) -> None:
    """Store measurements as `measurements.parquet`; the same ones give the same bytes."""
    rows = [
        {
            "image_id": m.image_id,
            **asdict(m.quality),
            "text": m.text,
            "disc": m.disc,
            "fingerprint": m.fingerprint.tobytes(),
        }
        for m in measured
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), directory / FILE, compression="zstd")


def read(directory: Path) -> dict[str, Measurement]:
    """The measurements stored in a directory, by image_id."""
    found = {}
    for row in pq.read_table(directory / FILE, schema=SCHEMA).to_pylist():
        image_id, text, disc, content = (row.pop(name) for name in ("image_id", "text", "disc", "fingerprint"))
        fingerprint = np.frombuffer(content, np.int8).reshape(duplicates.SIDE, duplicates.SIDE)
        found[image_id] = Measurement(image_id, Quality(**row), text, disc, fingerprint)
    return found
