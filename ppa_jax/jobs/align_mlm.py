"""ALIGN-MLM's experiment (Tang et al. 2022): does alignment of word embeddings carry transfer to a derived language?

Every objective is pretrained on English and on a language derived from it (data/derived.py), each with several seeds;
how well the input embeddings of a piece and its clone lie together is measured; and each model is fine-tuned twice for
each task: on the derived language (BS, supervised) and on English (BZ, zero-shot), both tested on the derived language.

What it leaves in the workdir: vocabulary/, data/TRANSFORMATION/, models/TRANSFORMATION/OBJECTIVE-SEED/ (runs of the job
`pretrain`), finetuned/TRANSFORMATION/TASK-LANGUAGE/ (runs of `finetune`), scores.json, report.md with its pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import config_dict

from ppa_jax import config as configs
from ppa_jax.config import Config, require
from ppa_jax.data.derived import CloneScript, Derivation, WordOrder, clone_vocabulary, is_special
from ppa_jax.data.dictionaries import from_pairs, write_dictionary
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.evaluation import derived_report, neighbours, report
from ppa_jax.interop import huggingface
from ppa_jax.jobs import align_inputs, finetune_inputs, finetune_run, new_model, pretrain
from ppa_jax.model.bert import EncoderConfig
from ppa_jax.tasks import derive
from ppa_jax.tasks.derive import ENGLISH
from ppa_jax.training import identity

DERIVED = "xx"  # the derived language, whichever it is
MAY_CHANGE = (
    "objectives", "transformations", "seeds", "tasks", "finetuning.seeds",
    *(f"pretraining.{field}" for field in align_inputs.MAY_CHANGE),
    *(f"finetuning.{field}" for field in finetune_inputs.MAY_CHANGE),
)  # fmt: skip
# What the experiment sets itself, in each group.
OWN = {
    "pretraining": ("init", "objective", "seed", "dtype", "plan", "data.pairs", "word_alignment.dictionaries",
                    "model.tokenizer", "mesh.distributed"),
    "finetuning": ("init", "align_first", "task", "dtype", "data.train", "data.test", "data.dev", "train.steps",
                   "train.epochs", "data.code_switch", "mesh.distributed"),
}  # fmt: skip
Records = list[dict[str, Any]]


class Vocabulary(NamedTuple):
    """A vocabulary and its clone: piece i is cloned to piece i + size."""

    directory: Path  # of the tokenizer that has both
    pieces: list[str]  # the plain ones
    script: CloneScript
    split: derive.Split


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    tasks = validate(config)
    directory = Path(workdir)
    text = derive.read_text(config.data.text, field="config.data.text")
    examples = {
        name: {part: derive.read_examples(task.task, task[part], field=f"config.tasks.{name}.{part}")
               for part in ("train", "test")}
        for name, task in tasks.items()
    }  # fmt: skip
    order, trees = learn_order(config)
    if "syn" in config.transformations and not all(sentence.tree for sentence in text):
        raise UserError("config.data.text: trans+syn needs trees, and a text has none; give CoNLL-U files alone")
    described = config.to_dict() | {"content": {"text": finetune_inputs.checksum(text), "order_from": trees}}
    if not identity.check_identity(directory, described, may_change=MAY_CHANGE):
        identity.write_identity(directory, described)
    vocabulary = make_vocabulary(config, text, directory / "vocabulary")
    records: Records = []
    for name in names(config.transformations):
        derivation = Derivation(name, script=vocabulary.script, order=order, seed=config.data.seed)
        data = directory / "data" / name
        write_data(data, text, derivation, vocabulary, share=config.data.dictionary_share, seed=config.data.seed)
        models = {}
        for objective in names(config.objectives):
            for seed in finetune_inputs.seeds(config):
                model = directory / "models" / name / f"{objective}-{seed}"
                if status := pretrain_once(config, objective, seed, data, vocabulary, model):
                    return status
                models[f"{objective}-{seed}"] = model
                found = alignment(model / "export", vocabulary, data)
                records += [_record(name, objective, seed, "", *score) for score in found]
                _write_scores(directory, records)
        for task in tasks:
            given = examples[task]
            if "syn" in name.split("+") and not all(x.tree for part in given.values() for x in part):
                logging.warning("%s: %s has no trees, and is left out", name, task)
                continue
            torn = write_task(data, task, tasks[task].task, given, derivation, vocabulary.split)
            found = transfer(config, task, data, models, directory / "finetuned" / name / task, given)
            if isinstance(found, int):
                return found
            records += [_record(name, *model.rsplit("-", 1), task, *score) for model, *score in found]
            logging.info("%s, %s: %d entities torn apart by the order of words", name, task, torn)
            _write_scores(directory, records)
        path, table = write_report(config, directory, records, text, vocabulary)
    print(f"\n{table}\n\nreport: {path}")
    return 0


def write_report(
    config: Config, directory: Path, records: Records, text: Sequence[derive.Sentence], vocabulary: Vocabulary
) -> tuple[Path, str]:
    """Of all that is measured so far."""
    measured = {record["transformation"] for record in records}
    curves = {
        name: {objective: directory / "models" / name / f"{objective}-{finetune_inputs.seeds(config)[0]}"
               for objective in names(config.objectives)}
        for name in names(config.transformations) if name in measured
    }  # fmt: skip
    return derived_report.write(directory, records, facts=facts(config, text, vocabulary), curves=curves)


def names(spec: str) -> list[str]:
    """The entries of a comma-separated list."""
    return list(dict.fromkeys(filter(None, map(str.strip, spec.split(",")))))


def validate(config: Config) -> dict[str, Any]:
    """The tasks that have files, by name. Raises UserError naming the field."""
    for objective in names(config.objectives):
        if objective not in pretrain.OBJECTIVES:
            raise UserError(f"config.objectives: {objective!r}: must be of {', '.join(pretrain.OBJECTIVES)}")
    for name in names(config.transformations):
        if "trans" not in name.split("+"):
            raise UserError(
                f"config.transformations: {name!r}: write trans, trans+inv, trans+perm or trans+syn; without another "
                "script a word and its clone are one piece, and there is nothing to align"
            )
        Derivation(name, script=CloneScript(""), order=WordOrder({}))  # whatever else is wrong with its name
    for field in ("objectives", "transformations"):
        if not names(config[field]):
            raise UserError(f"config.{field} is empty: give a list with commas")
    finetune_inputs.seeds(config)
    if config.pretraining.model.vocabulary != "wordpiece":
        raise UserError("config.pretraining.model.vocabulary: a WordPiece vocabulary is trained and cloned, no other")
    for group, own in OWN.items():
        given = configs.fields(config[group])
        for field in own:
            if field in given:
                raise UserError(f"config.{group}.{field}: the experiment sets it; leave it out")
    require(config, "data.dictionary_share", lambda x: 0 < x <= 1, "greater than 0, at most 1")
    if not config.data.text:
        raise UserError("config.data.text is empty: give files of English text, or world:0-20000")
    tasks = {name: task for name, task in config.tasks.items() if task.train or task.test}
    for name, task in tasks.items():
        if task.task not in derive.TASKS:
            raise UserError(f"config.tasks.{name}.task={task.task}: must be one of {', '.join(derive.TASKS)}")
        for part in ("train", "test"):
            if not task[part]:
                raise UserError(f"config.tasks.{name}.{part} is empty, and the other part is not: give both or none")
    if "syn" in config.transformations and not config.data.order_from:
        raise UserError("config.data.order_from is empty: trans+syn takes the order of a treebank; give CoNLL-U files")
    validate_trainings(config, tasks)
    return tasks


def validate_trainings(config: Config, tasks: Mapping[str, Any]) -> None:
    """Checks the settings of both groups as their jobs will, before anything is trained."""
    some = {ENGLISH: "world:0-9", DERIVED: "world:0-9", f"{ENGLISH}-{DERIVED}": "world:0-9"}
    for objective in names(config.objectives):
        with _told("pretraining"):
            given = pretrain.by_objective(pretraining(config, objective, 0, some, "world", "random"))
            given.init = "random"  # as pretrain.run does
            align_inputs.validate(given)
            new_model.validate(given)
            align_inputs.check_lengths(given, new_model.encoder_config(given, given.model.vocab_size))
    for task in tasks.values():
        with _told("finetuning"):
            given = finetuning(config, task, "random", "en=some", "en=some")
            finetune_inputs.validate(given)
            if given.data.max_length > (limit := EncoderConfig.max_positions):
                raise UserError(f"config.data.max_length={given.data.max_length}: the model's positions end at {limit}")


@contextlib.contextmanager
def _told(group: str) -> Iterator[None]:
    """Names the group in what goes wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("config.", f"config.{group}.")) from None


