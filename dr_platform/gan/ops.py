"""The operators of both networks: filtered leaky ReLU, modulated convolution, fully connected layer.

Everything is plain differentiable torch, so gradients of any order work on every device; resampling is in `fir`.
Constant gains are moved into filters where there are any: a leaky ReLU commutes with a positive factor.

Axes: N batch, C, I, O channels, H, W pixels. Karras et al. 2021, "Alias-Free Generative Adversarial Networks", sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .fir import chunked_lrelu, resampler_for, runs_on_cpu
from .fir import resample as resample  # for the networks an operator like the others

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
EPSILON = 1e-8


def normalize_second_moment(x: Tensor) -> Tensor:
    """`x` [N, C] scaled so that the mean square of every row is 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


def leaky_clamp(x: Tensor, slope: float = LRELU_SLOPE, clamp: float | None = None) -> Tensor:
    """Leaky ReLU of any slope (1: identity), then limits to [-clamp, clamp]."""
    if slope != 1:
        x = F.leaky_relu(x, slope)
    if clamp is None:
        return x
    # Values reach the limit only when a network diverges. Looking is several times cheaper than clamping and its
    # backward, but on a GPU it would wait for the device, and a compiler cannot trace what depends on values.
    if runs_on_cpu(x) and x.numel() > 0:
        low, high = x.detach().aminmax()
        if low >= -clamp and high <= clamp:
            return x
    return x.clamp(-clamp, clamp)


def biased_lrelu(x: Tensor, bias: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Bias, leaky ReLU, its gain of sqrt(2) times `gain`, clamp. x: [N, C, ...], changed in place; bias: [C]."""
    x = F.leaky_relu(x.add_(bias.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))), LRELU_SLOPE)
    gain *= LRELU_GAIN
    return leaky_clamp(x if math.isclose(gain, 1) else x.mul_(gain), slope=1, clamp=clamp)


# --- Filtered activation ---------------------------------------------------------------------------------------------


def filtered_lrelu(
    x: Tensor,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = LRELU_GAIN,
    slope: float = LRELU_SLOPE,
    clamp: float | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Leaky ReLU at a raised sampling rate, so that the frequencies it creates can be filtered away.

    x: [N, C, H, W]; scale: [N, C]; bias: [C]. Order: scale, bias, upsample by `up` with `padding` (left, right, top,
    bottom) at the raised rate, leaky ReLU, gain, clamp, filter, downsample by `down`.
    up_filter: [taps] or [taps, taps], or None; down_filter likewise (two-dimensional if radial).
    Returns [N, C, H', W'].

    Karras et al. 2021, section 3.2 and figure 4b.
    """
    if up_filter is not None and down_filter is not None and kernels.applies(x, up_filter, down_filter, up, down):
        return kernels.filtered_lrelu(x, up_filter, down_filter, bias, scale, up, down, padding, gain, slope, clamp)[0]
    if runs_on_cpu(x) and up_filter is not None and down_filter is not None and slope >= 0 and gain > 0:
        raised = resampler_for(x.shape[2:], x.dtype, up_filter, (up, up), padding=padding, gain=gain * up**2)
        lowered = resampler_for(raised.size_out, x.dtype, down_filter, down=(down, down))
        return chunked_lrelu(x, bias, scale, raised, lowered, slope, clamp)
    if scale is not None:
        x = x * scale.to(x.dtype)[:, :, None, None]
    if bias is not None:
        x = x + bias.to(x.dtype)[None, :, None, None]
    if up != 1 or up_filter is not None or any(padding):
        x = resample(x, up_filter, up=up, padding=padding, gain=gain * up**2)
    elif gain != 1:
        x = x * gain
    x = leaky_clamp(x, slope, clamp)
    return x if down == 1 and down_filter is None else resample(x, down_filter, down=down)


# --- Learned layers -------------------------------------------------------------------------------------------------


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: Tensor | None = None,
) -> Tensor:
    """Convolution whose input channels each sample scales by its style, at unit output magnitude if `demodulate`.

    Arguments are those of `scaled_conv2d`. Returns [N, O, H + 2 padding - k + 1, W + ...] in the dtype of x.
    """
    y, scale = scaled_conv2d(x, weight, styles, demodulate, padding, input_gain)
    return y if scale is None else y * scale.to(x.dtype)[:, :, None, None]


def scaled_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: Tensor | None = None,
    align: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """`modulated_conv2d` and the scale [N, O] that its result is still to be multiplied by; None if there is none.

    x: [N, I, H, W]; weight: [O, I, k, k]; styles: [N, I]; input_gain: [], [I] or [N, I], applied after demodulation.
    Scales are computed in the dtype of the weight. align: zero channels are appended to the result until it has a
    multiple of it; x may come with such.

    Style and demodulation scale the activations before and after one convolution with shared weights, which equals the
    published convolution with a weight per sample (Karras et al. 2020, "Analyzing and Improving the Image Quality of
    StyleGAN", equations 1 and 3). On a CPU, where a convolution in N groups takes as long, they scale the weights where
    these are fewer numbers than the activations.
    """
    scale = None
    if demodulate:
        # Filters of unit norm and styles of unit power keep half precision in range; both cancel in `scale` up to
        # epsilon, which the published form adds for weights of unit power: fan_in times larger, hence the division.
        fan_in = weight[0].numel()
        weight = weight * weight.square().sum(dim=(1, 2, 3), keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
        scale = (styles.square() @ weight.square().sum(dim=(2, 3)).t() + EPSILON / fan_in).rsqrt()  # [N, O]
    if input_gain is not None:
        styles = styles * input_gain
    spare_in, spare_out = x.shape[1] - weight.shape[1], -len(weight) % align
    if spare_in or spare_out:
        weight = F.pad(weight, (0, 0, 0, 0, 0, spare_in, 0, spare_out))
        styles = F.pad(styles, (0, spare_in))
        scale = None if scale is None else F.pad(scale, (0, spare_out))
    if runs_on_cpu(x) and weight[:, 0].numel() < x[0, 0].numel():
        factors = styles[:, None, :] if scale is None else styles[:, None, :] * scale[:, :, None]  # [N, O or 1, I]
        own = (weight * factors[..., None, None]).flatten(0, 1).to(x.dtype)  # [N O, I, k, k]
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own, padding=padding, groups=len(x))
        return y.view(len(x), -1, *y.shape[2:]), None
    return F.conv2d(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype), padding=padding), scale


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate, optionally followed by leaky ReLU and its gain.

    The stored weight is `lr_multiplier` times smaller than the effective one at unit fan-in, so that one global
    learning rate serves layers that should learn at different speeds (Karras et al. 2018, section 4.1).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        lrelu: bool = False,
        lr_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.lrelu = lrelu
        self.lr_multiplier = lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (weight_init / lr_multiplier))
        bias = torch.as_tensor(bias_init, dtype=torch.float32).expand(out_features)
        self.bias = nn.Parameter(bias / lr_multiplier)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]."""
        weight = self.weight * (self.lr_multiplier / math.sqrt(self.weight.shape[1]))
        bias = self.bias * self.lr_multiplier
        return biased_lrelu(x @ weight.t(), bias) if self.lrelu else torch.addmm(bias, x, weight.t())
