"""Where in an encoder transfer happens (First Align, then Predict; Muller et al. 2021), by re-initialising blocks.

For each set of blocks, and for none, the blocks are re-initialised (model/reinitialise.py) and the model is fine-tuned
on the source language and tested on all. What the targets lose beyond the source was needed for alignment. The study
also measures how similar the languages are by layer (CKA), and how far fine-tuning moved each block.

Besides config.json, the workdir then has a directory for each model, set and seed (scores, predictions, measured.json),
scores.json, similarity.json and movement.json of all, and report.md with its plots.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from ppa_jax.config import Config, Limit, at_least, check, entries, one_of
from ppa_jax.data import sample
from ppa_jax.errors import UserError
from ppa_jax.evaluation import similarity
from ppa_jax.evaluation.embed import Embedder, Remembered
from ppa_jax.evaluation.scores import read_records, write_records
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.jobs.finetune.setup import Model, Setup
from ppa_jax.model.reinitialise import reinitialise, relative_distance
from ppa_jax.studies.layer_ablation import report
from ppa_jax.tasks.files import checksum
from ppa_jax.training import checkpoint, hosts
from ppa_jax.training.limits import parse_seeds
from ppa_jax.training.metrics import Sweep

POOLING = "mean_without_special"
NONE = "none"
Blocks = tuple[int, ...]


def run(config: Config, workdir: str) -> None:
    """Runs the study."""
    # ---- settings, texts, models ----
    source = validate(config)
    root = epath.Path(workdir)
    texts = read_parallel(config, source)
    if config.mesh.distributed:
        hosts.initialize()
    if not config.init:
        config = finetune_run.align_first(config, root)
    models = finetune_setup.open_models(config, root)
    tested = list(models[0].setup.examples["test"])
    if source not in tested or len(tested) < 2:
        raise UserError(f"config.data.test: give the source language, {source}, and targets (there are {tested})")
    texts = {language: text for language, text in texts.items() if language in tested}
    if len(texts) == 1:
        raise UserError(
            f"config.parallel={config.parallel}: has none of the target languages; give text that has, or none"
        )
    sets = {model.name: ablations(config.ablations, model.setup.sizes.num_layers) for model in models}
    finetune_setup.claim(models, root)
    hosts.barrier("workdir claimed")

    # ---- trainings ----
    measured: list[dict[str, Any]] = []
    sweep = Sweep(sum(map(len, sets.values())) * len(parse_seeds(config)))
    for model in models:
        pretrained = huggingface.read(model.directory)
        measure = Measure(model.setup, pretrained.params["encoder"], texts, source, config.similarity.batch)
        measured.append({"model": model.name, "similarity": measure.pretrained})
        for name, blocks in sets[model.name].items():
            for seed in parse_seeds(config):
                directory = model.workdir / name / f"seed-{seed}"
                with sweep.training():
                    found = run_one(model.setup, pretrained, blocks, seed, directory, measure)
                measured.append({"model": model.name, "ablation": name, "seed": seed, **found})
                if jax.process_index() == 0:
                    write_measures(root, measured)

    # ---- report ----
    if jax.process_index() == 0:
        path, summary = report.write(
            root,
            *write_measures(root, measured),
            source=source,
            measure=config.similarity.measure,
            facts=facts(models, source, texts),
            data=finetune_run.examples_table(models[0].setup),
        )
        print(f"\n{summary}\n\nreport: {path}")


def validate(config: Config) -> str:
    """Checks the settings; returns the source language. Raises UserError naming the field."""
    finetune_setup.validate(config)
    languages = {entry.partition("=")[0].strip() for entry in entries(config.data.train)}
    if len(languages) != 1 or "{lang}" in config.data.train:
        raise UserError(f"config.data.train={config.data.train}: give one language, the source, as en=FILE")
    if not config.data.test:
        raise UserError("config.data.test is empty: give the source language and the targets")
    enough = Limit(lambda n: n >= config.similarity.batch, "at least similarity.batch sentences")
    limits = {"measure": one_of(*similarity.MEASURES), "batch": at_least(4), "sentences": enough}
    check(config, {f"similarity.{name}": limit for name, limit in limits.items()})
    ablations(config.ablations, None)
    return languages.pop()


def ablations(spec: str, depth: int | None) -> dict[str, Blocks]:
    """The sets of blocks, from 1, by name: `none` first, which re-initialises nothing.

    Args:
      spec: comma-separated: `pairs` (1-2, 3-4, ...), `singles`, `upwards` (from each block to the last), a block `3`,
        several `1-4` or `1+4`, `none`.
      depth: number of blocks of the model; None: not known yet.

    Raises:
      UserError: an entry of another form, or a block that the model does not have.
    """
    sets: dict[str, Blocks] = {NONE: ()}
    limit = depth or 10**3
    every = range(1, limit + 1)
    for entry in entries(spec):
        if entry == "pairs":
            found = [tuple(range(k, min(k + 2, limit + 1))) for k in every[::2]]
        elif entry == "singles":
            found = [(k,) for k in every]
        elif entry == "upwards":
            found = [tuple(range(k, limit + 1)) for k in every]
        elif entry == NONE:
            found = []
        elif match := re.fullmatch(r"(\d+)-(\d+)", entry):
            found = [tuple(range(int(match[1]), int(match[2]) + 1))]
        elif re.fullmatch(r"\d+(\+\d+)*", entry):
            found = [tuple(sorted({int(block) for block in entry.split("+")}))]
        else:
            raise UserError(
                f"config.ablations: {entry!r}: write pairs, singles, upwards, or sets of blocks from 1: 3, 1-2, 1+4"
            )
        for blocks in found:
            if not blocks or blocks[0] < 1 or blocks[-1] > limit:
                has = f"has blocks 1 to {depth}" if depth else "numbers its blocks from 1 upwards"
                raise UserError(f"config.ablations: {entry!r}: the model {has}")
            sets[set_name(blocks)] = blocks
    return sets


def set_name(blocks: Blocks) -> str:
    """`3`, `1-2`, `1+4`."""
    if len(blocks) > 1 and blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return "+".join(map(str, blocks))


def read_parallel(config: Config, source: str) -> similarity.Texts:
    """The first sentences of config.parallel in every language; empty if it is empty. Raises UserError."""
    given = config.parallel
    if not given:
        return {}
    if sample.is_source(given):
        start, stop = sample.parse_range(given, sample.size(), where=f"config.parallel={given}")
        texts = {language: sample.sentences(language, start, stop) for language in sample.LANGUAGES}
    else:
        texts = similarity.read_parallel(given, field="config.parallel")
    if source != similarity.PIVOT or source not in texts:
        raise UserError(f"config.parallel: similarity is to {similarity.PIVOT}, and the source language is {source}")
    texts = {language: sentences[: config.similarity.sentences] for language, sentences in texts.items()}
    if len(texts[source]) < config.similarity.batch:
        raise UserError(
            f"config.similarity.batch={config.similarity.batch}: {given} has {len(texts[source])} sentences; give less"
        )
    return texts


class Measure:
    """Similarity of the languages by layer, and of a fine-tuned model to the pretrained one; none without texts.

    The report shows one measure, but all of similarity.MEASURES are saved, because the trained weights are not.
    """

    def __init__(self, setup: Setup, encoder: Any, texts: similarity.Texts, source: str, batch: int) -> None:
        """`encoder`: the pretrained parameters."""
        self._texts, self._source, self._batch = texts, source, batch
        self._layers = list(range(setup.sizes.num_layers + 1))
        self._requests = [(layer, POOLING) for layer in self._layers]
        c = setup.config
        self._embedder = Embedder(
            setup.sizes, setup.tokenizer, max_length=c.data.max_length, mesh=setup.mesh, dtype=c.dtype
        )
        self.content = {language: checksum(text) for language, text in texts.items()}
        self._before = self._embed(encoder)
        self.pretrained = self._languages(self._before)

    def finetuned(self, before: Any, after: Any) -> dict[str, Any]:
        """The records of one training, from the encoder's parameters before and after it."""
        vectors = self._embed(after)
        movement = self._movement(before, after, vectors)
        return {"similarity": self._languages(vectors), "movement": movement, "parallel": self.content}

    def _embed(self, encoder: Any) -> Remembered | None:
        sentences = [sentence for text in self._texts.values() for sentence in text]
        return Remembered(self._embedder, encoder, sentences, self._requests) if sentences else None

    def _languages(self, vectors: Remembered | None) -> list[dict[str, Any]]:
        """{language, layer, measure, value} for every other language."""
        if not vectors:
            return []
        scores = similarity.evaluate_similarity(
            vectors, None, self._texts, self._layers, batch=self._batch,
            measures=list(similarity.MEASURES), pooling=POOLING,
        )  # fmt: skip
        return [
            {"language": s.language, "layer": s.layer, "measure": s.metric, "value": round(s.value, 6)}
            for s in scores
            if s.language in self._texts
        ]

    def _movement(self, before: Any, after: Any, vectors: Remembered | None) -> list[dict[str, Any]]:
        """{layer, distance, each measure} of the embeddings, 0, and of each block from 1.

        `distance` is from the parameters before training; similarity is to the pretrained model, on the source
        language.
        """
        text = self._texts.get(self._source, [])
        batches = [slice(i, i + self._batch) for i in range(0, len(text) - self._batch + 1, self._batch)]
        pairs = [x.embed(None, text, self._requests) for x in (self._before, vectors) if x]
        records = []
        for layer in self._layers:
            name = "embeddings" if layer == 0 else f"layer_{layer - 1}"
            distance = round(relative_distance(before[name], after[name]), 6)
            record: dict[str, Any] = {"layer": layer, "distance": distance}
            for measure, similar in similarity.MEASURES.items() if pairs else ():
                one, other = (vectors[layer, POOLING] for vectors in pairs)
                record[measure] = round(float(np.mean([similar(one[i], other[i]) for i in batches])), 6)
            records.append(record)
        return records