def pretraining(
    config: Config, objective: str, seed: int, text: Mapping[str, str], dictionaries: str, tokenizer: str
) -> Config:
    """The settings of a pretraining; `text` is the source of each language, and of the two together."""
    given = _copy(config.pretraining)
    sources = {name: source for name, source in text.items() if "-" not in name or objective == "xlm"}
    given.update(objective=objective, seed=seed, init="", dtype=config.dtype, plan="")
    given.data.pairs = ",".join(f"{name}={source}" for name, source in sources.items())
    given.model.tokenizer, given.word_alignment.dictionaries = tokenizer, dictionaries
    given.mesh.distributed = False
    return given


def finetuning(config: Config, task: Any, init: str, train: str, test: str) -> Config:
    """The settings of a fine-tuning."""
    given = _copy(config.finetuning)
    given.update(task=task.task, dtype=config.dtype, init=init, align_first="")
    given.data.update(train=train, test=test, dev="", code_switch="")
    given.train.update(epochs=task.epochs, steps=0)
    given.mesh.distributed = False
    return given


def _copy(group: Any) -> Any:
    """Open to further fields, as the group is not."""
    return config_dict.ConfigDict(group.to_dict())


def learn_order(config: Config) -> tuple[WordOrder | None, int]:
    """The word order of the treebank, for `syn`, and its checksum."""
    if not config.data.order_from:
        return None, 0
    read = derive.read_text(config.data.order_from, field="config.data.order_from")
    trees = [sentence.tree for sentence in read if sentence.tree is not None]
    if not trees:
        raise UserError(f"config.data.order_from={config.data.order_from}: no trees; give CoNLL-U files")
    return WordOrder.learn(trees), finetune_inputs.checksum(trees)


