"""The workers of one training seen from one of them: its rank, and the few collectives the training needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Rank and number of workers, and the device this one computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device) -> Group:
        """The initialised process group, or a group of one."""
        if not dist.is_available() or not dist.is_initialized():
            return cls(device=device)
        return cls(rank=dist.get_rank(), world=dist.get_world_size(), device=device)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the workers, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any worker; every worker hears the same."""
        if self.world == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        return bool(self.sum(raised).item() > 0)
