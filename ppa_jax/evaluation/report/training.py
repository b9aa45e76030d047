"""What a run leaves for its reader: scores.json, differences.json, and report.md with its pictures. Same input, same
bytes."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppa_jax.errors import UserError
from ppa_jax.evaluation import comparison
from ppa_jax.evaluation.comparison import Models, View
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import Panel, plot_bars, plot_curves, plot_layers, plot_models
from ppa_jax.training.metrics import read_metrics
from ppa_jax.training.workdir import atomic

Facts = Mapping[str, str]
SETTINGS = "Retrieval by layer and pooling, mean of the languages"
BARS = "Retrieval by language, both directions averaged"
ALIGNMENT_PANELS = (
    Panel("loss", "Loss (weighted sum)", "nats"),
    Panel("tlm", "TLM (translation language model)", "nats per masked piece"),
    Panel("contrastive", "Contrast (InfoNCE)", "nats per pair"),
    Panel("word_alignment", "Word alignment", "mean cosine of the dictionary's pairs"),
    Panel("contrastive_accuracy", "Own translation ranked first in the queue", "% of pairs", 100.0),
)


def write_training(
    workdir: Path,
    models: Models,
    *,
    title: str,
    facts: Facts,
    sources: str = "",
    panels: Sequence[Panel] = ALIGNMENT_PANELS,
) -> tuple[Path, list[tuple[str, str]]]:
    """The report of a training run.

    Args:
      workdir: with metrics.jsonl, whose curves are drawn.
      models: one model at several moments, the first and the last of which are compared; may be empty.
      title: of the report.
      facts: name -> value, in the order shown; a fact named `command` is shown as a command.
      sources: a Markdown table of the data.
      panels: which curves; one whose metric was not written is left out.

    Returns:
      The path of report.md; title and Markdown of its tables by language.

    Raises:
      UserError: a file cannot be written.
    """
    moments = list(models)
    parts, tables = [f"# {title}", *facts_table(facts)], []
    with writing(workdir):
        shown = _write_scores(workdir, models, moments[:1])
        if models:
            ends = {name: models[name] for name in (moments[0], moments[-1])}
            pairs = comparison.views(ends, moments[:1])
            parts += ["## Scores", comparison.LEGEND, *_bars(workdir, pairs)]
            tables = [(view.title, comparison.language_table(view, moments[0])) for view in pairs]
            line = comparison.better_setting(ends[moments[-1]])
            tables.append((SETTINGS, "\n\n".join(filter(None, [comparison.settings_table(ends), line]))))
            parts += [part for name, table in tables for part in (f"### {name}", table)]
            if len(moments) > 2:
                parts += ["### Every evaluation", comparison.means_table(shown, moments)]
        metrics = read_metrics(workdir)
        if plot_curves(workdir / "curves.png", metrics, panels, title="Training"):
            parts += ["## Training", "![Training curves](curves.png)"]
        if sources:
            parts += ["## Data", sources]
        return write_text(workdir, parts), tables


def write_comparison(workdir: Path, models: Models, *, baselines: Sequence[str], facts: Facts) -> tuple[Path, str]:
    """The report of models side by side.

    Args:
      workdir: created if absent.
      models: in the order shown.
      baselines: the models with which the others are compared; the first is the one of the tables by language.
      facts: as in `write_training`.

    Returns:
      The path of report.md; the table of the means, in Markdown.

    Raises:
      UserError: a file cannot be written.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        shown = _write_scores(workdir, models, baselines)
        parts = ["# Comparison", *facts_table(facts), _models(models, baselines), comparison.LEGEND]
        headline = [view for view in shown if comparison.means(view)]
        table = comparison.means_table(headline, list(models)) if headline else ""
        if headline:
            plot_models(workdir / "models.png", comparison.model_panels(headline), title="Models side by side")
            parts += ["## Means over the languages", table, "![Models side by side](models.png)"]
            for baseline in baselines if len(models) > 1 else ():
                text = comparison.differences_table(headline, list(models), baseline)
                parts += [f"### Differences to {baseline}", text]
        if curves := comparison.layer_curves(models):
            plot_layers(workdir / "layers.png", curves, title="Mean over the languages, by layer")
            parts += ["## By layer", "![Curves by layer](layers.png)"]
        parts += ["## By language"]
        if len(models) > comparison.WIDE:
            parts += [f"In bold: what differs from **{baselines[0]}**."]
        parts += _bars(workdir, shown)
        for view in shown:
            parts += [f"### {view.title}", comparison.language_table(view, baselines[0])]
        return write_text(workdir, parts), table


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON list of records, scores or differences."""
    with atomic(path) as unfinished:
        text = json.dumps([dict(record) for record in records], indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Turns a file that cannot be written within it into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot write the report: {error.strerror or error}; free some space or give another --workdir"
        ) from error


def _write_scores(workdir: Path, models: Models, baselines: Sequence[str]) -> list[View]:
    write_records(workdir / "scores.json", comparison.records_of(models))
    shown = comparison.views(models, baselines)
    differences = [record | {"role": view.role} for view in shown for record in view.differences.values()]
    write_records(workdir / "differences.json", differences)
    return shown


def write_text(workdir: Path, parts: Sequence[str]) -> Path:
    """Writes report.md from its parts and returns its path."""
    path = workdir / "report.md"
    with atomic(path) as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _bars(workdir: Path, shown: Sequence[View]) -> list[str]:
    labels, panels = comparison.retrieval_bars(shown)
    if not panels:
        return []
    plot_bars(workdir / "bars.png", labels, panels, title=BARS, ylabel="accuracy (%)")
    return [f"![{BARS}](bars.png)"]


def _models(models: Models, baselines: Sequence[str]) -> str:
    def place(request: tuple[int, str] | None) -> str:
        return "not said" if request is None else f"layer {request[0]}, {request[1].replace('_', ' ')}"

    rows = [
        (f"{name} (baseline)" if name in baselines else name, m.source, max(1, len(m.runs)), m.depth, place(m.main),
         place(m.own))
        for name, m in models.items()
    ]  # fmt: skip
    return markdown.table(("model", "source", "trainings", "layers", "main", "as trained"), rows)


def facts_table(facts: Facts) -> list[str]:
    """The settings at the head of a report, as Markdown."""
    parts = []
    if "command" in facts:
        parts.append(f"```\n{_wrap_command(facts['command'])}\n```")
    rows = [(name, value) for name, value in facts.items() if name != "command"]
    return [*parts, markdown.table(("setting", "value"), rows)] if rows else parts


def _wrap_command(command: str) -> str:
    """Lines of some 110 characters that a shell joins again. A command that does not parse stays as it is."""
    try:
        words = [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:
        return command
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 110:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
