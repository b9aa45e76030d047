"""Scores and the items they were measured on: values, confidence intervals, differences between two models.

Every measure here is a ratio of two sums over items: accuracy is hits over queries, F1 is 2 * correct over found +
gold, and so on. So one bootstrap serves all: items are drawn with replacement a thousand times, and the interval covers
the middle 95% of the ratios. Two models are compared on the same draws (paired bootstrap; Koehn 2004, Berg-Kirkpatrick
et al. 2012). A measure over a few large batches (CKA) has too few items to resample: its interval is Student's t, over
the batches or their paired differences.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy.special import stdtrit

from ppa_jax.errors import UserError
from ppa_jax.training.workdir import atomic

DRAWS = 1000
MIDDLE = (2.5, 97.5)  # percentiles: an interval of 95%
FIELDS = ("task", "language", "direction", "layer", "pooling", "metric")
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """One score. Its items form one or more groups, for example languages; the value is the mean over the groups.

    For a model with several trainings, the groups of each training follow those of the previous one.
    """

    task: str  # "tatoeba", "bucc", ...
    language: str  # the one that is not English, or "mean"
    direction: str  # "en-de", "de-en", "both"
    layer: int | None  # 0 is the input of the first block; None where there is no layer
    pooling: str
    metric: str
    groups: tuple[tuple[np.ndarray, np.ndarray], ...]  # of (numerators [N], denominators [N])
    count: int  # items, as a reader would count them: queries, sentence pairs, batches
    scale: float = 100.0
    shared_items: bool = False  # item i is the same sentence in every group (n-way text): drawn in all groups or none
    batches: bool = False  # the items are batches: few, and each with a value
    runs: int = 1  # trainings: groups i, i + len(groups) / runs, ... have the same items

    @property
    def value(self) -> float:
        """Mean over the groups of sum(numerators) / sum(denominators), times the scale."""
        return float(np.mean(self.by_run))

    @property
    def by_run(self) -> np.ndarray:
        """The value of each training, [runs]."""
        values = [_ratio(top.sum(), bottom.sum()) for top, bottom in self.groups]
        return self.scale * np.mean(np.reshape(values, (self.runs, -1)), axis=1)

    @property
    def by_batch(self) -> np.ndarray:
        """The value of each batch, [N], if items are batches: batch i has the same sentences in all groups."""
        return self.scale * np.mean([_ratio(top, bottom) for top, bottom in self.groups], axis=0)

    @property
    def sizes(self) -> list[int]:
        """Items of each group of one training. Two models are compared only if these agree."""
        return [len(top) for top, _ in self.groups[: len(self.groups) // self.runs]]

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """The value in each bootstrap sample, [DRAWS]; the samples of items are the same for every model and training.

        `draw` is faster for many scores.
        """
        draw([self])
        return vars(self)["draws"]

    def stream(self, group: int) -> int:
        """The index of the random stream that samples the items of a group."""
        return 0 if self.shared_items else group % len(self.sizes)

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95% confidence interval; NaN for a single item."""
        return _interval(self)

    def record(self, model: str) -> Record:
        """The record of scores.json: fixed names, `low` and `high` None without an interval."""
        low, high = _rounded(self.interval)
        where = {name: getattr(self, name) for name in FIELDS}
        return {"model": model, **where, "value": round(self.value, 4), "count": self.count, "low": low, "high": high}


def draw(scores: Iterable[Score]) -> None:
    """Computes `draws` of many scores at once: one matrix product for all groups of a size, and each group only once.

    A comparison has tens of thousands of groups, many of them in several scores: the group of a language is also part
    of the mean over the languages, and that of a training part of the score of its model.
    """
    todo = [score for score in scores if "draws" not in vars(score) and not score.batches and min(score.sizes) > 1]
    columns: dict[tuple[int, int], dict[tuple[int, int], tuple[np.ndarray, np.ndarray, list[int]]]] = {}
    for number, score in enumerate(todo):
        for group, (top, bottom) in enumerate(score.groups):
            column = columns.setdefault((len(top), score.stream(group)), {})
            column.setdefault((id(top), id(bottom)), (top, bottom, []))[2].append(number)
    total = np.zeros((len(todo), DRAWS))
    for (items, stream), same in columns.items():
        weights, parts = _weights(items, stream).astype(np.float64), list(same.values())
        for first in range(0, len(parts), 256):  # bounds the memory
            some = parts[first : first + 256]
            tops, bottoms = (weights @ np.stack([part[i] for part in some], axis=1) for i in range(2))
            for ratio, (_, _, numbers) in zip(_ratio(tops, bottoms).T, some, strict=True):
                for number in numbers:
                    total[number] += ratio
    for score, value in zip(todo, total, strict=True):
        vars(score)["draws"] = score.scale * value / len(score.groups)  # fills the cached property


