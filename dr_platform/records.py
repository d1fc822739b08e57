"""The nouns of the road: what one step writes and the next one reads, as versioned JSON, strict on reading.

raw images -prepare-> Manifest, ShardIndex -train-> Checkpoint -evaluate-> EvalReport -register-> ModelVersion
-promote-> Decision. A field is added with a new version number; a file of another version is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dr_platform import files
from dr_platform.errors import CheckpointError, DataError, DrpError

Visibility = Literal["public", "proprietary"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def stricter(*labels: Visibility) -> Visibility:
    """The visibility of something made from all of these: proprietary as soon as one is."""
    return "proprietary" if "proprietary" in labels else "public"


def licences_in_words(licences: Iterable[str]) -> str:
    """Licences as one text, each once; those that are such a text already are taken apart."""
    return "; ".join(sorted({each or "not stated" for text in licences for each in text.split("; ")})) or "not stated"


class Record(BaseModel):
    """Immutable, strict, with a version; `write` is atomic and `read` says what is wrong and how to mend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1

    # What to run when a file of this kind is absent or out of date; subclasses say it.
    remedy: ClassVar[str] = "Make it again."
    failure: ClassVar[type[DrpError]] = DataError
    # Fields that came without a new version: records of before keep their digest.
    later: ClassVar[frozenset[str]] = frozenset()
    # Whether the file ends in the digest of all else in it, so that a changed letter is noticed.
    sealed: ClassVar[bool] = False

    def write(self, path: Path) -> None:
        """Store as JSON at `path`, atomically."""
        content = self.model_dump(mode="json")
        files.write_json(path, {**content, "sha256": files.sha256_json(content)} if self.sealed else content)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record stored at `path`; raises the class's `failure` in one line if there is none or it is not valid."""
        try:
            content = path.read_bytes()
            return cls.model_validate_json(cls._without_seal(content) if cls.sealed else content)
        except FileNotFoundError:
            raise cls.failure(f"{path} does not exist. {cls.remedy}") from None
        except OSError as error:
            raise cls.failure(f"{path} cannot be read: {error.strerror}. {cls.remedy}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            version = cls.model_fields["version"].default
            raise cls.failure(
                f"{path} is not a {cls.__name__} of version {version}: {where}: {first['msg']}. {cls.remedy}"
            ) from None
        except (ValueError, RecursionError):  # brackets within brackets without end
            raise cls.failure(f"{path} is damaged: it does not match its own digest. {cls.remedy}") from None

    @staticmethod
    def _without_seal(content: bytes) -> bytes:
        """The JSON less its digest. Raises ValueError if there is none, or if it is of other content."""
        fields = json.loads(content)
        digest = fields.pop("sha256", None) if isinstance(fields, dict) else None
        if digest != files.sha256_json(fields):
            raise ValueError("the digest is of other content")
        return json.dumps(fields).encode()

    def digest(self) -> str:
        """SHA-256 of the record's content. A field of `later` counts once it is not at its default."""
        fields = type(self).model_fields
        absent = {name for name in self.later if getattr(self, name) == fields[name].get_default()}
        return files.sha256_json(self.model_dump(mode="json", exclude=absent))


def digest_of(path: Path) -> str:
    """SHA-256 of what a record's file says, whether or not this version knows more fields. Raises ValueError."""
    return files.sha256_json(json.loads(path.read_bytes()))


class Collection(Record):
    """`collection.json` in the root of a raw collection: what it is, and the digests of its tables of images."""

    version: Literal[3] = 3  # type: ignore[assignment]  # 2: layout, licences, pseudonyms, measurements. 3: the disc
    remedy: ClassVar[str] = "Run: drp data ingest --replace, dvc repro phantom, or dvc pull"

    name: str
    visibility: Visibility
    images: int
    rejected: int = Field(description="Images that could not be used; the import report lists them.")
    origin: Literal["ingest", "phantom"]
    layout: str = Field(description="How the delivery was laid out: eyepacs, messidor, csv, ...")
    licenses: tuple[str, ...] = Field(description="What its owners let its images be used for.")
    key: str | None = Field(description="Fingerprint of the key behind the pseudonyms; None where ids are no names.")
    withdrawn: tuple[str, ...] = Field((), description="Patients taken out, by pseudonym; an ingest leaves them out.")
    labels_sha256: Digest
    measurements_sha256: Digest


class Share(BaseModel):
    """How many prepared images came from one collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str
    visibility: Visibility
    train: int
    held_out: int


class Manifest(Record):
    """`manifest.json` beside `manifest.parquet` (a row per image): what was prepared, from what, and the split."""

    remedy: ClassVar[str] = "Run: dvc repro prepare"
    later: ClassVar[frozenset[str]] = frozenset({"settings_sha256"})

    visibility: Visibility
    grade: int
    resolution: int
    seed: int
    held_out: float
    collections: tuple[str, ...] = Field(description="Raw collections of this visibility that were searched.")
    shares: tuple[Share, ...] = Field(description="What came of those that have images of this grade.")
    patients_train: int
    patients_held_out: int
    skipped: int = Field(description="Images of this grade left out (no fundus, a duplicate); skipped.csv lists them.")
    rows_sha256: Digest
    settings_sha256: Digest | None = Field(None, description="Of the settings that decide what is left out.")

    @property
    def train(self) -> int:
        """Number of training images."""
        return sum(share.train for share in self.shares)

    @property
    def held_out_images(self) -> int:
        """Number of held-out images."""
        return sum(share.held_out for share in self.shares)


class Shard(BaseModel):
    """One Parquet file of prepared images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    split: Literal["train", "held-out"]
    rows: int
    bytes: int
    sha256: Digest


class ShardIndex(Record):
    """`index.json`, written last: the shards of one visibility, sizes and digests, and the manifest they follow."""

    remedy: ClassVar[str] = "Run: dvc repro prepare"

    visibility: Visibility
    resolution: int
    grade: int
    manifest_sha256: Digest
    shards: tuple[Shard, ...]

    def rows(self, split: str) -> int:
        """Images in the shards of a split."""
        return sum(shard.rows for shard in self.shards if shard.split == split)


class StoredFile(BaseModel):
    """A file inside a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: Digest


class TrainedOn(BaseModel):
    """How many training images came from one collection under one licence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str
    visibility: Visibility
    license: str
    images: int


class Checkpoint(Record):
    """`checkpoint.json`, written last: a training after `step` steps, and a digest of each of its files."""

    version: Literal[3] = 3  # type: ignore[assignment]  # 2: several grades; sealed. 3: collections and licences
    sealed: ClassVar[bool] = True
    remedy: ClassVar[str] = "Run: dvc repro train"

    run: str = Field(description="Name of the run, a function of configuration and data.")
    step: int
    images_seen: int
    complete: bool = Field(description="Whether the training had reached its length.")
    grade: int
    classes: tuple[int, ...] = Field((), description="Grades of a conditional G in the order of its labels, else none.")
    resolution: int
    visibility: Visibility = Field(description="The strictest label of the images trained on.")
    config_sha256: Digest
    data_sha256: Digest
    train_images: int
    sources: tuple[TrainedOn, ...] = Field((), description="Where the training images came from, if known.")
    parent: str | None = Field(description="NAME/VERSION of the model whose weights it started from.")
    generator: dict[str, Any] = Field(description="Keyword arguments that rebuild G.")
    discriminator: dict[str, Any] = Field(description="Keyword arguments that rebuild D.")
    files: dict[str, StoredFile]


Severity = Literal["notice", "warning", "critical"]


class Finding(BaseModel):
    """A sign of trouble in a training: what was found and what was needed, and what to try."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="mode-collapse, dead-layer, ...: docs/training.md lists them.")
    severity: Severity
    sentence: str = Field(description="The numbers found and needed.")
    advice: tuple[str, ...] = Field(description="What to try, naming keys of params.yaml.")


class Imported(Record):
    """`imported.json`: networks that came from a published pickle, and where they came from."""

    sealed: ClassVar[bool] = True
    remedy: ClassVar[str] = "Run: drp import FILE.pkl"
    failure: ClassVar[type[DrpError]] = CheckpointError

    source: str = Field(description="Name of the file.")
    source_sha256: Digest
    licence: str = Field(description="What the weights may be used for.")
    generator: dict[str, Any] | None = Field(description="Keyword arguments that rebuild G, if it is a StyleGAN3.")
    stylegan2_generator: dict[str, Any] | None = Field(
        description="Published arguments of a G that we have no form of."
    )
    discriminator: dict[str, Any] | None = Field(description="Keyword arguments that rebuild D.")
    dropped: tuple[str, ...] = Field((), description="What else the file held, such as augment_pipe.")
    files: dict[str, StoredFile]


class Tick(Record):
    """What a training reports once per tick; one line of `ticks.jsonl`."""

    # A loss that is not finite is a finding, and must survive the way to the file and back.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    step: int
    images_seen: int
    images_total: int
    seconds: float = Field(description="Wall time of this tick.")
    images_per_second: float
    eta_seconds: float
    memory_gib: float = Field(description="Peak resident memory of rank 0, or of its GPU.")
    scalars: dict[str, float] = Field(description="Means over the tick: losses, logits, signs, gradient norms.")
    samples: str | None = Field(description="File of the sample grid, relative to the run directory.")
    checkpoint: bool = Field(description="Whether a checkpoint was committed with this tick.")
    findings: tuple[Finding, ...] = Field((), description="Signs of trouble at this tick; ticks of old have none.")


class Extractor(BaseModel):
    """The identity of a feature extractor: numbers made with different ones are never compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Network, its size, and which of its layers where there is a choice.")
    weights_sha256: Digest
    input_size: int
    features: int
    resize: str = Field("not recorded", description="How pictures come to input_size; reports of old do not say.")
    definition: int = Field(1, ge=1, description="Raised whenever the same pictures and weights give other features.")


class Metric(BaseModel):
    """A number with what it takes to believe it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        description="fid, kid, eq_t_int_db, ... with the extractor's suffix where it is not Inception-v3."
    )
    value: float
    spread: float | None = Field(description="One standard error, or null where the metric has none.")
    spread_kind: str | None
    n_fake: int
    n_real: int | None
    extractor: Extractor | None
    seed: int
    higher_is_better: bool
    definition: str = Field("1", description="Version of what is computed under this name.")
    region: Literal["whole", "centre"] = Field("whole", description="Of the images: whole, or the central 80 %.")
    low: float | None = Field(None, description="Lower end of a 95 % interval, if there is one.")
    high: float | None = None
    said: str = Field("", description="What the number says, in a sentence, where that is not plain.")

    @property
    def stem(self) -> str:
        """The name without the extractor's suffix."""
        return stem_of(self.name)


def stem_of(name: str) -> str:
    """A metric's name without the extractor's suffix: fid__drp-small-v1 is a fid."""
    return name.partition("__")[0]


# Of a report with some dozens of numbers, the stems of those to look at first, in this order.
LEADING = (
    "fid", "kid", "rfd", "coverage", "memorisation_alarm", "spectrum_alarm", "spectrum_db_lesions", "c2st_rim",
    "microaneurysms_w1", "disc_upright_w1", "eq_t_int_db", "eq_t_frac_db", "eq_r_db",
)  # fmt: skip

Numbers = tuple[float, ...]


class Curve(BaseModel):
    """A line for real and one for generated pictures, over the same x."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["spectrum", "direction", "rim"]
    x: Numbers = Field(description="Cycles per pixel; degrees; radii of the field.")
    real: Numbers = Field(description="dB, dB over the ring's mean, or grey levels.")
    fake: Numbers
    low: Numbers = Field(description="Between low and high the generated line would lie in 95 of 100 cases by chance.")
    high: Numbers


class Distribution(BaseModel):
    """A number taken of each picture: its quantiles, evenly from the least to the largest, at most 101 of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    real: Numbers
    fake: Numbers
    n_real: int = Field(description="Pictures in which it could be measured.")
    n_fake: int


class NearestReal(BaseModel):
    """A generated picture and the real one nearest to it in a feature space."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(description="Of the generated picture, as `drp generate --seeds SEED --psi 1` draws it.")
    real: int = Field(description="Row of the real one in the reference, which only its owner can look up.")
    distance: float
    typical: float = Field(description="Median distance of a real picture to the nearest other real one.")
    extractor: str


class Figures(BaseModel):
    """What a report's figures are drawn from: sums over pictures, and numbers in order of size; no pixels, no names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    curves: tuple[Curve, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    neighbours: tuple[NearestReal, ...] = Field((), description="The nearest pairs, nearest first.")


class EvalReport(Record):
    """The metrics of one checkpoint against one reference set."""

    version: Literal[2] = 2  # type: ignore[assignment]  # 2: licence; definition, region and interval of a metric
    remedy: ClassVar[str] = "Run: dvc repro evaluate"

    checkpoint_sha256: Digest = Field(description="Digest of the Checkpoint record, which covers its files.")
    run: str
    step: int
    images_seen: int
    grade: int
    resolution: int
    visibility: Visibility
    licence: str = Field("not stated", description="Of the images trained on.")
    data_sha256: Digest
    reference: str = Field(description="Which real images, such as 'train, 480 images'.")
    reference_sha256: Digest
    seed: int
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = Field((), description="What was not measured, and why.")
    figures: Figures = Field(Figures(), description="Curves, distributions and nearest neighbours behind the metrics.")

    def metric(self, stem: str) -> Metric | None:
        """The first metric named `stem`, or `stem` with an extractor's suffix; None if there is none."""
        for metric in self.metrics:
            if metric.name == stem or metric.name.startswith(f"{stem}__"):
                return metric
        return None


class Registration(Record):
    """What `register` did: which version now stands for which checkpoint."""

    remedy: ClassVar[str] = "Run: dvc repro register"

    model: str
    model_version: int
    checkpoint_sha256: Digest
    report_sha256: Digest
    parent: str | None


Verdict = Literal["pass", "fail", "missing"]


class RuleOutcome(BaseModel):
    """One rule of promotion: what was found, what was needed, and whether that is met; missing: without evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    metric: str | None
    value: float | None
    bound: float | None
    margin: float | None = Field(description="Share of the champion's value that counts as equal.")
    verdict: Verdict
    said: str
    binding: bool = Field(True, description="Whether it must pass; else it is a part of a rule that follows.")


class Decision(Record):
    """Promote or hold, the reasons in sentences, the rules one by one, and the numbers compared."""

    version: Literal[2] = 2  # type: ignore[assignment]  # 2: the rules one by one; what the ledger says of it

    model: str
    model_version: int
    champion: int | None
    promote: bool
    reasons: tuple[str, ...]
    metric: str | None
    candidate_value: float | None
    champion_value: float | None
    rules: tuple[RuleOutcome, ...] = ()
    forced: bool = Field(False, description="Whether someone promoted against the policy, with a reason.")
    entry: int | None = Field(None, description="Its place in the ledger; None where nothing was to be changed.")


LedgerAction = Literal["promote", "hold", "rollback", "force"]


class LedgerEntry(BaseModel):
    """One decision about a champion, as the ledger keeps it for ever: a line of canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    index: int = Field(ge=0, description="Place in the ledger, over all models.")
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", description="When, in UTC.")
    who: str
    action: LedgerAction
    model: str
    from_version: int | None = Field(description="The champion before; None where there was none.")
    to_version: int = Field(description="The version decided about: the champion after, except where it was held.")
    checkpoint_sha256: Digest
    report_sha256: Digest
    weights_sha256: Digest
    rules_sha256: Digest | None = Field(description="Of the rules decided by; None where none were asked.")
    reason: str
    previous: Digest = Field(description="`sha256` of the entry before; zeros in the first.")
    sha256: Digest = Field(description="Over the canonical JSON of all else.")


class TransferPlan(Record):
    """Which tensors of a transfer's networks were copied from the parent, which are new, which are frozen."""

    parent: str
    parent_weights_sha256: Digest
    source_grade: int | None = Field(description="None where the parent was imported.")
    target_grade: int
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    frozen: tuple[str, ...]
