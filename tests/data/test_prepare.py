"""From raw collections to shards: equal input gives equal bytes, and nothing proprietary is on the public side."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared_data import FUNDUS_MINI, needs_photographs

from dr_platform import files
from dr_platform.config import PhantomConfig, PrepareConfig
from dr_platform.data import collections, manifest, pixels, shards
from dr_platform.data.fundus import standardise
from dr_platform.data.ingest import ingest
from dr_platform.data.loader import load_images
from dr_platform.data.phantom import phantom
from dr_platform.data.prepare import prepare
from dr_platform.data.pseudonyms import Key, pseudonym
from dr_platform.errors import DataError
from dr_platform.records import ShardIndex, Visibility

PHANTOMS = PhantomConfig(
    visibilities=["public", "proprietary"],
    images={"public": 24, "proprietary": 12},
    size=32,
    grade_weights=[0, 3, 1, 0, 0],
    seed=2,
)
KEY = Key(b"k" * 32)
CONFIG = PrepareConfig(
    collections=["phantom"], visibility="all", grade=1, resolution=16, held_out=0.25, seed=0, shard_images=6
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for visibility in PHANTOMS.visibilities:
        collections.write_phantoms(root / visibility / "phantom", PHANTOMS, visibility)
    return root


@pytest.fixture
def raw(drawn: Path, tmp_path: Path) -> Path:
    """Phantoms of both visibilities, to be changed at will."""
    return Path(shutil.copytree(drawn, tmp_path / "raw"))


def add_collection(
    raw: Path, name: str, visibility: Visibility, pictures: dict[str, np.ndarray], grade: int = 1
) -> Path:
    folder = raw.parent / f"{name}-source"
    folder.mkdir()
    for image_id, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{image_id}.png")
    labels = folder / "labels.csv"
    labels.write_text("image_id,grade\n" + "".join(f"{image_id},{grade}\n" for image_id in pictures))
    return ingest(folder, labels, name, visibility, raw, key=KEY).directory


def photographs(count: int, first: int = 500) -> dict[str, np.ndarray]:
    return {f"photo-{n}": phantom(7, first + n, 32, grade=1).image for n in range(count)}


def change(**changes: object) -> PrepareConfig:
    return CONFIG.model_copy(update=changes)


def test_prepared_images_are_the_standardised_photographs_of_the_grade(raw: Path, tmp_path: Path) -> None:
    manifests = prepare(raw, tmp_path / "out", CONFIG)
    expected = {}
    for visibility in PHANTOMS.visibilities:
        directory = raw / visibility / "phantom"
        for row in collections.read_collection(directory)[1]:
            if row.grade == 1:
                expected[row.sha256] = standardise(collections.read_image(directory, row), 16)
    found = {
        row.raw_sha256: image
        for split in manifest.SPLITS
        for images in [load_images(tmp_path / "out", 1, split=split)]
        for row, image in zip(images.rows, images.images, strict=True)
    }
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert sum(record.train + record.held_out_images for record in manifests.values()) == len(expected)


def test_the_same_input_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    add_collection(raw, "clinic", "proprietary", photographs(4))
    prepare(raw, tmp_path / "a", change(collections=["phantom", "clinic"]))
    prepare(raw, tmp_path / "b", change(collections=["clinic", "phantom"]))
    assert files.content_digest(tmp_path / "a") == files.content_digest(tmp_path / "b")


def test_the_public_side_does_not_depend_on_proprietary_images(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "all", CONFIG)
    prepare(raw, tmp_path / "public", change(visibility="public-only"))
    assert files.content_digest(tmp_path / "all" / "public") == files.content_digest(tmp_path / "public" / "public")


def test_public_only_contains_no_proprietary_digest_or_name(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "all", CONFIG)
    secret = load_images(tmp_path / "all", 1).rows
    names = [
        text.encode()
        for row in secret
        if row.visibility == "proprietary"
        for text in (row.sha256, row.raw_sha256, row.image_id, row.patient, row.rank_key)
    ]
    assert names
    prepare(raw, tmp_path / "out", change(visibility="public-only"))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [name for name in names if name in everything]
    assert ShardIndex.read(tmp_path / "out" / "proprietary" / "grade-1" / shards.INDEX_FILE).shards == ()


def test_a_patient_keeps_the_side_for_every_grade(raw: Path, tmp_path: Path) -> None:
    sides: dict[str, set[str]] = {}
    grades: dict[str, set[int]] = {}
    for grade in (1, 2):
        prepare(raw, tmp_path / "out", change(grade=grade))
        for visibility in PHANTOMS.visibilities:
            directory = manifest.prepared_directory(tmp_path / "out", visibility, grade)
            for row in manifest.read_manifest(directory)[1]:
                sides.setdefault(row.patient, set()).add(row.split)
                grades.setdefault(row.patient, set()).add(grade)
    assert any(len(found) == 2 for found in grades.values())
    assert all(len(found) == 1 for found in sides.values())


def test_an_interrupted_run_leaves_no_index_and_earlier_results(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", CONFIG, interrupt)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    prepare(raw, tmp_path / "out", CONFIG)
    before = files.content_digest(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", change(seed=1), interrupt)
    assert files.content_digest(tmp_path / "out") == before


def test_what_shows_no_field_of_view_is_skipped_and_listed_on_its_own_side(raw: Path, tmp_path: Path) -> None:
    black = np.zeros((32, 32, 3), dtype=np.uint8)
    add_collection(raw, "clinic", "proprietary", photographs(5) | {"secret-black": black})
    manifests = prepare(raw, tmp_path / "out", change(collections=["clinic", "phantom"]))
    assert (manifests["public"].skipped, manifests["proprietary"].skipped) == (0, 1)
    with open(tmp_path / "out" / "proprietary" / "grade-1" / "skipped.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["collection"], row["image_id"]) == ("clinic", pseudonym(KEY, "image", "secret-black"))
    assert "no field of view" in row["reason"]
    public = b"".join(path.read_bytes() for path in (tmp_path / "out" / "public").rglob("*") if path.is_file())
    assert b"secret" not in public
    assert b"clinic" not in public


def test_a_file_that_occurs_twice_counts_once_and_as_public(raw: Path, tmp_path: Path) -> None:
    pictures = photographs(6)
    add_collection(raw, "open", "public", pictures)
    add_collection(raw, "clinic", "proprietary", {f"again-{name}": image for name, image in pictures.items()})
    manifests = prepare(raw, tmp_path / "out", change(collections=["clinic", "open"]))
    assert manifests["public"].train + manifests["public"].held_out_images == 6
    assert (manifests["proprietary"].train, manifests["proprietary"].skipped) == (0, 6)


def test_images_without_a_patient_are_counted_aloud(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_collection(raw, "open", "public", photographs(5))
    with caplog.at_level(logging.WARNING):
        prepare(raw, tmp_path / "out", change(collections=["open"]))
    assert "5 of 5 images of grade 1 in open name no patient" in caplog.text


def test_progress_ends_with_every_image_of_the_grade(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(raw, tmp_path / "out", CONFIG, lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"collections": ["elsewhere"]},
            r"no collection elsewhere.*drp data ingest DIR --labels FILE --name elsewhere",
        ),
        ({"collections": ["clinic"], "visibility": "public-only"}, r"clinic is proprietary.*public-only"),
        ({"grade": 4}, r"No image of grade 4 in phantom.*found \d+ of grade 1, \d+ of grade 2\. Set prepare\.grade"),
        ({"held_out": 0.9999999}, r"No training image of grade 1 remains.*held out.*Lower prepare\.held_out"),
        ({"collections": ["../phantom"]}, "cannot be the name of a collection"),
    ],
)
def test_what_cannot_be_prepared_is_one_line_and_writes_nothing(
    changes: dict[str, object], message: str, raw: Path, tmp_path: Path
) -> None:
    add_collection(raw, "clinic", "proprietary", photographs(2))
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, tmp_path / "out", change(**changes))
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_damaged_raw_image_stops_the_run(raw: Path, tmp_path: Path) -> None:
    directory = raw / "public" / "phantom"
    row = next(row for row in collections.read_collection(directory)[1] if row.grade == 1)
    path = directory / row.file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{path.name} is damaged"):
        prepare(raw, tmp_path / "out", CONFIG)


def test_a_duplicate_id_in_a_collection_stops_the_run(raw: Path, tmp_path: Path) -> None:
    directory = raw / "public" / "phantom"
    record, rows = collections.read_collection(directory)
    labels = directory / collections.LABELS_FILE
    labels.write_text(labels.read_text().replace(rows[1].image_id + ",", rows[0].image_id + ","))
    record.model_copy(update={"labels_sha256": files.sha256_file(labels)}).write(
        directory / collections.COLLECTION_FILE
    )
    with pytest.raises(DataError, match=rf"{rows[0].image_id}' twice"):
        prepare(raw, tmp_path / "out", CONFIG)


def test_all_eyes_become_right_ones_and_turned_views_upright(raw: Path, tmp_path: Path) -> None:
    phantoms = [phantom(9, number, 96, grade=1) for number in range(8)]
    pictures = {f"e{number}": np.ascontiguousarray(p.image[::-1, ::-1]) if number % 2 else p.image
                for number, p in enumerate(phantoms)}  # fmt: skip
    folder = tmp_path / "facing"
    folder.mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    rows = "".join(f"e{number},1,{p.eye}\n" for number, p in enumerate(phantoms))
    (folder / "labels.csv").write_text("image_id,grade,eye\n" + rows + "e0-again,1,\n")
    Image.fromarray(phantom(9, 50, 96).image).save(folder / "e0-again.png")
    ingest(folder, folder / "labels.csv", "facing", "public", raw)
    wanted = change(collections=["facing"], laterality="right", inverted_views="turn", held_out=0.0, resolution=64)
    prepare(raw, tmp_path / "out", wanted)
    images = load_images(tmp_path / "out", 1)
    assert {phantoms[number].eye for number in range(8)} == {"left", "right"}
    assert [row.eye for row in images.rows] == ["right"] * 8
    assert not images.has_both_eyes
    expected = {}
    for number, p in enumerate(phantoms):
        upright = p.image if p.eye == "right" else np.ascontiguousarray(p.image[:, ::-1])
        expected[number] = standardise(upright, 64).astype(float)
    for image in images.images:
        nearest = min(np.abs(image - each).mean() for each in expected.values())
        assert nearest < 1.5  # grey levels: where the circle is found may differ by less than a pixel
    skipped = (tmp_path / "out/public/grade-1/skipped.csv").read_text()
    assert "which eye it shows is not known" in skipped


@needs_photographs
def test_originals_with_exif_leave_nothing_but_pixels_in_the_shards(tmp_path: Path) -> None:
    """From camera files to shards: no name, no EXIF, no byte of the containers; the raw copies are clean as well."""
    folder, raw = tmp_path / "delivery", tmp_path / "raw"
    shutil.copytree(FUNDUS_MINI / "originals", folder)
    names = sorted(path.name for path in folder.glob("*.jpg"))
    (folder / "labels.csv").write_text("file,grade\n" + "".join(f"{name},1\n" for name in names))
    texts = {name.rpartition(".")[0].encode() for name in names}
    for path in folder.glob("*.jpg"):
        with Image.open(path) as image:
            exif = image.getexif()
            texts |= {str(value).encode() for value in (*exif.values(), *exif.get_ifd(0x8769).values())}
    texts = {text for text in texts if len(text) >= 6}
    assert any(b"CANON" in text.upper() for text in texts) or len(texts) > len(names)
    result = ingest(folder, folder / "labels.csv", "originals", "proprietary", raw, key=KEY)
    prepare(raw, tmp_path / "out", change(collections=["originals"], resolution=512, held_out=0.0))
    assert len(load_images(tmp_path / "out", 1)) == len(names) == 4
    for path in [*result.directory.rglob("*"), *(tmp_path / "out").rglob("*")]:
        content = path.read_bytes() if path.is_file() else b""
        assert [text for text in texts if text in content] == [], path
        assert b"Exif" not in content
        if path.suffix in (".jpg", ".png"):
            assert pixels.leftovers(content) == []


def test_small_copies_that_become_equal_when_they_are_mirrored_are_used_once(raw: Path, tmp_path: Path) -> None:
    """Too small for a fingerprint, each eye and its mirror image as the other eye of another patient."""
    folder, rows = tmp_path / "mirrors", ["image_id,grade,eye,patient_id"]
    folder.mkdir()
    for number in range(12):
        p = phantom(21, number, 64, grade=1)
        other = "left" if p.eye == "right" else "right"
        for name, pixels_, eye in (("a", p.image, p.eye), ("b", np.ascontiguousarray(p.image[:, ::-1]), other)):
            Image.fromarray(pixels_).save(folder / f"{name}{number}.png")
            rows.append(f"{name}{number},1,{eye},patient-{name}{number}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    ingest(folder, folder / "labels.csv", "mirrors", "public", raw)
    made = prepare(raw, tmp_path / "out", change(collections=["mirrors"], laterality="left", held_out=0.4))
    digests = [row.sha256 for split in manifest.SPLITS for row in load_images(tmp_path / "out", 1, split=split).rows]
    assert len(set(digests)) == len(digests) == 12
    assert made["public"].skipped == 12
    assert "it has the pixels of another image" in (tmp_path / "out/public/grade-1/skipped.csv").read_text()
