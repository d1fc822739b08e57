"""StyleGAN3 in plain torch: networks, losses and the generator's average. Imports nothing of the package around it.

The folder is copied whole into registered models, so it needs torch, numpy and scipy only, and imports relatively.
"""

from .ada import AdaptiveP
from .augmentation import Augmentation, Draws, augment, augmentation_named, draw
from .discriminator import Discriminator
from .ema import ema_beta, update_ema
from .generator import Generator, Statistics
from .leaks import Leak, find_leaks, leak_statistics
from .losses import (
    blur,
    blur_sigma,
    discriminator_fake_loss,
    discriminator_real_loss,
    generator_loss,
    r1_penalty,
)
from .official import discriminator_from_state, generator_from_state
from .precision import Precision, set_precision

__all__ = [
    "AdaptiveP",
    "Augmentation",
    "Discriminator",
    "Draws",
    "Generator",
    "Leak",
    "Precision",
    "Statistics",
    "augment",
    "augmentation_named",
    "blur",
    "blur_sigma",
    "discriminator_fake_loss",
    "discriminator_from_state",
    "discriminator_real_loss",
    "draw",
    "ema_beta",
    "find_leaks",
    "generator_from_state",
    "generator_loss",
    "leak_statistics",
    "r1_penalty",
    "set_precision",
    "update_ema",
]
