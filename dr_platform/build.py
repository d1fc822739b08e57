"""Configuration to networks: the one translator between params.yaml and `gan/`.

`gan/` takes plain keyword arguments and knows no configuration; everything above it knows no constructor.
"""

from __future__ import annotations

from typing import Any

import torch

from dr_platform.config import TrainConfig
from dr_platform.gan import Discriminator, Generator

# The magnitude average of StyleGAN3 forgets half of what it knows every 20,000 images.
_MAGNITUDE_HALF_LIFE_IMAGES = 20_000


def generator_kwargs(config: TrainConfig, resolution: int, num_classes: int = 0) -> dict[str, Any]:
    """Keyword arguments of `Generator`; config R has 1x1 convolutions, radial filters and twice the width."""
    rotation = config.config == "stylegan3-r"
    width = 2 if rotation else 1
    return {
        "z_dim": config.z_dim,
        "c_dim": num_classes,
        "w_dim": config.w_dim,
        "img_resolution": resolution,
        "img_channels": 3,
        "mapping_layers": config.mapping_layers,
        "num_layers": config.num_layers,
        "channel_base": config.channel_base * width,
        "channel_max": config.channel_max * width,
        "conv_kernel": 1 if rotation else 3,
        "use_radial_filters": rotation,
        "num_fp16_res": 0 if config.low_precision == "none" else config.low_precision_resolutions,
        "magnitude_ema_beta": 0.5 ** (config.batch / _MAGNITUDE_HALF_LIFE_IMAGES),
    }


def discriminator_kwargs(config: TrainConfig, resolution: int, num_classes: int = 0) -> dict[str, Any]:
    """Keyword arguments of `Discriminator`; its width does not follow config R's."""
    return {
        "c_dim": num_classes,
        "img_resolution": resolution,
        "img_channels": 3,
        "channel_base": config.discriminator_channel_base,
        "channel_max": config.discriminator_channel_max,
        "num_fp16_res": 0 if config.low_precision == "none" else config.low_precision_resolutions,
        "mbstd_group_size": config.mbstd_group,
        "freeze_layers": config.freeze_discriminator,
    }


def build_networks(config: TrainConfig, resolution: int, num_classes: int = 0) -> tuple[Generator, Discriminator]:
    """Freshly initialised G and D, float32, on the CPU: a function of `config.seed`, whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = Generator(**generator_kwargs(config, resolution, num_classes))
        discriminator = Discriminator(**discriminator_kwargs(config, resolution, num_classes))
    return generator, discriminator
