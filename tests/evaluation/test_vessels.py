"""Claims about vessel measures: planted bands, arcs and fractals give back what they are, and W-Net its reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from shared_data import WEIGHTS, needs_weights

from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import vessels as v
from dr_platform.evaluation.wnet import load_wnet

WNET = WEIGHTS / "wnet_drive_vessels.safetensors"


def band(course: np.ndarray, width: float, side: int = 400) -> np.ndarray:
    """Pixels within half the width of a course [n, 2] as (y, x)."""
    on = np.ones((side, side), bool)
    at = np.rint(course).astype(int)
    on[at[:, 0], at[:, 1]] = False
    return ndimage.distance_transform_edt(on) < width / 2


@pytest.mark.parametrize("width", [3, 5, 8, 11])
@pytest.mark.parametrize("turn", [0, 20, 45, 70, 90])
def test_the_calibre_of_a_band_is_found_within_a_pixel(width: int, turn: float) -> None:
    along = np.linspace(-150, 150, 3000)
    y, x = 200 + along * math.sin(math.radians(turn)), 200 + along * math.cos(math.radians(turn))
    mask = band(np.column_stack((y, x)), width)
    true = mask.sum() / 300  # area over length
    middle = v.calibre(mask, v.skeleton(mask), 1.0)[1]
    assert middle == pytest.approx(true, abs=1.0)


@pytest.mark.parametrize("angle", [40, 90, 180])
def test_the_tortuosity_of_an_arc_is_found(angle: float) -> None:
    turn = np.radians(np.linspace(-angle / 2, angle / 2, 4000))
    mask = band(np.column_stack((200 - 120 * np.sin(turn), 100 + 120 * np.cos(turn))), 5)
    line = v.skeleton(mask)
    y, x = np.nonzero(line)
    half = float(np.abs(np.arctan2(200 - y, x - 100)).max())  # thinning shortens the ends
    # Half a pixel at either end of a chord of 80 or more is 1.2 % at most.
    assert v.tortuosity(line, 26.0) == pytest.approx(half / math.sin(half), rel=0.012)


def test_box_counting_knows_lines_areas_and_a_carpet() -> None:
    carpet = np.ones((1, 1), bool)
    for _ in range(6):
        row = np.hstack((carpet, carpet, carpet))
        carpet = np.vstack((row, np.hstack((carpet, np.zeros_like(carpet), carpet)), row))
    assert v.fractal_dimension(np.eye(512, dtype=bool)) == pytest.approx(1, abs=0.05)
    assert v.fractal_dimension(np.ones((512, 512), bool)) == pytest.approx(2, abs=0.05)
    assert v.fractal_dimension(carpet) == pytest.approx(math.log(8) / math.log(3), abs=0.06)
    assert v.fractal_dimension(np.zeros((64, 64), bool)) == 0


def test_a_skeleton_is_thin_and_as_connected_as_its_mask() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((200, 200)), 4) > 0.01
    line = v.skeleton(mask)
    eight = np.ones((3, 3))
    assert (line <= mask).all()
    assert ndimage.label(line, eight)[1] == ndimage.label(mask, eight)[1]
    assert not ndimage.minimum_filter(line, 3).any()


def test_wider_and_more_vessels_are_told_by_the_classical_filter() -> None:
    found = v.vessels(phantom(7, 1, 512).image)
    assert found.reason is None
    assert found.source == v.CLASSICAL
    assert found.share is not None
    assert 0.04 < found.share < 0.25
    empty = v.vessels(np.full((256, 256, 3), 90, np.uint8))
    assert empty.share is None
    assert "shorter together" in (empty.reason or "")
    assert "µm per pixel" in (v.vessels(phantom(7, 1, 128).image).reason or "")


@needs_weights
def test_wnet_reproduces_its_reference() -> None:
    reference = np.load(WEIGHTS / "wnet_reference.npz")
    found = load_wnet(WNET).probability(reference["image"])
    assert np.abs(found - reference["prob"]).max() < 5e-4  # float16 is good to 2.4e-4 below 1


@needs_weights
def test_a_file_that_is_not_wnet_is_refused(tmp_path: Path) -> None:
    tensors = load_file(WNET)
    del tensors["unet2.final.bias"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(EvaluationError, match=r"unet2\.final\.bias"):
        load_wnet(tmp_path / "part.safetensors")
    (tmp_path / "noise").write_bytes(b"noise")
    for name in ("noise", "absent"):
        with pytest.raises(EvaluationError, match="cannot be read"):
            load_wnet(tmp_path / name)
