"""FIR resampling: upsample, filter and decimate images, alone or on both sides of a leaky ReLU.

Nothing inserts zeros. On a CPU one axis of an image is resampled by a banded matrix, cut into tiles of 16 outputs that
multiply only the inputs which the filter reaches. Products that small still reach 70 of the 100 GFLOP/s of large ones
(one core, AVX-512), so the tiles beat depthwise convolutions although they multiply some zeros. Meanwhile images lie as
[H, P, W]: for either axis one product then serves all P planes. A two-dimensional filter is a sum of as many separable
ones as its rank: at most 6 for radial filters of 12 taps, and 2 to 5 in single precision. Where it only decimates, in
single precision, one dense strided convolution is twice as fast as three terms, so radial filters stay dense.

Elsewhere a filter is a depthwise convolution, transposed to upsample and strided to decimate.

Axes: N batch, C channels, H, W pixels, P planes (of any sample and channel). Karras et al. 2021, "Alias-Free Generative
Adversarial Networks", section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

# Outputs per tile. From 8 to 64 (38 to 564 pixels, AVX-512), 8 halves the speed of a product, and 32 multiplies more
# zeros than it saves calls.
TILE = 16

# Size of the largest image in work at a time, so that it stays in the cache from one pass to the next.
CHUNK_BYTES = 2**22

# Taps up to which a depthwise convolution without upsampling is the faster form on a CPU too: the 4 x 4 taps of the
# discriminator take half the time of a band.
SMALL_FILTER = 16

Taps = tuple[tuple[float, ...], ...]  # a filter as a key: its rows, or one row for both axes


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

    x: [N, C, H, W]. filter: [taps] for both axes, [taps_y, taps_x], or None for no filter; a constant.
    up, down: factors, one or (x, y); up - 1 zeros follow each sample, every down-th output is kept from the first on.
    padding: (left, right, top, bottom) in upsampled samples, negative to crop. gain: of the whole filter.
    Returns [N, C, H', W'] with the sides given by `resampled_side`.
    """
    up_xy = (up, up) if isinstance(up, int) else up
    down_xy = (down, down) if isinstance(down, int) else down
    small = filter is not None and filter.ndim == 2 and filter.numel() <= SMALL_FILTER and up_xy == (1, 1)
    if runs_on_cpu(x) and not small:
        resampler = resampler_for(x.shape[2:], x.dtype, filter, up_xy, down_xy, padding, gain)
        return _Resample.apply(x, resampler)  # type: ignore[no-any-return]
    return convolve(x, filter, up_xy, down_xy, padding, gain)


