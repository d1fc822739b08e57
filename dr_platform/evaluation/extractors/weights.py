"""Weight files: where they are looked for, and how they are read without running what is in them.

A file is known by its name in a few directories and by its SHA-256. Pickled files are read with weights_only: besides
tensors and plain containers only argparse.Namespace is let in, which published checkpoints keep their options in.
"""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dr_platform import files
from dr_platform.errors import EvaluationError

WEIGHTS_VARIABLE = "DRP_WEIGHTS_DIR"
# Where checkpoints keep the weights: of self-distillation, of masked autoencoders, of common training loops.
_WRAPPERS = ("teacher", "model", "state_dict", "model_state_dict")
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")  # blocks.CHUNK.INDEX.… of sharded trainings: INDEX runs through


def folders(weights_dir: Path | None) -> list[Path]:
    """Where weights are looked for, in this order: `weights_dir`, then the directory DRP_WEIGHTS_DIR names."""
    named = os.environ.get(WEIGHTS_VARIABLE)
    return [folder for folder in (weights_dir, Path(named) if named else None) if folder is not None]


def find(names: Sequence[str], places: Sequence[Path]) -> Path | None:
    """The first of `names` in the first of `places` that has any."""
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def required(choice: str, names: Sequence[str], weights_dir: Path | None) -> Path:
    """The file of an extractor asked for by name; an EvaluationError that says what was looked for, and where."""
    places = folders(weights_dir)
    found = find(names, places)
    if found is None:
        searched = " or ".join(str(place) for place in places) or f"site.weights_dir and {WEIGHTS_VARIABLE} are not set"
        raise EvaluationError(
            f"{choice} has no weights: looked for {', '.join(names)} ({searched}); nothing is downloaded. Put one into "
            f"site.weights_dir or {WEIGHTS_VARIABLE}, or set evaluate.extractor to small."
        )
    return found


def read_bytes(path: Path) -> bytes:
    """The file's content; an EvaluationError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a .safetensors or a pickled checkpoint by their plain names, and the SHA-256 of the file.

    Wrappers ("teacher", "model", ...) and prefixes ("backbone.", "module.") are taken off: what is returned is the part
    that has a `cls_token` at its root. Tensors may be mapped from the file, so copy what is kept.
    Raises EvaluationError if the file is damaged, holds anything but tensors and containers, or no vision transformer.
    """
    try:
        digest = files.sha256_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        content = _load(path)
    except Exception as error:  # torch raises some ten kinds for a damaged archive, bare OSError among them
        raise EvaluationError(
            f"{path} cannot be read as weights: {_reason(error)}. It must be .safetensors, or a checkpoint of tensors "
            "in plain containers; fetch it again, or convert it."
        ) from None
    return _plain_names(_unwrapped(content), path), digest


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    # Mapping spares reading optimiser states, which are most of some published files; old archives cannot be mapped.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _reason(error: Exception) -> str:
    said = str(error).strip()
    code = re.search(r"GLOBAL (\S+)", said)
    return (
        f"it asks for {code[1]}, which is code" if code else said.partition("\n")[0].partition(". ")[0] or "it is cut"
    )


def _unwrapped(content: Any) -> Mapping[str, Any]:
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    return content if isinstance(content, Mapping) else {}


def _plain_names(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    roots = sorted(str(name)[: -len("cls_token")] for name in content if re.search(r"(^|\.)cls_token$", str(name)))
    if len(roots) != 1:
        found = "no cls_token" if not roots else f"{len(roots)} networks ({', '.join(roots)})"
        raise EvaluationError(
            f"{path} is no vision transformer that can be told: {found} among {len(content)} entries. "
            "Give the file of one network as it was published."
        )
    tensors = {name[len(roots[0]) :]: value for name, value in content.items() if str(name).startswith(roots[0])}
    return {_CHUNKED_BLOCK.sub(r"blocks.\1.", name): value for name, value in tensors.items()}


def _unreadable(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(
        f"{path} cannot be read: {error.strerror or error}. Mend that, or set evaluate.extractor to small."
    )
