"""W-Net, a vessel segmentation of 69,538 numbers: two U-Nets in a row, from a safetensors file that the user gives.

Galdran et al. 2022, "State-of-the-art retinal vessel segmentation with minimalistic models". The network is written as
a function over the file's tensors, so that nothing but their names and shapes has to agree.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dr_platform.errors import EvaluationError

THRESHOLD = 0.4196  # its author's, of the vessel probability
INPUT_SIDE = 512  # what it was trained near; other sizes are resampled to it and back

_WIDTHS = (8, 16, 32)
_NORM = ("running_mean", "running_var", "weight", "bias")


@dataclass(frozen=True, eq=False)
class WNet:
    """The network's tensors, and the SHA-256 of the file they came from."""

    tensors: Mapping[str, Tensor]
    weights_sha256: str

    @torch.inference_mode()
    def probability(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vessel probability, float32 [H, W] in [0, 1], of one photograph uint8 [H, W, 3], its field filling it."""
        _check_image(image)
        picture = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
        size = (image.shape[0], image.shape[1])
        if size != (INPUT_SIDE, INPUT_SIDE):
            picture = _resized(picture, (INPUT_SIDE, INPUT_SIDE), "bicubic").clamp(0, 1)
        first = _unet(self.tensors, "unet1", picture)
        second = _unet(self.tensors, "unet2", torch.cat((picture, first), dim=1))
        probability = torch.sigmoid(second)
        if size != (INPUT_SIDE, INPUT_SIDE):
            probability = _resized(probability, size, "bilinear")
        return probability[0, 0].numpy()


def load_wnet(path: Path) -> WNet:
    """The network in a safetensors file.

    Raises EvaluationError for a file that cannot be read, or whose tensors are not W-Net's by name and shape.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no safetensors file"
        raise EvaluationError(
            f"{path} cannot be read: {reason}. Give W-Net's weights, or none for the classical filter."
        ) from None
    expected = _shapes()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or tuple(tensors[name].shape) != expected[name]
    )
    if wrong:
        raise EvaluationError(
            f"{path} is not W-Net: tensor {wrong[0]} is missing, unknown or of another shape ({len(wrong)} such). Give "
            "wnet_drive_vessels.safetensors, or none for the classical filter."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise EvaluationError(f"{path} holds values that are not finite. Give an undamaged file.")
    return WNet({name: tensor.float() for name, tensor in tensors.items()}, hashlib.sha256(content).hexdigest())


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise EvaluationError(f"an image is {image.dtype} {list(image.shape)}; uint8 [height, width, 3] is needed.")


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)


def _unet(t: Mapping[str, Tensor], net: str, x: Tensor) -> Tensor:
    """Raw output [n, 1, H, W]; H and W divide by 4."""
    levels = [_level(t, f"{net}.first", x)]
    for i in range(len(_WIDTHS) - 1):
        levels.append(_level(t, f"{net}.down_path.{i}", F.max_pool2d(levels[-1], 2)))
    x = levels.pop()
    for i in range(len(_WIDTHS) - 1):
        up = f"{net}.up_path.{i}"
        x = F.conv_transpose2d(x, t[f"{up}.up_layer.block.0.weight"], t[f"{up}.up_layer.block.0.bias"], stride=2)
        bridge = _conv_relu_norm(t, f"{up}.conv_bridge_layer.block", 0, levels.pop())
        x = _level(t, f"{up}.conv_layer", torch.cat((x, bridge), dim=1))
    return F.conv2d(x, t[f"{net}.final.weight"], t[f"{net}.final.bias"])


def _level(t: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Two convolutions, and beside them a 1x1 shortcut."""
    inner = _conv_relu_norm(t, f"{name}.block", 3, _conv_relu_norm(t, f"{name}.block", 0, x))
    return inner + _norm(t, f"{name}.shortcut.1", F.conv2d(x, t[f"{name}.shortcut.0.weight"]))


def _conv_relu_norm(t: Mapping[str, Tensor], block: str, at: int, x: Tensor) -> Tensor:
    convolved = F.conv2d(x, t[f"{block}.{at}.weight"], t[f"{block}.{at}.bias"], padding=1)
    return _norm(t, f"{block}.{at + 2}", F.relu(convolved))


def _norm(t: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (t[f"{name}.{part}"] for part in _NORM)
    return F.batch_norm(x, mean, variance, scale, shift)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in _NORM})

    def convolution(block: str, at: int, into: int, width: int) -> None:
        shapes[f"{block}.{at}.weight"], shapes[f"{block}.{at}.bias"] = (width, into, 3, 3), (width,)
        norm(f"{block}.{at + 2}", width)

    def level(name: str, into: int, width: int) -> None:
        convolution(f"{name}.block", 0, into, width)
        convolution(f"{name}.block", 3, width, width)
        shapes[f"{name}.shortcut.0.weight"] = (width, into, 1, 1)
        norm(f"{name}.shortcut.1", width)

    for net, channels in (("unet1", 3), ("unet2", 4)):
        level(f"{net}.first", channels, _WIDTHS[0])
        for i, (above, below) in enumerate(itertools.pairwise(_WIDTHS)):
            level(f"{net}.down_path.{i}", above, below)
        for i, (below, above) in enumerate(zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True)):
            up = f"{net}.up_path.{i}"
            shapes[f"{up}.up_layer.block.0.weight"] = (below, above, 2, 2)
            shapes[f"{up}.up_layer.block.0.bias"] = (above,)
            convolution(f"{up}.conv_bridge_layer.block", 0, above, above)
            level(f"{up}.conv_layer", 2 * above, above)
        shapes[f"{net}.final.weight"], shapes[f"{net}.final.bias"] = (1, _WIDTHS[0], 1, 1), (1,)
    return shapes
