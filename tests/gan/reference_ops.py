"""The operators as their definitions state them: zeros inserted, filters applied, samples dropped. For comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upfirdn(
    x: Tensor,
    filter: Tensor | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Zero-insert by up (x, y), pad, convolve, keep every down-th sample."""
    n, c, h, w = x.shape
    stretched = x.new_zeros(n, c, h, up[1], w, up[0])
    stretched[:, :, :, 0, :, 0] = x
    padded = F.pad(stretched.reshape(n, c, h * up[1], w * up[0]), list(padding))
    taps = x.new_ones(1, 1) if filter is None else filter.to(x.dtype)
    if taps.ndim == 1:
        taps = torch.outer(taps, taps)
    images = padded.reshape(n * c, 1, *padded.shape[2:])
    y = F.conv2d(images, (taps * gain).flip((0, 1))[None, None])
    return y.reshape(n, c, *y.shape[2:])[:, :, :: down[1], :: down[0]]


def filtered_lrelu(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    bias: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    clamp: float | None,
) -> Tensor:
    if bias is not None:
        x = x + bias[:, None, None]
    x = upfirdn(x, up_filter, up=(up, up), padding=padding, gain=up**2)
    x = torch.where(x >= 0, x, x * slope) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return upfirdn(x, down_filter, down=(down, down))


def modulated_conv2d(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool, padding: int) -> Tensor:
    """One weight per sample: modulated, demodulated, convolved."""
    results = []
    for sample, style in zip(x, styles, strict=True):
        own = weight * style[None, :, None, None]
        if demodulate:
            own = own / own.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        results.append(F.conv2d(sample[None], own, padding=padding))
    return torch.cat(results)
