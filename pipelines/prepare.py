"""Stages `prepare`, `classes` and `transfer-prepare`: raw collections to shards of one grade at one resolution."""

from dr_platform import road
from dr_platform.cli.console import Console, one_line_errors, stage_arguments
from dr_platform.data import manifest, prepare
from dr_platform.data.reasons import often


def main() -> None:
    """`python -m pipelines.prepare [--grade GRADE [--as-class]]`"""
    console = Console()
    with one_line_errors():
        arguments = stage_arguments()
        project = road.Project.here().for_grade(arguments.grade)
        with console.counting(f"prepare grade {project.grade}", "images") as advance:
            made = road.prepare(project, advance, as_class=arguments.as_class)
    root = project.classes if arguments.as_class else project.prepared
    for visibility, record in made.items():
        console.say(f"{visibility}: {record.train} to train on, {record.held_out_images} held out")
        directory = manifest.prepared_directory(root, visibility, project.grade)
        if skipped := prepare.read_skipped(directory):
            place = (directory / prepare.SKIPPED_FILE).relative_to(project.root)
            console.say(f"{visibility}: {len(skipped)} left out ({often(s['reason'] for s in skipped)}): {place}")


if __name__ == "__main__":
    main()
