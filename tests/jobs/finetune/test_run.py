"""Fine-tuning on a tiny model: equal results after a kill, exports for transformers, one line per mistake."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ppa_jax.interop import huggingface
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.main import main
from ppa_jax.tasks import code_switching, nli, tagging
from ppa_jax.tasks.batches import LENGTHS, FeatureBatches, in_order_of_length, stack
from ppa_jax.tasks.task import IGNORE, Feature
from ppa_jax.training import checkpoint
from ppa_jax.training.metrics import read_metrics

CONFIG = Path(__file__).resolve().parents[3] / "configs/xnli.py"
WORDS = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture(scope="module", autouse=True)
def _compilation(compilation):
    return compilation


def rows(language, count, seed=0):
    """Entailed when the animal is the same, contradicted when it is not, neutral when there is none."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label, word, other = rng.integers(3), *rng.permutation(WORDS)[:2]
        hypothesis = [f"a {word}", "it rains", f"no {other}"][label]
        found.append(f"The {word} sleeps in {language}\t{hypothesis}\t{nli.LABELS[label]}")
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("nli")
    for language in ("en", "de", "es"):
        (path / f"train.{language}.tsv").write_text("\n".join(rows(language, 60)) + "\n")
        (path / f"test.{language}.tsv").write_text("\n".join(rows(language, 10, seed=1)) + "\n")
    return path


