"""The loop on a toy step: what it reads when, what it saves, how it stops."""

import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ppa_jax.errors import UserError
from ppa_jax.training import hosts
from ppa_jax.training.checkpoint import Checkpoints
from ppa_jax.training.loop import Loop, Profile, Stopped
from ppa_jax.training.metrics import MetricWriter, read_metrics


@pytest.fixture
def make(tmp_path):
    """A loop whose state is the sum of the batches, the batch of step t being t; `events` tells what it did."""
    closing = []

    def build(every=0, keep=2, step_metrics=lambda t: {"loss": 1.0}, **options):
        events = []

        def step(state, batch):
            events.append(f"step {int(batch)}")
            return state + batch, {name: jnp.float32(value) for name, value in step_metrics(int(batch)).items()}

        checkpoints = Checkpoints(tmp_path / "checkpoints", every=every, keep=keep)
        writer = MetricWriter(tmp_path, tensorboard=False)
        closing.extend([writer, checkpoints])
        write = writer.write
        writer.write = lambda t, values: (events.append(f"read {t}"), write(t, values))[1]
        save = checkpoints.save

        def saved(t, state, force=False):
            if done := save(t, state, force=force):
                events.append(f"save {t}")
            return done

        checkpoints.save = saved
        loop = Loop(
            step=step,
            batches=lambda start, stop: iter(range(start, stop)),
            put=jnp.int32,
            count=lambda batch: (3, 4),
            checkpoints=checkpoints,
            writer=writer,
            schedule=lambda t: 0.1 * t,
            evaluate=lambda state, t: events.append(f"evaluate {t}: {int(state)}"),
            **options,
        )
        return loop, checkpoints, events

    yield build
    for one in closing:
        one.close()


def test_metrics_are_read_one_step_late_and_before_anything_is_saved(make):
    loop, checkpoints, events = make(every=3, evaluate_every=2)
    state = loop.run(jnp.int32(0), 0, 5)
    assert events == [
        "step 0", "step 1", "read 0", "read 1", "evaluate 2: 1",
        "step 2", "read 2", "save 3",
        "step 3", "read 3", "evaluate 4: 6",
        "step 4", "read 4", "save 5",
    ]  # fmt: skip
    restored = checkpoints.restore(jnp.int32(0))
    assert restored is not None and (restored[0], int(restored[1])) == (5, int(state)) == (5, 10)


def test_what_is_written_of_a_step(make, tmp_path):
    names = ("loss", "tlm", "contrastive")
    loop, *_ = make(step_metrics=lambda t: {"loss": 2.0, "tlm": 2.0}, metrics=names)
    loop.run(jnp.int32(0), 0, 2)
    first, second = read_metrics(tmp_path)
    assert first["contrastive"] is None and (first["loss"], first["tlm"], first["padding"]) == (2.0, 2.0, 0.25)
    assert (first["learning_rate"], second["learning_rate"]) == (0.0, pytest.approx(0.1))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_restores_the_handler(make, tmp_path, signum):
    before = signal.getsignal(signum)
    loop, checkpoints, events = make()
    loop.count = lambda batch: (signal.raise_signal(signum) if batch == 2 else 0, (1, 1))[1]
    with pytest.raises(Stopped, match=f"stopped by {signum.name} at step 2; the same command") as stopped:
        loop.run(jnp.int32(0), 0, 9)
    assert stopped.value.status == 128 + signum and signal.getsignal(signum) is before
    assert events[-2:] == ["read 1", "save 2"] and checkpoints.steps()[-1] == 2
    continued, *_ = make()
    step, state = checkpoints.restore(jnp.int32(0)) or (0, None)
    assert int(continued.run(state, step, 9)) == sum(range(9))
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(9))


def test_a_signal_waits_for_the_last_checkpoint(make):
    loop, checkpoints, _ = make()
    wait, signals = checkpoints.wait, iter([signal.SIGTERM])
    checkpoints.wait = lambda: ([signal.raise_signal(signum) for signum in signals], wait())
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 3; the same command"):
        loop.run(jnp.int32(0), 0, 3)
    assert checkpoints.steps()[-1] == 3


def test_an_evaluation_that_was_cut_short_is_made_up_for(make):
    loop, _, events = make(every=2, evaluate_every=2)
    loop.run(jnp.int32(1), 2, 4)
    assert events[:2] == ["evaluate 2: 1", "step 2"]
    loop.run(jnp.int32(6), 4, 4)
    assert sum(event.startswith("evaluate") for event in events) == 1, "what ends there is measured by its job"


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize(
    ("step", "says"),
    [
        (1, "step 1: .* is nan; there is no good checkpoint. Try"),
        (2, r"step 2: .* there is no good checkpoint \(that of step 2 gives this\). Try"),
        (3, "step 3: .* the last good checkpoint is of step 2. Try"),
        (4, r"step 4: .* the last good checkpoint is of step 2 \(that of step 4 gives this\). Try a lower"),
    ],
)
def test_a_number_that_is_not_finite_names_the_last_good_checkpoint(make, tmp_path, name, step, says):
    """Every checkpoint of an even step; the one of the very step that fails is not called good."""
    loop, _, events = make(
        every=2,
        step_metrics=lambda t: {"loss": 1.0, "gradient_norm": 1.0} | ({name: float("nan")} if t == step else {}),
    )
    with pytest.raises(UserError, match=says):
        loop.run(jnp.int32(0), 0, 9)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(step))
    assert f"save {step + 1}" not in events, "a state with a bad loss was saved"


@pytest.mark.parametrize(
    ("start", "stop", "traced"),
    [
        (0, 30, range(10, 15)),
        (7, 30, range(17, 22)),
        (0, 8, range(3, 8)),
        (4, 6, range(4, 6)),
        (3, 3, range(0)),
    ],
)
def test_a_profile_is_of_five_steps_whatever_the_length_of_the_run(monkeypatch, start, stop, traced):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: events.append((directory, "from", t)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    with Profile("there", start, stop) as profile:
        for t in range(start, stop):
            profile.before(t)
            if events and events[-1] == "stop" and len(events) == 2:
                events.append(("to", t))
    expected = [("there", "from", traced.start), "stop"] if len(traced) else []
    assert events == expected + ([("to", traced.stop)] if len(traced) and traced.stop < stop else [])


def test_a_run_that_is_complete_does_nothing(make, tmp_path):
    loop, _, events = make()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": t, "loss": 1.0}) + "\n" for t in range(4)))
    assert int(loop.run(jnp.int32(7), 4, 4)) == 7
    assert events == [] and [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "error, lost",
    [
        (jax.errors.JaxRuntimeError("ABORTED: a peer is gone"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), True),
        (ValueError("a mistake of ours"), False),
    ],
)
def test_another_process_that_is_lost_ends_this_one(monkeypatch, capsys, error, lost):
    """With one line and its status, however the collective fails; other errors stay what they are, and do not wait."""
    timers = []

    def leave(status):
        raise SystemExit(status)

    def timer(seconds, function, arguments):
        timers.append((seconds, function, arguments))
        return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(hosts.os, "_exit", leave)
    monkeypatch.setattr(hosts.threading, "Timer", timer)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit if lost else ValueError) as caught, hosts.exit_on_peer_loss():
        raise error
    if lost:
        assert caught.value.code == 1
        assert capsys.readouterr().err.startswith("error: another process of the run was lost")
    assert timers == ([] if lost else [(hosts.GRACE, leave, [1])])
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    with pytest.raises(type(error)), hosts.exit_on_peer_loss():
        raise error
