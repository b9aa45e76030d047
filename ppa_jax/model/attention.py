"""Self-attention over packed rows: every family of encoders shares it.

A row may hold several sentences: `segments` numbers them from 1, 0 is padding, and a token attends only within its own
segment. Rows may be of several widths (`Layout`), so that short sentences do not pay for the longest.

Axes: N tokens of all rows, B rows, L row length (queries), S row length (keys), H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from ppa_jax.model import dropout as drop

# (rows, width), by rising width: N tokens lie in these rows one after the other, first those of the narrowest.
Layout = tuple[tuple[int, int], ...]

MASKED = -1e30  # an additive attention mask that float32 and bfloat16 both hold; exp of it is exactly 0
LONGEST_WHOLE = 4  # windows: up to this row length, masking attention to all tokens is faster (docs/performance.md)


def attention_mask(segments: Int[Array, "B L"], window: int | None = None) -> Float[Array, "B 1 L L"]:
    """0 where query and key lie in the same segment, at most `window` tokens apart if given; MASKED elsewhere."""
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    if window is not None:
        place = jnp.arange(segments.shape[1])
        seen &= jnp.abs(place[:, None] - place) <= window
    return jnp.where(seen, 0.0, MASKED)


def in_rows(x_Nx: Array, layout: Layout) -> list[Array]:
    """The tokens of each kind of row, [rows, width, ...]."""
    parts, first = [], 0
    for rows, width in layout:
        parts.append(x_Nx[first : first + rows * width].reshape(rows, width, *x_Nx.shape[1:]))
        first += rows * width
    return parts


def attend(
    query: Float[Array, "B L H d"],
    key: Float[Array, "B S H d"],
    value: Float[Array, "B S H d"],
    mask: Float[Array, "B 1 L S"],
    seeds: UInt[Array, "B L"] | None,
    rate: float,
    key_seeds: UInt[Array, "B S"] | None = None,
) -> Float[Array, "B L H d"]:
    """Scaled dot-product attention, with dropout on the probabilities where there are `seeds` (of queries and keys).

    Three choices are for XLA's CPU compiler (docs/performance.md). Heads are moved beside the batch: over [B, L, H, d]
    it runs the two products as plain loops. The queries are scaled, not the scores. Without dropout, the results are
    divided by the sums of the weights, and no pass over [L, S] is needed for it; with it, that costs more in the
    gradient than it saves.
    """
    dtype = value.dtype
    query = query * query.shape[-1] ** -0.5
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # [B, H, L, d]
    scores = jnp.einsum("bhld,bhsd->bhls", query, key, preferred_element_type=jnp.float32) + mask
    if seeds is None or rate == 0:
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        mixed = jnp.einsum("bhls,bhsd->bhld", weights.astype(dtype), value, preferred_element_type=jnp.float32)
        mixed = (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(dtype)
    else:
        probs = drop.drop_attention(jax.nn.softmax(scores, axis=-1), seeds, rate, key_seeds)
        mixed = jnp.einsum("bhls,bhsd->bhld", probs.astype(dtype), value)
    return jnp.swapaxes(mixed, 1, 2)


def attend_in_rows(
    attention: Callable[..., Array],
    query: Float[Array, "N H d"],
    key: Float[Array, "N H d"],
    value: Float[Array, "N H d"],
    masks: list[Array],
    layout: Layout,
    seeds: UInt[Array, "N"] | None,
) -> Float[Array, "N H*d"]:
    """`attention` within each row of `layout`, the heads' results side by side.

    Args:
      attention: `attend` or `attend_nearby` without its last arguments.
      query, key, value: of all tokens.
      masks: the argument of `attention` of that name or place, for each kind of row.
      layout: the rows.
      seeds: of all tokens, for dropout.
    """
    H, d = query.shape[1:]
    rows = [in_rows(x, layout) for x in (query, key, value)]
    seeds_of_rows = [None] * len(layout) if seeds is None else in_rows(seeds, layout)
    mixed = [attention(*parts).reshape(-1, H * d) for parts in zip(*rows, masks, seeds_of_rows, strict=True)]
    return jnp.concatenate(mixed)


def attend_nearby(
    query: Float[Array, "B L H d"],
    key: Float[Array, "B L H d"],
    value: Float[Array, "B L H d"],
    segments: Int[Array, "B L"],
    seeds: UInt[Array, "B L"] | None,
    window: int,
    rate: float,
) -> Float[Array, "B L H d"]:
    """`attend` to the tokens of the same segment that are at most `window` away.

    Long rows are cut into chunks of `window` queries. Each attends to its own chunk and the two beside it, so that the
    work grows with L * window. In rows of up to LONGEST_WHOLE windows that is not faster.
    """
    B, L, W = *segments.shape, window
    if L <= LONGEST_WHOLE * W:
        return attend(query, key, value, attention_mask(segments, W), seeds, rate)
    n = -(-L // W)

    def chunks(x: Array, beside: int, fill: int = 0) -> Array:
        """[B, L, ...] -> [B * n, (1 + 2 * beside) * W, ...]: each chunk between its neighbours."""
        padding = [(0, 0), (beside * W, (n + beside) * W - L), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, padding, constant_values=fill).reshape(B, n + 2 * beside, W, *x.shape[2:])
        x = jnp.concatenate([x[:, i : i + n] for i in range(1 + 2 * beside)], axis=2)
        return x.reshape(B * n, -1, *x.shape[3:])

    seen = chunks(segments, 0)[:, :, None] == chunks(segments, 1, fill=-1)[:, None, :]  # -1: beyond the row
    seen &= jnp.abs(jnp.arange(W)[:, None] + W - jnp.arange(3 * W)) <= W
    mask = jnp.where(seen, 0.0, MASKED)[:, None]
    if seeds is None:
        query_seeds = key_seeds = None
    else:
        query_seeds, key_seeds = chunks(seeds, 0), chunks(seeds, 1)
    mixed = attend(chunks(query, 0), chunks(key, 1), chunks(value, 1), mask, query_seeds, rate, key_seeds)
    return mixed.reshape(B, n * W, *mixed.shape[2:])[:, :L]
