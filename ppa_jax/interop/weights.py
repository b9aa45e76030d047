"""Files of named tensors: safetensors (whole or sharded) and PyTorch's `.bin`, and the JSON files beside them.

Reading never runs code from a file: `.bin` is only unpickled by `torch.load(weights_only=True)`. Tensors are read one
at a time. Every write is atomic.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppa_jax.errors import UserError
from ppa_jax.training.workdir import atomic


class WeightFiles:
    """The tensors of a checkpoint by name, read one at a time.

    Attributes:
        shapes: name -> shape, known without reading the tensor.
        file_of: name -> the file that holds it, for messages.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Opens safetensors and `.bin` files. Raises UserError as `open_weights`."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.file_of: dict[str, Path] = {}
        self._readers: dict[str, Callable[[], np.ndarray]] = {}
        for path in paths:
            with path.open("rb") as file:
                if file.read(40).startswith(b"version https://git-lfs"):
                    raise UserError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
            for name, shape, reader in (_torch_tensors if path.suffix == ".bin" else _safetensors)(path):
                if name in self.shapes:
                    raise UserError(f"{path}: tensor {name} is also in {self.file_of[name].name}; keep one of them")
                self.shapes[name], self.file_of[name], self._readers[name] = tuple(shape), path, reader

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it was stored in."""
        return self._readers[name]()


def open_weights(directory: Path) -> WeightFiles:
    """The weight files of a Hugging Face directory: safetensors before PyTorch's, whole before sharded.

    Raises UserError if there is none, a shard is missing, or a file is truncated or holds more than plain weights.
    """
    return WeightFiles(weight_paths(directory))


def weight_paths(directory: Path) -> list[Path]:
    """The files that `open_weights` reads. Raises UserError when there is none, or a shard is missing."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (directory / whole).is_file():
            return [directory / whole]
        index = directory / f"{whole}.index.json"
        if index.is_file():
            return _shards(index)
    raise UserError(
        f"{directory}: no weights; expected model.safetensors or pytorch_model.bin, whole or sharded with *.index.json"
    )


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of one safetensors file."""
    files = WeightFiles([path])
    return {name: files.read(name) for name in files.shapes}


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: shard {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name}: missing shard, named in {index.name}; download it")
    return [index.parent / name for name in names]


Tensor = tuple[str, Sequence[int], Callable[[], np.ndarray]]  # name, shape, and how to read it


def _safetensors(path: Path) -> Iterator[Tensor]:
    try:
        file = safe_open(path, "np")
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, file.get_slice(name).get_shape(), functools.partial(file.get_tensor, name)
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or damaged safetensors file ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _torch_tensors(path: Path) -> Iterator[Tensor]:
    for name, tensor in _load_torch(path).items():
        yield name, tensor.shape, functools.partial(_torch_to_numpy, tensor)


def _load_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs PyTorch: `pip install torch`, or save it as safetensors") from None
    try:
        # Files from before PyTorch 1.6 are not zip files and cannot be memory-mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise UserError(f"{path}: not a plain weights file: it holds more than tensors, which could run code") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or "empty").splitlines()[0][:120]
        raise UserError(f"{path}: truncated or damaged PyTorch file ({reason}); download it again") from None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise UserError(f"{path}: not a plain weights file: expected a dictionary of named tensors (a state_dict)")
    return state


def _torch_to_numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file. Raises UserError for errors of the operating system."""
    # save_file ignores strides, so a transposed array has to be copied first.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic(path, size=sum(array.nbytes for array in contiguous.values())) as unfinished:
        save_file(contiguous, unfinished, metadata={"format": "pt"})


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a JSON object, or with `kind=list` a list of objects. Raises UserError if the file does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, kind) or not all(isinstance(x, dict) for x in (value if kind is list else ())):
        wanted = "object" if kind is dict else "list of objects"
        raise UserError(f"{path}: expected a JSON {wanted}, found {type(value).__name__}")
    return value


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_matching(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    """Copies the files `names`, if they exist in `source`, to `target`; returns their names."""
    found = [name for name in names if (source / name).is_file()]
    if source.resolve() != target.resolve():
        for name in found:
            with atomic(target / name) as unfinished:
                shutil.copyfile(source / name, unfinished)
    return found
