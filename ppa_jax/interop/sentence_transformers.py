"""The files that make an export load with `SentenceTransformer(directory)`, and the same files read back.

The older spelling of these files is written (`sentence_transformers.models.*`, `pooling_mode_cls_token`): every release
since 2.0 reads it, today's too. Settings are kept under a key of our own in config_sentence_transformers.json, which
sentence-transformers leaves alone. What a base brings besides its encoder (pooling, Normalize, prompts, its length) is
among them, so it survives training and conversion.
"""

from __future__ import annotations

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


def write_modules(
    directory: str | Path, pretrained: Pretrained, *, layer: int, pooling: str, max_length: int, **kept: Any
) -> None:
    """Makes a directory written by `huggingface.write` load with SentenceTransformer, giving what training compared.

    For another layer than the last, an encoder cut off there goes into a subfolder; the whole model stays at the top.

    Args:
        directory: holds the export, with its tokenizer files.
        pretrained: the model that was written there.
        layer: 1 (after the first block) to num_layers.
        pooling: "cls" or "mean" (over all tokens of a sentence, special tokens included).
        max_length: word pieces of a sentence, special tokens included; longer ones are cut.
        kept: `normalize`, `include_prompt`, `dense` and `options`, as in `read_settings`. The parameters of the Dense
            module are `pretrained.params["dense"]`.
    """
    directory, config = Path(directory), pretrained.config
    if not 1 <= layer <= config.num_layers:
        raise UserError(f"contrastive.layer: {layer} is not between 1 and the model's {config.num_layers} layers")
    if pooling not in POOLING_FLAGS:
        raise UserError(f"contrastive.pooling: {pooling!r} is not one of {', '.join(POOLING_FLAGS)}")
    max_length = min(max_length, config.max_length)

    transformer: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": False}
    has_pooler = "pooler" in pretrained.params and layer == config.num_layers
    # Without this transformers makes a pooler up, with a warning, for sentence-transformers to ignore.
    if FAMILIES[config.model_type].pooler and not has_pooler:
        transformer["model_args"] = {"add_pooling_layer": False}
    path = ""
    if layer < config.num_layers:
        path = TRUNCATED
        huggingface.write_truncated(directory / path, pretrained, layers=layer, files_from=directory)
    weights.write_json(directory / path / TRANSFORMER_FILE, transformer)
    flags = {flag: name == pooling for name, flag in POOLING_FLAGS.items()} | dict.fromkeys(OTHER_FLAGS, False)
    include_prompt = kept.get("include_prompt", True)
    pool = {"word_embedding_dimension": config.hidden_size, "include_prompt": include_prompt} | flags
    weights.write_json(directory / POOLING / "config.json", pool)
    write_settings(directory, layer=layer, pooling=pooling, max_length=max_length, **kept)
    # modules.json comes last: with it the directory is a SentenceTransformer, and all it points to is there.
    places = {"Transformer": path, "Pooling": POOLING}
    if activation := kept.get("dense"):
        places["Dense"] = huggingface.DENSE_MODULE
        layer_config = {"bias": True, "activation_function": ACTIVATIONS[activation]}
        sizes = dict(zip(("in_features", "out_features"), pretrained.params["dense"]["kernel"].shape, strict=True))
        huggingface.write_dense(directory / huggingface.DENSE_MODULE, pretrained.params["dense"])
        weights.write_json(directory / huggingface.DENSE_MODULE / "config.json", layer_config | sizes)
    if kept.get("normalize"):
        places["Normalize"] = NORMALIZE
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(places.items())
    ]
    weights.write_json(directory / "modules.json", modules)


def write_settings(
    directory: str | Path,
    *,
    layer: int,
    pooling: str,
    max_length: int,
    normalize: bool = False,
    include_prompt: bool = True,
    dense: str = "",
    options: dict[str, Any] | None = None,
) -> None:
    """Keeps the settings for `read_settings`, without the modules."""
    values = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        **(options or {}),
        OUR_KEY: {
            "layer": layer,
            "pooling": pooling,
            "max_length": max_length,
            "normalize": normalize,
            "include_prompt": include_prompt,
            "dense": dense,
        },
    }
    weights.write_json(Path(directory) / SETTINGS_FILE, values)


