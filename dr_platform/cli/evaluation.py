"""drp eval: what can be asked of an evaluation afterwards, from the features that it kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dr_platform.cli.console import Console

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from dr_platform.evaluation.protocols import Match, Replication
    from dr_platform.records import EvalReport, Metric
    from dr_platform.road import Project

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Questions to an evaluation that was made.")

# Ratio of spreads up to which a protocol counts as reproducing a published one: 20 repetitions tell a spread to 16 %,
# and features with heavier tails than Gaussian ones change it by as much again and more.
_SAME_SD = 1.6
_ALL = "ABCDEFGHIJ"


@app.callback()
def _group() -> None:
    """Keep `bootstrap` a word of its own, though it is the only command yet."""


@app.command()
def bootstrap(
    model: Annotated[
        str | None, typer.Argument(help="NAME/VERSION, latest or champion. Default: the newest report under results/.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Which ones, such as A, AC or all.")] = "all",
    shift: Annotated[float, typer.Option(help="Published: bootstrap mean - FID.")] = 3.89,
    sd: Annotated[float, typer.Option(min=1e-9, help="Published: the bootstrap's standard deviation.")] = 0.186,
    correct: Annotated[
        str, typer.Option(help="The protocol by which the bias is taken out: A, or another with generated images.")
    ] = "A",
    repetitions: Annotated[int, typer.Option(min=2, help="Of A, F and G, which are fast.")] = 1000,
    exact_repetitions: Annotated[int, typer.Option(min=2, help="Of the others.")] = 20,
    extractor: Annotated[
        str | None, typer.Option(help="Beginning of its name, where the report has several. Default: the first.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """What "a bootstrap of the FID" gives in the ten ways in which it can have been computed, and which one a published
    shift and spread came from.

    Takes the features that the evaluation kept: no generator and no images. The default pair is that of arXiv
    2501.00954 (FID 17.29, bootstrap mean 21.18, 95 % interval 20.83-21.56). Shift and spread are proportional to the
    trace of the real features' covariance: "trace needed" is the one at which a protocol gives the published shift,
    and "SD there" the spread that it then has, to hold against the published one. None is an interval to decide by.

    Examples:
      drp eval bootstrap
      drp eval bootstrap fundus-dr1-stylegan3/2 --protocol A --repetitions 200
      drp eval bootstrap --shift 2.1 --sd 0.4 --json
    """
    from dr_platform.errors import EvaluationError
    from dr_platform.evaluation import protocols
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    wanted = "".join(dict.fromkeys(protocol.upper().replace(",", ""))) if protocol != "all" else _ALL
    if not wanted:
        raise EvaluationError(f"--protocol is {protocol!r}. Name one or several of {_ALL}, or all.")
    correct = correct.upper()
    protocols.require_known([*wanted, correct])
    protocols.require_correcting(correct)
    report = _report(project, model)
    metric = _distance(report, extractor)
    real, generated = _kept_features(project, report, metric)
    with console.counting("bootstrap", "steps") as progress:
        results = protocols.replicate(
            [*dict.fromkeys([*wanted, correct])],
            real,
            generated,
            groups=_patients(project, report, console),
            repetitions=repetitions,
            exact_repetitions=exact_repetitions,
            seed=seed,
            progress=progress,
        )
    corrected = protocols.bias_corrected(next(result for result in results if result.protocol == correct))
    shown = [result for result in results if result.protocol in wanted]
    matches = protocols.best_match(shown, shift=shift, sd=sd)
    if as_json:
        console.json(
            {
                "run": report.run,
                "checkpoint_sha256": report.checkpoint_sha256,
                "metric": metric.name,
                "real": len(real),
                "generated": len(generated),
                "seed": seed,
                "published": {"shift": shift, "sd": sd},
                "protocols": _plain(shown, matches),
                "reproduced_by": [match.protocol for match in _reproducing(matches, sd)],
                "corrected": {"protocol": correct, "value": corrected.value, **vars(corrected)},
            }
        )
        return
    console.result(
        f"{report.run}: FID {shown[0].point:.4g} ({metric.name}), {len(generated):,} generated and {len(real):,} real "
        f"images, trace {shown[0].trace:.4g}, seed {seed}"
    )
    console.show(_table(shown, matches))
    console.result(_verdict(matches, shift, sd))
    console.result(
        f"Bias taken out by protocol {correct}: {corrected.value:.4g} (95 % {corrected.low:.4g} to "
        f"{corrected.high:.4g}, basic interval)"
    )


def _report(project: Project, model: str | None) -> EvalReport:
    """The report of a registered version, or the newest one under results/."""
    from dr_platform.cli.models import look_up
    from dr_platform.errors import EvaluationError
    from dr_platform.records import EvalReport
    from dr_platform.road import REPORT_FILE

    if model is not None:
        return look_up(model)[1]
    paths = sorted(project.root.glob(f"results/*/{REPORT_FILE}"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise EvaluationError("There is no report under results/. Run: dvc repro evaluate")
    return EvalReport.read(paths[-1])


def _distance(report: EvalReport, extractor: str | None) -> Metric:
    """The report's FID in the space that is asked for."""
    from dr_platform.errors import EvaluationError

    found = [each for each in report.metrics if each.stem == "fid" and each.extractor is not None]
    for metric in found:
        if metric.extractor is not None and metric.extractor.name.startswith(extractor or ""):
            return metric
    names = ", ".join(each.extractor.name for each in found if each.extractor is not None) or "none"
    raise EvaluationError(
        f"the report of {report.run} has no FID of {extractor or 'any extractor'}; it has: {names}. Choose one of "
        "them, or add the extractor to evaluate.extractor and run dvc repro evaluate."
    )


