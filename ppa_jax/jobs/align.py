"""The main job's method: post-pretraining alignment (PPA, Pan et al. 2021, arXiv 2010.12547).

One step, on a batch of sentences that translate each other:

1. TLM: both sentences in one sequence, 15% of the pieces masked; the query encoder predicts them.
2. Contrast: one sentence through the query encoder, its translation through the key encoder, both projected; InfoNCE of
   the pair against a queue of past keys (and, as an option, the other keys of the batch).
   As an option, the word embeddings of dictionary pairs are drawn together, too (the auxiliary loss of ALIGN-MLM).
3. The optimizer moves the query side by the gradient of the weighted sum; the key side follows as a moving average; the
   batch's keys replace the oldest in the queue.

Everything is a pure function of (state, batch). Dropout and masks hang on the step and on a sequence's number in the
global batch, so the number of devices, the packing and the accumulation change no result beyond float rounding.

Axes: A accumulation steps, S data shards, b pairs a block, B = A*S*b pairs, N tokens, D hidden, P projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data.dictionaries import WordPairs
from ppa_jax.data.pairs import Batch
from ppa_jax.model.bert import Encoder, EncoderConfig, at_places
from ppa_jax.model.heads import MaskedLMHead, ProjectionHead
from ppa_jax.model.pooling import pool
from ppa_jax.objectives import contrastive, dictionary, masked_lm, masking
from ppa_jax.training.mesh import DATA, Rules, data_shards, path_name, tree_shardings


@dataclasses.dataclass(frozen=True)
class Method:
    """The settings of the step. A loss of weight 0 is not computed."""

    tlm_weight: float = 1.0
    contrastive_weight: float = 1.0
    word_alignment_weight: float = 0.0  # with a dictionary
    queue_size: int = 32_000  # keys; rounded up to whole batches
    momentum: float = 0.999
    temperature: float = 0.05
    projection_dim: int = 300
    layer: int = 12  # whose states are pooled, from 1
    pooling: str = "cls"  # or "mean", over all tokens with the special ones
    mask_duplicates: bool = True
    in_batch: bool = False  # the other keys of the batch are negatives, too
    key_dropout: bool = True  # MoCo keeps the key encoder in training mode
    max_tlm_length: int = 131  # of a TLM sequence
    dict_mlm: str = ""  # DICT-MLM with a dictionary: "input" or "label" (see masking.py)
    mask_id: int = 103
    vocab_size: int | None = None  # of the tokenizer; None: as many as the word embeddings
    special_ids: tuple[int, ...] = ()  # of the tokenizer
    remat: bool = False  # keep less for the backward pass and compute it again
    scan: bool = False  # compile one block, and loop over the layers
    dtype: Any = jnp.float32  # of the matmuls

    def blocks(self, config: EncoderConfig) -> int:
        """How many blocks the query encoder runs: none above the contrast's layer, unless for TLM."""
        return config.num_layers if self.tlm_weight else self.layer

    def pools_last(self, config: EncoderConfig) -> bool:
        """Whether the contrast reads the last of the states that the query encoder computes."""
        return bool(self.contrastive_weight) and self.layer == self.blocks(config)


class State(struct.PyTreeNode):
    """All that changes from step to step, and the seed that does not."""

    step: jax.Array
    rng: jax.Array  # uint32 key data, folded with the step
    params: Any  # encoder, mlm_head, projection: the query side
    key_params: Any  # encoder, projection: the key side; empty without contrast
    queue: Any  # a Queue; None without contrast
    opt_state: Any


