"""Makes the batches of the schedule: reads, tokenises, packs and prefetches parallel sentences.

A batch is laid out for A accumulation steps and S data shards. Every array starts with [A, S, ...]; pair number
(s * A + a) * b + i of the global batch is pair i of block (a, s), so a device holds the same share of the batch, and of
the queue, for any A. Blocks do not refer to each other: gathering tokens needs no communication.

Axes: A accumulation steps, S data shards, b pairs of a block, T maskable sequences, M masked slots, N tokens.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppa_jax.data import packing
from ppa_jax.data.packing import Ladder, Rows, Shape
from ppa_jax.data.schedule import BatchPlan, Schedule
from ppa_jax.errors import UserError
from ppa_jax.objectives.masking import Sequences, Slots, masked_count

TRIED = 65_536  # pairs of the batches from which the base of the ladder is computed


class SentenceSpans(NamedTuple):
    """The first token and the length of each sentence in the flat tokens of its block.

    One sentence of each pair, or both: then all first ones of the block come before its second ones.
    """

    start: np.ndarray  # [A, S, b] or [A, S, 2b]
    length: np.ndarray  # the same, with special tokens


class Translation(NamedTuple):
    """What RTL's head reads and predicts. A sequence is the source's tokens without [CLS], then the target's masked."""

    rows: Rows  # [A, S, R]: [MASK] everywhere; positions are those in the source, and again in the target
    source: Any  # [A, S, R]: the index in `Batch.rows` of each source token; N for others
    at: Any  # [A, S, M] of each target token in `rows`; R for an unused place
    labels: Any  # [A, S, M]: the target tokens

    @property
    def used(self) -> Any:
        """[A, S, M] bool: which of the M places hold a token."""
        return self.at < self.source.shape[-1]


class Batch(NamedTuple):
    """One global batch. Parts that only a loss of weight 0 needs are None, and not computed."""

    rows: Rows  # [A, S, N]: for the query encoder, query sentences and TLM sequences together
    query: Any  # SentenceSpans
    key_rows: Any  # Rows for the key encoder
    key: Any  # SentenceSpans
    hashes: Any  # [A, S, b] or [A, S, 2b] of the translation of each query, or of its line in several languages
    sequences: Any  # Sequences, [A, S, T]
    slots: Any  # Slots, [A, S, M]
    types: Any = None  # [A, S, N]: XLM's language of each token of `rows`
    teacher: Any = None  # [A, S, b, E] float32: the teacher's vector of each pair
    translation: Any = None  # Translation


class Needs(NamedTuple):
    """The sizes of the K = A * S blocks of a batch, known before any text is read."""

    query: np.ndarray  # [K, b] tokens; [K, 2b] of both sides, 0 where only one is encoded
    tlm: np.ndarray  # [K, T] tokens
    key: np.ndarray  # as `query`, of the translations; [K, 0] without a key encoder
    counts: np.ndarray  # [K, T] masked positions
    rtl: np.ndarray  # [K, b] tokens of RTL's sequences
    targets: int  # that RTL predicts, of the block that has most

    @property
    def encoded(self) -> np.ndarray:
        """Tokens of all sequences of the query encoder, [K, b + T]."""
        return np.concatenate([self.query, self.tlm], axis=1)

    @property
    def slots(self) -> int:
        """Maximum number of masked positions in a block."""
        return int(self.counts.sum(axis=1).max(initial=0))


class Block(NamedTuple):
    """The positions of the sequences of one block."""

    query: np.ndarray  # starts, as all of these
    tlm: np.ndarray
    key: np.ndarray
    counts: np.ndarray  # [T] masked positions
    rtl: np.ndarray


