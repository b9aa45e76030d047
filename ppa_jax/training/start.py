"""The state a training starts from: the newest checkpoint's, or a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from ppa_jax.training.checkpoint import Checkpoints


def restore_or_init(
    checkpoints: Checkpoints, init: Callable[..., Any], arguments: tuple[Any, ...], shapes: Any, shardings: Any
) -> tuple[int, Any]:
    """(step, state), placed on the devices as `shardings` say. The step is 0 where there is no checkpoint.

    Args:
      checkpoints: of the run.
      init: makes a new state of `arguments`; jitted here.
      arguments: of `init`.
      shapes: the state's, as by `jax.eval_shape`.
      shardings: a tree like `shapes`.
    """
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    restored = checkpoints.restore(abstract)
    if restored is None:
        return 0, jax.jit(init, out_shardings=shardings)(*arguments)
    logging.info("going on from the checkpoint of step %d", restored[0])
    return restored
