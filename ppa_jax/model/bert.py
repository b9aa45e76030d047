"""BERT, XLM-R and DistilBERT as a pure function of the parameters (Devlin 2019; Conneau 2020; Sanh 2019).

They share their blocks; they differ in the numbering of positions (`position_offset`), the size of the token-type table
(DistilBERT has none) and LayerNorm's epsilon. DistilBERT's dropout is BERT's, also after attention's output projection,
where transformers has none for it. Rows may hold several sentences (`model/attention.py`); dense layers see tokens
alone.
Numerics follow PyTorch's BERT: exact GELU, LayerNorm without the fast variance, softmax and LayerNorm in float32
whatever the compute dtype.

Axes: B rows, L row length, N tokens of all rows, D width, H heads, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from ppa_jax.model import dropout as drop
from ppa_jax.model.attention import Layout, attend, attend_in_rows, attention_mask, in_rows


def products_in(dtype: Any) -> Any:
    """A context in which float32 products are such: TPUs and GPUs round their operands, to bfloat16 or TF32."""
    return jax.default_matmul_precision("highest" if jnp.dtype(dtype) == jnp.float32 else "default")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder. Defaults are bert-base-multilingual-cased."""

    model_type: str = "bert"  # "bert", "xlm-roberta" or "distilbert"
    vocab_size: int = 119_547
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512  # rows of the position table
    type_vocab_size: int = 2  # 0: no token types
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0
    position_offset: int = 0  # XLM-R counts positions from pad_token_id + 1
    activation: str = "gelu"  # the exact one, by the error function

    classifier_pooling = "cls"  # what a classifier of sentences reads

    @property
    def max_length(self) -> int:
        """The longest sentence, in word pieces with special tokens, that the position table can number."""
        return self.max_positions - self.position_offset

    @classmethod
    def small(
        cls, *, vocab_size: int, hidden_size: int, num_layers: int, num_heads: int, token_types: int = 2
    ) -> EncoderConfig:
        """A new model of BERT-base's proportions."""
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=4 * hidden_size,
            type_vocab_size=token_types,
        )

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped within the encoder in training."""
        return self.hidden_dropout > 0 or self.attention_dropout > 0

    @property
    def classifier_dropout(self) -> float:
        """The dropout before a classifier, in fine-tuning."""
        return self.hidden_dropout

    def with_dropout(self, rate: float) -> EncoderConfig:
        """The same encoder with this rate everywhere."""
        return dataclasses.replace(self, hidden_dropout=rate, attention_dropout=rate)

    def flops(self, lengths: np.ndarray, layers: int | None = None, read: int | None = None) -> float:
        """Floating-point operations of a forward pass through the blocks, over sequences of these lengths.

        A multiply-add counts two. Embedding look-ups, LayerNorm and softmax are left out, as is usual. Training costs
        three times as much (forward, and twice that backward).

        Args:
          lengths: tokens of each sequence; padding costs nothing here.
          layers: the blocks that run; None: all.
          read: the tokens whose states the last block finishes; None: all.
        """
        layers = self.num_layers if layers is None else layers
        D, F = self.hidden_size, self.intermediate_size
        lengths = np.asarray(lengths, float)
        output = 2 * D * D + 4 * D * F  # of a token: what follows attention
        total = layers * (np.sum(lengths) * (6 * D * D + output) + 4 * D * np.sum(lengths**2))
        return float(total if read is None else total - (np.sum(lengths) - read) * output)


def _dense(features: int, config: EncoderConfig, dtype: Any, name: str) -> nn.Dense:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def _layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, name="layer_norm")


def in_one_row(positions_BxK: Array, length: int) -> Array:
    """Positions in each of B rows of `length` tokens, as positions among all tokens, [B * K].

    A position past a row's end becomes its last.
    """
    first = length * jnp.arange(len(positions_BxK))
    return (jnp.minimum(positions_BxK, length - 1) + first[:, None]).reshape(-1)


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised: [N, D] in float32."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, ids: Array, positions: Array, token_types: Array | None) -> Array:
        c = self.config

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(c.initializer_range)
            return nn.Embed(rows, c.hidden_size, embedding_init=init, name=name)

        total = table(c.vocab_size, "word_embeddings")(ids)
        total += table(c.max_positions, "position_embeddings")(positions + c.position_offset)
        if c.type_vocab_size:
            types = jnp.zeros_like(ids) if token_types is None else token_types
            total += table(c.type_vocab_size, "token_type_embeddings")(types)
        return _layer_norm(c)(total)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection, residual and LayerNorm.

    With `output_positions`, all that follows the attention itself is computed for these tokens alone: [K, D].
    """

    config: EncoderConfig
    dtype: Any
    layout: Layout

    @nn.compact
    def __call__(
        self, x_NxD: Array, masks: list[Array], seeds: Array | None, site: Any, output_positions: Array | None
    ) -> Array:
        c = self.config
        N, D = x_NxD.shape

        def heads(name: str) -> Array:
            return _dense(D, c, self.dtype, name)(x_NxD).reshape(N, c.num_heads, D // c.num_heads)

        dropped = None if seeds is None else drop.at_site(seeds, site)
        attention = functools.partial(attend, rate=c.attention_dropout)
        mixed = attend_in_rows(attention, heads("query"), heads("key"), heads("value"), masks, self.layout, dropped)
        if output_positions is not None:
            mixed, x_NxD = mixed[output_positions], x_NxD[output_positions]
            seeds = None if seeds is None else seeds[output_positions]
        out = _dense(D, c, self.dtype, "output")(mixed)
        if seeds is not None and c.hidden_dropout > 0:
            out = drop.drop_features(out, drop.at_site(seeds, site + 1), c.hidden_dropout)
        return _layer_norm(c)(out + x_NxD).astype(self.dtype)


class FeedForward(nn.Module):
    """Two dense layers with GELU between, residual and LayerNorm."""

    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_NxD: Array, seeds: Array | None, site: Any) -> Array:
        c = self.config
        inner = jax.nn.gelu(_dense(c.intermediate_size, c, self.dtype, "intermediate")(x_NxD), approximate=False)
        out = _dense(c.hidden_size, c, self.dtype, "output")(inner)
        if seeds is not None and c.hidden_dropout > 0:
            out = drop.drop_features(out, drop.at_site(seeds, site), c.hidden_dropout)
        return _layer_norm(c)(out + x_NxD).astype(self.dtype)


