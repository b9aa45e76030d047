"""Memory that a computing process frees stays with it."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from ppa_jax.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.empty(50_000_000, np.uint8)
    block[::4096] = 1  # a touch of every page
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def page_faults(how: str) -> list[int]:
    command = [sys.executable, "-c", PROGRAM, how]
    return [int(x) for x in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()]


def test_a_second_block_costs_no_page_faults():
    # numpy asks for huge pages where the kernel has them: then a block of 50 MB is some 24 faults instead of 12,000.
    first, second, third = page_faults("keep")
    assert first > 20 and second < first / 10 and third < first / 10
    first, second, third = page_faults("give back")
    assert second > first / 2 and third > first / 2, "glibc keeps such blocks by itself: the setting is not needed"
