"""Tagging: a label for each word. Parts of speech, or entities as IOB2.

Formats: CoNLL-U (the UPOS column), XTREME's word<TAB>tag, WikiANN's (Pan et al. 2017; Rahimi et al. 2019) with the
language before each word ("en:word"), the columns of CoNLL-2003 (word first, tag last), and those of Universal NER
(number, word, tag; further columns are ignored). The classifier is BERT's (Devlin et al. 2019); the label is on each
word's first token, as there and in XTREME (Hu et al. 2020).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ppa_jax.data.text_files import Problem, tell_skipped
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.families import EncoderConfig, family_of
from ppa_jax.tasks import conllu
from ppa_jax.tasks.task import IGNORE, Batch, Feature, Outputs, Score, cross_entropy
from ppa_jax.tasks.words import as_strings, windows

SUFFIX: str = ".tsv"  # of CoNLL-U: .conllu
TRANSFORMERS = {
    **dict.fromkeys(("bert", "xlm-roberta", "distilbert"), ("ForTokenClassification", {"classifier": "classifier"})),
    "modernbert": (
        "ForTokenClassification",
        {"head/transform": "head.dense", "head/layer_norm": "head.norm", "classifier": "classifier"},
    ),
}
_UPOS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
UPOS = tuple(_UPOS.split(" "))

_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "upos", "pos_tags", "tags")  # columns; the first that is there counts

_COMMENT = re.compile(r"# ?([\w.:-]+( id)? = [^\t]*|newdoc|newpar)")  # before a sentence's words, as in CoNLL-U

_BILOU = {"U-": "S-", "L-": "E-"}

_EXPECTED = "tagging files are CoNLL-U, or one word and its tag a line with a blank line after each sentence"


class Example(NamedTuple):
    """A sentence."""

    words: Sequence[str]
    tags: Sequence[str]  # as many; "_" where none is known: not trained, not scored
    language: str
    sentence: conllu.Sentence | None = None  # of CoNLL-U: as it was read, to be written again

    def __repr__(self) -> str:
        """Without the sentence: checksums of examples go by it, and other comments are no other data."""
        return f"Example(words={self.words!r}, tags={self.tags!r}, language={self.language!r})"


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The sentences of a file, whose format is detected. "_" is not a tag: it marks words without a known one.

    Sentences with a row without a word or a tag are skipped and counted in the log. In columns, comments of the form
    "# name = value" before the words are ignored.

    Raises UserError: `read_lines`'; most sentences are unusable.
    """
    blocks = list(conllu.blocks(path, field=field))
    first = next((line for _, block in blocks for line in block if not line.startswith("#")), "")
    if first.count("\t") == conllu.COLUMNS - 1:
        sentences, problems = conllu.parse(blocks)
        found = [Example(x.column(conllu.FORM), x.column(conllu.UPOS), language, x) for x in sentences]
        expected = conllu.EXPECTED
    else:
        tagged, problems = _parse_columns(blocks)
        found = [Example(words, tags, language) for words, tags in tagged]
        expected = _EXPECTED
    tell_skipped(path, problems, len(found), field=field, expected=expected)
    return _checked(found, f"{field}: {path}")


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The sentences of a dataset's rows: lists of words (`tokens`) and tags (`ner_tags`, `upos`, `pos_tags`, `tags`).

    Words tagged "_" are left out: in Universal Dependencies these are words of which the parts follow.
    """
    found: list[Example] = []
    problems = []
    for number, row in enumerate(rows, 1):
        example = row if isinstance(row, str) else _from_row(row, language)
        if isinstance(example, str):
            problems.append(Problem(number, example))
        else:
            found.append(example)
    expected = f"rows have a column {' or '.join(_WORDS)} and one of {', '.join(_TAGS)}"
    tell_skipped(where, problems, len(found), field=field, expected=expected)
    return _checked(found, f"{field}: {where}")


def _checked(examples: list[Example], where: str) -> list[Example]:
    """Renames BILOU's tags to IOBES's. Raises UserError if entities are mixed with other tags, or "_" means "O"."""
    tags = _all_tags(examples)
    entities = {tag for tag in tags if tag != "O" and _is_entity_tag(tag)}
    if entities and (odd := sorted(tag for tag in tags if not _is_entity_tag(tag))):
        raise UserError(
            f"{where}: {odd[0]!r} is a tag of no entity, and others are ({min(entities)}); correct the file"
        )
    if entities and "O" not in tags and any(conllu.NONE in example.tags for example in examples):
        raise UserError(f"{where}: no word is 'O' and some are '_', which is no tag at all; write O outside entities")
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


def _parse_columns(blocks: Iterable[tuple[int, list[str]]]) -> tuple[list[tuple[list[str], list[str]]], list[Problem]]:
    """(words, tags) of each sentence, and what could not be used."""
    found = []
    problems = []
    sentences = []  # (line of the first row, rows)
    for start, block in blocks:
        # "#" may be a word, at the beginning of a line too. A tab separates where there is one: words may hold spaces.
        first = next((i for i, line in enumerate(block) if not _COMMENT.fullmatch(line)), len(block))
        rows = [line.split("\t") if "\t" in line else line.strip(" ").split(" ") for line in block[first:]]
        if rows:
            sentences.append((start + first, rows))
    numbered = all(
        len(row) > 2 and row[0] == str(i) for _, rows in sentences for i, row in enumerate(rows, start=1)
    )  # Universal NER
    columns = 0  # of the first row: a file has as many everywhere, and running text has not
    for start, rows in sentences:
        if numbered:
            rows = [row[1:3] for row in rows]
        bad = next((i for i, row in enumerate(rows) if len(row) < 2 or not row[0] or not row[-1].strip()), None)
        columns = columns or len(rows[0])
        if bad is not None or any(len(row) != columns for row in rows):
            problems.append(Problem(start + (bad or 0), "a row that is not a word and its tag"))
        elif rows[0][0] != "-DOCSTART-":  # CoNLL-2003's mark between documents
            found.append(([row[0] for row in rows], [row[-1].strip() for row in rows]))
    # WikiANN's "en:" is the same before every word of a file; else it is no prefix.
    prefixes = {word.partition(":")[0] if ":" in word else "" for words, _ in found for word in words}
    if len(prefixes) == 1 and re.fullmatch("[a-z][a-z-]*", prefix := prefixes.pop()):
        found = [([word[len(prefix) + 1 :] for word in words], tags) for words, tags in found]
    return found, problems


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The 17 universal parts of speech if there are no other tags; else the tags of the training data, sorted.

    Raises UserError if no word has a tag.
    """
    tags = _all_tags(examples)
    if not tags:
        raise UserError("the training data has no tags; they are in CoNLL-U's column UPOS, or after each word")
    if bare := sum(set(example.tags) == {conllu.NONE} for example in examples):
        logging.warning("%d of %d training sentences have no tags, and train nothing", bare, len(examples))
    return UPOS if tags <= set(UPOS) else tuple(sorted(tags))


