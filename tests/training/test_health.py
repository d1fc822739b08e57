"""Judging a history of ticks: silence on healthy ones, the right name for planted trouble, a stop if asked for."""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny_training import tiny_config, tiny_images, tiny_job, tiny_state

from dr_platform import checkpoint
from dr_platform.config import Params, TrainConfig, load_params
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.data.phantom import phantom
from dr_platform.errors import TrainingError
from dr_platform.gan.augmentation import BGC, Augmentation, augment, draw
from dr_platform.records import Finding, Tick
from dr_platform.sampling import sample_images
from dr_platform.training import health, loop
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.report import DirectoryReporter, SilentReporter, read_ticks
from dr_platform.training.state import new_state
from dr_platform.training.step import Players
from dr_platform.training.vitals import layer_names, watching

CONFIG = tiny_config()
LAYERS = ["mapping.fc0", "synthesis.input", "synthesis.L0_36_8", "synthesis.L1_36_8"]
# 16 px, 64 phantoms, the demo's networks, ticks of 200 images: `loop.train` on one core.
REAL_CURVE = Path(__file__).parent / "healthy_ticks.jsonl"

Curve = dict[str, float]
Change = Callable[[int, Curve], Curve]


def healthy(count: int, seed: int = 0) -> list[Curve]:
    """Scalars of a training as they come and go: slow trends, and noise like that of the real curve below or more."""
    rng = np.random.default_rng(seed)
    curves = []
    for index in range(count):
        done = index / max(count - 1, 1)
        noise = rng.standard_normal(16)
        start = math.exp(-8 * done)  # a random network's colours are further apart than photographs
        curves.append(
            {
                "loss/generator": 1.6 + 0.6 * start + 0.25 * noise[0],
                "loss/discriminator": max(0.2, 1.0 - 0.3 * done + 0.15 * noise[1]),
                "signs/real": float(np.clip(0.5 + 0.25 * done + 0.12 * noise[2], -1, 1)),
                "signs/fake": float(np.clip(-0.5 - 0.2 * done + 0.12 * noise[3], -1, 1)),
                "ada/p": max(0.0, 0.5 * done + 0.02 * noise[4]),
                "health/distance": max(0.0, 0.85 + 0.6 * start + 0.06 * noise[6]),
                "health/nearest": max(0.0, 0.85 + 0.7 * start + 0.10 * noise[7]),
                "health/effective_rank": max(0.0, 0.9 + 0.4 * start + 0.10 * noise[8]),
                "health/grid_2": 1.2 * noise[9],
                "health/grid_4": 1.2 * noise[10],
                "health/grid_8": 1.2 * noise[11],
                "health/grid_amplitude": 0.002 * abs(noise[12]),
                "health/gradient_min": 1e-3 * math.exp(0.7 * noise[13]),
                "health/gradient_min_layer": 0.0,
                "health/contrast_min": 0.7 + 0.03 * noise[14],
                "health/contrast_min_layer": 2.0,
                "health/magnitude_min": 0.8,
                "health/magnitude_max": 1.4 + done,
                "health/magnitude_max_layer": 3.0,
                "health/clamped_max": 0.0,
                "health/clamped_max_layer": 2.0,
            }
        )
    return curves


def ticks(curves: list[Curve], speeds: list[float] | None = None) -> list[Tick]:
    return [
        Tick(
            step=100 * (index + 1), images_seen=800 * (index + 1), images_total=800 * len(curves), seconds=10.0,
            images_per_second=80.0 if speeds is None else speeds[index], eta_seconds=0.0, memory_gib=1.0,
            scalars=scalars, samples=None, checkpoint=False,
        )
        for index, scalars in enumerate(curves)
    ]  # fmt: skip


