"""Our numbers against the published implementation's, for every golden file. Run from the project's root:

    python benchmarks/golden_parity.py [folder with the golden data]

Prints a line per file and quantity (its bound, the worst error found over all cases of the file) and writes the same to
benchmarks/results/golden-parity.txt. Exit status 1 if a bound is broken. To compare another file, write a function that
yields `Error`s and give it a line of PARITY; a file without a line is named at the end.

Errors are ||ours - theirs|| / ||theirs|| unless the line says otherwise. Bounds: what is computed in float32 agrees to
1e-5, and gradients to 1e-4; where ours is float64 too, 1e-10, or 1e-6 where the published code rounds on its way.
"""

from __future__ import annotations

import fnmatch
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests", "tests/gan"))

# Of the tests: slopes that may go either way, and the published loop, written out.
from slopes import nearest_gradient, recorded_activations
from trajectory import Trajectory

from dr_platform import files
from dr_platform.evaluation import equivariance as eq
from dr_platform.evaluation import metrics
from dr_platform.gan import (
    Discriminator,
    Generator,
    blur,
    blur_sigma,
    discriminator_fake_loss,
    discriminator_from_state,
    discriminator_real_loss,
    generator_from_state,
    generator_loss,
    r1_penalty,
)
from dr_platform.gan.augmentation import BGC, Augmentation, augment, draws_at
from dr_platform.gan.discriminator import ConvLayer, minibatch_std
from dr_platform.gan.filters import binomial_filter, kaiser_attenuation, kaiser_beta, lowpass_filter
from dr_platform.gan.generator import FourierInput, MappingNetwork
from dr_platform.gan.ops import FullyConnected, filtered_lrelu, leaky_clamp, modulated_conv2d, resample
from dr_platform.gan.schedule import layer_schedule
from dr_platform.gan.warp import filter_bank, warp, wavelet_filter

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/golden-parity.txt"

FORWARD = 1e-5  # float32
DOUBLE = 1e-10
ROUNDED = 1e-6  # float64 against numbers that were rounded to float32 on their way
GRADIENT = 1e-4
SMALL_TENSOR = 1e-3  # a gradient of tiny norm, taken alone, is mostly rounding
EXACT = 0.0
EQ_BATCHES = 4  # of the 16 of a network of 64 px, each of which takes seconds


class Error(NamedTuple):
    """How far apart one quantity is; a bound of None makes it a remark."""

    quantity: str
    bound: float | None
    value: float = 0.0


class Golden:
    """One golden file: `case["key"]` as a tensor, `case.meta` its options."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.table: dict[str, Any] = {}
        if path.suffix == ".json":
            self.table = json.loads(path.read_text())
            return
        with np.load(path, allow_pickle=False) as archive:
            self.arrays = {key: archive[key] for key in archive.files if key != "meta"}
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.tensor(self.arrays[key])

    def get(self, key: str) -> Tensor | None:
        """As `case[key]`, or None if there is no such key."""
        return torch.tensor(self.arrays[key]) if key in self.arrays else None

    def double(self, key: str) -> Tensor:
        """An input in float64 that gradients are taken by."""
        return self[key].double().requires_grad_()

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose keys begin with `prefix`, by the rest of the key."""
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def fill(self, layer: nn.Module, prefix: str) -> nn.Module:
        """`layer` with the weights stored under `prefix`."""
        layer.load_state_dict({key: torch.tensor(value) for key, value in self.below(prefix).items()})
        return layer

    def network(self, name: str) -> Golden:
        """The file of a network that this one is about."""
        return Golden(self.folder / name)

    def generator(self) -> Generator:
        """The published generator in this file."""
        return generator_from_state(self.meta["cfg"], self.below("sd/"))

    def discriminator(self) -> Discriminator:
        """The published discriminator in this file."""
        return discriminator_from_state(self.meta["cfg"], self.below("sd/"))


Errors = Iterator[Error]


