"""Fine-tuning from files to files: trains, tests on every language and exports for each seed, then reports.

The workdir then has config.json, seed-0/, seed-1/, ... (each with metrics.jsonl, trained/, predictions/, export/ and
its scores.json; checkpoints/ until it is done), scores.json of all, and report.md with its plots. If there are several
models, each has a directory of its name with these seeds, and the report compares them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from ppa_jax import config as configs
from ppa_jax import storage
from ppa_jax.config import Config
from ppa_jax.errors import UserError
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report import tasks as task_report
from ppa_jax.evaluation.scores import read_records, write_records
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.interop.names import tensor_names
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.jobs.finetune.setup import Model, Setup, TestSet
from ppa_jax.model.bert import products_in
from ppa_jax.tasks.batches import FeatureBatches, in_order_of_length, stack
from ppa_jax.training import checkpoint, hosts, loop, optimizer, sharding
from ppa_jax.training.limits import parse_seeds
from ppa_jax.training.memory import device_memory
from ppa_jax.training.metrics import MetricWriter, Sweep, training_time
from ppa_jax.training.workdir import atomic

Records = list[dict[str, Any]]


def run(config: Config, workdir: str) -> None:
    """Runs the job."""
    # ---- settings, models, examples ----
    finetune_setup.validate(config)
    root = epath.Path(workdir)
    if config.mesh.distributed:
        hosts.initialize()
    if not config.init:
        config = align_first(config, root)
    models = finetune_setup.open_models(config, root)
    finetune_setup.claim(models, root)
    hosts.barrier("workdir claimed")

    # ---- trainings ----
    seeds = parse_seeds(config)
    sweep = Sweep(len(models) * len(seeds))
    for model in models:
        pretrained = huggingface.read(model.directory)
        for seed in seeds:
            directory = model.workdir / f"seed-{seed}"
            with sweep.training():
                params, _ = train_and_test(model.setup, pretrained, seed, directory)
            if jax.process_index() == 0:
                if not (directory / "export" / "config.json").exists():
                    with atomic(directory / "export") as unfinished:
                        export(model.setup, pretrained, unfinished, params, files_from=model.directory)
                write_records(root / "scores.json", read_scores(root, models[0].setup))

    # ---- report ----
    if jax.process_index() == 0:
        records = select_scores(models, read_scores(root, models[0].setup))
        tested = ",".join(map(str, sorted({r["seed"] for r in records}))) or str(config.seeds)
        trained = [model.workdir / f"seed-{seed}" for model in models for seed in seeds]
        path, table = task_report.write(
            root,
            records,
            facts=facts(models) | {"seeds": tested, "training time": training_time(trained)},
            sources=examples_table(models[0].setup),
            trained=list(models[0].setup.examples["train"]),
        )
        print(f"\n{table}\n\nreport: {path}")


def align_first(config: Config, workdir: epath.Path) -> Config:
    """Runs config.align_first in workdir/aligned; returns the config with its models before and after as `init`."""
    config = copy.deepcopy(config)
    models = align_run.run_recipe(config.align_first, workdir / "aligned")
    config.init = ",".join(f"{name}={directory}" for name, directory in models.items())
    return config


@device_memory(
    "set config.train.remat=true or lower config.test_batch_size; or, in a new --workdir, lower "
    "config.train.batch_size or config.data.max_length"
)
def train_and_test(setup: Setup, pretrained: Pretrained, seed: int, directory: epath.Path) -> tuple[Any, Records]:
    """One training and its scores; whatever is already done is read from `directory`.

    Args:
      setup: for all trainings.
      pretrained: the model to start from.
      seed: of the head's initialisation, the order of the examples and dropout.
      directory: for the files of this training.

    Returns:
      The trained parameters on the host, and the scores of every test set.
    """
    if hosts.broadcast_from_process_0(checkpoint.holds_params(directory / "trained")):
        params = checkpoint.load_params(directory / "trained")
    else:
        with products_in(setup.config.dtype):
            params = train(setup, pretrained, seed, directory)
        checkpoint.save_params(directory / "trained", params)  # on all processes, because it has a barrier
    if jax.process_index() == 0:
        for spent in ("checkpoints", "best"):  # several times as large
            checkpoint.remove(directory / spent)
    hosts.barrier("trained parameters loaded")
    return params, test(setup, params, seed, directory)


# ---- training ----


def train(setup: Setup, pretrained: Pretrained, seed: int, directory: epath.Path) -> Any:
    """Trains to the end, from a checkpoint if there is one; returns the parameters on the host."""
    config, task = setup.config, setup.task
    features = setup.training_features(seed)
    steps = configs.training_steps(config, len(features))
    directory.mkdir(parents=True, exist_ok=True)
    pad_id, longest = setup.tokenizer.pad_id, setup.sizes.max_length
    batches = FeatureBatches(features, config.train.batch_size, seed, pad_id, longest)

    # ---- state and step ----
    schedule = optimizer.schedule(config.train.learning_rate, config.train.warmup, steps)
    adamw = optimizer.adamw(schedule, weight_decay=config.train.weight_decay, clip=config.train.clip)
    first: Any = stack(features[:1], pad_id, longest)

    def init(encoder: Any, pretrained_head: Any) -> finetune.State:
        head = setup.network.init_head(seed, first) | pretrained_head
        return finetune.init_state({"encoder": encoder, "head": head}, adamw, seed, setup.network.frozen)

    start_from = pretrained.params["encoder"], pretrained_head(task, pretrained)
    shapes = jax.eval_shape(init, *start_from)
    shardings = sharding.tree_shardings(shapes, sharding.RULES[config.mesh.rules], setup.mesh)
    if steps not in setup.steps:  # shared by models and seeds
        dropout = setup.sizes.has_dropout or setup.sizes.classifier_dropout > 0
        setup.steps[steps] = finetune.make_step(setup.network, task, adamw, setup.mesh, shardings, dropout=dropout)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep
    )
    logging.info("%s: %d features, %d steps of %d", directory, len(features), steps, config.train.batch_size)
    start, state = checkpoint.restore_or_init(checkpoints, init, start_from, shapes, shardings)

    # ---- loop ----
    best = EarlyStopping(setup, directory, start)
    writer = MetricWriter(directory, **config.log, config=config.to_dict())
    with contextlib.closing(writer), contextlib.closing(checkpoints):
        state = loop.Loop(
            step=setup.steps[steps],
            batches=batches.iterate,
            put=setup.put,
            count=lambda batch: (int(batch["mask"].sum()), batch["mask"].size),
            checkpoints=checkpoints,
            writer=writer,
            schedule=schedule,
            evaluate=best.evaluate,
            evaluate_every=config.eval.every,
            metrics=("loss",),
            profile_to=directory / "profile" if config.profile else None,
        ).run(state, start, stop=best.stopped_at or steps)
        if not config.eval.patience:
            return sharding.to_host(state.params)
        best.evaluate(state, int(state.step))
        return checkpoint.load_params(directory / "best")


def pretrained_head(task: Any, pretrained: Pretrained) -> dict[str, Any]:
    """The parameters of the head that are in the checkpoint, as in transformers.

    These are BERT's pooler and ModernBERT's prediction head; those of XLM-R's classifier are always new.
    """
    _, modules = task.TRANSFORMERS.get(pretrained.config.model_type, ("", {}))
    names = tensor_names(pretrained.config)
    head: dict[str, Any] = {}
    for path, module in modules.items():
        found = names.get(f"{module}.weight", ("absent",))
        if found[0] in pretrained.params:
            *outer, inner = path.split("/")
            tree = functools.reduce(lambda tree, key: tree.setdefault(key, {}), outer, head)
            tree[inner] = functools.reduce(lambda tree, key: tree[key], found[:-1], pretrained.params)
    return head


class EarlyStopping:
    """Scores the dev sets, saves the best parameters in `best/`, and decides when to stop."""

    def __init__(self, setup: Setup, directory: epath.Path, start: int) -> None:
        self._setup, self._directory = setup, directory
        path = directory / "dev.json"
        history = hosts.broadcast_from_process_0(read_records(path))
        self.history: list[list[float]] = [entry for entry in history if entry[0] <= start]  # [step, value]

    @property
    def stopped_at(self) -> int | None:
        """The step at which a resumed run had stopped early; None if it had not."""
        return int(self.history[-1][0]) if self._patience_ended() else None

    def evaluate(self, state: Any, step: int) -> bool:
        """Scores the dev sets at a step, unless that is done; returns whether training should stop."""
        if any(entry[0] == step for entry in self.history):
            return self._patience_ended()
        scores = [score(self._setup, state.params, dev)[0] for dev in self._setup.dev]
        if not all(scores):
            raise UserError("config.data.dev: a file has no gold; give another, in a new --workdir")
        metric = next(iter(scores[0]))
        if not all(metric in found for found in scores):
            kinds = ", ".join(" and ".join(found) for found in scores)
            raise UserError(f"config.data.dev: scores differ ({kinds}); give files of one kind, in a new --workdir")
        value = float(np.mean([found[metric].value for found in scores]))
        is_best = all(value > entry[1] for entry in self.history)
        self.history.append([step, value])
        logging.info("step %d: dev %s %.2f%s", step, metric, value, ", the best so far" if is_best else "")
        if is_best and self._setup.config.eval.patience:
            checkpoint.save_params(self._directory / "best", sharding.to_host(state.params))
        if jax.process_index() == 0:
            weights.write_json(self._directory / "dev.json", self.history)
        return self._patience_ended()

    def _patience_ended(self) -> bool:
        patience = self._setup.config.eval.patience
        best = max(range(len(self.history)), key=lambda i: self.history[i][1], default=0)
        return 0 < patience <= len(self.history) - 1 - best


# ---- tests ----


def score(setup: Setup, params: Any, test_set: TestSet) -> tuple[dict[str, Any], list[Any]]:
    """The metrics of a test set, and the predictions."""
    outputs: list[Any] = [None] * len(test_set.features)
    pad_id, longest = setup.tokenizer.pad_id, setup.sizes.max_length
    for rows, batch in in_order_of_length(test_set.features, setup.config.test_batch_size, pad_id, longest):
        found = jax.device_get(setup.predict(params, setup.put(batch)))
        for i, row in enumerate(rows):
            outputs[row] = {name: values[i] for name, values in found.items()}
    predictions = setup.task.decode(test_set.examples, test_set.features, outputs, setup.labels)
    return setup.task.score(test_set.examples, predictions, test_set.language), predictions


def test(setup: Setup, params: Any, seed: int, directory: epath.Path) -> Records:
    """The scores of every test set, read from `directory` or measured and written there with the predictions."""
    path, task = directory / "scores.json", setup.task
    known = hosts.broadcast_from_process_0(read_records(path))
    records = []
    on_devices = None
    for test_set in setup.tests:
        found = [r for r in known if (r["language"], r["content"]) == (test_set.language, test_set.content)]
        if not found:
            on_devices = sharding.put_whole(params, setup.mesh) if on_devices is None else on_devices
            with products_in(setup.config.dtype):
                scores, predictions = score(setup, on_devices, test_set)
            fields = {"task": setup.config.task, "seed": seed, "language": test_set.language}
            found = [
                {**fields, "metric": metric, "value": round(value, 4), "count": count, "content": test_set.content}
                for metric, (value, count) in scores.items()
            ]
            if jax.process_index() == 0:
                name = test_set.language.replace("/", "-") + task.SUFFIX
                with storage.staged(directory / "predictions") as staged:
                    staged.mkdir(parents=True, exist_ok=True)
                    task.write(staged / name, test_set.examples, predictions)
        records += found
    if jax.process_index() == 0:
        tested = {test_set.language for test_set in setup.tests}
        write_records(path, [r for r in known if r["language"] not in tested] + records)
    return records


def read_scores(workdir: epath.Path, setup: Setup) -> Records:
    """The scores in a workdir: of all models, seeds and test sets, from this command and earlier ones.

    If test sets of one language differ, those of this command count, or else those of the first seed.
    """
    contents = {test_set.language: test_set.content for test_set in setup.tests}
    found = [path for depth in ("", "*/") for path in workdir.glob(f"{depth}seed-*/scores.json")]
    seeds = [(path.parts[-3], int(path.parts[-2][5:]), path) for path in found if path.parts[-2][5:].isdecimal()]
    records = []
    for _, _, path in sorted(seeds):
        name = str(path.parent.parent.relative_to(workdir))
        for record in read_records(path):
            content = record.pop("content")
            if contents.setdefault(record["language"], content) == content:
                records.append(({} if name == "." else {"model": name}) | record)
    return records


def select_scores(models: Sequence[Model], records: Records) -> Records:
    """The records of the command's models on its test sets, for the seeds that were tested on all of them."""
    selected = []
    for model in models:
        languages = model.setup.examples["test"]
        own = [r for r in records if r.get("model", "") == model.name and r["language"] in languages]
        tested = {seed: {r["language"] for r in own if r["seed"] == seed} for seed in {r["seed"] for r in own}}
        everything = set().union(*tested.values())
        selected += [r for r in own if tested[r["seed"]] == everything]
    return selected