def per_item(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of a plain mean: each item counts once."""
    hits = np.asarray(hits, np.float64)
    return hits, np.ones_like(hits)


def mean_over_languages(scores: Sequence[Score], direction: str) -> Score:
    """The score `mean`, in which every language has the same weight. Other fields are those of the first score."""
    groups = tuple(group for score in scores for group in score.groups)
    count = sum(score.count for score in scores)
    return dataclasses.replace(scores[0], language="mean", direction=direction, groups=groups, count=count)


def difference(score: Score, baseline: Score, model: str, baseline_model: str) -> Record | None:
    """A model's score minus the baseline's, paired: a record as in scores.json with the additional field `baseline`.

    None unless both were measured on the same items.
    """
    if baseline.sizes != score.sizes:
        return None
    low, high = _rounded(_interval(score, baseline))
    value = round(score.value - baseline.value, 4)
    return score.record(model) | {"baseline": baseline_model, "value": value, "low": low, "high": high}


def over_runs(runs: Sequence[Sequence[Score]]) -> list[Score]:
    """The mean over several trainings of one model, for the scores that all of them have on the same items."""
    if len(runs) == 1:
        return list(runs[0])
    by_key = [{tuple(getattr(score, name) for name in FIELDS): score for score in run} for run in runs]
    means = []
    for key, first in by_key[0].items():
        same = [scores[key] for scores in by_key if key in scores and scores[key].sizes == first.sizes]
        if len(same) == len(runs):
            groups = tuple(group for score in same for group in score.groups)
            means.append(dataclasses.replace(first, groups=groups, runs=len(runs)))
    return means


def save_scores(path: str | os.PathLike, models: Mapping[str, Sequence[Score]]) -> None:
    """Writes scores with their items to an .npz file, so that later scores can be compared with them.

    Raises UserError if the file cannot be written.
    """
    arrays, facts = {}, []
    for model, scores in models.items():
        for score in scores:
            fields = {f.name: getattr(score, f.name) for f in dataclasses.fields(Score) if f.name != "groups"}
            for number, group in enumerate(score.groups):
                arrays[f"{len(facts)}.{number}"] = np.stack(group)
            facts.append({"of": model, "groups": len(score.groups)} | fields)
    with atomic(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, facts=np.array(json.dumps(facts, default=int)), **arrays)  # int: for NumPy integers


def load_scores(path: str | os.PathLike) -> dict[str, list[Score]]:
    """The scores that `save_scores` wrote, by model; empty without such a file. Raises UserError if it is damaged."""
    path = epath.Path(path)
    if not path.exists():
        return {}
    models: dict[str, list[Score]] = {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            for i, fields in enumerate(json.loads(str(arrays["facts"]))):
                groups = [arrays[f"{i}.{number}"] for number in range(fields.pop("groups"))]
                scores = models.setdefault(fields.pop("of"), [])
                scores.append(Score(groups=tuple((top, bottom) for top, bottom in groups), **fields))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to measure these scores again") from error
    return models


def write_records(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes scores.json or another list of records as JSON, and beside it as CSV, one line for each record.

    Raises UserError if a file cannot be written.
    """
    records = [dict(record) for record in records]
    text = json.dumps(records, indent=1, ensure_ascii=False)
    with atomic(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(name for record in records for name in record))
    table = epath.Path(path).with_suffix(".csv")
    with atomic(table) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        rows.writeheader()
        rows.writerows(records)


def t_interval(values: Any) -> tuple[float, float]:
    """95% confidence interval of the mean of at least two independent values, by Student's t."""
    half = stdtrit(len(values) - 1, MIDDLE[1] / 100) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def read_records(path: str | os.PathLike) -> list[Any]:
    """What `write_records` wrote; empty without such a file."""
    path = epath.Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


BySeed = Mapping[int, float]  # seed of a training -> value


def minus(one: BySeed, other: BySeed) -> BySeed:
    """one - other, for the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def mean_and_spread(by_seed: BySeed, digits: int = 1) -> str | None:
    """ "12.3 ±0.4": mean and standard deviation over the seeds; the value alone for one seed, None for none."""
    values = list(by_seed.values())
    if not values:
        return None
    return f"{np.mean(values):.{digits}f}" + (f" ±{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


class Difference(NamedTuple):
    """A difference and its 95% interval, NaN where there is none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, by_seed: BySeed) -> Difference:
        """The mean of the differences of several seeds, with Student's t interval."""
        values = list(by_seed.values())
        low, high = t_interval(values) if len(values) > 1 else (float("nan"), float("nan"))
        return cls(float(np.mean(values)) if len(values) else float("nan"), low, high)

    @classmethod
    def of_record(cls, record: Record) -> Difference:
        """From a record of `difference`."""
        low, high = (float("nan") if record[name] is None else record[name] for name in ("low", "high"))
        return cls(record["value"], low, high)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0

    def text(self, digits: int = 1) -> str | None:
        """ "+1.2 [+0.3, +2.1]", in bold if the interval excludes zero; None without a value."""
        if np.isnan(self.mean):
            return None
        mean, low, high = (f"{value:+.{digits}f}" for value in self)
        if np.isnan(self.low):
            return mean
        return f"**{mean} [{low}, {high}]**" if self.excludes_zero else f"{mean} [{low}, {high}]"


def _interval(score: Score, baseline: Score | None = None) -> tuple[float, float]:
    """95% interval of the score, or of its difference from the baseline."""
    if min(score.sizes) < 2:
        return float("nan"), float("nan")
    if score.batches:
        return t_interval(score.by_batch - (0 if baseline is None else baseline.by_batch))
    low, high = np.percentile(score.draws - (0 if baseline is None else baseline.draws), MIDDLE)
    return float(low), float(high)


def _rounded(interval: tuple[float, float]) -> tuple[float | None, float | None]:
    low, high = (None if np.isnan(x) else round(float(x), 4) for x in interval)
    return low, high


def _ratio(top: Any, bottom: Any) -> Any:
    """top / bottom, 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=np.asarray(bottom) != 0)


@functools.lru_cache(maxsize=128)
def _weights(items: int, group: int) -> np.ndarray:
    """How often each item is drawn in each sample, [DRAWS, items]."""
    rng = np.random.default_rng((0, group, items))
    weights = np.empty((DRAWS, items), np.uint8)
    for row in weights:
        row[:] = np.bincount(rng.integers(items, size=items), minlength=items)
    return weights
