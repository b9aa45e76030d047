"""The main job: trains, measures before and after, exports and reports.

It writes to the workdir: config.json, base/ (what the export needs besides the weights), metrics.jsonl, tensorboard/,
checkpoints/, scores.json and differences.json (with the per-sentence results in scores-*.npz), report.md with its
plots, and export/. A new model (`init=""`) is pretrained in new_model/.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from ppa_jax import config as configs
from ppa_jax import storage
from ppa_jax.config import Config
from ppa_jax.data import corpora, sources
from ppa_jax.data.batches import Batch
from ppa_jax.data.dictionaries import write_dictionary
from ppa_jax.evaluation import comparison, retrieval, scores
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report import training as report
from ppa_jax.interop import huggingface, model_card, sentence_transformers
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import plan
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.jobs.align.method import make_step
from ppa_jax.jobs.align.setup import Losses, Run
from ppa_jax.jobs.align.state import State, init_state, state_shardings
from ppa_jax.model.bert import products_in
from ppa_jax.training import hosts, loop, optimizer, sharding
from ppa_jax.training.checkpoint import Checkpoints, restore_or_init
from ppa_jax.training.freezing import split
from ppa_jax.training.memory import device_memory
from ppa_jax.training.metrics import MetricWriter, training_time


def run(config: Config, workdir: str) -> None:
    """Runs the job."""
    losses = align_setup.validate(config)
    align_setup.connect(config)
    if not config.init:
        align_setup.check_new_model(config, losses)
        config = copy.deepcopy(config)
        config.init = str(pretrain_new_model(config, epath.Path(workdir) / "new_model"))
    train_model(config, losses, epath.Path(workdir))


def run_recipe(recipe: str, workdir: epath.Path) -> dict[str, epath.Path]:
    """Runs `FILE[:MODE]`, which must pretrain a new model, unless it is done; returns the exports before and after."""
    if not hosts.broadcast_from_process_0((workdir / "report.md").exists()):  # written last
        run(configs.load(recipe), str(workdir))
        hosts.barrier("aligned model exported")
    return {"before": workdir / "new_model" / "run" / "export", "after": workdir / "export"}


def pretrain_new_model(config: Config, directory: epath.Path) -> epath.Path:
    """Pretrains a new model with masked LM, unless it is done; returns its export.

    It is trained on the single sentences of data.pairs, never on pairs: the baseline for the aligned model.
    """
    random, trained = directory / "random", directory / "run"
    if hosts.broadcast_from_process_0((trained / "report.md").exists()):  # written last
        new_model.matches_spec(config, random)  # raises if not
        return trained / "export"
    new_model.make_random(config, random)
    first = copy.deepcopy(config)
    first.init = str(random)
    first.train.update(config.pretrain.to_dict(), epochs=0.0, freeze="")
    first.eval.update(tatoeba="", sample=0, pairs="")
    first.export.select = False
    logging.info("pretraining a new model with masked LM, %d steps", first.train.steps)
    train_model(first, Losses(tlm=1.0), trained)
    hosts.barrier("new model exported")
    return trained / "export"


@device_memory(
    "set train.remat=true, raise train.accumulate, or lower train.batch_size, data.max_length, data.row_length or "
    "contrastive.queue_size, in a new --workdir"
)
def train_model(config: Config, losses: Losses, workdir: epath.Path) -> None:
    """One training run in its workdir, from a pretrained model to the export and the report.

    Raises:
      UserError: settings, model and data do not fit together; a device is out of memory; the loss is not finite.
      Stopped: by a signal, with the state saved.
    """
    run = align_setup.open_run(config, losses, workdir)
    with products_in(config.dtype):
        train(run)


def train(run: Run) -> None:
    """Trains to the last step, measures, exports and reports; resumes from the newest checkpoint."""
    config, workdir, method = run.config, run.workdir, run.method

    # ---- state and step ----
    sizes = run.pretrained.config
    if config.train.dropout >= 0:
        sizes = sizes.with_dropout(config.train.dropout)
    schedule = optimizer.schedule(config.train.learning_rate, config.train.warmup, run.steps)
    adamw = optimizer.adamw(schedule, weight_decay=config.train.weight_decay, clip=config.train.clip)
    init = functools.partial(
        init_state,
        method=method,
        config=sizes,
        optimizer=adamw,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )
    shapes = jax.eval_shape(init, run.pretrained.params)
    shardings = state_shardings(shapes, sharding.RULES[config.mesh.rules], run.mesh)
    step = make_step(method, sizes, adamw, run.mesh, shardings, run.words, run.translations)
    if config.plan:
        print(f"\n{plan.describe(step, shapes, shardings, run.batches, sizes, method)}")
        return

    # ---- before the first step ----
    hosts.barrier("workdir claimed")  # else files that another process writes there could look like a different run
    checkpoints = Checkpoints(workdir / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
    evaluate(run, run.pretrained.params, 0)
    start, state = restore_or_init(checkpoints, init, (run.pretrained.params,), shapes, shardings)
    log_facts(run, state)

    # ---- training ----
    shards = run.mesh.size / len(run.batches.own_shards)  # global shards per shard of this process

    def count(batch: Batch) -> tuple[int, int]:
        real, positions = count_tokens(batch)
        return round(shards * real), round(shards * positions)

    writer = MetricWriter(workdir, **config.log, config=config.to_dict())
    try:
        state = loop.Loop(
            step=step,
            batches=functools.partial(run.batches.iterate, workers=config.data.workers),
            put=lambda batch: sharding.put_batch(batch, run.mesh),
            count=count,
            checkpoints=checkpoints,
            writer=writer,
            schedule=schedule,
            evaluate=lambda state, step: evaluate(run, state.params, step),
            evaluate_every=config.eval.every,
            metrics=(
                *("loss", "tlm", "contrastive"),
                *(["distill"] if run.losses.distill else []),
                *(["rtl"] if run.losses.rtl else []),
                *(["word_alignment"] if run.words else []),
            ),
            profile_to=workdir / "profile" if config.profile else None,
        ).run(state, start, run.steps)

        # ---- export and report ----
        evaluate(run, state.params, run.steps)
        params = sharding.to_host(state.params)
        if jax.process_index() == 0:
            if align_setup.selects(config):
                select_vectors(run)
            with storage.staged(run.workdir / "export") as directory:
                export(run, params, directory)
            write_report(run)
            writer.write_pictures()
    finally:
        writer.close()
        checkpoints.close()


def count_tokens(batch: Batch) -> tuple[int, int]:
    """(real tokens, positions with padding) of a host batch: of this process's shards."""
    rows = [rows for rows in (batch.rows, batch.key_rows) if rows is not None]
    return sum(int(np.count_nonzero(r.segments)) for r in rows), sum(r.segments.size for r in rows)


