"""Every layout's miniature, written as the collection is delivered, and the exact listing read back from it."""

from __future__ import annotations

import csv
import io
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest
import xlwt
from PIL import Image
from table_mistakes import MISTAKES

from dr_platform.data.layouts import LAYOUTS, ColumnMap, Options, list_images, read_mapping, recognise, save_mapping
from dr_platform.data.listing import Listed, Listing
from dr_platform.errors import DataError

UNKNOWN = "not stated; ask the owner"


class Folder:
    """A folder under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def pictures(self, *paths: str) -> Folder:
        for path in paths:
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (90, 30, 10)).save(target)
        return self

    def text(self, path: str, content: str, encoding: str = "utf-8") -> Folder:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode(encoding))
        return self

    def old_excel(self, path: str, rows: list[list[object]]) -> Folder:
        book = xlwt.Workbook()
        sheet = book.add_sheet("Feuil1")
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                sheet.write(y, x, value)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        book.save(str(self.root / path))
        return self

    def new_excel(self, path: str, rows: list[list[object]]) -> Folder:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        book.save(self.root / path)
        return self


# ---- the miniatures --------------------------------------------------------------------------------------------------


def eyepacs(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures("train/10_left.jpeg", "train/10_right.jpeg", "test/1_left.jpeg", "test/1_right.jpeg")
        .text("trainLabels.csv", "image,level\n10_left,0\n10_right,3\n")
        .text("retinopathy_solution.csv", "image,level,Usage\n1_left,1,Private\n1_right,4,Public\n")
        .text("sampleSubmission.csv", "image,level\n1_left,0\n1_right,0\n")
    )


APTOS_NAMES = ("000c1434d8d7", "001639a390f0", "0005cfc8afb6")


def aptos2019(root: Path) -> Folder:
    a, b, c = APTOS_NAMES
    return (
        Folder(root)
        .pictures(f"train_images/{a}.png", f"train_images/{b}.png", f"test_images/{c}.png")
        .text("train.csv", f"id_code,diagnosis\n{a},2\n{b},4\n")
        .text("test.csv", f"id_code\n{c}\n")
        .text("sample_submission.csv", f"id_code,diagnosis\n{c},0\n")
    )


def aptos_classes(root: Path, under: str = "colored_images/") -> Folder:
    a, b, _ = APTOS_NAMES
    return Folder(root).pictures(f"{under}Moderate/{a}.png", f"{under}Proliferate_DR/{b}.png")


MESSIDOR_HEADER: list[object] = [
    "Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema ",
]  # fmt: skip
MESSIDOR_NAMES = tuple(f"20051019_38557_0{number}00_PP" for number in range(1, 7))


def messidor(root: Path) -> Folder:
    a, b, c, d, e, f = (f"{name}.tif" for name in MESSIDOR_NAMES)
    paris, brest = "Service Ophtalmologie Lariboisière", "LaTIM - CHU de BREST"
    return (
        Folder(root)
        .pictures(f"Base11/{a}", f"Base11/{b}", f"Base11/{c}", f"Base33/{d}", f"Base33/{e}", f"Base33/{f}")
        .old_excel(
            "Base11/Annotation_Base11.xls", [MESSIDOR_HEADER, [a, paris, 3, 1], [b, paris, 1, 0], [c, paris, 0, 0]]
        )
        .old_excel(
            "Base33/Annotation_Base33.xls", [MESSIDOR_HEADER, [d, brest, 2, 2], [e, brest, 0, 0], [f, brest, 0, 0]]
        )
    )


def messidor2(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures(
            "IMAGES/20051020_43808_0100_PP.png", "IMAGES/20051020_43832_0100_PP.png", "IMAGES/IM000012.jpg",
            "IMAGES/IM000013.JPG",
        )
        .text(
            "messidor-2.csv",
            "left;right\r\n20051020_43808_0100_PP.png ; 20051020_43832_0100_PP.png\r\nIM000012.JPG;IM000013.JPG\r\n",
        )
        .text(
            "messidor_data.csv",
            "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
            "20051020_43808_0100_PP.png,2,0,1\n20051020_43832_0100_PP.png,0,0,1\nIM000013.JPG,1,0,1\nIM000012.JPG,,,0\n",
        )
    )  # fmt: skip


ORIGINALS = "B. Disease Grading/1. Original Images"
TRUTHS = "B. Disease Grading/2. Groundtruths"


def idrid(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures(
            f"{ORIGINALS}/a. Training Set/IDRiD_001.jpg", f"{ORIGINALS}/a. Training Set/IDRiD_002.jpg",
            f"{ORIGINALS}/b. Testing Set/IDRiD_001.jpg",
        )
        .text(
            f"{TRUTHS}/a. IDRiD_Disease Grading_Training Labels.csv",
            "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n"
            "IDRiD_001,3,2,,,,,,,,,\r\nIDRiD_002,1,0,,,,,,,,, \r\n",
        )
        .text(
            f"{TRUTHS}/b. IDRiD_Disease Grading_Testing Labels.csv",
            "Image name,Retinopathy grade,Risk of macular edema \r\nIDRiD_001,4,0\r\n",
        )
    )  # fmt: skip


def idrid_kaggle(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures("Imagenes/Imagenes/IDRiD_001.jpg", "Imagenes/Imagenes/IDRiD_001test.jpg")
        .text("idrid_labels.csv", "id_code,diagnosis\nIDRiD_001,3\nIDRiD_001test,4\n")
    )


REGULAR = "regular_fundus_images"
EVALUATION = f"{REGULAR}/Online-Challenge1&2-Evaluation"
DEEPDRID_HEADER = (
    "patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level,Clarity,"
    "Field definition,Artifact\n"
)


def deepdrid(root: Path) -> Folder:
    def row(patient: int, name: str, left: str, right: str, part: str) -> str:
        return f"{patient},{name},\\regular-fundus-{part}\\{patient}\\{name}.jpg,1,{left},{right},3,8,8,0\n"

    training, validation = (f"{REGULAR}/regular-fundus-{part}" for part in ("training", "validation"))
    return (
        Folder(root)
        .pictures(
            f"{training}/Images/1/1_l1.jpg", f"{training}/Images/1/1_r2.jpg", f"{training}/Images/56/56_r3.jpg",
            f"{validation}/Images/265/265_r1.jpg", f"{EVALUATION}/Images/347/347_l2.jpg",
            "ultra-widefield_images/ultra-widefield-training/Images/1/1_l1.jpg",
        )
        .text(
            f"{training}/regular-fundus-training.csv",
            DEEPDRID_HEADER
            + row(1, "1_l1", "0", "", "training")
            + row(1, "1_r2", "", "3.0", "training")
            + row(56, "56_r3", "2", "", "training"),
        )
        .text(
            f"{validation}/regular-fundus-validation.csv", DEEPDRID_HEADER + row(265, "265_r1", "", "1", "validation")
        )
        .new_excel(f"{EVALUATION}/Challenge1_labels.xlsx", [["image_id", "DR_Levels"], ["347_l2", 4]])
    )  # fmt: skip


SUSTECH_HEADER = (
    "Fundus_images,left_versus_right_eye(left_0_right_1),DR_grade(International_Clinical_DR_Severity_Scale),"
    "DR_grade(American_Academy_of_Ophthalmology),DR_grade(Scottish_DR_grading_protocol)\n"
)


def sustech(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures(*(f"originalImages/000{number}.jpg" for number in range(1, 5)))
        .text("originalImages/drLabels.csv", SUSTECH_HEADER + "0001.jpg,0,0,0,0\n0002.jpg,1,2,2,2\n0003.jpg,0,5,5,5\n"
              "0004.jpg,1,5,5,5\n")
        .text(
            "originalImages/c5_DR_reclassified.csv",
            "Fundus_images,DR_grade(International_Clinical_DR_Severity_Scale),DR_grade(American_Academy_of_Ophthalmology),"
            "DR_grade(Scottish_DR_grading_protocol)\n0004.jpg,3,3,4\n",
        )
    )  # fmt: skip


TEN = "DR and maculopathy 10 classes"


def rahim(root: Path) -> Folder:
    return Folder(root).pictures(
        f"{TEN}/1 - No DR/Patient007_R.jpg", f"{TEN}/2 - Mild DR without maculopathy/Patient007_L.jpg",
        f"{TEN}/9 - PDR with maculopathy/patient 12_left.jpg", f"{TEN}/10 - ADED/Copy of 31.jpg",
    )  # fmt: skip


def own_csv(root: Path) -> Folder:
    return (
        Folder(root)
        .pictures("a.png", "deep/b.JPG", "c.tif")
        .text(
            "labels.csv",
            "image_id,file,grade,patient_id,eye,license\na,,1,p1,OD,ours\nb,deep\\b.JPG,,p1,left,ours\nc,,4,p2,,ours\n",
        )
    )


Miniature = Callable[[Path], Folder]
MINIATURES: dict[str, tuple[Miniature, str]] = {
    "eyepacs": (eyepacs, "eyepacs"),
    "aptos2019": (aptos2019, "aptos2019"),
    "aptos2019 in class folders": (aptos_classes, "aptos2019"),
    "messidor": (messidor, "messidor"),
    "messidor2": (messidor2, "messidor2"),
    "idrid": (idrid, "idrid"),
    "idrid from Kaggle": (idrid_kaggle, "idrid"),
    "deepdrid": (deepdrid, "deepdrid"),
    "sustech": (sustech, "sustech"),
    "rahim": (rahim, "rahim"),
    "csv": (own_csv, "csv"),
}

# image_id, file, grade, grade_given, scale, patient_id, eye, source
EXPECTED: dict[str, list[tuple[object, ...]]] = {
    "eyepacs": [
        ("10_left", "train/10_left.jpeg", 0, "0", "icdr", "10", "left", "EyePACS 2015, train"),
        ("10_right", "train/10_right.jpeg", 3, "3", "icdr", "10", "right", "EyePACS 2015, train"),
        ("1_left", "test/1_left.jpeg", 1, "1", "icdr", "1", "left", "EyePACS 2015, test (Private)"),
        ("1_right", "test/1_right.jpeg", 4, "4", "icdr", "1", "right", "EyePACS 2015, test (Public)"),
    ],
    "aptos2019": [
        (APTOS_NAMES[2], f"test_images/{APTOS_NAMES[2]}.png", None, "", "none", None, None, "APTOS 2019, test"),
        (APTOS_NAMES[0], f"train_images/{APTOS_NAMES[0]}.png", 2, "2", "icdr", None, None, "APTOS 2019, train"),
        (APTOS_NAMES[1], f"train_images/{APTOS_NAMES[1]}.png", 4, "4", "icdr", None, None, "APTOS 2019, train"),
    ],
    "aptos2019 in class folders": [
        (name, f"colored_images/{given}/{name}.png", grade, given, "icdr", None, None, "APTOS 2019, class folders")
        for name, given, grade in zip(APTOS_NAMES, ("Moderate", "Proliferate_DR"), (2, 4), strict=False)
    ],
    "messidor": [
        (name, f"{part}/{name}.tif", grade, given, "messidor", None, None, f"Messidor, {part}")
        for name, part, given, grade in zip(
            MESSIDOR_NAMES, ["Base11"] * 3 + ["Base33"] * 3, "310200", (None, 1, 0, None, 0, 0), strict=True
        )
    ],
    "messidor2": [
        (name, f"IMAGES/{file}", grade, given, scale, patient, eye, "Messidor-2")
        for name, file, grade, given, scale, patient, eye in [
            ("20051020_43808_0100_PP", "20051020_43808_0100_PP.png", 2, "2", "icdr", "20051020_43808_0100_PP", "left"),
            ("20051020_43832_0100_PP", "20051020_43832_0100_PP.png", 0, "0", "icdr", "20051020_43808_0100_PP", "right"),
            ("IM000012", "IM000012.jpg", None, "", "none", "IM000012", "left"),
            ("IM000013", "IM000013.JPG", 1, "1", "icdr", "IM000012", "right"),
        ]
    ],
    "idrid": [
        ("train/IDRiD_001", f"{ORIGINALS}/a. Training Set/IDRiD_001.jpg", 3, "3", "icdr", None, None, "IDRiD, train"),
        ("train/IDRiD_002", f"{ORIGINALS}/a. Training Set/IDRiD_002.jpg", 1, "1", "icdr", None, None, "IDRiD, train"),
        ("test/IDRiD_001", f"{ORIGINALS}/b. Testing Set/IDRiD_001.jpg", 4, "4", "icdr", None, None, "IDRiD, test"),
    ],
    "idrid from Kaggle": [
        ("train/IDRiD_001", "Imagenes/Imagenes/IDRiD_001.jpg", 3, "3", "icdr", None, None, "IDRiD, train"),
        ("test/IDRiD_001", "Imagenes/Imagenes/IDRiD_001test.jpg", 4, "4", "icdr", None, None, "IDRiD, test"),
    ],
    "deepdrid": [
        (name, f"{REGULAR}/{part}/Images/{patient}/{name}.jpg", grade, given, "icdr", patient, eye, f"DeepDRiD, {part}")
        for name, part, grade, given, patient, eye in [
            ("1_l1", "regular-fundus-training", 0, "0", "1", "left"),
            ("1_r2", "regular-fundus-training", 3, "3.0", "1", "right"),
            ("56_r3", "regular-fundus-training", 2, "2", "56", None),
            ("265_r1", "regular-fundus-validation", 1, "1", "265", "right"),
            ("347_l2", "Online-Challenge1&2-Evaluation", 4, "4", "347", "left"),
        ]
    ],
    "sustech": [
        (name, f"originalImages/{name}.jpg", grade, given, "icdr", None, eye, "SUSTech-SYSU")
        for name, grade, given, eye in [
            ("0001", 0, "0", "left"), ("0002", 2, "2", "right"), ("0003", None, "5", "left"), ("0004", 3, "5", "right"),
        ]
    ],
    "rahim": [
        (name, f"{TEN}/{folder}/{name}.jpg", grade, folder, scale, patient, eye, "Rahim")
        for name, folder, grade, scale, patient, eye in [
            ("Patient007_R", "1 - No DR", 0, "icdr", "Patient007", "right"),
            ("Copy of 31", "10 - ADED", None, "none", None, None),
            ("Patient007_L", "2 - Mild DR without maculopathy", 1, "icdr", "Patient007", "left"),
            ("patient 12_left", "9 - PDR with maculopathy", 4, "icdr", "Patient012", "left"),
        ]
    ],
    "csv": [
        ("a", "a.png", 1, "1", "icdr", "p1", "right", ""),
        ("b", "deep/b.JPG", None, "", "none", "p1", "left", ""),
        ("c", "c.tif", 4, "4", "icdr", "p2", None, ""),
    ],
}  # fmt: skip
LICENSES = {
    "messidor": "research and education free of charge; pictures may not be passed on",
    "idrid": "CC BY 4.0",
    "csv": "ours",
}


def fields(image: Listed) -> tuple[object, ...]:
    return (
        image.image_id, image.file, image.grade, image.grade_given, image.scale, image.patient_id, image.eye,
        image.source,
    )  # fmt: skip


def grades(listing: Listing) -> dict[str, int | None]:
    return {image.image_id: image.grade for image in listing.images}


def said(listing: Listing, text: str) -> bool:
    return any(text in note for note in listing.notes)


def refused(message: str, folder: Folder, layout: str = "auto", **options: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_images(folder.root, layout, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MINIATURES)
def test_a_delivery_is_listed_exactly(case: str, tmp_path: Path) -> None:
    write, layout = MINIATURES[case]
    listing = list_images(write(tmp_path).root)
    assert listing.layout == layout
    assert [fields(image) for image in listing.images] == EXPECTED[case]
    assert {image.license for image in listing.images} == {LICENSES.get(layout, UNKNOWN)}
    assert all((tmp_path / image.file).is_file() for image in listing.images)
    assert not said(listing, "have no row")
    assert not said(listing, "are not there")
    assert list_images(tmp_path, layout).images == listing.images


@pytest.mark.parametrize("case", MINIATURES)
def test_only_the_right_layout_recognises_a_delivery_and_says_why(case: str, tmp_path: Path) -> None:
    write, layout = MINIATURES[case]
    ((found, reason),) = recognise(write(tmp_path).root)
    assert found == layout
    assert any(path.name in reason for path in tmp_path.rglob("*"))
    assert list_images(tmp_path).reason == reason


@pytest.mark.parametrize("case", MINIATURES)
def test_no_layout_reads_the_delivery_of_another(case: str, tmp_path: Path) -> None:
    write, layout = MINIATURES[case]
    write(tmp_path)
    for other in LAYOUTS.keys() - {layout}:
        with pytest.raises(DataError, match=r"holds nothing that|Say which|several tables|has no column"):
            list_images(tmp_path, other)


@pytest.mark.parametrize(
    ("case", "other"),
    [pair for pair in itertools.combinations(MINIATURES, 2) if len({MINIATURES[name][1] for name in pair}) == 2],
)
def test_two_deliveries_in_one_folder_are_not_taken_for_one(case: str, other: str, tmp_path: Path) -> None:
    (first, one), (second, two) = MINIATURES[case], MINIATURES[other]
    first(tmp_path / "one")
    second(tmp_path / "two")
    found = {name for name, _ in recognise(tmp_path)}
    assert found == {one, two} - {"csv"}
    if len(found) == 2:
        with pytest.raises(DataError, match="fits several layouts") as caught:
            list_images(tmp_path)
        assert all(name in str(caught.value) for name in found)


@pytest.mark.parametrize("case", MINIATURES)
def test_what_lacks_and_what_is_over_is_told(case: str, tmp_path: Path) -> None:
    listing = list_images(MINIATURES[case][0](tmp_path).root)
    counts = {str(grade): list(grades(listing).values()).count(grade) for grade in set(grades(listing).values())}
    told = ", ".join(f"{grade.lower()}: {count}" for grade, count in sorted(counts.items(), key=lambda c: c[0].lower()))
    assert listing.notes[-1] == f"grades: {told}"
    Folder(tmp_path).pictures("spare.jpg", ".hidden.jpg", "__MACOSX/spare.jpg")
    assert said(list_images(tmp_path), "1 pictures have no row and stay out: spare.jpg")
    if listing.layout == "rahim" or "class folders" in case:
        return
    (tmp_path / listing.images[0].file).unlink()
    again = list_images(tmp_path)
    assert len(again.images) == len(listing.images)
    assert said(again, f"1 rows name pictures that are not there: {listing.images[0].image_id}")


@pytest.mark.parametrize("case", MINIATURES)
def test_tables_may_be_utf_16_semicolons_and_crlf(case: str, tmp_path: Path) -> None:
    before = list_images(MINIATURES[case][0](tmp_path).root)
    for path in tmp_path.rglob("*.csv"):
        delimiter = ";" if "left;right" in path.read_text() else ","
        rows = list(csv.reader(io.StringIO(path.read_text(), newline=""), delimiter=delimiter))
        path.write_bytes("".join(";".join(row) + "\r\n" for row in rows).encode("utf-16"))
    assert list_images(tmp_path).images == before.images


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.csv": "x,y\n1,2\n"}, r"readme\.csv has the columns x, y; .* \(--grade, --image-id, --file\)"),
        ({"labels.csv": ""}, r"labels\.csv is empty"),
        ({"labels.csv": "image_id,grade\n\0\0,1\n"}, r"labels\.csv"),
        ({}, r"holds 1 pictures and no table of its own\. Name the table of images with --labels"),
        ({"a.csv": "x\n1\n", "b.csv": "y\n1\n"}, r"several tables: a\.csv, b\.csv\."),
    ],
)
def test_where_nothing_fits_the_table_says_why(files: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path).pictures("a.png")
    for name, content in files.items():
        folder = folder.text(name, content)
    refused(message, folder)


def test_csv_files_are_found_whatever_their_case(tmp_path: Path) -> None:
    folder = (
        Folder(tmp_path).pictures("A0.JPG", "sub/B1.Png").text("labels.csv", "file,grade\na0.jpg,1\nSub/b1.png,2\n")
    )
    assert [image.file for image in list_images(folder.root).images] == ["A0.JPG", "sub/B1.Png"]


def test_a_table_of_ones_own_beside_a_published_one_does_not_hide_it(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path).text("labels.csv", "image_id,grade\ntrain/10_left,4\n")
    listing = list_images(folder.root)
    assert (listing.layout, listing.images[0].grade) == ("eyepacs", 0)
    assert said(listing, "1 tables are none of this collection's and were not read: labels.csv")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, with flipped bits, with bytes put in, or with a stretch said twice."""
    at, to = sorted(rng.randrange(len(content)) for _ in range(2))
    flips = {rng.randrange(len(content)): 1 << rng.randrange(8) for _ in range(3)}
    return rng.choice(
        [
            content[:at],
            bytes(byte ^ flips.get(index, 0) for index, byte in enumerate(content)),
            content[:at] + bytes(rng.choices([0, 10, 13, 34, 44, 59, 128, 226, 255], k=2)) + content[at:],
            content[:to] + content[at:],
        ]
    )


