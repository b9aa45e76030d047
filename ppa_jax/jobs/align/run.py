"""The main job from files to files: trains, measures before and after, exports, reports.

What it leaves in the workdir: config.json, base/ (what the export needs besides the weights), metrics.jsonl,
tensorboard/, checkpoints/, scores.json and differences.json (with scores-*.npz, the single hits behind them), report.md
with its pictures, export/.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ppa_jax.config import Config
from ppa_jax.data import corpora, sources
from ppa_jax.data.batches import Batch
from ppa_jax.data.dictionaries import write_dictionary
from ppa_jax.errors import UserError
from ppa_jax.evaluation import comparison, retrieval, scores
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report import training as report
from ppa_jax.interop import huggingface, model_card, sentence_transformers
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import method as align
from ppa_jax.jobs.align import plan
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.model.bert import Layout, products_in
from ppa_jax.training import bucket, loop, optimizer, sharding
from ppa_jax.training.checkpoint import Checkpoints
from ppa_jax.training.memory import device_memory
from ppa_jax.training.metrics import MetricWriter


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    align_setup.validate(config)
    if config.mesh.distributed:
        if config.init:
            align_setup.prepare(config)
        loop.initialize_hosts()
    try:
        if not config.init:
            if config.plan:
                raise UserError("config.plan: give config.init; what a new model takes is not planned")
            align_setup.check_new_model(config)
            config = new_model.pretrain(config, Path(workdir), align_model)
        align_model(config, Path(workdir))
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    return 0


@device_memory(
    "set train.remat=true, raise train.accumulate, or lower train.batch_size, data.max_length, data.row_length or "
    "contrastive.queue_size, in a new --workdir"
)
def align_model(config: Config, workdir: Path) -> None:
    """The whole of one training run in its workdir.

    Raises:
      UserError: something does not fit, the devices' memory included; the loss is not finite.
      Stopped: by a signal, with the state saved.
    """
    run = align_setup.open_run(config, workdir)
    with products_in(config.dtype):
        train(run)


def train(run: align_setup.Run) -> None:
    """Trains to the last step, measures, exports and reports; continues a workdir where it stopped."""
    config, workdir = run.config, run.workdir
    encoder_config = run.pretrained.config
    if config.train.dropout >= 0:
        rate = config.train.dropout
        encoder_config = dataclasses.replace(encoder_config, hidden_dropout=rate, attention_dropout=rate)
    adamw = optimizer.adamw(run.schedule, weight_decay=config.train.weight_decay, clip=config.train.clip)
    init = functools.partial(
        align.init_state,
        method=run.method,
        config=encoder_config,
        optimizer=adamw,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )
    shapes = jax.eval_shape(init, run.pretrained.params)
    shardings = align.state_shardings(shapes, sharding.RULES[config.mesh.rules], run.mesh)
    step = align.make_step(run.method, encoder_config, adamw, run.mesh, shardings, run.words, run.translations)
    if config.plan:
        print(f"\n{plan.describe(step, shapes, shardings, run.batches, encoder_config, run.method)}")
        return
    loop.wait_for_hosts("whose workdir it is")  # what another one writes there first would look like another run's
    checkpoints = Checkpoints(workdir / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    evaluate(run, run.pretrained.params, 0)
    restored = checkpoints.restore(abstract)
    if restored is None:
        start, state = 0, jax.jit(init, out_shardings=shardings)(run.pretrained.params)
    else:
        start, state = restored
        logging.info("going on from the checkpoint of step %d", start)
    log_facts(run, state)

    shards = run.mesh.size / len(run.batches.own_shards)  # of all for each of this process

    def count(batch: Batch) -> tuple[int, int]:
        real, places = count_tokens(batch)
        return round(shards * real), round(shards * places)

    writer = MetricWriter(workdir, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=config.to_dict())
    try:
        state = loop.Loop(
            step=step,
            batches=functools.partial(run.batches.iterate, workers=config.data.workers),
            put=lambda batch: sharding.put_batch(batch, run.mesh),
            count=count,
            checkpoints=checkpoints,
            writer=writer,
            schedule=run.schedule,
            evaluate=lambda state, step: evaluate(run, state.params, step),
            evaluate_every=config.eval.every,
            metrics=("loss", "tlm", "contrastive", *(["word_alignment"] if run.words else [])),
            profile_to=str(workdir / "profile") if config.profile else None,
        ).run(state, start, run.steps)
    finally:
        writer.close()
        checkpoints.close()
    evaluate(run, state.params, run.steps)
    finish(run, sharding.to_host(state.params))


def count_tokens(batch: Batch) -> tuple[int, int]:
    """(real tokens, places for tokens) of a host batch, which has this process's shards."""
    rows = [rows for rows in (batch.rows, batch.key_rows) if rows is not None]
    return sum(int(np.count_nonzero(r.segments)) for r in rows), sum(r.segments.size for r in rows)


