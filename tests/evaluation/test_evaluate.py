"""A generator and real images to a report, and reports side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from shared_data import WEIGHTS, needs_weights

from dr_platform.config import EvaluateConfig
from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import boundary, kept, suite
from dr_platform.evaluation.evaluate import HeldOut, evaluate
from dr_platform.evaluation.features import choose_extractor, extract
from dr_platform.evaluation.passes import generated_features, image_seeds
from dr_platform.gan import Generator
from dr_platform.records import Checkpoint, EvalReport, Figures
from dr_platform.sampling import sample_images

DATA, STATE = "d" * 64, "c" * 64


@pytest.fixture
def measure(
    waves: torch.nn.Module, blobs: np.ndarray, config: EvaluateConfig, checkpoint: Checkpoint, tmp_path: Path
) -> Callable[..., EvalReport]:
    """The evaluation of the wave generator against the blobs, with any part replaced."""

    def run(
        generator: torch.nn.Module = waves,
        real: np.ndarray = blobs,
        config: EvaluateConfig = config,
        progress: Callable[[int, int], None] | None = None,
        labels: np.ndarray | None = None,
    ) -> EvalReport:
        return evaluate(
            generator,
            real,
            DATA,
            config,
            checkpoint=checkpoint,
            checkpoint_sha256=STATE,
            cache_dir=tmp_path / "features",
            labels=labels,
            progress=progress,
        )

    return run


def changed(config: EvaluateConfig, **values: object) -> EvaluateConfig:
    return config.model_copy(update=values)


def test_a_report_says_what_was_measured_against_what(
    measure: Callable[..., EvalReport], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    report = measure()
    in_space = ("fid", "kid", "rfd", "fid_inf", "mind", "precision", "recall", "density", "coverage", "authpct")
    assert [metric.name for metric in report.metrics] == [
        *(f"{stem}__drp-small-v1" for stem in in_space),
        "eq_t_int_db",
        "eq_t_frac_db",
        "eq_r_db",
    ]
    assert report.notes == (
        "memorisation: 0 held-out images; at least 20 are needed",
        "eq_t_int_field_db, eq_t_frac_field_db, eq_r_field_db: no generated image shows a field of view",
    )
    assert report.figures == Figures()
    assert (report.checkpoint_sha256, report.data_sha256) == (STATE, checkpoint.data_sha256)
    assert (report.reference, report.reference_sha256, report.seed) == ("train, 120 images", DATA, 3)
    fid, kid, *_ = report.metrics
    integer = report.metric("eq_t_int_db")
    assert (fid.n_fake, fid.n_real, fid.extractor.features, fid.higher_is_better) == (100, 120, 95, False)
    assert fid.spread > 0
    assert kid.spread_kind == "jackknife standard error; 10 subsets of 50 images"
    assert (integer.n_fake, integer.n_real, integer.extractor, integer.higher_is_better) == (8, None, None, True)
    assert integer.value > 100  # the wave generator moves with its input
    report.write(tmp_path / "report.json")
    assert EvalReport.read(tmp_path / "report.json") == report


def test_pictures_are_looked_at_where_asked_for_and_change_no_other_number(
    measure: Callable[..., EvalReport], config: EvaluateConfig, tmp_path: Path
) -> None:
    plain, looked = measure(), measure(config=changed(config, pictures=40))
    assert looked.metrics[: len(plain.metrics) - 3] == plain.metrics[:-3]
    assert looked.metrics[len(plain.metrics) - 1 : len(plain.metrics) + 2] == plain.metrics[-3:]  # after the centre's
    centre = looked.metric("fid_centre")
    assert (centre.region, centre.n_fake, centre.n_real) == ("centre", 100, 120)
    for stem in ("spectrum_alarm", "spectrum_db_lesions", "rim_found", "c2st_rim", "c2st_centre"):
        assert (looked.metric(stem).n_fake, looked.metric(stem).n_real) == (40, 40)
    assert looked.metric("spectrum_alarm").value == 1  # waves are no blobs
    first = looked.figures.neighbours[0]
    assert first.seed in image_seeds(3, 40)
    assert first.distance > first.typical
    looked.write(tmp_path / "report.json")
    assert EvalReport.read(tmp_path / "report.json") == looked


class Nailed(torch.nn.Module):
    """A disc that moves as its input does, with a chequerboard on it that does not."""

    z_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.synthesis = torch.nn.Module()
        self.synthesis.input = torch.nn.Module()
        self.synthesis.input.register_buffer("transform", torch.eye(3))

    def forward(self, z: torch.Tensor, c: None = None, **_: object) -> torch.Tensor:
        axis = (torch.arange(32) + 0.5) / 32 - 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        moved = self.synthesis.input.transform @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        disc = ((0.3 - moved[:2].norm(dim=0)) * 60).sigmoid().reshape(32, 32)
        board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 - 0.5
        return (disc * (1.2 + 0.4 * board) - 1 + z[:, :1, None] * 1e-3)[:, None].repeat(1, 3, 1, 1)


def test_black_around_the_field_of_view_flatters_equivariance(
    measure: Callable[..., EvalReport], config: EvaluateConfig
) -> None:
    report = measure(Nailed(), config=changed(config, equivariance_images=16))
    # The disc has 28 % of the frame, and all the error: 5.5 dB, less what a shift takes of the frame. What a rotation
    # compares is a circle already.
    for stem, least in (("eq_t_int", 3), ("eq_t_frac", 3), ("eq_r", 0)):
        assert least < report.metric(f"{stem}_db").value - report.metric(f"{stem}_field_db").value < 6


def test_the_centre_knows_nothing_of_the_rim(blobs: np.ndarray) -> None:
    small = choose_extractor("small")
    painted = blobs.copy()
    painted[:, :3] = 255
    painted[:, :, -3:] = 90
    middle = suite.centred(small)
    np.testing.assert_array_equal(extract(painted, middle), extract(blobs, middle))
    np.testing.assert_array_equal(extract(blobs, middle), extract(boundary.centre_crop(blobs), small))
    assert not np.allclose(extract(painted, small), extract(blobs, small))


def test_a_copy_is_the_nearest_pair() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 5)), rng.normal(size=(50, 5))
    fake[31] = real[7]
    pairs = suite.nearest_pairs(suite.Space(choose_extractor("small"), real, fake), range(100, 140))
    assert (pairs[0].seed, pairs[0].real, pairs[0].distance) == (131, 7, 0)
    assert [pair.distance for pair in pairs] == sorted(pair.distance for pair in pairs)
    assert pairs[0].typical > 0


class Replay(torch.nn.Module):
    """A generator that knows some images by heart: each latent stands for one of them, shown a little brighter."""

    z_dim = 4

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        kept = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.register_buffer("images", (kept + 0.01).clamp(-1, 1))

    def forward(self, z: torch.Tensor, c: torch.Tensor | None, *, truncation_psi: float) -> torch.Tensor:
        return self.images[(z[:, 0].abs() * 1e6).long() % len(self.images)]


def phantoms(seed: int, count: int) -> np.ndarray:
    return np.stack([phantom(seed, number, 32).image for number in range(count)])


def test_a_generator_that_knows_its_training_images_by_heart_rings() -> None:
    """Of 90 images 60 were trained on; a generator that knows others of the same kind by heart is silent."""
    real, apart = phantoms(50, 90), HeldOut(phantoms(51, 60), "f" * 64, np.arange(60))

    small, found = choose_extractor("small"), []
    for known in (real[:60], phantoms(52, 100)):
        drawn = sample_images(Replay(known), range(100))
        space = suite.Space(small, *(extract(part, small) for part in (real, drawn, apart.images)))
        said = suite.memory([space.trained_on(60)], 3, real[:60], apart.images, drawn)
        found.append({metric.name: metric for metric in said.metrics})
    copies, honest = found
    assert (copies["memorisation_alarm"].value, honest["memorisation_alarm"].value) == (1, 0)
    assert "copies of training pictures" in copies["memorisation_alarm"].said
    ratio = "memorisation_ratio__drp-small-v1"
    assert copies[ratio].value < honest[ratio].value
    assert honest[ratio].n_real == 60


def test_only_images_trained_on_count_for_whether_what_is_drawn_is_authentic(config: EvaluateConfig) -> None:
    """A generator that knows by heart what it was not trained on copies nothing of its training images."""
    real, small = phantoms(50, 90), choose_extractor("small")
    drawn = sample_images(Replay(real[60:]), range(100))
    space = suite.Space(small, *(extract(part, small) for part in (real, drawn)))
    found = [
        {metric.name: metric.value for metric in suite.distances(space, config, members).metrics}
        for members in (None, 60)
    ]
    whole, trained = (each["authpct__drp-small-v1"] for each in found)
    assert whole < 5
    assert trained > 50
    assert {**found[0], "authpct__drp-small-v1": 0} == {**found[1], "authpct__drp-small-v1": 0}


def test_kept_features_carry_the_labels_of_their_own_images(
    waves: torch.nn.Module, blobs: np.ndarray, config: EvaluateConfig, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    apart = HeldOut(blobs[:30], "f" * 64, np.arange(30), {"visibility": "proprietary"})
    evaluate(
        waves, blobs, DATA, config, checkpoint=checkpoint, checkpoint_sha256=STATE, cache_dir=tmp_path,
        real_labels={"visibility": "public"}, held_out=apart,
    )  # fmt: skip
    said = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as stored:
            said[kept.images_of(kept.made_of(path) or {})] = stored.metadata()["visibility"]
    assert said == {DATA: "public", "f" * 64: "proprietary"}


@needs_weights
def test_several_spaces_stand_in_one_report(
    measure: Callable[..., EvalReport], config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRP_WEIGHTS_DIR", str(WEIGHTS))
    report = measure(config=changed(config, extractor=["small", "mobilenet-v2"], images=60, equivariance_images=4))
    spaces = ("drp-small-v1", "mobilenet-v2-1.0-224-imagenet")
    names = {metric.name for metric in report.metrics if metric.name.startswith(("fid__", "coverage__"))}
    assert names == {f"{stem}__{space}" for stem in ("fid", "coverage") for space in spaces}


def test_the_same_evaluation_gives_the_same_report(measure: Callable[..., EvalReport]) -> None:
    assert measure() == measure()


def test_another_seed_takes_other_images(measure: Callable[..., EvalReport], config: EvaluateConfig) -> None:
    assert measure().metrics[0].value != measure(config=changed(config, seed=4)).metrics[0].value
    assert not set(image_seeds(0, 1000)) & set(image_seeds(1, 1000))
    assert image_seeds(0, 3) == [0, 1, 2]
    assert max(image_seeds(2**32 - 1, 5)) < 2**32


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batch_size_does_not_change_the_features(config: EvaluateConfig, batch: int) -> None:
    torch.manual_seed(0)
    # In double precision, because in single a rounding difference turns some pixels by one grey level of 255.
    generator = Generator(z_dim=16, w_dim=16, img_resolution=32, num_layers=4, channel_base=256, channel_max=8).double()
    small = choose_extractor("small")
    whole = generated_features(generator, [small], changed(config, images=20, batch=20)).features[0]
    parts = generated_features(generator, [small], changed(config, images=20, batch=batch)).features[0]
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)


def test_batch_size_does_not_change_the_report(measure: Callable[..., EvalReport], config: EvaluateConfig) -> None:
    for ours, theirs in zip(measure().metrics, measure(config=changed(config, batch=33)).metrics, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-6)


@pytest.mark.parametrize(("pictures", "reals"), [(0, 120), (16, 240)])  # as a whole, and their centres
def test_progress_grows_to_its_announced_end(
    measure: Callable[..., EvalReport], config: EvaluateConfig, pictures: int, reals: int
) -> None:
    seen: list[tuple[int, int]] = []
    measure(config=changed(config, pictures=pictures), progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (reals + 100 + 4 * 8, reals + 100 + 4 * 8)


def test_real_images_are_looked_at_once(measure: Callable[..., EvalReport], tmp_path: Path) -> None:
    measure()
    (kept,) = (tmp_path / "features").iterdir()
    before = kept.stat().st_mtime_ns
    measure()
    assert kept.stat().st_mtime_ns == before


def test_a_conditional_generator_gets_the_labels_of_real_images(
    measure: Callable[..., EvalReport], make_waves: Callable[..., torch.nn.Module]
) -> None:
    always_second = np.eye(2, dtype=np.float32)[np.ones(120, dtype=int)]
    plain, labelled = measure(), measure(make_waves(c_dim=2), labels=always_second)
    assert plain.metrics[0].value != labelled.metrics[0].value


def test_a_generator_whose_images_are_not_finite_is_refused(measure: Callable[..., EvalReport]) -> None:
    class Broken(torch.nn.Module):
        z_dim = 4

        def forward(self, z: torch.Tensor, c: None, truncation_psi: float) -> torch.Tensor:
            return torch.full((len(z), 3, 32, 32), float("inf"))

    with pytest.raises(EvaluationError, match="not finite, so nothing can be measured"):
        measure(Broken())


def test_reference_images_of_another_size_are_refused(measure: Callable[..., EvalReport], blobs: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match=r"uint8 \[120, 16, 16, 3\], but the checkpoint makes images of 32 x 32"):
        measure(real=blobs[:, ::2, ::2])


def test_a_single_image_is_refused(measure: Callable[..., EvalReport], blobs: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match="there are 1 real and 100 generated"):
        measure(real=blobs[:1])