def log_facts(run: Run, state: State) -> None:
    """Logs the size of the run before the first step."""
    base = run.batches.ladder.base

    def as_text(layout: Any) -> str:
        return " + ".join(f"{rows} x {width}" for rows, width in layout)

    rows = as_text(base.query)
    if state.queue is not None:
        rows = f"{rows} for queries and TLM, {as_text(base.key)} for keys"
    logging.info(
        "%d steps of %d pairs%s on %d devices (%s), %s parameters trained",
        run.steps,
        run.config.train.batch_size,
        " (or of lines of one language)" if any(len(pair.languages) == 1 for pair in run.pairs) else "",
        run.mesh.size,
        run.config.mesh.rules,
        f"{loop.count_parameters(split(state.params, run.method.frozen)[0]):,}",
    )
    logging.debug("rows x tokens of a device in a step: %s; masked tokens: up to %d", rows, base.slots)
    if state.queue is not None:
        slots, batch_size, _ = state.queue.keys.shape
        wanted, keys = run.method.queue_size, slots * batch_size
        if keys != wanted:
            logging.info("queue rounded up from %d to %d keys, %d batches", wanted, keys, slots)


# ---- evaluation ----


def evaluate(run: Run, params: Any, step: int) -> None:
    """Measures retrieval at `step`, unless it is done, and adds the scores to the workdir."""
    moment = "before" if step == 0 else "after" if step == run.steps else f"step {step}"
    models = scores.load_scores(scores_file(run))
    last = run.pretrained.config.num_layers
    layers = sorted({run.method.layer, comparison.main_setting(last)[0], last})
    if align_setup.selects(run.config):
        layers = range(1, last + 1)
    for task, sets in run.test_sets.items():
        done = {(score.layer, score.pooling) for score in models.get(moment, ()) if score.task == task}
        requests = [(layer, pooling) for layer in layers for pooling in ("cls", "mean") if (layer, pooling) not in done]
        requests = [(layer, pooling) for layer, pooling in hosts.broadcast_from_process_0(requests)]
        if not requests:
            continue
        measured = retrieval.evaluate_retrieval(run.embedder, params["encoder"], sets, requests, task=task)
        models[moment] = models.get(moment, []) + measured
        if jax.process_index() == 0:
            scores.save_scores(scores_file(run), models)
            scores.write_records(run.workdir / "scores.json", comparison.records_of(by_moment(run, models)))
        for score in measured:
            if score.language == "mean" and score.direction == "both":
                logging.info(
                    "%s: retrieval (%s), mean of the languages, both directions, layer %d, %s: %.2f%%",
                    *(moment, task, score.layer, score.pooling, score.value),
                )


