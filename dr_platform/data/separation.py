"""Whether the split holds: no patient, no photograph and no near-copy of one on both of its sides.

This looks at what was prepared, not at how: it would notice a mistake of `screening` or of the split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_platform.data import collections, duplicates, manifest
from dr_platform.data.collections import VISIBILITIES
from dr_platform.data.manifest import ManifestRow
from dr_platform.data.screening import MIN_RADIUS
from dr_platform.errors import DataError


@dataclass(frozen=True)
class Crossing:
    """Something that is on both sides: a patient, a photograph or a near-copy; `rows` are the images concerned."""

    kind: str
    sentence: str
    rows: tuple[ManifestRow, ...]


def prepared_rows(*prepared_roots: Path) -> list[ManifestRow]:
    """The rows of every prepared grade of both visibilities. Raises DataError if there is none, or one is damaged."""
    directories = sorted(
        path.parent
        for root in prepared_roots
        for label in VISIBILITIES
        for path in (root / label).glob(f"grade-*/{manifest.RECORD_FILE}")
    )
    if not directories:
        raise DataError("nothing has been prepared here, so there is no split to look at. Run: dvc repro prepare")
    return [row for directory in directories for row in manifest.read_manifest(directory)[1]]


def crossings(rows: Sequence[ManifestRow], raw_root: Path, threshold: float = duplicates.THRESHOLD) -> list[Crossing]:
    """What is on both sides of the split, near-copies by the measurements of the raw collections."""
    found = []
    for kind, attribute in (("patient", "patient"), ("photograph", "raw_sha256"), ("prepared image", "sha256")):
        sides: dict[str, list[ManifestRow]] = defaultdict(list)
        for row in rows:
            sides[getattr(row, attribute)].append(row)
        for name, images in sorted(sides.items()):
            if len({image.split for image in images}) > 1:
                found.append(_crossing(kind, name, images))
    for pair in _near_copies(rows, raw_root, threshold):
        if pair[0].raw_sha256 != pair[1].raw_sha256:
            found.append(_crossing("near-copy", pair[0].image_id, pair))
    return found


@dataclass(frozen=True)
class NotCompared:
    """How many images nothing can be said of: no patient named, or a field too small for near-copies to be told."""

    without_patient: int
    too_small: int


def not_compared(rows: Sequence[ManifestRow], raw_root: Path) -> NotCompared:
    """What `crossings` cannot see."""
    nameless, small = 0, 0
    wanted = {(row.visibility, row.collection, row.image_id) for row in rows}
    for label, name in sorted({(row.visibility, row.collection) for row in rows}):
        directory = collections.collection_directory(raw_root, label, name)
        record, raw = collections.read_collection(directory)
        measured = collections.read_measurements(directory, record)
        used = [row for row in raw if (label, name, manifest.pseudonym(f"{name}/{row.image_id}")) in wanted]
        nameless += sum(row.patient_id is None for row in used)
        small += sum(measured[row.image_id].quality.radius < MIN_RADIUS for row in used)
    return NotCompared(nameless, small)


def _crossing(kind: str, name: str, images: Iterable[ManifestRow]) -> Crossing:
    rows = tuple(images)
    counts = Counter(row.split for row in rows)
    said = " and ".join(f"{counts[split]} {split}" for split in manifest.SPLITS)
    places = ", ".join(sorted({f"{row.collection} ({row.visibility}) {row.image_id}" for row in rows})[:4])
    return Crossing(kind, f"{kind} {name[:16]} is on both sides of the split: {said}: {places}", rows)


def _near_copies(
    rows: Sequence[ManifestRow], raw_root: Path, threshold: float
) -> list[tuple[ManifestRow, ManifestRow]]:
    """Pairs of images on different sides that are alike."""
    prints: dict[str, np.ndarray] = {}
    for label, name in sorted({(row.visibility, row.collection) for row in rows}):
        directory = collections.collection_directory(raw_root, label, name)
        record, _ = collections.read_collection(directory)
        for image_id, measured in collections.read_measurements(directory, record).items():
            if measured.quality.radius >= MIN_RADIUS:
                prints[f"{label}/{manifest.pseudonym(f'{name}/{image_id}')}"] = measured.fingerprint
    known = [row for row in rows if f"{row.visibility}/{row.image_id}" in prints]
    if len(known) < 2:
        return []
    stack = np.stack([prints[f"{row.visibility}/{row.image_id}"] for row in known])
    pairs = duplicates.near_duplicates(stack, threshold=threshold)
    return [
        (known[pair.first], known[pair.second]) for pair in pairs if known[pair.first].split != known[pair.second].split
    ]
