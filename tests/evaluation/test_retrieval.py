"""Retrieval by hand, against scikit-learn, with invalid files, and on a real model."""

import json

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation import retrieval
from ppa_jax.evaluation.retrieval import evaluate_retrieval, read_pairs, read_tatoeba

KEYS = ["model", "task", "language", "direction", "layer", "pooling", "metric", "value", "count", "low", "high"]


class Fixed:
    """A fake embedder that looks vectors up."""

    def __init__(self, table):
        self.table = table
        self.embedded = []

    def embed(self, params, sentences, requests):
        self.embedded += sentences
        return {request: np.array([self.table[text] for text in sentences]) * params for request in requests}


def test_records_distinguish_the_directions():
    # In the plane, at these angles.
    angle = {"a": 0, "b": 10, "c": 80, "A": 8, "B": 60, "C": 75, "d": 0, "D": 90}
    table = {text: [np.cos(np.radians(x)), np.sin(np.radians(x))] for text, x in angle.items()}
    # From English: a(0) -> A, right; b(10) -> A, wrong; c(80) -> C, right. Two of three.
    # From German: A(8) -> b, wrong; B(60) -> c, wrong; C(75) -> c, right. One of three.
    sets = {("en", "de"): (["a", "b", "c"], ["A", "B", "C"]), ("en", "fr"): (["d"], ["D"])}
    scores = evaluate_retrieval(Fixed(table), 1.0, sets, [(6, "cls"), (4, "mean")])
    records = [score.record("before") for score in scores]
    assert all(list(record) == KEYS for record in records)
    assert len(records) == (2 + 1) * 3 * 2
    shown = {(r["language"], r["direction"]): (r["value"], r["count"]) for r in records if r["layer"] == 6}
    assert shown == {
        ("de", "en-de"): (pytest.approx(66.6667), 3),
        ("de", "de-en"): (pytest.approx(33.3333), 3),
        ("de", "both"): (pytest.approx(50), 6),
        ("fr", "en-fr"): (100, 1),
        ("fr", "fr-en"): (100, 1),
        ("fr", "both"): (100, 2),
        ("mean", "en-xx"): (pytest.approx(83.3333, abs=1e-3), 4),
        ("mean", "xx-en"): (pytest.approx(66.6667, abs=1e-3), 4),
        ("mean", "both"): (pytest.approx(75), 8),
    }
    assert {(r["model"], r["task"], r["metric"]) for r in records} == {("before", "tatoeba", "accuracy")}
    json.dumps(records)


def test_a_variety_of_english_has_both_directions():
    """`en-GB` begins like the pivot, but its two directions must still be distinguished."""
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "A": [1.0, 0.1], "B": [1.0, 0.2]}
    scores = evaluate_retrieval(Fixed(table), 1.0, {("en", "en-GB"): (["a", "b"], ["A", "B"])}, [(1, "mean")])
    shown = {(score.language, score.direction): score.value for score in scores}
    assert shown == {
        ("en-GB", "en-en-GB"): 100,
        ("en-GB", "en-GB-en"): 50,
        ("en-GB", "both"): 75,
        ("mean", "en-xx"): 100,
        ("mean", "xx-en"): 50,
        ("mean", "both"): 75,
    }


def test_of_equal_texts_the_first_is_found():
    """At this size BLAS rounds equal columns differently, so among all targets a later copy would sometimes win."""
    rng = np.random.default_rng(0)
    vectors, texts = rng.normal(size=(250, 384)), rng.permutation(np.repeat(np.arange(250), 4))
    table = {f"{language}{i}": vector for language in ("en", "de") for i, vector in enumerate(vectors)}
    sets = {("en", "de"): ([f"en{i}" for i in texts], [f"de{i}" for i in texts])}
    first = np.zeros(1000)
    first[np.unique(texts, return_index=True)[1]] = 1
    for score in evaluate_retrieval(Fixed(table), 1.0, sets, [(1, "mean")])[:2]:
        assert np.array_equal(score.groups[0][0], first)


