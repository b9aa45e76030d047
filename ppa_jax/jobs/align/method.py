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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data.batches import Batch
from ppa_jax.jobs.align.network import Network
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.state import State, as_fields
from ppa_jax.model.families import EncoderConfig
from ppa_jax.model.pooling import pool
from ppa_jax.objectives import contrastive, distillation, masking, word_alignment
from ppa_jax.training.freezing import merge, split
from ppa_jax.training.sharding import BATCH_AXES, as_varying, own_copy, specs_of, sum_over_shards

if TYPE_CHECKING:
    from ppa_jax.data.dictionaries import WordPairs


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
    mask = functools.partial(
        masking.mask_tokens,
        longest=method.max_tlm_length,
        mask_id=method.mask_id,
        vocab_size=method.vocab_size or config.vocab_size,
        special_ids=method.special_ids,
        translations=jnp.asarray(translations) if method.dict_mlm else None,
        form=method.dict_mlm,
    )

    def losses(params, queues, part, step, rngs, totals):
        """One accumulation step's share of the loss, the mean over the whole batch, and metrics."""
        batch, keys, number, pull = part
        rows, masked, read = batch.rows, None, []
        if method.tlm_weight:
            masked = mask(rngs[0], rows.ids, batch.sequences, batch.slots)
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
            queries, keys, hashes = (
                None if x is None else by_direction(x[None], method.sides) for x in (vectors, keys, batch.hashes)
            )
            first = number * (len(start) // method.sides)
            nll, found = contrast(method, temperature, queries, keys, hashes, queues, step, first, totals["pairs"])
            metrics |= found
            loss += method.contrastive_weight * nll
        return loss, metrics | {"loss": loss}

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
            keys = network.vectors(key_side, batch.key_rows, batch.key, seed)
            new = zip(queues, *(by_direction(x, method.sides) for x in (keys, batch.hashes)), strict=True)
            after = tuple(contrastive.enqueue(queue, step, *x) for queue, *x in new)
        elif method.contrastive_weight and A > 1:
            *ranked, pull = rank_whole_batch(network, method, whole, batch, jax.random.bits(rngs[1]), totals["pairs"])
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

    def step(state: State, batch: Batch):
        gradients, metrics, queues = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(specs.params, specs.key_params, specs.queues, P(None, BATCH_AXES), P(), P()),
            out_specs=(trained_specs, P(), specs.queues),
        )(state.params, state.key_params, state.queues, batch, state.step, state.rng)
        trained, frozen = split(state.params, method.frozen)
        if method.word_alignment_weight and words is not None:
            gradients, metrics = add_word_alignment(method.word_alignment_weight, words, trained, gradients, metrics)
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
            **as_fields(queues),
        )
        return state, metrics

    batches, whole = NamedSharding(mesh, P(None, BATCH_AXES)), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, batches), out_shardings=(shardings, whole))


def contrast(method, temperature, queries, keys, hashes, queues, step, first, pairs):
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


def rank_whole_batch(network, method, params, batch, seed, pairs):
    """Ranking in a batch of A > 1 parts: the first pass of GradCache (Gao et al. 2021, arXiv 2101.06983).

    Returns the loss and metrics, and its gradient for the temperature [A] and the vectors [A, 2b, P] of the parts.
    The second pass computes the vectors again, with the same dropout, and takes that gradient to the parameters.
    """
    vectors = network.vectors(params, batch.rows, batch.query, seed)

    def loss(temperature, vectors):
        hashes = by_direction(batch.hashes, 2)
        return contrast(method, temperature, by_direction(vectors, 2), None, hashes, (), None, None, pairs)

    temperature = as_varying(jnp.asarray(network.temperature(params)))
    run = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (nll, metrics), (of_temperature, of_vectors) = run(temperature, vectors)
    return nll, metrics, (jnp.full(len(vectors), of_temperature / len(vectors)), of_vectors)


def add_word_alignment(weight, words, params, gradients, metrics):
    """The loss of the dictionary and its gradient, once a step, whatever the batch."""

    def loss(params):
        table = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        cosine = word_alignment.mean_cosine(table, *words)
        return -weight * cosine, cosine

    (value, cosine), more = jax.value_and_grad(loss, has_aux=True)(params)
    metrics |= {"word_alignment": cosine, "loss": metrics["loss"] + value}
    return jax.tree.map(jnp.add, gradients, more), metrics


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
