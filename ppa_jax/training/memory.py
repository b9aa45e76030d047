"""The host's memory, reused from step to step, and a clear error when a device's memory is exhausted.

On a CPU, XLA allocates a step's temporary memory again in every step. glibc allocates such large blocks with mmap and
returns them to the system when they are freed, so in each step the kernel clears gigabytes page by page: a fifth of the
step of a small BERT on two cores. After `keep_freed_memory` the process keeps the pages.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import jax

from ppa_jax.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in the process; call it before the first computation.

    Returns whether it succeeded, which requires glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return False
    # One arena, because those of threads cannot hold large blocks and use mmap regardless of the limit.
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
