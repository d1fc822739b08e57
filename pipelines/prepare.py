"""Stages `prepare` and `transfer-prepare`: raw collections to shards of one grade at one resolution."""

from dr_platform import road
from dr_platform.cli.console import Console, grade_argument, one_line_errors


def main() -> None:
    """`python -m pipelines.prepare [--grade GRADE]`"""
    console = Console()
    with one_line_errors():
        project = road.Project.here().for_grade(grade_argument())
        with console.counting(f"prepare grade {project.grade}", "images") as advance:
            manifests = road.prepare(project, advance)
    for visibility, manifest in manifests.items():
        console.say(f"{visibility}: {manifest.train} to train on, {manifest.held_out_images} held out")


if __name__ == "__main__":
    main()
