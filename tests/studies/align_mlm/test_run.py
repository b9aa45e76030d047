"""ALIGN-MLM's experiment on a tiny model: its files, how it resumes, and what it refuses."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ppa_jax.interop import huggingface
from ppa_jax.jobs import pretrain
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.main import main
from ppa_jax.studies.align_mlm import report
from ppa_jax.studies.align_mlm import run as align_mlm_run
from ppa_jax.training.loop import Stopped

CONFIG = Path(__file__).resolve().parents[3] / "configs/align_mlm.py"

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


def arguments(workdir, **fields):
    given = {
        "dtype": "float32", "objectives": "xlm,align_mlm", "transformations": "trans+inv", "seeds": "0",
        "data.text": "sample:0-300", "data.dictionary_share": 0.5,
        "tasks.pos.train": "sample:300-340", "tasks.pos.test": "sample:340-350",
        "tasks.pos.epochs": 1, "finetuning.train.batch_size": 8, "finetuning.data.max_length": 32,
        "pretraining.model.vocab_size": 120, "pretraining.model.hidden_size": 16, "pretraining.model.num_layers": 1,
        "pretraining.model.num_heads": 2, "pretraining.data.max_length": 48, "pretraining.data.max_pair_pieces": 90,
        "pretraining.train.steps": 3, "pretraining.train.batch_size": 8, "pretraining.train.learning_rate": 1e-2,
        "pretraining.train.warmup": 0.1, "pretraining.mesh.data": 2, "finetuning.mesh.data": 2,
    } | fields  # fmt: skip
    return [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("derived")
    assert main(arguments(workdir)) == 0
    return workdir


def test_the_files_of_a_run(whole):
    records = json.loads((whole / "scores.json").read_text())
    found = {(r["objective"], r["task"], r["metric"]): r["value"] for r in records}
    for objective in ("xlm", "align_mlm"):
        values = {metric: found[objective, "pos", metric] for metric in ("en", "BS", "BZ", "delta")}
        assert values["delta"] == pytest.approx(values["BS"] - values["BZ"], abs=1e-3)
        own = json.loads((whole / "finetuned/trans+inv/pos/en-0/scores.json").read_text())
        (zero_shot,) = (r["value"] for r in own if (r["model"], r["language"]) == (f"{objective}-0", "xx"))
        assert values["BZ"] == pytest.approx(zero_shot, abs=1e-3)
        own = json.loads((whole / "finetuned/trans+inv/pos/xx-0/scores.json").read_text())
        (supervised,) = (r["value"] for r in own if r["model"] == f"{objective}-0")
        assert values["BS"] == pytest.approx(supervised, abs=1e-3)
    report = (whole / "report.md").read_text()
    assert "| trans+inv | align_mlm |" in report and "95.2" in report, "the table and the paper's"
    assert (whole / "alignment.png").stat().st_size > 1000 and not list(whole.glob("models/*/*/checkpoints"))
    assert not list(whole.glob("finetuned/**/export")) and not list(whole.glob("finetuned/**/trained"))


def test_xlm_is_fine_tuned_without_its_languages(whole):
    """Token type 0 means English, and tasks do not specify the language of a token."""
    trained, neutral = (
        huggingface.read(whole / "models/trans+inv/xlm-0" / name).params for name in ("export", "export_neutral")
    )
    types, means = (x["encoder"]["embeddings"].pop("token_type_embeddings")["embedding"] for x in (trained, neutral))
    assert not np.allclose(types[0], types[1]) and np.allclose(means, np.mean(types, axis=0))
    trained.pop("pooler", None), neutral.pop("pooler", None)
    jax.tree.map(np.testing.assert_array_equal, trained, neutral)
    assert not (whole / "models/trans+inv/align_mlm-0/export_neutral").exists()


def test_the_alignment_is_that_of_the_clones(whole):
    """By brute force: for each plain piece, the clone with the largest cosine."""
    pieces = (whole / "vocabulary/plain/vocab.txt").read_text().split("\n")[:-1]
    table = np.asarray(
        huggingface.read(whole / "models/trans+inv/align_mlm-0/export").params["encoder"]["embeddings"][
            "word_embeddings"]["embedding"])  # fmt: skip
    V = len(pieces)
    assert len(table) == 2 * V
    rows = [i for i, piece in enumerate(pieces) if not (piece[0] == "[" and piece[-1] == "]")]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    hits = [rows[int(np.argmax([unit[i] @ unit[V + j] for j in rows]))] == i for i in rows]
    known = {line.split("\t")[0] for line in (whole / "data/trans+inv/dictionary/en-xx.tsv").read_text().splitlines()}
    assert len(known) == round(0.5 * len(rows))
    saved = whole / "models/trans+inv/align_mlm-0/export/dictionaries/en-xx.tsv"
    assert saved.read_text() == (whole / "data/trans+inv/dictionary/en-xx.tsv").read_text(), "no capitals were added"
    unseen = [hit for i, hit in zip(rows, hits, strict=True) if pieces[i] not in known]
    found = {
        r["metric"]: r["value"]
        for r in json.loads((whole / "scores.json").read_text())
        if r["objective"] == "align_mlm" and not r["task"]
    }
    assert found["alignment"] == pytest.approx(100 * np.mean(hits), abs=1e-3)
    assert found["alignment_unseen"] == pytest.approx(100 * np.mean(unseen), abs=1e-3)
    assert np.mean(hits) > 0.2, "three steps draw the pairs of the dictionary together"


def test_a_rotation_between_the_languages_is_found(tmp_path, monkeypatch):
    """Clones that are the tokens, rotated and shifted: neighbours are wrong before the rotation, correct after it."""
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    plain = rng.normal(size=(60, 8))
    table = {"embedding": np.concatenate([plain, plain @ turn + 5.0 + 0.01 * rng.normal(size=plain.shape)])}
    params = {"encoder": {"embeddings": {"word_embeddings": table}}}
    monkeypatch.setattr(align_mlm_run.huggingface, "read", lambda path: SimpleNamespace(params=params))
    vocabulary = SimpleNamespace(pieces=["[PAD]", "[UNK]", *(f"w{i}" for i in range(58))])
    align_mlm_run.dictionary_file(tmp_path).parent.mkdir()
    align_mlm_run.dictionary_file(tmp_path).write_text("")
    found = {metric: (value, count) for metric, value, count in align_mlm_run.alignment(tmp_path, vocabulary, tmp_path)}
    assert found["alignment"][0] < 20 and found["alignment_rotated"] == (100.0, 29)


def test_nothing_is_done_again(whole, monkeypatch):
    before = (whole / "scores.json").read_text()

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "run", never)
    monkeypatch.setattr(finetune_run, "train", never)
    assert main(arguments(whole)) == 0
    assert (whole / "scores.json").read_text() == before


def test_a_run_can_be_extended(tmp_path, monkeypatch, error_line):
    """Objectives, seeds, tasks, derived languages; a run that is killed in between resumes."""
    asked = []

    def trained(config, objective, seed, data, vocabulary, directory):
        asked.append(f"{data.name}/{objective}-{seed}")
        if len(asked) == 2:
            raise Stopped(signal.SIGTERM, 3)

    def scored(config, name, data, models, *others):
        return [(model, "BZ", 40.0, 7) for model in models]

    monkeypatch.setattr(align_mlm_run, "pretrain_once", trained)
    monkeypatch.setattr(align_mlm_run, "alignment", lambda *args: [("alignment", 50.0, 10)])
    monkeypatch.setattr(align_mlm_run, "transfer", scored)
    drawn = {}
    monkeypatch.setattr(
        report, "write", lambda directory, records, *, facts, curves: drawn.update(curves) or (directory, "")
    )

    def scores():
        found = json.loads((tmp_path / "scores.json").read_text())
        return [(r["transformation"], r["objective"], r["seed"], r["task"]) for r in found]

    assert main(arguments(tmp_path)) == 143, "stopped while the second model was trained"
    assert scores() == [("trans+inv", "xlm", 0, "")]
    assert main(arguments(tmp_path)) == 0
    first = [("trans+inv", x, 0, task) for task in ("", "pos") for x in ("xlm", "align_mlm")]
    assert sorted(scores()) == sorted(first)
    more = {"transformations": "trans+syn", "objectives": "mlm", "seeds": "1", "data.order_from": "sample:0-50",
            "tasks.ner.train": "sample:300-340", "tasks.ner.test": "sample:340-350"}  # fmt: skip
    assert main(arguments(tmp_path, **more)) == 0
    assert sorted(scores()) == sorted([*first, *(("trans+syn", "mlm", 1, task) for task in ("", "pos", "ner"))])
    models = {"trans+inv": ["xlm-0", "align_mlm-0"], "trans+syn": ["mlm-1"]}
    assert {name: [run.name for run in runs.values()] for name, runs in drawn.items()} == models
    assert main(arguments(tmp_path, **more | {"data.order_from": "sample:0-60"})) == 2
    assert "holds a different run (content.order_from" in error_line()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"objectives": "mlm,bert"}, "config.objectives: 'bert': must be of mlm, xlm"),
        ({"transformations": "inv"}, "config.transformations: 'inv': write trans"),
        ({"transformations": "trans+inw"}, "derived language 'trans+inw': write steps of"),
        ({"transformations": "trans+syn"}, "config.data.order_from is empty"),
        (
            {"transformations": "trans+syn", "data.order_from": "none.tsv"},
            "config.data.order_from: no such file: none.tsv",
        ),
        ({"data.text": ""}, "config.data.text is empty"),
        ({"data.text": "/no/such.txt"}, "/no/such.txt"),
        ({"tasks.pos.test": ""}, "config.tasks.pos.test is empty"),
        ({"tasks.pos.task": "qa"}, "config.tasks.pos.task=qa: must be one of"),
        ({"data.seed": -1}, "config.data.seed=-1"),
        ({"tasks.pos.epochs": 0}, "config.tasks.pos.epochs=0"),
        (
            {"transformations": "trans+syn", "data.order_from": "sample:0-2"},
            "2 trees are too few",
        ),
        ({"data.dictionary_share": 0}, "config.data.dictionary_share"),
        ({"finetuning.train.epochs": 2}, "finetuning.train.epochs"),
        ({"finetuning.train.batch_size": 0}, "config.finetuning.train.batch_size=0"),
        ({"finetuning.data.max_length": 600}, "config.finetuning.data.max_length=600"),
        ({"pretraining.train.batch_size": 9}, "config.pretraining.train.batch_size=9: must be a multiple of 2"),
        ({"finetuning.test_batch_size": 9}, "config.finetuning.test_batch_size=9: must be a multiple of 2"),
        ({"pretraining.train.epochs": 2}, "config.pretraining.train.steps and config.pretraining.train.epochs"),
        ({"pretraining.model.hidden_size": 33}, "config.pretraining.model.hidden_size=33: must divide"),
        ({"pretraining.model.vocabulary": "bpe"}, "config.pretraining.model.vocabulary"),
        ({"data.text": "sample:0-299"}, "holds a different run"),
        ({"pretraining.train.steps": 4}, "holds a different run"),
    ],
)
def test_mistakes(whole, error_line, fields, said):
    assert main(arguments(whole, **fields)) == 2
    assert said in error_line()


def test_the_coefficient_needs_eight_models():
    def records(count):
        for i in range(count):
            own = {"transformation": "trans", "objective": f"o{i % 4}", "seed": i}
            yield own | {"task": "", "metric": "alignment", "value": float(i)}
            yield own | {"task": "pos", "metric": "BZ", "value": float(i**2)}

    assert report.correlation(list(records(7)), "pos", "BZ") is None
    found = report.correlation(list(records(8)), "pos", "BZ")
    assert found is not None and found.rho == 1 and found.groups == {"objectives and languages": 4}


def test_a_text_that_has_changed_is_another_run(tmp_path, error_line, monkeypatch):
    def stopped(config, workdir):
        raise Stopped(signal.SIGTERM, 0)

    monkeypatch.setattr(pretrain, "run", stopped)
    text = tmp_path / "en.txt"
    for content, status in (("A cat sleeps.\nA dog runs.\n", 143), ("A cat sleeps.\nA dog ran.\n", 2)):
        text.write_text(content * 20)
        assert main(arguments(tmp_path / "run", **{"data.text": text})) == status
    assert "content.text" in error_line()


def test_a_task_without_trees_is_left_out_where_order_comes_from_trees(tmp_path, monkeypatch):
    """And text without trees is refused before anything is trained."""
    asked = []
    monkeypatch.setattr(align_mlm_run, "pretrain_once", lambda *args: None)
    monkeypatch.setattr(align_mlm_run, "alignment", lambda *args: [("alignment", 50.0, 10)])
    monkeypatch.setattr(align_mlm_run, "transfer", lambda config, name, *args: asked.append(name) or [])
    monkeypatch.setattr(report, "write", lambda *args, **fields: (tmp_path, ""))
    nli = tmp_path / "nli.tsv"
    nli.write_text("A cat sleeps.\tA cat rests.\tentailment\n")
    given = {
        "transformations": "trans+syn,trans", "data.order_from": "sample:0-50", "tasks.nli.train": nli,
        "tasks.nli.test": nli,
    }  # fmt: skip
    assert main(arguments(tmp_path / "run", **given)) == 0 and asked == ["pos", "nli", "pos"]
    nli.write_text("A cat sleeps.\tA cat rests.\n")
    assert main(arguments(tmp_path / "third", **given)) == 2, "before anything is trained"
    text = tmp_path / "en.txt"
    text.write_text("A cat sleeps.\n")
    assert main(arguments(tmp_path / "other", **given, **{"data.text": text})) == 2