@pytest.mark.parametrize("case", [case for case in MINIATURES if case not in ("rahim", "aptos2019 in class folders")])
def test_a_damaged_table_is_read_or_refused_in_one_line(case: str, tmp_path: Path) -> None:
    write, layout = MINIATURES[case]
    write(tmp_path)
    rng = random.Random(case)
    tables = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".xls", ".xlsx"))
    for _ in range(40):
        path = rng.choice(tables)
        intact = path.read_bytes()
        path.write_bytes(damaged(intact, rng))
        try:
            list_images(tmp_path, layout)
        except DataError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        path.write_bytes(intact)
    assert [fields(image) for image in list_images(tmp_path).images] == EXPECTED[case]


def test_a_table_that_is_not_recognised_is_told_and_not_passed_over(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path).text("trainLabels.csv", "image\0level\n10_left,0\n")
    listing = list_images(folder.root)
    assert len(listing.images) == 2
    assert said(listing, "1 tables are none of this collection's and were not read: trainLabels.csv")
    assert said(listing, "2 pictures have no row and stay out")


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    folder = idrid(tmp_path)
    refused("There is no layout 'kaggle'. Choose one of: eyepacs", folder, "kaggle")
    refused("idrid has its own", folder, "idrid", columns=ColumnMap())
    refused("corrects messidor, but this is idrid", folder, options=Options(errata=tmp_path / "e.csv"))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_images(tmp_path / "nowhere")


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path / "delivered")
    (folder.root / "loop").symlink_to(folder.root)
    assert len(list_images(folder.root).images) == 4


