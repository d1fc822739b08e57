"""Signs of trouble in a training: what the ticks so far say, and what to try.

`diagnose` is a function of the history of ticks alone (vitals.py measures), so that a curve made by hand is judged like
a real one, and a `ticks.jsonl` can be judged again later. Every threshold is a constant below with its reason;
docs/training.md says what to make of a finding. `Monitor` is the loop's side.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", for r_t and where ADA leaks.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_platform.config import TrainConfig
from dr_platform.gan import Generator, find_leaks, leak_statistics
from dr_platform.records import Finding, Severity, Tick
from dr_platform.training.vitals import (
    GRID_PERIODS,
    PREFIX,
    LayerOutputs,
    compare_statistics,
    layer_names,
    layer_statistics,
    reference_statistics,
    sample_statistics,
)

# One odd tick is no sign: the median of three must agree.
_RECENT_TICKS = 3
# Nothing is said of pictures and layers before: the average of G still holds the random start.
_SETTLED_TICKS = 5

# Diversity as a share of real images' (distance, nearest, effective_rank). Sixteen reals against other sixteens spread
# by 10 to 25 % (phantoms at 16 to 256 px), and a healthy start lies above 1 and comes down to it, so the reference is
# the best so far but at most 1. Two modes give nearest 0 and a rank of 1, a fifth of what reals have.
_DIVERSITY_FELL = 0.5
_DIVERSITY_POOR = 0.35
_DIVERSITY_GONE = 0.2

# Robust errors beyond the real images' own; sixteen reals against others reach 2. A pattern of 2 % gives 5 to 30.
_GRID_ERRORS = 5.0
# Share of the full range: a grey level of 255 or two. Fainter patterns are significant but not visible.
_GRID_AMPLITUDE = 0.005
_GRID_AMPLITUDE_PLAIN = 0.03

# ADA leaks its augmentations into the pictures from about 0.8 (Karras et al. 2020, section 2.2).
_P_LEAKS = 0.8
_P_NEAR = 0.95 * _P_LEAKS
_P_TICKS = 8
_R_T_MISSED = 0.1

# Mean of D's signs. 0.6 is where ADA holds it; near 1 no real image is taken for a fake any more.
_SIGNS_APART = 0.9
_SIGNS_TICKS = 5
_LOSS_ROSE = 1.15

# Share of the network's gradient. The weakest layer of a healthy training has 2e-4 to 3e-3 (demo at 16 and 32 px).
_GRADIENT_DEAD = 1e-6
# Root mean square of what varies over that of all; healthy layers have about 0.7.
_CONTRAST_DEAD = 0.01
# Mean square of a layer's input, about 1 where filters and gains keep the scale. 64 is a quarter of the usual clamp.
_MAGNITUDE_LEAST = 1e-4
_MAGNITUDE_MOST = 64.0**2
_CLAMPED = 0.01
_CLAMPED_MUCH = 0.2

# At chance G's loss is log 2 and D's 2 log 2; healthy trainings stay within 4 and 2 after their first images.
_LOSS_DIVERGED = {"loss/generator": 10.0, "loss/discriminator": 5.0}
_LOSS_LOST = 3.0  # times that
# A tick's mean over 1,000 images scatters by about 0.03; means that agree to this are of constant logits.
_LOSS_FLAT = 1e-4
_FLAT_TICKS = 5

# Share of the usual speed. Other users of a machine take a third now and then, but not for three ticks on end.
_SPEED_COLLAPSED = 0.5
_SPEED_TICKS = 20

# Leaks are looked for from this p on, in this many fakes a tick; those of four ticks together are 256, at which every
# published transform is found that shows in half of the fakes.
LEAKS_FROM_P = 0.1
LEAK_FAKES = 64
LEAK_RESOLUTION = 32  # pixels, the least at which shapes can be measured
_LEAK_TICKS = 4
_LEAK_REALS = 512
LEAK = f"{PREFIX}leak_"

_RANKS: dict[Severity, int] = {"notice": 0, "warning": 1, "critical": 2}


def diagnose(history: Sequence[Tick], config: TrainConfig, layers: Sequence[str] = ()) -> list[Finding]:
    """What is wrong at the last tick of `history`, worst first; empty for a healthy training.

    layers: `layer_names` of the generator, to name a layer instead of counting it. A tick without some scalar is not
    judged by it.
    """
    if not history:
        return []
    # Causes before effects: of equals, the first is what a stop is blamed on.
    found = [
        _not_finite(history),
        _dead_layer(history, layers),
        _exploding_layer(history, layers),
        _losses_flat(history),
        _losses_diverging(history, config),
        _saturated_augmentation(history, config),
        _leaking_augmentation(history, config),
        _overfit(history, config),
        _mode_collapse(history, config),
        _grid_pattern(history),
        _slow(history),
    ]
    return sorted((finding for finding in found if finding), key=lambda finding: -_RANKS[finding.severity])


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The gravest finding, the first of equals; None if there is none."""
    return max(findings, key=lambda finding: _RANKS[finding.severity], default=None)


