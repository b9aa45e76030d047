"""Word alignment: do the states of words that translate each other find one another?

As awesome-align extracts it (Dou & Neubig 2021, section 2.2): the products of all piece states of two sentences, a
softmax over each side, and the pairs of pieces above a threshold in both. Or as SimAlign does (Jalili Sabet et al.
2020, "Argmax"): the pairs that are each other's nearest by cosine. Words are aligned when any of their pieces are.

The alignment error rate (Och & Ney 2003) of links A against the sure links S and the possible links P, which include S:
1 - (|A and S| + |A and P|) / (|A| + |S|), lower is better; precision |A and P| / |A|; recall |A and S| / |S|.

Axes: M source pieces or words, N target ones, D width.
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

METHODS = {"softmax": "tokens", "argmax": "tokens_argmax"}  # the pooling in their scores
THRESHOLD = 1e-3
UNSPACED = ("zh", "ja", "th", "lo", "km", "my")  # written without spaces between words
LONGEST_WORDS = 10  # characters, on average over a file; see `_words`
PAIRS_AT_ONCE = 64  # sentence pairs whose states are in memory
FORM = "test.xx and test.yy (words separated by spaces) and alignv2.txt, or one of align*, *.align, *.pharaoh"
_PAIR = re.compile(r"([a-z]{2,3})-([a-z]{2,3})")
_LINK = re.compile(r"(\d+)([-p])(\d+)")
_AM = "\u0e33\u0eb3"  # Thai and Lao vowels, letters in Unicode, that belong to the character before (UAX 29)

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
    """Language pair -> gold set, of a directory named like `de-en`, or of all such directories in the one given.

    Each has one file of sentences for either language (`test.de`, `test.en`) and one of links: `alignv2.txt`, or the
    only file named `align*`, `*.align` or `*.pharaoh`. Links are either columns `sentence source target [S|P]`, where
    no mark means sure; or one line per sentence, `0-0 1p2`, with `-` for sure and `p` for possible.

    Words are separated by spaces; for languages written without spaces see `_words`. A negative word, or 0 if words are
    counted from 1, means no partner: such links are skipped and counted in the log. In columns, sentences without any
    link count as not annotated and are left out; their number is logged.

    Args:
      directory: of one set or of several.
      field: the setting, for error messages.
      word_base: whether words are counted from 0 or 1. By default from 0 if a word has the number 0, from 1 if one has
        the number of words in its sentence; if neither, 1 in columns and 0 in lines, as is common, with a warning.
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
    if not columns:
        sentence_base = 0  # line i is sentence i
    elif sentence_base is None:
        sentence_base = _guess_base("sentence", [(link.sentence, count) for link in links], 1, where)
    for link in links:
        if not 0 <= link.sentence - sentence_base < count:
            raise _outside("sentence", link.sentence, sentence_base, count, f"{where}:{link.line}", "there are")
    if word_base is None:
        ends = [(link.sentence - sentence_base, (link.source, link.target)) for link in links]
        numbers = [(end, len(words[i])) for i, pair in ends for end, words in zip(pair, sides, strict=True)]
        word_base = _guess_base("word", numbers, 1 if columns else 0, where)
    logging.info("%s: words from %d, sentences from %d", where, word_base, sentence_base)

    sure: list[Links] = [set() for _ in range(count)]
    possible: list[Links] = [set() for _ in range(count)]
    without = 0
    for link in links:
        sentence = link.sentence - sentence_base
        for number, words, side in zip((link.source, link.target), sides, paths, strict=True):
            if number - word_base >= len(words[sentence]):
                has = f"{side.name}:{sentence + 1} has"
                raise _outside("word", number, word_base, len(words[sentence]), f"{where}:{link.line}", has)
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


def _guess_base(what: str, numbers: Sequence[tuple[int, int]], custom: int, where: str) -> int:
    """Whether numbers, given with how many there are, count from 0 or 1; `custom`, with a warning, if both fit."""
    if any(number == 0 for number, _ in numbers):
        return 0
    if any(number == count for number, count in numbers):
        return 1
    logging.warning(
        "%s: no %s has the number 0, and none that of the last: taken as counted from %d; if that is wrong, set "
        "config.%s_base=%d", where, what, custom, what, 1 - custom,
    )  # fmt: skip
    return custom


def _outside(what: str, number: int, base: int, count: int, where: str, has: str) -> UserError:
    """The error for a number that does not exist; it suggests the other base if the number then would."""
    other = f", or set config.{what}_base={1 - base}" if 0 <= number - (1 - base) < count else ""
    message = f"{where}: {what} {number}, counted from {base}, but {has} {count}; take the texts of the same release"
    return UserError(message + other)