def test_a_note_shows_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    listing = list_images(own_csv(tmp_path).pictures("\x1b[2J.png").root)
    assert said(listing, r"1 pictures have no row and stay out: '\x1b[2J.png'")


@pytest.mark.parametrize("hidden", ["\u202e", "\x07", "\u200b"])
def test_a_name_with_invisible_characters_is_refused(hidden: str, tmp_path: Path) -> None:
    folder = own_csv(tmp_path).text("labels.csv", f"image_id,grade\na{hidden}b,1\n")
    refused(rf"labels\.csv row 2: .* invisible character U\+{ord(hidden):04X}", folder)


# ---- EyePACS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jpeg", "jpg", "png", "JPG"])
def test_eyepacs_copies_without_a_header_and_with_other_endings(ending: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path).pictures(f"resized/10_left.{ending}", f"resized/10_right.{ending}")
    listing = list_images(folder.text("train.csv", "10_left,0\n10_right,3\n").root)
    assert grades(listing) == {"10_left": 0, "10_right": 3}
    assert listing.images[0].file == f"resized/10_left.{ending}"
    assert said(listing, "train.csv has no header")


def test_eyepacs_names_with_an_ending_in_the_table(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path).text("trainLabels.csv", "image,level\n10_left.jpeg,0\n10_right.jpeg,3\n")
    assert [fields(image) for image in list_images(folder.root).images] == EXPECTED["eyepacs"]


