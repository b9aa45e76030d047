"""Momentum contrast of sentences that translate each other (MoCo, He et al. 2020; PPA section 3.2).

The queue of negatives is [S, B, P]: S slots of one batch of keys each. Step t writes slot t mod S, so the oldest batch
goes. It is sharded over B and never moves: the queries of a batch, which are small, are gathered instead, every
device compares them with its own keys, and only one maximum and one sum a query cross the network.

Axes: B pairs of the global batch, S slots, P projection.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt

from ppa_jax.training.mesh import DATA

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU rounds float32 operands to bfloat16 unless told otherwise
MASKED = -1e30


class Queue(NamedTuple):
    """Past keys. Sharded over B; the slots are written in turn."""

    keys: Any  # [S, B, P] float32
    hashes: Any  # [S, B] uint32  # of each key's sentence, to find duplicates


QUEUE_SPEC = Queue(keys=P(None, DATA, None), hashes=P(None, DATA))


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
    query: Float[Array, "B P"],
    key: Float[Array, "B P"],
    hashes: UInt[Array, "B"],
    queue: Queue,
    filled: Int[Array, ""],
    own: tuple[Int[Array, ""], Int[Array, "B"]] | None = None,
    *,
    temperature: float,
    mask_duplicates: bool,
    mesh: Mesh,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """-log of the positive's share among the positive and the queue, for every pair.

    Args:
      query, key: L2-normalised; row i of one translates row i of the other. Sharded as the batch.
      hashes: of the key's sentence.
      filled: slots written so far; the others do not count. With none the loss is 0.
      own: for in-batch negatives, when this batch's keys are in the queue already: their slot, and the column of each
        pair's own key there, counted within its device's share; that key is the positive, so it is no negative.
      temperature: divides the cosine.
      mask_duplicates: leave out negatives whose sentence equals the positive's (equal hashes).

    Returns:
      The loss of every pair, and 1.0 where the positive beats every negative; NaN while nothing is `filled`: there is
      nothing to beat. No gradient flows to queue or key.
    """
    body = functools.partial(_info_nce_on_shard, temperature=temperature, mask_duplicates=mask_duplicates)
    rows = P(DATA)
    own_specs = None if own is None else (P(), rows)
    shard_mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(rows, rows, rows, QUEUE_SPEC, P(), own_specs), out_specs=(rows, rows)
    )
    return shard_mapped(query, jax.lax.stop_gradient(key), hashes, jax.lax.stop_gradient(queue), filled, own)


def _info_nce_on_shard(query, key, hashes, queue, filled, own, *, temperature, mask_duplicates):
    rows = query.shape[0]
    first = jax.lax.axis_index(DATA) * rows
    positive = jnp.einsum("bp,bp->b", query, key, precision=HIGHEST) / temperature  # own pairs
    queries_BxP = jax.lax.all_gather(query, DATA, tiled=True)
    # [B, slots, own columns of the queue]
    negative = jnp.einsum("bp,scp->bsc", queries_BxP, queue.keys, precision=HIGHEST) / temperature
    slots, columns = queue.hashes.shape
    counts = (jnp.arange(slots) < filled)[None, :, None]
    if mask_duplicates:
        hashes_B = jax.lax.all_gather(hashes, DATA, tiled=True)
        counts = counts & (queue.hashes[None] != hashes_B[:, None, None])
    if own is not None:
        slot, column = own
        mine_BxC = jnp.zeros((queries_BxP.shape[0], columns), bool).at[first + jnp.arange(rows), column].set(True)
        counts = counts & ~(mine_BxC[:, None, :] & (jnp.arange(slots) == slot)[None, :, None])
    negative = jnp.where(counts, negative, MASKED)
    largest_B = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(negative, axis=(1, 2))), DATA)
    # Where nothing counts, exp(MASKED - MASKED) would be 1: multiply by what counts.
    terms = jnp.where(counts, jnp.exp(negative - largest_B[:, None, None]), 0.0)
    total_B = jax.lax.psum(jnp.sum(terms, axis=(1, 2)), DATA)

    largest = jax.lax.dynamic_slice_in_dim(largest_B, first, rows)
    total = jax.lax.dynamic_slice_in_dim(total_B, first, rows)
    reference = jnp.maximum(jax.lax.stop_gradient(positive), largest)
    share = jnp.exp(positive - reference) + total * jnp.exp(largest - reference)
    loss = reference + jnp.log(share) - positive
    wins = (positive > largest).astype(jnp.float32)
    return loss, jnp.where(filled > 0, wins, jnp.nan)


def ema(key_params: Any, query_params: Any, momentum: float) -> Any:
    """key <- momentum * key + (1 - momentum) * query, leaf by leaf, in float32.

    With momentum 0.999 a bfloat16 key would never move: the change is below its resolution.
    """
    return jax.tree.map(lambda k, q: k + (1.0 - momentum) * (q - k), key_params, query_params)
