"""FIR filters as sums of separable ones, the form in which the kernel applies them.

A one-dimensional filter is its own outer product. A radial filter, a smooth bump with no preferred direction, is of low
rank up to small terms: its singular value decomposition gives the pairs, as many as the tolerance asks for (2 or 3, in
two layers 4, of at most 6 for the 12 x 12 filters of configuration R). The relative Frobenius error bounds the error of
any output by the same factor, so that 1e-4 lies below the rounding of half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..fir import separable_terms

TOLERANCE = 1e-4  # relative Frobenius error of a filter

# Filters are buffers that live as long as their layer; decomposing one waits for the device, so once is enough.
_cache = WeakTensorKeyDictionary()


def separable_factors(filter: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """`filter` as [rank, 2, taps] in float32 on its device: the sum over ranks of outer(pair[0], pair[1]).

    filter: [taps], or [taps, taps] with rows along y. The rank is the smallest whose relative Frobenius error is at
    most `tolerance`, at least 1. Kept for each tensor until it is changed or freed.
    """
    # What is made in inference mode cannot be changed outside of it, and counts no versions.
    key = (0 if filter.is_inference() else filter._version, tolerance)
    known = _cache.get(filter)
    if known is not None and known[0] == key:
        return known[1]
    with torch.inference_mode(False), torch.no_grad():
        factors = _decompose(filter.detach().double().cpu(), tolerance).float().to(filter.device)
    _cache[filter] = (key, factors)
    return factors


def _decompose(filter: Tensor, tolerance: float) -> Tensor:
    if filter.ndim == 1:
        return torch.stack([filter, filter])[None]
    terms = torch.tensor(separable_terms(tuple(map(tuple, filter.tolist())), tolerance), dtype=filter.dtype)
    # Both sides of a term get the same norm.
    roots = torch.linalg.vector_norm(terms[:, 0], dim=1).sqrt()[:, None]
    return torch.stack([terms[:, 0] / roots, terms[:, 1] * roots], dim=1)
