"""Raw collections with planted faults: phantoms as several cameras would have taken them, with copies and poor ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dr_platform import files
from dr_platform.config import PrepareConfig
from dr_platform.data import collections
from dr_platform.data.collections import ImageRow
from dr_platform.data.measurements import Measurement, measure
from dr_platform.data.phantom import phantom
from dr_platform.errors import DataError
from dr_platform.records import Collection, Visibility

Change = Callable[[np.ndarray], np.ndarray]


def prepare_config(names: list[str], **values: object) -> PrepareConfig:
    fields = {
        "collections": names, "visibility": "all", "grade": 1, "resolution": 32, "held_out": 0.25, "seed": 0,
        "shard_images": 64,
    }  # fmt: skip
    return PrepareConfig.model_validate(fields | values)


def same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def wide(pixels: np.ndarray) -> np.ndarray:
    """As on a sensor of 4:3, in warmer light."""
    side = pixels.shape[0]
    frame = np.zeros((side, round(side * 4 / 3), 3), np.uint8)
    left = (frame.shape[1] - side) // 2
    frame[:, left : left + side] = np.clip(pixels * np.array([0.86, 0.8, 1.15]), 0, 255)
    return frame


def dark(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.1).astype(np.uint8)


def blurred(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(pixels.shape[0] / 28)))


def negative(pixels: np.ndarray) -> np.ndarray:
    lit = pixels.max(axis=2, keepdims=True) > 24
    return np.where(lit, 255 - pixels, pixels).astype(np.uint8)


def noise(pixels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(int(pixels.sum())).integers(0, 256, pixels.shape, np.uint8)


def mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1])


def turned(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[::-1, ::-1])


def write_collection(
    raw_root: Path,
    name: str,
    visibility: Visibility,
    images: Mapping[int, Change],
    *,
    size: int,
    licence: str = "CC BY 4.0",
    regrade: Mapping[int, int | None] | None = None,
    prefix: str = "",
) -> Collection:
    """A collection of the phantoms numbered in `images`, changed as said there. regrade: other grades than drawn."""
    directory = collections.collection_directory(raw_root, visibility, name)
    rows: list[ImageRow] = []
    measured: list[Measurement] = []
    with files.directory_aside(directory, failure=DataError) as aside:
        (aside / collections.IMAGES_DIRECTORY).mkdir()
        for index, change in images.items():
            drawn = phantom(0, index, size, grades=(0.4, 0.25, 0.2, 0.1, 0.05))
            pixels = change(drawn.image)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            image_id = f"{prefix}{name}-{index:04d}"
            file = collections.image_file(image_id, "png")
            (aside / file).write_bytes(stream.getvalue())
            digest = hashlib.sha256(stream.getvalue()).hexdigest()
            grade = (regrade or {}).get(index, drawn.grade)
            rows.append(
                ImageRow(
                    image_id=image_id, file=file, grade=grade, grade_given=str(grade), grade_scale="icdr",
                    patient_id=f"{prefix}{drawn.patient}", eye=drawn.eye, source=name, license=licence, orientation=1,
                    sha256=digest, source_sha256=digest, width=pixels.shape[1], height=pixels.shape[0],
                )
            )  # fmt: skip
            measured.append(measure(image_id, pixels))
        return collections.finish_collection(aside, rows, measured, name, visibility, "ingest", layout="csv")
