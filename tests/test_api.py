"""align from Python: the scores that the command leaves, mistakes as exceptions, the given configuration unchanged."""

import json

import pytest

from ppa_jax import align
from ppa_jax import config as configs
from ppa_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


@pytest.fixture
def fields(command):
    """Of a short run, as overrides."""
    arguments = command("unused", {"train.steps": 2, "eval.sample": 8, "data.pairs": "en-de=sample:0-300"})[2:]
    return dict(argument.removeprefix("--config.").split("=", 1) for argument in arguments)


def test_returns_the_scores_and_resumes(tmp_path, fields):
    config = configs.load("ppa")
    scores = align(config, tmp_path / "run", fields)
    assert scores == json.loads((tmp_path / "run/scores.json").read_text())
    assert {score["model"] for score in scores} == {"before", "after"} and 0 <= scores[0]["value"] <= 100
    assert (config.init, config.train.steps) == ("", 0)
    written = (tmp_path / "run/export/model.safetensors").stat()
    assert align("ppa", str(tmp_path / "run"), fields | {"train.clip": 1.0}) == scores
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "run/export/model.safetensors").stat().st_size == written.st_size


def test_mistakes_are_exceptions(tmp_path):
    with pytest.raises(UserError, match=r"the nearest is config\.train\.learning_rate"):
        align("ppa", tmp_path, {"train.lr": 1.0})
    with pytest.raises(UserError, match=r"data\.pairs is empty"):
        align("ppa", tmp_path, {"init": "x"})
    assert not list(tmp_path.iterdir())
