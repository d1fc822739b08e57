"""Whole float32, where the digits that TF32 drops are what is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """No TF32 within the block, on any GPU: its 10 bits are enough to train with, and show as 60 dB in equivariance."""
    backends: tuple[object, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]  # type: ignore[attr-defined]
    try:
        for backend in backends:
            backend.allow_tf32 = False  # type: ignore[attr-defined]
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value  # type: ignore[attr-defined]
