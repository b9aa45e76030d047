"""Spearman's rank correlation over a few points, with a bootstrap interval for points that are not independent."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.evaluation.scores import DRAWS, MIDDLE

FEWEST = 8  # points; a coefficient of fewer means almost nothing
GROUPS = 5  # with fewer groups of a kind there is no interval: it would be far too narrow


class Correlation(NamedTuple):
    """Spearman's coefficient; `low` and `high` are NaN if there are too few groups of some kind."""

    rho: float
    low: float
    high: float
    points: int
    groups: Mapping[str, int]  # the number of groups of each kind

    def __str__(self) -> str:
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if np.isfinite(self.low) else ""
        kinds = " and ".join(f"{count} {kind}" for kind, count in self.groups.items())
        return f"{self.rho:+.2f}{interval}, {self.points} points of {kinds}"


def spearman(x: Sequence[float], y: Sequence[float], groups: Mapping[str, Sequence[Hashable]]) -> Correlation | None:
    """Spearman's rank correlation of [N] and [N], with a 95% interval from a cluster bootstrap.

    Points that share a language vary together, as do points that share a training run. Resampling single points would
    make the interval too narrow, so whole groups are resampled: each sample draws groups of every kind, and the number
    of times that it contains a point is the product of the counts of its groups.

    Args:
      x: N values.
      y: N values.
      groups: for each kind of group (languages, training runs) the group of each point.

    Returns:
      None for fewer than 8 points, or where x or y is constant.
    """
    if not all(len(values) == len(x) for values in (y, *groups.values())):
        raise ValueError(f"{len(x)} and {len(y)} values, groups of {[len(names) for names in groups.values()]} points")
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < FEWEST or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    counts = {kind: len(set(names)) for kind, names in groups.items()}
    low = high = np.nan
    if counts and min(counts.values()) >= GROUPS:
        low, high = map(float, _interval(xs, ys, list(groups.values())))
    return Correlation(_rho(xs, ys), low, high, len(xs), counts)


def _interval(x: np.ndarray, y: np.ndarray, kinds: Sequence[Sequence[Hashable]]) -> np.ndarray:
    numbers = [np.unique([str(name) for name in names], return_inverse=True)[1] for names in kinds]
    rng = np.random.default_rng(0)
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the coefficient of a constant sample is NaN and ignored in the percentiles
        for _ in range(DRAWS):
            times = np.ones(len(x), int)
            for group in numbers:
                n = group.max() + 1
                times *= np.bincount(rng.integers(n, size=n), minlength=n)[group]
            points = np.repeat(np.arange(len(x)), times)
            drawn.append(_rho(x[points], y[points]))
    return np.nanpercentile(drawn, MIDDLE)


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    import scipy.stats  # takes a second to import, and most reports do not need it

    found: Any = scipy.stats.spearmanr(x, y) if len(x) > 1 else [np.nan]
    return float(found[0])