def run_one(
    setup: Setup, pretrained: Pretrained, blocks: Blocks, seed: int, directory: epath.Path, measure: Measure
) -> dict[str, Any]:
    """Scores, similarity and movement of one training; whatever is already done is read from `directory`."""
    path = directory / "measured.json"
    if not hosts.broadcast_from_process_0(path.exists()):
        logging.info("blocks re-initialised: %s; seed %d", set_name(blocks) or NONE, seed)
        encoder = reinitialise(
            pretrained.params["encoder"], setup.sizes, blocks, seed, keep_layer_norm=setup.config.keep_layer_norm
        )
        start = dataclasses.replace(pretrained, params=pretrained.params | {"encoder": encoder})
        params, records = finetune_run.train_and_test(setup, start, seed, directory)
        scored = {r["language"] for r in records}
        if unscored := [test_set.language for test_set in setup.tests if test_set.language not in scored]:
            raise UserError(f"config.data.test: {', '.join(unscored)}: the file has no gold; leave it out")
        found = measure.finetuned(encoder, params["encoder"])
        if jax.process_index() == 0:
            weights.write_json(path, found)
        hosts.barrier("measured")
    if jax.process_index() == 0:
        checkpoint.remove(directory / "trained")  # as large as the model, for every set and seed
    measured = json.loads(path.read_text(encoding="utf-8"))
    scores = read_records(directory / "scores.json")
    wanted = {(test_set.language, test_set.content) for test_set in setup.tests}
    scores = [r for r in scores if (r["language"], r["content"]) in wanted]
    if len({r["language"] for r in scores}) < len(wanted):
        raise UserError(f"config.data.test: {directory} was tested on other sets; give these, or another --workdir")
    if not measure.content.items() <= measured["parallel"].items():
        raise UserError(f"config.parallel: {directory} was measured on other text; give this, or another --workdir")
    measured["similarity"] = [r for r in measured["similarity"] if r["language"] in measure.content]
    return {"scores": scores, **measured}


