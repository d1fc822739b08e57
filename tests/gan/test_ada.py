"""How p follows the overfitting of D: direction, speed, limits, and that the order of counting does not matter."""

from __future__ import annotations

import json
import math
import random

import pytest

from dr_platform.gan import AdaptiveP


def adjusted(state: AdaptiveP, limit: float | None = 1.0) -> AdaptiveP:
    """By the published settings at batch 32: 4 steps of it between adjustments, 500 kimg from 0 to 1."""
    return state.adjusted(target=0.6, images=32 * 4, ada_images=500_000, limit=limit)


def test_p_grows_while_d_is_surer_than_the_target_and_shrinks_while_it_is_not():
    step = 128 / 500_000
    assert adjusted(AdaptiveP(0.5, signs=61, count=100)).p == pytest.approx(0.5 + step)
    assert adjusted(AdaptiveP(0.5, signs=59, count=100)).p == pytest.approx(0.5 - step)


def test_p_rests_on_the_target_and_where_nothing_was_counted():
    assert adjusted(AdaptiveP(0.5, signs=3, count=5)).p == 0.5
    assert adjusted(AdaptiveP(0.5)) == AdaptiveP(0.5)


def test_the_step_does_not_grow_with_the_error():
    assert adjusted(AdaptiveP(0.5, signs=100, count=100)).p == adjusted(AdaptiveP(0.5, signs=61, count=100)).p


def test_an_overfitting_d_takes_p_from_0_to_1_within_ada_images():
    state, images = AdaptiveP(), 0
    while state.p < 1:
        state, images = adjusted(state.after(signs=128, count=128)), images + 128
    # 500,000 is no multiple of 128, and p is a sum of rounded steps.
    assert 500_000 <= images <= 500_000 + 2 * 128


def test_p_stays_within_its_limits():
    sure, unsure = AdaptiveP(1.0, signs=9, count=9), AdaptiveP(0.0, signs=-9, count=9)
    assert adjusted(sure).p == 1.0
    assert adjusted(unsure).p == 0.0
    assert adjusted(AdaptiveP(0.8, signs=9, count=9), limit=0.8).p == 0.8
    assert adjusted(sure, limit=None).p > 1.0  # as published


def test_counting_begins_anew_after_an_adjustment():
    state = adjusted(AdaptiveP(0.5, signs=9, count=9))
    assert (state.signs, state.count) == (0, 0)
    assert state.mean_sign == 0


def test_the_order_and_the_shares_of_counting_do_not_matter():
    """Workers and passes of any size: integers add up exactly."""
    signs = [random.Random(0).choice((-1, 1)) for _ in range(1000)]
    one_by_one, at_once = AdaptiveP(), AdaptiveP().after(sum(signs), len(signs))
    for sign in random.Random(1).sample(signs, len(signs)):
        one_by_one = one_by_one.after(sign, 1)
    assert one_by_one == at_once


def test_p_survives_being_written_to_the_bit():
    state = AdaptiveP(p=math.pi / 10, signs=-7, count=64)
    assert AdaptiveP.from_json(json.loads(json.dumps(state.to_json()))) == state
