"""drp data: raw collections of photographs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dr_platform.cli.console import Console

if TYPE_CHECKING:
    from dr_platform.road import Project

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Raw collections of photographs.")


@app.command()
def ingest(
    delivery: Annotated[Path, typer.Argument(help="Folder, zip or tar of JPEG, PNG, TIFF or DICOM images.")],
    name: Annotated[str, typer.Option("--name", help="Name of the collection: a-z, 0-9, _ and -.")],
    visibility: Annotated[
        str, typer.Option("--visibility", help="public or proprietary: decides which DVC remote may hold it.")
    ],
    layout: Annotated[
        str, typer.Option("--layout", help="How it is laid out; auto recognises it. `drp data layouts` lists them.")
    ] = "auto",
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV with a row per image; means layout csv.")] = None,
    image_id: Annotated[str, typer.Option(help="Column with the image's id.")] = "image_id",
    file: Annotated[str, typer.Option(help="Column with the image's file, relative to the folder.")] = "file",
    grade: Annotated[str, typer.Option(help="Column with the ICDR grade, 0 to 4 or empty.")] = "grade",
    patient_id: Annotated[str, typer.Option(help="Column with the patient's id.")] = "patient_id",
    eye: Annotated[str, typer.Option(help="Column with the eye: left or right.")] = "eye",
    source: Annotated[str, typer.Option(help="Column with the source.")] = "source",
    license_: Annotated[str, typer.Option("--license", help="Column with the licence.")] = "license",
    mapping: Annotated[
        Path | None, typer.Option("--mapping", help="YAML that names the columns, as --save-mapping writes it.")
    ] = None,
    save_mapping: Annotated[
        Path | None, typer.Option("--save-mapping", help="Keep the names of the columns for the next delivery.")
    ] = None,
    messidor_grades: Annotated[
        str | None,
        typer.Option(
            "--messidor-grades", help="Messidor's 0-3 as ICDR, or as none: 0:0,1:1,2:none,3:none unless told."
        ),
    ] = None,
    errata: Annotated[
        Path | None, typer.Option("--errata", help="Messidor's corrections: image name, corrected grade, duplicate of.")
    ] = None,
    terms: Annotated[str | None, typer.Option("--terms", help="What the owner allows, for every image.")] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="File with the key of the pseudonyms, outside the project. Made if absent."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on the first image that cannot be used.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a collection of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Take a delivery of graded photographs into the project and version it with DVC.

    Tables are all or nothing; an image that cannot be used is listed with its reason and the rest goes on. Only pixels
    are kept, and pseudonyms in place of names: who is who stands in data/import-reports, which stays on this machine.
    An ingest that was interrupted goes on if the same command is given again.

    Examples:
      drp data ingest ~/messidor --name messidor --visibility public
      drp data ingest ~/clinic --labels ~/clinic.csv --name clinic --visibility proprietary --grade dr_grade
      drp data ingest ~/spring --labels ~/spring.csv --name spring --visibility proprietary --mapping ~/clinic.yaml
    """
    from dr_platform import lineage
    from dr_platform.data import collections, pool, pseudonyms
    from dr_platform.data import layouts as layouts_
    from dr_platform.data.ingest import ingest as take_in
    from dr_platform.errors import ConfigError, LineageError, StoppedError
    from dr_platform.road import Project

    console = Console()
    if visibility not in ("public", "proprietary"):
        raise ConfigError(f"--visibility is {visibility!r}. Use public or proprietary.")
    if name == "phantom":
        raise ConfigError(
            "--name phantom is that of the synthetic photographs, which `dvc repro` draws. Choose another."
        )
    project = Project.here()
    collections.collection_directory(project.raw, visibility, name)  # type: ignore[arg-type]  # refuses other names
    if delivery.exists():  # else that is what is said of it
        lineage.require_project(project.root)
    columns = layouts_.ColumnMap(
        image_id=image_id, file=file, grade=grade, patient_id=patient_id, eye=eye, source=source, license=license_
    )
    if mapping is not None:
        if columns != layouts_.ColumnMap():
            raise ConfigError(
                "--mapping names the columns already. Leave out the options that name them, or --mapping."
            )
        columns = layouts_.read_mapping(mapping)
    options = layouts_.Options(
        columns=columns if mapping is not None or columns != layouts_.ColumnMap() else None,
        messidor_grades=layouts_.MESSIDOR_TO_ICDR if messidor_grades is None else _messidor(messidor_grades),
        errata=errata,
    )
    if save_mapping is not None:
        _require_place(save_mapping, project, delivery, labels)
    secret = None if visibility == "public" else pseudonyms.load_key(key, project.root)
    try:
        with console.counting(f"ingest {name}", "images") as advance:
            result = take_in(
                delivery,
                labels,
                name,
                visibility,  # type: ignore[arg-type]  # ingest says what it accepts
                project.raw,
                layout=layout,
                options=options,
                key=secret,
                license=terms,
                strict=strict,
                replace=replace,
                processes=pool.processes(),
                progress=advance,
                # Unversioned, it would be outside of what keeps proprietary images apart.
                version=lambda made: lineage.track(project.root, made.directory, made.collection.visibility),
            )
    except LineageError as error:
        raise LineageError(f"{error} What was taken is kept: the same command then goes on.") from None
    except KeyboardInterrupt:
        raise StoppedError("what was taken so far is kept. The same command goes on with the rest.") from None
    if save_mapping is not None and result.layout == layouts_.CSV:
        layouts_.save_mapping(save_mapping, columns)
    if as_json:
        console.json(
            {
                "collection": result.collection.model_dump(mode="json"),
                "layout": result.layout,
                "reason": result.reason,
                "notes": result.notes,
                "not_used": result.rejected,
                "without_grade": result.without_grade,
                "without_patient": result.without_patient,
                "known": dict(result.known),
                "report": str(result.report.relative_to(project.root)),
            }
        )
        return
    console.say(f"Layout {result.layout}: {result.reason}")
    for note in result.notes:
        console.say(note)
    if save_mapping is not None and result.layout != layouts_.CSV:
        console.say(
            f"{result.layout} has columns of its own, so there is no mapping to keep: {save_mapping} not written"
        )
    console.result(f"{name}: {result.collection.images} images taken, {result.rejected} not used ({visibility})")
    if result.without_patient:
        console.say(f"{result.without_patient} of them name no patient, so nothing keeps those of one patient together")
    for other, count in result.known.items():
        console.say(f"{count} of them are in {other} already, from the same files; prepared together they count once")
    console.say(f"Every file and what became of it: {result.report.relative_to(project.root)} (stays here)")
    if secret is not None:
        console.say(f"Pseudonyms by the key {pseudonyms.key_file(key)} ({secret.fingerprint}). Keep a copy of it")
    used = project.params.prepare.collections
    photographs = [each for each in used if each != "phantom"]  # nobody trains on both
    console.say(
        "Next: dvc repro" if name in used else f"Next: drp data use {' '.join([*photographs, name])}; dvc repro"
    )


def _require_place(path: Path, project: Project, *read: Path | None) -> None:
    """Raise ConfigError before hours of work if a mapping could not be written there, or would overwrite something."""
    from dr_platform.errors import ConfigError

    place = path.resolve()
    inside = [project.raw, *(each for each in read if each is not None)]
    if path.is_dir() or not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise ConfigError(f"--save-mapping {path} is no file that can be written. Name one in a directory that exists.")
    if place.suffix not in (".yaml", ".yml") or any(place.is_relative_to(each.resolve()) for each in inside):
        raise ConfigError(f"--save-mapping {path}: name a .yaml file outside of the delivery and of data/raw.")


def _messidor(text: str) -> dict[int, int | None]:
    """The mapping in `0:0,1:1,2:none,3:none`; the layout checks that each grade has its place."""
    from dr_platform.errors import ConfigError

    pairs = [pair.strip().partition(":") for pair in text.split(",")]
    if not all(given in tuple("0123") and icdr in (*"01234", "none") for given, _, icdr in pairs):
        raise ConfigError(
            f"--messidor-grades is {text!r}. Give each of Messidor's grades 0 to 3 an ICDR grade or none, "
            f"such as 0:0,1:1,2:none,3:none"
        )
    if len({given for given, _, _ in pairs}) < len(pairs):
        raise ConfigError(f"--messidor-grades is {text!r}: a grade stands there twice. Give each of 0 to 3 once.")
    return {int(given): None if icdr == "none" else int(icdr) for given, _, icdr in pairs}


