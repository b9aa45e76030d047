"""Compares models by retrieval, bitext mining, word alignment, lexicon induction and CKA.

All data is read, and every setting and tokenizer checked, before the weights of the first model are read. One model is
in memory at a time. A model with several trainings is measured by the mean over them. Scores are saved in the workdir,
and the same command resumes after them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import logging
from etils import epath

from ppa_jax import storage
from ppa_jax.config import Config, Limit, at_least, check, entries, one_of
from ppa_jax.data import sample
from ppa_jax.data.dictionaries import read_dictionaries
from ppa_jax.data.tokenizer import check_vocabulary, load_tokenizer
from ppa_jax.encoder import DTYPES, Encoder
from ppa_jax.errors import UserError
from ppa_jax.evaluation import comparison, lexicon, mining, retrieval, scores, similarity, word_alignment
from ppa_jax.evaluation.embed import Remembered, Request
from ppa_jax.evaluation.report import training as report
from ppa_jax.evaluation.scores import Score
from ppa_jax.interop import hub, huggingface
from ppa_jax.interop.sentence_transformers import encoder_directory, read_settings
from ppa_jax.training.memory import device_memory
from ppa_jax.training.workdir import file_digest, write_identity

CKA = ("cka_linear", "cka_rbf", "cka_linear_debiased")  # the first two grow as batches shrink, the last does not
MEMORY = 8 << 30  # bytes on the host for vectors that two measures share; if they need more, they are computed twice
DATA_FIELDS = ("tatoeba", "pairs", "sample", "mining", "word_alignment", "dictionaries", "parallel")
BASE = Limit(lambda n: n in (-1, 0, 1), "-1 (detected from the file), 0 or 1")
LIMITS = {
    "layer": Limit(lambda n: n == -1 or n >= 1, "-1 (two thirds of the depth) or a layer from 1"),
    "max_length": Limit(lambda n: n == 0 or n >= 3, "0 (the longest that all models support) or at least 3"),
    "cka_batch": at_least(4),
    "batch_size": at_least(1),
    "dictionary_words": Limit(lambda n: n >= 0, "0 (all) or a number of words"),
    "word_base": BASE,
    "sentence_base": BASE,
    "dtype": one_of(*DTYPES),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is read of a model before its weights."""

    sources: tuple[str, ...]  # its trainings with different seeds; usually one
    depth: int  # blocks
    own: Request | None  # layer and pooling that it was trained with; None: unknown
    max_length: int  # tokens of a sentence


@dataclasses.dataclass(frozen=True)
class Requests:
    """The layers and poolings at which a model is measured."""

    main: Request  # mean pooling at the same relative depth in every model
    mining: list[Request]  # main, and those that any of the models was trained with
    retrieval: list[Request]
    layers: list[int]  # of the curves


Part = Callable[[Encoder, Requests], list[Score]]


def run(config: Config, workdir: str) -> None:
    """Runs the job."""
    # ---- settings, models, data ----
    sources, baselines = validate(config)
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    models = {name: read_model_info(name, given, config) for name, given in sources.items()}
    max_length = config.max_length or min(model.max_length for model in models.values())  # the same for all models
    parts = open_parts(config)
    write_identity(directory, config.to_dict())

    # ---- measurements ----
    measured: dict[str, comparison.Measured] = {}
    for name, model in models.items():
        requests = choose_requests(model, models.values(), config)
        runs = []
        for source in model.sources:
            path = directory / "measured" / f"{digest(source, requests, max_length, config)}.npz"
            if not path.exists():
                scores.save_scores(path, {source: measure(name, source, requests, parts, max_length, config)})
            runs += scores.load_scores(path).values()
        measured[name] = comparison.Measured(
            " | ".join(model.sources),
            model.depth,
            requests.main,
            model.own,
            scores.over_runs(runs),
            runs if runs[1:] else (),
        )
        scores.write_records(directory / "scores.json", comparison.records_of(measured))

    # ---- report ----
    shown = {f"config.{field}": str(config[field]) for field in DATA_FIELDS if config[field]}
    shown |= {"longest sentence": f"{max_length} tokens, including special tokens", "computed in": config.dtype}
    if config.parallel:
        shown["CKA"] = f"batches of {config.cka_batch} sentences"
    if config.word_alignment:
        shown["word alignment"] = config.word_alignment_method
    if config.dictionaries:
        words = config.dictionary_words
        shown["dictionaries"] = f"the {words:,} most frequent words" if words else "all"
    path, table = report.write_comparison(directory, measured, baselines=baselines, facts=shown)
    print(f"\n{table}\n\nreport: {path}")


