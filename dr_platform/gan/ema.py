"""The exponential moving average of the generator, whose images are the ones that count.

Its length is measured in images, so that it does not change with the batch size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_beta(batch: int, ema_nimg: float, cur_nimg: int, rampup: float | None = 0.05) -> float:
    """Weight of the old average in the next update.

    batch: images per step; ema_nimg: images after which an old value counts half; cur_nimg: images seen before this
    step; rampup: the half-life is at most this share of cur_nimg (None: always ema_nimg). The first update is a copy.
    """
    if rampup is not None:
        ema_nimg = min(ema_nimg, cur_nimg * rampup)
    return 0.5 ** (batch / max(ema_nimg, 1e-8))


@torch.no_grad()
def update_ema(ema_module: nn.Module, module: nn.Module, beta: float) -> None:
    """Move the parameters of `ema_module` towards those of `module` by 1 - beta; copy the buffers."""
    ema_params, params = list(ema_module.parameters()), list(module.parameters())
    if ema_params:
        get_ema_multi_avg_fn(beta)(ema_params, params, 0)
    for ema_buffer, buffer in zip(ema_module.buffers(), module.buffers(), strict=True):
        ema_buffer.copy_(buffer)
