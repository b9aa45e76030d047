"""CKA by hand, against its formulas and theory; n-way readers; bad input; real text and a real model."""

import logging
import math

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation.similarity import (
    MEASURES,
    cka_linear,
    cka_rbf,
    evaluate_similarity,
    read_parallel,
    retrieval,
)

CKA = [kind for kind in MEASURES if kind.startswith("cka")]


def test_linear_by_hand():
    # Of one dimension CKA is the squared correlation: (-1 0 1) with (-1 -1 2) gives 3^2 / (2 * 6).
    assert cka_linear(np.array([[-1.0], [0], [1]]), np.array([[0.0], [0], [3]])) == pytest.approx(0.75)


def test_rbf_by_hand():
    # X: three points equally far apart, H K H = (1 - e^-1/2) H. Y: two points in one place and one apart, where the
    # only distance but 0 is the median: H L H = 2 (1 - e^-1/2) v v' with v = (1 1 -2) / 3. So 4/3 / (sqrt 2 * 4/3).
    assert cka_rbf(np.eye(3), np.array([[0.0], [0], [7]])) == pytest.approx(math.sqrt(0.5))


def test_retrieval_by_hand():
    """Turned by 10 degrees every row is still nearest to its own; by 50 it is nearest to the next; CKA sees neither."""
    angles = np.arange(0, 360, 60.0)

    def points(angles):
        return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], 1)

    X = points(angles)
    assert retrieval(X, 3 * points(angles + 10)) == 1 and retrieval(X, points(angles + 50)) == 0
    assert cka_linear(X, points(angles + 50)) == pytest.approx(1)
    one_off = np.concatenate([X[:1], X[2:3], X[1:2], X[3:]])
    assert retrieval(X, one_off) == pytest.approx(4 / 6)


def explicit(X, Y, kernel, debiased):
    """HSIC with centring matrices (Gretton et al. 2005), or the unbiased one as Song et al. 2012 write it."""
    n = len(X)

    def hsic(K, L):
        if not debiased:
            H = np.eye(n) - np.ones((n, n)) / n
            return np.trace(K @ H @ L @ H) / (n - 1) ** 2
        K, L = K * (1 - np.eye(n)), L * (1 - np.eye(n))
        last = 2 * (K @ L).sum() / (n - 2)
        return (np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - last) / (n * (n - 3))

    K, L = kernel(X), kernel(Y)
    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


def rbf_kernel(X):
    distance = pytest.importorskip("scipy.spatial.distance")
    squares = distance.pdist(X, "sqeuclidean")
    return np.exp(-distance.squareform(squares) / (2 * np.median(squares)))


@pytest.mark.parametrize("kind", CKA)
def test_agrees_with_explicit_centring(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 6)) + 3
    Y = np.tanh((X - 3) @ rng.normal(size=(6, 9))) + 0.3 * rng.normal(size=(40, 9))
    kernel = rbf_kernel if "rbf" in kind else lambda X: X @ X.T
    expected = explicit(X, Y, kernel, "debiased" in kind)
    assert 0.1 < expected < 0.9
    assert MEASURES[kind](X, Y) == pytest.approx(expected, rel=1e-9)
    assert MEASURES[kind](Y, X) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", CKA)
def test_rotation_scale_and_shift_do_not_count(kind):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    cka = MEASURES[kind]
    assert cka(X, 7 * X @ rotation + 100) == pytest.approx(1)
    assert cka(X, 7 * Y @ rotation + 100) == pytest.approx(cka(X, Y))
    # float32 far from the origin, as hidden states are in some dimensions
    assert cka((X + 100).astype(np.float32), Y) == pytest.approx(cka(X, Y), abs=1e-4)
    assert cka(X, X @ np.diag([9, 1, 1, 1, 0.1])) < 0.95  # unlike CCA, which any invertible map leaves alone
    assert cka(X, X[::-1]) < 0.5  # the rows are paired


def test_independent_matrices_are_where_theory_says():
    rng = np.random.default_rng(2)
    N, D, E = 256, 384, 100
    X, Y = rng.normal(size=(N, D)), rng.normal(size=(N, E))
    # With n = N - 1 degrees of freedom: E|X'Y|^2 = n D E and E|X'X|^2 = n D (n + D + 1) for Gaussian columns.
    expected = math.sqrt(D * E / ((N + D) * (N + E)))
    assert 0.4 < expected < 0.42
    assert cka_linear(X, Y) == pytest.approx(expected, abs=0.01)
    assert cka_rbf(X, Y) > 0.3
    for cka in (cka_linear, cka_rbf):
        assert cka(X, Y, debiased=True) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("kind", CKA)
def test_equal_rows_are_like_nothing(kind):
    Y = np.random.default_rng(3).normal(size=(8, 3))
    assert MEASURES[kind](np.full((8, 2), 0.1), Y) == 0
    assert MEASURES[kind](Y, np.zeros((8, 2))) == 0


