"""The schedule: which pairs are in each batch, as a pure function of (seed, step, lengths).

Every process computes the same schedule, for any number of devices; the position in the data is one integer, the step.

- Draws form one endless sequence; batch t takes draws t * B to (t + 1) * B - 1. An epoch has as many draws as there are
  pairs. Each source gets the same number of them in every epoch: proportional to n**(1/T), and exactly its n pairs if
  T = 1.
- Each source is traversed without replacement, in the order of a keyed permutation that differs between passes.
- A line of n languages is one pair in every pass: of two other languages each time, until all n(n-1)/2 pairs have been
  used. Within a pass all pairs of languages occur nearly equally often.
- The batches of an epoch form windows of up to `WINDOW` batches; pairs are rearranged within a window. No window
  extends past the batch that completes an epoch, so only that batch mixes two epochs.
- The pairs of a window are sorted by length. Every block of a batch (16 pairs if that divides it) gets one pair of each
  length stratum; the longest goes to the block with the fewest tokens so far. So every block has all lengths (length
  carries no information) but nearly the same number of tokens, and rows of one static shape are nearly full. Devices
  and accumulation steps get contiguous parts of a batch: usually whole blocks, else parts of a block, whose order
  spreads the lengths.
- Which sentence comes first is random, with probability 1/2 for every pair. The sides of a block are sampled jointly,
  so that its first and second sentences have about the same number of tokens.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.data.cache import pickled_form, unpickled

WINDOW = 256  # maximum number of batches that are balanced together
VERSION = 5  # of the content of batches: a run is resumed only with the same version


class BatchPlan(NamedTuple):
    """The pairs of one batch, in the order of the global batch."""

    source: np.ndarray  # [B] index of the language pair
    index: np.ndarray  # [B] index of the sentence pair in it
    swap: np.ndarray  # [B] bool: the second language comes first, and goes to the query encoder
    sides: np.ndarray  # [B, 2] which of the source's languages (first, second) are, in the order after the swap
    lengths: np.ndarray  # [B, 2] word pieces of (first, second) in the order after the swap, without special tokens


def permute(index: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Applies a keyed permutation of range(size) to `index`, in constant memory.

    A Feistel network of four rounds on the next even power of two. Values outside the range are permuted again until
    they are inside (cycle walking), fewer than four times on average.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    rounds = np.random.SeedSequence(key).generate_state(4, np.uint64) | np.uint64(1)
    out = index.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & low
        for r in rounds:
            mixed = (right + r) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def two_sides(lengths: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Two of the languages that each line has, [m, 2], in the order of the languages.

    Args:
      lengths: [m, n] word pieces; 0 where a line lacks a language. It has at least two.
      turn: [m] counts up; from one to the next a line of k languages gives another of its k(k-1)/2 pairs.
    """
    there = lengths > 0
    present = np.argsort(~there, axis=1, kind="stable")  # the languages of each line, then those it lacks
    sides = np.empty((len(lengths), 2), np.int64)
    count = there.sum(axis=1)
    for k in np.unique(count):
        lines = np.flatnonzero(count == k)
        pairs = np.stack(np.triu_indices(k, 1), axis=1)[turn[lines] % (k * (k - 1) // 2)]
        sides[lines] = np.take_along_axis(present[lines], pairs, axis=1)
    return sides


def draws_per_epoch(sizes: Sequence[int], temperature: float) -> list[int]:
    """The number of draws of each source in an epoch of sum(sizes): proportional to n**(1/T), by largest remainders.

    With T = 1 these are the sizes themselves. Every source gets at least one draw, taken from the source with the most.
    """
    total, largest = sum(sizes), max(sizes)
    weights = [round(2**64 * (n / largest) ** (1 / temperature)) for n in sizes]
    shares = [divmod(total * weight, sum(weights)) for weight in weights]
    draws = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda s: -shares[s][1])
    for s in by_remainder[: total - sum(draws)]:
        draws[s] += 1
    for s, n in enumerate(draws):
        if n == 0:
            draws[draws.index(max(draws))] -= 1
            draws[s] = 1
    return draws


def draws_before(position: int, per_epoch: Sequence[int]) -> list[int]:
    """The number of each source's draws among the first `position` of an epoch, spread evenly over the epoch.

    Each source in turn takes its rounded share of what the sources before it left. So the counts sum to `position`;
    from one position to the next exactly one of them rises, by one; and at the end of the epoch they are `per_epoch`.
    """
    drawn = []
    left, total = position, sum(per_epoch)
    for n in per_epoch:
        drawn.append((2 * left * n + total) // (2 * total))
        left, total = left - drawn[-1], total - n
    return drawn


def bit_reversal_order(n: int) -> np.ndarray:
    """Ranks 0..n-1 in the order of their reversed bits: every contiguous part has ranks from the whole range."""
    bits = max(1, (n - 1).bit_length())
    order = np.array([int(f"{rank:0{bits}b}"[::-1], 2) for rank in range(1 << bits)])
    return order[order < n]


def block_size(batch_size: int) -> int:
    """Pairs per block: the smallest divisor of the batch from 16 to 32, else the largest from 15 to 8, else all.

    A batch of up to 32 pairs is one block. Devices get whole blocks where possible, so small blocks fill many devices
    equally; blocks of fewer than 16 pairs differ more in their number of tokens.
    """
    if batch_size > 32:
        for n in (*range(16, 33), *range(15, 7, -1)):
            if batch_size % n == 0:
                return n
    return batch_size


def balance_blocks(strata: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Assigns one item of every stratum to each block, [blocks, strata], so that the blocks' total sizes are balanced.

    Args:
      strata: [strata, blocks] of indices into `sizes`, in ascending order of size.
      sizes: of every item.
    """
    blocks = np.empty(strata.shape, strata.dtype)
    total = np.zeros(strata.shape[1], sizes.dtype)
    for row, stratum in reversed(list(enumerate(strata))):
        fullest_first = np.argsort(-total, kind="stable")  # the fullest block gets the smallest of the stratum
        blocks[row, fullest_first] = stratum
        total[fullest_first] += sizes[stratum]
    return blocks.T


def sample_sides(difference: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Random signs, [blocks, n] bool, such that in each block sum(where(sign, difference, -difference)) is near zero.

    The largest difference of a block gets a random sign. The others, in descending order of size, get the sign opposite
    to the sum so far, or a random one if the sum or the difference is zero. By symmetry each single sign is fair.
    """
    order = np.argsort(-np.abs(difference), axis=1, kind="stable")
    signs = np.empty(difference.shape, bool)
    total = np.zeros(len(difference))
    fair = random.random(difference.shape) < 0.5
    for column, fair_sign in zip(order.T, fair.T, strict=True):
        size = np.take_along_axis(difference, column[:, None], axis=1)[:, 0]
        sign = np.where((size == 0) | (total == 0), fair_sign, (total > 0) == (size < 0))
        np.put_along_axis(signs, column[:, None], sign[:, None], axis=1)
        total += np.where(sign, size, -size)
    return signs


@dataclasses.dataclass
class Schedule:
    """Which pairs make up each batch of a run.

    Attributes:
      lengths: for every source, [n, 2] word pieces of its n > 0 pairs; may be memory-mapped. More columns for text in
        several languages; 0 if a line does not have a language.
      batch_size: pairs in a global batch.
      seed: of the order, the balancing and the sides.
      temperature: T of n**(1/T); 1 keeps the proportions of the sources, larger values raise the shares of small ones.
      shuffle_sides: random input shuffling; otherwise the first language always comes first.
    """

    lengths: list[np.ndarray]
    batch_size: int
    seed: int
    temperature: float = 1.0
    shuffle_sides: bool = True

    def __post_init__(self) -> None:
        self.draws_per_epoch = draws_per_epoch([len(x) for x in self.lengths], self.temperature)
        self._windows: dict[range, Future[BatchPlan]] = {}
        self._lock, self._thread = threading.Lock(), ThreadPoolExecutor(1, thread_name_prefix="schedule")

    def __reduce__(self) -> tuple:
        # Windows are not pickled: a worker process computes its own.
        settings = self.batch_size, self.seed, self.temperature, self.shuffle_sides
        return _unpickle, ([*map(pickled_form, self.lengths)], *settings)

    @property
    def pairs(self) -> int:
        """Number of pairs in all sources, which is the number of draws in an epoch."""
        return sum(len(x) for x in self.lengths)

    def drawn_before(self, step: int) -> np.ndarray:
        """[S] the number of each source's draws before the batch of `step`, including repetitions.

        Exact if `step` begins a window; within a window, its pairs are rearranged.
        """
        epoch, position = divmod(step * self.batch_size, self.pairs)
        within = draws_before(position, self.draws_per_epoch)
        return np.array([epoch * n + k for n, k in zip(self.draws_per_epoch, within, strict=True)])

    def window_of(self, step: int) -> range:
        """The batches that are balanced together with the batch of `step`: one of the nearly equal parts of its epoch.

        A batch belongs to the epoch of its first draw.
        """
        epoch = step * self.batch_size // self.pairs
        first, stop = (-(-n * self.pairs // self.batch_size) for n in (epoch, epoch + 1))
        batches = stop - first
        parts = -(-batches // WINDOW)
        part = ((step - first + 1) * parts - 1) // batches
        return range(first + part * batches // parts, first + (part + 1) * batches // parts)

    def batch(self, step: int) -> BatchPlan:
        """The batch of `step` (from 0)."""
        window = self.window_of(step)
        place = step - window.start
        batches = self._batches(window, ahead=place >= len(window) // 2).result()
        return BatchPlan(*(x[place] for x in batches))

    def _batches(self, window: range, *, ahead: bool) -> Future[BatchPlan]:
        """The batches of a window, computed once for all threads; with `ahead`, the next window is computed afterwards.

        A window of large batches takes a second, which otherwise delays its first step.
        """
        with self._lock:
            for w in (window, self.window_of(window.stop))[: 1 + ahead]:
                if w not in self._windows:
                    self._windows[w] = self._thread.submit(self._compute, w)
            for w in [w for w in self._windows if w.stop < window.start or window.stop < w.start]:
                del self._windows[w]
            return self._windows[window]

    def _compute(self, window: range) -> BatchPlan:
        """All batches of a window: the fields of BatchPlan, with a leading axis of batches."""
        source, index, sides = self._draw(window)
        lengths = np.empty((len(index), 2), np.int64)
        for s, table in enumerate(self.lengths):
            own = source == s
            lengths[own] = np.take_along_axis(table[index[own]], sides[own], axis=1)

        random = np.random.default_rng(np.random.SeedSequence((self.seed, 1 << 20, window.start)))
        # Random tie-breaking: otherwise pairs of equal length would be sorted by source.
        by_length = np.lexsort((random.random(len(index)), lengths.sum(axis=1)))
        size = block_size(self.batch_size)
        blocks = balance_blocks(by_length.reshape(size, -1), lengths.sum(axis=1))
        blocks = blocks[random.permutation(len(blocks))][:, bit_reversal_order(size)]
        swap = sample_sides(lengths[blocks, 1] - lengths[blocks, 0], random)
        if not self.shuffle_sides:
            swap = np.zeros_like(swap)
        order, swap = blocks.reshape(-1, self.batch_size), swap.reshape(-1, self.batch_size)
        pieces, sides = (np.where(swap[..., None], x[order][..., ::-1], x[order]) for x in (lengths, sides))
        return BatchPlan(
            source=source[order],
            index=index[order],
            swap=swap,
            sides=sides,
            lengths=pieces,
        )

    def _draw(self, window: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source and index of each draw of a window, [draws], ordered by source, and its two sides [draws, 2]."""
        source, index, sides = [], [], []
        drawn = np.stack([self.drawn_before(window.start), self.drawn_before(window.stop)], axis=1)
        for s, (first, last) in enumerate(drawn):
            size = len(self.lengths[s])
            for number in range(first // size, -(-last // size)):  # passes over the source
                walk = np.arange(max(first, number * size), min(last, (number + 1) * size)) - number * size
                index.append(permute(walk, size, (self.seed, s, number)))
                source.append(np.full(len(walk), s))
                table = self.lengths[s]
                if table.shape[1] == 2:
                    sides.append(np.tile((0, 1), (len(walk), 1)))
                else:  # neighbours in an order that no pass changes have neighbouring turns
                    turn = number + permute(index[-1], size, (self.seed, s, 1 << 31))
                    sides.append(two_sides(table[index[-1]], turn))
        return np.concatenate(source), np.concatenate(index), np.concatenate(sides)


def _unpickle(lengths: list[np.ndarray | str], *settings: Any) -> Schedule:
    return Schedule([*map(unpickled, lengths)], *settings)