def judged(change: Change, count: int = 30, ill_for: int = 10) -> list[Finding]:
    """The findings where `change` was made to the last `ill_for` ticks of a healthy training."""
    curves = healthy(count)
    ill = [change(index, dict(curves[count - ill_for + index])) for index in range(ill_for)]
    return health.diagnose(ticks(curves[: count - ill_for] + ill), CONFIG, LAYERS)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_healthy_noise_raises_no_alarm():
    """100 trainings of 60 ticks, each judged after each tick: 6,000 judgements, none of them a finding."""
    alarms = []
    for seed in range(100):
        speeds = list(80 * np.exp(0.15 * np.random.default_rng(seed).standard_normal(60)))
        history = ticks(healthy(60, seed), speeds)
        for end in range(1, len(history) + 1):
            alarms += health.diagnose(history[:end], CONFIG, LAYERS)
    assert alarms == []


def test_a_real_short_training_raises_no_alarm():
    history = [Tick.model_validate_json(line) for line in REAL_CURVE.read_text().splitlines()]
    assert len(history) >= 40
    assert all("health/distance" in tick.scalars for tick in history)
    assert [health.diagnose(history[:end], CONFIG) for end in range(len(history) + 1)] == [[]] * (len(history) + 1)


def test_samples_of_one_or_two_modes_are_a_collapse():
    for modes in ({"distance": 0.0, "nearest": 0.0, "effective_rank": 0.0}, {"nearest": 0.0, "effective_rank": 0.19}):
        found = only(judged(lambda _, c, m=modes: c | {f"health/{name}": value for name, value in m.items()}))
        assert (found.kind, found.severity) == ("mode-collapse", "critical")
        assert "0.00 of real images'" in found.sentence


def test_diversity_that_halves_is_a_warning_with_both_numbers():
    found = only(judged(lambda _, c: c | {"health/distance": 0.38}))
    assert (found.kind, found.severity) == ("mode-collapse", "warning")
    assert re.search(r"mean distance between samples fell from (1.00|0.\d\d) to 0.38 of real", found.sentence)


def test_diversity_that_comes_down_from_above_the_reals_is_healthy():
    assert judged(lambda index, c: c | {"health/nearest": 0.8}, count=40) == []


def test_one_odd_tick_is_no_sign():
    odd = {"health/nearest": 0.0, "health/grid_2": 30.0, "health/grid_amplitude": 0.1, "loss/generator": 50.0}
    assert judged(lambda index, c: c | odd if index == 9 else c) == []


@pytest.mark.parametrize(("amplitude", "severity"), [(0.01, "notice"), (0.05, "warning")])
def test_a_grid_names_its_period_and_strength(amplitude, severity):
    found = only(judged(lambda _, c: c | {"health/grid_4": 12.0, "health/grid_amplitude": amplitude}))
    assert (found.kind, found.severity) == ("grid-pattern", severity)
    assert f"a grid of 4 pixels with {amplitude:.1%}" in found.sentence
    assert "12.0 errors beyond real images (at most 5)" in found.sentence


def test_a_grid_that_nobody_can_see_is_none():
    assert judged(lambda _, c: c | {"health/grid_2": 12.0, "health/grid_amplitude": 0.002}) == []


@pytest.mark.parametrize(("key", "value"), [("gradient_min", 0.0), ("contrast_min", 1e-4), ("magnitude_min", 1e-9)])
def test_a_dead_layer_is_critical_and_named(key, value):
    dead = {f"health/{key}": value, f"health/{key}_layer": 2.0}
    found = only(judged(lambda _, c: c | dead))
    assert (found.kind, found.severity) == ("dead-layer", "critical")
    assert "synthesis.L0_36_8" in found.sentence


@pytest.mark.parametrize(
    ("scalars", "severity"),
    [
        ({"health/magnitude_max": 1e5}, "warning"),
        ({"health/clamped_max": 0.05}, "warning"),
        ({"health/clamped_max": 0.4}, "critical"),
    ],
)
def test_an_exploding_layer_is_named(scalars, severity):
    found = only(judged(lambda _, c: c | scalars))
    assert (found.kind, found.severity) == ("exploding-layer", severity)
    assert "synthesis." in found.sentence


