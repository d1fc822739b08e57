"""The Fréchet distance of two sets of features: fast, exact to float64, and with what it takes to believe it.

|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) needs no matrix root: with Σ1 = R Rᵀ and B the centred rows of the other set,
tr (Σ1 Σ2)^½ is the sum of the singular values of B R, a nuclear norm. R is a Cholesky factor where there are more
images than features, and the centred rows themselves where there are fewer: the product is then n x n, and the
covariances' null spaces, whose rounding noise is a square root of 1e-16, never come into it.

The distance of samples exceeds that of distributions, by about c / n. So beside the value at all images stand the value
at a fixed number of them, the value extrapolated to infinitely many, and the value relative to that of two halves of
the real ones. Intervals come from influence functions or from subsampling patients; drawing images with replacement
thins the sample, which adds the very bias it should measure around (`bootstrap` is there to replicate such numbers).

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule"; Chong and Forsyth 2020, "Effectively Unbiased FID";
Politis, Romano and Wolf 1999, "Subsampling".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.estimate import Estimate

Array = NDArray[np.float64]
Rows = NDArray[Any]
T = TypeVar("T")

_SVD_UP_TO = 600  # rows or columns; above, the eigenvalues of the product's Gram matrix cost a tenth
_EXACT_UP_TO = 300  # images or features; a resample then takes a few ms
_MOST_DRAWN = 20_000  # 3.2 GB for a matrix of them
_BLOCK = 256  # columns of a triangular factor that are multiplied at a time, without the zeros above them
_NO_WIDTH = 1e-6  # of the largest deviation: rounding noise under the root is 1e-8 of it
_QUADRATURE_MARGIN = 30.0  # in ln t beyond the spectrum; e^-15 of the integrand is left there
_Z95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class Reference:
    """One side of the distance, with what can be prepared of it once for any number of others; see `reference`.

    rows: [u, d], centred, times the root of how often each was drawn. squares: the sum of their squares. count: images,
    repetitions included. root: [d, r] with root rootᵀ = rowsᵀ rows. triangular: whether it is a Cholesky factor. rank:
    the covariance has no more.
    """

    mean: Array
    rows: Array
    squares: float
    count: int
    root: Array
    triangular: bool
    rank: int

    @property
    def trace(self) -> float:
        """Trace of the covariance, divisor n - 1: the scale of every term that sampling adds to the distance."""
        return self.squares / (self.count - 1)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Distances of resamples: `values` [b], computed through a surrogate, and how far that is from exact values.

    error, largest_error: root mean square and largest deviation over `checked` resamples that were also computed
    exactly; the surrogate knows no more of those than their mean residual. Zeros where all were computed exactly.
    """

    values: Array
    error: float
    largest_error: float
    checked: int


def reference(features: Rows, weights: Rows | None = None) -> Reference:
    """Prepare one side: features float [n, d], n ≥ 2; weights int [n], how often each row was drawn.

    Takes one Cholesky factorisation, or none where there are at most d different rows.
    Raises EvaluationError for fewer than 2 images or features that are not finite.
    """
    mean, rows, count = _centred(features, weights)
    different, width = rows.shape
    rank = min(different - 1, width)
    if different <= width:
        return Reference(mean, rows, _squares(rows), count, np.ascontiguousarray(rows.T), triangular=False, rank=rank)
    scatter = rows.T @ rows
    try:
        root = scipy.linalg.cholesky(scatter, lower=True, check_finite=False)
        if np.diag(root).min() > _NO_WIDTH * np.diag(root).max():
            return Reference(mean, rows, _squares(rows), count, np.ascontiguousarray(root), triangular=True, rank=rank)
    except np.linalg.LinAlgError:
        pass
    variances, axes = scipy.linalg.eigh(scatter, check_finite=False)
    kept = variances > width * np.finfo(float).eps * variances[-1]
    root = np.ascontiguousarray(axes[:, kept] * np.sqrt(variances[kept]))
    return Reference(mean, rows, _squares(rows), count, root, triangular=False, rank=int(kept.sum()))