def features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
) -> list[Feature]:
    """Windows of the sentences (see `words.windows`), with each word's label on its first token.

    Other tokens, words that another window decides, and tags that training did not have are IGNORE.
    """
    numbers = {label: i for i, label in enumerate(labels)}
    tags = _all_tags(examples) - {"O"}
    if tags and not tags & {*numbers}:
        raise UserError(f"tags such as {min(tags)} were not trained, which were {', '.join(labels[:5])}, ...; "
                        "give files of one kind")  # fmt: skip
    found = []
    for i, window in windows([example.words for example in examples], tokenizer, max_length):
        row = [IGNORE] * len(window.ids)
        for word in window.own:
            row[window.position(word)] = numbers.get(examples[i].tags[word], IGNORE)
        found.append(Feature(i, window.ids, [0] * len(window.ids), {"labels": row}, {}, window))
    return found


class Head(nn.Module):
    """What the family's classifier of tokens reads, dropout, and the classifier, as transformers has them."""

    config: EncoderConfig
    labels: Sequence[str]
    dtype: Any = jnp.float32  # of the encoder; the classifier always computes in float32

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
    """Cross-entropy, summed over the words with a label, and their number."""
    return cross_entropy(outputs["logits"], batch["labels"])


def decode(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[Mapping[str, np.ndarray]],
    labels: Sequence[str],
) -> list[list[str]]:
    """The likeliest tag of each word, by the window that decides it."""
    predictions = [[""] * len(example.words) for example in examples]
    for feature, output in zip(features, outputs, strict=True):
        best = np.argmax(output["logits"], axis=-1)
        for word in feature.context.own:
            predictions[feature.example][word] = labels[int(best[feature.context.position(word)])]
    return predictions


def score(examples: Sequence[Example], predictions: Sequence[Sequence[str]], language: str) -> dict[str, Score]:
    """Accuracy over words; for entities seqeval's F1, precision and recall, as conlleval counts them.

    Entities are scored if all gold tags are entity tags; predicted tags of another kind then count as O. An entity is
    correct if its first word, its last word and its type are. A lone I- starts an entity. The count is the number of
    gold entities, for precision of predicted ones. Words without a gold tag do not count; if no word has one, there are
    no scores.
    """
    has_gold = [[tag != conllu.NONE for tag in example.tags] for example in examples]
    if not any(chain(*has_gold)):
        logging.warning("%s: no word has a gold tag; the predictions are written, and not scored", language)
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
    """Writes CoNLL-U as read with the predicted UPOS, under the suffix .conllu, if the examples are from CoNLL-U.

    Else word<TAB>gold<TAB>predicted, a blank line after each sentence: conlleval's format, with tabs (-d).
    """
    sentences = [example.sentence for example in examples if example.sentence is not None]
    if len(sentences) == len(examples):
        conllu.write(path.with_suffix(".conllu"), sentences, [{conllu.UPOS: tags} for tags in predictions])
        return
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example, tags in zip(examples, predictions, strict=True):
            rows = zip(example.words, example.tags, tags, strict=True)
            file.writelines(f"{line}\n" for line in [*("\t".join(row) for row in rows), ""])
