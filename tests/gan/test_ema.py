"""The generator's moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dr_platform.gan import ema_beta, update_ema


def test_an_old_value_counts_half_after_the_half_life():
    # 10 steps of 32 images make up a half-life of 320.
    assert ema_beta(32, 320, cur_nimg=0, rampup=None) ** 10 == pytest.approx(0.5)


def test_the_first_update_is_a_copy():
    torch.manual_seed(0)
    average, module = nn.Linear(3, 2), nn.Linear(3, 2)
    update_ema(average, module, ema_beta(32, 10_000, cur_nimg=0))
    assert torch.equal(average.weight, module.weight)


def test_ramp_up_bounds_the_half_life_by_a_share_of_the_images_seen():
    assert ema_beta(32, 10_000, cur_nimg=1000, rampup=0.05) == 0.5 ** (32 / 50)
    assert ema_beta(32, 10_000, cur_nimg=10**9, rampup=0.05) == 0.5 ** (32 / 10_000)


def test_parameters_move_and_buffers_are_copied():
    module = nn.BatchNorm1d(4)
    average = copy.deepcopy(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(7.0)
        module.num_batches_tracked.fill_(5)
    update_ema(average, module, beta=0.75)
    torch.testing.assert_close(average.weight, torch.full((4,), 1.5))  # 0.75 * 1 + 0.25 * 3
    assert torch.equal(average.running_mean, module.running_mean)
    assert average.num_batches_tracked == 5


def test_an_average_of_equal_weights_stays_bitwise():
    module = nn.Linear(5, 5)
    average = copy.deepcopy(module)
    update_ema(average, module, beta=0.3)
    assert torch.equal(average.weight, module.weight)


def test_modules_with_other_buffers_are_refused():
    with pytest.raises(ValueError):
        update_ema(nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=True, track_running_stats=False), 0.5)
