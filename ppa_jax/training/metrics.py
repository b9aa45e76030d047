"""Metrics: one JSON object per step in metrics.jsonl, TensorBoard beside it, and a progress line to watch."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import logging

from ppa_jax.errors import NO_PLACE, NO_ROOM, NotYet, UserError

METRICS = "metrics.jsonl"


class MetricWriter:
    """Appends to workdir/metrics.jsonl (and workdir/tensorboard/); on other processes than 0 it does nothing.

    A line is one write to the operating system: once `write` returns, killing the process cannot lose it. A kill in the
    middle of a write can tear the last line only; readers skip it and `truncate_after` removes it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        workdir: a local directory, created if absent.
        tensorboard: also write TensorBoard events.
        wandb: name of a Weights & Biases project to log to as well; empty: none. Needs `pip install wandb`.
        config: shown in Weights & Biases.
        """
        self._active = jax.process_index() == 0
        self._workdir = Path(workdir)
        self._path = self._workdir / METRICS
        self._file: Any = None
        self._board: Any = None
        self._tensorboard = tensorboard
        self._purge_step: int | None = None
        self._last = -1
        package = import_wandb() if wandb else None  # by all processes, or they would wait for the one that lacks it
        self._wandb: Any = _start(package, wandb, self._workdir, config) if package and self._active else None

    def truncate_after(self, step: int) -> None:
        """Drops the lines of steps after `step` (the one a run resumes from; -1: all), and torn lines.

        To be called once before the first `write`: the dropped steps are about to be computed again, and so every step
        stands in the file exactly once. TensorBoard is told to hide its events of those steps.
        """
        if not self._active:
            return
        self._last, self._purge_step = step, step + 1
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._path.exists():
            return
        kept = {record["step"]: record for record in read_metrics(self._workdir) if record["step"] <= step}
        beside = self._path.with_name(f"{METRICS}.tmp")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in kept.values())
            beside.replace(self._path)
        except OSError as error:
            raise _unwritable(beside, error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **values}`; numbers that are not finite become null, which any JSON reader takes.

        Steps must increase: all that there is to say of one step goes into one call.

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
        try:
            if self._file is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)  # unbuffered: the line is with the system at once
            line = (json.dumps(record) + "\n").encode()
            if self._file.write(line) != len(line):  # a disk that fills up takes a part before it refuses
                raise OSError(None, "no space left on the device")
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._log_elsewhere(step, numbers)

    def sync(self) -> None:
        """Has all that was written so far reach the disk, before a checkpoint counts."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def _log_elsewhere(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._tensorboard:
            if self._board is None:
                from tensorboardX import SummaryWriter

                self._board = SummaryWriter(
                    str(self._workdir / "tensorboard"), purge_step=self._purge_step, flush_secs=30
                )
            for name, value in numbers.items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Closes the files; nothing of metrics.jsonl depends on it, TensorBoard's last half minute does."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of workdir/metrics.jsonl in order, each with an int `step`; torn lines are skipped."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    records, torn = [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
            else:
                torn += 1
    if torn:
        logging.warning("%s: skipped %d torn lines", path, torn)
    return records


class Progress:
    """The line to watch: `progress(step, values)` after every step, `close()` at the end.

        step 120/400  loss 7.213  tlm 5.901  contrastive 1.312  queue acc 41.2%  12,345 tok/s  padding 8.3%  left 2:05

    On a terminal it rewrites itself in place; elsewhere a plain line comes every `interval` seconds, and for the last
    step. Values it knows, each optional: loss, tlm, contrastive, accuracy (against the queue, 0..1),
    tokens_per_second (real tokens, without padding), padding (share, 0..1); NaN is unknown and not shown. Prints on
    process 0 alone.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, interval: float = 20.0) -> None:
        self._total = total
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._interval = 0.1 if self._live else interval
        self._active = jax.process_index() == 0
        self._start: tuple[float, int] | None = None
        self._shown: float | None = None
        self._open_line = False

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        now = time.monotonic()
        left = None
        if self._start is None:
            self._start = now, step  # the clock starts after the first step: it was spent compiling
        elif step > self._start[1]:
            left = (self._total - step) * (now - self._start[0]) / (step - self._start[1])
        last = step >= self._total
        if not self._active or not (last or self._shown is None or now - self._shown >= self._interval):
            return
        self._shown = now
        line = progress_line(step, self._total, values, left)
        if self._live:
            columns = shutil.get_terminal_size().columns
            # A line that wraps could not be rewritten: it is cut. \x1b[K clears what a longer line left behind.
            self._stream.write(f"\r{line[: columns - 1]}\x1b[K")
            self._open_line = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        if last:
            self.close()

    def close(self) -> None:
        """Ends the line, so that what is printed next does not run into it. More calls may follow."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False


_FORMATS = {
    "loss": "loss {:.3f}",
    "tlm": "tlm {:.3f}",
    "contrastive": "contrastive {:.3f}",
    "word_alignment": "word cosine {:.3f}",
    "accuracy": "queue acc {:.1%}",
    "tokens_per_second": "{:,.0f} tok/s",
    "padding": "padding {:.1%}",
}


def progress_line(step: int, total: int, values: Mapping[str, Any], left: float | None) -> str:
    """One line of text; `left` in seconds, None while it is unknown."""
    parts = [f"step {step}/{total}"]
    known = {name: float(values[name]) for name in _FORMATS if name in values}
    parts += [_FORMATS[name].format(value) for name, value in known.items() if not math.isnan(value)]
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"left {hours}:{minutes:02}:{seconds:02}" if hours else f"left {minutes}:{seconds:02}")
    return "  ".join(parts)


def _unwritable(path: Path, error: OSError) -> UserError:
    if error.errno in NO_ROOM + NO_PLACE:
        return UserError(f"{path}: cannot write: {error.strerror}; free some space or give another --workdir")
    return NotYet(f"{path}: cannot write: {error.strerror or error}; start again in a moment")


def import_wandb() -> Any:
    """The package. Raises UserError if it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "config.log.wandb: the package is not installed; pip install wandb, or leave it empty"
        ) from None
    return wandb


def _start(wandb: Any, project: str, workdir: Path, config: Mapping[str, Any] | None) -> Any:
    workdir.mkdir(parents=True, exist_ok=True)
    return wandb.init(project=project, name=workdir.name, dir=str(workdir), config=dict(config or {}))