def test_eyepacs_form_of_an_answer_is_never_taken_for_grades(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path)
    assert said(list_images(folder.root), "sampleSubmission.csv holds no grades")
    for table in ("trainLabels.csv", "retinopathy_solution.csv"):
        (tmp_path / table).unlink()
    refused("fits no layout", folder)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,level\n10_left,0\n10_both,1\n", r"trainLabels\.csv row 3: image is '10_both'; accepted are names such"),
        ("image,level\n10_left,5\n", r"trainLabels\.csv row 2: level is '5'; accepted are 0, 1, 2, 3, 4, empty"),
        ("image,level\n10_left,0\n10_left,3\n", r"row 3: image '10_left' is in row 2 already, graded 0 there, 3 here"),
        ("image,level\n10_left,0\n1_left,1\n", r"solution\.csv row 2: image '1_left' is in trainLabels\.csv row 3 alr"),
        ("image,level\n10_left,0\n10_right\n", r"trainLabels\.csv row 3 has 1 fields, the header 2"),
    ],
)
def test_eyepacs_mistakes_in_the_table(table: str, message: str, tmp_path: Path) -> None:
    refused(message, eyepacs(tmp_path).text("trainLabels.csv", table))


def test_two_copies_of_a_picture_are_not_chosen_between(tmp_path: Path) -> None:
    folder = eyepacs(tmp_path).pictures("train/10_left.png")
    refused(r"'10_left' may be train/10_left\.jpeg or train/10_left\.png", folder)


