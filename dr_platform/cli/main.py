"""The entry point `drp`: its commands, and the two places where all of them end, a result or one line of error.

Importing this module must stay cheap (a test measures it): whatever needs torch, Ray or MLflow is imported inside the
command that needs it.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import Annotated

import typer

from dr_platform import __version__
from dr_platform.cli import audit, data, evaluation, models, plan, profile, report, road, tools, weights
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
app.add_typer(evaluation.app, name="eval")
app.add_typer(profile.app, name="profile")
app.add_typer(audit.app, name="audit")
for command in (
    road.demo,
    road.init,
    road.status,
    plan.plan,
    road.train,
    road.promote,
    audit.rollback,
    report.report,
    road.transfer,
    road.sweep,
    tools.generate,
    tools.average,
    tools.ui,
    tools.doctor,
):
    app.command()(command)
app.command("import")(weights.import_networks)
app.command("export")(weights.export_onnx)


def _keep_examples(group: typer.Typer) -> None:
    """Show every docstring's examples line by line: a paragraph that starts with \\b is not folded."""
    for sub_group in group.registered_groups:
        if sub_group.typer_instance is not None:
            _keep_examples(sub_group.typer_instance)
    for command in group.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = re.sub(r"^(Examples?:)$", "\b\n\\1", text, flags=re.MULTILINE)


_keep_examples(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"drp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell more, with the traceback of an error.")
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
