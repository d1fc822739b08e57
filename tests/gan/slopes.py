"""Gradients up to the slopes of activations within rounding of zero.

A network of 64 px has 2e7 activations, so some lie within 1e-7 of zero, where rounding decides which slope of the leaky
ReLU they take. One of them can move the whole gradient by 1e-3, and no two implementations need agree on it. Here such
slopes are switched one by one, and what remains must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dr_platform.gan import fir
from dr_platform.gan.ops import LRELU_SLOPE

# Heights beyond which no rounding of float32 reaches through a network, relative to the root mean square of an image.
LIMIT = 1e-6

# Relative error that is left to the rounding of float32 when no slope differs.
ROUNDING = 2e-6


@contextmanager
def recorded_activations() -> Iterator[list[Tensor]]:
    """The images by whose signs the filtered leaky ReLUs inside choose slopes, as kept for the backward pass."""
    kept: list[Tensor] = []
    original = fir._lrelu_between

    def recording(*arguments: Any) -> Tensor:
        y = original(*arguments)
        kept.extend(arguments[-1] or [])
        return y

    with mock.patch.object(fir, "_lrelu_between", recording):
        yield kept


def nearest_gradient(
    gradient: Callable[[], Tensor], activations: list[Tensor], wanted: Tensor, enough: float = ROUNDING
) -> tuple[Tensor, list[float]]:
    """`gradient()` with those slopes switched that bring it nearer to `wanted`; and how far from zero they were.

    gradient: a vector, computed anew from the kept activations at each call. Activations within `LIMIT` of zero are
    tried, nearest first, until the relative error is less than `enough`; their effects add up. They are left as they
    were.
    """
    found = plain = gradient()
    heights = []
    for height, memory, index in sorted(_near_zero(activations), key=lambda place: place[0]):
        if (found - wanted).norm() < enough * wanted.norm():
            break
        before = float(memory[index])
        memory[index] = -1e-30 if before > 0 else 1e-30
        switched = found + (gradient() - plain)
        memory[index] = before
        if (switched - wanted).norm() < (found - wanted).norm() * (1 - 1e-3):
            found = switched
            heights.append(height)
    return found, heights


def _near_zero(activations: list[Tensor]) -> Iterator[tuple[float, Tensor, int]]:
    for image in activations:
        memory = torch.as_strided(image.data, (image.numel(),), (1,))  # `data`: unseen by the count of changes
        heights = torch.where(memory > 0, memory, memory / -LRELU_SLOPE) / memory.square().mean().sqrt()
        for index in (heights < LIMIT).nonzero()[:, 0].tolist():
            yield float(heights[index]), memory, index
