"""Fixtures of the training tests."""

import pytest
import torch

from dr_platform.training.group import Group


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def alone() -> Group:
    return Group()
