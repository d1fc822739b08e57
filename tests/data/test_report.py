"""The data report: its numbers are those of the data, its page loads nothing, what is proprietary stays out of it."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import stat
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_collections as planted
from PIL import Image

from dr_platform.data import collections, manifest, quality, report
from dr_platform.data.prepare import prepare
from dr_platform.data.quality import Quality
from dr_platform.data.reasons import often, read_reason
from dr_platform.data.report.facts import BINS, GRADES, Report
from dr_platform.data.report.gathering import EXAMPLES
from dr_platform.errors import DataError
from dr_platform.pages.charts import ticks
from dr_platform.pages.markup import number

SIZE = 144  # a field in which copies can be told: see screening.MIN_RADIUS
NAMES = ["camera", "second", "st-marien"]
CLINIC_LICENCE = "contract 4711"
HOSTILE = "<script>alert(1)</script> \"'&"
PERSON = "MUELLER-1950-"  # what a name in an id would look like, had ingest let it through

DARK, NOISE, NEGATIVE = 3, 8, 11  # of camera
FIELDS_UNSEEN = 1  # of camera: NOISE
COPIED, MIRRORED = 5, 14  # of camera, in `second` as it is and mirrored
COPIED_BY_CLINIC = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Raw collections and two prepared grades."""
    root = tmp_path_factory.mktemp("report")
    raw = root / "raw"
    faults = {DARK: planted.dark, NOISE: planted.noise, NEGATIVE: planted.negative}
    planted.write_collection(
        raw, "camera", "public", {i: faults.get(i, planted.same) for i in range(22)}, size=SIZE,
        licence=HOSTILE, regrade={COPIED_BY_CLINIC: 1, 20: None}, prefix=PERSON,
    )  # fmt: skip
    second = {COPIED: planted.same, MIRRORED: planted.mirrored, **dict.fromkeys(range(30, 36), planted.wide)}
    planted.write_collection(raw, "second", "public", second, size=SIZE)
    clinic = dict.fromkeys([COPIED_BY_CLINIC, *range(40, 45)], planted.same)
    planted.write_collection(
        raw, "st-marien", "proprietary", clinic, size=SIZE, licence=CLINIC_LICENCE, regrade={COPIED_BY_CLINIC: 4}
    )
    for grade in (0, 1):
        prepare(raw, root / "prepared", planted.prepare_config(NAMES, grade=grade))
    return root


def collect(place: Path, **changes: object) -> Report:
    config = planted.prepare_config(NAMES, **changes.pop("config", {}))
    return report.collect(place / "raw", [place / "prepared"], config, project="eyes", **changes)


@pytest.fixture(scope="module")
def public(place) -> Report:
    return collect(place)


@pytest.fixture(scope="module")
def everything(place) -> Report:
    return collect(place, include_proprietary=True)


@pytest.fixture(scope="module")
def page(public) -> str:
    return report.render(public)


class Elements(HTMLParser):
    """The elements of a page in order, each with its attributes; fails where one is not closed in its turn."""

    VOID = ("meta", "img", "rect", "path", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag in tags]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_collections_are_counted_as_their_tables_have_them(place, everything):
    for count in everything.collections:
        directory = collections.collection_directory(place / "raw", count.visibility, count.name)
        _, rows = collections.read_collection(directory)
        assert count.images == len(rows) == sum(count.grades)
        assert count.grades == tuple(sum(row.grade == grade for row in rows) for grade in GRADES)
        assert count.patients == len({row.patient_id for row in rows})
    assert [count.name for count in everything.collections] == NAMES


def test_the_split_is_that_of_the_manifests(place, everything):
    for row in everything.split:
        directory = manifest.prepared_directory(place / "prepared", row.visibility, row.grade)
        _, images = manifest.read_manifest(directory)
        mine = [image for image in images if image.collection == row.collection]
        assert (row.train, row.held_out) == tuple(sum(i.split == s for i in mine) for s in manifest.SPLITS)
        assert row.patients_train + row.patients_held_out == len({image.patient for image in mine})
        assert 0 <= row.share_held_out <= 1
    assert {(row.grade, row.visibility) for row in everything.split} >= {(0, "public"), (1, "public")}


def test_planted_faults_are_left_out_for_their_own_reason(public):
    reasons = {entry.image_id: entry.reason for entry in public.left_out}
    assert reasons[shown_id("camera", DARK)].startswith("mean brightness is ")
    assert reasons[shown_id("camera", NOISE)].startswith("no field of view")
    assert reasons[shown_id("camera", NEGATIVE)].startswith("colours are inverted")
    assert reasons[shown_id("second", MIRRORED)] == "the same photograph as another image"


def test_the_groups_of_reasons_hold_every_image_once(public):
    assert sum(reason.images for reason in public.reasons) == len(public.left_out)
    assert all(len(reason.pictures) == min(reason.images, EXAMPLES) for reason in public.reasons)
    assert [reason.images for reason in public.reasons] == sorted((r.images for r in public.reasons), reverse=True)


def test_planted_copies_are_the_pairs(public):
    pairs = {frozenset((pair.first.image_id, pair.second.image_id)): pair for pair in public.pairs}
    assert set(pairs) == {
        frozenset((shown_id("camera", index), shown_id("second", index))) for index in (COPIED, MIRRORED)
    }
    assert pairs[frozenset((shown_id("camera", MIRRORED), shown_id("second", MIRRORED)))].how == "mirrored"
    assert all(pair.used == (True, False) for pair in public.pairs)
    assert len(public.similarities) == 2
    assert public.equal_files == 1


def test_distributions_hold_each_image_with_a_field_once(public):
    images = {count.name: count.images for count in public.collections}
    for measure in public.measures:
        for spread in measure.spreads:
            unseen = FIELDS_UNSEEN if spread.collection == "camera" and measure.name != "size" else 0
            assert spread.images == sum(spread.bins) == images[spread.collection] - unseen
            assert len(spread.bins) == BINS
            assert spread.low <= spread.median <= spread.high
    size = next(measure for measure in public.measures if measure.name == "size")
    assert size.spreads[0].median == SIZE


def test_examples_are_in_use_and_of_their_grade(public):
    unused = {entry.image_id for entry in public.left_out}
    for group in public.examples:
        assert {picture.grade for picture in group.pictures} == {group.grade}
        assert not unused & {picture.image_id for picture in group.pictures}
        assert len(group.pictures) == min(group.images, EXAMPLES)
    in_use = sum(group.images for group in public.examples)
    assert in_use == sum(count.images for count in public.collections) - len(public.left_out)


def test_the_json_has_the_numbers_and_no_picture(public):
    text = json.dumps(report.numbers(public))
    assert json.loads(text)["collections"][0]["images"] == 22
    assert "jpeg" not in text


def test_the_same_data_elsewhere_give_the_same_bytes(place, page, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    assert report.render(collect(tmp_path / "copy")) == page
    assert str(place) not in page


def test_progress_ends_at_its_total(place):
    seen: list[tuple[int, int]] = []
    collect(place, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_what_was_prepared_from_other_settings_is_said(place):
    (mirrored,) = collect(place).notes  # a planted copy, which shows the disc of the other eye
    assert mirrored.startswith("In 1 of 30 images of a known eye the disc lies where that of the other eye does")
    for changed in ({"seed": 9}, {"grade": 2}, {"rim_text": "keep"}, {"quality": {"min_focus": 0.5}}):
        assert "Run: dvc repro prepare" in collect(place, config=changed).notes[0]


def test_without_anything_prepared_the_page_says_so(place, tmp_path):
    config = planted.prepare_config(["camera"], visibility="public-only")
    found = report.collect(place / "raw", [tmp_path / "none"], config, project="eyes")
    assert found.split == ()
    assert "Nothing has been prepared yet" in report.render(found)


def test_without_a_collection_there_is_one_line_of_advice(tmp_path):
    with pytest.raises(DataError, match=r"no collection camera .* Run: drp data ingest") as caught:
        report.collect(tmp_path, [tmp_path], planted.prepare_config(["camera"]), project="eyes")
    assert "\n" not in str(caught.value)


def test_a_changed_image_is_an_error_not_one_picture_fewer(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    for path in (tmp_path / "copy/raw/public/camera/images").iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="is damaged"):
        collect(tmp_path / "copy")


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_nothing(page, everything):
    for text in (page, report.render(everything)):
        elements = Elements(text)
        assert not elements.all("script", "link", "iframe", "object", "embed", "form", "base", "audio", "video", "use")
        policy = next(meta for meta in elements.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
        assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        for _, attributes in elements.found:
            assert not [name for name in attributes if name.startswith("on")]
            assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
            assert attributes.get("href", "#").startswith("#")
        assert not re.search(r"url\(|@import|https?:", text)


def test_the_page_has_an_outline_a_listener_can_follow(page):
    elements = Elements(page)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in elements.all("a")} <= set(ids)
    tags = Counter(tag for tag, _ in elements.found)
    assert tags["caption"] == tags["table"] > 0
    assert all(cell.get("scope") for cell in elements.all("th"))
    assert all(image["alt"].strip() for image in elements.all("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-labelledby") in ids for drawing in elements.all("svg"))


def test_every_row_of_a_table_has_the_width_of_its_head(page):
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        head, body = table.split("</thead>")
        first = head.split("<tr>")[1]
        widths = {cells(row) for row in body.split("<tr>")[1:]}
        assert widths == {cells(first)}


def cells(row: str) -> int:
    tags = re.findall(r"<t[hd]\b[^>]*>", row)
    return sum(int(match[1]) if (match := re.search(r'colspan="(\d+)"', tag)) else 1 for tag in tags)


def test_pictures_are_small_copies_without_metadata(place, page):
    stored = {path.read_bytes() for path in (place / "raw").rglob("images/*")}
    images = Elements(page).all("img")
    assert images
    for attributes in images:
        content = base64.b64decode(attributes["src"].partition(",")[2])
        assert content not in stored
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 128
            assert not image.getexif()
            assert "comment" not in image.info


def test_foreign_text_is_escaped(place):
    found = collect(place)
    text = report.render(report.Report(**{**vars(found), "project": '"><img src=x onerror=alert(1)>'}))
    assert "<script" not in text
    assert "<img src=x" not in text
    assert HOSTILE in "".join(Elements(text).text)


def test_no_name_of_a_patient_or_file_is_shown(public, everything, page):
    for text in (page, report.render(everything), json.dumps(report.numbers(everything))):
        assert PERSON not in text
        assert "phantom-0" not in text
        assert ".png" not in text
    assert re.fullmatch("[0-9a-f]{16}", public.left_out[0].image_id)


# ---- what is proprietary ---------------------------------------------------------------------------------------------


def test_of_proprietary_collections_a_public_report_has_totals_only(public, everything, page):
    for text in (page, json.dumps(report.numbers(public))):
        assert "st-marien" not in text
        assert CLINIC_LICENCE not in text
        assert not [
            p.image_id
            for g in everything.examples
            if g.visibility != "public"
            for p in g.pictures
            if p.image_id in text
        ]
    assert public.withheld.images == 6
    assert public.withheld.collections == 1
    assert public.withheld.pairs == 1
    kept = sum(row.train + row.held_out for row in everything.split if row.visibility == "proprietary")
    assert public.withheld.train + public.withheld.held_out == kept > 0
    assert everything.withheld.images == everything.withheld.train == 0


def test_a_proprietary_copy_under_another_grade_changes_nothing_for_the_public_image(public, everything):
    image = shown_id("camera", COPIED_BY_CLINIC)
    for found in (public, everything):
        assert image not in {entry.image_id for entry in found.left_out}


def test_a_report_with_proprietary_pictures_says_so(page, everything):
    text = report.render(everything)
    assert "Holds proprietary photographs" in text
    assert "st-marien" in text
    assert "Holds proprietary photographs" not in page


def test_a_report_with_proprietary_pictures_stays_where_only_its_owner_reads(tmp_path, everything):
    path = report.page_file(tmp_path, None, include_proprietary=True)
    report.write(path, everything)
    assert path == tmp_path / "data" / "import-reports" / "data-report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (path.parent / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("out", ["results/page.html", "data/import-reports/../page.html", "data/import-reports.html"])
def test_a_report_with_proprietary_pictures_cannot_be_written_elsewhere(tmp_path, out):
    with pytest.raises(DataError, match=r"outside of data/import-reports"):
        report.page_file(tmp_path, tmp_path / out, include_proprietary=True)


def test_a_link_does_not_lead_a_proprietary_report_out(tmp_path):
    (tmp_path / "data" / "import-reports").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "data" / "import-reports" / "away").symlink_to(tmp_path / "results")
    with pytest.raises(DataError, match="outside"):
        report.page_file(tmp_path, tmp_path / "data/import-reports/away/page.html", include_proprietary=True)


def test_a_public_report_goes_where_it_is_wanted(tmp_path, public):
    assert report.page_file(tmp_path, None, include_proprietary=False) == tmp_path / "results" / "data-report.html"
    report.write(tmp_path / "page.html", public)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == report.render(public)


def test_a_page_cannot_take_the_place_of_a_directory(tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        report.page_file(tmp_path, tmp_path, include_proprietary=False)


def test_the_date_is_a_day_or_absent():
    assert report.date_of(None) is None
    assert report.date_of("2026-11-20") == "2026-11-20"
    with pytest.raises(DataError, match="'yesterday'; a day such as 2026-11-20"):
        report.date_of("yesterday")


# ---- words and axes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "what", "found"),
    [
        ({"field_found": False, "aspect": 1.0}, "No field of view is found", ""),
        ({"exposure": 12.4}, "Mean brightness", "12"),
        ({"focus": 0.0812}, "Focus", "0.081"),
        ({"radius": 8.0}, "Field's radius", "8 px"),
        ({"truncated": 0.41}, "Share of the field cut off", "0.41"),
        ({"inverted": True, "red": 1.0, "green": 2.0, "blue": 3.0}, "Colours are inverted", "red 1 < green 2 < blue 3"),
    ],
)
def test_a_reason_of_the_judge_is_read_in_its_parts(values, what, found):
    good = {"field_found": True, "aspect": 1.3, "radius": 200.0, "coverage": 0.9, "exposure": 80.0, "focus": 0.5}
    good |= {"contrast": 0.1, "fundus_like": 1.0}
    reasons = quality.judge(Quality(**{**good, **values}))
    assert read_reason("; ".join(reasons))[:2] == (what, found)
    assert "needed" in read_reason(reasons[0])[2] or "allowed" in read_reason(reasons[0])[2]


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("the same photograph as another image", ("Same photograph as another image", "", "")),
        ("what looks like writing at the rim, in 3 places", ("What looks like writing at the rim", "in 3 places", "")),
        ("copies of it have different grades (0, 1)", ("Copies of it have different grades", "0, 1", "")),
        (
            "contrast is 0.010; at least 0.020 is needed; focus is 0.1; at least 0.2 is needed",
            ("Contrast", "0.010", "at least 0.020 is needed"),
        ),
        ("no field of view: brightness runs from 3 to 5. Give a lit disc.",
         ("No field of view", "brightness runs from 3 to 5", "")),
    ],
)  # fmt: skip
def test_a_reason_is_read_in_its_parts(reason, parts):
    assert read_reason(reason) == parts


def test_the_most_frequent_reasons_are_counted_by_what_they_are_about():
    reasons = ["focus is 0.081; at least 0.120 is needed"] * 2 + ["focus is 0.1; at least 0.120 is needed", "no field"]
    assert often(reasons) == "3 focus, 1 no field"
    assert often([*reasons, "a", "b"], most=2) == "3 focus, 1 no field, …"


@pytest.mark.parametrize(("start", "end"), [(0, 255), (0.9, 1.02), (225, 301), (0, 1e-3), (1200, 4288), (0.3, 0.31)])
def test_ticks_are_few_round_and_inside(start, end):
    marks = ticks(start, end)
    assert 3 <= len(marks) <= 7
    assert start <= marks[0]
    assert marks[-1] <= end * (1 + 1e-9)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(marks)}
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.99971, "1.00"), (1.0, "1.00"), (0.0812, "0.081"), (58.91, "58.9"), (4288, "4\u202f288")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def shown_id(collection: str, index: int) -> str:
    """The pseudonym of a planted image."""
    prefix = PERSON if collection == "camera" else ""
    return manifest.pseudonym(f"{collection}/{prefix}{collection}-{index:04d}")
