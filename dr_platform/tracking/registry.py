"""Versions and the champion: registering, choosing, verifying."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException

from dr_platform import files
from dr_platform.errors import DrpError, RegistryError
from dr_platform.model_report.card import CARD_FILE, card
from dr_platform.records import Checkpoint, EvalReport, Registration, digest_of
from dr_platform.tracking import package
from dr_platform.tracking.runs import Runs
from dr_platform.tracking.words import FAILURES, clean, first_line, in_one_line

logger = logging.getLogger(__name__)

CHAMPION = "champion"

# Entered while a version is made, so that two processes do not make one each for the same checkpoint.
Alone = Callable[[], AbstractContextManager[None]]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,250}")


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry; its tags repeat the evaluation report, so that the UI alone tells how good it is."""

    model: str
    number: int
    created: datetime
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    model_id: str | None

    def tag(self, name: str) -> str:
        """A tag that every version of ours carries. Raises RegistryError for a version that someone else made."""
        if name not in self.tags or self.model_id is None:
            raise RegistryError(
                f"{self.model}/{self.number} was not registered by drp (no tag {name}) and cannot be trusted. "
                "Use another version."
            )
        return self.tags[name]


@dataclass(frozen=True)
class LoadedGenerator:
    """A registered generator's weights, fetched and verified: enough to rebuild it without running any of its code."""

    weights: Path
    init_kwargs: dict[str, Any]
    checkpoint_sha256: str
    grade: int
    classes: tuple[int, ...]  # grades of a conditional generator in the order of its labels
    resolution: int
    visibility: str
    tags: dict[str, str]


