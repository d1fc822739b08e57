"""A generator and real images to an EvalReport.

Every image is a function of its index and the configured seed, so neither batch size nor device count changes what is
measured. Image i of seed 0 is the one `drp generate --seeds i --psi 1` draws. Nothing is truncated: distances are taken
at psi 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dr_platform import records
from dr_platform.config import EvaluateConfig
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import appearance, boundary, equivariance, kept, passes, suite
from dr_platform.evaluation.features import choose_extractors, extract_cached
from dr_platform.evaluation.passes import NOT_FINITE, generated_features, image_seeds, labels_for
from dr_platform.gan import Generator
from dr_platform.sampling import latents

Progress = Callable[[int, int], None]  # passes through a network so far, and in all

_PASSES = 4  # per image of the equivariance metrics: as it is, and moved in three ways
_SMALLEST_FIELD = 16  # pixels across a picture in which a field of view is looked for


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that were never trained on: uint8 [n, R, R, 3], the digest of their content, and their patients [n].

    labels: visibility and licence of these images, which their kept features carry.
    """

    images: np.ndarray
    sha256: str
    patients: np.ndarray
    labels: Mapping[str, str] | None = None


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
    keep_generated: bool = False,
    crew: passes.Crew | None = None,
    progress: Progress | None = None,
) -> records.EvalReport:
    """The report of a checkpoint's averaged generator: distances in every feature space, memorisation, equivariance,
    and what is measured on the pictures themselves.

    generator: the EMA weights; moved to `device`. real: uint8 [n, R, R, 3], all prepared images of `split`, with their
    content's digest. labels: [n, c_dim] of the real images, for a conditional generator; each generated image takes
    the label of one. cache_dir keeps features of the real images, with `real_labels`, and is made private.
    patients: int [n] of the real images, so that errors are those over patients. held_out: for memorisation, and
    members: how many of the real images, the first ones, were trained on; None: all.
    keep_generated: keep the features of the generated images in cache_dir too, but for those drawn under `labels`.
    crew: workers that draw the images and take the features; None: this process does.
    With config.pictures 0, spectrum, rim, lesions and the centre crop are left out, and copies are not looked for.
    Raises EvaluationError for too few or unfit images, weights of an extractor that cannot be had, or a generator whose
    images are not finite.
    """
    _check_images(real, checkpoint.resolution)
    generator = generator.to(device)
    extractors = choose_extractors(config.extractors, weights_dir=weights_dir, device=device)
    unseen = held_out if held_out is not None and len(held_out.images) else None
    looked_at = (1 + bool(config.pictures)) * len(real) + (0 if unseen is None else len(unseen.images))
    total = len(extractors) * looked_at + config.images + _PASSES * config.equivariance_images
    advance = _meter(progress, total)
    if crew is not None:
        identities = tuple(extractor.identity for extractor in extractors)
        crew.start(passes.Setup(config, copy.deepcopy(generator).cpu(), identities, weights_dir, labels))

    def features_of(images: np.ndarray, sha256: str, said: Mapping[str, str] | None) -> Iterator[np.ndarray]:
        for i, extractor in enumerate(extractors):
            by = None if crew is None else partial(passes.extracted_by, crew, extractor=i, batch=config.batch)
            yield extract_cached(images, sha256, extractor, cache_dir, batch=config.batch, labels=said, by=by)
            advance(len(images))

    ours = list(features_of(real, real_sha256, real_labels))
    crops = boundary.centre_crop(real) if config.pictures else None
    middles = [] if crops is None else list(features_of(crops, f"{real_sha256} centre", real_labels))
    theirs = [None] * len(ours) if unseen is None else list(features_of(unseen.images, unseen.sha256, unseen.labels))
    if crew is None:
        asked = passes.with_centres(extractors, config)
        drawn = generated_features(generator, asked, config, labels=labels, advance=advance)
    else:
        drawn = passes.drawn_by(crew, config, advance)
    licence = records.licences_in_words(source.license for source in checkpoint.sources)
    if keep_generated and labels is None:
        said = {"visibility": checkpoint.visibility, "licence": licence}
        for extractor, rows in zip(extractors, drawn.features, strict=False):
            key = kept.key_of_generated(checkpoint_sha256, config.seed, config.images, extractor.identity)
            kept.keep(cache_dir, key, rows, said)
    spaces = [
        suite.Space(extractor, rows, drawn.features[i], theirs[i], patients, unseen.patients if unseen else None)
        for i, (extractor, rows) in enumerate(zip(extractors, ours, strict=True))
    ]
    centres = [replace(spaces[i], real=rows, fake=drawn.features[len(spaces) + i]) for i, rows in enumerate(middles)]
    pixels = (real[:members], unseen.images, drawn.pictures) if unseen and len(drawn.pictures) else ()
    measured = [
        *(suite.distances(space, config, members) for space in spaces),
        *(suite.centre_distances(space, config) for space in centres),
        suite.memory([space.trained_on(members) for space in spaces], config.seed, *pixels),
        _equivariance(generator, checkpoint.resolution, config, labels, device, advance),
    ]
    figures = records.Figures()
    if len(drawn.pictures):
        seen, figures = _look(real, drawn.pictures, spaces[0], config)
        measured.append(seen)
    return records.EvalReport(
        checkpoint_sha256=checkpoint_sha256,
        run=checkpoint.run,
        step=checkpoint.step,
        images_seen=checkpoint.images_seen,
        grade=checkpoint.grade,
        resolution=checkpoint.resolution,
        visibility=checkpoint.visibility,
        licence=licence,
        data_sha256=checkpoint.data_sha256,
        reference=f"{split}, {len(real)} images",
        reference_sha256=real_sha256,
        seed=config.seed,
        metrics=tuple(metric for part in measured for metric in part.metrics),
        notes=tuple(note for part in measured for note in part.notes),
        figures=figures,
    )


