"""The main job's method: post-pretraining alignment (PPA, Pan et al. 2021, arXiv 2010.12547).

One step, on a batch of sentences that translate each other:

1. TLM: both sentences in one sequence, 15% of the pieces masked; the query encoder predicts them.
2. Contrast: one sentence through the query encoder, its translation through the key encoder, both projected; InfoNCE of
   the pair against a queue of past keys (as options, also against the other keys of the batch, and in both directions).
   Or ranking: both through the query encoder, and each ranked among the other side of the whole batch, both ways.
   As an option, the vectors of both sentences are drawn to a teacher's vector of one of them (distillation).
   As an option, the word embeddings of dictionary pairs are drawn together, too (the auxiliary loss of ALIGN-MLM).
   Representation translation (RTL; Li et al. 2023, arXiv 2305.09148), an option: from the states of one sentence's
   tokens, a head of two blocks rebuilds the other sentence, which it sees as [MASK]s.
3. The optimizer moves the query side by the gradient of the weighted sum; the key side follows as a moving average; the
   batch's keys replace the oldest in the queue. Ranking has neither key side nor queue.

Losses and gradients are written for one shard of the batch and run on all shards by `jax.shard_map`; optimizer, moving
average and clipping are written for whole arrays. Everything is a pure function of (state, batch). Dropout and masks
depend on the step and on a sequence's number in the global batch, so the number of devices, the packing and the
accumulation change no result beyond float rounding.

Axes: A accumulation steps, S shards, b pairs of one shard and accumulation step, B = A*S*b pairs, N tokens and M masked
positions of b pairs, D width, P projection, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data.batches import Batch, Translation
from ppa_jax.data.packing import Rows
from ppa_jax.model.families import EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.model.heads import ProjectionHead
from ppa_jax.model.modernbert import FULL
from ppa_jax.model.pooling import dense, pool
from ppa_jax.objectives import contrastive, distillation, masked_lm, masking, word_alignment
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
    rtl_weight: float = 0.0
    word_alignment_weight: float = 0.0  # with a dictionary
    distill_weight: float = 0.0  # with a teacher's vectors
    distill_loss: str = "mse"  # or "cosine"
    objective: str = "momentum"  # of the contrast; or "ranking"
    symmetric: bool = False  # momentum in both directions
    queue_size: int = 32_000  # keys; rounded up to whole batches
    momentum: float = 0.999
    temperature: float = 0.05
    learn_temperature: bool = False  # from that value on
    margin: float = 0.0  # subtracted from the cosine of a pair
    projection_dim: int = 300
    layer: int = 12  # whose states are pooled, from 1
    pooling: str = "cls"  # or "mean", over all tokens with the special ones
    dense: str = ""  # the activation of a SentenceTransformer's Dense module, which the projection reads; "": none
    normalize: bool = False  # sentence vectors, as distillation compares them; the projection reads others
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

    @property
    def ranking(self) -> bool:
        """Whether the contrast, if there is one, is without key encoder and queue."""
        return self.objective == "ranking"

    @property
    def sides(self) -> int:
        """How many sentences of a pair are queries."""
        return 2 if self.ranking or self.symmetric or self.distill_weight else 1

    @property
    def has_keys(self) -> bool:
        """Whether there is a key encoder with its queue."""
        return bool(self.contrastive_weight) and not self.ranking

    @property
    def pools(self) -> bool:
        """Whether a loss reads the vectors of sentences."""
        return bool(self.contrastive_weight or self.distill_weight)

    def blocks(self, config: EncoderConfig) -> int:
        """How many blocks the query encoder runs: none above the contrast's layer, unless for TLM."""
        return config.num_layers if self.tlm_weight else self.layer

    def reads_all(self, config: EncoderConfig) -> bool:
        """Whether a loss reads all of the last states that the query encoder computes."""
        reads_tokens = self.rtl_weight or (self.pools and self.pooling != "cls")
        return bool(reads_tokens) and self.layer == self.blocks(config)

    def pools_last(self, config: EncoderConfig) -> bool:
        """Whether vectors of sentences are made of the last of the states that the query encoder computes."""
        return self.pools and self.layer == self.blocks(config)


