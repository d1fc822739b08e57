"""Pictures to features: the only import of torch-fidelity, so its non-public parts are wrapped in one place.

Two extractors. Inception-v3 with the weights of 2015-12-05 is what published FID and KID mean; its file is a pickle, so
it is loaded from the very bytes whose SHA-256 was checked. `drp-small-v1` needs no file; whatever is computed with it
carries its name. Nothing is downloaded unless "inception-v3" is asked for by name.

Features of real images are kept by content (data digest, extractor), in a directory only its owner can read: features
of proprietary photographs are proprietary too.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from dr_platform import files, records
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import small_features

_log = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "DRP_WEIGHTS_DIR"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION = records.Extractor(
    name="inception-v3-2015-12-05", weights_sha256=INCEPTION_SHA256, input_size=299, features=2048
)
SMALL = records.Extractor(
    name=small_features.NAME,
    weights_sha256=small_features.WEIGHTS_SHA256,
    input_size=small_features.INPUT_SIZE,
    features=small_features.FEATURES,
)
_INCEPTION_BYTES = 95_628_359
_INCEPTION_LAYER = "2048"
_SMALL_LAYER = str(small_features.FEATURES)
_FETCH_TIMEOUT_S = 30


class SmallFeatureExtractor(FeatureExtractorBase):
    """drp-small-v1 in the form in which torch-fidelity calls extractors; its one layer is named by its width."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:  # torch-fidelity hands in all it has
        super().__init__(name, features_list)
        self.register_buffer("bank", small_features.filter_bank())

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (_SMALL_LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return _SMALL_LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, small_features.INPUT_SIZE, small_features.INPUT_SIZE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (small_features.small_features(images, self.bank),)


register_feature_extractor(small_features.NAME, SmallFeatureExtractor)


@dataclass(frozen=True)
class FeatureExtractor:
    """A network ready to extract, and what to call numbers made with it."""

    identity: records.Extractor
    network: FeatureExtractorBase
    device: torch.device

    def metric_name(self, stem: str) -> str:
        """`fid` with Inception-v3, `fid__drp-small-v1` with any other extractor."""
        return stem if self.identity == INCEPTION else f"{stem}__{self.identity.name}"


def choose_extractor(
    choice: Literal["auto", "inception-v3", "small"],
    *,
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """The extractor that `choice` means on this machine.

    auto: Inception-v3 if its file lies in `weights_dir`, in the directory DRP_WEIGHTS_DIR names, or where torch.hub
    keeps downloads; else drp-small-v1. inception-v3: the same places, then torch-fidelity's address.
    Raises EvaluationError if Inception's file is damaged, or asked for and not to be had.
    """
    device = torch.device(device)
    found = None if choice == "small" else _find_inception(weights_dir)
    if found is not None:
        return _inception(_checked(_read_weights(found), str(found)), device)
    if choice == "inception-v3":
        return _inception(_fetch_inception(), device)
    if choice == "auto":
        where = "here" if weights_dir is None else f"in {weights_dir}"
        _log.info("no Inception-v3 weights %s: features are %s, and every metric says so", where, SMALL.name)
    network = create_feature_extractor(SMALL.name, [_SMALL_LAYER], cuda=device.type == "cuda", verbose=False)
    return FeatureExtractor(SMALL, network, device)


def extract(images: np.ndarray | Iterable[np.ndarray], extractor: FeatureExtractor, *, batch: int = 32) -> np.ndarray:
    """Features of 8-bit pictures: float64 [n, d], rows in the order of the pictures.

    images: uint8 [n, H, W, 3], or an iterable of such arrays where all at once would not fit into memory.
    batch: pictures per forward pass; it does not change the features.
    """
    parts = [images] if isinstance(images, np.ndarray) else images
    layer = extractor.network.get_requested_features_list()[0]
    rows = [
        get_featuresdict_from_dataset(
            _Pictures(part),
            extractor.network,
            batch_size=batch,
            cuda=extractor.device.type == "cuda",
            save_cpu_ram=True,  # in torch-fidelity's words: no worker processes
            verbose=False,
        )[layer].numpy()
        for part in parts
        if len(part)
    ]
    if not rows:
        raise EvaluationError("there are no images to extract features from. Give at least 2.")
    return np.concatenate(rows).astype(np.float64)


def extract_cached(
    images: np.ndarray,
    data_sha256: str,
    extractor: FeatureExtractor,
    cache_dir: Path,
    *,
    batch: int = 32,
    labels: Mapping[str, str] | None = None,
) -> np.ndarray:
    """`extract(images, extractor)`, computed once per content: the file is named by data digest, count and extractor.

    labels: what the file says of the images besides: who may see them, and under which licences they were given.

    A kept file is used only if its own digest is right; a damaged one is logged and replaced. That a file cannot be
    kept (a full disk, say) is logged and does no harm.
    """
    key = files.sha256_json(
        {"data": data_sha256, "shape": list(images.shape), "extractor": extractor.identity.model_dump()}
    )
    path = cache_dir / f"{key}.safetensors"
    kept = _read_features(path, (len(images), extractor.identity.features))
    if kept is not None:
        return kept
    features = extract(images, extractor, batch=batch)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        cache_dir.chmod(0o700)
        content = safetensors.numpy.save(
            {"features": features}, metadata={**(labels or {}), "sha256": _digest(features)}
        )
        files.write_bytes(path, content)
    except OSError as error:
        _log.warning("features of the real images could not be kept in %s: %s", cache_dir, error.strerror or error)
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


class _Pictures(Dataset[Tensor]):
    """uint8 [n, H, W, 3] as torch-fidelity wants it: one uint8 [3, H, W] tensor per index."""

    def __init__(self, images: np.ndarray) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"features are taken from uint8 [n, H, W, 3], not {images.dtype} {images.shape}")
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._images[index])).permute(2, 0, 1).contiguous()


def _find_inception(weights_dir: Path | None) -> Path | None:
    named = os.environ.get(WEIGHTS_VARIABLE)
    folders = [weights_dir, Path(named) if named else None, _hub_dir()]
    places = [folder / name for folder in folders if folder is not None for name in INCEPTION_FILES]
    return next((place for place in places if place.is_file()), None)


def _hub_dir() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _read_weights(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be read: {error.strerror}. Mend that, or set evaluate.extractor to small."
        ) from None


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
            f"{INCEPTION_FILES[0]} into site.weights_dir, or set evaluate.extractor to small."
        ) from None
    _checked(content, URL_INCEPTION_V3)
    files.write_bytes(_hub_dir() / INCEPTION_FILES[0], content)
    return content


def _inception(weights: bytes, device: torch.device) -> FeatureExtractor:
    network = create_feature_extractor(
        "inception-v3-compat",
        [_INCEPTION_LAYER],
        cuda=device.type == "cuda",
        feature_extractor_weights_path=io.BytesIO(weights),
        verbose=False,
    )
    return FeatureExtractor(INCEPTION, network, device)


def _digest(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()


def _read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            features, digest = stored.get_tensor("features"), (stored.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, OSError):
        features, digest = None, None
    if features is None or features.shape != shape or _digest(features) != digest:
        _log.warning("%s is damaged; the features are computed again", path)
        return None
    return features
