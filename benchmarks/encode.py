"""Sentences per second of Encoder.encode and of SentenceTransformer.encode, on the same model, alternately.

    python -m benchmarks.encode --model=runs/x/export --input=sentences.txt --rounds=3

Each framework runs in a process of its own and waits while the other computes. Both encode the same sentences in
float32, once before the rounds to compile and warm up. Prints a JSON line: sentences_per_s of both, the ratio (ours
over theirs; median, minimum, maximum), the largest difference of the vectors relative to the largest value, and the
extra seconds of our first call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FRAMEWORKS = ("sentence_transformers", "ppa_jax")


def load(framework: str, model: str) -> Any:
    """The model, with an `encode` of the same meaning in both frameworks."""
    if framework == "ppa_jax":
        from ppa_jax import Encoder

        return Encoder.from_pretrained(model)
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model, device="cpu")


def serve(framework: str, a: argparse.Namespace) -> None:
    """Encodes the sentences once, and once more for every line of stdin; prints the seconds. Saves the last vectors."""
    sentences = json.loads(Path(a.directory, "sentences.json").read_text())
    model = load(framework, a.model)

    def encode() -> np.ndarray:
        start = time.perf_counter()
        vectors = model.encode(sentences, batch_size=a.batch_size)
        print(time.perf_counter() - start, flush=True)
        return vectors

    vectors = encode()
    for _ in sys.stdin:
        vectors = encode()
    np.save(Path(a.directory, framework), vectors)


def main() -> None:
    """Runs the rounds and prints the JSON line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--input", required=True, help="a text file, or several with commas between; one sentence a line")
    p.add_argument("--sentences", type=int, default=4000, help="drawn from the input")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=32, help="of both; rows of 128 tokens here, sentences there")
    p.add_argument("--serve", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    p.add_argument("--directory", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.serve:
        serve(a.serve, a)
        return
    lines = [line.strip() for path in a.input.split(",") for line in Path(path).read_text().split("\n")]
    lines = list(dict.fromkeys(filter(None, lines)))  # equal ones are computed once here, so there are none
    texts = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))[: a.sentences]]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "sentences.json").write_text(json.dumps(texts))
        workers = {}
        for name in FRAMEWORKS:
            command = [sys.executable, "-m", "benchmarks.encode", *sys.argv[1:], "--serve", name]
            pipe = subprocess.PIPE
            workers[name] = subprocess.Popen([*command, "--directory", directory], stdin=pipe, stdout=pipe, text=True)
        seconds: dict[str, list[float]] = {name: [] for name in FRAMEWORKS}

        def hear(name: str) -> None:
            if not (line := workers[name].stdout.readline()):
                sys.exit(f"error: {name} ended without an answer")
            seconds[name].append(float(line))

        for name in FRAMEWORKS:  # both start at once: the first times are not compared
            hear(name)
        for _ in range(a.rounds):
            for name in FRAMEWORKS:
                workers[name].stdin.write("again\n")
                workers[name].stdin.flush()
                hear(name)
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
        theirs, ours = (np.load(Path(directory, f"{name}.npy")) for name in FRAMEWORKS)
    first, *ours_s = seconds["ppa_jax"]
    ratios = [t / o for t, o in zip(seconds["sentence_transformers"][1:], ours_s, strict=True)]
    rates = {f"{name}_per_s": round(len(texts) / statistics.median(times[1:]), 1) for name, times in seconds.items()}
    print(json.dumps({
        "sentences": len(texts),
        **rates,
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "greatest": round(max(ratios), 2),
        "difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "first_call_s": round(first - statistics.median(ours_s), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
