"""The processes of a run, one a host: connected, in step with each other, stopped together."""

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
PATIENCE = 3600  # seconds for all hosts to come, some of which may prepare their corpora first

_asked = itertools.count()  # how often this process has asked whether to stop, in all its loops


def initialize() -> None:
    """Connects the processes of a multi-host run; the cluster (TPU pod, SLURM) or JAX_* variables say who is who.

    A job that is part of another one finds them connected. From here on SIGTERM is handled by JAX, which is asked about
    it only between steps (StopSignal). Where some never come, or the first one is lost, JAX aborts.

    They meet in a first collective before any of them goes to work: the first one sets up the connections of all (gloo
    allows it 30 s), and the later ones are waited for.

    Raises:
      UserError: it is not known who is who.
      RuntimeError: not all have come.
    """
    if jax.distributed.is_initialized():
        return
    where = f"JAX_COORDINATOR_ADDRESS={os.environ.get('JAX_COORDINATOR_ADDRESS', '(unset)')}"
    logging.info("waiting for the other processes of the run; %s", where)
    try:
        jax.distributed.initialize(initialization_timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        kind = UserError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"mesh.distributed: the hosts cannot be connected ({error}); {where}") from error
    barrier("connected")


def barrier(name: str) -> None:
    """Returns when every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_process_0(value: Any) -> Any:
    """The value (JSON) that process 0 has, on all: for what is read from a disk that may not show it to all yet."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(text.size)))
    padded = np.resize(text, size)  # on the other processes only the size counts
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


@contextlib.contextmanager
def exit_on_peer_loss() -> Iterator[None]:
    """Exits at once, with one line and status 1, when another process of the run is lost.

    An error of this process is raised. But at the exit JAX would wait five minutes for the others, which may know
    nothing of it: after `GRACE` seconds, enough for all of them to meet the same error, the process exits all the same.
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


class StopSignal:
    """Catches SIGTERM and SIGINT: the loop asks after each step. A second one has its usual effect.

    Where processes are connected, be it only one, SIGTERM belongs to JAX's coordination service: it tells all of them
    of a signal to one, and a step after which all stop. SIGINT is passed on as SIGTERM then.
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
        # The service expects a counter that only grows, which the steps of several trainings in one process are not.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_asked)) else None
