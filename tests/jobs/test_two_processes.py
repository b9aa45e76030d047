"""Runs of two processes, connected over the loopback: equal to one, saved together, and not left hanging."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fake_storage
import numpy as np
import pytest

from ppa_jax.interop import huggingface
from ppa_jax.main import main
from ppa_jax.training.checkpoint import load_params
from ppa_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
PROCESS = """
import os, signal, sys
sys.modules["torch"] = None  # as on a TPU host; transformers would import it, for a second or two
import jax
import numpy as np
from jax.sharding import Mesh

def interleaved(shape, names, devices):  # as on a torus, where a host's devices are no neighbours
    by_process = np.array(devices).reshape(2, -1)
    return Mesh(by_process.T.reshape(shape), names)

if sys.argv[3] == "interleaved":
    jax.make_mesh = interleaved
jax.distributed.initialize(
    sys.argv[1],
    num_processes=int(os.environ["PROCESSES"]),
    process_id=int(sys.argv[2]),
    heartbeat_timeout_seconds=30,  # JAX's own is 100
)
if sys.argv[3] == "signalled" and int(sys.argv[2]) == int(os.environ["PROCESSES"]) - 1:
    os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[3] == "refused" and sys.argv[2] == "0":
    from ppa_jax.errors import UserError
    from ppa_jax.jobs.align import run as align_run
    def refuse(*_):
        raise UserError("what this process alone has met")
    align_run.log_facts = refuse
from ppa_jax.evaluation.report import training as report
from ppa_jax.evaluation.report import tasks as task_report
from ppa_jax.main import main
for reports in (report, task_report):  # as the fixture no_pictures
    reports.plot_curves = reports.plot_bars = lambda *_, **__: None
