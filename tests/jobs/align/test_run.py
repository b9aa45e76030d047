"""The main job through its command line: from sentences to an export, stopped and continued in every way."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import fake_storage
import jax
import numpy as np
import pytest

from ppa_jax import config as configs
from ppa_jax.data import sample
from ppa_jax.data.dictionaries import Dictionary, from_pairs, read_dictionaries
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.jobs.align.setup import Losses
from ppa_jax.main import main
from ppa_jax.training import sharding
from ppa_jax.training.checkpoint import load_latest_params
from ppa_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
STEPS = 10  # of a run, by the fixture `command`

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


@pytest.fixture(scope="module")
def whole(command, compilation, tmp_path_factory):
    """A run from the first step to the last on 8 devices: its workdir, what was compiled, the shapes of its batches."""
    workdir = tmp_path_factory.mktemp("whole")
    methods, steps, shapes = [], [], []
    make_step, put_batch = align_run.make_step, sharding.put_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            align_run,
            "make_step",
            lambda *args: methods.append(args[0]) or steps.append(make_step(*args)) or steps[-1],
        )
        patch.setattr(sharding, "put_batch", lambda *args: shapes.append(args[0].rows.ids.shape) or put_batch(*args))
        fields = {"eval.sample": 6, "eval.every": 4}
        assert main(command(workdir, fields | {"profile": "true"})) == 0
    return SimpleNamespace(workdir=workdir, method=methods[0], step=steps[0], shapes=shapes, fields=fields)


@contextlib.contextmanager
def signal_at(step, signum=signal.SIGTERM):
    """Within it the process sends itself a signal while the `step`-th of the steps it runs is running."""
    calls = iter(range(10**6))

    def count_tokens(batch):
        if next(calls) == step:  # the batch after this step is being put on the devices
            signal.raise_signal(signum)
        return 1, 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align_run, "count_tokens", count_tokens)
        yield


def final_params(workdir):
    step, params = load_latest_params(workdir / "checkpoints")
    assert step == STEPS
    return params


def assert_same_params(workdir, other):
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(other))


def steps_of(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def moments(workdir):
    """The evaluations in scores.json, each as often as it was kept."""
    scores = json.loads((workdir / "scores.json").read_text())
    return [r["model"] for r in scores if (r["language"], r["direction"], r["pooling"]) == ("mean", "both", "cls")]


# ---- a whole run ----


def test_what_a_run_leaves(whole):
    records = [json.loads(line) for line in (whole.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(STEPS))
    assert all({"loss", "tlm", "contrastive"} <= record.keys() for record in records)
    np.testing.assert_allclose([r["loss"] for r in records], [r["tlm"] + r["contrastive"] for r in records], rtol=1e-5)
    accuracy = [record["contrastive_accuracy"] for record in records]
    assert accuracy[0] is None, "the queue is empty"
    assert all(0 <= value <= 1 for value in accuracy[1:])
    assert json.loads((whole.workdir / "config.json").read_text())["contrastive"]["queue_size"] == 16
    assert moments(whole.workdir) == ["before", "step 4", "step 8", "after"]
    report = (whole.workdir / "report.md").read_text()
    assert "| **mean** |" in report and "sample:0-300 | 300 |" in report
    for picture in ("curves.png", "bars.png"):
        assert picture in report and (whole.workdir / picture).stat().st_size > 1000
    assert list((whole.workdir / "profile").rglob("*.xplane.pb")), "no trace"
    assert list((whole.workdir / "tensorboard").iterdir())


def test_text_in_several_languages_is_one_source(command, tmp_path):
    """Beside a pair: counted in the report, listed in the model card, and drawn from in every step."""
    fields = {
        "data.pairs": "ru-es-zh=sample:0-40,en-de=sample:0-40",
        "train.steps": 0,
        "train.epochs": 1,
        "data.max_pair_pieces": 100,
        "mesh.data": 1,
    }
    assert main(command(tmp_path, fields)) == 0
    assert len(read_metrics(tmp_path)) == 10, "80 lines in batches of 8"
    assert "| ru-es-zh | sample:0-40 | 40 | 40 |" in (tmp_path / "report.md").read_text()
    card = (tmp_path / "export/README.md").read_text()
    assert all(f"- {code}\n" in card for code in ("de", "en", "es", "ru", "zh"))
    assert set(json.loads((tmp_path / "config.json").read_text())["content"]["data"]) == {"ru-es-zh", "en-de"}


def test_random_pieces_are_of_the_tokenizer(whole):
    tokenizer = load_tokenizer(whole.workdir / "base")
    assert whole.method.vocab_size == tokenizer.vocab_size
    assert whole.method.special_ids == tokenizer.special_ids and len(tokenizer.special_ids) == 5


def test_words_are_aligned_beside_the_sentences(whole, command, tmp_path):
    """word_alignment of the sample's own dictionary: the words come together, the other losses stay in the sum."""
    fields = {"word_alignment.weight": 10, "word_alignment.dictionaries": "sample", "train.steps": 4}
    assert main(command(tmp_path, fields)) == 0
    records = read_metrics(tmp_path)
    total = [r["tlm"] + r["contrastive"] - 10 * r["word_alignment"] for r in records]
    np.testing.assert_allclose([r["loss"] for r in records], total, rtol=1e-5)
    cosines = [r["word_alignment"] for r in records]
    assert cosines == sorted(cosines) and cosines[-1] > cosines[0] + 0.01
    first = read_metrics(whole.workdir)[0]  # the same batch and weights
    np.testing.assert_allclose(
        [records[0]["tlm"], records[0]["contrastive"]], [first["tlm"], first["contrastive"]], rtol=1e-4
    )
    saved = {(d.source, d.target): d for d in read_dictionaries(tmp_path / "export/dictionaries")}
    assert saved == {("en", x): from_pairs("en", x, sample.dictionary("en", x)) for x in ("de", "es", "ru", "zh")}
    assert "+ alignment of word embeddings x 10" in (tmp_path / "report.md").read_text()


