"""The protocol of a task: a module of ppa_jax/tasks/, or a user's file, with the members of `Task`.

How the data flows: `read` returns examples; `features` turns each into one or more rows that fit into the encoder;
batches of rows go through the encoder and the task's `Head`; `loss` trains both. In tests, `decode` turns the head's
outputs into one prediction per example, `score` compares it with the gold, and `write` saves it in the usual format.

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

IGNORE = -1  # as a label: neither trained on nor scored

Batch = Mapping[str, jax.Array]  # ids, types, mask (1: a token, 0: padding): [B, L]; the arrays [B, L] and values [B]
Outputs = Mapping[str, Any]  # of the head: arrays whose first axis is B
HostOutputs = Sequence[Mapping[str, np.ndarray]]  # of the head for each feature, without the axis B

MODERNBERT = {"head/transform": "head.dense", "head/layer_norm": "head.norm"}  # in TRANSFORMERS: what its heads share


class Feature(NamedTuple):
    """One row for the encoder."""

    example: int  # its index among the examples
    ids: Sequence[int]  # with special tokens; at most `max_length`
    types: Sequence[int]  # token types (BERT's segments A and B), one per id
    arrays: Mapping[str, Sequence[int]]  # of the task, one value per id; padded with IGNORE to [B, L]
    values: Mapping[str, int]  # of the task, one value per row: [B]
    context: Any = None  # for `decode`; not sent to the device


class Score(NamedTuple):
    """One number of a test set."""

    value: float  # percent
    count: int  # items, as a reader would count them


class Task(Protocol):
    """The functions and names of a task's module. Two functions are optional:

    - `from_rows(rows, *, where, language, field)` is `read` for datasets of the Hub and of TFDS. A row is a mapping, or
      a string that says what is wrong with it; `where` names the dataset in messages. Raises UserError if most rows are
      unusable.
    - `mix(first, second)`, for examples that have two sides and an `id`: the first side of one example with the second
      side of its translation (code_switching.py). Raises UserError if the two are not translations of each other.
    """

    # The names in transformers: model_type -> (suffix of the model's class, {path in the head's parameters: module}).
    # Empty if transformers has no such model.
    TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, str]]]
    SUFFIX: str  # of the file of predictions

    def read(self, path: Path, *, language: str, field: str) -> list[Any]:
        """The examples of a file. Each has an attribute `language`.

        Raises:
          UserError: the file does not have the task's format; with its line. `field` names the setting.
        """
        ...

    def labels(self, examples: Sequence[Any]) -> tuple[str, ...]:
        """The labels that the task predicts, in a fixed order, from the training examples; empty if it has none."""
        ...

    def features(
        self, examples: Sequence[Any], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
    ) -> list[Feature]:
        """The rows for the encoder, in the order of the examples; no example is dropped for its length."""
        ...

    def Head(self, config: Any, labels: Sequence[str], dtype: Any) -> Any:
        """A Flax module: (hidden [B, L, D], batch, seeds [B, L] or None) -> outputs. `seeds`: for its dropout.

        If its attribute `first_alone` is true, hidden is [B, 1, D]: the last block only computes the first tokens.
        """
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses of a batch, number of terms), in float32; training minimises their ratio."""
        ...

    def decode(
        self, examples: Sequence[Any], features: Sequence[Feature], outputs: HostOutputs, labels: Sequence[str]
    ) -> list[Any]:
        """A prediction for each example, from the outputs for the whole row of each feature, including padding."""
        ...

    def score(self, examples: Sequence[Any], predictions: Sequence[Any], language: str) -> dict[str, Score]:
        """The metrics over all examples that have gold; the first is used for reports and early stopping."""
        ...

    def write(self, path: Path, examples: Sequence[Any], predictions: Sequence[Any]) -> None:
        """Writes the predictions in the task's usual format."""
        ...


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over the labels that are not IGNORE, their number), in float32, of logits [..., T] and labels [...]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    keep = (labels != IGNORE).astype(jnp.float32)
    return jnp.sum(losses * keep), jnp.sum(keep)


PARTS = (*Task.__annotations__, *(name for name, part in vars(Task).items() if callable(part) and name[0] != "_"))
