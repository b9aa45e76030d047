"""Prepares, opens and reads a large generated corpus: pairs per second and memory of every phase.

    python benchmarks/large_corpus.py --pairs=20000000 --tokenizer=HF_DIR

Needs about 0.5 KB of disk space per pair in --workdir, which is removed at the end unless --keep is given. Prints one
JSON object. Each phase runs in a process of its own, for its peak memory (resident, in MB); of that, `file_mb` is pages
of memory-mapped files, which the system can reclaim.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppa_jax.data import prepare, sources
from ppa_jax.data.corpora import open_pairs
from ppa_jax.data.tokenizer import load_tokenizer

NOUNS = ["river", "window", "teacher", "engine", "garden", "letter", "mountain", "question", "ship", "winter"]
VERBS = ["follows", "remembers", "carries", "repairs", "describes", "measures", "finds", "leaves", "paints", "asks"]
NOMEN = ["Fluss", "Fenster", "Lehrer", "Motor", "Garten", "Brief", "Berg", "Frage", "Schiff", "Winter"]
VERBEN = ["folgt", "erinnert", "trägt", "repariert", "beschreibt", "misst", "findet", "verlässt", "malt", "fragt"]
ENGLISH = "The {} number {} {} the old {}, and the {} {} the {}."
GERMAN = "Ein {} mit Nummer {} {} das alte {}, und {} {} {}."


def generate(path: Path, pairs: int) -> None:
    """English and German sentences of ordinary length (about 20 word pieces); all pairs differ."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(pairs):
            n = [draw.randrange(10) for _ in range(6)]
            words = ([NOUNS, VERBS], [NOMEN, VERBEN])
            a, b = ([table[0][n[0]], i, table[1][n[1]], *(table[k % 2][n[k]] for k in (2, 4, 3, 0))] for table in words)
            file.write(f"{ENGLISH.format(*a)}\t{GERMAN.format(*b)}\n")


def measured(work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Runs `work` in a process of its own. Returns what it returned, seconds, and the greatest memory it had."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run() -> None:
        import psutil

        file_mb = [0.0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                file_mb[0] = max(file_mb[0], psutil.Process().memory_info().shared / 1e6)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        result = work() or {}
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        send.send({"seconds": round(seconds, 2), "peak_mb": round(peak), "file_mb": round(file_mb[0]), **result})

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    send.close()
    try:
        result = receive.recv()
    except EOFError:
        raise SystemExit("a phase failed; see above") from None
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000_000)
    parser.add_argument("--tokenizer", required=True, help="Hugging Face directory or name")
    parser.add_argument("--batch", type=int, default=256, help="pairs read at once")
    parser.add_argument("--batches", type=int, default=200, help="random batches to read")
    parser.add_argument("--workdir", type=Path, help="default: a fresh temporary directory")
    parser.add_argument("--keep", action="store_true", help="leave the corpus and its cache there")
    options = parser.parse_args()
    workdir = Path(tempfile.mkdtemp(dir=options.workdir))
    text, cache = workdir / "corpus.tsv", workdir / "cache"
    spec = f"en-de={text}"

    def prepare_corpus() -> None:
        prepare.prepare(sources.parse_pairs(spec)[0], sources.Cleaning(), cache)

    def count_pieces() -> None:
        prepared = prepare.prepare(sources.parse_pairs(spec)[0], sources.Cleaning(), cache)
        prepare.piece_lengths(prepared, load_tokenizer(options.tokenizer))

    def open_corpus(**filters: Any) -> Any:
        limits = {"min_pieces": 10, "max_pair_pieces": 128, "max_length": 128}
        return open_pairs(spec, load_tokenizer(options.tokenizer), cache_dir=cache, **limits, **filters)[0]

    def read_batches() -> dict[str, Any]:
        pair = open_corpus()
        draw = random.Random(1)
        pair.read([0])  # opens the files
        start = time.perf_counter()
        for _ in range(options.batches):
            pair.read([draw.randrange(len(pair)) for _ in range(options.batch)])
        seconds = time.perf_counter() - start
        return {
            "pairs_per_second": round(options.batch * options.batches / seconds),
            "batch_ms": round(1e3 * seconds / options.batches, 2),
        }

    def kept(pair: Any) -> dict[str, Any]:
        return {"kept": len(pair)}

    phases: dict[str, Callable[[], dict[str, Any] | None]] = {
        "generate": lambda: generate(text, options.pairs),
        "prepare": prepare_corpus,
        "piece_lengths": count_pieces,
        "filter": lambda: kept(open_corpus()),
        "open": lambda: kept(open_corpus()),
        "read": read_batches,
        "drop_duplicates": lambda: kept(open_corpus(drop_duplicates=True, drop_identical=True)),
    }
    report: dict[str, Any] = {"pairs": options.pairs, "tokenizer": options.tokenizer}
    try:
        for name, work in phases.items():
            result = measured(work)
            result.setdefault("pairs_per_second", round(options.pairs / max(result["seconds"], 1e-9)))
            report[name] = result
        sizes = {"text": text.stat().st_size, "cache": sum(path.stat().st_size for path in cache.rglob("*"))}
        report["bytes_per_pair"] = {name: round(size / options.pairs, 1) for name, size in sizes.items()}
    finally:
        if not options.keep:
            shutil.rmtree(workdir)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
