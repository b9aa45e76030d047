"""Text and labelled tasks in a derived language (derivation.py), written as files that every job can read.

In CoNLL-U and tagged text, sentences and words are those of the file. In plain text, a sentence is a line, and words
are separated by spaces, with the punctuation at their ends split off. What the tokenizer splits within a word ("don't")
is transliterated part by part, so that a word and its clone have the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from ppa_jax import storage
from ppa_jax.config import entries
from ppa_jax.data import sample, text_files
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.studies.align_mlm.derivation import Derivation, Tree, is_punctuation, moved_heads, moved_tags
from ppa_jax.tasks import conllu, files, nli, parsing, tagging

ENGLISH = "en"
TASKS: dict[str, Any] = {"tagging": tagging, "nli": nli, "parsing": parsing}
_TAGGED = (".tsv", ".bio", ".iob2", ".conll")

Split = Callable[[str], list[str]]


class Sentence(NamedTuple):
    """A sentence of a text."""

    words: Sequence[str]
    tree: Tree | None = None


class Example(NamedTuple):
    """An example of a task, and the tree of its words if it has one."""

    example: Any
    tree: Tree | None = None


def splitter(tokenizer: Tokenizer) -> Split:
    """Splits a text as the tokenizer does before it looks up tokens: at spaces and around punctuation."""
    backend = tokenizer.backend

    def split(text: str) -> list[str]:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]

    return split


def read_text(spec: str, *, field: str) -> list[Sentence]:
    """The sentences of comma-separated files: CoNLL-U with its trees, tagged words, or plain text.

    `sample:A-B` is the built-in sample in English, with its trees. Raises UserError as the readers do, and if there is
    no sentence.
    """
    found: list[Sentence] = []
    for name in entries(spec):
        path = storage.local(name)
        kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        if sample.is_source(name) or kind == ".conllu":
            found += [Sentence(x.words, _tree(x)) for x in _read_trees(name, field)]
        elif kind in _TAGGED:
            found += [Sentence(x.words) for x in files.read(TASKS["tagging"], f"en={name}", field=field)[ENGLISH]]
        else:
            lines = text_files.read_lines(path, field=field)
            found += [Sentence(words_of(line)) for line in lines if line.strip()]
    if not found:
        raise UserError(f"{field}: no text; give comma-separated files, or sample:A-B (of {sample.size()})")
    return found


def words_of(text: str) -> list[str]:
    """The words of plain text, with the punctuation at their ends split off.

    As in treebanks, except that clitics ("don't") are one word and the full stops of abbreviations are split off.
    """
    words = []
    for word in text.split():
        inner = [i for i, letter in enumerate(word) if not is_punctuation(letter)]
        start, stop = (inner[0], inner[-1] + 1) if inner else (0, 1)
        words += [*word[:start], word[start:stop], *word[stop:]]
    return words


def read_examples(task: str, spec: str, *, field: str) -> list[Example]:
    """The English examples of a task, with their trees if they come from CoNLL-U or the sample. As `files.read`."""
    sources = [name.strip() for name in spec.split("|")]
    if task == "nli" or not all(sample.is_source(name) or name.endswith((".conllu", ".conllu.gz")) for name in sources):
        found = [Example(example) for example in files.read(TASKS[task], f"en={spec}", field=field)[ENGLISH]]
        if task == "nli" and (unlabelled := sum(not x.example.label for x in found)):
            raise UserError(
                f"{field}: {unlabelled} of {len(found)} pairs have no gold label; give files that have them"
            )
        return found
    read = _read_trees(spec, field)
    if task == "parsing":
        if not read[0].heads:
            raise UserError(f"{field}: no sentence has a tree; give CoNLL-U files with heads and relations")
        return [Example(example, _tree(example)) for example in read]
    tagged = [Example(tagging.Example(x.words, x.upos, x.language), _tree(x)) for x in read if "_" not in x.upos]
    if len(tagged) < len(read):
        logging.warning("%s: skipped %d sentences with a word without UPOS", field, len(read) - len(tagged))
    return tagged


def _read_trees(spec: str, field: str) -> list[parsing.Example]:
    """The sentences of CoNLL-U: those with trees, or all if none has one."""
    found = files.read(TASKS["parsing"], f"en={spec}", field=field)[ENGLISH]
    trees = [example for example in found if example.heads]
    if trees and len(trees) < len(found):
        logging.warning("%s: skipped %d sentences without a tree", field, len(found) - len(trees))
    return trees or found


def _tree(example: parsing.Example) -> Tree | None:
    return Tree(example.heads, example.relations, example.upos) if example.heads else None


def derive(
    words: Sequence[str], tree: Tree | None, derivation: Derivation, split: Split
) -> tuple[list[str], list[int]]:
    """(the words in the derived language, their indices in the sentence). Raises UserError if it needs a tree."""
    order = derivation.order(words, tree)
    parts = [" ".join(split(word)) or word for word in words]  # a word without tokens stays a word
    return derivation.words(parts, order), order


def derive_text(sentence: Sentence, derivation: Derivation, split: Split) -> tuple[str, str]:
    """The sentence and its derivation, as lines of text."""
    return " ".join(sentence.words), " ".join(derive(sentence.words, sentence.tree, derivation, split)[0])


def examples_text(
    task: str, examples: Sequence[Example], derivation: Derivation | None, split: Split
) -> tuple[str, int]:
    """(the content of a file for `TASKS[task].read`, derived unless `derivation` is None; number of split entities)."""
    lines, split_entities = [], 0
    for example, tree in examples:
        if task == "nli":
            lines.append("\t".join([*(_side(text, derivation, split) for text in example[:2]), example.label or "-"]))
            continue
        words, order = list(example.words), list(range(len(example.words)))
        if derivation is not None:
            words, order = derive(words, tree, derivation, split)
        if task == "tagging":
            tags, count = moved_tags(example.tags, order)
            split_entities += count
            lines += [*map("\t".join, zip(words, tags, strict=True)), ""]
        else:
            upos, relations = ([column[i] for i in order] for column in (example.upos, example.relations))
            rows = conllu.table(words, upos, moved_heads(example.heads, order), relations)
            lines += [*map("\t".join, rows), ""]
    return "".join(f"{line}\n" for line in lines), split_entities


def _side(text: str, derivation: Derivation | None, split: Split) -> str:
    words = words_of(text)
    return " ".join(words if derivation is None else derive(words, None, derivation, split)[0])
