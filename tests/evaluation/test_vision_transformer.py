"""Vision transformers: the published layout of weights, an independent form of the same sums, damage told in a line.

No real weights can be shipped: drawn ones, laid out by hand in the published names, stand in for them. Except where the
depth matters the networks are one or two blocks deep.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features
from dr_platform.evaluation.extractors import vision_transformer as vit
from dr_platform.evaluation.features import choose_extractor, extract

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def published(
    width: int, depth: int, patch: int, positions: int, *, layer_scale: bool, final: str = "norm", seed: int = 0
) -> Weights:
    """Drawn weights under the names of the published files."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + positions**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        f"{final}.weight": (width,),
        f"{final}.bias": (width,),
    }
    for index in range(depth):
        block = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
            **({"ls1.gamma": (width,), "ls2.gamma": (width,)} if layer_scale else {}),
        }
        shapes.update({f"blocks.{index}.{name}": shape for name, shape in block.items()})
    drawn = {name: torch.randn(shape, generator=random) * 0.05 for name, shape in shapes.items()}
    ones = {name: 1 + tensor for name, tensor in drawn.items() if "norm" in name and name.endswith("weight")}
    return {**drawn, **ones, **{name: 0.5 + t for name, t in drawn.items() if name.endswith("gamma")}}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "_SIZES", {384: ("s", 2, 6), 768: ("b", 1, 12), 1024: ("l", 1, 16)})


@pytest.fixture(scope="module")
def dinov2() -> Weights:
    return {**published(384, 2, 14, 37, layer_scale=True), "mask_token": torch.zeros(1, 384)}


@pytest.fixture(scope="module")
def retfound() -> Weights:
    """As a masked autoencoder leaves it: with a decoder, and without `fc_norm`."""
    return {**published(1024, 1, 16, 14, layer_scale=False), "decoder_pos_embed": torch.zeros(1, 197, 512)}


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


def saved(weights: object, path: Path) -> Path:
    torch.save(weights, path)
    return path


def encoder(weights: Weights, depth: int, heads: int, tokens: Tensor) -> Tensor:
    """The blocks as torch's own encoder layers; LayerScale goes into the projections it follows."""
    width = tokens.shape[-1]
    for index in range(depth):
        part = {
            name[len(f"blocks.{index}.") :]: t for name, t in weights.items() if name.startswith(f"blocks.{index}.")
        }
        first, second = (part.get(f"ls{k}.gamma", torch.ones(width)) for k in (1, 2))
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": part["attn.qkv.weight"],
                "self_attn.in_proj_bias": part["attn.qkv.bias"],
                "self_attn.out_proj.weight": first[:, None] * part["attn.proj.weight"],
                "self_attn.out_proj.bias": first * part["attn.proj.bias"],
                "linear1.weight": part["mlp.fc1.weight"],
                "linear1.bias": part["mlp.fc1.bias"],
                "linear2.weight": second[:, None] * part["mlp.fc2.weight"],
                "linear2.bias": second * part["mlp.fc2.bias"],
                **{f"norm{k}.{kind}": part[f"norm{k}.{kind}"] for k in (1, 2) for kind in ("weight", "bias")},
            }
        )
        tokens = layer.to(tokens.dtype).eval()(tokens)
    return tokens


