"""Contrast of sentences that translate each other: against a queue (MoCo, He et al. 2020; PPA section 3.2), or ranking
among the batch (LaBSE, Feng et al. 2022).

The queue of negatives is [S, B, P]: S slots of one batch of keys each. Step t writes slot t mod S, so the oldest batch
goes. It is sharded over B and never moves: the queries of a batch, which are small, are gathered instead, every
device compares them with its own keys, and only one maximum and one sum a query cross the network.

Axes: B pairs of the global batch, b of a shard, S slots, C columns of a shard, P projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU rounds float32 operands to bfloat16 unless told otherwise
MASKED = -1e30
COLDEST = 0.01  # a learned temperature is at least that, as CLIP's is (Radford et al. 2021)


class Queue(NamedTuple):
    """Past keys. Sharded over B; the slots are written in turn."""

    keys: Any  # [S, B, P] float32
    hashes: Any  # [S, B] uint32  # of each key's sentence, to find duplicates


def queue_specs(axes: tuple[str, ...]) -> Queue:
    """How the queue is split over the axes of the mesh that split the batch."""
    return Queue(keys=P(None, axes, None), hashes=P(None, axes))


def slots_for(queue_size: int, batch_size: int) -> int:
    """Number of slots that hold at least `queue_size` keys: the queue is rounded up to whole batches."""
    return -(-queue_size // batch_size)


def empty_queue(slots: int, batch_size: int, projection_dim: int) -> Queue:
    """A queue of zeros. Slots count only once they have been written (`filled` of info_nce)."""
    return Queue(
        keys=jnp.zeros((slots, batch_size, projection_dim), jnp.float32),
        hashes=jnp.zeros((slots, batch_size), jnp.uint32),
    )


def enqueue(queue: Queue, step: Int[Array, ""], keys: Float[Array, "B P"], hashes: UInt[Array, "B"]) -> Queue:
    """Writes this step's keys over the oldest ones. No communication: every device writes its own columns."""
    slot = step % queue.keys.shape[0]
    return Queue(keys=queue.keys.at[slot].set(keys), hashes=queue.hashes.at[slot].set(hashes))


