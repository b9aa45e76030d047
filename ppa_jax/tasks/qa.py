"""Extractive question answering: the answer to a question is a span of its context (SQuAD, XQuAD, MLQA, TyDi GoldP).

The recipe is BERT's (Devlin et al. 2019, section 4.2) as in transformers' run_qa.py: question and context form one row,
a context that is too long several overlapping rows; each token gets two logits, for start and end; the answer is the
best span of all rows. The span is chosen by tokens but cut out of the context by characters, so the answer has the
casing and spaces of the text. Files: see squad.py. Scores: see qa_scores.py.

Axes: B features of a batch, L tokens of a row, D width, W context tokens of one row (a window).
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, UInt

from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model.attention import MASKED
from ppa_jax.model.families import EncoderConfig, family_of
from ppa_jax.tasks import qa_scores
from ppa_jax.tasks.squad import Example, from_rows, mix, read, write  # noqa: F401 - parts of the task
from ppa_jax.tasks.task import IGNORE, MODERNBERT, Batch, Feature, HostOutputs, Outputs, Score, cross_entropy

SUFFIX: str = ".json"
TRANSFORMERS = {
    **dict.fromkeys(("bert", "xlm-roberta", "distilbert"), ("ForQuestionAnswering", {"qa_outputs": "qa_outputs"})),
    "modernbert": ("ForQuestionAnswering", MODERNBERT | {"qa_outputs": "classifier"}),
}

STRIDE = 128  # tokens that two windows share (run_qa.py's doc_stride); at most half a window
N_BEST = 20  # starts, and as many ends, are combined
LONGEST_ANSWER = 30  # in tokens
_ENCODED_AT_ONCE = 1000  # texts: the records of the tokenizers library are many times as large as ids and spans


class Window(NamedTuple):
    """The part of the context that a feature covers."""

    first: int  # position of its first token in the row
    spans: np.ndarray  # [W, 2]: the characters of the context that each token covers, [start, end)


# ---- rows for the encoder


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """Empty: spans are predicted, not labels. Raises UserError if no example has an answer to train on."""
    if not any(answer.start >= 0 for example in examples for answer in example.answers):
        raise UserError("the training data has no answers; they are under answers, with text and answer_start")
    return ()


def features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, labels: Sequence[str] = ()
) -> list[Feature]:
    """Rows [CLS] question [SEP] window [SEP], or <s> question </s></s> window </s> as in XLM-R.

    A question is truncated at half of the room. Windows overlap by STRIDE tokens, or by half a window if that is less.
    The values `start` and `end` are the positions of the first gold answer in the row (including tokens that overlap it
    partly); both are 0, the position of [CLS], if the window does not contain all of it, and IGNORE if the example has
    no answer in its context.

    Raises:
      UserError: `max_length` leaves no room for a token of each.
    """
    # Separators between the two texts, and the token type of the second.
    separators, second = (2, 0) if tokenizer.doubles_separators else (1, 1)
    room = max_length - separators - 2  # without [CLS] and the last [SEP]
    if room < 2:
        raise UserError(f"config.data.max_length={max_length}: too short for a question and a context; 384 is usual")
    pieces = _encode(tokenizer, [text for example in examples for text in (example.question, example.context)])
    rows = []
    for number, example in enumerate(examples):
        question = pieces[example.question][0][: room // 2]
        before = [tokenizer.cls_id, *question, *[tokenizer.sep_id] * separators]
        ids, spans = pieces[example.context]
        gold = _gold_tokens(example, spans)
        size = room - len(question)
        overlap = min(STRIDE, size // 2)
        for begin in range(0, max(1, len(ids) - overlap), size - overlap):
            window = ids[begin : begin + size]
            shift = len(before) - begin  # from a token's position in the context to its position in the row
            start, end = IGNORE, IGNORE
            if gold is not None:
                inside = begin <= gold[0] and gold[1] < begin + size
                start, end = (gold[0] + shift, gold[1] + shift) if inside else (0, 0)
            rows.append(
                Feature(
                    example=number,
                    # Arrays: lists would take a gigabyte for the 100,000 rows of a training set.
                    ids=array("i", [*before, *window, tokenizer.sep_id]),
                    types=array("b", [0] * len(before) + [second] * (len(window) + 1)),
                    arrays={},
                    values={"start": start, "end": end},
                    context=Window(len(before), spans[begin : begin + size]),
                )
            )
    return rows


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, tuple[list[int], np.ndarray]]:
    """text -> (ids, spans [tokens, 2]), without special tokens. Contexts shared by questions are encoded once."""
    known, todo = {}, list(dict.fromkeys(texts))
    for begin in range(0, len(todo), _ENCODED_AT_ONCE):
        some = todo[begin : begin + _ENCODED_AT_ONCE]
        # `tokenizer.encode` is faster but returns no offsets.
        for text, encoding in zip(some, tokenizer.backend.encode_batch(some, add_special_tokens=False), strict=True):
            known[text] = encoding.ids, _spans(text, encoding.offsets)
    return known


def _spans(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The characters of each token, [tokens, 2], without the space that SentencePiece puts before a word, and with the
    combining accents that an uncased tokenizer drops."""
    spans = np.array(offsets, np.int32).reshape(-1, 2)
    for i, (start, end) in enumerate(offsets):
        while start < end and text[start].isspace():
            start += 1
        limit = offsets[i + 1][0] if i + 1 < len(offsets) else len(text)
        while start < end < limit and unicodedata.category(text[end]).startswith("M"):
            end += 1
        spans[i] = start, end
    return spans


