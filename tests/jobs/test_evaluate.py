"""Models side by side, through the command line: every part, every file it leaves, every mistake."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.evaluation import comparison
from ppa_jax.evaluation.report import training as report
from ppa_jax.evaluation.scores import Score, per_item
from ppa_jax.interop import huggingface, sentence_transformers
from ppa_jax.jobs import evaluate
from ppa_jax.main import main

CONFIG = Path(__file__).resolve().parents[2] / "configs/evaluate.py"
KEYS = ["model", "task", "language", "direction", "layer", "pooling", "metric", "value", "count", "low", "high"]
ENGLISH = ["The cat sleeps .", "A dog eats fish .", "We see birds .", "They run home .", "She reads books ."] * 2


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of every form; the other language is English spelled backwards."""
    path = tmp_path_factory.mktemp("data")
    english = [f"{text} {i}" for i, text in enumerate(ENGLISH)]
    foreign = [" ".join(word[::-1] for word in text.split()) for text in english]
    write(path / "tatoeba/tatoeba.deu-eng.eng", english)
    write(path / "tatoeba/tatoeba.deu-eng.deu", foreign)
    write(path / "pairs.tsv", [f"{de}\t{en}" for de, en in zip(foreign, english, strict=True)])
    write(path / "nway/eng.txt", english)
    write(path / "nway/deu.txt", foreign)
    write(path / "bucc/de-en.dev.en", [f"en-{i}\t{text}" for i, text in enumerate(english)])
    write(path / "bucc/de-en.dev.de", [f"de-{i}\t{text}" for i, text in enumerate(foreign)])
    write(path / "bucc/de-en.dev.gold", [f"de-{i}\ten-{i}" for i in range(len(english))])
    write(path / "words/de-en/test.de", foreign)
    write(path / "words/de-en/test.en", english)
    write(path / "words/de-en/gold.pharaoh", [" ".join(f"{i}-{i}" for i in range(len(t.split()))) for t in english])
    write(
        path / "dictionaries/en-de.tsv", [f"{word}\t{word[::-1]}" for word in dict.fromkeys(" ".join(english).split())]
    )
    return path


@pytest.fixture(scope="module")
def other(shelf, tmp_path_factory):
    """A second model: the first with noise on its weights."""
    path = tmp_path_factory.mktemp("other") / "noisy"
    pretrained = huggingface.read(shelf / "model")
    rng = np.random.default_rng(0)
    encoder = huggingface.read(shelf / "model").params["encoder"]
    noisy = jax.tree.map(lambda x: jnp.asarray(x) + 0.05 * rng.normal(size=x.shape).astype("f"), encoder)
    pretrained.params["encoder"] = jax.tree.map(np.asarray, noisy)
    huggingface.write(path, pretrained, files_from=shelf / "model")
    return path


