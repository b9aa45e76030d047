"""Lexicon induction by hand, against scikit-learn and the full formula, and on a real model."""

import numpy as np
import pytest

from ppa_jax.data.dictionaries import Dictionary, read_dictionaries
from ppa_jax.evaluation.lexicon import evaluate_lexicon, input_embeddings
from ppa_jax.evaluation.neighbours import knn, nearest


def hubness(X, Y, k=10, block=4096):
    """The r of CSLS for both sides: a vector's mean cosine with its k nearest of the other side."""
    return [found.cosines.mean(1) for found in knn(X, Y, k, block=block)]


def plane(*angles):
    return np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])


def test_csls_by_hand_takes_the_hub_out():
    queries, candidates = plane(0, 20), plane(10, -15, 35)
    assert nearest(queries, candidates).tolist() == [0, 0]  # the hub between them is nearest to both
    # k=2, all queries: r = (cos 10, (cos 15 + cos 35) / 2 twice); 2 cos 10 - r = 0.98 loses to 2 cos 15 - r = 1.04.
    of_queries, of_candidates = hubness(queries, candidates, k=2)
    far = (np.cos(np.radians(15)) + np.cos(np.radians(35))) / 2
    assert of_candidates == pytest.approx([np.cos(np.radians(10)), far, far], abs=1e-6)
    two_nearest = (np.cos(np.radians(10)) + np.cos(np.radians(15))) / 2
    assert of_queries == pytest.approx([two_nearest, two_nearest], abs=1e-6)
    assert nearest(queries, candidates, of_candidates / 2).tolist() == [1, 2]


@pytest.mark.parametrize("block", [3, 64, 4096])
def test_agrees_with_scikit_learn_and_the_formula(block):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(90, 12)) + 1, (rng.normal(size=(130, 12)) + 1) * rng.uniform(0.1, 9, (130, 1))
    search = {k: neighbors.NearestNeighbors(n_neighbors=k, metric="cosine") for k in (1, 10)}
    assert np.array_equal(nearest(X, Y, block=block), search[1].fit(Y).kneighbors(X, return_distance=False)[:, 0])
    of_x = 1 - search[10].fit(Y).kneighbors(X)[0].mean(1)
    of_y = 1 - search[10].fit(X).kneighbors(Y)[0].mean(1)
    got = hubness(X, Y, block=block)
    assert got[0] == pytest.approx(of_x, abs=1e-5) and got[1] == pytest.approx(of_y, abs=1e-5)
    cosine = (X / np.linalg.norm(X, axis=1)[:, None]) @ (Y / np.linalg.norm(Y, axis=1)[:, None]).T
    csls = 2 * cosine - of_x[:, None] - of_y
    assert (csls.argmax(1) != cosine.argmax(1)).any()
    assert np.array_equal(nearest(X, Y, got[1] / 2, block=block), csls.argmax(1))


def test_fewer_vectors_than_neighbours():
    of_x, of_y = hubness(plane(0, 90), plane(0, 60, 90), k=10)
    assert of_x == pytest.approx([0.5, (1 + np.sqrt(0.75)) / 3], abs=1e-6)
    assert of_y == pytest.approx([0.5, (0.5 + np.sqrt(0.75)) / 2, 0.5], abs=1e-6)


class Fixed:
    """A fake embedder that looks vectors up; the tokens of a word are its letters."""

    def __init__(self, table):
        self.table, self.tokenizer = table, self

    def encode(self, words):
        return [[ord(letter) - ord("a") for letter in word] for word in words]

    def embed(self, params, sentences, requests):
        return {request: np.array([self.table[text] for text in sentences], np.float32) for request in requests}


def tree(table):
    return {"embeddings": {"word_embeddings": {"embedding": np.asarray(table, np.float32)}}}


def test_a_word_is_the_mean_of_its_pieces():
    got = input_embeddings(Fixed({}), tree([[1, 0], [0, 4], [9, 9]]), ["a", "ab", "", "bbb", "ca"])
    assert got.tolist() == [[1, 0], [0.5, 2], [0, 0], [0, 4], [5, 4.5]]


