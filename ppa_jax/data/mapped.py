"""Memory-mapped arrays on their way to another process: by the name of their file, not by content."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def to_name(array: np.ndarray) -> Any:
    """The file of an array that np.load has mapped; any other array, a part of a mapped one too, as it is."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        return str(array.filename)
    return array


def from_name(named: Any) -> np.ndarray:
    """What `to_name` was given."""
    return np.load(named, mmap_mode="r") if isinstance(named, str) else named
