"""The host's memory, reused from step to step, and a clear error when a device's memory is exhausted.

On a CPU, XLA allocates the temporary memory of a step anew in every step. glibc serves such large blocks by mmap and
returns them to the system when they are freed, so each step begins with the kernel clearing gigabytes page by page: a
fifth of the step of a small BERT on two cores. After `keep_freed_memory` the pages stay with the process.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import jax

from ppa_jax.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in the process; to be called before the first computation.

    Returns whether it did: not without glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return False
    # One arena: the arenas of threads cannot hold large blocks and use mmap whatever the limit.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}  # -1: never
    return sum(library.mallopt(name, value) for name, value in settings.items()) == len(settings)


@contextlib.contextmanager
def device_memory(way_out: str) -> Iterator[None]:
    """Turns running out of device memory within the context into a UserError that ends with `way_out`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0][:160]
        raise UserError(f"out of device memory ({first}); {way_out}") from error
