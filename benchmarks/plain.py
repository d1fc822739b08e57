"""The plain forms that `bench.py` measures against: what the papers write down, with nothing rearranged.

Resampling inserts zeros and convolves every channel, axis by axis for a separable filter and at once for a radial one,
then drops samples. The modulated convolution makes one weight per sample and convolves in as many groups. Adam and the
moving average visit one tensor at a time. Published CPU implementations of StyleGAN3 do the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dr_platform.gan import discriminator, generator


def resample(
    x: Tensor,
    filter: Tensor | None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """`dr_platform.gan.fir.resample` as defined, [N, C, H, W] to [N, C, H', W']."""
    n, c, h, w = x.shape
    if up > 1:
        stretched = x.new_zeros(n, c, h * up, w * up)
        stretched[:, :, ::up, ::up] = x
        x = stretched
    x = F.pad(x, list(padding))
    if filter is not None:
        taps = filter.to(x.dtype).flip(tuple(range(filter.ndim)))
        passes = [taps * gain] if taps.ndim == 2 else [taps[:, None] * gain**0.5, taps[None, :] * gain**0.5]
        for weight in passes:
            x = F.conv2d(x, weight.expand(c, 1, *weight.shape), groups=c)
    elif gain != 1:
        x = x * gain
    return x[:, :, ::down, ::down]


def filtered_lrelu(
    x: Tensor,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    scale: None = None,
) -> Tensor:
    """`dr_platform.gan.ops.filtered_lrelu` as defined; here convolutions leave nothing to be scaled."""
    if bias is not None:
        x = x + bias[:, None, None]
    x = resample(x, up_filter, up=up, padding=padding, gain=up**2)
    x = F.leaky_relu(x, slope) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return resample(x, down_filter, down=down)


def scaled_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: Tensor | None = None,
    align: int = 1,
) -> tuple[Tensor, None]:
    """`dr_platform.gan.ops.scaled_conv2d` with a weight per sample, as one convolution in N groups; nothing is left to
    be scaled, and `align` is for tensor cores."""
    n = x.shape[0]
    own = weight[None] * styles[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        own = own * (own.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    if input_gain is not None:
        own = own * input_gain.expand(n, x.shape[1])[:, None, :, None, None]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own.flatten(0, 1), padding=padding, groups=n)
    return y.reshape(n, -1, *y.shape[2:]), None


@contextmanager
def plain_operators() -> Iterator[None]:
    """Both networks compute with the plain forms inside."""
    with (
        mock.patch.object(generator, "filtered_lrelu", filtered_lrelu),
        mock.patch.object(generator, "scaled_conv2d", scaled_conv2d),
        mock.patch.object(discriminator, "resample", resample),
    ):
        yield


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, beta: float) -> None:
    """`dr_platform.gan.ema.update_ema`, one tensor at a time."""
    for old, new in zip(average.parameters(), module.parameters(), strict=True):
        old.copy_(new.lerp(old, beta))
    for old, new in zip(average.buffers(), module.buffers(), strict=True):
        old.copy_(new)
