"""Snapshots of G's power-function averages in a run directory, and generators of any average length made from them.

A snapshot is one safetensors file per step, written aside and renamed; its tensors are named LENGTH/TENSOR, and its
metadata holds their digest, so that a flipped bit is noticed. The maths is in gan/posthoc.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from dr_platform import files
from dr_platform.errors import CheckpointError
from dr_platform.gan import posthoc

SNAPSHOTS = "averages"  # in a run directory
_FILE = re.compile(r"step-(\d{8,})\.safetensors")
_NEAREST = 3  # steps with snapshots that an error names
_REMEDY = "Remove it, and averages are made from the others."


def write_snapshot(run_directory: Path, step: int, averages: dict[float, dict[str, Tensor]]) -> None:
    """Keep the averages as they are after `step` steps."""
    named = {
        f"{length:.2f}/{name}": tensor.detach().cpu().contiguous()
        for length, average in averages.items()
        for name, tensor in average.items()
    }
    content = safetensors.torch.save(named, metadata={"sha256": _digest(named)})
    files.write_bytes(run_directory / SNAPSHOTS / f"step-{step:08d}.safetensors", content)


def snapshot_steps(run_directory: Path) -> list[int]:
    """The steps of which there are snapshots, in order."""
    found = (_FILE.fullmatch(path.name) for path in (run_directory / SNAPSHOTS).glob("step-*.safetensors"))
    return sorted(int(match[1]) for match in found if match)


def reconstruct(run_directory: Path, sigma_rel: float, step: int | None = None) -> tuple[int, dict[str, Tensor]]:
    """The average of length `sigma_rel` after `step` steps (default: the last snapshot's): the step, and G's tensors.

    sigma_rel: standard deviation of the weighting as a share of the training so far, 0.03 to 0.25. step: one with a
    snapshot; between two of them the best combination misses the weighting by a third, before the first by all of it.
    Raises CheckpointError if there is no such snapshot, if one is damaged, or for a length out of range.
    """
    steps = snapshot_steps(run_directory)
    if not steps:
        raise CheckpointError(
            f"{run_directory} has no snapshots of averages. Set train.posthoc_kimg and train again: dvc repro train"
        )
    wanted = steps[-1] if step is None else step
    if not posthoc.SHORTEST <= sigma_rel <= posthoc.LONGEST or wanted > steps[-1]:
        raise CheckpointError(
            f"An average of length {sigma_rel:g} at step {wanted} was asked for, but snapshots up to step {steps[-1]} "
            f"give lengths from {posthoc.SHORTEST} to {posthoc.LONGEST}. Choose within these."
        )
    if wanted not in steps:
        nearest = sorted(sorted(steps, key=lambda other: abs(other - wanted))[:_NEAREST])
        raise CheckpointError(
            f"{run_directory} has no snapshot of step {wanted}, and an average is exact only where there is one. "
            f"Choose a step that has: nearest are {', '.join(map(str, nearest))}."
        )
    used = [other for other in steps if other <= wanted]  # what came after has no part in the average
    lengths = posthoc.KEPT_LENGTHS
    times = [float(time) for time in used for _ in lengths]
    gammas = [posthoc.exponent(length) for _ in used for length in lengths]
    weights = posthoc.coefficients(times, gammas, float(wanted), posthoc.exponent(sigma_rel))
    total: dict[str, Tensor] = {}
    for place, time in enumerate(used):
        path = run_directory / SNAPSHOTS / f"step-{time:08d}.safetensors"
        parts = _read(path)
        for offset, length in enumerate(lengths):
            if total and _shapes(parts[length]) != _shapes(total):
                raise CheckpointError(f"{path} is of another network than the snapshot before it. {_REMEDY}")
            posthoc.accumulate(total, parts[length], float(weights[place * len(lengths) + offset]))
    return wanted, {name: tensor.float() for name, tensor in total.items()}


def _read(path: Path) -> dict[float, dict[str, Tensor]]:
    try:
        named = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as stream:
            digest = (stream.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}. {_REMEDY}") from None
    if digest is not None and digest != _digest(named):  # the first snapshots that were ever written have none
        raise CheckpointError(f"{path} is damaged: its tensors do not match their digest. {_REMEDY}")
    prefixes = {f"{length:.2f}": length for length in posthoc.KEPT_LENGTHS}
    parts: dict[float, dict[str, Tensor]] = {length: {} for length in posthoc.KEPT_LENGTHS}
    for full_name, tensor in named.items():
        prefix, _, name = full_name.partition("/")
        if prefix in prefixes:
            parts[prefixes[prefix]][name] = tensor
    if not all(parts.values()) or sum(map(len, parts.values())) != len(named):
        raise CheckpointError(f"{path} does not hold averages of the lengths {', '.join(prefixes)}. {_REMEDY}")
    return parts


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
