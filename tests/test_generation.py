"""Seeds as people write them."""

import pytest

from dr_platform.errors import ConfigError
from dr_platform.generation import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5,1-2, 9", [5, 1, 2, 9]),
        ("3,1-4", [3, 1, 2, 4]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds_come_once_in_the_order_given(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "4294967296", "1.5", "0-99999999999"])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(ConfigError, match="--seeds is"):
        parse_seeds(text)


def test_a_million_and_one_images_are_refused():
    assert len(parse_seeds("0-999999")) == 1_000_000
    with pytest.raises(ConfigError, match="more than 1,000,000"):
        parse_seeds("0-1000000")
