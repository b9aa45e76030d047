"""Word alignment: do the states of words that translate each other find one another?

As awesome-align extracts it (Dou & Neubig 2021, section 2.2): the products of all piece states of two sentences, a
softmax over each side, and the pairs of pieces above a threshold in both. Or as SimAlign does (Jalili Sabet et al.
2020, "Argmax"): the pairs that are each other's nearest by cosine. Words are aligned when any of their pieces are.

The alignment error rate (Och & Ney 2003) of links A against the sure links S and the possible ones P, of which S is a
part: 1 - (|A and S| + |A and P|) / (|A| + |S|), lower is better; precision |A and P| / |A|; recall |A and S| / |S|.

Axes: M source pieces or words, N target ones, D width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.data.text_files import read_lines
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.evaluation.neighbours import unit
from ppa_jax.evaluation.retrieval import language_of, means
from ppa_jax.evaluation.scores import Score

METHODS = {"softmax": "tokens", "argmax": "tokens_argmax"}  # the pooling under which their scores stand
THRESHOLD = 1e-3
UNSPACED = ("zh", "ja", "th", "lo", "km", "my")  # written without spaces between words
LONGEST_WORDS = 10  # characters, on average over a file; see `_words`
TOGETHER = 128  # sentence pairs whose states are held at once
FORM = "test.xx and test.yy (words with spaces between) and alignv2.txt, or one of align*, *.align, *.pharaoh"
_PAIR = re.compile(r"([a-z]{2,3})-([a-z]{2,3})")
_LINK = re.compile(r"(\d+)([-p])(\d+)")
_AM = "\u0e33\u0eb3"  # Thai and Lao vowels that Unicode calls letters but joins to the one before (UAX 29)

Links = set[tuple[int, int]]  # (source word, target word), from 0


class GoldSet(NamedTuple):
    """Sentence pairs with their gold links."""

    source: list[list[str]]  # words
    target: list[list[str]]
    sure: list[Links]
    possible: list[Links]  # the sure ones included


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

    Each holds one file of sentences for either language (`test.de`, `test.en`) and the links: `alignv2.txt`, or the
    only file named `align*`, `*.align` or `*.pharaoh`. Either columns `sentence source target [S|P]`, sure without a
    mark; or one line a sentence, `0-0 1p2`, with `-` for sure and `p` for possible.

    Args:
      directory: see above.
      field: names the setting in errors.
      word_base: whether words count from 0 or 1. By default: 0 if a link has a 0; else 1 if a link has the number of
        words of its sentence; else, with a warning, 1 in columns and 0 in lines, which are the customs.
      sentence_base: likewise for the sentences of columns.

    Words have spaces between them; what counts as a word where a language is written without, see `_words`.

    A negative word, or 0 where the base is 1, stands for no partner: such links are skipped and counted in the log.
    In columns, sentences without any link were not annotated and are left out, with their count in the log.

    Raises:
      UserError: no such directory, none or several files for a side, sides of unequal length, a link that points
        outside its sentence, a line of neither form, text that is not UTF-8.
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
    source, target = (
        _words(read_lines(path, field=field), code, path, field) for path, code in zip(paths, codes, strict=True)
    )
    if len(source) != len(target):
        raise UserError(
            f"{field}: {paths[0]} has {len(source)} lines and {paths[1].name} has {len(target)}; "
            "line i of one must translate line i of the other"
        )
    path = directory / "alignv2.txt"
    path = path if path.is_file() else _only(directory, field, "align*", "*.align", "*.pharaoh")
    lines = read_lines(path, field=field)
    columns = not any(_LINK.fullmatch(part) for line in lines for part in line.split()[:1])
    if not columns and len(lines) != len(source):
        raise UserError(f"{field}: {path} has {len(lines)} lines and {paths[0].name} has {len(source)}; one each")
    links = _columns(lines, path, field) if columns else _pharaoh(lines, path, field)
    if not columns:
        sentence_base = 0  # line i is sentence i
    elif sentence_base is None:
        sentence_base = _base("sentence", [(link.sentence, len(source)) for link in links], 1, path, field)
    for link in links:
        if not 0 <= link.sentence - sentence_base < len(source):
            raise UserError(
                f"{field}: {path}:{link.line}: sentence {link.sentence}, counted from {sentence_base}, but there are "
                f"{len(source)}; take the texts of the same release"
                + _other("sentence", link.sentence, sentence_base, len(source))
            )
    if word_base is None:
        counted = [(link.source, len(source[link.sentence - sentence_base])) for link in links]
        counted += [(link.target, len(target[link.sentence - sentence_base])) for link in links]
        word_base = _base("word", counted, 1 if columns else 0, path, field)
    logging.info("%s: %s: words from %d, sentences from %d", field, path, word_base, sentence_base)

    sure: list[Links] = [set() for _ in source]
    possible: list[Links] = [set() for _ in source]
    without = 0
    for link in links:
        sentence, i, j = link.sentence - sentence_base, link.source - word_base, link.target - word_base
        for word, words, side in ((i, source[sentence], paths[0]), (j, target[sentence], paths[1])):
            if word >= len(words):
                number = word + word_base
                raise UserError(
                    f"{field}: {path}:{link.line}: word {number}, counted from {word_base}, but "
                    f"{side.name}:{sentence + 1} has {len(words)}; take the texts of the same release"
                    + _other("word", number, word_base, len(words))
                )
        if i < 0 or j < 0:
            without += 1
            continue
        possible[sentence].add((i, j))
        if link.sure:
            sure[sentence].add((i, j))
    if without:
        logging.warning("%s: %s: %d links to no word were skipped", field, path, without)
    kept = sorted({link.sentence - sentence_base for link in links}) if columns else range(len(source))
    if len(kept) < len(source):
        logging.warning("%s: %s says nothing of %d sentences; left out", field, path, len(source) - len(kept))
    if not any(possible):
        raise UserError(f"{field}: {path}: no link in it")
    return GoldSet(
        [source[i] for i in kept], [target[i] for i in kept], [sure[i] for i in kept], [possible[i] for i in kept]
    )


def _base(what: str, numbers: Sequence[tuple[int, int]], custom: int, path: Path, field: str) -> int:
    """Whether they count from 0 or 1, by pairs (number, how many there are); `custom` where that cannot be told."""
    if any(number == 0 for number, _ in numbers):
        return 0
    if any(number == count for number, count in numbers):
        return 1
    logging.warning(
        "%s: %s: no %s has the number 0, and none that of the last: taken as counted from %d; if that is wrong, set "
        "config.%s_base=%d", field, path, what, custom, what, 1 - custom,
    )  # fmt: skip
    return custom


def _other(what: str, number: int, base: int, count: int) -> str:
    """The advice to count from the other base, if the number would then be one of `count`."""
    return f", or set config.{what}_base={1 - base}" if 0 <= number - (1 - base) < count else ""


def _words(lines: list[str], language: str, path: Path, field: str) -> list[list[str]]:
    """The words of every line that gold links count: what stands between spaces, or single characters.

    Characters are the words of a language written without spaces, unless the file was cut into words, which no single
    line shows: one may be one word, and raw text has spaces, too, around foreign names and, in Thai, between phrases.
    A file cut into words has a space for every 2 to 5 characters, raw Chinese one for 60 and more, raw Thai one for 25
    to 40. So more than 10 for each space in the whole file mean that it is raw. Vowel signs, tone marks and the like
    belong to the character before them.
    """
    words = [[word for word in line.split(" ") if word] for line in lines]
    characters = sum(len(word) for line in words for word in line)
    spaces = sum(len(line) - 1 for line in words if line)
    if language not in UNSPACED or characters <= LONGEST_WORDS * spaces:
        return words
    logging.info("%s: %s: not cut into words, so characters are the words", field, path)
    return [[character for word in line for character in _characters(word)] for line in words]


def _characters(text: str) -> list[str]:
    found: list[str] = []
    for character in text:
        if found and (unicodedata.category(character).startswith("M") or character in _AM):
            found[-1] += character
        else:
            found.append(character)
    return found


def _columns(lines: list[str], path: Path, field: str) -> list[_Link]:
    links = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        try:
            sentence, source, target = map(int, parts[:3])
            sure = {"S": True, "P": False}[parts[3].upper()] if len(parts) > 3 else True
        except (ValueError, KeyError):
            raise UserError(
                f"{field}: {path}:{number}: neither `sentence source target [S|P]` nor links like 0-0 1p2; "
                "correct the line"
            ) from None
        links.append(_Link(number, sentence, source, target, sure))
    return links


def _pharaoh(lines: list[str], path: Path, field: str) -> list[_Link]:
    links = []
    for number, line in enumerate(lines, 1):
        for part in line.split():
            match = _LINK.fullmatch(part)
            if not match:
                raise UserError(f"{field}: {path}:{number}: {part!r} is no link like 0-0 (sure) or 0p0 (possible)")
            links.append(_Link(number, number - 1, int(match[1]), int(match[3]), match[2] == "-"))
    return links


def _only(directory: Path, field: str, *names: str) -> Path:
    found = sorted({path for name in names for path in directory.glob(name) if path.is_file()})
    if len(found) != 1:
        have = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{field}: {directory}: one file {' or '.join(names)} is needed, there is {have}; give {FORM}")
    return found[0]


def align_softmax(source: np.ndarray, target: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """[M, N] bool: the pairs of pieces whose probability is above the threshold in both directions.

    Args:
      source: [M, D] states; target: [N, D].
      threshold: on the softmax of the products, unscaled, over the target for each source piece and the reverse.
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
    """[M, N] bool: the pairs of pieces that are each other's nearest by cosine; of equally near ones, one."""
    cosine = unit(source) @ unit(target).T
    both = np.zeros(cosine.shape, bool)
    if cosine.size:
        M = np.arange(len(cosine))
        nearest = cosine.argmax(1)
        both[M, nearest] = cosine.argmax(0)[nearest] == M
    return both