def _kept_features(project: Project, report: EvalReport, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Features of the real and of the generated images behind a report's distance."""
    from dr_platform.errors import EvaluationError
    from dr_platform.evaluation import kept

    assert metric.extractor is not None
    assert metric.n_real is not None
    shape = [metric.n_real, report.resolution, report.resolution, 3]
    keys = {
        "real images": kept.key_of_images(report.reference_sha256, shape, metric.extractor),
        "generated images": kept.key_of_generated(
            report.checkpoint_sha256, report.seed, metric.n_fake, metric.extractor
        ),
    }
    found = []
    for what, key in keys.items():
        features = kept.read(project.features, key)
        if features is None:
            raise EvaluationError(
                f"no kept features of {report.run}'s {what} in {metric.extractor.name}: run dvc repro evaluate "
                "(with --force --single-item if nothing has changed)"
            )
        found.append(features)
    return found[0], found[1]


def _patients(project: Project, report: EvalReport, console: Console) -> np.ndarray | None:
    """The patient of each real image, if the prepared images are still those of the report."""
    import numpy as np

    from dr_platform.data.loader import select_images
    from dr_platform.errors import DataError

    try:
        chosen = select_images(project.prepared, report.grade, visibility=project.params.prepare.visibility)
    except DataError:
        chosen = None
    if chosen is None or chosen.sha256 != report.reference_sha256:
        console.say("The prepared images are not those of the report, so protocol E splits images, not patients.")
        return None
    return np.unique([row.patient for row in chosen.rows], return_inverse=True)[1]


def _table(results: Sequence[Replication], matches: tuple[Match, ...]) -> Table:
    from dr_platform.cli.tables import plain_table

    table = plain_table(
        "protocol",
        "what is compared",
        ">mean",
        ">shift",
        ">SD",
        ">95 % range",
        ">reps",
        ">trace needed",
        ">SD there",
        "note",
    )
    by_name = {match.protocol: match for match in matches}
    for result in results:
        match = by_name[result.protocol]
        meets = match.misfit < math.inf  # a shift of the other sign is met at no trace
        table.add_row(
            result.protocol,
            result.description,
            f"{result.mean:.4g}",
            f"{result.shift:+.3g}",
            f"{result.sd:.2g}",
            f"{result.low:.4g}-{result.high:.4g}",
            str(result.repetitions),
            f"{match.trace_needed:.4g}" if meets else "–",
            f"{match.sd_there:.2g}" if meets else "–",
            result.note,
        )
    return table


def _verdict(matches: tuple[Match, ...], shift: float, sd: float) -> str:
    """Which protocols have the published spread where they have the published shift, in a sentence."""
    near = _reproducing(matches, sd)
    pair = f"a shift of {shift:+.4g} with SD {sd:.3g}"
    if not near:
        return f"None of these reproduces {pair} at any trace."
    said = ", ".join(f"{m.protocol} (trace {m.trace_needed:.4g}, SD there {m.sd_there:.2g})" for m in near)
    return f"Reproduces {pair}, nearest first: {said}"


def _reproducing(matches: tuple[Match, ...], sd: float) -> list[Match]:
    """The protocols with the published spread at the trace where they have the published shift, nearest first."""
    apart = {
        match.protocol: abs(math.log(match.sd_there / sd))
        for match in matches
        if match.misfit < math.inf and match.sd_there > 0
    }
    near = [match for match in matches if apart.get(match.protocol, math.inf) < math.log(_SAME_SD)]
    return sorted(near, key=lambda match: apart[match.protocol])


def _plain(results: Sequence[Replication], matches: tuple[Match, ...]) -> list[dict[str, object]]:
    """The protocols for programs; null where a published shift is met at no trace."""
    by_name = {match.protocol: match for match in matches}
    found = []
    for result in results:
        match = by_name[result.protocol]
        meets = match.misfit < math.inf
        row = {**dataclasses.asdict(result), "shift": result.shift}
        row["trace_needed"] = match.trace_needed if meets else None
        row["sd_there"] = match.sd_there if meets else None
        found.append(row)
    return found
