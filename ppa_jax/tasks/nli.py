"""Natural language inference: does the premise entail the hypothesis, contradict it, or neither?

XNLI (Conneau et al. 2018), MultiNLI, SNLI and files with the same columns. The classifier is the one of BERT (Devlin et
al. 2019) and XTREME (Hu et al. 2020).
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ppa_jax.data import public_datasets
from ppa_jax.data.text_files import read_lines, usable
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.families import EncoderConfig, family_of
from ppa_jax.tasks.task import IGNORE, MODERNBERT, Batch, Feature, HostOutputs, Outputs, Score, cross_entropy

SUFFIX: str = ".tsv"
LABELS = ("entailment", "neutral", "contradiction")
TRANSFORMERS = {
    "bert": ("ForSequenceClassification", {"pooler": "bert.pooler.dense", "classifier": "classifier"}),
    "xlm-roberta": ("ForSequenceClassification", {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}),
    "distilbert": ("ForSequenceClassification", {"pooler": "pre_classifier", "classifier": "classifier"}),
    "modernbert": ("ForSequenceClassification", MODERNBERT | {"classifier": "classifier"}),
}

_SPELLINGS = {  # numbers as in snli, multi_nli and xnli on the Hub and in TFDS
    **{label: label for label in LABELS},
    **{str(number): label for number, label in enumerate(LABELS)},
    "contradictions": "contradiction",
    "contradictory": "contradiction",
}
_ENCODED_AT_ONCE = 10_000  # pairs: the records of the tokenizers library are several times as large as the ids
_NO_GOLD = ("-", "-1")  # the annotators did not agree
_COLUMNS = {  # in lower case; the first one found is used
    "premise": ("premise", "prem", "sentence1", "sentence_a"),
    "hypothesis": ("hypothesis", "hyp", "hypo", "sentence2", "sentence_b"),
    "label": ("gold_label", "label", "entailment_judgment"),
    "id": ("pairid", "pair_id"),
    "language": ("language",),
}
_CSV_QUOTED = re.compile('"(?:[^"]|"")*"')
_EXPECTED = (
    "NLI files are premise<TAB>hypothesis<TAB>label, or TSV with a header or JSONL with the names "
    "sentence1, sentence2, gold_label (or premise, hypothesis, label); labels: " + ", ".join(LABELS)
)


class Example(NamedTuple):
    """A pair of sentences."""

    premise: str
    hypothesis: str
    label: str | None  # one of LABELS; None in a file without labels
    language: str
    id: str  # from the file, or the line number


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The pairs of a TSV or JSONL file; only those of `language` if it has a language column, as XNLI does.

    Rows without a gold label ("-"), with an unknown label or without text are skipped and counted in the log.

    Raises:
      UserError: `read_lines`'; neither header nor known layout; the file has no such language; most rows are unusable.
    """
    return _examples(_rows(path, language, field), path, language=language, field=field)


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The pairs of a dataset's rows: premise, hypothesis and label, or columns named as in files.

    From a column with several languages (XNLI's `all_languages`), the one of `language` is taken. Numeric labels are
    those of snli, multi_nli and xnli on the Hub and in TFDS: 0 is entailment, 1 neutral, 2 contradiction.
    """
    found = ((i, row if isinstance(row, str) else _columns(row, language)) for i, row in enumerate(rows, 1))
    return _examples(found, where, language=language, field=field)


def _columns(row: Mapping[Any, Any], language: str) -> dict[str, str]:
    """The columns of _COLUMNS that the row has."""
    values = [public_datasets.side(value, language) if isinstance(value, Mapping) else value for value in row.values()]
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    columns = _find_columns([str(name) for name in row])
    return {name: str(texts[i]) for name, i in columns.items() if texts[i] is not None}


def _examples(
    rows: Iterable[tuple[int, dict[str, str] | str]], path: Path | str, *, language: str, field: str
) -> list[Example]:
    found: list[tuple[int, Example | str]] = []
    others: set[str] = set()
    for number, row in rows:
        if isinstance(row, str):
            found.append((number, row))
        elif row.get("language", language) != language:
            others.add(row["language"])
        else:
            found.append((number, _example(row, number, language)))
    if others and not found:
        raise UserError(f"{field}: {path}: no row of language {language!r}; it has {', '.join(sorted(others))}")
    return usable(found, path, field=field, expected=_EXPECTED)


def _example(row: Mapping[str, str], number: int, language: str) -> Example | str:
    """The example of a row, or what is wrong with it."""
    premise, hypothesis, label = row.get("premise", ""), row.get("hypothesis", ""), row.get("label")
    known = None if label is None else _SPELLINGS.get(label.strip().lower())
    if not premise.strip() or not hypothesis.strip():
        return "premise or hypothesis is missing"
    if label is not None and label.strip() in _NO_GOLD:
        return f"no gold label ({label.strip()})"
    if label is not None and known is None:
        return f"unknown label {label[:40]!r}"
    return Example(premise, hypothesis, known, language, row.get("id", str(number)))


def _rows(path: Path, language: str, field: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line number, the columns of _COLUMNS that the row has, or what is wrong with it) of each row."""
    lines = [(number, line) for number, line in enumerate(read_lines(path, field=field), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("{"):
        for number, line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            yield number, _columns(values, language) if isinstance(values, dict) else "not a JSON object"
        return
    is_csv = _has_csv_quotes(line for _, line in lines)
    first = lines[0][1] if lines else ""
    header = next(csv.reader([first], delimiter="\t")) if is_csv else first.split("\t")
    columns = _find_columns(header)
    if "premise" in columns and "hypothesis" in columns:
        lines = lines[1:]
    elif len(header) == 3:
        columns = {"premise": 0, "hypothesis": 1, "label": 2}
    else:
        raise UserError(f"{field}: {path}:1: no header and not three columns; {_EXPECTED}")
    last = max(columns.values())
    for number, line in lines:
        try:
            row = next(csv.reader([line], delimiter="\t", strict=True)) if is_csv else line.split("\t")
        except csv.Error as error:
            yield number, f"not CSV ({error})"
            continue
        if len(row) <= last:
            yield number, f"fewer than {last + 1} columns"
        else:
            yield number, {name: row[i] for name, i in columns.items()}


def _has_csv_quotes(lines: Iterable[str]) -> bool:
    """Whether fields that contain quotes are quoted as in CSV: the field in quotes, and the quotes inside it doubled.

    Tab-separated CSV is written by pandas and used for TaxiNLI and counterfactual SNLI. XNLI, MultiNLI, SNLI and SICK
    do not quote: there a quote is part of the text.
    """
    as_csv = as_text = 0
    for line in lines:
        values = line.split("\t") if '"' in line else []
        quoted = [value for value in values if _CSV_QUOTED.fullmatch(value)]
        as_csv += sum('""' in value[1:-1] for value in quoted) + (len(quoted) == len(values) > 0)
        as_text += sum('"' in value for value in values) - len(quoted)
    return as_csv > as_text


def _find_columns(header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    chosen = {name: next(filter(names.__contains__, spellings), None) for name, spellings in _COLUMNS.items()}
    return {name: names.index(spelling) for name, spelling in chosen.items() if spelling}


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The three labels, in an order that does not depend on the data.

    Raises UserError if the examples have no label or all have the same: there is nothing to train on.
    """
    known = {example.label for example in examples} - {None}
    if not known:
        raise UserError("the training data has no labels; name its column gold_label or label")
    if len(known) < 2:
        raise UserError(f"the training data has only one label ({known.pop()}); give data with {', '.join(LABELS)}")
    return LABELS


def features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
) -> list[Feature]:
    """[CLS] premise [SEP] hypothesis [SEP] for each pair, truncated as by "longest_first" in transformers.

    Raises UserError if `max_length` leaves no room for a token of each.
    """
    doubled = tokenizer.doubles_separators
    room = max_length - (4 if doubled else 3)
    if room < 2:
        raise UserError(f"max_length {max_length} leaves no room for two sentences; 128 is usual")
    separator = [tokenizer.sep_id] * doubled
    found = []
    for begin in range(0, len(examples), _ENCODED_AT_ONCE):
        some = examples[begin : begin + _ENCODED_AT_ONCE]
        premises = tokenizer.encode([example.premise for example in some])
        hypotheses = tokenizer.encode([example.hypothesis for example in some])
        for example, premise, hypothesis in zip(some, premises, hypotheses, strict=True):
            m, n = _cut(len(premise), len(hypothesis), room)
            first = [tokenizer.cls_id, *premise[:m], tokenizer.sep_id]
            second = [*separator, *hypothesis[:n], tokenizer.sep_id]
            types = [0] * len(first) + [0 if doubled else 1] * len(second)
            values = {"label": IGNORE if example.label is None else labels.index(example.label)}
            # Arrays: lists would take gigabytes for the 400,000 pairs of MultiNLI in several languages.
            found.append(Feature(len(found), array("i", first + second), array("b", types), {}, values))
    return found


def _cut(first: int, second: int, room: int) -> tuple[int, int]:
    """The truncated lengths. The shorter text is truncated only if it is longer than half of the room."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


class Head(nn.Module):
    """The sentence classifier of the model's family, as in transformers: its features (BERT's pooler), dropout, dense.

    The classifier of XLM-R has one more dropout, on the input of its first dense layer, which is left out here.
    """

    config: EncoderConfig
    labels: Sequence[str]
    dtype: Any = jnp.float32

    @property
    def first_alone(self) -> bool:
        """Whether it reads only the state of [CLS], not the mean of all states."""
        return self.config.classifier_pooling == "cls"

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, seeds: jax.Array | None) -> Outputs:
        """{"logits": [B, T]} in float32, from the states [B, L, D], or [B, 1, D] of the first tokens."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        if c.classifier_pooling == "cls":
            state_Bx1xD = hidden[:, :1]  # with the axis of tokens, for the dropout
        else:
            mask = batch["mask"][:, :, None].astype(jnp.float32)
            state_Bx1xD = jnp.sum(hidden * mask, axis=1, keepdims=True) / jnp.sum(mask, axis=1, keepdims=True)
        pooled = family_of(c).sentence_features(c, state_Bx1xD, self.dtype)
        if seeds is not None and c.classifier_dropout > 0:
            pooled = drop.drop_features(pooled, seeds[:, :1], c.classifier_dropout)
        classifier = nn.Dense(len(self.labels), dtype=jnp.float32, kernel_init=init, name="classifier")
        return {"logits": classifier(pooled.astype(jnp.float32))[:, 0]}


def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy summed over the pairs that have a label, their number)."""
    return cross_entropy(outputs["logits"], batch["label"])


def decode(
    examples: Sequence[Example], features: Sequence[Feature], outputs: HostOutputs, labels: Sequence[str]
) -> list[str]:
    """The most likely label of each pair."""
    return [labels[int(np.argmax(output["logits"]))] for output in outputs]


def score(examples: Sequence[Example], predictions: Sequence[str], language: str) -> dict[str, Score]:
    """Accuracy over the pairs that have a label; empty if none has."""
    hits = [example.label == label for example, label in zip(examples, predictions, strict=True) if example.label]
    return {"accuracy": Score(100 * sum(hits) / len(hits), len(hits))} if hits else {}


def write(path: Path, examples: Sequence[Example], predictions: Sequence[str]) -> None:
    """id<TAB>label for each pair."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{e.id}\t{label}\n" for e, label in zip(examples, predictions, strict=True))


def mix(first: Example, second: Example) -> Example:
    """The premise of one example with the hypothesis of its translation (see code_switching.py).

    Raises UserError where their labels differ.
    """
    if first.label != second.label:
        labels = ", ".join(f"{example.language} id {example.id}: {example.label}" for example in (first, second))
        raise UserError(f"code-switching: the labels of a row differ ({labels}); give aligned files")
    return first._replace(hypothesis=second.hypothesis, language=f"{first.language}-{second.language}")