def fid(
    real: Rows | Reference,
    fake: Rows,
    *,
    groups: Rows | None = None,
    fake_groups: Rows | None = None,
    ddof: int = 1,
    spread: bool = True,
) -> Estimate:
    """Fréchet distance between Gaussians fitted to the features, with its influence-function standard error.

    real, fake: float [n, d], n ≥ 2. groups, fake_groups: int [n], the patient of each row; the error is then robust to
    what a patient's images have in common. ddof: 1 divides covariances by n - 1, 0 by n as the published code does.
    spread: False saves the eigenvectors, which only the error needs.

    The error and the interval cover the sampling of both sets, at these sizes; they do not cover the bias, which falls
    with 1 / n and differs between generators. With n ≤ d the covariances are not known well enough, and there is no
    error. At equal distributions it is of second order, and reads too small.
    Raises EvaluationError for fewer than 2 images, features that are not finite, or sides that do not match.
    """
    n_real, n_fake = real.count if isinstance(real, Reference) else len(real), len(fake)
    if min(n_real, n_fake) < 2:
        raise EvaluationError(
            f"a distance needs at least 2 images on either side; there are {n_real} real and {n_fake} generated. "
            "Raise evaluate.images, or prepare more."
        )
    known = real if isinstance(real, Reference) else reference(real)
    other = _centred(fake, None)
    _check_match(known, other[1])
    width = known.rows.shape[1]
    if not spread:
        return Estimate(_distance(known, other, ddof))
    if min(known.count, len(fake), len(known.rows)) <= width:
        return Estimate(_distance(known, other, ddof), None, f"none: needs more than {width} images on either side")
    value, effects_real, effects_fake = _influence(known, other, ddof)
    error = math.hypot(_standard_error(effects_real, groups), _standard_error(effects_fake, fake_groups))
    kind = "influence-function standard error, reals and fakes"
    if groups is not None or fake_groups is not None:
        kind += ", by patient"
    return Estimate(value, error, kind, value - _Z95 * error, value + _Z95 * error)


