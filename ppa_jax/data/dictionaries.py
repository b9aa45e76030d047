"""Bilingual dictionaries in the format of MUSE: read, and split into word pieces.

Axes: U distinct words, F pieces of all of them, N pairs, V vocabulary.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.config import entries
from ppa_jax.data import text_files
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError

ENGLISH = "en"
FORM = "en-de.tsv or en-de.txt, each line `source<TAB>target`"
TEST = (5000, 6500)
_NAME = re.compile(r"([a-z]{2,3})-([a-z]{2,3})(\.\d+-\d+)?\.(?:tsv|txt)")
_LONGEST = 4096  # bytes of a line


class Dictionary(NamedTuple):
    """Translations of single words."""

    source: str  # language
    target: str
    entries: dict[str, list[str]]  # source word -> its distinct targets, both in order of first appearance
    tests: tuple[str, ...] | None = None  # the test words if they are not chosen by rank: of a reversed dictionary

    def candidates(self) -> list[str]:
        """The distinct targets in order of first appearance."""
        return list(dict.fromkeys(target for targets in self.entries.values() for target in targets))

    def test_words(self) -> list[str]:
        """The queries: words 5,000 to 6,500, or the last 1,500 of fewer."""
        words = list(self.entries)
        if self.tests is not None:
            return list(self.tests)
        begin = max(0, min(TEST[0], len(words) - (TEST[1] - TEST[0])))
        return words[begin : begin + TEST[1] - TEST[0]]

    def reversed(self) -> Dictionary:
        """From the target language to the source language.

        Its test words are the targets of this dictionary's test words that translate no earlier word: a model trained
        on the first 5,000 words has seen no pair of either test.
        """
        entries: dict[str, list[str]] = {target: [] for target in self.candidates()}
        for word, targets in self.entries.items():
            for target in targets:
                entries[target].append(word)
        words = self.test_words()
        earlier = set(itertools.chain(*(self.entries[x] for x in itertools.takewhile(words[0].__ne__, self.entries))))
        targets = dict.fromkeys(itertools.chain(*(self.entries[word] for word in words)))
        return Dictionary(self.target, self.source, entries, tuple(word for word in targets if word not in earlier))


def capitalised(dictionary: Dictionary) -> Dictionary:
    """With every word also capitalised, as at the start of a sentence or in German nouns: MUSE's files are lower case.

    A word and its capitalised form mean the same, so each has both forms of the other side, its own case first.
    """
    entries: dict[str, dict[str, None]] = {}
    for word, others in dictionary.entries.items():
        entries.setdefault(word, {}).update(dict.fromkeys(x for y in others for x in (y, _capital(y))))
        entries.setdefault(_capital(word), {}).update(dict.fromkeys(x for y in others for x in (_capital(y), y)))
    return dictionary._replace(entries={word: list(targets) for word, targets in entries.items()})


def _capital(word: str) -> str:
    first = word[:1].upper()
    return first + word[1:] if len(first) == 1 else word  # not SS for an eszett


def from_pairs(source: str, target: str, pairs: Iterable[tuple[str, str]]) -> Dictionary:
    """A dictionary from (word, translation) pairs; a word may have several translations."""
    entries: dict[str, dict[str, None]] = {}
    for word, other in pairs:
        entries.setdefault(word, {})[other] = None
    return Dictionary(source, target, {word: list(others) for word, others in entries.items()})


def read_dictionaries(
    spec: str | Path, *, field: str = "dictionaries", max_words: int | None = None, pivot: str = ENGLISH
) -> list[Dictionary]:
    """The dictionaries of a directory, or those in a list of files, between English and other languages.

    Lines without exactly two words, or not UTF-8, are skipped and counted in a warning.

    Args:
      spec: a directory, in which all files `xx-yy.tsv` and `xx-yy.txt` with the pivot on one side are read; or
        comma-separated files, for example MUSE's own test sets `en-de.5000-6500.txt`.
      field: the setting, for error messages.
      max_words: number of source words from the top of each file, with their targets. Fewer candidates make the task
        easier, so report it; from 6,500 on the queries are the usual ones. Time grows with the square: whole
        dictionaries of 100,000 words take minutes for each kind of vector on two cores.
      pivot: the language on one side of each; "": any two languages.

    Raises:
      UserError: no such file or directory, a file name without language codes, the pivot on neither side, two files for
        the same direction, a file with more skipped than used lines.
    """
    dictionaries: dict[tuple[str, str], Dictionary] = {}
    for path in _paths(spec, field, pivot):
        languages = _languages(path, pivot)
        if languages is None:
            kind = "between English and another language" if pivot else "between two languages"
            raise UserError(f"{field}: {path}: not a dictionary {kind}; name it {FORM}")
        if languages in dictionaries:
            raise UserError(f"{field}: two files for {'-'.join(languages)}, the second is {path}; leave one out")
        dictionaries[languages] = Dictionary(*languages, _read_entries(path, field, max_words))
    return list(dictionaries.values())


def _languages(path: Path, pivot: str) -> tuple[str, str] | None:
    """The two languages in the file's name; None if there are none, or the pivot is missing."""
    match = _NAME.fullmatch(path.name)
    if match is None or match[1] == match[2] or (pivot and pivot not in match.group(1, 2)):
        return None
    return match[1], match[2]


