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
from ppa_jax.config import NOT_NEGATIVE, POSITIVE, SEED, Config, Limit, at_least, check, entries, one_of, training_steps
from ppa_jax.data import corpora, dictionaries, sample, sources
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.dictionaries import ENGLISH, Dictionary, WordPairs
from ppa_jax.data.schedule import VERSION, Schedule
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation import retrieval
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.evaluation.report import markdown
from ppa_jax.interop import hub, huggingface, sentence_transformers
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import plan
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.teacher import open_teacher, teacher_vectors
from ppa_jax.model.families import EncoderConfig
from ppa_jax.objectives import distillation
from ppa_jax.training import hosts, sharding
from ppa_jax.training.freezing import EMBEDDINGS, parse_freeze
from ppa_jax.training.limits import check_batch_size, check_training
from ppa_jax.training.workdir import claim

# Settings that may change when a run is resumed; with any other change the workdir is refused.
MAY_CHANGE = (
    "eval", "export", "checkpoint", "log", "profile", "mesh", "data.cache", "data.workers", "train.accumulate",
    "train.remat", "train.scan", "plan",
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
    "contrastive.objective": one_of("momentum", "ranking"),
    "contrastive.temperature": POSITIVE,
    "contrastive.margin": NOT_NEGATIVE,
    "contrastive.projection_dim": POSITIVE,
    "contrastive.layer": Limit(lambda n: n >= -1, "0 (the base's own), -1 (the last) or a layer from 1"),
    "contrastive.pooling": Limit(lambda name: name in ("", "cls", "mean"), "cls, mean or empty"),
    "distill.weight": POSITIVE,
    "distill.loss": one_of(*distillation.LOSSES),
    "rtl.weight": NOT_NEGATIVE,
    "tlm.weight": NOT_NEGATIVE,
    "tlm.dict_mlm": one_of("", "input", "label"),
}
CLEANING = (
    "min_pieces", "max_pair_pieces", "max_length", "max_characters", "skip_lines", "drop_identical", "drop_duplicates",
)  # fmt: skip


class Losses(NamedTuple):
    """The weight of each loss, and the form of TLM. `config.contrastive` is read only if its loss has a weight."""

    tlm: float = 0.0
    contrastive: float = 0.0
    distill: float = 0.0
    rtl: float = 0.0
    word_alignment: float = 0.0
    joint: bool = False  # both sentences in one TLM sequence
    language_embeddings: bool = False
    dict_mlm: str = ""


@dataclasses.dataclass
class Run:
    """What is open while the job runs."""

    config: Config
    losses: Losses
    workdir: epath.Path
    pretrained: Pretrained
    tokenizer: Tokenizer
    pairs: list[corpora.LanguagePair]
    batches: PairBatches
    mesh: Mesh
    method: Method
    vectors: sentence_transformers.Settings | None  # of the exported sentence vectors; None: none
    steps: int
    test_sets: dict[str, retrieval.Sets]  # by task: tatoeba, sample, pairs
    embedder: Embedder  # compiled once, for any parameters of these shapes
    dictionaries: list[Dictionary]  # for word alignment and DICT-MLM; empty without them
    words: WordPairs | None  # the dictionaries' entries as token ids, for word alignment
    translations: np.ndarray | None  # the translation of every token id, for DICT-MLM
    teacher: str  # what the vectors for distillation depend on; "" without
    selected: str = ""  # what export.select chose, in words


# ---- checks before anything is opened ----


