"""The stages of the road, each one function from a project to the record it writes. dvc.yaml and `drp` both call these.

Here the parts meet: the tracker listens to the cluster, lineage tells the registry what a version follows from. A stage
for another grade than `prepare.grade` is a transfer stage.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dr_platform import checkpoint, files
from dr_platform.config import Params, Visibility, load_params
from dr_platform.errors import CheckpointError, ConfigError, RegistryError
from dr_platform.records import (
    Checkpoint,
    Collection,
    Decision,
    EvalReport,
    Imported,
    LedgerEntry,
    Manifest,
    Registration,
    Tick,
    licences_in_words,
)

if TYPE_CHECKING:
    from dr_platform.evaluation.passes import Crew
    from dr_platform.gan import Generator
    from dr_platform.ledger import Ledger
    from dr_platform.tracking import Tracker
    from dr_platform.training.plan import InitialWeights, TrainPlan
    from dr_platform.training.report import Progress

logger = logging.getLogger(__name__)

Advance = Callable[[int, int], None]  # done, total
REPORT_FILE = "report.json"
REGISTRATION_FILE = "registration.json"
_SAMPLE_SEEDS = range(64)


@dataclass(frozen=True)
class Project:
    """A directory with a params.yaml, and where things lie in it."""

    root: Path
    params: Params

    @classmethod
    def here(cls) -> Project:
        """The project in the working directory. Raises ConfigError if there is none."""
        return cls(Path.cwd(), load_params())

    @property
    def raw(self) -> Path:
        """Raw collections, by visibility."""
        return self.root / "data" / "raw"

    @property
    def prepared(self) -> Path:
        """Shards, by visibility and grade."""
        return self.root / "data" / "prepared"

    @property
    def classes(self) -> Path:
        """Shards of further grades that a conditional training sees."""
        return self.prepared.with_name("classes")

    @property
    def storage(self) -> Path:
        """Run directories with their checkpoints; on a cluster a directory that every worker sees."""
        return (self.root / self.params.site.storage).absolute()

    @property
    def features(self) -> Path:
        """Kept features of real and generated images: as private as the images."""
        return self.root / "cache" / "features"

    @property
    def weights(self) -> Path | None:
        """Directory with feature extractors' weights, if any was named."""
        named = self.params.site.weights_dir
        return Path(named).expanduser() if named else None

    @property
    def grade(self) -> int:
        """The grade this view of the project is about."""
        return self.params.prepare.grade

    @property
    def model_name(self) -> str:
        """The registered model of this grade."""
        return self.params.register_.model_name(self.grade)

    @property
    def model(self) -> Path:
        """The final checkpoint, as DVC keeps it."""
        return self.root / "models" / f"dr{self.grade}"

    @property
    def results(self) -> Path:
        """Report, curves and samples."""
        return self.root / "results" / f"dr{self.grade}"

    def for_grade(self, grade: int | None) -> Project:
        """This project as the stages of `grade` see it; None, or the grade of prepare, is the project itself."""
        if grade is None or grade == self.grade:
            return self
        return Project(self.root, self.params.for_transfer(grade))

    @property
    def is_transfer(self) -> bool:
        """Whether this is the view of a transfer stage."""
        return self.grade in self.params.transfer.targets

    def tracker(self) -> Tracker:
        """The tracking server and model registry of this site."""
        from dr_platform import tracking

        return tracking.connect(self.params.site.tracking_uri, self.params.site.artifacts, self.root)

    def ledger(self) -> Ledger:
        """The ledger of who became champion when and why; the registry's alias is a view of it."""
        from dr_platform.ledger import ledger_of

        return ledger_of(self.params.site.tracking_uri, self.root)


def draw_phantoms(project: Project, visibility: Visibility, advance: Advance) -> Collection:
    """Stage `phantom`: a raw collection of synthetic fundus photographs."""
    from dr_platform.data import collections

    target = project.raw / visibility / "phantom"
    return collections.write_phantoms(target, project.params.phantom, visibility, advance)


def prepare(project: Project, advance: Advance, *, as_class: bool = False) -> dict[Visibility, Manifest]:
    """Stages `prepare` and `classes`: raw collections to shards of one grade at one resolution.

    as_class: for the conditional training of another grade (`train.condition_on`), which has outputs of its own.
    """
    from dr_platform.data import pool
    from dr_platform.data.prepare import prepare as prepare_images

    target = project.classes if as_class else project.prepared
    return prepare_images(project.raw, target, project.params.prepare, advance, processes=pool.processes())


