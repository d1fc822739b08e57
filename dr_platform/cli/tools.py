"""drp generate, average, ui, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dr_platform.cli.console import Console


def generate(
    model: Annotated[
        str, typer.Argument(help="NAME (its champion), NAME/VERSION, or the directory of a checkpoint or import.")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-63 or 1,5,9-12.")] = "0-15",
    grade: Annotated[
        int | None, typer.Option(min=0, max=4, help="Grade that a conditional model draws; default: that of its name.")
    ] = None,
    psi: Annotated[float, typer.Option(help="Truncation: 1 none, 0 the average image.")] = 1.0,
    out: Annotated[Path, typer.Option(help="Directory for the images; made if absent.")] = Path("samples"),
) -> None:
    """Draw images from a registered model: one PNG per seed, and a contact sheet.

    Each PNG says in its text chunks that it is synthetic, and from which model, weights, seed and psi. The weights are
    verified against the digest in the registry, and no code from the registry runs.

    Examples:
      drp generate fundus-dr1-stylegan3 --seeds 0-63 --psi 0.7 --out samples
      drp generate fundus-dr1-stylegan3/2 --seeds 7
    """
    from dr_platform import generation
    from dr_platform.road import Project

    console = Console()
    wanted = generation.parse_seeds(seeds)
    with console.counting("generate", "images") as advance:
        written = generation.generate(Project.here(), model, wanted, psi, out, advance, grade)
    console.result(f"{written} images and contact-sheet.png in {out}")


def average(
    length: Annotated[float, typer.Option(help="Length as a share of the training so far, 0.03 to 0.25.")] = 0.1,
    step: Annotated[
        int | None, typer.Option(min=1, help="After which step; one with a snapshot, by default the last.")
    ] = None,
    grade: Annotated[int | None, typer.Option(min=0, max=4, help="Whose model; default: prepare.grade.")] = None,
) -> None:
    """Average the generator over another stretch of its training, without training again.

    Needs the snapshots that train.posthoc_kimg asks for. The result is a checkpoint directory to draw images from.

    Examples:
      drp average --length 0.08
      drp generate averaged/RUN-0.080/step-00001250 --seeds 0-63
    """
    from dr_platform import road

    project = road.Project.here().for_grade(grade)
    record, directory = road.average(project, length, step)
    Console().result(f"{directory.relative_to(project.root)}: average of length {length:g} after step {record.step}")


def ui(
    host: Annotated[str, typer.Option(help="Address to listen on; the page has no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Serve the MLflow pages: runs with curves and samples, model versions with metrics and lineage.

    Example:
      drp ui --port 5001
    """
    from dr_platform import tracking
    from dr_platform.road import Project

    project = Project.here()
    Console().say(f"MLflow on http://{host}:{port}; stop with Ctrl-C")
    tracking.serve(project.params.site.tracking_uri, project.params.site.artifacts, project.root, host, port)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """What is installed and reachable, with a line of advice for each thing amiss.

    Example:
      drp doctor

    Exit status: 0 all well, 1 something is amiss.
    """
    from dr_platform.cli import checkup
    from dr_platform.cli.tables import plain_table

    console = Console()
    findings = checkup.examine(Path.cwd())
    if as_json:
        console.json([finding.__dict__ for finding in findings])
    else:
        table = plain_table("what", "", "found", "advice")
        for finding in findings:
            table.add_row(finding.what, "ok" if finding.well else "!!", finding.found, finding.advice)
        console.show(table)
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)
