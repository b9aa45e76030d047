"""What ALIGN-MLM's experiment needs: its settings and those of its trainings, the vocabulary, the derived data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import config_dict

from ppa_jax import config as configs
from ppa_jax import storage
from ppa_jax.config import DTYPE, POSITIVE, SEED, Config, Limit, check, entries, one_of
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.data.vocabulary import train_wordpiece
from ppa_jax.errors import UserError
from ppa_jax.jobs import pretrain
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.model.families import FAMILIES
from ppa_jax.studies.align_mlm import derived_tasks
from ppa_jax.studies.align_mlm.derivation import CloneScript, Derivation, WordOrder, clone_vocabulary, is_special
from ppa_jax.studies.align_mlm.derived_tasks import ENGLISH
from ppa_jax.tasks.files import checksum
from ppa_jax.training.limits import parse_seeds

DERIVED = "xx"  # the derived language, whichever it is
MAY_CHANGE = (
    "objectives", "transformations", "seeds", "tasks", "data.order_from", "finetuning.seeds",
    *(f"pretraining.{field}" for field in pretrain.MAY_CHANGE),
    *(f"finetuning.{field}" for field in finetune_setup.MAY_CHANGE if field != "data.test_examples"),
)  # fmt: skip
# Settings of the two jobs that the experiment sets itself.
OWN = {
    "pretraining": ("init", "objective", "seed", "dtype", "plan", "data.pairs", "word_alignment.dictionaries",
                    "word_alignment.capitalised", "model.tokenizer", "mesh.distributed"),
    "finetuning": ("init", "align_first", "task", "dtype", "data.train", "data.test", "data.dev", "train.steps",
                   "train.epochs", "data.code_switch", "data.switch_rate", "mesh.distributed"),
}  # fmt: skip

PLACEHOLDER: dict[str, str] = dict.fromkeys((ENGLISH, DERIVED, f"{ENGLISH}-{DERIVED}"), "sample:0-9")  # for text
LIMITS = {
    "dtype": DTYPE,
    "data.dictionary_share": Limit(lambda x: 0 < x <= 1, "greater than 0, at most 1"),
    "data.seed": SEED,
}


class Vocabulary(NamedTuple):
    """A vocabulary and its clone: the clone of token i is token i + len(pieces)."""

    directory: Path  # of the tokenizer with both
    pieces: list[str]  # without the clones
    script: CloneScript
    split: derived_tasks.Split


def validate(config: Config) -> dict[str, Any]:
    """Checks the settings, including those of both jobs; returns the tasks that have files. Raises UserError."""
    for objective in entries(config.objectives):
        if objective not in pretrain.OBJECTIVES:
            raise UserError(f"config.objectives: {objective!r}: must be of {', '.join(pretrain.OBJECTIVES)}")
    for name in entries(config.transformations):
        if "trans" not in name.split("+"):
            raise UserError(
                f"config.transformations: {name!r}: write trans, trans+inv, trans+perm or trans+syn; without another "
                "script, a word and its clone are the same tokens, and there is nothing to align"
            )
        Derivation(name, script=CloneScript(""), order=WordOrder({}))  # checks the rest of the name
    for field in ("objectives", "transformations"):
        if not entries(config[field]):
            raise UserError(f"config.{field} is empty: give a comma-separated list")
    parse_seeds(config)
    if config.pretraining.model.vocabulary != "wordpiece":
        raise UserError("config.pretraining.model.vocabulary: only a WordPiece vocabulary can be cloned")
    for group, own in OWN.items():
        for field in (field for field in own if field in configs.fields(config[group])):
            raise UserError(f"config.{group}.{field}: the experiment sets it; leave it out")
    check(config, LIMITS)
    if not config.data.text:
        raise UserError("config.data.text is empty: give files of English text, or sample:0-20000")
    if "syn" in config.transformations and not config.data.order_from:
        raise UserError("config.data.order_from is empty: trans+syn takes the order of a treebank; give CoNLL-U files")
    tasks = {name: task for name, task in config.tasks.items() if task.train or task.test}
    for name, task in tasks.items():
        check(config, {f"tasks.{name}.task": one_of(*derived_tasks.TASKS), f"tasks.{name}.epochs": POSITIVE})
        for part in ("train", "test"):
            if not task[part]:
                raise UserError(f"config.tasks.{name}.{part} is empty, but the other part is not: give both or none")
    for objective in entries(config.objectives):
        with _fields_of("pretraining"):
            given = pretraining(config, objective, 0, PLACEHOLDER, "sample", "random")
            pretrain.check_new_model(given, pretrain.validate(given))
    for task in tasks.values():
        with _fields_of("finetuning"):
            given = finetuning(config, task, "random", "en=some", "en=some")
            finetune_setup.validate(given)
            finetune_setup.open_mesh(given)
            if given.data.max_length > (limit := FAMILIES[config.pretraining.model.family].Config.max_positions):
                raise UserError(f"config.data.max_length={given.data.max_length}: the model's positions end at {limit}")
    return tasks


@contextlib.contextmanager
def _fields_of(group: str) -> Iterator[None]:
    """Adds the group's name to the fields in error messages."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("config.", f"config.{group}.")) from None