def join_words(aligned: np.ndarray, source_word: Sequence[int], target_word: Sequence[int]) -> Links:
    """The links between words, from pieces [M, N] bool and the word to which each piece belongs, [M] and [N]."""
    return {(source_word[i], target_word[j]) for i, j in zip(*map(np.ndarray.tolist, aligned.nonzero()), strict=True)}


def counts(found: Links, sure: Links, possible: Links) -> dict[str, tuple[int, int]]:
    """Metric -> (numerator, denominator) of one sentence pair; over several, the sums are divided."""
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

    The direction is the name of the set, `de-en`; that of the means is `all`. The pooling is `tokens`, or
    `tokens_argmax` for that method. `count` is the number of sentence pairs.

    Args:
      embedder: made for the model. Pieces beyond its max_length stay unaligned; the log counts such sentences.
      params: the encoder's parameters.
      gold_sets: see `read_gold`.
      layers: any number, from 0, the embeddings' output; one forward pass serves them all.
      method: "softmax" (awesome-align) or "argmax" (SimAlign).
      threshold: of the softmax.
      task: the name under which the scores stand.

    Raises:
      UserError: an unknown method, a layer that the encoder lacks.
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
        language = language_of(pair)
        for layer in layers:
            rows = [counts(*links) for links in zip(found[layer], gold.sure, gold.possible, strict=True)]
            for metric in rows[0]:
                top, bottom = np.array([row[metric] for row in rows], np.float64).T
                group = (top, bottom)
                scores.append(Score(task, language, pair, layer, METHODS[method], metric, (group,), len(rows)))
    return scores + means(scores, lambda score: "all")


