"""The report of fine-tuning: mean and spread over the seeds, by language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax import markdown
from ppa_jax.evaluation import report
from ppa_jax.evaluation.plots import Bars, Panel, plot_bars, plot_curves
from ppa_jax.training.metrics import read_metrics

Record = Mapping[str, Any]

LEGEND = (
    "Percent; mean over the seeds, ± their standard deviation. `mean` is the mean over the languages. Every score is "
    "in [scores.json](scores.json), the predictions are in `seed-*/predictions`."
)


def write(workdir: Path, records: Sequence[Record], *, facts: Mapping[str, str], sources: str) -> tuple[Path, str]:
    """Writes scores.json, report.md and its pictures; returns the path of report.md and the table of the scores.

    Args:
      workdir: with seed-0, seed-1, ..., whose curves are drawn.
      records: `task`, `seed`, `language`, `metric`, `value` (percent) and `count` of each score; may be empty.
      facts: name -> value.
      sources: a Markdown table of what was read.

    Raises:
      UserError: a file cannot be written.
    """
    table = scores_table(records) if records else ""
    parts = ["# Fine-tuning", *report.facts_table(facts)]
    with report.writing(workdir):
        report.write_records(workdir / "scores.json", records)
        if records:
            labels, panels = _bars(records)
            plot_bars(workdir / "bars.png", labels, panels, title="Scores by language", ylabel="%")
            parts += ["## Scores", LEGEND, table, "![Scores by language](bars.png)"]
        curves = [(f"seed {path.name[5:]}", read_metrics(path)) for path in sorted(workdir.glob("seed-*"))]
        if curves and plot_curves(workdir / "curves.png", curves[0][1], [Panel("loss", "Loss", "nats")],
                                  title=f"Training, {curves[0][0]}"):  # fmt: skip
            parts += ["## Training", "![Training curve](curves.png)"]
        parts += ["## Data", sources]
        return report.write_text(workdir, parts), table


def by_language(records: Sequence[Record]) -> dict[tuple[str, str], np.ndarray]:
    """(metric, language) -> the value of each seed, [seeds]; the language `mean` is their mean, seed by seed."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for record in records:
        values.setdefault((record["metric"], record["language"]), {})[record["seed"]] = record["value"]
    found = {key: np.array([by_seed[seed] for seed in sorted(by_seed)]) for key, by_seed in values.items()}
    for metric in dict.fromkeys(metric for metric, _ in values):
        own = [found[key] for key in values if key[0] == metric]
        if len(own) > 1 and len({len(x) for x in own}) == 1:
            found[metric, "mean"] = np.mean(own, axis=0)
    return found


def scores_table(records: Sequence[Record]) -> str:
    """A line for each language, a column for each metric, in Markdown."""
    found = by_language(records)
    metrics = list(dict.fromkeys(metric for metric, _ in found))
    count = {record["language"]: record["count"] for record in records if record["metric"] == metrics[0]}
    rows = []
    for language in dict.fromkeys(language for _, language in found):
        cells = [_shown(found[metric, language]) if (metric, language) in found else None for metric in metrics]
        rows.append([f"**{language}**" if language == "mean" else language, *cells, count.get(language)])
    return markdown.table(["language", *(metric.replace("_", " ") for metric in metrics), "items"], rows)


def _shown(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" + (f" ±{values.std(ddof=1):.2f}" if len(values) > 1 else "")


def _bars(records: Sequence[Record]) -> tuple[list[str], list[Bars]]:
    found = by_language(records)
    labels = list(dict.fromkeys(language for _, language in found))
    panels = []
    for metric in dict.fromkeys(metric for metric, _ in found):
        values = [found.get((metric, language), np.array([np.nan])) for language in labels]
        mean = [float(x.mean()) for x in values]
        spread = [float(x.std(ddof=1)) if len(x) > 1 else float("nan") for x in values]
        marks = [(m - s, m + s) for m, s in zip(mean, spread, strict=True)]
        panels.append(Bars(metric.replace("_", " "), {"mean of the seeds": mean}, {"mean of the seeds": marks}))
    return labels, panels
