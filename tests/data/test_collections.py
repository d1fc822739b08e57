"""Raw collections: what is written is read back, what is damaged is refused, and the two visibilities never meet."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from collection_rows import image_row
from PIL import Image

from dr_platform import files
from dr_platform.config import PhantomConfig
from dr_platform.data import collections
from dr_platform.data.measurements import measure
from dr_platform.data.phantom import phantom
from dr_platform.errors import DataError

CONFIG = PhantomConfig(
    visibilities=["public", "proprietary"],
    images={"public": 12, "proprietary": 7},
    size=32,
    grade_weights=[1, 1, 1, 1, 1],
    seed=3,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for visibility in CONFIG.visibilities:
        collections.write_phantoms(tmp_path / visibility / "phantom", CONFIG, visibility)
    return tmp_path


def test_a_collection_tells_what_it_holds(raw: Path) -> None:
    record, rows = collections.read_collection(raw / "public" / "phantom")
    assert (record.name, record.visibility, record.images, record.rejected) == ("phantom", "public", 12, 0)
    assert len(rows) == 12
    assert [found.visibility for found in collections.list_collections(raw)] == ["public", "proprietary"]


def test_phantoms_are_the_photographs_of_their_seed_and_index(raw: Path) -> None:
    directory = raw / "public" / "phantom"
    _, rows = collections.read_collection(directory)
    for index, row in enumerate(rows):
        drawn = phantom(CONFIG.seed, index, CONFIG.size, grades=CONFIG.grade_weights)
        assert np.array_equal(collections.read_image(directory, row), drawn.image)
        assert (row.grade, row.eye, row.patient_id) == (drawn.grade, drawn.eye, drawn.patient)


def test_the_truth_of_each_phantom_lies_beside_it(raw: Path) -> None:
    directory = raw / "proprietary" / "phantom"
    _, rows = collections.read_collection(directory)
    truths = [json.loads(line) for line in (directory / collections.TRUTH_FILE).read_text().splitlines()]
    assert [truth["image_id"] for truth in truths] == [row.image_id for row in rows]
    assert [truth["grade"] for truth in truths] == [row.grade for row in rows]
    assert all((truth["grade"] == 0) == (not truth["lesions"]) for truth in truths)


def test_public_and_proprietary_phantoms_share_no_photograph_and_no_patient(raw: Path) -> None:
    public, proprietary = (collections.read_collection(raw / label / "phantom")[1] for label in CONFIG.visibilities)
    for field in ("image_id", "patient_id", "sha256"):
        assert not {getattr(row, field) for row in public} & {getattr(row, field) for row in proprietary}


def test_the_same_configuration_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    collections.write_phantoms(tmp_path / "again", CONFIG, "public")
    assert files.content_digest(tmp_path / "again") == files.content_digest(raw / "public" / "phantom")


def test_an_interrupted_drawing_leaves_the_earlier_collection(raw: Path) -> None:
    directory = raw / "public" / "phantom"
    before = files.content_digest(raw)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    other = CONFIG.model_copy(update={"seed": 4})
    with pytest.raises(KeyboardInterrupt):
        collections.write_phantoms(directory, other, "public", interrupt)
    assert files.content_digest(raw) == before


def test_a_changed_table_is_refused(raw: Path) -> None:
    labels = raw / "public" / "phantom" / collections.LABELS_FILE
    labels.write_text(labels.read_text().replace("phantom-3-00000001,", "phantom-3-99999999,"))
    with pytest.raises(DataError, match=r"labels\.csv was changed"):
        collections.read_collection(labels.parent)


def test_a_damaged_image_is_refused_by_name(raw: Path) -> None:
    directory = raw / "public" / "phantom"
    _, rows = collections.read_collection(directory)
    damaged, missing = directory / rows[0].file, directory / rows[1].file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    missing.unlink()
    with pytest.raises(DataError, match=rf"{damaged.name} is damaged"):
        collections.read_image(directory, rows[0])
    with pytest.raises(DataError, match=rf"{missing.name} is missing"):
        collections.read_image(directory, rows[1])


def test_an_image_is_in_a_collection_once(raw: Path, tmp_path: Path) -> None:
    _, rows = collections.read_collection(raw / "public" / "phantom")
    twice = [rows[0], replace(rows[1], image_id=rows[0].image_id)]
    with pytest.raises(DataError, match="phantom-3-00000000' twice"):
        collections.finish_collection(tmp_path, twice, [], "phantom", "public", "phantom")
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize("name", ["", "../public", "Clinic", "a/b", "-a", ".hidden", "a b", "klinik-ä"])
def test_a_name_that_is_no_directory_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be the name of a collection"):
        collections.collection_directory(tmp_path, "public", name)


def test_measurements_are_read_back_as_they_were_taken(raw: Path) -> None:
    directory = raw / "public" / "phantom"
    record, rows = collections.read_collection(directory)
    found = collections.read_measurements(directory, record)
    assert list(found) == [row.image_id for row in rows]
    for row in rows[:3]:
        again = measure(row.image_id, collections.read_image(directory, row))
        assert (found[row.image_id].quality, found[row.image_id].text) == (again.quality, again.text)
        assert np.array_equal(found[row.image_id].fingerprint, again.fingerprint)


def test_changed_measurements_are_refused(raw: Path) -> None:
    directory = raw / "public" / "phantom"
    record, _ = collections.read_collection(directory)
    with open(directory / "measurements.parquet", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match=r"measurements\.parquet is missing or was changed"):
        collections.read_measurements(directory, record)


def test_a_large_jpeg_may_be_decoded_smaller_but_not_below_what_is_asked(tmp_path: Path) -> None:
    y, x = np.mgrid[0:256, 0:320]
    picture = np.stack([x % 256, y, (x + y) % 256], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    row = replace(image_row("a", digest=hashlib.sha256(content).hexdigest()), file="a.jpg")
    assert collections.read_image(tmp_path, row).shape == (256, 320, 3)
    assert collections.read_image(tmp_path, row, smallest=100).shape == (128, 160, 3)
    assert collections.read_image(tmp_path, row, smallest=129).shape == (256, 320, 3)
