"""Imported networks: from a published pickle to a directory of safetensors and one record, `imported.json`.

Reading the pickle is official_pickles.py's. Here its networks become ours, or, where we have no form of one, plain
tensors; the directory is written aside and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from dr_platform import files
from dr_platform.errors import CheckpointError, ConfigError
from dr_platform.gan import Discriminator, Generator, discriminator_from_state, generator_from_state
from dr_platform.official_pickles import PublishedNetwork, read_snapshot
from dr_platform.records import Imported, StoredFile

Network = TypeVar("Network", Generator, Discriminator)

IMPORTS = "imported"  # in a project
RECORD_FILE = "imported.json"
GENERATOR_FILE = "generator_ema.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
_TRAINED_GENERATOR_FILE = "generator.safetensors"
_STYLEGAN2_FILE = "stylegan2_generator.safetensors"
LICENCE = (
    "Weights that NVIDIA published are under its Source Code License: non-commercial use only. "
    "Weights that you trained are yours."
)

# Arguments decide how much is built before there is a weight to compare it with. {name: least and greatest value}; the
# published networks lie far within. A number of any other name is at most _MOST.
_LIMITS: dict[str, tuple[float, float]] = {
    "img_resolution": (4, 4096),
    "img_channels": (1, 64),
    "num_layers": (1, 64),
    "margin_size": (0, 256),
    "conv_kernel": (1, 9),
    "filter_size": (1, 32),
    "lrelu_upsampling": (1, 8),
    "first_cutoff": (0.5, 64),
    "first_stopband": (0.5, 64),
    "last_stopband_rel": (1, 8),
}
_MOST = 2**20
_LONGEST_LIST = 64


def import_file(path: Path, target: Path) -> Imported:
    """Write the networks of a published pickle into the directory `target`, and return the record.

    Raises CheckpointError, in one line and with nothing written, for a file that is no such pickle, that names anything
    else than such pickles need, or whose networks are not of a form that we have.
    """
    snapshot = read_snapshot(path)
    networks = snapshot.networks
    written: dict[str, dict[str, Tensor] | dict[str, np.ndarray]] = {}
    arguments: dict[str, dict[str, Any]] = {}
    generator = networks.get("G_ema") or networks.get("G")
    if generator is not None and _is_stylegan3(generator):
        averaged = _rebuilt(generator_from_state, generator, path)
        written[GENERATOR_FILE], arguments["generator"] = averaged.state_dict(), averaged.init_kwargs
        if "G" in networks:
            written[_TRAINED_GENERATOR_FILE] = _rebuilt(generator_from_state, networks["G"], path).state_dict()
    elif generator is not None:
        written[_STYLEGAN2_FILE], arguments["stylegan2_generator"] = generator.tensors, generator.arguments
    if "D" in networks:
        critic = _rebuilt(discriminator_from_state, networks["D"], path)
        written[DISCRIMINATOR_FILE], arguments["discriminator"] = critic.state_dict(), critic.init_kwargs
    with files.directory_aside(target, failure=CheckpointError) as aside:
        for name, tensors in written.items():
            content = {key: np.array(_array(value), order="C") for key, value in tensors.items()}
            safetensors.numpy.save_file(content, aside / name)
        record = Imported(
            source=path.name.encode("utf-8", "backslashreplace").decode(),  # a name need not be UTF-8
            source_sha256=files.sha256_file(path),
            licence=LICENCE,
            generator=arguments.get("generator"),
            stylegan2_generator=arguments.get("stylegan2_generator"),
            discriminator=arguments.get("discriminator"),
            dropped=snapshot.dropped,
            files={
                name: StoredFile(bytes=(aside / name).stat().st_size, sha256=files.sha256_file(aside / name))
                for name in written
            },
        )
        record.write(aside / RECORD_FILE)
    return record


def require_free(target: Path, path: Path) -> None:
    """Raise ConfigError if an import of `path` into `target` would replace something other than an import of it.

    A transfer names its parent imported/NAME and DVC does not look inside, so NAME stands for one file only. A damaged
    import may be replaced by a sound one.
    """
    if not os.path.lexists(target):
        return
    if not (target / RECORD_FILE).is_file():
        raise ConfigError(f"{target} exists and is no import. Choose another --name, or move it away.")
    try:
        found = Imported.read(target / RECORD_FILE)
    except CheckpointError:
        return
    if path.is_file() and files.sha256_file(path) != found.source_sha256:
        raise ConfigError(
            f"{target} is an import of another file ({found.source}). Choose another --name, or remove {target}."
        )


def verify(directory: Path) -> Imported:
    """The record of an imported directory whose files are those recorded. Raises CheckpointError naming the first."""
    record = Imported.read(directory / RECORD_FILE)
    for name, stored in record.files.items():
        path = directory / name
        if not path.is_file() or files.sha256_file(path) != stored.sha256:
            raise CheckpointError(f"{path} is missing or damaged. {Imported.remedy}")
    return record


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _is_stylegan3(network: PublishedNetwork) -> bool:
    return "synthesis.input.freqs" in network.tensors


def _rebuilt(
    build: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], Network], found: PublishedNetwork, path: Path
) -> Network:
    try:
        for name, value in _numbers(found.arguments):
            least, most = _LIMITS.get(name, (-_MOST, _MOST))
            if not least <= value <= most:
                raise ValueError(f"{name} is {value:.6g}, but must be from {least} to {most}")
        return build(found.arguments, found.tensors)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{path} is refused: {' '.join(str(error).split())[:300]}") from None


def _numbers(arguments: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number among arguments, under its own name, and every list's length."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, list):
            if len(value) > _LONGEST_LIST:
                raise ValueError(f"{name} has {len(value)} entries, but must have at most {_LONGEST_LIST}")
            yield from ((name, item) for item in value if isinstance(item, int | float))
        elif isinstance(value, int | float):
            yield name, value
