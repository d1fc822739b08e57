"""params.yaml as frozen types: one class per section, one section per stage, every field with a sentence.

What changes a result (resolution, batch, gamma, seed) is a DVC parameter. Where a result is made (workers, Ray address,
tracking server) is the section `site`, which no stage lists; a file named in DRP_SITE is laid over it, so that a laptop
and a cluster differ by that one file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dr_platform.errors import ConfigError

PARAMS_FILE = "params.yaml"
SITE_VARIABLE = "DRP_SITE"

Grade = Annotated[int, Field(ge=0, le=4, strict=True)]
Visibility = Literal["public", "proprietary"]
ExtractorChoice = Literal["auto", "inception-v3", "mobilenet-v2", "dinov2", "retfound", "small"]
PositiveInt = Annotated[int, Field(gt=0)]
Width = Annotated[int, Field(gt=0, le=2**20)]
Kimg = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]  # a trillion images; counts of steps stay numbers
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A section of params.yaml: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PhantomConfig(Section):
    """Synthetic fundus photographs that stand in for raw images on a machine without any."""

    visibilities: list[Visibility] = Field(description="Which collections to draw; [] draws none.")
    images: dict[Visibility, PositiveInt] = Field(description="Photographs per collection.")
    size: int = Field(ge=16, le=4096, description="Side of a photograph, pixels.")
    grade_weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        min_length=5, max_length=5, description="Relative frequency of grades 0 to 4."
    )
    seed: Seed = Field(description="Every photograph is a function of (seed, index).")

    @model_validator(mode="after")
    def _check(self) -> PhantomConfig:
        missing = [v for v in self.visibilities if v not in self.images]
        if missing:
            raise ValueError(f"images has no count for {missing[0]}; give one for each entry of visibilities")
        if sum(self.grade_weights) <= 0:
            raise ValueError("grade_weights are all 0; give at least one grade a weight")
        return self


class QualityConfig(Section):
    """What a photograph must reach to be used; data/quality.py says how each is measured.

    Real ones pass: 40 of 40 of 512 pixels, 1,594 of 1,600 thumbnails of 28. Focus and contrast are not judged below
    `detail_radius`: a thumbnail has no detail to lose. Of the 40, the least focus is 0.54 and the least contrast 0.075;
    a blur of 2 pixels of 256 (a vessel's width) leaves a focus of about 0.33.
    """

    enabled: bool = Field(True, description="false takes whatever has a field of view.")
    min_radius: float = Field(10.0, description="Of the field, pixels.")
    min_coverage: float = Field(0.6, description="Share of the field's circle that is lit.")
    max_truncated: float = Field(0.3, description="Share of the field's circle that the sensor cut off.")
    min_exposure: float = Field(20.0, description="Mean brightness of the field, 0 to 255.")
    max_exposure: float = Field(200.0, description="Mean brightness of the field, 0 to 255.")
    max_dark: float = Field(0.35, description="Share of the field too dark for detail.")
    max_bright: float = Field(0.15, description="Share of the field too bright for detail.")
    min_focus: float = Field(0.35, description="Detail at 1-2 px over that at 4-8 px, at 256 px across.")
    min_contrast: float = Field(0.03, description="Of the green channel without its illumination.")
    detail_radius: float = Field(60.0, description="Focus and contrast of smaller fields are not judged, pixels.")
    min_fundus_like: float = Field(0.5, description="Likeness to a fundus by colour and structure, 0 to 1.")
    max_aspect: float = Field(2.0, description="Longer side over shorter side.")


class PrepareConfig(Section):
    """Raw collections to shards of one grade at one resolution."""

    collections: list[str] = Field(min_length=1, description="Names of the raw collections to use.")
    visibility: Literal["all", "public-only"] = Field(description="all, or leave every proprietary image out.")
    grade: Grade = Field(description="The ICDR grade to keep.")
    resolution: int = Field(description="Side of the prepared images, pixels; a power of two.")
    held_out: float = Field(ge=0, lt=1, description="Share of patients never trained on.")
    seed: Seed = Field(description="Decides the split and the order of nested subsets.")
    shard_images: PositiveInt = Field(description="Images per Parquet shard.")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="What a photograph must reach.")
    rim_text: Literal["leave-out", "keep"] = Field(
        "leave-out", description="Photographs with what looks like writing at the rim."
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.84, description="Likeness from which two photographs are one; null: only equal files are."
    )
    conflicting_grades: Literal["leave-out", "lowest", "highest"] = Field(
        "leave-out", description="What copies of one photograph with different grades count as."
    )
    laterality: Literal["as-is", "left", "right"] = Field(
        "as-is", description="The side that all eyes are mirrored to; needs known eyes."
    )
    inverted_views: Literal["keep", "turn", "leave-out"] = Field(
        "keep", description="Photographs whose disc lies where that of the other eye does."
    )

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if not 16 <= value <= 4096 or value & (value - 1):
            raise ValueError(f"{value} is not a power of two from 16 to 4096. Use 16, 32, 64, 128, 256, 512 or 1024")
        return value


class TrainConfig(Section):
    """StyleGAN3 (Karras et al. 2021) and its training. Durations are in thousands of images shown (kimg)."""

    config: Literal["stylegan3-t", "stylegan3-r"] = Field(description="Translation or rotation equivariant.")
    subset: PositiveInt | None = Field(description="Number of training images, nested by size; null takes all.")
    kimg: Kimg = Field(description="Length of the training, thousands of images.")
    batch: Annotated[int, Field(gt=0, le=65536)] = Field(
        description="Images per optimiser step over all workers together."
    )
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        description="R1 weight; null to set it by r1_lambda."
    )
    r1_lambda: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="R1 weight as gamma * batch / resolution²; 0.001 is the published line (8 at 512 px, batch 32).",
    )
    r1_interval: PositiveInt = Field(description="Steps between lazy R1 regularisations.")
    z_dim: Width = Field(description="Dimensions of the input latent.")
    w_dim: Width = Field(description="Dimensions of the intermediate latent.")
    mapping_layers: PositiveInt = Field(description="Layers of the mapping network.")
    num_layers: Annotated[int, Field(ge=4, le=64)] = Field(
        description="Synthesis layers before ToRGB; the paper has 14."
    )
    channel_base: Width = Field(description="Width of the generator; the paper has 32768 (R doubles it).")
    channel_max: Width = Field(description="Widest layer of the generator; the paper has 512 (R doubles it).")
    discriminator_channel_base: Width = Field(description="Width of the discriminator.")
    discriminator_channel_max: Width = Field(description="Widest layer of the discriminator.")
    mbstd_group: PositiveInt = Field(description="Images compared by the minibatch standard deviation.")
    lr_generator: LearningRate = Field(description="Adam's learning rate for G.")
    lr_discriminator: LearningRate = Field(description="Adam's learning rate for D.")
    ema_kimg: Kimg = Field(description="Half-life of the average of G's weights, kimg.")
    ema_rampup: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        description="Half-life is at most this share of kimg so far; null: no such limit."
    )
    mirror: bool = Field(description="Show each image mirrored half of the time (eyes are then of either side).")
    augment: Literal["none", "fundus", "bgc"] = Field(
        "none", description="What D's images undergo: fundus is safe for eyes, bgc the published pipeline."
    )
    augment_p: Annotated[float, Field(ge=0, le=1)] | Literal["adaptive"] = Field(
        "adaptive", description="Probability of each augmentation; adaptive: ADA raises it while D overfits."
    )
    ada_target: Annotated[float, Field(gt=-1, lt=1)] = Field(
        0.6, description="Mean sign of D's logits for real images that ADA holds."
    )
    ada_interval: PositiveInt = Field(4, description="Steps between adjustments of p.")
    ada_kimg: Kimg = Field(500.0, description="p moves from 0 to 1 in no less than so many kimg.")
    ada_limit: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Largest adaptive p; beyond 0.8 augmentations leak into the samples."
    )
    style_mixing: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of fakes whose later layers follow a second latent; StyleGAN3 uses none."
    )
    blur_sigma: Annotated[float, Field(ge=0, le=64)] | Literal["auto"] = Field(
        "auto", description="Blur of all that D sees at the start, pixels; auto: 10 for config R, else none."
    )
    blur_kimg: Kimg | Literal["auto"] = Field(
        "auto", description="The blur has faded after so many kimg; auto: 200 at batch 32, in proportion."
    )
    condition_on: list[Grade] = Field(
        [],
        description="Further grades to train on, each under its label; images of all grades are shown equally often.",
    )
    low_precision: Literal["fp16", "bf16", "none"] = Field(
        "fp16", description="Number format of the highest resolutions on a GPU; a CPU computes in float32."
    )
    low_precision_resolutions: Annotated[int, Field(ge=0, le=10)] = Field(
        4, description="How many of the highest resolutions use it."
    )
    tf32: bool = Field(False, description="Let a GPU round factors of float32 products to 10 bits; never in metrics.")
    posthoc_kimg: Kimg | None = Field(
        None, description="Keep snapshots of two power-function averages of G every so many kimg, for `drp average`."
    )
    freeze_discriminator: Annotated[int, Field(ge=0, le=100)] = Field(
        description="First layers of D kept as they start."
    )
    tick_kimg: Kimg = Field(description="Report and draw samples every so many kimg.")
    checkpoint_ticks: PositiveInt = Field(description="Commit a checkpoint every so many ticks.")
    stop_when_unhealthy: bool = Field(False, description="Stop, with a checkpoint, at a critical finding of a tick.")
    seed: Seed = Field(description="Weights, order of images and latents.")

    def identity(self) -> dict[str, Any]:
        """What names a run: all that shapes the weights. A training that was stopped for its health can be continued
        without the stop, so the stop is not in the name."""
        return self.model_dump(mode="json", exclude={"stop_when_unhealthy"})

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch % self.mbstd_group:
            raise ValueError(
                f"batch is {self.batch}, but the minibatch standard deviation compares groups of {self.mbstd_group} "
                f"(mbstd_group). Use a multiple of {self.mbstd_group}"
            )
        if (self.gamma is None) == (self.r1_lambda is None):
            raise ValueError(
                f"gamma is {self.gamma} and r1_lambda is {self.r1_lambda}, but exactly one of them sets the R1 weight. "
                "Set the other to null"
            )
        if self.posthoc_kimg is not None and self.posthoc_kimg > self.kimg:
            raise ValueError(
                f"posthoc_kimg is {self.posthoc_kimg:g}, but the training ends after {self.kimg:g} kimg (kimg): one "
                f"snapshot gives no average of another length. Use about kimg / 40, {self.kimg / 40:.3g}"
            )
        if len(set(self.condition_on)) != len(self.condition_on):
            raise ValueError(f"condition_on names a grade twice: {self.condition_on}. Name each once")
        return self

    def r1_gamma(self, resolution: int) -> float:
        """The R1 weight at a resolution, whichever way it was given."""
        if self.gamma is not None:
            return self.gamma
        assert self.r1_lambda is not None  # the validator's business
        return self.r1_lambda * resolution**2 / self.batch

    def blur_start(self) -> float:
        """Sigma in pixels of the blur of everything D sees before the first step."""
        if self.blur_sigma != "auto":
            return self.blur_sigma
        return 10.0 if self.config == "stylegan3-r" else 0.0

    def blur_images(self) -> float:
        """Images after which that blur has faded."""
        return 1000 * (self.blur_kimg if self.blur_kimg != "auto" else self.batch * 200 / 32)


class EvaluateConfig(Section):
    """Metrics of a checkpoint. A number is comparable only with one of the same extractor and counts."""

    images: PositiveInt = Field(description="Generated images for FID and KID.")
    extractor: ExtractorChoice | list[ExtractorChoice] = Field(
        description="auto takes Inception-v3 (2015-12-05) when its weights lie there, else the embedded small one."
    )
    kid_subsets: PositiveInt = Field(description="Subsets of KID.")
    kid_subset_size: Annotated[int, Field(ge=2)] = Field(description="Images per subset of KID.")
    pictures: Annotated[int, Field(ge=0)] = Field(
        512, description="Images of either side looked at as pictures (spectrum, rim, lesions, copies); 0: none."
    )
    equivariance_images: PositiveInt = Field(description="Generated images for EQ-T and EQ-R.")
    batch: PositiveInt = Field(description="Images per forward pass.")
    seed: Seed = Field(description="Latents and transforms.")

    @property
    def extractors(self) -> list[ExtractorChoice]:
        """The feature spaces to measure in; the first one's numbers lead."""
        return self.extractor if isinstance(self.extractor, list) else [self.extractor]


class RegisterConfig(Section):
    """The name under which versions appear in the model registry."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_.-]{0,100}\{grade\}[A-Za-z0-9_.-]{0,100}$",
        description="Registered model; {grade} stands for the DR grade.",
    )

    def model_name(self, grade: int) -> str:
        """The registered model's name for a grade, such as fundus-dr1-stylegan3."""
        return self.name.format(grade=grade)


class PromoteConfig(Section):
    """What "better" means: the policy that lets a version become champion."""

    metric: Literal["fid", "kid"] = Field(description="The metric that decides; lower is better.")
    min_gain: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        description="Needed improvement as a share of the champion's; null asks for none."
    )
    spreads: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        description="... and as a multiple of the combined spread, if any."
    )
    min_images: PositiveInt = Field(description="Fewest generated images a report must rest on.")
    min_eq_t_db: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        description="Least EQ-T (integer), dB; null asks for none."
    )
    spaces: Annotated[int, Field(ge=0)] = Field(
        0, description="Feature spaces in which the champion must be equalled; 0 asks for none."
    )
    margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of the champion's FID that counts as equal."
    )
    max_rfd: Annotated[float, Field(gt=0)] | None = Field(None, description="Largest relative Fréchet distance.")
    max_kid: Annotated[float, Field(allow_inf_nan=False)] | None = Field(None, description="Largest KID.")
    min_coverage: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Least coverage.")
    max_rim_auc: Annotated[float, Field(ge=0.5, le=1)] | None = Field(
        None, description="Largest AUC by which real rims are told from drawn ones."
    )
    max_lesion_distance: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest distance of the numbers of microaneurysms, in standard deviations of the real ones."
    )
    max_geometry_distance: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest distance of how upright images are (the disc beside the middle), likewise."
    )
    spectrum: Literal["refuse", "ignore"] = Field("ignore", description="What an alarm of the spectrum does.")
    memorisation: Literal["refuse", "ignore"] = Field("ignore", description="What a sign of memorisation does.")
    visibility: Literal["any", "public"] = Field("any", description="Which models may become champion.")


