"""The main job from files to files: opens model and corpora, trains, measures before and after, exports, reports.

What it leaves in the workdir: config.json, base/ (what the export needs besides the weights), metrics.jsonl,
tensorboard/, checkpoints/, scores.json, report.md with its pictures, export/.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from ppa_jax.config import Config, fields, one_of, require
from ppa_jax.data import corpora, sources, world
from ppa_jax.data.pairs import Batch, PairBatches
from ppa_jax.data.plan import Plan
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation import report, retrieval
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.interop import huggingface, model_card, sentence_transformers
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs import align, new_model
from ppa_jax.model.bert import EncoderConfig
from ppa_jax.training import identity, loop, mesh, optimizer
from ppa_jax.training.checkpoint import Checkpoints
from ppa_jax.training.metrics import MetricWriter

# A workdir continues with other values of these; anything else would be another run.
MAY_CHANGE = ("eval", "checkpoint", "log", "profile", "mesh", "data.cache", "data.workers", "train.accumulate")


def validate(config: Config) -> None:
    """Checks every field that has limits, before anything is opened. Raises UserError naming the field."""
    positive = lambda x: x > 0  # noqa: E731
    share = lambda x: 0 <= x < 1  # noqa: E731
    not_negative = lambda x: x >= 0  # noqa: E731
    for name in ("data.max_pair_pieces", "train.batch_size"):
        require(config, name, positive, "greater than 0")
    for name in ("train.learning_rate", "train.accumulate", "contrastive.temperature", "contrastive.projection_dim"):
        require(config, name, positive, "greater than 0")
    for name in ("contrastive.queue_size", "mesh.model", "checkpoint.keep"):
        require(config, name, positive, "greater than 0")
    for name in ("train.steps", "train.epochs", "train.warmup", "train.weight_decay", "train.clip", "data.min_pieces"):
        require(config, name, not_negative, "0 or more")
    for name in ("contrastive.weight", "tlm.weight", "checkpoint.every", "eval.every", "eval.sample", "pretrain.steps"):
        require(config, name, not_negative, "0 or more")
    require(config, "data.max_length", lambda n: n >= 3, "at least 3: a piece and two special tokens")
    require(config, "data.row_length", not_negative, "0 (chosen from the lengths) or a number of tokens")
    require(config, "data.max_characters", lambda n: 0 < n <= 10**9, "between 1 and 1,000,000,000")
    require(config, "data.temperature", lambda t: t >= 0.1, "at least 0.1; 1 keeps the proportions of the corpora")
    require(config, "data.workers", not_negative, "0 or more")
    require(config, "train.dropout", lambda x: x == -1 or share(x), "-1 (as pretrained) or in [0, 1)")
    require(config, "contrastive.momentum", lambda x: 0 <= x <= 1, "between 0 and 1")
    require(config, "contrastive.layer", lambda n: n == -1 or n >= 1, "-1 (the last) or a layer from 1")
    require(config, "tlm.mask_rate", lambda x: 0 < x < 1, "between 0 and 1")
    require(config, "mesh.data", lambda n: n == -1 or n >= 1, "-1 (all devices) or a number of devices")
    require(config, "train.steps", lambda n: n < 2**31, "below 2**31")
    require(config, "eval.sample", lambda n: n <= world.size(), f"at most {world.size()}, all of the built-in sample")
    require(config, "seed", lambda n: 0 <= n < 2**32, "0 or more, below 2**32")
    one_of(config, "dtype", ("float32", "bfloat16"))
    one_of(config, "contrastive.pooling", ("cls", "mean"))
    one_of(config, "mesh.rules", mesh.RULES)
    if not config.data.pairs:
        raise UserError("config.data.pairs is empty: give sources, e.g. --config.data.pairs=en-de=train.tsv")
    if not config.tlm.weight and not config.contrastive.weight:
        raise UserError("config.tlm.weight and config.contrastive.weight are both 0: nothing to train")
    if bool(config.train.steps) == bool(config.train.epochs):
        raise UserError("config.train.steps and config.train.epochs: give one of them, and it must be greater than 0")
    if not config.init:
        if not config.pretrain.steps:
            raise UserError("config.init is empty: give a Hugging Face directory or name, or pretrain.steps")
        new_model.validate(config)


@dataclasses.dataclass
class Run:
    """Everything that is open while the job runs."""

    config: Config
    workdir: Path
    pretrained: Pretrained
    tokenizer: Tokenizer
    pairs: list[corpora.LanguagePair]
    batches: PairBatches
    mesh: Mesh
    method: align.Method
    steps: int
    test_sets: retrieval.Sets

    @functools.cached_property
    def schedule(self) -> Any:
        """The learning rate of every step."""
        return optimizer.schedule(self.config.train.learning_rate, self.config.train.warmup, self.steps)

    @functools.cached_property
    def requests(self) -> list[tuple[int, str]]:
        """(layer, pooling) that are measured: the trained one, the last layer's [CLS], the mean at two thirds."""
        layers = self.pretrained.config.num_layers
        asked = [(self.method.layer, self.method.pooling), (layers, "cls"), (round(layers * 2 / 3), "mean")]
        return list(dict.fromkeys(asked))

    @functools.cached_property
    def embedder(self) -> Embedder:
        """Embeds sentences with any parameters of this shape; compiled once for the whole run."""
        return Embedder(self.pretrained.config, self.tokenizer, max_length=self.config.data.max_length, mesh=self.mesh)


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    validate(config)
    if config.mesh.distributed:
        loop.initialize_hosts()
    try:
        if not config.init:
            check_new_model(config)
            config = new_model.pretrain(config, Path(workdir), align_model)
        align_model(config, Path(workdir))
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the memory of the devices does not suffice ({str(error).splitlines()[0][:160]}); raise train.accumulate "
            "or lower train.batch_size, data.max_length, data.row_length or contrastive.queue_size"
        ) from error
    return 0


