"""Sentence-level code-switching, PPA's third part: the two sides of an example in different languages.

Pan et al. (2021) fine-tune on translations in which premise and hypothesis, or question and context, may differ in
language: en-en, xx-xx, en-xx and xx-en, in a ratio that the paper does not give. Here `rate` sets how often the sides
differ, and `spec` the languages: English and one other per row (PPA's `pivot`), or all of them by probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.errors import UserError


def code_switch(task: Any, parallel: Mapping[str, Sequence[Any]], spec: str, rate: float, seed: int) -> list[Any]:
    """Code-switched examples: each row as many times as there are languages, drawn independently each time.

    Args:
      task: mixes two examples.
      parallel: language -> its examples. They are matched by id, and ids that a language lacks are left out; if the
        languages share no ids, or an id appears twice in one, they are matched by row.
      spec: `uniform`, or probabilities such as `en=0.5,de=0.5`, by which the language of the first side is drawn and,
        if it is to differ, that of the second side. `pivot=en`: each row has English and one other language, all
        equally likely, and each side is equally likely to be in either; with English alone, rows are unchanged.
      rate: how often the languages of the two sides differ, from 0 to 1. With a pivot or equal probabilities, it does
        not change how often a language appears.
      seed: of the random languages; the same seed gives the same examples.

    Raises:
      UserError: examples of the task do not have two sides; `spec` has another form, or does not match the languages;
        no common rows; as `task.mix`.
    """
    field = f"config.data.code_switch={spec}"
    pivot = spec.removeprefix("pivot=") if spec.startswith("pivot=") else ""
    if len(parallel) < 2:
        if not pivot:
            raise UserError(f"{field}: give translations in config.data.train, in two or more languages")
        return [row for examples in parallel.values() for row in examples]
    if not hasattr(task, "mix"):
        raise UserError(f"{field}: the examples of this task do not have two sides; leave it empty")
    probabilities = _probabilities(spec, field) if spec != "uniform" and not pivot else {}
    probabilities = probabilities or dict.fromkeys(parallel, 1 / len(parallel))
    for given, known in ((parallel, probabilities), (probabilities, parallel), ([pivot] if pivot else [], parallel)):
        if missing := [name for name in given if name not in known]:
            raise UserError(f"{field}: {', '.join(missing)}: must name the languages of config.data.train, "
                            f"{', '.join(parallel)}")  # fmt: skip
    names, weights = list(probabilities), np.array(list(probabilities.values()))
    rows = _rows({name: parallel[name] for name in names})
    rng = np.random.default_rng((seed, 2))
    mixed = []
    for _ in names:
        first, second = _two_languages(rng, weights, len(rows), names.index(pivot) if pivot else None)
        second = np.where(rng.random(len(rows)) < rate, second, first)
        mixed += [row[a] if a == b else task.mix(row[a], row[b]) for row, a, b in zip(rows, first, second, strict=True)]
    return mixed


def _probabilities(spec: str, field: str) -> dict[str, float]:
    try:
        entries = [entry.split("=") for entry in spec.split(",")]
        probabilities = {name.strip(): float(share) for name, share in entries}
    except ValueError:
        raise UserError(f"{field}: give pivot=en, uniform, or en=0.5,de=0.5") from None
    if not (all(share >= 0 for share in probabilities.values()) and abs(sum(probabilities.values()) - 1) <= 1e-6):
        raise UserError(f"{field}: probabilities must be 0 or more and sum to 1")
    return probabilities


def _two_languages(
    rng: np.random.Generator, weights: np.ndarray, rows: int, pivot: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two different languages for each row, [rows] each; the same one twice if no other has a weight."""

    def draw(language: int | None, size: int) -> np.ndarray:
        others = np.where(np.arange(len(weights)) == language, 0, weights)
        return rng.choice(len(weights), size=size, p=others / others.sum()) if others.any() else np.full(size, language)

    if pivot is not None:
        other = draw(pivot, rows)
        first = np.where(rng.random(rows) < 0.5, pivot, other)
        return first, pivot + other - first
    first = draw(None, rows)
    second = first.copy()
    for language in np.unique(first):
        second[first == language] = draw(language, (first == language).sum())
    return first, second


def _rows(parallel: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The translations of each example, in the order of the languages."""
    by_id = [{example.id: example for example in examples} for examples in parallel.values()]
    common = set(by_id[0]).intersection(*by_id)
    unique = all(len(found) == len(examples) for examples, found in zip(parallel.values(), by_id, strict=True))
    if common and unique:
        longest = max(map(len, by_id))
        if len(common) < longest:
            message = "code-switching: %d of %d rows are in all languages; the others are left out"
            logging.warning(message, len(common), longest)
        return [tuple(found[id] for found in by_id) for id in by_id[0] if id in common]
    if len({len(examples) for examples in parallel.values()}) == 1:
        return list(zip(*parallel.values(), strict=True))
    sizes = ", ".join(f"{name} {len(examples)}" for name, examples in parallel.items())
    raise UserError(
        f"code-switching: neither ids nor the number of rows agree ({sizes}); give aligned files, "
        "or set config.data.code_switch= (empty) to train without code-switching"
    )