def make_vocabulary(config: Config, text: Sequence[derive.Sentence], directory: Path) -> Vocabulary:
    """Trains a WordPiece vocabulary on the text, once, and clones it."""
    plain, both = directory / "plain", directory / "cloned"
    if not (plain / "tokenizer_config.json").exists():  # written last
        plain.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(sentence.words) for sentence in text)
        new_model.train_wordpiece(lines, config.pretraining.model.vocab_size, plain)
    script = clone_vocabulary(plain, both)
    pieces = (plain / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    split = derive.splitter(load_tokenizer(plain))
    return Vocabulary(both, pieces, script, functools.lru_cache(1 << 18)(split))


def write_data(
    directory: Path,
    text: Sequence[derive.Sentence],
    derivation: Derivation,
    vocabulary: Vocabulary,
    *,
    share: float,
    seed: int,
) -> None:
    """Writes en.txt and xx.txt, line by line translations, and dictionary/en-xx.tsv of a random share of the pieces."""
    lines = [derive.derive_text(sentence, derivation, vocabulary.split) for sentence in text]
    for language, side in zip((ENGLISH, DERIVED), zip(*lines, strict=True), strict=True):
        _write_if_changed(directory / f"{language}.txt", "".join(f"{line}\n" for line in side))
    pieces = [piece for piece in vocabulary.pieces if not is_special(piece)]
    chosen = np.random.default_rng(seed).permutation(len(pieces))[: round(share * len(pieces))]
    clone = {piece: _clone(piece, vocabulary.script) for piece in pieces}
    known = [pieces[i] for i in sorted(chosen.tolist())]
    beside = directory / "dictionary.tsv.new"
    write_dictionary(beside, from_pairs(ENGLISH, DERIVED, [(piece, clone[piece]) for piece in known]))
    _write_if_changed(dictionary_file(directory), beside.read_text(encoding="utf-8"))
    beside.unlink()


def _clone(piece: str, script: CloneScript) -> str:
    start = "##" if piece.startswith("##") and len(piece) > 2 else ""
    return start + script.word(piece.removeprefix(start))


def dictionary_file(directory: Path) -> Path:
    """Of the data of a transformation."""
    return directory / "dictionary" / f"{ENGLISH}-{DERIVED}.tsv"


def write_task(
    directory: Path, name: str, task: str, examples: dict[str, list[Any]], derivation: Derivation, split: derive.Split
) -> int:
    """Writes NAME.PART.LANGUAGE for both parts and both languages; returns the number of entities torn."""
    torn = 0
    for part, found in examples.items():
        for language, how in ((ENGLISH, None), (DERIVED, derivation)):
            path = task_file(directory, name, task, part, language)
            beside = path.with_suffix(".new")
            torn += derive.write_examples(beside, task, found, how, split)
            _write_if_changed(path, beside.read_text(encoding="utf-8"))
            beside.unlink()
    return torn


def task_file(directory: Path, name: str, task: str, part: str, language: str) -> Path:
    """Of a task's examples."""
    return directory / f"{name}.{part}.{language}{derive.TASKS[task].SUFFIX}"


def _write_if_changed(path: Path, content: str) -> None:
    """Leaves a file that says the same alone: what was prepared from it stays valid."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def pretrain_once(
    config: Config, objective: str, seed: int, data: Path, vocabulary: Vocabulary, directory: Path
) -> int:
    """Pretrains one model, unless that is done; returns the exit status."""
    if (directory / "report.md").exists():  # written last
        return 0
    text = {language: str(data / f"{language}.txt") for language in (ENGLISH, DERIVED)}
    text[f"{ENGLISH}-{DERIVED}"] = "|".join(text.values())
    given = pretraining(config, objective, seed, text, str(dictionary_file(data)), str(vocabulary.directory))
    given.data.cache = given.data.cache or str(data / "corpora")
    logging.info("pretraining: %s, seed %d, %s", objective, seed, data.name)
    if status := pretrain.run(given, str(directory)):
        return status
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # several times as large as the model
    return 0


def to_finetune(model: Path) -> Path:
    """The model that is fine-tuned: the export, in which the languages have one token type.

    XLM learns a token type for each language, and no task says which language a token is of. Both become their mean, so
    that xx is not read as English, which none of the other objectives would suffer.
    """
    export, neutral = model / "export", model / "export_neutral"
    pretrained = huggingface.read(export)
    embeddings = pretrained.params["encoder"]["embeddings"]
    types = np.asarray(embeddings["token_type_embeddings"]["embedding"])
    if not model.name.startswith("xlm-"):
        return export
    if not neutral.exists():
        mean = {"embedding": np.broadcast_to(types.mean(axis=0), types.shape).copy()}
        encoder = pretrained.params["encoder"] | {"embeddings": embeddings | {"token_type_embeddings": mean}}
        unfinished = neutral.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        changed = dataclasses.replace(pretrained, params=pretrained.params | {"encoder": encoder})
        huggingface.write(unfinished, changed, files_from=export)
        unfinished.rename(neutral)
    return neutral


def alignment(model: Path, vocabulary: Vocabulary, data: Path) -> list[tuple[str, float, int]]:
    """(metric, percent, pieces): how often the clone is nearest to its piece among all clones, by input embeddings.

    `alignment` is the paper's measure, over all pieces; `alignment_unseen` is over those that the dictionary has not,
    whatever the objective made of it.
    """
    table = np.asarray(huggingface.read(model).params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    V = len(vocabulary.pieces)
    rows = np.array([i for i, piece in enumerate(vocabulary.pieces) if not is_special(piece)])
    hits = neighbours.nearest(table[rows], table[V + rows]) == np.arange(len(rows))
    with dictionary_file(data).open(encoding="utf-8") as lines:
        known = {line.partition("\t")[0] for line in lines}
    unseen = np.array([vocabulary.pieces[i] not in known for i in rows])
    found = [("alignment", 100 * float(hits.mean()), len(rows))]
    if unseen.any():
        found.append(("alignment_unseen", 100 * float(hits[unseen].mean()), int(unseen.sum())))
    return found


def transfer(
    config: Config,
    name: str,
    data: Path,
    models: Mapping[str, Path],
    directory: Path,
    examples: Mapping[str, list[Any]],
) -> list[tuple[str, str, float, int]] | int:
    """(model, metric, percent, items): en, BS, BZ and delta of every model; or an exit status that is not 0.

    The mean over the seeds of fine-tuning. What is fine-tuned is not kept: scores.json has it.
    """
    task = config.tasks[name]
    content = {part: finetune_inputs.checksum(found) for part, found in examples.items()}
    described = {"task": task.to_dict(), "finetuning": config.finetuning.to_dict(), "content": content}
    may_change = (
        "task.train",
        "task.test",
        "finetuning.seeds",
        *(f"finetuning.{x}" for x in finetune_inputs.MAY_CHANGE),
    )
    if not identity.check_identity(directory, described, may_change=may_change):
        identity.write_identity(directory, described)
    path = directory / "scores.json"
    records: Records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for source, tests in ((ENGLISH, (ENGLISH, DERIVED)), (DERIVED, (DERIVED,))):
        for seed in finetune_inputs.seeds(config.finetuning):
            done = {r["model"] for r in records if (r["source"], r["seed"]) == (source, seed)}
            init = ",".join(f"{x}={to_finetune(model)}" for x, model in models.items() if x not in done)
            if not init:
                continue
            train = f"{source}={task_file(data, name, task.task, 'train', source)}"
            test = ",".join(f"{x}={task_file(data, name, task.task, 'test', x)}" for x in tests)
            given = finetuning(config, task, init, train, test)
            given.seeds = str(seed)
            workdir = directory / f"{source}-{seed}"
            if status := finetune_run.run(given, str(workdir)):
                return status
            found = json.loads((workdir / "scores.json").read_text(encoding="utf-8"))
            records += [{"source": source} | r for r in found]
            report.write_records(path, records)
            for spent in workdir.glob("**/seed-*"):
                for part in ("trained", "export"):
                    shutil.rmtree(spent / part, ignore_errors=True)
    values: dict[tuple[str, str], list[float]] = {}
    counts: dict[str, int] = {}
    seeds = finetune_inputs.seeds(config.finetuning)
    for r in records:
        if r["metric"] == records[0]["metric"] and r["seed"] in seeds:
            kind = {(ENGLISH, ENGLISH): "en", (ENGLISH, DERIVED): "BZ"}.get((r["source"], r["language"]), "BS")
            values.setdefault((r["model"], kind), []).append(r["value"])
            counts[kind] = r["count"]
    measured = []
    for model in models:
        mean = {kind: float(np.mean(values[model, kind])) for kind in ("en", "BS", "BZ")}
        measured += [(model, kind, value, counts[kind]) for kind, value in mean.items()]
        measured.append((model, "delta", mean["BS"] - mean["BZ"], counts["BZ"]))
    return measured


def _record(transformation: str, objective: str, seed: Any, task: str, metric: str, value: float, count: int) -> Any:
    return {"transformation": transformation, "objective": objective, "seed": int(seed), "task": task,
            "metric": metric, "value": round(value, 4), "count": count}  # fmt: skip


def _write_scores(directory: Path, records: Records) -> None:
    report.write_records(directory / "scores.json", records)


def facts(config: Config, text: Sequence[derive.Sentence], vocabulary: Vocabulary) -> dict[str, str]:
    """For the report."""
    pretraining, finetuning = config.pretraining, config.finetuning
    model, train = pretraining.model, pretraining.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    return {
        "text": f"{config.data.text}: {len(text):,} sentences, {sum(len(x.words) for x in text):,} words",
        "vocabulary": f"{len(vocabulary.pieces):,} word pieces and as many clones",
        "dictionary": f"a random {config.data.dictionary_share:.0%} of the pieces with their clones",
        "model": f"{model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads",
        "pretraining": f"{length} of {2 * train.batch_size} sentences, learning rate {train.learning_rate:g}, "
        f"word alignment x {pretraining.word_alignment.weight:g}; seeds {config.seeds}",
        "fine-tuning": f"batches of {finetuning.train.batch_size}, learning rate {finetuning.train.learning_rate:g}, "
        f"seeds {finetuning.seeds}; "
        + ", ".join(f"{name} {task.epochs:g} epochs" for name, task in config.tasks.items() if task.train),
        "computed in": config.dtype,
    }
