"""Runs of the main job on a tiny model: what they share."""

import re
import shutil
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file

from ppa_jax import config as configs
from ppa_jax.evaluation.report import training as report
from ppa_jax.jobs import new_model

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {
    "dtype": "float32",
    "data.pairs": "en-de=sample:0-300",
    "data.max_length": 24,
    "data.min_pieces": 1,
    "data.max_pair_pieces": 40,
    "train.steps": 10,
    "train.batch_size": 8,
    "train.learning_rate": 1e-3,
    "contrastive.queue_size": 16,
    "contrastive.momentum": 0.9,
    "contrastive.projection_dim": 8,
    "checkpoint.every": 3,
}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """What the runs share: the tiny model, the prepared corpora, compiled programs."""
    folder = tmp_path_factory.mktemp("shelf")
    config = configs.load(str(ROOT / "configs/ppa.py"))
    config.data.update(pairs="en-de=sample:0-300", cache=str(folder / "corpora"))
    config.model.update(vocab_size=400, hidden_size=32, num_layers=1, num_heads=2)
    new_model.write_random(config, folder / "model")
    return folder


@pytest.fixture(scope="session")
def other_matrix():
    """other_matrix(model, target): a copy of a model's directory in which one number of one matrix differs."""

    def copy(model, target):
        shutil.copytree(model, target)
        tensors = load_file(target / "model.safetensors")
        tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] += 1
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return target

    return copy


@pytest.fixture(scope="module")
def compilation(shelf):
    """Makes compiling cheap while a module is tested, and gives JAX's settings for it, for other processes."""
    settings = {
        "jax_compilation_cache_dir": str(shelf / "programs"),  # the same step serves many runs
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,  # optimising the tiny model's step takes longer than running it
    }
    old = {name: jax.config.values[name] for name in settings}
    for values in (settings, old):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.clear_caches()
        if values is settings:
            yield settings


@pytest.fixture(scope="session")
def command(shelf):
    """The arguments of a run in `workdir`; `fields` with None are left out."""

    def arguments(workdir, fields=(), config=ROOT / "configs/ppa.py"):
        given = {"init": shelf / "model", "data.cache": shelf / "corpora"} | FIELDS | dict(fields)
        return [f"--config={config}", f"--workdir={workdir}"] + [
            f"--config.{name}={value}" for name, value in given.items() if value is not None
        ]

    return arguments


@pytest.fixture
def error_line(capsys):
    """The one line for the user, the last on stderr, of the command just run."""

    def line():
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1 and err.endswith("\n"), err
        last = err.splitlines()[-1]
        assert last.startswith("error: "), err
        return last

    return line


@pytest.fixture
def no_pictures(monkeypatch):
    """Does without them: drawing takes a second or two."""
    monkeypatch.setattr(report, "plot_curves", lambda *args, **kwargs: False)
    monkeypatch.setattr(report, "plot_bars", lambda *args, **kwargs: None)


@pytest.fixture(scope="session")
def new_model_fields():
    """Of a run that makes its model."""
    return {
        "init": "",
        "pretrain.steps": 3,
        "pretrain.batch_size": 8,
        "model.hidden_size": 16,
        "model.num_layers": 1,
        "model.num_heads": 2,
        "model.vocab_size": 400,
    }