def test_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "pictures").pictures("10_left.jpeg")
    labels = tmp_path / "trainLabels.csv"
    labels.write_text("image,level\n10_left,2\n")
    listing = list_images(folder.root, labels=labels)
    assert (listing.layout, grades(listing)) == ("eyepacs", {"10_left": 2})
    assert (listing.images[0].where, listing.images[0].source) == (f"{labels} row 2", "EyePACS 2015, train")


# ---- APTOS 2019 ------------------------------------------------------------------------------------------------------


def test_aptos_altered_copies_are_listed_only_without_others_and_that_is_said(tmp_path: Path) -> None:
    altered = list_images(aptos_classes(tmp_path / "a", "gaussian_filtered_images/gaussian_filtered_images/").root)
    assert said(altered, "2 pictures under gaussian_filtered_images are altered in colour, not photographs as taken")
    assert {image.source for image in altered.images} == {"APTOS 2019, class folders, altered in colour"}
    aptos_classes(tmp_path / "b", "gaussian_filtered_images/")
    both = list_images(aptos_classes(tmp_path / "b").root)
    assert [fields(image) for image in both.images] == EXPECTED["aptos2019 in class folders"]
    assert said(both, "2 pictures under gaussian_filtered_images are altered in colour and stay out")
    assert not said(both, "have no row")


