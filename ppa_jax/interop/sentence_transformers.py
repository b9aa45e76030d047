"""The files that make an export load with `SentenceTransformer(directory)`, and the same files read back.

Files are written in their older form (`sentence_transformers.models.*`, `pooling_mode_cls_token`), which every release
since 2.0 reads. Settings are saved under a key of our own in config_sentence_transformers.json, which
sentence-transformers ignores. They include what a base brings besides its encoder (pooling, Normalize, prompts, its
maximum length), so these survive training and conversion.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.interop.names import FAMILIES

OUR_KEY = "ppa_jax"
SETTINGS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
TRUNCATED = "0_Transformer"  # subfolder of the encoder that ends at the chosen layer
POOLING = "1_Pooling"
NORMALIZE = "2_Normalize"
ACTIVATIONS = {  # our name -> that in the config.json of a Dense module
    "tanh": "torch.nn.modules.activation.Tanh",
    "identity": "torch.nn.modules.linear.Identity",
}
POOLING_FLAGS = {  # our name -> the flag in 1_Pooling/config.json
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
}
OTHER_FLAGS = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How sentence vectors are computed, and what else a SentenceTransformer has.

    Attributes:
        layer: 1 (after the first block) to num_layers.
        pooling: "cls" or "mean" (over all tokens of a sentence, including special tokens).
        max_length: maximum word pieces per sentence, including special tokens; longer sentences are truncated.
        normalize: whether vectors are scaled to length 1.
        include_prompt: whether the tokens of a prompt are pooled.
        dense: the activation of the Dense module that follows the pooling (LaBSE has one); "" without one.
        options: the rest of config_sentence_transformers.json: prompts, the similarity.
    """

    layer: int
    pooling: str
    max_length: int
    normalize: bool = False
    include_prompt: bool = True
    dense: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_modules(directory: str | Path, pretrained: Pretrained, settings: Settings) -> None:
    """Makes a directory written by `huggingface.write` load with SentenceTransformer, giving what training compared.

    For a layer below the last, an encoder truncated there goes into a subfolder; the whole model stays at the top.

    Args:
        directory: holds the export, with its tokenizer files.
        pretrained: the model that was written there; `params["dense"]` has the parameters of the Dense module.
        settings: of the sentence vectors.
    """
    directory, config, layer = Path(directory), pretrained.config, settings.layer
    if not 1 <= layer <= config.num_layers:
        raise UserError(f"contrastive.layer: {layer} is not between 1 and the model's {config.num_layers} layers")
    if settings.pooling not in POOLING_FLAGS:
        raise UserError(f"contrastive.pooling: {settings.pooling!r} is not one of {', '.join(POOLING_FLAGS)}")
    settings = dataclasses.replace(settings, max_length=min(settings.max_length, config.max_length))

    transformer: dict[str, Any] = {"max_seq_length": settings.max_length, "do_lower_case": False}
    has_pooler = "pooler" in pretrained.params and layer == config.num_layers
    # Without this, transformers initialises a pooler, with a warning, which sentence-transformers ignores.
    if FAMILIES[config.model_type].pooler and not has_pooler:
        transformer["model_args"] = {"add_pooling_layer": False}
    paths = {"Transformer": TRUNCATED if layer < config.num_layers else "", "Pooling": POOLING}
    if layer < config.num_layers:
        huggingface.write_truncated(directory / TRUNCATED, pretrained, layers=layer, files_from=directory)
    weights.write_json(directory / paths["Transformer"] / TRANSFORMER_FILE, transformer)
    flags = {flag: name == settings.pooling for name, flag in POOLING_FLAGS.items()} | dict.fromkeys(OTHER_FLAGS, False)
    pool = {"word_embedding_dimension": config.hidden_size, "include_prompt": settings.include_prompt}
    weights.write_json(directory / POOLING / "config.json", pool | flags)
    write_settings(directory, settings)
    if settings.dense:
        paths["Dense"] = huggingface.DENSE_MODULE
        huggingface.write_dense(directory / paths["Dense"], pretrained.params["dense"])
        dense = {"bias": True, "activation_function": ACTIVATIONS[settings.dense]}
        dense["in_features"], dense["out_features"] = pretrained.params["dense"]["kernel"].shape
        weights.write_json(directory / paths["Dense"] / "config.json", dense)
    if settings.normalize:
        paths["Normalize"] = NORMALIZE
    # modules.json is written last: it makes the directory a SentenceTransformer.
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    weights.write_json(directory / "modules.json", modules)


def write_settings(directory: str | Path, settings: Settings) -> None:
    """Saves the settings for `read_settings`, without the modules."""
    ours = dataclasses.asdict(settings)
    theirs = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    theirs |= {"similarity_fn_name": "cosine"} | ours.pop("options")
    weights.write_json(Path(directory) / SETTINGS_FILE, theirs | {OUR_KEY: ours})


