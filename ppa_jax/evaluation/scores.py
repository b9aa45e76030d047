"""Scores with what they were measured on: value, confidence interval, and the difference between two models.

Every measure here is a ratio of two sums over items: accuracy is hits over queries, F1 is 2 * right over found + gold,
the alignment error rate likewise. So one bootstrap serves all: items are drawn with replacement, a thousand times, and
the interval holds the middle 95% of the ratios. Two models are compared on the same draws (paired bootstrap; Koehn
2004, Berg-Kirkpatrick et al. 2012).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 1000
MIDDLE = (2.5, 97.5)  # percentiles: an interval of 95%
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """One score. Its items fall into one or several groups; the value is the mean over the groups, as for languages."""

    task: str  # "tatoeba", "bucc", ...
    language: str  # of the other side, or "mean"
    direction: str  # "en-de", "de-en", "both"
    layer: int | None  # 0 is the input of the first block; None where there is no layer
    pooling: str
    metric: str
    groups: tuple[tuple[np.ndarray, np.ndarray], ...]  # of (numerators [N], denominators [N])
    count: int  # items, as a reader would count them: queries, sentence pairs, batches
    scale: float = 100.0
    shared_items: bool = False  # item i of every group is the same sentence (n-way text): it is drawn in all or in none

    @property
    def value(self) -> float:
        """Mean over the groups of sum(numerators) / sum(denominators), times the scale."""
        return self.scale * float(np.mean([_ratio(top.sum(), bottom.sum()) for top, bottom in self.groups]))

    def draws(self, seed: int = 0) -> np.ndarray:
        """The value in each of the bootstrap's samples, [DRAWS]. The same draws of items for every model."""
        values = []
        for group, (top, bottom) in enumerate(self.groups):
            weights = _weights(len(top), 0 if self.shared_items else group, seed)
            values.append(_ratio(weights @ top, weights @ bottom))
        return self.scale * np.mean(values, axis=0)

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95% confidence interval. A single item says nothing: then both are NaN."""
        if min(len(top) for top, _ in self.groups) < 2:
            return float("nan"), float("nan")
        low, high = np.percentile(self.draws(), MIDDLE)
        return float(low), float(high)

    def record(self, model: str) -> Record:
        """The record of scores.json: fixed names, `low` and `high` None without an interval."""
        low, high = (None if np.isnan(x) else round(x, 4) for x in self.interval)
        return {
            "model": model,
            "task": self.task,
            "language": self.language,
            "direction": self.direction,
            "layer": self.layer,
            "pooling": self.pooling,
            "metric": self.metric,
            "value": round(self.value, 4),
            "count": self.count,
            "low": low,
            "high": high,
        }


def per_item(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of a plain mean: each item counts once."""
    hits = np.asarray(hits, np.float64)
    return hits, np.ones_like(hits)


def mean_over_languages(scores: Sequence[Score], direction: str) -> Score:
    """The score `mean`: every language of `scores` has the same weight.

    `shared_items` of the scores says whether their items are the same sentences.
    """
    groups = tuple(group for score in scores for group in score.groups)
    count = sum(score.count for score in scores)
    return dataclasses.replace(scores[0], language="mean", direction=direction, groups=groups, count=count)


FIELDS = ("task", "language", "direction", "layer", "pooling", "metric")


def differences(
    scores: Mapping[str, Sequence[Score]], baseline: str, by: Sequence[str] = FIELDS, seed: int = 0
) -> Iterator[Record]:
    """Every model against `baseline`, by paired bootstrap, for what was measured on the same items with both.

    Scores that agree in the fields `by` are compared. Yields records as in scores.json with `baseline` beside `model`;
    `value` is the model's score minus the baseline's.
    """

    def key(score: Score) -> tuple[Any, ...]:
        return tuple(getattr(score, name) for name in by)

    old = {key(score): score for score in scores.get(baseline, ())}
    for model, new in scores.items():
        for score in new if model != baseline else ():
            before = old.get(key(score))
            if before is None or [len(g[0]) for g in before.groups] != [len(g[0]) for g in score.groups]:
                continue
            low = high = None
            if min(len(top) for top, _ in score.groups) > 1:
                bounds = np.percentile(score.draws(seed) - before.draws(seed), MIDDLE)
                low, high = (round(float(x), 4) for x in bounds)
            value = round(score.value - before.value, 4)
            yield score.record(model) | {"baseline": baseline, "value": value, "low": low, "high": high}


def _ratio(top: Any, bottom: Any) -> Any:
    """top / bottom, and 0 where nothing is there to be divided by."""
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=np.asarray(bottom) != 0)


@functools.lru_cache(maxsize=128)
def _weights(items: int, group: int, seed: int) -> np.ndarray:
    """How often each item is drawn in each sample, [DRAWS, items]."""
    rng = np.random.default_rng((seed, group, items))
    weights = np.empty((DRAWS, items), np.uint8)
    for row in weights:
        row[:] = np.bincount(rng.integers(items, size=items), minlength=items)
    return weights
