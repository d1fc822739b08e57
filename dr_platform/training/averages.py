"""Snapshots of G's power-function averages in a run directory, and generators of any average length made from them.

A snapshot is one safetensors file per step, written aside and renamed; its tensors are named LENGTH/TENSOR. The maths
is in gan/posthoc.py.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from dr_platform import files
from dr_platform.errors import CheckpointError
from dr_platform.gan import posthoc

SNAPSHOTS = "averages"  # in a run directory


def write_snapshot(run_directory: Path, step: int, averages: dict[float, dict[str, Tensor]]) -> None:
    """Keep the averages as they are after `step` steps."""
    named = {
        f"{length:.2f}/{name}": tensor.detach().cpu().contiguous()
        for length, average in averages.items()
        for name, tensor in average.items()
    }
    files.write_bytes(run_directory / SNAPSHOTS / f"step-{step:08d}.safetensors", safetensors.torch.save(named))


def snapshot_steps(run_directory: Path) -> list[int]:
    """The steps of which there are snapshots, in order."""
    found = (run_directory / SNAPSHOTS).glob("step-*.safetensors")
    return sorted(int(path.stem.removeprefix("step-")) for path in found)


def reconstruct(run_directory: Path, sigma_rel: float, step: int | None = None) -> tuple[int, dict[str, Tensor]]:
    """The average of length `sigma_rel` after `step` steps (default: the last snapshot's): the step, and G's tensors.

    sigma_rel: standard deviation of the weighting as a share of the training so far, 0.03 to 0.25.
    Raises CheckpointError if there are no snapshots as late as that, if one is damaged, or for a length out of range.
    """
    steps = snapshot_steps(run_directory)
    if not steps:
        raise CheckpointError(
            f"{run_directory} has no snapshots of averages. Set train.posthoc_kimg and train again: dvc repro train"
        )
    wanted = steps[-1] if step is None else step
    if not posthoc.SHORTEST <= sigma_rel <= posthoc.LONGEST or not 1 <= wanted <= steps[-1]:
        raise CheckpointError(
            f"An average of length {sigma_rel:g} at step {wanted} was asked for, but snapshots up to step {steps[-1]} "
            f"give lengths from {posthoc.SHORTEST} to {posthoc.LONGEST}. Choose within these."
        )
    # One later snapshot suffices: what came after the wanted step has no part in its average.
    used = [other for other in steps if other <= wanted] + [other for other in steps if other > wanted][:1]
    lengths = posthoc.KEPT_LENGTHS
    times = [float(time) for time in used for _ in lengths]
    gammas = [posthoc.exponent(length) for _ in used for length in lengths]
    weights = posthoc.coefficients(times, gammas, float(wanted), posthoc.exponent(sigma_rel))
    total: dict[str, Tensor] = {}
    for place, time in enumerate(used):
        parts = _read(run_directory / SNAPSHOTS / f"step-{time:08d}.safetensors")
        for offset, length in enumerate(lengths):
            posthoc.accumulate(total, parts[length], float(weights[place * len(lengths) + offset]))
    return wanted, {name: tensor.float() for name, tensor in total.items()}


def _read(path: Path) -> dict[float, dict[str, Tensor]]:
    try:
        named = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}. Remove it.") from None
    parts: dict[float, dict[str, Tensor]] = {length: {} for length in posthoc.KEPT_LENGTHS}
    for full_name, tensor in named.items():
        length, _, name = full_name.partition("/")
        parts[float(length)][name] = tensor
    return parts
