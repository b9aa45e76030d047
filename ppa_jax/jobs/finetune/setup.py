"""What fine-tuning begins with: settings checked, models and files opened, examples cut into features."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ppa_jax.config import NOT_NEGATIVE, Config, Limit, at_least, check, load_module, training_steps
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.interop import hub, huggingface, weights
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.tasks import files
from ppa_jax.tasks.code_switching import code_switch
from ppa_jax.tasks.task import PARTS, Feature, Task
from ppa_jax.training import optimizer, sharding
from ppa_jax.training.limits import check_training
from ppa_jax.training.workdir import check_identity, write_identity

TASKS = {
    "nli": "ppa_jax.tasks.nli",
    "qa": "ppa_jax.tasks.qa",
    "tagging": "ppa_jax.tasks.tagging",
    "parsing": "ppa_jax.tasks.parsing",
}
# What a workdir may be given again with. `init` may name further models; each has its own identity.
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


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model to be fine-tuned."""

    name: str  # "" for a model alone
    given: str  # as config.init says it
    directory: Path
    workdir: Path  # with seed-0, seed-1, ... of its trainings


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the task's files hold, by language."""

    train: Mapping[str, list[Any]]
    dev: Mapping[str, list[Any]]
    test: Mapping[str, list[Any]]

    def all_of_training(self) -> list[Any]:
        """In the order of the languages."""
        return [example for examples in self.train.values() for example in examples]


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Examples of one language with their features."""

    language: str
    examples: list[Any]
    features: list[Feature]

    @functools.cached_property
    def content(self) -> int:
        """A checksum of the examples."""
        return checksum(self.examples)


@dataclasses.dataclass(eq=False)
class Setup:
    """All of a training but the weights: models of one size and tokenizer share it, and what is compiled for it."""

    config: Config
    task: Task
    sizes: EncoderConfig  # with the dropout that was asked for
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    examples: Examples
    mesh: Any

    def _sets(self, examples: Mapping[str, list[Any]]) -> list[TestSet]:
        return [TestSet(language, found, self.features(found)) for language, found in examples.items()]

    @functools.cached_property
    def dev(self) -> list[TestSet]:
        """For stopping early."""
        return self._sets(self.examples.dev)

    @functools.cached_property
    def tests(self) -> list[TestSet]:
        """Of every language."""
        return self._sets(self.examples.test)

    def features(self, examples: Sequence[Any]) -> list[Feature]:
        """The rows that the encoder sees."""
        return self.task.features(examples, self.tokenizer, self.config.data.max_length, self.labels)

    def training_features(self, seed: int) -> list[Feature]:
        """Of all languages; or code-switched, as many."""
        if not self.config.data.code_switch or len(self.examples.train) < 2:
            return self._training_features
        return self.features(code_switched(self.config, self.task, self.examples.train, seed))

    @functools.cached_property
    def _training_features(self) -> list[Feature]:
        return self.features(self.examples.all_of_training())

    @functools.cached_property
    def network(self) -> finetune.Network:
        """Encoder and head."""
        train = self.config.train
        encoder = Encoder(self.sizes, jnp.dtype(self.config.dtype), train.remat, train.scan)
        return finetune.Network(self.task, encoder, self.labels)

    @functools.cached_property
    def predict(self) -> Any:
        """The jitted forward pass, compiled once for each length of rows, whatever model and seed."""
        return finetune.make_predict(self.network, self.mesh)

    @functools.cached_property
    def embedder(self) -> Embedder:
        """Sentence vectors of any parameters of this size."""
        c = self.config
        return Embedder(self.sizes, self.tokenizer, max_length=c.data.max_length, mesh=self.mesh, dtype=c.dtype)

    @functools.cache  # noqa: B019 - as long as the run
    def training(self, steps: int) -> Training:
        """A training of so many steps."""
        schedule = optimizer.schedule(self.config.train.learning_rate, self.config.train.warmup, steps)
        adamw = optimizer.adamw(schedule, weight_decay=self.config.train.weight_decay, clip=self.config.train.clip)
        return Training(self, schedule, adamw)

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        """A batch on the mesh, split over its shards."""
        return sharding.put_whole(dict(batch), self.mesh, PartitionSpec(sharding.BATCH_AXES))


@dataclasses.dataclass(eq=False)
class Training:
    """Learning rate, optimizer and step of a training of so many steps, whatever model and seed."""

    setup: Setup
    schedule: Any
    optimizer: Any

    @functools.cache  # noqa: B019
    def _step(self, leaves: tuple[Any, ...], tree: Any) -> Any:
        setup, sizes = self.setup, self.setup.sizes
        dropout = sizes.hidden_dropout > 0 or sizes.attention_dropout > 0
        shardings = jax.tree.unflatten(tree, leaves)
        return finetune.make_step(setup.network, setup.task, self.optimizer, setup.mesh, shardings, dropout=dropout)

    def step(self, shardings: finetune.State) -> Any:
        """The jitted step."""
        leaves, tree = jax.tree.flatten(shardings)
        return self._step(tuple(leaves), tree)


def open_task(config: Config) -> Any:
    """The module of config.task: one of TASKS, or a file of the user's. Raises UserError if it is not all there."""
    if config.task in TASKS:
        return importlib.import_module(TASKS[config.task])
    path = Path(config.task).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"config.task={config.task}: must be one of {', '.join(TASKS)}, or a Python file with a task")
    module = load_module(path, field="config.task")
    lacks = sorted(name for name in PARTS if not hasattr(module, name))
    if lacks:
        raise UserError(f"config.task: {path} has no {', '.join(lacks)}; ppa_jax/tasks/task.py says what a task has")
    return module