def _paths(spec: str | Path, field: str, pivot: str) -> list[Path]:
    paths = [storage.local(part) for part in entries(str(spec))]
    if len(paths) == 1 and paths[0].is_dir():
        # MUSE's directory also has parts of each dictionary (en-de.0-5000.txt).
        whole = [path for path in sorted(paths[0].iterdir()) if _languages(path, pivot) and path.name.count(".") == 1]
        if not whole:
            raise UserError(f"{field}: {paths[0]} has no dictionaries; they are named {FORM}")
        return whole
    for path in paths:
        if not path.is_file():
            raise UserError(f"{field}: no such file: {path}; give a directory or files {FORM}")
    return paths


def _read_entries(path: Path, field: str, max_words: int | None) -> dict[str, list[str]]:
    entries: dict[str, dict[str, None]] = {}
    problems: list[text_files.Problem] = []
    used = 0
    try:
        for number, line in enumerate(text_files.lines(path, _LONGEST), start=1):
            pair = _pair(line)
            if isinstance(pair, str):
                problems += [text_files.Problem(number, pair)] if line is None or line.strip() else []
                continue
            used += 1
            if pair[0] in entries or max_words is None or len(entries) < max_words:
                entries.setdefault(pair[0], {})[pair[1]] = None
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    expected = "each line holds a word, a tab and one translation, in UTF-8"
    text_files.tell_skipped(path, problems, used, field=field, expected=expected)
    return {word: list(targets) for word, targets in entries.items()}


def _pair(line: bytes | None) -> tuple[str, str] | str:
    """A word and its translation, or why the line has none."""
    try:
        text = (line or b"").decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    words = [word.strip() for word in text.split("\t" if "\t" in text else None)]
    return (words[0], words[1]) if len(words) == 2 and all(words) else "not `source<TAB>target`"


def write_dictionary(path: Path, dictionary: Dictionary) -> None:
    """Writes a line for each translation, as `read_dictionaries` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{word}\t{other}\n" for word, others in dictionary.entries.items() for other in others)
    path.write_text("".join(lines), encoding="utf-8")


class WordPairs(NamedTuple):
    """Words that translate each other, as word pieces."""

    pieces: Any  # [F] int32, of all words, concatenated
    lengths: Any  # [U] int32, number of pieces of each word
    pairs: Any  # [N, 2] int32, indices of two words


def word_pairs(dictionaries: Sequence[Dictionary], tokenizer: Tokenizer) -> WordPairs:
    """All distinct translations of the dictionaries, except those whose two sides have the same pieces.

    An entry that is a piece inside words ("##ing") means that piece. Words with unknown pieces are left out. Raises
    UserError if nothing is left.
    """
    given, known = _encode(dictionaries, tokenizer)
    numbers: dict[tuple[int, ...], int] = {}
    pairs: dict[tuple[int, ...], None] = {}  # distinct: an uncased tokenizer maps capitalised words to the same pieces
    for word, other in given:
        if word in known and other in known and known[word] != known[other]:
            pairs[tuple(numbers.setdefault(known[x], len(numbers)) for x in (word, other))] = None
    logging.info("dictionaries: %d pairs of words, %d of different pieces", len(given), len(pairs))
    if not pairs:
        raise UserError("the dictionaries have no pair whose words differ in pieces that the tokenizer knows")
    pieces, lengths = np.concatenate(list(numbers)), [len(ids) for ids in numbers]
    return WordPairs(pieces.astype(np.int32), np.array(lengths, np.int32), np.array(list(pairs), np.int32))


def translations(dictionaries: Sequence[Dictionary], tokenizer: Tokenizer) -> np.ndarray:
    """The translation of each piece that is a whole word, [V] int32; -1 where there is none.

    In both directions; the first of several translations counts. For DICT-MLM, which replaces single pieces. Raises
    UserError if no pair has one piece on each side.
    """
    table = np.full(tokenizer.vocab_size, -1, np.int32)
    given, known = _encode(dictionaries, tokenizer)
    for pair in given:
        ids = [known.get(word, ()) for word in pair]
        if [len(x) for x in ids] == [1, 1] and ids[0] != ids[1]:
            for (one,), (other,) in (ids, ids[::-1]):
                table[one] = other if table[one] < 0 else table[one]
    if (table < 0).all():
        raise UserError("the dictionaries have no pair of words that are one piece each")
    return table


def _encode(
    dictionaries: Sequence[Dictionary], tokenizer: Tokenizer
) -> tuple[list[tuple[str, str]], dict[str, tuple[int, ...]]]:
    """(all pairs, the pieces of every word without unknown pieces)."""
    given = [(word, other) for d in dictionaries for word, others in d.entries.items() for other in others]
    words = list(dict.fromkeys(word for pair in given for word in pair))
    encoded = dict(zip(words, map(tuple, tokenizer.encode(words)), strict=True))
    for word in words:
        if word.startswith("##") and (piece := tokenizer.backend.token_to_id(word)) is not None:
            encoded[word] = (piece,)
    return given, {word: ids for word, ids in encoded.items() if ids and tokenizer.unk_id not in ids}
