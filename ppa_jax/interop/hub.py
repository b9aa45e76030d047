"""Where a model is: a directory, the workdir of a run, a bucket, or the Hugging Face Hub; and how it gets there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from absl import logging

from ppa_jax import storage
from ppa_jax.data.tokenizer import TOKENIZER_FILES
from ppa_jax.errors import UserError, reason

# The files of a model that are read, besides its weights.
_SMALL = ["README.md", "config.json", *TOKENIZER_FILES, "modules.json", "*_Pooling/config.json"]
_SMALL += ["projection.safetensors", "config_sentence_transformers.json", "sentence_bert_config.json"]
_SMALL += ["*_Transformer/*", "*_Dense/*"]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_BIN = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
_UNFINISHED = (
    "{0}: a run that has not finished; wait for it, or use its newest checkpoint: "
    "python -m ppa_jax.convert to-hf --source={0} --target=DIR"
)


def is_name(text: str) -> bool:
    """Whether `text` has the form of a model's name on the Hub: `name` or `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text) is not None


def resolve(source: str | Path, *, weights: bool = True) -> Path:
    """The local directory of a model; one in a bucket or on the Hub is downloaded to the cache.

    Args:
      source: a directory, the workdir of a run (its export is used), an address in a bucket, or a name on the Hub.
      weights: whether to download them, too.

    Raises UserError when there is no such directory, the run has not finished, or the download fails.
    """
    if storage.in_bucket(source):
        return _from_bucket(str(source).rstrip("/"), weights)
    path = Path(source).expanduser()
    if (path / "checkpoints").is_dir() and (path / "base").is_dir():
        if not (path / "export" / "config.json").is_file():
            raise UserError(_UNFINISHED.format(source))
        return path / "export"
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source}: is a file; give the directory with config.json and the weights")
    if not is_name(str(source)):
        raise UserError(f"{source}: no such directory; give a Hugging Face directory or a name on the Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(str(source), allow_patterns=_SMALL + (_SAFETENSORS if weights else [])))
        if weights and not any(directory.glob("model*.safetensors*")):
            directory = Path(snapshot_download(str(source), allow_patterns=_SMALL + _BIN))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{source}: no such directory, and downloading it from the Hugging Face Hub failed ({reason(error)}); "
            "check the name, or download it and give its directory"
        ) from None
    return directory


def _from_bucket(address: str, weights: bool) -> Path:
    """Like `resolve`; downloads only the files that are read."""
    names = storage.names(address)
    if "base/config.json" in names:
        if "export/config.json" not in names:
            raise UserError(_UNFINISHED.format(address))
        address = f"{address}/export"
        names = [name.removeprefix("export/") for name in names if name.startswith("export/")]
    has_safetensors = any(fnmatch(name, "model*.safetensors*") for name in names)
    patterns = _SMALL + ((_SAFETENSORS if has_safetensors else _BIN) if weights else [])
    return storage.local(address, wanted=lambda name: any(fnmatch(name, pattern) for pattern in patterns))


CARD = "README.md"
HERE = "path/to/this/directory"  # in a model card; on the Hub its name takes the place


def push(source: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a model with its card to the Hub, in one commit; returns its address.

    Args:
      source: as for `resolve`.
      repo: "owner/name"; created if absent.
      private: whether a repository that is created is private.

    Raises:
      UserError: there is no model, `repo` is no such name, no token, or the upload fails.
    """
    if not (is_name(repo) and "/" in repo):
        raise UserError(f"--repo={repo}: must be a name on the Hub, owner/name")
    directory = resolve(source)
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        raise UserError(f"{source}: no config.json; give a directory with a model, or the workdir of a run")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise UserError(f"{repo}: not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")

    def content(path: Path) -> Path | bytes:
        if path != directory / CARD:
            return path
        return path.read_text(encoding="utf-8").replace(HERE, repo).encode()

    if not (directory / CARD).is_file():
        logging.warning("%s: no model card (%s); write one, or add it on the Hub", directory, CARD)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    operations = [CommitOperationAdd(str(path.relative_to(directory)), content(path)) for path in files]
    try:
        api = HfApi(library_name="ppa_jax")
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message="Upload the model")
    except (OSError, ValueError) as error:  # of the Hub, HTTP, or files
        raise UserError(f"{repo}: the upload failed ({reason(error)}); the same command tries again") from error
    return str(address)


def push_command(arguments: Sequence[str]) -> int:
    """`ppa-jax push SOURCE --repo=owner/name`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ppa-jax push", description="Uploads a model to the Hugging Face Hub.")
    parser.add_argument("source", help="the workdir of a run, or a directory with a model")
    parser.add_argument("--repo", required=True, help="owner/name; created if absent")
    parser.add_argument("--private", action="store_true", help="of a repository that is created")
    args = parser.parse_args(arguments)
    print(push(args.source, args.repo, private=args.private))
    return 0
