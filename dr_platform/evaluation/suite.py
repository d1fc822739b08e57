"""What is measured in one feature space, and against the held-out patients: features in, metrics of a report out.

Everything carries its numbers of images, its extractor and its seed. What cannot be measured with so few images is left
out with the reason, never filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dr_platform import records
from dr_platform.config import EvaluateConfig
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import boundary, frechet, kernel_distance, memorisation, metrics, neighbours
from dr_platform.evaluation.estimate import Estimate
from dr_platform.evaluation.features import FeatureExtractor

Rows = NDArray[np.float64]
Codes = NDArray[np.int64]

MEMORISATION_ALARM = "memorisation_alarm"

# The rules by which numbers of these names are computed; raised when a name comes to mean something else.
_DEFINITIONS = {"fid": "2"}  # 2: our own float64 form; 1 was torch-fidelity's
_HIGHER = {"precision", "recall", "density", "coverage", "authpct"}
_NEIGHBOURS = 50  # images on either side, below which a manifold of balls says nothing
_NEAREST = 24  # pairs of a generated picture and the real one nearest to it, kept for a figure
_HELD_OUT = 20  # images, below which memorisation is not asked for


@dataclass(frozen=True, eq=False)
class Space:
    """Features of one extractor, rows [n, d]: of the real images, of the held-out ones (None: none), of the samples."""

    extractor: FeatureExtractor
    real: Rows
    fake: Rows
    held_out: Rows | None = None
    patients: Codes | None = None  # of the real images
    held_out_patients: Codes | None = None

    def trained_on(self, members: int | None) -> Space:
        """The space with the first `members` real images alone; None: all."""
        patients = None if self.patients is None else self.patients[:members]
        return replace(self, real=self.real[:members], patients=patients)


@dataclass(frozen=True)
class Measured:
    """Metrics, and why others are not there."""

    metrics: tuple[records.Metric, ...]
    notes: tuple[str, ...]


def distances(space: Space, config: EvaluateConfig, members: int | None = None) -> Measured:
    """FID, KID, relative FD, FD at infinity, MIND, precision, recall, density, coverage and AuthPct of a space.

    members: how many of the real images, the first ones, were trained on, which AuthPct asks for; None: all.
    """
    real, fake, groups, seed = space.real, space.fake, space.patients, config.seed
    found = _fid_and_kid(space, config)
    notes: list[str] = []

    def attempt(names: str, measure: Callable[[], Sequence[Estimate]]) -> None:
        try:
            found.update(zip(names.split(", "), measure(), strict=True))
        except EvaluationError as error:
            notes.append(f"{names} ({space.extractor.identity.name}): {error}")

    attempt("rfd", lambda: [frechet.relative_fid(real, fake, groups=groups, seed=seed)])
    attempt("fid_inf", lambda: [frechet.fd_infinity(real, fake, groups=groups, seed=seed, known=found["fid"])])
    attempt("mind", lambda: [kernel_distance.mind(real, fake, seed=seed, groups=groups)])
    if min(len(real), len(fake)) >= _NEIGHBOURS:
        attempt("precision, recall", lambda: neighbours.precision_recall(real, fake, seed=seed, groups=groups))
        attempt("density, coverage", lambda: neighbours.density_coverage(real, fake, seed=seed, groups=groups))
        attempt("authpct", lambda: [neighbours.auth_pct(space.trained_on(members).real, fake)])
    else:
        few = f"{len(real)} real and {len(fake)} generated images; at least {_NEIGHBOURS} of each are needed"
        notes.append(f"precision, recall, density, coverage, authpct: {few}")
    return Measured(tuple(_metric(space, stem, value, seed) for stem, value in found.items()), tuple(notes))


def centred(extractor: FeatureExtractor) -> FeatureExtractor:
    """The extractor on the middle of pictures, 80 % of their width: without the rim, which is easy to tell."""

    def network(images: Tensor) -> Tensor:
        margin = boundary.margin(images.shape[-1])
        return extractor.network(images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin])

    return replace(extractor, network=network)


def centre_distances(space: Space, config: EvaluateConfig) -> Measured:
    """FID and KID of features by `centred`, as fid_centre and kid_centre."""
    found = []
    for stem, value in _fid_and_kid(space, config).items():
        named = {"name": space.extractor.metric_name(f"{stem}_centre"), "region": "centre"}
        found.append(_metric(space, stem, value, config.seed).model_copy(update=named))
    return Measured(tuple(found), ())


def nearest_pairs(space: Space, seeds: Sequence[int]) -> tuple[records.NearestReal, ...]:
    """The generated pictures that lie nearest to a real one, nearest first; seeds: of the first generated ones."""
    found = neighbours.nearest(space.real, space.fake[: len(seeds)])
    distance, typical = found.distances[:, 0], float(np.median(neighbours.radii(space.real, 1)))
    return tuple(
        records.NearestReal(
            seed=seeds[row],
            real=int(found.indices[row, 0]),
            distance=float(distance[row]),
            typical=typical,
            extractor=space.extractor.identity.name,
        )
        for row in np.argsort(distance, kind="stable")[:_NEAREST]
    )


def _fid_and_kid(space: Space, config: EvaluateConfig) -> dict[str, Estimate]:
    real, fake, groups = space.real, space.fake, space.patients
    subsets, size = config.kid_subsets, config.kid_subset_size
    return {
        "fid": metrics.fid(real, fake, groups=groups),
        "kid": metrics.kid(real, fake, subsets=subsets, subset_size=size, seed=config.seed, groups=groups),
    }


def _metric(space: Space, stem: str, value: Estimate, seed: int) -> records.Metric:
    return records.Metric(
        name=space.extractor.metric_name(stem),
        value=value.value,
        spread=value.spread,
        spread_kind=value.spread_kind,
        n_fake=len(space.fake),
        n_real=len(space.real),
        extractor=space.extractor.identity,
        seed=seed,
        higher_is_better=stem in _HIGHER,
        definition=_DEFINITIONS.get(stem, "1"),
        low=value.low,
        high=value.high,
    )


def memory(
    spaces: Sequence[Space],
    seed: int,
    train_pixels: NDArray[np.uint8] | None = None,
    held_out_pixels: NDArray[np.uint8] | None = None,
    sample_pixels: NDArray[np.uint8] | None = None,
) -> Measured:
    """Whether training images come back: the alarm, and per space the distance ratio and the membership AUC.

    Needs held-out patients; without at least 20 of their images it says so.
    """
    known = [(space, space.held_out) for space in spaces if space.held_out is not None]
    if not known or min(len(held) for _, held in known) < _HELD_OUT:
        count = 0 if not known else min(len(held) for _, held in known)
        return Measured((), (f"memorisation: {count} held-out images; at least {_HELD_OUT} are needed",))
    asked = [
        memorisation.Space(
            space.extractor.identity.name, space.real, held, space.fake, space.patients, space.held_out_patients
        )
        for space, held in known
    ]
    said = memorisation.verdict(
        asked,
        seed=seed,
        train_pixels=train_pixels,
        held_out_pixels=held_out_pixels,
        sample_pixels=sample_pixels,
    )
    first = spaces[0]
    common = {"n_fake": len(first.fake), "n_real": len(first.real), "seed": seed, "higher_is_better": False}
    found = [
        records.Metric(
            name=MEMORISATION_ALARM,
            value=float(not said.passed),
            spread=None,
            spread_kind=None,
            extractor=None,
            said=f"the alarm of memorisation ({'; '.join(said.reasons) or 'nothing beyond the control'})",
            **common,
        )
    ]
    for (space, _), ratio, test in zip(known, said.ratios, said.memberships, strict=True):
        for stem, value, words in (
            ("memorisation_ratio", ratio.ratio, f"p {ratio.p:.3g} before Holm; below {ratio.detectable:.3g} it shows"),
            (
                "memorisation_auc",
                test.excess,
                f"AUC {test.auc.value:.3f} against a control of {test.control.value:.3f}",
            ),
        ):
            metric = _metric(space, stem, value, seed)
            found.append(metric.model_copy(update={"said": words}))
    return Measured(tuple(found), ())
