"""The ModernBERT encoder as a pure function of its parameters (Warner et al. 2024); mmBERT is one (Marone et al. 2025).

Unlike BERT's, blocks normalise their input, not their output, and the sum of the blocks is normalised once at the end;
positions are rotations of queries and keys; the feed-forward layers have a gate; two of three layers attend to
neighbours alone. The residual stream is float32 whatever the compute dtype, as the sum of many blocks loses the small
ones in bfloat16.

**The state after layer i includes the final norm**, for every i: it is what the encoder that ends there returns. So a
layer below the last is trained, measured and exported as the same vectors. transformers' `hidden_states` are not
normalised, except for the last.

Axes: B rows, L row length, N tokens of all rows, D width, H heads, d width of a head, F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from ppa_jax.model import dropout as drop
from ppa_jax.model.attention import Layout, attend, attend_in_rows, attend_nearby, attention_mask, in_rows
from ppa_jax.model.bert import equally_frozen, in_one_row, stack_blocks

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder. Defaults are ModernBERT-base."""

    model_type: str = "modernbert"
    vocab_size: int = 50_368
    hidden_size: int = 768
    num_layers: int = 22
    num_heads: int = 12
    intermediate_size: int = 1152
    max_positions: int = 8192  # no table has so many rows: it is the longest sentence that was trained on
    layer_norm_eps: float = 1e-5
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0  # of the probabilities, and of what attention adds to the residual stream
    mlp_dropout: float = 0.0
    classifier_dropout: float = 0.0  # of fine-tuning
    classifier_pooling: str = "cls"  # or "mean": what a classifier of sentences reads
    initializer_range: float = 0.02
    initializer_cutoff: float = 2.0  # standard deviations at which the normal distribution is truncated
    pad_token_id: int = 0
    layer_types: tuple[str, ...] = ()  # FULL or SLIDING; empty: every third is FULL, from the first
    window: int = 64  # tokens on either side that a SLIDING layer attends to
    full_theta: float = 160_000.0  # base of the rotations in FULL layers
    sliding_theta: float = 10_000.0

    type_vocab_size = 0  # there are no token types

    @classmethod
    def small(cls, *, vocab_size: int, hidden_size: int, num_layers: int, num_heads: int, **_: Any) -> EncoderConfig:
        """A new model of ModernBERT-base's proportions."""
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=3 * hidden_size // 2,
        )

    @property
    def max_length(self) -> int:
        """The longest sentence, in subword tokens with special tokens."""
        return self.max_positions

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped within the encoder in training."""
        return max(self.embedding_dropout, self.attention_dropout, self.mlp_dropout) > 0

    def with_dropout(self, rate: float) -> EncoderConfig:
        """The same encoder with this rate everywhere."""
        names = ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout")
        return dataclasses.replace(self, **dict.fromkeys(names, rate))

    def is_full(self, layer: int) -> bool:
        """Whether the layer, from 0, attends to the whole sentence."""
        return self.layer_types[layer] == FULL if self.layer_types else layer % 3 == 0

    def flops(self, lengths: np.ndarray, layers: int | None = None, read: int | None = None) -> float:
        """Floating-point operations of a forward pass, as `bert.EncoderConfig.flops`."""
        layers = self.num_layers if layers is None else layers
        D, F = self.hidden_size, self.intermediate_size
        lengths = np.asarray(lengths, float)
        near = np.minimum(self.window, lengths - 1)
        pairs = {True: np.sum(lengths**2), False: np.sum(lengths * (2 * near + 1) - near * (near + 1))}
        output = 2 * D * D + 6 * D * F  # of a token
        total = sum(np.sum(lengths) * (6 * D * D + output) + 4 * D * pairs[self.is_full(i)] for i in range(layers))
        return float(total if read is None else total - (np.sum(lengths) - read) * output)


def _normal(config: EncoderConfig, deviation: float) -> Any:
    cutoff = config.initializer_cutoff
    return nn.initializers.truncated_normal(deviation, lower=-cutoff, upper=cutoff)


def _out(config: EncoderConfig) -> float:
    """The deviation of matrices that write into the residual stream."""
    return config.initializer_range / (2 * config.num_layers) ** 0.5


def _dense(features: int, config: EncoderConfig, deviation: float, dtype: Any, name: str) -> nn.Dense:
    init = _normal(config, deviation)
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)


def _layer_norm(config: EncoderConfig, name: str = "layer_norm") -> nn.LayerNorm:
    eps = config.layer_norm_eps
    return nn.LayerNorm(epsilon=eps, use_bias=False, use_fast_variance=False, dtype=jnp.float32, name=name)


def rotations(positions: Int[Array, "N"], theta: float, width: int) -> tuple[Array, Array]:
    """Cosines and sines [N, 1, d/2] in float32 by which each token's queries and keys of width d are rotated."""
    # Rounded as PyTorch rounds them: at long distances the last bit of a frequency shows.
    frequencies = np.float32(1) / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angles = positions[:, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "N H d"], by: tuple[Array, Array]) -> Float[Array, "N H d"]:
    """Rotates each pair (x[i], x[i + d/2]) in float32 (Su et al. 2021, in the order of GPT-NeoX)."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Embeddings(nn.Module):
    """Word embeddings, normalised: [N, D] in float32."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        c = self.config
        init = _normal(c, c.initializer_range)
        return _layer_norm(c)(nn.Embed(c.vocab_size, c.hidden_size, embedding_init=init, name="word_embeddings")(ids))


