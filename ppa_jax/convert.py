"""Converts checkpoints between Hugging Face and Flax, and checks that both compute the same.

    python -m ppa_jax.convert to-flax --source=HF_DIR     --target=DIR
    python -m ppa_jax.convert to-hf   --source=RUN_OR_DIR --target=HF_DIR
    python -m ppa_jax.convert verify  --source=HF_DIR

`to-flax` writes the parameters to DIR/params as an Orbax checkpoint, and config.json, the tokenizer and
untouched.safetensors to DIR. `to-hf` reads such a directory, or the newest checkpoint of a workdir.
Exit status: 0; 1 if `verify` finds a difference over 1e-4; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from etils import epath

from ppa_jax import storage
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, huggingface, sentence_transformers, verify
from ppa_jax.log_lines import answer
from ppa_jax.training import checkpoint
from ppa_jax.training.sharding import check_platform

PARAMS = "params"  # the Orbax checkpoint in a directory of to-flax


def to_flax(source: str, target: str | Path) -> None:
    """Writes a Hugging Face checkpoint as an Orbax checkpoint with config, tokenizer and unused tensors.

    Raises UserError if `source` is no supported model, or `target` exists or cannot be written.
    """
    target = _new_directory(target)
    directory = hub.resolve(source)
    pretrained = huggingface.read(directory)
    try:
        settings = sentence_transformers.read_settings(directory)
    except UserError as error:
        settings = None
        logging.warning("the settings of the sentence encoder are not copied: %s", error)
    if settings and settings.dense:
        pretrained.params["dense"] = sentence_transformers.read_dense(directory)
    huggingface.save_base(target, pretrained, files_from=directory)
    if settings:
        sentence_transformers.write_settings(target, settings)
    # The pooler is in untouched.safetensors.
    checkpoint.save_params(target / PARAMS, {k: v for k, v in pretrained.params.items() if k != "pooler"})


def to_hf(source: str | Path, target: str | Path) -> None:
    """Writes a Hugging Face checkpoint from a directory of `to_flax` or the newest checkpoint of a run.

    Raises UserError if `source` is neither, or `target` exists or cannot be written.
    """
    directory = epath.Path(source).expanduser()  # checkpoints are read in place, also from a bucket
    with storage.one_line(directory):
        if not directory.is_dir():
            raise UserError(f"{source}: no such directory; give the workdir of a run or a directory made by to-flax")
        is_run = (directory / "checkpoints").is_dir() and (directory / "base" / "config.json").is_file()
        is_params = (directory / PARAMS).is_dir() and (directory / "config.json").is_file()
    if is_run:
        base = storage.local(directory / "base")
        target = _new_directory(target)
        step, params = checkpoint.load_latest_params(directory / "checkpoints")
        logging.info("%s: the checkpoint of step %d", source, step)
    elif is_params:
        base = storage.local(directory, wanted=lambda name: not name.startswith(f"{PARAMS}/"))
        target = _new_directory(target)
        params = checkpoint.load_params(directory / PARAMS)
    else:
        raise UserError(
            f"{source}: neither the workdir of a run (base/ and checkpoints/) nor a directory made by to-flax "
            f"(config.json and {PARAMS}/)"
        )
    pretrained = huggingface.load_base(base, params)
    huggingface.write(target, pretrained, files_from=base)
    if settings := sentence_transformers.read_settings(base):
        sentence_transformers.write_modules(target, pretrained, settings)


def verify_table(source: str) -> bool:
    """Prints the differences between PyTorch and Flax by layer; returns whether all are within tolerance."""
    rows = verify.compare(source)
    print(f"{source}: PyTorch and Flax on {len(verify.SENTENCES)} sentences with padding, float32")
    print(f"{'':18}  {'greatest relative difference':>28}")
    for name, difference in rows:
        print(f"{name:18}  {difference:28.2e}{'  TOO LARGE' if difference > verify.TOLERANCE else ''}")
    if rows[-1][0] != verify.LOGITS:
        print("the checkpoint has no masked-LM head: logits not compared")
    ok = all(difference <= verify.TOLERANCE for _, difference in rows)
    print(f"{'passed' if ok else 'FAILED'}: tolerance {verify.TOLERANCE:.0e}")
    return ok


def _new_directory(target: str | Path) -> Path:
    target = storage.on_disk(target, "--target=")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty directory; give a new one")
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    about, usage = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m ppa_jax.convert",
        description=about,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="to-flax | to-hf | verify")
    for name, source_help in (
        ("to-flax", "a Hugging Face directory, or a name on the Hub"),
        ("to-hf", "the workdir of a run, or a directory made by to-flax"),
        ("verify", "a Hugging Face directory, or a name on the Hub"),
    ):
        command = commands.add_parser(name, help=source_help)
        command.add_argument("--source", required=True, help=source_help)
        if name != "verify":
            command.add_argument("--target", required=True, help="a directory that is new or empty")
    args = parser.parse_args(argv)

    def work() -> int:
        check_platform()
        if args.command == "verify":
            return 0 if verify_table(args.source) else 1
        (to_flax if args.command == "to-flax" else to_hf)(args.source, args.target)
        print(f"written: {args.target}")
        return 0

    return answer(work)


if __name__ == "__main__":
    sys.exit(main())
