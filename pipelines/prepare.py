"""Stages `prepare`, `classes` and `transfer-prepare`: raw collections to shards of one grade at one resolution."""

from dr_platform import road
from dr_platform.cli.console import Console, one_line_errors, stage_arguments


def main() -> None:
    """`python -m pipelines.prepare [--grade GRADE [--as-class]]`"""
    console = Console()
    with one_line_errors():
        arguments = stage_arguments()
        project = road.Project.here().for_grade(arguments.grade)
        with console.counting(f"prepare grade {project.grade}", "images") as advance:
            manifests = road.prepare(project, advance, as_class=arguments.as_class)
    for visibility, manifest in manifests.items():
        left_out = f", {manifest.skipped} left out (skipped.csv says why)" if manifest.skipped else ""
        console.say(f"{visibility}: {manifest.train} to train on, {manifest.held_out_images} held out{left_out}")


if __name__ == "__main__":
    main()
