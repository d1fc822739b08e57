"""drp init, demo, status, train, promote, transfer, sweep: along the road."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dr_platform.cli.console import Console, duration

if TYPE_CHECKING:
    from rich.table import Table

    from dr_platform.records import Decision
    from dr_platform.road import Project

_HELD = 3  # exit status of `drp promote` where the policy says no

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def init() -> None:
    """Initialise the DVC and MLflow stores of the project; again changes nothing.

    Example:
      drp init
    """
    from dr_platform import lineage
    from dr_platform.road import Project

    project = Project.here()
    _complete(Console(), project)
    lineage.init_project(project.root)
    project.tracker()
    Console().say("DVC and MLflow are ready: remotes `public` and `private`, tracking in " + _tracking(project))


def demo() -> None:
    """The whole road on the present params.yaml, by default on synthetic photographs: the first thing to try.

    Runs `dvc repro`, promotes the version it registered, and transfers it to grade 2. Where nothing changed it says so.

    Example:
      drp demo
    """
    from dr_platform import lineage, road
    from dr_platform.records import Registration
    from dr_platform.road import REGISTRATION_FILE, Project

    console = Console()
    start = time.monotonic()
    root = Path.cwd()
    _complete(console, Project.here())
    lineage.init_project(root)
    console.say("$ dvc repro")
    changed = lineage.repro(root)
    project = Project.here()
    registered = Registration.read(project.results / REGISTRATION_FILE)
    target = next((grade for grade in project.params.transfer.targets), 2)
    if changed or not (project.for_grade(target).results / REGISTRATION_FILE).is_file():
        console.say(f"$ drp promote {registered.model_version}")
        _say_decision(console, road.promote(project, str(registered.model_version), dry_run=False))
        console.say(f"$ drp transfer --to {target}")
        changed |= _transfer(console, project, [target])
        project = Project.here()
    _show_status(console, project)
    if not changed:
        console.say("Nothing changed: every stage is up to date.")
    console.say(f"Took {duration(time.monotonic() - start)}. Samples: {_relative(project, 'samples.png')}")
    if project.params.profile == "demo":
        console.say(
            "At 32 px and 10 kimg expect discs of the right colours with a bright spot; vessels need more of both."
        )
    console.say(
        "Next, with .venv/bin on your PATH (. .venv/bin/activate):\n"
        "  drp ui                                         # runs, curves, models in the browser\n"
        f"  drp generate {project.model_name} --seeds 0-15 --out samples\n"
        "  drp sweep                                      # how many images are enough?\n"
        "  drp data ingest --help                         # your own photographs"
    )


def status(as_json: Json = False) -> None:
    """The state of the road in a table: data, images seen, metrics, model versions, aliases.

    Example:
      drp status
    """
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    if as_json:
        console.json(_status(project))
    else:
        _show_status(console, project)


def train() -> None:
    """Train on the prepared images, or continue where the training was interrupted.

    The DVC stage `train` calls the same function; `dvc repro train` also prepares what is missing.

    Example:
      drp train
    """
    from dr_platform import road

    console = Console()
    with console.training() as view:
        record = road.train(road.Project.here(), view.tick, view.progress, view.start)
    console.result(f"{record.run}: {record.images_seen} images seen")
    console.say("Next: dvc repro")


def promote(
    version: Annotated[str, typer.Argument(help="A version number, `latest`, or NAME/VERSION.")],
    model: Annotated[str | None, typer.Option(help="Registered model; default: that of prepare.grade.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Decide and explain; change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote even if the policy says no; needs --reason.")] = False,
    reason: Annotated[
        str | None, typer.Option(help="Why the policy is overridden; kept in the ledger for ever.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON on stdout.")] = False,
) -> None:
    """Make a registered model the champion, if the promotion policy agrees.

    Compares the version's report with the champion's under params.yaml: promote, prints the decision with its reasons,
    writes it into the ledger (drp audit log), and lets the alias follow. A decision that a kill cut off is completed by
    the same command.

    Examples:
      drp promote 7 --dry-run                 # what would happen?
      drp promote 7 --json > decision.json    # for a script
      drp promote 7 --force --reason "clinic A asked for the conditional model"

    Exit status: 0 promoted, 1 error, 3 held by the policy.
    """
    from dr_platform import road
    from dr_platform.road import Project

    console = Console()
    if "/" in version:
        model, _, version = version.rpartition("/")
    decision = road.promote(Project.here(), version, dry_run=dry_run, model=model, force=force, reason=reason)
    if as_json:
        console.json(decision.model_dump(mode="json"))
    else:
        _say_decision(console, decision, dry_run=dry_run)
    if not decision.promote:
        raise typer.Exit(_HELD)


def transfer(
    to: Annotated[list[int], typer.Option("--to", min=0, max=4, help="Target grade; may be given several times.")],
    parent: Annotated[
        str | None,
        typer.Option(help="Model to start from: NAME/VERSION, or what drp import made; default: the champion."),
    ] = None,
) -> None:
    """Train on other grades, starting from the champion's weights.

    Writes the targets and the parent's version number into params.yaml and runs their DVC stages: prepare, train,
    evaluate, register. `dvc repro` keeps them up to date from then on.

    Examples:
      drp transfer --to 2
      drp transfer --to 2 --to 3 --parent fundus-dr1-stylegan3/4
    """
    from dr_platform.road import Project

    console = Console()
    _transfer(console, Project.here(), to, parent)
    _show_status(console, Project.here())


def sweep(
    sizes: Annotated[str | None, typer.Option(help="Training images, such as 500,1000; default: params.yaml.")] = None,
    gammas: Annotated[str | None, typer.Option(help="R1 weights, such as 2,8,32; default: params.yaml.")] = None,
    asha: Annotated[bool, typer.Option("--asha", help="Stop the worse half early at each rung (ASHA).")] = False,
    as_json: Json = False,
) -> None:
    """How many images are enough, and at which gamma: one training per pair.

    A killed sweep continues with the same command and repeats no finished trial. Ends with a ranked table, and
    sweep.csv and sweep.png under results/sweep.

    Examples:
      drp sweep
      drp sweep --sizes 500,1000,1500,2602 --gammas 2,8,32
    """
    from dr_platform import sweep as sweeping
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    grid = sweeping.plan_sweep(
        project,
        _numbers(sizes, int, "--sizes") or project.params.sweep.sizes,
        _numbers(gammas, float, "--gammas") or project.params.sweep.gammas,
    )
    finished = len(grid.finished())
    console.say(f"sweep {grid.name}: {len(grid.cells)} trials, {finished} finished before")
    with _live(console, grid) as watch:
        trials = sweeping.run(grid, project, asha=asha, watch=watch)
    out = project.root / "results" / "sweep"
    sweeping.write_table(trials, out / "sweep.csv")
    sweeping.write_plot(trials, out / "sweep.png")
    best = trials[0]
    if as_json:
        console.json([trial.model_dump(mode="json") for trial in trials])
    else:
        console.show(_ranking(trials))
    console.say("Table and plot: results/sweep/sweep.csv, results/sweep/sweep.png")
    console.say(
        f"The best trial as a full experiment: dvc exp run -S train.subset={best.size} -S train.gamma={best.gamma:g} "
        f"-S train.kimg={project.params.sweep.kimg:g}"
        + (" -S train.r1_lambda=null" if project.params.train.r1_lambda is not None else "")
    )


# -- parts -------------------------------------------------------------------------------------------------------------


def _complete(console: Console, project: Project) -> None:
    """Let DVC read a params.yaml that was written before dvc.yaml asked for more."""
    from dr_platform import profiles

    for change in profiles.complete(project.root):
        console.say(f"params.yaml is of an earlier version: added {change.key}: {change.after}")


def _say_decision(console: Console, decision: Decision, *, dry_run: bool = False) -> None:
    from dr_platform.cli.tables import rule_table

    verb = ("would be promoted" if dry_run else "promoted") if decision.promote else "held"
    console.result(f"{decision.model} version {decision.model_version}: {verb}")
    for reason in decision.reasons:
        console.result(f"  {reason}")
    if decision.rules:
        console.show(rule_table(decision.rules))
    if decision.entry is not None:
        by_force = ", promoted against the policy" if decision.forced else ""
        console.result(f"  entry {decision.entry} of the ledger{by_force} (drp audit log)")


def _transfer(console: Console, project: Project, targets: list[int], parent: str | None = None) -> bool:
    """Set the targets and the parent in params.yaml and run their stages; whether anything changed."""
    from dr_platform import lineage, profiles
    from dr_platform.errors import ConfigError, RegistryError
    from dr_platform.road import import_name, is_imported

    if project.grade in targets:
        raise ConfigError(
            f"Grade {project.grade} is the one that prepare.grade trains from scratch. Choose another --to."
        )
    _complete(console, project)
    tracker = project.tracker()
    if parent is None:
        champion = tracker.champion(project.model_name)
        if champion is None:
            raise RegistryError(f"{project.model_name} has no champion to start from. Run: drp promote latest")
        parent = f"{project.model_name}/{champion}"
    elif is_imported(project, parent):
        parent = import_name(project, parent)
    else:
        name, _, wanted = parent.rpartition("/") if "/" in parent else (parent, "", "champion")
        parent = f"{name}/{tracker.resolve(name, wanted)}"
    console.say(f"starting from {parent}")
    every = sorted({*project.params.transfer.targets, *targets})
    edits = profiles.edit(project.root, {"transfer": {"targets": every, "parent": parent}})
    return lineage.repro(project.root, [f"transfer-register@{grade}" for grade in targets]) or bool(edits)


def _status(project: Project) -> dict[str, Any]:
    from dr_platform import lineage
    from dr_platform.data import collections
    from dr_platform.records import EvalReport, Registration
    from dr_platform.road import REGISTRATION_FILE, REPORT_FILE

    tracker = project.tracker()
    models = []
    for grade in (project.grade, *project.params.transfer.targets):
        view = project.for_grade(grade)
        if not (view.results / REGISTRATION_FILE).is_file():
            continue
        registered = Registration.read(view.results / REGISTRATION_FILE)
        report = EvalReport.read(view.results / REPORT_FILE)
        champion = tracker.champion(registered.model)
        models.append(
            {
                "model": registered.model,
                "version": registered.model_version,
                "alias": "champion" if champion == registered.model_version else None,
                "parent": registered.parent,
                "images_seen": report.images_seen,
                "metrics": [metric.model_dump(mode="json") for metric in report.metrics],
            }
        )
    return {
        "profile": project.params.profile,
        "data": lineage.data_versions(project.root),
        "missing": [name for name in project.params.prepare.collections if not collections.is_there(project.raw, name)],
        "models": models,
    }


def _show_status(console: Console, project: Project) -> None:
    from dr_platform.cli.tables import is_leading, plain_table

    state = _status(project)
    data = plain_table("data", "version")
    for name, digest in state["data"].items():
        data.add_row(name, digest[:12])
    console.show(data)
    models = plain_table(
        "model/version", "alias", ">images seen", "metric", ">value", ">± 1 SE", ">n fake", ">n real", "extractor"
    )
    for model in state["models"]:
        heads = [
            (f"{model['model']}/{model['version']}", model["alias"] or "–", f"{model['images_seen']:,}"),
            *([(f"  from {model['parent']}", "", "")] if model["parent"] else []),
        ]
        leading = [metric for metric in model["metrics"] if is_leading(metric["name"])]
        for index, metric in enumerate(leading):
            models.add_row(
                *(heads[index] if index < len(heads) else ("", "", "")),
                metric["name"].partition("__")[0],
                f"{metric['value']:.4g}",
                f"{metric['spread']:.2g}" if metric["spread"] is not None else "–",
                str(metric["n_fake"]),
                str(metric["n_real"] or "–"),
                metric["extractor"]["name"] if metric["extractor"] else "–",
            )
    console.show(models)
    for name in state["missing"]:
        remedy = "dvc repro phantom" if name == "phantom" else "drp data ingest, or drp data use"
        console.say(f"prepare.collections names {name}, but there is no such collection. Run: {remedy}")
    if not state["models"]:
        console.say("No model yet. Run: dvc repro")


def _ranking(trials: list[Any]) -> Table:
    from dr_platform.cli.tables import plain_table

    table = plain_table(">rank", ">images", ">gamma", trials[0].metric, ">± 1 SE", ">n fake", ">kimg", "run")
    for rank, trial in enumerate(trials, 1):
        table.add_row(
            str(rank),
            str(trial.size),
            f"{trial.gamma:g}",
            f"{trial.value:.4g}",
            f"{trial.spread:.2g}" if trial.spread is not None else "–",
            str(trial.n_fake),
            f"{trial.images_seen / 1000:g}" + (" (stopped)" if trial.stopped_early else ""),
            trial.run,
        )
    return table


def _live(console: Console, grid: Any) -> Any:
    """A table of the grid that refreshes on a terminal, and a line per finished trial elsewhere."""
    from dr_platform.cli.live import sweep_view

    return sweep_view(console, grid) if grid.cells else nullcontext(lambda _: None)


def _numbers(text: str | None, kind: type, option: str) -> list[Any] | None:
    from dr_platform.errors import ConfigError

    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}. Give numbers with commas between them, such as 500,1000.") from None
    if any(value < 0 or (kind is int and value == 0) for value in values):
        raise ConfigError(f"{option} is {text!r}. Give positive numbers.")
    return values


def _relative(project: Project, name: str) -> str:
    return (project.results / name).relative_to(project.root).as_posix()


def _tracking(project: Project) -> str:
    uri = project.params.site.tracking_uri
    return uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else "the tracking server"
