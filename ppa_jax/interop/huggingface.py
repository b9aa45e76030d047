"""Reads and writes Hugging Face checkpoints of the families in `interop/names.py`.

Published checkpoints differ: LayerNorm as weight/bias or gamma/beta, names with or without a prefix (`bert.`), a tied
decoder saved or omitted, buffers of position ids. `read` accepts all of them. `write` writes what transformers saves
for a ...ForMaskedLM model, and the checkpoint's other tensors unchanged. Tensors that transformers derives when it
loads a model (a tied decoder, position ids) are not written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from ppa_jax.data.tokenizer import TOKENIZER_FILES
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, weights
from ppa_jax.interop.names import FAMILIES, TreePath, config_from_hf, config_to_hf, tensor_names, torch_shape
from ppa_jax.interop.weights import WeightFiles
from ppa_jax.model.families import EncoderConfig, make_masked_lm_head
from ppa_jax.training.workdir import file_digest

PROJECTION = "projection.safetensors"
DENSE_MODULE = "2_Dense"  # SentenceTransformer's layer after the pooling


@dataclasses.dataclass
class Pretrained:
    """A pretrained model and the rest of its checkpoint.

    Attributes:
        config: sizes and constants of the encoder.
        params: "encoder", "mlm_head", and "pooler" and "projection" where the checkpoint has them; float32.
        untouched: tensors that the model does not use, by their names in transformers (with prefix); written back.
        hf_config: config.json as read.
        initialised: heads, or parts of one ("mlm_head/bias"), that the checkpoint does not have.
        unused: the names of `untouched` in the checkpoint.
    """

    config: EncoderConfig
    params: dict[str, Any]
    untouched: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hf_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    initialised: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)


def read(source: str | Path, *, seed: int = 0) -> Pretrained:
    """Reads a checkpoint.

    Args:
        source: as for `hub.resolve`: a directory, a workdir, a name on the Hub.
        seed: for the parameters of heads that the checkpoint does not have.

    Raises:
        UserError: no config.json or weights, damaged files, an unsupported model type, tensors that are missing or do
            not have the shape in config.json, a decoder that is not tied to the word embeddings.
    """
    directory = hub.resolve(source)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no config.json; give a directory saved by save_pretrained or by this project")
    hf_config = weights.read_json(directory / "config.json")
    config = config_from_hf(hf_config, str(directory / "config.json"))
    files = weights.open_weights(directory)
    table = tensor_names(config)
    spelled = _canonical_names(files, config)
    _drop_copies(files, spelled, config)
    _check(files, spelled, table, config, directory)

    flat: dict[TreePath, np.ndarray] = {}
    converted: Counter[str] = Counter()
    for name, path in table.items():
        if name in spelled:
            array = files.read(spelled[name])
            if array.dtype != np.float32:
                converted[array.dtype.name] += 1
            flat[path] = _to_flax(path, _to_float32(array, files.file_of[spelled[name]], spelled[name]))
    if converted:
        counts = ", ".join(f"{count} tensors of {dtype}" for dtype, count in converted.items())
        logging.info("%s: read to float32: %s", directory, counts)
    initialised = _initialise_head(flat, config, seed)
    if initialised:
        logging.info("%s: not in the checkpoint, initialised: %s", directory, ", ".join(initialised))
    untouched = {name: files.read(original) for name, original in spelled.items() if name not in table}
    unused = [original for name, original in spelled.items() if name not in table]
    if unused:
        logging.info("%s: weights not used, written back on export: %s", directory, ", ".join(unused))
    params = unflatten_dict(flat)
    if (directory / PROJECTION).is_file():
        params["projection"] = unflatten_dict(weights.read_safetensors(directory / PROJECTION), sep=".")
    return Pretrained(config, params, untouched, hf_config, initialised, unused)


def read_sizes(directory: Path) -> EncoderConfig:
    """The encoder's configuration from config.json; reads no weights. Raises UserError as `read`."""
    path = directory / "config.json"
    return config_from_hf(weights.read_json(path), str(path))


