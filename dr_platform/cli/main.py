"""The entry point `drp`: its commands, and the two places where all of them end, a result or one line of error.

Importing this module must stay cheap (a test measures it): whatever needs torch, Ray or MLflow is imported inside the
command that needs it.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from dr_platform import __version__
from dr_platform.cli import data, models, profile, road, tools
from dr_platform.cli.console import one_line_errors

app = typer.Typer(
    name="drp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Synthesise fundus photographs with StyleGAN3: from raw images to a registered, promoted, transferred model.",
)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(profile.app, name="profile")
for command in (
    road.demo,
    road.init,
    road.status,
    road.train,
    road.promote,
    road.transfer,
    road.sweep,
    tools.generate,
    tools.ui,
    tools.doctor,
):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"drp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell more; full tracebacks of mended errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if verbose:
        logging.getLogger().setLevel(logging.DEBUG)
        logging.getLogger("dr_platform").setLevel(logging.DEBUG)


def main() -> None:
    """Run `drp`. Failures the user can mend are one line on stderr and exit status 1."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
