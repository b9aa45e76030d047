"""What is in every batch: a pure function of (seed, step, indexed lengths).

Every process computes the same plan, for any number of devices; the position in the data is one integer, the step.

- A language pair is drawn with probability proportional to n**(1/T). Its share is kept exactly, window by window (a
  window is `WINDOW` batches, or what is nearest to one pass over all pairs where those are fewer), so the place in each
  pair's walk follows from the step alone.
- Each pair list is walked without replacement, in the order of a keyed permutation, new in every pass.
- Within a window the pairs are sorted by length and dealt out like cards, one of each length stratum to every share of
  a batch (16 pairs where that divides it), the longest to the share that has the fewest tokens so far. Shares hold all
  lengths (nothing to learn from length) and yet nearly the same number of tokens, which is what lets packed rows of one
  static shape be full. Devices and accumulation steps get contiguous parts of a batch: whole shares as a rule, or parts
  of one, in which the order spreads the lengths.
- Which sentence comes first is a fair coin for every pair; the coins of a share are tossed together, so that its first
  sentences have about as many tokens as its second.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.data.mapped import from_name, to_name

WINDOW = 256  # batches
VERSION = 4  # of what a batch of a step holds: a run does not go on with another one


class BatchPlan(NamedTuple):
    """The pairs of one batch, in the order of the global batch."""

    source: np.ndarray  # [B] which language pair
    index: np.ndarray  # [B] which of its pairs
    swap: np.ndarray  # [B] bool: the second language comes first, and feeds the query encoder
    lengths: np.ndarray  # [B, 2] word pieces of (first, second) in the order after the swap, without special tokens


def permute(index: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """A keyed permutation of range(size), applied to `index`, in constant memory.

    A Feistel network of four rounds on the next even power of two; values that fall outside walk on until they fall
    inside (cycle walking), which takes fewer than four turns on average.
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


def spread(n: int) -> np.ndarray:
    """The order of ranks 0..n-1 by bit reversal: every contiguous share holds ranks from the whole range."""
    bits = max(1, (n - 1).bit_length())
    ranks = np.arange(1 << bits)
    reversed_bits = np.zeros_like(ranks)
    for b in range(bits):
        reversed_bits |= ((ranks >> b) & 1) << (bits - 1 - b)
    return reversed_bits[reversed_bits < n]


def share_of(batch_size: int) -> int:
    """Pairs of a share: the divisor next to 16, from 16 to 32 or else from 8; without one, or up to 32, all of them.

    A device gets whole shares, of even size, so small ones keep many devices full; with fewer than 16 pairs the dealing
    leaves larger differences between them.
    """
    if batch_size > 32:
        for n in (*range(16, 33), *range(15, 7, -1)):
            if batch_size % n == 0:
                return n
    return batch_size


def deal(strata: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """One of every stratum to each share, [shares, strata], so that the shares have nearly the same total size.

    Args:
      strata: [strata, shares] of indices into `sizes`, by rising size.
      sizes: of every item.
    """
    dealt = np.empty(strata.shape, strata.dtype)
    total = np.zeros(strata.shape[1], sizes.dtype)
    for row, stratum in reversed(list(enumerate(strata))):
        fullest = np.argsort(-total, kind="stable")  # gets the smallest of the stratum
        dealt[row, fullest] = stratum
        total[fullest] += sizes[stratum]
    return dealt.T


def toss(difference: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Fair coins, [shares, n] bool, such that in each share sum(where(coin, difference, -difference)) is near zero.

    Every share has one coin for its largest difference; each of the rest, by falling size, goes against the sum so
    far, or has a coin of its own where it makes none. A coin alone is fair: turned over, all of them are as likely.
    """
    order = np.argsort(-np.abs(difference), axis=1, kind="stable")
    coins = np.empty(difference.shape, bool)
    total = np.zeros(len(difference))
    own = random.random(difference.shape) < 0.5
    for column, tossed in zip(order.T, own.T, strict=True):
        size = np.take_along_axis(difference, column[:, None], axis=1)[:, 0]
        coin = np.where((size == 0) | (total == 0), tossed, (total > 0) == (size < 0))
        np.put_along_axis(coins, column[:, None], coin[:, None], axis=1)
        total += np.where(coin, size, -size)
    return coins


@dataclasses.dataclass
class Plan:
    """The plan of a run.

    Attributes:
      lengths: for every language pair, [n, 2] word pieces of its pairs (memory-mapped arrays serve).
      batch_size: pairs in a global batch.
      seed: of the order, the dealing and the sides.
      temperature: T of p ~ n**(1/T); 1 keeps the proportions of the corpora, larger values raise the small ones.
      shuffle_sides: random input shuffling; otherwise the first language always comes first.
    """

    lengths: list[np.ndarray]
    batch_size: int
    seed: int
    temperature: float = 1.0
    shuffle_sides: bool = True

    def __post_init__(self) -> None:
        sizes = np.array([len(x) for x in self.lengths], np.float64)
        weights = sizes ** (1.0 / self.temperature)
        self.probabilities = weights / weights.sum()
        # Which pairs of a window come in which of its batches is open, so it must not hold several passes.
        self.window = min(WINDOW, max(1, round(self.pairs / self.batch_size)))  # batches
        self._windows: dict[int, Future[BatchPlan]] = {}
        self._lock, self._thread = threading.Lock(), ThreadPoolExecutor(1, thread_name_prefix="plan")

    def __reduce__(self) -> tuple:
        # A worker process makes its own windows: what is here does not travel.
        return _plan_of, (
            [*map(to_name, self.lengths)],
            self.batch_size,
            self.seed,
            self.temperature,
            self.shuffle_sides,
        )

    @property
    def pairs(self) -> int:
        """Number of pairs in all sources: the length of an epoch."""
        return sum(len(x) for x in self.lengths)

    def drawn_before(self, window: int) -> np.ndarray:
        """How many pairs of each source the windows before `window` have used, exactly; the largest rounds."""
        slots = window * self.window * self.batch_size
        drawn = np.floor(slots * self.probabilities).astype(np.int64)
        largest = int(np.argmax(self.probabilities))
        drawn[largest] += slots - drawn.sum()
        return drawn

    def batch(self, step: int) -> BatchPlan:
        """The batch of `step` (from 0)."""
        window, place = divmod(step, self.window)
        made = self._window(window, ahead=place >= self.window // 2).result()
        return BatchPlan(*(x[place] for x in made))

    def _window(self, number: int, *, ahead: bool) -> Future[BatchPlan]:
        """A window, made once whatever the threads that ask for it; and the next one ahead of time, as one of large
        batches takes a second, which their step would wait for."""
        with self._lock:
            for n in (number, number + 1)[: 1 + ahead]:
                if n not in self._windows:
                    self._windows[n] = self._thread.submit(self._make_window, n)
            for n in [n for n in self._windows if abs(n - number) > 1]:
                del self._windows[n]
            return self._windows[number]

    def _make_window(self, window: int) -> BatchPlan:
        source, index = [], []
        for s, (first, last) in enumerate(zip(self.drawn_before(window), self.drawn_before(window + 1), strict=True)):
            size = len(self.lengths[s])
            walk = np.arange(first, last)
            for number in range(first // size, -(-last // size)):
                place = walk[walk // size == number] % size
                index.append(permute(place, size, (self.seed, s, number)))
                source.append(np.full(len(place), s))
        source, index = np.concatenate(source), np.concatenate(index)
        lengths = np.empty((len(index), 2), np.int64)
        for s, table in enumerate(self.lengths):
            own = source == s
            lengths[own] = table[index[own]]

        random = np.random.default_rng(np.random.SeedSequence((self.seed, 1 << 20, window)))
        # Ties in length are broken at random, or a window of equal lengths would be dealt out by language.
        by_length = np.lexsort((random.random(len(index)), lengths.sum(axis=1)))
        share = share_of(self.batch_size)
        dealt = deal(by_length.reshape(share, -1), lengths.sum(axis=1))[random.permutation(len(index) // share)]
        dealt = dealt[:, spread(share)].reshape(-1, share)
        swap = toss(lengths[dealt, 1] - lengths[dealt, 0], random)
        if not self.shuffle_sides:
            swap = np.zeros_like(swap)
        dealt, swap = dealt.reshape(self.window, -1), swap.reshape(self.window, -1)
        pieces = lengths[dealt]
        return BatchPlan(
            source=source[dealt],
            index=index[dealt],
            swap=swap,
            lengths=np.where(swap[..., None], pieces[..., ::-1], pieces),
        )


def _plan_of(lengths: list[np.ndarray | str], *settings: Any) -> Plan:
    return Plan([*map(from_name, lengths)], *settings)
