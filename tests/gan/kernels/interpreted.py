"""Runs the kernel on every case in Triton's interpreter and prints what came out as one JSON object.

A process of its own, because Triton decides at its import whether it interprets, and the process of the tests may have
imported it long before. The tests beside this file set TRITON_INTERPRET=1 and the path, read the numbers and say what
they should be.
"""

from __future__ import annotations

import json
import math
import sys

import torch
from kernel_cases import CASES, LAYERS, Case
from reference_ops import upfirdn
from torch import Tensor

from dr_platform.gan import Generator, Statistics, kernels
from dr_platform.gan.filters import lowpass_filter
from dr_platform.gan.kernels import operators
from dr_platform.gan.ops import LRELU_GAIN, LRELU_SLOPE, filtered_lrelu


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the norm of theirs."""
    theirs = theirs.detach().double()
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Call:
    """A case's inputs, and the parts of the operator in float64."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rate = 32.0 * case.up / 2
        self.up_filter = lowpass_filter(6 * case.up, 2.0, 12.0, rate)
        self.down_filter = lowpass_filter(6 * case.down, 4.0, 12.0, rate, radial=case.radial)
        self.dtype = getattr(torch, case.dtype)
        x = random(case.batch, case.channels, case.side, case.side + 1, seed=0)
        self.x = x.to(self.dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        self.bias = random(case.channels, seed=1).requires_grad_()
        self.scale = random(case.batch, case.channels, seed=2).abs().add(0.5).requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.bias, self.scale]

    def raised(self, x: Tensor) -> Tensor:
        """Before the activation, in float64, gain included."""
        case = self.case
        x = x.double() * self.scale.double()[:, :, None, None] + self.bias.double()[:, None, None]
        up = (case.up, case.up)
        return upfirdn(x, self.up_filter.double(), up=up, padding=case.pad * 2, gain=case.up**2 * LRELU_GAIN)

    def lowered(self, x: Tensor) -> Tensor:
        return upfirdn(x, self.down_filter.double(), down=(self.case.down, self.case.down))

    def kernel(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """y, codes and sums of squares."""
        case = self.case
        return operators.filtered_lrelu(
            self.x if x is None else x,
            self.up_filter,
            self.down_filter,
            self.bias,
            self.scale,
            case.up,
            case.down,
            list(case.pad * 2),
            LRELU_GAIN,
            LRELU_SLOPE,
            case.clamp,
            True,
            True,
        )

    def plain(self, x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        case = self.case
        x = x * scale[:, :, None, None].to(x.dtype)
        filters = (self.up_filter.to(x.dtype), self.down_filter.to(x.dtype))
        return filtered_lrelu(x, *filters, bias, case.up, case.down, case.pad * 2, clamp=case.clamp)


def unpacked(codes: Tensor, channels: int) -> Tensor:
    """[N, C, UH, UW]: 0 positive, 1 negative, 2 clamped."""
    fields = torch.stack([codes >> shift & 3 for shift in (0, 2, 4, 6)], dim=4)
    return fields.flatten(3)[..., :channels].permute(0, 3, 1, 2).long()


def measure(case: Case) -> dict[str, float]:
    call = Call(case)
    y, codes, sums = call.kernel()
    dy = random(*y.shape, seed=3).to(y.dtype)
    gradients = torch.autograd.grad(y, call.leaves, dy)

    raised = call.raised(call.x)
    factor = torch.where(raised > 0, 1.0, LRELU_SLOPE)
    limit = math.inf if case.clamp is None else case.clamp
    theirs = call.lowered((raised * factor).clamp(-limit, limit))
    # How far from the kinks those samples lie that the kernel puts on another piece; the others have the same code.
    code = torch.where((raised * factor).abs() > limit, 2, torch.where(raised > 0, 0, 1))
    ours = unpacked(codes, case.channels)
    distance = torch.minimum(raised.abs(), (raised * factor).abs().sub(limit).abs())
    missed = float(distance.detach()[ours != code].max()) if bool((ours != code).any()) else 0.0
    # At the recorded slopes the operator is linear, so its gradients are exact numbers too.
    slopes = torch.tensor([1.0, LRELU_SLOPE, 0.0], dtype=torch.float64)[ours]
    at_slopes = call.lowered(raised * slopes)
    exact = torch.autograd.grad(at_slopes, call.leaves, dy.double())
    result = {
        "forward": error(y, theirs),
        "missed codes": missed,
        "power": error(sums[:, 0], y.double().square().sum(dim=(2, 3))),
    }
    for name, mine, other in zip(("x", "bias", "scale"), gradients, exact, strict=True):
        result[f"gradient of {name}"] = error(mine, other)
    return result


def layouts() -> dict[str, float]:
    """Planar and channels-last inputs, and dense or strided gradients, must not differ by a bit."""
    call = Call(CASES[0])
    dense, _, _ = call.kernel()
    planar, _, _ = call.kernel(call.x.detach().contiguous())
    (one,) = torch.autograd.grad(dense, call.x, torch.ones_like(dense), retain_graph=True)
    (other,) = torch.autograd.grad(dense, call.x, torch.ones(()).to(dense.dtype).expand(dense.shape))
    return {
        "forward": float((dense - planar).detach().abs().max()),
        "backward": float((one - other).abs().max()),
        "channels last": float(dense.is_contiguous(memory_format=torch.channels_last)),
    }


def cuts() -> dict[str, float]:
    """One piece against many: strips of 4 rows and of few columns, blocks of 16 of 18 channels."""
    worst: dict[str, float] = {"forward": 0.0, "backward": 0.0, "power": 0.0}
    for layer, channels in ((LAYERS[0], 18), (LAYERS[4], 3)):
        case = Case(*layer, channels=channels)
        call = Call(case)
        whole = call.kernel()
        expected = torch.autograd.grad(whole[0].square().sum(), call.leaves)
        terms = sum(operators.separable_factors(f).shape[0] for f in (call.up_filter, call.down_filter))
        small = operators.Launch(tile_up=64 if case.up == 4 else 32, rows=4)
        large = operators.Launch(tile_up=64, rows=4)
        chosen = {
            (torch.float32, case.up, case.down, terms): small,
            (torch.float32, case.down, case.up, terms): large if case.up == 4 else small,
        }
        operators.LAUNCHES.update(chosen)
        parts = call.kernel()
        found = torch.autograd.grad(parts[0].square().sum(), call.leaves)
        operators.LAUNCHES.clear()
        worst["forward"] = max(worst["forward"], error(parts[0], whole[0]))
        worst["power"] = max(worst["power"], error(parts[2].sum(), whole[2].sum()))
        worst["backward"] = max(worst["backward"], *(error(a, b) for a, b in zip(found, expected, strict=True)))
    return worst


def second_order() -> dict[str, float]:
    """Gradient of a squared gradient, as a penalty on it would ask for, against the plain form in float64."""
    call = Call(Case(*LAYERS[0][:4], side=8, channels=3, batch=2))

    def penalty(y: Tensor, leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        # The activation is linear between its kinks, so the bias has no second derivative.
        return torch.autograd.grad(sum(g.square().sum() for g in first), [leaves[0], leaves[2], dy])

    y, _, _ = call.kernel()
    dy = random(*y.shape, seed=3).requires_grad_()
    mine = penalty(y, call.leaves, dy)
    leaves = [leaf.detach().double().requires_grad_() for leaf in call.leaves]
    theirs = penalty(call.plain(*leaves), leaves, dy.detach().double().requires_grad_())
    return {name: error(a, b) for name, a, b in zip(("x", "scale", "dy"), mine, theirs, strict=True)}


def checked_by_torch() -> dict[str, str]:
    """torch.library.opcheck: schema, shapes without values, registration of derivatives, and all under AOT dispatch."""
    call = Call(Case(*LAYERS[0][:4], side=7, channels=4))
    case = call.case
    constants = (case.up, case.down, list(case.pad * 2), LRELU_GAIN, LRELU_SLOPE)
    arguments = (call.x, call.up_filter, call.down_filter, call.bias, call.scale, *constants, 0.8, True, True)
    y, codes, _ = operators.filtered_lrelu(*arguments)
    again = (y.detach(), codes, call.up_filter, call.down_filter, call.scale.detach(), call.x.detach(), *constants)
    return {
        **torch.library.opcheck(operators.filtered_lrelu, arguments),
        **{f"replay {k}": v for k, v in torch.library.opcheck(operators.replay, (*again, [7, 8], True)).items()},
    }


def whole_generators() -> dict[str, float]:
    """Images, gradients and what the averages follow, of small generators with the kernel and without."""
    result = {}
    for name, changes in (("T", {}), ("R", {"conv_kernel": 1, "use_radial_filters": True})):
        torch.manual_seed(0)
        size = {"img_resolution": 16, "channel_base": 64, "channel_max": 6, "num_layers": 4, "margin_size": 2}
        generator = Generator(z_dim=8, w_dim=8, **size, **changes)
        z = random(1, 8, seed=0)
        found = []
        for on in (True, False):
            with kernels.enabled(on):
                generator.zero_grad()
                averages = Statistics()
                images = generator(z, statistics=averages)
                images.square().sum().backward()
            gradients = torch.cat([p.grad.flatten() for p in generator.parameters()])
            found.append((images, gradients, averages.flat()))
        for quantity, ours, theirs in zip(("images", "gradients", "averages"), *found, strict=True):
            result[f"{name} {quantity}"] = error(ours, theirs)
    return result


def main() -> None:
    """Everything, as {group: {name: number}}."""
    results = {case.name: measure(case) for case in CASES}
    results |= {"layouts": layouts(), "cuts": cuts(), "second order": second_order()}
    results |= {"opcheck": checked_by_torch(), "generators": whole_generators()}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