def _links(
    embedder: Embedder,
    params: Any,
    gold: GoldSet,
    layers: Sequence[int],
    align: Callable[[np.ndarray, np.ndarray], np.ndarray],
    shown: str,
) -> dict[int, list[Links]]:
    """The links found at each layer, by sentence pair."""
    sides = [_pieces(embedder, side) for side in (gold.source, gold.target)]
    found: dict[int, list[Links]] = {layer: [set() for _ in gold.source] for layer in layers}
    cut = 0
    for begin in range(0, len(gold.source), TOGETHER):
        end = min(begin + TOGETHER, len(gold.source))
        sequences = [pieces for pair in zip(*(side[begin:end] for side in sides), strict=True) for pieces in pair]
        waiting: dict[int, dict[int, np.ndarray]] = {}
        for number, states in embedder.token_states(params, [[x for x, _ in pieces] for pieces in sequences], layers):
            cut += any(len(state) < len(sequences[number]) for state in states.values())
            waiting[number] = states
            if number ^ 1 not in waiting:
                continue
            first = number & ~1
            source, target = waiting.pop(first), waiting.pop(first + 1)
            source_word, target_word = ([word for _, word in sequences[first + side]] for side in (0, 1))
            for layer in layers:
                links = join_words(align(source[layer], target[layer]), source_word, target_word)
                found[layer][begin + first // 2] = links
    if cut:
        logging.warning(
            "%s: %d sentences have more than %d pieces; the rest is unaligned", shown, cut, embedder.max_length - 2
        )
    return found


def _pieces(embedder: Embedder, sentences: Iterable[Sequence[str]]) -> list[list[tuple[int, int]]]:
    """(id, number of its word) of every piece of every sentence; each word is tokenised by itself."""
    sentences = list(sentences)
    words = list({word: None for sentence in sentences for word in sentence})
    ids = dict(zip(words, embedder.tokenizer.encode(words), strict=True))
    return [[(x, i) for i, word in enumerate(sentence) for x in ids[word]] for sentence in sentences]