def test_english_that_all_languages_share_is_embedded_once():
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "A": [1.0, 0.1], "B": [0.1, 1.0]}
    shared, other = ["a", "b"], ["b", "a"]
    for german, expected in ((shared, ["a", "b", "A", "B", "A", "B"]), (other, [*"abABbaAB"])):
        embedder = Fixed(table)
        sets = {("en", "fr"): (shared, ["A", "B"]), ("en", "de"): (german, ["A", "B"])}
        scores = evaluate_retrieval(embedder, 1.0, sets, [(1, "cls")])
        assert embedder.embedded == expected
        value = {score.language: score.value for score in scores if score.direction == "both"}
        assert (value["fr"], value["de"]) == (100, 100 if german == shared else 0)


def write(directory, name: str, content: bytes | str) -> None:
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_reads_every_language_of_a_directory(tmp_path):
    write(tmp_path, "tatoeba.deu-eng.deu", "\ufeffGuten Tag.\r\nEin\u2028Satz.\r\n")
    write(tmp_path, "tatoeba.deu-eng.eng", "Good day.\nA sentence.")  # no line feed at the end
    write(tmp_path, "tatoeba.gsw-eng.gsw", "Grüezi.\n")
    write(tmp_path, "tatoeba.gsw-eng.eng", "Hello.\n")
    write(tmp_path, "README.md", "not a test set")
    assert read_tatoeba(tmp_path) == {
        ("en", "de"): (["Good day.", "A sentence."], ["Guten Tag.", "Ein\u2028Satz."]),
        ("en", "gsw"): (["Hello."], ["Grüezi."]),
    }


def test_pairs_with_a_blank_side_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, "tatoeba.deu-eng.deu", "Ja.\n\nNein.\n\u00a0\t\nGut.\n")
    write(tmp_path, "tatoeba.deu-eng.eng", "Yes.\nWhat?\n \n\nGood.\n")
    assert read_tatoeba(tmp_path) == {("en", "de"): (["Yes.", "Good."], ["Ja.", "Gut."])}
    assert "tatoeba.deu-eng.deu: left out 3 pairs with a blank side" in caplog.text


def test_no_two_files_stand_for_one_language():
    assert len(set(retrieval.LANGUAGES.values())) == len(retrieval.LANGUAGES)
    assert (retrieval.LANGUAGES["cmn"], retrieval.LANGUAGES["swh"]) == ("zh", "sw")


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "has no files tatoeba.xxx-eng.xxx and"),
        ({"tatoeba.deu-eng.deu": "a\n"}, "no such file: .*tatoeba.deu-eng.eng"),
        (
            {"tatoeba.deu-eng.deu": "a\nb\n", "tatoeba.deu-eng.eng": "a\n"},
            "tatoeba.deu-eng.eng has 1 lines and tatoeba.deu-eng.deu has 2",
        ),
        ({"tatoeba.deu-eng.deu": "", "tatoeba.deu-eng.eng": ""}, "deu-eng.eng is empty"),
        (
            {"tatoeba.deu-eng.deu": "\na\n", "tatoeba.deu-eng.eng": "b\n\n"},
            "deu-eng.eng and tatoeba.deu-eng.deu: no line has text in both",
        ),
        ({"tatoeba.deu-eng.deu": b"a\nb\xff\n", "tatoeba.deu-eng.eng": "a\nb\n"}, "deu-eng.deu:2: not UTF-8"),
        ({"tatoeba.deu-eng.deu": "a\n".encode("utf-16"), "tatoeba.deu-eng.eng": "a\n"}, "deu-eng.deu: UTF-16"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, said):
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(UserError, match=f"eval.tatoeba: .*{said}") as caught:
        read_tatoeba(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pair_without_english_has_its_own_name():
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "A": [1.0, 0.1], "B": [1.0, 0.2]}
    sets = {("de", "fr"): (["a", "b"], ["A", "B"]), ("en", "fr"): (["a"], ["A"])}
    scores = evaluate_retrieval(Fixed(table), 1.0, sets, [(1, "mean")])
    assert {(score.language, score.direction): score.value for score in scores} == {
        ("de-fr", "de-fr"): 100, ("de-fr", "fr-de"): 50, ("de-fr", "both"): 75,
        ("fr", "en-fr"): 100, ("fr", "fr-en"): 100, ("fr", "both"): 100,
        ("mean", "en-xx"): 100, ("mean", "xx-en"): 100, ("mean", "both"): 87.5,
    }  # fmt: skip


