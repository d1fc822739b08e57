"""drp audit, rollback: what was decided about champions, whether that record is whole, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dr_platform.cli.console import Console

if TYPE_CHECKING:
    from dr_platform.records import LedgerEntry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The ledger of promotions: read, verify, restore.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def verify(as_json: Json = False) -> None:
    """Whether every byte of the ledger is as it was written, and every champion alias follows from it.

    Holds the file against its chain of digests, its copies among the registry's tags, the aliases, and the champions'
    weights and reports. Names each entry that is amiss. Completes first what a kill cut off.

    Examples:
      drp audit verify
      drp audit verify --json | jq -r .head    # to write down elsewhere

    Exit status: 0 all as written, 1 something is amiss.
    """
    from dr_platform import tracking
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    audit = tracking.audit(project.ledger(), project.tracker())
    head = audit.entries[-1].sha256 if audit.entries else None
    if as_json:
        console.json(
            {
                "well": not audit.problems,
                "entries": len(audit.entries),
                "head": head,
                "problems": [vars(problem) for problem in audit.problems],
                "completed": [entry.index for entry in audit.completed],
            }
        )
    else:
        for entry in audit.completed:
            console.say(f"Completed entry {entry.index}, which was cut off: {_deed(entry)}")
        for problem in audit.problems:
            console.result(problem.said)
        sound = f"{len(audit.entries)} entries" + (f", head {head}" if head else "")
        console.result(f"ledger {'amiss' if audit.problems else 'as written'}: {sound}")
    if audit.problems:
        raise typer.Exit(1)


@app.command()
def log(
    model: Annotated[str | None, typer.Option(help="Only decisions about this registered model.")] = None,
    as_json: Json = False,
) -> None:
    """Every decision about a champion, oldest first: when, who, what, and why.

    Examples:
      drp audit log
      drp audit log --model fundus-dr1-stylegan3 --json
    """
    from dr_platform.cli.tables import plain_table
    from dr_platform.road import Project

    console = Console()
    entries = [entry for entry in Project.here().ledger().entries() if model in (None, entry.model)]
    if as_json:
        console.json([entry.model_dump() for entry in entries])
        return
    table = plain_table(">index", "when (UTC)", "who", "action", "model", "from → to", "reason")
    for entry in entries:
        table.add_row(
            str(entry.index),
            entry.time[:16].replace("T", " "),
            entry.who,
            entry.action,
            entry.model,
            f"{entry.from_version or '–'} → {entry.to_version}",
            entry.reason,
        )
    console.show(table)
    if not entries:
        console.say("No decision yet. Run: drp promote latest")


@app.command()
def restore() -> None:
    """Put champion aliases and tags back to what the ledger says, and a damaged ledger to what the tags say.

    Look first with drp audit verify at what is amiss, and ask who did it. A damaged ledger is kept beside the new one.
    An entry that is sound but different in file and tags is refused: which is right a person has to say.

    Example:
      drp audit restore
    """
    from dr_platform import tracking
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    said = tracking.restore(project.ledger(), project.tracker())
    for line in said or ["Nothing to restore: alias, tags and ledger agree."]:
        console.result(line)


def rollback(
    model: Annotated[str | None, typer.Option(help="Registered model; default: that of prepare.grade.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the ledger for ever.")] = None,
    as_json: Json = False,
) -> None:
    """Make the champion before the present one champion again.

    Goes through the ledger like a promotion: the version is verified, the entry written, and the alias follows. A
    second rollback goes further back. A rollback that a kill cut off is completed by the same command.

    Examples:
      drp rollback --reason "striped vessels at clinic B"
      drp rollback --model fundus-dr2-stylegan3

    Exit status: 0 rolled back, 1 error.
    """
    from dr_platform import road

    console = Console()
    entry = road.rollback(road.Project.here(), model=model, reason=reason)
    if as_json:
        console.json(entry.model_dump())
    else:
        console.result(f"{_deed(entry)} (entry {entry.index} of the ledger)")


def _deed(entry: LedgerEntry) -> str:
    """An entry in a sentence's words."""
    verb = {"promote": "promoted", "hold": "held", "rollback": "champion again", "force": "promoted by force"}
    before = f", before it version {entry.from_version}" if entry.from_version is not None else ""
    return f"{entry.model} version {entry.to_version}: {verb[entry.action]}{before}"