def validate(config: Config) -> Losses:
    """Checks the settings of an alignment, and returns its losses. Raises UserError naming the field."""
    check_shared(config)
    check(config, LIMITS)
    tlm, contrast, words, distill = config.tlm, config.contrastive, config.word_alignment, config.distill
    if (words.weight or tlm.dict_mlm) and not words.dictionaries:
        raise UserError("config.word_alignment.dictionaries is empty: give a directory of files en-xx.tsv, or sample")
    if not (tlm.weight or contrast.weight or distill.teacher or config.rtl.weight):
        raise UserError("config.tlm.weight, contrastive.weight and rtl.weight are all 0: nothing to train")
    targets, pairs = entries(config.rtl.target), sources.parse_pairs(config.data.pairs)
    without = [str(source) for source in pairs if config.rtl.weight and not {*targets} & {*source.languages}]
    if without:
        raise UserError(
            f"config.rtl.target={config.rtl.target}: {without[0]} has no side in it; write the target of each pair, as "
            "en,de: the first that a pair has; or set rtl.weight=0"
        )
    if distill.teacher and contrast.weight and contrast.objective == "momentum" and not contrast.symmetric:
        raise UserError(
            "config.distill.teacher: the contrast has to read both sentences of a pair, too; set "
            "contrastive.objective=ranking, contrastive.symmetric=true or contrastive.weight=0"
        )
    ranking = contrast.weight and contrast.objective == "ranking"
    if ranking and contrast.symmetric:
        raise UserError(
            "config.contrastive.symmetric: ranking has both directions; leave it out, or set objective=momentum"
        )
    if ranking and config.train.batch_size == 1:
        raise UserError("config.train.batch_size=1: ranking is among the pairs of a batch; give 2 or more")
    texts = [str(source) for source in pairs if len(source.languages) == 1]
    if texts and (contrast.weight or config.rtl.weight or distill.teacher):
        raise UserError(
            f"config.data.pairs: {texts[0]}: text of one language has no translations to contrast; write lang1-lang2="
            "SOURCE for translations, or set config.contrastive.weight=0, rtl.weight=0 and no distill.teacher"
        )
    if selects(config) and not config.eval.pairs:
        raise UserError("config.export.select: needs eval.pairs, held-out pairs on which layer and pooling are chosen")
    if not config.init:
        if not config.pretrain.steps:
            raise UserError("config.init is empty: give a Hugging Face directory or name, or pretrain.steps")
        check(config, dict.fromkeys(("pretrain.steps", "pretrain.batch_size", "pretrain.learning_rate"), POSITIVE))
        new_model.validate(config)
    return Losses(
        tlm=tlm.weight,
        contrastive=contrast.weight,
        distill=distill.weight if distill.teacher else 0.0,
        rtl=config.rtl.weight,
        word_alignment=words.weight,
        joint=tlm.joint,
        language_embeddings=tlm.language_embeddings,
        dict_mlm=tlm.dict_mlm,
    )


def check_shared(config: Config) -> None:
    """Checks the settings that alignment and pretraining share. Raises UserError naming the field."""
    check_training(config)
    size = sample.size()
    limit = Limit(lambda n: 0 <= n <= size, f"at most {size}, the whole sample")
    check(config, SHARED_LIMITS | {"eval.sample": limit})
    if not config.data.pairs:
        raise UserError("config.data.pairs is empty: give sources, e.g. --config.data.pairs=en-de=train.tsv")