class SweepConfig(Section):
    """How many images are enough, and at which gamma: the grid of `drp sweep`."""

    sizes: list[PositiveInt] = Field(min_length=1, description="Numbers of training images.")
    gammas: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1, description="R1 weights.")
    kimg: Kimg = Field(description="Length of each trial, kimg.")
    metric: Literal["fid", "kid"] = Field(description="What ranks the trials; lower is better.")
    max_concurrent: PositiveInt = Field(description="Trials at one time.")


class TransferConfig(Section):
    """Training on another grade from a registered model's weights."""

    targets: list[Grade] = Field(description="Grades with a transfer stage; `drp transfer --to` adds to them.")
    parent: str | None = Field(
        description="Where weights come from: NAME/VERSION, set by `drp transfer`, or imported/NAME."
    )
    kimg: Kimg = Field(description="Length of the transfer training, kimg.")
    freeze_discriminator: Annotated[int, Field(ge=0, le=100)] = Field(
        description="First layers of D kept as they start."
    )


class SiteConfig(Section):
    """Where things run and are kept. Changes no result, so no stage depends on it."""

    workers: PositiveInt | Literal["auto"] = Field(
        "auto", description="Processes that train, and, if a number or GPUs, evaluate; auto: GPUs, else 2."
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="Train on CUDA; auto: if there is any.")
    batch_per_worker: PositiveInt | None = Field(None, description="Most images per pass; the rest is accumulated.")
    triton: bool = Field(True, description="Use the Triton kernels on CUDA; false: the plain forms.")
    threads_per_worker: PositiveInt = Field(1, description="CPU threads of each worker.")
    ray_address: str = Field("local", min_length=1, description="local, auto, or HOST:PORT of a Ray head.")
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="Restarts of the workers after a crash.")
    storage: str = Field("runs", min_length=1, description="Directory for checkpoints, seen by every worker.")
    tracking_uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow tracking and registry.")
    artifacts: str = Field("mlartifacts", description="Where MLflow keeps artifacts if no server decides.")
    weights_dir: str | None = Field(None, description="Directory with feature extractors' weights.")