def runs_on_cpu(x: Tensor) -> bool:
    """Whether what follows computes on a CPU now, and may look at values: not where a graph is recorded for export."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


# --- Banded matrices ------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """How one axis is resampled, or, transposed, how a gradient finds its way back."""

    taps: tuple[float, ...]
    size: int
    up: int
    down: int
    pad: tuple[int, int]
    transposed: bool = False


class Tile(NamedTuple):
    """Some outputs of an axis, the inputs that they depend on, and by which weights [outputs, inputs]."""

    outputs: slice
    inputs: slice
    weights: Tensor


class Band:
    """The matrix [size_out, size_in] of an axis, without most of its zeros."""

    def __init__(self, axis: Axis, dtype: torch.dtype) -> None:
        num_taps = len(axis.taps)
        out = np.arange(resampled_side(axis.size, num_taps, axis.up, axis.down, axis.pad))
        tap = out[:, None] * axis.down + (num_taps - 1 - axis.pad[0]) - np.arange(axis.size) * axis.up
        matrix = np.where((tap >= 0) & (tap < num_taps), np.array(axis.taps)[tap.clip(0, num_taps - 1)], 0)
        matrix = matrix.T if axis.transposed else matrix
        self.size_out, self.size_in = matrix.shape
        self.norm = float(np.abs(matrix).sum(axis=1).max(initial=0))  # how much the largest value can grow
        self.tiles = []
        for start in range(0, self.size_out, TILE):
            outputs = slice(start, min(start + TILE, self.size_out))
            reached = np.flatnonzero(matrix[outputs].any(axis=0))
            inputs = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
            self.tiles.append(Tile(outputs, inputs, torch.tensor(matrix[outputs, inputs], dtype=dtype)))

    def along_rows(self, x: Tensor, y: Tensor, add: bool) -> None:
        """Resample the first axis: [size_in, M] into (or onto) y [size_out, M]."""
        for outputs, inputs, weights in self.tiles:
            torch.addmm(y[outputs], weights, x[inputs], beta=int(add), out=y[outputs])

    def along_columns(self, x: Tensor, y: Tensor, add: bool) -> None:
        """Resample the last axis: [M, size_in] into (or onto) y [M, size_out]."""
        for outputs, inputs, weights in self.tiles:
            torch.addmm(y[:, outputs], x[:, inputs], weights.t(), beta=int(add), out=y[:, outputs])


class Dense(NamedTuple):
    """A two-dimensional filter that only decimates, by factors (x, y), as a depthwise convolution."""

    taps: Tensor
    down: tuple[int, int]
    transposed: bool = False

    def apply(self, x: Tensor, size_out: tuple[int, int]) -> Tensor:
        """[1, P, H, W] to [1, P, H', W']; not seen by autograd."""
        planes, stride = x.shape[1], (self.down[1], self.down[0])
        weight = self.taps.flip((0, 1)).expand(planes, 1, *self.taps.shape)
        if self.transposed:
            return conv2d_input((1, planes, *size_out), weight, x, stride=stride, groups=planes)
        return F.conv2d(x, weight, stride=stride, groups=planes)


class Resampler:
    """A linear map of planes [H, P, W] to [H', P, W']: the sum of separable terms, each one of rows and of columns."""

    def __init__(self, terms: Sequence[tuple[Axis, Axis]], dtype: torch.dtype, dense: Dense | None = None) -> None:
        self.axes = terms
        self._dense = dense
        self._dtype = dtype
        self.terms = [(Band(rows, dtype), Band(columns, dtype)) for rows, columns in terms]
        rows, columns = self.terms[0]
        self.size_in, self.size_out = (rows.size_in, columns.size_in), (rows.size_out, columns.size_out)
        self.norm = sum(rows.norm * columns.norm for rows, columns in self.terms)

    @functools.cached_property
    def transposed(self) -> Resampler:
        """The map that takes a gradient by the output to the gradient by the input."""
        terms = [
            (rows._replace(transposed=not rows.transposed), columns._replace(transposed=not columns.transposed))
            for rows, columns in self.axes
        ]
        dense = self._dense and self._dense._replace(transposed=not self._dense.transposed)
        return Resampler(terms, self._dtype, dense)

    def __call__(self, x: Tensor) -> Tensor:
        """Planes in, planes out; not seen by autograd."""
        if self._dense is not None:
            return self._dense.apply(x.transpose(0, 1)[None], self.size_out)[0].transpose(0, 1).contiguous()
        planes = x.shape[1]
        (height, width), (out_height, out_width) = self.size_in, self.size_out
        y = x.new_empty(out_height, planes, out_width)
        for index, (rows, columns) in enumerate(self.terms):
            # Rows are the faster axis, so they are where the image is large: last on the way up, first on the way down.
            if out_height > height:
                half = x.new_empty(height, planes, out_width)
                columns.along_columns(x.view(-1, width), half.view(-1, out_width), add=False)
                rows.along_rows(half.view(height, -1), y.view(out_height, -1), add=index > 0)
            else:
                half = x.new_empty(out_height, planes, width)
                rows.along_rows(x.view(height, -1), half.view(out_height, -1), add=False)
                columns.along_columns(half.view(-1, width), y.view(-1, out_width), add=index > 0)
        return y


def resampler_for(
    size: Sequence[int],
    dtype: torch.dtype,
    filter: Tensor | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Resampler:
    """The map of `resample` for images of `size` (H, W) in `dtype`; the same object for the same arguments."""
    separable = filter is None or filter.ndim == 1
    rows = ((1.0,),) if filter is None else tuple(map(tuple, torch.atleast_2d(filter).tolist()))
    left, right, top, bottom = padding
    return _resampler(rows, separable, (size[0], size[1]), dtype, up, down, (left, right, top, bottom), gain)


@functools.lru_cache(maxsize=256)
def _resampler(
    taps: Taps,
    separable: bool,
    size: tuple[int, int],
    dtype: torch.dtype,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    gain: float,
) -> Resampler:
    left, right, top, bottom = padding
    factors = [(taps[0], taps[0])] if separable else separable_terms(taps, 4 * torch.finfo(dtype).eps)
    terms = [
        (
            Axis(tuple(gain * tap for tap in y_taps), size[0], up[1], down[1], (top, bottom)),
            Axis(x_taps, size[1], up[0], down[0], (left, right)),
        )
        for y_taps, x_taps in factors
    ]
    plain = up == (1, 1) and not any(padding) and dtype != torch.float64
    dense = Dense(torch.tensor(taps, dtype=dtype) * gain, down) if plain and len(terms) > 1 else None
    return Resampler(terms, dtype, dense)


@functools.lru_cache(maxsize=256)
def separable_terms(taps: Taps, tolerance: float) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """As few (rows, columns) of taps as needed, whose outer products sum to a two-dimensional filter.

    The rest has a Frobenius norm of at most `tolerance` times that of the filter: by the singular value decomposition,
    no sum of so few is closer.
    """
    left, values, right = np.linalg.svd(np.array(taps))
    rests = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1])  # of the filter less its first 0, 1, ... terms
    rank = max(int((rests > tolerance * rests[0]).sum()), 1)
    return [(tuple(values[k] * left[:, k]), tuple(right[k])) for k in range(rank)]


def _chunks(x: Tensor, *resamplers: Resampler) -> Iterator[slice]:
    """Slices of the planes of x [N, C, H, W], so many at a time that they stay in the cache."""
    count = x.shape[0] * x.shape[1]
    largest = max(height * width for r in resamplers for height, width in (r.size_in, r.size_out))
    step = max(CHUNK_BYTES // max(largest * x.element_size(), 1), 1)
    return (slice(start, start + step) for start in range(0, count, step))


class _Resample(torch.autograd.Function):
    """x [N, C, H, W] through a resampler; linear, so its derivative is the transposed one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, resampler: Resampler) -> Tensor:
        ctx.resampler = resampler
        planes = x.reshape(-1, *x.shape[2:])
        y = x.new_empty(planes.shape[0], *resampler.size_out)
        for chunk in _chunks(x, resampler):
            y[chunk] = resampler(planes[chunk].transpose(0, 1).contiguous()).transpose(0, 1)
        return y.view(*x.shape[:2], *resampler.size_out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Resample.apply(dy, ctx.resampler.transposed), None


# --- Leaky ReLU between two resamplers ------------------------------------------------------------------------------


def banded_lrelu(
    x: Tensor, bias: Tensor | None, up: Resampler, down: Resampler, slope: float, clamp: float | None
) -> Tensor:
    """Bias [C], resampler, leaky ReLU, clamp, resampler, for x [N, C, H, W].

    All steps are done for some planes before the next ones, because the images between the resamplers are too large
    for the cache, and for a backward pass these are all that is kept.
    """
    if clamp is not None and x.numel() > 0:
        # Values reach the limit only when a network diverges: a bound on them, from the small image, spares the look.
        with torch.no_grad():
            largest = max(-x.min(), x.max()) + (0 if bias is None else bias.abs().max())
            clamp = None if largest * up.norm <= clamp else clamp
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _FilteredLrelu.apply(x, bias, up, down, slope, clamp)  # type: ignore[no-any-return]
    return _lrelu_between(x, bias, up, down, slope, clamp, None)


def _lrelu_between(
    x: Tensor,
    bias: Tensor | None,
    up: Resampler,
    down: Resampler,
    slope: float,
    clamp: float | None,
    activations: list[Tensor] | None,
) -> Tensor:
    """`banded_lrelu` outside autograd; appends the images between the resamplers to `activations`."""
    planes = x.reshape(-1, *x.shape[2:])
    biases = x.new_zeros(1).expand(planes.shape[0]) if bias is None else bias.to(x.dtype).repeat(x.shape[0])
    y = x.new_empty(planes.shape[0], *down.size_out)
    for chunk in _chunks(x, up, down):
        image = planes[chunk].transpose(0, 1)
        image = up(torch.add(image, biases[chunk, None], out=x.new_empty(image.shape)))
        F.leaky_relu_(image, slope)
        if clamp is not None:
            image.clamp_(-clamp, clamp)
        if activations is not None:
            activations.append(image)
        y[chunk] = down(image).transpose(0, 1)
    return y.view(*x.shape[:2], *down.size_out)


class _FilteredLrelu(torch.autograd.Function):
    """`banded_lrelu`, whose derivative is linear: the resamplers transposed and swapped, a factor between them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, up: Resampler, down: Resampler, slope: float, clamp: float | None
    ) -> Tensor:
        activations: list[Tensor] = []
        y = _lrelu_between(x, bias, up, down, slope, clamp, activations)
        ctx.save_for_backward(*activations)
        ctx.constants = up, down, slope, clamp
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        up, down, slope, clamp = ctx.constants
        dx = _Gated.apply(dy, down.transposed, up.transposed, slope, clamp, *ctx.saved_tensors)
        return dx, dx.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[1] else None, None, None, None, None


class _Gated(torch.autograd.Function):
    """Two resamplers with the derivative of the activation between them: linear in its first argument."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Resampler,
        second: Resampler,
        slope: float,
        clamp: float | None,
        *activations: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*activations)
        ctx.constants = first, second, slope, clamp
        planes = x.reshape(-1, *x.shape[2:])
        y = x.new_empty(planes.shape[0], *second.size_out)
        for chunk, activation in zip(_chunks(x, first, second), activations, strict=True):
            image = first(planes[chunk].transpose(0, 1).contiguous())
            torch.ops.aten.leaky_relu_backward.grad_input(image, activation, slope, True, grad_input=image)
            if clamp is not None:
                image.masked_fill_(activation.abs() >= clamp, 0)
            y[chunk] = second(image).transpose(0, 1)
        return y.view(*x.shape[:2], *second.size_out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first, second, slope, clamp = ctx.constants
        dx = _Gated.apply(dy, second.transposed, first.transposed, slope, clamp, *ctx.saved_tensors)
        return dx, None, None, None, None, *[None] * len(ctx.saved_tensors)


# --- Convolutions -----------------------------------------------------------------------------------------------------


def convolve(
    x: Tensor,
    filter: Tensor | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """`resample` as convolutions: two one-dimensional ones for a separable filter, which multiply less."""
    x, (left, right) = _trim(x, 3, up[0], (padding[0], padding[1]))
    x, (top, bottom) = _trim(x, 2, up[1], (padding[2], padding[3]))
    taps = x.new_ones(1) if filter is None else filter.to(x.dtype)
    taps = taps * gain if taps.ndim == 2 else taps * gain**0.5
    if taps.ndim == 2:
        return _convolve(x, taps, (up[1], up[0]), (down[1], down[0]), (left, right, top, bottom))
    x = _convolve(x, taps[:, None], (up[1], 1), (down[1], 1), (0, 0, top, bottom))
    return _convolve(x, taps[None, :], (1, up[0]), (1, down[0]), (left, right, 0, 0))


def _trim(x: Tensor, axis: int, up: int, pad: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Drop the samples that a negative padding removes anyway, so that no convolution has to compute them."""
    first = -(pad[0] // up) if pad[0] < 0 else 0
    last = -pad[1] // up if pad[1] < 0 else 0
    if first or last:
        x = x.narrow(axis, first, x.shape[axis] - first - last)
    return x, (pad[0] + first * up, pad[1] + last * up)


def _convolve(
    x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """One depthwise convolution with a two-dimensional filter; up, down are (y, x)."""
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
