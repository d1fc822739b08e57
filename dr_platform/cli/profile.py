"""drp profile: ready-made values for params.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dr_platform.cli.console import Console

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Ready-made values for params.yaml.")

Name = Annotated[str, typer.Argument(help="A profile, as `drp profile list` names it.")]


@app.command("list")
def list_profiles(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the profiles and what each is for.

    Example:
      drp profile list
    """
    from dr_platform import profiles
    from dr_platform.cli.tables import plain_table

    console = Console()
    known = profiles.names()
    if as_json:
        console.json(known)
        return
    table = plain_table("profile", "what it is")
    for name, sentence in known.items():
        table.add_row(name, sentence)
    console.show(table)


@app.command()
def show(name: Name) -> None:
    """Print the values a profile sets, as YAML.

    Example:
      drp profile show paper-dr1-512
    """
    import yaml

    from dr_platform import profiles

    typer.echo(yaml.safe_dump(profiles.read(name), sort_keys=False), nl=False)


@app.command()
def use(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON on stdout.")] = False,
) -> None:
    """Write a profile's values into params.yaml; comments and the site section stay.

    Examples:
      drp profile use paper-dr1-512
      drp profile use public-only      # on top of the present values
    """
    from dr_platform import profiles

    console = Console()
    changes = profiles.use(name, Path.cwd())
    if as_json:
        console.json([change.__dict__ for change in changes])
        return
    for change in changes:
        console.result(f"{change.key}: {json.dumps(change.before)} -> {json.dumps(change.after)}")
    console.say(f"{len(changes)} values of params.yaml changed" if changes else f"params.yaml already says {name}")
    if changes:
        console.say("Next: dvc repro")
