"""The kernel through Triton's compiler and ptxas for sm_90 (H100, H200): no GPU is needed for that.

It must compile, keep its rings in registers, and fit shared memory, in both directions of every distinct layer.
"""

from __future__ import annotations

import json

import pytest
from kernel_cases import child

# (dtype, up, down, rank of the down filter): T has rank 1, R has 2 to 4.
PASSES = [("float16", *geometry) for geometry in ((2, 2, 1), (4, 2, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (4, 2, 2))]
PASSES += [("bfloat16", 2, 2, 1), ("float32", 2, 2, 1), ("float32", 4, 2, 2)]
MAX_SHARED_BYTES = 227 * 1024
MAX_STACK_BYTES = 256  # per thread; some spilling to L1 outside the loops


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict]:
    done = child("compiled.py", json.dumps(PASSES))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("index", range(len(PASSES)), ids=["-".join(map(str, p)) for p in PASSES])
def test_every_pass_compiles_and_fits_an_sm(compiled, index, direction):
    usage = compiled[f"{index} {direction}"]
    assert usage["shared"] <= MAX_SHARED_BYTES
    assert usage["stack"] <= MAX_STACK_BYTES
    assert usage["tensor core instructions"] > 0
