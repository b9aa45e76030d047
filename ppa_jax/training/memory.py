"""Memory of the host, kept between steps; memory of the devices, told in one line when it runs out.

On a CPU, XLA asks for a step's temporary memory anew in every step. glibc serves such large blocks by mmap and returns
them to the system at once, so that each step begins with the kernel clearing gigabytes, page by page: a fifth of the
step of a small BERT on two cores. With `keep_freed_memory` the pages stay with the process.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import jax

from ppa_jax.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for itself; call it before the first computation. False where there is no
    glibc, and nothing was done."""
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return False
    # One arena: those of threads cannot hold large blocks and fall back on mmap, whatever the limit.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}  # -1: never
    return sum(library.mallopt(name, value) for name, value in settings.items()) == len(settings)


@contextlib.contextmanager
def device_memory(way_out: str) -> Iterator[None]:
    """Turns the exhaustion of the devices' memory within it into a UserError that ends with `way_out`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0][:160]
        raise UserError(f"the memory of the devices does not suffice ({first}); {way_out}") from error
