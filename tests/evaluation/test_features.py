"""Extractors: which one is taken, what it says of itself, what is kept, and whether its distances order pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from scipy.ndimage import gaussian_filter
from shared_data import FUNDUS_MINI, needs_photographs
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dr_platform import records
from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features
from dr_platform.evaluation.extractors import mobilenet_v2, vision_transformer
from dr_platform.evaluation.features import FeatureExtractor, choose_extractor, extract, extract_cached
from dr_platform.gan import Generator
from dr_platform.sampling import sample_images

DATA = "d" * 64
PHOTOGRAPHS = FUNDUS_MINI / "images" / "retinamnist28"


@pytest.fixture
def small() -> FeatureExtractor:
    return choose_extractor("small")


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights anywhere, and an address at which nobody listens (port 9 of this machine)."""
    monkeypatch.delenv(features.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(features.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(features, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights.pth")


def clipped(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("batch", [1, 7, 120])
def test_batch_size_does_not_change_the_features(blobs: np.ndarray, small: FeatureExtractor, batch: int) -> None:
    np.testing.assert_allclose(extract(blobs, small, batch=batch), extract(blobs, small), rtol=0, atol=1e-12)


def test_a_stream_of_parts_has_the_features_of_the_whole(blobs: np.ndarray, small: FeatureExtractor) -> None:
    parts = (blobs[i : i + 50] for i in range(0, 120, 50))
    found = extract(parts, small)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, extract(blobs, small), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [7, 32])
def test_several_extractors_in_one_pass_are_each_alone(blobs: np.ndarray, small: FeatureExtractor, batch: int) -> None:
    brightness = FeatureExtractor(
        small.identity.model_copy(update={"name": "brightness", "features": 3}),
        lambda images: images.double().mean(dim=(-2, -1)),
        torch.device("cpu"),
    )
    drawn: list[int] = []

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, 120, 50):
            drawn.append(start)
            yield blobs[start : start + 50]

    first, second = features.extract_each(parts(), [small, brightness], batch=batch)
    assert drawn == [0, 50, 100]
    np.testing.assert_allclose(first, extract(blobs, small), rtol=0, atol=1e-12)
    np.testing.assert_allclose(second, blobs.mean(axis=(1, 2)), rtol=1e-12)


def test_pictures_of_any_layout_in_memory_have_the_same_features(blobs: np.ndarray, small: FeatureExtractor) -> None:
    whole = extract(blobs[:6], small)
    locked = blobs[:6].copy()
    locked.flags.writeable = False
    for same in (np.asfortranarray(blobs[:6]), blobs[:6][::-1].copy()[::-1], locked):
        for batch in (1, 4):
            np.testing.assert_allclose(extract(same, small, batch=batch), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 8, 1), (2, 3, 8, 8)])
