"""Frozen parts of an encoder: no gradient, no moments, no moving average, no backward pass below what is trained.

Parameters remain one tree in the state, for all who read them; a step splits it.
"""

from __future__ import annotations

import re
from typing import Any

from ppa_jax.config import entries
from ppa_jax.errors import UserError

EMBEDDINGS = "embeddings"


def parse_freeze(text: str, num_layers: int) -> tuple[str, ...]:
    """The modules of the encoder that `train.freeze` names: `embeddings,0-1` is embeddings, layer_0 and layer_1.

    Raises UserError for what is neither `embeddings` nor a block or a range of blocks, counted from 0, of the encoder.
    """
    frozen = set()
    for entry in entries(text):
        field = f"config.train.freeze={text}: {entry}"
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", entry)
        if entry == EMBEDDINGS:
            frozen.add(entry)
            continue
        if match is None:
            raise UserError(f"{field} is neither embeddings nor blocks; write embeddings, 0-5, or embeddings,0-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"{field} ends before it begins; write {last}-{first}")
        if last >= num_layers:
            raise UserError(f"{field}: the model has {num_layers} blocks, 0 to {num_layers - 1}")
        frozen |= {f"layer_{i}" for i in range(first, last + 1)}
    return tuple(sorted(frozen))


def split(params: Any, frozen: tuple[str, ...]) -> tuple[Any, Any]:
    """(trained, frozen): two trees with the leaves of `params`, by the modules of its `encoder`."""
    encoder = params["encoder"]
    parts = [{name: encoder[name] for name in encoder if (name in frozen) == side} for side in (False, True)]
    return params | {"encoder": parts[0]}, {"encoder": parts[1]}


def merge(trained: Any, frozen: Any) -> Any:
    """The tree that was split."""
    return trained | {"encoder": trained["encoder"] | frozen["encoder"]}