class State(struct.PyTreeNode):
    """All that changes from step to step, and the seed that does not."""

    step: jax.Array
    rng: jax.Array  # uint32 key data, folded with the step
    params: Any  # encoder, mlm_head, projection: the query side
    key_params: Any  # encoder, projection: the key side, without what is frozen; empty without key encoder
    queue: Any  # a Queue of the second sentences of pairs; None without key encoder
    opt_state: Any
    first_queue: Any = None  # of the first sentences, for the contrast in both directions

    @property
    def queues(self) -> tuple[Any, ...]:
        """One for each direction of the contrast."""
        return tuple(queue for queue in (self.queue, self.first_queue) if queue is not None)


def init_state(
    params: Any, method: Method, config: EncoderConfig, optimizer: Any, *, batch_size: int, seed: int
) -> State:
    """The state before the first step. `params` lacks what the method does not train; a missing projection is drawn."""
    mlm_head = params.get("mlm_head")
    params = {name: params[name] for name in ("encoder", "mlm_head", "dense", "projection") if name in params}
    if not method.tlm_weight:
        params.pop("mlm_head", None)
    if not method.pools:
        params.pop("dense", None)
    if method.rtl_weight:
        params["rtl_head"] = init_rtl_head(params, mlm_head, config)
    key_params, queues = {}, []
    if method.contrastive_weight:
        if "projection" not in params:
            head = ProjectionHead(config.hidden_size, method.projection_dim)
            width = params["dense"]["bias"].shape[0] if method.dense else config.hidden_size
            drawn = head.init(jax.random.key(seed), jnp.zeros((1, width)))
            params["projection"] = drawn["params"]
        if method.learn_temperature:
            params["log_temperature"] = jnp.log(jnp.float32(method.temperature))
    if method.has_keys:
        # A copy, not an alias: both trees are donated to the step.
        keys = ("encoder", "dense", "projection") if method.dense else ("encoder", "projection")
        key_params = jax.tree.map(jnp.copy, {name: split(params, method.frozen)[0][name] for name in keys})
        slots = contrastive.slots_for(method.queue_size, batch_size)
        queues = [contrastive.empty_queue(slots, batch_size, method.projection_dim) for _ in range(method.sides)]
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        key_params=key_params,
        opt_state=optimizer.init(split(params, method.frozen)[0]),
        **_as_fields(queues),
    )


