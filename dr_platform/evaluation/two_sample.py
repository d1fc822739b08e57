"""Two sets, one question: can they be told apart? By patient, because the two eyes of one person are not two persons.

`distance` compares one number per image, or one profile. `separability` is a classifier two-sample test (Lopez-Paz and
Oquab 2017): the area under the ROC curve of a linear probe, on patients it has not seen. A linear probe, because it has
one solution: what it reports is a property of the pictures, not of a training run; its ridge is chosen by generalised
cross-validation (Golub, Heath and Wahba 1979), so that wide features need no tuning. The same probe on shuffled labels
is its control, and nearly free: the eigenvectors are shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.estimate import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RIDGES = np.logspace(-5, 1, 13)  # of the standardised features' variance
_LEAST_PATIENTS = 4  # on either side


@dataclass(frozen=True)
class Distance:
    """How far apart the distributions of one number lie.

    w1: 1-Wasserstein distance, in the number's unit, interval by bootstrap of patients. shift: mean of the fakes minus
    mean of the reals. p: share of relabellings of patients that are at least as far apart.
    """

    w1: Estimate
    shift: Estimate
    p: float
    n_real: int
    n_fake: int


@dataclass(frozen=True)
class Separability:
    """How well a linear probe tells fakes from reals.

    auc: 0.5 not at all, 1 always; its interval is by patient. control: the same with labels shuffled over patients,
    mean and 95 % range. p: share of shufflings (the true labels included) that reach the AUC.
    """

    auc: Estimate
    control: Estimate
    p: float
    n_real: int
    n_fake: int


def halves(groups: Ints, count: int, seed: int) -> NDArray[np.bool_]:
    """`count` random halvings by patient: bool [count, n], true for images of the first half; `groups` as above."""
    patients = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    rank = rng.random((count, patients)).argsort(axis=1).argsort(axis=1)
    return (rank < patients // 2)[:, groups]


def distance(
    real: NDArray,
    fake: NDArray,
    groups_real: NDArray | None = None,
    groups_fake: NDArray | None = None,
    *,
    repeats: int = 400,
    seed: int = 0,
) -> Distance:
    """The distance between two sets of numbers [n] and [m], or of profiles [n, k] and [m, k]: its mean over columns.

    Rows with a NaN are left out and not counted. repeats: of the bootstrap and of the relabelling. State:
    16 · repeats · (n + m) bytes. Raises EvaluationError for fewer than 4 patients on either side.
    """
    real, owners_r = _present(real, groups_real)
    fake, owners_f = _present(fake, groups_fake)
    if real.shape[1] != fake.shape[1]:
        raise EvaluationError(f"profiles of {real.shape[1]} and {fake.shape[1]} numbers cannot be compared.")
    patients_r, patients_f = _patients("distance", owners_r, owners_f)
    n, size = len(real), len(real) + len(fake)
    is_real = (np.arange(size) < n).astype(float)[None]
    rng = np.random.default_rng(seed)
    drawn_r, drawn_f = (
        rng.multinomial(count, np.full(count, 1 / count), repeats)[:, owners].astype(float)
        for count, owners in ((patients_r, owners_r), (patients_f, owners_f))
    )
    relabelled = rng.random((repeats, patients_r + patients_f)).argsort(axis=1).argsort(axis=1) < patients_r
    labels = relabelled[:, np.concatenate((owners_r, owners_f + patients_r))].astype(float)
    apart = np.vstack(
        (
            _signed_shares(is_real, 1 - is_real),
            _signed_shares(np.pad(drawn_r, ((0, 0), (0, size - n))), np.pad(drawn_f, ((0, 0), (n, 0)))),
            _signed_shares(labels, 1 - labels),
        )
    )
    w1 = np.mean([_wasserstein(apart, column) for column in np.concatenate((real, fake)).T], axis=0)
    value, boot, null = float(w1[0]), w1[1 : 1 + repeats], w1[1 + repeats :]
    level_r, level_f = real.mean(axis=1), fake.mean(axis=1)
    moves = drawn_f @ level_f / drawn_f.sum(axis=1) - drawn_r @ level_r / drawn_r.sum(axis=1)
    return Distance(
        intervals.basic(value, boot, "bootstrap of patients", least=0.0),
        intervals.basic(float(level_f.mean() - level_r.mean()), moves, "bootstrap of patients"),
        # Rounding may put a relabelling that changes nothing an ulp below.
        float((1 + (null >= value * (1 - 1e-9)).sum()) / (1 + repeats)),
        n,
        len(fake),
    )


def separability(
    real: NDArray,
    fake: NDArray,
    groups_real: NDArray | None = None,
    groups_fake: NDArray | None = None,
    *,
    folds: int = 5,
    shuffles: int = 99,
    seed: int = 0,
) -> Separability:
    """AUC of a ridge probe on features [n, d] and [m, d], cross-validated by patient, with its shuffled control.

    The AUC is taken within each fold, since scores of different probes must not be ranked against each other. The
    standard error is DeLong's, summed over patients (Obuchowski 1997), but that takes the probes as given, and where
    there is little to find they vary more than the ranks do: so never less than √(4 A (1 - A)) of the control's.
    Fakes must not be made from the very reals they are compared with: a copy's twin, with the other label, teaches the
    probe to be wrong, and the AUC falls below 0.5.
    Cost: folds · (n + m + d) · min(n + m, d)² FLOP, whatever the number of shufflings.
    Raises EvaluationError for features that are not finite or differ in width, or fewer patients than 2 per fold.
    """
    x_r, x_f = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    if x_r.ndim != 2 or x_f.ndim != 2 or x_r.shape[1] != x_f.shape[1]:
        raise EvaluationError(
            f"features are {list(x_r.shape)} and {list(x_f.shape)}; two tables of one width are needed."
        )
    if not (np.isfinite(x_r).all() and np.isfinite(x_f).all()):
        raise EvaluationError("some features are not finite. Check the images and the extractor's weights.")
    owners_r, owners_f = intervals.patients(groups_real, len(x_r)), intervals.patients(groups_fake, len(x_f))
    patients_r, patients_f = _patients("separability", owners_r, owners_f, least=2 * folds)
    rng = np.random.default_rng(seed)
    fold_of = np.concatenate([rng.permutation(np.arange(count) % folds) for count in (patients_r, patients_f)])
    owners = np.concatenate((owners_r, owners_f + patients_r))
    fold = fold_of[owners]
    truth = np.arange(patients_r + patients_f) >= patients_r
    labels = np.vstack((truth, _shuffled_within(rng, truth, fold_of, shuffles)))[:, owners].T  # [N, 1 + shuffles]
    x = np.concatenate((x_r, x_f))
    scores = np.empty(labels.shape)
    for k in range(folds):
        scores[fold == k] = _probe(x[fold != k], labels[fold != k].astype(float), x[fold == k])
    values = np.array([_auc(scores[:, s], labels[:, s], fold)[0] for s in range(1 + shuffles)])
    influence = _auc(scores[:, 0], labels[:, 0], fold)[1]
    auc, null = float(values[0]), values[1:]
    error = max(_cluster_error(influence, owners), float(null.std(ddof=1)) * math.sqrt(4 * auc * (1 - auc)))
    least = min(patients_r, patients_f)
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    if error == 0 and auc in (
        0.0,
        1.0,
    ):  # every pair in order: no spread is seen, but n patients show no more than this
        low, high = (0.025 ** (1 / least), 1.0) if auc else (0.0, 1 - 0.025 ** (1 / least))
    return Separability(
        Estimate(auc, error, "DeLong by patient, or the control's spread where larger", low, high),
        Estimate(
            float(null.mean()),
            float(null.std(ddof=1)),
            f"standard deviation of {shuffles} shufflings of patients",
            float(np.quantile(null, 0.025)),
            float(np.quantile(null, 0.975)),
        ),
        float((1 + (null >= auc).sum()) / (1 + shuffles)),
        len(x_r),
        len(x_f),
    )


def _probe(x: Floats, labels: Floats, unseen: Floats) -> Floats:
    """Scores [m, L] of unseen rows by one ridge regression per column of 0/1 labels [n, L]."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = np.where(deviation > 1e-9 * (np.abs(mean) + 1e-300), deviation, np.inf)  # a constant column says nothing
    z, y = (x - mean) / scale, labels - labels.mean(axis=0)
    n, wide = len(z), z.shape[1] > len(z)
    squares, axes = np.linalg.eigh(z @ z.T if wide else z.T @ z)
    squares = squares.clip(min=0)
    kept = squares > 1e-12 * max(squares.max(), 1e-300)
    squares, axes = squares[kept], axes[:, kept]
    along = axes.T @ y if wide else (axes.T @ (z.T @ y)) / np.sqrt(squares)[:, None]  # Uᵀ y, [k, L]
    total = np.einsum("ij,ij->j", y, y)
    best, score = np.zeros(y.shape[1]), np.full(y.shape[1], np.inf)
    for ridge in _RIDGES:
        shrink = squares / (squares + n * ridge)
        left = total - ((2 * shrink - shrink**2)[:, None] * along**2).sum(axis=0)
        gcv = left / (1 - min(shrink.sum() + 1, n - 0.5) / n) ** 2
        best, score = np.where(gcv < score, ridge, best), np.minimum(gcv, score)
    # w = V diag(s / (s² + n λ)) Uᵀ y, and V = Zᵀ U / s where U is what there is.
    weights = np.sqrt(squares)[:, None] / (squares[:, None] + n * best[None]) * along
    direction = (z.T @ (axes / np.sqrt(squares))) @ weights if wide else axes @ weights
    return (unseen - mean) / scale @ direction