def align_model(config: Config, workdir: Path) -> None:
    """The whole of one training run in its workdir.

    Raises:
      UserError: something does not fit; the loss is not finite.
      Stopped: by a signal, with the state saved.
    """
    train(open_run(config, workdir))


def check_new_model(config: Config) -> None:
    """What can be known of the alignment before the new model is pretrained, which may take long."""
    devices = mesh.make_mesh(config.mesh.data, config.mesh.model)
    check_batch_size(config, "train.batch_size", devices)
    check_batch_size(config, "pretrain.batch_size", devices)
    check_lengths(config, new_model.encoder_config(config, config.model.vocab_size))
    read_test_sets(config)


def check_batch_size(config: Config, field: str, devices: Mesh) -> None:
    """Raises UserError, with a size that would do, unless the batch divides by the data shards and the accumulation."""
    size, shards, accumulate = fields(config)[field], devices.shape["data"], config.train.accumulate
    parts = shards * accumulate
    if size % parts:
        raise UserError(
            f"config.{field}={size}: must divide by mesh.data x train.accumulate = {shards} x {accumulate}; "
            f"the nearest that does is {parts * max(1, round(size / parts))}"
        )


def check_lengths(config: Config, encoder: EncoderConfig) -> None:
    """Raises UserError unless the longest sequence fits the model and the rows, and the layer is one of the model's."""
    longest = longest_sequence(config)
    if longest > encoder.max_length:
        raise UserError(
            f"config.data.max_length={config.data.max_length}: a sequence may have {longest} pieces, the model's "
            f"positions end at {encoder.max_length}; lower data.max_length or data.max_pair_pieces"
        )
    if 0 < config.data.row_length < longest:
        raise UserError(
            f"config.data.row_length={config.data.row_length}: the longest sequence has {longest} pieces; give that or "
            "more, or 0 to have it chosen"
        )
    layer = config.contrastive.layer
    if layer > encoder.num_layers:
        raise UserError(f"config.contrastive.layer={layer}: the model has {encoder.num_layers} layers")