def test_aptos_table_and_class_folders_must_agree(tmp_path: Path) -> None:
    a, b, _ = APTOS_NAMES
    folder = aptos_classes(tmp_path).text("train.csv", f"id_code,diagnosis\n{a},2\n{b},4\n")
    assert grades(list_images(folder.root)) == {a: 2, b: 4}
    folder.text("train.csv", f"id_code,diagnosis\n{a},2\n{b},3\n")
    refused(rf"row 3: diagnosis of {b} is 3, but .*Proliferate_DR/{b}\.png lies in the folder of class 4", folder)


def test_aptos_an_image_in_two_classes_is_refused_with_both(tmp_path: Path) -> None:
    folder = aptos_classes(tmp_path).pictures(f"colored_images/Mild/{APTOS_NAMES[0]}.png")
    refused("graded Mild there, Moderate here", folder)


# ---- Messidor --------------------------------------------------------------------------------------------------------


def test_messidor_grades_are_mapped_explicitly_and_that_is_recorded(tmp_path: Path) -> None:
    listing = list_images(messidor(tmp_path).root)
    assert said(listing, "mapped to ICDR: 0 to 0, 1 to 1, 2 to none, 3 to none; given were 0: 3, 1: 1, 2: 1, 3: 1.")
    assert said(listing, "10 of the 12 parts have no table here: Base12")
    other = list_images(tmp_path, options=Options(messidor_grades={0: 0, 1: 1, 2: 2, 3: 4}))
    assert [image.grade for image in other.images] == [4, 1, 0, 2, 0, 0]
    assert [image.grade_given for image in other.images] == list("310200")
    assert said(other, "2 to 2, 3 to 4")


@pytest.mark.parametrize("mapping", [{0: 0, 1: 1, 2: 2}, {0: 0, 1: 1, 2: 2, 3: 5}, {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}])
def test_messidor_mapping_covers_its_scale(mapping: dict[int, int | None], tmp_path: Path) -> None:
    refused("must give each of 0, 1, 2, 3 an ICDR", messidor(tmp_path), options=Options(messidor_grades=mapping))


def test_messidor_a_grade_off_its_scale_is_refused(tmp_path: Path) -> None:
    name = f"{MESSIDOR_NAMES[0]}.tif"
    folder = messidor(tmp_path).old_excel("Base11/Annotation_Base11.xls", [MESSIDOR_HEADER, [name, "x", 4, 0]])
    refused(r"Annotation_Base11\.xls row 2: Retinopathy grade is '4'; accepted are 0, 1, 2, 3\.", folder)


def test_messidor_two_tables_of_one_part_are_refused(tmp_path: Path) -> None:
    name = f"{MESSIDOR_NAMES[0]}.tif"
    folder = messidor(tmp_path).old_excel("Base11/Annotation_Base11_update.xls", [MESSIDOR_HEADER, [name, "x", 1, 0]])
    refused("are both the table of Base11", folder)


def errata(folder: Path, *rows: str) -> Options:
    path = folder / "errata.csv"
    path.write_text("".join(row + "\n" for row in ("image name;corrected grade;duplicate of", *rows)))
    return Options(errata=path)


def test_messidor_errata_correct_grades_and_leave_out_duplicates(tmp_path: Path) -> None:
    a, _, _, _, e, f = MESSIDOR_NAMES
    folder = messidor(tmp_path / "delivered")
    listing = list_images(folder.root, options=errata(tmp_path, f"{a}.tif;1;", f"{f}.tif;;{e}.tif"))
    assert f not in grades(listing)
    assert (listing.images[0].grade, listing.images[0].grade_given) == (1, "1")
    assert listing.images[0].where.endswith("Annotation_Base11.xls row 2, corrected by errata.csv row 2")
    assert said(listing, f"1 pictures stay out as duplicates, by errata.csv: {f}")
    assert not said(listing, "have no row")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x.tif;1;"], r"errata\.csv row 2: 'x\.tif' is in none of the tables"),
        ([f"{MESSIDOR_NAMES[0]}.tif;4;"], "row 2: corrected grade is '4'; accepted are 0, 1, 2, 3"),
        ([f"{MESSIDOR_NAMES[0]}.tif;;"], "either a corrected grade or the other image"),
        ([f"{MESSIDOR_NAMES[0]}.tif;1;{MESSIDOR_NAMES[1]}.tif"], "either a corrected grade or the other image"),
        ([f"{MESSIDOR_NAMES[0]}.tif;;{MESSIDOR_NAMES[0]}"], "either a corrected grade or the other image"),
        ([f"{MESSIDOR_NAMES[0]};1;", f"{MESSIDOR_NAMES[0]};2;"], "row 3: .* is corrected already"),
        ([f"{MESSIDOR_NAMES[0]};;{MESSIDOR_NAMES[1]}", f"{MESSIDOR_NAMES[1]};;{MESSIDOR_NAMES[0]}"], "left out as one"),
    ],
)
def test_messidor_errata_that_do_not_fit_are_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    refused(message, messidor(tmp_path / "delivered"), options=errata(tmp_path, *rows))


# ---- Messidor-2 ------------------------------------------------------------------------------------------------------