def _auc(score: Floats, fake: NDArray[np.bool_], fold: Ints) -> tuple[float, Floats]:
    """AUC averaged over folds by their pairs, and each image's first-order effect on it [N] (DeLong's components)."""
    influence, pairs, value = np.zeros(len(score)), 0, 0.0
    for k in np.unique(fold):
        f, r = np.flatnonzero((fold == k) & fake), np.flatnonzero((fold == k) & ~fake)
        above_f, above_r = intervals.placements(score[f], score[r]), 1 - intervals.placements(score[r], score[f])
        auc, weight = above_f.mean(), len(f) * len(r)
        value += weight * auc
        pairs += weight
        influence[f] = weight * (above_f - auc) / len(f)
        influence[r] = weight * (above_r - auc) / len(r)
    return value / pairs, influence / pairs


def _cluster_error(influence: Floats, owners: Ints) -> float:
    sums = np.bincount(owners, weights=influence)
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(sums @ sums))


def _shuffled_within(rng: np.random.Generator, truth: NDArray, fold_of: Ints, count: int) -> NDArray[np.bool_]:
    """Labels of patients permuted within folds, so that every fold keeps its share of fakes: [count, patients]."""
    shuffled = np.empty((count, len(truth)), dtype=bool)
    for k in np.unique(fold_of):
        members = np.flatnonzero(fold_of == k)
        order = rng.random((count, len(members))).argsort(axis=1)
        shuffled[:, members] = truth[members][order]
    return shuffled


