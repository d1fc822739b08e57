"""A number that says how far it can be trusted."""

from __future__ import annotations

from typing import Self


class Estimate(float):
    """A value, usable as a float, with its standard error and interval if there are any, and how these were had.

    spread: one standard error. spread_kind: how it was had, or why there is none. low, high: a 95 % interval, which is
    not always value ± 1.96 spread.
    """

    spread: float | None
    spread_kind: str
    low: float | None
    high: float | None

    def __new__(
        cls,
        value: float,
        spread: float | None = None,
        spread_kind: str = "none",
        low: float | None = None,
        high: float | None = None,
    ) -> Self:
        """See the class."""
        self = super().__new__(cls, value)
        self.spread, self.spread_kind, self.low, self.high = spread, spread_kind, low, high
        return self

    @property
    def value(self) -> float:
        """The number alone."""
        return float(self)

    def __repr__(self) -> str:
        """The value and its standard error."""
        return f"{float(self):.6g}" if self.spread is None else f"{float(self):.6g} ± {self.spread:.2g}"
