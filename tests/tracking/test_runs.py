"""Runs on a real store: one per training, whatever is restarted, replayed or away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from tracking_samples import Trained, finding, tick_at

from dr_platform.tracking import Tracker

Connect = Callable[[], Tracker]


def stored(tracker: Tracker, run_id: str) -> Run:
    return tracker._client.get_run(run_id)


def losses(tracker: Tracker, run_id: str) -> list[tuple[int, float]]:
    history = tracker._client.get_metric_history(run_id, "loss/generator")
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)]


def test_a_restarted_training_continues_its_run(connect: Connect) -> None:
    first = connect().run_for("dr1-t16", {"train": {"gamma": 8.0, "subset": None}}, {"drp.grade": "1"})
    tracker = connect()
    tracker.finish(first, "FAILED")
    assert tracker.run_for("dr1-t16", {"train": {"gamma": 8.0, "batch": 32}}, {"drp.grade": "1"}) == first
    run = stored(tracker, first)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"train.gamma": "8.0", "train.subset": "null", "train.batch": "32"}
    assert run.data.tags["drp.grade"] == "1"


def test_a_parameter_is_written_once(tracker: Tracker) -> None:
    run = tracker.run_for("a", {"gamma": 8})
    tracker.run_for("a", {"gamma": 2})
    assert stored(tracker, run).data.params == {"gamma": "8"}


def test_more_parameters_than_mlflow_takes_at_once_all_arrive(tracker: Tracker) -> None:
    run = tracker.run_for("a", {f"p{number}": number for number in range(250)})
    assert len(stored(tracker, run).data.params) == 250


def test_a_replayed_tick_is_logged_once_even_by_another_process(connect: Connect) -> None:
    tracker = connect()
    run = tracker.run_for("a", {})
    for images, loss in ((800, 1.0), (1600, 0.9), (800, 7.0), (2400, 0.8)):
        tracker.log_tick(run, tick_at(images, loss))
    again = connect()
    for images in (1600, 2400, 3200):
        again.log_tick(run, tick_at(images, 0.5))
    assert losses(again, run) == [(800, 1.0), (1600, 0.9), (2400, 0.8), (3200, 0.5)]


def test_ticks_wait_while_the_server_is_away_and_none_is_lost(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tracker.run_for("a", {})

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "log_batch", away)
        patch.setattr(tracker._client, "log_artifact", away)
        patch.setattr(tracker._client, "set_terminated", away)
        (tmp_path / "grid.png").write_bytes(b"drawn")
        tracker.log_tick(run, tick_at(800))
        tracker.log_tick(run, tick_at(1600))
        tracker.log_samples(run, tmp_path / "grid.png", 1600)
        tracker.finish(run, "FINISHED")
    assert losses(tracker, run) == []
    tracker.log_tick(run, tick_at(2400))
    assert [step for step, _ in losses(tracker, run)] == [800, 1600, 2400]


def test_finishing_sends_what_still_waits(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.run_for("a", {})
    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "log_batch", lambda *_: (_ for _ in ()).throw(ConnectionError()))
        tracker.log_tick(run, tick_at(800))
    tracker.finish(run, "FINISHED")
    assert losses(tracker, run) == [(800, 1.0)]
    assert stored(tracker, run).info.status == "FINISHED"


def test_a_trial_is_shown_under_its_sweep(tracker: Tracker) -> None:
    sweep = tracker.sweep_run("abc")
    trial = tracker.run_for("trial", {}, parent_run=sweep)
    assert stored(tracker, trial).data.tags["mlflow.parentRunId"] == sweep
    assert tracker.sweep_run("abc") == sweep


def test_runs_are_found_by_the_version_of_their_images(connect: Connect) -> None:
    md5 = "0ae3b0acb351f7764b6bb7b664f440d0.dir"
    for tracker in (connect(), connect()):
        run = tracker.run_for("a", {}, inputs={"phantom/public": md5, "clinic/proprietary": "cd" * 32})
    found = tracker._client.search_runs([tracker._experiment_id], f"dataset.digest = '{md5}'")
    assert [entry.info.run_id for entry in found] == [run]
    inputs = stored(tracker, run).inputs.dataset_inputs
    assert {entry.dataset.name for entry in inputs} == {"phantom/public", "clinic/proprietary"}
    assert {entry.dataset.source_type for entry in inputs} == {"dvc"}


def test_no_secret_reaches_the_store(tracker: Tracker, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_API_KEY", "planted-secret-1")
    tracker.run_for(
        "a",
        {"note": "with planted-secret-1 inside", "store": "s3://me:planted-secret-2@bucket/x"},
        {"tag": "planted-secret-1"},
        {"planted-secret-1": "ab" * 16},
    )
    content = (project / "mlflow.db").read_bytes()
    assert b"***" in content
    assert b"planted-secret" not in content


def test_samples_are_kept_by_images_seen(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.run_for("a", {})
    (tmp_path / "grid.png").write_bytes(b"drawn")
    tracker.log_samples(run, tmp_path / "grid.png", 800)
    tracker.log_samples(run, tmp_path / "grid.png", 800)
    assert [file.path for file in tracker._client.list_artifacts(run, "samples")] == ["samples/000000800.png"]


def test_a_report_logged_again_adds_no_point(tracker: Tracker, trained: Trained) -> None:
    run = tracker.run_for("a", {})
    for _ in range(2):
        tracker.log_report(run, trained.report)
    history = tracker._client.get_metric_history(run, "fid__small")
    assert [(metric.step, metric.value) for metric in history] == [(160, 41.5)]


def test_the_health_of_a_run_is_its_worst_finding_now(tracker: Tracker) -> None:
    run = tracker.run_for("a", {})
    slow, dead = finding("slow", "warning"), finding("dead-layer", "critical")
    said = []
    for images, findings in ((800, ()), (1600, (dead, slow)), (2400, (slow,)), (3200, ())):
        tracker.log_tick(run, tick_at(images).model_copy(update={"findings": findings}))
        said.append(stored(tracker, run).data.tags["health"])
    assert said == ["healthy", "critical: dead-layer", "warning: slow", "healthy"]


def test_the_findings_are_kept_with_their_numbers_and_advice(tracker: Tracker) -> None:
    run = tracker.run_for("a", {})
    slow = finding("slow", "warning")
    tracker.log_tick(run, tick_at(800).model_copy(update={"findings": (slow,)}))
    kept = json.loads(Path(tracker._client.download_artifacts(run, "health.json")).read_text())
    assert kept == {"images_seen": 800, "findings": [slow.model_dump(mode="json")]}


def test_numbers_do_not_wait_for_the_health_that_could_not_be_said(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.run_for("a", {})
    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "set_tag", lambda *_: (_ for _ in ()).throw(ConnectionError()))
        tracker.log_tick(run, tick_at(800))
    assert losses(tracker, run) == [(800, 1.0)]
    tracker.log_tick(run, tick_at(1600))
    assert stored(tracker, run).data.tags["health"] == "healthy"
