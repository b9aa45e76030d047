"""The C library's memory on a host that computes: kept between steps instead of given back.

On a CPU, XLA asks for a step's temporary memory anew in every step. glibc serves such large blocks by mmap and returns
them to the system at once, so that each step begins with the kernel clearing gigabytes, page by page: a fifth of the
step of a small BERT on two cores. With these two settings the pages stay with the process.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for itself; call it before the first computation. False where there is no
    glibc, and nothing was done."""
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
