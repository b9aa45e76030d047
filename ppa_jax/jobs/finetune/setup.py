"""Turns a configuration into what fine-tuning needs: checks the settings, opens models and files, computes features.

All mistakes of the user are reported here, before the workdir is claimed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, PartitionSpec

from ppa_jax.config import NOT_NEGATIVE, Config, Limit, at_least, check, entries, load_module, training_steps
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, huggingface
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.model.families import EncoderConfig, make_encoder
from ppa_jax.tasks import code_switching, files
from ppa_jax.tasks.files import checksum
from ppa_jax.tasks.task import PARTS, Feature
from ppa_jax.training import sharding
from ppa_jax.training.freezing import parse_freeze
from ppa_jax.training.limits import check_batch_size, check_training, parse_seeds
from ppa_jax.training.workdir import check_identity, write_identity

TASKS = {
    "nli": "ppa_jax.tasks.nli",
    "qa": "ppa_jax.tasks.qa",
    "tagging": "ppa_jax.tasks.tagging",
    "parsing": "ppa_jax.tasks.parsing",
}
# Settings that may change when a workdir is used again. `init` may add models; each has its own identity.
MAY_CHANGE = (
    "init", "seeds", "ablations", "data.test", "data.test_examples", "checkpoint", "log", "profile", "mesh",
    "similarity.measure", "test_batch_size", "train.remat", "train.scan",
)  # fmt: skip
LIMITS = {
    "test_batch_size": Limit(lambda n: 0 < n <= 2**20, "greater than 0, at most 2**20"),
    "eval.patience": NOT_NEGATIVE,
    "data.test_examples": NOT_NEGATIVE,
    "data.max_length": at_least(8),
    "data.switch_rate": Limit(lambda x: 0 <= x <= 1, "from 0 to 1"),
}
Examples = Mapping[str, list[Any]]  # language -> examples


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The examples of one language with their features."""

    language: str
    examples: list[Any]
    features: list[Feature]
    content: int  # a checksum of the examples


@dataclasses.dataclass(eq=False)
class Setup:
    """Everything but the weights. Models of the same sizes and tokenizer share it with its compiled programs."""

    config: Config
    task: Any
    sizes: EncoderConfig  # with the configured dropout
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    examples: Mapping[str, Examples]  # part (train, dev, test) -> language -> examples
    dev: list[TestSet]  # for early stopping
    tests: list[TestSet]
    mesh: Mesh
    network: finetune.Network
    predict: Callable[..., Any]  # the jitted forward pass
    steps: dict[int, Callable[..., Any]] = dataclasses.field(default_factory=dict)  # jitted, by number of steps

    def features(self, examples: Sequence[Any]) -> list[Feature]:
        """The rows for the encoder."""
        return self.task.features(examples, self.tokenizer, self.config.data.max_length, self.labels)

    def training_features(self, seed: int) -> list[Feature]:
        """The features of all languages, or of as many code-switched examples."""
        data, train = self.config.data, self.examples["train"]
        if data.code_switch and len(train) > 1:
            return self.features(code_switching.code_switch(self.task, train, data.code_switch, data.switch_rate, seed))
        return self._uniform_features

    @functools.cached_property
    def _uniform_features(self) -> list[Feature]:
        return self.features([example for examples in self.examples["train"].values() for example in examples])

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        """The batch on the mesh, split over its shards."""
        return sharding.put_whole(dict(batch), self.mesh, PartitionSpec(sharding.BATCH_AXES))


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model to fine-tune."""

    name: str  # "" for a single model
    given: str  # as in config.init
    directory: Path
    workdir: epath.Path  # has seed-0, seed-1, ... of its trainings
    setup: Setup


# ---- checks before anything is opened ----


def validate(config: Config) -> None:
    """Checks the settings. Raises UserError naming the field."""
    parse_seeds(config)
    if not (config.align_first and not config.init):
        parse_init(config)
    check_training(config)
    check(config, LIMITS)
    if not config.data.train:
        raise UserError("config.data.train is empty: give LANGUAGE=FILE,... or a path with {lang}")
    if bool(config.data.dev) != bool(config.eval.every):
        raise UserError("config.data.dev and config.eval.every: one without the other has no effect; give both")
    if config.eval.patience and not (config.eval.every and config.data.dev):
        raise UserError("config.eval.patience: early stopping needs config.data.dev and config.eval.every")


def parse_init(config: Config) -> dict[str, str]:
    """name -> directory or hub name, from config.init; a single model has the name "". Raises UserError."""
    models: dict[str, str] = {}
    for entry in entries(config.init):
        name, equals, source = entry.partition("=")
        if not equals or "/" in name:  # a path that contains "="
            name, source = "", entry
        if not source or (len(entries(config.init)) > 1 and not name) or name in models:
            raise UserError(f"config.init: {entry!r}: write DIR, or NAME=DIR,OTHER=DIR to compare several models")
        if name.startswith("."):
            raise UserError(f"config.init: {entry!r}: {name} becomes a directory in the workdir; give another name")
        models[name] = source
    if not models:
        raise UserError("config.init is empty: give a Hugging Face directory or name")
    return models


def open_mesh(config: Config) -> Mesh:
    """The mesh. Raises UserError unless both batch sizes are divisible by the number of its devices."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    for field in ("train.batch_size", "test_batch_size"):
        check_batch_size(config, field, mesh)
    return mesh


