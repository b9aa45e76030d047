"""Metrics: one JSON object per step in metrics.jsonl, also to TensorBoard, and a progress line."""

import contextlib
import datetime
import errno
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import logging
from etils import epath
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ppa_jax import storage
from ppa_jax.errors import UserError, disk_errors
from ppa_jax.training.workdir import atomic

METRICS = "metrics.jsonl"
TRACKERS = ("wandb", "trackio")  # packages with the same interface


class MetricWriter:
    """Appends to workdir/metrics.jsonl (and workdir/tensorboard/); only process 0 writes.

    Each line is one unbuffered write: once `write` returns, killing the process cannot lose it. A kill during a write
    can only leave the last line incomplete; readers skip such a line and `truncate_after` removes it.

    A bucket cannot append: its files are written to a temporary directory, and uploaded whole by `sync` and `close`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        wandb: str = "",
        trackio: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        workdir: created if absent.
        tensorboard: also write TensorBoard events.
        wandb: a Weights & Biases project to log to as well; "": none. Requires `pip install wandb`.
        trackio: likewise of trackio.
        config: shown there.
        """
        self._active = jax.process_index() == 0
        self._workdir = epath.Path(workdir)
        self._temporary = tempfile.TemporaryDirectory(prefix="ppa_jax-") if storage.in_bucket(workdir) else None
        self._folder = Path(self._temporary.name if self._temporary else workdir)
        self._path = self._folder / METRICS
        self._file: Any = None
        self._board: Any = None
        self._tensorboard = tensorboard
        self._purge_step: int | None = None
        self._last = -1
        projects = {name: project for name, project in zip(TRACKERS, (wandb, trackio), strict=True) if project}
        packages = {name: import_tracker(name) for name in projects}  # on all processes: all fail if one lacks it
        self._trackers: list[tuple[Any, Any]] = []  # package and run
        for name, package in packages.items() if self._active else ():
            self._folder.mkdir(parents=True, exist_ok=True)
            options = {"dir": str(self._folder)} if name == "wandb" else {}
            given = {"project": projects[name], "name": self._workdir.name, "config": dict(config or {})}
            self._trackers.append((package, package.init(**given, **options)))

    def truncate_after(self, step: int) -> None:
        """Drops the lines of steps after `step` (after which a run resumes; -1: all), and incomplete lines.

        Call once, before the first `write`: the dropped steps are computed again, so every step appears exactly once.
        TensorBoard hides its earlier events of those steps (`purge_step`).
        """
        if not self._active:
            return
        self._last, self._purge_step = step, step + 1
        if self._file is not None:
            self._file.close()
            self._file = None
        if not (self._workdir / METRICS).exists():
            return
        kept = {record["step"]: record for record in read_metrics(self._workdir) if record["step"] <= step}
        with atomic(self._path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept.values())

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **values}`; numbers that are not finite become null, which is valid JSON.

        Steps must increase: pass all values of a step in one call.

        Raises:
          UserError: the file cannot be written (a full disk).
        """
        if not self._active:
            return
        if step <= self._last:
            raise ValueError(f"metrics of step {step} after those of step {self._last}")
        self._last = step
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with disk_errors(self._path, way_out="give another --workdir"):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)  # unbuffered: a kill loses nothing
            line = (json.dumps(record) + "\n").encode()
            if self._file.write(line) != len(line):  # a disk that fills up accepts part of a line first
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._log_elsewhere(step, numbers)

    def sync(self) -> None:
        """Flushes everything written so far to the disk or the bucket. Call before a checkpoint is saved."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()
        if self._temporary is not None and self._active:
            storage.upload(self._folder, self._workdir)

    def _log_elsewhere(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._tensorboard:
            if self._board is None:
                from tensorboardX import SummaryWriter

                directory = str(self._folder / "tensorboard")
                self._board = SummaryWriter(directory, purge_step=self._purge_step, flush_secs=30)
            for name, value in numbers.items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        for _, run in self._trackers:
            run.log(numbers, step=step)

    def write_pictures(self) -> None:
        """Shows the pictures of the report in TensorBoard and the trackers, at the last step."""
        if self._board is None and not self._trackers:
            return
        for path in map(storage.local, sorted(self._workdir.glob("*.png"))):
            name = f"report/{path.stem}"
            if self._board is not None:
                from matplotlib.image import imread

                self._board.add_image(name, imread(path)[..., :3], self._last, dataformats="HWC")
            for package, run in self._trackers:
                run.log({name: package.Image(str(path))}, step=self._last)

    def close(self) -> None:
        """Syncs and closes the files. Without it, TensorBoard may lack the last 30 s; metrics.jsonl is complete."""
        for _, run in self._trackers:
            run.finish()
        self.sync()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of workdir/metrics.jsonl in order, each with an int `step`; incomplete lines are skipped."""
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    records, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            torn += 1
    if torn:
        logging.warning("%s: skipped %d incomplete lines", path, torn)
    return records


class Progress:
    """Progress of training: `progress(step, values)` after every step, `close()` at the end.

        120/400 steps, 02:05 left, loss 7.213, accuracy 41.2%, 12,345 tok/s, tlm 5.901, contrastive 1.312, padding 8.3%

    On a terminal or in a notebook this is one line that updates, with log messages above it. Elsewhere it is logged for
    the first and the last step, and every `interval` seconds. Only process 0 reports. `progress_line` lists the values.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, interval: float = 20.0) -> None:
        """Args:
        total: number of the last step.
        stream: of the terminal, if it is one; None: stderr.
        interval: seconds between log lines without a terminal.
        """
        self._total, self._interval = total, interval
        self._stream = stream or sys.stderr
        self._active = jax.process_index() == 0
        self._bar: tqdm | None = None
        self._redirected = contextlib.ExitStack()
        self._first: tuple[int, float] | None = None  # step and time
        self._logged = -math.inf

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        if not self._active:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = step, now  # timed from the end of the first step, which includes compilation
            # Some schedulers provide a pseudo-terminal without a size, for a log file: tqdm would show nothing there.
            is_terminal = self._stream.isatty() and os.get_terminal_size(self._stream.fileno()).lines
            if is_terminal or in_notebook():
                self._bar = tqdm(
                    total=self._total, initial=step, postfix=_shown(values), file=self._stream, bar_format=LINE,
                    dynamic_ncols=True, miniters=1,
                )  # fmt: skip
                self._redirected.enter_context(logging_redirect_tqdm())
        if self._bar is not None:
            self._bar.set_postfix_str(_shown(values), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step >= self._total or now - self._logged >= self._interval:
            first, start = self._first
            logging.info("%s", progress_line(step, self._total, values, first=first, elapsed=now - start))
            self._logged = now

    def close(self) -> None:
        """Ends the line, so that later output starts on a new one."""
        if self._bar is not None:
            self._bar.close()
        self._redirected.close()


def in_notebook() -> bool:
    """Whether the process is the kernel of a Jupyter notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


LINE = "{n_fmt}/{total_fmt} steps, {remaining} left{postfix}"
_FORMATS = {  # in this order: a narrow terminal truncates the line
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.1%}",
    "tokens_per_second": "{:,.0f} tok/s",
    "tlm": "tlm {:.3f}",
    "contrastive": "contrastive {:.3f}",
    "rtl": "rtl {:.3f}",
    "distill": "distill {:.4f}",
    "word_alignment": "word cosine {:.3f}",
    "padding": "padding {:.1%}",
}


def progress_line(step: int, total: int, values: Mapping[str, Any], *, first: int, elapsed: float) -> str:
    """One line of text; the time left is estimated from the `elapsed` seconds since step `first` of this run.

    `values`, each optional: loss, tlm, contrastive, rtl, distill, word_alignment, accuracy (of the contrast, 0 to 1),
    tokens_per_second (real tokens, without padding), padding (share, 0 to 1). NaN means unknown and is not shown.
    """
    return tqdm.format_meter(step, total, elapsed, initial=first, bar_format=LINE, postfix=_shown(values))


def _shown(values: Mapping[str, Any]) -> str:
    known = {name: float(values[name]) for name in _FORMATS if name in values}
    return ", ".join(_FORMATS[name].format(value) for name, value in known.items() if not math.isnan(value))


def import_tracker(name: str) -> Any:
    """The package `wandb` or `trackio`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"config.log.{name}: {name} is not installed; pip install {name}, or leave it empty") from None


def training_time(workdirs: Iterable[str | os.PathLike]) -> str:
    """The time of all steps in metrics.jsonl, those before an interruption included: "1:02:03"."""
    seconds = sum(record.get("seconds") or 0.0 for workdir in workdirs for record in read_metrics(workdir))
    return str(datetime.timedelta(seconds=round(seconds)))


class Sweep:
    """Logs the progress of several trainings: "7 of 12 trainings done, about 40 min left"."""

    def __init__(self, total: int) -> None:
        """`total` trainings, those that are done already included."""
        self._total, self._times = total, []

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """One of the trainings runs within the block, or is found done."""
        start = time.monotonic()
        yield
        self._times.append(time.monotonic() - start)
        done = len(self._times)
        trained = [seconds for seconds in self._times if 10 * seconds > max(self._times)]  # the others were done
        left = (self._total - done) * sum(trained) / len(trained)
        logging.info("%d of %d trainings done%s", done, self._total, f", about {_span(left)} left" if left else "")


def _span(seconds: float) -> str:
    """ "2 min", "3.5 h"."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{math.ceil(seconds / 60)} min"
