"""Layer ablation on a tiny model: fine-tuning where nothing is re-initialised, compiled once, resumed, refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ppa_jax import config as configs
from ppa_jax.errors import UserError
from ppa_jax.evaluation.similarity import MEASURES
from ppa_jax.interop import huggingface
from ppa_jax.jobs import new_model
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.main import main
from ppa_jax.model.reinitialise import reinitialise
from ppa_jax.studies.layer_ablation import report
from ppa_jax.studies.layer_ablation import run as layer_ablation

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs/layer_ablation.py"

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one size with different weights."""
    folder = tmp_path_factory.mktemp("models")
    config = configs.load(str(ROOT / "configs/ppa.py"))
    config.data.update(pairs="en-de=sample:0-300", cache=str(folder / "corpora"))
    config.model.update(vocab_size=300, hidden_size=16, num_layers=3, num_heads=2)
    for seed, name in enumerate("ab"):
        config.seed = seed
        new_model.write_random(config, folder / name)
    return folder


def arguments(workdir, models, config=CONFIG, **fields):
    given = {
        "init": f"a={models}/a,b={models}/b", "dtype": "float32", "seeds": "0,1", "data.train": "en=sample:300-340",
        "data.test": "en=sample:340-350,de=sample:340-350,es=sample:340-350", "data.max_length": 32, "train.epochs": 0,
        "train.steps": 3, "train.batch_size": 8, "train.learning_rate": 1e-3, "test_batch_size": 8,
        "mesh.data": 1, "log.tensorboard": False,
    } | fields  # fmt: skip
    return [f"--config={config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items())]


SIMILARITY = {
    "ablations": "1,2-3",
    "parallel": "sample:400-416",
    "similarity.batch": 8,
    "similarity.sentences": 16,
}


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """The workdir, and the steps that were made."""
    workdir, made = tmp_path_factory.mktemp("ablated"), []
    with pytest.MonkeyPatch.context() as patch:
        make_step = finetune.make_step
        patch.setattr(finetune, "make_step", lambda *a, **k: made.append(make_step(*a, **k)) or made[-1])
        assert main(arguments(workdir, models, **SIMILARITY)) == 0
    return workdir, made


def test_the_files_of_a_run(whole):
    workdir, _ = whole
    scores, similarity, movement = (
        json.loads((workdir / f"{kind}.json").read_text()) for kind in ("scores", "similarity", "movement")
    )
    sets = ["none", "1", "2-3"]
    assert {(r["model"], r["ablation"], r["seed"]) for r in scores} == {
        (m, s, k) for m in "ab" for s in sets for k in (0, 1)
    }
    assert {r["language"] for r in scores} == {"en", "de", "es"} and all("content" not in r for r in scores)
    assert {r["ablation"] for r in similarity} == {"", *sets} and {r["layer"] for r in similarity} == {0, 1, 2, 3}
    assert {r["language"] for r in similarity} == {"de", "es"}, "those that are tested"
    assert {r["measure"] for r in similarity} == {*MEASURES}, "all, as the weights are not kept"
    unchanged = [r for r in movement if r["ablation"] == "none"]
    assert all(0 < r["distance"] < 1 and r["cka_linear"] > 0.1 and r["retrieval"] > 0.5 for r in unchanged)
    text = (workdir / "report.md").read_text()
    assert "## Summary" in text and "| 2-3 |" in text and "| block 3 |" in text
    assert not list(workdir.glob("**/trained")) and (workdir / "losses.png").exists()


def test_one_compiled_step_serves_all_sets_models_and_seeds(whole):
    _, made = whole
    (step,) = made
    assert step._cache_size() <= 2, "one program for each length of rows"


def test_without_ablation_it_is_fine_tuning(whole, models, tmp_path):
    workdir, _ = whole
    assert main(arguments(tmp_path, models, config=ROOT / "configs/tagging.py")) == 0
    theirs = {
        (r["model"], r["seed"], r["language"]): r["value"] for r in json.loads((tmp_path / "scores.json").read_text())
    }
    ours = {
        (r["model"], r["seed"], r["language"]): r["value"]
        for r in json.loads((workdir / "scores.json").read_text())
        if r["ablation"] == "none"
    }
    assert ours == theirs


class Begun(Exception):
    """Raised in place of a training."""


@pytest.mark.parametrize("keep", [False, True])
def test_fine_tuning_starts_from_the_reinitialised_blocks(models, tmp_path, monkeypatch, keep):
    """For every set and seed, bit by bit; what is not named is the pretrained model's."""
    began, run_one = {}, layer_ablation.run_one

    def train(setup, pretrained, seed, directory):
        began[directory.parent.name, seed] = pretrained.params["encoder"]
        raise Begun

    def until_training(*args):
        with pytest.raises(Begun):
            run_one(*args)
        return {}

    monkeypatch.setattr(finetune_run, "train", train)
    monkeypatch.setattr(layer_ablation, "run_one", until_training)
    monkeypatch.setattr(report, "write", lambda *args, **fields: ("", ""))
    given = {"init": f"{models}/a", "ablations": "1,2-3", "keep_layer_norm": keep}
    assert main(arguments(tmp_path, models, **given)) == 0
    model = huggingface.read(models / "a")
    pretrained = model.params["encoder"]
    sets = {"none": (), "1": (1,), "2-3": (2, 3)}
    assert {*began} == {(name, seed) for name in sets for seed in (0, 1)}
    for (name, seed), found in began.items():
        drawn = {f"layer_{block - 1}" for block in sets[name]}
        wanted = reinitialise(pretrained, model.config, sets[name], seed, keep_layer_norm=keep)
        for part in pretrained:
            jax.tree.map(np.testing.assert_array_equal, found[part], wanted[part])
            same = jax.tree.map(np.array_equal, found[part], pretrained[part])
            if part in drawn:
                assert not same["attention"]["query"]["kernel"] and not same["feed_forward"]["output"]["kernel"]
            else:
                assert all(jax.tree.leaves(same)), part
    kernels = [began["1", seed]["layer_0"]["attention"]["query"]["kernel"] for seed in (0, 1)]
    assert not np.array_equal(*kernels)


def test_nothing_is_done_again_and_sets_may_be_added(whole, models, monkeypatch):
    workdir, _ = whole
    before, trained = json.loads((workdir / "scores.json").read_text()), []
    train = finetune_run.train
    monkeypatch.setattr(finetune_run, "train", lambda *args: trained.append(args[2]) or train(*args))
    assert main(arguments(workdir, models, **SIMILARITY)) == 0 and not trained
    assert json.loads((workdir / "scores.json").read_text()) == before
    assert main(arguments(workdir, models, **SIMILARITY | {"ablations": "1,2-3,1+3", "init": f"b={models}/b"})) == 0
    assert trained == [0, 1]


@pytest.mark.parametrize(
    "spec, depth, expected",
    [
        ("pairs", 5, {"1-2": (1, 2), "3-4": (3, 4), "5": (5,)}),
        ("singles", 2, {"1": (1,), "2": (2,)}),
        ("upwards", 3, {"1-3": (1, 2, 3), "2-3": (2, 3), "3": (3,)}),
        ("none,4+1, 2-4", 4, {"1+4": (1, 4), "2-4": (2, 3, 4)}),
        ("", 4, {}),
    ],
)
def test_sets_of_blocks(spec, depth, expected):
    assert layer_ablation.ablations(spec, depth) == {"none": (), **expected}


@pytest.mark.parametrize("spec", ["0", "5", "3-5", "4-2", "pair", "1,,x", "-2"])
def test_invalid_sets(spec):
    with pytest.raises(UserError, match=r"config\.ablations: "):
        layer_ablation.ablations(spec, 4)


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            {"data.train": "en=sample:0-9,de=sample:0-9"},
            "config.data.train=en=sample:0-9,de=sample:0-9: give one language",
        ),
        ({"data.test": ""}, "config.data.test is empty"),
        ({"parallel": "sample:5-3"}, "config.parallel=sample:5-3: write sample or sample:A-B"),
        (
            {"parallel": "sample:0-300", "similarity.measure": "cca"},
            "similarity.measure=cca: must be one of cka",
        ),
        ({"similarity.sentences": 5}, "config.similarity.sentences=5: must be"),
        ({"ablations": "0-2"}, "config.ablations: '0-2': the model numbers its blocks from 1 upwards"),
        ({"ablations": "7"}, "config.ablations: '7': the model has blocks 1 to 3"),
        ({"data.test": "en=sample:340-350"}, "config.data.test: give the source language, en, and targets"),
        ({"data.test": "en=sample:340-350,ru=sample:340-350"}, "was tested on other sets"),
    ],
)
def test_mistakes(whole, models, error_line, fields, said):
    assert main(arguments(whole[0], models, **SIMILARITY | fields)) == 2
    assert said in error_line()


def test_models_that_differ_only_in_a_matrix_are_refused(whole, models, tmp_path, other_matrix, error_line):
    """Untrained ones, of which all biases and LayerNorms are equal, and one of which a single matrix is changed."""
    other = other_matrix(models / "a", tmp_path / "other")
    for init in (f"a={models}/b", f"a={other}"):
        assert main(arguments(whole[0], models, init=init, **SIMILARITY)) == 2
        assert "holds a different run (content.model: " in error_line()


def test_parsing_is_ablated_too(models, tmp_path):
    given = {"task": "parsing", "init": f"{models}/a", "seeds": "0", "ablations": "1", "train.steps": 2}
    assert main(arguments(tmp_path, models, **given)) == 0
    records = json.loads((tmp_path / "scores.json").read_text())
    assert {r["ablation"] for r in records} == {"none", "1"} and {r["metric"] for r in records} >= {"las", "uas"}
    assert np.isfinite([r["value"] for r in records]).all()
    assert "no border is drawn" in (tmp_path / "report.md").read_text()
