"""Which tokens are masked, and what stands in their place (BERT section 3.1; TLM in XLM section 3.3).

Exactly round(rate x tokens) of every sequence, never a special token; of those 80% become [MASK], 10% a random piece of
the vocabulary (special tokens left out), 10% stay. The count is known from the lengths alone, so the host lays out the
slots with static shapes; which tokens fill them is drawn here, on the device, from a key folded with the sequence's
number in the global batch: the same on any number of devices and for any packing.

With a table of translations it is DICT-MLM: half of the masked tokens that have a translation are not masked in the
usual way. In the form of ALIGN-MLM's authors ("input") their translation stands in their place, and the token itself is
predicted; in the published form ("label"; Chaudhary et al. 2020, arXiv 2010.12566) the translation is predicted.

Axes: T sequences, X longest sequence, M slots of masked positions, N tokens of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Sequences(NamedTuple):
    """Where the maskable sequences lie in the flattened rows."""

    number: Any  # [T] in the global batch: what the random key is folded with
    start: Any  # [T] of the first token, in the flattened rows
    length: Any  # [T] with special tokens; 0 for an empty place
    middle: Any  # [T] the place of the inner [SEP]; 0 where there is none


class Slots(NamedTuple):
    """The masked positions, before anyone knows where: the `rank`-th drawn token of `sequence`."""

    sequence: Any  # [M] index into Sequences
    rank: Any  # [M] -1: an unused slot


class Masked(NamedTuple):
    """The result of masking."""

    ids: Int[Array, "N"]  # the corrupted tokens
    at: Int[Array, "M"]  # flat position of each slot; N for an unused slot
    labels: Int[Array, "M"]  # the original token; in one form of DICT-MLM a translation
    weights: Float[Array, "M"]  # 1 for a used slot, 0 otherwise


def masked_count(tokens: np.ndarray, rate: float) -> np.ndarray:
    """How many of `tokens` (special ones not counted) are masked: rounded, a half goes up."""
    return np.floor(np.asarray(tokens) * rate + 0.5).astype(np.int32)


def mask_tokens(
    key: Array,
    ids: Int[Array, "N"],
    sequences: Sequences,
    slots: Slots,
    *,
    longest: int,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    translations: Int[Array, "V"] | None = None,
    form: str = "input",
) -> Masked:
    """Draws the masked tokens of every sequence and corrupts them.

    Args:
      key: of the step.
      ids: tokens of all rows.
      sequences: where they lie.
      slots: how many of each are masked.
      longest: the static bound X on lengths.
      mask_id: of [MASK].
      vocab_size: of the tokenizer; a padded embedding table has more rows. Random pieces are below it.
      special_ids: never drawn as random pieces.
      translations: of each piece, -1 where there is none: DICT-MLM. None: masked LM.
      form: of DICT-MLM, "input" or "label".
    """

    pieces = jnp.asarray(np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special_ids))
    ids, sequences, slots = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), (ids, sequences, slots))

    def draw(number: Array) -> tuple[Array, Array, Array]:
        order, action, replacement = jax.random.split(jax.random.fold_in(key, number), 3)
        return (
            jax.random.uniform(order, (longest,)),
            jax.random.uniform(action, (longest,)),
            jax.random.choice(replacement, pieces, (longest,)),
        )

    score_TxX, action_TxX, random_TxX = jax.vmap(draw)(sequences.number)
    place_X = jnp.arange(longest)
    special_TxX = (place_X == 0) | (place_X == sequences.middle[:, None]) | (place_X >= sequences.length[:, None] - 1)
    order_TxX = jnp.argsort(jnp.where(special_TxX, jnp.inf, score_TxX), axis=1)

    used = slots.rank >= 0
    place = order_TxX[slots.sequence, jnp.maximum(slots.rank, 0)]
    at = jnp.where(used, sequences.start[slots.sequence] + place, ids.size)
    labels = ids.at[at].get(mode="fill", fill_value=0)
    action = action_TxX[slots.sequence, place]
    replaced = jnp.where(action < 0.8, mask_id, jnp.where(action < 0.9, random_TxX[slots.sequence, place], labels))
    if translations is not None:
        coin_TxX = jax.vmap(
            lambda number: jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, number), 3), 0.5, (longest,))
        )(sequences.number)
        translation = translations[labels]
        chosen = coin_TxX[slots.sequence, place] & (translation >= 0) & used
        replaced = jnp.where(chosen, translation, replaced) if form == "input" else replaced
        labels = jnp.where(chosen, translation, labels) if form == "label" else labels
    return Masked(
        ids=ids.at[at].set(replaced, mode="drop"),
        at=at,
        labels=labels,
        weights=used.astype(jnp.float32),
    )
