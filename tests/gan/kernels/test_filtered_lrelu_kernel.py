"""The Triton kernel in Triton's interpreter: against the definition in float64, and against the plain form.

The numbers come from `interpreted.py`, run once in a process of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import BY_NAME, child

from dr_platform.gan import kernels
from dr_platform.gan.filters import lowpass_filter

pytestmark = pytest.mark.xdist_group("triton-interpreter")

# Unit roundoffs. The interpreter truncates to bfloat16, where a GPU rounds to nearest: twice as much.
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-7}
# Roundings on the way to a result: before and after each product with a banded matrix, its taps, the result itself.
# Errors of many roundings add up as a random walk.
HALF = math.sqrt(6)
# In float32 a result is a chain of sums, 6 + 24 + 24 + 6 terms long at most; sums over pixels are longer.
SINGLE = math.sqrt(60)
RADIAL = 1e-4  # the tolerance of the factors


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    done = child("interpreted.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def tolerance(name: str) -> float:
    case = BY_NAME[name]
    rounding = UNIT[case.dtype] * (SINGLE if case.dtype == "float32" else HALF)
    return rounding + RADIAL * case.radial


@pytest.mark.parametrize("name", BY_NAME)
def test_the_result_equals_its_definition(found, name):
    assert found[name]["forward"] < tolerance(name)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("leaf", ["x", "bias", "scale"])
def test_gradients_equal_those_of_the_definition_at_the_recorded_slopes(found, name, leaf):
    assert found[name][f"gradient of {leaf}"] < tolerance(name)


@pytest.mark.parametrize("name", BY_NAME)
def test_recorded_slopes_differ_from_the_definitions_only_next_to_a_kink(found, name):
    # Two roundings (input and taps) of samples of about 1, whose 12 products have an absolute sum of about 3.
    unit = max(UNIT[BY_NAME[name].dtype], UNIT["float16"] if "float16" in name else 0)
    assert found[name]["missed codes"] < 2 * 3 * unit


@pytest.mark.parametrize("name", BY_NAME)
def test_the_sum_of_squares_is_that_of_the_result(found, name):
    # Taken before the result is rounded, and squaring doubles a relative error.
    assert found[name]["power"] < 2 * tolerance(name)


def test_memory_layout_changes_no_bit_and_the_result_is_channels_last(found):
    assert found["layouts"] == {"forward": 0, "backward": 0, "channels last": 1}


@pytest.mark.parametrize("quantity", ["forward", "backward", "power"])
def test_how_the_work_is_cut_up_changes_only_the_rounding(found, quantity):
    assert found["cuts"][quantity] < SINGLE * UNIT["float32"]


@pytest.mark.parametrize("leaf", ["x", "scale", "dy"])
def test_second_derivatives_equal_those_of_the_plain_form(found, leaf):
    # A gradient of a gradient passes through the kernel three times.
    assert found["second order"][leaf] < 3 * SINGLE * UNIT["float32"]


def test_pytorch_finds_the_operators_well_registered(found):
    assert set(found["opcheck"].values()) == {"SUCCESS"}
    assert len(found["opcheck"]) == 8


@pytest.mark.parametrize("config", ["T", "R"])
@pytest.mark.parametrize("quantity", ["images", "gradients", "averages"])
def test_generators_with_and_without_the_kernel_agree(found, config, quantity):
    # Two float32 computations of five layers each, and in R the approximate radial filters.
    assert found["generators"][f"{config} {quantity}"] < 10 * SINGLE * UNIT["float32"] + RADIAL * (config == "R")


# --- Which calls are the kernel's -------------------------------------------------------------------------------------


@pytest.fixture
def interpreting(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def arguments(**changes):
    filter = lowpass_filter(12, 2.0, 12.0, 32.0)
    call = {"x": torch.zeros(1, 4, 8, 8), "up_filter": filter, "down_filter": filter, "up": 2, "down": 2}
    return {**call, **changes}


@pytest.mark.usefixtures("interpreting")
def test_the_kernel_takes_a_layer_of_the_tables():
    assert kernels.applies(**arguments())
    assert kernels.applies(**arguments(down_filter=lowpass_filter(12, 2.0, 12.0, 32.0, radial=True)))
    assert kernels.applies(**arguments(up=4, up_filter=lowpass_filter(24, 2.0, 12.0, 64.0)))


@pytest.mark.usefixtures("interpreting")
@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.zeros(1, 4, 8, 8, dtype=torch.float64)},
        {"up": 3},
        {"up_filter": torch.ones(13)},  # no whole number of taps per input
        {"down_filter": torch.ones(12, 10)},
        {"up_filter": torch.ones(48)},  # would not fit the registers
    ],
    ids=["float64", "up 3", "13 taps", "not square", "48 taps"],
)
def test_what_the_kernel_does_not_cover_stays_with_the_plain_form(changes):
    assert not kernels.applies(**arguments(**changes))


@pytest.mark.usefixtures("interpreting")
def test_one_switch_turns_the_kernels_off_and_a_block_restores_it():
    with kernels.enabled(False):
        assert not kernels.applies(**arguments())
        with kernels.enabled(True):
            assert kernels.applies(**arguments())
    assert kernels.applies(**arguments())


def test_cpu_tensors_take_the_plain_form(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.applies(**arguments())


def test_importing_the_networks_imports_no_triton():
    # torch itself looks for Triton, so what counts is our module that imports it at once.
    script = "import sys, dr_platform.gan; print([name for name in sys.modules if 'gan.kernels.' in name])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