def scores_file(run: Run) -> epath.Path:
    """The file of per-sentence results; one per set of test sentences, so that moments are compared on the same set."""
    return run.workdir / f"scores-{zlib.crc32(repr(run.test_sets).encode()):08x}.npz"


def select_vectors(run: Run) -> None:
    """Replaces the trained layer and pooling by those that retrieve significantly better on eval.pairs, if any."""
    trained = run.vectors
    assert trained is not None  # open_run refuses it
    best = comparison.best_setting(by_moment(run, scores.load_scores(scores_file(run)))["after"], "pairs")
    run.selected = "as trained: no other layer and pooling is significantly better on eval.pairs"
    if best:
        _, layer, pooling, gain = best
        run.vectors = dataclasses.replace(trained, layer=layer, pooling=pooling)
        run.selected = (
            f"{comparison.setting_name(layer, pooling)}, chosen on eval.pairs ({gain.text(digits=2)} over "
            f"{comparison.setting_name(trained.layer, trained.pooling)}, as trained): its scores there are optimistic"
        )
    logging.info("export: %s", run.selected)


def by_moment(run: Run, models: dict[str, list[scores.Score]]) -> comparison.Models:
    """The model before, during and after training, as the models compared in the report."""
    depth = run.pretrained.config.num_layers
    own = (run.vectors.layer, run.vectors.pooling) if run.vectors else None
    return {
        moment: comparison.Measured(run.config.init, depth, comparison.main_setting(depth), own, found)
        for moment, found in models.items()
    }


# ---- export and report ----


def export(run: Run, params: Any, directory: Path) -> None:
    """Writes the encoder in the Hugging Face format, the dictionaries and the model card."""
    config, base = run.config, storage.local(run.workdir / "base")
    trained = huggingface.load_base(base, params)
    huggingface.write(directory, trained, files_from=base)
    if run.vectors:
        sentence_transformers.write_modules(directory, trained, run.vectors)
    for dictionary in run.dictionaries:
        write_dictionary(directory / "dictionaries" / f"{dictionary.source}-{dictionary.target}.tsv", dictionary)
    groups = ("data", "train", "contrastive", "tlm", "rtl", "distill", "word_alignment")
    after = scores.load_scores(scores_file(run)).get("after", [])
    model_card.write_card(
        directory,
        title=title(run),
        losses=describe_losses(run) + (f". Sentence vectors: {run.selected}" if run.selected else ""),
        base_model=base_model(run),
        sentence_vectors=run.vectors is not None,
        languages=sorted({language for pair in run.pairs for language in pair.languages}),
        sources=[entry["source"] for pair in run.pairs for entry in pair.report],
        settings={name: config[name].to_dict() for name in groups if name in config},
        scores=[score.record("after") for score in after],
        training_time=training_time([run.workdir]),
    )