def _words(lines: list[str], language: str, path: Path, field: str) -> list[list[str]]:
    """The words of every line as gold links count them: separated by spaces, or single characters.

    Characters are the words of a language written without spaces, unless the file is segmented into words, which no
    single line shows: it may be one word, and raw text has spaces, too, around foreign names and, in Thai, between
    phrases. A segmented file has a space for every 2 to 5 characters, raw Chinese one for 60 and more, raw Thai one for
    25 to 40. So more than 10 characters for each space in the whole file mean that it is raw. Vowel signs, tone marks
    and the like belong to the character before them.
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
                raise UserError(f"{where}:{number}: {part!r} is no link like 0-0 (sure) or 0p0 (possible)")
            yield _Link(number, number - 1, int(match[1]), int(match[3]), match[2] == "-")


def _only(directory: Path, field: str, *names: str) -> Path:
    found = sorted({path for name in names for path in directory.glob(name) if path.is_file()})
    if len(found) != 1:
        have = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{field}: {directory}: needs one file {' or '.join(names)}, there is {have}; give {FORM}")
    return found[0]


def align_softmax(source: np.ndarray, target: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """[M, N] bool: pairs of pieces whose probability is above the threshold in both directions.

    Args:
      source: [M, D] states; target: [N, D].
      threshold: on the softmax of the unscaled products, over the target for each source piece and vice versa.
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
    """[M, N] bool: the pairs of pieces that are each other's nearest by cosine; only the first of equally near ones."""
    cosine = unit(source) @ unit(target).T
    both = np.zeros(cosine.shape, bool)
    if cosine.size:
        M = np.arange(len(cosine))
        nearest = cosine.argmax(1)
        both[M, nearest] = cosine.argmax(0)[nearest] == M
    return both


def join_words(aligned: np.ndarray, source_word: Sequence[int], target_word: Sequence[int]) -> Links:
    """The links between words, from aligned pieces [M, N] bool and the word of each piece, [M] and [N]."""
    return {(source_word[i], target_word[j]) for i, j in zip(*map(np.ndarray.tolist, aligned.nonzero()), strict=True)}


def counts(found: Links, sure: Links, possible: Links) -> dict[str, tuple[int, int]]:
    """Metric -> (numerator, denominator) of one sentence pair; for several pairs divide the sums."""
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
    threshold: float = THRESHOLD,
    task: str = "word_alignment",
) -> list[Score]:
    """Alignment error rate, precision and recall in percent, for each gold set and layer, and their means.

    The direction is the name of the set, `de-en`, and `all` for the means. The pooling is `tokens`, or `tokens_argmax`
    for that method. `count` is the number of sentence pairs.

    Args:
      embedder: of the model. Pieces beyond its max_length stay unaligned; the log counts such sentences.
      params: the encoder's parameters.
      gold_sets: see `read_gold`.
      layers: any number, from 0, the embeddings' output; one forward pass serves all.
      method: "softmax" (awesome-align) or "argmax" (SimAlign).
      threshold: of the softmax.
      task: the task's name in the scores.

    Raises:
      UserError: an unknown method, a layer that the encoder does not have.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r}: choose from {', '.join(METHODS)}")
    layers = list(dict.fromkeys(layers))
    if not layers:
        return []

    def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return align_softmax(source, target, threshold) if method == "softmax" else align_argmax(source, target)

    scores: list[Score] = []
    for pair, gold in gold_sets.items():
        found = _links(embedder, params, gold, layers, align, f"{task}, {pair}")
        for layer in layers:
            rows = [counts(*links) for links in zip(found[layer], gold.sure, gold.possible, strict=True)]
            for metric in rows[0]:
                top, bottom = np.array([row[metric] for row in rows], np.float64).T
                group, pooling = (top, bottom), METHODS[method]
                scores.append(Score(task, language_of(pair), pair, layer, pooling, metric, (group,), len(rows)))
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
    sides = [_pieces(embedder, side) for side in (gold.source, gold.target)]
    found: dict[int, list[Links]] = {layer: [set() for _ in gold.source] for layer in layers}
    truncated = 0
    for begin in range(0, len(gold.source), PAIRS_AT_ONCE):
        pairs = list(zip(*(side[begin : begin + PAIRS_AT_ONCE] for side in sides), strict=True))
        sequences = [[x for x, _ in pieces] for pair in pairs for pieces in pair]
        states = dict(embedder.token_states(params, sequences, layers))  # of sequence number: {layer: [pieces, D]}
        for i, pair in enumerate(pairs):
            source, target = states[2 * i], states[2 * i + 1]
            source_word, target_word = ([word for _, word in pieces] for pieces in pair)
            truncated += len(source[layers[0]]) < len(source_word)
            truncated += len(target[layers[0]]) < len(target_word)
            for layer in layers:
                links = join_words(align(source[layer], target[layer]), source_word, target_word)
                found[layer][begin + i] = links
    if truncated:
        message = "%s: %d sentences have more than %d pieces; the rest is unaligned"
        logging.warning(message, name, truncated, embedder.max_length - 2)
    return found


def _pieces(embedder: Embedder, sentences: Sequence[Sequence[str]]) -> list[list[tuple[int, int]]]:
    """(id, index of its word) of every piece of every sentence; each word is tokenised separately."""
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    ids = dict(zip(words, embedder.tokenizer.encode(words), strict=True))
    return [[(x, i) for i, word in enumerate(sentence) for x in ids[word]] for sentence in sentences]
