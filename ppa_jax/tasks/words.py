"""Sentences of words, cut into windows of pieces: what tagging and parsing show the encoder.

A word stands for itself by its first piece. No word is ever dropped: a sentence that is too long becomes several
windows that overlap by about half, and each word belongs to that one in which it has the most context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError


class Window(NamedTuple):
    """Words `start`, `start` + 1, ... of a sentence, as pieces."""

    ids: list[int]  # [CLS] pieces [SEP]
    start: int
    places: list[int]  # the token that is each word's first piece
    own: list[int]  # words (numbered as in the sentence) that this window decides; each word has one such window

    def place(self, word: int) -> int:
        """The token that is the first piece of a word, numbered as in the sentence."""
        return self.places[word - self.start]


def texts(column: Any, *, numbers: bool = False) -> list[str] | None:
    """A list in a dataset's row as strings; None where it is no list of text (or, if they are allowed, of numbers)."""
    if not isinstance(column, list | tuple | np.ndarray):
        return None
    found = [x.decode() if isinstance(x, bytes) else x for x in column]
    allowed = (str, int, np.integer, NoneType) if numbers else (str,)
    return [str(x) for x in found] if all(isinstance(x, allowed) for x in found) else None


def windows(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[int, Window]]:
    """(index of the sentence, window), in order. A sentence that fits has one window, one without words has none.

    Words are tokenised one by one, as XTREME does. One of which the tokenizer leaves nothing (control characters, say)
    becomes [UNK]; one longer than a window loses its last pieces.

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
            # Outside of a span min() is negative; of equals the first is taken.
            context = [min(word - start, stop - 1 - word) for start, stop in spans]
            own[context.index(max(context))].append(word)
        for (start, stop), owned in zip(spans, own, strict=True):
            if owned:
                row, places = [tokenizer.cls_id], []
                for word in ids[start:stop]:
                    places.append(len(row))
                    row += word
                yield i, Window([*row, tokenizer.sep_id], start, places, owned)


def _spans(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Overlapping [start, stop) of words, each as long as `room` pieces allow, which together hold all words."""
    spans: list[tuple[int, int]] = []
    start = stop = used = 0  # `used` pieces are those of words start..stop
    while stop < len(lengths):
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        spans.append((start, stop))
        # The next span keeps about half of this one, less if it could not take a further word then.
        while stop < len(lengths) and used > min(room // 2, room - lengths[stop]):
            used -= lengths[start]
            start += 1
    return spans
