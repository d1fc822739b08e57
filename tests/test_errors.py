"""Errors travel between processes and are one line."""

import inspect
import pickle

import pytest

from dr_platform import errors

TREE = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.DrpError)]


@pytest.mark.parametrize("error", TREE)
def test_every_error_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error("found 3, needed 4; do this")))
    assert type(copy) is error
    assert str(copy) == "found 3, needed 4; do this"


def test_the_docstring_draws_every_error():
    for error in TREE:
        assert error.__name__ in errors.__doc__
