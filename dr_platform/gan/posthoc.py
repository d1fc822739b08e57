"""Averages of weights whose length is chosen after the training, from snapshots of two averages kept during it.

A power-function average weighs the weights at time tau in proportion to tau^gamma, so its length is a share of the
training so far and needs no tuning while the training runs. Snapshots of two such averages span a space in which the
average of any other length, at any time that was passed, is found by least squares over the weighting functions alone:
no tensor is needed to find the coefficients.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C.
Legend: t time in steps, gamma exponent, sigma_rel length: standard deviation of the weighting as a share of t.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The two lengths that are kept, and the span that 40 snapshots of them reconstruct to 1e-3 at any of their times. The
# paper keeps 0.05 and 0.10; a longer second one serves long averages 7 times better (2.5e-3 to 3.5e-4 at 0.25), short
# ones alike.
KEPT_LENGTHS = (0.05, 0.20)
SHORTEST, LONGEST = 0.03, 0.25


def exponent(sigma_rel: float) -> float:
    """The exponent gamma of the power function whose relative standard deviation is `sigma_rel`.

    The density (gamma + 1) x^gamma on [0, 1] has variance (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic equation
    with one root above -1/2. Raises ValueError outside 0 < sigma_rel < 0.28, where that root would weigh the oldest
    most.
    """
    if not 0 < sigma_rel < 0.28:
        raise ValueError(
            f"the length of an average is {sigma_rel}, but must be above 0 and below 0.28. Use 0.05 or 0.1."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real[np.abs(roots.imag) < 1e-6].max())


def update_weight(gamma: float, step: int) -> float:
    """Share of the old average that remains when step number `step`, counted from 1, is taken in; 0 at the first."""
    return (1 - 1 / step) ** (gamma + 1)


@torch.no_grad()
def update_average(average: dict[str, Tensor], now: dict[str, Tensor], weight: float) -> None:
    """Move every tensor of `average` towards that of `now` by 1 - weight, in place."""
    torch._foreach_lerp_(list(average.values()), [now[name] for name in average], 1 - weight)


def coefficients(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> NDArray[np.float64]:
    """[n]: how much of each snapshot makes the average of exponent `gamma` at `time`; they sum to 1.

    times, gammas: [n] of the snapshots. A target time later than the last snapshot cannot be reached.
    Raises ValueError if there is no snapshot, or none as late as `time`.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    if not len(t) or time > t.max():
        raise ValueError(f"there is no snapshot at or after step {time:g}. Choose an earlier step.")
    gram = _overlap(t[:, None], g[:, None], t[None], g[None])
    wanted = _overlap(t, g, np.asarray(time, dtype=np.float64), np.asarray(gamma, dtype=np.float64))
    # Snapshots close in time are nearly parallel, so the smallest directions carry rounding only.
    scale = np.sqrt(np.diag(gram))
    solution, *_ = np.linalg.lstsq(gram / np.outer(scale, scale), wanted / scale, rcond=1e-12)
    solution /= scale
    # What every snapshot has in common, which is most of a weight, must come out whole.
    return solution / solution.sum()


def accumulate(total: dict[str, Tensor], snapshot: dict[str, Tensor], weight: float) -> None:
    """Add `weight` times a snapshot to `total`, which starts empty and is kept in float64."""
    for name, tensor in snapshot.items():
        part = tensor.double() * weight
        total[name] = total[name] + part if name in total else part


def _overlap(
    time_a: NDArray[np.float64], gamma_a: NDArray[np.float64], time_b: NDArray[np.float64], gamma_b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Inner product of two weighting functions (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    first = np.minimum(time_a, time_b)
    shrink = (first / time_a) ** (gamma_a + 1) * (first / time_b) ** (gamma_b + 1)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * shrink / first
