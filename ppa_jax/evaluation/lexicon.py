"""Bilingual lexicon induction: is the nearest word of the other language a translation?

Precision at 1 (P@1) over the test words of a MUSE dictionary, by cosine and by cross-domain similarity local scaling
(CSLS; Conneau et al. 2018, section 2.3). CSLS subtracts from every candidate the mean similarity of its k = 10 nearest
words of the query language, so that hubs no longer win.

The protocol, which every number depends on:
- Queries: source words 5,000 to 6,500 in order of first appearance, as MUSE cuts its dictionaries. A file with fewer
  words contributes its last 1,500, or all.
- Candidates: all distinct target words of the file. (MUSE takes the 200,000 most frequent words of monolingual
  embeddings; an encoder comes without such a list.) The neighbours in CSLS are all distinct source words.
- Any of the word's targets is a hit. The other direction reverses the same file, unless a file of that direction is
  given: its queries are the targets of the test words that translate no earlier word, so that a model trained on the
  first 5,000 words has seen none of them.
- Words are not changed: MUSE's are in lower case, which a cased model may have seen less often.
- Many pairs are spelled alike (names), which is trivial with shared word pieces. As in MUSE, `p_at_1_cosine` and
  `p_at_1_csls` include them. `p_at_1_cosine_other_spelling` and `p_at_1_csls_other_spelling` leave out queries that
  have themselves as a target; the candidates are the same.

Axes: N queries or words, M candidates, D width, k neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppa_jax.data.dictionaries import Dictionary
from ppa_jax.evaluation.embed import Embedder, Request
from ppa_jax.evaluation.neighbours import BLOCK, knn, nearest
from ppa_jax.evaluation.retrieval import PIVOT, any_language, means
from ppa_jax.evaluation.scores import Score, per_item

INPUT_EMBEDDINGS = "input_embeddings"  # the pooling of scores without a layer: the mean of a word's pieces in the table
NEIGHBOURS = 10
_CHUNK = 16_384  # words tokenised together


def hubness(
    sources: np.ndarray, targets: np.ndarray, k: int = NEIGHBOURS, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The r of CSLS for both sides: a vector's mean cosine with its k nearest of the other side, or with all of fewer.

    Args:
      sources: [N, D] of any length, not empty.
      targets: [M, D], likewise.
      k: neighbours.
      block: as in `knn`.

    Returns:
      [N] for the sources, [M] for the targets.
    """
    forward, backward = knn(sources, targets, k, block=block)
    return forward.cosines.mean(1), backward.cosines.mean(1)


def input_embeddings(embedder: Embedder, params: Any, words: Sequence[str]) -> np.ndarray:
    """Mean of the input embeddings of each word's pieces, [N, D] float32; zeros for a word without pieces."""
    table_VxD = np.asarray(params["embeddings"]["word_embeddings"]["embedding"], np.float32)
    vectors = np.zeros((len(words), table_VxD.shape[1]), np.float32)
    for begin in range(0, len(words), _CHUNK):
        pieces = embedder.tokenizer.encode(list(words[begin : begin + _CHUNK]))
        lengths = np.array([len(ids) for ids in pieces])
        chunk = vectors[begin : begin + len(pieces)]
        for i in range(lengths.max()):  # piece i of all words at once
            has = np.flatnonzero(lengths > i)
            chunk[has] += table_VxD[[pieces[w][i] for w in has]]
        chunk /= np.maximum(lengths, 1)[:, None]
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
      embedder: of the model.
      params: the encoder's parameters.
      dictionaries: see data/dictionaries.py.
      requests: (layer, pooling) of contextual vectors, with each word as a sentence of its own. The input embeddings
        are always measured: layer None, pooling `input_embeddings`. (Layer 0 adds positions and LayerNorm to them.)
      task: the task's name in the scores.
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
        index = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*words.values())))}
        every = list(index)
        contextual = embedder.embed(params, every, requests) if requests else {}
        for layer, pooling in ((None, INPUT_EMBEDDINGS), *list(contextual)):
            vectors = input_embeddings(embedder, params, every) if layer is None else contextual.pop((layer, pooling))
            space = {language: vectors[[index[word] for word in words[language]]] for language in words}
            hubs = dict(zip(words, hubness(space[dictionary.source], space[dictionary.target], k), strict=True))
            for direction in directions:
                for metric, hits in _hits(direction, words, space, hubs).items():
                    source, target, *_ = direction
                    language = target if source == PIVOT else source
                    group, name = per_item(hits), f"{source}-{target}"
                    scores.append(Score(task, language, name, layer, pooling, metric, (group,), len(hits)))
    return scores + means(scores, any_language)


def _hits(
    dictionary: Dictionary,
    words: dict[str, list[str]],
    vectors: dict[str, np.ndarray],
    hubs: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Metric -> which queries are right, [N] bool; `vectors` and `hubs` belong to the `words` of each language."""
    source, target, entries, _ = dictionary
    index = {word: i for i, word in enumerate(words[source])}
    tested = dictionary.test_words()
    queries = vectors[source][[index[word] for word in tested]]
    chosen = {
        "p_at_1_cosine": nearest(queries, vectors[target]),
        "p_at_1_csls": nearest(queries, vectors[target], hubs[target] / 2),  # CSLS is 2 cos - hubness
    }
    other = np.array([word not in entries[word] for word in tested])
    found = {}
    for metric, targets in chosen.items():
        hits = np.array([words[target][i] in entries[word] for word, i in zip(tested, targets, strict=True)])
        found[metric] = hits
        if other.any():
            found[f"{metric}_other_spelling"] = hits[other]
    return found
