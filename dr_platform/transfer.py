"""Transfer: training that starts from another model's weights, with a plan that says what became of every tensor.

A tensor is copied where name and shape agree and starts fresh otherwise. G and its average both start from the parent's
average, which is what the registry holds. D is never registered (it is the best oracle of who was in the training set),
so it comes from the parent's checkpoint where that is at hand. Freezing the first layers of D is Mo et al. 2020,
"Freeze the Discriminator".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from dr_platform import files
from dr_platform.build import build_networks
from dr_platform.config import Params
from dr_platform.errors import CheckpointError, ConfigError
from dr_platform.records import TransferPlan

PLAN_FILE = "transfer.json"
GENERATOR_FILE = "generator.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"

Tensors = Mapping[str, Tensor]


def plan_transfer(
    params: Params,
    directory: Path,
    *,
    parent: str,
    source_grade: int | None,
    generator: Tensors,
    discriminator: Tensors | None,
) -> TransferPlan:
    """Write the initial weights of a transfer into `directory`, the plan last, and return the plan.

    params: as `Params.for_transfer` gives them. generator, discriminator: the parent's averaged G; its D if at hand.
    Raises ConfigError if layers of a D that is not at hand are to be frozen, or if the networks share no tensor.
    """
    freeze = params.train.freeze_discriminator
    if freeze and discriminator is None:
        raise ConfigError(
            f"transfer.freeze_discriminator is {freeze}, but {parent}'s discriminator is not here: the registry never "
            "holds it. Run: dvc pull train, or set transfer.freeze_discriminator to 0."
        )
    target_g, target_d = build_networks(params.train, params.prepare.resolution)
    kept_g, fresh_g = _split(generator, target_g)
    kept_d, fresh_d = _split(discriminator or {}, target_d)
    shared = {f"G.{name}" for name in kept_g} & {f"G.{name}" for name, _ in target_g.named_parameters()}
    if not shared and not (kept_d and not generator):
        raise ConfigError(
            f"{parent}'s generator shares no weights with the one that params.yaml describes. "
            "Set train: to the parent's architecture; `drp models show` prints it."
        )
    with files.directory_aside(directory, failure=CheckpointError) as aside:
        safetensors.torch.save_file(kept_g, aside / GENERATOR_FILE)
        safetensors.torch.save_file(kept_d, aside / DISCRIMINATOR_FILE)
        plan = TransferPlan(
            parent=parent,
            parent_weights_sha256=files.content_digest(aside),
            source_grade=source_grade,
            target_grade=params.prepare.grade,
            copied=(*(f"G.{name}" for name in kept_g), *(f"D.{name}" for name in kept_d)),
            fresh=(*(f"G.{name}" for name in fresh_g), *(f"D.{name}" for name in fresh_d)),
            frozen=tuple(f"D.{name}" for name in frozen_names(target_d)),
        )
        plan.write(aside / PLAN_FILE)
    return plan


def frozen_names(discriminator: nn.Module) -> list[str]:
    """Weights and biases of D that freeze-D keeps as they are: they are buffers instead of parameters."""
    return [name for name, _ in discriminator.named_buffers() if name.rsplit(".", 1)[-1] in ("weight", "bias")]


def _split(source: Tensors, target: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    wanted = target.state_dict()
    kept = {
        name: source[name].contiguous()
        for name, tensor in wanted.items()
        if name in source and source[name].shape == tensor.shape
    }
    return kept, [name for name in wanted if name not in kept]
