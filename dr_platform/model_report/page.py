"""A registered model as one HTML page: verdict first, then numbers, pictures, lineage, limits. Or two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dr_platform import comparison
from dr_platform.model_report.card import error
from dr_platform.model_report.facts import ModelFacts, Series, Shown, limits, lineage
from dr_platform.pages import charts
from dr_platform.pages.markup import (
    alarm,
    chip,
    definitions,
    document,
    heading,
    heads,
    img,
    number,
    table,
)
from dr_platform.records import LEADING, Curve, Distribution, Metric

_FOOTER = (
    "Written by drp report. This page loads nothing and runs nothing. Its pictures were drawn by a generative model "
    "and show no person, save where photographs of the training set are named as such."
)
_STYLE = """
.verdict { font: 600 1.9rem/1.25 var(--serif); } .pass { color: var(--green); } .fail, .missing { color: var(--red); }
.sheet.wide li { width: calc(var(--thumb) * .74); } .sheet img.fine { image-rendering: pixelated; }
td.verdict { font: inherit; font-weight: 600; } .sheet.strip { margin: 0 0 18px; }
@media (min-width: 761px) { .words { min-width: 24em; } }
.facts .chip { margin-left: 0; }
"""
_CURVES = {
    "spectrum": ("Power spectrum", "Radially averaged, dB over cycles per pixel.", True, "cycles per pixel"),
    "direction": ("Directions", "Power of spots of 1 to 4 px by direction, dB over the ring’s mean.", False, "degrees"),
    "rim": ("Rim of the field", "Mean brightness around the rim, grey levels.", False, "radii of the field"),
}
_HEADLINES = {
    "fid": "FID",
    "rfd": "relative FD; 1 is perfect",
    "kid": "KID; 0 is perfect",
    "coverage": "coverage; 1 is all",
    "c2st_rim": "rims told apart, AUC; 0.5 is not at all",
    "eq_t_int_db": "EQ-T, dB",
}
_COARSE = 96  # pixels: smaller pictures are enlarged without smoothing


def render(facts: ModelFacts, *, private: bool = False) -> str:
    """The page of one version; the same facts give the same text. private: it shows photographs of the site."""
    sections = [
        ("verdict", "Verdict", _rules(facts)),
        ("metrics", "Metrics", _metrics(facts)),
        ("pictures", "Pictures", _pictures(facts)),
        ("figures", "Spectrum, rim and lesions", _figures(facts)),
        ("neighbours", "Nearest training images", _neighbours(facts)),
        ("training", "Training", _training(facts.training)),
        ("lineage", "Lineage", _lineage(facts)),
        ("limits", "Limits", _limits(facts)),
    ]
    warning = (
        alarm("Holds proprietary photographs.", "This page must not leave the site that owns them.") if private else ""
    )
    return document(f"Model report: {facts.name}", warning + _header(facts), sections, _FOOTER, _STYLE)


def render_pair(first: ModelFacts, second: ModelFacts) -> str:
    """The page of two versions, metric by metric, and what both draw for the same seeds."""
    sections = [
        ("metrics", "Metrics", _compared(first, second)),
        ("pictures", "Pictures", "".join(_sheet_of(each) for each in (first, second))),
        ("lineage", "Lineage", "".join(_lineage(each) for each in (first, second))),
    ]
    head = (
        "".join(map(_withdrawn, (first, second)))
        + f'<header><p class="eyebrow">Model report</p><h1>{escape(first.name)} and {escape(second.name)}</h1>'
        + definitions(
            (f"{escape(each.name)} {chip(each.report.visibility)}", escape(each.verdict)) for each in (first, second)
        )
        + "</header>\n"
    )
    return document(f"Model report: {first.name}, {second.name}", head, sections, _FOOTER, _STYLE)


# ---- head and verdict ------------------------------------------------------------------------------------------------


def _header(facts: ModelFacts) -> str:
    report = facts.report
    said = [
        ("Visibility", chip(report.visibility)),
        ("Licences of the images", escape(report.licence)),
        ("Grade", str(report.grade)),
        ("Resolution", f"{report.resolution} × {report.resolution} px"),
        ("Images seen", f"{report.images_seen:,}"),
        ("Registered", escape(facts.date)),
        ("Aliases", escape(", ".join(facts.aliases) or "none")),
    ]
    shown = [(said, number(metric.value)) for stem, said in _HEADLINES.items() if (metric := report.metric(stem))]
    return (
        _withdrawn(facts)
        + f'<header><p class="eyebrow">Model report</p><h1>{escape(facts.name)}</h1>'
        + definitions(said)
        + definitions(shown, "figures")
        + "</header>\n"
    )


def _withdrawn(facts: ModelFacts) -> str:
    said = facts.tags.get("revoked_patients")
    return alarm("A patient has withdrawn.", f"Marked in the registry for {facts.name}: {said}") if said else ""


def _rules(facts: ModelFacts) -> str:
    decision = facts.decision
    kind = "pass" if decision.promote or "champion" in facts.aliases else "fail"
    rows = [
        f'<tr><th scope="row">{escape(rule.rule)}</th>{_cells(rule.value, rule.bound)}'
        f'<td class="n">{"–" if rule.margin is None else f"{rule.margin:.1%}"}</td>'
        f'<td class="t verdict {rule.verdict}">{rule.verdict}</td><td class="words">{escape(rule.said)}</td></tr>'
        for rule in decision.rules
    ]
    said = "".join(f"<p>{escape(reason)}</p>" for reason in decision.reasons)
    head = heads("Rule", ">Value", ">Bound", ">Margin", "Verdict", "In words")
    history = [
        f'<tr><th scope="row">{entry.index}</th><td>{escape(entry.time[:16].replace("T", " "))}</td>'
        f"<td>{escape(entry.who)}</td><td>{escape(entry.action)}</td>"
        f'<td class="n">{_or_dash(entry.from_version)}</td><td class="n">{_or_dash(entry.to_version)}</td>'
        f'<td class="words">{escape(entry.reason)}</td></tr>'
        for entry in facts.history
    ]
    ledger = heads("Entry", "When, UTC", "Who", "What", ">From", ">To", "Why")
    return (
        f'<p class="verdict {kind}">{escape(facts.verdict)}</p>{said}'
        + table("The rules in force, each with what was found and what is needed.", head, rows, "rule is in force")
        + table("What the ledger has of this version.", ledger, history, "entry")
    )


def _cells(*values: float | None) -> str:
    return "".join(f'<td class="n">{"–" if value is None else number(value)}</td>' for value in values)


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _metrics(facts: ModelFacts) -> str:
    report = facts.report
    first = [metric for stem in LEADING for metric in report.metrics if metric.stem == stem]
    others = [metric for metric in report.metrics if metric not in first]
    notes = "".join(f'<p class="note">Not measured: {escape(note)}</p>' for note in report.notes)
    caption = f"Against {report.reference}; seed {report.seed}. ± is one standard error, a range a 95 % interval."
    rest = (
        f"<details><summary>{len(others)} more numbers</summary>{_metric_table('All others.', others)}</details>"
        if others
        else ""
    )
    return _metric_table(caption, first or others) + (rest if first else "") + notes + _extractors(report.metrics)


def _metric_table(caption: str, metrics: Sequence[Metric]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(metric.stem)}</th><td class="n">{metric.value:.4g}</td>'
        f'<td class="n">{error(metric)}</td><td class="n">{metric.n_fake:,} / {_or_dash(metric.n_real)}</td>'
        f'<td class="t">{"–" if metric.extractor is None else escape(metric.extractor.name)}</td>'
        f'<td class="words">{_in_words(metric)}</td></tr>'
        for metric in metrics
    ]
    head = heads("Metric", ">Value", ">Error or interval", ">Generated / real", "Extractor", "In words")
    return table(caption, head, rows, "metric")


def _in_words(metric: Metric) -> str:
    kind = f'<span class="soft">{escape(metric.spread_kind)}</span>' if metric.spread_kind else ""
    return ". ".join(filter(None, (escape(metric.said), kind)))


def _extractors(metrics: Sequence[Metric]) -> str:
    """The identity of every extractor: what must be equal for numbers to compare."""
    used = dict.fromkeys(metric.extractor for metric in metrics if metric.extractor is not None)
    rows = [
        f'<tr><th scope="row">{escape(each.name)}</th><td><code>{each.weights_sha256[:16]}</code></td>'
        f'<td class="n">{each.features}</td><td class="words">{escape(each.resize)}, to {each.input_size} px</td>'
        f'<td class="n">{each.definition}</td></tr>'
        for each in used
    ]
    head = heads("Extractor", "Weights, SHA-256", ">Features", "Resize", ">Definition")
    return table("Numbers by other extractors never compare with these.", head, rows, "extractor") if rows else ""


def _compared(first: ModelFacts, second: ModelFacts) -> str:
    rows = []
    for pair in comparison.side_by_side(first.report, second.report):
        cells = "".join(
            '<td class="n">–</td><td></td>'
            if each is None
            else f'<td class="n">{each.value:.4g}</td><td class="n">{error(each)}</td>'
            for each in (pair.first, pair.second)
        )
        joint = "" if pair.spread is None else f" ± {pair.spread:.2g}"
        difference = "–" if pair.difference is None else f"{pair.difference:+.4g}{joint}"
        why = ", ".join(each.what for each in pair.unlike) or pair.why_not
        rows.append(
            f'<tr><th scope="row">{escape(pair.name)}</th>{cells}<td class="n">{difference}</td>'
            f'<td class="words">{escape(why)}</td></tr>'
        )
    head = heads("Metric", f">{first.name}", ">Error", f">{second.name}", ">Error", ">Second - first", "What differs")
    return table("Numbers in which more differs than the model are not compared.", head, rows, "metric")


# ---- pictures --------------------------------------------------------------------------------------------------------


def _pictures(facts: ModelFacts) -> str:
    parts = [_sheet_of(facts)]
    if facts.truncation:
        parts.append(heading("Truncation", "One row for each seed, from the average image to no truncation."))
        parts += [_sheet(row, "sheet strip") for row in facts.truncation]
    if facts.interpolation:
        parts.append(heading("Between two seeds", "Steps on the straight line between their intermediate latents."))
        parts.append(_sheet(facts.interpolation, "sheet wide strip"))
    return "".join(parts)


def _sheet_of(facts: ModelFacts) -> str:
    mark = chip(facts.report.visibility)
    title = heading(f"Samples of {facts.name}", "Seed by seed, not chosen; no truncation.", mark)
    return title + (
        _sheet(facts.samples, "sheet strip") if facts.samples else '<p class="soft">No pictures were drawn.</p>'
    )


def _sheet(shown: Sequence[Shown], kind: str = "sheet") -> str:
    return f'<ul class="{kind}" style="--thumb: 119px">{"".join(f"<li>{_picture(each)}</li>" for each in shown)}</ul>'


def _picture(shown: Shown) -> str:
    kind = "fine" if shown.width <= _COARSE else ""
    picture = img(shown.jpeg, shown.width, shown.height, f"Picture, {shown.caption}", kind)
    return f"<figure>{picture}<figcaption>{escape(shown.caption)}</figcaption></figure>"


def _neighbours(facts: ModelFacts) -> str:
    if not facts.neighbours:
        return '<p class="soft">Nearest neighbours were not kept with this report.</p>'
    items = []
    for each in facts.neighbours:
        found = each.found
        share = found.distance / found.typical if found.typical else float("nan")
        real = (
            _picture(each.real)
            if each.real is not None
            else f'<figure><p class="soft">Image {found.real} of the reference is not shown here.</p></figure>'
        )
        items.append(
            f'<li class="pair"><p><span class="similarity">{number(share)}</span> of what real images are apart</p>'
            f"<div>{_picture(each.generated)}{real}</div></li>"
        )
    space = escape(facts.neighbours[0].found.extractor)
    said = f"In {space}: the generated pictures nearest to a real one. Well below 1 is a copy; real ones are at 1."
    return heading("Nearest pairs", said) + f'<ul class="pairs">{"".join(items)}</ul>'


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figures(facts: ModelFacts) -> str:
    figures = facts.report.figures
    drawn = [_curve(curve) for curve in figures.curves] + [_distribution(each) for each in figures.distributions]
    if not drawn:
        return '<p class="soft">This report keeps no curves. Evaluate with evaluate.pictures above 0.</p>'
    return f'<div class="plots">{"".join(drawn)}</div>'


def _curve(curve: Curve) -> str:
    title, said, log_x, unit = _CURVES[curve.name]
    chart = charts.lines(
        curve.x,
        [("real", "real", curve.real), ("generated", "fake", curve.fake)],
        f"{title}: {said}",
        band=(curve.low, curve.high),
        log_x=log_x,
        unit=unit,
    )
    return _figure(title, f"{said} Shaded: 95 % of what chance allows.", chart)


def _distribution(each: Distribution) -> str:
    """Both quantile functions over the share of images, so that no bin hides anything."""
    places = [i / 100 for i in range(101)]
    series = [("real", "real", _at(each.real, places)), ("generated", "fake", _at(each.fake, places))]
    title = each.name.replace("_", " ")
    said = f"Value below which a share of the images lies; {each.n_real} real and {each.n_fake} generated ones."
    return _figure(title[:1].upper() + title[1:], said, charts.lines(places, series, title, unit="share of images"))


def _at(quantiles: Sequence[float], places: Sequence[float]) -> list[float]:
    if len(quantiles) == 1:
        return [quantiles[0]] * len(places)
    found = []
    for place in places:
        position = place * (len(quantiles) - 1)
        low = min(int(position), len(quantiles) - 2)
        found.append(quantiles[low] + (position - low) * (quantiles[low + 1] - quantiles[low]))
    return found


def _training(series: Sequence[Series]) -> str:
    if not series:
        return '<p class="soft">The run that made it is not on this machine, so its curves are not here.</p>'
    drawn = [
        _figure(
            each.name,
            "Mean over each tick.",
            charts.lines(each.kimg, [("", "fake", each.values)], each.name, unit="kimg"),
        )
        for each in series
    ]
    return f'<div class="plots">{"".join(drawn)}</div>'


def _figure(title: str, said: str, chart: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b>{escape(said)}</figcaption>{chart}</figure>"


# ---- lineage and limits ----------------------------------------------------------------------------------------------


def _lineage(facts: ModelFacts) -> str:
    rows = [
        f'<tr><th scope="row">{escape(said)}</th><td class="words">{escape(value)}</td></tr>'
        for said, value in lineage(facts.tags)
    ]
    return table(f"Where {facts.name} comes from.", heads("What", "Value"), rows, "lineage")


def _limits(facts: ModelFacts) -> str:
    return f"<ul>{''.join(f'<li>{escape(said)}</li>' for said in limits(facts.report, facts.tags))}</ul>"
