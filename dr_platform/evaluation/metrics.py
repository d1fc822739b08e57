"""Features to numbers: FID and KID with what it takes to believe them.

The values are torch-fidelity's. Beside each runs a float64 computation of our own that gives the spread and would show
a wrong value: FID by the symmetric product of covariance roots, KID by the U-statistic over all pairs.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule"; Bińkowski et al. 2018, "Demystifying MMD GANs".
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features
from dr_platform.evaluation.estimate import Estimate

_ROWS_AT_A_TIME = 512  # of the kernel matrix, so that 50,000 images need no 20 GB
_AGREEMENT = 1e-4  # of the covariances' traces; rank-deficient ones lose half of the digits under the root


def fid(real: np.ndarray, fake: np.ndarray) -> Estimate:
    """Fréchet distance between Gaussians fitted to the features, with its influence-function standard error.

    real, fake: float64 [n, d], n ≥ 2. The spread covers the sampling of both sets, at these sizes; it does not cover
    the bias, which falls with 1 / n and differs between generators. With n ≤ d the covariances are not known well
    enough, and there is no spread. At equal distributions the error is of second order, and the spread reads too small.
    Raises EvaluationError for fewer than 2 images, features that are not finite, or a value float64 cannot give.
    """
    _check(real, fake)
    value = features.frechet_distance(real, fake)
    moments = [(sample.mean(axis=0), np.atleast_2d(np.cov(sample, rowvar=False))) for sample in (real, fake)]
    (mean_r, cov_r), (mean_f, cov_f) = moments
    expected, to_real, to_fake = _frechet(mean_r, cov_r, mean_f, cov_f)
    if not abs(value - expected) <= _AGREEMENT * (np.trace(cov_r) + np.trace(cov_f)) + 1e-9:
        raise EvaluationError(
            f"FID is {value:.6g} or {expected:.6g}, as it is computed: the features' covariances are too close to "
            f"singular. Use more than {real.shape[1]} images (evaluate.images)."
        )
    if min(len(real), len(fake)) <= real.shape[1]:
        return Estimate(value, None, f"none: needs more than {real.shape[1]} images on either side")
    variance = _influence(fake, mean_f - mean_r, to_real).var(ddof=1) / len(fake)
    variance += _influence(real, mean_r - mean_f, to_fake).var(ddof=1) / len(real)
    return Estimate(value, math.sqrt(variance), "influence-function standard error, reals and fakes")


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½), in float64."""
    return _frechet(mean_1, cov_1, mean_2, cov_2)[0]


def kid(real: np.ndarray, fake: np.ndarray, *, subsets: int, subset_size: int, seed: int) -> Estimate:
    """Unbiased squared MMD with the kernel (x·y / d + 1)³, averaged over random subsets, with its standard error.

    real, fake: float64 [n, d], n ≥ 2. A subset takes at most the smaller n; `spread_kind` says what was taken.
    The standard error joins the jackknife over images with what the choice of subsets adds. It is not the standard
    deviation over subsets that papers print, which mostly reflects the subset's size.
    """
    _check(real, fake)
    size = min(subset_size, len(real), len(fake))
    value, deviation = features.kernel_distance(real, fake, subsets=subsets, subset_size=size, seed=seed)
    kind = f"{subsets} subsets of {size} images"
    if min(len(real), len(fake)) < 3:
        return Estimate(value, None, f"none: needs 3 images on either side; {kind}")
    jackknife = mmd2_jackknife(real, fake)[1]
    return Estimate(value, math.hypot(jackknife, deviation / math.sqrt(subsets)), f"jackknife standard error; {kind}")


def mmd2_jackknife(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """Unbiased squared MMD over all pairs, and its delete-one jackknife standard error; float64, n ≥ 3 on both sides.

    Leaving out one image changes three sums by row sums of the kernel matrix, so no kernel is computed twice.
    """
    n, m = len(real), len(fake)
    within_r = _kernel_row_sums(real, real) - _kernel_diagonal(real)
    within_f = _kernel_row_sums(fake, fake) - _kernel_diagonal(fake)
    across_r, across_f = _kernel_row_sums(real, fake), _kernel_row_sums(fake, real)
    mean_r, mean_f, across = within_r.sum() / (n * (n - 1)), within_f.sum() / (m * (m - 1)), across_r.sum()
    value = mean_r + mean_f - 2 * across / (n * m)
    without_r = (within_r.sum() - 2 * within_r) / ((n - 1) * (n - 2)) - 2 * (across - across_r) / ((n - 1) * m)
    without_f = (within_f.sum() - 2 * within_f) / ((m - 1) * (m - 2)) - 2 * (across - across_f) / (n * (m - 1))
    variance = without_r.var() * (n - 1) + without_f.var() * (m - 1)
    return float(value), math.sqrt(variance)


def _frechet(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The distance, and the optimal maps T from 2 to 1 and T' from 1 to 2: ∂tr(Σ1 Σ2)^½ is T/2 by Σ2 and T'/2 by Σ1.

    With R = Σ1^½, tr (Σ1 Σ2)^½ = tr (R Σ2 R)^½: a symmetric product, so its eigenvalues are real and not negative.
    T = R (R Σ2 R)^-½ R and T' = R^-1 (R Σ2 R)^½ R^-1, with pseudo-inverses: a distribution that has no width in some
    direction is moved in the others only.
    """
    variances, axes = scipy.linalg.eigh(cov_1)
    deviations = np.sqrt(variances.clip(min=0))
    root = (axes * deviations) @ axes.T
    unroot = (axes * _inverse(deviations)) @ axes.T
    squares, axes = scipy.linalg.eigh(root @ cov_2 @ root)
    scales = np.sqrt(squares.clip(min=0))
    shift = mean_1 - mean_2
    distance = float(shift @ shift + np.trace(cov_1) + np.trace(cov_2) - 2 * scales.sum())
    there = root @ (axes * _inverse(scales)) @ axes.T @ root
    back = unroot @ (axes * scales) @ axes.T @ unroot
    return distance, there, back


def _inverse(values: np.ndarray) -> np.ndarray:
    # These are roots of eigenvalues, whose rounding noise is 1e-8 of the largest one.
    return np.divide(1, values, out=np.zeros_like(values), where=values > 1e-6 * values.max())


def _influence(sample: np.ndarray, shift: np.ndarray, transport: np.ndarray) -> np.ndarray:
    """First-order effect of each image on the distance, up to a constant: ∂FID/∂Σ = I - T and ∂FID/∂μ = 2 shift.

    shift: from the other distribution's mean to this one's. transport: the optimal map from this one to the other.
    """
    centred = sample - sample.mean(axis=0)
    curvature = np.eye(len(shift)) - transport
    return np.einsum("ij,ij->i", centred @ curvature, centred) + 2 * centred @ shift


def _kernel_row_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    blocks = range(0, len(x), _ROWS_AT_A_TIME)
    return np.concatenate([((x[i : i + _ROWS_AT_A_TIME] @ y.T / x.shape[1] + 1) ** 3).sum(axis=1) for i in blocks])


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    return (np.einsum("ij,ij->i", x, x) / x.shape[1] + 1) ** 3


def _check(real: np.ndarray, fake: np.ndarray) -> None:
    if min(len(real), len(fake)) < 2:
        raise EvaluationError(
            f"a distance needs at least 2 images on either side; there are {len(real)} real and {len(fake)} generated. "
            "Raise evaluate.images, or prepare more."
        )
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise EvaluationError("some features are not finite. Check the images and the extractor's weights.")
