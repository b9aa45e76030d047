"""The main job's method: post-pretraining alignment (PPA, Pan et al. 2021, arXiv 2010.12547).

One step, on a batch of sentences that translate each other:

1. TLM: both sentences in one sequence, 15% of the pieces masked; the query encoder predicts them.
2. Contrast: one sentence through the query encoder, its translation through the key encoder, both projected; InfoNCE of
   the pair against a queue of past keys (and, as an option, the other keys of the batch).
   As an option, the word embeddings of dictionary pairs are drawn together, too (the auxiliary loss of ALIGN-MLM).
3. The optimizer moves the query side by the gradient of the weighted sum; the key side follows as a moving average; the
   batch's keys replace the oldest in the queue.

Losses and gradients are written for one shard of the batch and run on all shards by `jax.shard_map`; optimizer, moving
average and clipping are written for whole arrays. Everything is a pure function of (state, batch). Dropout and masks
depend on the step and on a sequence's number in the global batch, so the number of devices, the packing and the
accumulation change no result beyond float rounding.

Axes: A accumulation steps, S shards, b pairs of one shard and accumulation step, B = A*S*b pairs, N tokens and M masked
positions of b pairs, D width, P projection, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data.batches import Batch
from ppa_jax.data.packing import Rows
from ppa_jax.model.families import EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.model.heads import ProjectionHead
from ppa_jax.model.pooling import dense, pool
from ppa_jax.objectives import contrastive, masked_lm, masking, word_alignment
from ppa_jax.training.freezing import merge, split
from ppa_jax.training.sharding import (
    BATCH_AXES,
    Rules,
    as_varying,
    own_copy,
    specs_of,
    sum_over_shards,
    tree_shardings,
)

if TYPE_CHECKING:
    from ppa_jax.data.dictionaries import WordPairs


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
    dense: str = ""  # the activation of a SentenceTransformer's Dense module, which the projection reads; "": none
    mask_duplicates: bool = True
    in_batch: bool = False  # the other keys of the batch are negatives, too
    key_dropout: bool = True  # MoCo keeps the key encoder in training mode
    max_tlm_length: int = 131  # of a TLM sequence
    dict_mlm: str = ""  # DICT-MLM with a dictionary: "input" or "label" (see masking.py)
    mask_id: int = 103
    vocab_size: int | None = None  # of the tokenizer; None: as many as the word embeddings
    special_ids: tuple[int, ...] = ()  # of the tokenizer
    frozen: tuple[str, ...] = ()  # modules of the encoder that are not trained, as "embeddings" and "layer_0"
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
    key_params: Any  # encoder, projection: the key side, without what is frozen; empty without contrast
    queue: Any  # a Queue; None without contrast
    opt_state: Any


def init_state(
    params: Any, method: Method, config: EncoderConfig, optimizer: Any, *, batch_size: int, seed: int
) -> State:
    """The state before the first step. `params` lacks what the method does not train; a missing projection is drawn."""
    params = {name: params[name] for name in ("encoder", "mlm_head", "dense", "projection") if name in params}
    if not method.tlm_weight:
        params.pop("mlm_head", None)
    if not method.contrastive_weight:
        params.pop("dense", None)
    key_params, queue = {}, None
    if method.contrastive_weight:
        if "projection" not in params:
            head = ProjectionHead(config.hidden_size, method.projection_dim)
            width = params["dense"]["bias"].shape[0] if method.dense else config.hidden_size
            drawn = head.init(jax.random.key(seed), jnp.zeros((1, width)))
            params["projection"] = drawn["params"]
        # A copy, not an alias: both trees are donated to the step.
        keys = ("encoder", "dense", "projection") if method.dense else ("encoder", "projection")
        key_params = jax.tree.map(jnp.copy, {name: split(params, method.frozen)[0][name] for name in keys})
        slots = contrastive.slots_for(method.queue_size, batch_size)
        queue = contrastive.empty_queue(slots, batch_size, method.projection_dim)
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        key_params=key_params,
        queue=queue,
        opt_state=optimizer.init(split(params, method.frozen)[0]),
    )


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Where every leaf of the state lives: parameters and moments by the rules, the queue split as the batch."""
    shardings = tree_shardings(state, rules, mesh)
    if state.queue is None:
        return shardings
    specs = contrastive.queue_specs(BATCH_AXES)
    return shardings.replace(queue=jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


class Network:
    """The encoder and its two heads, on the sentences of one shard."""

    def __init__(self, method: Method, config: EncoderConfig) -> None:
        self._encoder = make_encoder(config, method.dtype, method.remat, method.scan, method.frozen)
        self._mlm_head = make_masked_lm_head(config, method.dtype)
        self._projection = ProjectionHead(config.hidden_size, method.projection_dim)
        self._dense = method.dense
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

    def project(self, params: Any, pooled_bxD: jax.Array) -> Any:
        """The vectors that are contrasted, [b, P], of length 1."""
        if self._dense:
            pooled_bxD = dense(params["dense"], pooled_bxD, self._dense)
        return self._projection.apply({"params": params["projection"]}, pooled_bxD)


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
    network, layers, pools_last = Network(method, config), method.blocks(config), method.pools_last(config)
    specs = specs_of(shardings)
    trained_specs, _ = split(specs.params, method.frozen)

    def encode_keys(params, batch: Batch, seed):
        """The vectors of the key sentences, [A, b, P]."""

        def one(part):
            rows, key = part
            if method.pooling == "cls":  # the last block computes [CLS] alone
                pooled = network.encode(params, rows, seed, method.layer, key.start)[-1]
            else:
                states = network.encode(params, rows, seed, method.layer)[-1]
                pooled = pool(states, key.start, key.length, method.pooling)
            return network.project(params, pooled)

        return jax.lax.map(one, (batch.key_rows, batch.key))

    def losses(params, queue, part, step, rngs, masked_total):
        """One accumulation step's share of the loss, the mean over the whole batch, and metrics."""
        batch, keys, number = part
        rows, masked, read = batch.rows, None, []
        if method.tlm_weight:
            masked = masking.mask_tokens(
                rngs[0],
                rows.ids,
                batch.sequences,
                batch.slots,
                longest=method.max_tlm_length,
                mask_id=method.mask_id,
                vocab_size=method.vocab_size or config.vocab_size,
                special_ids=method.special_ids,
                translations=jnp.asarray(translations) if method.dict_mlm else None,
                form=method.dict_mlm,
            )
            rows = dataclasses.replace(rows, ids=masked.ids)
            read.append(masked.at)
        if pools_last:
            read.append(batch.query.start)
        # The last block computes only the states that a loss reads. The mean of a sentence reads them all.
        at = None if pools_last and method.pooling != "cls" else jnp.concatenate(read)
        hidden = network.encode(params, rows, jax.random.bits(rngs[1]), layers, at, batch.types)

        loss, metrics = 0.0, {}
        if masked is not None:
            states = hidden[-1].at[masked.at].get(mode="clip") if at is None else hidden[-1][: len(masked.at)]
            nll = network.masked_lm(params, states, masked.labels)
            metrics["tlm"] = jnp.sum(nll * masked.weights) / masked_total
            loss += method.tlm_weight * metrics["tlm"]
        if method.contrastive_weight:
            start, length = batch.query
            b, (slots, columns) = len(start), queue.hashes.shape
            if pools_last and at is not None:
                pooled = hidden[-1][-b:]
            else:
                pooled = pool(hidden[method.layer], start, length, method.pooling)
            nll, wins = contrastive.info_nce(
                network.project(params, pooled),
                keys,
                batch.hashes,
                queue,
                jnp.minimum(step + method.in_batch, slots),
                (step % slots, number * b + jnp.arange(b)) if method.in_batch else None,
                temperature=method.temperature,
                mask_duplicates=method.mask_duplicates,
                axes=BATCH_AXES,
            )
            pairs = columns * mesh.size
            metrics |= {"contrastive": jnp.sum(nll) / pairs, "contrastive_accuracy": jnp.sum(wins) / pairs}
            loss += method.contrastive_weight * metrics["contrastive"]
        return loss, metrics | {"loss": loss}

    def on_shard(params, key_params, queue, batch: Batch, step, rng):
        """Gradients and metrics of the whole batch, and the queue after it. `queue` and `batch` are one shard's."""
        batch = jax.tree.map(lambda x: x[:, 0], batch)  # [A, 1, ...] -> [A, ...]
        rngs = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(rng), step), 3)
        trained, frozen = split(own_copy(params, specs.params, method.dtype), method.frozen)
        keys, after, masked_total = None, queue, 1
        if method.contrastive_weight:
            seed = jax.random.bits(rngs[2]) if method.key_dropout else None
            keys = encode_keys(merge(own_copy(key_params, specs.key_params, method.dtype), frozen), batch, seed)
            after = contrastive.enqueue(queue, step, keys.reshape(-1, keys.shape[-1]), batch.hashes.reshape(-1))
        if method.tlm_weight:
            masked_total = jnp.maximum(1, jax.lax.psum(jnp.sum(batch.slots.rank >= 0), BATCH_AXES))
        negatives = after if method.in_batch else queue

        def one(part):
            def of_trained(trained):
                return losses(merge(trained, frozen), negatives, part, step, rngs, masked_total)

            return jax.grad(of_trained, has_aux=True)(trained)

        gradients, metrics = sum_of(one, (batch, keys, jnp.arange(len(batch.rows.ids))))
        return sum_over_shards(gradients, trained_specs, method.dtype), jax.lax.psum(metrics, BATCH_AXES), after

    def add_word_alignment(params, gradients, metrics):
        """The loss of the dictionary and its gradient, once a step, whatever the batch."""

        def loss(params):
            table = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
            cosine = word_alignment.mean_cosine(table, *words)
            return -method.word_alignment_weight * cosine, cosine

        (value, cosine), more = jax.value_and_grad(loss, has_aux=True)(params)
        metrics |= {"word_alignment": cosine, "loss": metrics["loss"] + value}
        return jax.tree.map(jnp.add, gradients, more), metrics

    def step(state: State, batch: Batch):
        gradients, metrics, queue = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(specs.params, specs.key_params, specs.queue, P(None, BATCH_AXES), P(), P()),
            out_specs=(trained_specs, P(), specs.queue),
        )(state.params, state.key_params, state.queue, batch, state.step, state.rng)
        trained, frozen = split(state.params, method.frozen)
        if method.word_alignment_weight and words is not None:
            gradients, metrics = add_word_alignment(trained, gradients, metrics)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained: Any = optax.apply_updates(trained, updates)
        followed = {name: trained[name] for name in state.key_params}
        state = state.replace(
            step=state.step + 1,
            params=merge(trained, frozen),
            key_params=contrastive.ema(state.key_params, followed, method.momentum),
            queue=queue,
            opt_state=opt_state,
        )
        return state, metrics

    batches, whole = NamedSharding(mesh, P(None, BATCH_AXES)), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, batches), out_shardings=(shardings, whole))


def sum_of(function: Callable[[Any], Any], parts: Any) -> Any:
    """The sum of `function` over the A parts, one after the other, in float32; inside `shard_map`."""
    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return function(first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    zeros = jax.tree.map(lambda x: as_varying(jnp.zeros(x.shape, jnp.float32)), jax.eval_shape(function, first))
    return jax.lax.scan(add, zeros, parts)[0]
