"""A workdir belongs to one run."""

import hashlib
import json
import os

import pytest

from ppa_jax.errors import UserError
from ppa_jax.training import identity
from ppa_jax.training.identity import check_identity, check_job, write_identity

CONFIG = {"seed": 0, "data": {"pairs": ["en-de=x"], "max_length": 64}, "eval": {"every": 0}, "evaluate": {"k": 1}}


def changed(**fields):
    config = json.loads(json.dumps(CONFIG))
    for field, value in fields.items():
        *groups, name = field.split("__")
        at = config
        for group in groups:
            at = at[group]
        at[name] = value
    return config


def test_the_same_run_is_let_in_and_an_empty_workdir_is_free(tmp_path):
    assert not check_identity(tmp_path / "new", CONFIG)
    write_identity(tmp_path / "new", CONFIG | {"data": {"pairs": ("en-de=x",), "max_length": 64}})
    assert check_identity(tmp_path / "new", CONFIG)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.json"]


def test_another_run_is_refused_with_its_fields(tmp_path):
    write_identity(tmp_path, CONFIG)
    with pytest.raises(UserError) as error:
        check_identity(tmp_path, changed(seed=1, data__max_length=128, data__new=True), may_change=("eval",))
    assert str(error.value) == (
        f"workdir: {tmp_path} holds another run "
        "(data.max_length: 64 -> 128; data.new: (absent) -> True; seed: 0 -> 1); "
        "give another --workdir, or the settings this run began with"
    )


def test_what_may_change_is_a_group_not_a_prefix_of_letters(tmp_path):
    write_identity(tmp_path, CONFIG)
    assert check_identity(tmp_path, changed(eval__every=5), may_change=("eval",))
    assert check_identity(tmp_path, changed(eval__every=5), may_change=("eval.every",))
    with pytest.raises(UserError, match=r"evaluate\.k: 1 -> 2"):
        check_identity(tmp_path, changed(evaluate__k=2), may_change=("eval",))


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path, hashed, file_digest = tmp_path / "weights", [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(args) or file_digest(*args))
    for content, times in ((b"abc", 1), (b"abd", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(times, times))
        assert identity.file_digest(path) == identity.file_digest(path) == hashlib.sha256(content).hexdigest()
        assert len(hashed) == times


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: not a configuration"):
        check_identity(tmp_path, CONFIG)


def test_a_workdir_is_of_one_job(tmp_path):
    assert check_job(tmp_path, "align") is None
    (tmp_path / "log").touch()  # whatever else lies there is no run's
    assert check_job(tmp_path, "align") is None
    write_identity(tmp_path, {"job": "align", "seed": 0})
    assert check_job(tmp_path, "align") == {"job": "align", "seed": 0}
    with pytest.raises(UserError, match=r"holds a run of the job align, and this is evaluate; give another --workdir$"):
        check_job(tmp_path, "evaluate")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')  # a Hugging Face model's directory
    with pytest.raises(UserError, match=r"holds a config.json that is not a run's; give another --workdir$"):
        check_job(tmp_path, "evaluate")


@pytest.mark.parametrize("name", ["checkpoints", "export", "scores.json", "report.md"])
def test_what_a_run_left_is_not_written_over_without_its_config(tmp_path, name):
    (tmp_path / name).mkdir()
    for check in (lambda: check_job(tmp_path, "align"), lambda: check_identity(tmp_path, CONFIG)):
        with pytest.raises(UserError, match=rf"has {name} but no config.json; give another --workdir$"):
            check()