def read_settings(directory: str | Path, *, default_prompt: bool = False) -> Settings | None:
    """How a directory written here or by sentence-transformers makes sentence vectors; None if it is neither.

    Args:
        directory: of the model.
        default_prompt: whether a prompt before every sentence is accepted; the caller must then put it there.

    Raises:
        UserError: sentence-transformers does more than pool by "cls" or "mean", apply one Dense module and normalize
            (another pooling or module, lower case, a prompt before every sentence): the vectors would not be the same.
    """
    directory = Path(directory)
    modules = _modules(directory)
    paths = dict(modules)
    encoder = paths.get("Transformer", directory)
    options, transformer = _read(directory / SETTINGS_FILE), _read(encoder / TRANSFORMER_FILE)
    name = options.get("default_prompt_name")
    if not default_prompt and name and (options.get("prompts") or {}).get(name):
        where = directory / SETTINGS_FILE
        raise UserError(f"{where}: default_prompt_name {name!r} is not supported; only null, or an empty prompt, is")
    # Without modules.json, sentence-transformers does not read this file; the tokenizer has a setting of its own.
    if modules and transformer.get("do_lower_case"):
        raise UserError(f"{encoder / TRANSFORMER_FILE}: do_lower_case is not supported; only false is")
    ours = options.pop(OUR_KEY, None)
    if isinstance(ours, dict) and ours.keys() >= {"layer", "pooling", "max_length"}:
        known = {field.name for field in dataclasses.fields(Settings)}
        return Settings(**{name: value for name, value in ours.items() if name in known}, options=options)
    if not modules:
        return None
    listed, kinds = directory / "modules.json", [kind for kind, _ in modules]
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"{listed}: module {unknown[0]} is not supported; only {', '.join(known)} are")
    if "Pooling" not in kinds or kinds != [kind for kind in known if kind in kinds]:
        wanted = f"only {', '.join(known)}, in this order, each at most once and with Pooling"
        raise UserError(f"{listed}: modules {', '.join(kinds)} are not supported; {wanted}")
    config = huggingface.read_sizes(encoder)
    lengths = [transformer.get("max_seq_length"), _read(encoder / "tokenizer_config.json").get("model_max_length")]
    pooling = paths["Pooling"] / "config.json"
    return Settings(
        layer=config.num_layers,
        pooling=_pooling(pooling),
        max_length=min([config.max_length, *(int(length) for length in lengths if length)]),
        normalize="Normalize" in kinds,
        include_prompt=bool(weights.read_json(pooling).get("include_prompt", True)),
        dense=_activation(paths["Dense"] / "config.json") if "Dense" in kinds else "",
        options=options,
    )


def read_dense(directory: str | Path) -> dict[str, Any] | None:
    """The parameters {"kernel", "bias"} of the directory's Dense module; None without one."""
    path = dense_directory(directory)
    return huggingface.read_dense(path) if path else None


def dense_directory(directory: str | Path) -> Path | None:
    """Where the files of the directory's Dense module are; None without one."""
    return dict(_modules(directory)).get("Dense")


def normalizes(directory: str | Path) -> bool:
    """Whether the directory's modules scale vectors to length 1."""
    return "Normalize" in dict(_modules(directory))


def encoder_directory(directory: str | Path) -> Path:
    """Where the encoder's own files are: in the directory, or in the subfolder that its modules.json names.

    In a directory written here it is the whole encoder at the top, whose layers `read_settings` counts.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        return directory
    return dict(_modules(directory)).get("Transformer", directory)


def _modules(directory: str | Path) -> list[tuple[str, Path]]:
    """The class name and the directory of each module in modules.json, which may be absent."""
    listed = Path(directory) / "modules.json"
    modules = weights.read_json(listed, list) if listed.is_file() else []
    return [(str(x.get("type", "")).rpartition(".")[2], Path(directory, x.get("path", ""))) for x in modules]


def _activation(path: Path) -> str:
    """Our name of the activation in the config.json of a Dense module."""
    theirs = weights.read_json(path).get("activation_function")
    if name := {value: name for name, value in ACTIVATIONS.items()}.get(theirs):
        return name
    raise UserError(f"{path}: activation_function {theirs!r} is not supported; {' and '.join(ACTIVATIONS)} are")


def _read(path: Path) -> dict[str, Any]:
    """The JSON object of a file that may be absent."""
    return weights.read_json(path) if path.is_file() else {}


def _pooling(path: Path) -> str:
    """The pooling of a 1_Pooling/config.json, in its older form (flags) or today's (a name)."""
    values = weights.read_json(path)
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [flag for flag in (*POOLING_FLAGS.values(), *OTHER_FLAGS) if values.get(flag)]
        modes = [name for name, flag in POOLING_FLAGS.items() if flag in modes] + [m for m in modes if m in OTHER_FLAGS]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_FLAGS:
        raise UserError(f"{path}: pooling {' and '.join(modes) or 'unknown'} is not supported; cls or mean is")
    return modes[0]
