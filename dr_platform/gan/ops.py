"""The operators of both networks: FIR resampling, filtered leaky ReLU, modulated convolution, fully connected layer.

Everything is plain differentiable torch, so gradients of any order work on every device. Nothing inserts zeros: a
filter is applied as one depthwise convolution (transposed to upsample, strided to downsample) or, where a large
upsampling factor would make that convolution sparse, as a banded matrix from the left and from the right. Which form is
faster was measured on a CPU: a 12 x 12 depthwise convolution costs no more there than its two one-dimensional passes,
since memory is the limit, while a GPU counts multiplications and takes the passes.

Constant gains are moved into filters where there are any: a leaky ReLU commutes with a positive factor.

Axes: N batch, C, I, O channels, H, W pixels. Karras et al. 2021, "Alias-Free Generative Adversarial Networks", sec. 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
EPSILON = 1e-8

# A banded matrix wastes multiplications on its zeros, growing with the side; below this side and from this factor it
# beats the transposed convolution by 1.5 to 3.5 times (2 cores, AVX-512).
MATRIX_MAX_SIDE = 100
MATRIX_MIN_UP = 4


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
    if x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling():
        low, high = x.detach().aminmax()
        if low >= -clamp and high <= clamp:
            return x
    return x.clamp(-clamp, clamp)


def biased_lrelu(x: Tensor, bias: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Bias, leaky ReLU, its gain of sqrt(2) times `gain`, clamp. x: [N, C, ...], changed in place; bias: [C]."""
    x = F.leaky_relu(x.add_(bias.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))), LRELU_SLOPE)
    gain *= LRELU_GAIN
    return leaky_clamp(x if math.isclose(gain, 1) else x.mul_(gain), slope=1, clamp=clamp)


# --- FIR resampling -----------------------------------------------------------------------------------------------


def resampled_side(size: int, num_taps: int, up: int, down: int, pad: tuple[int, int]) -> int:
    """Samples that come out of `resample` along one axis."""
    return (size * up + pad[0] + pad[1] - num_taps) // down + 1


