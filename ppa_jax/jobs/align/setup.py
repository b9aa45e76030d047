"""What a run of the main job needs: settings checked, model and corpora opened, and all of it made to fit.

A mistake of the user shows here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
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
from ppa_jax.evaluation.comparison import main_place
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.interop import hub, huggingface, sentence_transformers
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import method as align
from ppa_jax.jobs.align import plan
from ppa_jax.model.bert import EncoderConfig
from ppa_jax.training import optimizer, sharding
from ppa_jax.training.limits import check_training
from ppa_jax.training.workdir import claim

# A workdir continues with other values of these; anything else would be another run.
MAY_CHANGE = (
    "eval", "checkpoint", "log", "profile", "mesh", "data.cache", "data.workers", "train.accumulate", "train.remat",
    "train.scan", "plan",
)  # fmt: skip

LIMITS = {
    "seed": SEED,
    "data.max_length": at_least(3, "a piece and two special tokens"),
    "data.min_pieces": NOT_NEGATIVE,
    "data.max_pair_pieces": POSITIVE,
    "data.max_characters": Limit(lambda n: 0 < n <= 10**9, "between 1 and 1,000,000,000"),
    "data.temperature": at_least(0.1, "1 keeps the proportions of the corpora"),
    "data.row_length": Limit(lambda n: n >= 0, "0 (chosen from the lengths) or a number of tokens"),
    "data.workers": NOT_NEGATIVE,
    "train.accumulate": Limit(lambda n: 0 < n <= 2**10, "greater than 0, at most 2**10"),
    "contrastive.weight": NOT_NEGATIVE,
    "contrastive.queue_size": Limit(lambda n: 0 < n < 2**31, "greater than 0, below 2**31"),
    "contrastive.momentum": Limit(lambda x: 0 <= x <= 1, "between 0 and 1"),
    "contrastive.temperature": POSITIVE,
    "contrastive.projection_dim": POSITIVE,
    "contrastive.layer": Limit(lambda n: n >= -1, "0 (the base's own), -1 (the last) or a layer from 1"),
    "contrastive.pooling": Limit(lambda name: name in ("", "cls", "mean"), "cls, mean or empty"),
    "tlm.weight": NOT_NEGATIVE,
    "tlm.mask_rate": Limit(lambda x: 0 < x < 1, "between 0 and 1"),
    "tlm.dict_mlm": one_of("", "input", "label"),
    "word_alignment.weight": NOT_NEGATIVE,
    "word_alignment.max_words": NOT_NEGATIVE,
}


def validate(config: Config) -> None:
    """Checks every field that has limits, before anything is opened. Raises UserError naming the field."""
    check_training(config)
    size = sample.size()
    check(config, LIMITS | {"eval.sample": Limit(lambda n: 0 <= n <= size, f"at most {size}, all of the sample")})
    if (config.word_alignment.weight or config.tlm.dict_mlm) and not config.word_alignment.dictionaries:
        raise UserError(
            "config.word_alignment.dictionaries is empty: give a directory with files en-xx.tsv, "
            "or word_alignment.weight=0 and no tlm.dict_mlm"
        )
    if not config.data.pairs:
        raise UserError("config.data.pairs is empty: give sources, e.g. --config.data.pairs=en-de=train.tsv")
    if not config.tlm.weight and not config.contrastive.weight:
        raise UserError("config.tlm.weight and config.contrastive.weight are both 0: nothing to train")
    alone = [str(source) for source in sources.parse_pairs(config.data.pairs) if len(source.languages) == 1]
    if alone and config.contrastive.weight:
        raise UserError(
            f"config.data.pairs: {alone[0]}: text of one language has no translations to contrast; for translations "
            "write lang1-lang2=SOURCE, else leave it out or set config.contrastive.weight=0"
        )
    if not config.init:
        if not config.pretrain.steps:
            raise UserError("config.init is empty: give a Hugging Face directory or name, or pretrain.steps")
        check(config, dict.fromkeys(("pretrain.steps", "pretrain.batch_size", "pretrain.learning_rate"), POSITIVE))
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
    vectors: dict[str, Any] | None  # how the export makes sentence vectors; None: it has none
    steps: int
    test_sets: retrieval.Sets
    dictionaries: list[Dictionary]  # for word alignment and DICT-MLM; empty without them

    @functools.cached_property
    def words(self) -> WordPairs | None:
        """The dictionaries as word pieces, for word alignment."""
        return word_pairs(self.dictionaries, self.tokenizer) if self.method.word_alignment_weight else None

    @functools.cached_property
    def translations(self) -> np.ndarray | None:
        """The translation of every piece, for DICT-MLM."""
        return translations(self.dictionaries, self.tokenizer) if self.method.dict_mlm else None

    @functools.cached_property
    def schedule(self) -> Any:
        """The learning rate of every step."""
        return optimizer.schedule(self.config.train.learning_rate, self.config.train.warmup, self.steps)

    @functools.cached_property
    def requests(self) -> list[tuple[int, str]]:
        """(layer, pooling) that are measured: [CLS] and mean at the trained layer, at two thirds and at the last."""
        last = self.pretrained.config.num_layers
        layers = sorted({self.method.layer, main_place(last)[0], last})
        return [(layer, pooling) for layer in layers for pooling in ("cls", "mean")]

    @functools.cached_property
    def embedder(self) -> Embedder:
        """Embeds sentences with any parameters of this shape; compiled once for the whole run."""
        return Embedder(self.pretrained.config, self.tokenizer, max_length=self.config.data.max_length, mesh=self.mesh)


def check_new_model(config: Config) -> None:
    """What can be known of the alignment before the new model is pretrained, which may take long."""
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    check_batch_size(config, "train.batch_size", devices)
    check_batch_size(config, "pretrain.batch_size", devices)
    check_lengths(config, new_model.encoder_config(config, config.model.vocab_size))
    read_test_sets(config)
    read_word_alignment(config)


def check_batch_size(config: Config, field: str, devices: Mesh) -> None:
    """Raises UserError, with a size that would do, unless the batch divides by the data shards and the accumulation."""
    size, shards, accumulate = fields(config)[field], devices.size, config.train.accumulate
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
    first = sample.size() - config.eval.sample
    for source in sources.parse_pairs(config.data.pairs) if config.eval.sample else []:
        if source.kind == "sample" and sources.identity(source)["stop"] > first:
            raise UserError(
                f"config.eval.sample={config.eval.sample}: data.pairs trains on these sentences, too; "
                f"write {'-'.join(source.languages)}=sample:0-{first}"
            )
    return retrieval.sample_sets(config.eval.sample) if config.eval.sample else {}


def read_word_alignment(config: Config) -> list[Dictionary]:
    """The dictionaries, none where nothing asks for them. Raises UserError as `read_dictionaries` does."""
    given = config.word_alignment
    if not given.weight and not config.tlm.dict_mlm:
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
    """The corpora of `data`, prepared if they are not in the cache yet, which may take long."""
    return corpora.open_pairs(
        config.data.pairs,
        tokenizer,
        cache_dir=config.data.cache or storage.cache_directory(),
        min_pieces=config.data.min_pieces,
        max_pair_pieces=config.data.max_pair_pieces,
        max_length=config.data.max_length,
        max_characters=config.data.max_characters,
        skip_lines=config.data.skip_lines,
        drop_identical=config.data.drop_identical,
        drop_duplicates=config.data.drop_duplicates,
    )


def prepare(config: Config) -> None:
    """Prepares the corpora that are not in the cache: before hosts are connected, as a signal ends it at once then."""
    if not jax.distributed.is_initialized():
        open_pairs(config, load_tokenizer(sentence_transformers.encoder_directory(hub.resolve(config.init))))


def open_run(config: Config, workdir: Path) -> Run:
    """Opens the model, the tokenizer and the corpora, and checks that they fit each other and the workdir."""
    planned = plan.devices(config.plan) if config.plan else None
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, planned)
    check_batch_size(config, "train.batch_size", devices)
    test_sets = read_test_sets(config)
    base = hub.resolve(config.init)
    directory = sentence_transformers.encoder_directory(base)
    tokenizer = load_tokenizer(directory)
    pretrained = huggingface.read(directory, seed=config.seed)
    check_vocabulary(tokenizer, pretrained.config.vocab_size)
    check_lengths(config, pretrained.config)
    vectors = sentence_vectors(config, base, pretrained.config)
    method = make_method(config, pretrained, tokenizer, vectors)
    warn_of_random_head(config, pretrained)
    dictionaries = read_word_alignment(config)

    pairs = open_pairs(config, tokenizer)
    logging.info("corpora:\n%s", corpora.describe(pairs))
    schedule = Schedule(
        [pair.lengths for pair in pairs],
        config.train.batch_size,
        config.seed,
        config.data.temperature,
        config.data.shuffle_sides,
    )
    steps = training_steps(config, schedule.pairs)
    shards = devices.size
    batches = PairBatches(
        pairs,
        schedule,
        tokenizer,
        max_length=config.data.max_length,
        row_length=config.data.row_length or -(-longest_sequence(config) // 64) * 64,
        mask_rate=config.tlm.mask_rate,
        contrast=config.contrastive.weight > 0,
        tlm=config.tlm.weight > 0,
        joint=config.tlm.joint,
        shards=shards,
        accumulate=config.train.accumulate,
        own_shards=range(shards) if config.plan else sharding.own_shards(devices),
        languages=language_list(config, pretrained.config) if config.tlm.language_embeddings else None,
    )
    run = Run(
        config, workdir, pretrained, tokenizer, pairs, batches, devices, method, vectors, steps, test_sets, dictionaries
    )
    _ = run.words, run.translations  # what they raise shows here
    if config.plan:
        return run
    claim_workdir(run, directory)
    if jax.process_index() == 0:
        huggingface.save_base(workdir / "base", pretrained, files_from=directory)
        if vectors:
            sentence_transformers.write_settings(workdir / "base", **vectors)
    return run


def language_list(config: Config, encoder: EncoderConfig) -> tuple[str, ...]:
    """The languages, each of which has a token type of the model. Raises UserError for more than the model has."""
    languages = sources.languages_of(config.data.pairs)
    needed_by = "objective=xlm" if "objective" in config else "tlm.language_embeddings"
    if len(languages) > encoder.type_vocab_size:
        raise UserError(
            f"config.data.pairs: {len(languages)} languages ({', '.join(languages)}), and the model has "
            f"{encoder.type_vocab_size} token types for {needed_by}; give fewer, or take a new model"
        )
    return languages


def longest_sequence(config: Config) -> int:
    """Tokens of the longest sequence there can be: a TLM pair with three special tokens, or a sentence with two."""
    sentence = config.data.max_length
    if not config.tlm.weight or not config.tlm.joint:
        return sentence
    return max(sentence, min(2 * (sentence - 2), config.data.max_pair_pieces) + 3)


def sentence_vectors(config: Config, base: Path, encoder: EncoderConfig) -> dict[str, Any] | None:
    """How sentences become vectors, in training and in the export; None where nothing says so and none are trained.

    As the base does it if it is a SentenceTransformer, else [CLS] of the last layer; contrastive.layer and
    contrastive.pooling change these two. The keys are those of `sentence_transformers.read_settings`.

    Raises:
      UserError: vectors are to be trained that the base makes in a way that cannot be kept, or from shorter sentences.
    """
    given = config.contrastive
    try:
        own = sentence_transformers.read_settings(base)
    except UserError as error:
        if given.weight and not (given.layer and given.pooling):
            raise UserError(
                f"{error}; to train the encoder without them, give config.contrastive.layer and "
                "config.contrastive.pooling"
            ) from error
        logging.warning("%s; the encoder alone is trained and exported", error)
        own = None
    if not given.weight:
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


def warn_of_random_head(config: Config, pretrained: Pretrained) -> None:
    """Warns where TLM trains a head from random weights, with what was measured of it (docs/results/random_head.md)."""
    if not config.tlm.weight or "mlm_head" not in pretrained.initialised:
        return
    if config.contrastive.weight:
        advice = "beside the contrast that does no harm; config.tlm.weight=0 is faster and retrieves about as well"
    else:
        advice = "without the contrast that spoils a good encoder; set config.contrastive.weight=1, or give its head"
    logging.warning("%s has no masked-LM head: TLM trains a random one; %s", config.init, advice)


def make_method(
    config: Config, pretrained: Pretrained, tokenizer: Tokenizer, vectors: dict[str, Any] | None
) -> align.Method:
    """The settings of the step, with what they need of the model and the tokenizer."""
    settings = config.contrastive
    projection = pretrained.params.get("projection")
    if settings.weight and projection is not None and projection["output"]["bias"].shape[0] != settings.projection_dim:
        raise UserError(
            f"config.contrastive.projection_dim={settings.projection_dim}: {config.init} brings a projection of "
            f"{projection['output']['bias'].shape[0]}; set that, or remove its projection.safetensors"
        )
    return align.Method(
        tlm_weight=config.tlm.weight,
        contrastive_weight=settings.weight,
        word_alignment_weight=config.word_alignment.weight,
        dict_mlm=config.tlm.dict_mlm,
        queue_size=settings.queue_size,
        momentum=settings.momentum,
        temperature=settings.temperature,
        projection_dim=settings.projection_dim,
        layer=vectors["layer"] if vectors else pretrained.config.num_layers,
        pooling=vectors["pooling"] if vectors else "cls",
        mask_duplicates=settings.mask_duplicates,
        in_batch=settings.in_batch,
        key_dropout=settings.key_dropout,
        max_tlm_length=longest_sequence(config),
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        remat=config.train.remat,
        scan=config.train.scan,
        dtype=jnp.dtype(config.dtype),
    )


def claim_workdir(run: Run, model: Path) -> None:
    """Claims the workdir for this run: its settings, and the content of its model and its data.

    `model` is the directory of the pretrained model.
    """
    config, workdir = run.config, run.workdir
    content: dict[str, Any] = {
        "model": huggingface.digest(model),
        "tokenizer": run.tokenizer.fingerprint,
        "data": {pair.name: [len(pair), *pair.digests] for pair in run.pairs},
        "batches": VERSION,
        "vectors": run.vectors,
    }
    if given := run.dictionaries:
        content["dictionaries"] = {f"{x.source}-{x.target}": zlib.crc32(repr(x.entries).encode()) for x in given}
    described = config.to_dict() | {"content": content}
    init = Path(config.init).absolute()
    if init.is_relative_to(workdir.absolute()):  # a new model: the workdir may be moved, or spelled otherwise
        described["init"] = str(init.relative_to(workdir.absolute()))
    claim(workdir, described, may_change=MAY_CHANGE)
