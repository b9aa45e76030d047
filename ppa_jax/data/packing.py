"""Packing sentences into rows of one width, and the few static shapes that batches may have."""

from __future__ import annotations

import bisect
import dataclasses
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Packed rows: [R, W] each, or with leading axes. Padding is segment 0."""

    ids: np.ndarray
    positions: np.ndarray  # from 0 in every sequence
    segments: np.ndarray  # the number of the sequence plus 1, unique in the global batch


def pack(lengths: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Best-fit decreasing: the flat start of every sequence in rows of `width` tokens, and how many rows that takes.

    Longest first, each into the fullest row that still holds it; within 11/9 of the optimum, in practice within a few
    per cent of full. Empty sequences start at 0 and take no room.
    """
    starts = np.zeros(len(lengths), np.int64)
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    rows = 0
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        n = int(lengths[i])
        if n == 0:
            break
        if n > width:
            raise ValueError(f"a sequence of {n} tokens does not fit a row of {width}")
        place = bisect.bisect_left(room, (n, -1))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row, rows = width, rows, rows + 1
        starts[i] = row * width + width - free
        bisect.insort(room, (free - n, row))
    return starts, rows


def fill(starts: np.ndarray, tokens: list[list[int]], numbers: np.ndarray, rows: int, width: int, pad_id: int) -> Rows:
    """Writes each sequence's tokens at its start; `numbers` become the segments (plus 1)."""
    ids = np.full(rows * width, pad_id, np.int32)
    positions, segments = np.zeros(rows * width, np.int32), np.zeros(rows * width, np.int32)
    for start, sequence, number in zip(starts, tokens, numbers, strict=True):
        end = start + len(sequence)
        ids[start:end] = sequence
        positions[start:end] = np.arange(len(sequence))
        segments[start:end] = number + 1
    return Rows(*(x.reshape(rows, width) for x in (ids, positions, segments)))


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of one shard of a batch."""

    query_rows: int
    key_rows: int
    slots: int  # masked positions

    def __le__(self, other: Shape) -> bool:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return all(a <= b for a, b in zip(mine, theirs, strict=True))


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Shapes from the usual one upwards, in steps of a sixteenth: a batch takes the first that holds it.

    The base is the largest need among the batches of the plan's first window; as every window is dealt out evenly,
    nearly all batches have it, and the step is compiled once or twice in a run.
    """

    base: Shape

    def at(self, level: int) -> Shape:
        """The shape of a level, from 0."""
        return Shape(*(size + level * -(-size // 16) for size in dataclasses.astuple(self.base)))

    def smallest(self, need: Shape) -> Shape:
        """The first shape that holds `need`."""
        level = 0
        while not need <= self.at(level):
            level += 1
        return self.at(level)