def _as_fields(queues: Sequence[Any]) -> dict[str, Any]:
    """The fields of a State that has these queues; `State.queues` is the reverse."""
    return dict(itertools.zip_longest(("queue", "first_queue"), queues))


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


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Where every leaf of the state lives: parameters and moments by the rules, the queue split as the batch."""
    shardings = tree_shardings(state, rules, mesh)
    split = jax.tree.map(lambda spec: NamedSharding(mesh, spec), contrastive.queue_specs(BATCH_AXES))
    return shardings.replace(**_as_fields([split for _ in state.queues]))


class Network:
    """The encoder and its two heads, on the sentences of one shard."""

    def __init__(self, method: Method, config: EncoderConfig) -> None:
        self._encoder = make_encoder(config, method.dtype, method.remat, method.scan, method.frozen)
        self._rtl_head = make_encoder(rtl_head_config(config), method.dtype, method.remat)
        self._mlm_head = make_masked_lm_head(config, method.dtype)
        self._projection = ProjectionHead(config.hidden_size, method.projection_dim)
        self._dense, self._normalize = method.dense, method.normalize
        self._temperature = method.temperature
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

    def sentence_vectors(self, params: Any, pooled_bxD: jax.Array) -> jax.Array:
        """The vectors that the export gives, [b, E]."""
        vectors = self._apply_dense(params, pooled_bxD)
        return distillation.unit(vectors) if self._normalize else vectors

    def _apply_dense(self, params: Any, pooled_bxD: jax.Array) -> jax.Array:
        return dense(params["dense"], pooled_bxD, self._dense) if self._dense else pooled_bxD

    def temperature(self, params: Any) -> Any:
        """Of the contrast: the setting, or what is learned."""
        return jnp.exp(params["log_temperature"]) if "log_temperature" in params else self._temperature


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

    def encode_sentences(params, rows, spans, seed):
        """The vectors of sentences, [A, b, P], without what only a gradient needs."""

        def one(part):
            rows, (start, length) = part
            if method.pooling == "cls":  # the last block computes [CLS] alone
                pooled = network.encode(params, rows, seed, method.layer, start)[-1]
            else:
                pooled = pool(network.encode(params, rows, seed, method.layer)[-1], start, length, method.pooling)
            return network.project(params, pooled)

        return jax.lax.map(one, (rows, spans))

    def contrast(temperature, queries, keys, hashes, queues, step, first, pairs):
        """The contrastive loss of some pairs of a shard, as a share of the mean over all `pairs`, and metrics.

        Queries [sides, b, P], keys, hashes and queues have a direction each; `first` is the first pair's column.
        """
        options = {"temperature": temperature, "margin": method.margin, "mask_duplicates": method.mask_duplicates}
        if method.ranking:  # the queries of one direction are the keys of the other
            directions = zip(queries, queries[::-1], hashes, strict=True)
            found = [contrastive.ranking(*x, **options, axes=BATCH_AXES) for x in directions]
        else:
            slots, columns = len(queues[0].hashes), first + jnp.arange(queries.shape[1])
            filled = jnp.minimum(step + method.in_batch, slots)
            own = (step % slots, columns) if method.in_batch else None
            directions = zip(queries, keys, hashes, queues, strict=True)
            found = [contrastive.info_nce(*x, filled, own, **options, axes=BATCH_AXES) for x in directions]
        nll, wins = (sum(map(jnp.sum, x)) / (pairs * method.sides) for x in zip(*found, strict=True))
        return nll, {"contrastive": nll, "contrastive_accuracy": wins}

    def losses(params, queues, part, step, rngs, totals):
        """One accumulation step's share of the loss, the mean over the whole batch, and metrics."""
        batch, keys, number, pull = part
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
        at = None if method.reads_all(config) else jnp.concatenate(read)
        hidden = network.encode(params, rows, jax.random.bits(rngs[1]), layers, at, batch.types)

        loss, metrics = 0.0, {}
        if masked is not None:
            states = hidden[-1].at[masked.at].get(mode="clip") if at is None else hidden[-1][: len(masked.at)]
            nll = network.masked_lm(params, states, masked.labels)
            metrics["tlm"] = jnp.sum(nll * masked.weights) / totals["masked"]
            loss += method.tlm_weight * metrics["tlm"]
        if method.rtl_weight:
            seed = jax.random.bits(jax.random.fold_in(rngs[1], 1))
            nll = network.rebuild(params, hidden[method.layer], batch.translation, seed)
            metrics["rtl"] = jnp.sum(nll * batch.translation.used) / totals["targets"]
            loss += method.rtl_weight * metrics["rtl"]
        if method.pools:
            start, length = batch.query
            if pools_last and at is not None:
                pooled = hidden[-1][-len(start) :]
            else:
                pooled = pool(hidden[method.layer], start, length, method.pooling)
        if method.distill_weight:
            teacher = jnp.tile(batch.teacher, (2, 1))  # of the first sentences, then of the second
            found = distillation.distance(network.sentence_vectors(params, pooled), teacher, method.distill_loss)
            metrics["distill"] = jnp.sum(found) / (2 * totals["pairs"])
            loss += method.distill_weight * metrics["distill"]
        if method.contrastive_weight:
            vectors, temperature = network.project(params, pooled), network.temperature(params)
            if pull is not None:  # the loss of the whole batch has been computed: its gradient goes on from here
                surrogate = jnp.sum(pull[0] * temperature) + jnp.sum(pull[1] * vectors)
                return loss + method.contrastive_weight * surrogate, metrics | {"loss": loss}
            x = (None if y is None else by_direction(y[None], method.sides) for y in (vectors, keys, batch.hashes))
            first = number * (len(start) // method.sides)
            nll, found = contrast(temperature, *x, queues, step, first, totals["pairs"])
            metrics |= found
            loss += method.contrastive_weight * nll
        return loss, metrics | {"loss": loss}

    def rank_whole_batch(params, batch: Batch, seed, pairs):
        """Ranking in a batch of A > 1 parts: the first pass of GradCache (Gao et al. 2021, arXiv 2101.06983).

        Returns the loss and metrics, and its gradient for the temperature [A] and the vectors [A, 2b, P] of the parts.
        The second pass computes the vectors again, with the same dropout, and takes that gradient to the parameters.
        """
        vectors = encode_sentences(params, batch.rows, batch.query, seed)

        def loss(temperature, vectors):
            hashes = by_direction(batch.hashes, 2)
            return contrast(temperature, by_direction(vectors, 2), None, hashes, (), None, None, pairs)

        temperature = as_varying(jnp.asarray(network.temperature(params)))
        run = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (nll, metrics), (of_temperature, of_vectors) = run(temperature, vectors)
        return nll, metrics, (jnp.full(len(vectors), of_temperature / len(vectors)), of_vectors)

    def on_shard(params, key_params, queues, batch: Batch, step, rng):
        """Gradients and metrics of the whole batch, and the queues after it. `queues` and `batch` are one shard's."""
        batch = jax.tree.map(lambda x: x[:, 0], batch)  # [A, 1, ...] -> [A, ...]
        rngs = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(rng), step), 3)
        whole, A = own_copy(params, specs.params, method.dtype), len(batch.rows.ids)
        trained, frozen = split(whole, method.frozen)
        keys, pull, ranked, after, totals = None, None, None, queues, {}
        if method.pools:
            totals["pairs"] = batch.hashes.size // method.sides * mesh.size
        if queues:
            seed = jax.random.bits(rngs[2]) if method.key_dropout else None
            key_side = merge(own_copy(key_params, specs.key_params, method.dtype), frozen)
            keys = encode_sentences(key_side, batch.key_rows, batch.key, seed)
            new = zip(queues, *(by_direction(x, method.sides) for x in (keys, batch.hashes)), strict=True)
            after = tuple(contrastive.enqueue(queue, step, *x) for queue, *x in new)
        elif method.contrastive_weight and A > 1:
            *ranked, pull = rank_whole_batch(whole, batch, jax.random.bits(rngs[1]), totals["pairs"])
        if method.tlm_weight:
            totals["masked"] = jnp.maximum(1, jax.lax.psum(jnp.sum(batch.slots.rank >= 0), BATCH_AXES))
        if method.rtl_weight:
            totals["targets"] = jnp.maximum(1, jax.lax.psum(jnp.sum(batch.translation.used), BATCH_AXES))

        negatives = after if method.in_batch else queues

        def one(part):
            def of_trained(trained):
                return losses(merge(trained, frozen), negatives, part, step, rngs, totals)

            return jax.grad(of_trained, has_aux=True)(trained)

        gradients, metrics = sum_of(one, (batch, keys, jnp.arange(A), pull))
        if ranked:
            nll, found = ranked
            metrics |= found | {"loss": metrics["loss"] + method.contrastive_weight * nll}
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
        gradients, metrics, queues = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(specs.params, specs.key_params, specs.queues, P(None, BATCH_AXES), P(), P()),
            out_specs=(trained_specs, P(), specs.queues),
        )(state.params, state.key_params, state.queues, batch, state.step, state.rng)
        trained, frozen = split(state.params, method.frozen)
        if method.word_alignment_weight and words is not None:
            gradients, metrics = add_word_alignment(trained, gradients, metrics)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained: Any = optax.apply_updates(trained, updates)
        if "log_temperature" in trained:
            metrics["temperature"] = network.temperature(state.params)
            trained["log_temperature"] = jnp.maximum(trained["log_temperature"], jnp.log(contrastive.COLDEST))
        followed = {name: trained[name] for name in state.key_params}
        state = state.replace(
            step=state.step + 1,
            params=merge(trained, frozen),
            key_params=contrastive.ema(state.key_params, followed, method.momentum),
            opt_state=opt_state,
            **_as_fields(queues),
        )
        return state, metrics

    batches, whole = NamedSharding(mesh, P(None, BATCH_AXES)), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, batches), out_shardings=(shardings, whole))


def by_direction(x: jax.Array, directions: int) -> jax.Array:
    """[A, directions * b, ...] -> [directions, A * b, ...]."""
    split = x.reshape(len(x), directions, -1, *x.shape[2:])
    return jnp.swapaxes(split, 0, 1).reshape(directions, -1, *x.shape[2:])


def sum_of(function: Callable[[Any], Any], parts: Any) -> Any:
    """The sum of `function` over the A parts, one after the other, in float32; inside `shard_map`."""
    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return function(first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    zeros = jax.tree.map(lambda x: as_varying(jnp.zeros(x.shape, jnp.float32)), jax.eval_shape(function, first))
    return jax.lax.scan(add, zeros, parts)[0]