def arguments(workdir, shelf, files, config=CONFIG, **fields):
    given = {
        "init": shelf / "model", "dtype": "float32", "seeds": "0,1", "data.train": f"en={files}/train.en.tsv",
        "data.test": f"{files}/test.{{lang}}.tsv", "data.max_length": 32, "train.batch_size": 8, "train.epochs": 0,
        "train.steps": 6, "train.warmup": 0.1, "train.learning_rate": 1e-3, "test_batch_size": 8,
        "checkpoint.every": 2, "mesh.data": 2,
    } | fields  # fmt: skip
    return [f"--config={config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items())]


@pytest.fixture(scope="module")
def whole(shelf, files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert main(arguments(workdir, shelf, files)) == 0
    return workdir


def test_the_files_of_a_run(whole, files):
    scores = json.loads((whole / "scores.json").read_text())
    assert all(list(record) == ["task", "seed", "language", "metric", "value", "count"] for record in scores)
    assert {(r["seed"], r["language"]) for r in scores} == {(s, x) for s in (0, 1) for x in ("en", "de", "es")}
    assert all(r["count"] == 10 and 0 <= r["value"] <= 100 for r in scores)
    assert not list(whole.glob("**/checkpoints")) and not list(whole.glob("**/best")), "they have the optimizer's state"
    report = (whole / "report.md").read_text()
    assert "| **mean** |" in report and "±" in report and (whole / "bars.png").stat().st_size > 1000
    predicted = [line.split("\t")[1] for line in (whole / "seed-1/predictions/de.tsv").read_text().splitlines()]
    gold = [line.split("\t")[2] for line in (files / "test.de.tsv").read_text().splitlines()]
    (value,) = (r["value"] for r in scores if (r["seed"], r["language"]) == (1, "de"))
    assert value == 100 * np.mean([a == b for a, b in zip(predicted, gold, strict=True)])


def test_the_export_is_what_was_trained(whole, files):
    """With its tokenizer; test_method.py compares it with transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    export = whole / "seed-0/export"
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    lines = [line.split("\t") for line in (files / "test.en.tsv").read_text().splitlines()]
    inputs = AutoTokenizer.from_pretrained(export)(
        [x[0] for x in lines], [x[1] for x in lines], padding=True, return_tensors="pt"
    )
    chosen = [model.config.id2label[i] for i in model(**inputs).logits.argmax(dim=1).tolist()]
    written = [line.split("\t")[1] for line in (whole / "seed-0/predictions/en.tsv").read_text().splitlines()]
    assert chosen == written


def test_the_pooler_of_the_checkpoint_is_kept(tiny, tmp_path):
    """As transformers does for BERT; the classifier of XLM-R has a layer of its own."""

    def kept(task, directory):
        return finetune_run.pretrained_head(task, huggingface.read(directory))

    for name, found in (("BertModel", {"pooler"}), ("XLMRobertaModel", set())):
        tiny(name, num_hidden_layers=1).save_pretrained(tmp_path / name)
        assert set(kept(nli, tmp_path / name)) == found and not kept(tagging, tmp_path / name)


def test_a_kill_changes_nothing(whole, shelf, files, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    make_step, calls = finetune.make_step, []

    def dying(*args, **kwargs):
        step = make_step(*args, **kwargs)

        def one(state, batch):
            calls.append(1)
            if len(calls) == 6 + 4:  # the second seed, its fifth step
                raise Killed
            return step(state, batch)

        return one

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "make_step", dying)
        main(arguments(tmp_path, shelf, files))
    assert not (tmp_path / "seed-1/trained").exists() and (tmp_path / "seed-0/export/model.safetensors").exists()
    before = (tmp_path / "seed-0/trained/checksums.json").stat().st_mtime_ns
    assert main(arguments(tmp_path, shelf, files)) == 0
    assert (tmp_path / "seed-0/trained/checksums.json").stat().st_mtime_ns == before, "a seed that was done began again"
    for seed in (0, 1):
        one, other = (checkpoint.load_params(path / f"seed-{seed}/trained") for path in (whole, tmp_path))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (tmp_path / "scores.json").read_text() == (whole / "scores.json").read_text()
    assert [r["step"] for r in read_metrics(tmp_path / "seed-1")] == list(range(6))


def test_one_device_trains_like_two(whole, shelf, files, tmp_path):
    assert main(arguments(tmp_path, shelf, files, **{"mesh.data": 1, "seeds": "0"})) == 0
    one, two = ([r["loss"] for r in read_metrics(path / "seed-0")] for path in (tmp_path, whole))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert one[-1] != one[0]


def test_remat_and_scan_train_alike(whole, shelf, files, tmp_path):
    assert main(arguments(tmp_path, shelf, files, **{"train.remat": True, "train.scan": True, "seeds": "0"})) == 0
    saving, usual = ([r["loss"] for r in read_metrics(path / "seed-0")] for path in (tmp_path, whole))
    np.testing.assert_allclose(saving, usual, rtol=1e-5)


def test_a_test_set_that_has_grown_is_tested_again(shelf, files, tmp_path):
    path = tmp_path / "grows.tsv"
    lines = (files / "test.en.tsv").read_text().splitlines()
    for lines_there, count in ((4, 4), (10, 8)):
        path.write_text("\n".join(lines[:lines_there]) + "\n")
        given = {"data.test": f"en={path}", "data.test_examples": 8, "seeds": "0"}
        assert main(arguments(tmp_path / "run", shelf, files, **given)) == 0
        (record,) = json.loads((tmp_path / "run/scores.json").read_text())
        assert record["count"] == count
    # Killed while it was saved: the seed is trained again, and exported.
    (tmp_path / "run/seed-0/trained/checksums.json").unlink()
    shutil.rmtree(tmp_path / "run/seed-0/export")
    assert main(arguments(tmp_path / "run", shelf, files, **{"data.test": f"en={path}", "seeds": "0"})) == 0
    assert (tmp_path / "run/seed-0/export/config.json").exists()


def test_several_models_side_by_side(whole, shelf, files, tmp_path, monkeypatch, error_line):
    """Each as it would be alone, with one step compiled for all; a model can be added later."""
    made, make_step = [], finetune.make_step
    monkeypatch.setattr(finetune, "make_step", lambda *args, **kwargs: made.append(1) or make_step(*args, **kwargs))
    other = whole / "seed-0/export"  # of the same size
    for init in (f"one={shelf / 'model'}", f"one={shelf / 'model'},two={other}"):
        assert main(arguments(tmp_path, shelf, files, init=init)) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    alone = json.loads((whole / "scores.json").read_text())
    assert [{k: v for k, v in r.items() if k != "model"} for r in scores if r["model"] == "one"] == alone
    assert [r["model"] for r in scores] == ["one"] * 6 + ["two"] * 6
    assert len(made) == 2, "once for each of the two commands, whatever models and seeds"
    report = (tmp_path / "report.md").read_text()
    assert "| two - one |" in report and "by Student's t" in report
    assert (tmp_path / "two/seed-1/export/model.safetensors").exists()
    assert not (tmp_path / "two/seed-1/checkpoints").exists()
    assert main(arguments(tmp_path, shelf, files, init=f"two={other}", seeds="0")) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == scores, "what is not named stays"
    assert "two - one" not in (tmp_path / "report.md").read_text()
    for init in (f"three={shelf / 'model'}", shelf / "model"):  # names of its own would not tell it from this run
        assert main(arguments(tmp_path, shelf, files, init=init, **{"train.learning_rate": 1e-4})) == 2
        assert "holds a different run" in error_line() and not (tmp_path / "three").exists()
    assert main(arguments(tmp_path, shelf, files, init=f"three={shelf / 'model'},one={other}")) == 2
    assert "holds a different run (content.model" in error_line() and not (tmp_path / "three").exists(), "all or none"
    moved = f"en={files}/../{files.name}/train.en.tsv"  # as in a workdir that has the data, when that is moved
    assert main(arguments(tmp_path, shelf, files, init=f"three={other}", seeds="0", **{"data.train": moved})) == 0


def test_a_model_without_a_name_is_joined_by_others(whole, shelf, files, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    assert main(arguments(tmp_path / "run", shelf, files, init=f"two={whole / 'seed-0/export'}", seeds="0")) == 0
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert [r.get("model") for r in scores] == [None] * 6 + ["two"] * 3


def test_stops_early_and_takes_the_best(shelf, files, tmp_path, monkeypatch, capsys):
    """As many steps as patience allows, though the run was killed while it scored the dev set."""
    values = iter([50.0, 70.0, None, 60.0, 65.0, 10.0, 10.0, 10.0])
    seen = []

    class Killed(BaseException):
        pass

    def score(run, params, test):
        if test.language != "en":
            return {"accuracy": nli.Score(1.0, 1)}, ["neutral"] * len(test.examples)
        seen.append(jax.tree.map(np.array, jax.device_get(params)))
        if (value := next(values)) is None:
            raise Killed
        return {"accuracy": nli.Score(value, 1)}, ["neutral"] * len(test.examples)

    monkeypatch.setattr(finetune_run, "score", score)
    fields = {"data.dev": f"en={files}/test.en.tsv", "data.test": f"de={files}/test.de.tsv", "eval.every": 2,
              "eval.patience": 2, "train.steps": 20, "seeds": "0", "checkpoint.every": 2}  # fmt: skip
    with pytest.raises(Killed):
        main(arguments(tmp_path, shelf, files, **fields))
    assert main(arguments(tmp_path, shelf, files, **fields)) == 0
    assert json.loads((tmp_path / "seed-0/dev.json").read_text()) == [[2, 50.0], [4, 70.0], [6, 60.0], [8, 65.0]]
    assert [r["step"] for r in read_metrics(tmp_path / "seed-0")] == list(range(8))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(tmp_path / "seed-0/trained"), seen[1])
    assert "the best so far" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code_switch, rate, kinds",
    [
        (None, 0.5, {"en-en", "en-de", "de-en", "de-de", "en-es", "es-en", "es-es"}),  # the recipe: PPA's pivot=en
        ("pivot=en", 0.0, {"en-en", "de-de", "es-es"}),
        ("uniform", 1.0, {"en-de", "de-en", "en-es", "es-en", "de-es", "es-de"}),
        ("en=0.5,de=0.5,es=0", 1.0, {"en-de", "de-en"}),
    ],
)
def test_code_switched_rows_mix_the_languages(shelf, files, tmp_path, code_switch, rate, kinds):
    """By content, down to the pieces: each side in a language of the setting, rows and labels as they were."""
    parts = [line.split("\t") for line in rows("town", 60)]
    for language in ("en", "de", "es"):
        lines = [f"{language} {premise}\t{hypothesis} {language}\t{label}" for premise, hypothesis, label in parts]
        (tmp_path / f"train.{language}.tsv").write_text("\n".join(lines) + "\n")
    fields = {"data.train": f"{tmp_path}/train.{{lang}}.tsv", "data.switch_rate": rate}
    fields |= {} if code_switch is None else {"data.code_switch": code_switch}
    (model,) = finetune_setup.open_models(loaded(arguments(tmp_path, shelf, files, **fields)), tmp_path / "run")
    setup, spec = model.setup, model.setup.config.data.code_switch
    examples = code_switching.code_switch(nli, setup.examples["train"], spec, rate, 0)
    assert len(examples) == 3 * 60
    found = []
    for number, example in enumerate(examples):
        premise, hypothesis, label = parts[number % 60]
        first, last = example.premise.split()[0], example.hypothesis.split()[-1]
        assert (example.premise, example.hypothesis) == (f"{first} {premise}", f"{hypothesis} {last}")
        assert example.label == label and example.language == (first if first == last else f"{first}-{last}")
        found.append(f"{first}-{last}")
    assert set(found) == kinds
    assert abs(np.mean([kind[:2] != kind[3:] for kind in found]) - rate) < 0.15
    ids = [f.ids for f in setup.training_features(0)]
    ends = setup.tokenizer.encode([side for e in examples for side in (e.premise.split()[0], e.hypothesis.split()[-1])])
    assert all(x[1] == a[0] and x[-2] == b[-1] for x, a, b in zip(ids, ends[::2], ends[1::2], strict=True))
    assert ids == [f.ids for f in setup.training_features(0)] != [f.ids for f in setup.training_features(1)]


def test_languages_that_code_switching_leaves_out_are_reported(shelf, files, tmp_path, error_line):
    fields = {"data.train": f"{files}/train.{{lang}}.tsv", "data.code_switch": "en=0.5,de=0.5"}
    assert main(arguments(tmp_path / "run", shelf, files, **fields)) == 2
    assert "es: must name the languages of config.data.train, de, en, es" in error_line()


def loaded(args):
    from ppa_jax.main import parse

    return parse(args)[0]


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"task": "nl"}, "config.task=nl: must be one of nli, qa, tagging, parsing, or a Python file"),
        ({"init": ""}, "config.init is empty"),
        ({"data.train": ""}, "config.data.train is empty"),
        ({"data.train": "train.tsv"}, "'train.tsv' is not of the form LANGUAGE=FILE"),
        ({"data.train": "en=none.tsv"}, "config.data.train: no such file: none.tsv"),
        ({"data.test": "none.{lang}.tsv"}, "config.data.test: no file none.{lang}.tsv"),
        ({"init": "a=x,y"}, "config.init: 'y': write DIR, or NAME=DIR,OTHER=DIR"),
        ({"init": "a=x,a=y"}, "config.init: 'a=y': write DIR"),
        ({"seeds": "0,x"}, "config.seeds=0,x: must be numbers"),
        ({"seeds": "1,1"}, "config.seeds=1,1: must be different"),
        ({"train.epochs": 1}, "give one of them"),
        ({"train.steps": 0, "train.epochs": "1e9"}, "config.train.epochs=1000000000.0: 7.5e+09 steps; must be below"),
        ({"test_batch_size": 10**9}, "config.test_batch_size=1000000000: must be greater than 0, at most 2**20"),
        ({"init": "..=x"}, "config.init: '..=x': .. becomes a directory in the workdir"),
        ({"eval.patience": 1}, "config.eval.patience: early stopping needs"),
        ({"eval.every": 1}, "config.data.dev and config.eval.every: one without the other"),
        ({"data.switch_rate": 2}, "config.data.switch_rate=2.0: must be from 0 to 1"),
        ({"data.code_switch": "uniform"}, "give translations in config.data.train, in two or more languages"),
        ({"data.max_length": 10_000}, "config.data.max_length=10000: the model's positions end at 512"),
        (
            {"data.test": "fr=sample:0-10"},
            "config.data.test: sample:0-10: the built-in sample has en, de, es, ru, zh, not fr",
        ),
    ],
)
def test_mistakes(shelf, files, tmp_path, monkeypatch, error_line, fields, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(tmp_path / "run", shelf, files, **fields)) == 2
    assert re.search(re.escape(said), error_line())
    assert not (tmp_path / "run/config.json").exists()


def test_another_run_is_refused(whole, shelf, files, error_line):
    assert main(arguments(whole, shelf, files, **{"train.learning_rate": 1e-4})) == 2
    assert "train.learning_rate: 0.001 -> 0.0001" in error_line()


def test_a_model_that_differs_in_one_matrix_is_refused(whole, shelf, files, tmp_path, other_matrix, error_line):
    """Otherwise it would get the scores of the first model, which is not trained again; a copy is accepted."""
    copy = shutil.copytree(shelf / "model", tmp_path / "copy")
    assert main(arguments(whole, shelf, files, init=copy)) == 0
    assert main(arguments(whole, shelf, files, init=other_matrix(copy, tmp_path / "other"))) == 2
    assert re.search(r"holds a different run \(content\.model: \w{16} -> \w{16}\)", error_line())


def test_more_seeds_and_tests_need_no_new_training(whole, shelf, files, tmp_path, monkeypatch):
    whole = shutil.copytree(whole, tmp_path / "whole")
    monkeypatch.setattr(finetune, "make_step", None)
    fields = {"data.test": f"de={files}/test.de.tsv,fr={files}/test.es.tsv", "seeds": "1"}
    assert main(arguments(whole, shelf, files, **fields)) == 0
    scores = json.loads((whole / "scores.json").read_text())
    assert [(r["seed"], r["language"]) for r in scores] == [
        *((0, x) for x in ("de", "en", "es")), *((1, x) for x in ("en", "es", "de", "fr"))
    ]  # fmt: skip
    report = (whole / "report.md").read_text()
    assert "| seeds | 1 |" in report and "| **mean** |" in report, "that of the seed with both test sets"
    assert "| de |" in report and "| es |" not in report, "tested by this command"


@pytest.mark.parametrize(
    "name, metrics, written",
    [
        ("tagging", ["accuracy"], ["de.tsv", "ru.conllu"]),
        ("parsing", ["las", "uas", "las_no_punct", "uas_no_punct"], ["de.conllu", "ru.conllu"]),
        ("mlqa", ["f1", "em", "squad_f1", "squad_em"], ["de-en.json", "ru.json"]),
    ],
)
def test_every_configuration(shelf, tmp_path, name, metrics, written):
    """From training to scores and predictions; predictions are also written for a test set without gold."""
    raw = tmp_path / "raw"
    words = ("\t".join([number, word, *"________"]) for number, word in (("1", "он"), ("2", "спит")))
    raw.write_text("\n".join(["# sent_id = 1", *words, ""]))
    if name == "mlqa":
        question = {"id": "q", "question": "Кто спит?"}
        raw.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Он спит.", "qas": [question]}]}]}))
    german = "de/en" if name == "mlqa" else "de"
    fields = {"data.train": "en=sample:0-40", "data.test": f"{german}=sample:90-99,ru={raw}", "seeds": "0",
              "data.max_length": 96, "train.steps": 2}  # fmt: skip
    config = CONFIG.with_name(f"{name}.py")
    assert main(arguments(tmp_path / "run", shelf, None, config, **fields)) == 0
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert [(r["language"], r["metric"]) for r in scores] == [(german, metric) for metric in metrics]
    assert sorted(path.name for path in (tmp_path / "run/seed-0/predictions").iterdir()) == written
    if name != "mlqa":
        rows = (tmp_path / "run/seed-0/predictions/ru.conllu").read_text().splitlines()[1:3]
        assert [row.split("\t")[1] for row in rows] == ["он", "спит"]
        column = {"tagging": 3, "parsing": 6}[name]
        assert all(row.split("\t")[column] != "_" for row in rows)


def test_the_task_of_the_documentation(shelf, tmp_path, error_line):
    """docs/finetuning.md: a task is one file."""
    text = (CONFIG.parents[1] / "docs/finetuning.md").read_text()
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def features" in block]
    (tmp_path / "topics.py").write_text(source)
    (tmp_path / "en.tsv").write_text("".join(f"the {word} sleeps\t{word}\n" for word in WORDS * 4))
    data = f"en={tmp_path}/en.tsv"
    given = {"task": tmp_path / "topics.py", "data.train": data, "data.test": data, "seeds": "0"}
    assert main(arguments(tmp_path / "run", shelf, tmp_path, **given)) == 0
    (record,) = json.loads((tmp_path / "run/scores.json").read_text())
    assert (record["metric"], record["count"]) == ("accuracy", 20)
    assert len((tmp_path / "run/seed-0/predictions/en.txt").read_text().split()) == 20
    labels = json.loads((tmp_path / "run/seed-0/export/config.json").read_text())["id2label"]
    assert labels == {str(i): word for i, word in enumerate(sorted(WORDS))}
    (tmp_path / "topics.py").write_text(source.replace("def score", "def scored"))
    assert main(arguments(tmp_path / "other", shelf, tmp_path, **given)) == 2
    assert "topics.py has no score; ppa_jax/tasks/task.py lists what it needs" in error_line()


# ---- batches ----


def feature(i, n):
    return Feature(i, [i + 5] * n, [0] * n, {"tags": [i] * n}, {"label": i})


@pytest.mark.parametrize("count, size", [(1000, 8), (300, 32), (3696, 32), (5, 8), (65, 32)])
def test_every_epoch_has_every_feature_once(count, size):
    rng = np.random.default_rng(0)
    batches = FeatureBatches([feature(i, int(n)) for i, n in enumerate(rng.integers(3, 60, count))], size, 3, 0, 512)
    seen = np.concatenate([batches.rows(t) for t in range(-(-4 * count // size))])
    for epoch in range(4):
        assert sorted(seen[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_little_padding_and_the_same_batches_for_the_same_seed():
    rng = np.random.default_rng(0)
    features = [feature(i, int(n)) for i, n in enumerate(rng.integers(3, 60, 1000))]
    batches = FeatureBatches(features, 8, 3, 0, 512)
    places, real = 0, 0
    for batch in batches.iterate(0, 200):
        assert batch["ids"].shape[1] in LENGTHS
        places, real = places + batch["mask"].size, real + batch["mask"].sum()
    assert real / places > 0.75
    again = FeatureBatches(features, 8, 3, 0, 512)
    np.testing.assert_array_equal(again.rows(70), batches.rows(70))
    assert (FeatureBatches(features, 8, 4, 0, 512).rows(70) != batches.rows(70)).any()


def test_a_batch_is_padded_and_the_last_one_filled_up():
    batch = stack([feature(0, 3), feature(1, 17)], pad_id=9, limit=512)
    assert batch["ids"].shape == (2, 32) and batch["ids"][0].tolist() == [5] * 3 + [9] * 29
    assert batch["mask"].sum(1).tolist() == [3, 17] and batch["label"].tolist() == [0, 1]
    assert stack([feature(0, 17)], 9, limit=20)["ids"].shape == (1, 20), "no positions past the model's"
    assert batch["tags"][1].tolist() == [1] * 17 + [IGNORE] * 15
    found = list(in_order_of_length([feature(i, 20 - i) for i in range(5)], 2, 0, 512))
    assert [rows for rows, _ in found] == [[4, 3], [2, 1], [0]]
    assert found[-1][1]["label"].tolist() == [0, 0]
