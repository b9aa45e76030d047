"""Fine-tuning: an encoder and a task's head, trained together by AdamW.

One step: the encoder, the task's head on its last states, the mean of the task's loss, an optimizer update. Dropout
depends on the step and on the index of the row in the global batch, as in the job `align`.

Axes: B features of a batch, L tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.model import dropout as drop
from ppa_jax.model.bert import rows_from_mask
from ppa_jax.tasks.task import Batch, Outputs, Task
from ppa_jax.training.freezing import merge, split
from ppa_jax.training.sharding import BATCH_AXES, own_copy, specs_of, sum_over_shards

HEAD_SITE = 1 << 16  # of dropout: after the sites of the encoder's blocks


class State(struct.PyTreeNode):
    """All that changes from step to step, and the seed that does not."""

    step: jax.Array
    rng: jax.Array  # uint32 key data, folded with the step
    params: Any  # encoder, head
    opt_state: Any


class Network:
    """The encoder with a task's head, as one function of parameters and batch."""

    def __init__(self, task: Task, encoder: Any, labels: Sequence[str]) -> None:
        self._encoder, self.dtype, self.frozen = encoder, encoder.dtype, encoder.frozen
        self._head = task.Head(encoder.config, tuple(labels), encoder.dtype)
        self._only_first = getattr(self._head, "first_alone", False)

    def init_head(self, seed: int, batch: Batch) -> Any:
        """New parameters of the head; of `batch` only the shapes matter."""
        B, L = batch["ids"].shape
        hidden = jnp.zeros((B, L, self._encoder.config.hidden_size), self._encoder.dtype)
        return self._head.init(jax.random.key(seed), hidden, batch, None)["params"]

    def apply(self, params: Any, batch: Batch, seed: jax.Array | None = None, first_row: Any = 0) -> Outputs:
        """The head's outputs. `seed` enables dropout, which depends on the row, counted from `first_row`."""
        positions, segments = rows_from_mask(batch["mask"], first_row)
        hidden = self._encoder.apply(
            {"params": params["encoder"]},
            batch["ids"],
            positions,
            segments,
            batch["types"],
            dropout_seed=seed,
            output_positions=jnp.zeros_like(batch["ids"][:, :1]) if self._only_first else None,
        )
        seeds = None if seed is None else drop.at_site(drop.token_seeds(seed, positions, segments), HEAD_SITE)
        return self._head.apply({"params": params["head"]}, hidden, batch, seeds)


def init_state(params: Any, optimizer: optax.GradientTransformation, seed: int, frozen: tuple[str, ...] = ()) -> State:
    """The state before the first step; `params` are of the encoder, whose modules `frozen` stay, and the head."""
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        opt_state=optimizer.init(split(params, frozen)[0]),
    )


def make_step(
    network: Network, task: Task, optimizer: Any, mesh: Mesh, shardings: State, *, dropout: bool
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The jitted step: (state, batch) -> (state, metrics). The state is donated."""

    specs = specs_of(shardings)
    trained_specs, _ = split(specs.params, network.frozen)

    def on_shard(params, batch, step, rng):
        """The mean loss of the whole batch and its gradient. `batch` is one shard's."""
        key = jax.random.fold_in(jax.random.wrap_key_data(rng), step)
        seed = jax.random.bits(key) if dropout else None
        first_row = jax.lax.axis_index(BATCH_AXES) * len(batch["ids"])

        def total(trained):
            return task.loss(network.apply(merge(trained, frozen), batch, seed, first_row), batch)

        trained, frozen = split(own_copy(params, specs.params, network.dtype), network.frozen)
        (loss, count), gradients = jax.value_and_grad(total, has_aux=True)(trained)
        loss, count = jax.lax.psum((loss, count), BATCH_AXES)
        count = jnp.maximum(count, 1)
        gradients = sum_over_shards(gradients, trained_specs, network.dtype)
        return loss / count, jax.tree.map(lambda x: x / count, gradients)

    def step(state: State, batch: Batch):
        loss, gradients = jax.shard_map(
            on_shard, mesh=mesh, in_specs=(specs.params, P(BATCH_AXES), P(), P()), out_specs=(P(), trained_specs)
        )(state.params, batch, state.step, state.rng)
        trained, frozen = split(state.params, network.frozen)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = merge(optax.apply_updates(trained, updates), frozen)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    rows, whole = NamedSharding(mesh, P(BATCH_AXES)), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, rows), out_shardings=(shardings, whole))


def make_predict(network: Network, mesh: Mesh) -> Callable[[Any, Batch], Outputs]:
    """The jitted forward pass: (params, batch) -> the head's outputs, complete on every process."""
    rows = P(BATCH_AXES)
    predict = jax.shard_map(network.apply, mesh=mesh, in_specs=(P(), rows), out_specs=rows)
    return jax.jit(predict, out_shardings=NamedSharding(mesh, P()))