class Block(nn.Module):
    """One transformer layer, post-norm as in BERT.

    With `output_positions` the result is that of these tokens alone, [K, D]; the others are only keys and values.
    """

    config: EncoderConfig
    dtype: Any
    layout: Layout

    @nn.compact
    def __call__(
        self, x_NxD: Array, masks: list[Array], seeds: Array | None, site: Any, output_positions: Array | None = None
    ) -> Array:
        attention = SelfAttention(self.config, self.dtype, self.layout, name="attention")
        x = attention(x_NxD, masks, seeds, site, output_positions)
        if output_positions is not None and seeds is not None:
            seeds = seeds[output_positions]
        return FeedForward(self.config, self.dtype, name="feed_forward")(x, seeds, site + 2)


def stack_blocks(blocks: list[Any], dtype: Any) -> Any:
    """One tree of the parameters of several blocks, for a scan over them.

    Matrices are computed with in `dtype`: they are stacked in it, too, which halves the copy in bfloat16.
    """
    return jax.tree.map(lambda *w: jnp.stack([y.astype(dtype) if y.ndim > 1 else y for y in w]), *blocks)


def equally_frozen(layers: Iterable[int], frozen: tuple[str, ...]) -> list[list[int]]:
    """The layers, in runs of neighbours that are all trained or all frozen.

    Only these are stacked for a loop: the gradient of a stack is that of all its layers.
    """
    return [list(run) for _, run in itertools.groupby(layers, lambda i: f"layer_{i}" in frozen)]


