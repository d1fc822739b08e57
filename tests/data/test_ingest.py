"""A folder and a CSV: mistakes in the table stop it with nothing written, broken images are listed, pixels get in."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared_data import FUNDUS_MINI, needs_photographs
from table_mistakes import MISTAKES

from dr_platform import files
from dr_platform.data import collections
from dr_platform.data.ingest import IngestResult, ingest, report_file
from dr_platform.data.layouts import ColumnMap, Options
from dr_platform.data.phantom import phantom
from dr_platform.data.pixels import leftovers
from dr_platform.data.pseudonyms import PUBLIC_KEY, Key, pseudonym
from dr_platform.errors import DataError, LineageError


def picture(seed: int = 0, height: int = 20, width: int = 24) -> np.ndarray:
    """A smooth picture with a direction: JPEG keeps it, and a turned one is another one."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / width, y * 255 / height, np.full(x.shape, 10.0 * seed)], axis=2).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good images: a.png, b.jpg and c.tif."""
    path = tmp_path / "source"
    path.mkdir()
    Image.fromarray(picture(1)).save(path / "a.png")
    Image.fromarray(picture(2)).save(path / "b.jpg", quality=98, subsampling=0)
    Image.fromarray(picture(3)).save(path / "c.tif")
    return path


def table(folder: Path, text: str = "image_id,grade\na,0\nb,1\nc,2\n") -> Path:
    path = folder.parent / "labels.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def take(folder: Path, labels: Path, **options: object) -> collections.Collection:
    raw = folder.parent / "data" / "raw"
    return ingest(folder, labels, "clinic", "public", raw, **options).collection  # type: ignore[arg-type]


def clinic(folder: Path) -> Path:
    return folder.parent / "data" / "raw" / "public" / "clinic"


def rows_of(folder: Path) -> list[collections.ImageRow]:
    return collections.read_collection(clinic(folder))[1]


def report_of(folder: Path) -> list[dict[str, str]]:
    report = report_file(folder.parent / "data" / "raw", "public", "clinic")
    return list(csv.DictReader(io.StringIO(report.read_text(), newline="")))


def named(image_id: str) -> str:
    return pseudonym(PUBLIC_KEY, "image", image_id)


def stored(folder: Path, image_id: str) -> np.ndarray:
    return next(
        collections.read_image(clinic(folder), row) for row in rows_of(folder) if row.image_id == named(image_id)
    )


def written(folder: Path) -> list[Path]:
    return [path for path in (folder.parent / "data").rglob("*") if path.is_file()]


# ---- what goes right -------------------------------------------------------------------------------------------------


def test_lossless_sources_keep_every_pixel_and_lossy_ones_nearly(folder: Path) -> None:
    assert take(folder, table(folder)).images == 3
    assert np.array_equal(stored(folder, "a"), picture(1))
    assert np.array_equal(stored(folder, "c"), picture(3))
    # Quality 95 quantises a smooth block by steps of at most a few grey levels.
    assert np.abs(stored(folder, "b").astype(int) - picture(2).astype(int)).max() <= 8


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    labels = table(folder)
    first, second = (
        ingest(folder, labels, "clinic", "public", tmp_path / where / "raw").directory for where in ("x", "y")
    )
    assert files.content_digest(first) == files.content_digest(second)


