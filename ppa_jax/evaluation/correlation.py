"""Rank correlation over few points, with an interval that knows which of them belong together."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppa_jax.evaluation.scores import DRAWS, MIDDLE

FEWEST = 8  # points: of fewer a coefficient says next to nothing
GROUPS = 5  # of fewer groups no interval is drawn: the bootstrap's would be far too narrow


class Correlation(NamedTuple):
    """Spearman's coefficient; `low` and `high` are NaN where some grouping has too few groups."""

    rho: float
    low: float
    high: float
    points: int
    groups: Mapping[str, int]  # how many of each kind

    def __str__(self) -> str:
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if np.isfinite(self.low) else ""
        kinds = " and ".join(f"{count} {kind}" for kind, count in self.groups.items())
        return f"{self.rho:+.2f}{interval}, {self.points} points of {kinds}"


def spearman(x: Sequence[float], y: Sequence[float], groups: Mapping[str, Sequence[Hashable]]) -> Correlation | None:
    """Spearman's rank correlation of [N] and [N], with a cluster bootstrap: whole groups of points are drawn.

    Points that share a language vary together, and so do those that share a training: drawn one by one they would
    promise too narrow an interval. `groups` names the group of each point, for each kind of group (languages,
    trainings). A draw takes groups of every kind, and a point as often as all of its groups were drawn together. None
    for fewer than 8 points, or where x or y does not vary.
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
        warnings.simplefilter("ignore")  # a draw without variation has no coefficient: NaN, left out
        for _ in range(DRAWS):
            times = np.ones(len(x), int)
            for group in numbers:
                n = group.max() + 1
                times *= np.bincount(rng.integers(n, size=n), minlength=n)[group]
            points = np.repeat(np.arange(len(x)), times)
            drawn.append(_rho(x[points], y[points]))
    return np.nanpercentile(drawn, MIDDLE)


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    """As scipy's spearmanr, which takes a thousand draws several times as long."""
    import scipy.stats  # a second, which no other report has to wait

    one, other = (scipy.stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