def arguments(workdir, **fields):
    return [
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def test_every_part_leaves_scores_differences_report_and_pictures(shelf, other, data, tmp_path, capsys):
    models = f"plain={shelf / 'model'},{other}"
    fields = dict(
        models=models, tatoeba=data / "tatoeba", mining=data / "bucc", word_alignment=data / "words",
        dictionaries=data / "dictionaries", parallel=data / "nway", sample=8, cka_batch=5,
        pairs=f"de-en={data / 'pairs.tsv'}",
    )  # fmt: skip
    assert main(arguments(tmp_path, **fields)) == 0
    assert "report.md" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert all(list(record) == KEYS for record in scores)
    assert {record["model"] for record in scores} == {"plain", "noisy"}
    tasks = {"tatoeba", "sample", "pairs", "bucc", "word_alignment", "lexicon", "nway", "cka, nway"}
    assert {record["task"] for record in scores} == tasks
    assert all(record["low"] <= record["value"] <= record["high"] for record in scores if record["low"] is not None)
    named = {
        task: [r | {"task": ""} for r in scores if r["task"] == task and r["language"] != "cka"]
        for task in ("tatoeba", "pairs")
    }
    assert named["pairs"] == named["tatoeba"], "the same sentences as own pairs"
    by_layer = {r["layer"] for r in scores if r["task"] == "tatoeba" and r["pooling"] == "mean"}
    assert by_layer == {0, 1}, "the model has one block: embeddings and block"

    differences = json.loads((tmp_path / "differences.json").read_text())
    assert {(record["model"], record["baseline"]) for record in differences} == {("noisy", "plain")}
    value = {(r["model"], r["task"], r["language"], r["direction"], r["layer"], r["pooling"], r["metric"]): r["value"]
             for r in scores}  # fmt: skip
    assert {r["pooling"] for r in differences if r["task"] == "lexicon"} == {"input_embeddings", "mean_without_special"}
    for record in differences:
        if record["role"] == "main":
            key = tuple(record[name] for name in ("task", "language", "direction", "layer", "pooling", "metric"))
            assert record["value"] == pytest.approx(value["noisy", *key] - value["plain", *key], abs=2e-4)

    text = (tmp_path / "report.md").read_text()
    for picture in ("models.png", "layers.png", "bars.png"):
        assert f"({picture})" in text and (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    for said in ("tatoeba: accuracy, layer 1, mean", "aer", "p at 1 csls", "cka linear", "plain (baseline)",
                 "batches of 5 sentences", "tokens, including special tokens", str(data / "tatoeba")):  # fmt: skip
        assert said in text, said
    assert json.loads((tmp_path / "config.json").read_text())["cka_batch"] == 5


def score(values, layer=4, pooling="mean", **changes):
    fields = dict(task="tatoeba", language="mean", direction="both", metric="accuracy") | changes
    return Score(fields["task"], fields["language"], fields["direction"], layer, pooling, fields["metric"],
                 (per_item(np.array(values)),), len(values))  # fmt: skip


def test_models_of_different_depth_meet_at_the_same_share_of_it(tmp_path):
    rng = np.random.default_rng(0)
    hits = rng.random(200)
    models = {
        "small": comparison.Measured("s", 6, (4, "mean"), (6, "cls"), [score(hits < 0.2), score(hits < 0.1, 6, "cls")]),
        "large": comparison.Measured("l", 12, (8, "mean"), (8, "mean"), [score(hits < 0.5, 8), score(hits < 0.9, 4)]),
    }
    path, table = report.write_comparison(tmp_path, models, baselines=["small"], facts={"a": "b"})
    text = path.read_text()
    assert table in text
    assert "two thirds of the depth" in text and "[layer 8, mean]" in text
    (record,) = [r for r in json.loads((tmp_path / "differences.json").read_text()) if r["role"] == "main"]
    assert record["value"] == pytest.approx(100 * (np.mean(hits < 0.5) - np.mean(hits < 0.2)), abs=1e-3)
    assert record["low"] > 0
    assert f"**{record['value']:+.2f}" in text


def test_trainings_of_one_model_and_several_baselines(shelf, other, data, tmp_path, capsys):
    models = f"plain={shelf / 'model'},both={shelf / 'model'}|{other}"
    fields = dict(models=models, baseline="plain,both", tatoeba=data / "tatoeba", every_layer=False)
    assert main(arguments(tmp_path, **fields)) == 0
    capsys.readouterr()
    scores = json.loads((tmp_path / "scores.json").read_text())
    value = {r["model"]: r["value"] for r in scores
             if (r["language"], r["direction"], r["pooling"]) == ("mean", "both", "mean")}  # fmt: skip
    assert list(value) == ["plain", "both", "both/1", "both/2"]
    assert value["both/1"] == value["plain"] and value["both"] == pytest.approx((value["both/1"] + value["both/2"]) / 2)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert {(r["model"], r["baseline"]) for r in differences} == {("both", "plain"), ("plain", "both")}
    text = (tmp_path / "report.md").read_text()
    assert "### Differences from plain" in text and "### Differences from both" in text and " ±" in text


def test_the_same_command_goes_on_and_measures_what_has_changed(shelf, other, data, tmp_path, monkeypatch, capsys):
    measured, tatoeba, run = [], tmp_path / "tatoeba", tmp_path / "run"
    shutil.copytree(data / "tatoeba", tatoeba)
    measure = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", lambda name, *args: measured.append(name) or measure(name, *args))

    def again(**fields):
        measured.clear()
        assert (
            main(arguments(run, **dict(models=f"a={shelf / 'model'}", tatoeba=tatoeba, every_layer=False) | fields))
            == 0
        )
        return list(measured)

    assert again() == ["a"]
    text = (run / "report.md").read_text()
    assert again() == [] and (run / "report.md").read_text() == text
    assert again(models=f"a={shelf / 'model'},b={other}", baseline="b") == ["b"]
    assert again(layer=1, max_length=9) == ["a"]
    with (tatoeba / "tatoeba.deu-eng.deu").open("a") as file, (tatoeba / "tatoeba.deu-eng.eng").open("a") as english:
        file.write("mehr\n")
        english.write("more\n")
    assert again() == ["a"]
    (tatoeba / "tatoeba.deu-eng.deu").touch()
    copy = shutil.copytree(shelf / "model", tmp_path / "copy", copy_function=shutil.copyfile)
    assert again(models=f"a={copy}") == [], "the same content, written at another time"
    text = (tatoeba / "tatoeba.deu-eng.deu").read_text()
    (tatoeba / "tatoeba.deu-eng.deu").write_text(text.replace("mehr", "viel"))
    assert again(models=f"a={copy}") == ["a"], "other content of the same size"
    own = shutil.copytree(shelf / "model", tmp_path / "own")
    sentence_transformers.write_modules(own, huggingface.read(own), sentence_transformers.Settings(1, "cls", 512))
    assert again(models=f"a={copy},own={own}") == ["own"], "a place at which every model is measured"
    more = shutil.copytree(data / "nway", tmp_path / "more")
    listed = {"parallel": f"{data / 'nway'}, {more}", "cka_batch": 5}
    assert (again(**listed), again(**listed)) == (["a"], [])
    write(more / "deu.txt", (more / "deu.txt").read_text().upper().splitlines())
    assert again(**listed) == ["a"], "a list may have spaces"


def test_one_length_and_one_place_for_all(shelf, data, tmp_path, capsys):
    """The same weights, one exported as trained on short sentences with [CLS]: nothing differs."""
    short = tmp_path / "short"
    pretrained = huggingface.read(shelf / "model")
    huggingface.write(short, pretrained, files_from=shelf / "model")
    sentence_transformers.write_modules(short, pretrained, sentence_transformers.Settings(1, "cls", 4))
    fields = dict(models=f"long={shelf / 'model'},{short}", tatoeba=data / "tatoeba", mining=data / "bucc")
    assert main(arguments(tmp_path / "run", **fields)) == 0
    differences = json.loads((tmp_path / "run/differences.json").read_text())
    assert {r["role"] for r in differences} == {"main", "own"} and {r["value"] for r in differences} == {0}
    assert {r["task"] for r in differences if r["role"] == "own"} == {"tatoeba", "bucc"}
    assert "512 tokens" in (tmp_path / "run/report.md").read_text()


def test_a_model_that_does_more_than_pool_is_measured_without_its_own_vectors(shelf, data, tmp_path, capsys):
    dense = tmp_path / "dense"
    pretrained = huggingface.read(shelf / "model")
    huggingface.write(dense, pretrained, files_from=shelf / "model")
    (dense / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.CNN", "path": "2_CNN"}]))
    assert main(arguments(tmp_path / "run", models=dense, tatoeba=data / "tatoeba")) == 0
    assert "dense: its own sentence vectors are not measured" in capsys.readouterr().err
    assert "unknown" in (tmp_path / "run/report.md").read_text()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"models": ""}, "config.models is empty"),
        ({"models": "a=,b"}, "config.models: 'a=' is not of the form DIR, NAME=DIR or"),
        ({"models": "lr=1e-4"}, "1e-4: no such directory"),
        ({"models": "/x/lr=1e-4/export"}, "/x/lr=1e-4/export: no such directory"),
        ({"models": "x/m,y/m"}, "config.models: two models are called m; write NAME=DIR"),
        ({"baseline": "b"}, "config.baseline=b: must be of model"),
        ({"sample": 0}, "no data: give one or more of config.tatoeba"),
        ({"layer": 0}, "config.layer=0: must be -1"),
        ({"layer": 5}, "config.layer=5: .* has 1 layers"),
        (
            {"parallel": "nway,nway", "cka_batch": 5},
            "config.parallel: the scores of nway would be named nway",
        ),
        ({"parallel": "nway,../data/nway/", "cka_batch": 5}, "rename the directory or give it only once"),
        ({"parallel": "tatoeba"}, "named tatoeba, like those of another test set"),
        ({"word_alignment_method": ""}, "config.word_alignment_method=: must be one of softmax, argmax"),
        ({"dtype": "half"}, "config.dtype=half: must be one of"),
        ({"models": "nowhere/to/be/found"}, "nowhere/to/be/found: no such directory"),
        ({"tatoeba": "nowhere"}, "config.tatoeba: no such directory"),
        ({"pairs": "en-de=nowhere.tsv"}, "config.pairs: no such file: nowhere.tsv"),
        ({"parallel": "../data/nway/../pairs", "cka_batch": 5}, "would be named pairs, like those of another"),
        ({"models": "a=nowhere,b=neither"}, "nowhere: no such directory"),
        ({"parallel": "nowhere"}, "config.parallel: .*nowhere"),
        ({"mining": "nowhere"}, "config.mining: .*nowhere"),
        ({"word_alignment": "nowhere"}, "config.word_alignment: .*nowhere"),
        ({"dictionaries": "nowhere"}, "config.dictionaries: .*nowhere"),
        ({"word_alignment_method": "argmax,x"}, "config.word_alignment_method=x: must be one of softmax, argmax"),
        ({"word_base": 2}, "config.word_base=2: must be -1"),
    ],
)
def test_mistakes(shelf, data, tmp_path, monkeypatch, error_line, fields, said):
    work = tmp_path / "data"
    for name in ("nway", "tatoeba", "pairs"):
        shutil.copytree(data / "nway", work / name)
    monkeypatch.chdir(work)
    assert main(arguments(tmp_path, **({"models": shelf / "model", "sample": 4} | fields))) == 2
    assert re.search(said, error_line())


