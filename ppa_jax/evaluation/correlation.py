"""Rank correlation over few points, with an interval that knows which of them belong together."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

FEWEST = 8  # points: of fewer a coefficient says next to nothing
DRAWS = 1000
MIDDLE = (2.5, 97.5)  # percentiles: an interval of 95%


class Correlation(NamedTuple):
    """Spearman's coefficient; `low` and `high` are NaN where there are fewer than three clusters."""

    rho: float
    low: float
    high: float
    points: int
    clusters: int

    def __str__(self) -> str:
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if np.isfinite(self.low) else ""
        return f"{self.rho:+.2f}{interval}, {self.points} points in {self.clusters} groups"


def spearman(x: Sequence[float], y: Sequence[float], clusters: Sequence[Hashable]) -> Correlation | None:
    """Spearman's rank correlation of [N] and [N], with a cluster bootstrap: whole groups of points are drawn.

    Points that share a language, or a training, vary together: drawn one by one they would promise too narrow an
    interval. `clusters` names the group of each point. None for fewer than 8 points, or where x or y does not vary.
    """
    if not len(x) == len(y) == len(clusters):
        raise ValueError(f"{len(x)} and {len(y)} values of {len(clusters)} points")
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < FEWEST or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    names = list(dict.fromkeys(clusters))
    members = [np.array([i for i, name in enumerate(clusters) if name == one]) for one in names]
    low = high = np.nan
    if len(members) > 2:
        rng = np.random.default_rng(0)
        drawn = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a draw without variation has no coefficient: NaN, left out
            for _ in range(DRAWS):
                points = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
                drawn.append(_rho(xs[points], ys[points]))
        low, high = (float(value) for value in np.nanpercentile(drawn, MIDDLE))
    return Correlation(_rho(xs, ys), low, high, len(xs), len(names))


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    return float(scipy.stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
