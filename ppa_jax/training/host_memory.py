"""The C library's memory on a host that computes: kept between steps instead of given back.

On a CPU, XLA asks for a step's temporary memory anew in every step. glibc serves such large blocks by mmap and returns
them to the system at once, so that each step begins with the kernel clearing gigabytes, page by page: a fifth of the
step of a small BERT on two cores. With these settings the pages stay with the process.
"""

import ctypes
import sys

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
