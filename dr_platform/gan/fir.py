"""FIR resampling: upsample, filter and decimate images, alone or on both sides of a leaky ReLU.

Nothing inserts zeros: a filter is a depthwise convolution, strided to decimate and transposed to upsample, one for each
axis if it is separable. Padding that differs on the two sides, or crops, becomes zeros at the ends of the filter, so
that no image is padded or cut in memory.

On a CPU images lie channels-last meanwhile, some planes at a time: neighbouring planes fill the vector registers, and
what is in work stays in the cache. Radial filters stay two-dimensional there: 12 x 12 taps at once take three quarters
of the time of three separable terms. In double precision, which has no such convolutions, planes lie apart and radial
filters are split.

Axes: N batch, C channels, H, W pixels, P planes (of any sample and channel). Karras et al. 2021, "Alias-Free Generative
Adversarial Networks", section 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Size of the largest image in work at a time, so that it stays in the cache from one pass to the next.
CHUNK_BYTES = 2**22

# Planes in work come in multiples of this, the single-precision numbers of a vector register.
LANES = 16

# Taps up to which the two changes of layout would take longer than the filter: the discriminator's have 4 x 4.
SMALL_FILTER = 16

Pair = tuple[int, int]
Taps = tuple[tuple[float, ...], ...]  # a filter as a key: its rows, or one row for both axes


def resampled_side(size: int, num_taps: int, up: int, down: int, pad: Pair) -> int:
    """Samples that come out of `resample` along one axis."""
    return (size * up + pad[0] + pad[1] - num_taps) // down + 1


def resample(
    x: Tensor,
    filter: Tensor | None,
    up: int | Pair = 1,
    down: int | Pair = 1,
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


def convolve(
    x: Tensor,
    filter: Tensor | None,
    up: Pair = (1, 1),
    down: Pair = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """`resample` as ordinary convolutions of the whole batch, as it runs on other devices."""
    taps = x.new_ones(1) if filter is None else filter.to(x.dtype)
    for step in _passes(taps, (x.shape[2], x.shape[3]), up, down, padding, gain):
        x = step(x)
    return x


def runs_on_cpu(x: Tensor) -> bool:
    """Whether what follows computes on a CPU now, and may look at values: not where a graph is recorded for export."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


# --- Passes -----------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """A depthwise convolution of all planes with the same filter, or its transpose. Pairs are (y, x).

    taps: [taps_y, taps_x], as a correlation takes them. rest: rows and columns at the end of the convolution's image
    that its strides never reach.
    """

    taps: Tensor
    stride: Pair
    padding: Pair
    size_in: Pair
    size_out: Pair
    rest: Pair
    transposed: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[N, P, *size_in] to [N, P, *size_out]; autograd sees an ordinary convolution."""
        planes = x.shape[1]
        weight = self.taps.expand(planes, 1, -1, -1)
        if self.transposed:
            return F.conv_transpose2d(x, weight, None, self.stride, self.padding, self.rest, planes)
        return F.conv2d(x, weight, None, self.stride, self.padding, 1, planes)

    def transpose(self) -> Pass:
        """The map that takes a gradient by the output to the gradient by the input."""
        return self._replace(size_in=self.size_out, size_out=self.size_in, transposed=not self.transposed)

    @property
    def norm(self) -> float:
        """How much the largest value of an image can grow."""
        stride_y, stride_x = self.stride if self.transposed else (1, 1)
        phases = [self.taps[y::stride_y, x::stride_x].abs().sum() for y in range(stride_y) for x in range(stride_x)]
        return float(max(phases))


def _passes(taps: Tensor, size: Pair, up: Pair, down: Pair, padding: Sequence[int], gain: float) -> list[Pass]:
    """What `resample` does, as passes one after the other; up and down are (x, y), size is (H, W)."""
    if taps.ndim == 1:
        taps = taps * gain**0.5
        return _separable_passes(taps, taps, size, up, down, padding)
    left, right, top, bottom = padding
    return _passes_of(taps * gain, size, (up[1], up[0]), (down[1], down[0]), ((top, bottom), (left, right)))


def _separable_passes(
    rows: Tensor, columns: Tensor, size: Pair, up: Pair, down: Pair, padding: Sequence[int]
) -> list[Pass]:
    """`_passes` for the outer product of two filters."""
    left, right, top, bottom = padding
    # Columns are the faster axis, so they are where the image is large: last on the way up, first on the way down.
    if max(up) == 1:
        first = _passes_of(columns[None, :], size, (1, 1), (1, down[0]), ((0, 0), (left, right)))
        return first + _passes_of(rows[:, None], first[-1].size_out, (1, 1), (down[1], 1), ((top, bottom), (0, 0)))
    first = _passes_of(rows[:, None], size, (up[1], 1), (down[1], 1), ((top, bottom), (0, 0)))
    return first + _passes_of(columns[None, :], first[-1].size_out, (1, up[0]), (1, down[0]), ((0, 0), (left, right)))