def in_words(layout: Layout) -> str:
    """`17 x 64 + 3 x 128` of rows of two widths."""
    return " + ".join(f"{rows} x {width}" for rows, width in layout)


def log_facts(run: align_setup.Run, state: align.State) -> None:
    """What a user wants to see before the first step."""
    base = run.batches.ladder.base
    rows = f"{in_words(base.query)} for queries and TLM, {in_words(base.key)} for keys"
    logging.info(
        "%d steps of %d pairs%s on %d devices (%s), %s parameters trained; a shard's rows: %s; %d masked slots",
        run.steps,
        run.config.train.batch_size,
        " (or of lines of one language)" if any(len(pair.languages) == 1 for pair in run.pairs) else "",
        run.mesh.size,
        run.config.mesh.rules,
        f"{loop.count_parameters(state.params):,}",
        rows if run.method.contrastive_weight else in_words(base.query),
        base.slots,
    )
    if state.queue is not None:
        slots, batch_size, _ = state.queue.keys.shape
        asked, keys = run.method.queue_size, slots * batch_size
        if keys != asked:
            logging.info("queue rounded up from %d to %d keys, %d batches", asked, keys, slots)


def evaluate(run: align_setup.Run, params: Any, step: int) -> None:
    """Measures retrieval at `step` and keeps the scores in the workdir; once for each step."""
    if not run.test_sets:
        return
    task = "tatoeba" if run.config.eval.tatoeba else "sample"
    moment = "before" if step == 0 else "after" if step == run.steps else f"step {step}"
    models = scores.kept(kept(run))
    if loop.as_first(any(score.task == task for score in models.get(moment, ()))):
        return
    measured = retrieval.evaluate_retrieval(run.embedder, params["encoder"], run.test_sets, run.requests, task=task)
    models[moment] = models.get(moment, []) + measured
    if jax.process_index() == 0:
        scores.keep(kept(run), models)
        report.write_records(run.workdir / "scores.json", comparison.records_of(measured_by(run, models)))
    for score in measured:
        if score.language == "mean" and score.direction == "both":
            logging.info(
                "%s: retrieval, mean of the languages, both directions, layer %d, %s: %.2f%%",
                moment,
                score.layer,
                score.pooling,
                score.value,
            )


def kept(run: align_setup.Run) -> Path:
    """Where the hits are kept: a file for each choice of sentences, so that two moments are of the same."""
    return run.workdir / f"scores-{zlib.crc32(repr(run.test_sets).encode()):08x}.npz"


def measured_by(run: align_setup.Run, models: dict[str, list[scores.Score]]) -> comparison.Models:
    """The model at its moments, as the report compares them."""
    depth = run.pretrained.config.num_layers
    own = (run.vectors["layer"], run.vectors["pooling"]) if run.vectors else None
    return {
        moment: comparison.Measured(run.config.init, depth, comparison.main_place(depth), own, found)
        for moment, found in models.items()
    }


