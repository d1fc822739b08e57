"""Golden numbers of the published implementation, where they lie beside the project; helpers to compare with them."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch
from shared_data import GOLDEN
from torch import Tensor

GENERATORS = ("net_g_t32", "net_g_t64_cond5", "net_g_r32", "net_g_r64_cond5")
DISCRIMINATORS = ("net_d_d32", "net_d_d64_cond5")


class Case:
    """One golden file: `case["key"]` as a tensor, `case.meta` its options."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
            self.arrays = {key: archive[key] for key in archive.files if key != "meta"}
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.tensor(self.arrays[key])

    def get(self, key: str) -> Tensor | None:
        return self[key] if key in self.arrays else None

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose keys begin with `prefix`, by the rest of the key."""
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}


@functools.cache
def golden(name: str) -> Case:
    return Case(name)


@functools.cache
def table(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def relative_error(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||, in float64."""
    reference = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - reference).norm() / reference.norm())