def info_nce(
    query: Float[Array, "b P"],
    key: Float[Array, "b P"],
    hashes: UInt[Array, "b"],
    queue: Queue,
    filled: Int[Array, ""],
    own: tuple[Int[Array, ""], Int[Array, "b"]] | None = None,
    *,
    temperature: Any,
    margin: float = 0.0,
    mask_duplicates: bool,
    axes: tuple[str, ...],
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """-log of the positive's share among the positive and the whole queue, for every pair of one shard.

    To be called inside `jax.shard_map`. The B queries of all shards are gathered, and each shard compares them with its
    own columns of the queue.

    Args:
      query, key: L2-normalised; row i of one translates row i of the other.
      hashes: of the key's sentence.
      queue: this shard's columns, [S, C, P].
      filled: slots written so far; the others do not count. With none the loss is 0.
      own: for in-batch negatives, when this batch's keys are in the queue already: their slot, and the column of each
        pair's own key; that key is the positive, so it is not a negative.
      temperature: divides the cosine; a float, or a scalar that is trained.
      margin: subtracted from the positive's cosine in the loss.
      mask_duplicates: leave out negatives whose sentence equals the positive's (equal hashes).
      axes: of the mesh, which split the batch.

    Returns:
      The loss of every pair, and 1.0 where the positive beats every negative; NaN while nothing is `filled`: there is
      nothing to beat. No gradient flows to queue or key.
    """
    key, queue = jax.lax.stop_gradient((key, queue))
    b = query.shape[0]
    first = jax.lax.axis_index(axes) * b
    cosine_b = jnp.einsum("bp,bp->b", query, key, precision=HIGHEST)
    positive_b = (cosine_b - margin) / temperature
    query_BxP = jax.lax.all_gather(query, axes, tiled=True)
    negative_BxSxC = jnp.einsum("bp,scp->bsc", query_BxP, queue.keys, precision=HIGHEST) / temperature
    slots, columns = queue.hashes.shape
    counts = (jnp.arange(slots) < filled)[None, :, None]
    if mask_duplicates:
        hashes_B = jax.lax.all_gather(hashes, axes, tiled=True)
        counts = counts & (queue.hashes[None] != hashes_B[:, None, None])
    if own is not None:
        slot, column = own
        is_own_BxC = jnp.zeros((query_BxP.shape[0], columns), bool).at[first + jnp.arange(b), column].set(True)
        counts = counts & ~(is_own_BxC[:, None, :] & (jnp.arange(slots) == slot)[None, :, None])
    negative_BxSxC = jnp.where(counts, negative_BxSxC, MASKED)
    largest_B = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(negative_BxSxC, axis=(1, 2))), axes)
    # Where nothing counts, exp(MASKED - MASKED) would be 1: multiply by what counts.
    terms_BxSxC = jnp.where(counts, jnp.exp(negative_BxSxC - largest_B[:, None, None]), 0.0)
    total_B = jax.lax.psum(jnp.sum(terms_BxSxC, axis=(1, 2)), axes)

    largest_b = jax.lax.dynamic_slice_in_dim(largest_B, first, b)
    total_b = jax.lax.dynamic_slice_in_dim(total_B, first, b)
    reference_b = jnp.maximum(jax.lax.stop_gradient(positive_b), largest_b)
    share_b = jnp.exp(positive_b - reference_b) + total_b * jnp.exp(largest_b - reference_b)
    loss_b = reference_b + jnp.log(share_b) - positive_b
    wins_b = (cosine_b / temperature > largest_b).astype(jnp.float32)
    return loss_b, jnp.where(filled > 0, wins_b, jnp.nan)


def ranking(
    query: Float[Array, "b P"],
    key: Float[Array, "b P"],
    hashes: UInt[Array, "b"],
    *,
    temperature: Any,
    margin: float,
    mask_duplicates: bool,
    axes: tuple[str, ...],
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """-log of the positive's share among the keys of the whole batch, for every pair of one shard.

    To be called inside `jax.shard_map`, where the B keys of all shards are gathered. The gradient flows to queries and
    keys alike, also to those of other shards. Arguments and results are those of `info_nce`.
    """
    b = query.shape[0]
    key_BxP, hashes_B = (jax.lax.all_gather(x, axes, tiled=True) for x in (key, hashes))
    cosine_bxB = jnp.einsum("bp,np->bn", query, key_BxP, precision=HIGHEST)
    own_b = jax.lax.axis_index(axes) * b + jnp.arange(b)
    is_own_bxB = own_b[:, None] == jnp.arange(len(hashes_B))
    is_negative_bxB = ~is_own_bxB & (hashes_B != hashes[:, None]) if mask_duplicates else ~is_own_bxB
    own_cosine_b = jnp.sum(jnp.where(is_own_bxB, cosine_bxB, 0.0), axis=1)
    logits_bxB = (cosine_bxB - margin * is_own_bxB) / temperature
    total_b = jax.nn.logsumexp(jnp.where(is_own_bxB | is_negative_bxB, logits_bxB, MASKED), axis=1)
    wins_b = own_cosine_b > jnp.max(cosine_bxB, axis=1, where=is_negative_bxB, initial=-jnp.inf)
    return total_b - (own_cosine_b - margin) / temperature, wins_b.astype(jnp.float32)


def ema(key_params: Any, query_params: Any, momentum: float) -> Any:
    """key <- momentum * key + (1 - momentum) * query, leaf by leaf, in float32.

    With momentum 0.999 a bfloat16 key would never move: the change is below its resolution.
    """
    return jax.tree.map(lambda k, q: k + (1.0 - momentum) * (q - k), key_params, query_params)
