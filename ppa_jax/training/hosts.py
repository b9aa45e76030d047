"""The processes of a run, one per host: connecting, synchronising and stopping them together."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ppa_jax.errors import UserError

GRACE = 15  # seconds between the first and the last process to exit with the same error
PATIENCE = 3600  # seconds for all hosts to connect; some may have to prepare their corpora first

_asked = itertools.count()  # how often this process has asked whether to stop, over all its loops


def initialize() -> None:
    """Connects the processes of a multi-host run, which the cluster (TPU pod, SLURM) numbers.

    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do; JAX itself reads the first alone.

    Does nothing if they are connected, as in a job that is part of another. Afterwards JAX handles SIGTERM, and is
    asked about it only between steps (StopSignal). If a process never connects, or the first one is lost, JAX aborts.

    Ends with a first collective, so that no process starts work early: that collective sets up the connections, and
    gloo allows 30 s for it.

    Raises:
      UserError: the processes are not numbered.
      RuntimeError: not all have connected.
    """
    if jax.distributed.is_initialized():
        return
    where = f"JAX_COORDINATOR_ADDRESS={os.environ.get('JAX_COORDINATOR_ADDRESS', '(unset)')}"
    logging.info("waiting for the other processes of the run; %s", where)
    numbers = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
    try:
        given: dict[str, Any] = {name: int(number) for name, number in numbers.items() if number}
        jax.distributed.initialize(**given, initialization_timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        kind = UserError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"mesh.distributed: the hosts cannot be connected ({error}); {where}") from error
    barrier("connected")


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_process_0(value: Any) -> Any:
    """Process 0's value (JSON), on all processes: for files on a shared disk that others may not see yet."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(text.size)))
    padded = np.resize(text, size)  # on the other processes only the size counts
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


@contextlib.contextmanager
def exit_on_peer_loss() -> Iterator[None]:
    """Exits at once, with one line and status 1, when another process of the run is lost.

    An error of this process is raised. At exit, however, JAX would wait five minutes for the others, which may not have
    the error: after `GRACE` seconds, enough for all of them to meet the same error, the process exits anyway.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # A collective of small arrays runs synchronously and fails with a ValueError: "UNKNOWN: Gloo ...".
        is_gloo = isinstance(error, ValueError) and re.match("[A-Z_]+: .*(?i:gloo|nccl)", str(error))
        if not (is_gloo or isinstance(error, jax.errors.JaxRuntimeError)):
            end = threading.Timer(GRACE, os._exit, [2 if isinstance(error, UserError) else 1])
            end.daemon = True
            end.start()
            raise
        logging.flush()
        reason = " ".join(str(error).split())[:200]
        print(
            f"error: another process of the run was lost, or this one cannot continue ({reason}); restart all of them: "
            "the same command resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


class StopSignal:
    """Catches SIGTERM and SIGINT: the loop asks after each step. A second signal has its usual effect.

    If processes are connected, even a single one, JAX's coordination service handles SIGTERM: after a signal to one
    process it announces the step after which all stop. SIGINT is then passed on as SIGTERM.
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
        """The signal caught by any process, the same on all of them. All must ask equally often."""
        if not self._connected:
            return self.signum
        # The service expects a counter that only grows; the steps of several trainings in one process do not.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_asked)) else None
