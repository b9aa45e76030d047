"""Sentence-level code-switching, PPA's third part: the two sides of an example in different languages.

Pan et al. (2021) fine-tune on translations, where premise and hypothesis, or question and context, may be in different
languages: en-en, xx-xx, en-xx and xx-en, in an unknown ratio. Two settings control it here: how often the sides differ
(`rate`), and the languages: English and one other per row (`pivot`, as in PPA), or all, by probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.errors import UserError


def from_spec(task: Any, train: Mapping[str, Sequence[Any]], spec: str, rate: float, seed: int) -> list[Any]:
    """Each row once for every language, with languages drawn independently each time; the same rows for the same seed.

    With a pivot, which is PPA's recipe, rows of a single language stay unchanged.

    Args:
      task: of the examples.
      train: language -> its examples.
      spec: `pivot=en`, `uniform`, or probabilities as `en=0.5,de=0.5`.
      rate: how often the two sides differ in language.
      seed: for the languages.

    Raises:
      UserError: the task's examples do not have two sides; `spec` has another form; the languages do not fit.
    """
    field = f"config.data.code_switch={spec}"
    pivot = spec.removeprefix("pivot=") if spec.startswith("pivot=") else ""
    if len(train) < 2:
        if not pivot:
            raise UserError(f"{field}: give config.data.train in two languages or more, row by row alike")
        return [row for examples in train.values() for row in examples]
    if not hasattr(task, "mix"):
        raise UserError(f"{field}: the examples of this task have no two sides; leave it empty")
    probabilities = dict.fromkeys(train, 1 / len(train))
    if spec != "uniform" and not pivot:
        try:
            entries = [entry.split("=") for entry in spec.split(",")]
            probabilities = {name.strip(): float(share) for name, share in entries}
        except ValueError:
            raise UserError(f"{field}: give pivot=en, uniform, or en=0.5,de=0.5") from None
    if unused := [name for name in train if name not in probabilities]:
        raise UserError(
            f"{field} does not name {', '.join(unused)} of config.data.train; name all its languages, or leave them "
            "out there"
        )
    rng = np.random.default_rng((seed, 2))
    return [row for _ in train for row in code_switch(task, train, probabilities, rng, rate=rate, pivot=pivot)]


def code_switch(
    task: Any,
    parallel: Mapping[str, Sequence[Any]],
    probabilities: Mapping[str, float],
    rng: np.random.Generator,
    *,
    rate: float = 0.5,
    pivot: str = "",
) -> list[Any]:
    """An example for each row of the translations, in the order of the first language.

    Args:
      task: mixes two examples.
      parallel: language -> its examples. They are matched by id, and ids that a language does not have are left out; by
        row if the languages share no ids or one has an id twice.
      probabilities: language -> probability; 1 together.
      rng: draws the languages.
      rate: how often the two sides differ in language, from 0 to 1. The first side's language is drawn by the
        probabilities, and so is another one for the second side. With a pivot or equal probabilities, the rate does not
        affect how often a language occurs.
      pivot: a language; then a row has two languages, this one and another, drawn by `probabilities` (the pivot's own
        is ignored), and each side is in either of them with equal probability.

    Raises:
      UserError: invalid probabilities, or of unknown languages; no common rows; as `mix`.
    """
    names = list(probabilities)
    missing = [name for name in names if name not in parallel]
    if missing:
        raise UserError(f"code-switching: no translated training data for {', '.join(missing)}")
    weights = np.array([probabilities[name] for name in names])
    if not names or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
        raise UserError(f"code-switching: probabilities must be 0 or more and sum to 1, got {dict(probabilities)}")
    rows = _rows({name: parallel[name] for name in names})
    if not 0 <= rate <= 1:
        raise UserError(f"code-switching: the rate must be from 0 to 1, got {rate:g}")
    if pivot:
        if pivot not in names or len(names) < 2:
            raise UserError(
                f"code-switching: the pivot {pivot} and another language are needed, got {', '.join(names)}; "
                "give the pivot's data, too, or set config.data.code_switch= (empty) to train without"
            )
        center = np.arange(len(names)) == names.index(pivot)
        other = rng.choice(len(names), size=len(rows), p=_normalised(np.where(center, 0, weights)))
        first = np.where(rng.random(len(rows)) < 0.5, names.index(pivot), other)
        second = names.index(pivot) + other - first
    else:
        first = rng.choice(len(names), size=len(rows), p=_normalised(weights))
        second = first.copy()
        for language in np.unique(first):
            others = np.where(np.arange(len(names)) == language, 0, weights)
            if others.any():
                here = first == language
                second[here] = rng.choice(len(names), size=here.sum(), p=_normalised(others))
    second = np.where(rng.random(len(rows)) < rate, second, first)
    return [row[a] if a == b else task.mix(row[a], row[b]) for row, a, b in zip(rows, first, second, strict=True)]


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _rows(parallel: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The translations of each example, in the order of the languages."""
    by_id = [{example.id: example for example in examples} for examples in parallel.values()]
    common = set(by_id[0]).intersection(*by_id)
    unique = all(len(found) == len(examples) for examples, found in zip(parallel.values(), by_id, strict=True))
    if common and unique:
        longest = max(map(len, by_id))
        if len(common) < longest:
            logging.warning("code-switching: %d of %d rows are in all languages; the others are left out",
                            len(common), longest)  # fmt: skip
        return [tuple(found[id] for found in by_id) for id in by_id[0] if id in common]
    if len({len(examples) for examples in parallel.values()}) == 1:
        return list(zip(*parallel.values(), strict=True))
    sizes = ", ".join(f"{name} {len(examples)}" for name, examples in parallel.items())
    raise UserError(
        f"code-switching: neither ids nor the number of rows agree ({sizes}); give aligned files, "
        "or set config.data.code_switch= (empty) to train without"
    )
