"""Examples of the tasks from the built-in sample."""

from __future__ import annotations

from typing import Any

from ppa_jax.errors import UserError
from ppa_jax.tasks.task import Task


def read(task: Task, source: str, *, language: str, field: str) -> list[Any]:
    """The examples `world:A-B` of a language."""
    raise UserError(f"{field}: {source}: the built-in sample has no examples of this task yet")
