"""Which images are used: poor ones out with their numbers, one of each group of copies in, patients kept together."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from collection_rows import collection_record, image_row
from collection_rows import prepare_config as config

from dr_platform.data import duplicates
from dr_platform.data.collections import ImageRow
from dr_platform.data.measurements import Measurement
from dr_platform.data.quality import Quality
from dr_platform.data.screening import Source, screen
from dr_platform.records import Visibility

GOOD = Quality(
    field_found=True, aspect=1.5, radius=200, coverage=0.9, exposure=80, focus=0.5, contrast=0.1,
    red=140, green=70, blue=30, fundus_like=1.0,
)  # fmt: skip


def texture(seed: int) -> np.ndarray:
    """A fingerprint like that of a photograph: vessels' scale, nothing beyond the field."""
    noise = np.random.default_rng(seed).standard_normal((duplicates.SIDE, duplicates.SIDE))
    smooth = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))
    y, x = np.mgrid[-1 : 1 : duplicates.SIDE * 1j, -1 : 1 : duplicates.SIDE * 1j]
    return np.where(np.hypot(x, y) < 0.92, np.clip(smooth * 16, -127, 127), -128).astype(np.int8)


def source(
    name: str,
    visibility: Visibility,
    rows: list[ImageRow],
    prints: dict[str, int] | None = None,
    disc: float = 0.0,
    **seen: object,
) -> Source:
    """A collection. prints: seeds of the fingerprints of rows that share one; seen: changes of Quality."""
    record = collection_record(name, visibility, len(rows))
    looks = dataclasses.replace(GOOD, **seen)  # type: ignore[arg-type]
    measured = {
        row.image_id: Measurement(
            row.image_id,
            looks,
            0,
            disc,
            texture(
                (prints or {}).get(row.image_id, int(hashlib.sha256(f"{name}{index}".encode()).hexdigest()[:8], 16))
            ),
        )
        for index, row in enumerate(rows)
    }
    return Source(record, rows, measured)


def test_what_is_poor_is_left_out_with_the_number_found_and_the_one_needed() -> None:
    dark = source("a", "public", [image_row("x")], exposure=5.0)
    assert "mean brightness is 5; at least 20" in screen([dark], config()).left_out["public", "a", "x"]
    assert not screen([dark], config(quality={"enabled": False})).left_out
    assert not screen([dark], config(quality={"min_exposure": 4.0})).left_out


def test_copies_are_told_from_the_likeness_that_was_measured_as_theirs() -> None:
    assert config().near_duplicates == duplicates.THRESHOLD


def test_writing_at_the_rim_is_left_out_unless_it_may_stay() -> None:
    written = source("a", "public", [image_row("x")])
    written = dataclasses.replace(written, measured={"x": dataclasses.replace(written.measured["x"], text=2)})
    assert "writing at the rim (2 found)" in screen([written], config()).left_out["public", "a", "x"]
    assert not screen([written], config(rim_text="keep")).left_out


@pytest.mark.parametrize("how", ["equal files", "alike"])
def test_one_of_several_copies_is_used_and_it_is_public_if_one_is(how: str) -> None:
    digest = "f" * 64 if how == "equal files" else None
    prints = {"mine": 7, "theirs": 7} if how == "alike" else None
    private = source("a", "proprietary", [image_row("mine", digest=digest)], prints)
    public = source("b", "public", [image_row("theirs", digest=digest), image_row("other")], prints)
    found = screen([private, public], config())
    assert set(found.left_out) == {("proprietary", "a", "mine")}
    assert [(copy.first, copy.second) for copy in found.copies] == [
        (("public", "b", "theirs"), ("proprietary", "a", "mine"))
    ]


@pytest.mark.parametrize(("rule", "kept"), [("leave-out", None), ("lowest", 1), ("highest", 3)])
def test_copies_with_different_grades_follow_the_rule(rule: str, kept: int | None) -> None:
    rows = [image_row("x", grade=3), image_row("y", grade=1)]
    found = screen([source("a", "public", rows, {"x": 5, "y": 5})], config(conflicting_grades=rule))
    if kept is None:
        assert set(found.left_out) == {("public", "a", "x"), ("public", "a", "y")}
        assert all("different grades (1, 3)" in reason for reason in found.left_out.values())
    else:
        assert set(found.left_out) == {("public", "a", "y")}
        assert found.grades["public", "a", "x"] == kept


def test_patients_who_share_a_photograph_are_split_as_one() -> None:
    first = source("a", "public", [image_row("x", patient="p"), image_row("x2", patient="q")], {"x": 1, "x2": 2})
    second = source("b", "public", [image_row("y", patient="r"), image_row("z", patient="s")], {"y": 1, "z": 2})
    third = source("c", "public", [image_row("w", patient="r"), image_row("v", patient="t")], {"w": 2, "v": 3})
    found = screen([first, second, third], config())
    assert found.joined["a/p"] == found.joined["b/r"]
    assert found.joined["a/q"] == found.joined["b/s"] == found.joined["c/r"]
    assert "c/t" not in found.joined


def test_what_becomes_of_public_images_does_not_depend_on_proprietary_copies() -> None:
    rows = [image_row("x", grade=1, patient="p"), image_row("y", grade=2, patient="q"), image_row("z", grade=2)]
    public = source("b", "public", rows, {"x": 1, "y": 2})
    copies = [image_row("cx", grade=3, patient="r"), image_row("cy", grade=2, patient="r")]
    private = source("a", "proprietary", copies, {"cx": 1, "cy": 2})
    alone, together = (screen(sources, config()) for sources in ([public], [private, public]))
    assert {key for key in together.left_out if key[0] == "public"} == set(alone.left_out) == set()
    assert not together.grades.keys() - alone.grades.keys()
    for patient in ("b/p", "b/q"):
        assert together.joined.get(patient, patient) == alone.joined.get(patient, patient) == patient
    assert together.joined["a/r"] in ("b/p", "b/q")
    assert {key[2] for key in together.left_out} == {"cx", "cy"}


def test_small_pictures_are_compared_by_their_files_alone() -> None:
    rows = [image_row("x"), image_row("y")]
    assert not screen([source("a", "public", rows, {"x": 5, "y": 5}, radius=20.0)], config()).left_out


def test_without_a_threshold_only_equal_files_are_copies() -> None:
    rows = [image_row("x"), image_row("y")]
    assert not screen([source("a", "public", rows, {"x": 5, "y": 5})], config(near_duplicates=None)).left_out


def test_photographs_that_face_the_wrong_way_are_left_out_only_on_demand() -> None:
    rows = [dataclasses.replace(image_row(f"x{eye}"), eye=eye) for eye in ("right", "left", None)]
    here = source("a", "public", rows, disc=-9.0)  # the disc lies on the left in all three
    assert not screen([here], config()).left_out
    (key,) = found = screen([here], config(inverted_views="leave-out")).left_out
    assert key[2] == rows[0].image_id
    assert "the disc lies where that of the other eye does; a right eye, upright, is needed" in found[key]
    (key,) = found = screen([here], config(laterality="right")).left_out
    assert key[2] == rows[2].image_id
    assert "which eye it shows is not known" in found[key]
