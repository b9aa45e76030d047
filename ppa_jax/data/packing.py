"""Packs sentences into rows of a few widths, and defines the few static shapes of batches."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from ppa_jax.model.attention import Layout

ATTEMPTS = 8  # orders tried when packing
SEARCHED = 8192  # sequences of the blocks for which a layout is searched
FEW = 256  # sequences; with more, another order rarely helps
MANY = 16  # blocks; from here on all are packed at once, because on a pod each host packs the blocks of all hosts
NARROWEST = 64  # tokens; few sentences would fill narrower rows


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "positions", "segments"], meta_fields=["layout"]
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed tokens, [..., N] each. The layout is static: each layout has a compiled program of its own."""

    ids: Any
    positions: Any  # from 0 in every sequence
    segments: Any  # the number of the sequence plus 1, unique in the global batch; 0 is padding
    layout: Layout


def widths_for(longest: int) -> list[int]:
    """Widths of rows, ascending: the longest sequence's length, and its halves down to NARROWEST.

    The cost of attention depends on the width of a row, not on the sentences in it, so short ones go into narrow rows.
    """
    widths = [longest]
    while widths[0] % 2 == 0 and widths[0] // 2 >= NARROWEST:
        widths.insert(0, widths[0] // 2)
    return widths


def capacity(layout: Layout) -> int:
    """The number of tokens that fit a layout."""
    return sum(rows * width for rows, width in layout)


def pack(lengths: np.ndarray, layout: Layout) -> np.ndarray | None:
    """The position of every sequence's first token; None if they do not all fit.

    Best-fit decreasing: longest first, each into the fullest row that still has room. If that fails, perturbed orders
    are tried, the same ones each time. Empty sequences start at 0 and take no room.
    """
    lengths = np.asarray(lengths)
    if lengths.sum() > capacity(layout):
        return None
    order = np.argsort(-lengths, kind="stable")
    for attempt in range(ATTEMPTS if len(lengths) <= FEW else 1):
        if attempt:
            noise = np.random.default_rng(attempt).random(len(lengths))
            order = np.argsort(-lengths * (1 + 0.6 * noise), kind="stable")
        starts = _best_fit(lengths, order, layout)
        if starts is not None:
            return starts
    return None


def pack_blocks(lengths: np.ndarray, layout: Layout) -> np.ndarray | None:
    """`pack` for every block, [K, n], with the same result; None if one of the blocks does not fit."""
    if len(lengths) < MANY:
        found = [pack(block, layout) for block in lengths]
        return None if any(starts is None for starts in found) else np.array(found, np.int64)
    if (lengths.sum(axis=1) > capacity(layout)).any():
        return None
    starts, fits = _best_fit_of_many(lengths, layout)
    for k in np.flatnonzero(~fits):
        again = pack(lengths[k], layout)
        if again is None:
            return None
        starts[k] = again
    return starts


def _best_fit_of_many(lengths: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(positions [K, n], which blocks fit [K]) by best-fit decreasing, one sequence of every block at a time."""
    widths = np.repeat([width for _, width in layout], [rows for rows, _ in layout])
    room = np.tile(widths, (len(lengths), 1))
    place = np.tile(np.cumsum(widths) - widths, (len(lengths), 1))  # position of the first free token of each row
    starts, fits, blocks = np.zeros(lengths.shape, np.int64), np.ones(len(lengths), bool), np.arange(len(lengths))
    for sequence in np.argsort(-lengths, axis=1, kind="stable").T:
        n = lengths[blocks, sequence]
        free = np.where(room >= n[:, None], room, np.iinfo(np.int64).max)
        row = free.argmin(axis=1)  # the first row among equals, as in `_best_fit`
        held = (n > 0) & (room[blocks, row] >= n)
        fits &= held | (n == 0)
        starts[blocks, sequence] = np.where(held, place[blocks, row], 0)
        room[blocks, row] -= np.where(held, n, 0)
        place[blocks, row] += np.where(held, n, 0)
    return starts, fits


def _best_fit(lengths: np.ndarray, order: np.ndarray, layout: Layout) -> np.ndarray | None:
    room: list[tuple[int, int]] = []  # (free tokens, position of the first), sorted
    first = 0
    for rows, width in layout:
        room += [(width, first + row * width) for row in range(rows)]
        first += rows * width
    room.sort()
    starts = np.zeros(len(lengths), np.int64)
    for i, n in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if n == 0:
            continue
        row = bisect.bisect_left(room, (n, -1))
        if row == len(room):
            return None
        free, place = room.pop(row)
        starts[i] = place
        bisect.insort(room, (free - n, place + n))
    return starts


def fill(starts: np.ndarray, tokens: list[list[int]], numbers: np.ndarray, layout: Layout, pad_id: int) -> Rows:
    """Writes each sequence's tokens at its start; the segments are `numbers` plus 1."""
    ids = np.full(capacity(layout), pad_id, np.int32)
    positions, segments = np.zeros_like(ids), np.zeros_like(ids)
    for start, sequence, number in zip(starts, tokens, numbers, strict=True):
        end = start + len(sequence)
        ids[start:end] = sequence
        positions[start:end] = np.arange(len(sequence))
        segments[start:end] = number + 1
    return Rows(ids, positions, segments, layout)


def find_layout(batches: Sequence[Sequence[np.ndarray]], widths: Sequence[int], share: float = 0.98) -> Layout:
    """A layout that holds all blocks of a given share of the batches, with little padding and narrow rows.

    Args:
      batches: for each batch, the lengths of the sequences in each of its blocks.
      widths: allowed widths of rows.
      share: of the batches that must fit.

    Raises ValueError for a sequence longer than the widest row.
    """
    blocks = [lengths for batch in batches for lengths in batch]
    if (longest := max(int(np.max(lengths, initial=0)) for lengths in blocks)) > max(widths):
        raise ValueError(f"a sequence of {longest} tokens does not fit a row of {max(widths)}")
    # The search uses a random sample of blocks: every n-th block might have similar lengths.
    drawn = np.random.default_rng(0).permutation(len(blocks))
    few = [blocks[i] for i in drawn[: max(4, SEARCHED // max(1, len(blocks[0])))]]
    layout = _tightest(few, widths)
    for _ in range(3):  # add blocks that do not fit, and search again
        failing = [lengths for lengths in blocks if pack(lengths, layout) is None]
        if len(failing) <= (1 - share) * len(batches):
            break
        few += failing[: len(few)]
        layout = _tightest(few, widths)
    return _extended(layout, batches, widths, share)


def _tightest(blocks: Sequence[np.ndarray], widths: Sequence[int]) -> Layout:
    """A cheap layout that holds these blocks.

    Many narrow rows leave gaps that no sequence fills. So more and more of them are joined to wider rows; after each
    such change all rows that are not needed are removed, until the layout no longer gets cheaper.
    """
    widths = sorted(widths)
    blocks = sorted(blocks, key=lambda lengths: -int(np.sum(lengths)))

    def holds(rows: list[int]) -> bool:
        layout = as_layout(rows, widths)
        for i, lengths in enumerate(blocks):
            if pack(lengths, layout) is None:
                blocks.insert(0, blocks.pop(i))  # try the blocks that are hard to fit first
                return False
        return True

    def shrink(rows: list[int]) -> list[int]:
        for i in range(len(widths)):  # narrow rows first: the wide ones replace them
            least = bisect.bisect_left(range(rows[i]), True, key=lambda r: holds([*rows[:i], r, *rows[i + 1 :]]))
            rows = [*rows[:i], least, *rows[i + 1 :]]
        return rows

    def cost(rows: list[int]) -> float:
        # The cost of dense layers is proportional to the tokens; that of attention also grows with the row's width.
        # That both are equal at 1,024 tokens is a guess; for a model of width 384 on a CPU they are at about 400.
        return sum(r * w * (1 + w / 1024) for r, w in zip(rows, widths, strict=True))

    # Starts with enough room: one row per sequence, of the smallest width that holds it.
    kinds = [np.bincount(np.searchsorted(widths, lengths), minlength=len(widths)) for lengths in blocks]
    rows = np.max(kinds, axis=0).tolist()
    best = shrink(rows)
    for i in range(len(widths) - 1):
        rows, joined, worse = best, 1, 0
        while 2 * joined <= rows[i] and worse < 6:
            tried = shrink([r + joined * (k == i + 1) for k, r in enumerate(rows)])
            best, worse = (tried, 0) if cost(tried) < cost(best) else (best, worse + 1)
            joined += -(-joined // 4)
    return as_layout(best, widths)


def _extended(layout: Layout, batches: Sequence[Sequence[np.ndarray]], widths: Sequence[int], share: float) -> Layout:
    """Adds rows, of each width in turn, until all blocks of at least this share of the batches fit."""
    rows, turn = dict.fromkeys(sorted(widths), 0) | {w: r for r, w in layout}, itertools.cycle(sorted(widths))

    def fails(blocks: Sequence[np.ndarray]) -> bool:
        return any(pack(lengths, as_layout(list(rows.values()), list(rows))) is None for lengths in blocks)

    failing = list(filter(fails, batches))
    while len(failing) > (1 - share) * len(batches):
        width = next(turn)
        rows[width] += 1 + rows[width] // 256
        failing = list(filter(fails, failing))
    return as_layout(list(rows.values()), list(rows))


def as_layout(rows: Sequence[int], widths: Sequence[int]) -> Layout:
    """The layout with these numbers of rows of each width, and at least one row."""
    return tuple((int(r), int(w)) for r, w in zip(rows, widths, strict=True) if r) or ((1, int(widths[0])),)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of one shard of a batch."""

    query: Layout
    key: Layout
    slots: int  # masked positions
    rtl: Layout = ()  # of RTL's head; empty without it
    targets: int = 0  # tokens that RTL predicts


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Shapes of increasing size; a batch takes the first that fits.

    Level 1 adds 1/32 of the tokens, but at least one row, in rows that hold the longest possible sequence; every
    further level doubles what is added. So there is a shape for any batch, and a run compiles only a few: six levels
    reach twice the base.

    Attributes:
      base: the shape that holds nearly all batches, so that a run compiles the step once or twice.
      query_width: of the widest row of queries, TLM sequences and RTL's.
      key_width: of the widest row of keys.
    """

    base: Shape
    query_width: int
    key_width: int

    def at(self, level: int) -> Shape:
        """The shape of a level, from 0."""

        base, times = self.base, 1 << level >> 1  # 0, 1, 2, 4, ...

        def higher(layout: Layout, width: int) -> Layout:
            rows = {w: r for r, w in layout}
            rows[width] = rows.get(width, 0) + times * max(1, capacity(layout) // (32 * width))
            return tuple((r, w) for w, r in sorted(rows.items()) if r)

        query, key = higher(base.query, self.query_width), higher(base.key, self.key_width)
        slots, targets = (n + times * -(-n // 32) for n in (base.slots, base.targets))
        return Shape(query, key, slots, higher(base.rtl, self.query_width) if base.rtl else (), targets)