class Params(Section):
    """The whole of params.yaml."""

    profile: str = Field(description="Which profile this file was last written from.")
    phantom: PhantomConfig
    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    register_: RegisterConfig = Field(alias="register")
    promote: PromoteConfig
    sweep: SweepConfig
    transfer: TransferConfig
    site: SiteConfig = SiteConfig()

    @model_validator(mode="after")
    def _check(self) -> Params:
        if self.prepare.grade in self.train.condition_on:
            raise ValueError(
                f"train.condition_on names grade {self.prepare.grade}, which prepare.grade trains on already. "
                "Name further grades only"
            )
        return self

    def for_transfer(self, target: int) -> Params:
        """The same experiment on another grade: prepare, train and evaluate as a transfer stage sees them."""
        train = self.train.model_copy(
            update={
                "kimg": self.transfer.kimg,
                "freeze_discriminator": self.transfer.freeze_discriminator,
                "subset": None,
                "condition_on": [],
                # As published for a start from trained weights: no blur, no growing average, a nimbler p.
                "blur_sigma": 0.0,
                "ema_rampup": None,
                "ada_kimg": min(self.train.ada_kimg, 100.0),
            }
        )
        return self.model_copy(update={"train": train, "prepare": self.prepare.model_copy(update={"grade": target})})