def read_settings(directory: str | Path) -> dict[str, Any] | None:
    """How a directory written here or by sentence-transformers makes sentence vectors; None if it is neither.

    Returns:
        The arguments of `write_settings`: `layer` counts the blocks, so that the last is num_layers; `pooling` is "cls"
        or "mean"; `max_length` the word pieces of a sentence; `normalize` whether vectors are brought to length 1;
        `include_prompt` whether the tokens of a prompt are pooled; `dense` the activation of the Dense module that
        follows the pooling (LaBSE has one), empty without one; `options` the rest of
        config_sentence_transformers.json: prompts, the similarity.

    Raises:
        UserError: sentence-transformers does more than pool by "cls" or "mean", apply one Dense module and normalize
            (another pooling or module, lower case, a prompt before every sentence): the vectors would not be the same.
    """
    directory = Path(directory)
    listed = directory / "modules.json"
    modules = _modules(directory)
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    paths = {kind: directory / module.get("path", "") for kind, module in zip(kinds, modules, strict=True)}
    encoder = paths.get("Transformer", directory)
    options, transformer = _read(directory / SETTINGS_FILE), _read(encoder / TRANSFORMER_FILE)
    if (name := options.get("default_prompt_name")) and (options.get("prompts") or {}).get(name):
        where = directory / SETTINGS_FILE
        raise UserError(f"{where}: default_prompt_name {name!r} is not supported; only null, or an empty prompt, is")
    # Without modules.json, sentence-transformers does not read this file; the tokenizer has a setting of its own.
    if modules and transformer.get("do_lower_case"):
        raise UserError(f"{encoder / TRANSFORMER_FILE}: do_lower_case is not supported; only false is")
    ours = options.pop(OUR_KEY, None)
    if isinstance(ours, dict) and ours.keys() >= {"layer", "pooling", "max_length"}:
        given = {key: ours[key] for key in ("layer", "pooling", "max_length")}
        defaults = {"normalize": False, "include_prompt": True, "dense": ""}
        kept = {key: ours.get(key, default) for key, default in defaults.items()}
        return given | kept | {"options": options}
    if not listed.is_file():
        return None
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"{listed}: module {unknown[0]} is not supported; only {', '.join(known)} are")
    if "Pooling" not in kinds:
        raise UserError(f"{listed}: no Pooling module; only cls or mean pooling is supported")
    if kinds != [kind for kind in known if kind in kinds]:
        raise UserError(f"{listed}: modules {', '.join(kinds)} are not supported; each of {', '.join(known)} once, in "
                        "this order, is")  # fmt: skip
    config = huggingface.read_sizes(encoder)
    lengths = [transformer.get("max_seq_length"), _read(encoder / "tokenizer_config.json").get("model_max_length")]
    pooling = paths["Pooling"] / "config.json"
    return {
        "layer": config.num_layers,
        "pooling": _pooling(pooling),
        "max_length": min([config.max_length, *(int(length) for length in lengths if length)]),
        "normalize": normalizes(directory),
        "include_prompt": bool(weights.read_json(pooling).get("include_prompt", True)),
        "dense": _activation(paths["Dense"] / "config.json") if "Dense" in kinds else "",
        "options": options,
    }


def read_dense(directory: str | Path) -> dict[str, Any] | None:
    """The parameters {"kernel", "bias"} of the directory's Dense module; None without one."""
    for module in _modules(directory):
        if str(module.get("type", "")).endswith(".Dense"):
            return huggingface.read_dense(Path(directory) / module.get("path", ""))
    return None


def normalizes(directory: str | Path) -> bool:
    """Whether the directory's modules bring vectors to length 1."""
    return any(str(module.get("type", "")).endswith(".Normalize") for module in _modules(directory))


def encoder_directory(directory: str | Path) -> Path:
    """Where the encoder's own files lie: in the directory, or in the subfolder that its modules.json names.

    Of a directory written here the whole encoder at the top is meant, whose layers `read_settings` counts.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file() or not (directory / "modules.json").is_file():
        return directory
    for module in weights.read_json_list(directory / "modules.json"):
        if str(module.get("type", "")).endswith("Transformer"):
            return directory / module.get("path", "")
    return directory


def _modules(directory: str | Path) -> list[dict[str, Any]]:
    """What modules.json lists, which may be absent."""
    where = Path(directory) / "modules.json"
    return weights.read_json_list(where) if where.is_file() else []


def _activation(path: Path) -> str:
    """Our name of the activation in the config.json of a Dense module."""
    theirs = weights.read_json(path).get("activation_function")
    for name, known in ACTIVATIONS.items():
        if theirs == known:
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
