"""AdamW with linear warm-up and decay, as in BERT."""

from __future__ import annotations

from typing import Any

import jax
import optax
from absl import logging

from ppa_jax.training.sharding import path_name


def warmup_steps(warmup: float, steps: int) -> int:
    """`warmup` is a share of the steps if below 1, else a number of steps."""
    return min(steps, round(warmup * steps) if warmup < 1 else int(warmup))


def schedule(peak: float, warmup: float, steps: int) -> optax.Schedule:
    """Linear from peak/(n+1) up to `peak` over the n warm-up steps, then linear to 0 after the last step."""
    n = warmup_steps(warmup, steps)
    if n >= steps > 1:
        logging.warning("train.warmup=%g covers all %d steps: the learning rate never decays", warmup, steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (n + 1), peak, max(1, n)),
            optax.linear_schedule(peak, 0.0, max(1, steps - n)),
        ],
        [n],
    )


def decayed(params: Any) -> Any:
    """True for the matrices: biases and LayerNorm have no weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).endswith(("kernel", "embedding")), params)


def adamw(rate: optax.Schedule, *, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW after clipping the gradient's global norm (0: no clipping)."""
    optimizer = optax.adamw(rate, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer
