"""The generator's heavy operator on a GPU, in Triton: no compiler on the machine, half precision, channels last.

Importing this costs nothing and needs no Triton; the first call on a CUDA tensor imports it. The plain form in
`gan/ops.py` is the reference, and what the kernel does not cover stays with it: float64, layers without filters, and
factors that do not divide one another. With TRITON_INTERPRET=1 set before Triton is imported, CPU tensors take
the kernel too, in Triton's interpreter, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Channels of a pixel come in whole pieces of 16 bytes, and Triton takes note of multiples of 16 only.
CHANNEL_ALIGNMENT = 16

_enabled = True


def set_enabled(on: bool) -> None:
    """Whether CUDA tensors take the kernels (as they do at the start) or the plain form, in this process."""
    global _enabled
    _enabled = on


@contextmanager
def enabled(on: bool) -> Iterator[None]:
    """`set_enabled` for the length of a with block."""
    before = _enabled
    set_enabled(on)
    try:
        yield
    finally:
        set_enabled(before)


@functools.cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def applies(x: Tensor, up_filter: Tensor, down_filter: Tensor, up: int, down: int) -> bool:
    """Whether the kernel computes `ops.filtered_lrelu` for these arguments, and is to."""
    if not (_enabled and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and available()):
        return False
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    if up not in (1, 2, 4) or down not in (1, 2, 4):  # one then divides the other
        return False
    return _fits(up_filter, up) and _fits(down_filter, down)


def channels_last(x: Tensor) -> Tensor:
    """`x` [N, C, H, W] in the layout that the kernels and tensor cores want, where they are used; else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if _enabled and x.is_cuda else x


def _fits(filter: Tensor, factor: int) -> bool:
    """Whether the filter is square, and every output at the raised rate meets equally many inputs."""
    taps = filter.shape[-1]
    return filter.shape[0] == taps and taps % factor == 0 and taps <= 8 * factor


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
    measure: bool = False,
) -> tuple[Tensor, Tensor]:
    """`ops.filtered_lrelu` of `x` times `scale` [N, C], for arguments to which it `applies`.

    Returns the result [N, C, H', W'], channels last, in the dtype of x; and if `measure` the sums of its squares over
    the pixels [N, 1, C] in float32, which carry no gradient.
    """
    from . import operators

    inputs = (x, bias, scale)
    record = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    y, _, sums = operators.filtered_lrelu(
        x, up_filter, down_filter, bias, scale, up, down, list(padding), gain, slope, clamp, record, measure
    )
    return y, sums.detach()
