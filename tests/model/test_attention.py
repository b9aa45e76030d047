"""Attention against PyTorch's; its two ways of normalising against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.model.attention import attend, attention_mask

B, L, H, d = 3, 20, 2, 8
SEGMENTS = np.sort(np.random.default_rng(1).integers(0, 4, (B, L)), axis=1)


def random_states(seed: int, dtype=jnp.float32) -> list[jax.Array]:
    return list(3 * jax.random.normal(jax.random.key(seed), (3, B, L, H, d), dtype))


def test_equals_pytorch():
    import torch

    states, mask = random_states(0), attention_mask(jnp.asarray(SEGMENTS))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.asarray(x)).transpose(1, 2) for x in states), attn_mask=torch.tensor(np.asarray(mask))
    )
    np.testing.assert_allclose(attend(*states, mask, None, 0.0), theirs.transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_dropout_that_drops_nothing_changes_no_value_and_no_gradient(dtype, tolerance):
    """What is trained is normalised before the product, what is only computed after it. bfloat16 has 8 bits."""
    states, mask = random_states(0, dtype), attention_mask(jnp.asarray(SEGMENTS))
    seeds = jnp.asarray(np.arange(B * L, dtype=np.uint32).reshape(B, L))

    def total(states, seeds):
        mixed = attend(*states, mask, seeds, 2.0**-40)  # a rate below that of the words' resolution
        return jnp.sum(jnp.sin(mixed.astype(jnp.float32))), mixed

    (_, wanted), gradient = jax.value_and_grad(total, has_aux=True)(states, seeds)
    (_, found), same = jax.value_and_grad(total, has_aux=True)(states, None)
    assert found.dtype == wanted.dtype == dtype
    for one, other in zip((found, *same), (wanted, *gradient), strict=True):
        one, other = np.float32(one), np.float32(other)
        assert np.abs(one - other).max() < tolerance * np.abs(other).max()
