"""In which dtype the layers marked for half precision compute: those of the highest resolutions.

Kept beside the networks' arguments, not among them: it belongs to the machine, and a checkpoint's arguments must build
the same network on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Precision:
    """low: dtype of the marked layers, None for the dtype of the parameters. on_cpu: there as well, which is slow."""

    low: torch.dtype | None = torch.float16
    on_cpu: bool = False

    def dtype(self, marked: bool, device: torch.device, full: torch.dtype) -> torch.dtype:
        """What a layer computes in: `full` unless it is marked and runs on a GPU."""
        if not marked or self.low is None or not (device.type == "cuda" or self.on_cpu):
            return full
        return self.low


def set_precision(network: nn.Module, precision: Precision) -> None:
    """Let every marked layer of a generator or discriminator compute so; float16 on CUDA at the start.

    Raises ValueError for a dtype that is not float16, bfloat16, float32 or None.
    """
    if precision.low not in (torch.float16, torch.bfloat16, torch.float32, None):
        raise ValueError(f"half precision is {precision.low}, but must be float16, bfloat16, float32 or None.")
    for module in network.modules():
        if hasattr(module, "precision"):
            module.precision = precision  # type: ignore[assignment]
