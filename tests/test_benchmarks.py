"""The measuring scripts are for machines that have little installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("grain", "ml_collections", "orbax", "tensorflow_datasets", "tokenizers", "torch", "transformers")


def test_the_step_is_measured_without_the_packages_of_a_run():
    code = f"import sys; sys.modules |= dict.fromkeys({ABSENT!r}); import benchmarks.align_step"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_benchmark_started_as_a_file_says_how_to_start_it():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/align_step.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "python -m benchmarks.align_step" in done.stderr
