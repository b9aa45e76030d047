"""Tagging: a label for each word, such as parts of speech, or entities in IOB2.

Formats: CoNLL-U (the UPOS column), XTREME's word<TAB>tag, WikiANN's (Pan et al. 2017; Rahimi et al. 2019) with the
language before each word ("en:word"), the columns of CoNLL-2003 (word first, tag last), and those of Universal NER
(number, word, tag; further columns are ignored). The classifier is BERT's (Devlin et al. 2019). As in BERT and XTREME
(Hu et al. 2020), the first token of each word carries its label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ppa_jax.data.text_files import usable
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.families import EncoderConfig, family_of
from ppa_jax.tasks import conllu
from ppa_jax.tasks.task import IGNORE, MODERNBERT, Batch, Feature, HostOutputs, Outputs, Score, cross_entropy
from ppa_jax.tasks.words import as_strings, windows

SUFFIX: str = ".tsv"  # of CoNLL-U: .conllu
TRANSFORMERS = {
    **dict.fromkeys(("bert", "xlm-roberta", "distilbert"), ("ForTokenClassification", {"classifier": "classifier"})),
    "modernbert": ("ForTokenClassification", MODERNBERT | {"classifier": "classifier"}),
}
_UPOS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
UPOS = tuple(_UPOS.split(" "))

_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "upos", "pos_tags", "tags")  # columns; the first one found is used

_COMMENT = re.compile(r"# ?([\w.:-]+( id)? = [^\t]*|newdoc|newpar)")  # before the words of a sentence, as in CoNLL-U

_BILOU = {"U-": "S-", "L-": "E-"}

_Blocks = Iterable[tuple[int, list[str]]]  # as `conllu.blocks` returns them

_EXPECTED = "tagging files are CoNLL-U, or have a word and its tag per line and a blank line after each sentence"


class Example(NamedTuple):
    """A sentence."""

    words: Sequence[str]
    tags: Sequence[str]  # one per word; "_" if unknown: neither trained on nor scored
    language: str
    sentence: conllu.Sentence | None = None  # of CoNLL-U: as read, for writing the predictions

    def __repr__(self) -> str:
        """Leaves out the sentence: checksums of examples use this, and must not depend on comments."""
        return f"Example(words={self.words!r}, tags={self.tags!r}, language={self.language!r})"


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The sentences of a file, whose format is detected. A tag "_" means that the word has none.

    Sentences with a row that lacks a word or a tag are skipped and counted in the log. In files of columns, comments of
    the form "# name = value" before the words are ignored.

    Raises UserError: `read_lines`'; most sentences are unusable.
    """
    blocks = list(conllu.blocks(path, field=field))
    first = next((line for _, block in blocks for line in block if not line.startswith("#")), "")
    if first.count("\t") == conllu.COLUMNS - 1:
        found, expected = _parse_conllu(blocks, language), conllu.EXPECTED
    else:
        found, expected = _parse_columns(blocks, language), _EXPECTED
    return _checked(usable(found, path, field=field, expected=expected), f"{field}: {path}")


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The sentences of a dataset's rows: lists of words (`tokens`) and tags (`ner_tags`, `upos`, `pos_tags`, `tags`).

    Words tagged "_" are left out: in Universal Dependencies their parts follow as words of their own.
    """
    found = ((i, row if isinstance(row, str) else _from_row(row, language)) for i, row in enumerate(rows, 1))
    expected = f"rows have a column {' or '.join(_WORDS)} and one of {', '.join(_TAGS)}"
    return _checked(usable(found, where, field=field, expected=expected), f"{field}: {where}")


def _checked(examples: list[Example], where: str) -> list[Example]:
    """Renames BILOU's tags to IOBES's. Raises UserError if entities are mixed with other tags, or "_" means "O"."""
    tags = _all_tags(examples)
    entities = {tag for tag in tags if tag != "O" and _is_entity_tag(tag)}
    if entities and (odd := sorted(tag for tag in tags if not _is_entity_tag(tag))):
        raise UserError(
            f"{where}: {odd[0]!r} is not an entity tag, but other tags are ({min(entities)}); correct the file"
        )
    if entities and "O" not in tags and any(conllu.NONE in example.tags for example in examples):
        raise UserError(f"{where}: no word is tagged 'O' and some '_', which is not a tag; write O outside entities")
    if not any(tag[:2] in _BILOU for tag in tags):
        return examples
    return [x._replace(tags=[_BILOU.get(tag[:2], tag[:2]) + tag[2:] for tag in x.tags]) for x in examples]


def _from_row(row: Mapping[str, Any], language: str) -> Example | str:
    words, tags = (next((row[name] for name in names if name in row), None) for names in (_WORDS, _TAGS))
    forms, names = as_strings(words), as_strings(tags)
    if names is None and as_strings(tags, numbers=True) is not None:
        return "tags that are numbers, without their names"
    if forms is None or names is None or len(forms) != len(names):
        return "no list of words with as many tags"
    pairs = [(word, tag) for word, tag in zip(forms, names, strict=True) if tag != "_"]
    return Example([word for word, _ in pairs], [tag for _, tag in pairs], language) if pairs else "no words"


def _parse_conllu(blocks: _Blocks, language: str) -> Iterator[tuple[int, Example | str]]:
    for line, found in conllu.parse(blocks):
        if isinstance(found, conllu.Sentence):
            yield line, Example(found.column(conllu.FORM), found.column(conllu.UPOS), language, found)
        else:
            yield line, found


def _parse_columns(blocks: _Blocks, language: str) -> list[tuple[int, Example | str]]:
    """(line number, sentence, or what is wrong with it) of each sentence."""
    sentences = []  # (line number of the first row, rows)
    for start, block in blocks:
        # A word may be "#", even at the start of a line. A line with a tab is split only there: words may have spaces.
        first = next((i for i, line in enumerate(block) if not _COMMENT.fullmatch(line)), len(block))
        rows = [line.split("\t") if "\t" in line else line.strip(" ").split(" ") for line in block[first:]]
        if rows:
            sentences.append((start + first, rows))
    # Universal NER numbers its words.
    if all(len(row) > 2 and row[0] == str(i) for _, rows in sentences for i, row in enumerate(rows, 1)):
        sentences = [(line, [row[1:3] for row in rows]) for line, rows in sentences]
    found: list[tuple[int, Example | str]] = []
    for line, rows in sentences:
        columns = len(sentences[0][1][0])  # the same in every row, unlike in running text
        bad = next((i for i, row in enumerate(rows) if len(row) < 2 or not row[0] or not row[-1].strip()), None)
        if bad is not None or any(len(row) != columns for row in rows):
            found.append((line + (bad or 0), "a row that is not a word and its tag"))
        elif rows[0][0] != "-DOCSTART-":  # between documents of CoNLL-2003
            found.append((line, Example([row[0] for row in rows], [row[-1].strip() for row in rows], language)))
    # In WikiANN every word of a file starts with the same "en:"; otherwise it is not a prefix.
    words = [word for _, example in found if isinstance(example, Example) for word in example.words]
    prefixes = {word.partition(":")[0] if ":" in word else "" for word in words}
    if len(prefixes) == 1 and re.fullmatch("[a-z][a-z-]*", prefix := prefixes.pop()):
        start = len(prefix) + 1
        return [(i, x if isinstance(x, str) else x._replace(words=[w[start:] for w in x.words])) for i, x in found]
    return found


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The 17 universal parts of speech if there are no other tags; else the tags of the training data, sorted.

    Raises UserError if no word has a tag.
    """
    tags = _all_tags(examples)
    if not tags:
        raise UserError("the training data has no tags; they are in CoNLL-U's column UPOS, or after each word")
    if bare := sum(set(example.tags) == {conllu.NONE} for example in examples):
        logging.warning("%d of %d training sentences have no tags and are not trained on", bare, len(examples))
    return UPOS if tags <= set(UPOS) else tuple(sorted(tags))