def seeds(config: Config) -> list[int]:
    """The entries of config.seeds. Raises UserError for what is no list of numbers."""
    try:
        found = [int(word) for word in str(config.seeds).split(",") if word.strip()]
    except ValueError:
        raise UserError(f"config.seeds={config.seeds}: must be numbers with commas between, as 0,1,2") from None
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**32 for seed in found):
        raise UserError(f"config.seeds={config.seeds}: must be different numbers from 0 on, as 0,1,2")
    return found


def model_names(config: Config) -> dict[str, str]:
    """name -> directory or hub name, from config.init: DIR alone has the name "". Raises UserError."""
    entries = [entry.strip() for entry in config.init.split(",") if entry.strip()]
    names: dict[str, str] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not equals or "/" in name:  # a path may hold the sign as well
            name, source = "", entry
        if not source or (len(entries) > 1 and not name) or name in names:
            raise UserError(f"config.init: {entry!r}: write DIR, or NAME=DIR,OTHER=DIR to compare several models")
        if name.startswith("."):
            raise UserError(f"config.init: {entry!r}: {name} is to be a directory in the workdir; give another name")
        names[name] = source
    if not names:
        raise UserError("config.init is empty: give a Hugging Face directory or name")
    return names


def validate(config: Config) -> None:
    """Checks every field that has limits, before anything is opened. Raises UserError naming the field."""
    seeds(config)
    if not (config.align_first and not config.init):
        model_names(config)
    check_training(config)
    check(config, LIMITS)
    if not config.data.train:
        raise UserError("config.data.train is empty: give LANGUAGE=FILE,... or a path with {lang}")
    if bool(config.data.dev) != bool(config.eval.every):
        raise UserError("config.data.dev and config.eval.every: one without the other does nothing; give both")
    if config.eval.patience and not (config.eval.every and config.data.dev):
        raise UserError("config.eval.patience: stopping early needs config.data.dev and config.eval.every")


def open_run(config: Config, workdir: Path) -> list[tuple[Model, Setup]]:
    """Looks at all models and reads all examples; a mistake in them shows here, before the workdir is claimed."""
    task = open_task(config)
    devices = open_devices(config)
    names = model_names(config)
    looked = {name: look_at(hub.resolve(given), config) for name, given in names.items()}
    examples = Examples(
        *(
            files.read(task, config.data[part], field=f"config.data.{part}") if config.data[part] else {}
            for part in ("train", "dev", "test")
        )
    )
    if count := config.data.test_examples:
        examples = dataclasses.replace(examples, test={x: found[:count] for x, found in examples.test.items()})
    training_steps(config, len(examples.all_of_training()))  # of more features than examples they are more
    labels = task.labels(examples.all_of_training())
    if config.data.code_switch:
        code_switched(config, task, examples.train, seed=0)  # what is wrong with it shows here
    setups: dict[Any, Setup] = {}
    opened = []
    for name, (directory, sizes, tokenizer) in looked.items():
        key = sizes, tokenizer.fingerprint
        if key not in setups:
            setups[key] = Setup(config, task, sizes, tokenizer, labels, examples, devices)
            _ = setups[key].tests, setups[key].dev  # what they raise shows here
        opened.append((Model(name, names[name], directory, workdir / name if name else workdir), setups[key]))
    return opened


