"""Images for seeds: one integer names one latent, whatever else is drawn beside it.

The latent of seed s is the first draw of a generator of random numbers seeded with s, so neither the batch size nor the
company changes a picture. Imports nothing but torch and numpy, because registered models carry a copy of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

SEED_LIMIT = 2**32  # torch's CPU generator (MT19937) looks at the lower 32 bits only


class ImageGenerator(Protocol):
    """What is sampled: a module from latents [n, z_dim] and labels (or None) to images [n, C, R, R]."""

    z_dim: int

    def __call__(self, z: Tensor, c: Tensor | None, /, *, truncation_psi: float) -> Tensor: ...


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """Standard normal latents, one row per seed: [n, z_dim] in float32 on the CPU.

    Raises ValueError for a seed outside 0 to 2³² - 1, where two seeds could mean one latent.
    """
    rows = torch.empty(len(seeds), z_dim)
    for row, seed in zip(rows, seeds, strict=True):
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"seed {seed} is not between 0 and {SEED_LIMIT - 1}")
        row.copy_(torch.randn(z_dim, generator=torch.Generator().manual_seed(int(seed))))
    return rows


def to_uint8(images: Tensor) -> np.ndarray:
    """Network output as 8-bit pixels: x·127.5 + 128, clamped and truncated, as published metrics do it.

    images: [n, 3 or 1, H, W], nominally in [-1, 1]; one channel is repeated to three.
    Returns uint8 [n, H, W, 3]. Raises FloatingPointError if a value is not finite.
    """
    if not torch.isfinite(images).all():
        raise FloatingPointError("the generator's images are not finite")
    return np.ascontiguousarray(_planes(images).permute(0, 2, 3, 1).cpu().numpy())


def _planes(images: Tensor) -> Tensor:
    pixels = (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return pixels if pixels.shape[1] > 1 else pixels.expand(-1, 3, -1, -1)


@torch.no_grad()
def sample_images(
    generator: ImageGenerator,
    seeds: Sequence[int],
    psi: float = 1.0,
    batch: int = 32,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """The generator's pictures for these seeds, in their order: uint8 [n, R, R, 3].

    generator: stays on its device and in its mode.
    psi: truncation; 1 is none, 0 the average image.
    labels: [n, c_dim] for a conditional generator.
    Raises FloatingPointError if an image is not finite, ValueError for a seed out of range.
    """
    device = _device(generator)
    pictures = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        z = latents(seeds[part], generator.z_dim).to(device)
        c = None if labels is None else torch.as_tensor(labels[part], dtype=torch.float32, device=device)
        pictures.append(to_uint8(generator(z, c, truncation_psi=psi)))
    if not pictures:
        raise ValueError("no seeds were given")
    return np.concatenate(pictures)


@torch.no_grad()
def sample_planes(
    generator: ImageGenerator, seeds: Sequence[int], psi: float = 1.0, labels: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """What `sample_images` gives, in one batch and without waiting for it: left on the generator's device.

    Returns uint8 [n, 3, R, R], channels last in memory as pictures from files are, and bool []: whether all were
    finite.
    """
    device = _device(generator)
    z = latents(seeds, generator.z_dim).to(device)
    c = None if labels is None else torch.as_tensor(labels, dtype=torch.float32, device=device)
    images = generator(z, c, truncation_psi=psi)
    return _planes(images).contiguous(memory_format=torch.channels_last), torch.isfinite(images).all()


def _device(generator: ImageGenerator) -> torch.device:
    if isinstance(generator, nn.Module):
        for tensor in (*generator.parameters(), *generator.buffers()):
            return tensor.device
    return torch.device("cpu")