def load_params(root: Path | None = None) -> Params:
    """params.yaml of the project at `root` (default: the working directory), with the site overlay applied.

    Raises ConfigError, in one line that names the file and the field.
    """
    path = (root or Path.cwd()) / PARAMS_FILE
    if not path.is_file():
        raise ConfigError(f"there is no {PARAMS_FILE} in {path.parent}. Run drp in the project's root directory.")
    raw = _read_yaml(path)
    overlay = os.environ.get(SITE_VARIABLE)
    if overlay:
        site = _read_yaml(Path(overlay), hint=f"{SITE_VARIABLE} names it; correct or unset the variable")
        own = raw.get("site") or {}
        raw["site"] = {**own, **site} if isinstance(own, dict) else own
    return parse_params(raw, source=PARAMS_FILE if not overlay else f"{PARAMS_FILE} with {overlay}")


def parse_params(raw: dict[str, Any], *, source: str) -> Params:
    """Typed parameters from plain ones; ConfigError names `source`, the field and the value."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_error(error)}") from None


def _read_yaml(path: Path, hint: str = "correct it") -> dict[str, Any]:
    try:
        loaded = UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {hint}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" at line {where.line + 1}" if where else ""
        why = f" ({error.problem})" if isinstance(error, _DuplicateKey) else ""
        raise ConfigError(f"{path} is not valid YAML in UTF-8{place}{why}; {hint}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no mapping of sections; {hint}.")
    return loaded


class _DuplicateKey(yaml.constructor.ConstructorError):
    """A mapping names a key twice."""


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _DuplicateKey(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    # The names of alternatives, such as constrained-int, are pydantic's and say nothing to the reader.
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained", "literal")))
    message = first["msg"].removeprefix("Value error, ")
    kind = first["type"]
    if kind == "missing":
        return f"{where} is missing. Add it, or start again from a profile: drp profile use demo"
    if kind == "extra_forbidden":
        return f"{where} is not a known parameter. Remove it or correct its name."
    if kind == "value_error":
        return f"{where}: {message}." if where else f"{message}."
    return f"{where} is {first['input']!r}: {message}."
