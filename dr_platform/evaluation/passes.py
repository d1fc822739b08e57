"""Passes through the networks: images drawn and looked at batch by batch, here or by several workers.

A worker takes a contiguous range of whole batches, of seeds to draw or of real images. So every batch is the one that a
single process makes, and the rows, joined in order, are the same to the bit on the same kind of device with as many
threads. How workers are started is cluster.py's matter; here they are something to ask.

Drawn pictures stay on their device, and nothing waits for them: while a GPU works on one batch the next one is handed
to it. A second thread would gain nothing there, and would draw under the other's choice of TF32, which is one for all
threads; on a CPU drawing and looking each take all cores already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dr_platform import records
from dr_platform.config import EvaluateConfig
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import suite
from dr_platform.evaluation.features import FeatureExtractor, choose_extractors, extract, extract_each
from dr_platform.gan import Generator
from dr_platform.sampling import SEED_LIMIT, sample_planes

NOT_FINITE = "the generator's images are not finite, so nothing can be measured. Evaluate an earlier checkpoint."
_SEED_STRIDE = 1_000_003  # a prime beyond any usual count of images: other seeds take other latents
_BATCHES = 4  # that a worker is asked for at a time


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn: features float64 [n, d] by extractor, and the first pictures, uint8 [m, R, R, 3]."""

    features: list[np.ndarray]
    pictures: np.ndarray


class Crew(Protocol):
    """Workers that each hold what `make` gives for their device, and call it with the tasks of their share."""

    @property
    def count(self) -> int:
        """Workers there are."""

    def start(self, make: Callable[[str], Callable[[Any], Any]]) -> None:
        """Give every worker its own; it is made when the first task comes."""

    def ask(self, shares: Sequence[Sequence[Any]], told: Callable[[int], None] = lambda done: None) -> list[list[Any]]:
        """The answers to at most `count` shares of tasks, in their places. told: hears how many more are done."""


@dataclass(frozen=True, eq=False)
class _Draw:
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class _Look:
    extractor: int
    images: np.ndarray


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a worker needs; the generator travels on the CPU, extractors are chosen anew from `weights_dir`."""

    config: EvaluateConfig
    generator: Generator
    identities: tuple[records.Extractor, ...]  # of the extractors that must come of it
    weights_dir: Path | None = None
    labels: np.ndarray | None = None

    def __call__(self, device: str) -> _Worker:
        return _Worker(self, device)


class _Worker:
    def __init__(self, setup: Setup, device: str) -> None:
        self._setup, self._device = setup, device
        self._extractors = choose_extractors(setup.config.extractors, weights_dir=setup.weights_dir, device=device)
        if tuple(each.identity for each in self._extractors) != setup.identities:
            raise EvaluationError(
                "a worker found other extractors' weights than the driver. Set site.weights_dir to a directory that "
                "every node sees."
            )

    @cached_property
    def _generator(self) -> Generator:
        return self._setup.generator.to(self._device)

    def __call__(self, task: _Draw | _Look) -> Drawn | np.ndarray:
        setup = self._setup
        if isinstance(task, _Look):
            return extract(task.images, self._extractors[task.extractor], batch=setup.config.batch)
        asked = with_centres(self._extractors, setup.config)
        return generated_features(
            self._generator, asked, setup.config, labels=setup.labels, part=range(task.start, task.stop)
        )


def with_centres(extractors: Sequence[FeatureExtractor], config: EvaluateConfig) -> list[FeatureExtractor]:
    """The extractors, and after them, where pictures are looked at, the same on the pictures' middles."""
    return [*extractors, *(suite.centred(extractor) for extractor in extractors if config.pictures)]


def generated_features(
    generator: Generator,
    extractors: Sequence[FeatureExtractor],
    config: EvaluateConfig,
    *,
    labels: np.ndarray | None = None,
    part: range | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Drawn:
    """Draw `config.images` images once: their features, and the first `config.pictures`. Only these are all held.

    part: which of the images, from a whole batch on; None: all.
    """
    part = range(config.images) if part is None else part
    seeds = image_seeds(config.seed, config.images)
    pictured: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        finite: Tensor | None = None
        for start in range(part.start, part.stop, config.batch):
            chosen = seeds[start : min(start + config.batch, part.stop)]
            planes, fine = sample_planes(generator, chosen, labels=labels_for(chosen, labels))
            if start < config.pictures or not pictured:
                pictured.append(planes[: max(0, config.pictures - start)])
            yield planes
            # One batch late, when the next one is on its way, so that a GPU does not run dry.
            _require(finite)
            finite = fine
            advance(len(chosen))
        _require(finite)

    features = extract_each(batches(), extractors, batch=config.batch)
    return Drawn(features, np.ascontiguousarray(torch.cat(pictured).permute(0, 2, 3, 1).cpu().numpy()))


def drawn_by(crew: Crew, config: EvaluateConfig, advance: Callable[[int], None] = lambda done: None) -> Drawn:
    """`generated_features` of all images by a crew that was started with a `Setup`."""
    shares = [[_Draw(*ends) for ends in share] for share in _shares(config.images, config.batch, crew.count)]
    done = 0

    def told(more: int) -> None:
        nonlocal done
        before, done = done, min(config.images, done + more * config.batch * _BATCHES)
        advance(done - before)

    found: list[Drawn] = [part for share in crew.ask(shares, told) for part in share]
    features = [np.concatenate(rows) for rows in zip(*(part.features for part in found), strict=True)]
    return Drawn(features, np.concatenate([part.pictures for part in found]))


def extracted_by(crew: Crew, images: np.ndarray, extractor: int, batch: int) -> np.ndarray:
    """`extract` with the extractor at this place by a crew that was started with a `Setup`."""
    shares = [
        [_Look(extractor, images[start:stop]) for start, stop in share]
        for share in _shares(len(images), batch, crew.count)
    ]
    return np.concatenate([rows for share in crew.ask(shares) for rows in share])


def image_seeds(seed: int, count: int) -> list[int]:
    """The latents' seeds of an evaluation's images: consecutive, and others for another evaluation seed."""
    return [(seed * _SEED_STRIDE + index) % SEED_LIMIT for index in range(count)]


def labels_for(seeds: Sequence[int], labels: np.ndarray | None) -> np.ndarray | None:
    """A row of `labels` for each seed, by chance of the seed; None where there are none."""
    if labels is None:
        return None
    return labels[[np.random.default_rng(seed).integers(len(labels)) for seed in seeds]]


def _require(finite: Tensor | None) -> None:
    if finite is not None and not finite:
        raise EvaluationError(NOT_FINITE)


def _shares(count: int, batch: int, workers: int) -> list[list[tuple[int, int]]]:
    """For each worker the ends of its tasks: ranges of whole batches (but the last), contiguous and in order."""
    starts = np.arange(0, count, batch)
    found = []
    for share in np.array_split(starts, min(workers, len(starts))):
        ends = range(0, len(share), _BATCHES)
        last = min(count, int(share[-1]) + batch)
        found.append([(int(share[i]), min(last, int(share[i]) + _BATCHES * batch)) for i in ends])
    return found