def test_scores_of_both_directions_by_hand():
    dictionary = Dictionary("en", "de", {"a": ["x"], "b": ["y", "b"], "c": ["x", "z"]})
    turned = {"x": ["a", "c"], "y": ["b"], "b": ["b"], "z": ["c"]}
    assert dictionary.reversed() == Dictionary("de", "en", turned, ("x", "y", "b", "z"))
    # Turned around the words come as a, c, b: an index into one order must not be read in the other.
    assert dictionary.reversed().candidates() == ["a", "c", "b"]
    angle = {"a": 0, "b": 50, "c": 88, "x": 10, "y": 20, "z": 100}
    embedder = Fixed({word: plane(angle[word])[0] for word in angle})
    params = tree(np.tile([1.0, 0.0], (26, 1)))
    scores = evaluate_lexicon(embedder, params, [dictionary], [(4, "mean")])
    cosine = {
        (s.language, s.direction, s.metric): (round(s.value, 4), s.count)
        for s in scores
        if s.layer == 4 and "cosine" in s.metric
    }
    # a(0) -> x(10), right; b(50) -> b, right, and spelled alike; c(88) -> z(100), right.
    # x(10) -> a, right; y(20) -> a, wrong; b -> b; z(100) -> c, right.
    assert cosine == {
        ("de", "en-de", "p_at_1_cosine"): (100, 3),
        ("de", "en-de", "p_at_1_cosine_other_spelling"): (100, 2),
        ("de", "de-en", "p_at_1_cosine"): (75, 4),
        ("de", "de-en", "p_at_1_cosine_other_spelling"): (66.6667, 3),
        ("mean", "en-xx", "p_at_1_cosine"): (100, 3),
        ("mean", "en-xx", "p_at_1_cosine_other_spelling"): (100, 2),
        ("mean", "xx-en", "p_at_1_cosine"): (75, 4),
        ("mean", "xx-en", "p_at_1_cosine_other_spelling"): (66.6667, 3),
    }
    hits = next(s for s in scores if (s.layer, s.direction, s.metric) == (4, "de-en", "p_at_1_cosine"))
    assert hits.groups[0][0].tolist() == [1, 0, 1, 1]
    # All input embeddings are equal here, so the first candidate is found: x for all, a for all.
    first = {s.direction: s.value for s in scores if s.pooling == "input_embeddings" and s.metric == "p_at_1_cosine"}
    assert first == pytest.approx({"en-de": 200 / 3, "de-en": 25, "en-xx": 200 / 3, "xx-en": 25})
    assert {s.layer for s in scores if s.pooling == "input_embeddings"} == {None}
    assert {s.metric.removesuffix("_other_spelling") for s in scores} == {"p_at_1_cosine", "p_at_1_csls"}


def test_csls_finds_what_the_hub_hides():
    # The case above; c lies opposite the hub m, and finds no translation either way.
    angle = {"a": 0, "b": 20, "c": -170, "l": -15, "m": 10, "r": 35}
    embedder = Fixed({word: plane(angle[word])[0] for word in angle})
    dictionary = Dictionary("en", "de", {"a": ["l"], "b": ["r"], "c": ["m"]})
    scores = evaluate_lexicon(embedder, tree(np.eye(26)), [dictionary], [(1, "cls")], k=2)
    hits = {s.metric: s.groups[0][0].tolist() for s in scores if (s.layer, s.direction) == (1, "en-de")}
    assert (hits["p_at_1_cosine"], hits["p_at_1_csls"]) == ([0, 0, 0], [1, 1, 0])


def test_a_dictionary_of_the_other_direction_is_not_derived():
    given = [Dictionary("en", "de", {"a": ["x"], "b": ["y"]}), Dictionary("de", "en", {"x": ["a"]})]
    scores = evaluate_lexicon(Fixed({}), tree(np.eye(26)), given)
    counts = {s.direction: s.count for s in scores if s.metric == "p_at_1_cosine" and s.language == "de"}
    assert counts == {"en-de": 2, "de-en": 1}


@pytest.mark.shared_data
def test_a_real_dictionary_and_model(shared):
    from ppa_jax.data.tokenizer import load_tokenizer
    from ppa_jax.evaluation.embed import Embedder
    from ppa_jax.interop import huggingface

    (whole,) = read_dictionaries(shared / "data/dictionaries/en-ar.tsv")
    assert (len(whole.entries), len(whole.candidates()), len(whole.test_words())) == (22305, 26953, 1500)
    model = shared / "models/minimbert"
    pretrained = huggingface.read(model)
    embedder = Embedder(pretrained.config, load_tokenizer(model), max_length=32)
    (german,) = read_dictionaries(shared / "data/dictionaries/en-de.tsv", max_words=300)
    scores = evaluate_lexicon(embedder, pretrained.params["encoder"], [german], [(4, "mean_without_special")])
    value = {(s.layer, s.metric): s for s in scores if s.direction == "en-de"}
    alike = np.array([word in german.entries[word] for word in german.test_words()])
    assert 10 < alike.sum() < 290
    for layer in (None, 4):  # a word that is its own translation has that translation's vector
        assert value[layer, "p_at_1_cosine"].groups[0][0][alike].all()
        assert value[layer, "p_at_1_cosine_other_spelling"].value < value[layer, "p_at_1_cosine"].value