@torch.no_grad()
def by_hand(weights: Weights, pictures: np.ndarray, patch: int, positions: Tensor, depth: int, heads: int) -> Tensor:
    """Tokens after the last block for pictures of the network's own size, in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.double().reshape(3, 1, 1)) / std.double().reshape(3, 1, 1)
    columns = F.unfold(pixels, patch, stride=patch).transpose(1, 2)
    patches = columns @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    tokens = torch.cat([weights["cls_token"].expand(len(pictures), -1, -1), patches], dim=1)
    return encoder(weights, depth, heads, tokens + positions.double())


def normed(rows: Tensor, weights: Weights, name: str | None) -> np.ndarray:
    affine = () if name is None else (weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double())
    return F.layer_norm(rows, rows.shape[-1:], *affine, eps=1e-6).numpy()


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "grid", "layer_scale", "numbers"),
    [
        # The published counts, less DINOv2's mask token: 22,056,576, 86,580,480, 304,368,640; ViT-L/16: 303,301,632.
        (384, 12, 6, 14, 37, True, 22_056_576 - 384),
        (768, 12, 12, 14, 37, True, 86_580_480 - 768),
        (1024, 24, 16, 14, 37, True, 304_368_640 - 1024),
        (1024, 24, 16, 16, 14, False, 303_301_632),
    ],
)
def test_networks_are_as_large_as_published(
    width: int, depth: int, heads: int, patch: int, grid: int, layer_scale: bool, numbers: int
) -> None:
    with torch.device("meta"):
        network = vit.VisionTransformer(vit.Architecture(width, depth, heads, patch, grid, layer_scale, "cls"))
    assert sum(parameter.numel() for parameter in network.parameters()) == numbers
    assert vit._SIZES[width][1:] == (depth, heads)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (64, 1)])
def test_attention_is_torchs_multi_head_attention(width: int, heads: int) -> None:
    torch.manual_seed(0)
    ours, theirs = vit.Attention(width, heads), nn.MultiheadAttention(width, heads, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    tokens = torch.randn(2, 17, width)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("shallow")
def test_dinov2_is_the_class_token_of_the_independent_form(dinov2: Weights, tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    extractor = vit.load_dinov2(saved(dinov2, tmp_path / "w.pth"), CPU)
    tokens = by_hand(dinov2, pictures, 14, extractor.network.positions(), depth=2, heads=6)
    np.testing.assert_allclose(extract(pictures, extractor), normed(tokens[:, 0], dinov2, "norm"), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("form", ["mean, plain norm", "mean, fc_norm", "cls"])
def test_retfound_is_the_mean_or_the_class_token_of_the_independent_form(
    retfound: Weights, tmp_path: Path, form: str
) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    random = torch.Generator().manual_seed(5)
    tuned = {f"fc_norm.{part}": torch.randn(1024, generator=random) for part in ("weight", "bias")}
    weights = {**retfound, **(tuned if form == "mean, fc_norm" else {})}
    pool = "cls" if form == "cls" else "mean"
    extractor = vit.load_retfound(saved({"model": weights}, tmp_path / "w.pth"), CPU, pool=pool)
    tokens = by_hand(weights, pictures, 16, retfound["pos_embed"], depth=1, heads=16)
    rows = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)
    norm = {"mean, plain norm": None, "mean, fc_norm": "fc_norm", "cls": "norm"}[form]
    np.testing.assert_allclose(extract(pictures, extractor), normed(rows, weights, norm), rtol=0, atol=1e-4)
    assert extractor.identity.name == ("retfound-vit-l-16-cls" if pool == "cls" else "retfound-vit-l-16")
    assert extractor.identity.features == 1024


def test_a_dinov2_of_full_depth_is_read_and_used(pictures: np.ndarray, tmp_path: Path) -> None:
    path = saved(published(384, 12, 14, 37, layer_scale=True), tmp_path / "dinov2_vits14_pretrain.pth")
    extractor = choose_extractor("dinov2", weights_dir=tmp_path)
    found = extract(pictures, extractor, batch=2)
    assert found.shape == (5, 384)
    assert np.isfinite(found).all()
    assert extractor.identity.model_dump() == {
        "name": "dinov2-vit-s-14",
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "input_size": 224,
        "features": 384,
        "resize": "bicubic with anti-alias, 224, clamped to 0-255, not rounded",
        "definition": 1,
    }
    assert extractor.metric_name("kid") == "kid__dinov2-vit-s-14"


@pytest.mark.usefixtures("shallow")
def test_features_are_a_function_of_the_picture(dinov2: Weights, pictures: np.ndarray, tmp_path: Path) -> None:
    path = saved(dinov2, tmp_path / "w.pth")
    first, again = vit.load_dinov2(path, CPU), vit.load_dinov2(path, CPU)
    whole = extract(pictures, first)
    np.testing.assert_array_equal(extract(pictures, again), whole)
    for batch in (1, 2, 5):
        np.testing.assert_allclose(extract(pictures[::-1], first, batch=batch)[::-1], whole, rtol=0, atol=5e-5)
    assert np.ptp(whole, axis=0).max() > 0.01


@pytest.mark.parametrize(("input_size", "offset"), [(224, 0.1), (224, 0.0), (770, 0.1)])
def test_positions_are_stretched_by_cubic_convolution(input_size: int, offset: float) -> None:
    """Sample i of the new grid is the cubic convolution (a = -¾) of the old one at (i + ½) / scale - ½."""
    form = vit.Architecture(8, 1, 1, 14, 37, True, "cls")
    network = vit.VisionTransformer(form, input_size, offset).requires_grad_(False)
    learnt = torch.randn(37, 37, 8, generator=torch.Generator().manual_seed(0))
    network.pos_embed[0, 0], network.pos_embed[0, 1:] = 7, learnt.reshape(-1, 8)
    new = input_size // 14
    found = network.positions()
    assert (found[0, 0] == 7).all()
    taps = cubic_convolution(37, (np.arange(new) + 0.5) * 37 / (new + offset) - 0.5)
    expected = np.einsum("ik,jl,kld->ijd", taps, taps, learnt.double().numpy())
    np.testing.assert_allclose(found[0, 1:].reshape(new, new, 8).numpy(), expected, rtol=0, atol=1e-4)


def cubic_convolution(count: int, places: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel as a matrix from `count` samples to `places`; what lies outside is the sample at the border."""
    taps = np.zeros((len(places), count))
    for row, place in zip(taps, places, strict=True):
        for index in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x = abs(place - index)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            row[min(max(index, 0), count - 1)] += near if x <= 1 else far
    return taps