def write_report(run: Run) -> None:
    """Writes report.md and prints its tables."""
    config = run.config
    path, tables = report.write_training(
        run.workdir,
        by_moment(run, scores.load_scores(scores_file(run))),
        title=title(run),
        facts={
            "model": config.init,
            "steps": f"{run.steps} of {config.train.batch_size} pairs",
            "losses": describe_losses(run),
            **({"export": run.selected} if run.selected else {}),
            "learning rate": f"{config.train.learning_rate:g}, warm-up {config.train.warmup:g}",
            "seed": str(config.seed),
            "training time": training_time([run.workdir]),
            "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {config.dtype}",
        },
        sources=markdown.table(*corpora.sources_table(run.pairs)),
    )
    for heading, table in tables:
        print(f"\n{heading}\n\n{table}")
    print(f"\nreport: {path}\nexport: {run.workdir / 'export'}")


def base_model(run: Run) -> str:
    """config.init; "" for a model trained from scratch, by this run or an earlier one."""
    init, made_here = epath.Path(run.config.init), run.workdir / "new_model"
    return "" if new_model.is_random(init) or made_here in init.parents else run.config.init


def title(run: Run) -> str:
    """The heading of the report and of the model card."""
    name = model_card.base_name(base_model(run)) if base_model(run) else "a new model"
    if run.config.job == "pretrain":
        return f"Pretraining of {name}: {run.config.objective}"
    return f"{'Pretraining' if new_model.is_random(run.config.init) else 'Alignment'} of {name}"


def describe_losses(run: Run) -> str:
    """The losses with their weights and settings, in one line."""
    losses, method, terms = run.losses, run.method, []
    if losses.tlm:
        options = []
        if losses.dict_mlm:
            options.append(f"half of the masked tokens with a translation are paired with it as {losses.dict_mlm}")
        if losses.language_embeddings:
            languages = enumerate(sources.languages_of(run.config.data.pairs))
            options.append(f"token types are languages: {', '.join(f'{i} {x}' for i, x in languages)}")
        name = "translation language model" if losses.joint else "masked language model"
        terms.append(f"{name} x {losses.tlm:g}" + (f" ({'; '.join(options)})" if options else ""))
    if losses.contrastive:
        form = f"queue {method.queue_size}, momentum {method.momentum}"
        if method.ranking:
            form = "both directions in the batch"
        elif method.symmetric:
            form = f"both directions, {form}"
        terms.append(
            f"{'translation ranking' if method.ranking else 'contrast of whole sentences'} x {losses.contrastive:g} "
            f"(layer {method.layer}, {method.pooling}, {form}, "
            f"{'learned ' * method.learn_temperature}temperature {method.temperature}"
            f"{f', margin {method.margin}' if method.margin else ''})"
        )
    if losses.rtl:
        target = " or ".join(run.batches.rtl_targets)
        terms.append(f"representation translation into {target} x {losses.rtl:g} (layer {method.layer})")
    if losses.distill:
        form = f"{method.distill_loss}, layer {method.layer}, {method.pooling}"
        terms.append(f"distillation of {run.config.distill.teacher} x {losses.distill:g} ({form})")
    if losses.word_alignment:
        terms.append(f"alignment of word embeddings x {losses.word_alignment:g}")
    return " + ".join(terms)
