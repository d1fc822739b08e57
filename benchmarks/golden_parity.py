"""Worst relative error of our networks against the published ones, over every golden case. Run from the project's root:

    python benchmarks/golden_parity.py [folder with the golden data]

Errors are ||ours - theirs|| / ||theirs|| in float32. "R1 gradient" is that of the penalty by all parameters together;
"worst tensor" is the worst of them alone, where small tensors are mostly rounding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dr_platform.gan import discriminator_from_state, generator_from_state, r1_penalty

ROOT = Path(__file__).resolve().parents[1]


def relative_error(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> float:
    reference = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - reference).norm() / reference.norm())


def load(path: Path) -> tuple[dict[str, np.ndarray], dict, dict[str, np.ndarray]]:
    """Arrays, constructor arguments and state of one golden network."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files if key != "meta"}
        arguments = json.loads(str(archive["meta"]))["cfg"]
    return arrays, arguments, {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}


@torch.no_grad()
def generator_errors(path: Path) -> dict[str, float]:
    """Worst error of ws and of images over plain, truncated, mixed and transformed cases."""
    arrays, arguments, state = load(path)
    G = generator_from_state(arguments, state)
    z, c = torch.tensor(arrays["in/z"]), torch.tensor(arrays["in/c"])
    ws, images = [], []
    for suffix, psi, cutoff in (("", 1.0, None), ("_psi0.7", 0.7, None), ("_psi0.5_cut3", 0.5, 3)):
        ws.append(relative_error(G.mapping(z, c, psi, cutoff), arrays[f"ws{suffix}"]))
        images.append(relative_error(G(z, c, psi, cutoff), arrays[f"img{suffix}"]))
    mixed = torch.tensor(arrays["ws"][:1])
    mixed[:, G.num_ws // 2 :] = torch.tensor(arrays["ws"][1, G.num_ws // 2 :])
    images.append(relative_error(G.synthesis(mixed), arrays["img_mix01_half"]))
    for index, transform in enumerate(arrays["in/transforms"]):
        if f"img_transform{index}" in arrays:
            G.synthesis.input.transform.copy_(torch.tensor(transform))
            images.append(relative_error(G(z[:1], c[:1]), arrays[f"img_transform{index}"]))
    return {"ws": max(ws), "images": max(images)}


def discriminator_errors(path: Path) -> dict[str, float]:
    """Errors of logits, of the penalty's image gradient and of its parameter gradient."""
    arrays, arguments, state = load(path)
    D = discriminator_from_state(arguments, state)
    images = torch.tensor(arrays["in/img"]).requires_grad_()
    logits = D(images, torch.tensor(arrays["in/c"]))
    (image_gradient,) = torch.autograd.grad(logits.sum(), images, retain_graph=True)
    r1_penalty(logits, images).mean().backward()
    theirs = {name: torch.tensor(arrays[f"r1/dparam/{name}"]) for name, _ in D.named_parameters()}
    ours = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in D.named_parameters()}
    whole = [torch.cat([side[name].flatten() for name in theirs]) for side in (ours, theirs)]
    return {
        "logits": relative_error(logits, arrays["logits"]),
        "image gradient": relative_error(image_gradient, arrays["r1/dimg"]),
        "R1 gradient": relative_error(*whole),
        "worst tensor": max(relative_error(ours[name], value) for name, value in theirs.items() if value.any()),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "../shared/golden/stylegan3"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there. Pass the folder with the golden data.")
    rows = {path.stem: generator_errors(path) for path in sorted(folder.glob("net_g_*.npz"))}
    rows |= {path.stem: discriminator_errors(path) for path in sorted(folder.glob("net_d_*.npz"))}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print("network".ljust(18) + "".join(column.rjust(16) for column in columns))
    for name, row in rows.items():
        cells = (f"{row[column]:.1e}" if column in row else "" for column in columns)
        print(name.ljust(18) + "".join(cell.rjust(16) for cell in cells))


if __name__ == "__main__":
    main()