def test_messidor2_either_header_gives_the_same_grades(tmp_path: Path) -> None:
    folder = messidor2(tmp_path)
    before = list_images(folder.root)
    folder.text(
        "messidor_data.csv",
        "id_code,diagnosis,adjudicated_dme,adjudicated_gradable\n"
        "20051020_43808_0100_PP.png,2,0,1\n20051020_43832_0100_PP.png,0,0,1\nIM000013.jpg,1,0,1\n",
    )
    again = list_images(folder.root)
    assert [fields(image) for image in again.images] == [fields(image) for image in before.images]
    assert said(before, "1 pictures are listed in messidor_data.csv without a grade, or as not gradable")
    assert said(again, "2 pictures bear names of Messidor's")


def test_messidor2_pairs_alone_and_grades_alone(tmp_path: Path) -> None:
    pairs, graded = messidor2(tmp_path / "pairs"), messidor2(tmp_path / "grades")
    (pairs.root / "messidor_data.csv").unlink()
    (graded.root / "messidor-2.csv").unlink()
    listing = list_images(pairs.root)
    assert set(grades(listing).values()) == {None}
    assert said(listing, "no table of grades")
    listing = list_images(graded.root)
    assert {image.patient_id for image in listing.images} == {None}
    assert grades(listing)["IM000013"] == 1
    assert said(listing, "no table of pairs")


def test_messidor2_not_gradable_means_no_grade_whatever_is_written(tmp_path: Path) -> None:
    folder = messidor2(tmp_path)
    text = (tmp_path / "messidor_data.csv").read_text().replace("IM000013.JPG,1,0,1", "IM000013.JPG,1,0,0")
    image = next(i for i in list_images(folder.text("messidor_data.csv", text).root).images if i.image_id == "IM000013")
    assert (image.grade, image.grade_given) == (None, "1")


def test_messidor2_a_graded_picture_in_no_pair_is_listed_and_told(tmp_path: Path) -> None:
    folder = messidor2(tmp_path)
    text = (tmp_path / "messidor_data.csv").read_text() + "IM000099.JPG,4,0,1\n"
    listing = list_images(folder.text("messidor_data.csv", text).root)
    assert fields(listing.images[-1])[:6] == ("IM000099", "IMAGES/IM000099.JPG", 4, "4", "icdr", None)
    assert said(listing, "1 graded pictures are in no pair")


def test_messidor2_two_tables_of_grades_or_conflicting_rows_are_refused(tmp_path: Path) -> None:
    folder = messidor2(tmp_path)
    text = (tmp_path / "messidor_data.csv").read_text()
    folder.text("messidor_data.csv", text + "im000013.jpg,2,0,1\n")
    refused("row 6: image 'im000013' is in row 4 already, as 'IM000013', graded 1 there, 2 here", folder)
    folder.text("messidor_data.csv", text).text("copy.csv", text)
    refused(r"copy\.csv and messidor_data\.csv are both tables of grades", folder)


# ---- IDRiD -----------------------------------------------------------------------------------------------------------


def test_idrid_a_row_never_takes_the_picture_of_the_other_part(tmp_path: Path) -> None:
    folder = idrid(tmp_path)
    (tmp_path / ORIGINALS / "b. Testing Set" / "IDRiD_001.jpg").unlink()
    listing = list_images(folder.root)
    assert listing.images[-1].file == "1. Original Images/b. Testing Set/IDRiD_001.jpg"
    assert said(listing, "1 rows name pictures that are not there: test/IDRiD_001")
    assert said(listing, "share names")


def test_idrid_the_same_names_in_its_other_parts_do_not_confuse(tmp_path: Path) -> None:
    folder = idrid(tmp_path).pictures("C. Localization/1. Original Images/a. Training Set/IDRiD_001.jpg")
    listing = list_images(folder.root)
    assert [fields(image) for image in listing.images] == EXPECTED["idrid"]
    assert said(listing, "1 pictures have no row and stay out: C. Localization")


def test_idrid_the_kaggle_copy_tells_its_parts_by_name_alone(tmp_path: Path) -> None:
    idrid_kaggle(tmp_path / "trained and tested" / "test")
    found = {image.image_id: image.file.rpartition("/")[2] for image in list_images(tmp_path).images}
    assert found == {"train/IDRiD_001": "IDRiD_001.jpg", "test/IDRiD_001": "IDRiD_001test.jpg"}


# ---- DeepDRiD --------------------------------------------------------------------------------------------------------


def test_deepdrid_contradictions_and_other_kinds_are_told(tmp_path: Path) -> None:
    listing = list_images(deepdrid(tmp_path).root)
    assert said(listing, "1 names contradict the column their grade is in, so the eye is unknown: 56_r3")
    assert said(listing, "1 ultra-widefield pictures are of another kind and stay out")


def test_deepdrid_the_workbook_is_read_and_not_its_copy(tmp_path: Path) -> None:
    folder = deepdrid(tmp_path).text(f"{EVALUATION}/Challenge1_labels.csv", "image_id,DR_Levels\n347_l2,0\n")
    assert grades(list_images(folder.root))["347_l2"] == 4


def test_deepdrid_a_grade_for_both_eyes_is_refused(tmp_path: Path) -> None:
    row = "1,1_l1,\\x\\1_l1.jpg,1,2,3,3,8,8,0\n"
    table = f"{REGULAR}/regular-fundus-training/regular-fundus-training.csv"
    refused("1_l1 is graded 2 as a left and 3 as a right eye", deepdrid(tmp_path).text(table, DEEPDRID_HEADER + row))


# ---- SUSTech-SYSU ----------------------------------------------------------------------------------------------------


def test_sustech_fives_are_told_and_a_regrade_of_anything_else_is_refused(tmp_path: Path) -> None:
    folder = sustech(tmp_path)
    listing = list_images(folder.root)
    assert said(listing, "2 images have grade 5, laser scars, which is no ICDR grade; 1 of them were graded anew")
    assert said(listing, "1 of grade 5 stay without an ICDR grade: 0003")
    assert listing.images[3].where.endswith("drLabels.csv row 5, originalImages/c5_DR_reclassified.csv row 2")
    anew = "originalImages/c5_DR_reclassified.csv"
    header = (tmp_path / anew).read_text().partition("\n")[0]
    refused(r"row 2: no image of grade 5", folder.text(anew, f"{header}\n0002.jpg,3,3,3\n"))
    refused(
        r"row 2: DR_grade\(Intern.* is '5'; accepted are 0, 1, 2, 3, 4\.",
        folder.text(anew, f"{header}\n0004.jpg,5,5,5\n"),
    )


def test_sustech_without_the_second_table_fives_have_no_grade(tmp_path: Path) -> None:
    folder = sustech(tmp_path)
    (tmp_path / "originalImages/c5_DR_reclassified.csv").unlink()
    assert grades(list_images(folder.root)) == {"0001": 0, "0002": 2, "0003": None, "0004": None}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0001.jpg,2,0,0,0", "the eye is '2'; accepted are 0, 1"),
        ("0001.jpg,0,6,0,0", "is '6'; accepted are 0, 1, 2, 3, 4, empty, 5"),
    ],
)
def test_sustech_eyes_and_grades_off_the_scale_are_refused(row: str, message: str, tmp_path: Path) -> None:
    refused(message, sustech(tmp_path).text("originalImages/drLabels.csv", f"{SUSTECH_HEADER}{row}\n"))


# ---- Rahim -----------------------------------------------------------------------------------------------------------


def test_rahim_tells_of_odd_names_ungraded_classes_and_differing_eyes(tmp_path: Path) -> None:
    listing = list_images(rahim(tmp_path).root)
    assert said(listing, "1 of 2 patients have pictures of different grades")
    assert said(listing, "1 names tell neither patient nor eye: Copy of 31")
    assert said(listing, "1 pictures are of a class without an ICDR grade")


def test_rahim_an_unknown_class_or_an_image_in_two_is_refused(tmp_path: Path) -> None:
    folder = rahim(tmp_path / "a").pictures(f"{TEN}/11 - Glaucoma/Patient009_L.jpg")
    refused("the folder '11 - Glaucoma' is no class; accepted are No DR", folder)
    folder = rahim(tmp_path / "b").pictures(f"{TEN}/8 - PDR without maculopathy/Patient007_L.jpg")
    refused("'Patient007_L' is in .*, graded 2 - Mild DR without maculopathy there, 8 - PDR", folder)


# ---- anything else ---------------------------------------------------------------------------------------------------


def test_csv_columns_may_have_other_names_and_the_table_any_form(tmp_path: Path) -> None:
    columns = ColumnMap(file="name", grade="DR", patient_id="subject", eye="side")
    folder = Folder(tmp_path / "a").pictures("a.png", "b.jpg")
    rows: list[list[object]] = [["name", "DR", "subject", "side"], ["a.png", 3, "p1", "OD"], ["b.jpg", None, "p1", "l"]]
    folder.new_excel("clinic.xlsx", rows)
    listing = list_images(folder.root, columns=columns)
    found = [(image.image_id, image.file, image.grade, image.patient_id, image.eye) for image in listing.images]
    assert found == [("a", "a.png", 3, "p1", "right"), ("b", "b.jpg", None, "p1", "left")]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_csv_mistakes_keep_their_messages(text: str, message: str, tmp_path: Path) -> None:
    refused(message, own_csv(tmp_path).text("labels.csv", text), "csv")


def test_csv_a_file_that_is_not_there_or_not_clear_is_left_to_ingest(tmp_path: Path) -> None:
    folder = own_csv(tmp_path).pictures("a.jpg")
    listing = list_images(folder.text("labels.csv", "image_id,grade\na,1\nz,1\nc.tif,1\n").root)
    assert [image.file for image in listing.images] == ["a", "z", "c.tif"]


def test_csv_of_several_tables_none_is_chosen(tmp_path: Path) -> None:
    folder = own_csv(tmp_path).text("more.csv", "image_id,grade\na,1\n")
    refused("fits no layout", folder)
    refused(r"several tables: labels\.csv, more\.csv\. Say which", folder, "csv")
    assert len(list_images(tmp_path, labels=tmp_path / "more.csv").images) == 1


def test_a_saved_mapping_comes_back(tmp_path: Path) -> None:
    columns = replace(ColumnMap(), grade="Schweregrad: DR", eye="côté")
    save_mapping(tmp_path / "clinic.yaml", columns)
    assert read_mapping(tmp_path / "clinic.yaml") == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grade: level\ncolour: c\n", "'colour' is no field; accepted are image_id, file, grade"),
        ("grade: a\neye: b\ngrade: c\n", r"clinic\.yaml is not YAML: grade stands twice .*line 3"),
        ("grade: 3\n", "grade is 3; accepted is the name of a column"),
        ("grade: ''\n", "grade is ''"),
        ("- grade\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("grade: [\n", "is not YAML"),
    ],
)
def test_a_mapping_that_says_nothing_usable_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_mapping(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_mapping(tmp_path / "nowhere.yaml")
