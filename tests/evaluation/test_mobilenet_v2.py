"""MobileNetV2: the reference's numbers, TensorFlow's padding, and one line for a file that is not the known one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from shared_data import FUNDUS_MINI, WEIGHTS, needs_photographs, needs_weights
from torch import nn

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features
from dr_platform.evaluation.extractors import mobilenet_v2
from dr_platform.evaluation.features import FeatureExtractor, choose_extractor, extract


@pytest.fixture(scope="module")
def mobilenet() -> FeatureExtractor:
    return choose_extractor("mobilenet-v2", weights_dir=WEIGHTS)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(WEIGHTS / "mobilenetv2_reference.npz") as stored:
        return dict(stored)


@needs_weights
def test_the_reference_is_reproduced(mobilenet: FeatureExtractor, reference: dict[str, np.ndarray]) -> None:
    found = extract(reference["images"], mobilenet)
    logits = mobilenet.network.logits(torch.from_numpy(found).float()).numpy()
    # Rounding of 53 layers in float32 on numbers up to 12: 53 · 12 · 2⁻²³ = 8e-5, if all of it added up.
    np.testing.assert_allclose(found, reference["features"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-4)


@needs_weights
def test_it_sees_what_is_in_the_pictures(mobilenet: FeatureExtractor, reference: dict[str, np.ndarray]) -> None:
    labels = (WEIGHTS / "imagenet_labels_1001.txt").read_text().splitlines()
    logits = mobilenet.network.logits(torch.from_numpy(extract(reference["images"], mobilenet)).float())
    said = dict(zip(reference["names"].tolist(), (labels[index] for index in logits.argmax(dim=1)), strict=True))
    assert (said["cat.bmp"], said["bird.bmp"], said["parrot.jpg"]) == ("Egyptian cat", "chickadee", "macaw")


@needs_weights
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_batch_and_company_change_no_features(
    mobilenet: FeatureExtractor, reference: dict[str, np.ndarray], batch: int
) -> None:
    whole = extract(reference["images"], mobilenet)
    np.testing.assert_allclose(extract(reference["images"], mobilenet, batch=batch), whole, rtol=0, atol=1e-5 * 4.1)
    turned = extract(reference["images"][::-1], mobilenet, batch=batch)[::-1]
    np.testing.assert_allclose(turned, whole, rtol=0, atol=1e-5 * 4.1)


@needs_weights
def test_its_numbers_carry_its_name_and_kernel(mobilenet: FeatureExtractor) -> None:
    assert mobilenet.metric_name("fid") == "fid__mobilenet-v2-1.0-224-imagenet"
    assert mobilenet.identity.weights_sha256.startswith("9849e5247a6a")
    assert mobilenet.identity.resize.startswith("bicubic with anti-alias, 224")


@needs_weights
@needs_photographs
@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_distances_order_damaged_photographs(mobilenet: FeatureExtractor, damage: str) -> None:
    folder = FUNDUS_MINI / "images"
    paths = sorted([*(folder / "hrf").glob("*.jpg"), *(folder / "idrid").glob("*.jpg")])
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224), 3)) for path in paths])
    real, other = pictures[::2], pictures[1::2].astype(float)
    noise = np.random.default_rng(0).normal(size=other.shape)
    severities = {
        "blur": [gaussian_filter(other, (0, sigma, sigma, 0)) for sigma in (0, 2, 4, 8)],
        "noise": [other + sigma * noise for sigma in (0, 5, 15, 40)],
    }[damage]
    rows = extract(real, mobilenet)
    found = [
        features.kernel_distance(
            rows,
            extract(np.clip(np.round(severe), 0, 255).astype(np.uint8), mobilenet),
            subsets=1,
            subset_size=len(other),
            seed=0,
        )[0]
        for severe in severities
    ]
    assert found == sorted(found), found


def test_the_network_has_as_many_numbers_as_the_file() -> None:
    with torch.device("meta"):
        network = mobilenet_v2.MobileNetV2()
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 3_489_097
    assert len(network.state_dict()) == 106


@pytest.mark.parametrize(("side", "before"), [(8, 0), (7, 1)])
@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)])
def test_padding_at_stride_2_is_tensorflows(side: int, before: int, place: tuple[int, int]) -> None:
    """A kernel of a single one picks every second pixel of the picture with a border of known width before it."""
    layer = nn.Conv2d(1, 1, 3, stride=2, bias=False).requires_grad_(False)
    layer.weight.zero_()[0, 0, place[0], place[1]] = 1
    x = torch.arange(1.0, 1 + side * side).reshape(1, 1, side, side)
    bordered = np.zeros((side + 3, side + 3))
    bordered[before : before + side, before : before + side] = x[0, 0]
    expected = bordered[place[0] :: 2, place[1] :: 2][: -(-side // 2), : -(-side // 2)]
    np.testing.assert_array_equal(mobilenet_v2._same(layer, x)[0, 0].numpy(), expected)


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08" + bytes(40)])
def test_another_file_is_refused_before_it_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / mobilenet_v2.FILES[0]).write_bytes(content)
    with pytest.raises(EvaluationError, match=r"is not the MobileNetV2 known here: its SHA-256 begins .* not 9849e524"):
        choose_extractor("mobilenet-v2", weights_dir=tmp_path)


def test_missing_weights_are_one_line_that_names_file_and_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(features.WEIGHTS_VARIABLE, str(tmp_path / "other"))
    with pytest.raises(EvaluationError) as failure:
        choose_extractor("mobilenet-v2", weights_dir=tmp_path)
    message = str(failure.value)
    assert "looked for mobilenetv2_imagenet_folded.safetensors" in message
    assert str(tmp_path) in message
    assert str(tmp_path / "other") in message
    assert "nothing is downloaded" in message
    assert "\n" not in message