def _signed_shares(weights_r: Floats, weights_f: Floats) -> Floats:
    return weights_r / weights_r.sum(axis=1, keepdims=True) - weights_f / weights_f.sum(axis=1, keepdims=True)


def _wasserstein(apart: Floats, values: Floats) -> Floats:
    """Area between two distribution functions, [B], from the difference of the weights of each value, [B, N]."""
    order = values.argsort(kind="stable")
    return np.abs(np.cumsum(apart[:, order], axis=1)[:, :-1]) @ np.diff(values[order])


def _present(values: NDArray, groups: NDArray | None) -> tuple[Floats, Ints]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise EvaluationError(f"values are {list(array.shape)}; one number or one profile per image is needed.")
    array = array.reshape(len(array), -1)
    owners, there = intervals.patients(groups, len(array)), np.isfinite(array).all(axis=1)
    return array[there], intervals.patients(owners[there], int(there.sum()))


def _patients(what: str, owners_r: Ints, owners_f: Ints, least: int = _LEAST_PATIENTS) -> tuple[int, int]:
    counts = tuple(int(owners.max(initial=-1)) + 1 for owners in (owners_r, owners_f))
    if min(counts) < least:
        raise EvaluationError(
            f"{what} needs {least} patients on either side; there are {counts[0]} real and {counts[1]} generated ones."
        )
    return counts[0], counts[1]
