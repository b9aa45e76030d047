"""Reads and writes CoNLL-U without loss.

Format: https://universaldependencies.org/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppa_jax.data.text_files import read_lines

ID, FORM, UPOS, HEAD, DEPREL, DEPS = 0, 1, 3, 6, 7, 8  # columns
COLUMNS = 10
NONE = "_"  # in a column without a value
EXPECTED = "CoNLL-U has ten tab-separated columns, words numbered 1, 2, ... and a blank line after each sentence"
_NO_WORD = re.compile(r"[1-9]\d*-[1-9]\d*|\d+\.[1-9]\d*")  # multiword tokens (1-2) and empty nodes (1.1)


class Sentence(NamedTuple):
    """A sentence as read."""

    line: int  # of its first line in the file
    comments: list[str]  # with their "#"; they include sent_id
    rows: list[list[str]]  # of ten columns, including multiword tokens and empty nodes
    words: list[int]  # the indices of the rows that are words

    def column(self, column: int) -> list[str]:
        """One column of the words."""
        return [self.rows[i][column] for i in self.words]


def blocks(path: Path, *, field: str) -> Iterator[tuple[int, list[str]]]:
    """(line number of the first, lines) of each block between blank lines. Raises UserError as `read_lines` does."""
    block: list[str] = []
    start = 1
    for number, line in enumerate([*read_lines(path, field=field), ""], 1):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield start, block
            block = []


def parse(blocks: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, Sentence | str]]:
    """(line number, sentence, or what is wrong with it) of each block that has more than comments."""
    for start, block in blocks:
        comments = [line for line in block if line.startswith("#")]
        rows = [line.split("\t") for line in block if not line.startswith("#")]
        words = [i for i, row in enumerate(rows) if not _NO_WORD.fullmatch(row[ID])]
        if any(len(row) != COLUMNS for row in rows):
            yield start, "a row without ten columns"
        elif [rows[i][ID] for i in words] != [str(number) for number in range(1, len(words) + 1)]:
            yield start, "words not numbered 1, 2, ..."
        elif words:
            yield start, Sentence(start, comments, rows, words)
        elif rows:
            yield start, "a sentence without words"


def table(words: Iterable[str], upos: Iterable[str], heads: Iterable[Any], relations: Iterable[str]) -> list[list[str]]:
    """The rows of a new sentence, each with ten columns."""
    columns = zip(words, upos, heads, relations, strict=True)
    return [
        [str(i), form, NONE, tag, NONE, NONE, str(head), relation, NONE, NONE]
        for i, (form, tag, head, relation) in enumerate(columns, 1)
    ]


def write(path: Path, sentences: Sequence[Sentence], columns: Sequence[Mapping[int, Sequence[Any]]]) -> None:
    """Writes the sentences as read, except for the columns in `columns`: {column: a value for each word} of each."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for sentence, changes in zip(sentences, columns, strict=True):
            rows = [list(row) for row in sentence.rows]
            for column, values in changes.items():
                for i, value in zip(sentence.words, values, strict=True):
                    rows[i][column] = str(value)
            file.writelines(f"{line}\n" for line in [*sentence.comments, *("\t".join(row) for row in rows), ""])
