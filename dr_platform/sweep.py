"""The grid of `drp sweep`: dataset size x R1 gamma, each trial a Ray Train run, driven by Ray Tune.

A finished trial leaves a record in the sweep's directory, and that record, not Tune's own index, says what is done: the
same command after a crash runs the missing trials, and those continue from their checkpoints, because a run's name is a
function of its configuration. The sweep's name is one too, so trials of different settings never mix.
"""

from __future__ import annotations

import csv
import io
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from dr_platform import checkpoint, cluster, files, road
from dr_platform.data.loader import select_images
from dr_platform.errors import ClusterError, ConfigError, DataError
from dr_platform.records import EvalReport, Record, Tick
from dr_platform.road import Project
from dr_platform.training.plan import CHECKPOINTS, TrainPlan, make_plan
from dr_platform.training.report import Progress, read_progress

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_RUNGS = 4  # ticks, each with a checkpoint, in a trial: where ASHA may stop it
_COMMIT_SECONDS = 60.0


class Trial(Record):
    """`trial-*.json`: what one cell of the grid came to."""

    remedy: ClassVar[str] = "Run the sweep again."

    size: int
    gamma: float
    run: str
    images_seen: int
    stopped_early: bool
    metric: str
    value: float
    spread: float | None
    n_fake: int
    n_real: int | None
    seed: int


@dataclass(frozen=True)
class Cell:
    """One cell of the grid before it is a trial, with the training it stands for."""

    size: int
    gamma: float
    project: Project
    plan: TrainPlan

    @property
    def record_name(self) -> str:
        """The file its result is kept in."""
        return f"trial-n{self.size}-g{self.gamma:g}.json"


@dataclass(frozen=True)
class Sweep:
    """A grid with a name and a directory."""

    name: str
    directory: Path
    cells: tuple[Cell, ...]

    def finished(self) -> dict[tuple[int, float], Trial]:
        """The trials that are done, by size and gamma."""
        found = {}
        for cell in self.cells:
            path = self.directory / cell.record_name
            if path.is_file():
                found[cell.size, cell.gamma] = Trial.read(path)
        return found


def plan_sweep(project: Project, sizes: Sequence[int], gammas: Sequence[float]) -> Sweep:
    """The grid as trainings with names. Raises DataError if a size exceeds the training images there are."""
    prepare = project.params.prepare
    available = len(select_images(project.prepared, prepare.grade, visibility=prepare.visibility))
    if max(sizes) > available:
        raise DataError(
            f"The sweep asks for {max(sizes)} training images of grade {prepare.grade}, but {available} are prepared. "
            f"Use --sizes of at most {available}, or lower prepare.held_out."
        )
    cells = []
    kimg = project.params.sweep.kimg
    # What ranks the trials is no matter of the pictures, and looking at them would take longer than a small training.
    evaluate = project.params.evaluate.model_copy(update={"pictures": 0})
    for size, gamma in product(sorted(set(sizes)), sorted(set(gammas))):
        changes = {"subset": size, "gamma": gamma, "r1_lambda": None}
        changes |= {"kimg": kimg, "tick_kimg": kimg / _RUNGS, "checkpoint_ticks": 1}
        train = project.params.train.model_copy(update=changes)
        trial = Project(project.root, project.params.model_copy(update={"train": train, "evaluate": evaluate}))
        cells.append(Cell(size, gamma, trial, make_plan(trial.params, trial.prepared, trial.storage / "sweeps")))
    common = project.params.train.model_copy(update={"subset": None, "gamma": 0.0, "r1_lambda": None, "kimg": kimg})
    name = files.sha256_json(
        {
            "train": common.identity(),
            "prepare": prepare.model_dump(mode="json"),
            "evaluate": evaluate.model_dump(mode="json"),
            "metric": project.params.sweep.metric,
        }
    )[:10]
    return Sweep(name=name, directory=project.storage / "sweeps" / name, cells=tuple(cells))