# ---- checks before anything is opened ----


def validate(config: Config) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Checks the settings; returns the models, name -> sources, and the baselines. Raises UserError."""
    models: dict[str, tuple[str, ...]] = {}
    for entry in entries(config.models):
        name, equals, source = entry.partition("=")
        if not equals or "/" in name:  # a path that contains "="
            name, source = short_name(entry), entry
        sources = tuple(filter(None, source.split("|")))
        if not name or not sources:
            raise UserError(f"config.models: {entry!r} is not of the form DIR, NAME=DIR or NAME=DIR|DIR (trainings)")
        if name in models:
            raise UserError(f"config.models: two models are called {name}; write NAME=DIR,OTHER=DIR")
        models[name] = sources
    if not models:
        raise UserError("config.models is empty: give directories, --config.models=DIR1,DIR2")
    baselines = entries(config.baseline) or [next(iter(models))]
    if not set(baselines) <= models.keys():
        raise UserError(f"config.baseline={config.baseline}: must be of {', '.join(models)}")
    if not any(config[field] for field in DATA_FIELDS):
        raise UserError(f"no data: give one or more of {', '.join('config.' + field for field in DATA_FIELDS)}")
    size = sample.size()
    check(config, LIMITS | {"sample": Limit(lambda n: 0 <= n <= size, f"from 0 to {size}, all of the built-in sample")})
    for method in entries(config.word_alignment_method) or [""]:
        if method not in word_alignment.METHODS:
            allowed = ", ".join(word_alignment.METHODS)
            raise UserError(f"config.word_alignment_method={method}: must be one of {allowed}, or several with commas")
    return models, baselines


def short_name(source: str) -> str:
    """`x` for runs/x/export, `bert-base` for google/bert-base."""
    parts = [part for part in Path(source).parts if part not in ("export", "/")]
    return parts[-1] if parts else source


# ---- models ----


def read_model_info(name: str, sources: tuple[str, ...], config: Config) -> Model:
    """Reads a model's configuration and checks its tokenizer; reads no weights.

    Raises:
      UserError: there is no such model, its tokenizer does not match, it does not have config.layer, or its trainings
        are of different models.
    """
    found = []
    for source in sources:
        directory = hub.resolve(source)
        encoder = encoder_directory(directory)
        sizes = huggingface.read_sizes(encoder)
        check_vocabulary(load_tokenizer(encoder), sizes.vocab_size)
        if config.layer > sizes.num_layers:
            raise UserError(f"config.layer={config.layer}: {source} has {sizes.num_layers} layers")
        own = None
        try:
            if settings := read_settings(directory):
                own = settings.layer, settings.pooling
        except UserError as error:
            logging.warning("%s: its own sentence vectors are not measured: %s", name, error)
        found.append(Model(sources, sizes.num_layers, own, sizes.max_length))
    if len(set(found)) > 1:
        raise UserError(f"config.models: the trainings of {name} differ in layers, pooling or length; name them apart")
    return found[0]


def choose_requests(model: Model, models: Iterable[Model], config: Config) -> Requests:
    """The layers and poolings at which a model is measured."""
    main = comparison.main_setting(model.depth) if config.layer == -1 else (config.layer, "mean")
    trained = [m.own for m in models if m.own is not None and m.own[0] <= model.depth]
    layers = list(range(model.depth + 1)) if config.every_layer else [main[0]]
    everything = [main, *trained, (model.depth, "cls"), *((layer, "mean") for layer in layers)]
    return Requests(main, list(dict.fromkeys([main, *trained])), list(dict.fromkeys(everything)), layers)


@device_memory("lower config.batch_size or config.max_length")
def measure(
    name: str, source: str, requests: Requests, parts: list[Part], max_length: int, config: Config
) -> list[Score]:
    """Opens a model and measures all parts with it."""
    layer, pooling = requests.main
    encoder = Encoder.from_pretrained(
        source, layer=layer, pooling=pooling, max_length=max_length, batch_size=config.batch_size, dtype=config.dtype
    )
    logging.info("%s: %s, main scores at layer %d of %d, %s", name, source, layer, encoder.config.num_layers, pooling)
    measured: list[Score] = []
    for part in parts:
        found = part(encoder, requests)
        logging.info("%s: %s measured", name, ", ".join(dict.fromkeys(score.task for score in found)))
        measured += found
    return measured


def digest(source: str, requests: Requests, max_length: int, config: Config) -> str:
    """A hash of everything that a model's scores depend on; of files the name and content, so a copy has the same."""
    settings = {name: value for name, value in config.to_dict().items() if name not in ("models", "baseline")}
    given = [path for field in DATA_FIELDS if field not in ("sample", "pairs") for path in entries(config[field])]
    pairs = retrieval.read_pairs(config.pairs, field="config.pairs") if config.pairs else {}
    if not config.mining:
        requests = dataclasses.replace(requests, mining=[])
    files = [
        (str(file.relative_to(path if path.is_dir() else path.parent)), file_digest(file))
        for path in [hub.resolve(source), *(storage.local(path, beside=True) for path in given)]
        for file in sorted(path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*"))
        if file.is_file()
    ]
    facts = [settings, dataclasses.astuple(requests), max_length, files, zlib.crc32(repr(pairs).encode())]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


# ---- parts ----


def open_parts(config: Config) -> list[Part]:
    """Reads the data of every configured part. Raises UserError, naming the field, for invalid data."""
    parts: list[Part] = []
    if config.tatoeba:
        parts.append(_retrieval(retrieval.read_tatoeba(config.tatoeba, field="config.tatoeba"), "tatoeba"))
    if config.pairs:
        parts.append(_retrieval(retrieval.read_pairs(config.pairs, field="config.pairs"), "pairs"))
    if config.sample:
        parts.append(_retrieval(retrieval.sample_sets(config.sample), "sample"))
    names = {"tatoeba", "pairs", "sample"}
    for directory in entries(config.parallel):
        texts = similarity.read_parallel(directory, field="config.parallel")
        name = Path(directory).resolve().name
        if name in names:
            raise UserError(
                f"config.parallel: the scores of {directory} would be named {name}, like those of another test set; "
                "rename the directory or give it only once"
            )
        names.add(name)
        english = texts[similarity.PIVOT]
        if config.cka_batch > len(english):
            raise UserError(f"config.cka_batch={config.cka_batch}: {directory} has {len(english)} sentences; give less")
        parts.append(_parallel(texts, name, config.cka_batch))
    if config.mining:
        bitext = mining.read_bucc(config.mining, field="config.mining")
        parts.append(lambda encoder, at: mining.evaluate_mining(encoder.embedder, encoder.params, bitext, at.mining))
    if config.word_alignment:
        gold = word_alignment.read_gold(
            config.word_alignment,
            field="config.word_alignment",
            word_base=None if config.word_base == -1 else config.word_base,
            sentence_base=None if config.sentence_base == -1 else config.sentence_base,
        )

        def align(method: str) -> Part:
            return lambda encoder, at: word_alignment.evaluate_word_alignment(
                encoder.embedder, encoder.params, gold, at.layers, method=method
            )

        parts += map(align, entries(config.word_alignment_method))
    if config.dictionaries:
        dictionaries = read_dictionaries(
            config.dictionaries, field="config.dictionaries", max_words=config.dictionary_words or None
        )
        parts.append(
            lambda encoder, at: lexicon.evaluate_lexicon(
                encoder.embedder, encoder.params, dictionaries, [(at.main[0], "mean_without_special")]
            )
        )
    return parts


def _retrieval(sets: retrieval.Sets, task: str) -> Part:
    return lambda encoder, at: retrieval.evaluate_retrieval(
        encoder.embedder, encoder.params, sets, at.retrieval, task=task
    )


def _parallel(texts: similarity.Texts, name: str, batch: int) -> Part:
    """Retrieval and CKA on n-way text, from the same vectors."""
    pivot = similarity.PIVOT
    sets = {(pivot, x): (texts[pivot], text) for x, text in texts.items() if x != pivot}
    sentences = [sentence for text in texts.values() for sentence in text]

    def part(encoder: Encoder, at: Requests) -> list[Score]:
        pooling = "mean_without_special"
        requests = [*at.retrieval, *((layer, pooling) for layer in at.layers)]
        embedder = encoder.embedder
        if len(sentences) * len(requests) * encoder.config.hidden_size * 4 <= MEMORY:
            embedder = Remembered(embedder, encoder.params, sentences, requests)
        found = retrieval.evaluate_retrieval(embedder, encoder.params, sets, at.retrieval, task=name)
        return found + similarity.evaluate_similarity(
            embedder, encoder.params, texts, at.layers, batch=batch, measures=CKA, pooling=pooling, task=f"cka, {name}"
        )

    return part
