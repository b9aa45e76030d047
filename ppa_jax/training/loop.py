"""The training loop: dispatches step t, then reads the metrics of step t-1; logs, saves, evaluates, stops.

The device never waits for the host: a batch is copied while the previous step runs, and nothing of the step just
dispatched is read. Only a checkpoint or an evaluation waits for the metrics of its own step, so that no state whose
loss is not finite is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from ppa_jax import storage
from ppa_jax.errors import UserError
from ppa_jax.training.checkpoint import Checkpoints
from ppa_jax.training.hosts import StopSignal
from ppa_jax.training.metrics import MetricWriter, Progress

PROFILED = 5  # steps
PROFILED_FROM = 10  # steps after the start, when compilation is over


class Stopped(Exception):
    """A signal asked to stop; the state has been saved."""

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} at step {step}; the same command resumes there")
        self.status = 128 + signum


@dataclasses.dataclass
class Loop:
    """What a training run needs besides its state.

    Attributes:
      step: (state, device batch) -> (state, metrics); its state is donated.
      batches: (start, stop) -> iterator of host batches.
      put: host batch -> device batch, without waiting.
      count: host batch -> (real tokens, positions with padding) of the global batch, approximately.
      schedule: step -> learning rate.
      evaluate: (state, step) -> whether to stop; called every `evaluate_every` steps, except at the end. A run that
        resumes at such a step calls it again, because the evaluation may have been interrupted.
      metrics: names in every record; null if the step does not compute them.
      profile_to: a directory for a trace of a few steps.
    """

    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    batches: Callable[[int, int], Iterator[Any]]
    put: Callable[[Any], Any]
    count: Callable[[Any], tuple[int, int]]
    checkpoints: Checkpoints
    writer: MetricWriter
    schedule: Callable[[int], Any]
    evaluate: Callable[[Any, int], bool | None] = lambda state, step: False
    evaluate_every: int = 0
    metrics: tuple[str, ...] = ()
    profile_to: epath.Path | None = None

    def run(self, state: Any, start: int, stop: int) -> Any:
        """Trains from step `start` to `stop`, or until `evaluate` says stop; saves and returns the last state.

        Raises:
          UserError: the loss is not finite; the message has the step, and the last good checkpoint.
          Stopped: after a signal, with the state saved.
        """
        self.writer.truncate_after(start - 1)
        if self._evaluates(start, stop) and self.evaluate(state, start):
            return state
        batches = self.batches(start, stop)
        with (
            contextlib.ExitStack() as stack,
            StopSignal() as stop_signal,
            Profile(self.profile_to, start, stop) as profile,
            contextlib.closing(_StepLog(self, start, stop)) as log,
        ):
            stack.callback(getattr(batches, "close", lambda: None))  # ends the threads or processes that make batches
            upcoming = self._next(batches) if start < stop else None
            for t in range(start, stop):
                profile.before(t)
                assert upcoming is not None
                batch, size = upcoming
                state, metrics = self.step(state, batch)
                upcoming = self._next(batches) if t + 1 < stop else None  # the copy overlaps with the step
                log.read_pending()
                log.pending = t, metrics, size
                done = t + 1
                signum, evaluates = stop_signal.wanted(), self._evaluates(done, stop)
                if done == stop or signum or evaluates or self.checkpoints.due(done):
                    log.read_pending()
                    self.writer.sync()
                    self.checkpoints.save(done, state, force=done == stop or bool(signum))
                if signum:
                    self.checkpoints.wait()
                    raise Stopped(signum, done)
                if evaluates:
                    enough = self.evaluate(state, done)
                    log.restart_clock()
                    if enough:
                        self.checkpoints.save(done, state, force=True)
                        break
            self.checkpoints.wait()
        if stop_signal.signum is not None:  # while the last checkpoint was written
            raise Stopped(stop_signal.signum, max(self.checkpoints.steps(), default=stop))
        return state

    def _evaluates(self, done: int, stop: int) -> bool:
        return bool(self.evaluate_every and done % self.evaluate_every == 0 and 0 < done < stop)

    def _next(self, batches: Iterator[Any]) -> tuple[Any, tuple[int, int]]:
        batch = next(batches)
        return self.put(batch), self.count(batch)


class _StepLog:
    """Reads the metrics of the previous step, checks and writes them, and shows the progress."""

    def __init__(self, loop: Loop, start: int, stop: int) -> None:
        self.pending: tuple[int, dict[str, jax.Array], tuple[int, int]] | None = None  # step, metrics, token counts
        self._loop, self._progress = loop, Progress(stop)
        # All in advance: otherwise a step's rate would wait on the device for the step just dispatched.
        steps: Any = np.arange(start, stop)
        rates = np.asarray(jax.vmap(loop.schedule)(steps), np.float64)
        self._rates = dict(zip(range(start, stop), rates.tolist(), strict=True))
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time since the last step from tokens per second."""
        self._read_at = time.perf_counter()

    def close(self) -> None:
        """Ends the progress line."""
        self._progress.close()

    def read_pending(self) -> None:
        """Waits for the metrics of the pending step, if any. Raises UserError if the loss is not finite."""
        if self.pending is None:
            return
        (step, metrics, (real, positions)), self.pending = self.pending, None
        values = {name: float(value) + 0.0 for name, value in jax.device_get(metrics).items()}  # no -0.0
        # A gradient that is not finite has already corrupted the parameters; the loss shows it one step later.
        if bad := [name for name in ("loss", "gradient_norm") if not math.isfinite(values.get(name, 0.0))]:
            raise UserError(
                f"step {step}: the {bad[0].replace('_', ' ')} is {values[bad[0]]}; {self._last_good(step)}. "
                "Try a lower train.learning_rate or dtype=float32 in a new workdir"
            )
        seconds = time.perf_counter() - self._read_at
        self.restart_clock()
        values["seconds"] = seconds
        values["learning_rate"] = self._rates[step]
        values["tokens_per_second"] = real / max(seconds, 1e-9)
        values["padding"] = 1.0 - real / positions
        self._loop.writer.write(step, dict.fromkeys(self._loop.metrics, math.nan) | values)
        shown = values | {"accuracy": values["contrastive_accuracy"]} if "contrastive_accuracy" in values else values
        self._progress(step + 1, shown)

    def _last_good(self, step: int) -> str:
        """Names the newest checkpoint before `step`; the one of `step` itself gives the bad loss."""
        self._loop.checkpoints.wait()
        saved = self._loop.checkpoints.steps()
        good = max((s for s in saved if s < step), default=None)
        here = f" (that of step {step} gives this)" if step in saved else ""
        return ("there is no good checkpoint" if good is None else f"the last good checkpoint is of step {good}") + here


class Profile:
    """Traces a few steps into a directory (None: none), after compilation if the run is long enough."""

    def __init__(self, directory: epath.Path | None, start: int, stop: int) -> None:
        first = start + max(0, min(PROFILED_FROM, stop - start - PROFILED))
        self._directory, self._steps = directory, range(first, min(stop, first + PROFILED))
        self._trace = contextlib.ExitStack()

    def __enter__(self) -> Profile:
        return self

    def before(self, step: int) -> None:
        """Call before `step` is dispatched."""
        if self._directory is None:
            return
        if step == self._steps.start:
            directory = self._trace.enter_context(storage.staged(self._directory))
            self._trace.callback(logging.info, "profile of %d steps in %s", len(self._steps), self._directory)
            jax.profiler.start_trace(str(directory))
            self._trace.callback(jax.profiler.stop_trace)
        elif step == self._steps.stop:
            self._trace.close()

    def __exit__(self, *_: object) -> None:
        self._trace.close()


def count_parameters(tree: Any) -> int:
    """Number of parameters in a tree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