@pytest.mark.parametrize(("r_t", "severity"), [(0.6, "warning"), (0.85, "critical")])
def test_p_near_its_cap_for_long(r_t, severity):
    found = only(judged(lambda _, c: c | {"ada/p": 0.8, "signs/real": r_t}))
    assert (found.kind, found.severity) == ("augmentation-saturated", severity)
    assert "p is 0.80" in found.sentence
    assert ("r_t is still 0.85 (target 0.6)" in found.sentence) == (severity == "critical")


def test_a_transform_that_leaks_in_three_ticks_is_named():
    leaking = {"ada/p": 0.4, "health/leak_hue": 7.0}
    found = only(judged(lambda index, c: c | leaking | ({"health/leak_shift": 9.0} if index % 2 else {})))
    assert (found.kind, found.severity) == ("augmentation-leaking", "warning")
    assert "hue (z 7.0); p is 0.40" in found.sentence
    assert judged(lambda index, c: c | ({"health/leak_hue": 7.0} if index % 2 else {})) == []


def test_the_monitor_finds_what_leaks_into_images_and_nothing_in_clean_ones():
    photographs = np.stack([phantom(3, index, 64).image for index in range(192)])
    fakes = torch.from_numpy(photographs[64:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    leaking = augment(fakes, draw(128, torch.Generator().manual_seed(0)), 1.0, Augmentation(hue=1))
    pixels = (leaking * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for images, expected in ((pixels, {"hue"}), (photographs[64:], set())):
        monitor = health.Monitor(tiny_config(), photographs[:64], 16)
        transforms = {name for name in BGC.transforms if name not in ("flip", "shift_whole")}
        for part in np.split(images, 2):
            monitor.look_for_leaks(np.ascontiguousarray(part), transforms)
        assert {name.removeprefix(health.LEAK) for name in monitor._leaks} >= expected
        assert bool(monitor._leaks) == bool(expected)


def test_p_near_its_cap_for_a_moment_is_no_sign():
    assert judged(lambda index, c: c | {"ada/p": 0.8} if index > 4 else c) == []


def test_a_discriminator_that_overfits_is_told_by_signs_and_loss():
    def overfit(index: int, curve: Curve) -> Curve:
        return curve | {"signs/real": 0.97, "signs/fake": -0.98, "loss/generator": 2.5 + 0.4 * index}

    found = only(judged(overfit))
    assert (found.kind, found.severity) == ("discriminator-overfit", "warning")
    assert "mean signs at least +0.97 for reals and at most -0.98 for fakes" in found.sentence


def test_signs_apart_while_the_loss_stands_still_are_no_overfit():
    """So it is in the first images of a training, when D learns before G does."""
    assert judged(lambda _, c: c | {"signs/real": 0.97, "signs/fake": -0.98, "loss/generator": 2.0}) == []


@pytest.mark.parametrize(("loss", "severity"), [(14.0, "warning"), (40.0, "critical")])
def test_losses_that_diverge(loss, severity):
    found = only(judged(lambda _, c: c | {"loss/generator": loss}))
    assert (found.kind, found.severity) == ("losses-diverging", severity)
    assert f"loss/generator {loss:.1f} (at most 10)" in found.sentence


def test_losses_of_constant_logits_are_flat():
    found = only(judged(lambda _, c: c | {"loss/generator": math.log(2), "loss/discriminator": 2 * math.log(2)}))
    assert (found.kind, found.severity) == ("losses-flat", "critical")
    assert "loss/generator at 0.6931" in found.sentence


def test_a_loss_that_is_not_finite_is_critical_at_once_and_survives_the_file(tmp_path):
    curves = healthy(3)
    curves[-1]["loss/generator"] = math.nan
    history = ticks(curves)
    found = only(health.diagnose(history, CONFIG))
    assert (found.kind, found.severity) == ("not-finite", "critical")
    reporter = DirectoryReporter(tmp_path)
    reporter.tick(history[-1].model_copy(update={"findings": (found,)}))
    (read,) = read_ticks(tmp_path)
    assert math.isnan(read.scalars["loss/generator"])
    assert read.findings == (found,)


@pytest.mark.parametrize(("speed", "kinds"), [(30.0, ["slow"]), (50.0, [])])
def test_a_speed_that_halves_is_named(speed, kinds):
    found = health.diagnose(ticks(healthy(20), [80.0] * 16 + [speed] * 4), CONFIG)
    assert [item.kind for item in found] == kinds


def test_the_worst_comes_first():
    found = judged(lambda _, c: c | {"health/grid_2": 12.0, "health/grid_amplitude": 0.01, "health/gradient_min": 0.0})
    assert [item.severity for item in found] == ["critical", "notice"]
    assert health.worst(reversed(found)) == found[0]
    assert health.worst([]) is None


def test_a_tick_of_old_has_no_findings_and_is_not_judged_by_what_it_lacks():
    history = ticks([{"loss/generator": 1.5} for _ in range(10)])
    assert Tick.model_validate(history[0].model_dump(exclude={"findings"})).findings == ()
    assert health.diagnose(history, CONFIG) == []
    assert health.diagnose([], CONFIG) == []


def test_every_advice_names_parameters_that_exist():
    source = Path(health.__file__).read_text()
    keys = set(re.findall(r"\b(train|prepare|transfer|site)\.([a-z0-9_]+)", source)) - {("train", "py")}
    assert len(keys) > 10
    for section, key in keys:
        assert key in Params.model_fields[section].annotation.model_fields, (section, key)


@pytest.mark.parametrize(
    ("gamma", "advice"), [(0.5, "raise train.gamma, now 0.5"), (0.0, "set train.gamma, now 0: 8 at")]
)
def test_advice_on_r1_starts_from_the_present_gamma(gamma, advice):
    ill = [curve | {"loss/generator": 20.0} for curve in healthy(5)]
    found = only(health.diagnose(ticks(ill), tiny_config(gamma=gamma)))
    assert found.advice[0].startswith(advice)


def test_findings_are_news_once_and_again_only_when_worse():
    told: dict = {}
    slow = Finding(kind="slow", severity="warning", sentence="", advice=())
    worse = slow.model_copy(update={"severity": "critical"})
    assert health.news(told, [slow]) == [slow]
    assert health.news(told, [slow]) == []
    assert health.news(told, [worse]) == [worse]
    assert health.news(told, [slow]) == []


# -- in the loop ------------------------------------------------------------------------------------------------------


def ill_training(run: Path, config: TrainConfig, reporter: SilentReporter | DirectoryReporter, alone) -> bool:
    """A training whose generator has a constant layer: its large bias learns nothing away within 16 steps."""
    state = tiny_state(config)
    for generator in (state.generator, state.generator_ema):
        generator.synthesis.layers[2].bias.data.fill_(150.0)
    return loop.train(tiny_job(config, run), state, tiny_images(), alone, reporter)


def test_a_critical_finding_ends_the_training_with_a_checkpoint_if_asked(tmp_path, alone):
    config = tiny_config(stop_when_unhealthy=True, kimg=0.256, checkpoint_ticks=100)
    message = r"for dead-layer: A layer of G is dead: synthesis.L2_.*stop_when_unhealthy"
    with pytest.raises(TrainingError, match=message):
        ill_training(tmp_path, config, DirectoryReporter(tmp_path), alone)
    *_, last = read_ticks(tmp_path)
    assert (last.images_seen, last.checkpoint) == (80, True)  # five ticks to settle
    kept = checkpoint.verify(checkpoint.newest(tmp_path / CHECKPOINTS))
    assert (kept.images_seen, kept.complete) == (80, False)


def test_without_being_asked_the_training_goes_on_and_says_so(tmp_path, alone):
    config = tiny_config(kimg=0.128)
    assert ill_training(tmp_path, config, DirectoryReporter(tmp_path), alone)
    told = [[item.kind for item in tick.findings] for tick in read_ticks(tmp_path)]
    assert told[:4] == [[]] * 4
    assert all(kinds[0] == "dead-layer" for kinds in told[4:])


def test_a_resumed_training_remembers_what_it_saw(tmp_path, alone):
    """Findings need five ticks; a training stopped after three finds the trouble two ticks later, not five."""
    short, whole = tiny_config(kimg=0.048), tiny_config(kimg=0.080)
    ill_training(tmp_path, short, DirectoryReporter(tmp_path), alone)
    state = tiny_state(whole)
    _, tensors, counters = checkpoint.read(checkpoint.newest(tmp_path / CHECKPOINTS))
    state.load(tensors, counters)
    loop.train(tiny_job(whole, tmp_path), state, tiny_images(), alone, DirectoryReporter(tmp_path))
    *_, last = read_ticks(tmp_path)
    assert last.findings[0].kind == "dead-layer"


def test_the_stop_is_not_part_of_a_runs_name():
    assert tiny_config(stop_when_unhealthy=True).identity() == tiny_config().identity()
    assert tiny_config(gamma=7).identity() != tiny_config().identity()
    assert set(tiny_config().identity()) == set(TrainConfig.model_fields) - {"stop_when_unhealthy"}


def test_the_layers_a_finding_can_name_are_those_of_the_generator():
    names = layer_names(tiny_state(CONFIG).generator)
    assert len(names) == len(set(names)) == CONFIG.mapping_layers + 1 + CONFIG.num_layers + 1


def test_the_page_on_training_explains_every_finding_and_scalar():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    kinds = set(re.findall(r'kind="([a-z-]+)"', Path(health.__file__).read_text()))
    assert len(kinds) == 11
    assert [kind for kind in kinds if f"`{kind}`" not in page] == []
    scalars = {name for name in healthy(1)[0] if not name.endswith("_layer")}
    assert [name for name in scalars if name not in page and f"`_{name.rpartition('_')[2]}`" not in page] == []


def test_looking_takes_less_than_a_hundredth_of_a_default_tick(alone):
    """The default training at 32 px, whose tick is 125 steps; the fastest of three against the fastest of three."""
    config = load_params(Path(__file__).parents[2]).train
    state = new_state(config, 32, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    images = ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")
    players = Players(state.generator, state.discriminator, alone)
    mine = partition.micro_batches(config.batch, 1, 0, config.mbstd_group, config.batch)
    batches = Batches(config, images, state.generator.num_ws, mine, alone.device)
    past = [Tick.model_validate_json(line) for line in REAL_CURVE.read_text().splitlines()]
    monitor = health.Monitor(config, pixels, 16, past)

    def plain() -> np.ndarray:
        return sample_images(state.generator_ema, range(16), batch=8)

    def watched() -> None:
        with watching(state.generator_ema) as outputs:
            samples = plain()
        monitor.look(samples, outputs)
        monitor.judge(past[-1], state.generator)

    def fastest(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    step = fastest(lambda: loop.take_step(state, players, batches))
    steps_per_tick = config.tick_kimg * 1000 / config.batch
    assert fastest(watched) - fastest(plain) < 0.01 * steps_per_tick * step


def _rank(rank: int, port: int, run: Path, said: dict[int, str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = tiny_config(stop_when_unhealthy=True, kimg=0.256)
    reporter = DirectoryReporter(run) if rank == 0 else SilentReporter()
    try:
        ill_training(run, config, reporter, Group.current(torch.device("cpu")))
    except TrainingError as error:
        said[rank] = str(error)
    dist.destroy_process_group()


def test_every_worker_stops_where_rank_0_finds_a_reason(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        said = manager.dict()
        multiprocessing.spawn(_rank, args=(port, tmp_path, said), nprocs=2)
        assert "for dead-layer" in said[0]
        assert "rank 0 says why" in said[1]