def test_held_out_pairs_in_the_forms_of_data_pairs(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, "a.csv", "id,de,en\n" + "".join(f"{i},Satz {i},sentence {i}\n" for i in range(8)) + "8,,empty\n")
    write(tmp_path, "b.tsv", "sentence 8\tSatz 8\nsentence 9\tSatz 9\n")
    write(tmp_path, "c.de", "".join(f"Satz {i}\n" for i in range(10)))
    write(tmp_path, "c.fr", "".join(f"phrase {i}\n" for i in range(10)))
    sets = read_pairs(f"de-en={tmp_path}/a.csv,en-de={tmp_path}/b.tsv,de-fr={tmp_path}/c", field="config.pairs")
    english, german, french = ([f"{name} {i}" for i in range(10)] for name in ("sentence", "Satz", "phrase"))
    assert sets == {("en", "de"): (english, german), ("de", "fr"): (german, french)}
    write(tmp_path, "c.en", "".join(f"sentence {i}\n" for i in range(9)) + "\n")
    write(tmp_path, "d.tsv", "sentence 9\tphrase 9\n")
    sets = read_pairs(f"de-en-fr={tmp_path}/c,en-fr={tmp_path}/d.tsv,en-de={tmp_path}/b.tsv", field="config.pairs")
    assert sets == {("en", "de"): (english[:9] + english[8:], german[:9] + german[8:]), ("en", "fr"): (english, french)}
    assert f"config.pairs: de-en={tmp_path}/a.csv: 1 of 9 skipped: {{'empty': 1}}" in caplog.text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("en-de={}/a.tsv", "en-de: 9 usable pairs, where retrieval needs 10 to 100,000; give more"),
        ("en={}/a.tsv", "a.tsv: retrieval needs translations: lang1-lang2=SOURCE"),
        ("en-de={}/nowhere.tsv", "no such file: .*nowhere.tsv"),
        ("en-de={}/empty.tsv", "empty.tsv is empty"),
        ("{}/a.tsv", "is not of the form lang1-lang2=SOURCE"),
    ],
)
def test_held_out_pairs_that_cannot_be_used(tmp_path, spec, said):
    write(tmp_path, "a.tsv", "a\tb\n" * 9)
    write(tmp_path, "empty.tsv", "")
    with pytest.raises(UserError, match=f"^config.eval.pairs: .*{said}"):
        read_pairs(spec.format(tmp_path), field="config.eval.pairs")


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"tatoeba: no such directory: .*nowhere; give one with files"):
        read_tatoeba(tmp_path / "nowhere", field="tatoeba")


@pytest.mark.shared_data
def test_scores_a_real_model_as_pytorch_does(shared):
    from ppa_jax.data.tokenizer import load_tokenizer
    from ppa_jax.evaluation.embed import Embedder
    from ppa_jax.interop import huggingface

    model = shared / "models/minimbert"
    pretrained = huggingface.read(model)
    embedder = Embedder(pretrained.config, load_tokenizer(model), max_length=64)
    german = {("en", "de"): read_tatoeba(shared / "data/tatoeba")["en", "de"]}
    requests = {(6, "cls"): "cls_last", (6, "mean"): "mean_last", (4, "mean"): "mean_mid"}
    scores = evaluate_retrieval(embedder, pretrained.params["encoder"], german, list(requests))
    records = [score.record("minimbert") for score in scores]
    both = [r for r in records if (r["language"], r["direction"]) == ("de", "both")]
    got = {requests[r["layer"], r["pooling"]]: r["value"] for r in both}
    peer = json.loads((shared / "peers/results.json").read_text())["runs"][0]["per_lang"]["de"]
    # A sentence is 0.05 points; a few near ties fall otherwise in another order of additions.
    assert got == {name: pytest.approx(value, abs=0.3) for name, value in peer.items()}
