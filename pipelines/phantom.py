"""Stage `phantom`: draw a raw collection of synthetic fundus photographs."""

import sys

from dr_platform import road
from dr_platform.cli.console import Console, one_line_errors
from dr_platform.config import Visibility


def main() -> None:
    """`python -m pipelines.phantom public|proprietary`"""
    visibility: Visibility = "proprietary" if sys.argv[1:] == ["proprietary"] else "public"
    console = Console()
    with one_line_errors(), console.counting(f"phantom {visibility}", "images") as advance:
        collection = road.draw_phantoms(road.Project.here(), visibility, advance)
    console.say(f"{collection.images} {visibility} photographs drawn")


if __name__ == "__main__":
    main()