class Encoder(nn.Module):
    """The whole encoder. `Encoder(config, dtype).apply({"params": params["encoder"]}, ids, positions, segments)`."""

    config: EncoderConfig
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each block in the backward pass, for which only the blocks' inputs are kept
    scan: bool = False  # one block is compiled, in a loop over their stacked parameters
    frozen: tuple[str, ...] = ()  # modules whose gradient is not asked for: they have loops of their own

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        segments: Int[Array, "B L"],
        token_types: Int[Array, "B L"] | None = None,
        dropout_seed: UInt[Array, ""] | None = None,
        all_hidden: bool = False,
        layers: int | None = None,
        layout: Layout | None = None,
        output_positions: Int[Array, "B K"] | None = None,
        embedded: Float[Array, "B L D"] | None = None,
    ) -> Array | tuple[Array, ...]:
        """Hidden states [B, L, D] of the last layer; [B, K, D] with `output_positions`.

        Args:
          ids: word pieces; anything at padding.
          positions: of each token within its sentence, from 0 (the offset of XLM-R is added here).
          segments: the sentence of each token within the row, from 1; 0 is padding.
          token_types: BERT's segment A/B embedding; zeros when None.
          dropout_seed: switches dropout on; another number each step.
          all_hidden: return a tuple of `layers` + 1 states, the first being the embeddings' output.
          layers: run only so many of the blocks (the rest need no parameters then).
          layout: how many rows of each width the tokens are, one after the other; None: B rows of L.
          output_positions: the tokens whose last states are wanted. The last block then runs its dense layers, three
            quarters of its operations, on these alone.
          embedded: states to begin with instead of the embeddings of `ids`, which need no parameters then.
        """
        B, L = ids.shape
        layout = layout or ((B, L),)
        # All tokens share one axis. With an axis of size 1 beside it, the TPU compiler keeps states in two shapes; with
        # two axes, XLA for CPUs transposes an operand of a kernel's gradient in memory first (docs/performance.md).
        ids, positions, segments = (x.reshape(-1) for x in (ids, positions, segments))
        token_types = None if token_types is None else token_types.reshape(-1)
        at = None if output_positions is None else in_one_row(output_positions, L)
        masks = [attention_mask(x) for x in in_rows(segments, layout)]
        seeds: Any = None if dropout_seed is None else drop.token_seeds(dropout_seed, positions, segments, token_types)
        if embedded is not None:
            x: Any = embedded.reshape(B * L, -1)
        else:
            x = Embeddings(self.config, name="embeddings")(ids, positions, token_types)
            if seeds is not None and self.config.hidden_dropout > 0:
                x = drop.drop_features(x, drop.at_site(seeds, 0), self.config.hidden_dropout)
        states = [x.astype(self.dtype)]
        layers = self.config.num_layers if layers is None else layers
        alike = layers - (at is not None)  # blocks
        if self.scan and not self.is_initializing():
            for run in equally_frozen(range(alike), self.frozen):
                states += self._scanned(states[-1], masks, layout, seeds, run)
        Layer = nn.remat(Block) if self.remat else Block
        for i in range(len(states) - 1, layers):
            block = Layer(self.config, self.dtype, layout, name=f"layer_{i}")
            wanted = at if i == layers - 1 else None
            states.append(block(states[-1], masks, seeds, drop.block_site(i), wanted))
        states = tuple(x.reshape(B, -1, self.config.hidden_size) for x in states)
        return states if all_hidden else states[-1]

    def _scanned(
        self, x: Array, masks: list[Array], layout: Layout, seeds: Array | None, layers: list[int]
    ) -> list[Array]:
        """The states after each block. The tree of parameters stays as it is: they are stacked in every step."""
        stacked = stack_blocks([self.variables["params"][f"layer_{i}"] for i in layers], self.dtype)
        block = Block(self.config, self.dtype, layout, parent=None)

        def body(x: Any, layer: Any) -> tuple[Any, Any]:
            params, site = layer
            x = block.apply({"params": params}, x, masks, seeds, site)
            return x, x

        if self.remat:
            body = jax.checkpoint(body, prevent_cse=False)  # in a loop there is nothing to merge it with
        return list(jax.lax.scan(body, x, (stacked, drop.block_site(jnp.asarray(layers))))[1])


def rows_from_mask(
    attention_mask: Int[Array, "B L"], first_row: Any = 0
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Positions and segments of padded rows with one sentence each, from the usual 0/1 mask (padding at the end).

    Segments number the rows from `first_row` + 1.
    """
    positions = jnp.broadcast_to(jnp.arange(attention_mask.shape[1]), attention_mask.shape)
    segments = attention_mask * (1 + first_row + jnp.arange(attention_mask.shape[0])[:, None])
    return positions, segments


def pooler(config: EncoderConfig, states: Array, dtype: Any) -> Array:
    """What a classifier of sentences reads, computed by the submodule `pooler` of the Flax module that calls it."""
    init = nn.initializers.normal(config.initializer_range)
    pooled = nn.Dense(config.hidden_size, dtype=dtype, kernel_init=init, name="pooler")(states)
    return nn.relu(pooled) if config.model_type == "distilbert" else jnp.tanh(pooled)