def test_rows_that_are_no_pairs():
    with pytest.raises(ValueError, match="CKA of 5 and 6 rows"):
        cka_linear(np.ones((5, 2)), np.ones((6, 2)))
    with pytest.raises(ValueError, match="at least 4"):
        cka_rbf(np.eye(3), np.eye(3), debiased=True)


class Random:
    """Stands for an embedder: a text is `number language`; German is English rotated, French unrelated."""

    def __init__(self):
        self.rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))[0]
        self.seen = {"en": [], "de": [], "fr": []}

    def embed(self, params, sentences, requests):
        def vector(layer, text):
            number, language = text.split()
            self.seen[language].append(int(number))
            seed = (layer, int(number), language == "fr")
            return np.random.default_rng(seed).normal(size=6) @ (self.rotation if language == "de" else np.eye(6))

        return {request: np.array([vector(request[0], text) for text in sentences]) for request in requests}


def test_scores_have_an_item_for_each_batch():
    texts = {language: [f"{i} {language}" for i in range(103)] for language in ("de", "en", "fr")}
    embedder = Random()
    scores = evaluate_similarity(
        embedder, None, texts, [0, 2, 2], batch=25, measures=("cka_linear", "cka_rbf_debiased")
    )
    assert len(scores) == 2 * 2 * (2 + 1)
    by = {(s.language, s.direction, s.layer, s.metric): s for s in scores}
    assert {s.pooling for s in scores} == {"mean_without_special"}
    for layer in (0, 2):
        assert by["de", "en-de", layer, "cka_linear"].groups[0][0] == pytest.approx([1] * 4)
        assert by["de", "en-de", layer, "cka_linear"].by_batch.std() == pytest.approx(0, abs=1e-9)
        assert by["fr", "en-fr", layer, "cka_rbf_debiased"].value < 0.3
    french, mean = by["fr", "en-fr", 2, "cka_linear"], by["mean", "en-xx", 2, "cka_linear"]
    items = french.groups[0][0]
    assert (french.count, len(set(items))) == (4, 4)
    assert french.value == pytest.approx(items.mean())
    assert french.by_batch.tolist() == items.tolist()
    assert mean.value == pytest.approx((1 + items.mean()) / 2)
    assert mean.by_batch == pytest.approx((1 + items) / 2), "a batch has the same sentences in all languages"
    # Disjoint batches: each sentence once for each layer; the rest of 3 is left out; not in the order of the file.
    seen = embedder.seen["en"]
    assert sorted(seen[:100]) == sorted(set(seen)) and seen[:100] != sorted(seen[:100])
    assert embedder.seen["de"] == seen
    assert math.isnan(
        evaluate_similarity(Random(), None, texts, [0], batch=103, measures=["cka_linear"])[0].interval[0]
    )


def test_more_sentences_than_are_embedded_at_once(monkeypatch):
    texts = {language: [f"{i} {language}" for i in range(60)] for language in ("en", "fr")}
    whole = evaluate_similarity(Random(), None, texts, [1], batch=10)
    monkeypatch.setattr("ppa_jax.evaluation.similarity._CHUNK", 25)
    parts = evaluate_similarity(Random(), None, texts, [1], batch=10)
    assert [s.groups[0][0].tolist() for s in parts] == [s.groups[0][0].tolist() for s in whole]


def test_settings_that_cannot_be():
    texts = {"en": ["1 en"] * 9, "fr": ["1 fr"] * 9}
    with pytest.raises(UserError, match="batches of 256 sentences: there are 9; choose 4 to 9"):
        evaluate_similarity(Random(), None, texts, [0])
    with pytest.raises(ValueError, match="not parallel"):
        evaluate_similarity(Random(), None, texts | {"fr": ["1 fr"] * 8}, [0], batch=4)


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_reads_one_file_a_language(tmp_path, caplog):
    write(
        tmp_path,
        {
            "eng.txt": "\ufeffOne.\r\nTwo\u2028lines.\r\nThree.\r\n",
            "test-ref.deu.txt": "Eins.\nZwei.\n \n",
            "zho-CN.txt": "一。\n二。\n三。\n",
            "zho-TW.txt": "壹。\n貳。\n參。",
            "arb.txt": "1\n2\n3\n",
            "fra.txt": "Un.\nDeux.\nTrois.\n",
            "fra-CA.txt": "Un!\nDeux!\nTrois!\n",
            "LICENSE.md": "no language",
            "NOTES.txt": "no language",
        },
    )
    with caplog.at_level(logging.INFO):
        texts = read_parallel(tmp_path)
    assert texts == {
        "ar": ["1", "2"],
        "de": ["Eins.", "Zwei."],
        "en": ["One.", "Two\u2028lines."],
        "fr": ["Un.", "Deux."],
        "fr-CA": ["Un!", "Deux!"],
        "zh-CN": ["一。", "二。"],
        "zh-TW": ["壹。", "貳。"],
    }
    assert list(texts) == sorted(texts)
    assert "left out 1 sentences" in caplog.text
    assert list(read_parallel(f"{tmp_path / 'eng.txt'}, {tmp_path / 'zho-CN.txt'}")) == ["en", "zh"]