def _passes_of(taps: Tensor, size: Pair, up: Pair, down: Pair, pads: tuple[Pair, Pair]) -> list[Pass]:
    """Passes for a two-dimensional filter, as a convolution takes it; all pairs are (y, x)."""
    spread = max(up) > 1
    if spread:
        # A transposed convolution yields all that the samples reach: of that, so much is too much at both ends.
        ends = [(k - 1 - pad[0], k - u - pad[1]) for k, u, pad in zip(taps.shape, up, pads, strict=True)]
    else:
        taps, ends = taps.flip((0, 1)), list(pads)
    # Both operators pad, or cut, both ends alike. Zeros at an end of the filter make up for the rest.
    same = (max(*ends[0], 0), max(*ends[1], 0))
    zeros = [cut - end for cut, pair in zip(same, ends, strict=True) for end in pair]
    if any(zeros):
        taps = F.pad(taps, (*zeros[2:], *zeros[:2]))
    if not spread:
        return [_strided(taps, size, down, same)]
    height, width = ((n - 1) * u + k - 2 * cut for n, u, k, cut in zip(size, up, taps.shape, same, strict=True))
    raised = Pass(taps, up, same, size, (height, width), (0, 0), transposed=True)
    return [raised] if max(down) == 1 else [raised, _strided(taps.new_ones(1, 1), raised.size_out, down, (0, 0))]


def _strided(taps: Tensor, size: Pair, stride: Pair, padding: Pair) -> Pass:
    """The pass of a strided convolution."""
    reach = [n + 2 * pad - k for n, pad, k in zip(size, padding, taps.shape, strict=True)]
    (height, bottom), (width, right) = (divmod(n, s) for n, s in zip(reach, stride, strict=True))
    return Pass(taps, stride, padding, size, (height + 1, width + 1), (bottom, right), transposed=False)


# --- On a CPU ---------------------------------------------------------------------------------------------------------


class Resampler:
    """A linear map of planes, [1, P, H, W] to [1, P, H', W']: the sum of some chains of passes."""

    def __init__(self, chains: Sequence[Sequence[Pass]]) -> None:
        self.chains = chains
        self.size_in, self.size_out = chains[0][0].size_in, chains[0][-1].size_out

    @functools.cached_property
    def transposed(self) -> Resampler:
        """The map that takes a gradient by the output to the gradient by the input."""
        return Resampler([[step.transpose() for step in reversed(chain)] for chain in self.chains])

    @functools.cached_property
    def norm(self) -> float:
        """How much the largest value of an image can grow."""
        return sum(math.prod(step.norm for step in chain) for chain in self.chains)

    def __call__(self, x: Tensor) -> Tensor:
        """Planes as `gathered` gives them, in and out; the result is new memory."""
        results = (functools.reduce(lambda image, step: step(image), chain, x) for chain in self.chains)
        total = next(results)
        for result in results:
            total += result
        return total


def resampler_for(
    size: Sequence[int],
    dtype: torch.dtype,
    filter: Tensor | None,
    up: Pair = (1, 1),
    down: Pair = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 1.0,
    split: bool | None = None,
) -> Resampler:
    """The map of `resample` for images of `size` (H, W) in `dtype`; the same object for the same arguments.

    split: whether a two-dimensional filter becomes a sum of separable ones, exact to the rounding of dtype; None for
    the faster form.
    """
    separable = filter is None or filter.ndim == 1
    rows = ((1.0,),) if filter is None else tuple(map(tuple, torch.atleast_2d(filter).tolist()))
    split = not separable and (dtype != torch.float32 if split is None else split)
    return _resampler(rows, separable, split, (size[0], size[1]), dtype, up, down, tuple(padding), gain)


@functools.lru_cache(maxsize=256)
def _resampler(
    taps: Taps,
    separable: bool,
    split: bool,
    size: Pair,
    dtype: torch.dtype,
    up: Pair,
    down: Pair,
    padding: tuple[int, ...],
    gain: float,
) -> Resampler:
    filter = torch.tensor(taps[0] if separable else taps, dtype=torch.float64)
    chains = [_passes(filter, size, up, down, padding, gain)]
    if split:
        terms = (map(filter.new_tensor, term) for term in separable_terms(taps, 4 * torch.finfo(dtype).eps))
        chains = [_separable_passes(gain * rows, columns, size, up, down, padding) for rows, columns in terms]
    return Resampler([[step._replace(taps=step.taps.to(dtype)) for step in chain] for chain in chains])


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


def gathered(planes: Tensor) -> Tensor:
    """Planes [P, H, W] as a resampler takes them, [1, P, H, W]: channels last in single precision; new memory."""
    layout = torch.channels_last if planes.dtype == torch.float32 else torch.contiguous_format
    return planes[None].clone(memory_format=layout)


