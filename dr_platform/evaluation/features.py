"""Pictures to features: which extractor is taken, and what is kept. The only import of torch-fidelity.

Inception-v3 with the weights of 2015-12-05 is what published FID and KID mean; its file is a pickle, so it is loaded
from the very bytes whose SHA-256 was checked. Whatever is computed with another extractor carries that one's name.
Offline is normal: weights are looked for by name, and nothing is downloaded unless "inception-v3" is asked for by name.

Features of real images are kept by content, see kept.py.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from dr_platform import files, records
from dr_platform.config import ExtractorChoice
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import kept, small_features
from dr_platform.evaluation.extractors import mobilenet_v2, vision_transformer, weights
from dr_platform.evaluation.extractors.base import PUBLISHED, FeatureExtractor
from dr_platform.evaluation.extractors.weights import WEIGHTS_VARIABLE

__all__ = [
    "INCEPTION",
    "INCEPTION_FILES",
    "SMALL",
    "WEIGHTS_VARIABLE",
    "FeatureExtractor",
    "choose_extractor",
    "choose_extractors",
    "extract",
    "extract_cached",
    "extract_each",
    "frechet_distance",
    "kernel_distance",
]

_log = logging.getLogger(__name__)

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION = records.Extractor(
    name=PUBLISHED,
    weights_sha256=INCEPTION_SHA256,
    input_size=299,
    features=2048,
    resize="bilinear without anti-alias, 299, as TensorFlow 1 (sampled at i n / 299)",
)
SMALL = records.Extractor(
    name=small_features.NAME,
    weights_sha256=small_features.WEIGHTS_SHA256,
    input_size=small_features.INPUT_SIZE,
    features=small_features.FEATURES,
    resize=f"bicubic with anti-alias, {small_features.INPUT_SIZE}, float64, clamped to 0-255, not rounded",
)
_INCEPTION_BYTES = 95_628_359
_INCEPTION_LAYER = "2048"
_FETCH_TIMEOUT_S = 30


def choose_extractor(
    choice: ExtractorChoice,
    *,
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """The extractor that `choice` means on this machine.

    Weights are looked for in `weights_dir` and in the directory DRP_WEIGHTS_DIR names; Inception-v3's also where
    torch.hub keeps downloads, and, asked for by name, at torch-fidelity's address. auto: Inception-v3 if its file is
    there, else drp-small-v1. Of several files of a family in one place the largest network's is taken.
    Raises EvaluationError, in a line, if weights are damaged or not to be had.
    """
    device = torch.device(device)
    if choice == "mobilenet-v2":
        return mobilenet_v2.load(weights.required(choice, mobilenet_v2.FILES, weights_dir), device)
    if choice == "dinov2":
        path = weights.required(choice, vision_transformer.DINOV2_FILES, weights_dir)
        return vision_transformer.load_dinov2(path, device)
    if choice == "retfound":
        path = weights.required(choice, vision_transformer.RETFOUND_FILES, weights_dir)
        return vision_transformer.load_retfound(path, device)
    if choice == "small":
        return _small(device)
    found = weights.find(INCEPTION_FILES, [*weights.folders(weights_dir), _hub_dir()])
    if found is not None:
        return _inception(_checked(weights.read_bytes(found), str(found)), device)
    if choice == "inception-v3":
        return _inception(_fetch_inception(), device)
    where = "here" if weights_dir is None else f"in {weights_dir}"
    _log.info("no Inception-v3 weights %s: features are %s, and every metric says so", where, SMALL.name)
    return _small(device)


def choose_extractors(
    choices: Sequence[ExtractorChoice], *, weights_dir: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[FeatureExtractor, ...]:
    """`choose_extractor` of each, in their order: several spaces for one report.

    Raises EvaluationError if there is none, or if two choices come to the same extractor.
    """
    chosen = tuple(choose_extractor(choice, weights_dir=weights_dir, device=device) for choice in choices)
    if not chosen or len({extractor.identity for extractor in chosen}) < len(chosen):
        names = ", ".join(extractor.identity.name for extractor in chosen) or "none"
        raise EvaluationError(
            f"evaluate.extractor ({', '.join(choices)}) comes to {names}; at least one and no extractor twice was "
            "needed. Take one out."
        )
    return chosen


def extract(images: np.ndarray | Iterable[np.ndarray], extractor: FeatureExtractor, *, batch: int = 32) -> np.ndarray:
    """Features of 8-bit pictures: float64 [n, d], rows in the order of the pictures.

    images: uint8 [n, H, W, 3], or an iterable of such arrays where all at once would not fit into memory.
    batch: pictures per forward pass at most; a CPU takes fewer. It changes features no more than rounding does: by
    1e-12 for drp-small-v1, which computes in float64, and by 1e-5 of the largest for the float32 networks.
    """
    return extract_each(images, [extractor], batch=batch)[0]


def extract_each(
    images: np.ndarray | Iterable[np.ndarray | Tensor], extractors: Sequence[FeatureExtractor], *, batch: int = 32
) -> list[np.ndarray]:
    """`extract` by several extractors in one pass over the pictures, so that generated ones are drawn once.

    images: as in `extract`, or tensors uint8 [n, 3, H, W] of at most `batch` pictures, on any device.
    Rows stay where they were computed until the last: on a GPU the next pictures are asked for while it still works,
    for at most 8 kB of its memory per picture.
    """
    rows: list[list[Tensor]] = [[] for _ in extractors]
    for part in [images] if isinstance(images, np.ndarray) else images:
        for pictures in [part] if isinstance(part, Tensor) else _batches(part, batch):
            for extractor, found in zip(extractors, rows, strict=True):
                found.append(extractor(pictures))
    if not all(rows):
        raise EvaluationError("there are no images to extract features from. Give at least 2.")
    return [torch.cat(found).to("cpu", torch.float64).numpy() for found in rows]


def extract_cached(
    images: np.ndarray,
    data_sha256: str,
    extractor: FeatureExtractor,
    cache_dir: Path,
    *,
    batch: int = 32,
    labels: Mapping[str, str] | None = None,
    by: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """`extract(images, extractor)`, computed once per content: the file is named by data digest, count and extractor.

    labels: what the file says of the images besides, see `kept.keep`. by: what extracts instead of `extract`.

    A kept file is used only if its own digest is right; a damaged one is logged and replaced.
    """
    key = kept.key_of_images(data_sha256, images.shape, extractor.identity)
    features = kept.read(cache_dir, key)
    if features is None:
        features = extract(images, extractor, batch=batch) if by is None else by(images)
        kept.keep(cache_dir, key, features, labels)
    return features


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """torch-fidelity's Fréchet distance of two sets of features, float64 [n, d]; covariances have divisor n - 1."""
    statistics = (fid_features_to_statistics(torch.from_numpy(features)) for features in (real, fake))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """torch-fidelity's kernel distance: mean and standard deviation over random subsets.

    real, fake: float64 [n, d]. Kernel (x·y / d + 1)³, unbiased estimate. `subset_size` is at most the smaller n.
    """
    result = kid_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


