"""The tables of records that people read."""

from __future__ import annotations

from dr_platform.cli.tables import metric_table
from dr_platform.records import EvalReport, Metric

SHA = "ab" * 32


def test_a_report_shows_first_what_leads_and_all_the_rest_in_its_order() -> None:
    names = ("mind__small", "eq_r_db", "kid__small", "fid_centre__small", "fid__other", "spectrum_alarm", "fid__small")
    metrics = tuple(
        Metric(
            name=name, value=1.0, spread=None, spread_kind=None, n_fake=9, n_real=9, extractor=None, seed=0,
            higher_is_better=False,
        )
        for name in names
    )  # fmt: skip
    report = EvalReport(
        checkpoint_sha256=SHA, run="t-1", step=1, images_seen=1, grade=1, resolution=32, visibility="public",
        data_sha256=SHA, reference="train, 9 images", reference_sha256=SHA, seed=0, metrics=metrics,
    )  # fmt: skip
    assert list(metric_table(report).columns[0].cells) == [
        "fid__other", "fid__small", "kid__small", "spectrum_alarm", "eq_r_db", "mind__small", "fid_centre__small",
    ]  # fmt: skip
