"""A data report as one HTML page, made for reading, printing and filing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from dr_platform.data.report import figures
from dr_platform.data.report.facts import (
    GRADES,
    CollectionCount,
    LeftOut,
    Measure,
    Pair,
    Picture,
    Reason,
    Report,
    SplitCount,
)
from dr_platform.pages.charts import shares
from dr_platform.pages.markup import (
    alarm,
    amount,
    chip,
    count_cell,
    definitions,
    document,
    grade_name,
    heading,
    heads,
    img,
    number_cells,
    percent,
    table,
)
from dr_platform.records import Visibility

_GRADE_CLASSES = ("g0", "g1", "g2", "g3", "g4", "gx")

# A figure: its measures, its title, and what is measured.
_FIGURES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("size",), "Size", "Longer side of the picture, pixels."),
    (("red", "green", "blue"), "Mean colour", "Red, green and blue within the field, 0 to 255; medians in that order."),
    (("exposure",), "Brightness", "Mean brightness within the field, 0 to 255."),
    (("focus",), "Sharpness", "Detail at 1–2 px over detail at 4–8 px of the green channel, 256 px across the field."),
    (("radius",), "Field of view: size", "Diameter of the field over the shorter side of the picture."),
    (("coverage",), "Field of view: coverage", "Share of the field’s circle that is lit."),
)


def render(report: Report) -> str:
    """The page as HTML; the same report gives the same text."""
    sections = [
        ("holds", "What it holds", _holds(report)),
        ("split", "The split", _split(report)),
        ("left-out", "Left out", _left_out(report)),
        ("look", "How the photographs look", _look(report)),
        ("pairs", "Near-duplicates", _pairs(report)),
        ("examples", "Examples", _examples(report)),
        ("versions", "Versions and reading", _versions(report)),
    ]
    footer = (
        "Written by drp data report. This page loads nothing and runs nothing; its pictures are small copies made from "
        "pixels. Images and patients appear under pseudonyms only."
    )
    return document(f"Data report: {report.project}", f"{_banner(report)}{_header(report)}", sections, footer)


# ---- the head --------------------------------------------------------------------------------------------------------


def _banner(report: Report) -> str:
    if not report.proprietary:
        return ""
    return alarm("Holds proprietary photographs.", "This page must not leave the site that owns them.")


def _header(report: Report) -> str:
    said = [
        *([("Date", escape(report.date))] if report.date else []),
        ("Data version", f"<code>{report.digest[:12]}</code>"),
        ("Prepared grade" + ("s" if len(report.grades) > 1 else ""), ", ".join(map(str, report.grades))),
        ("Resolution", f"{report.resolution} × {report.resolution} px"),
        ("Shown", _shown(report)),
    ]
    hidden = report.withheld
    images = sum(count.images for count in report.collections) + hidden.images
    left_out = len(report.left_out) + hidden.left_out
    held_out = sum(row.held_out for row in report.split) + hidden.held_out
    train = sum(row.train for row in report.split) + hidden.train
    figures_ = [
        ("images", amount(images)),
        ("collections", amount(len(report.collections) + hidden.collections)),
        (f"left out ({percent(left_out, images)})", amount(left_out)),
        ("images to train on", amount(train)),
        ("images held out", amount(held_out)),
        ("pairs of copies found", amount(len(report.similarities) + hidden.pairs)),
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    return (
        f'<header><p class="eyebrow">Data report</p><h1>{escape(report.project)}</h1>'
        f"{definitions(said)}{definitions(figures_, 'figures')}{notes}</header>\n"
    )


def _shown(report: Report) -> str:
    if report.proprietary:
        return "public and proprietary"
    return "public collections" + ("; proprietary ones count in the totals alone" if report.withheld.images else "")


# ---- counts ----------------------------------------------------------------------------------------------------------


def _holds(report: Report) -> str:
    hidden = report.withheld
    most = max((count.images for count in report.collections), default=0)
    rows = [_collection_row(count, most) for count in report.collections]
    if hidden.images:
        rows.append(
            f'<tr>{_name("not named", "proprietary")}<td class="n">{amount(hidden.images)}</td>'
            f'<td class="withheld" colspan="{1 + len(GRADES)}">shown to their owner only</td>'
            f'<td class="n">{amount(hidden.left_out)}</td><td></td><td></td></tr>'
        )
    head = (
        heads("Collection", ">Images", ">Patients", rows=2)
        + f'<th scope="colgroup" colspan="{len(GRADES)}" class="group">Grade</th>'
        + heads(">Left out", ">Unusable", "Grades", rows=2)
        + "</tr><tr>"
        + heads(*(">none" if grade is None else f">{grade}" for grade in GRADES))
    )
    key = "".join(
        f'<li style="--swatch: var(--{kind})">{grade_name(grade)}</li>'
        for kind, grade in zip(_GRADE_CLASSES, GRADES, strict=True)
    )
    caption = (
        "Images by collection and ICDR grade. “Unusable” were refused when they were taken in and are not counted. A + "
        "marks collections that do not name the patient of every image."
    )
    licences = [
        f'<tr><th scope="row" class="words">{escape(each.licence) or "none stated"}</th>'
        f'<td class="words">{escape(", ".join(each.collections))}</td><td class="n">{amount(each.images)}</td></tr>'
        for each in report.licences
    ]
    return (
        table(caption, head, rows)
        + f'<ul class="key" aria-hidden="true">{key}</ul>'
        + table(
            "Images by what their owners allow", heads("Licence", "Collections", ">Images"), licences, "licence stated"
        )
    )


def _name(collection: str, visibility: Visibility) -> str:
    return f'<th scope="row">{escape(collection)}{chip(visibility)}</th>'


def _collection_row(count: CollectionCount, most: int) -> str:
    names = [grade_name(grade) for grade in GRADES]
    bar = shares(count.grades, names, _GRADE_CLASSES, most)
    patients = amount(count.patients) + ("+" if count.without_patient else "") if count.patients else "unknown"
    return (
        f"<tr>{_name(count.name, count.visibility)}"
        f'<td class="n">{amount(count.images)}</td><td class="n">{patients}</td>'
        f"{''.join(count_cell(n) for n in count.grades)}{count_cell(count.left_out)}{count_cell(count.unusable)}"
        f'<td class="bar">{bar}</td></tr>'
    )


def _split(report: Report) -> str:
    if not report.split and not report.withheld.train + report.withheld.held_out:
        return "<p>Nothing has been prepared.</p>"
    rows = [_split_row(row) for row in report.split]
    hidden = report.withheld
    if hidden.train + hidden.held_out:
        rows.append(
            f'<tr>{_name("not named", "proprietary")}<td></td><td class="n">{amount(hidden.train)}</td>'
            f'<td class="n">{amount(hidden.held_out)}</td>'
            '<td class="withheld" colspan="4">shown to their owner only</td></tr>'
        )
    columns = (
        "Collection", ">Grade", ">Train", ">Held out", ">Patients, train", ">Patients, held out",
        ">Held out", "Share of patients",
    )  # fmt: skip
    caption = (
        f"Images and patients on the two sides. Patients, not images, are held out: {percent(report.held_out, 1)} of "
        f"them are asked for, chosen by a hash (seed {report.seed}), so a small collection may lie off."
    )
    return (
        "<p>No patient is on both sides, and images that are copies of one another count as one patient’s. "
        "<code>drp data check</code> verifies it.</p>" + table(caption, heads(*columns), rows)
    )


def _split_row(row: SplitCount) -> str:
    counts = (row.train, row.held_out, row.patients_train, row.patients_held_out)
    patients = row.patients_train + row.patients_held_out
    bar = shares((row.patients_held_out, row.patients_train), ("held out", "train"), ("one", "two"), patients)
    return (
        f"<tr>{_name(row.collection, row.visibility)}"
        f'<td class="n">{row.grade}</td>{"".join(map(count_cell, counts))}'
        f'<td class="n">{percent(row.patients_held_out, patients)}</td>'
        f'<td class="bar">{bar}</td></tr>'
    )


# ---- left out --------------------------------------------------------------------------------------------------------


def _left_out(report: Report) -> str:
    if not report.left_out:
        return "<p>Every image is used.</p>"
    rows = [
        f'<tr><th scope="row" class="words">{escape(reason.what)}</th><td class="n">{amount(reason.images)}</td>'
        f'<td class="bar">{shares((reason.images,), (reason.what,), ("one",), len(report.left_out))}</td>'
        f'<td class="words">{escape(reason.needed) or "–"}</td></tr>'
        for reason in report.reasons
    ]
    full = [_left_out_row(entry) for entry in report.left_out]
    columns = heads("Image", "Collection", ">Grade", "Reason, with what was measured")
    return (
        table(
            "Images left out by their first reason",
            heads("Reason", ">Images", "Share", "Needed"),
            rows,
        )
        + f'<div class="groups">{"".join(_reason_sheet(reason, report.proprietary) for reason in report.reasons)}</div>'
        + f"<details><summary>All {amount(len(full))} images left out</summary>"
        + table("Every image left out, with all its reasons", columns, full)
        + "</details>"
    )


def _left_out_row(entry: LeftOut) -> str:
    grade = "–" if entry.grade is None else str(entry.grade)
    return (
        f'<tr><td><code>{entry.image_id}</code></td><td>{escape(entry.collection)}</td><td class="n">{grade}</td>'
        f'<td class="words">{escape(entry.reason)}</td></tr>'
    )


def _reason_sheet(reason: Reason, names: bool) -> str:
    shown = len(reason.pictures)
    said = f"{amount(reason.images)} image{'s' if reason.images != 1 else ''}"
    if shown < reason.images:
        said += f", {shown} shown"
    items = [
        _item(picture, f"Left out: {reason.what} {found}".strip(), found or picture.collection, names)
        for picture, found in reason.pictures
    ]
    return _group(heading(reason.what, f"{said} · {reason.needed}" if reason.needed else said), items)


# ---- how they look ---------------------------------------------------------------------------------------------------


def _look(report: Report) -> str:
    by_name = {measure.name: measure for measure in report.measures}
    if not by_name:
        return "<p>No collection may be shown.</p>"
    plots, rows = [], []
    for position, (names, title, what) in enumerate(_FIGURES):
        measures = [by_name[name] for name in names]
        limits = " and ".join(f"{limit:g}" for limit in measures[0].limits)
        plural = "s" if len(measures[0].limits) > 1 else ""
        said = f"{what} Dashed: the limit{plural}, {limits}." if limits else what
        plots.append(
            f"<figure><figcaption><b>{escape(title)}</b>{escape(said)}</figcaption>"
            f"{figures.small_multiples(measures, title, position)}</figure>"
        )
        rows += [row for measure in measures for row in _spread_rows(measure, title)]
    columns = heads("Measurement", "Collection", ">Images", ">5 %", ">Median", ">95 %")
    return (
        "<p>One histogram for each collection, on a common axis; a tick stands at the median. The outermost bins hold "
        "what lies beyond. All but the size are of the images in which a field of view is found.</p>"
        f'<div class="plots">{"".join(plots)}</div>'
        f"<details><summary>The same in numbers</summary>{table('Quantiles by collection', columns, rows)}</details>"
    )


def _spread_rows(measure: Measure, title: str) -> list[str]:
    name = f"{title}, {measure.name}" if measure.name in ("red", "green", "blue") else title
    return [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(spread.collection)}</td>'
        f"{count_cell(spread.images)}{number_cells((spread.low, spread.median, spread.high))}</tr>"
        for spread in measure.spreads
    ]


# ---- pictures --------------------------------------------------------------------------------------------------------


def _pairs(report: Report) -> str:
    hidden = report.withheld.pairs
    also = f" Pairs with a proprietary photograph, not shown: {amount(hidden)}." if hidden else ""
    if not report.similarities:
        return f"<p>None among the photographs shown here.{also}</p>"
    items = "".join(f"<li>{_pair(pair, report.proprietary)}</li>" for pair in report.pairs)
    said = (
        f"Pairs that are one photograph: {amount(len(report.similarities))}; equal files among them: "
        f"{amount(report.equal_files)}. {len(report.pairs)} are shown, the least alike first, which are to be doubted. "
        f"Similarity is the correlation of the vessels’ structure after registration, at most 1.{also}"
    )
    return f'<p>{said}</p><ul class="pairs">{items}</ul>'


def _pair(pair: Pair, names: bool) -> str:
    how = {"same": "same orientation", "turned": "turned by 180°"}.get(pair.how, pair.how)
    images = "".join(
        f"<figure>{_image(picture, f'Photograph {picture.image_id} of a pair with similarity {pair.similarity:.3f}')}"
        f"<figcaption><code>{picture.image_id[:8]}</code> {escape(picture.collection)}, "
        f"{grade_name(picture.grade).lower()}, {'used' if used else 'left out'}{_mark(picture, names)}"
        "</figcaption></figure>"
        for picture, used in zip((pair.first, pair.second), pair.used, strict=True)
    )
    return (
        f'<div class="pair"><p><span class="similarity">{pair.similarity:.3f}</span> {escape(how)}</p>'
        f"<div>{images}</div></div>"
    )


def _examples(report: Report) -> str:
    parts = []
    for each in report.examples:
        said = f"{amount(each.images)} image{'s' if each.images != 1 else ''} in use"
        title = f"{each.collection}, {grade_name(each.grade).lower()}"
        items = [_item(picture, f"{title}: photograph {picture.image_id}", "", False) for picture in each.pictures]
        label = chip(each.visibility) if report.proprietary else ""
        parts.append(_group(heading(title, said, label), items))
    if not parts:
        return "<p>No image that may be shown is in use.</p>"
    return (
        "<p>As the networks see them: cropped to the field, centred in a square. Chosen by a hash of the file, not by "
        f'eye.</p><div class="groups">{"".join(parts)}</div>'
    )


def _item(picture: Picture, alt: str, caption: str, names: bool) -> str:
    said = f" {escape(caption)}" if caption else ""
    return (
        f"<figure>{_image(picture, alt)}<figcaption><code>{picture.image_id[:8]}</code>{said}{_mark(picture, names)}"
        f"</figcaption></figure>"
    )


def _mark(picture: Picture, wanted: bool) -> str:
    return f" {chip(picture.visibility)}" if wanted and picture.visibility == "proprietary" else ""


def _image(shown: Picture, alt: str) -> str:
    return img(shown.jpeg, shown.width, shown.height, alt)


def _group(head: str, items: Iterable[str]) -> str:
    return f'<div>{head}<ul class="sheet">{"".join(f"<li>{item}</li>" for item in items)}</ul></div>'


# ---- versions --------------------------------------------------------------------------------------------------------


def _versions(report: Report) -> str:
    rows = [
        f'<tr><th scope="row">{escape(each.what)}</th><td><code>{each.digest}</code></td></tr>'
        for each in report.versions
    ]
    rows.append(f'<tr><th scope="row">all data together</th><td><code>{report.digest}</code></td></tr>')
    caption = "SHA-256 of each record, which covers the digests of its tables and, through them, of every image."
    return (
        table(caption, heads("Record", "Digest"), rows)
        + "<p>A data version is known by its digest: whoever has the same one has the same images, grades and split. "
        "Pseudonyms are those of the manifests and of <code>drp data splits</code>; who is who stands in the import "
        "reports alone, at the site that took the photographs in.</p>"
    )