@pytest.mark.usefixtures("shallow")
def test_positions_of_the_learnt_grid_stay_as_they_are(dinov2: Weights, tmp_path: Path) -> None:
    extractor = vit.load_dinov2(saved(dinov2, tmp_path / "w.pth"), CPU, input_size=518)
    assert torch.equal(extractor.network.positions(), dinov2["pos_embed"])
    assert (extractor.identity.input_size, extractor.identity.resize[:28]) == (518, "bicubic with anti-alias, 518")


def chunked(weights: Weights) -> Weights:
    """Blocks as a sharded training names them: block 1 is the second of chunk 0, or the first of chunk 1."""
    return {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for name, t in weights.items()
    }


WRAPPERS: dict[str, Callable[[Weights], object]] = {
    "model": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}, "epoch": 3},
    "teacher": lambda w: {
        "teacher": {**{f"backbone.{name}": t for name, t in chunked(w).items()}, "dino_head.last": torch.zeros(3)},
        "iteration": 7,
    },
    "module": lambda w: {"state_dict": {f"module.{name}": t for name, t in w.items()}},
    "half": lambda w: {name: t.half().float() for name, t in w.items()},
}


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("wrapper", [*WRAPPERS, "safetensors", "old archive"])
def test_the_usual_wrappings_are_taken_off(dinov2: Weights, pictures: np.ndarray, tmp_path: Path, wrapper: str) -> None:
    weights = {name: tensor.half().float() for name, tensor in dinov2.items()}
    path = tmp_path / "wrapped.pth"
    if wrapper == "safetensors":
        safetensors.torch.save_file(weights, path := tmp_path / "wrapped.safetensors")
    elif wrapper == "old archive":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(WRAPPERS[wrapper](weights), path)
    plain = vit.load_dinov2(saved(weights, tmp_path / "plain.pth"), CPU)
    found = vit.load_dinov2(path, CPU)
    np.testing.assert_array_equal(extract(pictures, found), extract(pictures, plain))
    assert found.identity.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class Harmful:
    """Whoever unpickles it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_is_refused_and_not_run(dinov2: Weights, tmp_path: Path) -> None:
    path = saved({"model": dinov2, "args": Harmful(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(EvaluationError, match=r"w\.pth cannot be read as weights: .*mkdir"):
        vit.load_dinov2(path, CPU)
    assert not (tmp_path / "ran").exists()


def without(name: str) -> Callable[[Weights], object]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def changed(name: str, change: Callable[[Tensor], object]) -> Callable[[Weights], object]:
    return lambda weights: {**weights, name: change(weights[name])}


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias is missing"),
        (without("norm.weight"), r"norm\.weight is missing"),
        (without("blocks.0.ls1.gamma"), r"ls1\.gamma is missing"),
        (without("pos_embed"), "pos_embed is missing"),
        (without("cls_token"), "no cls_token"),
        (changed("blocks.0.mlp.fc1.weight", lambda t: t.T), r"fc1\.weight is \[384, 1536\] torch\.float32, but floats"),
        (changed("patch_embed.proj.weight", lambda t: t[..., :12, :12]), r"proj\.weight is \[384, 3, 12, 12\]"),
        (changed("norm.bias", lambda t: t.int()), r"norm\.bias is \[384\] torch\.int32"),
        (changed("norm.bias", lambda t: "text"), r"norm\.bias is missing"),
        (changed("norm.bias", lambda t: t / 0), r"norm\.bias has numbers that are not finite"),
        (changed("pos_embed", lambda t: t[:, :-1]), r"pos_embed is \[1, 1369, 384\]"),
        (changed("cls_token", lambda t: t[..., :100]), r"cls_token is \[1, 1, 100\]"),
        (changed("cls_token", lambda t: 3), "cls_token is missing"),
        (lambda w: {**w, "blocks.2.norm1.weight": w["norm.weight"]}, "3 blocks, but a ViT of this width has 2"),
        (lambda w: {**w, "register_tokens": torch.zeros(1, 4, 384)}, "register tokens"),
        (lambda w: {**w, **{f"student.{name}": t for name, t in w.items()}}, "2 networks"),
        (lambda w: {"weights": [1, 2]}, "no cls_token"),
        (lambda w: [1, 2], "no cls_token"),
    ],
)
def test_damage_is_one_line(dinov2: Weights, tmp_path: Path, damage: Callable[[Weights], object], said: str) -> None:
    with pytest.raises(EvaluationError, match=said) as failure:
        vit.load_dinov2(saved(damage(dinov2), tmp_path / "w.pth"), CPU)
    assert str(tmp_path / "w.pth") in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "folder"])
def test_a_file_that_is_no_weights_is_one_line(dinov2: Weights, tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if damage == "folder":
        path.mkdir()
    else:
        whole = safetensors.torch.save(dinov2) if suffix == "safetensors" else saved(dinov2, path).read_bytes()
        path.write_bytes({"empty": b"", "text": b"not a network\n" * 9, "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(EvaluationError, match="cannot be read") as failure:
        vit.load_dinov2(path, CPU)
    assert "\n" not in str(failure.value)


@pytest.mark.usefixtures("shallow")
def test_the_two_families_are_not_taken_for_each_other(dinov2: Weights, retfound: Weights, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="384 wide, but RETFound is a ViT-L"):
        vit.load_retfound(saved(dinov2, tmp_path / "d.pth"), CPU)
    with pytest.raises(EvaluationError, match=r"proj\.weight is \[1024, 3, 16, 16\]"):
        vit.load_dinov2(saved(retfound, tmp_path / "r.pth"), CPU)


@pytest.mark.parametrize(("choice", "named"), [("dinov2", "dinov2_vitl14_pretrain.pth"), ("retfound", "RETFound_cfp")])
def test_missing_weights_are_one_line_with_names(monkeypatch: pytest.MonkeyPatch, choice: str, named: str) -> None:
    monkeypatch.delenv(features.WEIGHTS_VARIABLE, raising=False)
    with pytest.raises(EvaluationError) as failure:
        choose_extractor(choice)
    assert named in str(failure.value)
    assert "site.weights_dir and DRP_WEIGHTS_DIR are not set" in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.usefixtures("shallow")
def test_the_larger_network_is_taken_and_the_given_folder_comes_first(
    dinov2: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    given.mkdir()
    named.mkdir()
    monkeypatch.setenv(features.WEIGHTS_VARIABLE, str(named))
    saved(published(768, 1, 14, 16, layer_scale=True), named / "dinov2_vitb14_pretrain.pth")
    saved(dinov2, named / "dinov2_vits14_pretrain.pth")
    assert choose_extractor("dinov2", weights_dir=given).identity.name == "dinov2-vit-b-14"
    saved(dinov2, given / "dinov2_vits14_pretrain.pth")
    assert choose_extractor("dinov2", weights_dir=given).identity.name == "dinov2-vit-s-14"