def open_devices(config: Config) -> Any:
    """The mesh. Raises UserError unless both batch sizes divide by its devices along `data`."""
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    shards = devices.size
    for field, size in (("train.batch_size", config.train.batch_size), ("test_batch_size", config.test_batch_size)):
        if size % shards:
            raise UserError(f"config.{field}={size}: must divide by the {shards} devices along data")
    return devices


def look_at(directory: Path, config: Config) -> tuple[Path, EncoderConfig, Tokenizer]:
    """(directory, sizes, tokenizer) of a model, whose weights are not read yet. Raises UserError."""
    tokenizer = load_tokenizer(directory)
    path = directory / "config.json"
    sizes = huggingface.config_from_hf(weights.read_json(path), str(path))
    check_vocabulary(tokenizer, sizes.vocab_size)
    if config.data.max_length > (limit := sizes.max_length):
        raise UserError(f"config.data.max_length={config.data.max_length}: the model's positions end at {limit}")
    rate = config.train.dropout
    if rate >= 0:
        sizes = dataclasses.replace(sizes, hidden_dropout=rate, attention_dropout=rate)
    return directory, sizes, tokenizer


def claim(opened: Sequence[tuple[Model, Setup]], workdir: Path) -> None:
    """Claims the workdir for this run; of several models, each has a workdir of its own within it."""
    config, examples = opened[0][1].config, opened[0][1].examples
    sets = {"train": examples.train, "dev": examples.dev}
    data = {part: {x: checksum(found) for x, found in given.items()} for part, given in sets.items()}
    described = config.to_dict()
    runs: list[tuple[Path, Any, tuple[str, ...]]] = []
    for model, setup in opened:
        content = {
            "model": huggingface.digest(model.directory), "tokenizer": setup.tokenizer.fingerprint, "data": data
        }  # fmt: skip
        runs.append((model.workdir, described | {"content": content}, MAY_CHANGE))
    if opened[0][0].name:  # one without a name may have been there first; the data count by their content alone
        may_change = (*MAY_CHANGE, "content.model", "content.tokenizer", "data.train", "data.dev")
        runs.insert(0, (workdir, described | {"content": {"data": data}}, may_change))
    free = [(x, run) for x, run, may_change in runs if not check_identity(x, run, may_change=may_change)]
    for directory, run in free:  # all or none
        write_identity(directory, run)


def checksum(examples: Sequence[Any]) -> int:
    """Of all of them: a set that has grown is another one."""
    return functools.reduce(lambda so_far, example: zlib.crc32(repr(example).encode(), so_far), examples, len(examples))


def code_switched(config: Config, task: Any, train: Mapping[str, list[Any]], seed: int) -> list[Any]:
    """Each row once for every language, the languages of its two sides drawn anew each time; the same for every epoch.

    With a pivot, which is PPA's recipe, a single language has nothing to switch to: its rows stay as they are.

    Raises:
      UserError: the task has no two sides; config.data.code_switch is not of its form; the languages do not fit.
    """
    given = config.data.code_switch
    pivot = given.removeprefix("pivot=") if given.startswith("pivot=") else ""
    if len(train) < 2:
        if not pivot:
            raise UserError(
                "config.data.code_switch: give config.data.train in two languages or more, row by row alike"
            )
        return [row for examples in train.values() for row in examples]
    if not hasattr(task, "mix"):
        raise UserError(
            f"config.data.code_switch={given}: an example of {config.task} has no two sides; leave it empty"
        )
    try:
        entries = [entry.split("=") for entry in given.split(",")] if given != "uniform" and not pivot else []
        probabilities = {name.strip(): float(share) for name, share in entries}
    except ValueError:
        raise UserError(f"config.data.code_switch={given}: give pivot=en, uniform, or en=0.5,de=0.5") from None
    if unused := [name for name in train if probabilities and name not in probabilities]:
        raise UserError(f"config.data.code_switch={given} does not name {', '.join(unused)} of config.data.train; "
                        "name all its languages, or leave them out there")  # fmt: skip
    rng = np.random.default_rng((seed, 2))
    probabilities = probabilities or dict.fromkeys(train, 1 / len(train))
    rate = config.data.switch_rate
    return [row for _ in train for row in code_switch(task, train, probabilities, rng, rate=rate, pivot=pivot)]
