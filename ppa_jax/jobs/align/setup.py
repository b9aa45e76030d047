"""Turns a configuration into what the step needs: checks the settings, opens the model and the corpora.

Every mistake of the user is reported here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from ppa_jax import storage
from ppa_jax.config import (
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Config,
    Limit,
    at_least,
    check,
    fields,
    one_of,
    training_steps,
)
from ppa_jax.data import corpora, sample, sources
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.dictionaries import (
    ENGLISH,
    Dictionary,
    WordPairs,
    capitalised,
    from_pairs,
    read_dictionaries,
    translations,
    word_pairs,
)
from ppa_jax.data.schedule import VERSION, Schedule
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation import retrieval
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.interop import hub, huggingface, sentence_transformers
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import method as align
from ppa_jax.jobs.align import plan
from ppa_jax.model.families import EncoderConfig
from ppa_jax.training import sharding
from ppa_jax.training.limits import check_training
from ppa_jax.training.workdir import claim

# Settings that may change when a run is resumed; with any other change the workdir is refused.
MAY_CHANGE = (
    "eval", "checkpoint", "log", "profile", "mesh", "data.cache", "data.workers", "train.accumulate", "train.remat",
    "train.scan", "plan",
)  # fmt: skip

SHARED_LIMITS = {  # of alignment and of pretraining
    "seed": SEED,
    "data.max_length": at_least(3, "a piece and two special tokens"),
    "data.min_pieces": NOT_NEGATIVE,
    "data.max_pair_pieces": POSITIVE,
    "data.max_characters": Limit(lambda n: 0 < n <= 10**9, "between 1 and 1,000,000,000"),
    "data.temperature": at_least(0.1, "1 keeps the proportions of the corpora"),
    "data.row_length": Limit(lambda n: n >= 0, "0 (chosen from the lengths) or a number of tokens"),
    "data.workers": NOT_NEGATIVE,
    "train.accumulate": Limit(lambda n: 0 < n <= 2**10, "greater than 0, at most 2**10"),
    "tlm.mask_rate": Limit(lambda x: 0 < x < 1, "between 0 and 1"),
    "word_alignment.weight": NOT_NEGATIVE,
    "word_alignment.max_words": NOT_NEGATIVE,
}
LIMITS = {
    "contrastive.weight": NOT_NEGATIVE,
    "contrastive.queue_size": Limit(lambda n: 0 < n < 2**31, "greater than 0, below 2**31"),
    "contrastive.momentum": Limit(lambda x: 0 <= x <= 1, "between 0 and 1"),
    "contrastive.temperature": POSITIVE,
    "contrastive.projection_dim": POSITIVE,
    "contrastive.layer": Limit(lambda n: n >= -1, "0 (the base's own), -1 (the last) or a layer from 1"),
    "contrastive.pooling": Limit(lambda name: name in ("", "cls", "mean"), "cls, mean or empty"),
    "tlm.weight": NOT_NEGATIVE,
    "tlm.dict_mlm": one_of("", "input", "label"),
}
CONTRAST = (
    "queue_size", "momentum", "temperature", "projection_dim", "mask_duplicates", "in_batch", "key_dropout",
)  # fmt: skip
CLEANING = (
    "min_pieces", "max_pair_pieces", "max_length", "max_characters", "skip_lines", "drop_identical", "drop_duplicates",
)  # fmt: skip


class Losses(NamedTuple):
    """What is trained: the weight of each loss, and the form of TLM. `config.contrastive` is read where it has one."""

    tlm: float = 0.0
    contrastive: float = 0.0
    word_alignment: float = 0.0
    joint: bool = False  # both sentences in one TLM sequence
    language_embeddings: bool = False
    dict_mlm: str = ""


@dataclasses.dataclass
class Run:
    """Everything that is open while the job runs."""

    config: Config
    losses: Losses
    workdir: epath.Path
    pretrained: Pretrained
    tokenizer: Tokenizer
    pairs: list[corpora.LanguagePair]
    batches: PairBatches
    mesh: Mesh
    method: align.Method
    vectors: dict[str, Any] | None  # how the export computes sentence vectors; None: it has none
    steps: int
    test_sets: retrieval.Sets
    embedder: Embedder  # of any parameters of this shape; compiled once
    dictionaries: list[Dictionary]  # for word alignment and DICT-MLM; empty without them
    words: WordPairs | None  # the dictionaries' entries as token ids, for word alignment
    translations: np.ndarray | None  # the translation of every token id, for DICT-MLM


# ---- checks before anything is opened ----


def validate(config: Config) -> Losses:
    """Checks the settings of an alignment, and returns its losses. Raises UserError naming the field."""
    check_shared(config)
    check(config, LIMITS)
    tlm, settings = config.tlm, config.contrastive
    if (config.word_alignment.weight or tlm.dict_mlm) and not config.word_alignment.dictionaries:
        raise UserError(
            "config.word_alignment.dictionaries is empty: give a directory with files en-xx.tsv, "
            "or word_alignment.weight=0 and no tlm.dict_mlm"
        )
    if not tlm.weight and not settings.weight:
        raise UserError("config.tlm.weight and config.contrastive.weight are both 0: nothing to train")
    alone = [str(source) for source in sources.parse_pairs(config.data.pairs) if len(source.languages) == 1]
    if alone and settings.weight:
        raise UserError(
            f"config.data.pairs: {alone[0]}: text of one language has no translations to contrast; for translations "
            "write lang1-lang2=SOURCE, else leave it out or set config.contrastive.weight=0"
        )
    if not config.init:
        if not config.pretrain.steps:
            raise UserError("config.init is empty: give a Hugging Face directory or name, or pretrain.steps")
        check(config, dict.fromkeys(("pretrain.steps", "pretrain.batch_size", "pretrain.learning_rate"), POSITIVE))
        new_model.validate(config)
    return Losses(
        tlm=tlm.weight,
        contrastive=settings.weight,
        word_alignment=config.word_alignment.weight,
        joint=tlm.joint,
        language_embeddings=tlm.language_embeddings,
        dict_mlm=tlm.dict_mlm,
    )


def check_shared(config: Config) -> None:
    """Checks the settings that alignment and pretraining share. Raises UserError naming the field."""
    check_training(config)
    size = sample.size()
    limit = Limit(lambda n: 0 <= n <= size, f"at most {size}, all of the sample")
    check(config, SHARED_LIMITS | {"eval.sample": limit})
    if not config.data.pairs:
        raise UserError("config.data.pairs is empty: give sources, e.g. --config.data.pairs=en-de=train.tsv")


def check_new_model(config: Config, losses: Losses, *batch_sizes: str) -> None:
    """Checks what can be known before a new model is made: sizes, lengths, dictionaries. Raises UserError.

    `batch_sizes` names further fields that are batch sizes. To be called when the processes are connected.
    """
    if config.plan:
        raise UserError("config.plan: give config.init; what a new model takes is not planned")
    new_model.validate(config)
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    for field in ("train.batch_size", *batch_sizes):
        check_batch_size(config, field, devices)
    check_lengths(config, losses, new_model.encoder_config(config, config.model.vocab_size))
    read_test_sets(config)
    read_word_alignment(config, losses)


def check_batch_size(config: Config, field: str, devices: Mesh) -> None:
    """Raises UserError, with a size that would do, unless the batch divides by the data shards and the accumulation."""
    size, shards, accumulate = fields(config)[field], devices.size, config.train.accumulate
    parts = shards * accumulate
    if size % parts:
        raise UserError(
            f"config.{field}={size}: must divide by mesh.data x train.accumulate = {shards} x {accumulate}; "
            f"the nearest that does is {parts * max(1, round(size / parts))}"
        )


def check_lengths(config: Config, losses: Losses, encoder: EncoderConfig) -> None:
    """Raises UserError unless the longest sequence fits the model and the rows, and the model has the layer."""
    longest = longest_sequence(config, losses)
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
    if losses.contrastive and config.contrastive.layer > encoder.num_layers:
        raise UserError(
            f"config.contrastive.layer={config.contrastive.layer}: the model has {encoder.num_layers} layers"
        )


def longest_sequence(config: Config, losses: Losses) -> int:
    """Tokens of the longest sequence there can be: a TLM pair with three special tokens, or a sentence with two."""
    sentence = config.data.max_length
    if not losses.tlm or not losses.joint:
        return sentence
    return max(sentence, min(2 * (sentence - 2), config.data.max_pair_pieces) + 3)


def token_types(config: Config, losses: Losses) -> int:
    """Token types that a new model needs: BERT's two, or one for each language."""
    return max(2, len(sources.languages_of(config.data.pairs))) if losses.language_embeddings else 2