def digest(directory: Path) -> str:
    """A digest of the bytes of all files that `read` reads; 16 hexadecimal digits."""
    files = [directory / "config.json", *weights.weight_paths(directory)]
    if (directory / PROJECTION).is_file():
        files.append(directory / PROJECTION)
    return hashlib.sha256("\n".join(map(file_digest, files)).encode()).hexdigest()[:16]


def _canonical_names(files: WeightFiles, config: EncoderConfig) -> dict[str, str]:
    """Name as in `tensor_names` -> name in the file."""
    prefix = FAMILIES[config.model_type].prefix
    inside = {name.removeprefix(prefix).split(".")[0] for name in tensor_names(config) if name.startswith(prefix)}
    spelled: dict[str, str] = {}
    for original in files.shapes:
        name = original
        if name.split(".")[0] in inside:  # "encoder.layer.0...": saved without the prefix
            name = prefix + name
        if name.endswith(".gamma"):
            name = name.removesuffix("gamma") + "weight"
        elif name.endswith(".beta"):
            name = name.removesuffix("beta") + "bias"
        if name in spelled:
            raise UserError(f"{files.file_of[original]}: {spelled[name]} and {original} are the same tensor; keep one")
        spelled[name] = original
    return spelled


def _drop_copies(files: WeightFiles, spelled: dict[str, str], config: EncoderConfig) -> None:
    """Removes from `spelled` what transformers derives when it loads a model: buffers, and copies of tied tensors.

    Raises UserError for a decoder with its own weights, because the head is tied to the word embeddings here, as in all
    published checkpoints of these models, and would compute other logits.
    """
    family = FAMILIES[config.model_type]
    for buffer in family.buffers:
        spelled.pop(family.prefix + buffer, None)
    for copy, source in family.copies.items():
        repeated = spelled.pop(copy, None)
        if repeated is None:
            continue
        if source not in spelled:  # either of two tied tensors may have been saved
            spelled[source] = repeated
        elif not np.array_equal(files.read(repeated), files.read(spelled[source])):
            raise UserError(
                f"{files.file_of[repeated]}: {repeated} differs from {spelled[source]}: an untied decoder is not "
                "supported; save the encoder alone (AutoModel.from_pretrained(...).save_pretrained(...)) to continue "
                "with a new head"
            )


def _check(
    files: WeightFiles, spelled: dict[str, str], table: Mapping[str, TreePath], config: EncoderConfig, directory: Path
) -> None:
    """Raises UserError if a tensor of the encoder is missing, or a shape differs from config.json."""
    missing = [name for name, path in table.items() if path[0] == "encoder" and name not in spelled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{directory}: tensor {missing[0]}{more} missing from the weights; "
            f"config.json says {config.num_layers} layers of model_type {config.model_type}"
        )
    family = FAMILIES[config.model_type]
    layers = family.prefix + family.layers.partition("{}")[0]
    numbers = (name.removeprefix(layers).partition(".")[0] for name in spelled if name.startswith(layers))
    found_layers = 1 + max(map(int, filter(str.isdecimal, numbers)), default=-1)
    if found_layers > config.num_layers:
        raise UserError(
            f"{directory}: config.json says {config.num_layers} layers, the weights have {found_layers}; restore the "
            "config.json that the model was saved with, or save the shorter model with transformers"
        )
    for name, path in table.items():
        if name not in spelled:
            continue
        found, expected = files.shapes[spelled[name]], torch_shape(path, config)
        if found == expected:
            continue
        if path[-2] == "word_embeddings" and len(found) == 2 and found[1] == config.hidden_size:
            raise UserError(
                f"{directory}: config.json says vocab_size={config.vocab_size}, but {spelled[name]} has {found[0]} "
                "rows; config.json and weights are of different models, or the embeddings were resized without it"
            )
        raise UserError(
            f"{files.file_of[spelled[name]]}: tensor {spelled[name]} has shape {list(found)}, "
            f"config.json asks for {list(expected)}"
        )


