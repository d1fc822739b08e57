"""Stages `train` and `transfer`: StyleGAN3 on Ray Train, from the start or from where the run was interrupted."""

from dr_platform import road
from dr_platform.cli.console import Console, grade_argument, one_line_errors


def main() -> None:
    """`python -m pipelines.train [--grade GRADE]`"""
    console = Console()
    with one_line_errors(), console.training() as view:
        project = road.Project.here().for_grade(grade_argument())
        record = road.train(project, view.tick, view.progress, view.start)
    console.say(f"{record.run}: {record.images_seen} images seen, in models/dr{record.grade}")


if __name__ == "__main__":
    main()