def features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
) -> list[Feature]:
    """Windows of the sentences (see `words.windows`), with the label of each word at its first token.

    IGNORE at all other tokens, at words that another window decides, and for tags that the training data does not have.
    """
    numbers = {label: i for i, label in enumerate(labels)}
    tags = _all_tags(examples) - {"O"}
    if tags and not tags & {*numbers}:
        raise UserError(f"tags such as {min(tags)} are not those of the training data ({', '.join(labels[:5])}, ...); "
                        "give files of one kind")  # fmt: skip
    found = []
    for i, window in windows([example.words for example in examples], tokenizer, max_length):
        row = [IGNORE] * len(window.ids)
        for word in window.own:
            row[window.position(word)] = numbers.get(examples[i].tags[word], IGNORE)
        found.append(Feature(i, window.ids, [0] * len(window.ids), {"labels": row}, {}, window))
    return found


class Head(nn.Module):
    """The token classifier of the model's family, as in transformers: its features, dropout, and a dense layer."""

    config: EncoderConfig
    labels: Sequence[str]
    dtype: Any = jnp.float32  # of the encoder; the dense layer is always computed in float32

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, seeds: jax.Array | None) -> Outputs:
        """{"logits": [B, L, T]} in float32, from the states [B, L, D]."""
        c = self.config
        hidden = family_of(c).token_features(c, hidden, self.dtype)
        if seeds is not None and c.classifier_dropout > 0:
            hidden = drop.drop_features(hidden, seeds, c.classifier_dropout)
        init = nn.initializers.normal(c.initializer_range)
        classifier = nn.Dense(len(self.labels), dtype=jnp.float32, kernel_init=init, name="classifier")
        return {"logits": classifier(hidden.astype(jnp.float32))}


