"""Adaptive discriminator augmentation: how p, the probability of each transform, follows the overfitting of D.

D overfits when it tells the training images from all others, which shows in the mean sign of its logits for them, r_t:
0 for a D that has learnt nothing, 1 for one that is always sure. While r_t is above the target p grows, while below it
shrinks, by a step whose size alone is set.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class AdaptiveP:
    """p, and the signs counted since it last moved. Counts are integers: they add up the same in any order."""

    p: float = 0.0
    signs: int = 0  # sum of the signs of D's logits for real images
    count: int = 0  # of those logits

    @property
    def mean_sign(self) -> float:
        """r_t since p last moved; 0 if nothing was counted."""
        return self.signs / self.count if self.count else 0.0

    def after(self, signs: int, count: int) -> AdaptiveP:
        """With `count` more logits counted, whose signs sum to `signs`."""
        return replace(self, signs=self.signs + signs, count=self.count + count)

    def adjusted(self, target: float, images: int, ada_images: float, limit: float | None = 1.0) -> AdaptiveP:
        """p moved one step towards what holds r_t at `target`, and counting begun anew; unmoved if nothing was counted.

        images: shown since p last moved; ada_images: how many it takes to move p from 0 to 1.
        limit: that p does not pass. The published form has none (None), but a p beyond 1 acts as 1 and takes as long to
        come back as it took to get there. A limit below 1 leaves a share of the images untouched. At 1 there are none:
        turned by any angle, for one, they no longer tell D which way is up, and the generator will not keep to it.
        """
        if self.count == 0:
            return self
        error = self.mean_sign - target
        step = images / ada_images * ((error > 0) - (error < 0))
        return AdaptiveP(p=min(max(self.p + step, 0.0), math.inf if limit is None else limit))

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {"p": self.p, "signs": self.signs, "count": self.count}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> AdaptiveP:
        """From `to_json`."""
        return cls(p=float(stored["p"]), signs=int(stored["signs"]), count=int(stored["count"]))
