"""Stages `prepare`, `classes` and `transfer-prepare`: raw collections to shards of one grade at one resolution."""

from collections import Counter

from dr_platform import road
from dr_platform.cli.console import Console, one_line_errors, stage_arguments
from dr_platform.data.manifest import prepared_directory
from dr_platform.data.prepare import SKIPPED_FILE, read_skipped
from dr_platform.data.report.gathering import read_reason


def main() -> None:
    """`python -m pipelines.prepare [--grade GRADE [--as-class]]`"""
    console = Console()
    with one_line_errors():
        arguments = stage_arguments()
        project = road.Project.here().for_grade(arguments.grade)
        with console.counting(f"prepare grade {project.grade}", "images") as advance:
            manifests = road.prepare(project, advance, as_class=arguments.as_class)
    for visibility, manifest in manifests.items():
        console.say(f"{visibility}: {manifest.train} to train on, {manifest.held_out_images} held out")
        if manifest.skipped:
            target = project.classes if arguments.as_class else project.prepared
            directory = prepared_directory(target, visibility, project.grade)
            table = (directory / SKIPPED_FILE).relative_to(project.root)
            console.say(
                f"{visibility}: {manifest.skipped} left out ({often(read_skipped(directory))}), each in {table}"
            )


def often(skipped: list[dict[str, str]], most: int = 3) -> str:
    """The most frequent reasons, each with its number: "21 which eye it shows is not known, 3 focus"."""
    counts = Counter(read_reason(row["reason"])[0] for row in skipped)
    said = [f"{count} {what[:1].lower()}{what[1:]}" for what, count in counts.most_common(most)]
    return ", ".join(said) + (", …" if len(counts) > most else "")


if __name__ == "__main__":
    main()
