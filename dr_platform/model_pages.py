"""From a registered version to its page: what the registry, the ledger, the run and the prepared images know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr_platform import files, pictures, promotion, road, sampling
from dr_platform.data.loader import ImageSet, load_images
from dr_platform.errors import DataError, DrpError
from dr_platform.gan import Generator, kernels
from dr_platform.model_report.card import card
from dr_platform.model_report.facts import ModelFacts, Neighbour, Series, Shown
from dr_platform.model_report.page import render, render_pair
from dr_platform.pages import writing
from dr_platform.records import EvalReport, NearestReal
from dr_platform.road import Project
from dr_platform.tracking import ModelVersion

Advance = Callable[[int, int], None]

SEEDS = tuple(range(24))
PSIS = (0.0, 0.25, 0.5, 0.7, 1.0)
_SWEPT = 3  # seeds of the truncation sweep
_STEPS = 8  # pictures between two seeds
_PAIRS = 6  # nearest neighbours
_SIDE = 160  # pixels at most
_DRAWN = len(SEEDS) + _SWEPT * len(PSIS) + _STEPS

# What a training reports, in words.
_SCALARS = {
    "loss/generator": "Loss of G",
    "loss/discriminator": "Loss of D",
    "signs/real": "Mean sign of D, real",
    "signs/fake": "Mean sign of D, generated",
    "ada/p": "p of the augmentation",
}


def collect(
    project: Project,
    version: ModelVersion,
    report: EvalReport,
    *,
    include_proprietary: bool = False,
    advance: Advance = lambda done, total: None,
) -> ModelFacts:
    """Everything the page says of a version; pictures are drawn anew from its verified weights.

    Photographs of the training set are shown where they are public, or all of them for the site that owns them.
    Raises RegistryError if the version's files are not the recorded ones.
    """
    kernels.set_enabled(project.params.site.triton)
    found = road.read_registered(project, f"{version.model}/{version.number}")
    champion = project.tracker().champion(version.model)
    rival = project.tracker().report_of(version.model, champion) if champion not in (None, version.number) else None
    decision = promotion.decide(
        report, version.number, rival, None if rival is None else champion, project.params.promote, version.model
    )
    if champion == version.number:
        decision = decision.model_copy(update={"reasons": (f"Version {version.number} is the champion.",)})
    entries = project.ledger().entries()
    about = [
        each
        for each in entries
        if each.model == version.model and version.number in (each.from_version, each.to_version)
    ]
    pencil = _Pencil(found.generator, report, advance)
    samples = pencil.seeds(SEEDS, 1.0)
    truncation = tuple(
        tuple(pencil.seeds([seed], psi, f"seed {seed}, psi {psi:g}")[0] for psi in PSIS) for seed in SEEDS[:_SWEPT]
    )
    return ModelFacts(
        model=version.model,
        number=version.number,
        aliases=version.aliases,
        date=f"{version.created:%Y-%m-%d %H:%M} UTC",
        report=report,
        tags=version.tags,
        decision=decision,
        history=tuple(about),
        samples=samples,
        truncation=truncation,
        interpolation=pencil.between(SEEDS[0], SEEDS[1]),
        neighbours=_neighbours(project, report, pencil, include_proprietary),
        training=_training(project, report.run),
    )


def place(project: Project, versions: Sequence[ModelVersion], out: Path | None, *, private: bool) -> Path:
    """Where the page of these versions goes: `out`, or below results/reports.

    Raises DataError if that is no page, or if one with proprietary photographs would leave the site's own directory.
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out {out} is no page; name a file ending in .html: its numbers go beside it, in .json.")
    usual = "reports/" + "-and-".join(f"{each.model}-{each.number}" for each in versions) + ".html"
    return writing.page_file(project.root, out, usual, private=private)


def write(path: Path, facts: Sequence[ModelFacts], *, private: bool) -> None:
    """Store the page of one version, or of two side by side, and its numbers beside it as JSON.

    Raises DataError if it cannot be written.
    """
    page = render(facts[0], private=private) if len(facts) == 1 else render_pair(*facts)
    writing.store(path, page, private=private)
    said = [numbers(each) for each in facts]
    files.write_json(path.with_suffix(".json"), said if len(said) > 1 else said[0])


