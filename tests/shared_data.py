"""Data that lie beside the checkout, in ../shared, because they are too large for it or are not ours to pass on.

The published networks' golden numbers and the real photographs are such. Whoever has not got them can still run every
other test, and is told why not these. Continuous integration has them, and says so by DRP_REQUIRE_SHARED=1: a test that
misses them then fails instead of being skipped, so that parity is never lost in silence.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / "../shared"
GOLDEN = SHARED / "golden" / "stylegan3"
FUNDUS_MINI = SHARED / "data" / "fundus-mini"


def _needs(folder: Path, reason: str) -> pytest.MarkDecorator:
    absent = not folder.is_dir() and os.environ.get("DRP_REQUIRE_SHARED") != "1"
    return pytest.mark.skipif(absent, reason=reason)


needs_golden = _needs(
    GOLDEN,
    "compares with numbers computed by NVIDIA's networks, whose non-commercial licence keeps them out of this "
    "repository; continuous integration has them and fails without (see benchmarks/results/golden-parity.txt)",
)
needs_photographs = _needs(
    FUNDUS_MINI,
    "looks at 1,644 photographs by others (HRF, IDRiD, RetinaMNIST, CC BY 4.0), which are no part of this repository; "
    "continuous integration has them and fails without, and the same code is tested here on synthetic ones",
)
