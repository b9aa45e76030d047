"""ALIGN-MLM's experiment (Tang et al. 2022): does alignment of word embeddings carry transfer to a derived language?

Every objective is pretrained on English and on a language derived from it (derivation.py), each with several seeds;
how well the input embeddings of a piece and its clone lie together is measured; and each model is fine-tuned twice for
each task: on the derived language (BS, supervised) and on English (BZ, zero-shot), both tested on the derived language.

What it leaves in the workdir: vocabulary/, data/TRANSFORMATION/, models/TRANSFORMATION/OBJECTIVE-SEED/ (runs of the job
`pretrain`), finetuned/TRANSFORMATION/TASK/LANGUAGE-SEED/ (runs of `finetune`), scores.json, report.md and pictures.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from scipy.linalg import orthogonal_procrustes

from ppa_jax.config import Config
from ppa_jax.errors import UserError
from ppa_jax.evaluation import neighbours
from ppa_jax.evaluation.report.training import write_records
from ppa_jax.interop import huggingface
from ppa_jax.jobs import pretrain
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.studies.align_mlm import derived_tasks, report
from ppa_jax.studies.align_mlm import setup as align_mlm_setup
from ppa_jax.studies.align_mlm.derivation import Derivation, is_special
from ppa_jax.studies.align_mlm.derived_tasks import ENGLISH
from ppa_jax.studies.align_mlm.setup import DERIVED, MAY_CHANGE, Vocabulary, dictionary_file, names, task_file
from ppa_jax.training import bucket, checkpoint
from ppa_jax.training.workdir import atomic, claim

Records = list[dict[str, Any]]


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    tasks = align_mlm_setup.validate(config)
    directory = Path(workdir)
    text = derived_tasks.read_text(config.data.text, field="config.data.text")
    examples = {
        name: {part: derived_tasks.read_examples(task.task, task[part], field=f"config.tasks.{name}.{part}")
               for part in ("train", "test")}
        for name, task in tasks.items()
    }  # fmt: skip
    order, trees = align_mlm_setup.learn_order(config)
    if "syn" in config.transformations and not all(sentence.tree for sentence in text):
        raise UserError("config.data.text: trans+syn needs trees, and a text has none; give CoNLL-U files alone")
    described = config.to_dict() | {"content": {"text": finetune_setup.checksum(text)}}
    claim(directory, described, may_change=MAY_CHANGE)
    vocabulary = align_mlm_setup.make_vocabulary(config, text, directory / "vocabulary")
    records: Records = []  # of this and of earlier commands
    if (directory / "scores.json").exists():
        records = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    for name in names(config.transformations):
        derivation = Derivation(name, script=vocabulary.script, order=order, seed=config.data.seed)
        data = directory / "data" / name
        if "syn" in name.split("+"):  # the order may be added to a run, and then stays
            order_from = {"data": {"order_from": config.data.order_from}, "content": {"order_from": trees}}
            claim(data, order_from, may_change=("data",))
        align_mlm_setup.write_data(
            data, text, derivation, vocabulary, share=config.data.dictionary_share, seed=config.data.seed
        )
        models = {}
        for objective in names(config.objectives):
            for seed in finetune_setup.seeds(config):
                model = directory / "models" / name / f"{objective}-{seed}"
                if status := pretrain_once(config, objective, seed, data, vocabulary, model):
                    return status
                models[f"{objective}-{seed}"] = model
                found = alignment(model / "export", vocabulary, data)
                records = keep(directory, records, [_record(name, objective, seed, "", *score) for score in found])
        for task in tasks:
            given = examples[task]
            if "syn" in name.split("+") and not all(x.tree for part in given.values() for x in part):
                logging.warning("%s: %s has no trees, and is left out", name, task)
                continue
            torn = align_mlm_setup.write_task(data, task, tasks[task].task, given, derivation, vocabulary.split)
            found = transfer(config, task, data, models, directory / "finetuned" / name / task, given)
            if isinstance(found, int):
                return found
            told = [_record(name, *model.rsplit("-", 1), task, *score) for model, *score in found]
            records = keep(directory, records, told)
            logging.info("%s, %s: %d entities torn apart by the order of words", name, task, torn)
        path, table = write_report(config, directory, records, text, vocabulary)
    print(f"\n{table}\n\nreport: {bucket.lies_at(path)}")
    return 0


def write_report(
    config: Config, directory: Path, records: Records, text: Sequence[derived_tasks.Sentence], vocabulary: Vocabulary
) -> tuple[Path, str]:
    """Of all that is measured so far."""
    curves: dict[str, dict[str, Path]] = {}  # of the first seed
    for record in records:
        name, objective, seed = record["transformation"], record["objective"], record["seed"]
        curves.setdefault(name, {}).setdefault(objective, directory / "models" / name / f"{objective}-{seed}")
    return report.write(directory, records, facts=facts(config, text, vocabulary), curves=curves)


def pretrain_once(
    config: Config, objective: str, seed: int, data: Path, vocabulary: Vocabulary, directory: Path
) -> int:
    """Pretrains one model, unless that is done; returns the exit status."""
    if not (directory / "report.md").exists():  # written last
        text = {language: str(data / f"{language}.txt") for language in (ENGLISH, DERIVED)}
        text[f"{ENGLISH}-{DERIVED}"] = "|".join(text.values())
        given = align_mlm_setup.pretraining(
            config, objective, seed, text, str(dictionary_file(data)), str(vocabulary.directory)
        )
        given.data.cache = given.data.cache or str(data / "corpora")
        logging.info("pretraining: %s, seed %d, %s", objective, seed, data.name)
        if status := pretrain.run(given, str(directory)):
            return status
    checkpoint.remove(directory / "checkpoints")  # several times as large as the model
    return 0


def to_finetune(model: Path) -> Path:
    """The model that is fine-tuned: the export, in which the languages have one token type.

    XLM learns a token type for each language, and no task says which language a token is of. Both become their mean, so
    that xx is not read as English, which none of the other objectives would suffer.
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
    """(metric, percent, pieces): how often the clone is nearest to its piece among all clones, by input embeddings.

    `alignment` is the paper's measure, over all pieces; `alignment_unseen` is over those that the dictionary has not,
    whatever the objective made of it. `alignment_rotated` is over a random half of the pieces after the rotation that
    brings the other half nearest to its clones: what a model knows of translation and does not hold in one place.
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
    plain, clones = table[rows], table[V + rows]
    fitted, tested = np.array_split(np.random.default_rng(0).permutation(len(rows)), 2)
    plain, clones = (x - x[fitted].mean(axis=0) for x in (plain, clones))
    rotation, _ = orthogonal_procrustes(plain[fitted], clones[fitted])
    hits = neighbours.nearest(plain[tested] @ rotation, clones) == tested
    return [*found, ("alignment_rotated", 100 * float(hits.mean()), len(tested))]


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
    content = {part: finetune_setup.checksum(found) for part, found in examples.items()}
    described = {"task": task.to_dict(), "finetuning": config.finetuning.to_dict(), "content": content}
    may_change = ("task.train", "task.test", *(x for x in MAY_CHANGE if x.startswith("finetuning.")))
    claim(directory, described, may_change=may_change)
    path = directory / "scores.json"
    records: Records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for source, tests in ((ENGLISH, (ENGLISH, DERIVED)), (DERIVED, (DERIVED,))):
        for seed in finetune_setup.seeds(config.finetuning):
            done = {r["model"] for r in records if (r["source"], r["seed"]) == (source, seed)}
            init = ",".join(f"{x}={to_finetune(model)}" for x, model in models.items() if x not in done)
            train = f"{source}={task_file(data, name, task.task, 'train', source)}"
            test = ",".join(f"{x}={task_file(data, name, task.task, 'test', x)}" for x in tests)
            given = align_mlm_setup.finetuning(config, task, init, train, test)
            given.seeds = str(seed)
            workdir = directory / f"{source}-{seed}"
            if init:
                if status := finetune_run.run(given, str(workdir)):
                    return status
                found = json.loads((workdir / "scores.json").read_text(encoding="utf-8"))
                records += [{"source": source} | r for r in found]
                write_records(path, records)
            for spent in workdir.glob("**/seed-*"):
                checkpoint.remove(spent / "trained")
                shutil.rmtree(spent / "export", ignore_errors=True)
    values: dict[tuple[str, str], list[float]] = {}
    counts: dict[str, int] = {}
    seeds = finetune_setup.seeds(config.finetuning)
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


def keep(directory: Path, records: Records, found: Records) -> Records:
    """Writes scores.json: what was found in place of what the same model scored before, the rest as it was."""
    place = ("transformation", "objective", "seed", "task", "metric")
    every = {tuple(r[field] for field in place): r for r in [*records, *found]}
    write_records(directory / "scores.json", list(every.values()))
    return list(every.values())


def facts(config: Config, text: Sequence[derived_tasks.Sentence], vocabulary: Vocabulary) -> dict[str, str]:
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
        f"word alignment x {pretraining.word_alignment.weight:g}",
        "fine-tuning": f"batches of {finetuning.train.batch_size}, learning rate {finetuning.train.learning_rate:g}, "
        f"seeds {finetuning.seeds}; "
        + ", ".join(f"{name} {task.epochs:g} epochs" for name, task in config.tasks.items() if task.train),
        "computed in": config.dtype,
    }
