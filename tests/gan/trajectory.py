"""Replay of the published training loop on recorded inputs, from the primitives of `dr_platform.gan`.

The loop differs from ours on purpose, so it is written out here: gradients of micro-batches are summed, not averaged,
over the rounds; each rank moves its own running averages during the forward passes of the fakes; what is not finite in
a gradient is replaced. Our own step is `dr_platform.training.step`.

It computes in double precision. In single precision an activation next to zero takes one slope or the other by the
order of a sum, hence by processor and number of threads, and Adam makes a whole step of it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gan_golden import Case
from torch import Tensor

from dr_platform.gan import (
    Discriminator,
    Generator,
    blur,
    blur_sigma,
    discriminator_fake_loss,
    discriminator_from_state,
    discriminator_real_loss,
    ema_beta,
    generator_from_state,
    generator_loss,
    r1_penalty,
    update_ema,
)

GRADIENT_LIMIT = 1e5  # stands for an infinite gradient


@dataclass(frozen=True)
class Iteration:
    """State after an iteration: live networks of rank 0, which the next iteration moves on. Compare before asking."""

    index: int
    generator: Generator
    discriminator: Discriminator
    average: Generator
    reports: dict[str, Tensor]  # published name to every value reported in this iteration, by all ranks

    def state(self, network: str) -> dict[str, Tensor]:
        """Parameters and buffers of "G", "D" or "G_ema", by published name."""
        return {"G": self.generator, "D": self.discriminator, "G_ema": self.average}[network].state_dict()


class Trajectory:
    """A recorded training: its networks as they began, its inputs, and the phases of an iteration."""

    def __init__(self, case: Case) -> None:
        self.case = case
        meta = case.meta
        spec, loss = meta["spec"], meta["loss_kwargs"]
        self.num_iterations: int = spec["iters"]
        self.batch: int = spec["batch"]
        self.num_ranks: int = meta["num_ranks"]
        self.r1_interval: int = meta["D_reg_interval"]
        self.r1_gamma: float = loss["r1_gamma"]
        self.blur_init_sigma: float = loss.get("blur_init_sigma", 0)
        self.blur_fade_images: float = loss.get("blur_fade_kimg", 0) * 1000
        self.ema_nimg: float = meta["ema_kimg"] * 1000
        self.ema_rampup: float = meta["ema_rampup"]

        common = {"c_dim": spec["c_dim"], "img_resolution": spec["res"], "img_channels": 3}
        generator = generator_from_state(common | _arguments(meta["G_kwargs"]), case.below("init/G/"))
        # Ranks have the same parameters but averages (buffers) of their own.
        shared = {id(parameter): parameter for parameter in generator.parameters()}
        self.generators = [generator, *(copy.deepcopy(generator, dict(shared)) for _ in range(self.num_ranks - 1))]
        self.average = copy.deepcopy(generator)
        self.discriminator = discriminator_from_state(common | _arguments(meta["D_kwargs"]), case.below("init/D/"))
        for network in (*self.generators, self.average, self.discriminator):
            network.double()

        self.generator_optimizer = torch.optim.Adam(generator.parameters(), lr=meta["lr"]["G"], betas=(0.0, 0.99))
        lazy = self.r1_interval / (self.r1_interval + 1)  # the main and the R1 phase share the optimiser
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=meta["lr"]["D"] * lazy, betas=(0.0, 0.99**lazy)
        )

    def replay(self) -> Iterator[Iteration]:
        """Every iteration in order."""
        for index in range(self.num_iterations):
            reports: dict[str, list[Tensor]] = defaultdict(list)
            self._generator_phase(index, reports)
            self._discriminator_phase(index, reports)
            if index % self.r1_interval == 0:
                self._r1_phase(index, reports)
            beta = ema_beta(self.batch, self.ema_nimg, index * self.batch, self.ema_rampup)
            update_ema(self.average, self.generators[0], beta)
            joined = {name: torch.cat(values) for name, values in reports.items()}
            yield Iteration(index, self.generators[0], self.discriminator, self.average, joined)

    def _generator_phase(self, index: int, reports: dict[str, list[Tensor]]) -> None:
        self.discriminator.requires_grad_(False)
        for rank, generator in enumerate(self.generators):
            for z, c in self._latents(rank, index, "Gboth"):
                logits = self._judge(generator(z, c), c, index)
                loss = generator_loss(logits)
                loss.mean().backward()
                _report(reports, {"scores/fake": logits, "signs/fake": logits.sign(), "G/loss": loss})
        self.discriminator.requires_grad_(True)
        step(self.generator_optimizer, self.num_ranks)

    def _discriminator_phase(self, index: int, reports: dict[str, list[Tensor]]) -> None:
        for rank, generator in enumerate(self.generators):
            rounds = zip(self._latents(rank, index, "Dmain"), self._reals(rank, index), strict=True)
            for (z, c), (images, labels) in rounds:
                with torch.no_grad():
                    fakes = generator(z, c, update_emas=True)
                fake_logits = self._judge(fakes, c, index)
                fake_loss = discriminator_fake_loss(fake_logits)
                fake_loss.mean().backward()
                real_logits = self._judge(images, labels, index)
                real_loss = discriminator_real_loss(real_logits)
                real_loss.mean().backward()
                _report(reports, {"scores/fake": fake_logits, "signs/fake": fake_logits.sign()})
                _report(reports, {"scores/real": real_logits, "signs/real": real_logits.sign()})
                _report(reports, {"D/loss": fake_loss + real_loss})
        step(self.discriminator_optimizer, self.num_ranks)

    def _r1_phase(self, index: int, reports: dict[str, list[Tensor]]) -> None:
        for rank in range(self.num_ranks):
            for images, labels in self._reals(rank, index):
                images.requires_grad_()
                logits = self._judge(images, labels, index)
                penalty = r1_penalty(logits, images)
                regularisation = penalty * (self.r1_gamma / 2)
                (regularisation.mean() * self.r1_interval).backward()
                _report(reports, {"scores/real": logits, "signs/real": logits.sign()})
                _report(reports, {"r1_penalty": penalty, "D/reg": regularisation})
        step(self.discriminator_optimizer, self.num_ranks)

    def _judge(self, images: Tensor, labels: Tensor, index: int) -> Tensor:
        """Logits of images as the critic sees them in this iteration."""
        sigma = blur_sigma(index * self.batch, self.blur_init_sigma, self.blur_fade_images)
        return self.discriminator(blur(images, sigma), labels)

    def _latents(self, rank: int, index: int, phase: str) -> Iterable[tuple[Tensor, Tensor]]:
        """(z, c) of each round."""
        place = f"rank{rank}/it{index:02d}/{phase}"
        return zip(self.case[f"{place}/gen_z"], self.case[f"{place}/gen_c"], strict=True)

    def _reals(self, rank: int, index: int) -> Iterable[tuple[Tensor, Tensor]]:
        """(images, labels) of each round, images [N, 3, H, W] in [-1, 1]."""
        place = f"rank{rank}/it{index:02d}"
        pixels = self.case["dataset/images_uint8"][self.case[f"{place}/real_index"].long()]  # [rounds, N, 3, H, W]
        mirrored = self.case[f"{place}/real_flip"].bool()[..., None, None, None]
        images = torch.where(mirrored, pixels.flip(-1), pixels) / 127.5 - 1
        return zip(images.double(), self.case[f"{place}/real_c"], strict=True)


def step(optimizer: torch.optim.Optimizer, num_ranks: int) -> None:
    """One step with the gradients summed so far over ranks and rounds, and none left behind.

    Divides by the ranks only. Not a number becomes 0, infinity becomes `GRADIENT_LIMIT`; large finite values stay.
    Parameters without a gradient are skipped: their second moment does not decay.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                mean = parameter.grad / num_ranks
                parameter.grad = torch.nan_to_num(mean, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def summary(values: Tensor) -> np.ndarray:
    """Number, mean and population standard deviation, as the published loop keeps them."""
    values = values.double()
    return np.array([values.numel(), float(values.mean()), float(values.std(correction=0))])


def _report(reports: dict[str, list[Tensor]], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        reports[f"Loss/{name}"].append(value.detach().flatten())


def _arguments(kwargs: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in kwargs.items() if name != "class_name"}