def run(
    sweep: Sweep,
    project: Project,
    *,
    asha: bool = False,
    watch: Callable[[dict[tuple[int, float], Trial | Progress]], None] = lambda _: None,
) -> list[Trial]:
    """Run what is missing of the grid, at most `sweep.max_concurrent` trials at a time; all trials, best first.

    watch: called about once a second with what is known of each cell. Raises ClusterError if a trial failed; what is
    finished stays finished.
    """
    done = sweep.finished()
    missing = [cell for cell in sweep.cells if (cell.size, cell.gamma) not in done]
    if missing:
        slots = min(project.params.sweep.max_concurrent, len(missing))
        site = project.params.site
        workers = 1 if site.workers == "auto" else site.workers
        site = site.model_copy(update={"workers": workers})
        tracker = project.tracker()
        parent = tracker.sweep_run(sweep.name)
        with cluster.connected(site, sweep_slots=slots):
            _tune(sweep, missing, project, site.model_dump(), slots, parent, asha, watch)
        tracker.finish(parent, "FINISHED")
    return sorted(sweep.finished().values(), key=lambda trial: trial.value)


def _tune(
    sweep: Sweep,
    missing: list[Cell],
    project: Project,
    site: dict[str, Any],
    slots: int,
    parent: str,
    asha: bool,
    watch: Callable[[dict[tuple[int, float], Trial | Progress]], None],
) -> None:
    metric = project.params.sweep.metric
    by_name = {cell.record_name: cell for cell in missing}
    space = {
        "cell": tune.grid_search(sorted(by_name)),
        "root": str(project.root),
        "params": {
            name: cell.project.params.model_dump(mode="json", by_alias=True) | {"site": site}
            for name, cell in by_name.items()
        },
        "directory": str(sweep.directory),
        "parent": parent,
        "asha": asha,
    }
    largest = round(project.params.sweep.kimg * 1000)
    scheduler = (
        ASHAScheduler(
            time_attr="images_seen", max_t=largest, grace_period=max(1, largest // _RUNGS), reduction_factor=2
        )
        if asha
        else None
    )
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"CPU": 0, "sweep_slot": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric=metric, mode="min", max_concurrent_trials=slots, scheduler=scheduler),
        run_config=tune.RunConfig(name="tune", storage_path=str(sweep.directory.absolute()), verbose=0),
    )
    outcome: list[Any] = []

    def fit_in_thread() -> None:
        try:
            outcome.append(tuner.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit_in_thread, name="ray-tune", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        watch(_state(sweep))
    watch(_state(sweep))
    _settle(sweep, by_name, outcome[0], metric)


def _settle(sweep: Sweep, by_name: dict[str, Cell], outcome: Any, metric: str) -> None:
    """Record trials that the scheduler stopped; raise if any failed."""
    if isinstance(outcome, BaseException):
        raise ClusterError(f"Ray Tune failed: {' '.join(str(outcome).split())[:300]}. Run the same command again.")
    failed = []
    for result in outcome:
        cell = by_name[result.config["cell"]] if result.config else None
        if result.error is not None:
            failed.append((cell, result.error))
        elif cell is not None and not (sweep.directory / cell.record_name).is_file() and metric in result.metrics:
            reported = EvalReport.model_validate_json(result.metrics["report"])
            _record(cell, reported, metric, stopped_early=True).write(sweep.directory / cell.record_name)
    if failed:
        cell, error = failed[0]
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        where = f"n = {cell.size}, gamma = {cell.gamma:g}" if cell else "a trial"
        raise ClusterError(
            f"{len(failed)} of {len(by_name)} trials failed; {where}: {lines[-1][:300] if lines else error}. "
            "The finished ones are kept; run the same command again for the rest."
        )


def _trial(config: dict[str, Any]) -> None:
    """What Tune runs for one cell, in a process of its own that only drives: train, evaluate, record, report."""
    from dr_platform.config import parse_params

    params = parse_params(config["params"][config["cell"]], source="the sweep")
    project = Project(Path(config["root"]), params)
    plan = make_plan(params, project.prepared, project.storage / "sweeps")
    cell = Cell(plan.config.subset or plan.train_images, plan.config.r1_gamma(plan.resolution), project, plan)
    metric = params.sweep.metric
    tracker = project.tracker()
    run_id = road.track_run(tracker, plan, project, parent_run=config["parent"])

    def measured(directory: Path) -> EvalReport:
        return road.measure(project, directory)

    def heard(tick: Tick) -> None:
        tracker.log_tick(run_id, tick)
        if config["asha"] and tick.checkpoint and tick.images_seen < tick.images_total:
            _report(measured(_committed(plan, tick.step)), metric)

    final = cluster.fit(plan, params.site, cluster.Listener(on_tick=heard))
    report = measured(final)
    _record(cell, report, metric, stopped_early=False).write(Path(config["directory"]) / cell.record_name)
    tracker.log_report(run_id, report)
    tracker.finish(run_id, "FINISHED")
    _report(report, metric)


def _committed(plan: TrainPlan, step: int) -> Path:
    """The newest checkpoint, at least that of `step`, which is committed just after its tick is told.

    Training goes on meanwhile, so an older one may be pruned already.
    """
    root = plan.run_directory / CHECKPOINTS
    deadline = time.monotonic() + _COMMIT_SECONDS
    while time.monotonic() < deadline:
        found = checkpoint.newest(root)
        if found is not None and found.name >= checkpoint.directory_name(step):
            return found
        time.sleep(0.1)
    raise ClusterError(f"{plan.run} told of step {step} but committed no checkpoint. Run the same command again.")


def _report(report: EvalReport, metric: str) -> None:
    found = report.metric(metric)
    if found is not None:
        tune.report({metric: found.value, "images_seen": report.images_seen, "report": report.model_dump_json()})


def _record(cell: Cell, report: EvalReport, metric: str, *, stopped_early: bool) -> Trial:
    found = report.metric(metric)
    if found is None:
        raise ConfigError(f"The evaluation reports no {metric}. Set sweep.metric to fid or kid.")
    return Trial(
        size=cell.size,
        gamma=cell.gamma,
        run=report.run,
        images_seen=report.images_seen,
        stopped_early=stopped_early,
        metric=found.name,
        value=found.value,
        spread=found.spread,
        n_fake=found.n_fake,
        n_real=found.n_real,
        seed=found.seed,
    )


def _state(sweep: Sweep) -> dict[tuple[int, float], Trial | Progress]:
    state: dict[tuple[int, float], Trial | Progress] = dict(sweep.finished())
    for cell in sweep.cells:
        progress = read_progress(cell.plan.run_directory)
        if (cell.size, cell.gamma) not in state and progress is not None:
            state[cell.size, cell.gamma] = progress
    return state


def write_table(trials: Sequence[Trial], path: Path) -> None:
    """The ranked trials as CSV."""
    text = io.StringIO()
    names = [
        "size",
        "gamma",
        "metric",
        "value",
        "spread",
        "n_fake",
        "n_real",
        "seed",
        "images_seen",
        "stopped_early",
        "run",
    ]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(trial.model_dump() for trial in trials)
    files.write_text(path, text.getvalue())


def write_plot(trials: Sequence[Trial], path: Path) -> None:
    """The metric against the number of training images, one line per gamma, with one standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for gamma in sorted({trial.gamma for trial in trials}):
        line = sorted((trial for trial in trials if trial.gamma == gamma), key=lambda trial: trial.size)
        axes.errorbar(
            [trial.size for trial in line],
            [trial.value for trial in line],
            yerr=[trial.spread or 0.0 for trial in line],
            marker="o",
            capsize=3,
            label=f"γ = {gamma:g}",
        )
    first = trials[0]
    axes.set_xlabel("training images")
    axes.set_ylabel(f"{first.metric} (lower is better)")
    axes.set_title(f"{first.n_fake} generated images, seed {first.seed}, bars ± 1 SE", fontsize=9)
    axes.set_xticks(sorted({trial.size for trial in trials}))
    axes.legend()
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    files.write_bytes(path, image.getvalue())