class SelfAttention(nn.Module):
    """What attention adds to the residual stream; from `output_positions` on, for these tokens alone."""

    config: EncoderConfig
    dtype: Any
    layout: Layout
    is_full: bool
    is_first: bool  # the embeddings are normalised already

    @nn.compact
    def __call__(
        self, x_NxD: Array, segments: Array, by: Any, seeds: Array | None, site: Any, output_positions: Any
    ) -> Array:
        c = self.config
        N, D = x_NxD.shape
        normed = (x_NxD if self.is_first else _layer_norm(c)(x_NxD)).astype(self.dtype)
        qkv = _dense(3 * D, c, c.initializer_range, self.dtype, "qkv")(normed)
        query, key, value = jnp.unstack(qkv.reshape(N, 3, c.num_heads, D // c.num_heads), axis=1)
        query, key = rotate(query, by), rotate(key, by)
        dropped = None if seeds is None else drop.at_site(seeds, site)
        of_rows = in_rows(segments, self.layout)
        if self.is_full:
            attention, masks = functools.partial(attend, rate=c.attention_dropout), list(map(attention_mask, of_rows))
        else:
            attention = functools.partial(attend_nearby, window=c.window, rate=c.attention_dropout)
            masks = of_rows
        mixed = attend_in_rows(attention, query, key, value, masks, self.layout, dropped)
        if output_positions is not None:
            mixed = mixed[output_positions]
            seeds = None if seeds is None else seeds[output_positions]
        out = _dense(D, c, _out(c), self.dtype, "output")(mixed)
        if seeds is not None and c.attention_dropout > 0:
            out = drop.drop_features(out, drop.at_site(seeds, site + 1), c.attention_dropout)
        return out


class FeedForward(nn.Module):
    """What the gated feed-forward layer adds to the residual stream (GeGLU; Shazeer 2020)."""

    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_NxD: Array, seeds: Array | None, site: Any) -> Array:
        c = self.config
        normed = _layer_norm(c)(x_NxD).astype(self.dtype)
        inner = _dense(2 * c.intermediate_size, c, c.initializer_range, self.dtype, "input")(normed)
        inner, gate = jnp.split(inner, 2, axis=-1)
        inner = jax.nn.gelu(inner, approximate=False) * gate
        if seeds is not None and c.mlp_dropout > 0:
            inner = drop.drop_features(inner, drop.at_site(seeds, site), c.mlp_dropout)
        return _dense(c.hidden_size, c, _out(c), self.dtype, "output")(inner)


class Block(nn.Module):
    """One transformer layer, pre-norm, from and to the residual stream; that of `output_positions` alone if given."""

    config: EncoderConfig
    dtype: Any
    layout: Layout
    is_full: bool
    is_first: bool

    @nn.compact
    def __call__(
        self,
        x_NxD: Array,
        segments: Array,
        by: Any,
        seeds: Array | None,
        site: Any,
        output_positions: Array | None = None,
    ) -> Array:
        attention = SelfAttention(self.config, self.dtype, self.layout, self.is_full, self.is_first, name="attention")
        added = attention(x_NxD, segments, by, seeds, site, output_positions)
        if output_positions is not None:
            x_NxD = x_NxD[output_positions]
            seeds = None if seeds is None else seeds[output_positions]
        x_NxD = x_NxD + added
        return x_NxD + FeedForward(self.config, self.dtype, name="feed_forward")(x_NxD, seeds, site + 2)


class Encoder(nn.Module):
    """The whole encoder. `Encoder(config, dtype).apply({"params": params["encoder"]}, ids, positions, segments)`."""

    config: EncoderConfig
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each block in the backward pass, for which only the blocks' inputs are kept
    scan: bool = False  # the repeating pattern of blocks is compiled once, in a loop over their stacked parameters
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
        """Hidden states [B, L, D] of the last layer, after the final norm; [B, K, D] with `output_positions`.

        Args as those of `bert.Encoder`; `token_types` only tell tokens apart for dropout. With `all_hidden`, all
        states but the embeddings' are after the final norm.
        """
        c = self.config
        B, L = ids.shape
        layout = layout or ((B, L),)
        ids, positions, segments = (x.reshape(-1) for x in (ids, positions, segments))  # as bert.Encoder does
        token_types = None if token_types is None else token_types.reshape(-1)
        at = None if output_positions is None else in_one_row(output_positions, L)
        layers = c.num_layers if layers is None else layers
        seeds: Any = None if dropout_seed is None else drop.token_seeds(dropout_seed, positions, segments, token_types)
        if embedded is not None:
            x: Any = embedded.reshape(B * L, -1)
        else:
            x = Embeddings(c, name="embeddings")(ids)
            if seeds is not None and c.embedding_dropout > 0:
                x = drop.drop_features(x, drop.at_site(seeds, 0), c.embedding_dropout)
        d = c.hidden_size // c.num_heads
        by = {True: rotations(positions, c.full_theta, d), False: rotations(positions, c.sliding_theta, d)}

        def run(i: int, x: Array, at: Array | None = None) -> Array:
            Layer = nn.remat(Block) if self.remat else Block
            block = Layer(c, self.dtype, layout, c.is_full(i), i == 0, name=f"layer_{i}")
            return block(x, segments, by[c.is_full(i)], seeds, drop.block_site(i), at)

        stream = [x]
        alike = layers - (at is not None)  # blocks that compute all tokens
        if alike > 0:
            stream.append(run(0, x))
        if self.scan and not self.is_initializing():
            for alike_run in equally_frozen(range(1, alike), self.frozen):
                scanned = self._scanned(stream[-1], segments, by, seeds, layout, alike_run)
                stream += scanned
                for i in alike_run[len(scanned) :]:
                    stream.append(run(i, stream[-1]))
        for i in range(len(stream) - 1, layers):
            stream.append(run(i, stream[-1], at if i == layers - 1 else None))
        norm = _layer_norm(c, "final_norm")
        normed = (x, *map(norm, stream[1:]))
        states = tuple(x.astype(self.dtype).reshape(B, -1, c.hidden_size) for x in normed)
        return states if all_hidden else states[-1]

    def _scanned(
        self, x: Array, segments: Array, by: Any, seeds: Array | None, layout: Layout, layers: list[int]
    ) -> list[Array]:
        """The stream after each block of neighbouring `layers`, as far as their pattern repeats.

        The tree of parameters stays as it is: they are stacked in every step. The first block of all differs from the
        others, and is none of them.
        """
        c = self.config
        kinds = [c.is_full(i) for i in layers]
        period = next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[: len(kinds) - n])
        firsts = range(layers[0], layers[-1] - period + 2, period)
        groups = [[self.variables["params"][f"layer_{i + k}"] for k in range(period)] for i in firsts]
        stacked = stack_blocks(groups, self.dtype)

        def block(k: int) -> Any:
            apply = Block(c, self.dtype, layout, kinds[k], is_first=False, parent=None).apply
            return jax.checkpoint(apply, prevent_cse=False) if self.remat else apply  # nothing to merge it with here

        blocks = [block(k) for k in range(period)]

        def body(x: Any, group: Any) -> tuple[Any, Any]:
            params, first = group
            states = []
            for k in range(period):
                x = blocks[k]({"params": params[k]}, x, segments, by[kinds[k]], seeds, drop.block_site(first + k))
                states.append(x)
            return x, states

        states = jax.lax.scan(body, x, (stacked, jnp.asarray(firsts)))[1]
        return [state[g] for g in range(len(groups)) for state in states]


class PredictionHead(nn.Module):
    """Dense, GELU, LayerNorm: what stands before the decoder, and before every classifier of transformers."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "*M D"]) -> Float[Array, "*M D"]:
        c = self.config
        x = _dense(c.hidden_size, c, _out(c), self.dtype, "transform")(hidden.astype(self.dtype))
        return _layer_norm(c)(jax.nn.gelu(x, approximate=False)).astype(self.dtype)


def prediction_head(config: EncoderConfig, states: Array, dtype: Any) -> Array:
    """What a classifier reads, computed by the submodule `head` of the Flax module that calls it."""
    return PredictionHead(config, dtype, name="head")(states)


class MaskedLMHead(PredictionHead):
    """The masked-LM head; `heads.decode` follows, whose bias is kept here."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "*M D"]) -> tuple[Float[Array, "*M D"], Float[Array, "V"]]:
        """The states, transformed, and the bias: what `decode` takes with the word embeddings."""
        return super().__call__(hidden), self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))