def test_columns_may_have_other_names(folder: Path) -> None:
    labels = table(folder, "name,DR,subject,side\na.png,3.0,p1,OD\nb.jpg,,p1,left\n")
    take(folder, labels, options=Options(columns=ColumnMap(file="name", grade="DR", patient_id="subject", eye="side")))
    found = [(row.image_id, row.grade, row.patient_id, row.eye) for row in rows_of(folder)]
    patient = pseudonym(PUBLIC_KEY, "patient", "p1")
    assert found == [(named("a"), 3, patient, "right"), (named("b"), None, patient, "left")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_dialect_of_the_table_does_not_matter(delimiter: str, ends: str, mark: str, folder: Path) -> None:
    lines = ["image_id,grade,source", 'a,0,"Clinic, ward 2"', "", "b,1,", "c,2,x"]
    text = mark + ends.join(line.replace(",", delimiter).replace(f"Clinic{delimiter} ", "Clinic, ") for line in lines)
    take(folder, table(folder, text))
    assert [(row.image_id, row.grade, row.source) for row in rows_of(folder)] == [
        (named("a"), 0, "Clinic, ward 2"), (named("b"), 1, ""), (named("c"), 2, "x"),
    ]  # fmt: skip


def test_an_upper_case_ending_and_a_subfolder_are_found(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "a.png").rename(folder / "deep" / "a.PNG")
    take(folder, table(folder, "image_id,grade\ndeep/a,1\nb.jpg,1\n"))
    assert [row.image_id for row in rows_of(folder)] == [named("deep/a"), named("b.jpg")]


def test_a_photograph_is_stored_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is the right side of the stored picture
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(picture(1)).save(folder / name, exif=exif, quality=98, subsampling=0)
    take(folder, table(folder))
    upright = np.rot90(picture(1), k=-1)
    for image_id in "abc":
        assert stored(folder, image_id).shape == upright.shape
        assert np.abs(stored(folder, image_id).astype(int) - upright.astype(int)).max() <= 8


def test_nothing_but_pixels_gets_in(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(picture(1)).save(folder / name, exif=exif, comment=b"DOE^JANE", icc_profile=b"DOE^JANE")
    with open(folder / "b.jpg", "ab") as stream:
        stream.write(b"DOE^JANE")
    take(folder, table(folder))
    pictures = [path for path in written(folder) if path.suffix in (".png", ".jpg")]
    assert len(pictures) == 3
    assert not any(leftovers(path.read_bytes()) for path in pictures)
    assert not any(b"DOE" in path.read_bytes() for path in written(folder))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 200, (200, 200, 200)),
        ("RGBA", (100, 50, 20, 255), (100, 50, 20)),
        ("RGBA", (100, 50, 20, 0), (0, 0, 0)),
        ("LA", (80, 255), (80, 80, 80)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_every_mode_has_its_rule(mode: str, value: object, expected: tuple[int, ...], folder: Path) -> None:
    Image.new(mode, (16, 16), value).save(folder / "c.tif")  # type: ignore[arg-type]
    take(folder, table(folder))
    assert np.array_equal(stored(folder, "c"), np.broadcast_to(expected, (16, 16, 3)))


def test_a_palette_is_resolved(folder: Path) -> None:
    Image.fromarray(picture(1)).quantize(16).save(folder / "a.png")
    expected = np.asarray(Image.open(folder / "a.png").convert("RGB"))
    take(folder, table(folder))
    assert np.array_equal(stored(folder, "a"), expected)


# ---- mistakes in the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_in_the_table_is_named_and_nothing_is_written(text: str, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        take(folder, table(folder, text))
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not written(folder)


def test_a_column_named_on_purpose_must_be_there(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'subject' for patient_id"):
        take(folder, table(folder), options=Options(columns=ColumnMap(patient_id="subject")))


def test_a_table_that_is_no_text_is_refused(folder: Path) -> None:
    labels = table(folder)
    labels.write_bytes(b"image_id,grade\na\x00,1\n")
    with pytest.raises(DataError, match="NUL"):
        take(folder, labels)


def test_a_missing_table_or_folder_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        take(folder, folder / "nowhere.csv")
    with pytest.raises(DataError, match="nowhere is neither a folder nor an archive"):
        ingest(folder / "nowhere", table(folder), "clinic", "public", folder.parent / "data" / "raw")


# ---- images that cannot be used --------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(1, 64, 64)).save(stream, kind, **options)
    return stream.getvalue()


def flipped(content: bytes) -> bytes:
    """The same with one bit changed in the middle, among the compressed pixels."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def frames() -> bytes:
    return encoded("TIFF", save_all=True, append_images=[Image.fromarray(picture(2, 64, 64))])


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), dtype=np.float32)).save(stream, "TIFF")
    return stream.getvalue()


BROKEN = {
    "missing": (None, "no such file"),
    "empty": (b"", "it is empty"),
    "text": (b"this is no image", "not a JPEG, PNG or TIFF"),
    "gif": (encoded("GIF"), "not a JPEG, PNG or TIFF"),
    "cut-jpeg": (encoded("JPEG")[:-200], "cut short"),
    "cut-png": (encoded("PNG")[:-100], "cut short"),
    "cut-tiff": (encoded("TIFF")[: 64 * 64], "cut short|cannot be decoded"),
    "flipped-png": (flipped(encoded("PNG")), "checksum|cannot be decoded"),
    "large": (png_header(8001, 8000), "8001 x 8000 pixels are more than 64 million"),
    "bomb": (png_header(100_000, 100_000), "more than 64 million pixels"),
    "frames": (frames(), "holds 2 pictures"),
    "float": (float_tiff(), "floating point"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_image_that_cannot_be_used_is_listed_and_the_rest_goes_on(case: str, folder: Path) -> None:
    content, reason = BROKEN[case]
    if content is not None:
        (folder / "bad.png").write_bytes(content)
    record = take(folder, table(folder, "image_id,file,grade\na,a.png,1\nx,bad.png,1\nb,b.jpg,1\n"))
    assert (record.images, record.rejected) == (2, 1)
    (row,) = (row for row in report_of(folder) if row["outcome"] == "not used")
    assert (row["file"], row["image_id"], row["pseudonym"]) == ("bad.png", "x", "")
    assert re.search(reason, row["said"])


@pytest.mark.parametrize("case", BROKEN)
def test_strict_turns_the_first_of_them_into_a_failure(case: str, folder: Path) -> None:
    content, reason = BROKEN[case]
    if content is not None:
        (folder / "bad.png").write_bytes(content)
    labels = table(folder, "image_id,file,grade\na,a.png,1\nx,bad.png,1\nb,b.jpg,1\n")
    with pytest.raises(DataError, match=rf"row 3: bad\.png cannot be used: .*({reason})"):
        take(folder, labels, strict=True)
    assert not written(folder)


@pytest.mark.parametrize("path", ["../outside.png", "/etc/outside.png", "sub/../../outside.png", "..\\outside.png"])
def test_a_path_out_of_the_folder_is_not_followed(path: str, folder: Path) -> None:
    Image.fromarray(picture()).save(folder.parent / "outside.png")
    record = take(folder, table(folder, f"file,grade\n{path},1\na.png,1\n"))
    assert (record.images, record.rejected) == (1, 1)


def test_two_files_of_one_name_are_not_chosen_between(folder: Path) -> None:
    Image.fromarray(picture()).save(folder / "a.tif")
    assert take(folder, table(folder)).rejected == 1


def test_no_usable_image_at_all_is_a_failure(folder: Path) -> None:
    with pytest.raises(DataError, match=r"None of the 2 listed images.*no file of that name"):
        take(folder, table(folder, "image_id,grade\nx,1\ny,1\n"))
    assert not written(folder)


# ---- many images, archives, DICOM, and an end that comes too early ---------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Seventy small photographs, enough for several processes."""
    path = tmp_path / "source"
    path.mkdir()
    for number in range(70):
        Image.fromarray(phantom(3, number, 48).image).save(path / f"p{number:02d}.png")
    return path


def rows_table(folder: Path) -> Path:
    names = sorted(path.stem for path in folder.glob("*.png"))
    return table(
        folder, "image_id,grade,patient_id\n" + "".join(f"{name},{int(name[1:]) % 5},{name[1]}\n" for name in names)
    )


def test_several_processes_make_the_same_bytes_as_one(many: Path, tmp_path: Path) -> None:
    labels = rows_table(many)
    one, two = (
        ingest(many, labels, "clinic", "public", tmp_path / str(count) / "raw", processes=count).directory
        for count in (1, 2)
    )
    assert files.content_digest(one) == files.content_digest(two)


@pytest.mark.parametrize("killed_at", [1, 30, 69])
def test_a_killed_ingest_goes_on_and_ends_with_the_same_bytes(killed_at: int, many: Path, tmp_path: Path) -> None:
    labels = rows_table(many)
    whole = ingest(many, labels, "clinic", "public", tmp_path / "whole" / "raw").directory
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom dr_platform.data.ingest import ingest\n"
        "folder, labels, raw, at = map(Path, sys.argv[1:])\n"
        "kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == int(str(at)) else None\n"
        "ingest(folder, labels, 'clinic', 'public', raw, progress=kill)\n"
    )
    raw = tmp_path / "killed" / "raw"
    arguments = [str(many), str(labels), str(raw), str(killed_at)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (raw / "public" / "clinic").exists()
    assert collections.list_collections(raw) == []
    steps: list[int] = []
    again = ingest(many, labels, "clinic", "public", raw, progress=lambda done, total: steps.append(done))
    assert steps == list(range(killed_at + 1, 71))
    assert files.content_digest(again.directory) == files.content_digest(whole)
    assert [path.name for path in again.directory.parent.iterdir()] == ["clinic"]


def test_an_image_that_changed_since_the_kill_is_taken_again(many: Path, tmp_path: Path) -> None:
    labels, raw = rows_table(many), tmp_path / "data" / "raw"

    def interrupt(done: int, total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(many, labels, "clinic", "public", raw, progress=interrupt)
    Image.fromarray(picture(9, 48, 48)).save(many / "p03.png")
    directory = ingest(many, labels, "clinic", "public", raw).directory
    (row,) = (row for row in collections.read_collection(directory)[1] if row.image_id == named("p03"))
    assert np.array_equal(collections.read_image(directory, row), picture(9, 48, 48))


def test_an_archive_is_taken_like_its_folder_and_leaves_no_copy(folder: Path, tmp_path: Path) -> None:
    labels = table(folder)
    (folder / "labels.csv").write_bytes(labels.read_bytes())
    archive = Path(shutil.make_archive(str(tmp_path / "delivery"), "zip", folder))
    raw = tmp_path / "data" / "raw"
    result = ingest(archive, None, "clinic", "public", raw, layout="auto")
    assert (result.collection.images, result.layout) == (3, "csv")
    assert sorted(path.name for path in raw.iterdir()) == ["public"]


def test_names_stand_in_the_import_report_alone(folder: Path) -> None:
    labels = table(folder, "image_id,file,grade,patient_id\nDOE-JANE,a.png,1,MRN-4711\nb,b.jpg,1,MRN-4712\n")
    raw = folder.parent / "data" / "raw"
    result = ingest(folder, labels, "clinic", "proprietary", raw, key=Key(b"k" * 32))
    assert stat.S_IMODE(result.report.stat().st_mode) == 0o600
    assert "DOE-JANE" in result.report.read_text()
    for path in written(folder):
        content = path.read_bytes() + str(path.relative_to(folder.parent / "data")).encode()
        assert path == result.report or not re.search(rb"DOE|MRN", content), path


def test_pseudonyms_of_a_clinic_need_its_key_and_change_with_it(folder: Path, tmp_path: Path) -> None:
    labels = table(folder)
    with pytest.raises(DataError, match="needs a key"):
        ingest(folder, labels, "clinic", "proprietary", tmp_path / "raw")
    ids = []
    for letter in (b"a", b"b"):
        raw = tmp_path / letter.decode() / "raw"
        directory = ingest(folder, labels, "clinic", "proprietary", raw, key=Key(letter * 32)).directory
        ids.append({row.image_id for row in collections.read_collection(directory)[1]})
    assert not ids[0] & ids[1]


def test_a_report_that_people_open_holds_no_formula(folder: Path) -> None:
    take(folder, table(folder, "image_id,file,grade\n=cmd|calc,a.png,1\nb,b.jpg,1\n"))
    assert report_of(folder)[0]["image_id"] == "'=cmd|calc"


def test_a_zip_of_a_folder_is_taken_as_that_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "labels.csv").write_bytes(table(folder).read_bytes())
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder.parent, folder.name))
    assert ingest(archive, None, "clinic", "public", tmp_path / "data" / "raw", layout="auto").collection.images == 3


def test_what_is_wrong_in_an_archive_is_said_of_the_archive(folder: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    with pytest.raises(DataError, match=r"packed\.zip") as caught:
        ingest(archive, None, "clinic", "public", tmp_path / "data" / "raw", layout="auto")
    assert ".delivery" not in str(caught.value)


def test_a_proprietary_photograph_does_not_become_public_by_another_ingest(folder: Path) -> None:
    labels, raw = table(folder), folder.parent / "data" / "raw"
    private = ingest(folder, labels, "clinic", "proprietary", raw, key=Key(b"k" * 32)).directory
    with pytest.raises(DataError, match=r"a\.png is a photograph of the proprietary collection clinic"):
        ingest(folder, labels, "open", "public", raw)
    with pytest.raises(DataError, match="part of this project's raw data"):
        ingest(private, private / "labels.csv", "open", "public", raw)
    assert not (raw / "public" / "open").exists()


def test_two_ingests_of_one_name_do_not_meet(many: Path, tmp_path: Path) -> None:
    labels, raw = rows_table(many), tmp_path / "data" / "raw"
    said: list[str] = []

    def another(done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(DataError, match="another ingest or revocation is running") as caught:
                ingest(many, labels, "clinic", "public", raw)
            said.append(str(caught.value))

    assert ingest(many, labels, "clinic", "public", raw, progress=another).collection.images == 70
    assert len(said) == 1


def test_what_cannot_be_versioned_leaves_the_collection_that_was_there(folder: Path) -> None:
    labels, raw = table(folder), folder.parent / "data" / "raw"
    before = ingest(folder, labels, "clinic", "public", raw).directory
    stored_before = files.content_digest(before)
    next(folder.glob("b.*")).unlink()

    def refuse(result: IngestResult) -> None:
        assert result.collection.images in (2, 3)
        raise LineageError("it is locked")

    with pytest.raises(LineageError, match="locked"):
        ingest(folder, labels, "clinic", "public", raw, replace=True, version=refuse)
    assert files.content_digest(before) == stored_before
    with pytest.raises(LineageError, match="locked"):
        ingest(folder, labels, "other", "public", raw, version=refuse)
    assert not (raw / "public" / "other").exists()
    assert [each.name for each in collections.list_collections(raw)] == ["clinic"]
    assert [row["outcome"] for row in report_of(folder)] == ["taken"] * 3  # b.jpg too: the report of what is there
    assert not report_file(raw, "public", "other").exists()


def test_images_that_could_not_be_versioned_are_not_taken_twice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same command goes on with what was taken, also of an archive, which is unpacked anew."""
    labels, raw = table(folder), folder.parent / "data" / "raw"
    packed = folder.parent / "delivery.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)

    def refuse(_: IngestResult) -> None:
        raise LineageError("it is locked")

    for source in (folder, packed):
        with pytest.raises(LineageError, match="locked"):
            ingest(source, labels, source.stem, "public", raw, version=refuse)
        caplog.clear()
        again = ingest(source, labels, source.stem, "public", raw)
        assert "3 of 3 images were taken by an ingest before" in caplog.text
        straight = ingest(source, labels, f"{source.stem}-2", "public", raw)
        ours, theirs = (
            files.content_digest(each.directory, lambda path: path.name != collections.COLLECTION_FILE)
            for each in (again, straight)
        )
        assert ours == theirs
    assert not [path.name for path in (raw / "public").iterdir() if path.name.startswith(".")]


def test_a_damaged_private_collection_is_told_before_the_work(folder: Path) -> None:
    raw = folder.parent / "data" / "raw"
    labels = table(folder)
    private = ingest(folder, labels, "private", "proprietary", raw, key=Key(b"k" * 32)).directory
    (private / collections.LABELS_FILE).write_text("changed")
    with pytest.raises(DataError, match="was changed after it was written"):
        ingest(folder, labels, "clinic", "public", raw, progress=lambda done, total: pytest.fail("an image was taken"))


def test_an_older_record_can_be_replaced_and_who_withdrew_stays_out(folder: Path) -> None:
    text = "image_id,grade,patient_id\na,0,p\nb,1,q\nc,2,p\n"
    labels, raw = table(folder, text), folder.parent / "data" / "raw"
    directory = ingest(folder, labels, "clinic", "public", raw).directory
    record = json.loads((directory / collections.COLLECTION_FILE).read_text())
    gone = pseudonym(PUBLIC_KEY, "patient", "p")
    (directory / collections.COLLECTION_FILE).write_text(json.dumps({**record, "version": 2, "withdrawn": [gone]}))
    again = ingest(folder, labels, "clinic", "public", raw, replace=True).collection
    assert (again.images, again.withdrawn) == (1, (gone,))


@pytest.mark.parametrize("size", [48, 400])
def test_a_proprietary_photograph_in_another_container_does_not_become_public(tmp_path: Path, size: int) -> None:
    private, public, raw = tmp_path / "private", tmp_path / "public", tmp_path / "data" / "raw"
    for place in (private, public):
        place.mkdir()
        table(place / "x", "image_id,grade\na,1\n").rename(place / "labels.csv")
    Image.fromarray(phantom(3, 1, size).image).save(private / "a.jpg", quality=95)
    ingest(private, private / "labels.csv", "clinic", "proprietary", raw, key=Key(b"k" * 32))
    Image.open(private / "a.jpg").save(public / "a.png")
    with pytest.raises(DataError, match=r"a\.png is a photograph of the proprietary collection clinic"):
        ingest(public, public / "labels.csv", "leak", "public", raw)
    Image.fromarray(phantom(3, 2, size).image).save(public / "a.png")
    assert ingest(public, public / "labels.csv", "open", "public", raw).collection.images == 1


def test_a_picture_too_small_to_see_or_a_name_too_long_is_listed_and_the_rest_goes_on(folder: Path) -> None:
    Image.new("RGB", (8, 200)).save(folder / "tiny.png")
    long = "é" * 300 + ".png"
    labels = folder.parent / "labels.csv"
    labels.write_text(f"file,grade\na.png,0\ntiny.png,1\n{long},2\n")
    assert take(folder, labels).rejected == 2
    said = {row["file"]: row["said"] for row in report_of(folder)}
    assert "at least 16 x 16 are needed" in said["tiny.png"] or "16" in said["tiny.png"]
    assert "cannot be opened" in said[long]


def test_processes_end_with_the_one_that_started_them(many: Path, tmp_path: Path) -> None:
    labels = rows_table(many)
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom dr_platform.data.ingest import ingest\n"
        "def progress(done, total):\n"
        "    if done == 3:\n"
        "        children = Path('/proc/self/task', str(os.getpid()), 'children').read_text()\n"
        "        print(children, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    folder, labels, raw = map(Path, sys.argv[1:])\n"
        "    ingest(folder, labels, 'clinic', 'public', raw, processes=2, progress=progress)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    arguments = [str(many), str(labels), str(tmp_path / "data" / "raw")]
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    children = [Path("/proc", child) for child in done.stdout.split()]
    assert len(children) >= 2
    waited = time.monotonic()
    while any(is_running(child) for child in children) and time.monotonic() - waited < 30:
        time.sleep(0.2)
    assert not any(is_running(child) for child in children)


def is_running(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_free_text_of_a_table_is_no_formula_in_ours(folder: Path) -> None:
    take(folder, table(folder, "image_id,grade,source,license\na,1,=1+1,@x\n"))
    assert [(row.source, row.license) for row in rows_of(folder)] == [("'=1+1", "'@x")]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_unless_replaced(folder: Path) -> None:
    take(folder, table(folder))
    before = files.content_digest(folder.parent / "data")
    with pytest.raises(DataError, match="a collection clinic already"):
        take(folder, table(folder, "image_id,grade\na,1\n"))
    with pytest.raises(DataError, match="grade is '9'"):
        take(folder, table(folder, "image_id,grade\na,9\n"), replace=True)
    assert files.content_digest(folder.parent / "data") == before
    assert take(folder, table(folder, "image_id,grade\na,1\n"), replace=True).images == 1
    assert len(rows_of(folder)) == 1


def test_a_name_has_one_visibility(folder: Path) -> None:
    take(folder, table(folder))
    raw = folder.parent / "data" / "raw"
    for replace in (False, True):
        with pytest.raises(DataError, match="a public collection clinic already"):
            ingest(folder, table(folder), "clinic", "proprietary", raw, replace=replace, key=Key(b"k" * 32))


# ---- real photographs ------------------------------------------------------------------------------------------------


@needs_photographs
def test_real_photographs_get_in_whole_and_soon(tmp_path: Path) -> None:
    started = time.monotonic()
    options = Options(columns=ColumnMap(eye="laterality"))
    labels, raw = FUNDUS_MINI / "labels.csv", tmp_path / "raw"
    result = ingest(FUNDUS_MINI, labels, "fundus-mini", "public", raw, options=options, strict=True, processes=2)
    assert time.monotonic() - started < 200  # 15 s on two idle cores
    assert (result.collection.images, result.without_grade, result.without_patient) == (1640, 34, 1640)
    _, rows = collections.read_collection(result.directory)
    assert [sum(row.grade == grade for row in rows) for grade in range(5)] == [720, 186, 326, 282, 92]
    row = next(row for row in rows if row.file.endswith(".png"))
    with open(FUNDUS_MINI / "labels.csv", newline="") as stream:
        source = next(line["file"] for line in csv.DictReader(stream) if named(line["image_id"]) == row.image_id)
    original = np.asarray(Image.open(FUNDUS_MINI / source).convert("RGB"))
    assert np.array_equal(collections.read_image(result.directory, row), original)
