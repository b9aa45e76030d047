"""One number from several seeds: the mean and its spread; a difference, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppa_jax.evaluation.scores import t_interval


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str | None:
    """ "12.3 ±0.4", the mean and the standard deviation over the seeds; of one seed its value, of none None."""
    if not len(values):
        return None
    return f"{np.mean(values):.{digits}f}" + (f" ±{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


class Difference(NamedTuple):
    """A mean of differences with its 95% interval by Student's t; NaN where there are too few seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """From the difference of each seed."""
        low, high = t_interval(values) if len(values) > 1 else (float("nan"), float("nan"))
        return cls(float(np.mean(values)) if len(values) else float("nan"), low, high)

    @property
    def off_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def text(self, digits: int = 1) -> str | None:
        """ "+1.2 [+0.3, +2.1]", in bold if the interval is off zero; None without a value."""
        if np.isnan(self.mean):
            return None
        mean, low, high = (f"{value:+.{digits}f}" for value in self)
        if np.isnan(self.low):
            return mean
        return f"**{mean} [{low}, {high}]**" if self.off_zero else f"{mean} [{low}, {high}]"