def conllu(*sentences):
    return "\n".join(f"# newdoc\n{comments}\n1\t_\t# text = no\t_\n" for comments in sentences)


def test_reads_pud(tmp_path, caplog):
    write(
        tmp_path,
        {
            "en_pud-ud-test.conllu": conllu(
                "# sent_id = w01\n# text = Wiki.\n# text_en = Other.",
                "# sent_id = n01\n# text = News = old.",
                "# sent_id = n02\n# text = Not in German.",
            ),
            "de_pud-ud-test.conllu": conllu(
                "# sent_id = n01\n# text = Nachricht.",
                "# sent_id = de-7\n# parallel_id = pud/w01\n# text = Wiki!",
                "# sent_id = n03\n# text = Nicht auf Englisch.",
                "# sent_id = n04",
            ).rstrip("\n"),
            "en_ewt-ud-test.conllu": conllu("# sent_id = x\n# text = Not parallel."),
        },
    )
    with caplog.at_level(logging.INFO):
        assert read_parallel(tmp_path) == {"de": ["Wiki!", "Nachricht."], "en": ["Wiki.", "News = old."]}
    assert "left out 2 sentences" in caplog.text


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "nothing to read; give a directory"),
        ({"eng.txt": "a\n"}, "found en; give English and at least one other"),
        ({"deu.txt": "a\n", "fra.txt": "a\n"}, "found de, fr; give English"),
        ({"eng.txt": "a\nb\n", "deu.txt": "a\n"}, "eng.txt has 2 lines and deu.txt has 1;"),
        ({"eng.txt": "a\nb\n", "deu.txt": b"a\n\xff\n"}, "deu.txt:2: not UTF-8"),
        ({"eng.txt": "a\n", "deu.txt": ""}, "deu.txt is empty"),
        ({"eng.txt": "a\n\n", "deu.txt": "\nb\n"}, "no sentence exists in all of en, de"),
        ({"eng.txt": "a\n", "deu.txt": "a\n", "de.txt": "a\n"}, "are both de"),
        ({"en_pud-ud-test.conllu": "1\ta\n", "de_pud-ud-test.conllu": "1\ta\n"}, "no sentence has `# sent_id"),
        (
            {f"{code}_pud-ud-test.conllu": conllu(*["# sent_id = 1\n# text = a"] * 2) for code in ("de", "en")},
            "en_pud-ud-test.conllu:6: the id 1 appears twice",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, said):
    write(tmp_path, files)
    with pytest.raises(UserError, match=f"^parallel: .*{said}") as caught:
        read_parallel(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_that_cannot_be_used(tmp_path):
    write(tmp_path, {"eng.txt": "a\n", "german text.txt": "a\n"})
    with pytest.raises(UserError, match=r"ntrex: .*german text\.txt: no language code in the name"):
        read_parallel(f"{tmp_path}/eng.txt,{tmp_path}/german text.txt", field="ntrex")
    with pytest.raises(UserError, match=r"parallel: .*nowhere: nothing to read"):
        read_parallel(tmp_path / "nowhere")


@pytest.mark.shared_data
def test_real_text_and_a_real_model(shared):
    from ppa_jax.data.tokenizer import load_tokenizer
    from ppa_jax.evaluation.embed import Embedder
    from ppa_jax.interop import huggingface

    ntrex, pud = read_parallel(shared / "data/ntrex"), read_parallel(shared / "data/ud")
    assert list(ntrex) == ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
    assert {len(sentences) for sentences in ntrex.values()} == {1997}
    assert {language: len(sentences) for language, sentences in pud.items()} == dict.fromkeys(
        ["de", "en", "fr", "tr"], 1000
    )
    model = shared / "models/minimbert"
    pretrained = huggingface.read(model)
    embedder = Embedder(pretrained.config, load_tokenizer(model), max_length=64)
    english, german = pud["en"][:96], pud["de"][:96]
    value = {}
    for name, other in (("parallel", german), ("unrelated", german[48:] + german[:48])):
        texts = {"en": english, "de": other}
        scores = evaluate_similarity(
            embedder, pretrained.params["encoder"], texts, [1], batch=48, measures=["cka_linear", "cka_linear_debiased"]
        )
        value[name] = {s.metric: s.value for s in scores if s.language == "de"}
    assert value["unrelated"]["cka_linear"] > 0.1  # the bias of small batches
    assert abs(value["unrelated"]["cka_linear_debiased"]) < 0.1
    assert value["parallel"]["cka_linear_debiased"] > 0.4