def numbers(facts: ModelFacts) -> dict[str, Any]:
    """The page without its pictures, as plain values for JSON."""
    return {
        "model": facts.model,
        "version": facts.number,
        "aliases": list(facts.aliases),
        "verdict": facts.verdict,
        "decision": facts.decision.model_dump(mode="json"),
        "history": [entry.model_dump(mode="json") for entry in facts.history],
        "report": facts.report.model_dump(mode="json"),
        "lineage": dict(facts.lineage),
        "training": {
            each.name: {"kimg": each.kimg, "values": [_finite(v) for v in each.values]} for each in facts.training
        },
        "card": card(facts.name, facts.report, facts.tags),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Pencil:
    """Draws small pictures of one generator."""

    def __init__(self, generator: Generator, report: EvalReport, advance: Advance) -> None:
        self._generator, self._report, self._advance = generator, report, advance
        self._done = 0

    def seeds(self, seeds: Sequence[int], psi: float, caption: str = "") -> tuple[Shown, ...]:
        """One picture for each seed."""
        drawn = sampling.sample_images(self._generator, list(seeds), psi, batch=8)
        self._tell(len(seeds))
        return tuple(self._shown(image, caption or f"seed {seed}") for seed, image in zip(seeds, drawn, strict=True))

    @torch.no_grad()
    def between(self, first: int, second: int) -> tuple[Shown, ...]:
        """Pictures on the line between two seeds' intermediate latents."""
        network = self._generator
        z = sampling.latents([first, second], network.z_dim).to(next(network.parameters()).device)
        ws = network.mapping(z, None)
        shown = []
        for step in range(_STEPS):
            share = step / (_STEPS - 1)
            image = sampling.to_uint8(network.synthesis(torch.lerp(ws[:1], ws[1:], share)))[0]
            shown.append(self._shown(image, f"{share:.0%}"))
            self._tell(1)
        return tuple(shown)

    def _shown(self, image: np.ndarray, caption: str) -> Shown:
        drawn = pictures.Generated(image[None], (self._report.licence,), self._report.visibility)
        (width, height), jpeg = pictures.thumbnail_jpeg(drawn, "everyone", _SIDE)
        return Shown(jpeg, width, height, caption)

    def _tell(self, count: int) -> None:
        self._done += count
        self._advance(min(self._done, _DRAWN), _DRAWN)


def _neighbours(project: Project, report: EvalReport, pencil: _Pencil, include: bool) -> tuple[Neighbour, ...]:
    pairs = report.figures.neighbours[:_PAIRS]
    real = _reference(project, report) if pairs else None
    return tuple(Neighbour(each, pencil.seeds([each.seed], 1.0)[0], _photograph(real, each, include)) for each in pairs)


def _reference(project: Project, report: EvalReport) -> ImageSet | None:
    """The real images of a report, if they are still those prepared here."""
    split = report.reference.partition(",")[0]
    if split not in ("train", "held-out"):
        return None
    try:
        found = load_images(
            project.prepared, report.grade, split=split, visibility=project.params.prepare.visibility  # type: ignore[arg-type]
        )  # fmt: skip
    except DrpError:
        return None
    return found if found.sha256 == report.reference_sha256 else None


def _photograph(real: ImageSet | None, pair: NearestReal, include_proprietary: bool) -> Shown | None:
    if real is None or pair.real >= len(real):
        return None
    row = real.rows[pair.real]
    taken = pictures.photographs(real.images[pair.real][None], row.visibility, [row.license])
    caption = f"real, {row.image_id}"
    if isinstance(taken, pictures.PublicPhotographs):
        (width, height), jpeg = pictures.thumbnail_jpeg(taken, "everyone", _SIDE)
    elif include_proprietary:
        (width, height), jpeg = pictures.thumbnail_jpeg(taken, "site", _SIDE)
    else:
        return None
    return Shown(jpeg, width, height, caption)


def _training(project: Project, run: str) -> tuple[Series, ...]:
    """The curves of the run that made it, as far as it is on this machine."""
    from dr_platform.training.report import read_ticks

    ticks = list(read_ticks(project.storage / run))
    return tuple(
        _series(ticks, scalar, name) for scalar, name in _SCALARS.items() if any(scalar in t.scalars for t in ticks)
    )


def _series(ticks: Iterable[Any], scalar: str, name: str) -> Series:
    there = [(tick.images_seen / 1000, tick.scalars[scalar]) for tick in ticks if scalar in tick.scalars]
    return Series(name, tuple(k for k, _ in there), tuple(v for _, v in there))