def finish(run: align_setup.Run, params: Any) -> None:
    """Writes export/ and report.md."""
    if jax.process_index() != 0:
        return
    config, workdir = run.config, run.workdir
    models = measured_by(run, scores.kept(kept(run)))
    export = workdir / "export"
    trained = huggingface.load_base(workdir / "base", params)
    huggingface.write(export, trained, files_from=workdir / "base")
    if run.vectors:
        sentence_transformers.write_modules(export, trained, **run.vectors)
    for words in run.dictionaries:
        write_dictionary(export / "dictionaries" / f"{words.source}-{words.target}.tsv", words)
    languages = sorted({language for pair in run.pairs for language in pair.languages})
    model_card.write_card(
        export,
        title=title(run),
        losses=losses(run),
        base_model=base_model(run),
        sentence_vectors=run.vectors is not None,
        languages=languages,
        sources=[entry["source"] for pair in run.pairs for entry in pair.report],
        settings={name: config.to_dict()[name] for name in ("data", "train", "contrastive", "tlm", "word_alignment")},
        scores=[score.record("after") for score in models["after"].scores] if "after" in models else [],
    )
    path, written = report.write_training(
        workdir,
        models,
        title=title(run),
        facts={
            "model": bucket.addressed(config.init),
            "steps": f"{run.steps} of {config.train.batch_size} pairs",
            "losses": losses(run),
            "learning rate": f"{config.train.learning_rate:g}, warm-up {config.train.warmup:g}",
            "seed": str(config.seed),
            "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {config.dtype}",
        },
        sources=markdown.table(*sources_table(run.pairs)),
    )
    for heading, table in written:
        print(f"\n{heading}\n\n{table}")
    print(f"\nreport: {bucket.lies_at(path)}\nexport: {bucket.lies_at(export)}")


def base_model(run: align_setup.Run) -> str:
    """config.init; "" for a model that was made from nothing, by this run or before it."""
    init, made_here = Path(run.config.init), run.workdir / "new_model"
    return "" if new_model.is_random(init) or made_here in init.parents else run.config.init


def title(run: align_setup.Run) -> str:
    """Of the report and of the export's card."""
    name = model_card.base_name(base_model(run)) if base_model(run) else "a new model"
    if run.config.job == "pretrain":
        return f"Pretraining of {name}: {run.config.objective}"
    return f"{'Pretraining' if new_model.is_random(run.config.init) else 'Alignment'} of {name}"


def losses(run: align_setup.Run) -> str:
    """What is trained, with the weights and what belongs to each loss."""
    c, method = run.config, run.method
    terms = []
    if c.tlm.weight:
        own = [f"half of the masked pieces that have a translation meet it as {c.tlm.dict_mlm}"] * bool(c.tlm.dict_mlm)
        if c.tlm.language_embeddings:
            types = ", ".join(f"{i} {x}" for i, x in enumerate(sources.languages_of(c.data.pairs)))
            own.append(f"token types are languages: {types}")
        name = "translation language model" if c.tlm.joint else "masked language model"
        terms.append(f"{name} x {c.tlm.weight:g}" + (f" ({'; '.join(own)})" if own else ""))
    if c.contrastive.weight:
        terms.append(
            f"contrast of whole sentences x {c.contrastive.weight:g} (layer {method.layer}, {method.pooling}, queue "
            f"{c.contrastive.queue_size}, momentum {c.contrastive.momentum}, temperature {c.contrastive.temperature})"
        )
    if run.words:
        terms.append(f"alignment of word embeddings x {c.word_alignment.weight:g}")
    return " + ".join(terms)


def sources_table(pairs: list[corpora.LanguagePair]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows: every source, what was read and kept of it, why the rest was not, and what was kept changed."""
    rows = [
        (
            pair.name,
            entry["source"].partition("=")[2],
            entry["read"],
            entry["kept"],
            ", ".join(f"{reason} {number}" for reason, number in entry["skipped"].items()) or "none",
            ", ".join(f"{reason} {number}" for reason, number in entry["noted"].items() if number) or "none",
        )
        for pair in pairs
        for entry in pair.report
    ]
    return ("languages", "source", "pairs or lines read", "kept", "skipped", "kept, but noted"), rows