def relative(ours: Tensor | np.ndarray | float, theirs: Tensor | np.ndarray | float) -> float:
    """||ours - theirs|| / ||theirs||; of zeros, the norm of ours."""
    found, expected = (torch.as_tensor(side, dtype=torch.float64).detach() for side in (ours, theirs))
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).norm() / (expected.norm() or 1))


def gradients(y: Tensor, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of (y · dy) by the inputs; zeros where there is none, as the golden files have it."""
    found = torch.autograd.grad((y * dy).sum(), inputs, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def together(ours: dict[str, Tensor], theirs: dict[str, np.ndarray]) -> Errors:
    """Errors of gradients by all parameters: of all together, and of the worst of them alone."""
    whole = [torch.cat([torch.as_tensor(side[key]).flatten() for key in theirs]) for side in (ours, theirs)]
    yield Error("parameter gradients", GRADIENT, relative(*whole))
    yield Error("... worst tensor", SMALL_TENSOR, max(relative(ours[key], value) for key, value in theirs.items()))


# -- Filters and tables ------------------------------------------------------------------------------------------------


def filters(case: Golden) -> Errors:
    for index, design in enumerate(case.meta["cases"]):
        ours = lowpass_filter(design["numtaps"], design["cutoff"], design["width"], design["fs"], design["radial"])
        yield Error("taps", ROUNDED, relative(torch.ones(1) if ours is None else ours, case[f"{index:02d}/filter"]))
        if f"{index:02d}/kaiser_beta" in case:
            attenuation = kaiser_attenuation(design["numtaps"], design["width"], design["fs"])
            yield Error("Kaiser attenuation", DOUBLE, relative(attenuation, case[f"{index:02d}/kaiser_atten"]))
            yield Error("Kaiser beta", DOUBLE, relative(kaiser_beta(attenuation), case[f"{index:02d}/kaiser_beta"]))


def published_arguments(entry: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for an entry of layer_tables.json."""
    radial = {"conv_kernel": 1, "use_radial_filters": True} if entry["config"] == "stylegan3-r" else {}
    return {key: entry[key] for key in ("img_resolution", "channel_base", "channel_max")} | radial


def layer_tables(case: Golden) -> Errors:
    for entry in case.table.values():
        schedule = layer_schedule(**published_arguments(entry))
        first, *layers = entry["layers"]
        numbers = [(entry["num_ws"], schedule.num_ws), (first["bandwidth"], schedule.input.bandwidth)]
        counts = [(first["size"], [schedule.input.size] * 2), (first["channels"], schedule.input.channels)]
        for theirs, ours in zip(layers, schedule.layers, strict=True):
            sides = {key: [getattr(ours, key)] * 2 for key in ("in_size", "out_size")}
            sides["padding_lrtb"] = list(ours.padding * 2)
            for key, value in theirs.items():
                if key == "down_radial" and ours.down_taps == 1:
                    continue  # no filter, so nothing to be radial
                mine = sides[key] if key in sides else getattr(ours, key)
                (numbers if isinstance(value, float) else counts).append((value, mine))
        yield Error("frequencies", DOUBLE, max(relative(float(ours), float(theirs)) for theirs, ours in numbers))
        yield Error("entries that differ", EXACT, sum(theirs != ours for theirs, ours in counts))


def state_dict_shapes(case: Golden) -> Errors:
    tables = json.loads((case.folder / "layer_tables.json").read_text())
    for name, entry in case.table.items():
        kind, rest = name[0], name[2:]
        with torch.device("meta"):
            if kind == "G":
                network: nn.Module = Generator(**published_arguments(tables[rest]))
            else:
                resolution, base, labels = rest.split("_")
                network = Discriminator(
                    c_dim=int(labels[1:]),
                    img_resolution=int(resolution),
                    channel_base=int(base.removeprefix("cbase")),
                )
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
        different = sum(ours.get(key) != entry["shapes"].get(key) for key in {*ours, *entry["shapes"]})
        yield Error("names or shapes that differ", EXACT, different)


# -- Operators ---------------------------------------------------------------------------------------------------------


def ops_upfirdn2d(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        if not name.isdigit():
            continue
        x, filter = case.double(f"{name}/x"), case.get(f"{name}/f")
        if filter is not None and options["flip_filter"]:
            filter = filter.flip(tuple(range(filter.ndim)))
        up, down = (tuple(v) if isinstance(v, list) else v for v in (options["up"], options["down"]))
        y = resample(x, filter, up, down, options["padding"], options["gain"])
        # The published code rounds filter times gain to float32, which shows where the gain is no power of two.
        rounds = options["gain"] not in (1, 4)
        note, bound = (" (gain 2.5)", ROUNDED) if rounds else ("", DOUBLE)
        yield Error(f"output{note}", bound, relative(y, case[f"{name}/y"]))
        (dx,) = gradients(y, case[f"{name}/dy"], x)
        yield Error(f"gradient{note}", bound, relative(dx, case[f"{name}/dx"]))
    for name in ("1331", "8taps_auto_separable"):
        ours = binomial_filter(case.meta["cases"][f"setup_filter/{name}"]["f"])
        yield Error("prepared filters", ROUNDED, relative(ours, case[f"setup_filter/{name}"]))


def ops_filtered_lrelu(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        inputs = [case.double(f"{name}/{key}") for key in (("x", "b") if options["bias"] else ("x",))]
        y = filtered_lrelu(
            inputs[0],
            case.get(f"{name}/fu"),
            case.get(f"{name}/fd"),
            inputs[1] if options["bias"] else None,
            *(options[key] for key in ("up", "down", "padding", "gain", "slope", "clamp")),
        )
        yield Error("output", DOUBLE, relative(y, case[f"{name}/y"]))
        for key, ours in zip(("dx", "db"), gradients(y, case[f"{name}/dy"], *inputs), strict=False):
            yield Error(f"gradient {key}", DOUBLE, relative(ours, case[f"{name}/{key}"]))


def ops_modconv(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        inputs = [case.double(f"{name}/{key}") for key in "xws"]
        gain = case.get(f"{name}/input_gain")
        gain = None if gain is None else gain.double()
        y = modulated_conv2d(*inputs, options["demodulate"], options["padding"], gain)
        yield Error("output", DOUBLE, relative(y, case[f"{name}/y"]))
        for key, ours in zip(("dx", "dw", "ds"), gradients(y, case[f"{name}/dy"], *inputs), strict=True):
            # Our epsilon of the demodulation is that of the published form only up to 1e-10.
            yield Error(f"gradient {key}", DOUBLE * 10, relative(ours, case[f"{name}/{key}"]))


def ops_bias_act(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        slope = {"linear": 1.0, "relu": 0.0, "lrelu": options["alpha"] or 0.2}[options["act"]]
        gain = options["gain"] or (1.0 if options["act"] == "linear" else math.sqrt(2))
        inputs = [case.double(f"{name}/{key}") for key in (("x", "b") if options["bias"] else ("x",))]
        x = inputs[0]
        if options["bias"]:
            x = x + inputs[1].reshape([-1 if axis == options["dim"] else 1 for axis in range(x.ndim)])
        y = leaky_clamp(x * gain, slope, options["clamp"])
        yield Error("output", DOUBLE, relative(y, case[f"{name}/y"]))
        for key, ours in zip(("dx", "db"), gradients(y, case[f"{name}/dy"], *inputs), strict=False):
            yield Error(f"gradient {key}", DOUBLE, relative(ours, case[f"{name}/{key}"]))


def ops_conv2d_resample(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        if options["up"] > 1:
            yield Error("upsampling: left out, no network here uses it", None)
            continue
        kernel = options["k"]
        layer = ConvLayer(options["cin"], options["cout"], kernel, lrelu=False, down=options["down"]).double()
        layer.resample_filter.copy_(case["f"])
        # The layer divides its weight by the root of its fan-in.
        root = math.sqrt(options["cin"] * kernel**2)
        layer.weight = nn.Parameter(case[f"{name}/w"].double() * root)
        x = case.double(f"{name}/x")
        y = layer(x)
        dx, dw = gradients(y, case[f"{name}/dy"], x, layer.weight)
        yield Error("output", DOUBLE, relative(y, case[f"{name}/y"]))
        yield Error("gradient dx", DOUBLE, relative(dx, case[f"{name}/dx"]))
        yield Error("gradient dw", DOUBLE, relative(dw * root, case[f"{name}/dw"]))


def ops_layers(case: Golden) -> Errors:
    root = math.sqrt(0.5)
    layers: dict[str, tuple[nn.Module, dict[str, float]]] = {
        "fc_lrelu": (FullyConnected(7, 5, lrelu=True, lr_multiplier=0.01), {}),
        "fc_linear_bias1": (FullyConnected(6, 4, bias_init=1.0), {}),
        "conv_lrelu_down_gain": (ConvLayer(3, 5, 3, down=2, conv_clamp=0.6), {"gain": root}),
        "conv_skip": (ConvLayer(3, 5, 1, lrelu=False, down=2), {"gain": root}),
        "fromrgb": (ConvLayer(3, 6, 1), {}),
    }
    for name in case.meta["cases"]:
        layer, options = layers[name]
        y = case.fill(layer, f"{name}/sd/")(case[f"{name}/x"], **options)
        kind = "fully connected" if name.startswith("fc") else "convolution"
        yield Error(f"output, {kind}", FORWARD, relative(y, case[f"{name}/y"]))


def ops_mbstd(case: Golden) -> Errors:
    for name, options in case.meta["cases"].items():
        x = case.double(f"{name}/x")
        y = minibatch_std(x, options["group"], options["F"])
        yield Error("output", DOUBLE, relative(y, case[f"{name}/y"]))
        yield Error("gradient", DOUBLE, relative(gradients(y, case[f"{name}/dy"], x)[0], case[f"{name}/dx"]))


# -- Networks ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mapping_input(case: Golden) -> Errors:
    for name in ("map_uncond", "map_cond"):
        mapping = case.fill(MappingNetwork(**{"c_dim": 0, **case.meta[name]}), f"{name}/sd/")
        z, c = case[f"{name}/z"], case[f"{name}/c"]
        for suffix, psi, cutoff in (("", 1.0, None), ("_psi0.7", 0.7, None), ("_psi-0.5_cut2", -0.5, 2)):
            yield Error("ws", FORWARD, relative(mapping(z, c, psi, cutoff), case[f"{name}/ws{suffix}"]))
        mapping(z, c, update_emas=True)
        yield Error("w_avg after an update", FORWARD, relative(mapping.w_avg, case[f"{name}/w_avg_after"]))
    for name in ("in36", "in_rect"):
        options = case.meta[name]
        size = options["size"] if isinstance(options["size"], int) else tuple(options["size"])
        layer = FourierInput(
            options["w_dim"], options["channels"], size, options["sampling_rate"], options["bandwidth"]
        )
        case.fill(layer, f"{name}/sd/")
        yield Error("Fourier features", FORWARD, relative(layer(case[f"{name}/w"]), case[f"{name}/y"]))
        layer.transform.copy_(case[f"{name}/transform"])
        yield Error("Fourier features", FORWARD, relative(layer(case[f"{name}/w"]), case[f"{name}/y_transform"]))
    torch.manual_seed(1)
    radii = FourierInput(4, 4096, 36, 16, 2.0).freqs.norm(dim=1).double()
    quantiles = radii.quantile(torch.linspace(0, 1, 21, dtype=torch.float64))
    # Both are samples of 4096: a quantile's standard error is at most 0.5 / sqrt(4096) / density, the density r / 2.
    apart = (quantiles - case["freq_init/radius_quantiles_0_to_1_step_0.05"])[1:].abs().max()
    yield Error("initial frequencies, quantiles (absolute)", 0.1, float(apart))


def net_g(case: Golden) -> Errors:
    for dtype, prefix, bound in ((torch.float32, "", FORWARD), (torch.float64, "f64/", DOUBLE)):
        G, note = case.generator().to(dtype), " in float64" if prefix else ""
        z, c = case["in/z"], case["in/c"]
        with torch.no_grad():
            for suffix, psi, cutoff in (("", 1.0, None), ("_psi0.7", 0.7, None), ("_psi0.5_cut3", 0.5, 3)):
                if f"{prefix}ws{suffix}" in case:
                    ours = G.mapping(z, c, psi, cutoff)
                    yield Error(f"ws{note}", bound, relative(ours, case[f"{prefix}ws{suffix}"]))
                if f"{prefix}img{suffix}" in case:
                    yield Error(f"images{note}", bound, relative(G(z, c, psi, cutoff), case[f"{prefix}img{suffix}"]))
            for index, transform in enumerate(case["in/transforms"]):
                if f"{prefix}img_transform{index}" in case:
                    G.synthesis.input.transform.copy_(transform)
                    theirs = case[f"{prefix}img_transform{index}"]
                    yield Error(f"images{note}, input moved", bound, relative(G(z[:1], c[:1]), theirs))
    yield from _generator_mixed(case)
    yield from _generator_gradients(case)


@torch.no_grad()
def _generator_mixed(case: Golden) -> Errors:
    G = case.generator()
    ws = case["ws"][:1]
    ws[:, G.num_ws // 2 :] = case["ws"][1, G.num_ws // 2 :]
    yield Error("images, styles mixed", FORWARD, relative(G.synthesis(ws), case["img_mix01_half"]))
    images = G(case["in/z"], case["in/c"], update_emas=True)
    yield Error("images, averages moved", FORWARD, relative(images, case["emaupd/img"]))
    state = G.state_dict()
    for key, value in case.below("emaupd/").items():
        if key != "img":
            yield Error("averages after an update", FORWARD, relative(state[key], value))


def _generator_gradients(case: Golden) -> Errors:
    G, z = case.generator(), case["in/z"].requires_grad_()
    ws = G.mapping(z, case["in/c"])
    with recorded_activations() as activations:
        images = G.synthesis(ws)
    leaves = {"dz": z, "dws": ws, **{f"dparam/{key}": value for key, value in G.named_parameters()}}
    theirs = torch.cat([case[f"gradtest/{key}"].double().flatten() for key in leaves])

    def gradient() -> Tensor:
        found = torch.autograd.grad(images, list(leaves.values()), case["in/noise_img"], retain_graph=True)
        return torch.cat([part.double().flatten() for part in found])

    yield Error(
        f"gradients together as computed, before slopes at zero are switched: {relative(gradient(), theirs):.1e}", None
    )
    ours, heights = nearest_gradient(gradient, activations, theirs)
    yield Error("gradients together", GRADIENT, relative(ours, theirs))
    sizes = [value.numel() for value in leaves.values()]
    for mine, reference in zip(ours.split(sizes), theirs.split(sizes), strict=True):
        yield Error("gradient of one tensor", GRADIENT, relative(mine, reference))
    yield Error(f"slopes switched: {len(heights)}, at most {max(heights, default=0.0):.1e} rms from zero", None)


def net_d(case: Golden) -> Errors:
    for dtype, prefix, bound in ((torch.float32, "", FORWARD), (torch.float64, "f64/", DOUBLE)):
        D, note = case.discriminator().to(dtype), " in float64" if prefix else ""
        images = case["in/img"].to(dtype).requires_grad_()
        logits = D(images, case["in/c"])
        penalty = r1_penalty(logits, images)
        yield Error(f"logits{note}", bound, relative(logits, case[f"{prefix}logits"]))
        yield Error(f"R1 penalty{note}", bound, relative(penalty, case[f"{prefix}r1/penalty"]))
        if prefix:
            continue
        parameters = dict(D.named_parameters())
        (by_images,) = gradients(logits, torch.ones_like(logits), images)
        yield Error("gradient by the images", GRADIENT, relative(by_images, case["r1/dimg"]))
        for what, value, key in (("R1", penalty.mean(), "r1/dparam/"), ("logits", logits.mean(), "gradtest/dparam/")):
            by_parameters = gradients(value, torch.ones([]), *parameters.values())
            for error in together(dict(zip(parameters, by_parameters, strict=True)), case.below(key)):
                yield error._replace(quantity=f"{what}, {error.quantity}")


# -- Losses ------------------------------------------------------------------------------------------------------------


def loss(case: Golden) -> Errors:
    for dtype, prefix in ((torch.float32, ""), (torch.float64, "f64/")):
        note, forward = (" in float64", DOUBLE) if prefix else ("", FORWARD)
        for phase in ("Gmain", "Dmain", "Dreg"):
            G = case.network(case.meta["G"]).generator().to(dtype)
            D = case.network(case.meta["D"]).discriminator().to(dtype)
            value, found = _phase(phase, case, G, D, dtype)
            for key, ours in found.items():
                theirs = case[f"{prefix}{phase}/stat/Loss/{key}"]
                yield Error(f"{phase}: losses and logits{note}", forward, relative(ours.reshape(theirs.shape), theirs))
            parameters = dict((G if phase == "Gmain" else D).named_parameters())
            by_parameters = gradients(value, torch.ones([], dtype=dtype), *parameters.values())
            ours_by_name = dict(zip(parameters, by_parameters, strict=True))
            norms = torch.stack([ours_by_name[str(key)].norm() for key in case.arrays[f"{phase}/grad_norm_names"]])
            bound = DOUBLE * 10 if prefix else GRADIENT
            yield Error(f"{phase}: gradient norms{note}", bound, relative(norms, case[f"{prefix}{phase}/grad_norm"]))
            if not prefix:
                for error in together(ours_by_name, case.below(f"{phase}/grad/")):
                    yield error._replace(quantity=f"{phase}: {error.quantity}")
            if phase == "Dmain":
                state = G.state_dict()
                for key, average in case.below(f"{prefix}after/G/").items():
                    yield Error(f"averages after Dmain{note}", forward, relative(state[key], average))
    if "blur/real_img_blurred" in case:
        blurred = blur(case["in/real_img"], case.meta["blur_sigma"])
        yield Error("blurred images", FORWARD, relative(blurred, case["blur/real_img_blurred"]))


def _phase(
    phase: str, case: Golden, G: Generator, D: Discriminator, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of a phase with its interval, and what the published loop reports of it, per sample."""
    options = case.meta["loss_kwargs"]
    sigma = blur_sigma(
        case.meta["cur_nimg"], options.get("blur_init_sigma", 0), options.get("blur_fade_kimg", 0) * 1000
    )
    z, c = case["in/gen_z"].to(dtype), case["in/gen_c"].to(dtype)
    real, real_c = case["in/real_img"].to(dtype).requires_grad_(), case["in/real_c"].to(dtype)
    if phase == "Gmain":
        logits = D(blur(G(z, c), sigma), c)
        losses = generator_loss(logits)
        return losses.mean(), {"scores/fake": logits, "G/loss": losses}
    if phase == "Dmain":
        with torch.no_grad():
            fake = G(z, c, update_emas=True)
        fake_logits, real_logits = D(blur(fake, sigma), c), D(blur(real, sigma), real_c)
        losses = discriminator_fake_loss(fake_logits) + discriminator_real_loss(real_logits)
        return losses.mean(), {"scores/fake": fake_logits, "scores/real": real_logits, "D/loss": losses}
    logits = D(blur(real, sigma), real_c)
    penalty = r1_penalty(logits, real)
    weighted = penalty * (options["r1_gamma"] / 2)
    shown = {"scores/real": logits, "r1_penalty": penalty, "D/reg": weighted}
    return weighted.mean() * case.meta["gains"]["Dreg"], shown


# -- Metrics -----------------------------------------------------------------------------------------------------------


def eq_operators(case: Golden) -> Errors:
    images = case["x"]
    kinds = {"int": eq.integer_translation, "frac": eq.fractional_translation}
    turns = {"rot": (eq.rotation, 4, 1), "pseudo": (eq.pseudo_rotation, 1, -1)}
    for name, options in case.meta["cases"].items():
        kind = name.rstrip("0123456789")
        if kind in kinds:
            moved, mask = kinds[kind](images, options["tx"], options["ty"])
        else:
            operator, up, sign = turns[kind]
            moved, mask = operator(images, options["angle"])
            taps = eq.band_limiting_filter(eq.rotation_matrix(sign * options["angle"]), up)
            yield Error("filters", FORWARD, relative(taps, case[f"filter_{name[:-1]}{name[-1]}_up{up}"]))
        yield Error("moved images", FORWARD, relative(moved, case[f"{name}/y"]))
        yield Error("pixels of masks that differ", EXACT, int((mask != case[f"{name}/mask"]).sum()))


def equivariance(case: Golden) -> Errors:
    G = case.network(case.meta["G"]).generator()
    labelled = case["c"].shape[2] > 0
    moves = [
        eq.Transforms((float(t[0]), float(t[1])), (float(f[0]), float(f[1])), float(angle))
        for t, f, angle in zip(case["t_int"], case["t_frac"], case["angle_rad"], strict=True)
    ]
    count = len(moves) if G.img_resolution <= 32 else EQ_BATCHES
    labels = case["c"] if labelled else [None] * len(moves)
    errors = eq.equivariance_errors(G, list(zip(case["z"], labels, moves, strict=True))[:count])
    published = case.arrays["batch_sums_se_mask_int_frac_rot"][:count].reshape(errors.shape)
    yield Error("entries of masks that differ", EXACT, int((errors[..., 1] != published[..., 1]).sum()))
    for metric in range(3):
        ours, theirs = eq.decibels(errors[:, metric])[0], eq.decibels(published[:, metric])[0]
        # Above 90 dB the error is float32 rounding itself, which no two implementations share.
        note, bound = (", 90 dB and more", 0.5) if theirs >= 90 else ("", 0.01)
        yield Error(f"PSNR{note}, {count} of {len(moves)} batches (dB)", bound, abs(ours - theirs))


def metrics_math(case: Golden) -> Errors:
    moments = [case.arrays[key] for key in ("real_mean", "real_cov", "gen_mean", "gen_cov")]
    yield Error("Fréchet distance", 1e-9, relative(metrics.frechet_distance(*moments), case["fid"]))
    real, fake = (case.arrays[key].astype(np.float64) for key in ("real_features", "gen_features"))
    subsets = zip(case.arrays["kid_subset_idx_real"], case.arrays["kid_subset_idx_gen"], strict=True)
    ours = float(np.mean([metrics.mmd2_jackknife(real[i], fake[j])[0] for i, j in subsets]))
    yield Error("KID on the published subsets (sums there in float32)", FORWARD, relative(ours, case["kid"]))
    yield Error("covariances: the published ones divide by n, ours as torch-fidelity's by n - 1", None)
    yield Error("precision, recall, Inception score: left out, not part of the report", None)


def ada(case: Golden) -> Errors:
    """Errors of images are relative to the largest published value."""
    yield Error("filters", ROUNDED, relative(wavelet_filter(), case["Hz_geom"]))
    yield Error("filters", ROUNDED, relative(filter_bank(), case["Hz_fbank"]))
    names = {"xflip": "flip", "xint": "shift_whole", "xfrac": "shift", "imgfilter": "filter"}
    for name, options in case.meta["cases"].items():
        images, theirs = case[options["input"]], case[name]
        wanted = Augmentation(**{names.get(each, each): 1.0 for each in options["enabled"]})
        draws = draws_at(len(images), options["percentile"])
        ours = augment(images, draws, 1.0, wanted, case.get(f"{name}/noise_field"))
        yield Error("images", FORWARD, float((ours - theirs).abs().max() / theirs.abs().max()))
    for percentile in (0.3, 0.5, 0.7):
        images = case["x_rgb"].requires_grad_()
        ours = augment(images, draws_at(len(images), percentile), 1.0, BGC)
        (gradient,) = gradients(ours, case[f"bgc_grad/p{percentile}/dy"], images)
        yield Error("gradient of bgc by the images", GRADIENT, relative(gradient, case[f"bgc_grad/p{percentile}/dx"]))
    moved, theirs = warp(case["random/x"], case["random/geometry_G_inv_pixel"].double()), case["random/geometry_y"]
    yield Error("images under drawn transforms", FORWARD, float((moved - theirs).abs().max() / theirs.abs().max()))


def trajectories(case: Golden) -> Errors:
    """Adam turns gradients near zero into whole steps, so single tensors part early and all of them in the end."""
    for iteration in Trajectory(case).replay():  # type: ignore[arg-type]
        for network in ("G", "D", "G_ema"):
            theirs = case.below(f"after_it{iteration.index:02d}/{network}/")
            ours = iteration.state(network)
            errors = [relative(ours[key], value) for key, value in theirs.items() if value.any()]
            if errors and iteration.index == 0:
                # The published average of w moves by 1 - 0.998 in float32, which is 1.3e-5 off.
                yield Error("every tensor after the first iteration", 2 * FORWARD, max(errors))
            elif errors and iteration.index == 1:
                yield Error("median tensor after the second iteration", FORWARD, float(np.median(errors)))
            elif errors:
                yield Error("median tensor after the last iterations", 1e-2, float(np.median(errors)))


def sampler(_: Golden) -> Errors:
    yield Error("not compared: the order of samples is our own (data/partition.py: each image once per epoch)", None)


PARITY: dict[str, Callable[[Golden], Errors]] = {
    "filters.npz": filters,
    "layer_tables.json": layer_tables,
    "state_dict_shapes.json": state_dict_shapes,
    "ops_upfirdn2d.npz": ops_upfirdn2d,
    "ops_filtered_lrelu.npz": ops_filtered_lrelu,
    "ops_modconv.npz": ops_modconv,
    "ops_bias_act.npz": ops_bias_act,
    "ops_conv2d_resample.npz": ops_conv2d_resample,
    "ops_layers.npz": ops_layers,
    "ops_mbstd.npz": ops_mbstd,
    "mapping_input.npz": mapping_input,
    "net_g_*.npz": net_g,
    "net_d_*.npz": net_d,
    "loss_*.npz": loss,
    "eq_operators.npz": eq_operators,
    "eq_[rt]*.npz": equivariance,
    "metrics_math.npz": metrics_math,
    "ada.npz": ada,
    "train_*.npz": trajectories,
    "sampler.npz": sampler,
}


def worst(errors: Errors) -> list[Error]:
    """The worst error of each quantity; one that is no number is worse than any."""
    found: dict[str, Error] = {}
    for error in errors:
        value = math.inf if math.isnan(error.value) else error.value
        before = found.get(error.quantity)
        if before is None or value > before.value:
            found[error.quantity] = error._replace(value=value)
    return list(found.values())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "../shared/golden/stylegan3"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there. Pass the folder with the golden data.")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".npz", ".json"))
    lines = [f"{'file':28}{'quantity':58}{'bound':>9}{'worst':>10}"]
    broken, compared = 0, set()
    print(lines[0])
    for pattern, compare in PARITY.items():
        for name in fnmatch.filter(names, pattern):
            compared.add(name)
            for error in worst(compare(Golden(folder / name))):
                stem = name.partition(".")[0]
                if error.bound is None:
                    line = f"{stem:28}{error.quantity}"
                else:
                    bad = error.value > error.bound
                    broken += bad
                    line = f"{stem:28}{error.quantity:58}{error.bound:9.0e}{error.value:10.1e}"
                    line += "  BROKEN" if bad else ""
                lines.append(line)
                print(line, flush=True)
    rest = [name for name in names if name not in compared]
    lines.append(f"not compared here: {', '.join(rest) or 'none'}")
    lines.append(f"bounds broken: {broken}")
    print(*lines[-2:], sep="\n")
    files.write_text(RESULT, "\n".join(lines) + "\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