def init_state(
    params: Any, method: Method, config: EncoderConfig, optimizer: Any, *, batch_size: int, seed: int
) -> State:
    """The state before the first step. `params` lacks what the method does not train; a missing projection is drawn."""
    params = {name: params[name] for name in ("encoder", "mlm_head", "projection") if name in params}
    if not method.tlm_weight:
        params.pop("mlm_head", None)
    key_params, queue = {}, None
    if method.contrastive_weight:
        if "projection" not in params:
            head = ProjectionHead(config.hidden_size, method.projection_dim)
            drawn = head.init(jax.random.key(seed), jnp.zeros((1, config.hidden_size)))
            params["projection"] = drawn["params"]
        # A copy, not an alias: both trees are donated to the step.
        key_params = jax.tree.map(jnp.copy, {name: params[name] for name in ("encoder", "projection")})
        slots = contrastive.slots_for(method.queue_size, batch_size)
        queue = contrastive.empty_queue(slots, batch_size, method.projection_dim)
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        key_params=key_params,
        queue=queue,
        opt_state=optimizer.init(params),
    )


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Where every leaf of the state lives: parameters and moments by the rules, the queue as the batch."""
    shardings = tree_shardings(state, rules, mesh)
    if state.queue is None:
        return shardings
    return shardings.replace(queue=jax.tree.map(lambda spec: NamedSharding(mesh, spec), contrastive.QUEUE_SPEC))


def tables_for_shards(params: Any, mesh: Mesh, dtype: Any) -> Any:
    """`params` with word embeddings [S, V, D]: one table for each data shard, which is the one that its devices have.

    Look-ups and predictions both train the word embeddings, in each accumulation step. With a table of its own a shard
    adds all those gradients up, in float32, before they are summed over the shards; with one for all, XLA sums each
    over the network, and this is the largest. That sum is in `dtype`, as those of the other matrices are, which come
    out of their products so. A table that is stored split is gathered here, once.
    """
    shards = data_shards(mesh)
    spec = NamedSharding(mesh, P(DATA, P.UNCONSTRAINED, P.UNCONSTRAINED))

    @jax.custom_vjp
    def repeat(table: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(jnp.broadcast_to(table, (shards, *table.shape)), spec)

    repeat.defvjp(lambda table: (repeat(table), None), lambda _, found: (sum_over_shards(found, dtype),))

    def each(path: Any, x: jax.Array) -> jax.Array:
        return repeat(x) if path_name(path) == "encoder/embeddings/word_embeddings/embedding" else x

    return jax.tree_util.tree_map_with_path(each, params)


def sum_over_shards(gradients: jax.Array, dtype: Any) -> jax.Array:
    """[S, V, D] -> [V, D], sent and added in `dtype`."""
    sent = gradients.astype(dtype if len(gradients) > 1 else gradients.dtype)
    total = jax.lax.reduce(sent, jnp.zeros((), sent.dtype), jax.lax.add, (0,))  # jnp.sum would add in float32
    return total.astype(gradients.dtype)


def make_step(
    method: Method,
    config: EncoderConfig,
    optimizer: Any,
    mesh: Mesh,
    shardings: State,
    words: WordPairs | None = None,
    translations: Any = None,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The jitted step: (state, batch) -> (state, metrics). The state is donated.

    `words` are the dictionary of the word alignment, `translations` [V] that of DICT-MLM.
    """
    encoder = Encoder(config, method.dtype, method.remat, method.scan, mesh)
    mlm_head = MaskedLMHead(config, method.dtype)
    projection = ProjectionHead(config.hidden_size, method.projection_dim)
    dropout = config.hidden_dropout > 0 or config.attention_dropout > 0
    blocks, pools_last = method.blocks(config), method.pools_last(config)

    def read_at(masked, query) -> Any:
        """The places whose last states the losses read, [S, M + b]: the others' are not computed. None: all tokens'."""
        if pools_last and method.pooling != "cls":
            return None
        read = ([] if masked is None else [masked.at]) + ([query.start] if pools_last else [])
        return jnp.concatenate(read, axis=1)

    def encode(params, rows, seed, at=None, types=None, layers=None, words=None) -> Any:
        """Hidden states of all layers, each [S, N, D], the last one `at` places; the shards lie side by side."""
        return encoder.apply(
            {"params": params},
            rows.ids,
            rows.positions,
            rows.segments,
            types,
            dropout_seed=seed if dropout else None,
            all_hidden=True,
            layers=layers,
            layout=rows.layout,
            words=words,
            at=at,
        )

    def project(params, states, places=None) -> Any:
        """[S, b, P] from the states of all tokens and the sentences' places, or from those of [CLS] alone."""
        pooled = states if places is None else pool(states, places.start, places.length, method.pooling)
        return projection.apply({"params": params}, pooled)

    def encode_keys(state: State, batch: Batch, seed):
        """The keys of the whole batch, [A, S, b, P], without gradient, one accumulation step after the other."""

        def one(part):
            rows, places = part
            at = places.start if method.pooling == "cls" else None
            states = encode(state.key_params["encoder"], rows, seed, at, layers=method.layer)[-1]
            return project(state.key_params["projection"], states, places if at is None else None)

        return jax.lax.map(one, (batch.key_rows, batch.key))

    def losses(params, queue, batch: Batch, keys, number, step, step_key, masked_total):
        """The weighted loss of accumulation step `number` (its share of the batch's mean), and metrics."""
        mask_key, query_seed, _ = step_key
        rows, masked = batch.rows, None
        if method.tlm_weight:
            draw = jax.vmap(
                lambda ids, sequences, slots: masking.mask_tokens(
                    mask_key,
                    ids,
                    sequences,
                    slots,
                    longest=method.max_tlm_length,
                    mask_id=method.mask_id,
                    vocab_size=method.vocab_size or config.vocab_size,
                    special_ids=method.special_ids,
                    translations=jnp.asarray(translations) if method.dict_mlm else None,
                    form=method.dict_mlm,
                )
            )  # over shards
            masked = draw(rows.ids, batch.sequences, batch.slots)
            rows = dataclasses.replace(rows, ids=masked.ids)
        tables = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]  # of each shard
        words = jax.vmap(lambda table, ids: table[ids])(tables, rows.ids)
        at = read_at(masked, batch.query)
        hidden = encode(params["encoder"], rows, jax.random.bits(query_seed), at, batch.types, blocks, words)
        loss, metrics = 0.0, {}
        if masked is not None:
            states = at_places(hidden[-1], masked.at) if at is None else hidden[-1][:, : masked.at.shape[1]]
            head: Any = mlm_head.apply({"params": params["mlm_head"]}, states)
            states, bias = head
            # Devices along `model` predict a share of the vocabulary each, and its logits stay there.
            tables = jax.lax.with_sharding_constraint(tables, NamedSharding(mesh, P(DATA, "model", None)))
            predict = masked_lm.in_chunks if method.remat else masked_lm.cross_entropy
            nll = jax.vmap(predict, in_axes=(0, None, 0, 0))(states, bias, tables, masked.labels)
            metrics["tlm"] = jnp.sum(nll * masked.weights) / masked_total
            loss += method.tlm_weight * metrics["tlm"]
        if method.contrastive_weight:
            b = batch.query.start.shape[1]
            if pools_last and at is not None:
                query = project(params["projection"], hidden[-1][:, -b:])  # [S, b, P]
            else:
                query = project(params["projection"], hidden[method.layer], batch.query)
            slots, pairs, _ = queue.keys.shape
            column = jnp.broadcast_to(number * b + jnp.arange(b), query.shape[:2]).reshape(-1)
            nll, wins = contrastive.info_nce(
                query.reshape(-1, method.projection_dim),
                keys.reshape(-1, method.projection_dim),
                batch.hashes.reshape(-1),
                queue,
                jnp.minimum(step + method.in_batch, slots),
                (step % slots, column) if method.in_batch else None,
                temperature=method.temperature,
                mask_duplicates=method.mask_duplicates,
                mesh=mesh,
            )
            metrics |= {"contrastive": jnp.sum(nll) / pairs, "contrastive_accuracy": jnp.sum(wins) / pairs}
            loss += method.contrastive_weight * metrics["contrastive"]
        return loss, metrics | {"loss": loss}

    def gradients(state: State, queue, batch: Batch, keys, step_key):
        """Gradient and metrics of the whole batch, one accumulation step after the other."""
        masked_total = jnp.maximum(1, jnp.sum(batch.slots.rank >= 0)) if method.tlm_weight else 1
        run = jax.value_and_grad(losses, has_aux=True)
        params, summed = jax.vjp(lambda params: tables_for_shards(params, mesh, method.dtype), state.params)

        def one(part):
            (_, metrics), grads = run(params, queue, *part, state.step, step_key, masked_total)
            return grads, metrics

        parts: Any = batch, keys, jnp.arange(batch.rows.ids.shape[0])
        first = jax.tree.map(lambda x: x[0], parts)
        if len(parts[-1]) == 1:
            grads, metrics = one(first)
        else:

            def add(total, part):
                return jax.tree.map(jnp.add, total, one(part)), None

            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, first))
            grads, metrics = jax.lax.scan(add, zeros, parts)[0]
        return summed(grads)[0], metrics  # over the shards' tables

    def add_word_alignment(words: WordPairs, params, metrics, grads):
        """The loss of the dictionary and its gradient, once a step, whatever the batch."""

        def loss(params):
            table = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
            cosine = dictionary.mean_cosine(table, *words)
            return -method.word_alignment_weight * cosine, cosine

        (value, cosine), more = jax.value_and_grad(loss, has_aux=True)(params)
        metrics |= {"word_alignment": cosine, "loss": metrics["loss"] + value}
        return metrics, jax.tree.map(jnp.add, grads, more)

    def step(state: State, batch: Batch):
        step_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), 3)
        keys, queue, key_params = None, state.queue, state.key_params
        if method.contrastive_weight:
            keys = encode_keys(state, batch, jax.random.bits(step_key[2]) if method.key_dropout else None)
            # A device's pairs are neighbours in the global batch: [A, S, b, P] -> [S, A, b, P] -> [B, P].
            flat = [jnp.swapaxes(x, 0, 1) for x in (keys, batch.hashes)]
            after = contrastive.enqueue(
                queue, state.step, flat[0].reshape(-1, method.projection_dim), flat[1].reshape(-1)
            )
            queue = after if method.in_batch else queue
        grads, metrics = gradients(state, queue, batch, keys, step_key)
        if method.word_alignment_weight and words is not None:
            metrics, grads = add_word_alignment(words, state.params, metrics, grads)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        if method.contrastive_weight:
            key_params = contrastive.ema(key_params, {name: params[name] for name in key_params}, method.momentum)
            queue = after
        state = state.replace(
            step=state.step + 1, params=params, key_params=key_params, queue=queue, opt_state=opt_state
        )
        return state, metrics

    rows = NamedSharding(mesh, P(None, DATA))
    whole = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, rows), out_shardings=(shardings, whole))