def sentence_hash(text: str) -> int:
    """A 32-bit hash. If two different sentences collide (1 in 4e9), one negative too many is excluded."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@dataclasses.dataclass
class PairBatches:
    """Makes the batch of any step.

    Attributes:
      sources: the language pairs, each with `languages`, `lengths` and `read(indices) -> [(text, text)]`, or of more
        languages.
      schedule: determines the pairs of each step.
      tokenizer: `encode(texts)`, `cls_id`, `sep_id`, `pad_id`.
      max_length: maximum word pieces per sentence, including special tokens; longer sentences are truncated.
      row_length: width of the widest rows, at least the longest sequence.
      contrast, tlm: which losses have a weight. Distillation reads queries as the contrast does.
      distill: every pair has a vector, of its source's `teacher` [n, E].
      sides: how many sentences of a pair are queries: the first one, or both.
      keys: whether their translations pass a key encoder.
      joint: TLM has both sentences in one sequence; otherwise each is a sequence of its own, which is plain masked LM.
        Text of one language always is.
      mask_rate: share of the tokens that are masked.
      rtl_targets: the languages that RTL rebuilds from their translations, the first that a pair has; empty: no RTL.
      shards, accumulate: S and A.
      own_shards: the shards of this process, all by default; only their texts are read.
      languages: XLM's form of TLM: the token type of every token is its language (an index into this tuple), and
        positions restart in the second sentence of a pair. None: no languages, positions continue.
    """

    sources: list[Any]
    schedule: Schedule
    tokenizer: Any
    max_length: int
    row_length: int
    mask_rate: float
    contrast: bool = True
    tlm: bool = True
    distill: bool = False
    sides: int = 1
    keys: bool = True
    joint: bool = True
    rtl_targets: tuple[str, ...] = ()
    shards: int = 1
    accumulate: int = 1
    own_shards: Sequence[int] = ()
    languages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.own_shards = self.own_shards or range(self.shards)
        widths = packing.widths_for(self.row_length)
        key_widths = widths[: bisect.bisect_left(widths, min(self.max_length, self.row_length)) + 1]
        window = self.schedule.window_of(0)
        steps = window[:: max(1, len(window) * self.schedule.batch_size // TRIED)]
        tried = [self._needs(self.schedule.batch(step)) for step in steps]
        base = Shape(
            query=packing.find_layout([list(needs.encoded) for needs in tried], widths),
            key=packing.find_layout([list(needs.key) for needs in tried], key_widths),
            # Arrays need at least one slot, even if nothing is masked.
            slots=max(1, *(needs.slots for needs in tried)),
            rtl=packing.find_layout([list(needs.rtl) for needs in tried], widths) if self.rtl_targets else (),
            targets=max(needs.targets for needs in tried),
        )
        self.ladder = Ladder(base, widths[-1], key_widths[-1])

    def packed(self, plan: BatchPlan) -> tuple[Shape, list[list[Block]]]:
        """The first shape of the ladder that holds all blocks of a batch, and the positions of their sequences."""
        needs = self._needs(plan)
        level, shape = 0, self.ladder.base
        while (blocks := _pack(needs, shape)) is None:
            level += 1
            shape = self.ladder.at(level)
        return shape, [blocks[i : i + self.shards] for i in range(0, len(blocks), self.shards)]

    def _joint(self, plan: BatchPlan) -> np.ndarray:
        """[B] bool: which pairs are one TLM sequence."""
        return self.joint & np.array([len(source.languages) > 1 for source in self.sources])[plan.source]

    @property
    def _sequences(self) -> int:
        """Maskable sequences per pair: 1, or 2 (with an empty second for TLM pairs) if any are masked separately."""
        return 1 if self.joint and all(len(source.languages) > 1 for source in self.sources) else 2

    def order(self) -> np.ndarray:
        """[A, S, b]: the numbers of each block's pairs in the global batch."""
        numbers = np.arange(self.schedule.batch_size)
        return numbers.reshape(self.shards, self.accumulate, -1).transpose(1, 0, 2)

    def _needs(self, plan: BatchPlan) -> Needs:
        """The needs of every block, computed from the lengths only."""
        order = self.order().reshape(-1, plan.index.size // (self.accumulate * self.shards))
        lengths, joint = plan.lengths[order], self._joint(plan)[order, None]  # [K, b, 2], [K, b, 1]
        first, second = lengths[:, :, 0], lengths[:, :, 1]
        K, n = len(order), self._sequences if self.tlm else 0
        one = np.stack([first + second, np.zeros_like(first)], axis=2)
        pieces = np.where(joint, one, lengths)[:, :, :n].reshape(K, -1)
        special = np.where(joint, (3, 0), 2)[:, :, :n].reshape(K, -1)
        none = np.zeros((K, 0), np.int64)
        encoded, target = self._encoded(plan)[order], self._targets(plan)[order]
        predicted = np.where(target < 0, 0, np.where(target == 0, first, second))
        return Needs(
            query=np.concatenate(
                [none, *((lengths[:, :, s] + 2) * x for s, x in enumerate(np.moveaxis(encoded, 2, 0)))], 1
            ),
            tlm=pieces + special,
            key=np.concatenate([second, first][: self.sides], axis=1) + 2 if self.contrast and self.keys else none,
            counts=masked_count(pieces, self.mask_rate),
            rtl=np.where(target < 0, 0, first + second + 1),
            targets=int(predicted.sum(axis=1).max(initial=0)),
        )

    def _encoded(self, plan: BatchPlan) -> np.ndarray:
        """[B, 0 to 2] bool: which sentences of each pair pass the query encoder alone, not in TLM."""
        contrasted = np.arange(2) < self.sides * self.contrast
        translated = np.arange(2) == np.where(self._targets(plan) < 0, 2, 1 - self._targets(plan))[:, None]
        return (contrasted | translated)[:, : 2 if self.rtl_targets else self.sides * self.contrast]

    def _targets(self, plan: BatchPlan) -> np.ndarray:
        """[B]: which sentence of each pair RTL rebuilds; -1: neither."""
        ranks = np.full(plan.sides.shape, len(self.rtl_targets))
        for s, source in enumerate(self.sources if self.rtl_targets else ()):
            ranked = np.array([[*self.rtl_targets, x].index(x) for x in source.languages])
            own = plan.source == s
            ranks[own] = ranked[plan.sides[own]]
        return np.where(ranks.min(axis=1) < len(self.rtl_targets), ranks.argmin(axis=1), -1)

    def make(self, step: int) -> Batch:
        """The batch of `step`: this process's shards, in a shape of the ladder."""
        plan = self.schedule.batch(step)
        # The shape holds the blocks of all processes, which would otherwise compile different steps.
        shape, blocks = self.packed(plan)
        own = self.order()[:, self.own_shards]  # [A, own shards, b]
        texts, lines = self._texts(plan, own.reshape(-1))
        tokens = self._tokens(plan, own.reshape(-1), texts)
        made = [
            [self._lay_out(blocks[a][s], shape, own[a, i], plan, tokens) for i, s in enumerate(self.own_shards)]
            for a in range(self.accumulate)
        ]
        stack = stacked([stacked(row) for row in made])
        if self.contrast:
            of_pairs = [[lines.get(n, text) for text in texts[n][::-1]] for n in own.reshape(-1).tolist()]
            hashes = np.array([[*map(sentence_hash, pair)] for pair in of_pairs], np.uint32).reshape(*own.shape, 2)
            stack = stack._replace(hashes=np.concatenate([hashes[..., s] for s in range(self.sides)], axis=-1))
        if self.distill:
            rows = [self.sources[plan.source[n]].teacher[plan.index[n]] for n in own.reshape(-1)]
            stack = stack._replace(teacher=np.array(rows, np.float32).reshape(*own.shape, -1))
        return stack

    def _texts(self, plan: BatchPlan, numbers: np.ndarray) -> tuple[dict[int, tuple[str, str]], dict[int, str]]:
        """(first, second) in the plan's order of sides, by number in the global batch; and what a line is known by.

        The latter of lines of more than two languages alone: all their sentences mean the same, so none of them is a
        negative of another. It is the text in the first language that the line has.
        """
        texts: dict[int, tuple[str, str]] = {}
        lines: dict[int, str] = {}
        for s, source in enumerate(self.sources):
            own = numbers[plan.source[numbers] == s]
            if len(own):
                for n, line in zip(own, source.read(plan.index[own]), strict=True):
                    first, second = plan.sides[n]
                    texts[int(n)] = line[first], line[second]
                    if len(line) > 2:
                        lines[int(n)] = next(filter(None, line))
        return texts, lines

    def _tokens(self, plan: BatchPlan, numbers: np.ndarray, texts: dict) -> dict[int, tuple[list[int], list[int]]]:
        flat = self.tokenizer.encode([text for n in numbers for text in texts[int(n)]])
        cut = [ids[: self.max_length - 2] for ids in flat]
        expected = plan.lengths[numbers].reshape(-1)
        if [len(ids) for ids in cut] != expected.tolist():
            raise UserError(
                "config.data.cache: the tokenizer's lengths differ from those in the cache; empty it or give another"
            )
        return {int(n): (cut[2 * i], cut[2 * i + 1]) for i, n in enumerate(numbers)}

    def _lay_out(self, block: Block, shape: Shape, numbers: np.ndarray, plan: BatchPlan, tokens: dict) -> Batch:
        cls, sep, pad = self.tokenizer.cls_id, self.tokenizer.sep_id, self.tokenizer.pad_id
        B = self.schedule.batch_size
        sides = [tokens[int(n)] for n in numbers]
        encoded = self._encoded(plan)[numbers].T
        queries = [[cls, *pair[s], sep] if x[i] else [] for s, x in enumerate(encoded) for i, pair in enumerate(sides)]
        # TLM's numbers are from B to 3B.
        query_numbers = np.concatenate([numbers[:0], *(3 * B * s + numbers for s in range(len(encoded)))])
        tlm: list[list[int]] = []
        middle, tlm_numbers = np.zeros(0, int), numbers[:0]
        if self.tlm:
            n, joint = self._sequences, self._joint(plan)[numbers]
            for (a, b), whole in zip(sides, joint, strict=True):
                tlm += ([[cls, *a, sep, *b, sep], []] if whole else [[cls, *a, sep], [cls, *b, sep]])[:n]
            middle = np.stack([np.where(joint, plan.lengths[numbers, 0] + 1, 0), np.zeros_like(numbers)], 1)
            middle = middle[:, :n].reshape(-1)
            tlm_numbers = (n * numbers[:, None] + np.arange(n)).reshape(-1)
        segment = np.concatenate([query_numbers, B + tlm_numbers])
        starts = np.concatenate([block.query, block.tlm])
        batch = Batch(packing.fill(starts, queries + tlm, segment, shape.query, pad), *[None] * 6)
        if self.languages is not None:
            batch = self._with_languages(batch, block.tlm, tlm, middle, self._sides_of(plan, numbers).reshape(-1))
        n = self.sides * len(numbers)
        if self.contrast:
            batch = batch._replace(query=SentenceSpans(*_int32(block.query[:n], [len(x) for x in queries[:n]])))
        if self.contrast and self.keys:
            keys = [[cls, *pair[1 - s], sep] for s in range(self.sides) for pair in sides]
            batch = batch._replace(
                key_rows=packing.fill(block.key, keys, query_numbers[:n], shape.key, pad),
                key=SentenceSpans(*_int32(block.key, [len(x) for x in keys])),
            )
        if self.tlm:
            sequence, rank = np.zeros(shape.slots, int), np.full(shape.slots, -1)
            used = block.counts.sum()
            sequence[:used] = np.repeat(np.arange(len(tlm)), block.counts)
            rank[:used] = np.arange(used) - np.repeat(np.cumsum(block.counts) - block.counts, block.counts)
            batch = batch._replace(
                sequences=Sequences(*_int32(tlm_numbers, block.tlm, [len(x) for x in tlm], middle)),
                slots=Slots(*_int32(sequence, rank)),
            )
        if self.rtl_targets:
            batch = batch._replace(translation=self._translation(block, shape, numbers, plan, sides))
        return batch

    def _translation(
        self, block: Block, shape: Shape, numbers: np.ndarray, plan: BatchPlan, sides: list[tuple[list[int], list[int]]]
    ) -> Translation:
        """RTL's part of a block whose pairs have the tokens `sides`."""
        targets, mask, pad = self._targets(plan)[numbers], self.tokenizer.mask_id, self.tokenizer.pad_id
        masks = [[mask] * (len(a) + len(b) + 1) if t >= 0 else [] for (a, b), t in zip(sides, targets, strict=True)]
        rows = packing.fill(block.rtl, masks, numbers, shape.rtl, pad)
        source, at = np.full(rows.ids.size, packing.capacity(shape.query)), np.full(shape.targets, rows.ids.size)
        labels, used = np.zeros(shape.targets, int), 0
        for i in np.flatnonzero(targets >= 0):
            read, predicted = sides[i][1 - targets[i]], sides[i][targets[i]]
            first = block.rtl[i] + len(read) + 1  # of the target; the source has its [SEP]
            here = slice(block.rtl[i], first)
            own = slice(used, used + len(predicted))
            rows.positions[here] = 1 + np.arange(len(read) + 1)
            source[here] = block.query[(1 - targets[i]) * len(numbers) + i] + rows.positions[here]
            at[own], labels[own] = first + np.arange(len(predicted)), predicted
            rows.positions[at[own]] = 1 + np.arange(len(predicted))
            used += len(predicted)
        return Translation(rows, *_int32(source, at, labels))

    def _sides_of(self, plan: BatchPlan, numbers: np.ndarray) -> np.ndarray:
        """[b, 2]: the numbers of the languages of the first and second sentence of each pair."""
        assert self.languages is not None
        sides = np.empty((len(numbers), 2), np.int64)
        for s, source in enumerate(self.sources):
            own = plan.source[numbers] == s
            of_source = np.resize([self.languages.index(x) for x in source.languages], len(source.lengths[0]))
            sides[own] = of_source[plan.sides[numbers][own]]
        return sides

    def _with_languages(
        self, batch: Batch, starts: np.ndarray, tlm: list[list[int]], middle: np.ndarray, languages: np.ndarray
    ) -> Batch:
        """Writes token types and restarted positions for sequences whose sides are `languages` [2 b]."""
        types, positions = np.zeros(batch.rows.ids.size, np.int32), batch.rows.positions.copy()
        n = self._sequences
        for i, (start, tokens, inner) in enumerate(zip(starts, tlm, middle, strict=True)):
            first = languages[2 * i] if n == 1 else languages[i]
            types[start : start + len(tokens)] = first
            if inner:  # a pair: the inner [SEP] still belongs to the first sentence
                pair = 2 * i if n == 1 else i
                second = slice(start + inner + 1, start + len(tokens))
                types[second] = languages[pair + 1]
                positions[second] = np.arange(len(tokens) - inner - 1)
        return batch._replace(rows=dataclasses.replace(batch.rows, positions=positions), types=types)

    def iterate(self, start: int, stop: int, *, workers: int = 0, prefetch: int = 4) -> Iterator[Batch]:
        """Batches of steps start..stop-1, in order, prefetched by threads (or `workers` processes) of grain."""
        import grain
        from absl import flags

        dataset = grain.MapDataset.range(start, stop).map(self.make)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
        batches = dataset.to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which notebooks and tests never parse
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_leave_signals
            )
        return iter(batches)


def _leave_signals(number: int, of: int) -> None:
    """Ignores signals: Ctrl-C reaches the workers, too, but the main process needs batches until it has saved."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _pack(needs: Needs, shape: Shape) -> list[Block] | None:
    """The positions of the sequences of each block in a shape; None if one of the blocks does not fit."""
    if needs.slots > shape.slots or needs.targets > shape.targets:
        return None
    starts = packing.pack_blocks(needs.encoded, shape.query)
    keys = None if starts is None else packing.pack_blocks(needs.key, shape.key)
    rtl = packing.pack_blocks(needs.rtl, shape.rtl) if shape.rtl else np.zeros_like(needs.rtl)
    if starts is None or keys is None or rtl is None:
        return None
    b = needs.query.shape[1]
    return [Block(*block) for block in zip(starts[:, :b], starts[:, b:], keys, needs.counts, rtl, strict=True)]


def _int32(*arrays: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.int32) for x in arrays]


def stacked(trees: list[Any]) -> Any:
    """Stacks trees of arrays along a new first axis; None stays None."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
