"""Where a data report lies, and the date it bears."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from dr_platform.data.report.facts import Report
from dr_platform.data.report.page import render
from dr_platform.errors import DataError
from dr_platform.pages import writing

PAGE_FILE = "data-report.html"


def page_file(root: Path, out: Path | None, *, include_proprietary: bool) -> Path:
    """Where the page of a project goes. out: where it is wanted, or None.

    Raises DataError if that is a directory, or if a proprietary page would lie outside of data/import-reports.
    """
    return writing.page_file(root, out, PAGE_FILE, private=include_proprietary)


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
    writing.store(path, render(report), private=report.proprietary)
