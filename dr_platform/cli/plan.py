"""drp plan: what a training will take, before it is started."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dr_platform.cli.console import Console, duration

if TYPE_CHECKING:
    from rich.table import Table

    from dr_platform.planning import Figure, Plan

_GIB = 2**30


def plan(
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Plan the grid of `drp sweep` instead of `drp train`.")
    ] = False,
    kimg: Annotated[float | None, typer.Option(help="Length in kimg; default: params.yaml.")] = None,
    gpu_price: Annotated[
        float | None, typer.Option(help="Price of one GPU (or worker) for an hour, in any currency.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Repetitions of each measurement, at least 2.")] = 3,
    profile: Annotated[str | None, typer.Option(help="Plan with a profile's values; params.yaml stays.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Hours, memory, disk and cost of a training or sweep, from a few steps measured on this machine.

    Builds the networks of params.yaml and takes a few steps on random images: no data is needed. Tries larger passes
    until memory would not suffice, while the global batch stays. Each figure comes with one standard error.

    Examples:
      drp plan
      drp plan --profile paper-dr1-512 --gpu-price 2.5
      drp plan --sweep --kimg 5000 --json
    """
    from dr_platform import planning
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    params = planning.with_profile(project.params, profile) if profile else project.params
    project.storage.mkdir(parents=True, exist_ok=True)
    images = max(params.sweep.sizes) if sweep else planning.count_images(params, project.prepared)
    console.say("measuring a few steps on random images")
    made = planning.make_plan(
        params,
        steps=steps,
        kimg=kimg,
        price=gpu_price,
        sweep=sweep,
        images=images,
        scratch=project.storage,
        progress=console.say,
    )
    if as_json:
        console.json(asdict(made))
        return
    console.show(_passes(made))
    console.show(_summary(made))
    if made.refused:
        console.say(f"Not measured: passes of {made.refused}")
    console.say("Assumed: " + "; ".join(made.assumptions) + ".")
    if made.rounds > 1:
        console.say(f"For these passes set site.batch_per_worker: {made.batch_per_worker}")


def _passes(made: Plan) -> Table:
    from dr_platform.cli.tables import plain_table

    table = plain_table(">images per pass", ">img/s", ">± 1 SE", ">memory of a worker", "", title=f"{made.device}")
    for choice in made.choices:
        speed = choice.images_per_second
        table.add_row(
            str(choice.batch_per_worker),
            f"{speed.value:.3g}",
            f"{speed.error:.2g}",
            _bytes(choice.memory_bytes),
            "chosen" if choice.chosen else "",
        )
    return table


def _summary(made: Plan) -> Table:
    from dr_platform.cli.tables import plain_table

    table = plain_table("what", ">value", ">± 1 SE", ">n", "of what")
    each = f"{made.trainings} trainings, {made.at_a_time} at a time" if made.trainings > 1 else "metrics included"
    rows: list[tuple[str, Figure, str]] = [
        ("training", made.training_hours, f"{made.kimg:g} kimg, batch {made.batch}, workers {made.workers}"),
        ("metrics", made.metrics_hours, "drawing evaluate.images, and those of the equivariance"),
        ("all together", made.hours, each),
    ]
    for name, hours, what in rows:
        table.add_row(name, duration(hours.value * 3600), duration(hours.error * 3600), str(hours.n), what)
    if made.cost is not None:
        paid = f"{made.worker_hours.value:.4g} hours of one GPU or worker"
        table.add_row("cost", f"{made.cost.value:.2f}", f"{made.cost.error:.2g}", str(made.cost.n), paid)
    table.add_row("memory", _bytes(made.memory_bytes), "", "", "of each worker, networks and one pass")
    unknown = "unknown: nothing is prepared" if made.dataset_bytes is None else _bytes(made.dataset_bytes)
    table.add_row("images in memory", unknown, "", "", "of each worker, in main memory")
    table.add_row("checkpoint", _bytes(made.checkpoint_bytes), "", "", "G, its average, D, optimisers")
    table.add_row("disk", _bytes(made.disk_bytes), "", "", "checkpoints kept, and at most for sample grids, twice")
    return table


def _bytes(count: int) -> str:
    if count >= _GIB:
        return f"{count / _GIB:.1f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
