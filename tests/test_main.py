"""The command line: its arguments, its lines on stderr, its exit status."""

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import absl.logging
import jax
import pytest

import ppa_jax
from ppa_jax.errors import UserError
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.main import main, parse

ROOT = Path(__file__).resolve().parents[1]


BAD_ARGUMENTS = [
    ([], "--config is missing"),
    (["--config=configs/ppa.py"], "--workdir is missing; e.g."),
    (["--config=configs/ppa.py", "--workdir=w", "runs/x"], "runs/x: unexpected; arguments have the form"),
    (["--config"], "Missing value for flag --config; there are"),
    (["--workdir="], "--config is missing"),
    (["--config=configs/ppa.py", "--workdir=w", "--confg=x"], "Unknown command line flag 'confg'; arguments have"),
    (["--config=configs/ppa.py", "--workdir=w", "--config.seed"], "Missing value for flag --config.seed; arguments"),
    (["--config=configs/ppa.py", "--workdir=w", "--config.train.lr=1"], "the nearest is config.train.learning_rate"),
    (
        ["--config=configs/ppa.py", "--workdir=s3://bucket/x"],
        "s3://bucket/x: s3:// is not supported; give a local path or gs://BUCKET/NAME",
    ),
    (["--config=configs/none.py", "--workdir=w"], "no such file: configs/none.py"),
    (["--config=configs/ppa.py:fast", "--workdir=w"], "unknown mode 'fast'; there are: demo, demo_words"),
    (["--config=README.txt", "--workdir=w"], "README.txt is not a Python file"),
    (["--config=broken.py", "--workdir=w"], r"broken.py cannot be read \(SyntaxError"),
    (["--config=other.py", "--workdir=w"], "other.py has no get_config"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_ARGUMENTS, ids=lambda x: x if isinstance(x, str) else "")
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, content in (("README.txt", "words"), ("broken.py", "def get_config(:"), ("other.py", "x = 1")):
        (tmp_path / name).write_text(content)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(says, err)


def test_a_workdir_that_is_a_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for config in ("ppa", "evaluate"):
        assert main([f"--config=configs/{config}.py", "--workdir=README.md"]) == 2
        assert capsys.readouterr().err == "error: --workdir=README.md: is a file; give a directory\n"


@pytest.mark.parametrize("given", ["~/x", "a/../x", "x/"])
def test_a_workdir_is_spelled_in_one_way(monkeypatch, given):
    monkeypatch.setenv("HOME", "/home/me")
    wanted = "/home/me/x" if given.startswith("~") else "x"
    assert parse(["--config=ppa", f"--workdir={given}"])[1] == wanted
    assert parse(["--config=ppa", "--workdir=gs://bucket/x/"])[1] == "gs://bucket/x/"
    config, workdir = parse(["--config", "ppa", "--workdir", given, "--config.seed", "3", "--config.profile"])
    assert (workdir, config.seed, config.profile) == (wanted, 3, True)


def test_a_workdir_below_a_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["--config=configs/ppa.py:demo", "--workdir=README.md/x"]) == 2
    assert re.search("error: README.md/x.*: Not a directory; give another --workdir\n$", capsys.readouterr().err)


def test_a_workdir_of_another_job(monkeypatch, tmp_path, capsys):
    """Found before anything is read."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "config.json").write_text('{"job": "finetune"}')
    for config, job in (("ppa", "align"), ("evaluate", "evaluate"), ("layer_ablation", "ablate_layers")):
        assert main([f"--config=configs/{config}.py", f"--workdir={tmp_path}"]) == 2
        assert f"{tmp_path} holds a run of the job finetune, and this is {job}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "--config.field=value"),
        (["--config=ppa:demo", "--help"], "--config.train.steps=400 +optimizer steps"),
        (["--version"], re.escape(ppa_jax.__version__)),
    ],
)
def test_help_and_version(capsys, arguments, says):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert not done.value.code and re.search(says, capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments", [["main", "--config=ppa:demo", "--workdir=w"], ["convert", "verify", "--source=x"]]
)
def test_a_platform_that_is_not_there(arguments):
    """In a process of its own: JAX looks for devices once."""
    module, *rest = arguments
    command = [sys.executable, "-m", f"ppa_jax.{module}", *rest]
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=cuda: JAX finds no such device")


COMMAND = ["--config=configs/ppa.py", "--workdir=w", "--config.init=x", "--config.data.pairs=en-de=sample"]


def run_instead(monkeypatch, job):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is off in a background job of a shell
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(align_setup, "open_run", job)
    return main(COMMAND)


def test_ctrl_c_before_training_has_begun(monkeypatch, capsys):
    assert run_instead(monkeypatch, lambda *args: signal.raise_signal(signal.SIGINT)) == 130
    said = "stopped by SIGINT; the same command resumes from the last checkpoint, if there is one\n"
    assert capsys.readouterr().err == said


def test_too_little_memory_on_the_devices(monkeypatch, capsys):
    def too_much(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes.\nMore of it")

    assert run_instead(monkeypatch, too_much) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "17 bytes" in err and "train.accumulate" in err


def test_a_mistake_of_the_programmers_is_not_called_the_users(monkeypatch):
    with pytest.raises(FileNotFoundError):
        run_instead(monkeypatch, lambda *args: Path("/no/such/file").read_text())


def test_log_lines(monkeypatch, capsys):
    """Facts as they are, warnings of anyone marked as such, and nothing twice however often the job is run."""

    def log(*args):
        absl.logging.info("a fact of %d words", 5)
        logging.getLogger("another.library").warning("mind this")
        logging.getLogger("another.library").info("never mind")
        raise UserError("a mistake\nin two lines")

    for _ in range(2):
        another = logging.StreamHandler()  # as absl makes one by itself
        monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers, another])
        assert run_instead(monkeypatch, log) == 2
        assert another in logging.getLogger().handlers
        at = r"\d\d:\d\d:\d\d "
        expected = rf"{at}a fact of 5 words\n{at}warning: mind this\nerror: a mistake in two lines\n"
        assert re.fullmatch(expected, capsys.readouterr().err)
