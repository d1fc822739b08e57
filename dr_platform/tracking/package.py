"""What a registered model consists of: its files on disk, its tags, its description."""

from __future__ import annotations

import logging
import shutil
import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import types
from mlflow.models import Model, ModelSignature

from dr_platform import files
from dr_platform.records import Checkpoint, EvalReport, licences_in_words

MODEL_NAME = "generator"
WEIGHTS, DESCRIPTION = "generator.safetensors", "generator.json"
DIGEST_TAGS = {WEIGHTS: "weights_sha256", DESCRIPTION: "generator_sha256"}
# An environment made by uv has no pip, which MLflow would mention each time.
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)

_SERVED_CODE = "drp_generator"
_SERVING_NEEDS = ("mlflow", "numpy", "pandas", "safetensors", "scipy", "torch")


def write_package(
    target: Path, checkpoint: Checkpoint, weights: Path, report: EvalReport, model_id: str, run_id: str
) -> None:
    """Make an MLflow model on disk: weights, description, the code that serves them, the report. No path, no pickle."""
    platform = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as directory:
        aside = Path(directory)
        shutil.copyfile(weights, aside / WEIGHTS)
        shared = {"grade", "classes", "resolution", "visibility", "images_seen", "generator"}
        files.write_json(aside / DESCRIPTION, checkpoint.model_dump(mode="json", include=shared))
        shutil.copytree(platform / "gan", aside / _SERVED_CODE, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(platform / "sampling.py", aside / _SERVED_CODE / "sampling.py")
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(Path(__file__).with_name("serving_model.py")),
            artifacts={"weights": str(aside / WEIGHTS), "config": str(aside / DESCRIPTION)},
            code_paths=[str(aside / _SERVED_CODE)],
            signature=_signature(checkpoint),
            input_example=(pd.DataFrame({"seed": [0, 1]}), {"truncation_psi": 1.0}),
            pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in _SERVING_NEEDS],
            mlflow_model=Model(artifact_path=MODEL_NAME, run_id=run_id, model_uuid=model_id, model_id=model_id),
        )
    _forget_paths(target)
    report.write(target / "reports" / f"{report.digest()}.json")


def _signature(checkpoint: Checkpoint) -> ModelSignature:
    resolution = checkpoint.resolution
    grade = [types.ParamSpec("grade", "long", checkpoint.grade)] if checkpoint.classes else []
    return ModelSignature(
        inputs=types.Schema([types.ColSpec("long", "seed")]),
        outputs=types.Schema([types.TensorSpec(np.dtype("uint8"), (-1, resolution, resolution, 3))]),
        params=types.ParamSchema([types.ParamSpec("truncation_psi", "double", 1.0), *grade]),
    )


def _forget_paths(package: Path) -> None:
    """MLflow writes where the weights and the code came from, on this machine, into the model; leave the names only."""
    model = Model.load(str(package))
    flavor = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for entry in flavor["artifacts"].values():
        entry["uri"] = entry["path"]
    model.save(str(package / "MLmodel"))
    for bytecode in package.rglob("__pycache__"):
        shutil.rmtree(bytecode)


def digests(package: Path) -> dict[str, str]:
    """The tags by which the files of a model on disk are recognised later."""
    return {tag: files.sha256_file(package / "artifacts" / name) for name, tag in DIGEST_TAGS.items()}


def checkpoint_tags(checkpoint: Checkpoint) -> dict[str, str]:
    """What a version was trained on and how far, as tags."""
    return {
        "checkpoint_sha256": checkpoint.digest(),
        "config_sha256": checkpoint.config_sha256,
        "data_sha256": checkpoint.data_sha256,
        "run": checkpoint.run,
        "grade": str(checkpoint.grade),
        **({"classes": ", ".join(map(str, checkpoint.classes))} if checkpoint.classes else {}),
        "resolution": str(checkpoint.resolution),
        "images_seen": str(checkpoint.images_seen),
        "train_images": str(checkpoint.train_images),
        "visibility": checkpoint.visibility,
        "trained_on": sources_in_words(checkpoint),
        "licenses": licences_in_words(source.license for source in checkpoint.sources),
        **({"parent": checkpoint.parent} if checkpoint.parent else {}),
    }


def sources_in_words(checkpoint: Checkpoint) -> str:
    """Which collections a checkpoint was trained on, and their shares: `clinic (proprietary) 25 %, ...`."""
    total = sum(source.images for source in checkpoint.sources)
    images: dict[tuple[str, str], int] = {}
    for source in checkpoint.sources:
        place = (source.collection, source.visibility)
        images[place] = images.get(place, 0) + source.images
    shares = (f"{name} ({label}) {count / total:.1%}" for (name, label), count in images.items())
    return ", ".join(shares) or "not recorded"


def report_tags(report: EvalReport) -> dict[str, str]:
    """The report as tags, its digest last."""
    tags = {"reference": report.reference, "reference_sha256": report.reference_sha256}
    for metric in report.metrics:
        tags[f"metric.{metric.name}"] = f"{metric.value:.6g}"
        tags[f"metric.{metric.name}.n"] = str(metric.n_fake)
        if metric.spread is not None:
            tags[f"metric.{metric.name}.spread"] = f"{metric.spread:.3g}"
        if metric.extractor is not None:
            identity = f"{metric.extractor.name} {metric.extractor.weights_sha256[:12]}"
            tags[f"metric.{metric.name}.extractor"] = identity
    return {**tags, "report_sha256": report.digest()}


def describe(checkpoint: Checkpoint, report: EvalReport) -> str:
    """A sentence or two for the model page."""
    values = ", ".join(f"{m.name} {m.value:.4g} (n {m.n_fake})" for m in report.metrics)
    start = f", from {checkpoint.parent}" if checkpoint.parent else ""
    return (
        f"StyleGAN3, DR grade {checkpoint.grade}, {checkpoint.resolution} px, {checkpoint.images_seen} images seen "
        f"of {checkpoint.train_images}{start}. Trained on {sources_in_words(checkpoint)}. {values}. "
        "G's averaged weights only."
    )