sys.exit(main(sys.argv[4:]))
"""

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module", autouse=True)
def _compilation(compilation):
    return compilation


@pytest.fixture
def start(compilation, command, shelf):
    """Starts both processes of a run in a workdir, or as many as are wanted; each has two devices."""
    started = []

    def processes(workdir, form="plain", homes=None, count=2, arguments=None, **fields):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        settings = {name.upper(): str(value) for name, value in compilation.items()}
        settings |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PROCESSES": str(count)}
        environment = os.environ | settings
        own = [{} if homes is None else {"HOME": str(homes / str(number))} for number in range(count)]
        arguments = arguments or command(workdir, FIELDS | {"mesh.distributed": True} | fields)
        for number in range(count):
            started.append(subprocess.Popen(
                [sys.executable, "-c", PROCESS, address, str(number), form, *arguments],
                env=environment | own[number],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            ))  # fmt: skip
        return started[-count:]

    yield processes
    for process in started:
        process.kill()
        process.communicate()


FIELDS = {
    "train.steps": STEPS,
    "checkpoint.every": 10,
    "train.learning_rate": 1e-4,
    "contrastive.queue_size": 8 * STEPS,  # all keys of a run: the queue's hashes say which sentences came, in order
    "log.tensorboard": False,
    "eval.sample": 20,
}


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    assert main(command(workdir, FIELDS)) == 0
    return workdir


def assert_same(workdir, alone):
    """Losses of every step, the queue, and what comes out. Tolerance: float32 sums in another order, over 30 steps."""
    found, expected = ([(r["step"], r["loss"]) for r in read_metrics(path)] for path in (workdir, alone))
    assert [step for step, _ in found] == list(range(STEPS))
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], rtol=1e-4)
    scores, expected = (json.loads((path / "scores.json").read_text()) for path in (workdir, alone))
    assert {record["model"] for record in scores} == {"before", "after"}
    # [CLS] of random weights is nearly the same for all sentences: which is nearest is a matter of rounding.
    assert [r for r in scores if r["pooling"] == "mean"] == [r for r in expected if r["pooling"] == "mean"]
    queue, expected = (load_params(path / f"checkpoints/{STEPS}")["queue"] for path in (workdir, alone))
    assert np.count_nonzero(expected["hashes"]) == 8 * STEPS
    np.testing.assert_array_equal(queue["hashes"], expected["hashes"])  # no pair twice, none lost
    np.testing.assert_allclose(queue["keys"], expected["keys"], atol=1e-4)
    ours, theirs = (huggingface.read(path / "export").params["encoder"] for path in (workdir, alone))
    for name in ours:
        for one, other in zip(*map(flat, (ours[name], theirs[name])), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def flat(tree):
    return [x for value in tree.values() for x in flat(value)] if isinstance(tree, dict) else [np.asarray(tree)]


def wait(process, seconds=240):
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def until_step(workdir, step, processes):
    for _ in range(2400):
        if (workdir / "metrics.jsonl").exists() and len(read_metrics(workdir)) > step:
            return
        for process in processes:
            assert process.poll() is None, wait(process)[1]
        time.sleep(0.1)
    raise AssertionError("the run did not come so far")


def test_two_processes_are_as_one(start, alone, tmp_path):
    """Their devices need not be neighbours in the mesh, and a group that splits parameters may span both."""
    for process in start(tmp_path, "interleaved", **{"mesh.rules": "fsdp", "mesh.fsdp": 2}):
        status, said = wait(process)
        assert status == 0, said
    assert_same(tmp_path, alone)


def test_fine_tuning_by_two_processes_is_as_by_one(start, shelf, tmp_path):
    """With a dev set, whose best parameters are taken, and test sets; given again, nothing is left to do."""
    given = {
        "init": shelf / "model", "dtype": "float32", "seeds": "0", "data.train": "en=sample:0-60",
        "data.dev": "en=sample:60-80", "data.test": "en=sample:80-100,de=sample:80-100", "data.max_length": 32,
        "train.batch_size": 8, "train.epochs": 0, "train.steps": 12, "train.learning_rate": 1e-2, "test_batch_size": 8,
        "checkpoint.every": 2, "eval.every": 3, "eval.patience": 9, "mesh.rules": "fsdp", "log.tensorboard": False,
    }  # fmt: skip
    settings = [f"--config={ROOT}/configs/tagging.py", *(f"--config.{name}={value}" for name, value in given.items())]
    assert main([*settings, f"--workdir={tmp_path / 'alone'}"]) == 0
    for _ in range(2):
        two = [*settings, f"--workdir={tmp_path / 'two'}", "--config.mesh.distributed=true"]
        for process in start(tmp_path / "two", arguments=two):
            status, said = wait(process)
            assert status == 0, said
    losses = [[r["loss"] for r in read_metrics(tmp_path / run / "seed-0")] for run in ("two", "alone")]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for name in ("scores.json", "seed-0/dev.json"):
        ours, theirs = (json.loads((tmp_path / run / name).read_text()) for run in ("two", "alone"))
        assert ours == theirs and ours


def test_two_machines_share_a_bucket_alone(start, storage, tmp_path, new_model_fields):
    """What the first one makes, a new model among it, comes to the other through the bucket; so does it to new ones."""
    fields = new_model_fields | {"mesh.rules": "fsdp", "train.steps": 4, "eval.sample": 0}
    address = f"gs://{fake_storage.BUCKET}/two"
    for process in start(address, "signalled", tmp_path / "homes", **fields):  # while the new model is pretrained
        status, said = wait(process)
        assert status == 143, said
    for process in start(f"{address}/", homes=tmp_path / "others", **fields):
        status, said = wait(process)
        assert status == 0, said
    storage.copy_to("two/", tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2, 3]
    exported, trained = huggingface.read(tmp_path / "export").params, load_params(tmp_path / "checkpoints/4")["params"]
    words = [tree["encoder"]["embeddings"]["word_embeddings"]["embedding"] for tree in (exported, trained)]
    np.testing.assert_array_equal(*words)


def test_sigterm_to_one_saves_on_both_and_one_goes_on(start, command, alone, tmp_path):
    processes = start(tmp_path)
    until_step(tmp_path, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        status, said = wait(process)
        assert status == 143 and "the same command resumes there" in said, said
    done = len(read_metrics(tmp_path))
    assert 3 < done < STEPS
    for process in start(tmp_path, "signalled"):  # one that comes before the first step counts, too
        status, said = wait(process)
        assert status == 143 and "the same command resumes there" in said, said
    assert done <= len(read_metrics(tmp_path)) < STEPS
    assert main(command(tmp_path, FIELDS)) == 0  # one process of eight devices
    assert_same(tmp_path, alone)


def test_a_process_that_is_connected_alone_stops(start, tmp_path):
    """As on a TPU of one host, which tpu_vm.sh starts as it does many."""
    (process,) = start(tmp_path, "signalled", count=1)  # before the first step
    status, said = wait(process)
    assert status == 143 and len(read_metrics(tmp_path)) < 5, said


def test_what_one_process_alone_refuses_ends_all(start, tmp_path):
    began = time.monotonic()
    processes = start(tmp_path, "refused")
    status, said = wait(processes[0])
    assert status == 2 and "error: what this process alone has met\n" in said, said
    assert wait(processes[1])[0] not in (0, 2)
    assert time.monotonic() - began < 120  # JAX waits for 300 s


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_other(start, tmp_path, dead):
    processes = start(tmp_path, **{"train.steps": 2000})
    until_step(tmp_path, 3, processes)
    processes[dead].kill()
    began = time.monotonic()
    status, said = wait(processes[1 - dead])
    assert time.monotonic() - began < 120, said
    # A collective that fails says so, as it mostly does over the loopback. JAX learns of one that hangs by the missing
    # heartbeats, and aborts; it also aborts at once where the first process is gone, and its coordination service.
    lost = status == 1 and re.match("error: another process of the run was lost", said.splitlines()[-1])
    assert lost or status == -signal.SIGABRT, said
