"""drp report: a registered model on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dr_platform.cli.console import Console
from dr_platform.cli.models import Reference


def report(
    model: Reference,
    other: Annotated[str | None, typer.Argument(help="A second version, to set beside the first.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Page to write; results/reports/NAME-VERSION.html unless told.")
    ] = None,
    include_proprietary: Annotated[
        bool,
        typer.Option(
            "--include-proprietary",
            help="Show proprietary training photographs too; the page stays in data/import-reports.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout too.")] = False,
) -> None:
    """Write a page on a registered model: verdict, metrics, pictures, figures, neighbours, lineage, limits.

    It is one HTML file that loads nothing; its numbers lie beside it as JSON. Of the training images it shows public
    ones alone, the nearest neighbours of what the model draws.

    Examples:
      drp report fundus-dr1-stylegan3
      drp report fundus-dr1-stylegan3/1 fundus-dr1-stylegan3/2
      drp report 3 --out ~/report.html --json
    """
    from dr_platform import model_pages
    from dr_platform.cli.models import look_up
    from dr_platform.errors import ConfigError
    from dr_platform.road import Project

    if other is not None and include_proprietary:
        raise ConfigError("--include-proprietary is for the page of one version. Leave it out, or the second version.")
    console, project = Console(), Project.here()
    wanted = [look_up(each) for each in (model, other) if each is not None]
    path = model_pages.place(project, [version for version, _ in wanted], out, private=include_proprietary)
    facts = []
    for version, measured in wanted:
        with console.counting(f"draw {version.model}/{version.number}", "pictures") as advance:
            facts.append(
                model_pages.collect(
                    project,
                    version,
                    measured,
                    brief=other is not None,
                    include_proprietary=include_proprietary,
                    advance=advance,
                )
            )
    model_pages.write(path, facts, private=include_proprietary)
    if as_json:
        console.json(model_pages.numbers(*facts))
    console.say(f"Open in a browser: {path} (numbers: {model_pages.numbers_file(path).name})")
