"""One step of the two networks: tensors in, gradients in the parameters, sums of scalars out.

Three phases, in this order: G, D (main), and every `r1_interval` steps D (R1). Each phase runs over the worker's
micro-batches, and leaves in `.grad` the gradient of the mean over the *global* batch, whatever the number of workers
and rounds. Real and fake images pass D one after the other, each with its own backward pass: half the memory of both at
once. G's running statistics (w average, magnitudes) are taken from the fakes of D's phase, averaged over the global
batch, and applied once after it, so that they too do not depend on how the batch was shared out.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks"; Mescheder et al. 2018 for R1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dr_platform.gan import Discriminator, Generator, Statistics
from dr_platform.gan.losses import discriminator_fake_loss, discriminator_real_loss, generator_loss, r1_penalty
from dr_platform.training.group import Group


@dataclass
class Scalars:
    """Sums and counts of named quantities; means of means would depend on how a batch was shared out."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Add every element of `values`."""
        self.sums[name] = self.sums.get(name, 0) + values.detach().double().sum()
        self.counts[name] = self.counts.get(name, 0) + values.numel()


class Players:
    """G and D, wrapped for data parallelism where there are several workers."""

    def __init__(self, generator: Generator, discriminator: Discriminator, group: Group) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.group = group
        self._parallel_g = _data_parallel(generator, group)
        self._parallel_d = _data_parallel(discriminator, group)

    def generator_phase(self, latents: Tensor, scalars: Scalars) -> None:
        """Gradient of the non-saturating loss in G. latents: [rounds, size, z_dim]."""
        self.discriminator.requires_grad_(False)
        self.generator.zero_grad(set_to_none=True)
        for z, last in _rounds(latents):
            with _reduce_on(last, self._parallel_g):
                logits = self.discriminator(self._parallel_g(z, None), None)
                loss = generator_loss(logits)
                (loss.mean() / len(latents)).backward()
            scalars.add("loss/generator", loss)

    def discriminator_phase(self, images: Tensor, latents: Tensor, scalars: Scalars) -> Tensor:
        """Gradient of the logistic loss in D; returns G's statistics over the global batch, for `apply_statistics`.

        images: [rounds, size, 3, H, W] in [-1, 1]; latents: [rounds, size, z_dim].
        """
        self._unfreeze()
        self.discriminator.zero_grad(set_to_none=True)
        statistics = Statistics()
        for (z, last), real in zip(_rounds(latents), images, strict=True):
            with torch.no_grad():
                fake = self.generator(z, None, statistics=statistics)
            with _reduce_on(False, self._parallel_d):
                fake_logits = self._parallel_d(fake, None)
                fake_loss = discriminator_fake_loss(fake_logits)
                (fake_loss.mean() / len(latents)).backward()
            with _reduce_on(last, self._parallel_d):
                real_logits = self._parallel_d(real, None)
                real_loss = discriminator_real_loss(real_logits)
                (real_loss.mean() / len(latents)).backward()
            scalars.add("loss/discriminator", fake_loss + real_loss)
            for name, logits in (("fake", fake_logits), ("real", real_logits)):
                scalars.add(f"logits/{name}", logits)
                scalars.add(f"signs/{name}", logits.sign())
        return self.group.sum(statistics.flat()) / self.group.world

    def r1_phase(self, images: Tensor, weight: float, scalars: Scalars) -> None:
        """Gradient in D of weight / 2 times the mean R1 penalty at the real images. images: [rounds, size, 3, H, W]."""
        self._unfreeze()
        self.discriminator.zero_grad(set_to_none=True)
        for index, real in enumerate(images):
            real = real.detach().requires_grad_(True)
            with _reduce_on(index == len(images) - 1, self._parallel_d):
                logits = self._parallel_d(real, None)
                penalty = r1_penalty(logits, real)
                # The penalty does not depend on the output bias. The reducer waits for every parameter, so the logits
                # take part with weight 0, and the bias's gradient is removed again: Adam skips it, as it should.
                loss = penalty.mean() * (weight / 2) + logits.sum() * 0
                (loss / len(images)).backward()
            scalars.add("r1/penalty", penalty)
        self.discriminator.b4.out.bias.grad = None

    def _unfreeze(self) -> None:
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)


def gradient_norm(network: nn.Module) -> Tensor:
    """Euclidean norm over all gradients of a network; a scalar that is not finite if any of them is not."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _data_parallel(network: nn.Module, group: Group) -> nn.Module:
    if group.world == 1:
        return network
    devices = [group.device] if group.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def _rounds(stacked: Tensor) -> Iterator[tuple[Tensor, bool]]:
    for index, item in enumerate(stacked):
        yield item, index == len(stacked) - 1


def _reduce_on(reduce: bool, network: nn.Module) -> AbstractContextManager[None]:
    """Average the gradients over the workers in this backward pass, or only add them up locally."""
    if reduce or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
