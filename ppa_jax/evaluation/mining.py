"""Bitext mining: which sentences of two comparable texts translate each other?

The BUCC 2018 task as in LASER and XTREME. The score of a pair is its cosine divided by the mean cosine of both
sentences with their neighbours (ratio margin: Artetxe & Schwenk 2019, section 3). Every sentence of either side
proposes its best neighbour; proposals are accepted in order of score, each sentence at most once ("max" retrieval).
Pairs below a threshold are dropped; the threshold is the one with the best F1 on the development set.

Texts that appear several times on a side are searched once and never reported, as in XTREME, because it is unknown
which one is meant. Their gold pairs are missed.

Axes: N queries or sources, M targets, D width, k neighbours, P found pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.data import text_files
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder, Request
from ppa_jax.evaluation.neighbours import BLOCK, distinct, knn
from ppa_jax.evaluation.retrieval import any_language, language_of, means
from ppa_jax.evaluation.scores import Score

FORM = "xx-en.SPLIT.xx, xx-en.SPLIT.en (id<TAB>sentence) and xx-en.SPLIT.gold (id<TAB>id)"
TUNING = ("dev", "sample", "training", "train", "test")  # the first one present chooses the threshold
SCORED = ("test", "training", "train")  # the first other one present is scored
LARGE = 200_000  # sentences; larger sets are embedded one layer at a time
MAX_ITEMS = 10_000  # of the bootstrap
_NAME = re.compile(rf"([a-z]{{2,3}})-([a-z]{{2,3}})\.({'|'.join(TUNING)})\.(gold|[a-z]{{2,3}})")


class Bitext(NamedTuple):
    """Two texts and the pairs to find in them."""

    split: str
    source: list[str]
    target: list[str]
    gold: np.ndarray  # [G, 2] distinct pairs of indices of source and target


class Mined(NamedTuple):
    """Found pairs, best first; every sentence is in at most one of them."""

    source: np.ndarray  # [P] int64
    target: np.ndarray  # [P] int64
    score: np.ndarray  # [P] float64


Sets = Mapping[str, tuple[Bitext, Bitext]]  # "zh-en" -> (chooses the threshold, is scored); may be the same set


def read_bucc(prefix_or_directory: str | Path, field: str = "mining") -> dict[str, tuple[Bitext, Bitext]]:
    """Language pair -> (the set that chooses the threshold, the set that is scored), sorted by pair.

    The threshold is chosen on `dev` (or `sample`, BUCC's name for it) and applied to `test`, or else to `training`
    (XTREME's test set is BUCC's training set). A split without a gold file is left out. If only one split remains, it
    is used for both.

    Args:
      prefix_or_directory: "data/bucc" for all language pairs in it, "data/bucc/zh-en" for one.
      field: the setting, for error messages.

    Raises:
      UserError: no files of this form, a text without its other side, no gold at all, an id that appears twice, gold
        with an unknown id, text that is not UTF-8. Lines without id or tab are skipped and counted in the log.
    """
    path = storage.local(prefix_or_directory, beside=True)
    directory, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    names = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    found = {match.groups()[:3] for name in names if name.startswith(prefix) and (match := _NAME.fullmatch(name))}
    if not found:
        raise UserError(f"{field}: {path}: no files {FORM}")
    splits: dict[str, dict[str, Bitext]] = {}
    for source, target, split in sorted(found):
        stem = f"{source}-{target}.{split}"
        if f"{stem}.gold" not in names:
            logging.info("%s: %s/%s has no .gold file and is not used", field, directory, stem)
            continue
        splits.setdefault(f"{source}-{target}", {})[split] = _read_split(directory / stem, source, target, split, field)
    if not splits:
        raise UserError(f"{field}: {path}: no .gold file (id<TAB>id) for any of the texts; nothing can be scored")
    sets = {}
    for pair, by_split in splits.items():
        tuning = next(split for split in TUNING if split in by_split)
        scored = next((split for split in SCORED if split in by_split and split != tuning), tuning)
        sets[pair] = by_split[tuning], by_split[scored]
    return sets


def _read_split(stem: Path, source: str, target: str, split: str, field: str) -> Bitext:
    sides = [_read_side(stem.with_name(f"{stem.name}.{code}"), field) for code in (source, target)]
    path = stem.with_name(f"{stem.name}.gold")
    gold: dict[tuple[int, ...], None] = {}
    for line, text in _lines(path, field):
        ids = text.split()
        if len(ids) != 2:
            raise UserError(f"{field}: {path}:{line}: not id<TAB>id; correct or remove the line")
        for code, (numbers, _), name in zip((source, target), sides, ids, strict=True):
            if name not in numbers:
                raise UserError(
                    f"{field}: {path}:{line}: no sentence {name} in {stem.name}.{code}; take the same release"
                )
        gold[tuple(numbers[name] for (numbers, _), name in zip(sides, ids, strict=True))] = None
    if not gold:
        raise UserError(f"{field}: {path}: no gold pair in it")
    return Bitext(split, sides[0][1], sides[1][1], np.array(list(gold), np.int64))


def _read_side(path: Path, field: str) -> tuple[dict[str, int], list[str]]:
    """(id -> index, sentences)."""
    numbers: dict[str, int] = {}
    sentences, skipped = [], 0
    for line, text in _lines(path, field):
        name, tab, sentence = text.partition("\t")
        name = name.strip()
        if not (name and tab):
            skipped += 1
            continue
        if name in numbers:
            raise UserError(f"{field}: {path}:{line}: id {name} appears twice; gold could mean either")
        numbers[name] = len(sentences)
        sentences.append(sentence.strip())
    if not sentences:
        raise UserError(f"{field}: {path}: no line is id<TAB>sentence")
    if skipped:
        logging.warning("%s: %s: %d lines are not id<TAB>sentence and were skipped", field, path, skipped)
    return numbers, sentences


def _lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not empty."""
    lines = text_files.read_lines(path, field=field)
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def margin_scores(cosines: np.ndarray, indices: np.ndarray, query: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ratio margin [N, k] float64 of every query with its neighbours: cos(x, y) / ((query of x + target of y) / 2).

    Args:
      cosines: [N, k], and their `indices` among the targets, as from `knn`.
      query: [N] mean cosine of each query with its own k neighbours.
      target: [M] likewise of each target with its k neighbours among the queries.

    The score is 0 where the sum of the means is not positive: the ratio has no meaning there.
    """
    both = (query[:, None].astype(np.float64) + target[indices]) / 2
    return np.divide(cosines, both, out=np.zeros_like(both), where=both > 0)


def mine(source: np.ndarray, target: np.ndarray, k: int = 4, block: int = BLOCK) -> Mined:
    """Pairs of source [N, D] and target [M, D] vectors by ratio margin, before any threshold.

    Every sentence of either side proposes the best of its k neighbours; proposals are accepted from the highest score
    down, unless one of their sentences is already in a pair.
    """
    (forward, to_target), (backward, to_source) = knn(source, target, k, block=block)
    source_mean, target_mean = forward.mean(1), backward.mean(1)
    source_scores = margin_scores(forward, to_target, source_mean, target_mean)
    target_scores = margin_scores(backward, to_source, target_mean, source_mean)
    N, M = np.arange(len(source)), np.arange(len(target))
    best_target, best_source = source_scores.argmax(1), target_scores.argmax(1)
    sources = np.concatenate([N, to_source[M, best_source]])
    targets = np.concatenate([to_target[N, best_target], M])
    score = np.concatenate([source_scores[N, best_target], target_scores[M, best_source]])
    used_source, used_target = np.zeros(len(N), bool), np.zeros(len(M), bool)
    accepted = []
    for i in np.argsort(-score, kind="stable"):
        if not used_source[sources[i]] and not used_target[targets[i]]:
            used_source[sources[i]] = used_target[targets[i]] = True
            accepted.append(i)
    return Mined(sources[accepted], targets[accepted], score[accepted])


def best_threshold(score: np.ndarray, right: np.ndarray, gold: int) -> float:
    """The score from which on pairs are to be reported for the best F1; the highest of equally good thresholds.

    It lies halfway between the scores of the worst reported pair and the next one, and so never between equal scores.
    Infinite if no pair is correct.

    Args:
      score: [P], best first.
      right: [P] bool, whether a pair is gold.
      gold: number of gold pairs, found or not.
    """
    score = np.asarray(score, np.float64)
    if not np.any(right):
        return float("inf")
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(score) + 1) + gold)
    f1[:-1][score[:-1] == score[1:]] = 0  # no threshold separates equal scores
    last = int(f1.argmax())
    return float(score[last] if last == len(score) - 1 else (score[last] + score[last + 1]) / 2)


def evaluate_mining(
    embedder: Embedder, params: Any, sets: Sets, requests: Sequence[Request], *, task: str = "bucc", k: int = 4
) -> list[Score]:
    """F1, precision and recall in percent, for each language pair and (layer, pooling), and their means.

    The metrics are called `f1_best_threshold`, ... if the threshold was chosen on the scored set itself: an upper
    bound, whose interval does not cover that choice. The items of the bootstrap are the source sentences with their
    gold and found pairs, the same ones for every model; in large sets, neighbouring sentences are joined into 10,000
    items. `count` is the number of gold pairs. The language is the one that is not English. The direction is the name
    of the pair; for the means it is `xx-en` or `en-xx`, or `all` if the pairs differ in it.

    Args:
      embedder: of the model.
      params: the encoder's parameters.
      sets: see `read_bucc`.
      requests: (layer, pooling) pairs, as in `Embedder.embed`.
      task: the task's name in the scores.
      k: neighbours.
    """
    scores: list[Score] = []
    for pair, (tuning, scored) in sets.items():
        found = _mine_all(embedder, params, tuning, requests, k, f"{task}, {pair}.{tuning.split}")
        thresholds = {x: best_threshold(f.score, _is_gold(f, tuning), len(tuning.gold)) for x, f in found.items()}
        if scored is not tuning:
            found = _mine_all(embedder, params, scored, requests, k, f"{task}, {pair}.{scored.split}")
        suffix = "_best_threshold" if scored is tuning else ""
        for (layer, pooling), pairs in found.items():
            threshold = thresholds[layer, pooling]
            message = "%s, %s: layer %d, %s: threshold %.4f, chosen on %s"
            logging.info(message, task, pair, layer, pooling, threshold, tuning.split)
            reported = Mined(*(column[pairs.score >= threshold] for column in pairs))
            scores += [
                Score(task, language_of(pair), pair, layer, pooling, metric + suffix, (group,), len(scored.gold))
                for metric, group in _items(reported, scored).items()
            ]
    directions = {any_language(score) for score in scores}
    direction = directions.pop() if len(directions) == 1 else "all"  # swapping the sides changes almost nothing
    return scores + means(scores, lambda score: direction)


def _mine_all(
    embedder: Embedder, params: Any, bitext: Bitext, requests: Sequence[Request], k: int, name: str
) -> dict[Request, Mined]:
    """The pairs found for each request, among the sentences whose text appears only once."""
    source, source_index, source_count = distinct(bitext.source)
    target, target_index, target_count = distinct(bitext.target)
    repeated = (source_count > 1).sum(), (target_count > 1).sum()
    if any(repeated):
        logging.info("%s: %d source and %d target texts appear more than once and are not paired", name, *repeated)
    mined = {}
    for group in [requests] if len(source) + len(target) <= LARGE else [[request] for request in requests]:
        for request, vectors in embedder.embed(params, [*source, *target], group).items():
            found = mine(vectors[: len(source)], vectors[len(source) :], k)
            unique = (source_count[found.source] == 1) & (target_count[found.target] == 1)
            sources, targets = source_index[found.source[unique]], target_index[found.target[unique]]
            mined[request] = Mined(sources, targets, found.score[unique])
    return mined


def _is_gold(found: Mined, bitext: Bitext) -> np.ndarray:
    """[P] bool."""
    M = len(bitext.target)
    return np.isin(found.source * M + found.target, bitext.gold @ np.array([M, 1]))


def _items(found: Mined, bitext: Bitext) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (numerators, denominators) of each source sentence, or of a few neighbouring ones in a large set."""
    N = len(bitext.source)
    items = min(N, MAX_ITEMS)

    def count(sources: np.ndarray) -> np.ndarray:
        return np.bincount(sources * items // N, minlength=items).astype(np.float64)

    right, reported = count(found.source[_is_gold(found, bitext)]), count(found.source)
    gold = count(bitext.gold[:, 0])
    return {"f1": (2 * right, reported + gold), "precision": (right, reported), "recall": (right, gold)}
