"""drp-small-v1: 95 numbers that describe a picture, from closed formulae, for machines without Inception's weights.

A picture is brought to 64 px, split into brightness and two opponent colours, and looked at through log-Gabor filters
(Field 1987; Kovesi 1999) at four octaves and four orientations. The features are pooled moduli, which blur lowers and
noise raises, and a coarse map of the colours, which misplaced discs and wrong hues change. All are roughly unit-scaled.
Everything is float64, so that neither batch size nor machine moves a digit that matters.

It is a yardstick for this platform's own runs. It was trained on nothing, is blind to detail finer than 1/64 of the
picture (a microaneurysm, say), and its distances are not FID or KID as published: names made with it carry its suffix.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform.files import sha256_json

NAME = "drp-small-v1"
INPUT_SIZE = 64

OPPONENTS = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))  # brightness, red-green, yellow-blue
WAVELENGTHS_PX = (3.0, 6.0, 12.0, 24.0)
ORIENTATIONS = 4
LOG_BANDWIDTH = 0.65  # the Gaussian's width over the centre frequency, on a log axis: about 1.5 octaves
ANGULAR_SIGMA_RAD = 1.2 * math.pi / 8
LAYOUT_CELLS = 4  # per side
LAYOUT_GAIN = 4.0
FEATURES = len(WAVELENGTHS_PX) * (ORIENTATIONS + 4 + 2 + 1) + 3 + 3 * LAYOUT_CELLS**2

# Whatever the features depend on. Its digest is the extractor's identity: change anything, and it is another extractor.
WEIGHTS_SHA256 = sha256_json(
    {
        "name": NAME,
        "resize": f"bicubic, antialiased, to {INPUT_SIZE}, clamped to [0, 255]",
        "opponents": OPPONENTS,
        "wavelengths_px": WAVELENGTHS_PX,
        "orientations": ORIENTATIONS,
        "log_bandwidth": LOG_BANDWIDTH,
        "angular_sigma_rad": ANGULAR_SIGMA_RAD,
        "layout": [LAYOUT_CELLS, LAYOUT_GAIN],
        "features": "log1p of moduli in grey levels, by scale and orientation, scale and quadrant, chroma and scale; "
        "log of rms over mean by scale; log1p spread by channel; layout by channel",
    }
)


def filter_bank() -> Tensor:
    """Transfer functions of the log-Gabor filters on the FFT's grid: float64 [scales, orientations, 64, 64].

    Each passes one half-plane with a peak gain of 2, so that the modulus of a response is a wave's amplitude.
    """
    axis = torch.fft.fftfreq(INPUT_SIZE, dtype=torch.float64)
    fy, fx = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.hypot(fx, fy)
    radius[0, 0] = 1.0  # any number but 0: the angular factor cannot be trusted at DC, which is set to 0 below
    angle = torch.atan2(fy, fx)
    centre = 1 / torch.tensor(WAVELENGTHS_PX, dtype=torch.float64).reshape(-1, 1, 1)
    radial = torch.exp(-((radius / centre).log() ** 2) / (2 * math.log(LOG_BANDWIDTH) ** 2))
    radial[:, 0, 0] = 0
    direction = (torch.arange(ORIENTATIONS, dtype=torch.float64) * math.pi / ORIENTATIONS).reshape(-1, 1, 1)
    away = torch.remainder(angle - direction + math.pi, 2 * math.pi) - math.pi
    angular = torch.exp(-(away**2) / (2 * ANGULAR_SIGMA_RAD**2))
    return 2 * radial[:, None] * angular[None]


def small_features(images: Tensor, bank: Tensor) -> Tensor:
    """The features of 8-bit pictures of any size.

    images: uint8 [n, 3, H, W]. bank: `filter_bank()` on the same device.
    Returns float64 [n, 95].
    """
    pixels = images.to(torch.float64)
    if pixels.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
        size = (INPUT_SIZE, INPUT_SIZE)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    opponents = torch.tensor(OPPONENTS, dtype=torch.float64, device=images.device)
    channels = torch.einsum("ij,njhw->nihw", opponents, pixels.clamp(0, 255))
    spectra = torch.fft.fft2(channels)
    modulus = torch.fft.ifft2(spectra[:, 0, None, None] * bank).abs()  # [n, scale, orientation, 64, 64], grey levels
    chroma = torch.fft.ifft2(spectra[:, 1:, None] * bank.mean(dim=1)).abs()  # [n, chroma, scale, 64, 64]
    per_scale = modulus.mean(dim=2)
    groups = (
        modulus.mean(dim=(-2, -1)).log1p(),
        F.adaptive_avg_pool2d(per_scale, 2).log1p(),
        chroma.mean(dim=(-2, -1)).log1p(),
        ((per_scale.square().mean(dim=(-2, -1)).sqrt() + 1) / (per_scale.mean(dim=(-2, -1)) + 1)).log(),
        channels.std(dim=(-2, -1)).log1p(),
        F.adaptive_avg_pool2d(channels / 255, LAYOUT_CELLS) * LAYOUT_GAIN,
    )
    return torch.cat([group.flatten(1) for group in groups], dim=1)
