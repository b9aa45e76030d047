"""Where a model lies: here, in the workdir of a run, or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ppa_jax.data.tokenizer import TOKENIZER_FILES
from ppa_jax.errors import UserError
from ppa_jax.interop import weight_files


def resolve(source: str | Path) -> Path:
    """The local directory of a model: itself, the export of a run's workdir, or the Hub's files, fetched.

    Raises UserError when there is no such directory, the run has not finished, or the Hub cannot give it.
    """
    path = Path(source).expanduser()
    if (path / "checkpoints").is_dir() and (path / "base").is_dir():
        if not (path / "export" / "config.json").is_file():
            raise UserError(
                f"{source}: a run that has not finished; let it finish, or take its newest checkpoint: "
                f"python -m ppa_jax.convert to-hf --source={source} --target=DIR"
            )
        return path / "export"
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source}: is a file; give the directory with config.json and the weights")
    if not weight_files.is_hub_name(str(source)):
        raise UserError(f"{source}: no such directory; give a Hugging Face directory or a name on the Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = ["config.json", *TOKENIZER_FILES, "modules.json", "*_Pooling/config.json", "projection.safetensors"]
    small += ["config_sentence_transformers.json", "sentence_bert_config.json", "*_Transformer/*"]
    try:
        weights = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
        directory = Path(snapshot_download(str(source), allow_patterns=small + weights))
        if not any(directory.glob("model*.safetensors*")):
            weights = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
            directory = Path(snapshot_download(str(source), allow_patterns=small + weights))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
        raise UserError(
            f"{source}: no such directory here, and the Hugging Face Hub did not give it ({reason}); "
            "check the name, or download it and give its directory"
        ) from None
    return directory
