"""Records made by hand for the tests of tracking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_platform import checkpoint as checkpoints
from dr_platform.records import Checkpoint, EvalReport, Extractor, Finding, Metric, Severity, Tick

SHA = "ab" * 32


@dataclass(frozen=True)
class Trained:
    """A committed checkpoint, its directory and its report."""

    directory: Path
    record: Checkpoint
    report: EvalReport

    @property
    def weights(self) -> Path:
        return self.directory / checkpoints.GENERATOR_FILE


def report_on(record: Checkpoint, value: float = 41.5, **changes: Any) -> EvalReport:
    """A report on a checkpoint with one FID."""
    extractor = Extractor(name="small", weights_sha256=SHA, input_size=64, features=96)
    fid = Metric(
        name="fid__small", value=value, spread=0.5, spread_kind="jackknife", n_fake=500, n_real=480,
        extractor=extractor, seed=0, higher_is_better=False,
    )  # fmt: skip
    plain = {
        "checkpoint_sha256": record.digest(), "run": record.run, "step": record.step,
        "images_seen": record.images_seen, "grade": record.grade, "resolution": record.resolution,
        "visibility": record.visibility, "data_sha256": SHA, "reference": "train, 480 images",
        "reference_sha256": SHA, "seed": 0, "metrics": (fid,),
    }  # fmt: skip
    return EvalReport(**{**plain, **changes})


def tick_at(images_seen: int, loss: float = 1.0) -> Tick:
    return Tick(
        step=images_seen // 16, images_seen=images_seen, images_total=8000, seconds=1.0, images_per_second=160.0,
        eta_seconds=9.0, memory_gib=0.5, scalars={"loss/generator": loss}, samples=None, checkpoint=False,
    )  # fmt: skip


def finding(kind: str, severity: Severity) -> Finding:
    return Finding(kind=kind, severity=severity, sentence="2.1 found, 5 needed.", advice=("raise train.gamma",))
