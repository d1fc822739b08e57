"""Checkpoints: written aside, verified, found by step. The one truth about how far a training has come.

A checkpoint is a directory `step-00001234` of safetensors and one `checkpoint.json` (records.Checkpoint) that holds the
SHA-256 of every file and is written last. `torch.load` accepts a flipped bit in silence and runs pickles; safetensors
carry no code, and the digests refuse the bit. The directory is renamed into place, so a reader never sees half of one.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dr_platform import files
from dr_platform.errors import CheckpointError, TrainingError
from dr_platform.records import Checkpoint, StoredFile

logger = logging.getLogger(__name__)

RECORD_FILE = "checkpoint.json"
GENERATOR_FILE = "generator_ema.safetensors"
_DIRECTORY = re.compile(r"step-(\d{8})")

TensorFiles = Mapping[str, Mapping[str, Tensor]]


def directory_name(step: int) -> str:
    """The name of the checkpoint directory of a step."""
    return f"step-{step:08d}"


def write(root: Path, tensors: TensorFiles, state: dict[str, Any], describe: dict[str, Any]) -> Checkpoint:
    """Commit a checkpoint under `root` and return its record.

    tensors: file name -> tensors, each stored as one safetensors file. state: JSON-able, stored as `state.json`.
    describe: the fields of `Checkpoint` other than `files`.
    Raises TrainingError if the disk is full or not writable; checkpoints committed before are then untouched.
    """
    target = root / directory_name(describe["step"])
    with files.directory_aside(target, failure=TrainingError) as aside:
        for name, named in tensors.items():
            _save_tensors(aside / name, named)
        files.write_json(aside / "state.json", state)
        stored = {
            file.name: StoredFile(bytes=file.stat().st_size, sha256=files.sha256_file(file))
            for file in sorted(aside.iterdir())
        }
        record = Checkpoint(files=stored, **describe)
        record.write(aside / RECORD_FILE)
    return record


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, path)
    except SafetensorError as error:
        # The library hides the operating system's error in its text.
        raise OSError(f"{path.name}: {error}") from error


def verify(directory: Path) -> Checkpoint:
    """The record of a checkpoint whose files are all there with the recorded digests.

    Raises CheckpointError naming the first file that is not.
    """
    try:
        record = Checkpoint.read(directory / RECORD_FILE)
    except Exception as error:
        raise CheckpointError(str(error)) from None
    for name, stored in record.files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {RECORD_FILE} lists it. {Checkpoint.remedy}")
        if path.stat().st_size != stored.bytes:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes instead of {stored.bytes}: it is damaged. {Checkpoint.remedy}"
            )
        found = files.sha256_file(path)
        if found != stored.sha256:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is {found[:12]}… instead of {stored.sha256[:12]}…. {Checkpoint.remedy}"
            )
    return record


def read(directory: Path) -> tuple[Checkpoint, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """A verified checkpoint: its record, its tensors by file name, and its state. Raises CheckpointError."""
    import json

    record = verify(directory)
    tensors = {
        name: safetensors.torch.load_file(directory / name) for name in record.files if name.endswith(".safetensors")
    }
    return record, tensors, json.loads((directory / "state.json").read_text(encoding="utf-8"))


def read_generator(directory: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The averaged generator's weights alone, verified: all that evaluation, registration and sampling need."""
    record = verify(directory)
    return record, safetensors.torch.load_file(directory / GENERATOR_FILE)


def committed(root: Path) -> Iterator[Path]:
    """Checkpoint directories under `root`, newest first, not yet verified."""
    if not root.is_dir():
        return
    found = [path for path in root.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    yield from sorted(found, reverse=True)


def newest(root: Path) -> Path | None:
    """The newest checkpoint under `root` that verifies; damaged ones are named in a warning and passed over."""
    for directory in committed(root):
        try:
            verify(directory)
        except CheckpointError as error:
            logger.warning("Passing over a checkpoint: %s", error)
            continue
        return directory
    return None


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what an interrupted write left behind."""
    for directory in list(committed(root))[keep:]:
        shutil.rmtree(directory, ignore_errors=True)
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
