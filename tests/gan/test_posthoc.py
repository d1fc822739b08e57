"""Averages reconstructed after the training: against those that were tracked directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dr_platform.gan import posthoc

STEPS, SNAPSHOTS = 2000, 40


def trajectory(seed: int = 0) -> torch.Tensor:
    """[steps, weights]: weights that wander as those of a training do, from a start that is not zero."""
    source = torch.Generator().manual_seed(seed)
    steps = torch.randn(STEPS, 60, generator=source, dtype=torch.float64) * 0.03
    return torch.randn(60, generator=source, dtype=torch.float64) + steps.cumsum(dim=0)


def tracked(
    weights: torch.Tensor, sigma_rel: float, until: int = STEPS, keep: int = 0
) -> list[dict[str, torch.Tensor]]:
    """The average at `until`, and before it every `keep`-th one."""
    gamma, average, kept = posthoc.exponent(sigma_rel), {"w": torch.zeros(weights.shape[1], dtype=torch.float64)}, []
    for step in range(1, until + 1):
        posthoc.update_average(average, {"w": weights[step - 1]}, posthoc.update_weight(gamma, step))
        if step == until or (keep and step % keep == 0):
            kept.append({"w": average["w"].clone()})
    return kept


def snapshots(weights: torch.Tensor) -> tuple[list[dict[str, torch.Tensor]], list[float], list[float]]:
    every = STEPS // SNAPSHOTS
    found, times, gammas = [], [], []
    for sigma_rel in posthoc.KEPT_LENGTHS:
        found += tracked(weights, sigma_rel, keep=every)
        times += list(range(every, STEPS + 1, every))
        gammas += [posthoc.exponent(sigma_rel)] * SNAPSHOTS
    return found, times, gammas


def combined(found: list[dict[str, torch.Tensor]], parts: np.ndarray) -> torch.Tensor:
    total: dict[str, torch.Tensor] = {}
    for snapshot, part in zip(found, parts, strict=True):
        posthoc.accumulate(total, snapshot, float(part))
    return total["w"]


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_wanted_standard_deviation(sigma_rel):
    gamma = posthoc.exponent(sigma_rel)
    x = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * x**gamma
    mean = (density * x).mean()
    assert np.sqrt((density * (x - mean) ** 2).mean()) == pytest.approx(sigma_rel, rel=1e-4)


def test_the_first_update_is_a_copy_and_a_constant_stays():
    assert posthoc.update_weight(7.0, 1) == 0
    average = {"w": torch.zeros(3)}
    for step in range(1, 50):
        posthoc.update_average(average, {"w": torch.full((3,), 2.0)}, posthoc.update_weight(7.0, step))
    torch.testing.assert_close(average["w"], torch.full((3,), 2.0))


@pytest.mark.parametrize("sigma_rel", [posthoc.SHORTEST, 0.07, 0.1, 0.15, posthoc.LONGEST])
@pytest.mark.parametrize("until", [STEPS, STEPS // 2])
def test_any_length_is_reconstructed_to_a_thousandth(sigma_rel, until):
    weights = trajectory()
    found, times, gammas = snapshots(weights)
    parts = posthoc.coefficients(times, gammas, until, posthoc.exponent(sigma_rel))
    ours = combined(found, parts)
    theirs = tracked(weights, sigma_rel, until)[-1]["w"]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_a_kept_length_is_reconstructed_as_it_was():
    weights = trajectory()
    found, times, gammas = snapshots(weights)
    parts = posthoc.coefficients(times, gammas, STEPS, posthoc.exponent(0.05))
    assert np.abs(parts).argmax() == SNAPSHOTS - 1
    torch.testing.assert_close(combined(found, parts), found[SNAPSHOTS - 1]["w"], rtol=1e-9, atol=1e-9)


def test_coefficients_sum_to_one():
    _, times, gammas = snapshots(trajectory())
    assert posthoc.coefficients(times, gammas, STEPS, posthoc.exponent(0.13)).sum() == pytest.approx(1)


def test_a_time_after_the_last_snapshot_is_refused():
    with pytest.raises(ValueError, match="no snapshot at or after step 11"):
        posthoc.coefficients([5, 10], [7.0, 7.0], 11, 5.0)


@pytest.mark.parametrize("length", [0, -0.1, 0.28, 1.0])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match=r"must be above 0 and below 0\.28"):
        posthoc.exponent(length)
