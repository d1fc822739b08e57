"""Claims about synthetic photographs: the truth they carry is the truth they show."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from dr_platform.data.phantom import DEFAULT_GRADES, Phantom, phantom
from dr_platform.errors import DataError


def green(p: Phantom) -> np.ndarray:
    return p.image[..., 1].astype(np.float64)


def around(p: Phantom, xy: tuple[float, float], inner_px: float, outer_px: float) -> np.ndarray:
    """Green of the pixels between two radii of a place."""
    y, x = np.ogrid[: p.image.shape[0], : p.image.shape[1]]
    away = np.hypot(x - xy[0], y - xy[1])
    return green(p)[(away >= inner_px) & (away <= outer_px)]


def test_the_same_seed_and_index_give_the_same_bytes() -> None:
    assert phantom(3, 17, 64).jpeg == phantom(3, 17, 64).jpeg
    assert phantom(3, 17, 64).jpeg != phantom(3, 18, 64).jpeg
    assert phantom(3, 17, 64).jpeg != phantom(4, 17, 64).jpeg


def test_a_photograph_does_not_depend_on_those_drawn_before_it() -> None:
    later = phantom(0, 9, 32).jpeg
    for index in range(9):
        phantom(0, index, 32)
    assert phantom(0, 9, 32).jpeg == later


def test_the_picture_is_what_the_jpeg_file_holds() -> None:
    p = phantom(1, 2, 48)
    file = Image.open(io.BytesIO(p.jpeg))
    assert (file.format, file.size, file.mode) == ("JPEG", (48, 48), "RGB")
    np.testing.assert_array_equal(np.asarray(file), p.image)


def test_a_scene_is_the_same_retina_at_every_size() -> None:
    small, large = phantom(2, 5, 64, grade=2), phantom(2, 5, 256, grade=2)
    assert [lesion.kind for lesion in small.lesions] == [lesion.kind for lesion in large.lesions]
    # A point at fraction u of the frame is pixel u * size - 0.5, as pixel centres are integers.
    for a, b in zip(small.lesions, large.lesions, strict=True):
        assert (a.x_px + 0.5) * 4 == pytest.approx(b.x_px + 0.5)
        assert (a.y_px + 0.5) * 4 == pytest.approx(b.y_px + 0.5)
        assert (a.diameter_px * 4, a.diameter_um) == pytest.approx((b.diameter_px, b.diameter_um))
    shrunk = np.asarray(Image.fromarray(large.image).resize((64, 64), Image.Resampling.BOX), np.float64)
    # Both are the same light integrated over the same pixels, but for point samples of smooth parts, noise and JPEG.
    assert np.abs(shrunk - small.image).mean() < 6
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.99


def test_fixing_the_grade_changes_the_lesions_alone() -> None:
    without, with_lesions = phantom(6, 1, 128, grade=0), phantom(6, 1, 128, grade=1)
    assert (without.disc_xy, without.patient, without.eye) == (
        with_lesions.disc_xy, with_lesions.patient, with_lesions.eye)  # fmt: skip
    different = np.abs(without.image.astype(int) - with_lesions.image).max(axis=2) > 12
    y, x = np.nonzero(different)
    for px, py in zip(x, y, strict=True):
        # A lesion of at most 1 pixel here, blurred; JPEG spreads what changes over a block of 8.
        assert min(np.hypot(lesion.x_px - px, lesion.y_px - py) for lesion in with_lesions.lesions) < 12


def test_a_microaneurysm_covers_one_to_four_pixels_at_512() -> None:
    found = [lesion for index in range(6) for lesion in phantom(0, index, 512, grade=1).lesions]
    assert {lesion.kind for lesion in found} == {"microaneurysm"}
    for lesion in found:
        assert 25 <= lesion.diameter_um <= 100
        assert 0.9 <= lesion.diameter_px <= 4.1


def test_microaneurysms_are_darker_than_what_surrounds_them() -> None:
    for index in range(6):
        p = phantom(8, index, 512, grade=1)
        for lesion in p.lesions:
            if lesion.diameter_px < 2:  # below that, the fraction of a pixel covered may drown in noise
                continue
            centre = around(p, (lesion.x_px, lesion.y_px), 0, 1.0).min()
            assert centre < np.median(around(p, (lesion.x_px, lesion.y_px), 5, 9)) - 4


@pytest.mark.parametrize(
    ("grade", "never", "always"),
    [
        (0, {"microaneurysm"}, set()),
        (1, {"dot_haemorrhage", "hard_exudate"}, {"microaneurysm"}),
        (2, {"neovascularisation", "preretinal_haemorrhage"}, {"microaneurysm", "dot_haemorrhage"}),
        (3, {"neovascularisation", "preretinal_haemorrhage"}, {"microaneurysm", "cotton_wool_spot"}),
        (4, set(), {"neovascularisation"}),
    ],
)
def test_each_grade_shows_its_lesions_and_no_higher_ones(grade: int, never: set[str], always: set[str]) -> None:
    for index in range(12):
        p = phantom(1, index, 16, grade=grade)
        kinds = {lesion.kind for lesion in p.lesions}
        assert p.grade == grade
        assert always <= kinds
        assert not never & kinds
        assert bool(kinds) == (grade > 0)


def test_grade_three_bleeds_in_all_four_quadrants() -> None:
    for index in range(10):
        p = phantom(4, index, 16, grade=3)
        bleeding = [lesion for lesion in p.lesions if lesion.kind.endswith("haemorrhage")]
        assert {(b.x_px > p.fov_xy[0], b.y_px > p.fov_xy[1]) for b in bleeding} == {
            (right, low) for right in (False, True) for low in (False, True)
        }


def test_every_lesion_lies_in_the_lit_field() -> None:
    for index in range(15):
        p = phantom(5, index, 128, grade=2 + index % 3)
        for lesion in p.lesions:
            # A lesion on the disc is allowed (new vessels); one outside the field is not.
            assert np.hypot(lesion.x_px - p.fov_xy[0], lesion.y_px - p.fov_xy[1]) < p.fov_radius
            assert p.image[round(lesion.y_px), round(lesion.x_px)].max() > 20


def test_the_disc_is_the_bright_spot_and_the_macula_the_dark_one() -> None:
    for index in range(10):
        p = phantom(7, index, 128, grade=0)
        level = np.median(around(p, p.fov_xy, 0, 0.6 * p.fov_radius))
        # A quarter of the pixels on the disc may belong to vessels.
        assert np.percentile(around(p, p.disc_xy, 0, 0.8 * p.disc_radius), 75) > 1.2 * level
        assert np.median(around(p, p.macula_xy, 2, 5)) < np.median(around(p, p.macula_xy, 15, 25))


def test_the_disc_is_nasal_to_the_macula() -> None:
    """Seen as in a photograph, nasal is to the right in a right eye. 15.5 degrees are 4.45 mm, a third of the field."""
    for index in range(20):
        p = phantom(9, index, 16)
        assert (p.disc_xy[0] > p.macula_xy[0]) == (p.eye == "right")
        away = np.hypot(p.disc_xy[0] - p.macula_xy[0], p.disc_xy[1] - p.macula_xy[1])
        assert 0.55 < away / p.fov_radius < 0.80
        assert 0.8 < p.disc_radius * p.um_per_px / 1000 < 1.2  # mm


def test_outside_the_field_it_is_dark() -> None:
    for index in range(10):
        p = phantom(2, index, 128)
        # The orientation tab lies within 4 % of the rim.
        assert np.median(around(p, p.fov_xy, 1.06 * p.fov_radius, 1e9)) < 12


def test_five_photographs_in_turn_belong_to_three_patients_with_one_or_two_different_eyes() -> None:
    photographs = [phantom(11, index, 16) for index in range(50)]
    eyes: dict[str, list[str]] = {}
    for p in photographs:
        eyes.setdefault(p.patient, []).append(p.eye)
    assert len(eyes) == 30
    assert sorted(map(len, eyes.values())) == [1] * 10 + [2] * 20
    assert all(len(set(seen)) == len(seen) for seen in eyes.values())
    assert {p.patient for p in photographs}.isdisjoint(phantom(12, index, 16).patient for index in range(5))


def test_the_two_eyes_of_a_patient_are_alike_in_colour() -> None:
    """Between the eyes of one patient colour differs less than between patients (medians over 20 of each)."""
    photographs = [phantom(13, index, 32, grade=0) for index in range(50)]
    colour = {i: p.image[8:24, 8:24].mean(axis=(0, 1)) / p.image[8:24, 8:24].mean() for i, p in enumerate(photographs)}
    same, other = [], []
    for i in range(49):
        distance = float(np.abs(colour[i] - colour[i + 1]).sum())
        (same if photographs[i].patient == photographs[i + 1].patient else other).append(distance)
    assert len(same) == 20
    assert np.median(same) < 0.5 * np.median(other)


def test_grades_come_in_the_shares_asked_for() -> None:
    n = 400
    shares = np.bincount([phantom(21, index, 16).grade for index in range(n)], minlength=5) / n
    # Fellow eyes share grades, so the variance is at most that of n / 2 independent draws; 4 standard deviations.
    spread = 4 * np.sqrt(np.array(DEFAULT_GRADES) * (1 - np.array(DEFAULT_GRADES)) / (n / 2))
    assert (np.abs(shares - DEFAULT_GRADES) < spread).all()
    assert {phantom(21, index, 16, grades=(0, 0, 1, 0, 0)).grade for index in range(20)} == {2}


def test_the_truth_survives_json() -> None:
    p = phantom(0, 3, 64, grade=3)
    truth = json.loads(json.dumps(p.truth()))
    assert truth["grade"] == 3
    assert truth["size"] == 64
    assert truth["disc_xy"] == list(p.disc_xy)
    assert len(truth["lesions"]) == len(p.lesions) > 0
    assert truth["lesions"][0]["diameter_um"] == p.lesions[0].diameter_um


@pytest.mark.parametrize(
    ("seed", "index", "size", "options"),
    [
        (-1, 0, 64, {}),
        (0, -1, 64, {}),
        (0, 0, 8, {}),
        (0, 0, 64, {"grade": 5}),
        (0, 0, 64, {"grades": (1, 1)}),
        (0, 0, 64, {"grades": (0, 0, 0, 0, 0)}),
        (0, 0, 64, {"grades": (1, -1, 1, 1, 1)}),
        (0, 0, 64, {"grades": (float("nan"), 1, 1, 1, 1)}),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(seed: int, index: int, size: int, options: dict) -> None:
    with pytest.raises(DataError) as caught:
        phantom(seed, index, size, **options)
    assert "\n" not in str(caught.value)


def test_microaneurysms_alone_come_and_go_with_their_dose() -> None:
    def split(times: float) -> tuple[list[tuple[float, float]], list[object]]:
        marks = phantom(5, 3, 64, grade=2, microaneurysms=times).lesions
        own = [(mark.x_px, mark.y_px) for mark in marks if mark.kind == "microaneurysm"]
        return own, [mark for mark in marks if mark.kind != "microaneurysm"]

    own, rest = split(1)
    assert phantom(5, 3, 64, grade=2, microaneurysms=1.0).jpeg == phantom(5, 3, 64, grade=2).jpeg
    for times in (0, 0.5, 2, 4):
        found, others = split(times)
        assert len(found) == round(times * len(own))
        assert others == rest
        assert set(found) <= set(own) if times < 1 else set(found) >= set(own)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="times its microaneurysms"):
            phantom(5, 3, 64, microaneurysms=bad)