def _gold_tokens(example: Example, spans: np.ndarray) -> tuple[int, int] | None:
    """(first token, last token) of the first answer that is in the context."""
    for answer in example.answers:
        if answer.start >= 0:
            inside = np.flatnonzero((spans[:, 1] > answer.start) & (spans[:, 0] < answer.start + len(answer.text)))
            if inside.size:
                return int(inside[0]), int(inside[-1])
    return None


# ---- the model


class Head(nn.Module):
    """The token features of the model's family and one dense layer without dropout, transformers' `qa_outputs`.

    The dense layer is always computed in float32: it is cheap, and in bfloat16 the logits of neighbouring tokens would
    often be equal. Padding is excluded from the softmax; transformers includes it, which differs only if there is any.
    """

    config: EncoderConfig
    labels: Sequence[str] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B L D"], batch: Batch, seeds: UInt[Array, "B L"] | None = None
    ) -> dict[str, Float[Array, "B L"]]:
        c = self.config
        hidden = family_of(c).token_features(c, hidden, self.dtype)
        init = nn.initializers.normal(c.initializer_range)
        logits_BxLx2 = nn.Dense(2, dtype=jnp.float32, kernel_init=init, name="qa_outputs")(hidden)
        logits_BxLx2 = jnp.where(batch["mask"][:, :, None] == 1, logits_BxLx2, MASKED)
        return {"start": logits_BxLx2[:, :, 0], "end": logits_BxLx2[:, :, 1]}


def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum over rows of the mean cross-entropy of start and end, number of rows); rows without gold are ignored."""
    start, rows = cross_entropy(outputs["start"], batch["start"])
    end, _ = cross_entropy(outputs["end"], batch["end"])
    return (start + end) / 2, rows


# ---- answers


def decode(
    examples: Sequence[Example], features: Sequence[Feature], outputs: HostOutputs, labels: Sequence[str] = ()
) -> list[str]:
    """The answer to each question, from the window whose best span has the highest score; "" if there is no span."""
    answers = [""] * len(examples)
    best = [-np.inf] * len(examples)
    for feature, output in zip(features, outputs, strict=True):
        first, spans = feature.context
        span = best_span(*(output[name][first : first + len(spans)] for name in ("start", "end")))
        if span is not None and span[0] > best[feature.example]:
            best[feature.example] = span[0]
            context = examples[feature.example].context
            answers[feature.example] = context[spans[span[1], 0] : spans[span[2], 1]]
    return answers


def best_span(start_W: np.ndarray, end_W: np.ndarray) -> tuple[float, int, int] | None:
    """(sum of the two logits, first token, last token) of the best span of a window; None if none is allowed.

    The N_BEST best starts are combined with the N_BEST best ends; a span has 1 to LONGEST_ANSWER tokens.
    """
    starts, ends = (np.argsort(-logits, kind="stable")[:N_BEST] for logits in (start_W, end_W))
    lengths = ends[None, :] - starts[:, None] + 1
    allowed = (lengths >= 1) & (lengths <= LONGEST_ANSWER)
    if not allowed.any():
        return None
    sums = np.where(allowed, start_W[starts][:, None] + end_W[ends], -np.inf)
    i, j = np.unravel_index(np.argmax(sums), sums.shape)
    return float(sums[i, j]), int(starts[i]), int(ends[j])


def score(examples: Sequence[Example], predictions: Sequence[str], language: str) -> dict[str, Score]:
    """F1 and exact match in percent, each the maximum over the gold answers, by the rules of MLQA and of SQuAD.

    MLQA's rules depend on the language of the context. `squad_f1` and `squad_em` are what XTREME reports for XQuAD and
    TyDi in every language. Questions without gold are ignored; if there are no others, there are no scores.
    """
    pairs = [(example, found) for example, found in zip(examples, predictions, strict=True) if example.answers]
    if not pairs:
        logging.warning("%s: no question has a gold answer; the predictions are written but not scored", language)
        return {}
    scores = {}
    for rules in ("", "squad_"):
        for name, measure in (("f1", qa_scores.f1), ("em", qa_scores.exact)):
            values = [
                max(measure(found, gold.text, qa_scores.SQUAD if rules else e.language) for gold in e.answers)
                for e, found in pairs
            ]
            scores[rules + name] = Score(100 * float(np.mean(values)), len(pairs))
    return scores
