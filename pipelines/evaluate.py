"""Stages `evaluate` and `transfer-evaluate`: the metrics of a checkpoint."""

from dr_platform import road
from dr_platform.cli.console import Console, grade_argument, one_line_errors
from dr_platform.cli.tables import metric_table


def main() -> None:
    """`python -m pipelines.evaluate [--grade GRADE]`"""
    console = Console()
    with one_line_errors():
        project = road.Project.here().for_grade(grade_argument())
        with console.counting(f"evaluate grade {project.grade}", "images") as advance:
            report = road.evaluate(project, advance)
    console.show(metric_table(report))


if __name__ == "__main__":
    main()
