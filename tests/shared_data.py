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
WEIGHTS = SHARED / "weights"
FUNDUS_MINI = SHARED / "data" / "fundus-mini"


def _missing(folder: Path) -> bool:
    return not folder.is_dir() and os.environ.get("DRP_REQUIRE_SHARED") != "1"


needs_golden = pytest.mark.skipif(
    _missing(GOLDEN),
    reason="needs ../shared/golden/stylegan3: numbers of NVIDIA's networks, whose licence keeps them out of this "
    "repository. CI has them and fails without; benchmarks/results/golden-parity.txt holds the last comparison",
)
needs_photographs = pytest.mark.skipif(
    _missing(FUNDUS_MINI),
    reason="needs ../shared/data/fundus-mini: 1,644 photographs by others (HRF, IDRiD, RetinaMNIST, CC BY 4.0). CI has "
    "them and fails without; the same code is tested here on phantoms",
)
needs_weights = pytest.mark.skipif(
    _missing(WEIGHTS),
    reason="needs ../shared/weights: MobileNetV2 and W-Net, stand-in feature extractors that are not ours to pass on. "
    "CI has them and fails without",
)
