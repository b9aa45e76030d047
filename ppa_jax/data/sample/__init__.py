"""The built-in sample: sentences in five languages, their trees and word alignments, a dictionary, NLI, questions.

Demos and tests run on it without a download. It was written by a grammar of a few hundred concepts (`tools/sample`,
not installed), so its text is simple and its annotation true by construction; nothing useful is learned from it.

Example i of one language is the translation of example i of every other. The functions take `start` and `stop` as
`range` does; a language that the sample does not have raises ValueError.
"""

from __future__ import annotations

import bz2
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ppa_jax.errors import UserError

LANGUAGES = ("en", "de", "es", "ru", "zh")


class Tree(NamedTuple):
    """A sentence's dependency tree in the relations of Universal Dependencies, one entry a word in each tuple."""

    forms: tuple[str, ...]  # without the capital that the first word has in the text
    tags: tuple[str, ...]  # universal parts of speech
    heads: tuple[int, ...]  # position of the head, from 1; 0 for the root
    relations: tuple[str, ...]
    roles: tuple[frozenset[str], ...]  # what the word expresses; words of two languages that share a role are aligned

    @property
    def words(self) -> tuple[str, ...]:
        """The words as written in the text."""
        return (self.forms[0][0].upper() + self.forms[0][1:], *self.forms[1:])


class Question(NamedTuple):
    question: str
    context: str
    answer: str  # occurs once in the context

    @property
    def start(self) -> int:
        """Offset of the answer in the context, in characters."""
        return self.context.index(self.answer)


def size() -> int:
    """Number of sentences in each language."""
    return len(_lines("sentences", "en"))


def sentences(language: str, start: int = 0, stop: int | None = None) -> list[str]:
    """Sentences as plain text; no two are the same."""
    return list(_lines("sentences", language)[start:stop])


def pairs(first: str, second: str, start: int = 0, stop: int | None = None) -> list[tuple[str, str]]:
    """Sentences of two languages that are translations of each other."""
    return list(zip(sentences(first, start, stop), sentences(second, start, stop), strict=True))


def trees(language: str, start: int = 0, stop: int | None = None) -> list[Tree]:
    """Words, parts of speech and dependency trees of `sentences`."""
    return [_tree(line) for line in _lines("trees", language)[start:stop]]


def alignments(first: str, second: str, start: int = 0, stop: int | None = None) -> list[set[tuple[int, int]]]:
    """Gold word alignments of `pairs`: positions in `trees(first)` and `trees(second)`, from 0."""
    both = zip(trees(first, start, stop), trees(second, start, stop), strict=True)
    return [
        {(i, j) for i, left in enumerate(one.roles) for j, right in enumerate(other.roles) if left & right}
        for one, other in both
    ]


def dictionary(first: str, second: str) -> list[tuple[str, str]]:
    """Inflected content words that translate each other in the sentences, sorted; many to many."""
    columns = [LANGUAGES.index(_known(language)) for language in (first, second)]
    names = "-".join(LANGUAGES[column] for column in sorted(columns))
    rows = [line.split("\t") for line in _lines("dictionary", names)]
    return sorted((a, b) if columns == sorted(columns) else (b, a) for a, b in rows)


def nli(language: str, start: int = 0, stop: int | None = None) -> list[tuple[str, str, str]]:
    """(premise, hypothesis, label); three in a row share their hypothesis and have the three labels in some order."""
    rows = (line.split("\t") for line in _lines("nli", language)[start:stop])
    return [(premise, hypothesis, label) for premise, hypothesis, label in rows]


def questions(language: str, start: int = 0, stop: int | None = None) -> list[Question]:
    """Questions about contexts of two to four sentences; four in a row share their context."""
    return [Question(*line.split("\t")) for line in _lines("questions", language)[start:stop]]


def is_source(text: str) -> bool:
    """Whether a setting names the sample: `sample` or `sample:A-B`."""
    return re.match(r"(sample|world)(:|$)", text) is not None


def parse_range(source: str, size: int, *, where: str) -> tuple[int, int]:
    """(A, B) of `sample:A-B`, or (0, size) of `sample`. Raises UserError, which begins with `where`."""
    match = re.fullmatch(r"sample(?::(\d+)-(\d+))?", source)
    start, stop = (int(match[1]), int(match[2])) if match and match[1] else (0, size)
    if match is None or not 0 <= start < stop <= size:
        renamed = "the built-in sample is named sample, not world; " if source.startswith("world") else ""
        raise UserError(f"{where}: {renamed}write sample or sample:A-B with 0 <= A < B <= {size}")
    return start, stop


def _known(language: str) -> str:
    if language not in LANGUAGES:
        raise ValueError(f"the built-in sample has {', '.join(LANGUAGES)}, not {language}")
    return language


@cache
def _lines(kind: str, languages: str) -> tuple[str, ...]:
    for language in languages.split("-"):
        _known(language)
    data = (Path(__file__).parent / f"{kind}.{languages}.bz2").read_bytes()
    return tuple(bz2.decompress(data).decode().splitlines())


def _tree(line: str) -> Tree:
    """From `form/TAG/head/relation/role+role` for each word, with spaces between."""
    forms, tags, heads, relations, roles = zip(*(word.split("/") for word in line.split(" ")), strict=True)
    links = tuple(frozenset(filter(None, role.split("+"))) for role in roles)
    return Tree(forms, tags, tuple(map(int, heads)), relations, links)
