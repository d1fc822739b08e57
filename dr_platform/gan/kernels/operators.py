"""The filtered leaky ReLU as custom operators around the Triton kernel: forward, backward, and backward's derivatives.

Custom operators, so that autograd, DDP, CUDA graphs and torch.compile each take them as one opaque step. There are two:

    filtered_lrelu  activates at the raised rate, and records there on which piece of the activation each sample lies
    replay          is the linear map A = down . diag(recorded slopes) . up, or its transpose

The backward pass is the transpose. Between its kinks the activation is linear, so the derivative of `replay` is
`replay` again, and gradients of any order exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .factors import separable_factors

# A package copied under another name (a registered model's) must not overwrite these.
_NAMESPACE = __name__.replace(".", "_")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CODES_PER_BYTE = 4


@dataclass(frozen=True)
class Launch:
    """How the work is cut up; changes no result beyond rounding."""

    block_channels: int = 16
    tile_up: int = 128  # samples at the raised rate that a strip of columns spans
    rows: int = 64  # outputs per strip of rows, a multiple of 4
    num_warps: int = 8


def default_launch(dtype: torch.dtype, down: int, num_terms: int) -> Launch:
    """What fits the registers of an SM of sm_90 without spilling (see tests/gan/kernels/test_compilation.py).

    down: of the pass at hand; num_terms: separable terms of both filters together, 2 for T.
    """
    if dtype != torch.float16:
        return Launch(tile_up=64)  # banded matrices in float32, threefold
    return Launch(num_warps=8 if down > 2 or num_terms > 2 else 4)


# Choices found faster for (dtype, up, down, terms) on some device; benchmarks/gpu.py fills it in while it compares.
LAUNCHES: dict[tuple[torch.dtype, int, int, int], Launch] = {}


def raised_side(size: int, taps: int, up: int, pad: tuple[int, int]) -> int:
    """Samples at the raised rate along one axis, after the up filter."""
    return size * up + pad[0] + pad[1] - taps + 1


def out_side(size: int, up_taps: int, down_taps: int, up: int, down: int, pad: tuple[int, int]) -> int:
    """Outputs along one axis."""
    return (raised_side(size, up_taps, up, pad) - down_taps) // down + 1


def constants(
    dtype: torch.dtype, up: int, down: int, up_shape: Sequence[int], down_shape: Sequence[int], pad_y: int
) -> dict[str, Any]:
    """The kernel's compile-time arguments that follow from the pass alone, `num_warps` among them.

    up_shape, down_shape: of the factors, [rank, 2, taps].
    """
    from . import fir_kernel

    terms = up_shape[0] + down_shape[0]
    launch = LAUNCHES.get((dtype, up, down, terms)) or default_launch(dtype, down, terms)
    tile_in = max(launch.tile_up // up, 16)
    columns = strip_columns(launch.tile_up, tile_in, up, down, up_shape[2], down_shape[2])
    return {
        "UP": up,
        "DOWN": down,
        "UP_TAPS": up_shape[2],
        "DOWN_TAPS": down_shape[2],
        "UP_RANK": up_shape[0],
        "DOWN_RANK": down_shape[0],
        "PAD_Y": pad_y,
        "COLUMNS": columns,
        "ROWS": launch.rows,
        "TILE_IN": tile_in,
        "TILE_UP": launch.tile_up,
        "TILE_OUT": max(1 << (columns - 1).bit_length(), 16),
        "BLOCK_C": launch.block_channels,
        "DOT": fir_kernel.DOT_DTYPES[dtype],
        "PRECISION": fir_kernel.DOT_PRECISIONS[dtype],
        "num_warps": launch.num_warps,
    }


def strip_columns(tile_up: int, tile_in: int, up: int, down: int, up_taps: int, down_taps: int) -> int:
    """Outputs of a strip, so many that it needs at most tile_up samples at the raised rate and tile_in inputs."""
    by_raised = (tile_up - down_taps) // down + 1
    by_inputs = ((tile_in - 1) * up + up - up_taps + 1 - down_taps) // down + 1
    return min(by_raised, by_inputs)


def _launch(
    x: Tensor,
    up_factors: Tensor,
    down_factors: Tensor,
    up: int,
    down: int,
    pad: tuple[int, int],
    out_size: tuple[int, int],
    codes: Tensor | None,
    code_shift: tuple[int, int],
    replays: bool,
    bias: Tensor | None,
    scale: Tensor | None,
    source: Tensor | None,
    sums: int,
    slope: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel. pad, code_shift: (x, y); out_size: (height, width); sums: how many kinds.

    Returns y [N, C, *out_size], channels last, and the sums [N, sums, C] in float32.
    """
    from . import fir_kernel

    x = x.contiguous(memory_format=torch.channels_last)
    n, c, height, width = x.shape
    y = torch.empty((n, c, *out_size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    constant = constants(x.dtype, up, down, up_factors.shape, down_factors.shape, pad[1])
    strips_x = math.ceil(out_size[1] / constant["COLUMNS"])
    strips_y = math.ceil(out_size[0] / constant["ROWS"])
    partial = torch.empty((strips_x * strips_y, n, sums, c), dtype=torch.float32, device=x.device)
    if x.numel() == 0 or y.numel() == 0:
        return y, partial.new_zeros((n, sums, c))
    mode = fir_kernel.ACTIVATE if codes is None else fir_kernel.ACTIVATE_AND_RECORD
    kind = (fir_kernel.NO_SUMS, fir_kernel.POWER, fir_kernel.GRADIENTS)[sums]
    with torch.cuda.device_of(x):  # Triton launches on the current device; no effect on the CPU
        fir_kernel.filtered_lrelu_kernel[(strips_x * math.ceil(c / constant["BLOCK_C"]), strips_y, n)](
            x,
            y,
            y if codes is None else codes,
            up_factors.contiguous(),
            down_factors.contiguous(),
            up_factors if bias is None else bias.contiguous(),
            up_factors if scale is None else scale.contiguous(),
            y if source is None else source.contiguous(memory_format=torch.channels_last),
            partial,
            height,
            width,
            c,
            *out_size,
            0 if codes is None else codes.shape[1],
            0 if codes is None else codes.shape[2],
            code_shift[1],
            code_shift[0],
            pad[0],
            slope,
            0.0 if clamp is None else clamp,
            MODE=(fir_kernel.REPLAY if replays else mode).value,
            HAS_CLAMP=clamp is not None,
            HAS_BIAS=bias is not None,
            HAS_SCALE=scale is not None,
            HAS_SOURCE=source is not None,
            SUMS=kind.value,
            **constant,
        )
    return y, partial.sum(dim=0)


def _code_shape(x: Tensor, up_filter: Tensor, up: int, padding: Sequence[int]) -> tuple[int, int, int, int]:
    n, c, height, width = x.shape
    taps = up_filter.shape[-1]
    return (
        n,
        raised_side(height, taps, up, (padding[2], padding[3])),
        raised_side(width, taps, up, (padding[0], padding[1])),
        math.ceil(c / CODES_PER_BYTE),
    )


def _out_size(
    x: Tensor, up_filter: Tensor, down_filter: Tensor, up: int, down: int, padding: Sequence[int]
) -> tuple[int, int]:
    taps = (up_filter.shape[-1], down_filter.shape[-1])
    return (
        out_side(x.shape[2], *taps, up, down, (padding[2], padding[3])),
        out_side(x.shape[3], *taps, up, down, (padding[0], padding[1])),
    )


def _gained(up_filter: Tensor, up: int, gain: float) -> Tensor:
    """The up filter's factors with all that is constant: zeros inserted cost up^2; a leaky ReLU commutes with gain."""
    return separable_factors(up_filter) * (up * math.sqrt(gain))


@torch.library.custom_op(f"{_NAMESPACE}::filtered_lrelu", mutates_args=())
def filtered_lrelu(
    x: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    clamp: float | None,
    record: bool,
    measure: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.filtered_lrelu` of `x` times `scale` [N, C].

    record: keep what the backward pass needs. measure: sum the squares of the result.
    Returns the result, channels last; the codes (empty without `record`); the sums [N, 0 or 1, C], without gradient.
    """
    codes = None
    if record:
        codes = torch.empty(_code_shape(x, up_filter, up, padding), dtype=torch.uint8, device=x.device)
    y, sums = _launch(
        x,
        _gained(up_filter, up, gain),
        separable_factors(down_filter),
        up,
        down,
        (padding[0], padding[2]),
        _out_size(x, up_filter, down_filter, up, down, padding),
        codes,
        (0, 0),
        False,
        bias,
        scale,
        None,
        int(measure),
        slope,
        clamp,
    )
    return y, x.new_empty((0,), dtype=torch.uint8) if codes is None else codes, sums


@torch.library.custom_op(f"{_NAMESPACE}::replay", mutates_args=())
def replay(
    x: Tensor,
    codes: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    scale: Tensor | None,
    source: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    size: Sequence[int],
    transpose: bool,
) -> tuple[Tensor, Tensor]:
    """The linear map that a call of `filtered_lrelu` was, or its transpose, at the recorded slopes.

    up_filter to slope: those of that call. x: like its input, or like its result if `transpose`. size: of what comes
    out, (height, width). Returns z = A x, times `scale` [N, C] where given; and the sums over the pixels
    [N, 2, C] of z before the scale, and of its product with `source` (0 without).
    """
    raised, lowered = _gained(up_filter, up, gain), separable_factors(down_filter)
    pad, shift = (padding[0], padding[2]), (0, 0)
    if transpose:
        # Backwards, the raised grid begins this many samples earlier.
        shift = (raised.shape[2] - 1 - pad[0], raised.shape[2] - 1 - pad[1])
        pad = (lowered.shape[2] - 1 + shift[0], lowered.shape[2] - 1 + shift[1])
        raised, lowered = lowered.flip(2), raised.flip(2)
        up, down = down, up
    return _launch(
        x, raised, lowered, up, down, pad, (size[0], size[1]), codes, shift, True, None, scale, source, 2, slope, None
    )


# --- Shapes without values, for torch.compile -----------------------------------------------------------------------


def _filtered_lrelu_shapes(
    x: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    clamp: float | None,
    record: bool,
    measure: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    y = x.new_empty((n, c, *_out_size(x, up_filter, down_filter, up, down, padding)))
    codes = x.new_empty(_code_shape(x, up_filter, up, padding) if record else (0,), dtype=torch.uint8)
    sums = x.new_empty((n, int(measure), c), dtype=torch.float32)
    return y.contiguous(memory_format=torch.channels_last), codes, sums


def _replay_shapes(
    x: Tensor,
    codes: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    scale: Tensor | None,
    source: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    size: Sequence[int],
    transpose: bool,
) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    y = x.new_empty((n, c, size[0], size[1])).contiguous(memory_format=torch.channels_last)
    return y, x.new_empty((n, 2, c), dtype=torch.float32)


filtered_lrelu.register_fake(_filtered_lrelu_shapes)
replay.register_fake(_replay_shapes)


# --- Derivatives ----------------------------------------------------------------------------------------------------


def _keep_filtered_lrelu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, up_filter, down_filter, bias, scale, up, down, padding, gain, slope, _, record, _ = inputs
    # The input itself is needed for the gradient of its scale only.
    source = None if scale is None else x
    ctx.save_for_backward(output[1], up_filter, down_filter, scale, source)
    ctx.constants = (up, down, padding, gain, slope)
    ctx.size = x.shape[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.recorded = record


def _filtered_lrelu_backward(ctx: Any, grad: Tensor, _codes: Tensor | None, _sums: Tensor | None) -> tuple[Any, ...]:
    if not ctx.recorded:
        raise RuntimeError("this filtered leaky ReLU recorded nothing for a backward pass. Call it with record=True.")
    codes, up_filter, down_filter, scale, source = ctx.saved_tensors
    dx, sums = replay(grad, codes, up_filter, down_filter, scale, source, *ctx.constants, ctx.size, True)
    bias_grad = None if ctx.bias_dtype is None else sums[:, 0].sum(dim=0).to(ctx.bias_dtype)
    scale_grad = None if scale is None else sums[:, 1].to(scale.dtype)
    return dx, None, None, bias_grad, scale_grad, *[None] * 8


def _keep_replay(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, codes, up_filter, down_filter, scale, source, *constants, size, transpose = inputs
    ctx.save_for_backward(x, codes, up_filter, down_filter, scale, source)
    ctx.constants = tuple(constants)
    ctx.size = size
    ctx.transpose = transpose


def _replay_backward(ctx: Any, grad: Tensor, grad_sums: Tensor) -> tuple[Any, ...]:
    x, codes, up_filter, down_filter, scale, source = ctx.saved_tensors
    rest = (codes, up_filter, down_filter, None, None, *ctx.constants)
    # With z = A x before the scale: y = scale z, and the sums are those of z and of source z.
    by_z = grad if scale is None else grad * scale.to(grad.dtype)[:, :, None, None]
    by_z = by_z + grad_sums[:, 0, :, None, None].to(grad.dtype)
    if source is not None:
        by_z = by_z + grad_sums[:, 1, :, None, None].to(grad.dtype) * source
    dx, _ = replay(by_z, *rest, x.shape[2:], not ctx.transpose)
    scale_grad = source_grad = None
    if scale is not None or source is not None:
        z, _ = replay(x, *rest, ctx.size, ctx.transpose)
        if scale is not None:
            scale_grad = (grad.float() * z.float()).sum(dim=(2, 3)).to(scale.dtype)
        if source is not None:
            source_grad = grad_sums[:, 1, :, None, None].to(z.dtype) * z
    return dx, None, None, None, scale_grad, source_grad, *[None] * 7


filtered_lrelu.register_autograd(_filtered_lrelu_backward, setup_context=_keep_filtered_lrelu)
replay.register_autograd(_replay_backward, setup_context=_keep_replay)