# ---- models and files ----


def open_models(config: Config, workdir: epath.Path) -> list[Model]:
    """Opens all models without their weights, and reads all examples. Raises UserError."""
    task = load_task(config)
    mesh = open_mesh(config)
    sources = parse_init(config)
    directories = {name: hub.resolve(source) for name, source in sources.items()}
    infos = {name: read_model_info(directory, config) for name, directory in directories.items()}
    limit = config.data.test_examples or None
    examples: dict[str, Examples] = {}
    for part in ("train", "dev", "test"):
        spec = config.data[part]
        examples[part] = files.read(task, spec, field=f"config.data.{part}") if spec else {}
    examples["test"] = {language: found[:limit] for language, found in examples["test"].items()}
    train = [example for found in examples["train"].values() for example in found]
    training_steps(config, len(train))  # raises for too many steps; there are at least as many features as examples
    labels = task.labels(train)
    if given := config.data.code_switch:
        code_switching.code_switch(task, examples["train"], given, config.data.switch_rate, seed=0)  # for its errors

    setups: dict[Any, Setup] = {}
    models = []
    for name, (sizes, tokenizer) in infos.items():
        key = sizes, tokenizer.fingerprint
        if key not in setups:
            frozen = parse_freeze(config.train.freeze, sizes.num_layers)
            encoder = make_encoder(sizes, jnp.dtype(config.dtype), config.train.remat, config.train.scan, frozen)
            network = finetune.Network(task, encoder, labels)
            dev, tests = (
                [
                    TestSet(x, found, task.features(found, tokenizer, config.data.max_length, labels), checksum(found))
                    for x, found in examples[part].items()
                ]
                for part in ("dev", "test")
            )
            setups[key] = Setup(
                config=config,
                task=task,
                sizes=sizes,
                tokenizer=tokenizer,
                labels=labels,
                examples=examples,
                dev=dev,
                tests=tests,
                mesh=mesh,
                network=network,
                predict=finetune.make_predict(network, mesh),
            )
        models.append(Model(name, sources[name], directories[name], workdir / name if name else workdir, setups[key]))
    return models


def load_task(config: Config) -> Any:
    """The module of config.task: one of TASKS, or a user's file. Raises UserError if it is incomplete."""
    if config.task in TASKS:
        return importlib.import_module(TASKS[config.task])
    path = Path(config.task).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"config.task={config.task}: must be one of {', '.join(TASKS)}, or a Python file with a task")
    module = load_module(path, field="config.task")
    missing = sorted(name for name in PARTS if not hasattr(module, name))
    if missing:
        raise UserError(f"config.task: {path} has no {', '.join(missing)}; ppa_jax/tasks/task.py lists what it needs")
    return module


def read_model_info(directory: Path, config: Config) -> tuple[EncoderConfig, Tokenizer]:
    """The sizes (with the configured dropout) and the tokenizer of a model, without its weights. Raises UserError."""
    tokenizer = load_tokenizer(directory)
    sizes = huggingface.read_sizes(directory)
    check_vocabulary(tokenizer, sizes.vocab_size)
    if config.data.max_length > (limit := sizes.max_length):
        raise UserError(f"config.data.max_length={config.data.max_length}: the model's positions end at {limit}")
    if config.train.dropout >= 0:
        sizes = sizes.with_dropout(config.train.dropout)
    return sizes, tokenizer


def claim(models: Sequence[Model], workdir: epath.Path) -> None:
    """Claims the workdir for this run; each of several models has its own workdir in it. Raises UserError."""
    config, examples = models[0].setup.config, models[0].setup.examples
    data = {part: {x: checksum(found) for x, found in examples[part].items()} for part in ("train", "dev")}
    described = config.to_dict()
    runs: list[tuple[epath.Path, Any, tuple[str, ...]]] = []
    if models[0].name:  # the workdir may have begun with an unnamed model; of the data, only the content counts
        may_change = (*MAY_CHANGE, "content.model", "content.tokenizer", "data.train", "data.dev")
        runs.append((workdir, described | {"content": {"data": data}}, may_change))
    for model in models:
        content = {
            "model": huggingface.digest(model.directory),
            "tokenizer": model.setup.tokenizer.fingerprint,
            "data": data,
        }
        runs.append((model.workdir, described | {"content": content}, MAY_CHANGE))
    free = [(x, run) for x, run, may_change in runs if not check_identity(x, run, may_change=may_change)]
    for directory, run in free:  # all or none
        write_identity(directory, run)
