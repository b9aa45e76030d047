"""Word alignment: which words of two sentences translate each other, by the states of their tokens?

As in awesome-align (Dou & Neubig 2021, section 2.2): the products of all token states of two sentences, a softmax over
each side, and the pairs of tokens above a threshold in both. Or as in SimAlign (Jalili Sabet et al. 2020, "Argmax"):
the mutual nearest neighbours by cosine. Words are aligned if any of their tokens are.

The alignment error rate (Och & Ney 2003) of links A against the sure links S and the possible links P, which include S:
1 - (|A and S| + |A and P|) / (|A| + |S|), lower is better; precision |A and P| / |A|; recall |A and S| / |S|.

Axes: M source tokens or words, N target ones, D width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.data.text_files import read_aligned, read_lines
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.evaluation.neighbours import unit
from ppa_jax.evaluation.retrieval import language_of, means
from ppa_jax.evaluation.scores import Score

THRESHOLD = 1e-3
UNSPACED = ("zh", "ja", "th", "lo", "km", "my")  # written without spaces between words
LONGEST_WORDS = 10  # characters, on average over a file; see `_words`
PAIRS_AT_ONCE = 64  # sentence pairs whose states are in memory
FORM = "test.xx and test.yy (words separated by spaces) and alignv2.txt, or one of align*, *.align, *.pharaoh"
_PAIR = re.compile(r"([a-z]{2,3})-([a-z]{2,3})")
_LINK = re.compile(r"(\d+)([-p])(\d+)")
_AM = "\u0e33\u0eb3"  # Thai and Lao vowels that Unicode calls letters but UAX 29 joins to the character before

Links = set[tuple[int, int]]  # (source word, target word), from 0


class GoldSet(NamedTuple):
    """Sentence pairs with their gold links."""

    source: list[list[str]]  # words
    target: list[list[str]]
    sure: list[Links]
    possible: list[Links]  # includes the sure links


class _Link(NamedTuple):
    line: int
    sentence: int
    source: int
    target: int
    sure: bool


def read_gold(
    directory: str | Path,
    field: str = "word_alignment",
    *,
    word_base: int | None = None,
    sentence_base: int | None = None,
) -> dict[str, GoldSet]:
    """Language pair -> gold set, from a directory named like `de-en`, or from all such directories in it.

    Each has a file of sentences for either language (`test.de`, `test.en`) and a file of links: `alignv2.txt`, or the
    only file named `align*`, `*.align` or `*.pharaoh`. Links are either columns `sentence source target [S|P]`, where S
    is the default, or one line per sentence, `0-0 1p2`, with `-` for sure and `p` for possible.

    Words are separated by spaces; for languages written without spaces see `_words`. A negative word, or 0 if words are
    counted from 1, means no partner: such links are skipped and counted in the log. In columns, sentences without links
    are assumed not to be annotated: they are left out and counted in the log.

    Args:
      directory: of one set or of several.
      field: the setting, for error messages.
      word_base: whether words are counted from 0 or 1. By default from 0 if the number 0 occurs, or from 1 if the
        number of words of a sentence occurs in it; if neither, from 1 in columns and 0 in lines, with a warning.
      sentence_base: the same for the sentences of columns.

    Raises:
      UserError: no such directory, none or several files for a side, sides of different length, a link to a word or
        sentence that does not exist, a line of neither form, text that is not UTF-8.
    """
    directory = storage.local(directory)
    if not directory.is_dir():
        raise UserError(f"{field}: no such directory: {directory}; give one named like de-en with {FORM}")
    found = [directory] if _PAIR.fullmatch(directory.resolve().name) else sorted(directory.iterdir())
    found = [path for path in found if path.is_dir() and _PAIR.fullmatch(path.resolve().name)]
    if not found:
        raise UserError(f"{field}: {directory}: neither named like de-en nor holding directories that are")
    return {path.resolve().name: _read_set(path, field, word_base, sentence_base) for path in found}


def _read_set(directory: Path, field: str, word_base: int | None, sentence_base: int | None) -> GoldSet:
    codes = directory.resolve().name.split("-")
    paths = [_only(directory, field, f"*.{code}") for code in codes]
    texts = read_aligned(paths, field=field)
    sides = [_words(*of_side, field) for of_side in zip(texts, codes, paths, strict=True)]
    count = len(texts[0])
    path = directory / "alignv2.txt"
    path = path if path.is_file() else _only(directory, field, "align*", "*.align", "*.pharaoh")
    where = f"{field}: {path}"
    lines = read_lines(path, field=field)
    columns = not any(_LINK.fullmatch(part) for line in lines for part in line.split()[:1])
    if not columns and len(lines) != count:
        raise UserError(f"{where} has {len(lines)} lines and {paths[0].name} has {count}; they must have the same")
    links = list((_columns if columns else _pharaoh)(lines, where))
    numbers = [(link.line, link.sentence, count, "there are") for link in links]
    sentence_base = _base("sentence", numbers, sentence_base if columns else 0, 1, where)
    numbers = []
    for link in links:
        i = link.sentence - sentence_base
        for word, words, side in zip((link.source, link.target), sides, paths, strict=True):
            numbers.append((link.line, word, len(words[i]), f"{side.name}:{i + 1} has"))
    word_base = _base("word", numbers, word_base, 1 if columns else 0, where)
    logging.info("%s: words from %d, sentences from %d", where, word_base, sentence_base)

    sure: list[Links] = [set() for _ in range(count)]
    possible: list[Links] = [set() for _ in range(count)]
    without = 0
    for link in links:
        sentence = link.sentence - sentence_base
        pair = link.source - word_base, link.target - word_base
        if min(pair) < 0:
            without += 1
            continue
        possible[sentence].add(pair)
        if link.sure:
            sure[sentence].add(pair)
    if without:
        logging.warning("%s: skipped %d links to no word", where, without)
    annotated = sorted({link.sentence - sentence_base for link in links}) if columns else range(count)
    if len(annotated) < count:
        logging.warning("%s: left out %d sentences without links", where, count - len(annotated))
    if not any(possible):
        raise UserError(f"{where}: no link in it")
    source, target = sides
    return GoldSet(
        [source[i] for i in annotated],
        [target[i] for i in annotated],
        [sure[i] for i in annotated],
        [possible[i] for i in annotated],
    )


def _base(what: str, numbers: Sequence[tuple[int, int, int, str]], base: int | None, usual: int, where: str) -> int:
    """Whether words or sentences are counted from 0 or 1: `base`; if None, detected, or else `usual` with a warning.

    `numbers` are (line, number, how many there are, what an error message says before that). Raises UserError for a
    number that does not exist, and suggests the other base if it would then exist.
    """
    if base is None and any(number == 0 for _, number, *_ in numbers):
        base = 0
    if base is None and any(number == count for _, number, count, _ in numbers):
        base = 1
    if base is None:
        base = usual
        logging.warning(
            "%s: no %s has the number 0, and none that of the last: assumed to be counted from %d; if this is wrong, "
            "set config.%s_base=%d", where, what, usual, what, 1 - usual,
        )  # fmt: skip
    for line, number, count, has in numbers:
        if number - base >= count or (what == "sentence" and number < base):  # word -1 means no partner
            other = f", or set config.{what}_base={1 - base}" if 0 <= number - (1 - base) < count else ""
            message = f"{where}:{line}: {what} {number}, counted from {base}, but {has} {count}"
            raise UserError(f"{message}; take the texts of the same release{other}")
    return base


def _words(lines: list[str], language: str, path: Path, field: str) -> list[list[str]]:
    """The words of every line as gold links count them: separated by spaces, or single characters.

    In a language written without spaces, the words are characters, unless the file is segmented into words. A single
    line does not show that: it may be one word, and raw text also has spaces, around foreign names and, in Thai,
    between phrases. A segmented file has a space for every 2 to 5 characters, raw Chinese one for 60 or more, raw Thai
    one for 25 to 40. So a file with more than 10 characters per space is raw. Vowel signs, tone marks and the like
    belong to the character before them.
    """
    words = [[word for word in line.split(" ") if word] for line in lines]
    characters = sum(len(word) for line in words for word in line)
    spaces = sum(len(line) - 1 for line in words if line)
    if language not in UNSPACED or characters <= LONGEST_WORDS * spaces:
        return words
    logging.info("%s: %s: not segmented into words, so every character counts as a word", field, path)
    return [[character for word in line for character in _characters(word)] for line in words]


def _characters(text: str) -> list[str]:
    found: list[str] = []
    for character in text:
        if found and (unicodedata.category(character).startswith("M") or character in _AM):
            found[-1] += character
        else:
            found.append(character)
    return found


def _columns(lines: list[str], where: str) -> Iterator[_Link]:
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        try:
            sentence, source, target = map(int, parts[:3])
            sure = {"S": True, "P": False}[parts[3].upper()] if len(parts) > 3 else True
        except (ValueError, KeyError):
            raise UserError(
                f"{where}:{number}: neither `sentence source target [S|P]` nor links like 0-0 1p2; correct the line"
            ) from None
        yield _Link(number, sentence, source, target, sure)


def _pharaoh(lines: list[str], where: str) -> Iterator[_Link]:
    for number, line in enumerate(lines, 1):
        for part in line.split():
            match = _LINK.fullmatch(part)
            if not match:
                raise UserError(f"{where}:{number}: {part!r} is not a link like 0-0 (sure) or 0p0 (possible)")
            yield _Link(number, number - 1, int(match[1]), int(match[3]), match[2] == "-")


def _only(directory: Path, field: str, *names: str) -> Path:
    found = sorted({path for name in names for path in directory.glob(name) if path.is_file()})
    if len(found) != 1:
        have = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{field}: {directory}: needs one file {' or '.join(names)}, there is {have}; give {FORM}")
    return found[0]


def align_softmax(source: np.ndarray, target: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """[M, N] bool: the pairs of tokens whose probability is above the threshold in both directions.

    Args:
      source: [M, D] states; target: [N, D].
      threshold: on the softmax of the unscaled products, over the target for each source token and vice versa.
    """
    product = source @ target.T
    if not product.size:
        return np.zeros(product.shape, bool)
    both = np.ones(product.shape, bool)
    for axis in (0, 1):
        exponential = np.exp(product - product.max(axis, keepdims=True))
        both &= exponential / exponential.sum(axis, keepdims=True) > threshold
    return both


def align_argmax(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[M, N] bool: the mutual nearest neighbours among the tokens by cosine; of equally near ones only the first."""
    cosine = unit(source) @ unit(target).T
    both = np.zeros(cosine.shape, bool)
    if cosine.size:
        M = np.arange(len(cosine))
        nearest = cosine.argmax(1)
        both[M, nearest] = cosine.argmax(0)[nearest] == M
    return both


