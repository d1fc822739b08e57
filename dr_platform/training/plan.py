"""From parameters and prepared images to a training that has a name: what is trained, on what, from which weights.

The name of a run is a function of configuration, data and initial weights. So the same command continues a run, and a
changed gamma never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dr_platform import checkpoint, files
from dr_platform.config import Params, PrepareConfig, TrainConfig
from dr_platform.data.loader import (
    ImageSet,
    Selection,
    classes_sha256,
    join_classes,
    load_images,
    select_images,
    sources_of,
)
from dr_platform.errors import CheckpointError, DataError
from dr_platform.records import Checkpoint, Manifest, TrainedOn, Visibility, stricter

CHECKPOINTS = "checkpoints"  # in a run directory


@dataclass(frozen=True)
class InitialWeights:
    """Where a transfer starts: a directory of named tensors (see transfer.py), and what is in it."""

    directory: Path
    parent: str
    sha256: str


@dataclass(frozen=True)
class TrainPlan:
    """All a worker needs; travels to it by pickle, holds paths and digests but no images."""

    config: TrainConfig
    prepared_root: Path
    run_directory: Path
    grade: int
    resolution: int
    use: str  # prepare.visibility: all | public-only
    visibility: Visibility
    classes: tuple[int, ...]  # the grades of a conditional training in the order of its labels; else ()
    train_images: int
    sources: tuple[TrainedOn, ...]
    data_sha256: str
    config_sha256: str
    initial: InitialWeights | None
    batch_per_worker: int | None
    threads: int
    triton: bool = True  # whether CUDA takes the kernels

    @property
    def run(self) -> str:
        """The run's name, also that of its directory."""
        return self.run_directory.name

    def load(self) -> ImageSet:
        """The training images of the plan."""
        return join_classes(
            [
                load_images(
                    _root_of(self.prepared_root, grade, self.grade),
                    grade,
                    subset=self.config.subset if grade == self.grade else None,
                    visibility=self.use,
                )
                for grade in self.classes or (self.grade,)
            ]
        )

    def images_seen(self) -> int:
        """Images that the newest checkpoint of the run has seen; 0 for a run that has none."""
        newest = checkpoint.newest(self.run_directory / CHECKPOINTS)
        return checkpoint.verify(newest).images_seen if newest else 0

    def require_own(self, record: Checkpoint) -> None:
        """Raise CheckpointError if a checkpoint in the run directory is of another configuration or other data."""
        if (record.config_sha256, record.data_sha256) != (self.config_sha256, self.data_sha256):
            raise CheckpointError(
                f"The checkpoint of step {record.step} in {self.run_directory} belongs to another configuration or "
                f"other data. Remove {self.run_directory} to start afresh."
            )


def make_plan(params: Params, prepared_root: Path, storage: Path, initial: InitialWeights | None = None) -> TrainPlan:
    """The training that `params` ask for on the prepared images. Raises DataError if these are missing or too few."""
    prepare, config = params.prepare, params.train
    grades = sorted({prepare.grade, *config.condition_on})
    chosen = {}
    for grade in grades:
        subset = config.subset if grade == prepare.grade else None
        root = _root_of(prepared_root, grade, prepare.grade)
        try:
            chosen[grade] = select_images(root, grade, subset=subset, visibility=prepare.visibility)
            _require_current(chosen[grade], prepare)
        except DataError as error:
            if grade == prepare.grade:
                raise
            raise DataError(
                f"train.condition_on asks for grade {grade}, but: {error}".replace(
                    Manifest.remedy, f"Run: dvc repro classes@{grade}, or leave the grade out"
                )
            ) from None
    data_sha256 = classes_sha256([images.sha256 for images in chosen.values()])
    images = chosen[prepare.grade]
    config_sha256 = files.sha256_json(
        {
            "train": config.identity(),
            "resolution": images.resolution,
            "initial": initial.sha256 if initial else None,
        }
    )
    fingerprint = files.sha256_json([config_sha256, data_sha256])[:10]
    letter = config.config.removeprefix("stylegan3-")
    gamma = config.r1_gamma(images.resolution)
    name = f"dr{prepare.grade}-{letter}{images.resolution}-n{len(images)}-g{gamma:g}-{fingerprint}"
    return TrainPlan(
        config=config,
        prepared_root=prepared_root,
        run_directory=storage / name,
        grade=prepare.grade,
        resolution=images.resolution,
        use=prepare.visibility,
        visibility=stricter(*(part.visibility for part in chosen.values())),
        classes=tuple(grades) if config.condition_on else (),
        train_images=sum(len(part) for part in chosen.values()),
        sources=sources_of(row for part in chosen.values() for row in part.rows),
        data_sha256=data_sha256,
        config_sha256=config_sha256,
        initial=initial,
        batch_per_worker=params.site.batch_per_worker,
        threads=params.site.threads_per_worker,
        triton=params.site.triton,
    )


def _root_of(prepared_root: Path, grade: int, own_grade: int) -> Path:
    """Where a grade's prepared images lie: further grades of a conditional training are outputs of their own in DVC."""
    return prepared_root if grade == own_grade else prepared_root.with_name("classes")


def _require_current(images: Selection, prepare: PrepareConfig) -> None:
    """Raise DataError if the prepared images do not follow from the present section `prepare` of params.yaml."""
    made = images.sources[0].manifest
    searched = {name for source in images.sources for name in source.manifest.collections}
    for name, found, wanted in (
        ("collections", sorted(searched), sorted(set(prepare.collections))),
        ("resolution", made.resolution, prepare.resolution),
        ("seed", made.seed, prepare.seed),
        ("held_out", made.held_out, prepare.held_out),
    ):
        if found != wanted:
            raise DataError(
                f"The images in {images.sources[0].directory.parents[1]} were prepared with {name} {found}, but "
                f"prepare.{name} is {wanted}. {Manifest.remedy}"
            )
