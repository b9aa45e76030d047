"""The report of fine-tuning: mean and spread over the seeds, by language, of one model or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import MEANS, Bars, Panel, plot_bars, plot_curves
from ppa_jax.evaluation.scores import BySeed, Difference, mean_and_spread, minus
from ppa_jax.training.metrics import read_metrics

Record = Mapping[str, Any]
Values = Mapping[tuple[str, str, str], BySeed]  # (model, metric, language) -> {seed: value}

LEGEND = (
    "Percent; mean over the seeds ± their standard deviation. `mean` averages all languages, `zero-shot` only those "
    "without training data. [scores.json](scores.json) has every score; the predictions are in the directories of the "
    "seeds. `items` is the count of the first metric."
)
DIFFERENCES = (
    "Difference from **{first}** with the same seed: mean over the seeds and its 95% interval by Student's t, which "
    "covers the variance between seeds on these test sets. In bold: the interval excludes zero."
)


def write(
    workdir: epath.Path,
    records: Sequence[Record],
    *,
    facts: Mapping[str, str],
    sources: str,
    trained: Sequence[str] = (),
) -> tuple[epath.Path, str]:
    """Writes report.md and its pictures; returns the path of report.md and the tables of the scores.

    Args:
      workdir: with the directories seed-0, seed-1, ... of each model; the curve of one of them is drawn.
      records: `task`, `seed`, `language`, `metric`, `value` (percent) and `count` of each score, and `model` if there
        are several; may be empty.
      facts: name -> value.
      sources: a Markdown table of the data.
      trained: the languages of the training data.

    Raises:
      UserError: a file cannot be written.
    """
    parts, tables = [], []
    if records:
        found = by_language(records, trained)
        first = records[0]["metric"]  # whose items are counted
        tables = scores_tables(found, {r["language"]: r["count"] for r in records if r["metric"] == first})
        labels, panels = _bars(found)
        plot_bars(workdir / "bars.png", labels, panels, title="Scores by language", ylabel="%")
        parts += ["## Scores", LEGEND, *tables, *grids(found), "![Scores by language](bars.png)"]
    curves = [path for depth in ("", "*/") for path in workdir.glob(f"{depth}seed-*/metrics.jsonl")]
    runs = {str(path.parent.relative_to(workdir)): read_metrics(path.parent) for path in sorted(curves)}
    if plot_curves(workdir / "curves.png", runs, [Panel("loss", "Loss", "nats")], title="Training"):
        parts += ["## Training", "![Training curves](curves.png)"]
    parts += ["## Data", sources]
    return markdown.write_report(workdir, "Fine-tuning", facts, parts), "\n\n".join(tables)


def by_language(records: Sequence[Record], trained: Sequence[str] = ()) -> Values:
    """The value of each seed, and MEANS over the languages for each seed, if all languages have the same seeds.

    The name of a test set may contain more than its language: en-mlqa, zh-Hans, en/de (context/question: the language
    of the context counts).
    """
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for r in records:
        values.setdefault((r.get("model", ""), r["metric"], r["language"]), {})[r["seed"]] = r["value"]
    for model, metric in dict.fromkeys((model, metric) for model, metric, _ in values):
        own = {key[2]: found for key, found in values.items() if key[:2] == (model, metric)}
        targets = [found for x, found in own.items() if not any(_same_language(x, y) for y in trained)]
        if len(own) < 2 or len({frozenset(found) for found in own.values()}) > 1:
            continue
        for name, some in zip(MEANS, (targets, list(own.values())), strict=True):
            if name == "mean" or 1 < len(some) < len(own):
                values[model, metric, name] = {seed: float(np.mean([x[seed] for x in some])) for seed in some[0]}
    return values


def _same_language(first: str, second: str) -> bool:
    one, other = (name.split("/")[0] for name in (first, second))
    return one == other or one.startswith(f"{other}-") or other.startswith(f"{one}-")


def scores_tables(values: Values, counts: Mapping[str, int]) -> list[str]:
    """A row for each language. For a single model the columns are metrics; else models, in a table for each metric."""
    models, metrics, languages = (list(dict.fromkeys(key[i] for key in values)) for i in range(3))
    languages.sort(key=lambda language: language in MEANS)
    named = [f"**{language}**" if language in MEANS else language for language in languages]

    def table(columns: Sequence[str], cells: Mapping[str, list[str | None]]) -> str:
        rows = [[name, *cells[x], counts.get(x)] for name, x in zip(named, languages, strict=True)]
        return markdown.table(["language", *columns, "items"], rows)

    if models == [""]:
        return [table([m.replace("_", " ") for m in metrics], {
            x: [mean_and_spread(values.get(("", metric, x), {}), 2) for metric in metrics] for x in languages
        })]  # fmt: skip
    tables = []
    for metric in metrics:
        cells = {x: [mean_and_spread(values.get((model, metric, x), {}), 2) for model in models] for x in languages}
        tables += [f"### {metric.replace('_', ' ')}", table(models, cells)]
        first, *others = models
        if not others:
            continue
        cells = {}
        for x in languages:
            changes = [minus(values.get((m, metric, x), {}), values.get((first, metric, x), {})) for m in others]
            cells[x] = [Difference.of(change).text(digits=2) for change in changes]
        tables += [DIFFERENCES.format(first=first), table([f"{model} - {first}" for model in others], cells)]
    return tables


def grids(values: Values) -> list[str]:
    """MLQA's grid, for test sets called context/question: contexts down, questions across."""
    pairs = {x: tuple(x.split("/")) if "/" in x else (x, x) for _, _, x in values if x not in MEANS}
    if not any("/" in x for x in pairs):
        return []
    name = {pair: x for x, pair in pairs.items()}
    contexts, questions = (list(dict.fromkeys(pair[i] for pair in name)) for i in range(2))
    parts = []
    for model, metric in dict.fromkeys(key[:2] for key in values):
        rows = []
        for c in contexts:
            found = [values.get((model, metric, name.get((c, q), "")), {}) for q in questions]
            rows.append([f"**{c}**", *(mean_and_spread(by_seed, 2) for by_seed in found)])
        title = " ".join(filter(None, (model, metric.replace("_", " "), "by language of context (down) and question")))
        parts += [f"### {title}", markdown.table(["", *questions], rows)]
    return parts


def _bars(values: Values) -> tuple[list[str], list[Bars]]:
    models, metrics, labels = (list(dict.fromkeys(key[i] for key in values)) for i in range(3))
    labels.sort(key=lambda language: language in MEANS)
    panels = []
    for metric in metrics:
        bars, marks = {}, {}
        for model in models:
            found = [list(values.get((model, metric, x), {}).values()) or [np.nan] for x in labels]
            means = [float(np.mean(x)) for x in found]
            spread = [float(np.std(x, ddof=1)) if len(x) > 1 else np.nan for x in found]
            name = model or "mean of the seeds"
            bars[name], marks[name] = means, [(m - s, m + s) for m, s in zip(means, spread, strict=True)]
        panels.append(Bars(metric.replace("_", " "), bars, marks))
    return labels, panels