def test_what_is_no_picture_is_refused(small: FeatureExtractor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[n, H, W, 3\]"):
        extract(np.zeros(shape, np.uint8), small)


def test_no_images_are_refused(small: FeatureExtractor) -> None:
    with pytest.raises(EvaluationError, match="no images"):
        extract(iter([]), small)


def degradations(pictures: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Each list goes from mild to severe."""
    rng, clean = np.random.default_rng(0), pictures.astype(float)
    noise = rng.normal(size=pictures.shape)
    return {
        "blur": [clipped(gaussian_filter(clean, (0, sigma, sigma, 0))) for sigma in (0.7, 1.4, 2.8)],
        "noise": [clipped(clean + sigma * noise) for sigma in (5, 15, 40)],
        "colour": [clipped(clean + step * np.array([-1, 1, 0.5])) for step in (8, 16, 32)],
    }


def check_order(real: np.ndarray, other: np.ndarray, small: FeatureExtractor) -> None:
    """Clean < mild < severe < a network that has learnt nothing, for every kind of damage."""
    reference = extract(real, small)

    def distance(pictures: np.ndarray) -> float:
        return features.frechet_distance(reference, extract(pictures, small))

    torch.manual_seed(0)
    untrained = Generator(
        z_dim=32, w_dim=32, img_resolution=real.shape[1], num_layers=6, channel_base=1024, channel_max=32
    )
    clean, worst = distance(other), distance(sample_images(untrained, range(len(other))))
    for kind, pictures in degradations(other).items():
        found = [clean, *(distance(picture) for picture in pictures), worst]
        assert found == sorted(found), (kind, found)
        assert found[1] > 1.2 * clean, (kind, found)


def test_distances_order_damaged_phantoms(small: FeatureExtractor) -> None:
    pictures = np.stack([phantom(5, index, 64).image for index in range(160)])
    check_order(pictures[::2], pictures[1::2], small)


@needs_photographs
def test_distances_order_damaged_photographs(small: FeatureExtractor) -> None:
    from PIL import Image

    files = sorted(PHOTOGRAPHS.glob("*.png"))[:200]
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB").resize((32, 32), 1)) for file in files])
    check_order(pictures[::2], pictures[1::2], small)


@pytest.mark.usefixtures("bare_machine")
def test_auto_takes_the_small_extractor_without_asking_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("auto must not open a connection")

    monkeypatch.setattr(features.urllib.request, "urlopen", refuse)
    chosen = choose_extractor("auto")
    assert chosen.identity.name == "drp-small-v1"
    assert chosen.metric_name("fid") == "fid__drp-small-v1"


@pytest.mark.usefixtures("bare_machine")
def test_auto_takes_no_stand_in_for_inception(tmp_path: Path) -> None:
    for name in (*mobilenet_v2.FILES, *vision_transformer.DINOV2_FILES, *vision_transformer.RETFOUND_FILES):
        (tmp_path / name).write_bytes(b"never read")
    assert choose_extractor("auto", weights_dir=tmp_path).identity == features.SMALL


@pytest.mark.usefixtures("bare_machine")
def test_several_choices_are_several_extractors_and_none_twice() -> None:
    assert [each.identity for each in features.choose_extractors(["small"])] == [features.SMALL]
    with pytest.raises(
        EvaluationError, match=r"auto, small.* comes to drp-small-v1, drp-small-v1; .* no extractor twice"
    ):
        features.choose_extractors(["auto", "small"])
    with pytest.raises(EvaluationError, match="comes to none"):
        features.choose_extractors([])


def test_an_extractor_of_old_is_read_and_is_not_the_one_of_today() -> None:
    """Reports of version 1 say neither the resize kernel nor the definition's version."""
    said = features.SMALL.model_dump_json(exclude={"resize", "definition"})
    old = records.Extractor.model_validate_json(said)
    assert (old.resize, old.definition) == ("not recorded", 1)
    assert old != features.SMALL


@pytest.mark.parametrize("field", ["name", "weights_sha256", "input_size", "features", "resize", "definition"])
def test_whatever_changes_numbers_changes_the_identity(field: str) -> None:
    other = {"weights_sha256": "0" * 64, "input_size": 1, "features": 1, "definition": 2}.get(field, "other")
    assert features.SMALL.model_copy(update={field: other}) != features.SMALL


@pytest.mark.usefixtures("bare_machine")
def test_inception_that_cannot_be_had_is_one_clear_line() -> None:
    with pytest.raises(EvaluationError) as failure:
        choose_extractor("inception-v3")
    message = str(failure.value)
    assert "could not be fetched from http://127.0.0.1:9/weights.pth" in message
    assert "Put weights-inception-2015-12-05-6726825d.pth into site.weights_dir or DRP_WEIGHTS_DIR" in message
    assert "\n" not in message


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("place", ["argument", "environment", "torch hub"])
@pytest.mark.parametrize("choice", ["auto", "inception-v3"])
def test_a_damaged_weight_file_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, choice: str
) -> None:
    folder = tmp_path / "hub" / "checkpoints" if place == "torch hub" else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / features.INCEPTION_FILES[1]).write_bytes(b"not a network")
    if place == "environment":
        monkeypatch.setenv(features.WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(EvaluationError, match="is not the Inception-v3 of 2015-12-05: its SHA-256 begins"):
        choose_extractor(choice, weights_dir=tmp_path if place == "argument" else None)


@pytest.mark.usefixtures("bare_machine")
def test_inception_is_taken_where_its_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: np.ndarray
) -> None:
    # The real file cannot be shipped: the same architecture with drawn weights stands in for it.
    architecture = FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(architecture, "load_state_dict", lambda self, state: None)
        torch.save({}, empty := io.BytesIO())
        empty.seek(0)
        drawn = architecture("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    torch.save(drawn.state_dict(), tmp_path / features.INCEPTION_FILES[0])
    digest = hashlib.sha256((tmp_path / features.INCEPTION_FILES[0]).read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256", digest)
    chosen = choose_extractor("auto", weights_dir=tmp_path)
    assert chosen.identity == features.INCEPTION
    assert chosen.metric_name("fid") == "fid"
    found = extract(blobs[:3], chosen, batch=2)
    expected = drawn(torch.from_numpy(blobs[:3]).permute(0, 3, 1, 2))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.shape == (3, 2048)


def test_kept_features_are_used_again(blobs: np.ndarray, small: FeatureExtractor, tmp_path: Path) -> None:
    first = extract_cached(blobs, DATA, small, tmp_path / "kept")
    unusable = dataclasses.replace(small, network=None)
    assert np.array_equal(extract_cached(blobs, DATA, unusable, tmp_path / "kept"), first)


def test_labels_of_the_images_stand_in_the_kept_file(blobs, small, tmp_path):
    extract_cached(blobs, DATA, small, tmp_path, labels={"visibility": "proprietary", "licence": "proprietary"})
    (kept,) = tmp_path.glob("*.safetensors")
    with safetensors.safe_open(kept, "np") as stream:
        said = stream.metadata()
    assert (said["visibility"], said["licence"]) == ("proprietary", "proprietary")


def test_kept_features_are_private(blobs: np.ndarray, small: FeatureExtractor, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o755)
    extract_cached(blobs, DATA, small, tmp_path / "kept")
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_other_data_or_another_extractor_has_a_file_of_its_own(
    blobs: np.ndarray, small: FeatureExtractor, tmp_path: Path
) -> None:
    extract_cached(blobs, DATA, small, tmp_path)
    extract_cached(blobs, "e" * 64, small, tmp_path)
    extract_cached(blobs[:50], DATA, small, tmp_path)
    other = small.identity.model_copy(update={"weights_sha256": "f" * 64})
    extract_cached(blobs, DATA, dataclasses.replace(small, identity=other), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_file_is_noticed_and_replaced(
    blobs: np.ndarray, small: FeatureExtractor, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = extract_cached(blobs, DATA, small, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"flipped": bytes(content), "truncated": bytes(content[:-100]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(extract_cached(blobs, DATA, small, tmp_path), first)
    assert "is damaged; the features are computed again" in caplog.text
    caplog.clear()
    extract_cached(blobs, DATA, small, tmp_path)
    assert not caplog.text


def test_features_that_cannot_be_kept_do_no_harm(
    blobs: np.ndarray, small: FeatureExtractor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = extract_cached(blobs, DATA, small, tmp_path / "file")
    np.testing.assert_allclose(found, extract(blobs, small), atol=1e-12)
    assert "could not be kept" in caplog.text
