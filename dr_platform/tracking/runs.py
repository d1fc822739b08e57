"""Runs: what a training was asked for, what it saw, and its numbers over images seen."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag

from dr_platform.errors import RegistryError
from dr_platform.records import EvalReport, Tick
from dr_platform.tracking.words import FAILURES, clean, first_line, flat, in_one_line, masked
from dr_platform.training.health import worst

logger = logging.getLogger(__name__)

RUN_TAG = "drp.run"
HEALTH_TAG = "health"
HEALTH_FILE = "health.json"
_BATCH = 100  # most parameters MLflow takes at once

Status = Literal["FINISHED", "FAILED", "KILLED"]


class DvcSource(DatasetSource):
    """Where a run's images come from, for MLflow's Inputs: a version that DVC knows, no path and no address."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self) -> Any:
        """Refused: images are fetched with `dvc pull`, never through the tracking server."""
        raise RegistryError("Images are not loaded through MLflow. Run: dvc pull")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> DvcSource:
        raise TypeError(f"{raw_source!r} names no version of images")

    def to_dict(self) -> dict[str, Any]:
        """The version, JSON-able."""
        return {"digest": self._digest}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> DvcSource:
        """The inverse of `to_dict`."""
        return cls(source_dict["digest"])


class Runs:
    """The runs of our experiment at one address."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._waiting: dict[str, list[Tick]] = {}
        self._logged_to: dict[str, int] = {}
        self._health: dict[str, tuple[tuple[str, str], ...]] = {}

    @property
    def address(self) -> str:
        """The tracking address, without a password."""
        return masked(self._client.tracking_uri)

    @in_one_line
    def run_for(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        inputs: Mapping[str, str] | None = None,
        parent_run: str | None = None,
    ) -> str:
        """The id of the run called `name`, made on first use and continued after a restart.

        params: nested mappings are flattened; written once, later values are ignored. inputs: name of a set of images
        -> digest. parent_run: id of the run that this one is shown under. Values of secret environment variables
        and passwords in addresses are replaced by ***.
        """
        run = self._find_run(name)
        if run is None:
            identity = {RUN_TAG: name, **({"mlflow.parentRunId": parent_run} if parent_run else {})}
            run = self._client.create_run(self._experiment_id, run_name=name, tags=identity)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        run_id = run.info.run_id
        new = [Param(key, clean(value)) for key, value in flat(params) if key not in run.data.params]
        for start in range(0, len(new), _BATCH):
            self._client.log_batch(run_id, params=new[start : start + _BATCH])
        self._client.log_batch(run_id, tags=[RunTag(key, clean(value)) for key, value in (tags or {}).items()])
        self._log_inputs(run, inputs or {})
        return run_id

    def sweep_run(self, name: str) -> str:
        """The id of the run that a sweep's trials are shown under."""
        return self.run_for(f"sweep-{name}", {}, {"drp.kind": "sweep"})

    def _find_run(self, name: str) -> Run | None:
        found = self._client.search_runs([self._experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        return found[0] if found else None

    def _log_inputs(self, run: Run, inputs: Mapping[str, str]) -> None:
        known = {entry.dataset.digest for entry in run.inputs.dataset_inputs} if run.inputs else set()
        datasets = [
            # MLflow's digests have at most 36 characters: a DVC directory's MD5 fits, a SHA-256 is cut.
            MetaDataset(DvcSource(digest), name=clean(name), digest=digest[:36])._to_mlflow_entity()
            for name, digest in inputs.items()
            if digest[:36] not in known
        ]
        if datasets:
            context = [InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(run.info.run_id, [DatasetInput(dataset, context) for dataset in datasets])

    def log_tick(self, run_id: str, tick: Tick) -> None:
        """Log a tick over images seen; one that was logged before, as after a restart, is passed over.

        The tag `health` says the worst of the tick's findings ("healthy" without any), `health.json` all of them.
        Never raises for a server that is away: the tick waits in this process and goes out with the next one.
        """
        waiting = self._waiting.setdefault(run_id, [])
        waiting.append(tick)
        try:
            self._send(run_id, waiting)
        except RegistryError as error:
            logger.warning("%d ticks wait for the tracking server: %s", len(waiting), error)

    @in_one_line
    def _send(self, run_id: str, waiting: list[Tick]) -> None:
        if run_id not in self._logged_to:
            history = self._client.get_metric_history(run_id, "images_per_second")
            self._logged_to[run_id] = max((metric.step for metric in history), default=-1)
        while waiting:
            tick = waiting[0]
            if tick.images_seen > self._logged_to[run_id]:
                values = {**tick.scalars, "images_per_second": tick.images_per_second, "memory_gib": tick.memory_gib}
                self._log_values(run_id, values, tick.images_seen)
                self._logged_to[run_id] = tick.images_seen
                self._log_health(run_id, tick)
            waiting.pop(0)

    def _log_health(self, run_id: str, tick: Tick) -> None:
        """Tag the run and keep the findings, when kinds or severities changed: a tick has numbers of its own."""
        state = tuple((finding.kind, finding.severity) for finding in tick.findings)
        if self._health.get(run_id) == state:
            return
        gravest = worst(tick.findings)
        said = f"{gravest.severity}: {gravest.kind}" if gravest else "healthy"
        content = {"images_seen": tick.images_seen, "findings": [item.model_dump() for item in tick.findings]}
        try:
            self._client.set_tag(run_id, HEALTH_TAG, said)
            self._client.log_dict(run_id, content, HEALTH_FILE)
        except FAILURES as error:
            # The next tick says it again; numbers must not wait for it.
            logger.warning("The health of the run was not sent to the tracking server: %s", first_line(error))
        else:
            self._health[run_id] = state

    def _log_values(self, run_id: str, values: Mapping[str, float], step: int, model_id: str | None = None) -> None:
        now = int(time.time() * 1000)
        link = {"model_id": model_id, "run_id": run_id} if model_id else {}
        self._client.log_batch(run_id, [Metric(name, value, now, step, **link) for name, value in values.items()])

    def log_samples(self, run_id: str, path: Path, images_seen: int) -> None:
        """Keep a grid of generated images (never of real ones) with the run; only warns if the server is away."""
        with tempfile.TemporaryDirectory() as directory:
            named = Path(directory, f"{images_seen:09d}{path.suffix}")
            try:
                shutil.copyfile(path, named)
                self._client.log_artifact(run_id, str(named), "samples")
            except FAILURES as error:
                logger.warning("A sample grid was not sent to the tracking server: %s", first_line(error))

    @in_one_line
    def log_report(self, run_id: str, report: EvalReport) -> None:
        """Log a report's metrics with the run, over images seen; again changes nothing."""
        known = self._client.get_run(run_id).data.metrics
        values = {metric.name: metric.value for metric in report.metrics if known.get(metric.name) != metric.value}
        self._log_values(run_id, values, report.images_seen)

    def finish(self, run_id: str, status: Status) -> None:
        """End a run; only warns if the server is away, so that it hides no failure of the training."""
        try:
            self._end(run_id, status)
        except RegistryError as error:
            logger.warning("The run stays open in the tracking server: %s", error)

    @in_one_line
    def _end(self, run_id: str, status: Status) -> None:
        self._send(run_id, self._waiting.get(run_id, []))
        self._client.set_terminated(run_id, status)
