"""Features that are kept, so that what is asked of them later needs neither the pictures nor the generator.

A file is named by a digest of what the features were made of, and says that in its metadata too: whoever finds one can
tell whose images it describes. Features of proprietary photographs, and of what was learnt from them, are proprietary,
so the directory is one that only its owner can read. Rows that are float32 by nature are stored as such.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dr_platform import files
from dr_platform.records import Extractor

_log = logging.getLogger(__name__)

Key = dict[str, Any]  # what features were made of, as JSON


def key_of_images(sha256: str, shape: Sequence[int], extractor: Extractor) -> Key:
    """Of real images uint8 [n, H, W, 3] with this digest of their content."""
    return {"data": sha256, "shape": list(shape), "extractor": extractor.model_dump()}


def key_of_generated(checkpoint_sha256: str, seed: int, images: int, extractor: Extractor) -> Key:
    """Of the first images that an evaluation with this seed draws from a checkpoint."""
    return {"checkpoint": checkpoint_sha256, "seed": seed, "images": images, "extractor": extractor.model_dump()}


def read(directory: Path, key: Key) -> np.ndarray | None:
    """The features kept under `key`, float64 [n, d]; None if there are none, or damaged ones, which is logged."""
    path = _path(directory, key)
    if not path.is_file():
        return None
    count = key["images"] if "images" in key else key["shape"][0]
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            features, digest = stored.get_tensor("features"), (stored.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, OSError):
        features, digest = None, None
    if features is None or features.shape != (count, key["extractor"]["features"]) or _digest(features) != digest:
        _log.warning("%s is damaged; the features are computed again", path)
        return None
    return features.astype(np.float64)


def keep(directory: Path, key: Key, features: np.ndarray, labels: Mapping[str, str] | None = None) -> None:
    """Keep features [n, d] under `key`; that this cannot be done (a full disk, say) is logged and does no harm.

    labels: what the file says of the images besides: who may see them, and under which licences they were given.
    """
    single = features.astype(np.float32)
    stored = single if np.array_equal(single, features) else features
    said = {**(labels or {}), "made_of": json.dumps(key), "sha256": _digest(stored)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        files.write_bytes(_path(directory, key), safetensors.numpy.save({"features": stored}, metadata=said))
    except OSError as error:
        _log.warning("features could not be kept in %s: %s", directory, error.strerror or error)


def made_of(path: Path) -> Key | None:
    """The key of a kept file, if the file says it and is named by it; else None."""
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            key = json.loads((stored.metadata() or {})["made_of"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        return None
    return key if isinstance(key, dict) and files.sha256_json(key) == path.stem else None


def images_of(key: Key) -> str:
    """The digest of the real images behind a key, whole or cropped; "" where it is of others."""
    return str(key.get("data", "")).partition(" ")[0]


def _path(directory: Path, key: Key) -> Path:
    return directory / f"{files.sha256_json(key)}.safetensors"


def _digest(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