# ---- files ----


def read_test_sets(config: Config) -> retrieval.Sets:
    """The test sentences for retrieval, by language; empty if none are configured.

    Raises:
      UserError: a file of eval.tatoeba cannot be used; data.pairs would train on the sentences of eval.sample.
    """
    if config.eval.tatoeba:
        return retrieval.read_tatoeba(config.eval.tatoeba)
    first = sample.size() - config.eval.sample
    for source in sources.parse_pairs(config.data.pairs) if config.eval.sample else []:
        if source.kind == "sample" and sources.identity(source)["stop"] > first:
            raise UserError(
                f"config.eval.sample={config.eval.sample}: data.pairs trains on these sentences, too; "
                f"write {'-'.join(source.languages)}=sample:0-{first}"
            )
    return retrieval.sample_sets(config.eval.sample) if config.eval.sample else {}


def read_word_alignment(config: Config, losses: Losses) -> list[Dictionary]:
    """The dictionaries; none where no loss uses them. Raises UserError as `read_dictionaries` does."""
    given = config.word_alignment
    if not losses.word_alignment and not losses.dict_mlm:
        return []
    if given.dictionaries == "sample":
        others = [language for language in sample.LANGUAGES if language != ENGLISH]
        tables = {language: sample.dictionary(ENGLISH, language) for language in others}
        return [from_pairs(ENGLISH, language, pairs) for language, pairs in tables.items()]
    field = "config.word_alignment.dictionaries"
    if given.dictionaries == "world":
        raise UserError(f"{field}=world: the built-in sample is named sample, not world; write sample")
    dictionaries = read_dictionaries(given.dictionaries, field=field, max_words=given.max_words or None, pivot="")
    return list(map(capitalised, dictionaries)) if given.capitalised else dictionaries


