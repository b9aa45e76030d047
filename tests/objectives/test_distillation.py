"""Distances to a teacher's vectors: by hand, and with gradients against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.objectives import distillation


def test_by_hand():
    student, teacher = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 5.0], [1.0, 0.0], [0.0, -1.0]])
    np.testing.assert_allclose(distillation.distance(student, teacher, "mse"), [(9 + 1) / 2, 0.0, 9 / 2])
    np.testing.assert_allclose(distillation.distance(student, teacher, "cosine"), [1 - 0.8, 0.0, 2.0], atol=1e-6)


@pytest.mark.parametrize("loss", distillation.LOSSES)
def test_loss_and_gradient_equal_pytorch(loss):
    import torch

    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 16)).astype(np.float32)
    theirs = torch.tensor(student, requires_grad=True)
    if loss == "mse":
        wanted = torch.nn.MSELoss()(theirs, torch.tensor(teacher))
    else:
        wanted = torch.nn.CosineEmbeddingLoss()(theirs, torch.tensor(teacher), torch.ones(6))
    wanted.backward()
    value, gradient = jax.value_and_grad(lambda x: distillation.distance(x, teacher, loss).mean())(student)
    assert float(value) == pytest.approx(wanted.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-7)
    assert np.isfinite(jax.grad(lambda x: distillation.distance(x, teacher, loss).sum())(np.zeros_like(student))).all()