@app.command()
def layouts() -> None:
    """List the layouts that `drp data ingest` reads unchanged.

    Example:
      drp data layouts
    """
    from dr_platform.cli.tables import plain_table
    from dr_platform.data.layouts import LAYOUTS

    table = plain_table("layout", "recognised by", "licence")
    for name, layout in LAYOUTS.items():
        table.add_row(name, layout.looks_for, layout.license)
    Console().show(table)


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


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Look for a patient, a photograph or a near-copy of one on both sides of the split; fail if there is any.

    Example:
      drp data check
    """
    from dr_platform.data import separation
    from dr_platform.errors import DataError
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    rows = separation.prepared_rows(project.prepared, project.classes)
    found = separation.crossings(rows, project.raw)
    if as_json:
        console.json([{"kind": each.kind, "images": [row.image_id for row in each.rows]} for each in found])
    else:
        for each in found:
            console.say(each.sentence)
    if found:
        exact_only = project.params.prepare.near_duplicates is None and {each.kind for each in found} == {"near-copy"}
        raise DataError(
            f"{len(found)} crossings of the split among {len(rows)} images. "
            + (
                "prepare.near_duplicates is null, so near-copies are not looked for: set it (0.84), then dvc repro"
                if exact_only
                else "Prepare again: dvc repro -f prepare"
            )
        )
    console.say(f"Nothing crosses the split: {len(rows)} images of {len({row.patient for row in rows})} patients")
    blind = separation.not_compared(rows, project.raw)
    if blind.without_patient or blind.too_small:
        console.say(
            f"Not certain: {blind.without_patient} images name no patient, and {blind.too_small} are too small to be "
            f"compared by more than their files"
        )


@app.command()
def splits(
    out: Annotated[Path | None, typer.Option("--out", help="CSV to write, a row per image, pseudonyms only.")] = None,
) -> None:
    """Show how many images of each source and grade are trained on and held out; write the whole table on demand.

    Its image_id is that of prepared images, which reports show too; raw_sha256 leads to the row of labels.csv in the
    raw collection, whose own image_id is the one in data/import-reports.

    Examples:
      drp data splits
      drp data splits --out splits.csv
    """
    from collections import Counter

    from dr_platform import files
    from dr_platform.cli.tables import plain_table
    from dr_platform.data import separation, tables
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    rows = separation.prepared_rows(project.prepared, project.classes)
    counts = Counter((row.collection, row.visibility, row.grade, row.split) for row in rows)
    patients = Counter(
        (c, v, g, s) for c, v, g, s, _ in {(r.collection, r.visibility, r.grade, r.split, r.patient) for r in rows}
    )
    table = plain_table(
        "collection", "visibility", ">grade", ">train", ">held out", ">patients", ">held out, % of patients"
    )
    for collection, visibility, grade in sorted({key[:3] for key in counts}):
        place = (collection, visibility, grade)
        there, apart = patients[(*place, "train")], patients[(*place, "held-out")]
        cells = (
            counts[(*place, "train")],
            counts[(*place, "held-out")],
            there + apart,
            f"{100 * apart / (there + apart):.1f}",
        )
        table.add_row(collection, visibility, str(grade), *map(str, cells))
    console.show(table)
    if out is not None:
        header = ("image_id", "patient", "collection", "visibility", "grade", "eye", "split", "rank", "sha256",
                  "raw_sha256")  # fmt: skip
        body = ([getattr(row, name) for name in header] for row in rows)
        files.write_bytes(out, tables.safe_csv(header, body))
        console.say(f"{len(rows)} rows: {out}")


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option("--out", help="Page to write; results/data-report.html unless told.")
    ] = None,
    include_proprietary: Annotated[
        bool,
        typer.Option(
            "--include-proprietary", help="Show proprietary collections too; the page stays in data/import-reports."
        ),
    ] = False,
    date: Annotated[
        str | None, typer.Option("--date", help="Date of the data version, shown on the page: YYYY-MM-DD.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout too.")] = False,
) -> None:
    """Write a page on this data version: counts, split, what was left out and why, distributions, copies, examples.

    It is one HTML file that loads nothing and shows public photographs alone. With --include-proprietary it shows all
    of them, for the eyes of their owner: only this user may read it, and it cannot be written outside of
    data/import-reports.

    Examples:
      drp data report
      drp data report --out ~/report.html --date 2026-11-20
      drp data report --include-proprietary
    """
    from dr_platform.data import report as reports
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    path = reports.page_file(project.root, out, include_proprietary=include_proprietary)
    with console.counting("report", "pictures") as advance:
        found = reports.collect(
            project.raw,
            [project.prepared, project.classes],
            project.params.prepare,
            project=project.root.resolve().name,
            date=reports.date_of(date),
            include_proprietary=include_proprietary,
            progress=advance,
        )
    reports.write(path, found)
    if as_json:
        console.json(reports.numbers(found))
    console.say(f"Open in a browser: {path}")


@app.command()
def pull(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Outputs or stages, as DVC names them; all by default.")
    ] = None,
) -> None:
    """Fetch versioned data from its remotes and check it out, if every byte is the recorded one.

    An object that is damaged or missing in a remote is named with its output; nothing is then checked out.

    Examples:
      drp data pull
      drp data pull data/raw/public/messidor
    """
    from dr_platform import lineage
    from dr_platform.road import Project

    lineage.pull(Project.here().root, targets or ())
    Console().say("Pulled: every file has its recorded digest")


@app.command()
def revoke(
    patient: Annotated[str, typer.Option("--patient", help="The id, as the delivery had it.")],
    collection: Annotated[
        str | None, typer.Option("--collection", help="Needed where several collections have a patient of that id.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="File with the key of the pseudonyms.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be affected.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Take a patient's images out, and say what was made from them: shards, features, models, reports, versions.

    Marks the affected model versions by the patient's pseudonym, then writes the next version of the raw collection.
    What cannot be shown to be free of the patient counts as affected.

    Examples:
      drp data revoke --patient 4711
      drp data revoke --patient 4711 --collection clinic --yes
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from dr_platform import revocation
    from dr_platform.cli.tables import plain_table
    from dr_platform.data import pseudonyms
    from dr_platform.road import Project

    console = Console()
    project = Project.here()
    known = pseudonyms.load_key(key, project.root) if pseudonyms.key_file(key).is_file() else None
    found = revocation.find(project, patient, collection, known)
    removed = revocation.carry_out(project, found, datetime.now(UTC).date()) if yes else 0
    if as_json:
        console.json({**asdict(found), "carried_out": yes, "images_removed": removed})
        return
    table = plain_table("affected", "", "why")
    for item in found.affected:
        table.add_row(item.kind, item.name, item.reason if item.certain else f"not certain: {item.reason}")
    console.show(table)
    for place in found.elsewhere:
        said = f"{place.images} photographs in {place.collection} are the same or copies of them"
        console.say(
            f"{said}. Revoke there too: drp data revoke --collection {place.collection} --patient {place.patient}"
            if place.patient
            else f"{said}, and name no patient. Take them out of the delivery and ingest it again with --replace"
        )
    if not yes:
        console.say("Nothing was changed. To do it: the same command with --yes")
        return
    tagged = len(found.of("model version"))
    console.say(f"{found.collection}: {removed} images taken out; {tagged} versions are tagged {found.patient}")
    console.say("Next: dvc repro; drp promote a version that is not affected")
    console.say("Earlier versions stay in cache and remotes until: dvc gc --workspace --cloud, for each remote (-r)")
