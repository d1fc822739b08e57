"""A generator and real images to an EvalReport, and two reports to a comparison.

Every image is a function of its index and the configured seed, so neither batch size nor device count changes what is
measured. Image i of seed 0 is the one `drp generate --seeds i --psi 1` draws. Nothing is truncated: distances are taken
at psi 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dr_platform import records
from dr_platform.config import EvaluateConfig
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import equivariance, suite
from dr_platform.evaluation.features import FeatureExtractor, choose_extractors, extract_cached, extract_each
from dr_platform.gan import Generator
from dr_platform.sampling import SEED_LIMIT, latents, sample_images

Progress = Callable[[int, int], None]  # passes through a network so far, and in all

_SEED_STRIDE = 1_000_003  # a prime beyond any usual count of images: other seeds take other latents
_KEPT = 512  # generated images that are kept as pictures: half a gigabyte at 512 px
_PASSES = 4  # per image of the equivariance metrics: as it is, and moved in three ways
_NOT_FINITE = "the generator's images are not finite, so nothing can be measured. Evaluate an earlier checkpoint."


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that were never trained on: uint8 [n, R, R, 3], the digest of their content, and their patients [n]."""

    images: np.ndarray
    sha256: str
    patients: np.ndarray


def evaluate(
    generator: Generator,
    real: np.ndarray,
    real_sha256: str,
    config: EvaluateConfig,
    *,
    checkpoint: records.Checkpoint,
    checkpoint_sha256: str,
    weights_dir: Path | None = None,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    labels: np.ndarray | None = None,
    split: str = "train",
    real_labels: Mapping[str, str] | None = None,
    patients: np.ndarray | None = None,
    held_out: HeldOut | None = None,
    members: int | None = None,
    progress: Progress | None = None,
) -> records.EvalReport:
    """The report of a checkpoint's averaged generator: distances in every feature space, memorisation, equivariance.

    generator: the EMA weights; moved to `device`. real: uint8 [n, R, R, 3], all prepared images of `split`, with their
    content's digest. labels: [n, c_dim] of the real images, for a conditional generator; each generated image takes
    the label of one. cache_dir keeps features of the real images, with `real_labels`, and is made private.
    patients: int [n] of the real images, so that errors are those over patients. held_out: for memorisation, and
    members: how many of the real images, the first ones, were trained on; None: all.
    Raises EvaluationError for too few or unfit images, weights of an extractor that cannot be had, or a generator whose
    images are not finite.
    """
    _check_images(real, checkpoint.resolution)
    generator = generator.to(device)
    extractors = choose_extractors(config.extractors, weights_dir=weights_dir, device=device)
    beside = 0 if held_out is None else len(held_out.images)
    passes = len(extractors) * (len(real) + beside) + config.images + _PASSES * config.equivariance_images
    advance = _meter(progress, passes)

    def features_of(images: np.ndarray, sha256: str, extractor: FeatureExtractor) -> np.ndarray:
        found = extract_cached(images, sha256, extractor, cache_dir, batch=config.batch, labels=real_labels)
        advance(len(images))
        return found

    reals = [features_of(real, real_sha256, extractor) for extractor in extractors]
    held_out = held_out if held_out is not None and len(held_out.images) else None
    apart = [
        None if held_out is None else features_of(held_out.images, held_out.sha256, extractor)
        for extractor in extractors
    ]
    drawn = generated_features(generator, extractors, config, labels=labels, advance=advance)
    spaces = [
        suite.Space(extractor, ours, theirs, unseen, patients, None if held_out is None else held_out.patients)
        for extractor, ours, theirs, unseen in zip(extractors, reals, drawn.features, apart, strict=True)
    ]
    measured = [suite.distances(space, config) for space in spaces]
    pictures = () if held_out is None else (real[:members], held_out.images, drawn.pictures)
    measured.append(suite.memory([space.trained_on(members) for space in spaces], config.seed, *pictures))
    equal = _equivariance(generator, checkpoint.resolution, config, labels, device, advance)
    return records.EvalReport(
        checkpoint_sha256=checkpoint_sha256,
        run=checkpoint.run,
        step=checkpoint.step,
        images_seen=checkpoint.images_seen,
        grade=checkpoint.grade,
        resolution=checkpoint.resolution,
        visibility=checkpoint.visibility,
        licence=records.licences_in_words(source.license for source in checkpoint.sources),
        data_sha256=checkpoint.data_sha256,
        reference=f"{split}, {len(real)} images",
        reference_sha256=real_sha256,
        seed=config.seed,
        metrics=(*(metric for part in measured for metric in part.metrics), *equal),
        notes=tuple(note for part in measured for note in part.notes),
    )


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn: features float64 [n, d] by extractor, and the first pictures, uint8 [m, R, R, 3]."""

    features: list[np.ndarray]
    pictures: np.ndarray


def generated_features(
    generator: Generator,
    extractors: Sequence[FeatureExtractor],
    config: EvaluateConfig,
    *,
    labels: np.ndarray | None = None,
    advance: Callable[[int], None] | None = None,
) -> Drawn:
    """Draw `config.images` images once: their features, and the first 512 of them; else one batch is held at a time."""
    seeds = image_seeds(config.seed, config.images)
    kept: list[np.ndarray] = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(seeds), config.batch):
            part = seeds[start : start + config.batch]
            try:
                pictures = sample_images(generator, part, 1.0, config.batch, _labels_for(part, labels))
            except FloatingPointError:
                raise EvaluationError(_NOT_FINITE) from None
            if start < _KEPT:
                kept.append(pictures[: _KEPT - start])
            yield pictures
            if advance is not None:
                advance(len(part))

    features = extract_each(batches(), extractors, batch=config.batch)
    return Drawn(features, np.concatenate(kept))


def image_seeds(seed: int, count: int) -> list[int]:
    """The latents' seeds of an evaluation's images: consecutive, and others for another evaluation seed."""
    return [(seed * _SEED_STRIDE + index) % SEED_LIMIT for index in range(count)]


@dataclass(frozen=True)
class Comparison:
    """One metric of two reports. `difference` is second minus first; `spread` joins both where both have one."""

    metric: str
    first: records.Metric
    second: records.Metric
    difference: float
    spread: float | None
    same_reference: bool


def compare(first: records.EvalReport, second: records.EvalReport, stem: str) -> Comparison:
    """The metric `stem` (fid, kid, eq_t_int_db, ...) of two reports, side by side.

    Raises EvaluationError if a report lacks it, or if extractors or numbers of images differ: such numbers mean
    different things, and their difference means nothing.
    """
    a, b = first.metric(stem), second.metric(stem)
    for report, metric in ((first, a), (second, b)):
        if metric is None:
            raise EvaluationError(f"the report of {report.run} has no {stem}. {records.EvalReport.remedy}")
    assert a is not None
    assert b is not None
    if a.extractor != b.extractor:
        raise EvaluationError(
            f"{stem} of {first.run} was made with {_called(a.extractor)} and that of {second.run} with "
            f"{_called(b.extractor)}: they are not comparable. Evaluate both with one evaluate.extractor."
        )
    if (a.n_fake, a.n_real) != (b.n_fake, b.n_real):
        raise EvaluationError(
            f"{stem} of {first.run} rests on {_counted(a)} and that of {second.run} on {_counted(b)}: their "
            "biases differ, so they are not comparable. Evaluate both with the same evaluate.images and reference."
        )
    spread = None if a.spread is None or b.spread is None else math.hypot(a.spread, b.spread)
    same = first.reference_sha256 == second.reference_sha256
    return Comparison(a.name, a, b, b.value - a.value, spread, same)


def _equivariance(
    generator: Generator,
    resolution: int,
    config: EvaluateConfig,
    labels: np.ndarray | None,
    device: torch.device | str,
    advance: Callable[[int], None],
) -> list[records.Metric]:
    seeds = image_seeds(config.seed, config.equivariance_images)
    parts = [seeds[i : i + equivariance.EQ_BATCH] for i in range(0, len(seeds), equivariance.EQ_BATCH)]

    def batches() -> Iterator[tuple[Tensor, Tensor | None, equivariance.Transforms]]:
        for index, moves in enumerate(equivariance.draw_transforms(len(parts), resolution, config.seed)):
            chosen = _labels_for(parts[index], labels)
            c = None if chosen is None else torch.as_tensor(chosen, dtype=torch.float32, device=device)
            yield latents(parts[index], generator.z_dim).to(device), c, moves
            advance(_PASSES * len(parts[index]))

    errors = equivariance.equivariance_errors(generator, batches())
    if not np.isfinite(errors).all():
        raise EvaluationError(_NOT_FINITE)
    result = []
    for name, sums in zip(equivariance.NAMES, errors.swapaxes(0, 1), strict=True):
        value, spread = equivariance.decibels(sums)
        result.append(
            records.Metric(
                name=name,
                value=value,
                spread=spread,
                spread_kind=f"delta method over {len(parts)} transforms" if spread is not None else None,
                n_fake=len(seeds),
                n_real=None,
                extractor=None,
                seed=config.seed,
                higher_is_better=True,
            )
        )
    return result


def _labels_for(seeds: Sequence[int], labels: np.ndarray | None) -> np.ndarray | None:
    if labels is None:
        return None
    return labels[[np.random.default_rng(seed).integers(len(labels)) for seed in seeds]]


def _check_images(real: np.ndarray, resolution: int) -> None:
    if real.dtype != np.uint8 or real.ndim != 4 or real.shape[1:] != (resolution, resolution, 3):
        raise EvaluationError(
            f"the reference images are {real.dtype} {list(real.shape)}, but the checkpoint makes images of "
            f"{resolution} x {resolution} pixels. Prepare the data at that resolution: dvc repro prepare"
        )


def _called(extractor: records.Extractor | None) -> str:
    if extractor is None:
        return "no extractor"
    return f"{extractor.name} ({extractor.weights_sha256[:8]}, {extractor.resize}, definition {extractor.definition})"


def _counted(metric: records.Metric) -> str:
    real = "" if metric.n_real is None else f" and {metric.n_real} real"
    return f"{metric.n_fake} generated{real} images"


def _meter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function to call with how many passes were made since the last call; it tells `progress` the sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance
