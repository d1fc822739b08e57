"""A model's page and card: what they say, what they leave out, and what they never show."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from integration.small_project import ROOT, drp, make_project
from test_promotion import POLICY, metric, report

from dr_platform import model_pages
from dr_platform.config import load_params
from dr_platform.errors import DataError
from dr_platform.model_report.card import card
from dr_platform.model_report.facts import ModelFacts, Neighbour, Series, Shown, limits
from dr_platform.model_report.page import render, render_pair
from dr_platform.promotion import decide
from dr_platform.records import Curve, Distribution, Figures, NearestReal
from dr_platform.road import Project

HOSTILE = '<script>alert("x")</script> & | `code`'
PICTURE = Shown(b"\xff\xd8 a picture", 32, 32, "seed 7")
RULES = POLICY.model_copy(update={"max_rfd": 2.0, "spectrum": "refuse"})


def facts(**changes: object) -> ModelFacts:
    found = report(
        metric(40.0, spread=2.0, low=36.0, high=44.0), metric(1.5, "rfd__small"),
        notes=("microaneurysms: the field is 30 pixels wide",),
        figures=Figures(
            curves=(
                Curve(name="rim", x=(0.9, 1, 1.1), real=(9, 5, 0), fake=(8, 5, 1), low=(8, 4, 0), high=(9, 6, 1)),
            ),
            distributions=(Distribution(name="vessel_share", real=(0, 1, 2), fake=(1, 1, 3), n_real=3, n_fake=3),),
            neighbours=(NearestReal(seed=7, real=3, distance=0.5, typical=1.0, extractor="small"),),
        ),
    )  # fmt: skip
    plain = ModelFacts(
        model="fundus-dr1",
        number=2,
        aliases=(),
        date="2026-11-25",
        report=found,
        tags={"trained_on": HOSTILE, "licenses": "synthetic", "run": "t-1", "data.clinic": "abc"},
        decision=decide(found, 2, None, None, RULES, "fundus-dr1"),
        samples=(PICTURE,),
        truncation=((PICTURE, PICTURE),),
        interpolation=(PICTURE,),
        neighbours=(Neighbour(found.figures.neighbours[0], PICTURE, None),),
        training=(Series("Loss of G", (1.0, 2.0, 3.0), (2.0, 1.5, float("nan"))),),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class Outline(HTMLParser):
    """The tags of a page, each closed where it must be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def test_the_verdict_comes_first_with_every_rule_and_its_bound() -> None:
    page = render(facts())
    assert (
        page.index("Would be held")
        < page.index('id="metrics"')
        < page.index('id="lineage"')
        < page.index('id="limits"')
    )
    rules = page[page.index("The rules in force") : page.index("What the ledger has")]
    assert [word for word in ("relative FD", "1.50", "2.00", "pass", "spectrum", "missing") if word not in rules] == []
    assert "Champion" in render(facts(aliases=("champion",)))


def test_metrics_stand_with_interval_counts_and_identity_and_notes_say_what_is_not_there() -> None:
    page = render(facts())
    row = re.search(r'<tr><th scope="row">fid</th>.*?</tr>', page)
    assert row is not None
    assert [word for word in ("40", "36 to 44", "500 / 480", "small") if word not in row[0]] == []
    assert "abababab" in page  # of the weights
    assert "Not measured: microaneurysms: the field is 30 pixels wide" in page


def test_the_page_is_whole_runs_nothing_and_fetches_nothing() -> None:
    for page in (render(facts()), render_pair(facts(), facts(number=3)), render(facts(), private=True)):
        outline = read(page)
        names = [name for name, _ in outline.seen]
        assert {"script", "link", "iframe"} & set(names) == set()
        assert all((attrs.get("src") or "data:").startswith("data:") for _, attrs in outline.seen)
        assert all(attrs.get("alt") for name, attrs in outline.seen if name == "img")
        assert names.count("table") == names.count("caption")
        assert "<script>" not in page
        assert "default-src 'none'" in page


def test_what_was_not_kept_is_said_and_not_drawn() -> None:
    bare = facts(neighbours=(), training=(), report=report(metric(1.0)))
    page = render(bare)
    for said in ("were not kept with this report", "is not on this machine", "keeps no curves"):
        assert said in page


def test_a_photograph_that_may_not_be_shown_is_named_by_its_row_alone() -> None:
    assert "Image 3 of the reference is not shown here" in render(facts())
    pair = facts().neighbours[0]
    shown = render(facts(neighbours=(replace(pair, real=replace(PICTURE, caption="real, 12ab")),)), private=True)
    assert "real, 12ab" in shown
    assert "Holds proprietary photographs" in shown
    assert "Holds proprietary" not in render(facts())


def test_two_models_are_compared_where_their_numbers_mean_the_same() -> None:
    other = facts(number=3, report=report(metric(47.0, spread=1.5), metric(1.4, "rfd__small", n_fake=100)))
    page = render_pair(facts(), other)
    fid = re.search(r'<tr><th scope="row">fid__small</th>.*?</tr>', page)
    rfd = re.search(r'<tr><th scope="row">rfd__small</th>.*?</tr>', page)
    assert fid is not None
    assert rfd is not None
    assert "+7 ± 2.5" in fid[0]
    assert "number of generated images<" in rfd[0]


def test_a_withdrawal_is_said_on_the_page_of_one_and_of_two_and_on_the_card() -> None:
    marked = facts(tags={"revoked_patients": "12ab 2026-11-25"})
    for text in (render(marked), render_pair(facts(), marked), card("m/2", marked.report, marked.tags)):
        assert "12ab 2026-11-25" in text


def test_the_card_says_use_data_numbers_and_limits_and_reads_no_foreign_markdown() -> None:
    text = card("fundus-dr1/2", facts().report, facts().tags)
    assert text.startswith("# fundus-dr1/2\n")
    for part in ("## Use", "## Training data", "## Evaluation", "## Limits", "36 to 44", "no\nground for a diagnosis"):
        assert part in text
    assert "<script>" not in text
    assert r"\<script\>" in text


@pytest.mark.parametrize(
    ("tags", "resolution", "said"),
    [({"trained_on": "phantom (public) 100%"}, 512, "drawn phantoms"), ({}, 64, "nothing here speaks of lesions")],
)
def test_limits_follow_from_what_was_measured(tags: dict[str, str], resolution: int, said: str) -> None:
    assert any(said in each for each in limits(report(metric(1.0), resolution=resolution), tags))
    assert not any(said in each for each in limits(report(metric(1.0), resolution=512), {"trained_on": "messidor"}))


def test_a_page_is_written_with_its_numbers_and_nowhere_else(tmp_path: Path) -> None:
    project = Project(tmp_path, load_params(ROOT))
    for out, private in (
        (tmp_path / "a.json", False),
        (tmp_path / "a.htm", False),
        (tmp_path / "a.html", True),
        (tmp_path, False),
    ):
        with pytest.raises(DataError, match=r"is no page|outside of|is a directory"):
            model_pages.place(project, [], out, private=private)
    path = model_pages.place(project, [], tmp_path / "new" / "a.html", private=False)
    model_pages.write(path, [facts(), facts(number=3)], private=False)
    first, second = json.loads(model_pages.numbers_file(path).read_text())
    assert (first["version"], second["version"], first["verdict"]) == (2, 3, "Would be held")
    assert first["training"]["Loss of G"]["values"] == [2.0, 1.5, None]
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert sorted(each.name for each in path.parent.iterdir()) == ["a.html", "a.numbers.json"]  # and no report.json


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    done = drp(project, "report", "nobody/3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no model nobody" in done.stderr
    assert not (project / "results").exists()