def train(
    project: Project,
    on_tick: Callable[[Tick], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_start: Callable[[TrainPlan], None] = lambda _: None,
) -> Checkpoint:
    """Stages `train` and `transfer`: the final checkpoint, committed in the run directory and copied to models/."""
    from dr_platform import cluster
    from dr_platform.training.plan import make_plan
    from dr_platform.training.report import read_ticks

    tracker = project.tracker()
    initial = _initial_weights(project, tracker) if project.is_transfer else None
    plan = make_plan(project.params, project.prepared, project.storage, initial)
    on_start(plan)
    run = track_run(tracker, plan, project)

    def heard(tick: Tick) -> None:
        tracker.log_tick(run, tick)
        if tick.samples:
            tracker.log_samples(run, plan.run_directory / tick.samples, tick.images_seen)
        on_tick(tick)

    try:
        final = cluster.fit(plan, project.params.site, cluster.Listener(heard, on_progress))
    except BaseException:
        tracker.finish(run, "FAILED")
        raise
    tracker.finish(run, "FINISHED")
    _export(final, project.model, initial)
    project.results.mkdir(parents=True, exist_ok=True)
    files.write_text(project.results / "curves.csv", _curves(list(read_ticks(plan.run_directory))))
    return checkpoint.verify(project.model)


def track_run(tracker: Tracker, plan: TrainPlan, project: Project, parent_run: str | None = None) -> str:
    """The tracking run of a training: its parameters, and the images it sees by name, version and digest."""
    shown = {
        "prepare": project.params.prepare.model_dump(mode="json"),
        "train": plan.config.model_dump(mode="json"),
    }
    tags = {
        "drp.grade": str(plan.grade),
        "drp.config_sha256": plan.config_sha256,
        "drp.visibility": plan.visibility,
        **({"drp.parent": plan.initial.parent} if plan.initial else {}),
    }
    name = f"grade-{plan.grade} {plan.resolution}px ({plan.train_images} images)"
    return tracker.run_for(plan.run, shown, tags, inputs={name: plan.data_sha256}, parent_run=parent_run)


def measure(
    project: Project,
    directory: Path,
    advance: Advance = lambda done, total: None,
    *,
    keep_generated: bool = False,
    crew: Crew | None = None,
) -> EvalReport:
    """The metrics of the checkpoint in `directory` against all training images of the project's grade.

    The reference does not shrink with `train.subset`, so that models trained on more and fewer images compare.
    keep_generated: keep the features of the generated images too, for `drp eval bootstrap`. crew: of `cluster.crew`.
    """
    from dr_platform.data.loader import count_images, load_images
    from dr_platform.evaluation.evaluate import HeldOut
    from dr_platform.evaluation.evaluate import evaluate as evaluate_generator
    from dr_platform.gan import kernels

    kernels.set_enabled(project.params.site.triton)
    record, generator = read_model(directory)
    visibility = project.params.prepare.visibility
    images = load_images(project.prepared, project.grade, visibility=visibility)
    apart = None
    if count_images(project.prepared, project.grade, "held-out", visibility):
        apart = load_images(project.prepared, project.grade, "held-out", visibility=visibility)
    return evaluate_generator(
        generator,
        images.images,
        images.sha256,
        project.params.evaluate,
        checkpoint=record,
        checkpoint_sha256=record.digest(),
        weights_dir=project.weights,
        cache_dir=project.features,
        device=next(generator.parameters()).device,
        real_labels=images.labels,
        patients=images.patients,
        held_out=HeldOut(apart.images, apart.sha256, apart.patients, apart.labels) if apart is not None else None,
        members=None if record.classes else min(record.train_images, len(images)),
        keep_generated=keep_generated,
        crew=crew,
        progress=advance,
    )


def evaluate(project: Project, advance: Advance = lambda done, total: None) -> EvalReport:
    """Stage `evaluate`: the report of the model, its numbers for `dvc metrics`, and a grid of samples."""
    from dr_platform import cluster, pictures, sampling

    asked = project.params.evaluate
    with cluster.crew(project.params.site, at_most=asked.images // asked.batch) as crew:
        report = measure(project, project.model, advance, keep_generated=True, crew=crew)
    record, generator = read_model(project.model)
    samples = sampling.sample_images(generator, list(_SAMPLE_SEEDS))
    drawn = pictures.generated(samples, record.visibility, record.sources)
    scale = max(1, 96 // report.resolution)
    sheet = pictures.sheet_png(drawn, "everyone", columns=8, scale=scale, said={"Run": report.run})
    files.write_bytes(project.results / "samples.png", sheet)
    files.write_json(project.results / "metrics.json", {metric.name: metric.value for metric in report.metrics})
    report.write(project.results / REPORT_FILE)
    return report


def register(project: Project) -> Registration:
    """Stage `register`: the model version of the checkpoint; registering the same checkpoint again finds it."""
    from dr_platform import lineage

    record = checkpoint.verify(project.model)
    report = EvalReport.read(project.results / REPORT_FILE)
    if report.checkpoint_sha256 != record.digest():
        raise RegistryError(
            f"{project.results / REPORT_FILE} is about another checkpoint than {project.model}. Run: dvc repro evaluate"
        )
    tracker = project.tracker()
    tags = {f"data.{name}": version for name, version in lineage.data_versions(project.root).items()}
    tags |= {
        "git_commit": lineage.git_commit(project.root) or "none",
        "dvc_lock_sha256": lineage.dvc_lock_sha256(project.root) or "none",
        "config_sha256": record.config_sha256,
    }
    registration = tracker.register(
        project.model_name,
        record,
        project.model / checkpoint.GENERATOR_FILE,
        report,
        tags=tags,
        run_name=record.run,
    )
    registration.write(project.results / REGISTRATION_FILE)
    return registration


def average(project: Project, length: float, step: int | None = None) -> tuple[Checkpoint, Path]:
    """A checkpoint whose generator is the average of another length: its record, and its directory under averaged/.

    length: standard deviation of the weighting as a share of the training. step: after which; None: the last snapshot.
    Raises CheckpointError if the model's run kept no snapshots, or none that allow it.
    """
    from dr_platform.training import averages

    record = checkpoint.verify(project.model)
    step, tensors = averages.reconstruct(project.storage / record.run, length, step)
    fixed = {"run", "grade", "classes", "resolution", "visibility", "config_sha256", "data_sha256", "train_images"}
    describe = record.model_dump(include={*fixed, "parent", "generator", "discriminator"})
    describe |= {"step": step, "images_seen": step * record.images_seen // record.step, "complete": False}
    root = project.root / "averaged" / f"{record.run}-{length:.3f}"
    written = checkpoint.write(root, {checkpoint.GENERATOR_FILE: tensors}, {"average": length, "step": step}, describe)
    return written, root / checkpoint.directory_name(step)


def promote(
    project: Project,
    version: str,
    *,
    dry_run: bool,
    model: str | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Decision:
    """Judge a version, write the decision into the ledger, and let the alias follow if it is to promote.

    force: promote a version that the policy holds, for a `reason`, which stays in the ledger. dry_run: write nothing.
    Where a kill left the same decision half written, it is completed instead of taken anew.
    Raises RegistryError if the version is missing or altered, or ledger and alias disagree.
    """
    if force != bool(reason and reason.strip()):
        needed = "--reason TEXT with --force, which stays in the ledger" if force else "--force with --reason"
        raise ConfigError(f"An override needs a reason, and a reason is for an override. Give {needed}, or neither.")
    tracker, name = project.tracker(), model or project.model_name
    ledger = project.ledger()
    if dry_run:
        candidate = tracker.resolve(name, version)
        tracker.verify(name, candidate)
        decision = judge(project, name, candidate)
        return _forced(decision, reason) if force else decision
    with ledger.locked():
        return _promote(project, tracker, ledger, name, version, force, reason)


def _promote(
    project: Project, tracker: Tracker, ledger: Ledger, name: str, version: str, force: bool, reason: str | None
) -> Decision:
    from dr_platform import tracking
    from dr_platform.tracking import champions

    candidate, rules = tracker.resolve(name, version), files.sha256_json(project.params.promote.model_dump(mode="json"))
    completed = tracking.settle(ledger, tracker, name, then=candidate)
    report = champions.evidence(tracker, name, candidate).report_sha256
    if completed and _same_question(completed, candidate, rules, report, force):
        return Decision(
            model=name,
            model_version=candidate,
            champion=completed.from_version,
            promote=completed.action != "hold",
            reasons=(completed.reason,),
            metric=None,
            candidate_value=None,
            champion_value=None,
            forced=completed.action == "force",
            entry=completed.index,
        )
    decision = judge(project, name, candidate)
    decision = _forced(decision, reason) if force else decision
    entry = tracking.decided(
        ledger,
        tracker,
        action="force" if decision.forced else "promote" if decision.promote else "hold",
        model=name,
        from_version=decision.champion,
        to_version=candidate,
        rules_sha256=rules,
        reason=" ".join(decision.reasons),
    )
    return decision.model_copy(update={"entry": entry.index})


def judge(project: Project, model: str, number: int) -> Decision:
    """What the policy says of a registered version beside the champion, which the ledger names; nothing is written."""
    from dr_platform import promotion

    tracker = project.tracker()
    champion = _champion(project.ledger().entries(), tracker, model)
    return promotion.decide(
        tracker.report_of(model, number),
        number,
        tracker.report_of(model, champion) if champion is not None else None,
        champion,
        project.params.promote,
        model,
    )


def _forced(decision: Decision, reason: str | None) -> Decision:
    """The decision as whoever overrides the policy takes it."""
    if decision.promote:
        return decision
    reasons = (f"Promoted against the policy: {reason}", *decision.reasons)
    return decision.model_copy(update={"promote": True, "forced": True, "reasons": reasons})


def _champion(entries: Sequence[LedgerEntry], tracker: Tracker, name: str) -> int | None:
    """The champion by the ledger, or by an alias that is older than the ledger."""
    from dr_platform import ledger

    return ledger.champion(entries, name) if ledger.last_move(entries, name) else tracker.champion(name)


def _same_question(done: LedgerEntry, candidate: int, rules: str, report: str, force: bool) -> bool:
    """Whether an entry that was completed just now is what the same command had begun to write."""
    return (
        (done.to_version, done.rules_sha256, done.report_sha256) == (candidate, rules, report)
        and done.action != "rollback"
        and (force or done.action != "force")
        and not (force and done.action == "hold")
    )


def rollback(project: Project, *, model: str | None = None, reason: str | None = None) -> LedgerEntry:
    """Make the champion before the present one champion again, by an entry of the ledger, which is returned.

    A second rollback goes further back. Where a kill left a rollback half written, it is completed, and that is all.
    Raises RegistryError if there was no earlier champion, or if its version is missing or altered.
    """
    from dr_platform import ledger as ledgers
    from dr_platform import tracking
    from dr_platform.tracking.champions import require_unchanged

    tracker, name, ledger = project.tracker(), model or project.model_name, project.ledger()
    tracker.resolve(name, "latest")  # says which models there are, if not this one
    with ledger.locked():
        entries = ledger.entries()
        line = ledgers.reigns(entries, name)
        target = line[-2] if len(line) > 1 else None
        completed = tracking.settle(ledger, tracker, name, then=target)
        if completed and completed.action == "rollback":
            return completed
        if target is None:
            raise RegistryError(f"{name} has no earlier champion in the ledger to go back to. Run: drp audit log")
        for entry in reversed(entries):
            if (entry.model, entry.to_version) == (name, target) and entry.action != "hold":
                require_unchanged(tracker, entry)
                break
        return tracking.decided(
            ledger,
            tracker,
            action="rollback",
            model=name,
            from_version=line[-1],
            to_version=target,
            rules_sha256=None,
            reason=reason or "The champion before.",
        )


def read_model(directory: Path) -> tuple[Checkpoint, Generator]:
    """A verified checkpoint's record and its averaged generator, in eval mode, on the GPU if there is one."""
    from dr_platform.gan import Generator

    record, weights = checkpoint.read_generator(directory)
    try:
        generator = Generator(**record.generator)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory} describes no generator of ours: {error}. {Checkpoint.remedy}") from None
    draw_grade(generator, record.classes, record.grade)
    return record, restore_generator(generator, weights)


def draw_grade(generator: Generator, classes: Sequence[int], grade: int) -> None:
    """Let a conditional generator draw images of `grade` unless told otherwise.

    classes: the grades in the order of its labels; none, or the only one, for a generator of one grade.
    Raises ConfigError if the generator knows no such grade.
    """
    if not classes:
        return
    if grade not in classes:
        known = ", ".join(str(known) for known in classes)
        raise ConfigError(f"This generator draws grades {known}, but grade {grade} was asked for. Choose one of them.")
    if generator.c_dim:
        generator.mapping.default_class = list(classes).index(grade)


@dataclass(frozen=True)
class Registered:
    """A registered generator, ready to draw, with the labels of what it was trained on."""

    name: str  # NAME/VERSION
    weights_sha256: str
    generator: Generator
    visibility: Visibility
    licence: str


def read_registered(project: Project, model: str, grade: int | None = None) -> Registered:
    """A registered generator by NAME (its champion) or NAME/VERSION.

    grade: which one a conditional generator draws; None: that which it was registered for.

    The weights are verified against the registry's record; no code of the registry runs.
    """
    import tempfile

    import safetensors.torch

    from dr_platform.gan import Generator

    name, _, wanted = model.rpartition("/") if "/" in model else (model, "", "champion")
    tracker = project.tracker()
    number = tracker.resolve(name, wanted)
    with tempfile.TemporaryDirectory() as directory:
        loaded = tracker.load_generator(name, number, Path(directory) / "generator")
        generator = restore_generator(Generator(**loaded.init_kwargs), safetensors.torch.load_file(loaded.weights))
        if grade is not None or loaded.classes:
            draw_grade(generator, loaded.classes or (loaded.grade,), loaded.grade if grade is None else grade)
        visibility: Visibility = "public" if loaded.visibility == "public" else "proprietary"
        licence = loaded.tags.get("licenses", licences_in_words(()))
        return Registered(f"{name}/{number}", files.sha256_file(loaded.weights), generator, visibility, licence)


def restore_generator(generator: Generator, weights: dict) -> Generator:
    """`generator` with these weights, ready to draw. Raises CheckpointError if they are of another network."""
    import torch

    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights are of another network: {' '.join(str(error).split())[:200]}") from None
    generator.eval().requires_grad_(False)
    return generator.to("cuda" if torch.cuda.is_available() else "cpu")


def _initial_weights(project: Project, tracker: Tracker) -> InitialWeights:
    """The parent's weights, from the registry by version and digest; its D from a checkpoint here, if it is here."""
    import safetensors.torch

    from dr_platform import transfer
    from dr_platform.training.plan import InitialWeights

    parent = project.params.transfer.parent
    if parent is not None and is_imported(project, parent):
        return _imported_weights(project, import_name(project, parent))
    if parent is None or parent.rpartition("/")[2].isdigit() is False:
        raise ConfigError(
            f"transfer.parent is {parent!r}, but a transfer starts from a model version. "
            f"Run: drp transfer --to {project.grade}, or set it to NAME/VERSION or to a directory that drp import made."
        )
    name, _, number = parent.rpartition("/")
    directory = project.storage / "initial" / f"{name}-{number}-to-dr{project.grade}"
    loaded = tracker.load_generator(name, int(number), directory.parent / f"{name}-{number}")
    source = _checkpoint_of(project, loaded.checkpoint_sha256)
    plan = transfer.plan_transfer(
        project.params,
        directory,
        parent=parent,
        source_grade=loaded.grade,
        generator=safetensors.torch.load_file(loaded.weights),
        discriminator=safetensors.torch.load_file(source / "discriminator.safetensors") if source else None,
    )
    return InitialWeights(directory=directory, parent=parent, sha256=plan.parent_weights_sha256)


def is_imported(project: Project, name: str) -> bool:
    """Whether `name`, relative to the project, is a directory that `drp import` made."""
    from dr_platform import published

    return (project.root / name / published.RECORD_FILE).is_file()


def import_directory(project: Project, model: str) -> Path:
    """The directory that `model`, relative to the project, stands for, without dots and doubled or last slashes."""
    return Path(os.path.normpath(project.root / model))


def import_name(project: Project, model: str) -> str:
    """imported/NAME of an import of this project, however its path was typed: names of parents travel, paths do not.

    Raises ConfigError for an import that lies elsewhere.
    """
    from dr_platform import published

    directory = import_directory(project, model)
    if directory.parent != project.root / published.IMPORTS:
        raise ConfigError(
            f"{model} does not lie directly in {project.root / published.IMPORTS}, where a transfer takes its parent "
            "from. Run: drp import FILE.pkl"
        )
    return f"{published.IMPORTS}/{directory.name}"


def inherited_licence(project: Project, model: str | None) -> str | None:
    """The licence of the imported networks that a model is, or started from over any number of transfers.

    model: NAME/VERSION, or a directory that `drp import` made. None where nothing was imported.
    """
    from dr_platform import published

    seen: set[str] = set()
    while model is not None and model not in seen:
        seen.add(model)
        if is_imported(project, model):
            return Imported.read(project.root / model / published.RECORD_FILE).licence
        name, _, number = model.rpartition("/")
        if not number.isdigit():
            return f"That of {model}, which is not here"
        model = project.tracker().version(name, int(number)).tags.get("parent")
    return None


def read_imported(directory: Path, label: int | None = None) -> tuple[Imported, Generator]:
    """The verified record of imported networks, and their averaged generator, ready to draw.

    label: which one a conditional generator draws, by its place; None: the first.
    Raises CheckpointError if a file is not the recorded one, or if the generator is not of a form that we have;
    ConfigError if it knows no such label.
    """
    import safetensors.torch

    from dr_platform import published
    from dr_platform.gan import Generator

    record = published.verify(directory)
    if record.generator is None:
        raise CheckpointError(
            f"{directory} has no StyleGAN3 generator, and this platform draws from no other. "
            "Its discriminator may start a training: set transfer.parent."
        )
    weights = safetensors.torch.load_file(directory / published.GENERATOR_FILE)
    generator = restore_generator(Generator(**record.generator), weights)
    if label is not None and not 0 <= label < generator.c_dim:
        raise ConfigError(
            f"{directory} draws {generator.c_dim or 'no'} labels, but label {label} was asked for (--grade). "
            + (f"Choose from 0 to {generator.c_dim - 1}." if generator.c_dim else "Leave --grade out.")
        )
    generator.mapping.default_class = (label or 0) if generator.c_dim else None
    return record, generator


def _imported_weights(project: Project, parent: str) -> InitialWeights:
    """The weights of imported networks as the start of a transfer."""
    import safetensors.torch

    from dr_platform import published, transfer
    from dr_platform.training.plan import InitialWeights

    source = project.root / parent
    record = published.verify(source)
    found = {
        name: safetensors.torch.load_file(source / name)
        for name in (published.GENERATOR_FILE, published.DISCRIMINATOR_FILE)
        if name in record.files
    }
    directory = project.storage / "initial" / f"{parent.replace('/', '-')}-to-dr{project.grade}"
    plan = transfer.plan_transfer(
        project.params,
        directory,
        parent=parent,
        source_grade=None,
        generator=found.get(published.GENERATOR_FILE, {}),
        discriminator=found.get(published.DISCRIMINATOR_FILE),
    )
    return InitialWeights(directory=directory, parent=parent, sha256=plan.parent_weights_sha256)


def _checkpoint_of(project: Project, digest: str) -> Path | None:
    """The directory under models/ whose checkpoint has this digest and verifies."""
    for record_file in sorted((project.root / "models").glob(f"*/{checkpoint.RECORD_FILE}")):
        try:
            if checkpoint.verify(record_file.parent).digest() == digest:
                return record_file.parent
        except CheckpointError as error:
            logger.warning("Not looking for the parent's discriminator there: %s", error)
    return None


def _export(final: Path, target: Path, initial: InitialWeights | None) -> None:
    """Copy a checkpoint to where DVC keeps it: hard links where the file system allows, since nothing changes it."""
    with files.directory_aside(target, failure=CheckpointError) as aside:
        for file in final.iterdir():
            try:
                os.link(file, aside / file.name)
            except OSError:
                shutil.copy2(file, aside / file.name)
        if initial is not None:
            shutil.copy2(initial.directory / "transfer.json", aside / "transfer.json")


def _curves(ticks: list[Tick]) -> str:
    names = sorted({name for tick in ticks for name in tick.scalars})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["images_seen", *names])
    writer.writerows([tick.images_seen, *(tick.scalars.get(name, "") for name in names)] for tick in ticks)
    return table.getvalue()