def read_test_sets(config: Config) -> retrieval.Sets:
    """The sentences to retrieve among, by language; none if the config asks for none.

    Raises:
      UserError: the files of eval.tatoeba are not as they should be; training would see the sentences of eval.sample.
    """
    if config.eval.tatoeba:
        return retrieval.read_tatoeba(config.eval.tatoeba)
    first = world.size() - config.eval.sample
    for source in sources.parse_pairs(config.data.pairs) if config.eval.sample else []:
        if source.kind == "world" and sources.identity(source)["stop"] > first:
            raise UserError(
                f"config.eval.sample={config.eval.sample}: data.pairs trains on these sentences, too; "
                f"write {'-'.join(source.languages)}=world:0-{first}"
            )
    return retrieval.sample_sets(config.eval.sample) if config.eval.sample else {}


def open_run(config: Config, workdir: Path) -> Run:
    """Opens the model, the tokenizer and the corpora, and checks that they fit each other and the workdir."""
    devices = mesh.make_mesh(config.mesh.data, config.mesh.model)
    check_batch_size(config, "train.batch_size", devices)
    test_sets = read_test_sets(config)
    directory = huggingface.resolve(config.init)
    tokenizer = load_tokenizer(directory)
    pretrained = huggingface.read(directory, seed=config.seed)
    check_vocabulary(tokenizer, pretrained.config.vocab_size)
    check_lengths(config, pretrained.config)
    method = make_method(config, pretrained, tokenizer)

    cache = config.data.cache or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ppa_jax")
    pairs = corpora.open_pairs(
        config.data.pairs,
        tokenizer,
        cache_dir=cache,
        min_pieces=config.data.min_pieces,
        max_pair_pieces=config.data.max_pair_pieces,
        max_length=config.data.max_length,
        max_characters=config.data.max_characters,
        skip_lines=config.data.skip_lines,
        drop_identical=config.data.drop_identical,
        drop_duplicates=config.data.drop_duplicates,
    )
    logging.info("corpora:\n%s", corpora.describe(pairs))
    plan = Plan(
        [pair.lengths for pair in pairs],
        config.train.batch_size,
        config.seed,
        config.data.temperature,
        config.data.shuffle_sides,
    )
    steps = config.train.steps or max(1, round(config.train.epochs * plan.pairs / config.train.batch_size))
    check_identity(config, workdir, pretrained, pairs)
    batches = PairBatches(
        pairs,
        plan,
        tokenizer,
        max_length=config.data.max_length,
        row_length=config.data.row_length or -(-longest_sequence(config) // 64) * 64,
        mask_rate=config.tlm.mask_rate,
        contrast=config.contrastive.weight > 0,
        tlm=config.tlm.weight > 0,
        joint=config.tlm.joint,
        shards=devices.shape["data"],
        accumulate=config.train.accumulate,
        own_shards=mesh.own_shards(devices),
    )
    if jax.process_index() == 0:
        base = workdir / "base"
        huggingface.save_base(base, pretrained, files_from=directory)
        sentence_transformers.write_settings(
            base, layer=method.layer, pooling=method.pooling, max_length=config.data.max_length
        )
    return Run(config, workdir, pretrained, tokenizer, pairs, batches, devices, method, steps, test_sets)


def longest_sequence(config: Config) -> int:
    """Tokens of the longest sequence there can be: a TLM pair with three special tokens, or a sentence with two."""
    sentence = config.data.max_length
    if not config.tlm.weight or not config.tlm.joint:
        return sentence
    return max(sentence, min(2 * (sentence - 2), config.data.max_pair_pieces) + 3)


def make_method(config: Config, pretrained: Pretrained, tokenizer: Tokenizer) -> align.Method:
    """The settings of the step, with what they need of the model and the tokenizer."""
    layers, settings = pretrained.config.num_layers, config.contrastive
    projection = pretrained.params.get("projection")
    if projection is not None and projection["output"]["bias"].shape[0] != settings.projection_dim:
        raise UserError(
            f"config.contrastive.projection_dim={settings.projection_dim}: {config.init} brings a projection of "
            f"{projection['output']['bias'].shape[0]}; set that, or remove its projection.safetensors"
        )
    return align.Method(
        tlm_weight=config.tlm.weight,
        contrastive_weight=settings.weight,
        queue_size=settings.queue_size,
        momentum=settings.momentum,
        temperature=settings.temperature,
        projection_dim=settings.projection_dim,
        layer=layers if settings.layer == -1 else settings.layer,
        pooling=settings.pooling,
        mask_duplicates=settings.mask_duplicates,
        in_batch=settings.in_batch,
        key_dropout=settings.key_dropout,
        max_tlm_length=longest_sequence(config),
        mask_id=tokenizer.mask_id,
        dtype=jnp.dtype(config.dtype),
    )


def check_identity(config: Config, workdir: Path, pretrained: Pretrained, pairs: list) -> None:
    """Refuses a workdir of another run; marks a new one. The content of model and data counts, not only their names."""
    words = pretrained.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    lengths = {pair.name: np.ascontiguousarray(pair.lengths[:: max(1, len(pair) // 100_000)]) for pair in pairs}
    described = config.to_dict() | {
        "content": {
            "model": zlib.crc32(np.ascontiguousarray(words).data),
            "data": {pair.name: [len(pair), zlib.crc32(lengths[pair.name].data)] for pair in pairs},
        }
    }
    if not identity.check_identity(workdir, described, may_change=MAY_CHANGE):
        if (workdir / "checkpoints").exists():
            raise UserError(f"workdir: {workdir} has checkpoints but no config.json; give another --workdir")
        identity.write_identity(workdir, described)


def train(run: Run) -> None:
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
    shardings = align.state_shardings(shapes, mesh.RULES[config.mesh.rules], run.mesh)
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

    writer = MetricWriter(workdir, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=config.to_dict())
    try:
        state = loop.Loop(
            step=align.make_step(run.method, encoder_config, adamw, run.mesh, shardings),
            batches=functools.partial(run.batches.iterate, workers=config.data.workers),
            put=lambda batch: mesh.put_batch(batch, run.mesh),
            count=count_tokens,
            checkpoints=checkpoints,
            writer=writer,
            schedule=run.schedule,
            evaluate=lambda state, step: evaluate(run, state.params, step),
            evaluate_every=config.eval.every,
            metrics=("loss", "tlm", "contrastive"),
            profile_to=str(workdir / "profile") if config.profile else None,
        ).run(state, start, run.steps)
    finally:
        writer.close()
        checkpoints.close()
    evaluate(run, state.params, run.steps)
    finish(run, mesh.to_host(state.params))


def count_tokens(batch: Batch) -> tuple[int, int]:
    """(real tokens, places for tokens) of a host batch."""
    rows = [rows for rows in (batch.rows, batch.key_rows) if rows is not None]
    return sum(int(np.count_nonzero(r.segments)) for r in rows), sum(r.segments.size for r in rows)


def log_facts(run: Run, state: align.State) -> None:
    """What a user wants to see before the first step."""
    logging.info(
        "%d steps of %d pairs on %d x %d devices (%s), %s parameters trained; "
        "rows of %d tokens, %d for queries and TLM, %d for keys, %d masked slots a shard",
        run.steps,
        run.config.train.batch_size,
        run.mesh.shape["data"],
        run.mesh.shape["model"],
        run.config.mesh.rules,
        f"{loop.count_parameters(state.params):,}",
        run.batches.row_length,
        *dataclasses.astuple(run.batches.ladder.base),
    )
    if state.queue is not None:
        slots, batch_size, _ = state.queue.keys.shape
        asked, keys = run.method.queue_size, slots * batch_size
        if keys != asked:
            logging.info("queue rounded up from %d to %d keys, %d batches", asked, keys, slots)


def evaluate(run: Run, params: Any, step: int) -> None:
    """Measures retrieval at `step` and keeps the scores in the workdir; once for each step."""
    if not run.test_sets:
        return
    task = "tatoeba" if run.config.eval.tatoeba else "sample"
    moment = "before" if step == 0 else "after" if step == run.steps else f"step {step}"
    scores = read_scores(run.workdir)
    if any(record["model"] == moment and record["task"] == task for record in scores):
        return
    measured = retrieval.evaluate_retrieval(run.embedder, params["encoder"], run.test_sets, run.requests, task=task)
    records = [score.record(moment) for score in measured]
    if jax.process_index() == 0:
        report.write_scores(run.workdir, scores + records)
    for record in records:
        if record["language"] == "mean" and record["direction"] == "both":
            logging.info(
                "%s: retrieval, mean of the languages, both directions, layer %d, %s: %.2f%%",
                moment,
                record["layer"],
                record["pooling"],
                record["value"],
            )


def read_scores(workdir: Path) -> list[dict[str, Any]]:
    """The records of scores.json; none if there is no such file."""
    path = workdir / "scores.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def finish(run: Run, params: Any) -> None:
    """Writes export/ and report.md."""
    if jax.process_index() != 0:
        return
    config, workdir = run.config, run.workdir
    scores = read_scores(workdir)
    export = workdir / "export"
    trained = huggingface.load_base(workdir / "base", params)
    huggingface.write(export, trained, files_from=workdir / "base")
    sentence_transformers.write_modules(
        export, trained, layer=run.method.layer, pooling=run.method.pooling, max_length=config.data.max_length
    )
    languages = sorted({language for pair in run.pairs for language in pair.languages})
    model_card.write_card(
        export,
        base_model=config.init,
        languages=languages,
        sources=[entry["source"] for pair in run.pairs for entry in pair.report],
        settings={name: config.to_dict()[name] for name in ("data", "train", "contrastive", "tlm")},
        scores=[record for record in scores if record["model"] == "after"],
    )
    path = report.write_report(
        workdir,
        title="Alignment of a new model"
        if "new_model" in Path(config.init).parts
        else f"Alignment of {Path(config.init).name}",
        facts={
            "model": config.init,
            "steps": f"{run.steps} of {config.train.batch_size} pairs",
            "losses": f"TLM x {config.tlm.weight} + contrast x {config.contrastive.weight} "
            f"(layer {run.method.layer}, {run.method.pooling}, queue {config.contrastive.queue_size}, "
            f"momentum {config.contrastive.momentum}, temperature {config.contrastive.temperature})",
            "learning rate": f"{config.train.learning_rate:g}, warm-up {config.train.warmup:g}",
            "seed": str(config.seed),
            "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {config.dtype}",
        },
        records=scores,
        metrics_path=workdir,
        sources=report.markdown_table(*sources_table(run.pairs)),
    )
    for title, table in report.score_tables(scores, "before", "after") if scores else []:
        print(f"\n{title}\n\n{table}")
    print(f"\nreport: {path}\nexport: {export}")


def sources_table(pairs: list[corpora.LanguagePair]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows: every source, what was read and kept of it, and why the rest was not."""
    rows = [
        (
            pair.name,
            entry["source"].partition("=")[2],
            entry["read"],
            entry["kept"],
            ", ".join(f"{reason} {number}" for reason, number in entry["skipped"].items()) or "none",
        )
        for pair in pairs
        for entry in pair.report
    ]
    return ("pair", "source", "pairs read", "kept", "skipped"), rows
