"""What an extractor is: a network from 8-bit pictures to rows of features, and the identity of numbers made with it.

How a picture comes to the network's size belongs to the network and to the identity, because it moves every distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform import records
from dr_platform.evaluation.precision import whole_float32

# The one extractor whose distances carry the plain names fid and kid.
PUBLISHED = "inception-v3-2015-12-05"
# More at once do not fit into a core's cache: on one thread 4 are 1.7 times as fast as 32 with MobileNetV2, 1.1 times
# with Inception-v3, and as fast with vision transformers.
_CPU_BATCH = 4


@dataclass(frozen=True)
class FeatureExtractor:
    """A network ready to extract, and what to call numbers made with it.

    network: from uint8 [n, 3, H, W] on `device`, of any size, to floats [n, identity.features]; a row depends on its
    picture alone.
    """

    identity: records.Extractor
    network: Callable[[Tensor], Tensor]
    device: torch.device

    def metric_name(self, stem: str) -> str:
        """`fid` with Inception-v3, `fid__drp-small-v1` with any other extractor."""
        return stem if self.identity.name == PUBLISHED else f"{stem}__{self.identity.name}"

    def __call__(self, images: Tensor) -> Tensor:
        """Features of uint8 [n, 3, H, W] from any device: [n, d] on `device`, without gradients and without TF32."""
        with torch.inference_mode(), whole_float32():
            if self.device.type == "cpu":
                return torch.cat([self.network(part) for part in images.split(_CPU_BATCH)])
            return self.network(images.to(self.device, non_blocking=True))


def resized(images: Tensor, side: int) -> Tensor:
    """Pictures of any size as float32 [n, 3, side, side] in 0 to 255; `bicubic(side)` says how in words."""
    pixels = images.to(torch.float32)
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def bicubic(side: int) -> str:
    """The words for `resized`."""
    return f"bicubic with anti-alias, {side}, clamped to 0-255, not rounded"
