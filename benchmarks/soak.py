"""An hour of training with kill -9 every few minutes, compared with the same training undisturbed.

    python -m benchmarks.soak --workdir=runs/soak --steps=12000 --between=90,240

Runs two trainings of the main job's demo in parallel, each on its own share of the cores. One is never disturbed. The
other is killed after a random time and restarted with the same command, until it finishes. Prints the kills, the
resident memory of the undisturbed process over time and of each start of the other, and whether the exported parameters
are identical bit for bit; exits with 1 if they are not, or if memory grew by more than a tenth between the second
quarter and the last. With --bucket=gs://... the other training has its workdir there. For a simulated bucket:

    python tests/fake_storage.py        # prints the environment variables that select it
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from etils import epath
from safetensors.numpy import load

WEIGHTS = "export/model.safetensors"


def start(workdir: Path, cores: set[int], a: argparse.Namespace, bucket: str = "") -> subprocess.Popen[bytes]:
    """The same command each time; its output is appended to a log beside the workdir."""
    command = [sys.executable, "-m", "ppa_jax.main", "--config=configs/ppa.py:demo", f"--workdir={bucket or workdir}"]
    command += [f"--config.train.steps={a.steps}", f"--config.checkpoint.every={a.checkpoint}"]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, cores), start_new_session=True
        )


def resident_mib(process: subprocess.Popen[bytes]) -> float:
    """Of a live process; 0 of one that is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> int:
    """Runs both; 1 if they differ or memory grows."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", type=Path, default=Path("runs/soak"))
    p.add_argument("--steps", type=int, default=12_000)
    p.add_argument("--checkpoint", type=int, default=200, help="steps between checkpoints")
    p.add_argument("--between", default="90,240", help="seconds from a start to its kill: least, most")
    p.add_argument("--bucket", default="", help="gs://BUCKET/DIRECTORY for the one that is killed")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if a.workdir.exists():
        p.error(f"--workdir={a.workdir} exists; a soak starts from nothing")
    a.workdir.mkdir(parents=True)
    place = epath.Path(a.bucket or a.workdir / "killed")
    if place.exists():
        p.error(f"--bucket={a.bucket} exists; a soak starts from nothing")
    least, most = map(float, a.between.split(","))
    draw = random.Random(a.seed)
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    shares = (set(cores[:half]), set(cores[half:])) if half else (set(cores), set(cores))
    begun = time.monotonic()
    alone = start(a.workdir / "alone", shares[0], a)
    killed = start(a.workdir / "killed", shares[1], a, a.bucket)
    deadline = begun + draw.uniform(least, most)
    memory: list[float] = []  # of the undisturbed process, every ten seconds
    peaks, kills = [0.0], 0
    while alone.poll() is None or killed.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        peaks[-1] = max(peaks[-1], resident_mib(killed))
        if alone.poll() is None and now - begun > 10 * (len(memory) + 1):
            memory.append(resident_mib(alone))
        if killed.poll() is None and now > deadline:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
            kills += 1
            peaks.append(0.0)
            print(f"{now - begun:6.0f} s  kill {kills}", file=sys.stderr, flush=True)
            killed = start(a.workdir / "killed", shares[1], a, a.bucket)
            deadline = time.monotonic() + draw.uniform(least, most)
    print(f"{time.monotonic() - begun:,.0f} s, {kills} kills; exit status {alone.returncode} and {killed.returncode}")
    if alone.returncode or killed.returncode or not kills or len(memory) < 8:
        print("nothing to compare: a run failed, or they ended before the first kill or within two minutes")
        return 1
    quarters = [float(np.median(x)) for x in np.array_split(np.array(memory), 4)]
    print("MiB of the undisturbed process, medians of its quarters:", *(f"{x:,.0f}" for x in quarters))
    print("MiB of the other, the most of each start:", *(f"{x:,.0f}" for x in peaks))
    one, other = (load((directory / WEIGHTS).read_bytes()) for directory in (a.workdir / "alone", place))
    same = one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    print(f"parameters: {len(one)} arrays, {'the same to the bit' if same else 'THEY DIFFER'}")
    return int(not same or quarters[3] > 1.1 * quarters[1])


if __name__ == "__main__":
    sys.exit(main())