def frechet_distance(mean_1: Array, cov_1: Array, mean_2: Array, cov_2: Array) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½), in float64."""
    variances, axes = scipy.linalg.eigh(cov_1)
    root = axes * np.sqrt(variances.clip(min=0))
    squares = scipy.linalg.eigvalsh(root.T @ cov_2 @ root)
    shift = mean_1 - mean_2
    cross = np.sqrt(squares.clip(min=0)).sum()
    return float(shift @ shift + np.trace(cov_1) + np.trace(cov_2) - 2 * cross)


# ---- one distance -------------------------------------------------------------------------------------------------

_Centred = tuple[Array, Array, int]  # mean, weighted and centred rows, count of images


def _centred(features: Rows, weights: Rows | None) -> _Centred:
    if weights is not None:
        drawn = np.flatnonzero(weights)
        features, weights = features[drawn], weights[drawn]
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise EvaluationError(
            f"a distance needs at least 2 images on either side; features of shape {values.shape} came. "
            "Raise evaluate.images, or prepare more."
        )
    if weights is None:
        mean, count = values.mean(axis=0), len(values)
        rows = values - mean
    else:
        count = int(weights.sum())
        mean = weights @ values / count
        rows = (values - mean) * np.sqrt(weights)[:, None]
    if not np.isfinite(mean).all():
        raise EvaluationError("some features are not finite. Check the images and the extractor's weights.")
    return mean, rows, count


def _check_match(known: Reference, rows: Array) -> None:
    if known.rows.shape[1] != rows.shape[1]:
        raise EvaluationError(
            f"real images have {known.rows.shape[1]} features and generated ones {rows.shape[1]}: they are not "
            "comparable. Take both from one extractor (evaluate.extractor)."
        )


def _distance(known: Reference, other: _Centred, ddof: int) -> float:
    mean, rows, count = other
    cross = _nuclear_norm(_times_root(rows, known), min(known.rank, len(rows) - 1))
    return _assemble(known, mean, _squares(rows), count, cross, ddof)


def _assemble(known: Reference, mean: Array, squares: float, count: int, cross: float, ddof: int) -> float:
    shift = mean - known.mean
    n, m = known.count - ddof, count - ddof
    return float(shift @ shift + known.squares / n + squares / m - 2 * cross / math.sqrt(n * m))


def _squares(rows: Array) -> float:
    return float(np.vdot(rows, rows))


def _times_root(rows: Array, known: Reference) -> Array:
    root = known.root
    if not known.triangular:
        return np.asarray(rows @ root)
    product = np.empty((len(rows), root.shape[1]))
    for start in range(0, root.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        np.matmul(rows[:, start:], root[start:, columns], out=product[:, columns])
    return product


def _nuclear_norm(matrix: Array, rank: int) -> float:
    """Sum of the singular values of C-ordered [n, m], of which the largest `rank` can be other than 0."""
    if min(matrix.shape) <= _SVD_UP_TO:
        return float(scipy.linalg.svdvals(matrix, check_finite=False)[:rank].sum())
    wide = matrix.shape[0] < matrix.shape[1]
    gram = scipy.linalg.blas.dsyrk(1.0, matrix.T, trans=int(wide), lower=1)
    return float(np.sqrt(_eigenvalues(gram)[-rank:].clip(min=0)).sum())


def _eigenvalues(symmetric: Array) -> Array:
    """Ascending eigenvalues of a Fortran-ordered matrix given by its lower triangle; overwrites it."""
    work = 64 * len(symmetric)
    _, diagonal, beside, _, _ = scipy.linalg.lapack.dsytrd(symmetric, lower=1, lwork=work, overwrite_a=1)
    values, failed = scipy.linalg.lapack.dsterf(diagonal, beside)
    if failed:  # has not been seen: the iteration did not converge
        return np.asarray(scipy.linalg.eigvalsh_tridiagonal(diagonal, beside, lapack_driver="stebz"))
    return np.asarray(values)


# ---- influence functions ------------------------------------------------------------------------------------------


def _influence(known: Reference, other: _Centred, ddof: int) -> tuple[float, Array, Array]:
    """The distance, and the first-order effect of each real and each generated image on it, up to a constant.

    ∂FID/∂Σ = I - T and ∂FID/∂μ = 2 shift, where T is the optimal map to the other side. With R Rᵀ = Σ1 and
    M = Rᵀ Σ2 R = V S² Vᵀ, T from 2 to 1 is R M^-½ Rᵀ and T' from 1 to 2 is R^-ᵀ M^½ R^-1, with pseudo-inverses: a
    distribution that has no width in some direction is moved in the others only.
    """
    mean, rows, count = other
    product = _times_root(rows, known)
    squares, axes = scipy.linalg.eigh(product.T @ product, check_finite=False)
    scales = np.sqrt(squares.clip(min=0))
    value = _assemble(known, mean, _squares(rows), count, float(scales.sum()), ddof)
    ratio, shift = math.sqrt((count - ddof) / (known.count - ddof)), mean - known.mean
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > _NO_WIDTH * scales.max())
    moved_fake = ratio * np.square(product @ axes) @ inverse
    moved_real = np.square(_whitened(known) @ axes) @ scales / ratio
    effects_fake = np.einsum("ij,ij->i", rows, rows) - moved_fake + 2 * rows @ shift
    effects_real = np.einsum("ij,ij->i", known.rows, known.rows) - moved_real - 2 * known.rows @ shift
    return value, effects_real, effects_fake


def _whitened(known: Reference) -> Array:
    """[n, r]: the rows in the coordinates of the root."""
    if known.triangular:
        solved = scipy.linalg.solve_triangular(known.root, known.rows.T, lower=True, check_finite=False)
        return np.asarray(solved.T)
    return np.asarray(known.rows @ (known.root / np.square(known.root).sum(axis=0)))


def _standard_error(effects: Array, groups: Rows | None) -> float:
    """Of the mean effect, from sums within groups: what a patient's images share does not average out."""
    if groups is not None:
        _check_groups(groups, len(effects))
    codes = intervals.patients(groups, len(effects))
    if not codes.max(initial=0):
        raise EvaluationError("all images are of one patient; a standard error needs at least 2. Evaluate more.")
    return math.sqrt(intervals.cluster_variance(effects, codes))


