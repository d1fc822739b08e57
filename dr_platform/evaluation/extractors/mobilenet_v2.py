"""MobileNetV2 1.0/224 (ImageNet, batch norm folded in): 1,280 features, a stand-in where Inception-v3 cannot be had.

Its distances order degradations of fundus photographs rightly and are no FID. The one known file is accepted by its
SHA-256. Padding is TensorFlow's SAME: at stride 2 an even side gets nothing before and one pixel after.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dr_platform import records
from dr_platform.errors import EvaluationError
from dr_platform.evaluation.extractors import weights
from dr_platform.evaluation.extractors.base import FeatureExtractor, bicubic, resized

FILES = ("mobilenetv2_imagenet_folded.safetensors",)
SHA256 = "9849e5247a6a02c733a4cd8372a4841ab62833e5517547eb16e3e351080fc90f"
INPUT_SIZE = 224
FEATURES = 1280
CLASSES = 1001  # ImageNet's 1,000 after a "background"
IDENTITY = records.Extractor(
    name="mobilenet-v2-1.0-224-imagenet",
    weights_sha256=SHA256,
    input_size=INPUT_SIZE,
    features=FEATURES,
    resize=bicubic(INPUT_SIZE),
)
_EXPANSION = 6
# Output channels, how many blocks, stride of the first: the expansion is 1 in the first group.
_GROUPS = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_STEM = 32


class MobileNetV2(nn.Module):
    """uint8 [n, 3, H, W] to features, float32 [n, 1280]; `logits` takes features to [n, 1001]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STEM, 3, stride=2)
        blocks: list[_Block] = []
        channels = _STEM
        for outputs, count, first in _GROUPS:
            for index in range(count):
                blocks.append(_Block(channels, outputs, _EXPANSION if blocks else 1, first if index == 0 else 1))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = resized(images, INPUT_SIZE) / 127.5 - 1
        x = _relu6(_same(self.stem, x.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x)
        return _relu6(self.head(x)).mean(dim=(-2, -1))

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.dw = nn.Conv2d(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else _relu6(self.expand(x))
        out = self.project(_relu6(_same(self.dw, hidden)))
        return x + out if self.is_residual else out


def load(path: Path, device: torch.device) -> FeatureExtractor:
    """The extractor from its weights file. Raises EvaluationError unless the file is the known one."""
    content = weights.read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise EvaluationError(
            f"{path} is not the MobileNetV2 known here: its SHA-256 begins {found[:12]}, not {SHA256[:12]}. "
            "Remove or replace it, or set evaluate.extractor to small."
        )
    network = MobileNetV2()
    network.load_state_dict(safetensors.torch.load(content))
    network = network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FeatureExtractor(IDENTITY, network, device)


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)  # of a convolution's output, which nobody else sees: 1.4 times as fast on a CPU


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution with the padding that leaves ceil(side / stride), the odd pixel last."""
    if layer.stride == (1, 1):
        return F.conv2d(x, layer.weight, layer.bias, padding=1, groups=layer.groups)
    needed = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in (x.shape[-1], x.shape[-2])]
    padding = [part for total in needed for part in (total // 2, total - total // 2)]
    return F.conv2d(F.pad(x, padding), layer.weight, layer.bias, stride=2, groups=layer.groups)
