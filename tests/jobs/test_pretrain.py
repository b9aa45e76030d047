"""Pretraining: every objective from scratch to an export, from a checkpoint, and what it refuses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ppa_jax.data import sample, vocabulary
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.interop import huggingface
from ppa_jax.main import main
from ppa_jax.training.metrics import read_metrics

CONFIG = Path(__file__).resolve().parents[2] / "configs/pretrain.py"
TEXT = "en=sample:0-400,de=sample:400-800"

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


def arguments(workdir, shelf, **fields):
    words = "sample" if fields.get("objective") in ("dict_mlm", "align_mlm") else ""
    given = {
        "dtype": "float32", "data.pairs": TEXT, "data.cache": shelf / "corpora", "data.max_length": 32,
        "data.max_pair_pieces": 60, "word_alignment.dictionaries": words, "train.steps": 3, "train.batch_size": 8,
        "train.warmup": 0.1, "train.learning_rate": 1e-3, "checkpoint.every": 2, "model.tokenizer": shelf / "model",
        "model.hidden_size": 32, "model.num_layers": 1, "model.num_heads": 2, "mesh.data": 2,
    } | fields  # fmt: skip
    return [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items())]


@pytest.mark.parametrize("objective", ["mlm", "xlm", "dict_mlm", "align_mlm"])
def test_every_objective_from_nothing_to_an_export(shelf, tmp_path, objective):
    pairs = TEXT + (",en-de=sample:800-1200,en-ru=sample:0-400" if objective == "xlm" else "")
    assert main(arguments(tmp_path, shelf, objective=objective, **{"data.pairs": pairs})) == 0
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [0, 1, 2]
    aligned = [10 * r["word_alignment"] for r in records] if objective == "align_mlm" else 0
    np.testing.assert_allclose([r["loss"] for r in records], np.array([r["tlm"] for r in records]) - aligned, rtol=1e-5)
    assert all(r["contrastive"] is None or np.isnan(r["contrastive"]) for r in records)
    exported = huggingface.read(tmp_path / "export")
    assert exported.config.type_vocab_size == (3 if objective == "xlm" else 2)
    start = huggingface.read(tmp_path / "random")
    types, before = (x.params["encoder"]["embeddings"]["token_type_embeddings"]["embedding"] for x in (exported, start))
    moved = np.abs(np.asarray(types) - np.asarray(before)).max(1) > 1e-4  # by more than weight decay
    assert moved.tolist() == [True] * 3 if objective == "xlm" else [True, False]
    assert not (tmp_path / "export/modules.json").exists(), "no sentence vectors were trained"
    report, card = (tmp_path / "report.md").read_text(), (tmp_path / "export/README.md").read_text()
    own = {"mlm": "masked language model x 1", "xlm": "(token types are languages: 0 en, 1 de, 2 ru)",
           "dict_mlm": "are paired with it as input)", "align_mlm": "+ alignment of word embeddings x 10"}  # fmt: skip
    for text in (report, card):
        assert f"# Pretraining of a new model: {objective}\n" in text and own[objective] in text
        assert "contrast" not in text.replace("contrastive.", "")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_on_from_a_checkpoint_with_a_vocabulary_of_its_own(shelf, tmp_path, kind):
    from transformers import AutoTokenizer

    own = {"model.tokenizer": "", "model.vocab_size": 300, "model.vocabulary": kind}
    assert main(arguments(tmp_path / "a", shelf, **own)) == 0
    sizes = json.loads((tmp_path / "a/export/config.json").read_text())
    assert 150 < sizes["vocab_size"] <= 300
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "a/export"), load_tokenizer(tmp_path / "a/export")
    text = "Die Katze schläft." if kind == "wordpiece" else "Straße ☃ 猫"  # bytes spell what no one has seen
    assert theirs.unk_token_id not in theirs(text)["input_ids"]
    assert theirs(text)["input_ids"] == [ours.cls_id, *ours.encode([text])[0], ours.sep_id]
    assert theirs.decode(ours.encode([text])[0]).replace(" ", "") == text.replace(" ", "")
    two = theirs("a", "b")
    assert two["input_ids"].count(ours.sep_id) == 2 and two["token_type_ids"][-1] == 1
    assert main(arguments(tmp_path / "b", shelf, init=tmp_path / "a/export", objective="align_mlm")) == 0
    first, second = (huggingface.read(tmp_path / x / "export").params["encoder"] for x in "ab")
    moved = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), first, second)
    assert max(jax.tree.leaves(moved)) < 5e-3, "three steps of 1e-3 from where the first run ended"
    report = (tmp_path / "b/report.md").read_text()
    assert "# Pretraining of export: align_mlm\n" in report


def test_a_workdir_may_be_moved_and_spelled_otherwise(shelf, tmp_path, monkeypatch, error_line):
    assert main(arguments(tmp_path / "a", shelf)) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b/report.md").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(arguments("b", shelf)) == 0 and Path("b/report.md").exists()
    assert main(arguments("b", shelf, **{"train.learning_rate": 2e-3})) == 2
    assert "train.learning_rate: 0.001 -> 0.002)" in error_line()


@pytest.mark.parametrize("train", vocabulary.TRAINERS.values())
def test_the_same_text_gives_the_same_vocabulary(tmp_path, train):
    """Ties among merges included, which come with small texts."""
    texts = [text for language in ("en", "ru", "zh") for text in sample.sentences(language, 0, 400)]
    found = []
    for name in "abc":
        (tmp_path / name).mkdir()
        train(iter(texts), 700, tmp_path / name)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1] == found[2] and len(found[0]) == 2


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"objective": "bert"}, "config.objective=bert: must be one of mlm, xlm, dict_mlm, align_mlm"),
        ({"objective": "xlm"}, "config.data.pairs: xlm needs translations"),
        (
            {"objective": "align_mlm", "word_alignment.weight": 0},
            "greater than 0: without it align_mlm is mlm",
        ),
        ({"word_alignment.dictionaries": "sample"}, "word_alignment.dictionaries: mlm does not use them"),
        ({"objective": "dict_mlm", "word_alignment.dictionaries": ""}, "dictionaries is empty: dict_mlm needs them"),
        (
            {"objective": "xlm", "init": "model", "data.pairs": "en-de=sample:0-9,en-ru=sample:0-9"},
            "config.objective=xlm: its token types are the languages (en, de, ru), but bert has 2 token types; give",
        ),
        (
            {"objective": "xlm", "model.family": "modernbert", "data.pairs": "en-de=sample:0-9"},
            "config.objective=xlm: its token types are the languages (en, de), but modernbert has 0 token types; give",
        ),
        ({"eval.sample": 10**6}, "config.eval.sample=1000000: must be at most"),
        ({"dict_mlm_form": "output"}, "config.dict_mlm_form=output: must be one of input, label"),
        ({"tlm.joint": True}, "config.tlm.joint: no such field"),
        ({"pretrain.steps": 1000}, "config.pretrain.steps: no such field; the nearest is config.train.steps"),
        ({"contrastive.temperature": 0.1}, "config.contrastive.temperature: no such field"),
        ({"model.hidden_size": 33}, "config.model.hidden_size=33: must divide"),
        ({"model.tokenizer": "/none"}, "/none: no such directory"),
    ],
)
def test_mistakes(shelf, tmp_path, error_line, fields, said):
    if "init" in fields:
        fields = fields | {"init": shelf / fields["init"]}
    assert main(arguments(tmp_path, shelf, **fields)) == 2
    assert said in error_line()
    assert not (tmp_path / "config.json").exists(), "the corrected command would find the workdir of another run"