def _to_float32(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    if array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise UserError(f"{path}: tensor {name} is of type {array.dtype.name}; only float weights are supported")
    return array.astype(np.float32, copy=False)


def _to_flax(path: TreePath, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else array


def _to_torch(path: TreePath, value: Any) -> np.ndarray:
    array = np.asarray(value, np.float32)
    return array.T if path[-1] == "kernel" else array


def _initialise_head(flat: dict[TreePath, np.ndarray], config: EncoderConfig, seed: int) -> list[str]:
    """Initialises missing parameters of the masked-LM head; returns their names."""
    paths = [path for path in tensor_names(config).values() if path[0] == "mlm_head"]
    absent = [path for path in paths if path not in flat]
    if absent:
        states = jnp.zeros((1, config.hidden_size))
        head = make_masked_lm_head(config).init(jax.random.key(seed), states)["params"]
        random = flatten_dict({"mlm_head": head})
        flat.update({path: np.array(random[path]) for path in absent})
    return ["mlm_head"] if len(absent) == len(paths) else ["/".join(path) for path in absent]


def write(directory: str | Path, pretrained: Pretrained, *, files_from: str | Path | None = None) -> None:
    """Writes a checkpoint that transformers loads (AutoModel, AutoModelForMaskedLM): float32 safetensors.

    Args:
        directory: created if absent; files of the same names are replaced atomically.
        pretrained: numpy or jax arrays; `untouched` is written as it was read.
        files_from: a directory whose tokenizer files are copied.

    Raises:
        UserError: a file cannot be written (for example on a full disk), or a tensor is missing.
    """
    directory = Path(directory)
    _write_weights(directory, pretrained, tensor_names(pretrained.config), pretrained.untouched)
    if "projection" in pretrained.params:  # not of transformers: its names in the Flax tree, kernels [in, out]
        arrays = flatten_dict(pretrained.params["projection"], sep=".")
        weights.write_safetensors(directory / PROJECTION, {name: np.asarray(x) for name, x in arrays.items()})
    _write_side_files(directory, config_to_hf(pretrained.config, pretrained.hf_config), files_from)


def write_truncated(directory: str | Path, pretrained: Pretrained, *, layers: int, files_from: Path) -> None:
    """Writes only the first `layers` blocks as an encoder (AutoModel), without heads, pooler or untouched tensors."""
    directory = Path(directory)
    config = dataclasses.replace(pretrained.config, num_layers=layers)
    _write_weights(directory, pretrained, _encoder_names(config), {})
    values = config_to_hf(config, pretrained.hf_config)
    values["architectures"] = [f"{FAMILIES[values['model_type']].classes}Model"]
    _write_side_files(directory, values, files_from)


def write_task(
    directory: str | Path,
    pretrained: Pretrained,
    head: Any,
    *,
    architecture: str,
    modules: dict[str, str],
    labels: Sequence[str],
    files_from: str | Path,
) -> None:
    """Writes a fine-tuned model that transformers loads (AutoModelForSequenceClassification and similar classes).

    Args:
        directory: created if absent.
        pretrained: only the encoder in `params` is written.
        head: the task's parameters: modules with some of "kernel", "scale" and "bias".
        architecture: the class without the model's name, for example "ForTokenClassification".
        modules: the path of a module in `head` -> its name in transformers, including a prefix such as "bert.".
        labels: their names in the order of the outputs; empty for a task without labels.
        files_from: a directory whose tokenizer files are copied.

    Raises:
        UserError: a file cannot be written (for example on a full disk).
    """
    directory = Path(directory)
    tensors: dict[str, np.ndarray] = {}
    for path, value in flatten_dict(head).items():
        if module := modules.get("/".join(path[:-1])):
            tensors[f"{module}.{'bias' if path[-1] == 'bias' else 'weight'}"] = _to_torch(path, value)
    _write_weights(directory, pretrained, _encoder_names(pretrained.config), tensors)
    values = config_to_hf(pretrained.config, pretrained.hf_config)
    values["architectures"] = [FAMILIES[values["model_type"]].classes + architecture]
    for name in ("id2label", "label2id", "num_labels", "problem_type"):  # of an earlier task
        values.pop(name, None)
    if labels:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    _write_side_files(directory, values, files_from)


def _encoder_names(config: EncoderConfig) -> dict[str, TreePath]:
    return {name: path for name, path in tensor_names(config).items() if path[0] == "encoder"}


def _write_weights(
    directory: Path, pretrained: Pretrained, table: Mapping[str, TreePath], others: dict[str, np.ndarray]
) -> None:
    """Writes model.safetensors: the parameters in `table` by their names in transformers, and `others`."""
    path = directory / "model.safetensors"
    arrays, flat = dict(others), flatten_dict(pretrained.params)
    for name, key in table.items():
        if key in flat:
            arrays[name] = _to_torch(key, flat[key])
        elif key[0] != "pooler":
            raise UserError(f"{path}: cannot be written: the parameters lack {'/'.join(key)}")
    weights.write_safetensors(path, arrays)


def _write_side_files(directory: Path, hf_config: dict[str, Any], files_from: str | Path | None) -> None:
    weights.write_json(directory / "config.json", hf_config)
    if files_from is not None and not weights.copy_matching(Path(files_from), directory, TOKENIZER_FILES):
        logging.warning("%s: no tokenizer files to copy (%s)", files_from, ", ".join(TOKENIZER_FILES))


def write_dense(directory: Path, dense: dict[str, Any]) -> None:
    """The parameters {"kernel", "bias"} of a Dense module of sentence-transformers."""
    arrays = {"linear.weight": _to_torch(("kernel",), dense["kernel"]), "linear.bias": np.asarray(dense["bias"])}
    weights.write_safetensors(directory / "model.safetensors", arrays)


def read_dense(directory: Path) -> dict[str, Any]:
    """Reads a Dense module of sentence-transformers in float32; a missing bias is 0. Raises UserError."""
    files = weights.open_weights(directory)
    if "linear.weight" not in files.shapes:
        raise UserError(f"{directory}: no tensor linear.weight; save the model again with sentence-transformers")
    kernel = np.ascontiguousarray(files.read("linear.weight").astype(np.float32).T)
    has_bias = "linear.bias" in files.shapes
    bias = files.read("linear.bias").astype(np.float32) if has_bias else np.zeros(kernel.shape[1], np.float32)
    return {"kernel": kernel, "bias": bias}


def save_base(directory: str | Path, pretrained: Pretrained, files_from: str | Path | None) -> None:
    """Saves what an export needs besides trained parameters: config.json, tokenizer files, and untouched.safetensors.

    The latter has `untouched` and the heads, which a run may not train.
    """
    directory = Path(directory)
    arrays, flat = dict(pretrained.untouched), flatten_dict(pretrained.params)
    for name, path in tensor_names(pretrained.config).items():
        if path[0] != "encoder" and path in flat:
            arrays[name] = _to_torch(path, flat[path])
    if arrays:
        weights.write_safetensors(directory / "untouched.safetensors", arrays)
    if "dense" in pretrained.params:
        write_dense(directory / DENSE_MODULE, pretrained.params["dense"])
    values = pretrained.hf_config or config_to_hf(pretrained.config)
    _write_side_files(directory, values, files_from)


def load_base(directory: str | Path, params: dict[str, Any]) -> Pretrained:
    """Joins trained `params` ("encoder", perhaps "mlm_head", "projection") with what `save_base` saved."""
    directory = Path(directory)
    hf_config = weights.read_json(directory / "config.json")
    config = config_from_hf(hf_config, str(directory / "config.json"))
    untouched: dict[str, np.ndarray] = {}
    heads: dict[TreePath, np.ndarray] = {}
    if (directory / "untouched.safetensors").is_file():
        table = tensor_names(config)
        for name, array in weights.read_safetensors(directory / "untouched.safetensors").items():
            if name not in table:
                untouched[name] = array
            elif table[name][0] not in params:
                heads[table[name]] = _to_flax(table[name], array)
    joined = params | unflatten_dict(heads)
    if "dense" not in params and (directory / DENSE_MODULE).is_dir():
        joined["dense"] = read_dense(directory / DENSE_MODULE)
    return Pretrained(config, joined, untouched, hf_config)
