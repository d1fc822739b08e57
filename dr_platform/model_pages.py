"""From a registered version to its page: what the registry, the ledger, the run and the prepared images know of it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr_platform import pictures, road, sampling
from dr_platform.data import manifest
from dr_platform.data.loader import Selection, load_rows, select_images
from dr_platform.errors import DataError, DrpError
from dr_platform.gan import Generator, kernels
from dr_platform.model_report.card import card
from dr_platform.model_report.facts import ModelFacts, Neighbour, Series, Shown, lineage
from dr_platform.model_report.page import render, render_pair
from dr_platform.pages import writing
from dr_platform.records import EvalReport
from dr_platform.road import Project
from dr_platform.tracking import ModelVersion

logger = logging.getLogger(__name__)

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
    brief: bool = False,
    include_proprietary: bool = False,
    advance: Advance = lambda done, total: None,
) -> ModelFacts:
    """Everything the page says of a version; pictures are drawn anew from its verified weights.

    brief: what stands beside another version: decision, numbers, samples, lineage.

    Photographs of the training set are shown where they are public, or all of them for the site that owns them.
    Raises RegistryError if the version's files are not the recorded ones.
    """
    kernels.set_enabled(project.params.site.triton)
    found = road.read_registered(project, f"{version.model}/{version.number}")
    decision = road.judge(project, version.model, version.number)
    entries = project.ledger().entries()
    about = [
        each
        for each in entries
        if each.model == version.model and version.number in (each.from_version, each.to_version)
    ]
    pencil = _Pencil(found.generator, report, advance, len(SEEDS) if brief else _DRAWN)
    samples = pencil.seeds(SEEDS, 1.0)
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
        **({} if brief else _more(project, report, pencil, include_proprietary)),
    )


def _more(project: Project, report: EvalReport, pencil: _Pencil, include_proprietary: bool) -> dict[str, Any]:
    """What a version's own page has beyond what stands beside another's."""
    sweep = (tuple(pencil.seeds([s], psi, f"seed {s}, psi {psi:g}")[0] for psi in PSIS) for s in SEEDS[:_SWEPT])
    return {
        "truncation": tuple(sweep),
        "interpolation": pencil.between(SEEDS[0], SEEDS[1]),
        "neighbours": _neighbours(project, report, pencil, include_proprietary),
        "training": _training(project, report.run, report.images_seen),
    }


def place(project: Project, versions: Sequence[ModelVersion], out: Path | None, *, private: bool) -> Path:
    """Where the page of these versions goes: `out`, or below results/reports.

    Raises DataError if that is no page, or if one with proprietary photographs would leave the site's own directory.
    """
    if out is not None and out.suffix != ".html":
        raise DataError(f"--out {out} is no page; name a file ending in .html: its numbers go beside it.")
    usual = f"{writing.REPORTS}/" + "-and-".join(f"{each.model}-{each.number}" for each in versions) + ".html"
    return writing.page_file(project.root, out, usual, private=private)


def write(path: Path, facts: Sequence[ModelFacts], *, private: bool) -> None:
    """Store the page of one version, or of two side by side, and its numbers beside it as JSON.

    Raises DataError if it cannot be written.
    """
    page = render(facts[0], private=private) if len(facts) == 1 else render_pair(*facts)
    writing.store(path, page, private=private)
    text = json.dumps(numbers(*facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    writing.store(numbers_file(path), text, private=private)


def numbers_file(page: Path) -> Path:
    """The JSON beside a page, under a name that no record has."""
    return page.with_suffix(".numbers.json")


def numbers(*facts: ModelFacts) -> dict[str, Any] | list[dict[str, Any]]:
    """The page without its pictures, as plain values for JSON: an object, or of two versions a list."""
    said = [_numbers(each) for each in facts]
    return said if len(said) > 1 else said[0]


def _numbers(facts: ModelFacts) -> dict[str, Any]:
    return {
        "model": facts.model,
        "version": facts.number,
        "aliases": list(facts.aliases),
        "verdict": facts.verdict,
        "decision": facts.decision.model_dump(mode="json"),
        "history": [entry.model_dump(mode="json") for entry in facts.history],
        "report": facts.report.model_dump(mode="json"),
        "lineage": dict(lineage(facts.tags)),
        "training": {
            each.name: {"kimg": each.kimg, "values": [_finite(v) for v in each.values]} for each in facts.training
        },
        "card": card(facts.name, facts.report, facts.tags),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Pencil:
    """Draws small pictures of one generator."""

    def __init__(self, generator: Generator, report: EvalReport, advance: Advance, total: int) -> None:
        self._generator, self._report, self._advance, self._total = generator, report, advance, total
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
        self._advance(min(self._done, self._total), self._total)


def _neighbours(project: Project, report: EvalReport, pencil: _Pencil, include: bool) -> tuple[Neighbour, ...]:
    pairs = report.figures.neighbours[:_PAIRS]
    real = _photographs(project, report, [pair.real for pair in pairs], include)
    return tuple(Neighbour(each, pencil.seeds([each.seed], 1.0)[0], real.get(each.real)) for each in pairs)


def _photographs(project: Project, report: EvalReport, rows: Sequence[int], include: bool) -> dict[int, Shown]:
    """Row of a report's reference -> its photograph, of those that may be shown; proprietary ones are not even read.

    Nothing if the images prepared here are not that reference any more.
    """
    split = report.reference.partition(",")[0]
    everything = project.params.prepare.visibility
    if not rows or split not in manifest.SPLITS:
        return {}
    try:
        chosen = select_images(project.prepared, report.grade, split, visibility=everything)
        shown = {row for row in rows if row < len(chosen.rows) and _may_be_shown(chosen, row, include)}
        if chosen.sha256 != report.reference_sha256 or not shown:
            return {}
        read = load_rows(chosen, split, shown)
    except DrpError as error:
        logger.warning("No photographs are shown: %s", error)
        return {}
    found = {}
    for number, pixels in read.items():
        row = chosen.rows[number]
        taken = pictures.photographs(pixels[None], row.visibility, [row.license])
        if isinstance(taken, pictures.PublicPhotographs):
            (width, height), jpeg = pictures.thumbnail_jpeg(taken, "everyone", _SIDE)
        else:
            (width, height), jpeg = pictures.thumbnail_jpeg(taken, "site", _SIDE)
        found[number] = Shown(jpeg, width, height, f"real, {row.image_id}")
    return found


def _may_be_shown(chosen: Selection, row: int, include_proprietary: bool) -> bool:
    return include_proprietary or chosen.rows[row].visibility == "public"


def _training(project: Project, run: str, images_seen: int) -> tuple[Series, ...]:
    """The curves of the run that made it up to its checkpoint, as far as they are on this machine."""
    from dr_platform.training.report import read_ticks

    try:
        ticks = [tick for tick in read_ticks(project.storage / run) if tick.images_seen <= images_seen]
    except (ValueError, OSError):  # a damaged file of another's making is no reason to show no page
        return ()
    return tuple(
        _series(ticks, scalar, name) for scalar, name in _SCALARS.items() if any(scalar in t.scalars for t in ticks)
    )


def _series(ticks: Iterable[Any], scalar: str, name: str) -> Series:
    there = [(tick.images_seen / 1000, tick.scalars[scalar]) for tick in ticks if scalar in tick.scalars]
    return Series(name, tuple(k for k, _ in there), tuple(v for _, v in there))