def news(told: dict[str, Severity], findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a kind that was not told before, or less gravely; `told` then holds them."""
    fresh = [item for item in findings if item.kind not in told or _RANKS[item.severity] > _RANKS[told[item.kind]]]
    told.update({finding.kind: finding.severity for finding in fresh})
    return fresh


def _not_finite(history: Sequence[Tick]) -> Finding | None:
    names = [name for name, value in sorted(history[-1].scalars.items()) if not math.isfinite(value)]
    if not names:
        return None
    return Finding(
        kind="not-finite",
        severity="critical",
        sentence=f"{', '.join(names)} at {history[-1].images_seen} images: not finite.",
        advice=("lower train.lr_generator and train.lr_discriminator", "raise train.gamma"),
    )


def _mode_collapse(history: Sequence[Tick], config: TrainConfig) -> Finding | None:
    found: list[tuple[Severity, str]] = []
    for name, words in (
        ("distance", "mean distance between samples"),
        ("nearest", "distance to the nearest sample"),
        ("effective_rank", "effective rank of the samples"),
    ):
        values = _values(history, PREFIX + name)
        if len(values) < _SETTLED_TICKS:
            continue
        now, best = _median(values[-_RECENT_TICKS:]), min(1.0, max(_running_medians(values)))
        if now < _DIVERSITY_GONE:
            found.append(("critical", f"{words} {now:.2f} of real images' (at least {_DIVERSITY_GONE} needed)"))
        elif now < _DIVERSITY_FELL * best:
            found.append(("warning", f"{words} fell from {best:.2f} to {now:.2f} of real images'"))
        elif now < _DIVERSITY_POOR:
            found.append(("warning", f"{words} {now:.2f} of real images' (at least {_DIVERSITY_POOR} expected)"))
    if not found:
        return None
    severity: Severity = "critical" if any(grade == "critical" for grade, _ in found) else "warning"
    return Finding(
        kind="mode-collapse",
        severity=severity,
        sentence=f"Samples are alike: {'; '.join(words for _, words in found)}.",
        advice=(
            *_more_augmentation(config),
            _more_r1(config),
            "lower train.lr_generator",
            "train on more images: train.subset, prepare.collections",
            "start from a model that has learnt already: transfer.parent",
        ),
    )


def _grid_pattern(history: Sequence[Tick]) -> Finding | None:
    if len(_values(history, f"{PREFIX}grid_amplitude")) < _SETTLED_TICKS:
        return None
    amplitude = _recent(history, f"{PREFIX}grid_amplitude") or 0.0
    errors = {period: _recent(history, f"{PREFIX}grid_{period}") or 0.0 for period in GRID_PERIODS}
    period = max(errors, key=lambda name: errors[name])
    if errors[period] < _GRID_ERRORS or amplitude < _GRID_AMPLITUDE:
        return None
    return Finding(
        kind="grid-pattern",
        severity="warning" if amplitude >= _GRID_AMPLITUDE_PLAIN else "notice",
        sentence=(
            f"Samples show a grid of {period} pixels with {amplitude:.1%} of the full range: {errors[period]:.1f} "
            f"errors beyond real images (at most {_GRID_ERRORS:g})."
        ),
        advice=(
            "look at the sample grid; a pattern of the first images fades by itself",
            "raise train.gamma",
            "look for the same grid in single prepared images, from a sensor or an earlier resize",
        ),
    )


def _dead_layer(history: Sequence[Tick], layers: Sequence[str]) -> Finding | None:
    signs: list[str] = []
    for name, least, words in (
        ("gradient_min", _GRADIENT_DEAD, "has {now:.1e} of G's gradient"),
        ("contrast_min", _CONTRAST_DEAD, "gives a constant: {now:.1e} of its output varies"),
        ("magnitude_min", _MAGNITUDE_LEAST, "receives a mean square of {now:.1e}"),
    ):
        values = _values(history, PREFIX + name)
        # The largest of the last ones: a layer that moves in any of them lives.
        if len(values) >= _SETTLED_TICKS and max(values[-_RECENT_TICKS:]) < least:
            layer = _layer_of(history[-1], name, layers)
            signs.append(f"{layer} {words.format(now=values[-1])} (at least {least:.0e} needed)")
    if not signs:
        return None
    return Finding(
        kind="dead-layer",
        severity="critical",
        sentence=f"A layer of G is dead: {'; '.join(signs)}.",
        advice=("start again with a lower train.lr_generator", "raise train.gamma", "another train.seed"),
    )


def _exploding_layer(history: Sequence[Tick], layers: Sequence[str]) -> Finding | None:
    magnitude = _recent(history, f"{PREFIX}magnitude_max") or 0.0
    clamped = _recent(history, f"{PREFIX}clamped_max") or 0.0
    signs = []
    if magnitude > _MAGNITUDE_MOST:
        layer = _layer_of(history[-1], "magnitude_max", layers)
        signs.append(f"{layer} receives a mean square of {magnitude:.2g} (at most {_MAGNITUDE_MOST:g})")
    if clamped > _CLAMPED:
        layer = _layer_of(history[-1], "clamped_max", layers)
        signs.append(f"{clamped:.0%} of the values of {layer} are at the clamp (at most {_CLAMPED:.0%})")
    if not signs:
        return None
    return Finding(
        kind="exploding-layer",
        severity="critical" if clamped > _CLAMPED_MUCH else "warning",
        sentence=f"Activations of G grow without bound: {'; '.join(signs)}.",
        advice=("lower train.lr_generator", "raise train.gamma"),
    )


def _saturated_augmentation(history: Sequence[Tick], config: TrainConfig) -> Finding | None:
    p = _values(history, "ada/p")[-_P_TICKS:]
    if config.augment_p != "adaptive" or len(p) < _P_TICKS or min(p) < _P_NEAR:
        return None
    r_t = _recent(history, "signs/real")
    missed = r_t is not None and r_t > config.ada_target + _R_T_MISSED
    tail = f", and r_t is still {r_t:.2f} (target {config.ada_target:g})" if missed else ""
    return Finding(
        kind="augmentation-saturated",
        severity="critical" if missed else "warning",
        sentence=(
            f"ADA's p is {p[-1]:.2f} and has been at least {min(p):.2f} for {_P_TICKS} ticks; "
            f"from about {_P_LEAKS} augmentations leak into the samples{tail}."
        ),
        advice=(
            "train on more images: train.subset, prepare.collections",
            "raise train.gamma",
            "a smaller train.discriminator_channel_base, or more train.freeze_discriminator in a transfer",
        ),
    )


def _leaking_augmentation(history: Sequence[Tick], config: TrainConfig) -> Finding | None:
    recent = [
        {name.removeprefix(LEAK): z for name, z in tick.scalars.items() if name.startswith(LEAK)}
        for tick in history[-_RECENT_TICKS:]
    ]
    again = [name for name in recent[-1] if all(name in found for found in recent)]
    if len(recent) < _RECENT_TICKS or not again:
        return None
    clearest = sorted(again, key=lambda name: -recent[-1][name])
    shown = ", ".join(f"{name} (z {recent[-1][name]:.1f})" for name in clearest)
    return Finding(
        kind="augmentation-leaking",
        severity="warning",
        sentence=(
            f"Samples vary more than real images in what augmentation changes, over {_RECENT_TICKS} ticks: {shown}; "
            f"p is {history[-1].scalars.get('ada/p', 0.0):.2f}."
        ),
        advice=(
            f"lower the p that training reaches: a higher train.ada_target, now {config.ada_target:g}, or more images",
            "set train.augment to fundus, whose transforms are mild, or to none",
            "look at the sample grid: a young generator also varies too much, and that passes",
        ),
    )


def _overfit(history: Sequence[Tick], config: TrainConfig) -> Finding | None:
    if min(len(_values(history, name)) for name in ("signs/real", "signs/fake", "loss/generator")) < 2 * _SIGNS_TICKS:
        return None
    real = min(_values(history, "signs/real")[-_SIGNS_TICKS:])
    fake = max(_values(history, "signs/fake")[-_SIGNS_TICKS:])
    losses = _values(history, "loss/generator")
    now, before = _median(losses[-_SIGNS_TICKS:]), _median(losses[-2 * _SIGNS_TICKS : -_SIGNS_TICKS])
    if real < _SIGNS_APART or fake > -_SIGNS_APART or now < _LOSS_ROSE * before:
        return None
    return Finding(
        kind="discriminator-overfit",
        severity="warning",
        sentence=(
            f"D tells all images apart: mean signs at least {real:+.2f} for reals and at most {fake:+.2f} for fakes "
            f"over {_SIGNS_TICKS} ticks (beyond ±{_SIGNS_APART}), while G's loss rose from {before:.2f} to {now:.2f}."
        ),
        advice=(
            *_more_augmentation(config),
            _more_r1(config),
            "train on more images: train.subset, prepare.collections, train.mirror where side does not matter",
            "lower train.lr_discriminator",
            "stop here and take an earlier checkpoint",
        ),
    )


def _losses_diverging(history: Sequence[Tick], config: TrainConfig) -> Finding | None:
    signs, severity = [], "warning"
    for name, most in _LOSS_DIVERGED.items():
        now = _recent(history, name)
        if now is not None and now > most:
            signs.append(f"{name} {now:.1f} (at most {most:g})")
            severity = "critical" if now > _LOSS_LOST * most else severity
    if not signs:
        return None
    return Finding(
        kind="losses-diverging",
        severity="critical" if severity == "critical" else "warning",
        sentence=f"Losses diverge over {_RECENT_TICKS} ticks: {', '.join(signs)}.",
        advice=(
            _more_r1(config),
            f"lower train.lr_generator, now {config.lr_generator:g}, and train.lr_discriminator",
            "a larger train.batch",
        ),
    )


def _more_r1(config: TrainConfig) -> str:
    if config.r1_lambda is not None:
        return f"raise train.r1_lambda, now {config.r1_lambda:g} (2 to 4 times)"
    if config.gamma == 0:
        return "set train.gamma, now 0: 8 at 512 px, a quarter for each halving"
    return f"raise train.gamma, now {config.gamma:g} (2 to 4 times)"


def _more_augmentation(config: TrainConfig) -> tuple[str, ...]:
    if config.augment == "none":
        return ("set train.augment to fundus, so that D has more to look at than it can learn by heart",)
    if config.augment_p == "adaptive" and config.ada_kimg > 100:
        return (f"lower train.ada_kimg, now {config.ada_kimg:g}, so that p follows sooner",)
    return ()


def _losses_flat(history: Sequence[Tick]) -> Finding | None:
    ranges = []
    for name in _LOSS_DIVERGED:
        values = _values(history, name)[-_FLAT_TICKS:]
        if len(values) < _FLAT_TICKS or max(values) - min(values) > _LOSS_FLAT:
            return None
        ranges.append(f"{name} at {values[-1]:.4f}")
    return Finding(
        kind="losses-flat",
        severity="critical",
        sentence=f"Nothing is learnt: {' and '.join(ranges)} for {_FLAT_TICKS} ticks, to within {_LOSS_FLAT:g}.",
        advice=(
            "raise train.lr_generator and train.lr_discriminator if they were lowered",
            "fewer train.freeze_discriminator",
            "look at the prepared images",
        ),
    )


def _slow(history: Sequence[Tick]) -> Finding | None:
    speeds = [tick.images_per_second for tick in history]
    before = speeds[-_SPEED_TICKS - _RECENT_TICKS : -_RECENT_TICKS]
    if len(before) < _RECENT_TICKS:
        return None
    now, usual = _median(speeds[-_RECENT_TICKS:]), _median(before)
    if now >= _SPEED_COLLAPSED * usual:
        return None
    return Finding(
        kind="slow",
        severity="warning",
        sentence=f"{now:.2g} images per second over {_RECENT_TICKS} ticks; {usual:.2g} were usual.",
        advice=(
            "see what else runs on the machine, and whether the GPU is throttled",
            "a smaller site.batch_per_worker if memory is exhausted",
        ),
    )


def _values(history: Sequence[Tick], name: str) -> list[float]:
    return [tick.scalars[name] for tick in history if math.isfinite(tick.scalars.get(name, math.nan))]


def _recent(history: Sequence[Tick], name: str) -> float | None:
    """Median of the last ticks; None before there are enough."""
    values = _values(history[-_RECENT_TICKS:], name)
    return _median(values) if len(values) == _RECENT_TICKS else None


def _running_medians(values: Sequence[float]) -> list[float]:
    return [_median(values[end - _RECENT_TICKS : end]) for end in range(_RECENT_TICKS, len(values) + 1)]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _layer_of(tick: Tick, key: str, layers: Sequence[str]) -> str:
    number = round(tick.scalars.get(f"{PREFIX}{key}_layer", -1))
    return layers[number] if 0 <= number < len(layers) else f"layer {number}"


class Monitor:
    """Rank 0's eye on a training: what the loop hands it, and the findings it adds to a tick."""

    def __init__(self, config: TrainConfig, real: NDArray[np.uint8], grid: int, history: Iterable[Tick] = ()) -> None:
        self._config = config
        self._images, self._grid = real, grid
        self._real: dict[str, float] | None = None  # when first needed: only rank 0 ever looks
        self._history = list(history)
        self._samples: dict[str, float] = {}
        self._real_traces: dict[str, Tensor] | None = None
        self._fake_traces: deque[dict[str, Tensor]] = deque(maxlen=_LEAK_TICKS)
        self._leaks: dict[str, float] = {}
        self._outputs: LayerOutputs | None = None

    def look(self, samples: NDArray[np.uint8], outputs: LayerOutputs) -> None:
        """Take the sample grid of a tick and what its passes showed of the layers."""
        if self._real is None:
            self._real = reference_statistics(self._images, self._grid)
        self._samples = compare_statistics(sample_statistics(samples), self._real)
        self._outputs = outputs

    def look_for_leaks(self, fakes: NDArray[np.uint8], transforms: Collection[str]) -> None:
        """Compare generated images with real ones in what the augmentations change; those of some ticks are pooled."""
        if self._real_traces is None:
            self._real_traces = leak_statistics(_in_range(self._images[:_LEAK_REALS]))
        self._fake_traces.append(leak_statistics(_in_range(fakes)))
        pooled = {name: torch.cat([part[name] for part in self._fake_traces]) for name in self._real_traces}
        self._leaks = {LEAK + leak.transform: leak.z for leak in find_leaks(self._real_traces, pooled, transforms)}

    def judge(self, tick: Tick, generator: Generator) -> Tick:
        """The tick with its scalars under `health/` and its findings; generator: with its last gradients."""
        gradients = {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}
        measured = self._samples | layer_statistics(generator, gradients, self._outputs) | self._leaks
        tick = tick.model_copy(update={"scalars": tick.scalars | measured})
        self._history.append(tick)
        findings = diagnose(self._history, self._config, layer_names(generator))
        return tick.model_copy(update={"findings": tuple(findings)})


def _in_range(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def reason_to_stop(findings: Iterable[Finding]) -> str:
    """The message of a training that stops for its worst finding."""
    finding = worst(findings)
    if finding is None:
        return "The training is unhealthy; rank 0 says why."
    return (
        f"The training stopped, with a checkpoint, for {finding.kind}: {finding.sentence} Try: "
        f"{'; '.join(finding.advice)}. train.stop_when_unhealthy: false goes on regardless."
    )
