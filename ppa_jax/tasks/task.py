"""The protocol of a task: a module of ppa_jax/tasks/, or a file of the user's, with the members of `Task`.

How the data flows: `read` gives examples; `features` cuts them into what fits into the encoder, one or several for
an example; batches of features go through the encoder and the task's `Head`; `loss` trains both; at test `decode` turns
the head's outputs back into one prediction for each example, which `score` compares with the gold and `write` writes in
the task's usual format.

Axes: B features of a batch, L tokens of the longest (a static shape), D width, T labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppa_jax.data.tokenizer import Tokenizer

IGNORE = -1  # in arrays of labels: not trained, not scored

Batch = Mapping[str, jax.Array]  # ids, types, mask (1: a token, 0: padding): [B, L]; the arrays [B, L] and values [B]
Outputs = Mapping[str, Any]  # of the head: arrays whose first axis is B


class Feature(NamedTuple):
    """One row for the encoder."""

    example: int  # its index among the examples
    ids: Sequence[int]  # with special tokens; at most `max_length`
    types: Sequence[int]  # token types (BERT's segments A and B), as many
    arrays: Mapping[str, Sequence[int]]  # of the task, as many; padded with IGNORE to [B, L]
    values: Mapping[str, int]  # of the task, one each: [B]
    context: Any = None  # for `decode`; not sent to the device


class Score(NamedTuple):
    """One number of a test set."""

    value: float  # percent
    count: int  # items, as a reader would count them


class Task(Protocol):
    """The functions and names of a task's module. Two functions are optional:

    - `from_rows(rows, *, where, language, field)`, as `read`, for datasets of the catalogues. A row is a mapping, or a
      text that says what is wrong with it; `where` is the dataset, for messages. Raises UserError if most are unusable.
    - `mix(first, second)`, for examples of two sides that have an `id`: the first side of one example with the second
      of its translation (code_switching.py). Raises UserError if the two are not translations of each other.
    """

    # How transformers calls the model and the head's dense layers: model_type -> (class after the model's name,
    # {path in the head's parameters: module}); empty where it has no such model.
    TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, str]]]
    SUFFIX: str  # of a file of predictions

    def read(self, path: Path, *, language: str, field: str) -> list[Any]:
        """The examples of a file. Each has an attribute `language`.

        Raises:
          UserError: the file is not of the task's format, with its line; `field` names the setting.
        """
        ...

    def labels(self, examples: Sequence[Any]) -> tuple[str, ...]:
        """The labels to choose from, in their order, from the training examples; empty where a task has none."""
        ...

    def features(
        self, examples: Sequence[Any], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
    ) -> list[Feature]:
        """What the encoder sees, in the order of the examples; no example is dropped for its length."""
        ...

    def Head(self, config: Any, labels: Sequence[str], dtype: Any) -> Any:
        """A Flax module: (hidden [B, L, D], batch, seeds [B, L] or None) -> outputs. `seeds`: for its dropout.

        With an attribute `first_alone` that is true, hidden is [B, 1, D]: the last block computes the first token
        of each row, and no other.
        """
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses, number of what was summed), in float32: of a batch, whose mean is trained."""
        ...

    def decode(
        self,
        examples: Sequence[Any],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        labels: Sequence[str],
    ) -> list[Any]:
        """A prediction for each example, from the outputs of each feature (of the whole row, padding included)."""
        ...

    def score(self, examples: Sequence[Any], predictions: Sequence[Any], language: str) -> dict[str, Score]:
        """The metrics, over all examples that have gold; reports and stopping early go by the first."""
        ...

    def write(self, path: Path, examples: Sequence[Any], predictions: Sequence[Any]) -> None:
        """Writes the predictions in the format in which the task is published."""
        ...


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over the labels that are not IGNORE, their number): of logits [..., T] and labels [...], in float32."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    keep = (labels != IGNORE).astype(jnp.float32)
    return jnp.sum(losses * keep), jnp.sum(keep)


PARTS = (*Task.__annotations__, *(name for name, part in vars(Task).items() if callable(part) and name[0] != "_"))
