"""drp data: raw collections of photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from dr_platform.cli.console import Console

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Raw collections of photographs.")


@app.command()
def ingest(
    directory: Annotated[Path, typer.Argument(help="Folder of JPEG, PNG or TIFF images.")],
    labels: Annotated[Path, typer.Option("--labels", help="CSV with a row per image.")],
    name: Annotated[str, typer.Option("--name", help="Name of the collection: a-z, 0-9, _ and -.")],
    visibility: Annotated[
        str, typer.Option("--visibility", help="public or proprietary: decides which DVC remote may hold it.")
    ],
    image_id: Annotated[str, typer.Option(help="Column with the image's id.")] = "image_id",
    file: Annotated[str, typer.Option(help="Column with the image's file, relative to the folder.")] = "file",
    grade: Annotated[str, typer.Option(help="Column with the ICDR grade, 0 to 4 or empty.")] = "grade",
    patient_id: Annotated[str, typer.Option(help="Column with the patient's id.")] = "patient_id",
    eye: Annotated[str, typer.Option(help="Column with the eye: left or right.")] = "eye",
    source: Annotated[str, typer.Option(help="Column with the source.")] = "source",
    license_: Annotated[str, typer.Option("--license", help="Column with the licence.")] = "license",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on the first image that cannot be used.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a collection of that name.")] = False,
) -> None:
    """Take a folder of graded photographs into the project and version it with DVC.

    The table is all or nothing; an image that cannot be used is listed with its reason in import-report.csv and the
    rest goes on. Only pixels are kept: no EXIF, no comments.

    Examples:
      drp data ingest ~/messidor --labels ~/messidor/labels.csv --name messidor --visibility public
      drp data ingest ~/clinic --labels ~/clinic.csv --name clinic --visibility proprietary --grade dr_grade
    """
    from dr_platform import lineage
    from dr_platform.data.ingest import ColumnMap
    from dr_platform.data.ingest import ingest as take_in
    from dr_platform.errors import ConfigError
    from dr_platform.road import Project

    console = Console()
    if visibility not in ("public", "proprietary"):
        raise ConfigError(f"--visibility is {visibility!r}. Use public or proprietary.")
    if name == "phantom":
        raise ConfigError(
            "--name phantom is that of the synthetic photographs, which `dvc repro` draws. Choose another."
        )
    project = Project.here()
    columns = ColumnMap(
        image_id=image_id, file=file, grade=grade, patient_id=patient_id, eye=eye, source=source, license=license_
    )
    with console.counting(f"ingest {name}", "images") as advance:
        result = take_in(
            directory,
            labels,
            name,
            visibility,  # type: ignore[arg-type]  # ingest says what it accepts
            project.raw,
            columns,
            strict=strict,
            replace=replace,
            progress=advance,
        )
    try:
        lineage.track(project.root, result.directory, result.collection.visibility)
    except BaseException:
        # Unversioned, it would be outside of what keeps proprietary images apart.
        shutil.rmtree(result.directory, ignore_errors=True)
        raise
    taken, rejected = result.collection.images, result.collection.rejected
    console.result(f"{name}: {taken} images taken, {rejected} not used ({visibility})")
    if rejected:
        console.say(f"Reasons: {result.directory.relative_to(project.root)}/import-report.csv")
    console.say(f"Next: drp data use {name} (in place of {', '.join(project.params.prepare.collections)}); dvc repro")


@app.command("list")
def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the raw collections here, and which of them the road uses.

    Example:
      drp data list
    """
    from dr_platform.cli.tables import plain_table
    from dr_platform.data import collections
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    found = collections.list_collections(project.raw)
    used = set(project.params.prepare.collections)
    if as_json:
        console.json([{**each.model_dump(mode="json"), "used": each.name in used} for each in found])
        return
    table = plain_table("collection", "visibility", ">images", ">not used", "origin", "in prepare.collections")
    for each in found:
        table.add_row(
            each.name,
            each.visibility,
            str(each.images),
            str(each.rejected),
            each.origin,
            "yes" if each.name in used else "no",
        )
    console.show(table)
    if not found:
        console.say("None yet. Run: dvc repro phantom, or drp data ingest")


@app.command()
def use(
    names: Annotated[list[str], typer.Argument(help="Collections, as `drp data list` names them.")],
) -> None:
    """Say in params.yaml which collections the road is made from; phantoms are drawn only if they are among them.

    Examples:
      drp data use messidor clinic
      drp data use phantom
    """
    from dr_platform import profiles
    from dr_platform.data import collections
    from dr_platform.errors import ConfigError
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    known = {each.name for each in collections.list_collections(project.raw)} | {"phantom"}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"There is no collection {unknown[0]!r}. Known: {', '.join(sorted(known))}. See: drp data ingest"
        )
    drawn = list(project.params.phantom.images) if "phantom" in names else []
    changes = profiles.edit(
        project.root,
        {"prepare": {"collections": list(dict.fromkeys(names))}, "phantom": {"visibilities": drawn}},
    )
    for change in changes:
        console.result(f"{change.key}: {json.dumps(change.before)} -> {json.dumps(change.after)}")
    console.say("Next: dvc repro" if changes else "Nothing changed")


@app.command()
def push() -> None:
    """Send versioned data to its remotes: public data to `public`, everything else to `private`.

    Refuses to start while any output could go to the wrong one.

    Example:
      drp data push
    """
    from dr_platform import lineage
    from dr_platform.road import Project

    project = Project.here()
    lineage.push(project.root)
    Console().say("Pushed: public data to `public`, everything else to `private`")
