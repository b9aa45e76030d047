"""Sentences per second of Encoder.encode beside SentenceTransformer.encode, on the same directory, in turn.

    python -m benchmarks.encode --model=runs/x/export --input=sentences.txt --rounds=3

Both encode the same sentences in float32; compiling, and one sentence to start with, are timed apart. Prints a JSON
line: sentences_per_s of both, the ratio (ours over theirs; median, least, greatest), the greatest difference of the
vectors relative to the greatest value, compile_s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from ppa_jax import Encoder
from ppa_jax.data.text_files import read_lines
from ppa_jax.training.memory import keep_freed_memory


def main() -> None:
    """Runs the rounds and prints the JSON line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--input", required=True, help="a text file, or several with commas between; one sentence a line")
    p.add_argument("--sentences", type=int, default=4000, help="drawn from the input")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=32, help="of both; rows of 128 tokens here, sentences there")
    a = p.parse_args()
    keep_freed_memory()
    from sentence_transformers import SentenceTransformer

    lines = [line for path in a.input.split(",") for line in read_lines(Path(path), field="--input") if line.strip()]
    texts = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))[: a.sentences]]
    texts = list(dict.fromkeys(texts))  # equal ones are computed once here, so there are none
    ours, theirs = Encoder.from_pretrained(a.model), SentenceTransformer(a.model, device="cpu")
    start = time.perf_counter()
    ours.encode(texts, batch_size=a.batch_size)
    first = time.perf_counter() - start
    theirs.encode(texts[:64], batch_size=a.batch_size)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    vectors = {}
    for _ in range(a.rounds):
        for name, model in (("theirs", theirs), ("ours", ours)):
            start = time.perf_counter()
            vectors[name] = model.encode(texts, batch_size=a.batch_size)
            seconds[name].append(time.perf_counter() - start)
    ratios = [t / o for t, o in zip(seconds["theirs"], seconds["ours"], strict=True)]
    difference = np.abs(vectors["ours"] - vectors["theirs"]).max() / np.abs(vectors["theirs"]).max()
    print(json.dumps({
        "sentences": len(texts),
        **{f"{name}_per_s": round(len(texts) / statistics.median(values), 1) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "greatest": round(max(ratios), 2),
        "difference": float(difference),
        "compile_s": round(first - statistics.median(seconds["ours"]), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
