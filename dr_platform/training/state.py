"""All that must survive a restart, and its way to tensors and back.

Random numbers are not in it: they are functions of (seed, step), see data/partition.py. The phase of the lazy
regularisation and the position in the data follow from the step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Adam

from dr_platform.build import build_networks
from dr_platform.checkpoint import GENERATOR_FILE
from dr_platform.config import TrainConfig
from dr_platform.errors import CheckpointError
from dr_platform.gan import AdaptiveP, Discriminator, Generator, Precision, posthoc, set_precision

_LOW_PRECISION = {"fp16": torch.float16, "bf16": torch.bfloat16, "none": None}
_ADAM_BETAS = (0.0, 0.99)
_ADAM_EPSILON = 1e-8


@dataclass
class TrainingState:
    """Networks, optimisers and counters of a training; `totals` are the sums behind the next tick's means.

    averages: for each of `posthoc.KEPT_LENGTHS` that is tracked, G's tensors averaged with that length.
    """

    generator: Generator
    discriminator: Discriminator
    generator_ema: Generator
    optimizer_g: Adam
    optimizer_d: Adam
    step: int = 0
    images_seen: int = 0
    ada: AdaptiveP = field(default_factory=AdaptiveP)
    low_precision: bool = False  # whether the highest resolutions are computed in half precision
    averages: dict[float, dict[str, Tensor]] = field(default_factory=dict)
    totals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File name -> named tensors, for a checkpoint."""
        return {
            "generator.safetensors": dict(self.generator.state_dict()),
            GENERATOR_FILE: dict(self.generator_ema.state_dict()),
            "discriminator.safetensors": dict(self.discriminator.state_dict()),
            "optimizer_g.safetensors": _optimizer_tensors(self.optimizer_g, self.generator),
            "optimizer_d.safetensors": _optimizer_tensors(self.optimizer_d, self.discriminator),
            **{_average_file(length): average for length, average in self.averages.items()},
        }

    def counters(self) -> dict[str, Any]:
        """JSON-able rest of the state."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "ada": self.ada.to_json(),
            "totals": self.totals,
        }

    def update_averages(self) -> None:
        """Take the weights after step `step` into the power-function averages."""
        now = dict(self.generator.state_dict())
        for length, average in self.averages.items():
            posthoc.update_average(average, now, posthoc.update_weight(posthoc.exponent(length), self.step))

    def start_from(self, directory: Path) -> None:
        """Take the weights in `directory` (a transfer's) where there are any; the rest stays as initialised."""
        generator = safetensors.torch.load_file(directory / "generator.safetensors")
        discriminator = safetensors.torch.load_file(directory / "discriminator.safetensors")
        self.generator.load_state_dict(generator, strict=False)
        self.generator_ema.load_state_dict(generator, strict=False)
        self.discriminator.load_state_dict(discriminator, strict=False)

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], counters: Mapping[str, Any]) -> None:
        """Become the stored state. Raises CheckpointError if the tensors are not those of these networks."""
        networks: dict[str, nn.Module] = {
            "generator.safetensors": self.generator,
            GENERATOR_FILE: self.generator_ema,
            "discriminator.safetensors": self.discriminator,
        }
        for name, network in networks.items():
            try:
                network.load_state_dict(tensors[name])
            except (KeyError, RuntimeError) as error:
                line = " ".join(str(error).split())
                raise CheckpointError(f"The checkpoint's {name} is of other networks: {line[:200]}") from None
        _load_optimizer(self.optimizer_g, self.generator, tensors["optimizer_g.safetensors"])
        _load_optimizer(self.optimizer_d, self.discriminator, tensors["optimizer_d.safetensors"])
        for length, average in self.averages.items():
            stored = tensors.get(_average_file(length), {})
            if stored.keys() != average.keys():
                raise CheckpointError(f"The checkpoint has no {_average_file(length)} of this network.")
            for name, tensor in average.items():
                tensor.copy_(stored[name])
        self.step = int(counters["step"])
        self.images_seen = int(counters["images_seen"])
        self.ada = AdaptiveP.from_json(counters["ada"])
        self.totals = {name: (float(value), float(count)) for name, (value, count) in counters["totals"].items()}


def new_state(config: TrainConfig, resolution: int, device: torch.device, num_classes: int = 0) -> TrainingState:
    """The state of a training before its first step, on `device`. num_classes: labels of a conditional training.

    Adam has beta1 = 0. D's optimiser also takes the R1 phase every `r1_interval` steps, so its learning rate and betas
    are adjusted by interval / (interval + 1) (Karras et al. 2020, "Analyzing and Improving", lazy regularization).
    """
    generator, discriminator = build_networks(config, resolution, num_classes)
    for network in (generator, discriminator):
        network.to(device)
        set_precision(network, Precision(_LOW_PRECISION[config.low_precision]))
    generator_ema = copy.deepcopy(generator).eval().requires_grad_(False)
    lazy = config.r1_interval / (config.r1_interval + 1)
    return TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=generator_ema,
        optimizer_g=_adam(generator, config.lr_generator, _ADAM_BETAS),
        optimizer_d=_adam(
            discriminator, config.lr_discriminator * lazy, (_ADAM_BETAS[0] ** lazy, _ADAM_BETAS[1] ** lazy)
        ),
        low_precision=config.low_precision != "none" and device.type == "cuda",
        ada=AdaptiveP(p=config.augment_p if isinstance(config.augment_p, float) else 0.0),
        averages={
            length: {name: torch.zeros_like(tensor) for name, tensor in generator.state_dict().items()}
            for length in posthoc.KEPT_LENGTHS
        }
        if config.posthoc_kimg
        else {},
    )


def _average_file(length: float) -> str:
    return f"average-{length:.2f}.safetensors"


def _adam(network: nn.Module, learning_rate: float, betas: tuple[float, float]) -> Adam:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Adam(trainable, lr=learning_rate, betas=betas, eps=_ADAM_EPSILON, fused=True)


def _trainable_names(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def _optimizer_tensors(optimizer: Adam, network: nn.Module) -> dict[str, Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    named = zip(_trainable_names(network), parameters, strict=True)
    return {
        f"{name}/{key}": value for name, parameter in named for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(optimizer: Adam, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(zip(_trainable_names(network), optimizer.param_groups[0]["params"], strict=True))
    optimizer.state.clear()
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"The checkpoint's optimiser knows {name}, which these networks do not have.")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)