def resample(
    x: Tensor,
    filter: Tensor | None,
    up: int | tuple[int, int] = 1,
    down: int | tuple[int, int] = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Upsample, pad, convolve with a FIR filter and decimate, for every channel alike.

    x: [N, C, H, W]. filter: [taps] for both axes, [taps_y, taps_x], or None for no filter.
    up, down: factors, one or (x, y); up - 1 zeros follow each sample, every down-th output is kept from the first on.
    padding: (left, right, top, bottom) in upsampled samples, negative to crop. gain: of the whole filter.
    Returns [N, C, H', W'] with the sides given by `resampled_side`.
    """
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    left, right, top, bottom = padding
    taps = x.new_ones(1) if filter is None else filter.to(x.dtype)
    x, left, right = _trim(x, 3, up_x, left, right)
    x, top, bottom = _trim(x, 2, up_y, top, bottom)
    if taps.ndim == 1:
        steep = min(up_x, up_y) >= MATRIX_MIN_UP and max(x.shape[2:]) <= MATRIX_MAX_SIDE
        # In double precision a CPU has no fast depthwise convolution.
        if steep or (x.dtype == torch.float64 and x.device.type == "cpu"):
            rows = _band_matrix(taps * math.sqrt(gain), x.shape[2], up_y, down_y, (top, bottom))
            columns = _band_matrix(taps * math.sqrt(gain), x.shape[3], up_x, down_x, (left, right))
            return rows @ (x @ columns.t())
        if x.device.type != "cpu":
            root = taps * math.sqrt(gain)
            x = _convolve(x, root[:, None], (up_y, 1), (down_y, 1), (0, 0, top, bottom))
            return _convolve(x, root[None, :], (1, up_x), (1, down_x), (left, right, 0, 0))
        taps = torch.outer(taps, taps)
    return _convolve(x, taps * gain, (up_y, up_x), (down_y, down_x), (left, right, top, bottom))


def _trim(x: Tensor, axis: int, up: int, before: int, after: int) -> tuple[Tensor, int, int]:
    """Drop the samples that a negative padding removes anyway, so that no form has to compute them."""
    first = -(before // up) if before < 0 else 0
    last = -after // up if after < 0 else 0
    if first or last:
        x = x.narrow(axis, first, x.shape[axis] - first - last)
    return x, before + first * up, after + last * up


@functools.lru_cache(maxsize=512)
def _band_index(num_taps: int, size: int, up: int, down: int, pad: tuple[int, int], device: torch.device) -> Tensor:
    """Which tap links input sample i to output sample j, [out, size]; `num_taps` where none does."""
    with torch.inference_mode(False):  # a cached tensor must serve later training too
        out = torch.arange(resampled_side(size, num_taps, up, down, pad), device=device)
        tap = out[:, None] * down + (num_taps - 1 - pad[0]) - torch.arange(size, device=device) * up
        return torch.where((tap >= 0) & (tap < num_taps), tap, num_taps)


def _band_matrix(taps: Tensor, size: int, up: int, down: int, pad: tuple[int, int]) -> Tensor:
    """The matrix [out, size] that resamples one axis."""
    return F.pad(taps, (0, 1))[_band_index(taps.numel(), size, up, down, pad, taps.device)]


def _convolve(
    x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """`resample` with a two-dimensional filter as one depthwise convolution; up, down are (y, x)."""
    channels = x.shape[1]
    left, right, top, bottom = padding
    height, width = taps.shape
    if up == (1, 1):
        weight = taps.flip((0, 1)).expand(channels, 1, height, width)
        if left == right >= 0 and top == bottom >= 0:
            return F.conv2d(x, weight, stride=down, padding=(top, left), groups=channels)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=down, groups=channels)
    # A transposed convolution yields the full result; these many samples of it lie outside the wanted window.
    spare_y = (height - 1 - top, height - up[0] - bottom)
    spare_x = (width - 1 - left, width - up[1] - right)
    crop_y, crop_x = max(min(spare_y), 0), max(min(spare_x), 0)
    weight = taps.expand(channels, 1, height, width)
    y = F.conv_transpose2d(x, weight, stride=up, padding=(crop_y, crop_x), groups=channels)
    rest = (crop_x - spare_x[0], crop_x - spare_x[1], crop_y - spare_y[0], crop_y - spare_y[1])
    if any(rest):
        y = F.pad(y, rest)
    return y if down == (1, 1) else y[:, :, :: down[0], :: down[1]]


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
) -> Tensor:
    """Leaky ReLU at a raised sampling rate, so that the frequencies it creates can be filtered away.

    x: [N, C, H, W]; bias: [C]. Order: bias, upsample by `up` with `padding` (left, right, top, bottom) at the raised
    rate, leaky ReLU, gain, clamp, filter, downsample by `down`.
    up_filter: [taps] or [taps, taps], or None; down_filter likewise (two-dimensional if radial).
    Returns [N, C, H', W'].

    Karras et al. 2021, section 3.2 and figure 4b.
    """
    if up_filter is not None and down_filter is not None and kernels.applies(x, up_filter, down_filter, up, down):
        return kernels.filtered_lrelu(x, up_filter, down_filter, bias, None, up, down, padding, gain, slope, clamp)[0]
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
    """`modulated_conv2d` and the scale [N, O] that its result is still to be multiplied by; None if not demodulated.

    x: [N, I, H, W]; weight: [O, I, k, k]; styles: [N, I]; input_gain: [], [I] or [N, I], applied after demodulation.
    Scales are computed in the dtype of the weight. align: zero channels are appended to the result until it has a
    multiple of it; x may come with such.

    Style and demodulation scale the activations before and after one convolution with shared weights, which equals the
    published convolution with a weight per sample (Karras et al. 2020, "Analyzing and Improving the Image Quality of
    StyleGAN", equations 1 and 3) and needs no memory for such weights.
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