def check_new_model(config: Config, losses: Losses) -> None:
    """Checks what can be checked before a new model is written. Raises UserError.

    Call it when the processes are connected.
    """
    if config.plan:
        raise UserError("config.plan: give config.init; a new model has to be trained first")
    new_model.validate(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    for group in ("train", "pretrain"):
        if group in config:
            check_batch_size(config, f"{group}.batch_size", mesh)
    encoder = new_model.encoder_config(config, config.model.vocab_size, token_types(config, losses))
    check_sizes(config, losses, encoder)
    layer = config.contrastive.layer if losses.contrastive else -1
    frozen_modules(config, losses, encoder.num_layers, layer if layer > 0 else encoder.num_layers)
    read_test_sets(config)
    read_word_alignment(config, losses)
    if losses.distill:
        open_teacher(config, encoder.hidden_size)


def check_sizes(config: Config, losses: Losses, encoder: EncoderConfig) -> None:
    """Raises UserError unless the longest sequence fits model and rows, and the model has the layer and token types."""
    longest = longest_sequence(config, losses)
    if longest > encoder.max_length:
        raise UserError(
            f"config.data.max_length={config.data.max_length}: a sequence may have {longest} pieces, but the "
            f"model's maximum is {encoder.max_length}; lower data.max_length or data.max_pair_pieces"
        )
    longest = longest_row(config, losses)
    if 0 < (row := config.data.row_length) < longest:
        raise UserError(
            f"config.data.row_length={row}: the longest sequence has {longest} pieces; give 0 or at least that"
        )
    if losses.contrastive and (layer := config.contrastive.layer) > encoder.num_layers:
        raise UserError(f"config.contrastive.layer={layer}: the model has {encoder.num_layers} layers")
    languages = sources.languages_of(config.data.pairs) if losses.language_embeddings else ()
    if len(languages) > encoder.type_vocab_size:
        field = "objective=xlm" if "objective" in config else "tlm.language_embeddings"
        raise UserError(
            f"config.{field}: its token types are the languages ({', '.join(languages)}), but {encoder.model_type} has "
            f"{encoder.type_vocab_size} token types; give fewer languages, or train a new BERT"
        )


def frozen_modules(config: Config, losses: Losses, num_layers: int, layer: int) -> tuple[str, ...]:
    """The modules of the encoder that `train.freeze` names. `layer` is the last that the contrast reads.

    Raises UserError as `parse_freeze`, and if a loss would have nothing to train.
    """
    frozen = parse_freeze(config.train.freeze, num_layers)
    field = f"config.train.freeze={config.train.freeze}"
    if EMBEDDINGS in frozen and losses.word_alignment:
        raise UserError(f"{field}: word_alignment.weight trains the embeddings; leave them out, or set it to 0")
    blocks = num_layers if losses.tlm else layer
    if {EMBEDDINGS, *(f"layer_{i}" for i in range(blocks))} <= set(frozen):
        raise UserError(f"{field}: nothing is left to train of the encoder, whose blocks 0 to {blocks - 1} run")
    return frozen


def longest_sequence(config: Config, losses: Losses) -> int:
    """Length of the longest possible sequence: a TLM pair with three special tokens, or a sentence with two."""
    sentence = config.data.max_length
    if not losses.tlm or not losses.joint:
        return sentence
    return max(sentence, min(2 * (sentence - 2), config.data.max_pair_pieces) + 3)


def longest_row(config: Config, losses: Losses) -> int:
    """Length of the longest sequence of any loss: RTL's has a pair with one special token, whatever TLM has."""
    pair = min(2 * (config.data.max_length - 2), config.data.max_pair_pieces)
    return max(longest_sequence(config, losses), pair + 1 if losses.rtl else 0)


def token_types(config: Config, losses: Losses) -> int:
    """Token types that a new model needs: BERT's two, or one for each language."""
    return max(2, len(sources.languages_of(config.data.pairs))) if losses.language_embeddings else 2


def selects(config: Config) -> bool:
    """Whether layer and pooling of the export are chosen on eval.pairs."""
    return "export" in config and config.export.select


# ---- files ----


def read_test_sets(config: Config) -> dict[str, retrieval.Sets]:
    """The test sentences for retrieval, by task; empty if none are configured.

    Raises:
      UserError: a file of eval.tatoeba or eval.pairs cannot be used; data.pairs would train on the sentences of
        eval.sample or eval.pairs.
    """
    given, found = config.eval, {}
    if given.tatoeba:
        found["tatoeba"] = retrieval.read_tatoeba(given.tatoeba)
    if given.sample:
        first = sample.size() - given.sample
        check_held_out(config, f"sample={given.sample}", f"en-de=sample:{first}-{sample.size()}", f"sample:0-{first}")
        found["sample"] = retrieval.sample_sets(given.sample)
    if given.pairs:
        found["pairs"] = retrieval.read_pairs(given.pairs, field="config.eval.pairs")
        check_held_out(config, "pairs", given.pairs)
    return found


def check_held_out(config: Config, setting: str, spec: str, instead: str = "OTHER") -> None:
    """Raises UserError if a source of data.pairs has the text of one in `spec`; `instead` is what to write there."""
    held_out = sources.parse_pairs(spec)
    for source in sources.parse_pairs(config.data.pairs):
        if any(sources.overlap(source, other) for other in held_out):
            raise UserError(
                f"config.eval.{setting}: data.pairs trains on these sentences, too; "
                f"write {'-'.join(source.languages)}={instead}"
            )


def read_word_alignment(config: Config, losses: Losses) -> list[Dictionary]:
    """The dictionaries; empty if no loss uses them. Raises UserError like `read_dictionaries`."""
    given, field = config.word_alignment, "config.word_alignment.dictionaries"
    if not losses.word_alignment and not losses.dict_mlm:
        return []
    if given.dictionaries == "sample":
        others = [language for language in sample.LANGUAGES if language != ENGLISH]
        return [dictionaries.from_pairs(ENGLISH, x, sample.dictionary(ENGLISH, x)) for x in others]
    if given.dictionaries == "world":
        raise UserError(f"{field}=world: the built-in sample is named sample, not world; write sample")
    words = given.max_words or None
    found = dictionaries.read_dictionaries(given.dictionaries, field=field, max_words=words, pivot="")
    return [dictionaries.capitalised(x) for x in found] if given.capitalised else found


def open_pairs(config: Config, tokenizer: Tokenizer) -> list[corpora.LanguagePair]:
    """The corpora of `data`; those that are not in the cache are prepared first, which may take long."""
    cache = config.data.cache or storage.cache_directory()
    cleaning = {name: config.data[name] for name in CLEANING}
    return corpora.open_pairs(config.data.pairs, tokenizer, cache_dir=cache, **cleaning)


def connect(config: Config) -> None:
    """Connects the processes of a multi-host run. First it prepares the corpora: until then a signal ends the job."""
    if config.mesh.distributed and not jax.distributed.is_initialized():
        if config.init:
            open_pairs(config, load_tokenizer(sentence_transformers.encoder_directory(hub.resolve(config.init))))
        hosts.initialize()


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
    check_sizes(config, losses, pretrained.config)
    vectors = sentence_vectors(config, losses, base, pretrained.config)
    if vectors and vectors.dense:
        pretrained.params["dense"] = sentence_transformers.read_dense(base)
    if selects(config) and (vectors is None or vectors.dense):
        why = "its Dense module belongs to one layer and pooling" if vectors else "it has no sentence vectors"
        raise UserError(f"config.export.select: nothing to choose for this export: {why}; leave it out")
    method = make_method(config, losses, pretrained, tokenizer, vectors)
    warn_of_random_head(config, losses, pretrained)

    # ---- data ----
    words = read_word_alignment(config, losses)
    pairs = open_pairs(config, tokenizer)
    logging.info("corpora:\n%s", markdown.table(*corpora.sources_table(pairs)))
    teacher = add_teacher(config, pairs, pretrained, vectors) if losses.distill else ""
    data, lengths = config.data, [pair.lengths for pair in pairs]
    schedule = Schedule(lengths, config.train.batch_size, config.seed, data.temperature, data.shuffle_sides)
    batches = PairBatches(
        pairs,
        schedule,
        tokenizer,
        max_length=data.max_length,
        row_length=data.row_length or -(-longest_row(config, losses) // 64) * 64,
        mask_rate=config.tlm.mask_rate,
        contrast=method.pools,
        tlm=losses.tlm > 0,
        sides=method.sides,
        keys=method.has_keys,
        distill=losses.distill > 0,
        joint=losses.joint,
        rtl_targets=tuple(entries(config.rtl.target)) if losses.rtl else (),
        shards=mesh.size,
        accumulate=config.train.accumulate,
        own_shards=range(mesh.size) if config.plan else sharding.own_shards(mesh),
        languages=sources.languages_of(data.pairs) if losses.language_embeddings else None,
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
        embedder=Embedder(pretrained.config, tokenizer, max_length=data.max_length, mesh=mesh),
        dictionaries=words,
        words=dictionaries.word_pairs(words, tokenizer) if losses.word_alignment else None,
        translations=dictionaries.translations(words, tokenizer) if losses.dict_mlm else None,
        teacher=teacher,
    )

    # ---- workdir ----
    if not config.plan:
        claim_workdir(run, base)
        if jax.process_index() == 0:
            with storage.staged(workdir / "base") as staged:
                huggingface.save_base(staged, pretrained, files_from=directory)
                if vectors:
                    sentence_transformers.write_settings(staged, vectors)
    return run


def add_teacher(
    config: Config,
    pairs: list[corpora.LanguagePair],
    student: Pretrained,
    vectors: sentence_transformers.Settings | None,
) -> str:
    """Gives every pair its teacher's vector, computed once; returns what they depend on. Raises as `open_teacher`."""
    dense = student.params.get("dense") if vectors and vectors.dense else None
    teacher = open_teacher(config, len(dense["bias"]) if dense else student.config.hidden_size)
    for pair in pairs:
        if config.plan:
            pair.teacher = np.broadcast_to(np.float16(0), (len(pair), teacher.width))
        else:
            pair.teacher = teacher_vectors(teacher, pair, config.distill.language)
    return teacher.identity


def sentence_vectors(
    config: Config, losses: Losses, base: Path, encoder: EncoderConfig
) -> sentence_transformers.Settings | None:
    """How sentence vectors are computed, in training and in the export; None without such vectors.

    Uses the settings of the base if it is a SentenceTransformer, else [CLS] of the last layer; contrastive.layer and
    contrastive.pooling override them. None if the base has none and none are trained.

    Raises:
      UserError: vectors are to be trained, and the base has modules that the export cannot keep, or a shorter
        maximum length.
    """
    given = config.contrastive if losses.contrastive or losses.distill else None
    try:
        own = sentence_transformers.read_settings(base)
    except UserError as error:
        if given and not (given.layer and given.pooling):
            way_out = "to train the encoder without them, give config.contrastive.layer and config.contrastive.pooling"
            raise UserError(f"{error}; {way_out}") from error
        logging.warning("%s; the encoder alone is trained and exported", error)
        own = None
    if not given:
        return own
    length = config.data.max_length
    if own and length > own.max_length:
        raise UserError(
            f"config.data.max_length={length}: {config.init} truncates sentences at {own.max_length} pieces "
            f"(max_seq_length); give {own.max_length} or less"
        )
    own = own or sentence_transformers.Settings(encoder.num_layers, "cls", length)
    layer = encoder.num_layers if given.layer == -1 else given.layer
    return dataclasses.replace(own, layer=layer or own.layer, pooling=given.pooling or own.pooling)


def warn_of_random_head(config: Config, losses: Losses, pretrained: Pretrained) -> None:
    """Warns if TLM trains a randomly initialised head; docs/results/random_head.md shows the cost."""
    if losses.tlm and "mlm_head" in pretrained.initialised:
        advice = "with the contrastive loss this does no harm; config.tlm.weight=0 is faster and retrieves as well"
        if not losses.contrastive:
            advice = "without the contrastive loss this harms a good encoder; start from a checkpoint with a head"
            advice += ", or set config.contrastive.weight=1" if "contrastive" in config else ""
        logging.warning("%s has no masked-LM head: TLM trains a random one; %s", config.init, advice)


def make_method(
    config: Config,
    losses: Losses,
    pretrained: Pretrained,
    tokenizer: Tokenizer,
    vectors: sentence_transformers.Settings | None,
) -> Method:
    """The settings of the step, including those that depend on the model and the tokenizer."""
    contrast = config.contrastive.to_dict() if losses.contrastive else {}
    for name in ("weight", "layer", "pooling"):  # in `losses` and `vectors`
        contrast.pop(name, None)
    if contrast and "projection" in pretrained.params:
        has, size = pretrained.params["projection"]["output"]["bias"].shape[0], contrast["projection_dim"]
        if has != size:
            raise UserError(
                f"config.contrastive.projection_dim={size}: {config.init} has a projection of size {has}; set "
                f"{has}, or remove its projection.safetensors"
            )
    layers = pretrained.config.num_layers
    layer = vectors.layer if vectors else layers
    return Method(
        tlm_weight=losses.tlm,
        contrastive_weight=losses.contrastive,
        rtl_weight=losses.rtl,
        word_alignment_weight=losses.word_alignment,
        distill_weight=losses.distill,
        distill_loss=config.distill.loss if losses.distill else "",
        dict_mlm=losses.dict_mlm,
        **contrast,
        layer=layer,
        pooling=vectors.pooling if vectors else "cls",
        dense=vectors.dense if vectors else "",
        normalize=vectors.normalize if vectors else False,
        max_tlm_length=longest_sequence(config, losses),
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        frozen=frozen_modules(config, losses, layers, layer),
        remat=config.train.remat,
        scan=config.train.scan,
        dtype=jnp.dtype(config.dtype),
    )


def claim_workdir(run: Run, base: Path) -> None:
    """Claims the workdir for this run: its settings, and checksums of its model (a directory) and its data."""
    config, workdir = run.config, run.workdir
    content: dict[str, Any] = {
        "model": huggingface.digest(sentence_transformers.encoder_directory(base)),
        "tokenizer": run.tokenizer.fingerprint,
        "data": {pair.name: [len(pair), *pair.digests] for pair in run.pairs},
        "batches": VERSION,
        "vectors": run.vectors and dataclasses.asdict(run.vectors),
        "losses": run.losses._asdict(),
        "teacher": run.teacher,
    }
    dense = sentence_transformers.dense_directory(base)
    if dense and "dense" in run.pretrained.params:
        content["dense"] = huggingface.digest(dense)
    if given := run.dictionaries:
        content["dictionaries"] = {f"{x.source}-{x.target}": zlib.crc32(repr(x.entries).encode()) for x in given}
    described = config.to_dict() | {"content": content}
    init, here = storage.absolute(config.init), storage.absolute(workdir)
    if init.is_relative_to(here):  # a new model: the workdir may be moved
        described["init"] = str(init.relative_to(here))
    longer = (
        "the learning rate is scheduled for the whole run; for more steps, start a new run from the export of this "
        f"one: --workdir=NEW --config.init={workdir}/export"
    )
    claim(workdir, described, may_change=MAY_CHANGE, advice=dict.fromkeys(("train.steps", "train.epochs"), longer))