class _Inception(nn.Module):
    """torch-fidelity's network with one layer asked for, as a plain module."""

    def __init__(self, weights_content: bytes, device: torch.device) -> None:
        super().__init__()
        self.network = create_feature_extractor(
            "inception-v3-compat",
            [_INCEPTION_LAYER],
            cuda=device.type == "cuda",
            feature_extractor_weights_path=io.BytesIO(weights_content),
            verbose=False,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def _inception(weights_content: bytes, device: torch.device) -> FeatureExtractor:
    return FeatureExtractor(INCEPTION, _Inception(weights_content, device), device)


def _small(device: torch.device) -> FeatureExtractor:
    bank = small_features.filter_bank().to(device)
    return FeatureExtractor(SMALL, lambda images: small_features.small_features(images, bank), device)


def _batches(images: np.ndarray, batch: int) -> Iterator[Tensor]:
    _check_pictures(images)
    for start in range(0, len(images), batch):
        yield torch.from_numpy(images[start : start + batch].copy()).permute(0, 3, 1, 2)


def _check_pictures(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"features are taken from uint8 [n, H, W, 3], not {images.dtype} {images.shape}")


def _hub_dir() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _checked(content: bytes, origin: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != INCEPTION_SHA256:
        raise EvaluationError(
            f"{origin} is not the Inception-v3 of 2015-12-05: its SHA-256 begins {found[:12]}, not "
            f"{INCEPTION_SHA256[:12]}. Remove or replace it, or set evaluate.extractor to small."
        )
    return content


def _fetch_inception() -> bytes:
    _log.info("fetching Inception-v3 (%.0f MB) from %s", _INCEPTION_BYTES / 1e6, URL_INCEPTION_V3)
    try:
        with urllib.request.urlopen(URL_INCEPTION_V3, timeout=_FETCH_TIMEOUT_S) as response:
            content = response.read(_INCEPTION_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:  # URLError, time-outs and TLS failures are OSErrors
        raise EvaluationError(
            f"Inception-v3 could not be fetched from {URL_INCEPTION_V3}: {getattr(error, 'reason', error)}. Put "
            f"{INCEPTION_FILES[0]} into site.weights_dir or {WEIGHTS_VARIABLE}, or set evaluate.extractor to small."
        ) from None
    _checked(content, URL_INCEPTION_V3)
    files.write_bytes(_hub_dir() / INCEPTION_FILES[0], content)
    return content