def _check_groups(groups: Rows, count: int) -> None:
    if len(groups) != count:
        raise EvaluationError(f"there are {count} images and {len(groups)} patients' names. Give one for each image.")


# ---- sizes, halves and subsamples ---------------------------------------------------------------------------------


def distance(known: Reference, fake: Rows, weights: Rows | None = None) -> float:
    """The distance alone, covariances with divisor n - 1; weights: how often each row of `fake` was drawn."""
    other = _centred(fake, weights)
    _check_match(known, other[1])
    return _distance(known, other, 1)


def fid_at(
    real: Rows,
    fake: Rows,
    size: int,
    *,
    groups: Rows | None = None,
    fake_groups: Rows | None = None,
    splits: int = 20,
    seed: int = 0,
) -> Estimate:
    """Mean FID of `size` real and `size` generated images, drawn without replacement and patient by patient.

    The same size gives the same bias, so generators and data sets of any size can be compared. The spread is the
    standard deviation over `splits` draws from these images, not an error of the mean; low and high are the 2.5 and
    97.5 percentiles over splits.
    Raises EvaluationError if either side has fewer images.
    """
    _check_size(size, len(real), len(fake))
    rng = np.random.default_rng(seed)
    values = np.empty(splits)
    for split in range(splits):
        ours, theirs = _draw(rng, len(real), groups)[:size], _draw(rng, len(fake), fake_groups)[:size]
        values[split] = distance(reference(real[ours]), fake[theirs])
    return _over_splits(values, f"{size} + {size} images")


