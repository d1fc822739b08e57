"""Passes split over workers: the rows of one process, to the bit; and drawn pictures that stay where they are."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from dr_platform import cluster, records
from dr_platform.config import EvaluateConfig, SiteConfig
from dr_platform.errors import ClusterError, EvaluationError
from dr_platform.evaluation import passes
from dr_platform.evaluation.evaluate import evaluate
from dr_platform.evaluation.features import SMALL, choose_extractor, extract
from dr_platform.gan import Generator
from dr_platform.sampling import sample_images, sample_planes

DATA, STATE = "d" * 64, "c" * 64


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(z_dim=16, w_dim=16, img_resolution=32, num_layers=4, channel_base=256, channel_max=8)
    return made.eval().requires_grad_(False)


@pytest.fixture
def settings(config: EvaluateConfig) -> EvaluateConfig:
    """Several tasks for each of two workers, the last batch a short one, and pictures from both of them."""
    return config.model_copy(update={"images": 77, "batch": 5, "pictures": 60, "equivariance_images": 4})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a worker has: how a sum is split over threads changes its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def crew() -> Iterator[cluster.Crew]:
    with cluster.crew(SiteConfig(workers=2, use_gpu=False, max_failures=1), at_most=9) as found:
        assert found is not None
        yield found


class InTurn:
    """A crew in this process, which gets and gives copies, as if they had travelled."""

    def __init__(self, count: int) -> None:
        self.count, self.tasks = count, []

    def start(self, make: Callable[[str], Callable[[Any], Any]]) -> None:
        self._members = [copy.deepcopy(make)("cpu") for _ in range(self.count)]

    def ask(self, shares: list[list[Any]], told: Callable[[int], None] = lambda done: None) -> list[list[Any]]:
        self.tasks.append(shares)
        answers = []
        for member, share in zip(self._members, shares, strict=False):
            answers.append([member(task) for task in share])
            told(len(share))
        return answers


def setup(generator: Generator, settings: EvaluateConfig) -> passes.Setup:
    return passes.Setup(settings, generator, (SMALL,))


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_any_number_of_workers_gives_the_rows_of_one_process(
    generator: Generator, settings: EvaluateConfig, blobs: np.ndarray, count: int
) -> None:
    workers, small, advanced = InTurn(count), choose_extractor("small"), []
    workers.start(setup(generator, settings))
    asked = passes.with_centres([small], settings)
    whole, parts = (
        passes.generated_features(generator, asked, settings),
        passes.drawn_by(workers, settings, advanced.append),
    )
    assert len(parts.features) == 2
    for ours, theirs in zip(parts.features, whole.features, strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(parts.pictures, whole.pictures)
    assert parts.pictures.shape == (60, 32, 32, 3)
    assert sum(advanced) == settings.images
    found = passes.extracted_by(workers, blobs, 0, settings.batch)
    assert np.array_equal(found, extract(blobs, small, batch=settings.batch))
    for shares in workers.tasks:
        assert len(shares) <= count


def test_shares_are_contiguous_whole_batches_and_nearly_equal() -> None:
    shares = passes._shares(107, 5, 4)
    ends = [end for share in shares for end in share]
    assert ends[0][0] == 0
    assert ends[-1][1] == 107
    assert [start for start, _ in ends[1:]] == [stop for _, stop in ends[:-1]]
    assert all(start % 5 == 0 for start, _ in ends)
    assert [-(-(share[-1][1] - share[0][0]) // 5) for share in shares] == [6, 6, 5, 5]


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_the_report_of_one(
    crew: cluster.Crew,
    generator: Generator,
    settings: EvaluateConfig,
    blobs: np.ndarray,
    checkpoint: records.Checkpoint,
    tmp_path: Path,
) -> None:
    told: list[tuple[int, int]] = []
    known = {"checkpoint": checkpoint, "checkpoint_sha256": STATE, "keep_generated": True}
    alone = evaluate(generator, blobs, DATA, settings, **known, cache_dir=tmp_path / "one")
    shared = evaluate(
        generator, blobs, DATA, settings, **known, cache_dir=tmp_path / "two", crew=crew,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert shared == alone
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 3  # of real images, of their middles, and of generated ones
    for name in names:
        one, two = (safetensors.numpy.load_file(tmp_path / where / name)["features"] for where in ("one", "two"))
        assert np.array_equal(one, two)
    assert told[-1][0] == told[-1][1]


@pytest.mark.timeout(240)
def test_what_a_worker_cannot_do_is_said_by_its_own_error(
    crew: cluster.Crew, generator: Generator, settings: EvaluateConfig
) -> None:
    broken = copy.deepcopy(generator)
    with torch.no_grad():
        for weight in broken.parameters():
            weight.fill_(float("nan"))
    crew.start(setup(broken, settings))
    with pytest.raises(EvaluationError, match="not finite, so nothing can be measured"):
        passes.drawn_by(crew, settings)


def test_a_worker_with_other_weights_than_the_driver_refuses(generator: Generator, settings: EvaluateConfig) -> None:
    others = SMALL.model_copy(update={"weights_sha256": "f" * 64})
    with pytest.raises(EvaluationError, match="a worker found other extractors' weights"):
        InTurn(1).start(passes.Setup(settings, generator, (others,)))


def stumbling(mark: Path) -> Callable[[str], Callable[[int], int]]:
    """Workers that double a number; at 3 one kills itself if there is a mark, and takes the mark away."""

    def make(device: str) -> Callable[[int], int]:
        def double(number: int) -> int:
            if number == 3 and mark.exists():
                mark.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return 2 * number

        return double

    return make


@pytest.mark.timeout(240)
def test_a_worker_that_dies_begins_anew_as_often_as_the_site_allows(crew: cluster.Crew, tmp_path: Path) -> None:
    mark, shares = tmp_path / "mark", [[0, 1, 2, 3, 4], [5, 6, 7]]
    crew.start(stumbling(mark))
    mark.touch()
    assert crew.ask(shares) == [[0, 2, 4, 6, 8], [10, 12, 14]]
    assert not mark.exists()
    mark.touch()
    with pytest.raises(ClusterError, match=r"lost more than 1 times \(site\.max_failures\)") as caught:
        crew.ask(shares)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("workers", "at_most", "starts"), [(1, 9, False), ("auto", 9, False), (4, 1, False)])
def test_one_worker_stays_without_ray(workers: int | str, at_most: int, starts: bool) -> None:
    with cluster.crew(SiteConfig(workers=workers, use_gpu=False), at_most) as found:
        assert (found is not None) == starts


@pytest.mark.parametrize("channels", [1, 3])
def test_planes_are_the_pictures_of_sample_images(make_waves: Callable[..., torch.nn.Module], channels: int) -> None:
    waves = make_waves(channels=channels)
    planes, finite = sample_planes(waves, range(5), psi=0.7)
    assert finite
    assert planes.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(planes.permute(0, 2, 3, 1).numpy(), sample_images(waves, range(5), psi=0.7))