def open_pairs(config: Config, tokenizer: Tokenizer) -> list[corpora.LanguagePair]:
    """The corpora of `data`; prepares those that are not in the cache yet, which may take long."""
    return corpora.open_pairs(
        config.data.pairs,
        tokenizer,
        cache_dir=config.data.cache or storage.cache_directory(),
        **{name: config.data[name] for name in CLEANING},
    )


def prepare(config: Config) -> None:
    """Prepares the corpora before the processes are connected: until then a signal ends the job at once."""
    if not jax.distributed.is_initialized():
        open_pairs(config, load_tokenizer(sentence_transformers.encoder_directory(hub.resolve(config.init))))


def open_run(config: Config, losses: Losses, workdir: epath.Path) -> Run:
    """Opens the model, the tokenizer and the corpora, and checks that they fit each other and the workdir."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, plan.devices(config.plan) if config.plan else None)
    check_batch_size(config, "train.batch_size", mesh)
    test_sets = read_test_sets(config)

    # ---- model ----
    base = hub.resolve(config.init)
    directory = sentence_transformers.encoder_directory(base)
    tokenizer = load_tokenizer(directory)
    pretrained = huggingface.read(directory, seed=config.seed)
    check_vocabulary(tokenizer, pretrained.config.vocab_size)
    check_lengths(config, losses, pretrained.config)
    vectors = sentence_vectors(config, losses, base, pretrained.config)
    if vectors and vectors.get("dense"):
        pretrained.params["dense"] = sentence_transformers.read_dense(base)
    method = make_method(config, losses, pretrained, tokenizer, vectors)
    warn_of_random_head(config, losses, pretrained)

    # ---- data ----
    dictionaries = read_word_alignment(config, losses)
    pairs = open_pairs(config, tokenizer)
    logging.info("corpora:\n%s", corpora.describe(pairs))
    schedule = Schedule(
        [pair.lengths for pair in pairs],
        config.train.batch_size,
        config.seed,
        config.data.temperature,
        config.data.shuffle_sides,
    )
    batches = PairBatches(
        pairs,
        schedule,
        tokenizer,
        max_length=config.data.max_length,
        row_length=config.data.row_length or -(-longest_sequence(config, losses) // 64) * 64,
        mask_rate=config.tlm.mask_rate,
        contrast=losses.contrastive > 0,
        tlm=losses.tlm > 0,
        joint=losses.joint,
        shards=mesh.size,
        accumulate=config.train.accumulate,
        own_shards=range(mesh.size) if config.plan else sharding.own_shards(mesh),
        languages=language_list(config, pretrained.config) if losses.language_embeddings else None,
    )
    run = Run(
        config=config,
        losses=losses,
        workdir=workdir,
        pretrained=pretrained,
        tokenizer=tokenizer,
        pairs=pairs,
        batches=batches,
        mesh=mesh,
        method=method,
        vectors=vectors,
        steps=training_steps(config, schedule.pairs),
        test_sets=test_sets,
        embedder=Embedder(pretrained.config, tokenizer, max_length=config.data.max_length, mesh=mesh),
        dictionaries=dictionaries,
        words=word_pairs(dictionaries, tokenizer) if losses.word_alignment else None,
        translations=translations(dictionaries, tokenizer) if losses.dict_mlm else None,
    )

    # ---- workdir ----
    if not config.plan:
        claim_workdir(run, directory)
        if jax.process_index() == 0:
            with storage.staged(workdir / "base") as staged:
                huggingface.save_base(staged, pretrained, files_from=directory)
                if vectors:
                    sentence_transformers.write_settings(staged, **vectors)
    return run


def language_list(config: Config, encoder: EncoderConfig) -> tuple[str, ...]:
    """The languages in the order of their token types. Raises UserError for more languages than token types."""
    languages = sources.languages_of(config.data.pairs)
    needed_by = "objective=xlm" if "objective" in config else "tlm.language_embeddings"
    if len(languages) > encoder.type_vocab_size:
        raise UserError(
            f"config.data.pairs: {len(languages)} languages ({', '.join(languages)}), and the model has "
            f"{encoder.type_vocab_size} token types for {needed_by}; give fewer, or take a new model"
        )
    return languages


def sentence_vectors(config: Config, losses: Losses, base: Path, encoder: EncoderConfig) -> dict[str, Any] | None:
    """How sentence vectors are computed, in training and in the export; None if the base has none and none are trained.

    The settings of the base if it is a SentenceTransformer, else [CLS] of the last layer; contrastive.layer and
    contrastive.pooling replace either. The keys are those of `sentence_transformers.read_settings`.

    Raises:
      UserError: vectors are to be trained, and the base has modules that the export cannot keep, or a shorter
        maximum length.
    """
    given = config.contrastive if losses.contrastive else None
    try:
        own = sentence_transformers.read_settings(base)
    except UserError as error:
        if given and not (given.layer and given.pooling):
            raise UserError(
                f"{error}; to train the encoder without them, give config.contrastive.layer and "
                "config.contrastive.pooling"
            ) from error
        logging.warning("%s; the encoder alone is trained and exported", error)
        own = None
    if not given:
        return own
    if own and config.data.max_length > own["max_length"]:
        raise UserError(
            f"config.data.max_length={config.data.max_length}: {config.init} cuts sentences at {own['max_length']} "
            f"pieces (max_seq_length); give {own['max_length']} or less"
        )
    vectors = own or {"layer": encoder.num_layers, "pooling": "cls", "max_length": config.data.max_length}
    if given.layer:
        vectors["layer"] = encoder.num_layers if given.layer == -1 else given.layer
    if given.pooling:
        vectors["pooling"] = given.pooling
    return vectors


def warn_of_random_head(config: Config, losses: Losses, pretrained: Pretrained) -> None:
    """Warns where TLM trains a head from random weights; docs/results/random_head.md has what that costs."""
    if not losses.tlm or "mlm_head" not in pretrained.initialised:
        return
    if losses.contrastive:
        advice = "with the contrastive loss this does no harm; config.tlm.weight=0 is faster and retrieves as well"
    elif "contrastive" in config:
        advice = (
            "without the contrastive loss this harms a good encoder; set config.contrastive.weight=1, or give it one"
        )
    else:
        advice = "this harms a good encoder; give it one"
    logging.warning("%s has no masked-LM head: TLM trains a random one; %s", config.init, advice)


def make_method(
    config: Config, losses: Losses, pretrained: Pretrained, tokenizer: Tokenizer, vectors: dict[str, Any] | None
) -> align.Method:
    """The settings of the step, with what they need of the model and the tokenizer."""
    projection = pretrained.params.get("projection")
    contrast: dict[str, Any] = {}
    if losses.contrastive:
        contrast = {name: config.contrastive[name] for name in CONTRAST}
        size = config.contrastive.projection_dim
        if projection is not None and projection["output"]["bias"].shape[0] != size:
            raise UserError(
                f"config.contrastive.projection_dim={size}: {config.init} brings a projection of "
                f"{projection['output']['bias'].shape[0]}; set that, or remove its projection.safetensors"
            )
    return align.Method(
        tlm_weight=losses.tlm,
        contrastive_weight=losses.contrastive,
        word_alignment_weight=losses.word_alignment,
        dict_mlm=losses.dict_mlm,
        **contrast,
        layer=vectors["layer"] if vectors else pretrained.config.num_layers,
        pooling=vectors["pooling"] if vectors else "cls",
        dense=vectors.get("dense", "") if vectors else "",
        max_tlm_length=longest_sequence(config, losses),
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        remat=config.train.remat,
        scan=config.train.scan,
        dtype=jnp.dtype(config.dtype),
    )


def claim_workdir(run: Run, model: Path) -> None:
    """Claims the workdir for this run: its settings, and checksums of its model (a directory) and its data."""
    config, workdir = run.config, run.workdir
    content: dict[str, Any] = {
        "model": huggingface.digest(model),
        "tokenizer": run.tokenizer.fingerprint,
        "data": {pair.name: [len(pair), *pair.digests] for pair in run.pairs},
        "batches": VERSION,
        "vectors": run.vectors,
        "losses": run.losses._asdict(),
    }
    if given := run.dictionaries:
        content["dictionaries"] = {f"{x.source}-{x.target}": zlib.crc32(repr(x.entries).encode()) for x in given}
    described = config.to_dict() | {"content": content}
    init, here = storage.absolute(config.init), storage.absolute(workdir)
    if init.is_relative_to(here):  # a new model: the workdir may be moved
        described["init"] = str(init.relative_to(here))
    claim(workdir, described, may_change=MAY_CHANGE)
