"""Fine-tuning from files to files: for each seed trains, tests on every language, exports; then the report over seeds.

What it leaves in the workdir: config.json, seed-0/, seed-1/, ... (metrics.jsonl, trained/, predictions/, export/,
scores.json of that seed; checkpoints/ until it is done), scores.json of all, report.md with its pictures. Of several
models, each has a directory of its name with these seeds, and the report compares them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ppa_jax import config as configs
from ppa_jax.config import Config
from ppa_jax.errors import UserError
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report import tasks as task_report
from ppa_jax.evaluation.report import training as report
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.jobs.finetune.setup import Model, Setup, TestSet
from ppa_jax.model.bert import products_in
from ppa_jax.tasks.batches import FeatureBatches, in_order_of_length, stack
from ppa_jax.training import bucket, checkpoint, loop, sharding
from ppa_jax.training.memory import device_memory
from ppa_jax.training.metrics import MetricWriter
from ppa_jax.training.workdir import atomic

Records = list[dict[str, Any]]


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    finetune_setup.validate(config)
    if config.mesh.distributed:
        loop.initialize_hosts()
    if not config.init:
        status, config = aligned_first(config, Path(workdir))
        if status:
            return status
    opened = finetune_setup.open_run(config, Path(workdir))
    finetune_setup.claim(opened, Path(workdir))
    loop.wait_for_hosts("whose workdir it is")
    try:
        for model, setup in opened:
            pretrained = huggingface.read(model.directory)
            for seed in finetune_setup.seeds(config):
                run_seed(setup, pretrained, seed, model.workdir / f"seed-{seed}", files_from=model.directory)
                if jax.process_index() == 0:
                    report.write_records(Path(workdir) / "scores.json", measured(Path(workdir), opened[0][1]))
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    if jax.process_index() == 0:
        records = asked([model.name for model, _ in opened], opened[0][1], measured(Path(workdir), opened[0][1]))
        path, table = task_report.write(
            Path(workdir),
            records,
            facts=facts(opened)
            | {"seeds": ",".join(map(str, sorted({r["seed"] for r in records}))) or str(config.seeds)},
            sources=sources_table(opened[0][1]),
            trained=list(opened[0][1].examples.train),
        )
        print(f"\n{table}\n\nreport: {bucket.lies_at(path)}")
    return 0


def measured(workdir: Path, setup: Setup) -> Records:
    """The scores in a workdir: of all models, seeds and test sets, of this command and of earlier ones.

    Test sets of one name are those of this command; of others, the ones that the first of the seeds has.
    """
    contents = {test_set.language: test_set.content for test_set in setup.tests}
    found = [path for depth in ("", "*/") for path in workdir.glob(f"{depth}seed-*/scores.json")]
    seeds = [(path.parts[-3], int(path.parts[-2][5:]), path) for path in found if path.parts[-2][5:].isdecimal()]
    records = []
    for _, _, path in sorted(seeds):
        name = str(path.parent.parent.relative_to(workdir))
        for record in json.loads(path.read_text(encoding="utf-8")):
            content = record.pop("content")
            if contents.setdefault(record["language"], content) == content:
                records.append(({} if name == "." else {"model": name}) | record)
    return records


def asked(models: Sequence[str], setup: Setup, records: Records) -> Records:
    """What a command asks for: its models on its test sets, with all seeds that have been tested on these."""
    found = []
    for model in models:
        own = [r for r in records if r.get("model", "") == model and r["language"] in setup.examples.test]
        tested = {seed: {r["language"] for r in own if r["seed"] == seed} for seed in {r["seed"] for r in own}}
        everything = set().union(*tested.values())
        found += [r for r in own if tested[r["seed"]] == everything]
    return found


def aligned_first(config: Config, workdir: Path) -> tuple[int, Config]:
    """Runs config.align_first in workdir/aligned; (status, config with the models before and after as `init`)."""
    directory = workdir / "aligned"
    done = loop.as_first((directory / "report.md").exists())  # written last
    status = 0 if done else align_run.run(configs.load(config.align_first), str(directory))
    if not done:
        loop.wait_for_hosts("the aligned model")
    config = copy.deepcopy(config)
    config.init = f"before={directory}/new_model/run/export,after={directory}/export"
    return status, config


@device_memory(
    "set config.train.remat=true or lower config.test_batch_size; or, in a new --workdir, lower "
    "config.train.batch_size or config.data.max_length"
)
def run_seed(setup: Setup, pretrained: Pretrained, seed: int, directory: Path, *, files_from: Path) -> None:
    """Trains with one seed, tests, exports. A seed that is done is not done again.

    Args:
      setup: the training.
      pretrained: where it begins.
      seed: of the head, the order of the examples and the dropout.
      directory: what it leaves goes there.
      files_from: the model's directory, whose tokenizer files go into the export.
    """
    params = trained(setup, pretrained, seed, directory)
    test(setup, seed, directory, params)
    if jax.process_index() == 0 and not (directory / "export").exists():
        with atomic(directory / "export") as unfinished:
            export(setup, pretrained, unfinished, params, files_from)


def trained(setup: Setup, pretrained: Pretrained, seed: int, directory: Path) -> Any:
    """The trained parameters, on the host: those on disk where that is done."""
    if loop.as_first(checkpoint.holds_params(directory / "trained")):
        params = checkpoint.load_params(directory / "trained")
    else:
        with products_in(setup.config.dtype):
            params = train(setup, pretrained, seed, directory)
        checkpoint.save_params(directory / "trained", params)  # all processes: they wait for each other in it
    if jax.process_index() == 0:
        for spent in ("checkpoints", "best"):  # they are several times as large, and no longer of use
            checkpoint.remove(directory / spent)
    loop.wait_for_hosts("the trained parameters", read=False)  # all have them
    return params


def train(setup: Setup, pretrained: Pretrained, seed: int, directory: Path) -> Any:
    """Trains to the end, from a checkpoint where there is one; the parameters, on the host."""
    config = setup.config
    features = setup.training_features(seed)
    steps = configs.training_steps(config, len(features))
    directory.mkdir(parents=True, exist_ok=True)
    training = setup.training(steps)
    longest = setup.sizes.max_length
    batches = FeatureBatches(features, config.train.batch_size, seed, setup.tokenizer.pad_id, longest)
    first: Any = stack(features[:1], setup.tokenizer.pad_id, longest)

    def init(encoder, known):
        head = setup.network.init_head(seed, first) | known
        return finetune.init_state({"encoder": encoder, "head": head}, training.optimizer, seed)

    begin = pretrained.params["encoder"], pretrained_head(setup, pretrained)
    shapes = jax.eval_shape(init, *begin)
    shardings = sharding.tree_shardings(shapes, sharding.RULES[config.mesh.rules], setup.mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep
    )
    restored, where = checkpoints.restore(abstract), bucket.lies_at(directory)
    if restored is None:
        start, state = 0, jax.jit(init, out_shardings=shardings)(*begin)
        logging.info("%s: %d features, %d steps of %d", where, len(features), steps, config.train.batch_size)
    else:
        start, state = restored
        logging.info("%s: going on from the checkpoint of step %d", where, start)
    best = Best(setup, directory, start)
    writer = MetricWriter(
        directory, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=config.to_dict()
    )
    with contextlib.closing(writer), contextlib.closing(checkpoints):
        state = loop.Loop(
            step=training.step(shardings),
            batches=batches.iterate,
            put=setup.put,
            count=lambda batch: (int(batch["mask"].sum()), batch["mask"].size),
            checkpoints=checkpoints,
            writer=writer,
            schedule=training.schedule,
            evaluate=best.measure if config.data.dev else None,
            evaluate_every=config.eval.every,
            metrics=("loss",),
            profile_to=str(directory / "profile") if config.profile else None,
        ).run(state, start, stop=best.stopped_at or steps)
        params = sharding.to_host(state.params)
        if config.eval.patience:
            best.measure(state, int(state.step))
            params = best.params()
    return params


def pretrained_head(setup: Setup, pretrained: Pretrained) -> dict[str, Any]:
    """What the checkpoint has of the head: BERT's pooler, as transformers takes it. XLM-R's classifier has its own."""
    _, modules = setup.task.TRANSFORMERS.get(pretrained.config.model_type, ("", {}))
    taken = modules.get("pooler", "").endswith("pooler.dense") and "pooler" in pretrained.params
    return {"pooler": pretrained.params["pooler"]} if taken else {}


class Best:
    """The parameters that were best on the dev set, kept on disk, and whether to stop."""

    def __init__(self, setup: Setup, directory: Path, start: int) -> None:
        self._setup, self._directory = setup, directory
        path = directory / "dev.json"
        known = loop.as_first(json.loads(path.read_text()) if path.exists() else [])
        self.history: list[list[float]] = [entry for entry in known if entry[0] <= start]  # [step, value]

    @property
    def stopped_at(self) -> int | None:
        """The step at which a run that is now restored had enough."""
        return int(self.history[-1][0]) if self.history and self._enough() else None

    def measure(self, state: Any, step: int) -> bool:
        """Scores the dev sets; keeps the parameters if they are the best so far; True when patience is at its end."""
        if any(entry[0] == step for entry in self.history):
            return self._enough()
        setup = self._setup
        scores = [score(setup, state.params, test)[0] for test in setup.dev]
        if not all(scores):
            raise UserError(
                "config.data.dev: a file without gold answers cannot say when to stop; give another, in a new --workdir"
            )
        metric = next(iter(scores[0]))
        if not all(metric in found for found in scores):
            kinds = ", ".join(" and ".join(found) for found in scores)
            raise UserError(
                f"config.data.dev: sets with different scores ({kinds}); give files of one kind, in a new --workdir"
            )
        value = float(np.mean([found[metric].value for found in scores]))
        is_best = all(value > entry[1] for entry in self.history)
        self.history.append([step, value])
        logging.info("step %d: dev %s %.2f%s", step, metric, value, ", the best so far" if is_best else "")
        if is_best and setup.config.eval.patience:
            checkpoint.save_params(self._directory / "best", sharding.to_host(state.params))
        if jax.process_index() == 0:
            weights.write_json(self._directory / "dev.json", self.history)
        return self._enough()

    def params(self) -> Any:
        """The best ones."""
        return checkpoint.load_params(self._directory / "best")

    def _enough(self) -> bool:
        patience = self._setup.config.eval.patience
        best = max(range(len(self.history)), key=lambda i: self.history[i][1], default=0)
        return bool(patience) and len(self.history) - 1 - best >= patience


def score(setup: Setup, params: Any, test: TestSet) -> tuple[dict[str, Any], list[Any]]:
    """The metrics of a test set, and the predictions."""
    outputs: list[Any] = [None] * len(test.features)
    pad_id, longest = setup.tokenizer.pad_id, setup.sizes.max_length
    for rows, batch in in_order_of_length(test.features, setup.config.test_batch_size, pad_id, longest):
        found = jax.device_get(setup.predict(params, setup.put(batch)))
        for i, row in enumerate(rows):
            outputs[row] = {name: values[i] for name, values in found.items()}
    predictions = setup.task.decode(test.examples, test.features, outputs, setup.labels)
    return setup.task.score(test.examples, predictions, test.language), predictions


def test(setup: Setup, seed: int, directory: Path, params: Any) -> Records:
    """The scores of every test set, measured or as an earlier run left them; writes them, and the predictions."""
    path = directory / "scores.json"
    known = loop.as_first(json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])
    records = []
    on_devices = None
    for test_set in setup.tests:
        mine = [r for r in known if (r["language"], r["content"]) == (test_set.language, test_set.content)]
        if not mine:
            on_devices = sharding.put_whole(params, setup.mesh) if on_devices is None else on_devices
            with products_in(setup.config.dtype):
                scores, predictions = score(setup, on_devices, test_set)
            mine = [
                {"task": setup.config.task, "seed": seed, "language": test_set.language, "metric": metric,
                 "value": round(found.value, 4), "count": found.count, "content": test_set.content}
                for metric, found in scores.items()
            ]  # fmt: skip
            if jax.process_index() == 0:
                (directory / "predictions").mkdir(exist_ok=True)
                name = test_set.language.replace("/", "-") + setup.task.SUFFIX
                setup.task.write(directory / "predictions" / name, test_set.examples, predictions)
        records += mine
    if jax.process_index() == 0:
        tested = {test_set.language for test_set in setup.tests}
        report.write_records(path, [r for r in known if r["language"] not in tested] + records)
    return records


def export(setup: Setup, pretrained: Pretrained, directory: Path, params: Any, files_from: Path) -> None:
    """The fine-tuned model, for transformers where it knows the task; else the encoder, with the head beside it."""
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


def facts(opened: Sequence[tuple[Model, Setup]]) -> dict[str, str]:
    """For the report."""
    setup = opened[0][1]
    c = setup.config
    length = f"{c.train.steps} steps" if c.train.steps else f"{c.train.epochs:g} epochs"
    train = ", ".join(f"{language} ({len(examples):,})" for language, examples in setup.examples.train.items())
    return {
        **{f"model {model.name}".strip(): bucket.addressed(model.given) for model, _ in opened},
        "task": c.task,
        "trained on": train,
        "training": f"{length} of {c.train.batch_size}, learning rate {c.train.learning_rate:g}, "
        f"warm-up {c.train.warmup:g}, dropout {setup.sizes.hidden_dropout:g}",
        "code-switched": f"{c.data.code_switch}, {c.data.switch_rate:.0%} of the rows"
        if c.data.code_switch and len(setup.examples.train) > 1
        else "no",
        "longest row": f"{c.data.max_length} tokens",
        "seeds": str(c.seeds),
        "devices": f"{setup.mesh.size} x {setup.mesh.devices.flat[0].device_kind}, {c.dtype}",
    }


def sources_table(setup: Setup) -> str:
    """What was read."""
    examples = setup.examples
    parts = {"train": examples.train, "dev": examples.dev, "test": examples.test}
    rows = [(part, language, len(found)) for part, sets in parts.items() for language, found in sets.items()]
    return markdown.table(("part", "language", "examples"), rows)