class Tracker(Runs):
    """Runs, and the model versions that come from them, at one address. Make it with `connect`."""

    def __init__(self, client: MlflowClient, experiment_id: str, alone: Alone) -> None:
        super().__init__(client, experiment_id)
        self._alone = alone

    @in_one_line
    def register(
        self,
        model: str,
        checkpoint: Checkpoint,
        weights: Path,
        report: EvalReport,
        *,
        tags: Mapping[str, str],
        run_name: str,
    ) -> Registration:
        """The version of `model` that stands for `checkpoint`, made if there is none; again changes nothing.

        weights: the checkpoint's averaged generator as safetensors. tags: lineage (data versions, commit, lock).
        A newer report on the same checkpoint takes the place of the older one; the version keeps its number.
        Raises RegistryError if report or weights belong to another checkpoint.
        """
        digest = checkpoint.digest()
        if report.checkpoint_sha256 != digest:
            raise RegistryError(
                f"The report is about another checkpoint than {weights.parent}. Run: dvc repro evaluate"
            )
        if weights.name not in checkpoint.files:
            raise RegistryError(f"{weights} is not a file of the checkpoint. Run: dvc repro train")
        _verify(weights, checkpoint.files[weights.name].sha256, str(weights))
        with self._alone():
            version = self._version_for(model, digest)
            if version is None:
                number = self._create_version(model, checkpoint, weights, report, tags, run_name)
                self.renew_card(model, number, report)
            else:
                number = version.number
                self._restore(version, checkpoint, weights, report)
                if self._renew_report(version, report):
                    self.renew_card(model, number, report)
        return Registration(
            model=model,
            model_version=number,
            checkpoint_sha256=digest,
            report_sha256=report.digest(),
            parent=checkpoint.parent,
        )

    def renew_card(self, model: str, number: int, report: EvalReport) -> None:
        """Put the model card beside the version's files, in place of an earlier one."""
        version = self.version(model, number)
        if version.model_id is None:
            return
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, CARD_FILE).write_text(card(f"{model}/{number}", report, version.tags), encoding="utf-8")
            self._client.log_model_artifacts(version.model_id, directory)

    def _version_for(self, model: str, checkpoint_sha256: str) -> ModelVersion | None:
        wanted = f"name = '{model}' and tags.checkpoint_sha256 = '{checkpoint_sha256}'"
        found = self._client.search_model_versions(wanted)
        return min((_ours(version) for version in found), key=lambda version: version.number, default=None)

    def _create_version(
        self,
        model: str,
        checkpoint: Checkpoint,
        weights: Path,
        report: EvalReport,
        tags: Mapping[str, str],
        run_name: str,
    ) -> int:
        run = self._find_run(run_name)
        run_id = run.info.run_id if run else self.run_for(run_name, {})
        logged = self._client.create_logged_model(
            self._experiment_id, package.MODEL_NAME, run_id, model_type="generator"
        )
        model_id = logged.model_id
        with tempfile.TemporaryDirectory() as directory:
            built = Path(directory, "model")
            package.write_package(built, checkpoint, weights, report, model_id, run_id)
            digests = package.digests(built)
            self._client.log_model_artifacts(model_id, str(built))
        self._client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=checkpoint.images_seen)])
        self._log_values(run_id, {m.name: m.value for m in report.metrics}, report.images_seen, model_id)
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The one thing that MLflow 3.17 looks up in its global store, unless a server does it: models:/ID.
        mlflow.set_tracking_uri(self._client.tracking_uri)
        version = self._client.create_model_version(
            model,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={name: clean(value) for name, value in tags.items()}
            | package.checkpoint_tags(checkpoint)
            | digests
            | package.report_tags(report),
            description=package.describe(checkpoint, report),
            model_id=model_id,
        )
        number = int(version.version)
        shown = [{"name": model, "version": number}]  # for the UI's way back from the files to the version
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(shown)})
        return number

    def _restore(self, version: ModelVersion, checkpoint: Checkpoint, weights: Path, report: EvalReport) -> None:
        """Store a version's files again where they are missing or altered; the version and its tags stay."""
        with tempfile.TemporaryDirectory() as directory:
            try:
                self._fetch_generator(version, Path(directory, "found"))
                return
            except RegistryError as error:
                if version.model_id is None:
                    raise
                logger.warning("Storing the files of %s/%d again: %s", version.model, version.number, error)
            built = Path(directory, "model")
            package.write_package(built, checkpoint, weights, report, version.model_id, version.run_id)
            self._client.log_model_artifacts(version.model_id, str(built))

    def _renew_report(self, version: ModelVersion, report: EvalReport) -> bool:
        """Whether the version took this report in place of another."""
        digest = report.digest()
        if version.tags.get("report_sha256") == digest or version.model_id is None:
            return False
        logger.info("%s/%d gets a newer evaluation report", version.model, version.number)
        with tempfile.TemporaryDirectory() as directory:
            report.write(Path(directory, f"{digest}.json"))
            self._client.log_model_artifacts(version.model_id, directory, "reports")
        self._log_values(
            version.run_id, {m.name: m.value for m in report.metrics}, report.images_seen, version.model_id
        )
        fresh = package.report_tags(report)
        for name in version.tags:
            if name.startswith("metric.") and name not in fresh:
                self._client.delete_model_version_tag(version.model, str(version.number), name)
        # report_sha256 comes last in `fresh`: until then the version still points to the older report.
        for name, value in fresh.items():
            self._client.set_model_version_tag(version.model, str(version.number), name, value)
        return True

    @in_one_line
    def models(self) -> list[str]:
        """Names of the registered models."""
        return sorted(model.name for model in self._client.search_registered_models())

    @in_one_line
    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model, newest first; none for a name that nobody registered."""
        if not _NAME.fullmatch(model):
            raise RegistryError(f"{model[:80]!r} is no name of a model: use letters, digits, dots, _ and -.")
        found = self._client.search_model_versions(f"name = '{model}'", max_results=10_000)
        aliases = self._aliases(model) if found else {}
        ours = [_ours(version, aliases.get(int(version.version), ())) for version in found]
        return sorted(ours, key=lambda version: -version.number)

    def _aliases(self, model: str) -> dict[int, tuple[str, ...]]:
        named: dict[int, tuple[str, ...]] = {}
        for alias, number in self._client.get_registered_model(model).aliases.items():
            named[int(number)] = (*named.get(int(number), ()), alias)
        return named

    def version(self, model: str, number: int) -> ModelVersion:
        """One version. Raises RegistryError that says which there are."""
        return self._choose(model, str(number))

    def resolve(self, model: str, version: str | int) -> int:
        """The number that a user means: 3, "3", "MODEL/3", "latest" or "champion". Raises RegistryError."""
        named, _, wanted = str(version).rpartition("/")
        if named and named != model:
            raise RegistryError(f"{version} is a version of {named}, not of {model}. Give --model {named} with it.")
        return self._choose(model, wanted).number

    def _choose(self, model: str, wanted: str) -> ModelVersion:
        versions = self.versions(model)
        if not versions:
            there = ", ".join(self.models()) or "none"
            raise RegistryError(f"There is no model {model} in the registry; there: {there}. Run: dvc repro register")
        for version in versions:
            if wanted == "latest" or wanted in version.aliases or wanted == str(version.number):
                return version
        if wanted == CHAMPION:
            raise RegistryError(f"{model} has no champion yet. Run: drp promote latest")
        numbers = ", ".join(str(version.number) for version in versions[:8])
        raise RegistryError(f"{model} has no version {wanted!r}; newest first it has {numbers}. Run: drp models list")

    @in_one_line
    def champion(self, model: str) -> int | None:
        """The number of the champion, or None."""
        return next((version.number for version in self.versions(model) if CHAMPION in version.aliases), None)

    @in_one_line
    def verify(self, model: str, number: int) -> None:
        """Raise RegistryError, naming file and digests, if a version's report, weights or description are not whole."""
        version = self.version(model, number)
        self.report_of(model, number)
        with tempfile.TemporaryDirectory() as directory:
            self._fetch_generator(version, Path(directory))

    @in_one_line
    def set_champion(self, model: str, number: int) -> None:
        """Move the alias. Raises RegistryError, and moves nothing, if the version's files are missing or altered.

        The alias is a view of the ledger: only `tracking.champions` calls this, after the entry that says so.
        """
        self.verify(model, number)
        self._client.set_registered_model_alias(model, CHAMPION, str(number))

    @in_one_line
    def unset_champion(self, model: str) -> None:
        """Take the alias away; without one nothing happens."""
        self._client.delete_registered_model_alias(model, CHAMPION)

    @in_one_line
    def model_tags(self, model: str) -> dict[str, str]:
        """Tags of a registered model, none for a name that nobody registered."""
        if model not in self.models():
            return {}
        return dict(self._client.get_registered_model(model).tags)

    @in_one_line
    def tag_model(self, model: str, name: str, value: str) -> None:
        """Set a tag of a registered model."""
        self._client.set_registered_model_tag(model, name, value)

    @in_one_line
    def tag_version(self, model: str, number: int, name: str, value: str) -> None:
        """Set a tag of a version."""
        self._client.set_model_version_tag(model, str(number), name, value)

    @in_one_line
    def report_of(self, model: str, number: int) -> EvalReport:
        """The evaluation report of a version, verified. Raises RegistryError."""
        version = self.version(model, number)
        digest = version.tag("report_sha256")
        name = f"reports/{digest}.json"
        with tempfile.TemporaryDirectory() as directory:
            path = self._fetch(version, name, Path(directory))
            try:
                report, found = EvalReport.read(path), digest_of(path)
            except (DrpError, ValueError):
                raise RegistryError(f"{model}/{number}: {name} is damaged. Run: dvc repro evaluate register") from None
        _same(found, digest, f"{model}/{number}: {name}")
        return report

    @in_one_line
    def load_generator(self, model: str, number: int, directory: Path) -> LoadedGenerator:
        """Fetch a version's weights and description into `directory`, verified; no code of the registry is run.

        Raises RegistryError that names the file with the digest expected and found; `directory` is then as before.
        """
        version = self.version(model, number)
        with files.directory_aside(directory, failure=RegistryError) as aside:
            described = self._fetch_generator(version, aside)
        return LoadedGenerator(
            weights=directory / package.WEIGHTS,
            init_kwargs=described["generator"],
            checkpoint_sha256=version.tag("checkpoint_sha256"),
            grade=described["grade"],
            classes=tuple(described.get("classes", ())),
            resolution=described["resolution"],
            visibility=described["visibility"],
            tags=version.tags,
        )

    def _fetch_generator(self, version: ModelVersion, directory: Path) -> dict[str, Any]:
        """Put the verified weights and description into `directory`; returns the description."""
        for name, tag in package.DIGEST_TAGS.items():
            expected = version.tag(tag)
            path = self._fetch(version, f"artifacts/{name}", directory)
            _verify(path, expected, f"{version.model}/{version.number}: artifacts/{name}")
        return json.loads((directory / package.DESCRIPTION).read_text(encoding="utf-8"))

    def _fetch(self, version: ModelVersion, name: str, directory: Path) -> Path:
        try:
            location = self._client.get_logged_model(version.model_id).artifact_location
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location}/{name}", dst_path=str(directory), tracking_uri=self._client.tracking_uri
            )
            (path,) = (found for found in directory.rglob(Path(name).name) if found.is_file())
            return path
        except (*FAILURES, ValueError) as error:
            raise RegistryError(
                f"{version.model}/{version.number}: {name} is missing or cannot be fetched ({first_line(error)}). "
                "Restore the store of artifacts, or register again."
            ) from None


def _ours(version: MlflowVersion, aliases: tuple[str, ...] = ()) -> ModelVersion:
    return ModelVersion(
        model=version.name,
        number=int(version.version),  # an int from SQLite, a string from a server
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        run_id=version.run_id,
        aliases=aliases,
        tags=dict(version.tags),
        model_id=version.source.removeprefix("models:/") if version.source.startswith("models:/m-") else None,
    )


def _verify(path: Path, expected: str, name: str) -> None:
    if not path.is_file():
        raise RegistryError(f"{name} is missing. Register again: dvc repro register")
    _same(files.sha256_file(path), expected, name)


def _same(found: str, expected: str, name: str) -> None:
    if found != expected:
        raise RegistryError(
            f"{name} is damaged or was altered: its SHA-256 is {found}, recorded is {expected}. Restore it, or use "
            "another version."
        )
