"""Vision transformers from a file the user has: DINOv2 (ViT-S, -B, -L/14) and RETFound (ViT-L/16, masked autoencoder).

There is no hash to check such a file against, so its own becomes part of the identity. Names of tensors are the
published ones; each that is needed must be there in its shape and finite, and others (a decoder, a head) are passed by.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Oquab et al. 2023, "DINOv2"; He et al. 2022, "Masked
Autoencoders Are Scalable Vision Learners"; Zhou et al. 2023, "A foundation model for generalizable disease detection
from retinal images"; Touvron et al. 2021, "Going deeper with Image Transformers" (LayerScale).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dr_platform import records
from dr_platform.errors import EvaluationError
from dr_platform.evaluation.extractors import weights
from dr_platform.evaluation.extractors.base import FeatureExtractor, bicubic, resized

DINOV2_FILES = tuple(
    f"dinov2_vit{size}14_pretrain.{kind}" for size in ("l", "b", "s") for kind in ("safetensors", "pth")
)
RETFOUND_FILES = tuple(
    f"{stem}.{kind}"
    for stem in ("RETFound_mae_natureCFP", "RETFound_cfp_weights", "RETFound_mae_meh")
    for kind in ("safetensors", "pth")
)
INPUT_SIZE = 224
Pool = Literal["mean", "cls"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on a scale of 0 to 1; both families use them
_EPSILON = 1e-6
_MLP_RATIO = 4
# DINOv2 stretches positions by (new + 0.1) / old rather than new / old, and its published features depend on it.
_DINOV2_OFFSET = 0.1


@dataclass(frozen=True)
class Architecture:
    """Sizes of a vision transformer. grid: positions per side that were learnt."""

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    layer_scale: bool
    pool: Pool


_SIZES = {384: ("s", 12, 6), 768: ("b", 12, 12), 1024: ("l", 24, 16)}  # width: letter, depth, heads


class VisionTransformer(nn.Module):
    """uint8 [n, 3, H, W] to features, float32 [n, width].

    Pictures are resized to `input_size`; positions learnt on another grid are interpolated, bicubic without anti-alias.
    pool: cls takes the first token after the final norm; mean takes the final norm of the patch tokens' mean.
    """

    def __init__(self, form: Architecture, input_size: int = INPUT_SIZE, position_offset: float = 0.0) -> None:
        super().__init__()
        if input_size % form.patch:
            raise ValueError(f"an input of {input_size} pixels is no multiple of the patch's {form.patch}")
        self.form, self.input_size, self.position_offset = form, input_size, position_offset
        self.cls_token = nn.Parameter(torch.zeros(1, 1, form.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + form.grid**2, form.width))
        self.patch_embed = _PatchEmbedding(form.width, form.patch)
        self.blocks = nn.ModuleList(_Block(form) for _ in range(form.depth))
        self.norm = nn.LayerNorm(form.width, eps=_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        pixels = resized(images, self.input_size) / 255
        mean, std = (pixels.new_tensor(values).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
        patches = self.patch_embed((pixels - mean) / std)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.positions()
        for block in self.blocks:
            tokens = block(tokens)
        if self.form.pool == "mean":
            return self.norm(tokens[:, 1:].mean(dim=1))
        return self.norm(tokens[:, 0])

    def positions(self) -> Tensor:
        """Position embeddings of the input's grid: [1, 1 + grid², width]."""
        old, new = self.form.grid, self.input_size // self.form.patch
        if old == new:
            return self.pos_embed
        learnt = self.pos_embed[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        if self.position_offset:  # with a scale given, samples lie at (i + ½) / scale - ½, not at the sizes' quotient
            stretched = F.interpolate(learnt, scale_factor=(new + self.position_offset) / old, mode="bicubic")
        else:
            stretched = F.interpolate(learnt, (new, new), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], stretched.flatten(2).transpose(1, 2)], dim=1)


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, form: Architecture) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(form.width, eps=_EPSILON)
        self.attn = Attention(form.width, form.heads)
        self.ls1 = _LayerScale(form.width) if form.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(form.width, eps=_EPSILON)
        self.mlp = _Mlp(form.width)
        self.ls2 = _LayerScale(form.width) if form.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Attention(nn.Module):
    """Multi-head self-attention of [n, tokens, width]; rows of `qkv` are queries, then keys, then values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        n, count, width = tokens.shape
        split = self.qkv(tokens).reshape(n, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [n, heads, tokens, width / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, count, width))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def load_dinov2(path: Path, device: torch.device, input_size: int = INPUT_SIZE) -> FeatureExtractor:
    """DINOv2 without registers, of the size that the file holds: 384, 768 or 1,024 features, the class token's.

    Raises EvaluationError for a file that is damaged or of another network.
    """
    tensors, digest = weights.read_tensors(path)
    if "register_tokens" in tensors:
        raise EvaluationError(f"{path} has register tokens, which this form of DINOv2 is without. Give the plain file.")
    form = _architecture(tensors, path, patch=14, layer_scale=True, pool="cls")
    network = _blank(form, input_size, _DINOV2_OFFSET)
    name = f"dinov2-vit-{_SIZES[form.width][0]}-14"
    return _extractor(name, network, tensors, path, digest, device)


def load_retfound(path: Path, device: torch.device, pool: Pool = "mean") -> FeatureExtractor:
    """RETFound's encoder: 1,024 features, of the mean of the patch tokens as published, or of the class token.

    The masked autoencoder's file has no `fc_norm` (what the mean goes through); then it is a plain normalisation, as in
    the published loader. Raises EvaluationError for a file that is damaged or of another network.
    """
    tensors, digest = weights.read_tensors(path)
    form = _architecture(tensors, path, patch=16, layer_scale=False, pool=pool)
    if form.width != 1024:
        raise EvaluationError(f"{path} is {form.width} wide, but RETFound is a ViT-L, 1024 wide. Give RETFound's file.")
    if pool == "mean":
        plain = {"weight": torch.ones(form.width), "bias": torch.zeros(form.width)}
        tensors.update({f"norm.{part}": tensors.get(f"fc_norm.{part}", plain[part]) for part in plain})
    name = "retfound-vit-l-16" + ("" if pool == "mean" else "-cls")
    return _extractor(name, _blank(form), tensors, path, digest, device)


def _architecture(
    tensors: Mapping[str, Tensor], path: Path, *, patch: int, layer_scale: bool, pool: Pool
) -> Architecture:
    width = _shape(tensors.get("cls_token"))[-1:]
    if width not in [(known,) for known in _SIZES]:
        raise EvaluationError(
            f"{path}: cls_token is {_said(tensors.get('cls_token'))}, but one of 1 x 1 x 384, 768 or 1024 was "
            "needed (ViT-S, -B, -L). Give the file of one of these."
        )
    _, depth, heads = _SIZES[width[0]]
    held = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if held and max(held) >= depth:
        raise EvaluationError(f"{path} has {max(held) + 1} blocks, but a ViT of this width has {depth}. Give its file.")
    positions = _shape(tensors.get("pos_embed"))
    grid = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    if positions != (1, 1 + grid**2, width[0]) or grid == 0:
        raise EvaluationError(
            f"{path}: pos_embed is {_said(tensors.get('pos_embed'))}, but 1 x (1 + a square) x {width[0]} was needed. "
            "It is damaged or of another network: fetch it again."
        )
    return Architecture(width[0], depth, heads, patch, grid, layer_scale, pool)


def _blank(form: Architecture, input_size: int = INPUT_SIZE, position_offset: float = 0.0) -> VisionTransformer:
    """The network without numbers: drawing 300 million that a file replaces would take longer than reading it."""
    with torch.device("meta"):
        network = VisionTransformer(form, input_size, position_offset)
    return network.to_empty(device="cpu")


def _extractor(
    name: str,
    network: VisionTransformer,
    tensors: Mapping[str, Tensor],
    path: Path,
    digest: str,
    device: torch.device,
) -> FeatureExtractor:
    _fill(network, tensors, path)
    identity = records.Extractor(
        name=name,
        weights_sha256=digest,
        input_size=network.input_size,
        features=network.form.width,
        resize=bicubic(network.input_size),
    )
    return FeatureExtractor(identity, network.requires_grad_(False).eval().to(device), device)


@torch.no_grad()
def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy each tensor the network needs, in float32; refuse one that is missing, ill-shaped or not finite."""
    for name, wanted in network.named_parameters():
        given = tensors.get(name)
        if not isinstance(given, Tensor) or given.shape != wanted.shape or not given.is_floating_point():
            raise EvaluationError(
                f"{path}: {name} is {_said(given)}, but floats of {list(wanted.shape)} were needed. "
                "It is damaged or of another network: fetch it again."
            )
        wanted.copy_(given)
        if not torch.isfinite(wanted).all():
            raise EvaluationError(f"{path}: {name} has numbers that are not finite. It is damaged: fetch it again.")


def _said(tensor: object) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else "missing"


def _shape(tensor: object) -> tuple[int, ...]:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
