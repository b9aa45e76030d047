"""Hugging Face checkpoints in and out: BERT and XLM-R (RoBERTa has the blocks of XLM-R).

`read` and `write` both go by the one table of names (`interop/names.py`).

Published checkpoints differ: LayerNorm as weight/bias or gamma/beta, names with or without `bert.`/`roberta.`, a
decoder that repeats the word embeddings or none, buffers of position ids. `read` brings all of them to one form,
`write` writes that form, which is what today's transformers saves from a ...ForMaskedLM model, plus the tensors that
came along. Copies that transformers makes again by itself (a tied decoder, position ids) are not written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.data.tokenizer import TOKENIZER_FILES
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, weight_files
from ppa_jax.interop.config_json import config_from_hf, config_to_hf
from ppa_jax.interop.names import ARCHITECTURES, TreePath, tensor_names, torch_shape, tree_shape
from ppa_jax.interop.weight_files import WeightFiles
from ppa_jax.model.bert import EncoderConfig
from ppa_jax.training.identity import file_digest

__all__ = [
    "Pretrained",
    "config_from_hf",
    "config_to_hf",
    "digest",
    "load_base",
    "read",
    "save_base",
    "tensor_names",
    "write",
    "write_task",
    "write_truncated",
]

PROJECTION = "projection.safetensors"


@dataclasses.dataclass
class Pretrained:
    """A pretrained model and what came with it.

    Attributes:
        config: sizes and constants of the encoder.
        params: "encoder", "mlm_head", and "pooler" and "projection" where the checkpoint has them; float32.
        untouched: tensors that are carried along and not modelled, by their name in transformers (with prefix).
        hf_config: config.json as read.
        initialised: heads, or parts of one as "mlm_head/bias", that the checkpoint lacked.
        unused: the names in `untouched`, as the checkpoint spells them.
    """

    config: EncoderConfig
    params: dict[str, Any]
    untouched: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hf_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    initialised: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)


def read(source: str | Path, *, seed: int = 0) -> Pretrained:
    """Reads a checkpoint: a directory in the Hugging Face format, or the name of a model on the Hub.

    Args:
        source: directory or name.
        seed: for the parameters of heads that the checkpoint lacks.

    Raises:
        UserError: no config.json or weights, damaged files, another kind of model, tensors missing or of another shape
            than config.json says, a decoder of its own.
    """
    directory = hub.resolve(source)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no config.json; give a directory saved by save_pretrained or by this project")
    hf_config = weight_files.read_json(directory / "config.json")
    config = config_from_hf(hf_config, str(directory / "config.json"))
    files = weight_files.open_weights(directory)
    table = tensor_names(config)
    spelled = _canonical_names(files, config)
    _drop_copies(files, spelled, config)
    _check(files, spelled, table, config, directory)

    params: dict[str, Any] = {}
    converted: dict[str, int] = {}
    for name, path in table.items():
        if name in spelled:
            array = files.read(spelled[name])
            if array.dtype != np.float32:
                converted[array.dtype.name] = converted.get(array.dtype.name, 0) + 1
            _set(params, path, _to_flax(path, _to_float32(array, files.file_of[spelled[name]], spelled[name])))
    if converted:
        counts = ", ".join(f"{count} tensors of {dtype}" for dtype, count in converted.items())
        logging.info("%s: read to float32: %s", directory, counts)
    initialised = _initialise_head(params, config, seed)
    if initialised:
        logging.info("%s: not in the checkpoint, initialised: %s", directory, ", ".join(initialised))
    untouched = {name: files.read(original) for name, original in spelled.items() if name not in table}
    unused = [original for name, original in spelled.items() if name not in table]
    if unused:
        logging.info("%s: weights left unused, carried along: %s", directory, ", ".join(unused))
    if (directory / PROJECTION).is_file():
        params["projection"] = _read_projection(directory / PROJECTION)
    return Pretrained(config, params, untouched, hf_config, initialised, unused)


def digest(directory: Path) -> str:
    """Identifies a model by the bytes of all files that `read` reads: every tensor counts. 16 hexadecimal digits."""
    files = [directory / "config.json", *weight_files.weight_paths(directory)]
    if (directory / PROJECTION).is_file():
        files.append(directory / PROJECTION)
    return hashlib.sha256("\n".join(map(file_digest, files)).encode()).hexdigest()[:16]


def _canonical_names(files: WeightFiles, config: EncoderConfig) -> dict[str, str]:
    """Name as the table spells it -> name in the file."""
    prefix = ARCHITECTURES[config.model_type][0]
    spelled: dict[str, str] = {}
    for original in files.shapes:
        name = original
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
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
    """Takes out of `spelled` what transformers makes again: position ids, and the decoder that repeats other tensors.

    Raises UserError for a decoder with weights of its own: the head here is tied to the word embeddings, as in every
    published checkpoint of these models, and would give other logits.
    """
    prefix = ARCHITECTURES[config.model_type][0]
    for buffer in ("position_ids", "token_type_ids"):
        spelled.pop(f"{prefix}embeddings.{buffer}", None)
    head = "cls.predictions" if config.model_type == "bert" else "lm_head"
    if f"{head}.bias" not in spelled and f"{head}.decoder.bias" in spelled:
        spelled[f"{head}.bias"] = spelled.pop(f"{head}.decoder.bias")
    sources = {"weight": f"{prefix}embeddings.word_embeddings.weight", "bias": f"{head}.bias"}
    for leaf, source in sources.items():
        copy = spelled.pop(f"{head}.decoder.{leaf}", None)
        if copy is None or source not in spelled:
            continue
        if not np.array_equal(files.read(copy), files.read(spelled[source]), equal_nan=False):
            raise UserError(
                f"{files.file_of[copy]}: {copy} differs from {spelled[source]}: a decoder of its own is not supported; "
                "save the encoder alone (AutoModel.from_pretrained(...).save_pretrained(...)) to go on with a new head"
            )


def _check(
    files: WeightFiles, spelled: dict[str, str], table: dict[str, TreePath], config: EncoderConfig, directory: Path
) -> None:
    """Raises UserError for a tensor of the encoder that is missing, or any that has another shape than the config."""
    missing = [name for name, path in table.items() if path[0] == "encoder" and name not in spelled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{directory}: tensor {missing[0]}{more} missing from the weights; "
            f"config.json says {config.num_layers} layers of model_type {config.model_type}"
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
    array = np.asarray(value, np.float32)  # from the device, if it is there: one tensor at a time
    return array.T if path[-1] == "kernel" else array


def _set(tree: dict[str, Any], path: TreePath, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree: Any, path: TreePath) -> Any:
    """The value at `path`, or None."""
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _initialise_head(params: dict[str, Any], config: EncoderConfig, seed: int) -> list[str]:
    """Fills in what the masked-LM head lacks, as BERT initialises it; returns the names."""
    paths = [path for path in tensor_names(config).values() if path[0] == "mlm_head"]
    absent = [path for path in paths if _get(params, path) is None]
    for path in absent:
        shape = tree_shape(path, config)
        if path[-1] == "kernel":
            drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
            value = drawn * np.float32(config.initializer_range)
        else:
            value = np.ones(shape, np.float32) if path[-1] == "scale" else np.zeros(shape, np.float32)
        _set(params, path, value)
    return ["mlm_head"] if len(absent) == len(paths) else ["/".join(path) for path in absent]


def write(directory: str | Path, pretrained: Pretrained, *, files_from: str | Path | None = None) -> None:
    """Writes a checkpoint that transformers loads (AutoModel, AutoModelForMaskedLM): float32 safetensors.

    Args:
        directory: made if absent; files of the same names are replaced, each at once.
        pretrained: what to write; arrays may be numpy's or jax's. `untouched` goes in as it came.
        files_from: a directory whose tokenizer files are copied.

    Raises:
        UserError: the operating system refuses (a full disk, say), or the tree lacks a tensor.
    """
    directory = Path(directory)
    _write_weights(directory / "model.safetensors", pretrained, tensor_names(pretrained.config))
    if "projection" in pretrained.params:
        _write_projection(directory / PROJECTION, pretrained.params["projection"])
    _write_side_files(directory, config_to_hf(pretrained.config, pretrained.hf_config), files_from)


def write_truncated(directory: str | Path, pretrained: Pretrained, *, layers: int, files_from: Path) -> None:
    """Writes the first `layers` blocks alone as an encoder (AutoModel), without heads, pooler or untouched tensors."""
    directory = Path(directory)
    config = dataclasses.replace(pretrained.config, num_layers=layers)
    table = {name: path for name, path in tensor_names(config).items() if path[0] == "encoder"}
    _write_weights(directory / "model.safetensors", dataclasses.replace(pretrained, untouched={}), table)
    values = config_to_hf(config, pretrained.hf_config)
    values["architectures"] = [ARCHITECTURES[values["model_type"]][1]]
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
    """Writes a fine-tuned model that transformers loads (AutoModelForSequenceClassification and its like).

    Args:
        directory: made if absent.
        pretrained: the encoder, in `params`; its heads are not written.
        head: the task's parameters: dense layers, {"kernel", "bias"} each.
        architecture: the class after the model's name, "ForTokenClassification" for example.
        modules: the path of a dense layer in `head` -> its name in transformers, "bert." and the like included.
        labels: their names in the order of the outputs; empty for a task without labels.
        files_from: a directory whose tokenizer files are copied.

    Raises:
        UserError: the operating system refuses (a full disk, say).
    """
    directory = Path(directory)
    table = {name: path for name, path in tensor_names(pretrained.config).items() if path[0] == "encoder"}
    extra: dict[str, np.ndarray] = {}
    for path, module in modules.items():
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            at = (*path.split("/"), ours)
            extra[f"{module}.{theirs}"] = np.ascontiguousarray(_to_torch(at, _get(head, at)))
    _write_weights(directory / "model.safetensors", dataclasses.replace(pretrained, untouched=extra), table)
    values = config_to_hf(pretrained.config, pretrained.hf_config)
    values["architectures"] = [ARCHITECTURES[values["model_type"]][1].removesuffix("Model") + architecture]
    for name in ("id2label", "label2id", "num_labels", "problem_type"):  # of the task the model came from
        values.pop(name, None)
    if labels:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    _write_side_files(directory, values, files_from)


def _write_weights(path: Path, pretrained: Pretrained, table: dict[str, TreePath]) -> None:
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for name, at in table.items():
        value = _get(pretrained.params, at)
        if value is None:
            if at[0] == "pooler":
                continue
            raise UserError(f"{path}: cannot be written: the parameters lack {'/'.join(at)}")
        shapes[name], dtypes[name] = torch_shape(at, pretrained.config), "float32"
        tensors[name] = lambda value=value, at=at: _to_torch(at, value)
    for name, array in pretrained.untouched.items():
        shapes[name], dtypes[name] = tuple(array.shape), array.dtype.name
        tensors[name] = lambda array=array: array
    weight_files.write_safetensors(path, tensors, shapes, dtypes)


def _write_side_files(directory: Path, hf_config: dict[str, Any], files_from: str | Path | None) -> None:
    weight_files.write_json(directory / "config.json", hf_config)
    if files_from is not None and not weight_files.copy_matching(Path(files_from), directory, TOKENIZER_FILES):
        logging.warning("%s: no tokenizer files to copy (%s)", files_from, ", ".join(TOKENIZER_FILES))


def _write_projection(path: Path, projection: dict[str, Any]) -> None:
    """The projection head is ours alone: [in, out] kernels under their names in the Flax tree."""
    arrays = {f"{layer}.{leaf}": np.asarray(value) for layer, to in projection.items() for leaf, value in to.items()}
    weight_files.write_arrays(path, arrays)


def _read_projection(path: Path) -> dict[str, Any]:
    projection: dict[str, Any] = {}
    for name, array in weight_files.read_safetensors(path).items():
        _set(projection, tuple(name.split(".")), array)
    return projection


def save_base(directory: str | Path, pretrained: Pretrained, files_from: str | Path | None) -> None:
    """Keeps what an export needs besides trained parameters: config.json, tokenizer files, and untouched.safetensors.

    The last holds `untouched` and the heads, which a run may leave untrained.
    """
    directory = Path(directory)
    kept = dict(pretrained.untouched)
    for name, path in tensor_names(pretrained.config).items():
        if path[0] != "encoder" and (value := _get(pretrained.params, path)) is not None:
            kept[name] = _to_torch(path, value)
    if kept:
        weight_files.write_arrays(directory / "untouched.safetensors", kept)
    values = pretrained.hf_config or config_to_hf(pretrained.config)
    _write_side_files(directory, values, files_from)


def load_base(directory: str | Path, params: dict[str, Any]) -> Pretrained:
    """Joins trained `params` ("encoder", perhaps "mlm_head", "projection") with what `save_base` kept."""
    directory = Path(directory)
    hf_config = weight_files.read_json(directory / "config.json")
    config = config_from_hf(hf_config, str(directory / "config.json"))
    joined, untouched = dict(params), {}
    if (directory / "untouched.safetensors").is_file():
        table = tensor_names(config)
        for name, array in weight_files.read_safetensors(directory / "untouched.safetensors").items():
            if name not in table:
                untouched[name] = array
            elif table[name][0] not in params:
                _set(joined, table[name], _to_flax(table[name], array))
    return Pretrained(config, joined, untouched, hf_config)
