"""Drives any step: dispatches step t, then reads the metrics of t-1; logs, checkpoints, evaluates, stops cleanly.

The device never waits for the host: a batch is copied while the step before it runs, and nothing of the step just
dispatched is read. Only a checkpoint or an evaluation waits for the metrics of its own step, so that no state is saved
whose loss was not finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import logging

from ppa_jax.errors import UserError
from ppa_jax.training import bucket
from ppa_jax.training.checkpoint import Checkpoints
from ppa_jax.training.checksums import finished_steps
from ppa_jax.training.metrics import MetricWriter, Progress

GRACE = 15  # seconds, between the first and the last process to end of the same error
PATIENCE = 3600  # seconds for all hosts to come, some of which may prepare their corpora first
PROFILED = 5  # steps
PROFILED_FROM = 10  # steps after the start, when compilation is over


class Stopped(Exception):
    """A signal asked to stop; the state has been saved."""

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} at step {step}; the same command goes on from there")
        self.status = 128 + signum


_asked = itertools.count()  # how often this process has asked whether to stop, in all its loops


class StopSignal:
    """Catches SIGTERM and SIGINT: the loop asks after each step. A second one has its usual effect.

    Where processes are connected, be it only one, SIGTERM belongs to JAX's coordination service from then on: it tells
    all of them of one's signal, and a step after which all stop. SIGINT becomes SIGTERM then.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._connected = jax.distributed.is_initialized()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for signum in (signal.SIGINT,) if self._connected else (signal.SIGTERM, signal.SIGINT):
            self._old[signum] = signal.signal(signum, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _catch(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, self._old[signum])
        if self._connected:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signum = signum

    def wanted(self) -> int | None:
        """The signal that any process has caught, the same answer on all of them. All must ask equally often."""
        if not self._connected:
            return self.signum
        from jax.experimental import multihost_utils

        # The service counts from 0, where the steps of a run that goes on do not.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_asked)) else None


@dataclasses.dataclass
class Loop:
    """What a training run needs besides its step.

    Attributes:
      step: (state, device batch) -> (state, metrics); its state is donated.
      batches: (start, stop) -> iterator of host batches.
      put: host batch -> device batch, without waiting.
      count: host batch -> (real tokens, places for tokens) of the whole batch, about.
      evaluate: (state, step) -> whether to end here; called every `evaluate_every` steps, not at the end. Once more
        where a run goes on from such a step: the evaluation may have been cut short.
      metrics: names that every record has, null where the step does not compute them.
      profile_to: a directory for a trace of a few steps.
    """

    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    batches: Callable[[int, int], Iterator[Any]]
    put: Callable[[Any], Any]
    count: Callable[[Any], tuple[int, int]]
    checkpoints: Checkpoints
    writer: MetricWriter
    schedule: Callable[[int], Any]
    evaluate: Callable[[Any, int], bool | None] | None = None
    evaluate_every: int = 0
    metrics: tuple[str, ...] = ()
    profile_to: str | None = None

    def _evaluates(self, done: int, stop: int) -> bool:
        return bool(self.evaluate and self.evaluate_every and done % self.evaluate_every == 0 and 0 < done < stop)

    def run(self, state: Any, start: int, stop: int) -> Any:
        """Trains from step `start` to `stop`, or until `evaluate` has enough, and returns the last state, saved.

        Raises:
          UserError: the loss is not finite; says at which step, and which checkpoint is good.
          Stopped: after a signal, when the state is saved.
        """
        self.writer.truncate_after(start - 1)
        if self._evaluates(start, stop) and self.evaluate is not None and self.evaluate(state, start):
            return state
        progress = Progress(stop)
        # Now, all of them: computed in its turn, a step's would wait on the device behind the step just dispatched.
        every: Any = np.arange(start, stop)
        rates = np.asarray(jax.vmap(self.schedule)(every), np.float64)
        self._rates = dict(zip(range(start, stop), rates.tolist(), strict=True))
        self._read_at = time.perf_counter()
        batches = self.batches(start, stop)
        try:
            with StopSignal() as stop_signal, Profile(self.profile_to, start, stop) as profile:
                state = self._steps(state, batches, range(start, stop), progress, stop_signal, profile)
                self.checkpoints.wait()  # a signal waits for the last one, too
        finally:
            progress.close()
            getattr(batches, "close", lambda: None)()  # ends the threads or processes that make batches
        if stop_signal.signum is not None:
            raise Stopped(stop_signal.signum, self.checkpoints.latest_step() or stop)
        return state

    def _steps(
        self,
        state: Any,
        batches: Iterator[Any],
        steps: range,
        progress: Progress,
        stop_signal: StopSignal,
        profile: Profile,
    ) -> Any:
        pending: tuple[int, dict[str, jax.Array], tuple[int, int]] | None = None
        ready = self._next(batches) if steps else None
        for t in steps:
            profile.before(t)
            assert ready is not None
            on_device, size = ready
            state, metrics = self.step(state, on_device)
            ready = self._next(batches) if t + 1 < steps.stop else None  # its copy overlaps with the step
            if pending is not None:
                self._read(*pending, progress)
            pending = (t, metrics, size)
            done = t + 1
            evaluate = self._evaluates(done, steps.stop)
            signum = stop_signal.wanted()
            if done == steps.stop or signum or evaluate or self.checkpoints.due(done):
                self._read(*pending, progress)
                pending = None
                self.writer.sync()
                self.checkpoints.save(done, state, force=done == steps.stop or bool(signum))
            if signum:
                self.checkpoints.wait()
                raise Stopped(signum, done)
            if evaluate and self.evaluate is not None:
                enough = self.evaluate(state, done)
                self._read_at = time.perf_counter()
                if enough:
                    self.checkpoints.save(done, state, force=True)
                    break
        return state

    def _next(self, batches: Iterator[Any]) -> tuple[Any, tuple[int, int]]:
        batch = next(batches)
        return self.put(batch), self.count(batch)

    def _read(self, step: int, metrics: dict[str, jax.Array], size: tuple[int, int], progress: Progress) -> None:
        """Waits for the metrics of a step and logs them."""
        values = {name: float(value) + 0.0 for name, value in jax.device_get(metrics).items()}  # no -0.0
        # A gradient that is not finite has spoilt the parameters already, one step before the loss says so.
        if bad := [name for name in ("loss", "gradient_norm") if not math.isfinite(values.get(name, 0.0))]:
            raise UserError(
                f"step {step}: the {bad[0].replace('_', ' ')} is {values[bad[0]]}; {self._last_good(step)}. "
                "Try a lower train.learning_rate or dtype=float32 in a new workdir"
            )
        now = time.perf_counter()
        real, places = size
        values |= {
            "learning_rate": self._rates[step],
            "tokens_per_second": real / max(now - self._read_at, 1e-9),
            "padding": 1.0 - real / places,
        }
        self._read_at = now
        self.writer.write(step, dict.fromkeys(self.metrics, math.nan) | values)
        shown = values | {"accuracy": values["contrastive_accuracy"]} if "contrastive_accuracy" in values else values
        progress(step + 1, shown)

    def _last_good(self, step: int) -> str:
        """Names the newest checkpoint from which a step went well; one of `step` itself gave the bad loss."""
        self.checkpoints.wait()
        saved = finished_steps(self.checkpoints.directory)
        good = max((s for s in saved if s < step), default=None)
        here = f" (that of step {step} gives this)" if step in saved else ""
        return ("there is no good checkpoint" if good is None else f"the last good checkpoint is of step {good}") + here


class Profile:
    """Traces a few steps into a directory (None: does nothing), once compilation is over if the run lasts that long."""

    def __init__(self, directory: str | None, start: int, stop: int) -> None:
        first = start + max(0, min(PROFILED_FROM, stop - start - PROFILED))
        self._directory, self._steps, self._open = directory, range(first, min(stop, first + PROFILED)), False

    def __enter__(self) -> Profile:
        return self

    def before(self, step: int) -> None:
        """To be called before `step` is dispatched."""
        if self._directory is None:
            return
        if step == self._steps.start:
            jax.profiler.start_trace(self._directory)
            self._open = True
        elif step == self._steps.stop:
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            logging.info("profile of %d steps in %s", len(self._steps), self._directory)


def count_parameters(tree: Any) -> int:
    """Number of parameters in a tree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def initialize_hosts() -> None:
    """Connects the processes of a multi-host run; the cluster (TPU pod, SLURM) or JAX_* variables say who is who.

    Once: a job that is part of another finds them connected. From here on SIGTERM is JAX's, which is asked about it
    between steps only (StopSignal). Where some never come, or the first one is lost, JAX aborts.

    They meet in a first collective before any of them goes to work: the first one sets up the connections of all (gloo
    allows it 30 s), the later ones are waited for.
    """
    if jax.distributed.is_initialized():
        return
    where = f"JAX_COORDINATOR_ADDRESS={os.environ.get('JAX_COORDINATOR_ADDRESS', '(unset)')}"
    logging.info("waiting for the other processes of the run; %s", where)
    try:
        jax.distributed.initialize(initialization_timeout=PATIENCE)
    except ValueError as error:
        raise UserError(f"mesh.distributed: the hosts cannot be connected ({error}); {where}") from error
    except RuntimeError as error:
        raise RuntimeError(f"mesh.distributed: the hosts cannot be connected ({error}); {where}") from error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("connected")


def as_first(answer: Any) -> Any:
    """The answer of process 0, on all of them: for what each reads from a disk that may show it later to some.

    Anything that JSON has.
    """
    if jax.process_count() == 1:
        return answer
    from jax.experimental import multihost_utils

    said = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(said.size)))
    letters = np.resize(said, size)  # of process 0 as they are, of others just as many
    return json.loads(multihost_utils.broadcast_one_to_all(letters).tobytes())


@contextlib.contextmanager
def ended_with_the_others() -> Iterator[None]:
    """Ends this process of a multi-host run when another one is lost: at once, with one line and status 1.

    What this process itself has to say is raised, but at its exit JAX would wait five minutes for the others, which may
    know nothing of it: after `GRACE` seconds, enough for all of them to say the same, its status is given without that.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # A collective of small arrays, which runs where it is called, fails with a ValueError: "UNKNOWN: Gloo ...".
        is_gloo = isinstance(error, ValueError) and re.match("[A-Z_]+: .*(?i:gloo|nccl)", str(error))
        if not (is_gloo or isinstance(error, jax.errors.JaxRuntimeError)):
            end = threading.Timer(GRACE, os._exit, [2 if isinstance(error, UserError) else 1])
            end.daemon = True
            end.start()
            raise
        logging.flush()
        reason = " ".join(str(error).split())[:200]
        print(
            f"error: another process of the run was lost, or this one cannot go on ({reason}); start all of them "
            "again: the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def wait_for_hosts(what: str, *, read: bool = True) -> None:
    """Returns when every process of a multi-host run has come here; process 0 has then written `what`.

    `read`: and the others are about to read it, for which they fetch it where the workdir is in a bucket.
    """
    if jax.process_index() == 0:
        bucket.push()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
    if read and jax.process_index() != 0:
        bucket.pull()
