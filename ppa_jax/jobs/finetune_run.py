"""Fine-tuning from files to files: for each seed trains, tests on every language, exports; then the report over seeds.

What it leaves in the workdir: config.json, seed-0/, seed-1/, ... (metrics.jsonl, checkpoints/, predictions/, export/,
scores.json of that seed), scores.json of all, report.md with its pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ppa_jax import markdown
from ppa_jax.config import Config, one_of, require
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation import report, task_report
from ppa_jax.interop import huggingface, weight_files
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs import finetune
from ppa_jax.tasks import files
from ppa_jax.tasks.batches import FeatureBatches, in_order_of_length, stack
from ppa_jax.tasks.task import Feature, Task
from ppa_jax.training import identity, loop, mesh, optimizer
from ppa_jax.training.checkpoint import Checkpoints, load_params, save_params
from ppa_jax.training.memory import device_memory
from ppa_jax.training.metrics import MetricWriter

TASKS = {
    "nli": "ppa_jax.tasks.nli",
    "qa": "ppa_jax.tasks.qa",
    "tagging": "ppa_jax.tasks.tagging",
    "parsing": "ppa_jax.tasks.parsing",
}
MAY_CHANGE = ("seeds", "data.test", "checkpoint", "log", "profile", "mesh", "test_batch_size")


@dataclasses.dataclass
class TestSet:
    """Examples of one language with their features."""

    language: str
    examples: list[Any]
    features: list[Feature]


@dataclasses.dataclass(eq=False)
class Run:
    """Everything that is open while the job runs."""

    config: Config
    workdir: Path
    task: Task
    pretrained: Pretrained
    tokenizer: Tokenizer
    source: Path  # the model's directory
    labels: tuple[str, ...]
    train: Mapping[str, list[Any]]  # examples by language
    dev: list[TestSet]
    tests: list[TestSet]
    mesh: Any

    @functools.cached_property
    def encoder_config(self) -> Any:
        """With the dropout that was asked for."""
        rate = self.config.train.dropout
        if rate < 0:
            return self.pretrained.config
        return dataclasses.replace(self.pretrained.config, hidden_dropout=rate, attention_dropout=rate)

    @functools.cached_property
    def network(self) -> finetune.Network:
        """Encoder and head."""
        return finetune.Network(self.task, self.encoder_config, self.labels, jnp.dtype(self.config.dtype))

    @functools.cache  # noqa: B019 - as long as the run
    def training(self, steps: int) -> Training:
        """What the seeds share, so that a step is compiled once for all of them."""
        schedule = optimizer.schedule(self.config.train.learning_rate, self.config.train.warmup, steps)
        adamw = optimizer.adamw(schedule, weight_decay=self.config.train.weight_decay, clip=self.config.train.clip)
        return Training(self, schedule, adamw)

    @functools.cached_property
    def predict(self) -> Any:
        """The jitted forward pass, compiled once for each length of rows, whatever the seed."""
        return finetune.make_predict(self.network, self.mesh)

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        """A batch on the mesh, split over `data`."""
        sharding = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec("data"))
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), sharding)
        return {
            name: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index])
            for name, x in batch.items()
        }


@dataclasses.dataclass(eq=False)
class Training:
    """Learning rate, optimizer and step of a training of so many steps."""

    run: Run
    schedule: Any
    optimizer: Any

    @functools.cache  # noqa: B019
    def _step(self, leaves: tuple[Any, ...], tree: Any) -> Any:
        run, config = self.run, self.run.encoder_config
        dropout = config.hidden_dropout > 0 or config.attention_dropout > 0
        shardings = jax.tree.unflatten(tree, leaves)
        return finetune.make_step(run.network, run.task, self.optimizer, run.mesh, shardings, dropout=dropout)

    def step(self, shardings: finetune.State) -> Any:
        """The jitted step."""
        leaves, tree = jax.tree.flatten(shardings)
        return self._step(tuple(leaves), tree)


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    validate(config)
    if config.mesh.distributed:
        loop.initialize_hosts()
    opened = open_run(config, Path(workdir))
    records: list[dict[str, Any]] = []
    try:
        for seed in seeds(config):
            records += run_seed(opened, seed)
            if jax.process_index() == 0:
                report.write_records(opened.workdir / "scores.json", records)
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    if jax.process_index() == 0:
        path, table = task_report.write(opened.workdir, records, facts=facts(opened), sources=sources_table(opened))
        print(f"\n{table}\n\nreport: {path}")
    return 0


def seeds(config: Config) -> list[int]:
    """The entries of config.seeds. Raises UserError for what is no list of numbers."""
    try:
        found = [int(word) for word in str(config.seeds).split(",") if word.strip()]
    except ValueError:
        raise UserError(f"config.seeds={config.seeds}: must be numbers with commas between, as 0,1,2") from None
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**32 for seed in found):
        raise UserError(f"config.seeds={config.seeds}: must be different numbers from 0 on, as 0,1,2")
    return found


def validate(config: Config) -> None:
    """Checks every field that has limits, before anything is opened. Raises UserError naming the field."""
    one_of(config, "task", TASKS)
    seeds(config)
    for name in ("train.batch_size", "train.learning_rate", "test_batch_size", "checkpoint.keep", "mesh.model"):
        require(config, name, lambda x: x > 0, "greater than 0")
    for name in ("train.steps", "train.epochs", "train.warmup", "train.weight_decay", "train.clip"):
        require(config, name, lambda x: x >= 0, "0 or more")
    for name in ("checkpoint.every", "eval.every", "eval.patience"):
        require(config, name, lambda x: x >= 0, "0 or more")
    require(config, "train.dropout", lambda x: x == -1 or 0 <= x < 1, "-1 (as pretrained) or in [0, 1)")
    require(config, "data.max_length", lambda n: n >= 8, "at least 8")
    require(config, "mesh.data", lambda n: n == -1 or n >= 1, "-1 (all devices) or a number of devices")
    one_of(config, "dtype", ("float32", "bfloat16"))
    one_of(config, "mesh.rules", mesh.RULES)
    if not config.init:
        raise UserError("config.init is empty: give a Hugging Face directory or name")
    if not config.data.train:
        raise UserError("config.data.train is empty: give LANGUAGE=FILE,... or a path with {lang}")
    if bool(config.train.steps) == bool(config.train.epochs):
        raise UserError("config.train.steps and config.train.epochs: give one of them, and it must be greater than 0")
    if config.eval.patience and not (config.eval.every and config.data.dev):
        raise UserError("config.eval.patience: stopping early needs config.data.dev and config.eval.every")


def open_run(config: Config, workdir: Path) -> Run:
    """Opens the model and reads all examples; a mistake in them shows here, before anything is trained."""
    task: Any = importlib.import_module(TASKS[config.task])
    devices = mesh.make_mesh(config.mesh.data, config.mesh.model)
    for field in ("train.batch_size", "test_batch_size"):
        size = config.train.batch_size if field == "train.batch_size" else config.test_batch_size
        if size % devices.shape["data"]:
            raise UserError(f"config.{field}={size}: must divide by the {devices.shape['data']} devices along data")
    source = huggingface.resolve(config.init)
    tokenizer = load_tokenizer(source)
    pretrained = huggingface.read(source)
    check_vocabulary(tokenizer, pretrained.config.vocab_size)
    if config.data.max_length > (limit := pretrained.config.max_length):
        raise UserError(f"config.data.max_length={config.data.max_length}: the model's positions end at {limit}")
    train = files.read(task, config.data.train, field="config.data.train")
    labels = task.labels([example for examples in train.values() for example in examples])
    if config.data.code_switch:
        code_switched(config, task, train, seed=0)  # what is wrong with it shows here

    def sets(spec: str, field: str) -> list[TestSet]:
        return [
            TestSet(language, examples, task.features(examples, tokenizer, config.data.max_length, labels))
            for language, examples in (files.read(task, spec, field=field) if spec else {}).items()
        ]

    dev, tests = sets(config.data.dev, "config.data.dev"), sets(config.data.test, "config.data.test")
    opened = Run(config, workdir, task, pretrained, tokenizer, source, labels, train, dev, tests, devices)
    check_identity(opened)
    return opened


def check_identity(run: Run) -> None:
    """Refuses a workdir of another run; marks a new one."""
    words = run.pretrained.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    text = repr({language: [len(examples), examples[:1000]] for language, examples in run.train.items()})
    content = {"model": zlib.crc32(np.ascontiguousarray(words).data), "data": zlib.crc32(text.encode())}
    described = run.config.to_dict() | {"content": content}
    if not identity.check_identity(run.workdir, described, may_change=MAY_CHANGE):
        identity.write_identity(run.workdir, described)


@device_memory("lower config.train.batch_size, config.test_batch_size or config.data.max_length")
def run_seed(run: Run, seed: int) -> list[dict[str, Any]]:
    """Trains with one seed, tests, exports; returns its scores. A seed that is done is not done again."""
    config, directory = run.config, run.workdir / f"seed-{seed}"
    features = training_features(run, seed)
    steps = config.train.steps or max(1, round(config.train.epochs * len(features) / config.train.batch_size))
    params = train(run, seed, directory, features, steps)
    if params is None:  # done before; only tests that are new are left
        params = load_params(directory / "trained")
    return test(run, seed, directory, params)


def training_features(run: Run, seed: int) -> list[Feature]:
    """Of all languages; or code-switched, as many."""
    config = run.config
    examples = [example for examples in run.train.values() for example in examples]
    if config.data.code_switch:
        examples = code_switched(config, run.task, run.train, seed)
    return run.task.features(examples, run.tokenizer, config.data.max_length, run.labels)


def code_switched(config: Config, task: Any, train: Mapping[str, list[Any]], seed: int) -> list[Any]:
    """Each row once for every language, the languages of its two sides drawn anew each time.

    Raises:
      UserError: the task has no two sides; config.data.code_switch is not of its form; the languages do not fit.
    """
    if not hasattr(task, "code_switch"):
        raise UserError(f"config.data.code_switch: an example of {config.task} has no two sides")
    if len(train) < 2:
        raise UserError("config.data.code_switch: give config.data.train in two languages or more, row by row alike")
    given = config.data.code_switch
    try:
        entries = [entry.split("=") for entry in given.split(",")]
        probabilities = {name.strip(): float(share) for name, share in entries} if given != "uniform" else None
    except ValueError:
        raise UserError(f"config.data.code_switch={given}: give uniform, or en=0.5,de=0.5") from None
    rng = np.random.default_rng((seed, 2))
    probabilities = probabilities or dict.fromkeys(train, 1 / len(train))
    return [example for _ in train for example in task.code_switch(train, probabilities, rng)]


def train(run: Run, seed: int, directory: Path, features: Sequence[Feature], steps: int) -> Any:
    """The trained parameters, on the host; None when this seed was trained before."""
    if (directory / "trained" / "done.json").exists():
        return None
    config = run.config
    directory.mkdir(parents=True, exist_ok=True)
    training = run.training(steps)
    batches = FeatureBatches(features, config.train.batch_size, seed, run.tokenizer.pad_id)
    first: Any = stack(features[:1], run.tokenizer.pad_id)

    def init(encoder):
        head = run.network.init_head(seed, first)
        return finetune.init_state({"encoder": encoder, "head": head}, training.optimizer, seed)

    encoder = run.pretrained.params["encoder"]
    shapes = jax.eval_shape(init, encoder)
    shardings = mesh.tree_shardings(shapes, mesh.RULES[config.mesh.rules], run.mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    checkpoints = Checkpoints(directory / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
    restored = checkpoints.restore(abstract)
    if restored is None:
        start, state = 0, jax.jit(init, out_shardings=shardings)(encoder)
        logging.info("seed %d: %d features, %d steps of %d", seed, len(features), steps, config.train.batch_size)
    else:
        start, state = restored
        logging.info("seed %d: going on from the checkpoint of step %d", seed, start)
    best = Best(run, directory, start)
    writer = MetricWriter(
        directory, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=config.to_dict()
    )
    with contextlib.closing(writer), contextlib.closing(checkpoints):
        state = loop.Loop(
            step=training.step(shardings),
            batches=batches.iterate,
            put=run.put,
            count=lambda batch: (int(batch["mask"].sum()), batch["mask"].size),
            checkpoints=checkpoints,
            writer=writer,
            schedule=training.schedule,
            evaluate=best.measure if config.data.dev else None,
            evaluate_every=config.eval.every,
            metrics=("loss",),
            profile_to=str(directory / "profile") if config.profile else None,
        ).run(state, start, stop=best.stopped_at or steps)
        params = mesh.to_host(state.params)
        if config.eval.patience:
            best.measure(state, int(state.step))
            params = best.params()
    if jax.process_index() == 0:
        save_params(directory / "trained", params)
        weight_files.write_json(directory / "trained" / "done.json", {"steps": steps, "dev": best.history})
    loop.wait_for_hosts("the trained parameters")
    return params


class Best:
    """The parameters that were best on the dev set, kept on disk, and whether to stop."""

    def __init__(self, run: Run, directory: Path, start: int) -> None:
        self._run, self._directory = run, directory
        path = directory / "dev.json"
        known = json.loads(path.read_text()) if path.exists() else []
        self.history: list[list[float]] = [entry for entry in known if entry[0] <= start]  # [step, value]

    @property
    def stopped_at(self) -> int | None:
        """The step at which a run that is now restored had enough."""
        return int(self.history[-1][0]) if self.history and self._enough() else None

    def measure(self, state: Any, step: int) -> bool:
        """Scores the dev sets; keeps the parameters if they are the best so far; True when patience is at its end."""
        if any(entry[0] == step for entry in self.history):
            return self._enough()
        run = self._run
        scores = [score(run, state.params, test)[0] for test in run.dev]
        if not all(scores):
            raise UserError("config.data.dev: a file without gold answers cannot say when to stop")
        metric = next(iter(scores[0]))
        value = float(np.mean([found[metric].value for found in scores]))
        is_best = all(value > entry[1] for entry in self.history)
        self.history.append([step, value])
        logging.info("step %d: dev %s %.2f%s", step, metric, value, ", the best so far" if is_best else "")
        if is_best and run.config.eval.patience:
            params = mesh.to_host(state.params)
            if jax.process_index() == 0:
                save_params(self._directory / "best", params)
        if jax.process_index() == 0:
            weight_files.write_json(self._directory / "dev.json", self.history)
        return self._enough()

    def params(self) -> Any:
        """The best ones."""
        return load_params(self._directory / "best")

    def _enough(self) -> bool:
        patience = self._run.config.eval.patience
        best = max(range(len(self.history)), key=lambda i: self.history[i][1], default=0)
        return bool(patience) and len(self.history) - 1 - best >= patience


def score(run: Run, params: Any, test: TestSet) -> tuple[dict[str, Any], list[Any]]:
    """The metrics of a test set, and the predictions."""
    outputs: list[Any] = [None] * len(test.features)
    for rows, batch in in_order_of_length(test.features, run.config.test_batch_size, run.tokenizer.pad_id):
        found = jax.device_get(run.predict(params, run.put(batch)))
        for i, row in enumerate(rows):
            outputs[row] = {name: values[i] for name, values in found.items()}
    predictions = run.task.decode(test.examples, test.features, outputs, run.labels)
    return run.task.score(test.examples, predictions, test.language), predictions


def test(run: Run, seed: int, directory: Path, params: Any) -> list[dict[str, Any]]:
    """Scores of every test set, those of an earlier run of the same command included; predictions and export."""
    path = directory / "scores.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    records = []
    on_devices = None
    for test_set in run.tests:
        content = zlib.crc32(repr(test_set.examples[:1000]).encode())
        mine = [r for r in known if (r["language"], r["content"]) == (test_set.language, content)]
        if not mine:
            on_devices = jax.device_put(params) if on_devices is None else on_devices
            scores, predictions = score(run, on_devices, test_set)
            mine = [
                {"task": run.config.task, "seed": seed, "language": test_set.language, "metric": metric,
                 "value": round(found.value, 4), "count": found.count, "content": content}
                for metric, found in scores.items()
            ]  # fmt: skip
            if jax.process_index() == 0:
                (directory / "predictions").mkdir(exist_ok=True)
                run.task.write(directory / "predictions" / test_set.language, test_set.examples, predictions)
        records += mine
    if jax.process_index() == 0:
        report.write_records(path, records)
        if not (directory / "export").exists():
            export(run, directory / "export", params)
    return [{name: value for name, value in record.items() if name != "content"} for record in records]


def export(run: Run, directory: Path, params: Any) -> None:
    """The fine-tuned model, for transformers where it knows the task; else the encoder, with the head beside it."""
    pretrained = dataclasses.replace(run.pretrained, params={"encoder": params["encoder"]}, untouched={})
    kind = run.pretrained.config.model_type
    architecture, modules = run.task.TRANSFORMERS.get(kind, ("Model", {}))
    huggingface.write_task(
        directory, pretrained, params["head"], architecture=architecture, modules=dict(modules), labels=run.labels,
        files_from=run.source,
    )  # fmt: skip
    if not modules:
        flat = {mesh.path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params["head"])}
        weight_files.write_arrays(directory / "head.safetensors", flat)


def facts(run: Run) -> dict[str, str]:
    """For the report."""
    c = run.config
    length = f"{c.train.steps} steps" if c.train.steps else f"{c.train.epochs:g} epochs"
    return {
        "model": c.init,
        "task": c.task,
        "trained on": ", ".join(f"{language} ({len(examples):,})" for language, examples in run.train.items()),
        "training": f"{length} of {c.train.batch_size}, learning rate {c.train.learning_rate:g}, "
        f"warm-up {c.train.warmup:g}, dropout {run.encoder_config.hidden_dropout:g}",
        "code-switched": c.data.code_switch or "no",
        "longest row": f"{c.data.max_length} tokens",
        "seeds": str(c.seeds),
        "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {c.dtype}",
    }


def sources_table(run: Run) -> str:
    """What was read."""
    rows = [("train", language, len(examples)) for language, examples in run.train.items()]
    rows += [("dev", test.language, len(test.examples)) for test in run.dev]
    rows += [("test", test.language, len(test.examples)) for test in run.tests]
    return markdown.table(("part", "language", "examples"), rows)