def pretraining(
    config: Config, objective: str, seed: int, text: Mapping[str, str], dictionaries: str, tokenizer: str
) -> Config:
    """The configuration of a pretraining job; `text` has a source for each language and for the pair."""
    given: Any = config_dict.ConfigDict(config.pretraining.to_dict())  # unlike the group, not locked
    sources = {name: source for name, source in text.items() if "-" not in name or objective == "xlm"}
    given.update(objective=objective, seed=seed, init="", dtype=config.dtype, plan="")
    given.data.pairs = ",".join(f"{name}={source}" for name, source in sources.items())
    given.model.tokenizer = tokenizer
    given.word_alignment.capitalised = False  # tokens already have their case
    given.word_alignment.dictionaries = dictionaries if objective in ("dict_mlm", "align_mlm") else ""
    given.mesh.distributed = False
    return given


def finetuning(config: Config, task: Any, init: str, train: str, test: str) -> Config:
    """The configuration of a fine-tuning job."""
    given: Any = config_dict.ConfigDict(config.finetuning.to_dict())
    given.update(task=task.task, dtype=config.dtype, init=init, align_first="")
    given.data.update(train=train, test=test, dev="", code_switch="", switch_rate=0.0)
    given.train.update(epochs=task.epochs, steps=0)
    given.mesh.distributed = False
    return given


def learn_order(config: Config) -> tuple[WordOrder | None, int]:
    """The word order for `syn`, from rules or from a treebank, and its checksum."""
    if not config.data.order_from:
        return None, 0
    if config.data.order_from.endswith(".tsv"):
        order = WordOrder.read(storage.local(config.data.order_from), "config.data.order_from")
        return order, checksum(sorted(order.kinds.items()))
    read = derived_tasks.read_text(config.data.order_from, field="config.data.order_from")
    trees = [sentence.tree for sentence in read if sentence.tree is not None]
    if not trees:
        raise UserError(f"config.data.order_from={config.data.order_from}: no trees; give CoNLL-U files")
    order = WordOrder.learn(trees)
    if not order.kinds:
        raise UserError(
            f"config.data.order_from={config.data.order_from}: {len(trees)} trees are too few to learn an order: "
            "no kind of dependent is frequent enough; give a whole treebank"
        )
    logging.info("the order of %d kinds of dependents, from %d trees", len(order.kinds), len(trees))
    return order, checksum(trees)


def make_vocabulary(config: Config, text: Sequence[derived_tasks.Sentence], directory: Path) -> Vocabulary:
    """Trains a WordPiece vocabulary on the text, unless that is done, and clones it."""
    plain, both = directory / "plain", directory / "cloned"
    if not (plain / "tokenizer_config.json").exists():  # written last
        plain.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(sentence.words) for sentence in text)
        train_wordpiece(lines, config.pretraining.model.vocab_size, plain)
    script = clone_vocabulary(plain, both)
    pieces = (plain / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    split = derived_tasks.splitter(load_tokenizer(plain))
    return Vocabulary(both, pieces, script, functools.lru_cache(1 << 18)(split))


def write_data(
    directory: Path,
    text: Sequence[derived_tasks.Sentence],
    derivation: Derivation,
    vocabulary: Vocabulary,
    *,
    share: float,
    seed: int,
) -> None:
    """Writes en.txt and xx.txt, parallel by line, and dictionary/en-xx.tsv for a random share of the tokens."""
    lines = [derived_tasks.derive_text(sentence, derivation, vocabulary.split) for sentence in text]
    for language, side in zip((ENGLISH, DERIVED), zip(*lines, strict=True), strict=True):
        _write_if_changed(directory / f"{language}.txt", "".join(f"{line}\n" for line in side))
    pieces = [piece for piece in vocabulary.pieces if not is_special(piece)]
    chosen = np.random.default_rng(seed).permutation(len(pieces))[: max(1, round(share * len(pieces)))]
    known = [pieces[i] for i in sorted(chosen.tolist())]
    pairs = "".join(f"{piece}\t{vocabulary.script.piece(piece)}\n" for piece in known)
    _write_if_changed(dictionary_file(directory), pairs)


def dictionary_file(directory: Path) -> Path:
    """The dictionary of a derived language."""
    return directory / "dictionary" / f"{ENGLISH}-{DERIVED}.tsv"


def write_task(
    directory: Path,
    name: str,
    task: str,
    examples: dict[str, list[Any]],
    derivation: Derivation,
    split: derived_tasks.Split,
) -> int:
    """Writes NAME.PART.LANGUAGE for both parts and languages; returns the number of split entities."""
    split_entities = 0
    for part, found in examples.items():
        for language, how in ((ENGLISH, None), (DERIVED, derivation)):
            content, count = derived_tasks.examples_text(task, found, how, split)
            _write_if_changed(task_file(directory, name, task, part, language), content)
            split_entities += count
    return split_entities


def task_file(directory: Path, name: str, task: str, part: str, language: str) -> Path:
    """The file of a task's examples."""
    return directory / f"{name}.{part}.{language}{derived_tasks.TASKS[task].SUFFIX}"


def _write_if_changed(path: Path, content: str) -> None:
    """Leaves a file with the same content alone, so that what was prepared from it remains valid."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
