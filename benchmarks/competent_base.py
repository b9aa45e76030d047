"""Makes a multilingual encoder that knows its languages but is not aligned from an aligned sentence encoder.

    python -m benchmarks.competent_base --model=MODEL --data=DATA --workdir=WORKDIR [--config.train.steps=1000 ...]

The top blocks of MODEL (a Hugging Face directory), which contrastive training has changed most, are re-initialised,
including their LayerNorms, as in First Align, then Predict. Masked LM then trains the whole model, with each line as a
sequence of its own, never as pairs. Repeating the command resumes it; settings of configs/pretrain.py may follow.
Expect the base in WORKDIR/run/export.

The text is that of DATA, in the forms of docs/data.md, without the test sets: bible, multi30k, tldr, the training sets
of wikiann and English EWT, and the last 997 lines of ntrex, the only text in some of XNLI's languages (retrieval is
measured on its first 1,000). Repeated lines are used once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from ppa_jax.interop import huggingface
from ppa_jax.model.reinitialise import reinitialise
from ppa_jax.training.workdir import atomic

BIBLE = dict(
    cmn_cu89s="zh", deu1912="de", eng_nt_BSB="en", engwebp="en", org_nt_RUSSYN="ru", spaRV1909="es", swhulb="sw",
    turobt="tr",
)  # fmt: skip
NTREX = dict(
    arb="ar", bul="bg", deu="de", ell="el", eng="en", fra="fr", hin="hi", rus="ru", spa="es", swa="sw", tha="th",
    tur="tr", urd="ur", vie="vi", zho_CN="zh",
)  # fmt: skip
NTREX_TEST = 1000  # lines from the top, reserved for evaluation


def texts(data: Path) -> Iterator[tuple[str, list[str]]]:
    """(language, its lines) of each file of `data` that may be trained on."""
    for path in sorted((data / "bible").glob("*.txt")):
        yield BIBLE[path.stem.replace("-", "_")], lines(path)
    for path in sorted((data / "multi30k").glob("train.*")):
        yield path.suffix[1:], lines(path)
    for path in sorted((data / "tldr").glob("en-*.tsv")):
        english, other = zip(*(line.split("\t") for line in lines(path)), strict=True)
        yield "en", list(english)
        yield path.stem.removeprefix("en-"), list(other)
    for path in sorted((data / "wikiann").glob("train-*.tsv")):
        language = path.stem.removeprefix("train-")
        sentences = path.read_text(encoding="utf-8").split("\n\n")
        space = "" if language == "zh" else " "
        yield language, [space.join(row.split("\t")[0] for row in rows.splitlines()) for rows in sentences]
    treebank = lines(data / "ud" / "en_ewt-ud-train.conllu")
    yield "en", [line.removeprefix("# text = ") for line in treebank if line.startswith("# text = ")]
    for name, language in NTREX.items():
        yield language, lines(data / "ntrex" / f"{name.replace('_', '-')}.txt")[NTREX_TEST:]


def lines(path: Path) -> list[str]:
    """The lines of a file; only a line feed ends one."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def write_texts(data: Path, directory: Path) -> None:
    """Writes one file for each language, LANGUAGE.txt."""
    found: dict[str, dict[str, None]] = {}
    for language, text in texts(data):
        usable = (line.strip() for line in text if line.strip() not in ("", "<range>"))
        found.setdefault(language, {}).update(dict.fromkeys(usable))
    directory.mkdir(parents=True, exist_ok=True)
    for language, text in sorted(found.items()):
        (directory / f"{language}.txt").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
        logging.info("%s: %d lines", language, len(text))


def write_reinitialised(model: Path, directory: Path, count: int, seed: int) -> None:
    """Writes `model` with its top `count` blocks re-initialised."""
    pretrained = huggingface.read(model, seed=seed)
    depth = pretrained.config.num_layers
    top = range(depth - count + 1, depth + 1)
    pretrained.params["encoder"] = reinitialise(pretrained.params["encoder"], pretrained.config, top, seed)
    huggingface.write(directory, pretrained, files_from=model)


def main() -> None:
    """The command line; ends as the job of pretraining."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=4, help="from the top, to re-initialise")
    parser.add_argument("--seed", type=int, default=0, help="of the new blocks and of the head")
    args, settings = parser.parse_known_args()
    logging.set_verbosity(logging.INFO)
    text, start = args.workdir / "text", args.workdir / "reinitialised"
    if not text.is_dir():
        with atomic(text) as unfinished:
            write_texts(args.data, unfinished)
    if not start.is_dir():
        with atomic(start) as unfinished:
            write_reinitialised(args.model, unfinished, args.blocks, args.seed)
    settings = [
        f"--workdir={args.workdir / 'run'}",
        f"--config.init={start}",
        "--config.objective=mlm",
        "--config.dtype=float32",
        "--config.data.pairs=" + ",".join(f"{path.stem}={path}" for path in sorted(text.glob("*.txt"))),
        "--config.data.max_length=64",
        "--config.data.max_characters=250",
        "--config.data.temperature=3",  # languages with little text are drawn more often than their share
        "--config.train.steps=2000",
        "--config.train.batch_size=32",
        "--config.train.accumulate=2",  # half the memory
        "--config.train.learning_rate=2e-4",
        "--config.train.warmup=0.1",
        "--config.checkpoint.every=100",
        *settings,
    ]
    command = [sys.executable, "-m", "ppa_jax.main", "--config=configs/pretrain.py", *settings]
    os.execv(sys.executable, command)  # signals reach the job, and its exit status the caller


if __name__ == "__main__":
    main()
