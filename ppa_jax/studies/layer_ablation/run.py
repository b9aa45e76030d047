"""Where in an encoder transfer lives (First Align, then Predict; Muller et al. 2021), by blocks drawn anew.

For each set of blocks, and for none: the blocks are re-initialised (model/reinitialise.py), the model is fine-tuned on
the source language and tested on all. What the targets lose beyond the source was needed to align. Beside it: how alike
the languages are by layer (CKA) before and after fine-tuning, and how far fine-tuning moved each block.

What it leaves in the workdir, beside config.json: for each model, set and seed a directory with scores, predictions and
measured.json; scores.json, similarity.json and movement.json of all; report.md with its pictures.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ppa_jax.config import Config, Limit, at_least, check, one_of
from ppa_jax.data import sample
from ppa_jax.errors import UserError
from ppa_jax.evaluation import similarity
from ppa_jax.evaluation.embed import Remembered
from ppa_jax.evaluation.report.training import write_records
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.jobs.finetune.setup import Setup
from ppa_jax.model.reinitialise import reinitialise, relative_distance
from ppa_jax.studies.layer_ablation import report
from ppa_jax.training import bucket, checkpoint, loop
from ppa_jax.training.memory import device_memory

POOLING = "mean_without_special"
NONE = "none"
Blocks = tuple[int, ...]


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    source = validate(config)
    texts = read_parallel(config, source)
    if config.mesh.distributed:
        loop.initialize_hosts()
    if not config.init:
        status, config = finetune_run.aligned_first(config, Path(workdir))
        if status:
            return status
    opened = finetune_setup.open_run(config, Path(workdir))
    tested = list(opened[0][1].examples.test)
    if source not in tested or len(tested) < 2:
        raise UserError(f"config.data.test: give the source language, {source}, and targets (there are {tested})")
    texts = {language: text for language, text in texts.items() if language in tested}
    if len(texts) == 1:
        raise UserError(f"config.parallel={config.parallel}: none of the targets is there; give such text, or none")
    finetune_setup.claim(opened, Path(workdir))
    loop.wait_for_hosts("whose workdir it is")
    sets = {model.name: ablations(config.ablations, setup.sizes.num_layers) for model, setup in opened}
    found: list[dict[str, Any]] = []
    try:
        for model, setup in opened:
            pretrained = huggingface.read(model.directory)
            measure = Measure(setup, pretrained.params["encoder"], texts, source, config.similarity)
            found.append({"model": model.name, "similarity": measure.pretrained})
            for name, blocks in sets[model.name].items():
                for seed in finetune_setup.seeds(config):
                    one = run_one(setup, pretrained, blocks, seed, model.workdir / name / f"seed-{seed}", measure)
                    found.append({"model": model.name, "ablation": name, "seed": seed, **one})
                    if jax.process_index() == 0:
                        write_measures(Path(workdir), found)
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    if jax.process_index() == 0:
        path, summary = report.write(
            Path(workdir), *write_measures(Path(workdir), found), source=source, measure=config.similarity.measure,
            facts=facts(config, opened, source, texts), data=finetune_run.sources_table(opened[0][1]),
        )  # fmt: skip
        print(f"\n{summary}\n\nreport: {bucket.lies_at(path)}")
    return 0


def facts(config: Config, opened: Sequence[tuple[Any, Setup]], source: str, texts: similarity.Texts) -> dict[str, str]:
    """For the report."""
    kept, given, sizes = "kept" if config.keep_layer_norm else "1 and 0", config.similarity, opened[0][1].sizes
    batches = len(texts[source]) // given.batch if texts else 0
    return finetune_run.facts(opened) | {
        "source": source,
        "re-initialised": f"blocks as BERT begins: N(0, {sizes.initializer_range}), biases 0, LayerNorm {kept}; "
        "embeddings and the other blocks stay",
        "similarity": f"{given.measure}; {batches} x {given.batch} sentences of {config.parallel} in "
        f"{', '.join(texts)}; {POOLING.replace('_', ' ')} tokens; the other measures are in similarity.json"
        if texts
        else "not measured",
    }


def validate(config: Config) -> str:
    """Checks what has limits; returns the source language. Raises UserError naming the field."""
    finetune_setup.validate(config)
    languages = {entry.partition("=")[0].strip() for entry in config.data.train.split(",") if entry.strip()}
    if len(languages) != 1 or "{lang}" in config.data.train:
        raise UserError(f"config.data.train={config.data.train}: give one language, the source, as en=FILE")
    if not config.data.test:
        raise UserError("config.data.test is empty: give the source language and the targets")
    enough = Limit(lambda n: n >= config.similarity.batch, "at least similarity.batch sentences")
    check(config, {
        "similarity.measure": one_of(*similarity.MEASURES),
        "similarity.batch": at_least(4),
        "similarity.sentences": enough,
    })  # fmt: skip
    ablations(config.ablations, None)
    return languages.pop()


def ablations(spec: str, depth: int | None) -> dict[str, Blocks]:
    """The sets of blocks, from 1, by name: `none` first, which re-initialises nothing.

    Args:
      spec: with commas between: `pairs` (1-2, 3-4, ...), `singles`, `upwards` (from each block to the last), a block
        `3`, several `1-4` or `1+4`, `none`.
      depth: blocks of the model; None: not known yet, any will do.

    Raises:
      UserError: another form, or a block that the model has not.
    """
    sets: dict[str, Blocks] = {NONE: ()}
    of_any = f"has blocks 1 to {depth}" if depth else "numbers its blocks from 1 upwards"
    depth = depth or 10**3
    for entry in filter(None, map(str.strip, spec.split(","))):
        if entry == "pairs":
            found = [tuple(range(k, min(k + 2, depth + 1))) for k in range(1, depth + 1, 2)]
        elif entry == "singles":
            found = [(k,) for k in range(1, depth + 1)]
        elif entry == "upwards":
            found = [tuple(range(k, depth + 1)) for k in range(1, depth + 1)]
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
            if not blocks or blocks[0] < 1 or blocks[-1] > depth:
                raise UserError(f"config.ablations: {entry!r}: the model {of_any}")
            sets[set_name(blocks)] = blocks
    return sets


def set_name(blocks: Blocks) -> str:
    """`3`, `1-2`, `1+4`."""
    if len(blocks) > 1 and blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return "+".join(map(str, blocks))


def read_parallel(config: Config, source: str) -> similarity.Texts:
    """The first sentences of config.parallel in every language; none if it is empty. Raises UserError."""
    given, count = config.parallel, config.similarity.sentences
    if not given:
        return {}
    if sample.is_source(given):
        start, stop = sample.parse_range(given, sample.size(), where=f"config.parallel={given}")
        texts = {language: sample.sentences(language, start, stop) for language in sample.LANGUAGES}
    else:
        texts = similarity.read_parallel(given, field="config.parallel")
    if source != similarity.PIVOT or source not in texts:
        raise UserError(f"config.parallel: similarity is to {similarity.PIVOT}, and the source language is {source}")
    texts = {language: sentences[:count] for language, sentences in texts.items()}
    if len(texts[source]) < config.similarity.batch:
        raise UserError(
            f"config.similarity.batch={config.similarity.batch}: {given} has {len(texts[source])} sentences; give less"
        )
    return texts


class Measure:
    """Similarity of the languages by layer, and of a fine-tuned model to the pretrained one; compiled once.

    Every measure of similarity.MEASURES is kept, as the trained weights are not: the report shows one of them.
    """

    def __init__(self, setup: Setup, encoder: Any, texts: similarity.Texts, source: str, settings: Config) -> None:
        """`encoder`: the pretrained parameters."""
        self._texts, self._source, self._settings = texts, source, settings
        self._layers = list(range(setup.sizes.num_layers + 1))
        self._requests = [(layer, POOLING) for layer in self._layers]
        self._embedder = setup.embedder
        self.content = {language: finetune_setup.checksum(text) for language, text in texts.items()}
        vectors = self.embed(encoder)
        self.pretrained = self.languages(vectors)
        self._before = self._of_source(vectors)

    def embed(self, encoder: Any) -> Remembered | None:
        """The vectors of all texts; None without any."""
        sentences = [sentence for text in self._texts.values() for sentence in text]
        return Remembered(self._embedder, encoder, sentences, self._requests) if sentences else None

    def _of_source(self, vectors: Remembered | None) -> Mapping[Any, np.ndarray]:
        return vectors.embed(None, self._texts[self._source], self._requests) if vectors else {}

    def languages(self, vectors: Remembered | None) -> list[dict[str, Any]]:
        """{language, layer, measure, value} for every other language."""
        if not vectors:
            return []
        scores = similarity.evaluate_similarity(
            vectors, None, self._texts, self._layers, batch=self._settings.batch,
            measures=list(similarity.MEASURES), pooling=POOLING,
        )  # fmt: skip
        return [
            {"language": s.language, "layer": s.layer, "measure": s.metric, "value": round(s.value, 6)}
            for s in scores
            if s.language in self._texts
        ]

    def movement(self, before: Any, after: Any, after_vectors: Remembered | None) -> list[dict[str, Any]]:
        """Of each block from 1, and of the embeddings, 0: {layer, distance} of the parameters, and every measure.

        `distance` is from where the training began, `before`; similarity is to the pretrained model, of the source's
        sentences in their order.
        """
        vectors = self._of_source(after_vectors)
        found, batch = [], self._settings.batch
        starts = range(0, len(self._texts.get(self._source, ())) // batch * batch, batch)
        for layer in self._layers:
            name = "embeddings" if layer == 0 else f"layer_{layer - 1}"
            entry: dict[str, Any] = {"layer": layer, "distance": round(relative_distance(before[name], after[name]), 6)}
            for measure, alike in similarity.MEASURES.items() if vectors else ():
                one, other = self._before[layer, POOLING], vectors[layer, POOLING]
                values = [alike(one[i : i + batch], other[i : i + batch]) for i in starts]
                entry[measure] = round(float(np.mean(values)), 6)
            found.append(entry)
        return found


@device_memory(
    "set config.train.remat=true or lower config.test_batch_size; or, in a new --workdir, lower "
    "config.train.batch_size or config.data.max_length"
)
def run_one(
    setup: Setup, pretrained: Pretrained, blocks: Blocks, seed: int, directory: Path, measure: Measure
) -> dict[str, Any]:
    """Scores, similarity and movement of one training; what is done is not done again."""
    path = directory / "measured.json"
    if not loop.as_first(path.exists()):
        logging.info("blocks re-initialised: %s; seed %d", set_name(blocks) or NONE, seed)
        encoder = reinitialise(
            pretrained.params["encoder"], setup.sizes, blocks, seed, keep_layer_norm=setup.config.keep_layer_norm
        )
        start = dataclasses.replace(pretrained, params=pretrained.params | {"encoder": encoder})
        params = finetune_run.trained(setup, start, seed, directory)
        tested = {r["language"] for r in finetune_run.test(setup, seed, directory, params)}
        if blind := [test.language for test in setup.tests if test.language not in tested]:
            raise UserError(f"config.data.test: {', '.join(blind)}: no gold answers to score by; leave it out")
        vectors = measure.embed(params["encoder"])
        found = {
            "similarity": measure.languages(vectors),
            "movement": measure.movement(encoder, params["encoder"], vectors),
            "parallel": measure.content,
        }
        if jax.process_index() == 0:
            weights.write_json(path, found)
        loop.wait_for_hosts("what was measured")
    if jax.process_index() == 0:
        checkpoint.remove(directory / "trained")  # as large as the model, for every set and seed
    measured = json.loads(path.read_text(encoding="utf-8"))
    scores = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    asked = {(test.language, finetune_setup.checksum(test.examples)) for test in setup.tests}
    scores = [r for r in scores if (r["language"], r["content"]) in asked]
    if len({r["language"] for r in scores}) < len(asked):
        raise UserError(f"config.data.test: {directory} was tested on other sets; give those, or another --workdir")
    if not measure.content.items() <= measured["parallel"].items():
        raise UserError(f"config.parallel: {directory} was measured on other text; give that, or another --workdir")
    measured["similarity"] = [r for r in measured["similarity"] if r["language"] in measure.content]
    return {"scores": scores, **measured}


def write_measures(workdir: Path, found: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Writes scores.json, similarity.json and movement.json, and returns their records."""
    kinds: dict[str, list[dict[str, Any]]] = {"scores": [], "similarity": [], "movement": []}
    for one in found:
        where = {name: one.get(name, "") for name in ("model", "ablation", "seed")}
        for kind, records in kinds.items():
            records += [where | {x: y for x, y in r.items() if x != "content"} for r in one.get(kind, ())]
    for kind, records in kinds.items():
        write_records(workdir / f"{kind}.json", records)
    return kinds["scores"], kinds["similarity"], kinds["movement"]
