"""drp models: what is registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dr_platform.cli.console import Console

if TYPE_CHECKING:
    from dr_platform.records import EvalReport
    from dr_platform.tracking import ModelVersion

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Registered models, their reports and lineage.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Reference = Annotated[
    str, typer.Argument(help="NAME/VERSION, NAME for its champion, or a VERSION of the model of prepare.grade.")
]


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this registered model.")] = None,
    as_json: Json = False,
) -> None:
    """List registered models, newest version first.

    Examples:
      drp models list
      drp models list fundus-dr1-stylegan3 --json
    """
    from dr_platform.cli.tables import plain_table
    from dr_platform.errors import RegistryError
    from dr_platform.road import Project

    console, tracker = Console(), Project.here().tracker()
    known = tracker.models()
    if name is not None and name not in known:
        raise RegistryError(f"There is no model {name} in the registry; there: {', '.join(known) or 'none'}.")
    versions = [version for model in ([name] if name else known) for version in tracker.versions(model)]
    if as_json:
        console.json([_plain(version) for version in versions])
        return
    stems = ("fid", "kid", "eq_t_int_db", "eq_r_db")
    table = plain_table(
        "model/version", "alias", "registered", "visibility", *(f">{stem}" for stem in stems), "extractor"
    )
    for version in versions:
        values = [_value(version.tags, stem) for stem in stems]
        table.add_row(
            f"{version.model}/{version.number}",
            ", ".join(version.aliases) or "–",
            f"{version.created:%Y-%m-%d %H:%M}",
            version.tags.get("visibility", "–"),
            *(f"{float(value):.4g}" if value else "–" for value, _ in values),
            values[0][1] or "–",
        )
    console.show(table)
    if not versions:
        console.say("None yet. Run: dvc repro register")


@app.command()
def show(model: Reference, as_json: Json = False) -> None:
    """A version's report and lineage.

    Examples:
      drp models show fundus-dr1-stylegan3
      drp models show fundus-dr1-stylegan3/2 --json
    """
    from dr_platform.cli.tables import metric_table, plain_table

    console = Console()
    version, report = look_up(model)
    if as_json:
        console.json({**_plain(version), "report": report.model_dump(mode="json")})
        return
    console.result(
        f"{version.model} version {version.number}" + (f" ({', '.join(version.aliases)})" if version.aliases else "")
    )
    console.result(
        f"{report.resolution} px, grade {report.grade}, {report.images_seen:,} images seen, {report.reference}"
    )
    console.show(metric_table(report))
    table = plain_table("lineage", "")
    for key, value in sorted(version.tags.items()):
        if not key.startswith("metric."):
            table.add_row(key, value)
    console.show(table)


@app.command()
def compare(first: Reference, second: Reference, as_json: Json = False) -> None:
    """Two versions' metrics side by side; numbers of different identity are not compared.

    Example:
      drp models compare fundus-dr1-stylegan3/1 fundus-dr1-stylegan3/2
    """
    from dr_platform import comparison
    from dr_platform.cli.tables import plain_table

    console = Console()
    (one, report_one), (two, report_two) = look_up(first), look_up(second)
    rows = [
        {
            "metric": pair.name,
            "first": pair.first.value if pair.first else None,
            "second": pair.second.value if pair.second else None,
            "difference": pair.difference,
            "spread": pair.spread,
            "note": pair.why_not,
        }
        for pair in comparison.side_by_side(report_one, report_two)
    ]
    if as_json:
        console.json({"first": f"{one.model}/{one.number}", "second": f"{two.model}/{two.number}", "metrics": rows})
        return
    table = plain_table("metric", f">{one.model}/{one.number}", f">{two.model}/{two.number}", ">difference")
    for row in rows:
        numbers = [f"{row[key]:.4g}" if row[key] is not None else "–" for key in ("first", "second", "difference")]
        table.add_row(str(row["metric"]), *numbers)
    console.show(table)
    for row in rows:
        if row["note"]:
            console.say(f"{row['metric']}: {row['note']}")


def look_up(reference: str) -> tuple[ModelVersion, EvalReport]:
    """A version, by NAME/VERSION, NAME@ALIAS, NAME, or number, latest or champion of the present grade; its report."""
    from dr_platform.road import Project

    project = Project.here()
    tracker = project.tracker()
    if reference.isdigit() or reference in ("latest", "champion"):
        reference = f"{project.model_name}/{reference}"
    reference = reference.replace("@", "/")  # MLflow's way to write an alias
    name, _, wanted = reference.rpartition("/") if "/" in reference else (reference, "", "champion")
    number = tracker.resolve(name, wanted)
    return tracker.version(name, number), tracker.report_of(name, number)


def _value(tags: dict[str, str], stem: str) -> tuple[str | None, str | None]:
    """A metric's value and its extractor's name, as tags have them; of several spaces the published or first one."""
    from dr_platform.records import stem_of

    names = sorted(tag.removeprefix("metric.") for tag in tags if tag.startswith("metric."))
    found = next((name for name in names if stem_of(name) == stem and f"metric.{name}.n" in tags), None)
    if found is None:
        return None, None
    return tags[f"metric.{found}"], tags.get(f"metric.{found}.extractor", "").partition(" ")[0] or None


def _plain(version: ModelVersion) -> dict[str, object]:
    return {
        "model": version.model,
        "version": version.number,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(),
        "run_id": version.run_id,
        "tags": version.tags,
    }
