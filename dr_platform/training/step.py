"""One step of the two networks: tensors in, gradients in the parameters, sums of scalars out.

Three phases, in this order: G, D (main), and every `r1_interval` steps D (R1). Each phase runs over the worker's
passes, and leaves in `.grad` the gradient of the mean over the *global* batch, whatever the number of workers and
passes. Real and fake images pass D one after the other, each with its own backward pass: half the memory of both at
once. G's running statistics (w average, magnitudes) are taken from the fakes of D's phase, averaged over the global
batch, and applied once after it, so that they too do not depend on how the batch was shared out.

Everything random (latents, labels, augmentations) is drawn outside and comes in with the passes.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks"; Karras et al. 2020, "Training Generative Adversarial
Networks with Limited Data" (augmentation); Mescheder et al. 2018 for R1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dr_platform.gan import Augmentation, Discriminator, Draws, Generator, Statistics, augment, blur
from dr_platform.gan.losses import discriminator_fake_loss, discriminator_real_loss, generator_loss, r1_penalty
from dr_platform.training.group import Group


@dataclass(frozen=True)
class FakePass:
    """What G makes images of in one pass: n latents, and what D's view of them takes."""

    z: Tensor  # [n, z_dim]
    c: Tensor | None  # [n, classes], one-hot
    draws: Draws | None  # of the augmentation
    mixing: tuple[Tensor, Tensor] | None = None  # second latents [n, z_dim], and the layer from which they count [n]


@dataclass(frozen=True)
class RealPass:
    """Real images of one pass."""

    images: Tensor  # [n, 3, R, R] in [-1, 1]
    c: Tensor | None  # [n, classes], one-hot
    draws: Draws | None


@dataclass(frozen=True)
class View:
    """What D sees of an image, real or fake: blurred early in the training, then augmented with probability p."""

    blur_sigma: float = 0.0
    augmentation: Augmentation | None = None
    p: float = 0.0

    def of(self, images: Tensor, draws: Draws | None) -> Tensor:
        """The images as D sees them, differentiable."""
        images = blur(images, self.blur_sigma)
        if self.augmentation is None or draws is None or self.p == 0:
            return images
        return augment(images, draws, self.p, self.augmentation)


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

    def generator_phase(self, fakes: Sequence[FakePass], view: View, scalars: Scalars) -> None:
        """Gradient of the non-saturating loss in G."""
        self.discriminator.requires_grad_(False)
        self.generator.zero_grad(set_to_none=True)
        for index, fake in enumerate(fakes):
            with _reduce_on(index == len(fakes) - 1, self._parallel_g):
                images = self._parallel_g(fake.z, fake.c, mixing=fake.mixing)
                logits = self.discriminator(view.of(images, fake.draws), fake.c)
                loss = generator_loss(logits)
                (loss.mean() / len(fakes)).backward()
            scalars.add("loss/generator", loss)

    def discriminator_phase(
        self, reals: Sequence[RealPass], fakes: Sequence[FakePass], view: View, scalars: Scalars
    ) -> Tensor:
        """Gradient of the logistic loss in D; returns G's statistics over the global batch, for `apply_statistics`."""
        self._unfreeze()
        self.discriminator.zero_grad(set_to_none=True)
        statistics = Statistics()
        for index, (fake, real) in enumerate(zip(fakes, reals, strict=True)):
            with torch.no_grad():
                images = self.generator(fake.z, fake.c, statistics=statistics, mixing=fake.mixing)
            with _reduce_on(False, self._parallel_d):
                fake_logits = self._parallel_d(view.of(images, fake.draws), fake.c)
                fake_loss = discriminator_fake_loss(fake_logits)
                (fake_loss.mean() / len(fakes)).backward()
            with _reduce_on(index == len(fakes) - 1, self._parallel_d):
                real_logits = self._parallel_d(view.of(real.images, real.draws), real.c)
                real_loss = discriminator_real_loss(real_logits)
                (real_loss.mean() / len(fakes)).backward()
            scalars.add("loss/discriminator", fake_loss + real_loss)
            for name, logits in (("fake", fake_logits), ("real", real_logits)):
                scalars.add(f"logits/{name}", logits)
                scalars.add(f"signs/{name}", logits.sign())
        return self.group.sum(statistics.flat()) / self.group.world

    def r1_phase(self, reals: Sequence[RealPass], view: View, weight: float, scalars: Scalars) -> None:
        """Gradient in D of weight / 2 times the mean R1 penalty at the real images, before D's view of them."""
        self._unfreeze()
        self.discriminator.zero_grad(set_to_none=True)
        for index, real in enumerate(reals):
            images = real.images.detach().requires_grad_(True)
            with _reduce_on(index == len(reals) - 1, self._parallel_d):
                logits = self._parallel_d(view.of(images, real.draws), real.c)
                penalty = r1_penalty(logits, images)
                # The penalty does not depend on the output bias. The reducer waits for every parameter, so the logits
                # take part with weight 0, and the bias's gradient is removed again: Adam skips it, as it should.
                loss = penalty.mean() * (weight / 2) + logits.sum() * 0
                (loss / len(reals)).backward()
            scalars.add("r1/penalty", penalty)
            scalars.add("signs/real", logits.sign())
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
    # Raised for the output layer's [1, C] weight, whose first stride is of no consequence.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _reduce_on(reduce: bool, network: nn.Module) -> AbstractContextManager[None]:
    """Average the gradients over the workers in this backward pass, or only add them up locally."""
    if reduce or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
