"""The loss of ALIGN-MLM against PyTorch, and that nothing breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.objectives import word_alignment
from ppa_jax.objectives.word_alignment import mean_cosine

WORDS = [[0, 3, 5], [1], [2, 2], [4, 6]]
PIECES, LENGTHS = np.concatenate(WORDS).astype(np.int32), np.array([3, 1, 2, 2], np.int32)
PAIRS = np.array([[0, 1], [2, 3], [1, 3], [1, 3]], np.int32)


@pytest.mark.parametrize("block", [16_384, 2, 3])
def test_value_and_gradient_are_those_of_pytorch(monkeypatch, block):
    import torch

    monkeypatch.setattr(word_alignment, "BLOCK", block)
    table = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    value, pull = jax.value_and_grad(mean_cosine)(jnp.asarray(table), PIECES, LENGTHS, PAIRS)
    embeddings = torch.tensor(table, requires_grad=True)
    vectors = torch.stack([embeddings[row].mean(0) for row in WORDS])
    theirs = torch.cosine_similarity(vectors[PAIRS[:, 0]], vectors[PAIRS[:, 1]]).mean()
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), atol=1e-6)
    assert embeddings.grad is not None
    np.testing.assert_allclose(pull, embeddings.grad.numpy(), atol=1e-6)
    assert not np.asarray(pull)[7:].any(), "words of no pair do not move"


def test_vectors_of_zero_give_no_nan():
    value, pull = jax.value_and_grad(mean_cosine)(jnp.zeros((9, 5)), PIECES, LENGTHS, PAIRS)
    assert value == 0 and np.isfinite(pull).all()


def test_descent_brings_words_of_several_pieces_together():
    table = jnp.asarray(np.random.default_rng(1).normal(size=(9, 5)), jnp.float32)
    move = jax.jit(lambda table: table + 0.5 * jax.grad(mean_cosine)(table, PIECES, LENGTHS, PAIRS))
    for _ in range(200):
        table = move(table)
    assert mean_cosine(table, PIECES, LENGTHS, PAIRS) > 0.999
