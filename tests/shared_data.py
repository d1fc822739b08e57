"""Data that lie beside the checkout, in ../shared, because they are too large for it or are not ours to pass on.

The published networks' golden numbers and the real photographs are such. Whoever has not got them can still run every
other test; continuous integration has them, and says so by DRP_REQUIRE_SHARED=1: a test that misses them then fails
instead of being skipped, so that parity is never lost in silence.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / "../shared"
GOLDEN = SHARED / "golden" / "stylegan3"
FUNDUS_MINI = SHARED / "data" / "fundus-mini"


def _needs(folder: Path, what: str) -> pytest.MarkDecorator:
    absent = not folder.is_dir() and os.environ.get("DRP_REQUIRE_SHARED") != "1"
    place = folder.relative_to(SHARED).as_posix()
    return pytest.mark.skipif(absent, reason=f"needs {what}: put them into ../shared/{place}, beside the checkout")


needs_golden = _needs(GOLDEN, "the golden numbers of the published networks")
needs_photographs = _needs(FUNDUS_MINI, "the CC BY 4.0 photographs of fundus-mini")
