"""The split and the order of subsets: functions of identity alone, whatever else is in the collection."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
from collection_rows import collection_record, image_row

from dr_platform.config import PrepareConfig
from dr_platform.data import manifest
from dr_platform.data.collections import ImageRow
from dr_platform.errors import DataError

COLLECTION = collection_record()
CONFIG = PrepareConfig(
    collections=["clinic"], visibility="all", grade=1, resolution=32, held_out=0.25, seed=5, shard_images=8
)


def image(number: int, grade: int | None = 1, patient: str | None = None) -> ImageRow:
    return image_row(f"img-{number}", grade, patient)


def choose(rows: list[ImageRow], **changes: object) -> list[manifest.Candidate]:
    return manifest.in_order(manifest.choose(COLLECTION, rows, CONFIG.model_copy(update=changes)))


def test_a_patient_is_never_in_two_splits() -> None:
    rows = [image(n, grade=n % 5, patient=f"patient-{n % 40}") for n in range(400)]
    sides: dict[str, set[str]] = {}
    for grade in range(5):
        for resolution in (32, 512):
            for candidate in choose(rows, grade=grade, resolution=resolution):
                sides.setdefault(candidate.patient, set()).add(candidate.split)
    assert len(sides) == 40
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for splits in sides.values() for split in splits} == {"train", "held-out"}


def test_the_held_out_share_of_patients_is_the_configured_one() -> None:
    n, share = 4000, 0.25
    held_out = sum(manifest.split_of(f"clinic/{k}", 5, share) == "held-out" for k in range(n))
    # Binomial: five standard deviations.
    assert abs(held_out - n * share) < 5 * math.sqrt(n * share * (1 - share))


def test_a_larger_share_holds_out_the_same_patients_and_more() -> None:
    smaller, larger = (
        {k for k in range(300) if manifest.split_of(str(k), 0, share) == "held-out"} for share in (0.1, 0.4)
    )
    assert smaller < larger


def test_no_share_holds_out_nobody() -> None:
    assert all(manifest.split_of(str(k), 0, 0.0) == "train" for k in range(500))


def test_the_split_is_the_documented_hash() -> None:
    uniform = int(hashlib.sha256(b"5:clinic/anna").hexdigest()[:16], 16) / 2**64
    assert manifest.split_of("clinic/anna", 5, uniform) == "train"
    assert manifest.split_of("clinic/anna", 5, math.nextafter(uniform, 1)) == "held-out"


def test_an_image_without_a_patient_is_a_patient_of_its_own() -> None:
    chosen = choose([image(n) for n in range(50)])
    assert len({candidate.patient for candidate in chosen}) == 50


def test_the_same_patient_number_in_two_collections_is_two_patients() -> None:
    other = COLLECTION.model_copy(update={"name": "hospital"})
    row = image(0, patient="7")
    first, second = (manifest.choose(collection, [row], CONFIG)[0] for collection in (COLLECTION, other))
    assert first.patient != second.patient
    assert first.image_id != second.image_id


def test_an_unknown_grade_is_never_chosen() -> None:
    assert not any(choose([image(0, grade=None)], grade=grade) for grade in range(5))


def test_more_images_keep_the_order_of_those_there_were() -> None:
    few, many = choose([image(n) for n in range(60)]), choose([image(n) for n in range(200)])
    before = {candidate.image_id for candidate in few}
    assert [candidate for candidate in many if candidate.image_id in before] == few


def test_the_order_is_another_one_for_another_seed() -> None:
    rows = [image(n) for n in range(60)]
    assert [c.image_id for c in choose(rows)] != [c.image_id for c in choose(rows, seed=6)]


def stored(directory: Path) -> list[manifest.ManifestRow]:
    chosen = choose([image(n, patient=f"Jane Doe {n // 2}") for n in range(20)])
    ranks = {"train": 0, "held-out": 0}
    rows = []
    for candidate in chosen:
        rows.append(manifest.row_of(candidate, 1, ranks[candidate.split], "f" * 64))
        ranks[candidate.split] += 1
    manifest.write_manifest(directory, rows, "proprietary", CONFIG, skipped=3)
    return rows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    record, found = manifest.read_manifest(tmp_path)
    assert found == rows
    assert (record.train + record.held_out_images, record.skipped) == (20, 3)
    assert record.patients_train + record.patients_held_out == 10
    assert record.shares[0].collection == "clinic"


def test_no_rows_come_back_as_none(tmp_path: Path) -> None:
    record = manifest.write_manifest(tmp_path, [], "public", CONFIG, skipped=0)
    assert manifest.read_manifest(tmp_path) == (record, [])


def test_a_manifest_names_neither_images_nor_patients(tmp_path: Path) -> None:
    stored(tmp_path)
    for name in (manifest.ROWS_FILE, manifest.RECORD_FILE):
        content = (tmp_path / name).read_bytes()
        assert b"Jane" not in content
        assert b"img-" not in content


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    path = tmp_path / manifest.ROWS_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.parquet is damaged.*dvc repro prepare"):
        manifest.read_manifest(tmp_path)
