"""Adversarial terms and the penalty on the critic's gradient, per sample, unweighted; and the blur of early training.

Callers take means, multiply by gamma and by the lazy interval, and report.

Goodfellow et al. 2014, "Generative Adversarial Nets" (non-saturating logistic loss);
Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?" (R1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import resample


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-log of the probability that the critic takes a generated image for real, [N] for logits [N, 1]."""
    return F.softplus(-fake_logits).flatten()


def discriminator_fake_loss(fake_logits: Tensor) -> Tensor:
    """-log of the probability that the critic gives a generated image for generated, [N] for logits [N, 1]."""
    return F.softplus(fake_logits).flatten()


def discriminator_real_loss(real_logits: Tensor) -> Tensor:
    """-log of the probability that the critic gives a real image for real, [N] for logits [N, 1]."""
    return F.softplus(-real_logits).flatten()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared gradient norm of the critic at the real images, per sample.

    real_logits: [N, 1], computed from `real_images`, which must require grad.
    real_images: [N, 3, H, W] in [-1, 1].
    Returns [N] in float32, or float64 for images in float64, unweighted: the caller multiplies by gamma / 2.

    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.to(dtype).square().sum(dim=(1, 2, 3))


def blur_sigma(num_images: int, init_sigma: float, fade_images: float) -> float:
    """Width of the blur in pixels after `num_images` seen: from `init_sigma` linearly to 0 at `fade_images`."""
    return max(1 - num_images / fade_images, 0) * init_sigma if fade_images > 0 else 0.0


def blur(images: Tensor, sigma: float) -> Tensor:
    """Images [N, C, H, W] as the critic sees them early in configuration R: all real and generated ones blurred alike.

    The kernel is 2^-(i / sigma)^2 for |i| <= 3 sigma, normalised, zero outside the image; below one pixel no blur.
    Karras et al. 2021, appendix D.4: this keeps the critic from the high frequencies until the generator has them.
    """
    reach = math.floor(sigma * 3)
    if reach <= 0:
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)
    offsets = torch.arange(-reach, reach + 1, dtype=dtype, device=images.device)
    taps = torch.exp2(-((offsets / sigma) ** 2))
    return resample(images, taps / taps.sum(), padding=(reach, reach, reach, reach))