def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy summed over the words that have a label, their number)."""
    return cross_entropy(outputs["logits"], batch["labels"])


def decode(
    examples: Sequence[Example], features: Sequence[Feature], outputs: HostOutputs, labels: Sequence[str]
) -> list[list[str]]:
    """The most likely tag of each word, from the window that decides it."""
    predictions = [[""] * len(example.words) for example in examples]
    for feature, output in zip(features, outputs, strict=True):
        best = np.argmax(output["logits"], axis=-1)
        for word in feature.context.own:
            predictions[feature.example][word] = labels[int(best[feature.context.position(word)])]
    return predictions


def score(examples: Sequence[Example], predictions: Sequence[Sequence[str]], language: str) -> dict[str, Score]:
    """Accuracy over words; for entities seqeval's F1, precision and recall, as conlleval counts them.

    Entities are scored if all gold tags are entity tags; other predicted tags then count as O. An entity is correct if
    its first word, its last word and its type are. An I- that continues nothing starts an entity. The count is the
    number of gold entities, and for precision that of predicted ones. Words without a gold tag are ignored; without any
    gold tag there are no scores.
    """
    has_gold = [[tag != conllu.NONE for tag in example.tags] for example in examples]
    if not any(chain(*has_gold)):
        logging.warning("%s: no word has a gold tag; the predictions are written but not scored", language)
        return {}
    gold = [list(compress(example.tags, known)) for example, known in zip(examples, has_gold, strict=True)]
    predictions = [list(compress(tags, known)) for tags, known in zip(predictions, has_gold, strict=True)]
    if not all(_is_entity_tag(tag) for tag in chain(*gold)):
        pairs = list(zip(chain(*gold), chain(*predictions), strict=True))
        return {"accuracy": Score(100 * sum(a == b for a, b in pairs) / len(pairs), len(pairs))}
    from seqeval.metrics import sequence_labeling  # slow to import

    predicted = [[tag if _is_entity_tag(tag) else "O" for tag in tags] for tags in predictions]
    seqeval: Any = sequence_labeling  # its annotations know neither numbers for zero_division nor single results
    precision, recall, f1, _ = seqeval.precision_recall_fscore_support(
        gold, predicted, average="micro", zero_division=0
    )
    expected, found = len(seqeval.get_entities(gold)), len(seqeval.get_entities(predicted))
    values = {"f1": (f1, expected), "precision": (precision, found), "recall": (recall, expected)}
    return {name: Score(100 * float(value), n) for name, (value, n) in values.items()}


def _all_tags(examples: Iterable[Example]) -> set[str]:
    return {tag for example in examples for tag in example.tags} - {conllu.NONE}


def _is_entity_tag(tag: str) -> bool:
    return tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-", *_BILOU)


def write(path: Path, examples: Sequence[Example], predictions: Sequence[Sequence[str]]) -> None:
    """Writes CoNLL-U as read, with the predicted UPOS and the suffix .conllu, if the examples come from CoNLL-U.

    Otherwise word<TAB>gold<TAB>predicted and a blank line after each sentence: conlleval's format, with tabs (-d).
    """
    sentences = [example.sentence for example in examples if example.sentence is not None]
    if len(sentences) == len(examples):
        conllu.write(path.with_suffix(".conllu"), sentences, [{conllu.UPOS: tags} for tags in predictions])
        return
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example, tags in zip(examples, predictions, strict=True):
            rows = zip(example.words, example.tags, tags, strict=True)
            file.writelines(f"{line}\n" for line in [*("\t".join(row) for row in rows), ""])
