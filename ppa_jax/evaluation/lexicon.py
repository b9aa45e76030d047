"""Bilingual lexicon induction: is the nearest word of the other language a translation?

Precision at 1 (P@1) over the test words of a MUSE dictionary, by cosine and by cross-domain similarity local scaling
(CSLS; Conneau et al. 2018, section 2.3). CSLS subtracts from every candidate the mean similarity of its k = 10 nearest
words of the query language, so that hubs no longer win.

The protocol, which every number depends on:
- Queries: source words 5,000 to 6,500 in order of first appearance, as in MUSE's test dictionaries. Of a file with
  fewer words, the last 1,500 or all.
- Candidates: all distinct target words of the file. (MUSE takes the 200,000 most frequent words of monolingual
  embeddings, but an encoder has no such list.) The neighbours in CSLS are all distinct source words.
- Any target of the word is a hit. The other direction reverses the same file, unless there is a file for it: its
  queries are those targets of the test words that do not translate an earlier word, so that a model trained on the
  first 5,000 words has seen none of them.
- Words are used as they are: MUSE's are in lower case, which a cased model may have seen less often.
- Many pairs (names) are spelled alike, which is trivial with shared subword tokens. As in MUSE, `p_at_1_cosine` and
  `p_at_1_csls` include them. `p_at_1_cosine_other_spelling` and `p_at_1_csls_other_spelling` leave out queries that
  have themselves as a target; the candidates are the same.

Axes: N queries or words, M candidates, D width, k neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ppa_jax.data.dictionaries import Dictionary
from ppa_jax.evaluation.embed import Embedder, Request
from ppa_jax.evaluation.neighbours import knn, nearest
from ppa_jax.evaluation.retrieval import PIVOT, any_language, means
from ppa_jax.evaluation.scores import Score, per_item

INPUT_EMBEDDINGS = "input_embeddings"  # the pooling of scores without a layer: the mean of a word's input embeddings
NEIGHBOURS = 10
_CHUNK = 16_384  # words tokenized together


def input_embeddings(embedder: Embedder, params: Any, words: Sequence[str]) -> np.ndarray:
    """The mean of the input embeddings of each word's tokens, [N, D] float32; zeros for a word without tokens."""
    table_VxD = np.asarray(params["embeddings"]["word_embeddings"]["embedding"], np.float32)
    vectors: list[np.ndarray] = [table_VxD[:0]]
    for begin in range(0, len(words), _CHUNK):
        tokens = embedder.tokenizer.encode(list(words[begin : begin + _CHUNK]))
        ids, ends = list(itertools.chain(*tokens)), np.cumsum([0, *map(len, tokens)])
        # Row w of this matrix has a 1 in the column of each of the word's tokens.
        of_word = sparse.csr_array((np.ones(len(ids), np.float32), ids, ends), shape=(len(tokens), len(table_VxD)))
        vectors.append((of_word @ table_VxD) / np.maximum(np.diff(ends), 1).astype(np.float32)[:, None])
    return np.concatenate(vectors)


def evaluate_lexicon(
    embedder: Embedder,
    params: Any,
    dictionaries: Sequence[Dictionary],
    requests: Sequence[Request] = (),
    *,
    task: str = "lexicon",
    k: int = NEIGHBOURS,
) -> list[Score]:
    """P@1 in percent for each dictionary and direction; the items are the source words.

    Memory: the vectors of all words of one file for each request, and the blocks of the search.

    Args:
      embedder: of the model.
      params: the encoder's parameters.
      dictionaries: see data/dictionaries.py.
      requests: (layer, pooling) of contextual vectors, where each word is a sentence of its own. The input embeddings
        are always measured: layer None, pooling `input_embeddings`. (Layer 0 adds positions and LayerNorm.)
      task: the task's name in the scores.
      k: neighbours in CSLS.

    Returns:
      Scores with the metrics `p_at_1_cosine`, `p_at_1_csls`, and both `..._other_spelling` (absent if every query has
      itself as a target); then their means over the languages, direction `en-xx` or `xx-en`.
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
            neighbours = knn(space[dictionary.source], space[dictionary.target], k)
            hubness = {language: found.cosines.mean(1) for language, found in zip(words, neighbours, strict=True)}
            for direction in directions:
                source, target, *_ = direction
                language, name = target if source == PIVOT else source, f"{source}-{target}"
                for metric, hits in _hits(direction, words, space, hubness[target]).items():
                    scores.append(Score(task, language, name, layer, pooling, metric, (per_item(hits),), len(hits)))
    return scores + means(scores, any_language)


def _hits(
    dictionary: Dictionary, words: dict[str, list[str]], vectors: dict[str, np.ndarray], hubness: np.ndarray
) -> dict[str, np.ndarray]:
    """Metric -> which queries are correct, [N] bool; `vectors` are of the `words`, `hubness` of the target words."""
    source, target, entries, _ = dictionary
    index = {word: i for i, word in enumerate(words[source])}
    tested = dictionary.test_words()
    queries = vectors[source][[index[word] for word in tested]]
    chosen = {
        "p_at_1_cosine": nearest(queries, vectors[target]),
        "p_at_1_csls": nearest(queries, vectors[target], hubness / 2),  # CSLS is 2 cos - hubness, of both words
    }
    other = np.array([word not in entries[word] for word in tested])
    found = {}
    for metric, targets in chosen.items():
        hits = np.array([words[target][i] in entries[word] for word, i in zip(tested, targets, strict=True)])
        found[metric] = hits
        if other.any():
            found[f"{metric}_other_spelling"] = hits[other]
    return found
