"""The network of the main job: the encoder and its heads, on packed sentences of one shard.

Axes: A accumulation steps, b pairs of one part, N tokens and M masked positions of a part, R tokens of RTL's rows,
D width, P projection, E sentence vector, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ppa_jax.data.batches import SentenceSpans, Translation
from ppa_jax.data.packing import Rows
from ppa_jax.jobs.align.settings import Method
from ppa_jax.model.families import EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.model.heads import ProjectionHead
from ppa_jax.model.modernbert import FULL
from ppa_jax.model.pooling import dense, pool
from ppa_jax.objectives import distillation, masked_lm


class Network:
    """The encoder and its heads, on the sentences of one shard."""

    def __init__(self, method: Method, config: EncoderConfig) -> None:
        self._encoder = make_encoder(config, method.dtype, method.remat, method.scan, method.frozen)
        self._rtl_head = make_encoder(rtl_head_config(config), method.dtype, method.remat)
        self._mlm_head = make_masked_lm_head(config, method.dtype)
        self._projection = ProjectionHead(config.hidden_size, method.projection_dim)
        self._method = method
        self._dropout = config.has_dropout
        self._cross_entropy = masked_lm.in_chunks if method.remat else masked_lm.cross_entropy

    def encode(
        self, params: Any, rows: Rows, seed: Any, layers: int, output_positions: Any = None, types: Any = None
    ) -> list[Any]:
        """Hidden states after 0 to `layers` blocks, [N, D] each; the last [K, D] with `output_positions`."""
        states = self._encoder.apply(
            {"params": params["encoder"]},
            *(x[None] for x in (rows.ids, rows.positions, rows.segments)),
            None if types is None else types[None],
            dropout_seed=seed if self._dropout else None,
            all_hidden=True,
            layers=layers,
            layout=rows.layout,
            output_positions=None if output_positions is None else output_positions[None],
        )
        return [x[0] for x in states]

    def masked_lm(self, params: Any, states_MxD: jax.Array, labels_M: jax.Array) -> jax.Array:
        """The cross-entropy of each masked position, [M]."""
        head: Any = self._mlm_head.apply({"params": params["mlm_head"]}, states_MxD)
        states, bias = head
        words_VxD = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        return self._cross_entropy(states, bias, words_VxD, labels_M)

    def rebuild(self, params: Any, states_NxD: jax.Array, translation: Translation, seed: Any) -> jax.Array:
        """The cross-entropy of each target token, [M], from the states of the source's tokens (RTL)."""
        rows, source_R, at_M, labels_M = translation
        is_target_R = source_R == len(states_NxD)
        masks_RxD = self.encode(params, rows, seed, layers=0)[0]
        known_RxD = states_NxD.at[source_R].get(mode="clip")
        states = self._rtl_head.apply(
            {"params": params["rtl_head"]["encoder"]},
            *(x[None] for x in (rows.ids, rows.positions, rows.segments)),
            is_target_R[None].astype(jnp.int32),  # for dropout: positions restart
            dropout_seed=seed if self._dropout else None,
            layout=rows.layout,
            output_positions=at_M[None],
            embedded=jnp.where(is_target_R[:, None], masks_RxD, known_RxD)[None],
        )
        return self.masked_lm(params | {"mlm_head": params["rtl_head"]["mlm_head"]}, states[0], labels_M)

    def project(self, params: Any, pooled_bxD: jax.Array) -> Any:
        """The vectors that are contrasted, [b, P], of length 1."""
        return self._projection.apply({"params": params["projection"]}, self._apply_dense(params, pooled_bxD))

    def vectors(self, params: Any, rows: Rows, spans: SentenceSpans, seed: Any) -> jax.Array:
        """The vectors of each part's sentences, [A, b, P], without what only a gradient needs."""
        layer, pooling = self._method.layer, self._method.pooling

        def one(part: Any) -> Any:
            rows, (start, length) = part
            if pooling == "cls":  # the last block computes [CLS] alone
                pooled = self.encode(params, rows, seed, layer, start)[-1]
            else:
                pooled = pool(self.encode(params, rows, seed, layer)[-1], start, length, pooling)
            return self.project(params, pooled)

        return jax.lax.map(one, (rows, spans))

    def sentence_vectors(self, params: Any, pooled_bxD: jax.Array) -> jax.Array:
        """The vectors that the export gives, [b, E]."""
        vectors = self._apply_dense(params, pooled_bxD)
        return distillation.unit(vectors) if self._method.normalize else vectors

    def _apply_dense(self, params: Any, pooled_bxD: jax.Array) -> jax.Array:
        return dense(params["dense"], pooled_bxD, self._method.dense) if self._method.dense else pooled_bxD

    def temperature(self, params: Any) -> Any:
        """Of the contrast: the setting, or what is learned."""
        return jnp.exp(params["log_temperature"]) if "log_temperature" in params else self._method.temperature


def rtl_head_config(config: EncoderConfig) -> EncoderConfig:
    """Of RTL's head: two blocks, or one if the encoder has no more; in ModernBERT both attend to all."""
    layers = min(2, config.num_layers)
    own = {"layer_types": (FULL,) * layers} if config.model_type == "modernbert" else {}
    return dataclasses.replace(config, num_layers=layers, **own)


def init_rtl_head(params: Any, mlm_head: Any, config: EncoderConfig) -> Any:
    """RTL's head before the first step: copies of the encoder's last blocks and of the masked-LM head."""
    head = rtl_head_config(config)
    first = config.num_layers - head.num_layers
    given = params["encoder"] | {f"layer_{i}": params["encoder"][f"layer_{first + i}"] for i in range(head.num_layers)}
    token, states = jnp.zeros((1, 1), int), jnp.zeros((1, 1, config.hidden_size))
    init = functools.partial(make_encoder(head).init, embedded=states)
    wanted = jax.eval_shape(init, jax.random.key(0), token, token, token)["params"]  # a part of what is given

    def copies(wanted, given):
        return {k: copies(x, given[k]) if isinstance(x, dict) else jnp.copy(given[k]) for k, x in wanted.items()}

    return {"encoder": copies(wanted, given), "mlm_head": jax.tree.map(jnp.copy, mlm_head)}