def test_a_layer_that_a_later_model_lacks_is_found_before_the_first_is_measured(shelf, other, tmp_path, error_line):
    deep = tmp_path / "deep"
    shutil.copytree(other, deep)
    config = json.loads((deep / "config.json").read_text())
    (deep / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    run = tmp_path / "run"
    assert main(arguments(run, models=f"{deep},{shelf / 'model'}", sample=4, layer=5)) == 2
    assert re.search("config.layer=5: .*model has 1 layers", error_line())
    assert not (run / "scores.json").exists()


def test_a_model_with_a_vocabulary_of_another(shelf, data, tmp_path, error_line):
    broken = tmp_path / "broken"
    shutil.copytree(shelf / "model", broken)
    vocabulary = broken / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "\n".join(f"extra{i}" for i in range(900)) + "\n")
    run = tmp_path / "run"
    assert main(arguments(run, models=f"{shelf / 'model'},{broken}", tatoeba=data / "tatoeba")) == 2
    assert "vocab" in error_line()
    assert not (run / "scores.json").exists(), "found before the first model was measured"


def test_the_workdir_of_a_training_run_is_left_alone(shelf, tmp_path, error_line):
    (tmp_path / "checkpoints").mkdir()
    assert main(arguments(tmp_path, models=shelf / "model", sample=4)) == 2
    assert "has checkpoints but no config.json" in error_line() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "config.json").write_text('{"job": "finetune"}')
    assert main(arguments(tmp_path, models=shelf / "model", sample=4)) == 2
    assert "holds a run of the job finetune" in error_line() and len(list(tmp_path.iterdir())) == 2