def test_dictionaries_of_files_get_capitals_and_need_no_english(tmp_path):
    (tmp_path / "de-fr.tsv").write_text("haus\tmaison\n")
    config = configs.load(str(ROOT / "configs/ppa.py"))
    config.word_alignment.update(weight=1.0, dictionaries=str(tmp_path))
    for asked, entries in (
        (True, {"haus": ["maison", "Maison"], "Haus": ["Maison", "maison"]}),
        (False, {"haus": ["maison"]}),
    ):
        config.word_alignment.capitalised = asked
        assert align_setup.read_word_alignment(config, Losses(word_alignment=1.0)) == [Dictionary("de", "fr", entries)]


def test_the_export_holds_the_trained_weights(whole, shelf):
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    export = whole.workdir / "export"
    trained = final_params(whole.workdir)
    full, info = AutoModelForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    words = full.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(words, trained["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    transform = full.cls.predictions.transform.dense.weight.detach().numpy()
    np.testing.assert_array_equal(transform.T, trained["mlm_head"]["transform"]["kernel"])
    query = AutoModel.from_pretrained(export).encoder.layer[0].attention.self.query.weight.detach().numpy()
    np.testing.assert_array_equal(query.T, trained["encoder"]["layer_0"]["attention"]["query"]["kernel"])
    text = "The dog sleeps."
    assert AutoTokenizer.from_pretrained(export)(text) == AutoTokenizer.from_pretrained(shelf / "model")(text)


def test_one_step_is_compiled_for_each_shape_in_use(whole):
    assert len(whole.shapes) == STEPS
    assert whole.step._cache_size() == len(set(whole.shapes)) == 1


def test_epochs_say_how_many_steps(command, tmp_path, monkeypatch):
    """The demo's recipe has steps: giving epochs unsets them."""
    runs = []
    monkeypatch.setattr(align_run, "train", runs.append)
    fields = {"train.steps": None, "train.epochs": 0.3, "mesh.data": 1, "eval.sample": 0}
    assert main(command(tmp_path, fields, config=f"{ROOT / 'configs/ppa.py'}:demo")) == 0
    pairs = sum(len(pair) for pair in runs[0].pairs)
    assert 100 < pairs < 300
    assert runs[0].steps == -(-3 * pairs // 80)  # the last batch is completed


# ---- stopped and continued ----


def test_sigterm_saves_and_the_same_command_goes_on(whole, command, tmp_path, capsys):
    with signal_at(5):
        assert main(command(tmp_path, whole.fields)) == 143
    assert capsys.readouterr().err.endswith("\nstopped by SIGTERM at step 5; the same command resumes there\n")
    assert steps_of(tmp_path) == list(range(5))
    assert main(command(tmp_path, whole.fields)) == 0
    assert "resuming from the checkpoint of step 5" in capsys.readouterr().err
    assert steps_of(tmp_path) == list(range(STEPS))
    assert moments(tmp_path) == ["before", "step 4", "step 8", "after"]
    assert_same_params(tmp_path, whole.workdir)


def test_moments_are_compared_on_the_same_sentences(command, tmp_path):
    """A run that goes on without an evaluation, and is measured on other sentences when it is done."""
    with signal_at(5):
        assert main(command(tmp_path, {"eval.sample": 6})) == 143
    assert main(command(tmp_path, {"eval.sample": 0})) == 0
    assert "Not measured in this run" in (tmp_path / "export/README.md").read_text()
    assert main(command(tmp_path, {"eval.sample": 7})) == 0
    scores = [r for r in json.loads((tmp_path / "scores.json").read_text()) if r["language"] == "de"]
    counts = {r["model"]: r["count"] for r in scores if r["direction"] != "both"}
    assert counts == {"before": 7, "after": 7}


def test_ctrl_c_saves(command, tmp_path, capsys):
    with signal_at(2, signal.SIGINT):
        assert main(command(tmp_path)) == 130
    assert capsys.readouterr().err.endswith("\nstopped by SIGINT at step 2; the same command resumes there\n")
    assert (tmp_path / "checkpoints/2/checksums.json").exists()


def test_kill_9_at_any_moment(whole, command, compilation, tmp_path):
    """The first process dies at a moment of chance, checkpoints being written; the same command ends the run."""
    delay = random.uniform(0.0, 1.2)
    script = f"""
        import os, signal, sys, threading, time
        from ppa_jax.jobs.align import run as align_run
        from ppa_jax.main import main

        def count_tokens(batch):  # a step takes 0.1 s, ten of them a second: the delay falls on any, or just after
            if not timer.is_alive():
                timer.start()
            time.sleep(0.1)
            return 1, 1

        timer = threading.Timer({delay}, lambda: os.kill(os.getpid(), signal.SIGKILL))
        align_run.count_tokens = count_tokens
        main(sys.argv[1:])
        time.sleep(60)
    """
    fields = {"checkpoint.every": 1}
    environment = os.environ | {name.upper(): str(value) for name, value in compilation.items()}
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *command(tmp_path, fields)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(command(tmp_path, fields)) == 0, f"after {delay:.3f} s"
    assert steps_of(tmp_path) == list(range(STEPS)), f"after {delay:.3f} s"
    assert_same_params(tmp_path, whole.workdir)


def test_a_run_in_a_bucket_goes_on_on_another_machine(
    whole, command, compilation, storage, tmp_path, monkeypatch, capsys
):
    """The first machine vanishes between two checkpoints; on the second one there is nothing but the bucket."""
    script = """
        import sys, time
        from ppa_jax.jobs.align import run as align_run
        from ppa_jax.main import main
        align_run.count_tokens = lambda batch: time.sleep(0.3) or (1, 1)
        main(sys.argv[1:])
    """
    address = f"gs://{fake_storage.BUCKET}/run"
    settings = {name.upper(): str(value) for name, value in compilation.items()}
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *command(address, whole.fields)],
        cwd=ROOT, env=os.environ | settings | {"HOME": str(tmp_path / "one")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while "run/checkpoints/3/checksums.json" not in storage.objects:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.1)
    finally:
        first.kill()
        first.communicate()
    monkeypatch.setenv("HOME", str(tmp_path / "two"))
    assert main(command(address, whole.fields)) == 0
    said = capsys.readouterr()
    assert "resuming from the checkpoint of step 3" in said.err and f"report: {address}/report.md" in said.out
    storage.copy_to("run/", tmp_path / "run")
    assert steps_of(tmp_path / "run") == list(range(STEPS))
    assert_same_params(tmp_path / "run", whole.workdir)
    assert moments(tmp_path / "run") == moments(whole.workdir), "measured twice, or lost"
    for name in ("model.safetensors", "modules.json"):
        assert (tmp_path / "run/export" / name).read_bytes() == (whole.workdir / "export" / name).read_bytes()


OBJECTIVES = [
    (
        {"contrastive.objective": "ranking", "contrastive.margin": 0.1, "contrastive.learn_temperature": "true"},
        "translation ranking x 1 (layer 1, cls, both directions in the batch, learned temperature 0.05, margin 0.1)",
    ),
    (
        {"contrastive.objective": "ranking", "rtl.weight": 0.1, "tlm.weight": 0},
        "+ representation translation into en x 0.1 (layer 1)",
    ),
    ({"contrastive.symmetric": "true"}, "contrast of whole sentences x 1 (layer 1, cls, both directions, queue 16"),
]


@pytest.mark.parametrize(("fields", "says"), OBJECTIVES, ids=lambda x: None if isinstance(x, str) else next(iter(x)))
def test_every_objective_goes_on_to_the_bit_and_is_named(command, tmp_path, fields, says):
    fields = fields | {"train.steps": 4, "mesh.data": 2, "checkpoint.every": 2}
    assert main(command(tmp_path / "whole", fields)) == 0
    with signal_at(2):
        assert main(command(tmp_path / "run", fields)) == 143
    assert main(command(tmp_path / "run", fields)) == 0
    (step, params), (_, expected) = (load_latest_params(tmp_path / x / "checkpoints") for x in ("run", "whole"))
    assert step == 4 and steps_of(tmp_path / "run") == list(range(4))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    for file in ("report.md", "export/README.md"):
        assert says in (tmp_path / "run" / file).read_text()


@pytest.fixture(scope="module")
def halfway(command, compilation, tmp_path_factory):
    """A run on 8 devices with checkpoints of steps 3 and 6, stopped at 6."""
    workdir = tmp_path_factory.mktemp("halfway")
    with signal_at(6):
        assert main(command(workdir)) == 143
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]
    return workdir


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 2)])
def test_a_run_of_8_devices_continues_on_fewer(whole, halfway, command, tmp_path, devices, accumulate):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    assert main(command(workdir, {"mesh.data": devices, "train.accumulate": accumulate})) == 0
    assert steps_of(workdir) == list(range(STEPS))
    # Sums in another order, in float32: relative rounding of 1e-7 a step, which Adam and four steps carry on.
    losses = [[record["loss"] for record in read_metrics(run)] for run in (workdir, whole.workdir)]
    np.testing.assert_allclose(losses[0][6:], losses[1][6:], rtol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("timed out"), ValueError("no address")])