def _look(
    real: np.ndarray, fake: np.ndarray, space: suite.Space, config: EvaluateConfig
) -> tuple[suite.Measured, records.Figures]:
    """What is measured on the pictures themselves, and what figures are drawn from."""
    patients = np.arange(len(real)) if space.patients is None else space.patients
    rows = appearance.some_patients(patients, config.pictures, config.seed)
    found = appearance.look(appearance.Pictures(real[rows], fake, patients[rows], config.seed))
    figures = records.Figures(
        curves=tuple(found.curves),
        distributions=tuple(found.distributions),
        neighbours=suite.nearest_pairs(space, image_seeds(config.seed, len(fake))),
    )
    return suite.Measured(tuple(found.metrics), tuple(found.notes)), figures


def _equivariance(
    generator: Generator,
    resolution: int,
    config: EvaluateConfig,
    labels: np.ndarray | None,
    device: torch.device | str,
    advance: Callable[[int], None],
) -> suite.Measured:
    seeds = image_seeds(config.seed, config.equivariance_images)
    parts = [seeds[i : i + equivariance.EQ_BATCH] for i in range(0, len(seeds), equivariance.EQ_BATCH)]

    def batches() -> Iterator[tuple[Tensor, Tensor | None, equivariance.Transforms]]:
        for index, moves in enumerate(equivariance.draw_transforms(len(parts), resolution, config.seed)):
            chosen = labels_for(parts[index], labels)
            c = None if chosen is None else torch.as_tensor(chosen, dtype=torch.float32, device=device)
            yield latents(parts[index], generator.z_dim).to(device), c, moves
            advance(_PASSES * len(parts[index]))

    if resolution >= _SMALLEST_FIELD:
        errors = equivariance.equivariance_errors_in_field(generator, batches())
    else:
        errors = equivariance.equivariance_errors(generator, batches())[:, None]
    if not np.isfinite(errors).all():
        raise EvaluationError(NOT_FINITE)
    found, missing = [], []
    for names, of_region in zip((equivariance.NAMES, equivariance.FIELD_NAMES), errors.swapaxes(0, 1), strict=False):
        for name, sums in zip(names, of_region.swapaxes(0, 1), strict=True):
            if names is equivariance.FIELD_NAMES and not sums[:, 1].sum():
                missing.append(name)
                continue
            value, spread = equivariance.decibels(sums)
            found.append(
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
    notes = (f"{', '.join(missing)}: no generated image shows a field of view",) if missing else ()
    return suite.Measured(tuple(found), notes)


def _check_images(real: np.ndarray, resolution: int) -> None:
    if real.dtype != np.uint8 or real.ndim != 4 or real.shape[1:] != (resolution, resolution, 3):
        raise EvaluationError(
            f"the reference images are {real.dtype} {list(real.shape)}, but the checkpoint makes images of "
            f"{resolution} x {resolution} pixels. Prepare the data at that resolution: dvc repro prepare"
        )


def _meter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function to call with how many passes were made since the last call; it tells `progress` the sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance
