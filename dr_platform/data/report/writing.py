"""Where a report may lie: a public one anywhere, a proprietary one in the directory that never leaves the site."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

from dr_platform import files
from dr_platform.data.report.facts import Report
from dr_platform.data.report.page import render
from dr_platform.errors import DataError

PAGE_FILE = "data-report.html"
_PRIVATE = ("data", "import-reports")


def page_files(root: Path) -> tuple[Path, Path]:
    """Where the public and the proprietary page lie unless another place is named."""
    return root / "results" / PAGE_FILE, root.joinpath(*_PRIVATE) / PAGE_FILE


def page_file(root: Path, out: Path | None, *, include_proprietary: bool) -> Path:
    """Where the page of a project goes. out: where it is wanted, or None.

    Raises DataError if that is a directory, or if a proprietary page would lie outside of data/import-reports.
    """
    private = root.joinpath(*_PRIVATE)
    path = out or page_files(root)[include_proprietary]
    if path.is_dir():
        raise DataError(f"{path} is a directory; the report is one file. Add a name such as {PAGE_FILE}.")
    if include_proprietary and not path.resolve().is_relative_to(private.resolve()):
        raise DataError(
            f"{path} is outside of {'/'.join(_PRIVATE)}, where alone a page with proprietary photographs may lie. "
            f"Leave out --out, or name a file below it."
        )
    return path


def date_of(text: str | None) -> str | None:
    """The date as given. Raises DataError unless it is None or YYYY-MM-DD."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise DataError(f"--date is {text!r}; a day such as 2026-11-20 is needed.") from None


def write(path: Path, report: Report) -> None:
    """Store the page, atomically; a proprietary one readable by this user alone, in a directory kept out of git."""
    content = render(report).encode()
    try:
        if not report.proprietary:
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
