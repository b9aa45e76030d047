"""Distillation of sentence vectors: a student's vectors of a sentence and its translation are drawn to a teacher's.

Reimers & Gurevych 2020 (arXiv 2004.09813), as sentence-transformers' recipe make_multilingual trains it: the teacher
reads the sentence of one language, and the student is to give the same vector for it and for its translation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOSSES = ("mse", "cosine")


def distance(student: Float[Array, "n E"], teacher: Float[Array, "n E"], loss: str) -> Float[Array, "n"]:
    """How far each vector of the student is from the teacher's, in float32.

    `mse`: the mean of the squared differences, as torch.nn.MSELoss over one vector. `cosine`: 1 - the cosine.
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    if loss == "mse":
        return jnp.mean(jnp.square(student - teacher), axis=-1)
    return 1.0 - jnp.sum(unit(student) * unit(teacher), axis=-1)


def unit(vectors: Float[Array, "*n E"]) -> Float[Array, "*n E"]:
    """The vectors at length 1; one of zeros stays, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + 1e-12)