def _chunks(x: Tensor, *resamplers: Resampler) -> Iterator[slice]:
    """Slices of the planes of x [N, C, H, W], so many at a time that they stay in the cache."""
    count = x.shape[0] * x.shape[1]
    largest = max(height * width for r in resamplers for height, width in (r.size_in, r.size_out))
    step = max(CHUNK_BYTES // max(largest * x.element_size(), 1) // LANES, 1) * LANES
    return (slice(start, start + step) for start in range(0, count, step))


class _Resample(torch.autograd.Function):
    """x [N, C, H, W] through a resampler; linear, so its derivative is the transposed one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, resampler: Resampler) -> Tensor:
        ctx.resampler = resampler
        planes = x.reshape(-1, *x.shape[2:])
        y = x.new_empty(len(planes), *resampler.size_out)
        for chunk in _chunks(x, resampler):
            y[chunk] = resampler(gathered(planes[chunk]))[0]
        return y.view(*x.shape[:2], *resampler.size_out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Resample.apply(dy, ctx.resampler.transposed), None


# --- Leaky ReLU between two resamplers, on a CPU ----------------------------------------------------------------------


def chunked_lrelu(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    up: Resampler,
    down: Resampler,
    slope: float,
    clamp: float | None,
) -> Tensor:
    """Scale [N, C], bias [C], resampler, leaky ReLU, clamp, resampler, for x [N, C, H, W].

    All steps are done for some planes before the next ones, because the images between the resamplers are too large
    for the cache, and for a backward pass these are all that is kept.
    """
    if clamp is not None and x.numel() > 0:
        # Values reach the limit only when a network diverges: a bound on them, from the small image, spares the look.
        with torch.no_grad():
            low, high = x.aminmax()
            largest = torch.maximum(-low, high)
            largest = largest if scale is None else largest * scale.abs().max()
            largest = largest if bias is None else largest + bias.abs().max()
            clamp = None if largest * up.norm <= clamp else clamp
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, scale)):
        return _FilteredLrelu.apply(x, bias, scale, up, down, slope, clamp)  # type: ignore[no-any-return]
    return _lrelu_between(x, bias, scale, up, down, slope, clamp, None)


def _lrelu_between(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    up: Resampler,
    down: Resampler,
    slope: float,
    clamp: float | None,
    activations: list[Tensor] | None,
) -> Tensor:
    """`chunked_lrelu` outside autograd; appends the images between the resamplers to `activations`."""
    planes = x.reshape(-1, *x.shape[2:])
    n = x.shape[0]
    biases = x.new_zeros(1).expand(len(planes)) if bias is None else bias.to(x.dtype).repeat(n)
    scales = x.new_ones(1).expand(len(planes)) if scale is None else scale.to(x.dtype).flatten()
    y = x.new_empty(len(planes), *down.size_out)
    for chunk in _chunks(x, up, down):
        image = gathered(planes[chunk])
        torch.addcmul(biases[chunk, None, None], image, scales[chunk, None, None], out=image)
        image = F.leaky_relu_(up(image), slope)
        if clamp is not None:
            image.clamp_(-clamp, clamp)
        if activations is not None:
            activations.append(image)
        y[chunk] = down(image)[0]
    return y.view(*x.shape[:2], *down.size_out)


class _FilteredLrelu(torch.autograd.Function):
    """`chunked_lrelu`, whose derivative is linear: the resamplers transposed and swapped, a factor between them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        up: Resampler,
        down: Resampler,
        slope: float,
        clamp: float | None,
    ) -> Tensor:
        activations: list[Tensor] = []
        y = _lrelu_between(x, bias, scale, up, down, slope, clamp, activations)
        ctx.save_for_backward(None if scale is None else x, scale, *activations)
        ctx.constants = up, down, slope, clamp
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        up, down, slope, clamp = ctx.constants
        x, scale, *activations = ctx.saved_tensors
        dx = _Gated.apply(dy, down.transposed, up.transposed, slope, clamp, *activations)
        dbias = dx.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[1] else None
        dscale = None
        if scale is not None:
            dscale = torch.linalg.vecdot(x.flatten(2), dx.flatten(2)) if ctx.needs_input_grad[2] else None
            dx = dx * scale[:, :, None, None]
        return dx, dbias, dscale, None, None, None, None


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
        y = x.new_empty(len(planes), *second.size_out)
        for chunk, activation in zip(_chunks(x, first, second), activations, strict=True):
            image = first(gathered(planes[chunk]))
            torch.ops.aten.leaky_relu_backward.grad_input(image, activation, slope, True, grad_input=image)
            if clamp is not None:
                image.masked_fill_(activation.abs() >= clamp, 0)
            y[chunk] = second(image)[0]
        return y.view(*x.shape[:2], *second.size_out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first, second, slope, clamp = ctx.constants
        dx = _Gated.apply(dy, second.transposed, first.transposed, slope, clamp, *ctx.saved_tensors)
        return dx, None, None, None, None, *[None] * len(ctx.saved_tensors)