def test_hosts_connect_when_their_corpora_are_prepared(command, tmp_path, monkeypatch, error_line, error):
    """A signal before that ends the process. The launchers start again after any error but a user's mistake."""
    cache = tmp_path / "corpora"

    def initialize(initialization_timeout):
        assert list(cache.rglob("prepared.json")) and initialization_timeout > 600
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    arguments = command(tmp_path / "run", {"mesh.distributed": True, "data.cache": cache})
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match=r"the hosts cannot be connected \(timed out\)"):
            main(arguments)
    else:
        assert main(arguments) == 2
        assert "the hosts cannot be connected (no address)" in error_line()


def test_processes_make_the_same_batches(whole, halfway, command, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    assert main(command(workdir, {"data.workers": 2})) == 0
    assert_same_params(workdir, whole.workdir)


def test_a_signal_to_all_leaves_the_makers_of_batches_alone(command, tmp_path, monkeypatch):
    """A terminal's Ctrl-C reaches them, too, and the run wants batches until it has saved."""
    runs = []
    monkeypatch.setattr(align_run, "train", runs.append)
    assert main(command(tmp_path)) == 0
    batches = runs[0].batches.iterate(0, 40, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, signum)
    assert len(list(batches)) == 39
    batches.close()
    assert not multiprocessing.active_children()


def test_a_damaged_newest_checkpoint_falls_back(whole, halfway, command, tmp_path, capsys):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    largest = max((workdir / "checkpoints/6").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert main(command(workdir)) == 0
    err = capsys.readouterr().err
    assert f"warning: checkpoint {workdir / 'checkpoints/6'}: damaged" in err
    assert "resuming from the checkpoint of step 3" in err
    assert steps_of(workdir) == list(range(STEPS))
    assert_same_params(workdir, whole.workdir)


def test_a_new_model_is_pretrained_first_and_stops_in_either_phase(command, tmp_path, capsys, new_model_fields):
    fields = new_model_fields | {"mesh.data": 1, "train.steps": 3}
    pretraining = tmp_path / "new_model/run"
    with signal_at(2):
        assert main(command(tmp_path, fields)) == 143
    assert capsys.readouterr().err.endswith("\nstopped by SIGTERM at step 2; the same command resumes there\n")
    assert steps_of(pretraining) == [0, 1] and not (tmp_path / "metrics.jsonl").exists()
    with signal_at(2):  # one step is left of the pretraining: its batch is the first, the alignment's are the next
        assert main(command(tmp_path, fields)) == 143
    assert capsys.readouterr().err.endswith("\nstopped by SIGTERM at step 1; the same command resumes there\n")
    assert steps_of(pretraining) == [0, 1, 2] and steps_of(tmp_path) == [0]
    written = ("config.json", "checkpoints")
    (tmp_path / "kept").mkdir()
    for name in written:  # as if it had stopped between the two
        (tmp_path / name).rename(tmp_path / "kept" / name)
    for name, before in (("pretrain.steps", 3), ("model.hidden_size", 16)):
        assert main(command(tmp_path, fields | {name: 32})) == 2
        assert f"holds a different run ({name}: {before} -> 32)" in capsys.readouterr().err
    for name in written:
        (tmp_path / "kept" / name).rename(tmp_path / name)
    assert all(record["contrastive"] is None for record in read_metrics(pretraining))
    assert main(command(tmp_path, fields)) == 0
    assert "pretraining" not in capsys.readouterr().err
    assert steps_of(tmp_path) == [0, 1, 2]
    assert json.loads((tmp_path / "export/config.json").read_text())["hidden_size"] == 16


# ---- what may change in a workdir, and what may not ----


def test_settings_that_are_no_part_of_the_run_may_change(whole, command, tmp_path):
    workdir = shutil.copytree(whole.workdir, tmp_path / "run")
    changed = {"eval.every": 3, "checkpoint.every": 5, "checkpoint.keep": 1, "log.tensorboard": "false"}
    assert main(command(workdir, {"eval.sample": 6} | changed)) == 0
    assert moments(workdir) == ["before", "step 4", "step 8", "after"], "a run that had ended was measured again"
    assert_same_params(workdir, whole.workdir)


def test_the_export_is_chosen_on_held_out_pairs(whole, command, tmp_path, capsys):
    """Translations with the same words and others: the means are more alike than the states of [CLS]."""
    workdir, text = shutil.copytree(whole.workdir, tmp_path / "run"), tmp_path / "dev.tsv"
    english, rng = sample.sentences("en", 400, 500), random.Random(0)
    words = " ".join(english).split()
    text.write_text("".join(f"{x}\t{x} {' '.join(rng.sample(words, len(x.split())))}\n" for x in english))
    fields = {"eval.pairs": f"en-de={text}", "export.select": "true"}

    def pooling():
        flags = json.loads((workdir / "export/1_Pooling/config.json").read_text())
        return [name for name, flag in flags.items() if name.startswith("pooling_mode") and flag]

    assert pooling() == ["pooling_mode_cls_token"]
    assert main(command(workdir, whole.fields | fields)) == 0
    assert pooling() == ["pooling_mode_mean_tokens"]
    told = re.search(r"layer 1, mean, chosen on eval.pairs \(\*\*\+(.*) \[", (workdir / "report.md").read_text())
    records = json.loads((workdir / "scores.json").read_text())
    both = {(r["task"], r["pooling"]): r["value"] for r in records
            if (r["model"], r["language"], r["direction"]) == ("after", "mean", "both")}  # fmt: skip
    assert set(both) == {(task, kind) for task in ("sample", "pairs") for kind in ("cls", "mean")}
    assert float(told[1]) == pytest.approx(both["pairs", "mean"] - both["pairs", "cls"], abs=0.01)
    assert "chosen on eval.pairs" in (workdir / "export/README.md").read_text()
    assert main(command(workdir, whole.fields | fields | {"export.select": "false"})) == 0
    assert pooling() == ["pooling_mode_cls_token"] and "chosen" not in (workdir / "report.md").read_text()
    assert_same_params(workdir, whole.workdir)


def test_another_run_is_refused(whole, command, error_line):
    assert main(command(whole.workdir, {"seed": 1, "contrastive.temperature": 0.1})) == 2
    line = error_line()
    assert "contrastive.temperature: 0.05 -> 0.1" in line and "seed: 0 -> 1" in line and "--workdir" in line
    assert "train" not in line, "fields that agree are named"
    assert main(command(whole.workdir, {"data.pairs": "en-de=sample:0-290"})) == 2
    line = error_line()
    assert "data.pairs: en-de=sample:0-300 -> en-de=sample:0-290" in line and "--config.init" not in line
    assert main(command(whole.workdir, {"train.steps": STEPS + 5})) == 2
    line = error_line()
    assert f"train.steps: {STEPS} -> {STEPS + 5}" in line
    assert line.endswith(f"from the export of this one: --workdir=NEW --config.init={whole.workdir}/export")


def test_another_model_or_other_text_under_the_same_names_is_refused(
    command, shelf, tmp_path, other_matrix, error_line
):
    text = tmp_path / "text.tsv"
    text.write_text("".join(f"the cat {i}\tdie Katze {i}\n" for i in range(100, 200)))
    model = shutil.copytree(shelf / "model", tmp_path / "model")
    fields = {"data.pairs": f"en-de={text}", "data.cache": tmp_path / "cache", "init": model, "train.steps": 1}
    assert main(command(tmp_path / "run", fields)) == 0
    os.utime(text)
    assert main(command(tmp_path / "run", fields)) == 0, "the same text, prepared again"
    other_matrix(model, tmp_path / "other").joinpath("model.safetensors").rename(model / "model.safetensors")
    assert main(command(tmp_path / "run", fields)) == 2
    assert "content.model" in error_line()
    shutil.copytree(shelf / "model", model, dirs_exist_ok=True)
    text.write_text(text.read_text().replace("cat 100", "cat 101"))
    assert main(command(tmp_path / "run", fields)) == 2
    assert "content.data.en-de: [100, " in error_line()


def test_a_wrong_workdir(whole, command, tmp_path, error_line):
    (tmp_path / "file").touch()
    assert main(command(tmp_path / "file")) == 2
    assert "file: is a file; give a directory" in error_line()
    workdir = shutil.copytree(whole.workdir, tmp_path / "run")
    (workdir / "config.json").write_text("{")
    assert main(command(workdir)) == 2
    assert "config.json: not a configuration" in error_line()
    (workdir / "config.json").unlink()
    assert main(command(workdir)) == 2
    assert "has checkpoints but no config.json" in error_line()
