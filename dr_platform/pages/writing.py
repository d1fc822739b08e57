"""Where a page may lie: a public one anywhere, one with proprietary photographs in the directory that never leaves."""

from __future__ import annotations

import os
from pathlib import Path

from dr_platform import files
from dr_platform.errors import DataError

REPORTS = "reports"  # below results/: pages on models
PRIVATE = ("data", "import-reports")


def pages(root: Path) -> list[Path]:
    """The pages that lie where they usually do, public and private ones."""
    public = [page for place in ("results", f"results/{REPORTS}") for page in sorted((root / place).glob("*.html"))]
    return [*public, *sorted(root.joinpath(*PRIVATE).rglob("*.html"))]


def page_file(root: Path, out: Path | None, usual: str, *, private: bool) -> Path:
    """Where the page of a project goes. out: where it is wanted, or None. usual: its name below results/.

    Raises DataError if that is a directory, or if a private page would lie outside of data/import-reports.
    """
    inside, name = root.joinpath(*PRIVATE), Path(usual).name
    path = out or (inside / name if private else root / "results" / usual)
    if path.is_dir():
        raise DataError(f"{path} is a directory; the report is one file. Add a name such as {name}.")
    if private and not path.resolve().is_relative_to(inside.resolve()):
        raise DataError(
            f"{path} is outside of {'/'.join(PRIVATE)}, where alone a page with proprietary photographs may lie. "
            f"Leave out --out, or name a file below it."
        )
    return path


def store(path: Path, text: str, *, private: bool) -> None:
    """Store a page, atomically; a private one readable by this user alone, in a directory kept out of git."""
    content = text.encode()
    try:
        if not private:
            files.write_bytes(path, content)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ignore = path.parent / ".gitignore"
        if not ignore.exists():
            files.write_text(ignore, "*\n")
        before = os.umask(0o077)
        try:
            files.write_bytes(path, content)
        finally:
            os.umask(before)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}. Choose another place.") from error
