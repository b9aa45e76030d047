"""Runs two commands alternately and prints the ratio of their speeds, with the spread.

    python -m benchmarks.compare --rounds=3 "python peer.py --batch 32" "python -m benchmarks.align_step --batch 32"

Each command prints, as its last line, a JSON object with a rate under `--key` (or a time, if the key does not end in
per_s). Ratios are computed within a round, so that a temporary slowdown of the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys


def measure(command: str, key: str) -> dict[str, float]:
    """The JSON object of the last line that the command prints."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        sys.exit(f"error: {command}: exit status {done.returncode}, {len(lines)} lines of output")
    values = json.loads(lines[-1])
    if key not in values:
        sys.exit(f"error: {command}: no {key} in {lines[-1]}")
    return values


def main() -> None:
    """Prints a line for each round and a JSON line with the median, the least and the greatest ratio."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("first", help="the command to compare with")
    p.add_argument("second", help="the command whose advantage is printed")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--key", default="pairs_per_s", help="..._per_s: more is better; any other: less is")
    a = p.parse_args()
    ratios = []
    for number in range(1, a.rounds + 1):
        first, second = (measure(command, a.key) for command in (a.first, a.second))
        ratio = second[a.key] / first[a.key]
        ratios.append(ratio if a.key.endswith("_per_s") else 1 / ratio)
        print(f"round {number}: {first[a.key]} and {second[a.key]}, ratio {ratios[-1]:.2f}", flush=True)
        print(f"  {json.dumps(first)}\n  {json.dumps(second)}", flush=True)
    print(json.dumps({
        "ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3), "greatest": round(max(ratios), 3),
        "rounds": a.rounds,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
