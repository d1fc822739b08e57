"""The bootstrap protocols: what each must show, and that a planted one is recognised."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import protocols

D = 40
REALS, FAKES = 120, 2000


def gaussian(n: int, seed: int, stretch: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)) / np.sqrt(np.arange(1, D + 1)) * stretch


@pytest.fixture(scope="module")
def results() -> dict[str, protocols.Replication]:
    every = protocols.replicate(
        tuple(protocols.PROTOCOLS), gaussian(REALS, 1), gaussian(FAKES, 2, 1.3), repetitions=200, exact_repetitions=16
    )
    return {result.protocol: result for result in every}


def test_every_protocol_reports_what_it_did(results: dict[str, protocols.Replication]) -> None:
    assert list(results) == list("ABCDEFGHIJ")
    for result in results.values():
        assert json.loads(json.dumps(dataclasses.asdict(result)))["protocol"] == result.protocol
        assert result.low <= result.mean <= result.high
        assert result.sd > 0
        assert result.trace == pytest.approx(np.trace(np.cov(gaussian(REALS, 1), rowvar=False)), rel=1e-12)
        assert result.point == results["A"].point
    assert results["A"].repetitions == 200
    assert results["B"].repetitions == 16
    assert (results["H"].real, results["H"].generated) == (96, FAKES)
    assert (results["E"].real, results["E"].generated) == (60, 60)


def test_resampling_adds_to_the_distance_and_more_on_both_sides(results: dict[str, protocols.Replication]) -> None:
    shift = {name: result.shift for name, result in results.items()}
    assert 0 < shift["H"] < shift["A"] < shift["J"] < shift["C"]
    assert 0 < shift["B"] < shift["G"]
    assert shift["I"] > shift["B"]


def test_reals_against_reals_are_nearer_than_the_generator(results: dict[str, protocols.Replication]) -> None:
    for name in "DF":
        assert results[name].mean < results["A"].point
    assert results["F"].mean < results["D"].mean < results["E"].mean


def test_the_correction_repairs_most_of_the_bias(results: dict[str, protocols.Replication]) -> None:
    truth = 0.3**2 * (1 / np.arange(1, D + 1)).sum()  # of deviations s and 1.3 s on common axes
    result = results["A"]
    corrected = protocols.bias_corrected(result)
    assert abs(corrected - truth) < 0.5 * (result.point - truth)
    assert corrected.value == 2 * result.point - result.mean
    assert corrected.high - corrected.low == pytest.approx(result.high - result.low, rel=1e-9)
    with pytest.raises(EvaluationError, match="says nothing of the bias"):
        protocols.bias_corrected(results["F"])


@pytest.mark.parametrize("planted", ["A", "B", "C", "G", "H", "I", "J"])
def test_a_planted_protocol_is_recognised(results: dict[str, protocols.Replication], planted: str) -> None:
    truth = results[planted]
    matches = protocols.best_match(tuple(results.values()), shift=truth.shift, sd=truth.sd)
    assert matches[0].protocol == planted
    assert matches[0].misfit == 0
    assert len(matches) == 10
    assert matches[0].trace_needed == pytest.approx(truth.trace)


def test_the_trace_needed_scales_the_shift_and_the_spread() -> None:
    result = protocols.Replication("A", "", 10, 12, 0.1, 11.8, 12.2, 100, 9, 9, "", 0, 50)
    match = protocols.best_match([result])[0]
    assert match.trace_needed == pytest.approx(50 * 3.89 / 2)
    assert match.sd_there == pytest.approx(0.1 * 3.89 / 2)


def test_a_shift_of_the_other_sign_matches_nothing() -> None:
    result = protocols.Replication("F", "", 10, 3, 0.1, 2.8, 3.2, 100, 9, 9, "", 0, 50)
    assert protocols.best_match([result])[0].misfit == float("inf")


def test_fewer_images_are_said(results: dict[str, protocols.Replication]) -> None:
    assert results["A"].note == "2000 generated images instead of 50,000"
    assert results["I"].note == "60 images a side instead of 1,000"
    assert results["B"].note == ""  # 16 times 120 of 2,000 do not overlap
    few = protocols.replicate("BG", gaussian(REALS, 1), gaussian(100, 2), repetitions=5, exact_repetitions=3)
    assert few[0].note.startswith("50 fresh images instead of 120; fresh images are random subsets of 100")
    assert few[1].note == "100 generated images instead of 120"


def test_halves_are_of_patients() -> None:
    groups = np.repeat(np.arange(60), 2)
    twins = gaussian(60, 1)[groups]  # two equal photographs of each patient
    by_image, by_patient = (
        protocols.replicate("E", twins, gaussian(200, 2), groups=g, exact_repetitions=8)[0] for g in (None, groups)
    )
    assert by_patient.mean > 1.2 * by_image.mean


def test_a_seed_is_a_result() -> None:
    runs = [
        protocols.replicate("AJ", gaussian(60, 1), gaussian(200, 2), repetitions=50, exact_repetitions=3, seed=seed)
        for seed in (4, 4, 5)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_unfit_requests_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no protocol 'K'"):
        protocols.replicate("AK", gaussian(10, 1), gaussian(10, 2))
    with pytest.raises(EvaluationError, match="3 real and 10 generated"):
        protocols.replicate("A", gaussian(3, 1), gaussian(10, 2))
