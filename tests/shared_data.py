"""Data that lie beside the checkout, in ../shared, and the marks of the tests that need them.

The golden numbers were made by running NVIDIA's networks, whose licence is not commercial, so this repository under
Apache-2.0 does not pass them on. Photographs (CC BY 4.0) and weights (Apache-2.0, MIT) could be passed on, but a clone
would be three times as large for them; the code that they try is tried on phantoms and on random weights everywhere.
A reader without them is told which tests they are missing for. Continuous integration has them, and says so by
DRP_REQUIRE_SHARED=1: what is missing is then a failure and no skip.
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


NO_GOLDEN, NO_PHOTOGRAPHS, NO_WEIGHTS = _missing(GOLDEN), _missing(FUNDUS_MINI), _missing(WEIGHTS)

needs_golden = pytest.mark.skipif(NO_GOLDEN, reason="no ../shared/golden: 22 MB by NVIDIA's non-commercial networks")
needs_photographs = pytest.mark.skipif(NO_PHOTOGRAPHS, reason="no ../shared/data: 11 MB of photographs, not in git")
needs_weights = pytest.mark.skipif(NO_WEIGHTS, reason="no ../shared/weights: 14 MB of weights by others, not in git")
