"""The reports of a training run and of a comparison: scores.json, differences.json, and report.md with its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etils import epath

from ppa_jax.evaluation import comparison
from ppa_jax.evaluation.comparison import Models, View
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import Panel, plot_bars, plot_curves, plot_layers, plot_models
from ppa_jax.evaluation.scores import write_records
from ppa_jax.training.metrics import read_metrics

SETTINGS = "Retrieval by layer and pooling, mean over the languages"
BARS = "Retrieval by language, both directions averaged"
ALIGNMENT_PANELS = (
    Panel("loss", "Loss (weighted sum)", "nats"),
    Panel("tlm", "TLM (translation language model)", "nats per masked token"),
    Panel("contrastive", "Contrastive loss (InfoNCE)", "nats per pair"),
    Panel("rtl", "RTL (representation translation)", "nats per token"),
    Panel("distill", "Distance to the teacher's vectors", "mean of both sentences"),
    Panel("word_alignment", "Word alignment", "mean cosine of the dictionary's pairs"),
    Panel("contrastive_accuracy", "Own translation ranked first in the queue or the batch", "% of pairs", 100.0),
)


def write_training(
    workdir: epath.Path, models: Models, *, title: str, facts: Mapping[str, str], sources: str = ""
) -> tuple[epath.Path, list[tuple[str, str]]]:
    """The report of a training run.

    Args:
      workdir: with metrics.jsonl, whose curves are drawn.
      models: one model at several moments; the first and the last are compared. May be empty.
      title: of the report.
      facts: setting -> value, in the order shown.
      sources: a Markdown table of the data.

    Returns:
      The path of report.md; (title, Markdown) of its tables by language.

    Raises:
      UserError: a file cannot be written.
    """
    parts, tables = [], []
    moments = list(models)
    shown = _write_scores(workdir, models, moments[:1])
    if models:
        ends = {name: models[name] for name in (moments[0], moments[-1])}
        compared = comparison.views(ends, moments[:1])
        tables = [(view.title, comparison.language_table(view, moments[0])) for view in compared]
        line = comparison.better_setting(ends[moments[-1]])
        tables.append((SETTINGS, "\n\n".join(filter(None, [comparison.settings_table(ends), line]))))
        parts += ["## Scores", comparison.LEGEND, *_bars(workdir, compared)]
        parts += [part for name, table in tables for part in (f"### {name}", table)]
        if len(moments) > 2:
            parts += ["### Every evaluation", comparison.means_table(shown, moments)]
    if plot_curves(workdir / "curves.png", {"": read_metrics(workdir)}, ALIGNMENT_PANELS, title="Training"):
        parts += ["## Training", "![Training curves](curves.png)"]
    if sources:
        parts += ["## Data", sources]
    return markdown.write_report(workdir, title, facts, parts), tables


def write_comparison(
    workdir: epath.Path, models: Models, *, baselines: Sequence[str], facts: Mapping[str, str]
) -> tuple[epath.Path, str]:
    """The report of models side by side.

    Args:
      workdir: created if absent.
      models: in the order shown.
      baselines: the models that the others are compared with; the tables by language compare with the first.
      facts: as in `write_training`.

    Returns:
      The path of report.md; the table of the means in Markdown.

    Raises:
      UserError: a file cannot be written.
    """
    shown = _write_scores(workdir, models, baselines)
    parts = [_models(models, baselines), comparison.LEGEND]
    headline = [view for view in shown if comparison.means(view)]
    table = comparison.means_table(headline, list(models)) if headline else ""
    if headline:
        plot_models(workdir / "models.png", comparison.model_panels(headline), title="Models side by side")
        parts += ["## Means over the languages", table, "![Models side by side](models.png)"]
        for baseline in baselines if len(models) > 1 else ():
            text = comparison.differences_table(headline, list(models), baseline)
            parts += [f"### Differences from {baseline}", text]
    if curves := comparison.layer_curves(models):
        plot_layers(workdir / "layers.png", curves, title="Mean over the languages, by layer")
        parts += ["## By layer", "![Curves by layer](layers.png)"]
    parts += ["## By language"]
    if len(models) > comparison.WIDE:
        parts += [f"In bold: scores that differ from **{baselines[0]}**."]
    parts += _bars(workdir, shown)
    for view in shown:
        parts += [f"### {view.title}", comparison.language_table(view, baselines[0])]
    return markdown.write_report(workdir, "Comparison", facts, parts), table


def _write_scores(workdir: epath.Path, models: Models, baselines: Sequence[str]) -> list[View]:
    write_records(workdir / "scores.json", comparison.records_of(models))
    shown = comparison.views(models, baselines)
    differences = [record | {"role": view.role} for view in shown for record in view.differences.values()]
    write_records(workdir / "differences.json", differences)
    return shown


def _bars(workdir: epath.Path, shown: Sequence[View]) -> list[str]:
    labels, panels = comparison.retrieval_bars(shown)
    if not panels:
        return []
    plot_bars(workdir / "bars.png", labels, panels, title=BARS, ylabel="accuracy (%)")
    return [f"![{BARS}](bars.png)"]


def _models(models: Models, baselines: Sequence[str]) -> str:
    rows = [
        (
            f"{name} (baseline)" if name in baselines else name,
            model.source,
            max(1, len(model.runs)),
            model.depth,
            comparison.setting_name(*model.main),
            comparison.setting_name(*model.own) if model.own else "unknown",
        )
        for name, model in models.items()
    ]
    return markdown.table(("model", "source", "trainings", "layers", "main", "as trained"), rows)
