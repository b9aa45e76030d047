"""Bilingual lexicon induction: is the nearest word of the other language a translation?

Precision at 1 (P@1) over the test words of a MUSE dictionary, by cosine and by cross-domain similarity local scaling
(CSLS; Conneau et al. 2018, section 2.3), which takes from every candidate the mean similarity of its k = 10 nearest
words of the query language, so that hubs stop winning.

The protocol, which every number depends on:
- Queries: source words 5,000 to 6,500 in order of first appearance, as MUSE cuts its dictionaries. A file with fewer
  words gives its last 1,500, or all it has.
- Candidates: all distinct target words of the file. (MUSE takes the 200,000 most frequent words of monolingual
  embeddings; an encoder comes without such a list.) All distinct source words are the neighbours in CSLS.
- A hit is any of the word's targets. The other direction turns the same file around, unless a file of that direction is
  given: its queries are the targets of the test words that translate no earlier word, so that who trains on the first
  5,000 words has seen none of them.
- Words stay as they are given: MUSE's are in lower case, which a cased model may see less of.
- Many pairs are spelled alike (names); they are trivially right with shared word pieces. MUSE leaves them in, and so do
  `p_at_1_cosine` and `p_at_1_csls`. `p_at_1_cosine_other_spelling` and `p_at_1_csls_other_spelling` leave out the
  queries that have themselves as a target; the candidates are the same.

Axes: N queries or words, M candidates, D width, k neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ppa_jax.data.dictionaries import Dictionary
from ppa_jax.evaluation.embed import Embedder, Request
from ppa_jax.evaluation.neighbours import BLOCK, knn, nearest
from ppa_jax.evaluation.retrieval import PIVOT, means, way
from ppa_jax.evaluation.scores import Score, per_item

INPUT_EMBEDDINGS = (
    "input_embeddings"  # the pooling of scores without a layer: the mean of the word's pieces in the table
)
NEIGHBOURS = 10
_CHUNK = 16_384  # words tokenised together


def hubness(
    sources: np.ndarray, targets: np.ndarray, k: int = NEIGHBOURS, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The r of CSLS, for both sides in one pass: mean cosine of a vector to its k nearest of the other side, or to all.

    Args:
      sources: [N, D]; targets: [M, D]; any length, neither empty.

    Returns:
      [N] for the sources, [M] for the targets.
    """
    ahead, back = knn(sources, targets, k, block=block)
    return ahead.cosines.mean(1), back.cosines.mean(1)


def input_embeddings(embedder: Embedder, params: Any, words: Sequence[str]) -> np.ndarray:
    """Mean of the input embeddings of each word's pieces, [N, D] float32; zeros for a word without a piece."""
    table_VxD = np.asarray(params["embeddings"]["word_embeddings"]["embedding"], np.float32)
    vectors = np.zeros((len(words), table_VxD.shape[1]), np.float32)
    for begin in range(0, len(words), _CHUNK):
        pieces = embedder.tokenizer.encode(list(words[begin : begin + _CHUNK]))
        lengths = np.array([len(ids) for ids in pieces])
        here = vectors[begin : begin + len(pieces)]
        for i in range(lengths.max()):  # one piece of all words at a time: no copy for each word
            has = np.flatnonzero(lengths > i)
            here[has] += table_VxD[[pieces[w][i] for w in has]]
        here /= np.maximum(lengths, 1)[:, None]
    return vectors


def evaluate_lexicon(
    embedder: Embedder,
    params: Any,
    dictionaries: Sequence[Dictionary],
    requests: Sequence[Request] = (),
    *,
    task: str = "lexicon",
    k: int = NEIGHBOURS,
) -> list[Score]:
    """P@1 in percent for each dictionary, both directions, with an item for each source word.

    Memory: the vectors of all words of one file, for each of the requests, and the blocks of the search.

    Args:
      embedder: made for the model.
      params: the encoder's parameters.
      dictionaries: see data/dictionaries.py.
      requests: (layer, pooling) of contextual vectors: each word by itself is a sentence. The input embeddings are
        always measured: layer None, pooling `input_embeddings`. (Layer 0 adds positions and LayerNorm to them.)
      task: the name under which the scores stand.
      k: neighbours in CSLS.

    Returns:
      Scores with the metrics `p_at_1_cosine`, `p_at_1_csls`, and both `..._other_spelling` (absent where every query
      has itself as a target); then their means over the languages, direction `en-xx` or `xx-en`.
    """
    given = {(dictionary.source, dictionary.target) for dictionary in dictionaries}
    scores: list[Score] = []
    for dictionary in dictionaries:
        directions = [dictionary]
        if (dictionary.target, dictionary.source) not in given:
            directions.append(dictionary.reversed())
        words = {dictionary.source: list(dictionary.entries), dictionary.target: dictionary.candidates()}
        number = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*words.values())))}
        for layer, pooling, vectors in _representations(embedder, params, list(number), requests):
            space = {language: vectors[[number[word] for word in words[language]]] for language in words}
            hubs = dict(zip(words, hubness(space[dictionary.source], space[dictionary.target], k), strict=True))
            for direction in directions:
                scores += _scores(direction, words, space, hubs, (task, layer, pooling))
    return scores + means(scores, way)


def _representations(
    embedder: Embedder, params: Any, words: list[str], requests: Sequence[Request]
) -> Iterator[tuple[int | None, str, np.ndarray]]:
    yield None, INPUT_EMBEDDINGS, input_embeddings(embedder, params, words)
    if requests:
        vectors = embedder.embed(params, words, requests)
        for request in list(vectors):
            yield *request, vectors.pop(request)


def _scores(
    dictionary: Dictionary,
    words: dict[str, list[str]],
    space: dict[str, np.ndarray],
    hubs: dict[str, np.ndarray],
    names: tuple[str, int | None, str],
) -> list[Score]:
    """Scores of one direction; `space` and `hubs` have vectors and hubness of the `words` of each language."""
    task, layer, pooling = names
    source, target, entries, _ = dictionary
    language = target if source == PIVOT else source
    place = {word: i for i, word in enumerate(words[source])}
    tested = dictionary.test_words()
    queries = space[source][[place[word] for word in tested]]
    found = {
        "p_at_1_cosine": nearest(queries, space[target]),
        "p_at_1_csls": nearest(queries, space[target], hubs[target] / 2),  # CSLS is 2 cos - hubness
    }
    other = np.array([word not in entries[word] for word in tested])
    scores = []
    for metric, chosen in found.items():
        hits = np.array([words[target][i] in entries[word] for word, i in zip(tested, chosen, strict=True)])
        for name, counted in ((metric, hits), (f"{metric}_other_spelling", hits[other])):
            if len(counted):
                group = per_item(counted)
                direction = f"{source}-{target}"
                scores.append(Score(task, language, direction, layer, pooling, name, (group,), len(counted)))
    return scores