METHODS = {"softmax": (align_softmax, "tokens"), "argmax": (align_argmax, "tokens_argmax")}  # with the scores' pooling


def join_words(aligned: np.ndarray, source_word: Sequence[int], target_word: Sequence[int]) -> Links:
    """The links between words, from aligned tokens [M, N] bool and the word of each token, [M] and [N]."""
    return {(source_word[i], target_word[j]) for i, j in zip(*map(np.ndarray.tolist, aligned.nonzero()), strict=True)}


def counts(found: Links, sure: Links, possible: Links) -> dict[str, tuple[int, int]]:
    """Metric -> (numerator, denominator) of one sentence pair; a set's score is the ratio of the sums."""
    in_sure, in_possible = len(found & sure), len(found & possible)
    total = len(found) + len(sure)
    return {
        "aer": (total - in_sure - in_possible, total),
        "precision": (in_possible, len(found)),
        "recall": (in_sure, len(sure)),
    }


def evaluate_word_alignment(
    embedder: Embedder,
    params: Any,
    gold_sets: Mapping[str, GoldSet],
    layers: Sequence[int],
    *,
    method: str = "softmax",
    task: str = "word_alignment",
) -> list[Score]:
    """Alignment error rate, precision and recall in percent, for each gold set and layer, and their means.

    The direction is the name of the set, `de-en`, and `all` for the means. The pooling is `tokens`, or `tokens_argmax`
    for that method. `count` is the number of sentence pairs.

    Args:
      embedder: of the model. Tokens beyond its max_length remain unaligned; the log counts such sentences.
      params: the encoder's parameters.
      gold_sets: see `read_gold`.
      layers: from 0, the embeddings' output; one forward pass serves all.
      method: "softmax" (awesome-align) or "argmax" (SimAlign).
      task: the task's name in the scores.

    Raises:
      UserError: an unknown method, a layer that the encoder does not have.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r}: choose from {', '.join(METHODS)}")
    layers = list(dict.fromkeys(layers))
    if not layers:
        return []

    align, pooling = METHODS[method]
    scores: list[Score] = []
    for pair, gold in gold_sets.items():
        found = _links(embedder, params, gold, layers, align, f"{task}, {pair}")
        for layer in layers:
            rows = [counts(*links) for links in zip(found[layer], gold.sure, gold.possible, strict=True)]
            for metric in rows[0]:
                top, bottom = np.array([row[metric] for row in rows], np.float64).T
                groups = ((top, bottom),)
                scores.append(Score(task, language_of(pair), pair, layer, pooling, metric, groups, len(rows)))
    return scores + means(scores, lambda score: "all")


def _links(
    embedder: Embedder,
    params: Any,
    gold: GoldSet,
    layers: Sequence[int],
    align: Callable[[np.ndarray, np.ndarray], np.ndarray],
    name: str,
) -> dict[int, list[Links]]:
    """The links found at each layer, by sentence pair."""
    sides = [_tokens(embedder, side) for side in (gold.source, gold.target)]
    found: dict[int, list[Links]] = {layer: [set() for _ in gold.source] for layer in layers}
    truncated = 0
    for begin in range(0, len(gold.source), PAIRS_AT_ONCE):
        pairs = list(zip(*(side[begin : begin + PAIRS_AT_ONCE] for side in sides), strict=True))
        sequences = [[x for x, _ in pieces] for pair in pairs for pieces in pair]
        states = dict(embedder.token_states(params, sequences, layers))  # index of the sequence -> {layer: [tokens, D]}
        for i, pair in enumerate(pairs):
            source, target = states[2 * i], states[2 * i + 1]
            source_word, target_word = ([word for _, word in pieces] for pieces in pair)
            truncated += len(source[layers[0]]) < len(source_word)
            truncated += len(target[layers[0]]) < len(target_word)
            for layer in layers:
                links = join_words(align(source[layer], target[layer]), source_word, target_word)
                found[layer][begin + i] = links
    if truncated:
        message = "%s: %d sentences have more than %d tokens; the rest is unaligned"
        logging.warning(message, name, truncated, embedder.max_length - 2)
    return found


def _tokens(embedder: Embedder, sentences: Sequence[Sequence[str]]) -> list[list[tuple[int, int]]]:
    """(id, index of its word) of every token of every sentence; words are tokenized separately."""
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    ids = dict(zip(words, embedder.tokenizer.encode(words), strict=True))
    return [[(x, i) for i, word in enumerate(sentence) for x in ids[word]] for sentence in sentences]
