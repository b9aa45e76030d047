"""metrics.jsonl holds every step exactly once, however a run was killed; the progress line."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import termios
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation.report.plots import Bars, plot_bars
from ppa_jax.training import metrics
from ppa_jax.training.metrics import TRACKERS, MetricWriter, Progress, Sweep, progress_line, read_metrics, training_time


def lines(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def write_steps(workdir: Path, *steps: int, resume: int | None = None, loss: float = 1.5) -> None:
    writer = MetricWriter(workdir, tensorboard=False)
    if resume is not None:
        writer.truncate_after(resume)
    for step in steps:
        writer.write(step, {"loss": np.float32(loss), "tokens": 7})
    writer.close()


def test_one_object_a_line_step_first(tmp_path):
    writer = MetricWriter(tmp_path / "new", tensorboard=False)
    writer.write(1, {"loss": jax.numpy.float32(0.5), "tokens": 7, "tlm": float("nan")})
    assert lines(tmp_path / "new") == ['{"step": 1, "loss": 0.5, "tokens": 7, "tlm": null}']  # before close


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 5, "loss": 1.5}', "\0\0\0", '"step"\n', "\n"])
def test_resuming_leaves_every_step_once(tmp_path, torn):
    write_steps(tmp_path, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path, 3, 4, 5, resume=2, loss=2.5)
    assert {r["step"]: r["loss"] for r in read_metrics(tmp_path)} == {1: 1.5, 2: 1.5, 3: 2.5, 4: 2.5, 5: 2.5}
    assert len(lines(tmp_path)) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_incomplete_line_in_the_part_that_stays_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo{"step": 3}\n{"step": 4}\n')
    MetricWriter(tmp_path).truncate_after(9)
    assert lines(tmp_path) == ['{"step": 1, "loss": 1}', '{"step": 4}']


def test_truncating_everything_or_nothing(tmp_path):
    MetricWriter(tmp_path).truncate_after(5)  # no file yet
    write_steps(tmp_path, 0, 1)
    MetricWriter(tmp_path).truncate_after(-1)
    assert lines(tmp_path) == []


def test_steps_must_increase(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.truncate_after(3)
    for step in (3, 2):
        with pytest.raises(ValueError, match="after those of step 3"):
            writer.write(step, {})


def test_kill_9_loses_nothing_that_was_written(tmp_path):
    code = (
        "import sys; from ppa_jax.training.metrics import MetricWriter\nwriter = MetricWriter(sys.argv[1])\n"
        "for step in range(10**9):\n    writer.write(step, {'loss': 1.0})\n    print(step, flush=True)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for _ in range(50):
        run.stdout.readline()
    os.kill(run.pid, signal.SIGKILL)
    told = max([49, *map(int, run.communicate()[0].split())])
    steps = [record["step"] for record in read_metrics(tmp_path)]
    assert steps == list(range(len(steps))) and len(steps) > told


def test_only_process_0_writes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path / "w", 1, resume=0)
    caplog.set_level(logging.INFO, logger="absl")
    Progress(1, stream=io.StringIO())(1, {})
    assert not (tmp_path / "w").exists() and not caplog.messages


def test_a_full_disk_is_a_user_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl: no space left on the device.*give another --workdir"):
        MetricWriter(tmp_path, tensorboard=False).write(1, {"loss": 1.0})


def test_tensorboard_gets_the_scalars_and_forgets_what_is_computed_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format written below is its own)

    writer = MetricWriter(tmp_path)
    writer.truncate_after(4)
    writer.write(5, {"loss": 2.5})
    plot_bars(tmp_path / "bars.png", ["de"], [Bars("", {"x": [1.0]})], title="", ylabel="")
    writer.write_pictures()
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data, found, at = events.read_bytes(), [], 0
    while at < len(data):  # TFRecord: length (8), crc (4), payload, crc (4)
        length = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    scalar, picture = [(e.step, v) for e in found for v in e.summary.value]
    assert (scalar[0], scalar[1].tag, scalar[1].simple_value) == (5, "loss", 2.5)
    assert (picture[0], picture[1].tag) == (5, "report/bars") and picture[1].image.width > 300
    assert [e.step for e in found if e.session_log.status == SessionLog.START] == [5]


def test_trackers_are_optional_and_get_the_pictures_too(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricWriter(tmp_path, wandb="project")
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    run.finish = lambda: logged.append("end")
    (tmp_path / "bars.png").touch()
    for name in TRACKERS:
        logged.clear()
        package = types.SimpleNamespace(init=lambda **kw: logged.append(kw) or run, Image=lambda path: f"image {path}")
        monkeypatch.setitem(sys.modules, name, package)
        writer = MetricWriter(tmp_path, tensorboard=False, config={"seed": 1}, **{name: "project"})
        writer.truncate_after(-1)
        writer.write(1, {"loss": 2.0})
        writer.write_pictures()
        writer.close()
        assert logged[0]["project"] == "project" and logged[0]["config"] == {"seed": 1}
        picture = {"report/bars": f"image {tmp_path / 'bars.png'}"}
        assert logged[1:] == [(1, {"loss": 2.0}), (1, picture), "end"]


def test_the_progress_of_several_trainings(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="absl")
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    sweep = Sweep(5)
    for seconds in (1.0, 100.0, 140.0, 7200.0, 1.0):  # the first was done already
        with sweep.training():
            clock[0] += seconds
    # 4 x 1 s; 3 x 100 s; 2 x 120 s; 1 x 7,200 s, beside which the others do not count
    left = ["1 min", "5 min", "4 min", "2.0 h"]
    expected = [f"{i} of 5 trainings done, about {time} left" for i, time in enumerate(left, 1)]
    assert caplog.messages == [*expected, "5 of 5 trainings done"]


def test_the_time_of_training_adds_up_over_interruptions(tmp_path):
    for name, steps in (("a", range(3)), ("b", range(1))):
        writer = MetricWriter(tmp_path / name, tensorboard=False)
        for step in steps:
            writer.write(step, {"seconds": 61.5})
        writer.close()
    assert training_time([tmp_path / "a", tmp_path / "b", tmp_path / "absent"]) == "0:04:06"


def test_progress_line():
    values = {
        "loss": 7.2134, "tlm": 5.9, "contrastive": 1.3134, "accuracy": 0.4121, "tokens_per_second": 12345.4,
        "padding": 0.0825, "gradient_norm": 3.0,
    }  # fmt: skip
    assert progress_line(120, 400, values, first=20, elapsed=50.0) == (  # 100 steps in 50 s, 280 to go
        "120/400 steps, 02:20 left, loss 7.213, accuracy 41.2%, 12,345 tok/s, tlm 5.900, contrastive 1.313, "
        "padding 8.2%"
    )
    values = {"loss": 1, "accuracy": float("nan")}  # of an empty queue: not known
    assert progress_line(1, 400, values, first=1, elapsed=0.0) == "1/400 steps, ? left, loss 1.000"
    assert progress_line(2, 4, {}, first=1, elapsed=1862.5).startswith("2/4 steps, 1:02:05 left")


def on_a_terminal(lines: int, columns: int, work: Callable[[TextIO], None]) -> str:
    """What `work` writes to a terminal of this size."""
    shown, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (lines, columns))
    text = b""
    with open(terminal, "w") as stream:
        work(stream)
    with contextlib.suppress(OSError):  # EIO at the end
        while part := os.read(shown, 1 << 16):
            text += part
    os.close(shown)
    return text.decode()


def test_a_terminal_has_one_line_that_updates_and_never_wraps():
    def work(stream: TextIO) -> None:
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        progress = Progress(103, stream=stream)
        for step in range(101, 104):
            progress(step, {"loss": float(step), "accuracy": 0.5, "tokens_per_second": 1e6})
            time.sleep(0.11)  # a terminal is updated ten times a second
        progress.close()
        logging.getLogger().removeHandler(handler)

    text = on_a_terminal(24, 40, work)
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = [line for line in text.replace("\x1b[A", "").split("\r") if line.strip()]
    assert len(lines) >= 3 and all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("101/103 steps, ? left, loss 101.00")
    assert lines[-1].startswith("103/103 steps, 00:00 left, loss 103.00")


def test_a_notebook_has_the_line_too(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    stream = io.StringIO()
    progress = Progress(3, stream=stream)
    for step in (2, 3):
        progress(step, {"loss": float(step)})
    progress.close()
    assert "\r3/3 steps, 00:00 left, loss 3.000" in stream.getvalue() and not caplog.messages
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    Progress(1, stream=io.StringIO())(1, {})
    assert len(caplog.messages) == 1  # IPython without a kernel: a terminal or a file


def test_a_terminal_without_a_size_is_a_log_file(caplog):
    caplog.set_level(logging.INFO, logger="absl")

    def work(stream: TextIO) -> None:
        Progress(1, stream=stream)(1, {"loss": 1.0})
        stream.write("end")

    assert on_a_terminal(0, 0, work) == "end"
    assert caplog.messages == ["1/1 steps, ? left, loss 1.000"]


def test_elsewhere_progress_is_logged_at_an_interval_and_for_the_last_step(caplog):
    caplog.set_level(logging.INFO, logger="absl")

    def logged(interval: float) -> list[str]:
        caplog.clear()
        progress = Progress(5, stream=io.StringIO(), interval=interval)
        for step in range(2, 6):
            progress(step, {"loss": 1.0})
        progress.close()
        return [message.split()[0] for message in caplog.messages]

    assert logged(3600.0) == ["2/5", "5/5"]
    assert logged(0.0) == ["2/5", "3/5", "4/5", "5/5"]


def test_records_are_json(tmp_path):
    write_steps(tmp_path, 1, 2)
    assert [json.loads(line) for line in lines(tmp_path)] == read_metrics(tmp_path)
