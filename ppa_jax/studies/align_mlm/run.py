"""ALIGN-MLM's experiment (Tang et al. 2022): do aligned word embeddings improve transfer to a derived language?

Each objective is pretrained on English and on a language derived from it (derivation.py), with several seeds. The study
measures how well the input embeddings of tokens and their clones are aligned, and fine-tunes each model twice per task:
on the derived language (BS, supervised) and on English (BZ, zero-shot), both tested on the derived language.

The workdir then has vocabulary/, data/TRANSFORMATION/, models/TRANSFORMATION/OBJECTIVE-SEED/ (runs of the job
`pretrain`), finetuned/TRANSFORMATION/TASK/LANGUAGE-SEED/ (runs of `finetune`), scores.json, report.md and its plots.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from scipy.linalg import orthogonal_procrustes

from ppa_jax import storage
from ppa_jax.config import Config, entries
from ppa_jax.errors import UserError
from ppa_jax.evaluation import neighbours
from ppa_jax.evaluation.scores import read_records, write_records
from ppa_jax.interop import huggingface
from ppa_jax.jobs import pretrain
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.studies.align_mlm import derived_tasks, report
from ppa_jax.studies.align_mlm import setup as align_mlm_setup
from ppa_jax.studies.align_mlm.derivation import Derivation, is_special
from ppa_jax.studies.align_mlm.derived_tasks import ENGLISH
from ppa_jax.studies.align_mlm.setup import DERIVED, MAY_CHANGE, Vocabulary, dictionary_file, task_file
from ppa_jax.tasks.files import checksum
from ppa_jax.training import checkpoint
from ppa_jax.training.limits import parse_seeds
from ppa_jax.training.metrics import Sweep
from ppa_jax.training.workdir import atomic, claim

Records = list[dict[str, Any]]


def run(config: Config, workdir: str) -> None:
    """Runs the study."""
    # ---- settings and data ----
    tasks = align_mlm_setup.validate(config)
    directory = storage.on_disk(workdir, "--workdir=")
    text = derived_tasks.read_text(config.data.text, field="config.data.text")
    examples = {
        name: {part: derived_tasks.read_examples(task.task, task[part], field=f"config.tasks.{name}.{part}")
               for part in ("train", "test")}
        for name, task in tasks.items()
    }  # fmt: skip
    order, order_content = align_mlm_setup.learn_order(config)
    if "syn" in config.transformations and not all(sentence.tree for sentence in text):
        raise UserError("config.data.text: trans+syn needs trees, but a text has none; give only CoNLL-U files")
    claim(directory, config.to_dict() | {"content": {"text": checksum(text)}}, may_change=MAY_CHANGE)
    vocabulary = align_mlm_setup.make_vocabulary(config, text, directory / "vocabulary")
    records = read_records(directory / "scores.json")  # of this and earlier commands

    transformations, objectives = entries(config.transformations), entries(config.objectives)
    seeds = parse_seeds(config)
    sweep = Sweep(len(transformations) * len(objectives) * len(seeds))
    for name in transformations:
        # ---- the derived language ----
        derivation = Derivation(name, script=vocabulary.script, order=order, seed=config.data.seed)
        data = directory / "data" / name
        if "syn" in name.split("+"):  # an order may be added to a run later, but not changed
            order_from = {"data": {"order_from": config.data.order_from}, "content": {"order_from": order_content}}
            claim(data, order_from, may_change=("data",))
        align_mlm_setup.write_data(
            data, text, derivation, vocabulary, share=config.data.dictionary_share, seed=config.data.seed
        )

        # ---- pretraining and alignment ----
        models = {}
        for objective in objectives:
            for seed in seeds:
                model = directory / "models" / name / f"{objective}-{seed}"
                with sweep.training():
                    pretrain_once(config, objective, seed, data, vocabulary, model)
                models[f"{objective}-{seed}"] = model
                found = alignment(model / "export", vocabulary, data)
                records = add_scores(directory, records, name, [(model.name, "", *score) for score in found])

        # ---- fine-tuning ----
        for task in tasks:
            given = examples[task]
            if "syn" in name.split("+") and not all(x.tree for part in given.values() for x in part):
                logging.warning("%s: %s has no trees and is left out", name, task)
                continue
            count = align_mlm_setup.write_task(data, task, tasks[task].task, given, derivation, vocabulary.split)
            logging.info("%s, %s: %d entities split by the order of words", name, task, count)
            found = transfer(config, task, data, models, directory / "finetuned" / name / task, given)
            records = add_scores(directory, records, name, [(model, task, *score) for model, *score in found])

        # ---- report on everything measured so far ----
        curves: dict[str, dict[str, Path]] = {}  # of the first seed
        for r in records:
            model = directory / "models" / r["transformation"] / f"{r['objective']}-{r['seed']}"
            curves.setdefault(r["transformation"], {}).setdefault(r["objective"], model)
        path, table = report.write(epath.Path(directory), records, facts=facts(config, text, vocabulary), curves=curves)
    print(f"\n{table}\n\nreport: {path}")


def pretrain_once(
    config: Config, objective: str, seed: int, data: Path, vocabulary: Vocabulary, directory: Path
) -> None:
    """Pretrains a model, unless that is done."""
    if not (directory / "report.md").exists():  # written last
        text = {language: str(data / f"{language}.txt") for language in (ENGLISH, DERIVED)}
        text[f"{ENGLISH}-{DERIVED}"] = "|".join(text.values())
        given = align_mlm_setup.pretraining(
            config, objective, seed, text, str(dictionary_file(data)), str(vocabulary.directory)
        )
        given.data.cache = given.data.cache or str(data / "corpora")
        logging.info("pretraining: %s, seed %d, %s", objective, seed, data.name)
        pretrain.run(given, str(directory))
    checkpoint.remove(directory / "checkpoints")  # several times as large as the model


def to_finetune(model: Path) -> Path:
    """The model to fine-tune: the export, with the same token type for both languages.

    XLM learns a token type for each language, but the tasks do not specify the language of a token. Both types become
    their mean: otherwise the derived language would be read as English, a handicap that no other objective has.
    """
    export, neutral = model / "export", model / "export_neutral"
    if not model.name.startswith("xlm-"):
        return export
    if not neutral.exists():
        pretrained = huggingface.read(export)
        embeddings = pretrained.params["encoder"]["embeddings"]
        types = np.asarray(embeddings["token_type_embeddings"]["embedding"])
        mean = {"embedding": np.broadcast_to(types.mean(axis=0), types.shape).copy()}
        encoder = pretrained.params["encoder"] | {"embeddings": embeddings | {"token_type_embeddings": mean}}
        changed = dataclasses.replace(pretrained, params=pretrained.params | {"encoder": encoder})
        with atomic(neutral) as unfinished:
            huggingface.write(unfinished, changed, files_from=export)
    return neutral


def alignment(model: Path, vocabulary: Vocabulary, data: Path) -> list[tuple[str, float, int]]:
    """(metric, percent, tokens): how often the nearest clone of a token, by input embeddings, is its own.

    `alignment` is the paper's measure, over all tokens; `alignment_unseen` is over those that the dictionary does not
    contain. `alignment_rotated` is over a random half of the tokens, after the rotation that best maps the other half
    to its clones: whether the model has learned the translation, even if the two languages are in different places.
    """
    table = np.asarray(huggingface.read(model).params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    rows = np.array([i for i, piece in enumerate(vocabulary.pieces) if not is_special(piece)])
    plain, clones = table[rows], table[len(vocabulary.pieces) + rows]
    hits = neighbours.nearest(plain, clones) == np.arange(len(rows))
    with dictionary_file(data).open(encoding="utf-8") as lines:
        known = {line.partition("\t")[0] for line in lines}
    unseen = np.array([vocabulary.pieces[i] not in known for i in rows])
    fitted, tested = np.array_split(np.random.default_rng(0).permutation(len(rows)), 2)
    plain, clones = (x - x[fitted].mean(axis=0) for x in (plain, clones))
    rotation, _ = orthogonal_procrustes(plain[fitted], clones[fitted])
    rotated = neighbours.nearest(plain[tested] @ rotation, clones) == tested
    found = {"alignment": hits, "alignment_unseen": hits[unseen], "alignment_rotated": rotated}
    return [(metric, 100 * float(x.mean()), len(x)) for metric, x in found.items() if len(x)]


def transfer(
    config: Config,
    name: str,
    data: Path,
    models: Mapping[str, Path],
    directory: Path,
    examples: Mapping[str, list[Any]],
) -> list[tuple[str, str, float, int]]:
    """(model, metric, percent, items): en, BS, BZ and delta of every model, each the mean over the fine-tuning seeds.

    The fine-tuned models are deleted; their scores are in scores.json.
    """
    task = config.tasks[name]
    content = {part: checksum(found) for part, found in examples.items()}
    described = {"task": task.to_dict(), "finetuning": config.finetuning.to_dict(), "content": content}
    may_change = ("task.train", "task.test", *(x for x in MAY_CHANGE if x.startswith("finetuning.")))
    claim(directory, described, may_change=may_change)
    path = directory / "scores.json"
    records = read_records(path)
    seeds = parse_seeds(config.finetuning)
    for source, tests in ((ENGLISH, (ENGLISH, DERIVED)), (DERIVED, (DERIVED,))):
        for seed in seeds:
            done = {r["model"] for r in records if (r["source"], r["seed"]) == (source, seed)}
            init = ",".join(f"{x}={to_finetune(model)}" for x, model in models.items() if x not in done)
            train = f"{source}={task_file(data, name, task.task, 'train', source)}"
            test = ",".join(f"{x}={task_file(data, name, task.task, 'test', x)}" for x in tests)
            workdir = directory / f"{source}-{seed}"
            if init:
                given = align_mlm_setup.finetuning(config, task, init, train, test)
                given.seeds = str(seed)
                finetune_run.run(given, str(workdir))
                records += [{"source": source} | r for r in read_records(workdir / "scores.json")]
                write_records(path, records)
            for spent in workdir.glob("**/seed-*"):
                checkpoint.remove(spent / "trained")
                shutil.rmtree(spent / "export", ignore_errors=True)

    values: dict[tuple[str, str], list[float]] = {}
    counts: dict[str, int] = {}
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


def add_scores(directory: Path, records: Records, transformation: str, scores: Iterable[tuple[Any, ...]]) -> Records:
    """The records with scores (model, task, metric, value, count) added or replaced; writes scores.json."""
    place = ("transformation", "objective", "seed", "task", "metric")
    every = {tuple(r[field] for field in place): r for r in records}
    for model, *where, value, count in scores:
        objective, seed = model.rsplit("-", 1)
        key = (transformation, objective, int(seed), *where)
        every[key] = dict(zip(place, key, strict=True)) | {"value": round(value, 4), "count": count}
    write_records(directory / "scores.json", list(every.values()))
    return list(every.values())


def facts(config: Config, text: Sequence[derived_tasks.Sentence], vocabulary: Vocabulary) -> dict[str, str]:
    """The settings that the report shows."""
    pretraining, finetuning = config.pretraining, config.finetuning
    model, train = pretraining.model, pretraining.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    return {
        "text": f"{config.data.text}: {len(text):,} sentences, {sum(len(x.words) for x in text):,} words",
        "vocabulary": f"{len(vocabulary.pieces):,} tokens and as many clones",
        "dictionary": f"a random {config.data.dictionary_share:.0%} of the tokens with their clones",
        "model": f"{model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads",
        "pretraining": f"{length} of {2 * train.batch_size} sentences, learning rate {train.learning_rate:g}, "
        f"word alignment x {pretraining.word_alignment.weight:g}",
        "fine-tuning": f"batches of {finetuning.train.batch_size}, learning rate {finetuning.train.learning_rate:g}, "
        f"seeds {finetuning.seeds}; "
        + ", ".join(f"{name} {task.epochs:g} epochs" for name, task in config.tasks.items() if task.train),
        "computed in": config.dtype,
    }
