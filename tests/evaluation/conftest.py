"""Generators whose pictures are known in closed form, so that what a metric must say is known too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_platform.config import EvaluateConfig
from dr_platform.records import Checkpoint

DIGEST = "0" * 64


class WaveGenerator(nn.Module):
    """Sums of four plane waves over the plane that `synthesis.input.transform` moves: equivariant by construction.

    The latent gives each wave's phase. `nailed` adds a chequerboard that stays where it is, as texture sticking does.
    """

    def __init__(self, resolution: int = 32, channels: int = 3, nailed: float = 0.0, c_dim: int = 0) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.resolution, self.channels, self.nailed = 8, c_dim, resolution, channels, nailed
        self.synthesis = nn.Module()
        self.synthesis.input = nn.Module()
        self.synthesis.input.register_buffer("transform", torch.eye(3))
        self.register_buffer("waves", torch.tensor([[1.0, 2.0], [3.0, -1.0], [-2.0, 3.0], [0.5, 0.0]]))

    def forward(
        self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0, force_fp32: bool = False
    ) -> Tensor:
        axis = (torch.arange(self.resolution) + 0.5) / self.resolution - 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        moved = (self.synthesis.input.transform @ points)[:2]  # [2, H·W]
        phases = truncation_psi * z[:, :4, None] + (self.waves @ moved)[None] * 2 * math.pi
        image = phases.sin().mean(dim=1).reshape(-1, 1, self.resolution, self.resolution)
        level = torch.linspace(0.5, 0.9, self.channels).reshape(1, -1, 1, 1)
        board = ((axis.argsort()[:, None] + axis.argsort()) % 2 * 2 - 1.0) * self.nailed
        label = 0.0 if c is None else c.argmax(dim=1).reshape(-1, 1, 1, 1) * 0.2
        return image * level + board + label


@pytest.fixture
def config() -> EvaluateConfig:
    return EvaluateConfig(
        images=100,
        extractor="small",
        kid_subsets=10,
        kid_subset_size=50,
        pictures=0,
        equivariance_images=8,
        batch=16,
        seed=3,
    )


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        run="a-run",
        step=10,
        images_seen=320,
        complete=True,
        grade=1,
        resolution=32,
        visibility="public",
        config_sha256=DIGEST,
        data_sha256="1" * 64,
        train_images=120,
        parent=None,
        generator={},
        discriminator={},
        files={},
    )


@pytest.fixture
def make_waves() -> type[WaveGenerator]:
    return WaveGenerator


@pytest.fixture
def waves() -> WaveGenerator:
    return WaveGenerator()


@pytest.fixture(scope="session")
def blobs() -> np.ndarray:
    """120 small pictures, each a reddish disc on black with a bright spot: uint8 [120, 32, 32, 3]."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:32, :32] - 15.5
    disc = (np.hypot(x, y) < 14).astype(float)
    pictures = []
    for _ in range(120):
        spot = np.exp(-((x - rng.uniform(-8, 8)) ** 2 + (y - rng.uniform(-4, 4)) ** 2) / rng.uniform(2, 8))
        tint = np.array([170.0, 90.0, 50.0]) + rng.normal(0, 15, 3)
        texture = rng.normal(0, 6, (32, 32, 1))
        pictures.append(disc[..., None] * (tint * (0.8 + 0.4 * spot[..., None]) + texture))
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)
