"""Rows and records of raw collections for tests that need no pixels."""

from __future__ import annotations

import hashlib

from dr_platform.config import PrepareConfig
from dr_platform.data.collections import ImageRow
from dr_platform.records import Collection, Visibility


def image_row(name: str, grade: int | None = 1, patient: str | None = None, digest: str | None = None) -> ImageRow:
    """An image of a collection; digest: of its file, else one of its own."""
    digest = digest or hashlib.sha256(f"file {name}".encode()).hexdigest()
    return ImageRow(
        image_id=name, file=f"images/{name}.png", grade=grade, grade_given=str(grade), grade_scale="icdr",
        patient_id=patient, eye="left", source="Clinic", license="none", orientation=1, sha256=digest,
        source_sha256=digest, width=64, height=64,
    )  # fmt: skip


def collection_record(name: str = "clinic", visibility: Visibility = "proprietary", images: int = 0) -> Collection:
    """The record of an ingested collection."""
    return Collection(
        name=name, visibility=visibility, images=images, rejected=0, origin="ingest", layout="csv", licenses=(),
        key=None, labels_sha256="0" * 64, measurements_sha256="0" * 64,
    )  # fmt: skip


def prepare_config(**values: object) -> PrepareConfig:
    """Settings of a preparation, with some of them changed."""
    fields = {
        "collections": ["a"], "visibility": "all", "grade": 1, "resolution": 32, "held_out": 0.2, "seed": 0,
        "shard_images": 8,
    }  # fmt: skip
    return PrepareConfig.model_validate(fields | values)
