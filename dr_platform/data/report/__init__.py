"""The report on a data version: `collect` gathers it, `render` draws it as one page that needs nothing else."""

from dr_platform.data.report.facts import Report
from dr_platform.data.report.gathering import collect, numbers
from dr_platform.data.report.page import render
from dr_platform.data.report.writing import date_of, page_file, write

__all__ = ["Report", "collect", "date_of", "numbers", "page_file", "render", "write"]
