"""A model card in Markdown: what whoever finds the model in a registry must know before using it.

Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from __future__ import annotations

from collections.abc import Mapping

from dr_platform.model_report.facts import limits, lineage
from dr_platform.records import EvalReport, Metric

CARD_FILE = "MODEL_CARD.md"


def card(name: str, report: EvalReport, tags: Mapping[str, str]) -> str:
    """The card of version `name` (NAME/VERSION) from its evaluation report and its tags in the registry."""
    lines = [
        f"# {name}",
        "",
        f"Draws synthetic fundus photographs of diabetic retinopathy grade {report.grade}, {report.resolution} x "
        f"{report.resolution} pixels: StyleGAN3, averaged weights, {report.images_seen:,} images seen.",
        "",
        "## Use",
        "",
        "For research: to augment scarce grades, to test software, to teach. Its pictures show no person and are no",
        "ground for a diagnosis. What may be done with them follows from the licences of the training images below.",
        "",
        "## Training data",
        "",
        *(f"- {said}: {_line(value)}" for said, value in lineage(tags)),
        "",
        "## Evaluation",
        "",
        f"Against {_line(report.reference)}; seed {report.seed}.",
        "",
        "| metric | value | error or interval | generated | real | extractor |",
        "| --- | ---: | --- | ---: | ---: | --- |",
        *(_row(metric) for metric in report.metrics),
        "",
        *(f"- Not measured: {_line(note)}" for note in report.notes),
        "",
        "## Limits",
        "",
        *(f"- {said}" for said in limits(report, tags)),
        "",
    ]
    return "\n".join(lines)


def _row(metric: Metric) -> str:
    extractor = metric.extractor
    used = "–" if extractor is None else f"{extractor.name} `{extractor.weights_sha256[:12]}`"
    real = "–" if metric.n_real is None else f"{metric.n_real:,}"
    return f"| {metric.name} | {metric.value:.4g} | {error(metric)} | {metric.n_fake:,} | {real} | {used} |"


def error(metric: Metric) -> str:
    """The interval of a metric, else its standard error, else a dash."""
    if metric.low is not None and metric.high is not None:
        return f"{metric.low:.4g} to {metric.high:.4g}"
    return "–" if metric.spread is None else f"± {metric.spread:.2g}"


def _line(text: str) -> str:
    """Foreign text as one line that Markdown does not read."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in plain)
