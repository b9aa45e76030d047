"""The report of ALIGN-MLM's experiment: the scores beside the paper's, alignment against transfer, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import LayerCurves, Scatter, plot_layers, plot_scatter, running_mean
from ppa_jax.evaluation.scores import mean_and_spread
from ppa_jax.studies.correlation import FEWEST, Correlation, spearman
from ppa_jax.training.metrics import read_metrics

Record = Mapping[str, Any]

LEGEND = (
    "Percent; mean over the seeds of pretraining, ± their standard deviation. **BS**: fine-tuned and tested on the "
    "derived language. **BZ**: fine-tuned on English, tested on the derived language (zero-shot). **delta**: BS - BZ, "
    "the gap. **alignment**: the share of tokens whose own clone is the nearest of all clones, by the cosine of input "
    "embeddings. **unseen**: the same for the tokens that the dictionary does not contain; for the others, align_mlm "
    "and dict_mlm are trained on the answer. **rotated**: the same for a random half of the tokens, after the rotation "
    "that best maps the other half to its clones: high if the model has learned the translation up to a linear map. "
    "XLM is fine-tuned with the mean of its language embeddings in place of each. All scores are in "
    "[scores.json](scores.json)."
)
PAPER_LEGEND = (
    "Tang et al. 2022: RoBERTa with 8 layers of 512, 500,000 steps of 128 rows of 512 tokens, another text, and a "
    "vocabulary of 40,000. Compare the pattern, not the level. BS / BZ, percent. They reverse entities together with "
    "their labels; here an entity also begins with B- in its new order."
)
# transformation -> objective -> (XNLI, NER, POS as BS, BZ; alignment)
PAPER = {
    "trans": {
        "mlm": ((76.4, 74.9), (80.6, 78.0), (95.0, 94.6), 90.0),
        "xlm": ((77.3, 77.5), (80.8, 79.7), (95.0, 94.8), 97.7),
        "dict_mlm": ((77.0, 75.9), (79.3, 78.3), (95.1, 94.8), 95.7),
        "align_mlm": ((75.1, 75.5), (79.4, 78.6), (94.9, 94.8), 98.4),
    },
    "trans+inv": {
        "mlm": ((73.9, 56.7), (79.2, 35.9), (95.0, 56.5), 0.3),
        "xlm": ((75.4, 67.2), (80.0, 60.7), (95.0, 61.8), 85.6),
        "dict_mlm": ((74.5, 65.3), (79.1, 59.8), (95.0, 76.0), 64.2),
        "align_mlm": ((75.5, 68.8), (80.0, 64.5), (95.0, 92.0), 95.2),
    },
    "trans+syn": {
        "mlm": ((73.5, 69.0), (71.3, 52.3), (93.6, 91.6), 57.3),
        "xlm": ((76.1, 74.1), (71.5, 59.6), (93.7, 92.7), 98.6),
        "dict_mlm": ((74.3, 72.2), (71.4, 57.6), (93.6, 92.6), 93.7),
        "align_mlm": ((74.7, 71.1), (71.3, 58.3), (93.7, 92.9), 98.2),
    },
}
_PAPER_TASKS = {"nli": 0, "ner": 1, "pos": 2}


def write(
    workdir: epath.Path,
    records: Sequence[Record],
    *,
    facts: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Path]],
) -> tuple[epath.Path, str]:
    """Writes report.md with alignment.png and curves.png; returns its path and the tables.

    Args:
      workdir: for the files.
      records: `transformation`, `objective`, `seed`, `task` ("" for the alignment), `metric`, `value`, `count`.
      facts: name -> value.
      curves: transformation -> objective -> the run whose loss is drawn.
    """
    values: dict[tuple[str, ...], dict[int, float]] = {}  # by seed
    for r in records:
        values.setdefault((r["transformation"], r["objective"], r["task"], r["metric"]), {})[r["seed"]] = r["value"]
    models = list(dict.fromkeys(key[:2] for key in values))
    tasks = list(dict.fromkeys(r["task"] for r in records if r["task"]))

    # ---- scores ----
    columns = ("alignment", "alignment_unseen", "alignment_rotated")
    rows = []
    for model in models:
        by_seed = [values.get((*model, "", metric), {}) for metric in columns]
        rows.append([*model, *map(mean_and_spread, by_seed), len(by_seed[0])])
    tables = [markdown.table(["derived language", "objective", "alignment", "unseen", "rotated", "seeds"], rows)]
    columns = ("en", "BS", "BZ", "delta")
    for task in tasks:
        rows = [[*m, *(mean_and_spread(values.get((*m, task, metric), {})) for metric in columns)] for m in models]
        tables.append(markdown.table(["derived language", "objective", "English", *columns[1:]], rows))
    parts = ["## Scores", LEGEND, tables[0]]
    for task, table in zip(tasks, tables[1:], strict=True):
        parts += [f"### {task}", table]
    known = [task for task in tasks if task in _PAPER_TASKS]
    rows = []
    for name, objective in models:
        if (published := PAPER.get(name, {}).get(objective)) is not None:
            pairs: Any = [published[_PAPER_TASKS[task]] for task in known]
            rows.append([name, objective, *(f"{bs:.1f} / {bz:.1f}" for bs, bz in pairs), published[3]])
    if rows:
        table = markdown.table(["derived language", "objective", *known, "alignment"], rows)
        parts += ["### The paper's", PAPER_LEGEND, table]

    # ---- alignment and transfer, curves ----
    parts += ["## Alignment and transfer"]
    if tasks:
        panels = []
        for task in tasks:
            series: dict[str, list[tuple[float, float, str]]] = {}
            for r, x, y in points(records, task, "BZ"):
                series.setdefault(r["objective"], []).append((x, y, r["transformation"]))
            panels.append(Scatter(task, "alignment, % of tokens", "zero-shot (BZ), %", series))
        plot_scatter(workdir / "alignment.png", panels, title="Alignment of word embeddings and zero-shot transfer")
        lines = [line for task in tasks for line in _correlation_lines(records, task)]
        parts += [
            "Each point is a pretrained model. Intervals are 95%, by bootstrap over groups.",
            "![Alignment and transfer](alignment.png)",
            "\n".join(f"- {line}" for line in lines),
        ]
    plot_layers(
        workdir / "curves.png",
        [LayerCurves(name, "nats per masked token", _losses(runs)) for name, runs in curves.items()],
        title="Pretraining: loss, first seed (for XLM of masked LM and TLM together)",
        xlabel="step",
        marker="",
    )
    parts += ["## Pretraining", "![Masked LM](curves.png)"]
    title = "Alignment of word embeddings and transfer to a derived language"
    return markdown.write_report(workdir, title, facts, parts), "\n\n".join(tables)


def points(records: Sequence[Record], task: str, metric: str) -> list[tuple[Record, float, float]]:
    """(record, alignment, value) of every pretrained model."""
    aligned = {_model(r): r["value"] for r in records if r["metric"] == "alignment"}
    return [(r, aligned[_model(r)], r["value"]) for r in records if (r["task"], r["metric"]) == (task, metric)]


def _model(record: Record) -> tuple[str, str, int]:
    return record["transformation"], record["objective"], record["seed"]


def correlation(records: Sequence[Record], task: str, metric: str) -> Correlation | None:
    """Of alignment with BZ or delta; the seeds of one objective on one language are one group."""
    given = points(records, task, metric)
    groups = ["/".join(_model(record)[:2]) for record, *_ in given]
    return spearman([x for _, x, _ in given], [y for *_, y in given], {"objectives and languages": groups})


def _correlation_lines(records: Sequence[Record], task: str) -> list[str]:
    """For all derived languages together, whose difficulty affects both numbers, and for each separately."""
    every = list(dict.fromkeys(r["transformation"] for r in records))
    lines = []
    for names in [every, *([name] for name in every if len(every) > 1)]:
        own = [r for r in records if r["transformation"] in names]
        found = {metric: correlation(own, task, metric) for metric in ("BZ", "delta")}
        listed = "; ".join(f"with {metric} {value}" for metric, value in found.items() if value is not None)
        none = f"none for fewer than {FEWEST} models, or if values do not vary"
        lines.append(f"{task}, {', '.join(names)}: Spearman's coefficient of alignment {listed or none}")
    return lines


def _losses(runs: Mapping[str, Path]) -> dict[str, dict[int, float]]:
    curves = {}
    for objective, run in runs.items():
        metrics = read_metrics(run)
        if not metrics:  # the models were removed, the scores were not
            continue
        means = running_mean(np.array([m["tlm"] for m in metrics]))
        averaged = metrics[len(metrics) - len(means) :]
        every = max(1, len(metrics) // 200)
        curves[objective] = {int(m["step"]): float(v) for m, v in list(zip(averaged, means, strict=True))[::every]}
    return curves