def fd_infinity(
    real: Rows,
    fake: Rows,
    *,
    groups: Rows | None = None,
    fake_groups: Rows | None = None,
    sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    known: Estimate | None = None,
) -> Estimate:
    """Fréchet distance extrapolated to infinitely many images on both sides, with its standard error.

    Least squares of the distance at N + N images on 1 / N, at `sizes` values of 1 / N from `smallest` up to all images
    of the smaller side; the intercept is the result. smallest: by default 3 d, or half of the images where that is
    less, and as many times more as patients have images; below 1.5 d the law bends and the result is too small, which
    spread_kind says. The standard error joins that of the fit with the influence-function error, which stands for what
    all subsets have in common; without the latter (n ≤ d), spread_kind says "fit only", and the error is too small.
    known: `fid` of the same images, if it has been computed.
    """
    largest = min(len(real), len(fake))
    per_patient = max(len(x) / _count_groups(len(x), g) for x, g in ((real, groups), (fake, fake_groups)))
    width = real.shape[1] * per_patient
    smallest = smallest or max(2, min(largest // 2, math.ceil(3 * width)))
    if sizes < 3 or not 2 <= smallest < largest:
        raise EvaluationError(
            f"{sizes} sizes from {smallest} to {largest} images cannot be extrapolated. Give 3 sizes and more images."
        )
    rng = np.random.default_rng(seed)
    inverse, values = np.linspace(1 / smallest, 1 / largest, sizes), np.empty(sizes)
    for i, size in enumerate(np.rint(1 / inverse).astype(int)):
        ours, theirs = _draw(rng, len(real), groups)[:size], _draw(rng, len(fake), fake_groups)[:size]
        inverse[i], values[i] = 1 / size, distance(reference(real[ours]), fake[theirs])
    design = np.column_stack([np.ones(sizes), inverse])
    (intercept, slope), *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ (intercept, slope)
    variance = float(residual @ residual) / (sizes - 2) * float(np.linalg.inv(design.T @ design)[0, 0])
    if known is None:
        known = fid(real, fake, groups=groups, fake_groups=fake_groups)
    sampling = known.spread
    error = math.hypot(math.sqrt(variance), sampling or 0.0)
    kind = "standard error of the fit only" if sampling is None else "standard errors of fit and sampling"
    kind += f", {sizes} sizes from {smallest} to {largest} images"
    kind += "" if smallest >= 1.5 * width else "; too few for so many features, the value is too small"
    return Estimate(float(intercept), error, kind, float(intercept) - _Z95 * error, float(intercept) + _Z95 * error)


def relative_fid(
    real: Rows,
    fake: Rows,
    *,
    groups: Rows | None = None,
    splits: int = 20,
    seed: int = 0,
) -> Estimate:
    """Mean of FD(fake, A) / FD(B, A) over splits of the patients into halves A and B, with as many fakes as B has.

    1 for a perfect generator, whatever the number of images, and below 1 for one that copies its training images. The
    spread is the standard deviation over splits, low and high are the 2.5 and 97.5 percentiles over splits.
    Raises EvaluationError for fewer than 4 patients, or fewer fakes than half of the real images.
    """
    rng = np.random.default_rng(seed)
    values = np.empty(splits)
    for split in range(splits):
        first, second = halves(rng, len(real), groups)
        _check_size(len(second), len(second), len(fake))
        known = reference(real[first])
        drawn = rng.permutation(len(fake))[: len(second)]
        values[split] = distance(known, fake[drawn]) / distance(known, real[second])
    return _over_splits(values, f"halves of {len(real)} images")


def subsampled_interval(
    real: Rows,
    fake: Rows,
    *,
    groups: Rows | None = None,
    fake_groups: Rows | None = None,
    share: float = 0.5,
    repetitions: int = 100,
    seed: int = 0,
) -> Estimate:
    """FID with an interval from subsamples of the patients: `share` of either side, without replacement, rescaled.

    A subsample of m = share n patients deviates from the mean of all subsamples by a variance of (1 / m - 1 / n) s²,
    the whole from its own expectation by s² / n: deviations are multiplied by √(share / (1 - share)). They are taken
    from the subsamples' own mean, as a distance at m images has more bias than one at n; so the interval is one of
    the expected distance at these n, not of the distance of distributions.
    Raises EvaluationError for a share that leaves fewer than 2 patients in or out.
    """
    n, m = _count_groups(len(real), groups), _count_groups(len(fake), fake_groups)
    if not 0 < share < 1 or min(share, 1 - share) * min(n, m) < 2:
        raise EvaluationError(f"a share of {share:g} of {n} and {m} patients leaves fewer than 2 in or out. Take 0.5.")
    rng = np.random.default_rng(seed)
    values = np.empty(repetitions)
    for i in range(repetitions):
        ours = _draw(rng, len(real), groups, round(share * n))
        theirs = _draw(rng, len(fake), fake_groups, round(share * m))
        values[i] = distance(reference(real[ours]), fake[theirs])
    value = float(fid(real, fake, spread=False))
    deviations = (values - values.mean()) * math.sqrt(share / (1 - share))
    low, high = np.quantile(deviations, (0.025, 0.975))
    kind = f"{repetitions} subsamples of {share:.0%} of the patients without replacement, rescaled"
    return Estimate(value, float(deviations.std(ddof=1)), kind, value - float(high), value - float(low))


def _over_splits(values: Array, what: str) -> Estimate:
    low, high = np.quantile(values, (0.025, 0.975))
    kind = f"standard deviation over {len(values)} splits of {what}"
    return Estimate(float(values.mean()), float(values.std(ddof=1)), kind, float(low), float(high))


def _draw(rng: np.random.Generator, count: int, groups: Rows | None, patients: int | None = None) -> NDArray[np.intp]:
    """Rows of `patients` random patients (of all of them, by default), one patient after the other."""
    if groups is None:
        return rng.permutation(count)[:patients]
    _check_groups(groups, count)
    which = np.unique(groups, return_inverse=True)[1]
    place = rng.permutation(which.max() + 1)[which]
    order = np.argsort(place, kind="stable")
    return order if patients is None else order[place[order] < patients]


def halves(rng: np.random.Generator, count: int, groups: Rows | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of a random half of the patients, and the rows of the others; without groups each row is a patient.

    Raises EvaluationError for fewer than 4 patients.
    """
    patients = _count_groups(count, groups)
    if patients < 4:
        raise EvaluationError(f"{patients} patients cannot be split into halves with 2 in each. Prepare more.")
    first = _draw(rng, count, groups, patients // 2)
    return first, np.setdiff1d(np.arange(count), first)


def _count_groups(count: int, groups: Rows | None) -> int:
    return count if groups is None else len(np.unique(groups))


def _check_size(size: int, real: int, fake: int) -> None:
    if not 2 <= size <= min(real, fake):
        raise EvaluationError(
            f"{size} images are to be taken of either side, and there are {real} real and {fake} generated. "
            "Take at least 2 and at most as many as there are."
        )


# ---- resampling with replacement ----------------------------------------------------------------------------------


def bootstrap(
    known: Reference,
    features: Rows,
    *,
    repetitions: int = 1000,
    pilots: int = 12,
    checked: int = 24,
    exact: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bootstrap:
    """Distances between one fixed side and resamples with replacement of the other, features [n, d].

    This is for replicating published numbers: such a resample has only 63 % of the images, so its distances are biased
    upwards, and no interval for the FID. Mean, covariance's trace and their parts of the distance are exact. Of the
    cross term tr (Σ1 Σ2*)^½ the sum of what each image adds by being drawn 0, 1, 2 ... times stands for the whole; the
    additions are averaged over `pilots` resamples, where they are had from one eigendecomposition each, and a constant
    is set by `checked` further resamples that are computed exactly. Their residuals are the error reported. What the
    surrogate leaves out hardly correlates with it, so the variance of exact values is values.var() + error².
    exact: compute all exactly, which is also done where it is cheap (few images or features, few repetitions).
    progress: hears of the resamples that take an eigendecomposition each, done and in all.
    Memory is 8 n² bytes thrice. Raises EvaluationError for more than 20,000 images to draw from.

    A Taylor expansion around the sample will not do: at n ≈ d a resample has not even the rank of the covariance.
    """
    mean, rows, count = _centred(features, None)
    _check_match(known, rows)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(repetitions)])
    if exact or repetitions <= pilots + checked or min(count, known.root.shape[1]) <= _EXACT_UP_TO:
        values = np.empty(repetitions)
        for i, w in enumerate(drawn):
            values[i] = distance(known, features, w)
            progress(i + 1, repetitions)
        return Bootstrap(values, 0.0, 0.0, repetitions)
    if count > _MOST_DRAWN:
        raise EvaluationError(f"{count} images are too many to draw from; {_MOST_DRAWN} fit into memory. Take a part.")
    product = _times_root(rows, known)
    gram, most = product @ product.T, int(drawn.max())
    rank = min(known.rank, product.shape[1])
    done = itertools.count(1)

    def told(outcome: T) -> T:
        progress(next(done), pilots + checked)
        return outcome

    gain = np.mean([told(_additions(gram, w, most, rank)) for w in drawn[:pilots]], axis=0)
    cross = np.array([gain[np.arange(count), w].sum() for w in drawn])
    truth = np.array([told(_cross_term(gram, w, rank)) for w in drawn[-checked:]])
    offsets = truth - cross[-checked:]
    cross += offsets.mean()
    cross[-checked:] = truth
    scale = 2 / math.sqrt((count - 1) * (known.count - 1))
    means = drawn @ rows / count
    squares = drawn @ np.square(rows).sum(axis=1) - count * np.square(means).sum(axis=1)
    shifts = np.square(means + mean - known.mean).sum(axis=1)
    values = shifts + squares / (count - 1) + known.trace - scale * cross
    residuals = scale * (offsets - offsets.mean()) * math.sqrt(checked / (checked - 1))
    return Bootstrap(values, float(residuals.std()), float(abs(residuals).max()), checked)


def _resampled_gram(gram: Array, weights: Rows) -> tuple[NDArray[np.intp], Array, Array]:
    """The rows drawn, their weighted and centred Gram matrix, and their inner products with the resample's mean."""
    drawn = np.flatnonzero(weights)
    times = weights[drawn].astype(float)
    with_mean = gram[:, drawn] @ times / times.sum()
    size = times @ with_mean[drawn] / times.sum()
    inner = gram[np.ix_(drawn, drawn)] - with_mean[drawn, None] - with_mean[drawn] + size
    inner *= np.sqrt(times)
    inner *= np.sqrt(times)[:, None]
    return drawn, inner, with_mean


def _cross_term(gram: Array, weights: Rows, rank: int) -> float:
    drawn, inner, _ = _resampled_gram(gram, weights)
    rank = min(rank, len(drawn) - 1)
    return float(np.sqrt(_eigenvalues(inner.T)[-rank:].clip(min=0)).sum())


def _additions(gram: Array, weights: Rows, most: int, rank: int) -> Array:
    """[n, most + 1]: what each image adds to tr M^½ by being drawn k times, the others as in `weights`; 0 for k = 0.

    M = Σ w yyᵀ without that image. tr (M + k yyᵀ)^½ - tr M^½ = 1/2π ∫ t^-½ ln(1 + k q(t)) dt, q(t) = yᵀ (M + t)^-1 y:
    by the trapezoidal rule in ln t, which for functions analytic in a strip of half-width π is exact to 3e-9 at step 1.
    """
    drawn, inner, with_mean = _resampled_gram(gram, weights)
    rank = min(rank, len(drawn) - 1)
    squares, axes = scipy.linalg.eigh(inner, driver="evd", check_finite=False, overwrite_a=True)
    squares, axes = squares[-rank:].clip(min=squares[-1] * np.finfo(float).eps), axes[:, -rank:]
    margin = _QUADRATURE_MARGIN
    t = np.exp(np.arange(math.log(squares[0]) - margin, math.log(squares[-1]) + margin))
    result = np.zeros((len(gram), most + 1))
    share = np.square(axes)
    outside = np.maximum(1 - share.sum(axis=1), 0)[:, None]  # of 1/w: the row's part along no axis of the spectrum
    hit, missed = share @ (squares[:, None] / (squares[:, None] + t)), share @ (t / (squares[:, None] + t)) + outside
    result[drawn] = _integrals(hit / missed / weights[drawn, None], t, most)
    rest = np.flatnonzero(weights == 0)
    times = weights[drawn].astype(float)
    along = (
        gram[np.ix_(rest, drawn)] - with_mean[rest, None] - with_mean[drawn] + with_mean[drawn] @ times / times.sum()
    )
    size = np.diag(gram)[rest] - 2 * with_mean[rest] + with_mean[drawn] @ times / times.sum()
    parts = np.square(along * np.sqrt(times) @ axes) / squares
    beyond = np.maximum(size - parts.sum(axis=1), 0)
    result[rest] = _integrals(beyond[:, None] / t + parts @ (1 / (squares[:, None] + t)), t, most)
    return result


def _integrals(q: Array, t: Array, most: int) -> Array:
    weights = np.sqrt(t) / (2 * math.pi)
    return np.stack([np.log1p(k * q) @ weights for k in range(most + 1)], axis=1)
