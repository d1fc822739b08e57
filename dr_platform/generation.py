"""Images for a person or a classifier: PNG files that say what they are.

Every file carries in its text chunks that it is synthetic, and from which model, weights, seed and truncation. Weights
come from the registry by verified digest, or from a checkpoint directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dr_platform import __version__, checkpoint, files, pictures, published, road, sampling
from dr_platform.errors import ConfigError
from dr_platform.gan import Generator, kernels
from dr_platform.records import Visibility, licences_in_words
from dr_platform.road import Project

_BATCH = 16
_MOST_SEEDS = 1_000_000
_SHEET_IMAGES = 256
_SHEET_PIXELS = 128


def parse_seeds(text: str) -> list[int]:
    """Seeds from '0-63' or '1,5,9-12', without repetitions, in the order given. Raises ConfigError."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:\s*-\s*(\d{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not match or last < first or last >= sampling.SEED_LIMIT:
            raise ConfigError(f"--seeds is {text!r}. Give numbers below 2^32 and ranges, such as 0-63 or 1,5,9-12.")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise ConfigError(f"--seeds asks for more than {_MOST_SEEDS:,} images. Ask for them in parts.")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def generate(
    project: Project,
    model: str,
    seeds: Sequence[int],
    psi: float,
    out: Path,
    advance: Callable[[int, int], None],
    grade: int | None = None,
) -> int:
    """Write one PNG per seed and a contact sheet of the first ones into `out`; returns how many images.

    model: NAME (its champion), NAME/VERSION, or a directory: of a checkpoint, or of imported networks.
    grade: of a conditional model, or the place of an imported one's label; None: that which it was trained for first.
    Raises RegistryError or CheckpointError if the model is not there or its weights are not the recorded ones,
    ConfigError for a psi that is no number or a grade that the model does not draw.
    """
    if not -2 <= psi <= 2:
        raise ConfigError(f"--psi is {psi}. Use a number from 0 (the average image) to 1 (no truncation).")
    generator, provenance = load(project, model, grade)
    visibility: Visibility = "public" if provenance["Visibility"] == "public" else "proprietary"
    said = {**provenance, "psi": f"{psi:g}"}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}. Choose another directory.") from None
    first: list[np.ndarray] = []
    advance(0, len(seeds))
    for start in range(0, len(seeds), _BATCH):
        part = seeds[start : start + _BATCH]
        images = sampling.sample_images(generator, part, psi=psi, batch=_BATCH)
        for seed, image in zip(part, images, strict=True):
            drawn = pictures.Generated(image[None], (provenance["Licence"],), visibility)
            content = pictures.single_png(drawn, "everyone", {**said, "seed": str(seed)})
            files.write_bytes(out / f"seed{seed:010d}.png", content)
        if len(first) < _SHEET_IMAGES:
            first.extend(images[: _SHEET_IMAGES - len(first)])
        advance(start + len(part), len(seeds))
    sheet = pictures.sheet_png(
        pictures.Generated(np.stack(first), (provenance["Licence"],), visibility),
        "everyone",
        scale=max(1, _SHEET_PIXELS // generator.img_resolution),
        captions=[f"seed {seed}" for seed in seeds[: len(first)]],
        said=said,
    )
    files.write_bytes(out / "contact-sheet.png", sheet)
    return len(seeds)


def load(project: Project, model: str, grade: int | None = None) -> tuple[Generator, dict[str, str]]:
    """A model's generator, ready to draw, and what is known of where it comes from; arguments as for `generate`."""
    kernels.set_enabled(project.params.site.triton)
    parent = None
    visibility, licences = "public", list[str]()
    if (Path(model) / checkpoint.RECORD_FILE).is_file():
        record, generator = road.read_model(Path(model))
        name, weights, parent = record.run, record.files[checkpoint.GENERATOR_FILE].sha256, record.parent
        visibility, licences = record.visibility, [source.license for source in record.sources]
        if grade is not None:
            road.draw_grade(generator, record.classes or (record.grade,), grade)
    elif road.is_imported(project, model):
        imported, generator = road.read_imported(project.root / model, grade)
        # Not the path that was typed: what is drawn travels, and where things lie on this machine is nobody's business.
        name = f"{published.IMPORTS}/{road.import_directory(project, model).name}"
        weights, parent = imported.files[published.GENERATOR_FILE].sha256, model
    else:
        found = road.read_registered(project, model, grade)
        name, weights, generator, parent = found.name, found.weights_sha256, found.generator, found.name
        visibility, licences = found.visibility, [found.licence]
    inherited = road.inherited_licence(project, parent)
    return generator, {
        "Software": f"dr_platform {__version__}",
        "Model": name,
        "Weights_SHA256": weights,
        "Visibility": visibility,
        "Licence": licences_in_words([*licences, *([inherited] if inherited else [])]),
    }