def write_measures(
    workdir: epath.Path, measured: Sequence[Mapping[str, Any]]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Writes scores.json, similarity.json and movement.json, and returns their records."""
    kinds: dict[str, list[dict[str, Any]]] = {"scores": [], "similarity": [], "movement": []}
    for one in measured:
        where = {name: one.get(name, "") for name in ("model", "ablation", "seed")}
        for kind, records in kinds.items():
            records += [where | {x: y for x, y in r.items() if x != "content"} for r in one.get(kind, ())]
    for kind, records in kinds.items():
        write_records(workdir / f"{kind}.json", records)
    return kinds["scores"], kinds["similarity"], kinds["movement"]


def facts(models: Sequence[Model], source: str, texts: similarity.Texts) -> dict[str, str]:
    """The settings that the report shows."""
    config = models[0].setup.config
    layer_norm, given = "kept" if config.keep_layer_norm else "1 and 0", config.similarity
    measured = "not measured"
    if texts:
        measured = (
            f"{given.measure}; {len(texts[source]) // given.batch} x {given.batch} sentences of {config.parallel} in "
            f"{', '.join(texts)}; {POOLING.replace('_', ' ')} tokens; the other measures are in similarity.json"
        )
    return finetune_run.facts(models) | {
        "source": source,
        "re-initialised": f"blocks as in a new BERT: N(0, {models[0].setup.sizes.initializer_range}), biases 0, "
        f"LayerNorm {layer_norm}; embeddings and the other blocks stay",
        "similarity": measured,
    }
