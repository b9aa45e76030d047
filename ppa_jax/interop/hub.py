"""Where a model is: a directory, the workdir of a run, a bucket, or the Hugging Face Hub."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from ppa_jax import storage
from ppa_jax.data.tokenizer import TOKENIZER_FILES
from ppa_jax.errors import UserError, reason

# The files that are read of a model, besides its weights.
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
    """As `resolve`; of the files in the bucket only those that are read are downloaded."""
    names = storage.names(address)
    if "base/config.json" in names:
        if "export/config.json" not in names:
            raise UserError(_UNFINISHED.format(address))
        address = f"{address}/export"
        names = [name.removeprefix("export/") for name in names if name.startswith("export/")]
    has_safetensors = any(fnmatch(name, "model*.safetensors*") for name in names)
    patterns = _SMALL + ((_SAFETENSORS if has_safetensors else _BIN) if weights else [])
    return storage.local(address, wanted=lambda name: any(fnmatch(name, pattern) for pattern in patterns))