# ---- export and report ----


def export(setup: Setup, pretrained: Pretrained, directory: Path, params: Any, files_from: Path) -> None:
    """Writes the fine-tuned model for transformers if it has the task, or else the encoder with head.safetensors."""
    trained = dataclasses.replace(pretrained, params={"encoder": params["encoder"]}, untouched={})
    architecture, modules = setup.task.TRANSFORMERS.get(pretrained.config.model_type, ("Model", {}))
    huggingface.write_task(
        directory, trained, params["head"], architecture=architecture, modules=dict(modules), labels=setup.labels,
        files_from=files_from,
    )  # fmt: skip
    if not modules:
        leaves = jax.tree_util.tree_leaves_with_path(params["head"])
        flat = {sharding.path_name(path): np.asarray(x) for path, x in leaves}
        weights.write_safetensors(directory / "head.safetensors", flat)


def facts(models: Sequence[Model]) -> dict[str, str]:
    """The settings that a report shows."""
    setup = models[0].setup
    c, train = setup.config, setup.examples["train"]
    length = f"{c.train.steps} steps" if c.train.steps else f"{c.train.epochs:g} epochs"
    switched = c.data.code_switch and len(train) > 1
    return {
        **{f"model {model.name}".strip(): model.given for model in models},
        "task": c.task,
        "trained on": ", ".join(f"{language} ({len(examples):,})" for language, examples in train.items()),
        "training": f"{length} of {c.train.batch_size}, learning rate {c.train.learning_rate:g}, "
        f"warm-up {c.train.warmup:g}, dropout {setup.sizes.classifier_dropout:g}",
        "code-switched": f"{c.data.code_switch}, {c.data.switch_rate:.0%} of the rows" if switched else "no",
        "longest row": f"{c.data.max_length} tokens",
        "seeds": str(c.seeds),
        "devices": f"{setup.mesh.size} x {setup.mesh.devices.flat[0].device_kind}, {c.dtype}",
    }


def examples_table(setup: Setup) -> str:
    """The numbers of examples as a Markdown table."""
    rows = [(part, language, len(found)) for part, sets in setup.examples.items() for language, found in sets.items()]
    return markdown.table(("part", "language", "examples"), rows)
