"""What our encoder gives, for comparison with transformers."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from ppa_jax.model.bert import rows_from_mask
from ppa_jax.model.families import make_encoder, make_masked_lm_head
from ppa_jax.model.heads import decode


@pytest.fixture(scope="session")
def flax_outputs() -> Callable[..., tuple[list[np.ndarray], np.ndarray]]:
    """flax_outputs(pretrained, ids, mask) -> hidden states (embeddings first) and masked-LM logits."""

    def run(pretrained: Any, ids: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        positions, segments = rows_from_mask(jax.numpy.asarray(mask))
        encoder = make_encoder(pretrained.config)
        states = encoder.apply({"params": pretrained.params["encoder"]}, ids, positions, segments, all_hidden=True)
        words = pretrained.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        predictions = make_masked_lm_head(pretrained.config).apply(
            {"params": pretrained.params["mlm_head"]}, states[-1]
        )
        logits = decode(*predictions, words)
        return [np.asarray(state) for state in states], np.asarray(logits)

    return run


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and mask [3, 9]: a full row, a padded one, the shortest possible. Padding holds id 1."""
    mask = (np.arange(9) < np.array([9, 6, 2])[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(5, 64, mask.shape).astype(np.int32)
    return np.where(mask, ids, 1).astype(np.int32), mask
