"""Splits sentences of words into windows of subword tokens: the encoder's input for tagging and parsing.

A word is represented by its first token. No word is dropped: a sentence that is too long becomes several windows that
overlap by about half, and each word is decided by the window in which it has the most context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError


class Window(NamedTuple):
    """Words `start`, `start` + 1, ... of a sentence."""

    ids: list[int]  # [CLS] tokens [SEP]
    start: int
    positions: list[int]  # of each word's first token
    own: list[int]  # indices in the sentence of the words that this window decides; every word has one such window

    def position(self, word: int) -> int:
        """The position in the window of the first token of a word, given by its index in the sentence."""
        return self.positions[word - self.start]


def as_strings(column: Any, *, numbers: bool = False) -> list[str] | None:
    """A column of a dataset's row as strings; None unless it is a list of strings (or of numbers, if allowed)."""
    if not isinstance(column, list | tuple | np.ndarray):
        return None
    found = [x.decode() if isinstance(x, bytes) else x for x in column]
    allowed = (str, int, np.integer, NoneType) if numbers else (str,)
    return [str(x) for x in found] if all(isinstance(x, allowed) for x in found) else None


def windows(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[int, Window]]:
    """(index of the sentence, window), in order. A sentence that fits has one window, a sentence without words none.

    Words are tokenized one by one, as in XTREME. A word without any token (control characters, say) becomes [UNK], and
    a word longer than a window is truncated.

    Raises UserError if `max_length` leaves no room for a word.
    """
    room = max_length - 2
    if room < 1:
        raise UserError(f"max_length {max_length} leaves no room for a word; 128 is usual")
    vocabulary = list(dict.fromkeys(word for words in sentences for word in words))
    pieces = dict(zip(vocabulary, tokenizer.encode(vocabulary), strict=True))
    for i, words in enumerate(sentences):
        ids = [pieces[word][:room] or [tokenizer.unk_id] for word in words]
        spans = _spans([len(word) for word in ids], room)
        own: list[list[int]] = [[] for _ in spans]
        for word in range(len(words)):
            # Outside a span min() is negative. The first of equal ones is chosen.
            context = [min(word - start, stop - 1 - word) for start, stop in spans]
            own[context.index(max(context))].append(word)
        for (start, stop), owned in zip(spans, own, strict=True):
            if owned:
                row, positions = [tokenizer.cls_id], []
                for word in ids[start:stop]:
                    positions.append(len(row))
                    row += word
                yield i, Window([*row, tokenizer.sep_id], start, positions, owned)


def _spans(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Overlapping [start, stop) of words that cover all words, each as long as `room` tokens allow."""
    spans: list[tuple[int, int]] = []
    start = stop = used = 0  # words start to stop - 1 have `used` tokens
    while stop < len(lengths):
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        spans.append((start, stop))
        # The next span repeats about half of this one, or less to leave room for at least one more word.
        while stop < len(lengths) and used > min(room // 2, room - lengths[stop]):
            used -= lengths[start]
            start += 1
    return spans
