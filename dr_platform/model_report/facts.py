"""What a model's page says, as plain data: no path, no pixels but small JPEGs, no names but those in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dr_platform.records import Decision, EvalReport, LedgerEntry, NearestReal

# What a version's tags tell of where it comes from, and in which words.
LINEAGE = {
    "trained_on": "Trained on",
    "train_images": "Training images",
    "licenses": "Licences of the images",
    "visibility": "Visibility",
    "run": "Run",
    "images_seen": "Images seen",
    "parent": "Started from",
    "classes": "Grades it draws",
    "data_sha256": "Training images, digest",
    "checkpoint_sha256": "Checkpoint, digest",
    "config_sha256": "Configuration, digest",
    "git_commit": "Commit",
    "dvc_lock_sha256": "dvc.lock, digest",
    "report_sha256": "Report, digest",
    "revoked_patients": "Patients who withdrew",
}


@dataclass(frozen=True)
class Shown:
    """A picture: a JPEG of `width` x `height` pixels and what stands below it."""

    jpeg: bytes
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Neighbour:
    """A generated picture beside the real one that is nearest to it; `real` is None where it may not be shown."""

    found: NearestReal
    generated: Shown
    real: Shown | None


@dataclass(frozen=True)
class Series:
    """A quantity over the training: images shown in thousands, and values."""

    name: str
    kimg: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ModelFacts:
    """A registered version. decision: what the rules in force say of it now; history: what the ledger has of it."""

    model: str
    number: int
    aliases: tuple[str, ...]
    date: str
    report: EvalReport
    tags: dict[str, str]
    decision: Decision
    history: tuple[LedgerEntry, ...] = ()
    samples: tuple[Shown, ...] = ()
    truncation: tuple[tuple[Shown, ...], ...] = ()  # a row for each seed
    interpolation: tuple[Shown, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    training: tuple[Series, ...] = ()

    @property
    def name(self) -> str:
        """NAME/VERSION."""
        return f"{self.model}/{self.number}"

    @property
    def verdict(self) -> str:
        """Where it stands, in a few words."""
        if "champion" in self.aliases:
            return "Champion"
        judged = [entry for entry in self.history if entry.to_version == self.number]
        if judged and judged[-1].action == "hold":
            return f"Held on {judged[-1].time[:10]}"
        return "Would be promoted" if self.decision.promote else "Would be held"


def lineage(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a version's tags tell of where it comes from: words and values."""
    known = [(said, tags[tag]) for tag, said in LINEAGE.items() if tags.get(tag)]
    return (*known, *((f"Data version, {tag[5:]}", tags[tag]) for tag in sorted(tags) if tag.startswith("data.")))


def limits(report: EvalReport, tags: Mapping[str, str]) -> tuple[str, ...]:
    """What the numbers cannot say, each with its reason."""
    said = []
    fid = report.metric("fid")
    if fid is not None and fid.n_real is not None:
        said.append(
            f"FID rests on {fid.n_fake:,} generated and {fid.n_real:,} real images and carries the bias of so many: "
            f"only values of as many compare. Relative FD and KID do not have it."
        )
    if fid is not None and fid.extractor is not None and fid.extractor.name.startswith("drp-small"):
        said.append("The feature space is the embedded stand-in; no published value can be set beside these.")
    if report.resolution < 325:
        said.append(
            f"At {report.resolution} pixels a microaneurysm is less than a pixel: nothing here speaks of lesions."
        )
    if "phantom" in tags.get("trained_on", ""):
        said.append("It was trained on drawn phantoms. Nothing here holds for photographs of patients.")
    if report.reference.startswith("train"):
        said.append(
            "Distances are to the images it was trained on, which rewards copying: read them with memorisation."
        )
    said.append("One training: its spread over training seeds is not known from it.")
    said.append("No ophthalmologist has looked at these images, and no classifier was trained on them.")
    return tuple(said)
