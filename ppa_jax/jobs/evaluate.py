"""Measures models side by side: retrieval, bitext mining, word alignment, lexicon induction, CKA.

All data is read, and every setting checked, before the first model is opened. Each model is open alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from absl import logging

from ppa_jax.config import Config, one_of, require
from ppa_jax.data import world
from ppa_jax.encoder import DTYPES, Encoder, resolve
from ppa_jax.errors import UserError
from ppa_jax.evaluation import comparison, lexicon, mining, report, retrieval, similarity, word_alignment
from ppa_jax.evaluation.embed import Request
from ppa_jax.evaluation.scores import Score
from ppa_jax.interop import huggingface
from ppa_jax.interop.sentence_transformers import encoder_directory
from ppa_jax.interop.weight_files import read_json
from ppa_jax.training.memory import device_memory

CKA = ("linear", "rbf", "linear_debiased")  # the first two grow as batches shrink, the last does not
DATA_FIELDS = ("tatoeba", "sample", "mining", "word_alignment", "dictionaries", "parallel")


@dataclasses.dataclass(frozen=True)
class Settings:
    """At which layers and with which pooling a model is measured."""

    main: Request  # the same depth in every model, mean
    own: Request  # what the model was trained with
    retrieval: list[Request]
    layers: list[int]

    @classmethod
    def of(cls, encoder: Encoder, config: Config) -> Settings:
        """Those of one model."""
        depth = encoder.config.num_layers
        layer = round(depth * 2 / 3) if config.layer == -1 else config.layer
        main, own = (layer, "mean"), (encoder.layer, encoder.pooling)
        every = list(range(depth + 1)) if config.every_layer else [layer]  # `layer` is among them in any case
        asked = [main, own, (depth, "cls"), *((x, "mean") for x in every)]
        return cls(main, own, list(dict.fromkeys(asked)), every)


Part = Callable[[Encoder, Settings], list[Score]]


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    models = validate(config)
    directory = Path(workdir)
    if (directory / "checkpoints").exists() or (directory / "base").exists():
        raise UserError(f"workdir: {workdir} holds a training run, whose report would be lost; give another --workdir")
    directory.mkdir(parents=True, exist_ok=True)
    for source in models.values():
        check_model(source, config)
    parts = open_parts(config)
    measured: dict[str, comparison.Measured] = {}
    for name, source in models.items():
        measured[name] = measure(name, source, parts, config)
        # What is measured is kept, whatever the next model does.
        report.write_records(directory / "scores.json", comparison.records_of(measured))
    path, table = comparison.write(directory, measured, baseline=config.baseline or next(iter(models)))
    print(f"\n{table}\n\nreport: {path}")
    return 0


@device_memory("lower config.batch_size or config.max_length")
def measure(name: str, source: str, parts: list[Part], config: Config) -> comparison.Measured:
    """Opens one model and measures all parts with it."""
    encoder = Encoder.from_pretrained(
        source, max_length=config.max_length or None, batch_size=config.batch_size, dtype=config.dtype
    )
    settings = Settings.of(encoder, config)
    logging.info(
        "%s: %s, %d layers; as trained: layer %d, %s pooling; main scores: layer %d, mean pooling",
        name,
        source,
        encoder.config.num_layers,
        *settings.own,
        settings.main[0],
    )
    scores: list[Score] = []
    for part in parts:
        found = part(encoder, settings)
        logging.info("%s: %s measured", name, ", ".join(dict.fromkeys(score.task for score in found)))
        scores += found
    return comparison.Measured(source, encoder.config.num_layers, settings.main, settings.own, scores)


def validate(config: Config) -> dict[str, str]:
    """Checks every field before anything is opened; returns the models: name -> source.

    Raises:
      UserError: naming the field.
    """
    models: dict[str, str] = {}
    for entry in filter(None, map(str.strip, config.models.split(","))):
        name, equals, source = entry.partition("=")
        name, source = (name, source) if equals else (short_name(entry), entry)
        if not name or not source:
            raise UserError(f"config.models: {entry!r} is not of the form DIR or NAME=DIR")
        if name in models:
            raise UserError(f"config.models: two models are called {name}; write NAME=DIR,OTHER=DIR")
        models[name] = source
    if not models:
        raise UserError("config.models is empty: give directories, --config.models=DIR1,DIR2")
    if config.baseline and config.baseline not in models:
        raise UserError(f"config.baseline={config.baseline}: must be one of {', '.join(models)}")
    if not any(config[field] for field in DATA_FIELDS):
        raise UserError(f"no data: give one or more of {', '.join('config.' + field for field in DATA_FIELDS)}")
    require(config, "layer", lambda n: n == -1 or n >= 1, "-1 (two thirds of the depth) or a layer from 1")
    require(config, "max_length", lambda n: n == 0 or n >= 3, "0 (each model's own) or at least 3")
    require(config, "sample", lambda n: 0 <= n <= world.size(), f"at most {world.size()}, all of the built-in sample")
    require(config, "cka_batch", lambda n: n >= 4, "at least 4")
    require(config, "batch_size", lambda n: n >= 1, "at least 1")
    require(config, "dictionary_words", lambda n: n >= 0, "0 (all) or a number of words")
    one_of(config, "word_alignment_method", word_alignment.METHODS)
    one_of(config, "dtype", DTYPES)
    return models


def check_model(source: str, config: Config) -> None:
    """Raises UserError if there is no such model, or not the layer asked for in it; reads no weights."""
    path = encoder_directory(resolve(source)) / "config.json"
    depth = huggingface.config_from_hf(read_json(path), str(path)).num_layers
    if config.layer > depth:
        raise UserError(f"config.layer={config.layer}: {source} has {depth} layers")


def short_name(source: str) -> str:
    """`x` of runs/x/export, `bert-base` of google/bert-base."""
    parts = [part for part in Path(source).parts if part not in ("export", "/")]
    return parts[-1] if parts else source


def open_parts(config: Config) -> list[Part]:
    """Reads the data of every part that is asked for. Raises UserError, naming the field, for data that is wrong."""
    parts: list[Part] = []

    def retrieve(sets: retrieval.Sets, task: str) -> Part:
        return lambda encoder, settings: retrieval.evaluate_retrieval(
            encoder.embedder, encoder.params, sets, settings.retrieval, task=task
        )

    if config.tatoeba:
        parts.append(retrieve(retrieval.read_tatoeba(config.tatoeba, field="config.tatoeba"), "tatoeba"))
    if config.sample:
        parts.append(retrieve(retrieval.sample_sets(config.sample), "sample"))
    names = {"tatoeba", "sample"}
    for directory in filter(None, map(str.strip, config.parallel.split(","))):
        texts = similarity.read_parallel(directory, field="config.parallel")
        name = Path(directory).resolve().name
        if name in names:
            raise UserError(
                f"config.parallel: the scores of {directory} would stand under the name {name}, which is another "
                "test set's; rename the directory or give it once"
            )
        names.add(name)
        english = texts[similarity.PIVOT]
        if config.cka_batch > len(english):
            raise UserError(f"config.cka_batch={config.cka_batch}: {directory} has {len(english)} sentences; give less")
        sets = {language: (english, text) for language, text in texts.items() if language != similarity.PIVOT}
        parts += [retrieve(sets, name), _cka(texts, f"cka, {name}", config.cka_batch)]
    if config.mining:
        bitext = mining.read_bucc(config.mining, field="config.mining")
        parts.append(
            lambda encoder, settings: mining.evaluate_mining(
                encoder.embedder, encoder.params, bitext, list(dict.fromkeys([settings.main, settings.own]))
            )
        )
    if config.word_alignment:
        gold = word_alignment.read_gold(config.word_alignment, field="config.word_alignment")
        method = config.word_alignment_method
        parts.append(
            lambda encoder, settings: word_alignment.evaluate_word_alignment(
                encoder.embedder, encoder.params, gold, settings.layers, method=method
            )
        )
    if config.dictionaries:
        dictionaries = lexicon.read_dictionaries(
            config.dictionaries, field="config.dictionaries", max_words=config.dictionary_words or None
        )
        parts.append(
            lambda encoder, settings: lexicon.evaluate_lexicon(
                encoder.embedder, encoder.params, dictionaries, [(settings.main[0], "mean_without_special")]
            )
        )
    return parts


def _cka(texts: similarity.Texts, task: str, batch: int) -> Part:
    return lambda encoder, settings: similarity.evaluate_cka(
        encoder.embedder, encoder.params, texts, settings.layers, batch=batch, kinds=CKA, task=task
    )
