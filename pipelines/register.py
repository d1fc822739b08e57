"""Stages `register` and `transfer-register`: the model version of a checkpoint."""

from dr_platform import road
from dr_platform.cli.console import Console, grade_argument, one_line_errors


def main() -> None:
    """`python -m pipelines.register [--grade GRADE]`"""
    with one_line_errors():
        registration = road.register(road.Project.here().for_grade(grade_argument()))
    Console().say(f"{registration.model} version {registration.model_version}")


if __name__ == "__main__":
    main()
