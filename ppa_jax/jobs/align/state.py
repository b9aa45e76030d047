"""The state of the main job: all that `jobs/align/method.py` changes from step to step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding

from ppa_jax.jobs.align.network import init_rtl_head
from ppa_jax.jobs.align.settings import Method
from ppa_jax.model.families import EncoderConfig
from ppa_jax.model.heads import ProjectionHead
from ppa_jax.objectives import contrastive
from ppa_jax.training.freezing import split
from ppa_jax.training.sharding import BATCH_AXES, Rules, tree_shardings


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
        **as_fields(queues),
    )


def as_fields(queues: Sequence[Any]) -> dict[str, Any]:
    """The fields of a State that has these queues; `State.queues` is the reverse."""
    return dict(itertools.zip_longest(("queue", "first_queue"), queues))


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Where every leaf of the state lives: parameters and moments by the rules, the queue split as the batch."""
    shardings = tree_shardings(state, rules, mesh)
    split = jax.tree.map(lambda spec: NamedSharding(mesh, spec), contrastive.queue_specs(BATCH_AXES))
    return shardings.replace(**as_fields([split for _ in state.queues]))
