"""The report of a run: scores.json, and report.md with its tables and pictures. Same input, same bytes."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax.errors import UserError
from ppa_jax.evaluation.plots import Bars, Panel, plot_bars, plot_curves
from ppa_jax.training.metrics import read_metrics

Records = Sequence[Mapping[str, Any]]


LEGEND = (
    "Accuracy in percent: the share of sentences whose nearest neighbour by cosine, among all sentences of the other "
    "language, is their translation. "
)
ONE_MODEL = "English queries against the other language (en→xx), the reverse, and the average of the two (both)."
TWO_MODELS = "Both directions averaged; each direction by itself is in [scores.json](scores.json)."


ALIGNMENT_PANELS = (
    Panel("loss", "Loss (weighted sum)", "nats"),
    Panel("tlm", "TLM (translation language model)", "nats per masked piece"),
    Panel("contrastive", "Contrast (InfoNCE)", "nats per pair"),
    Panel("contrastive_accuracy", "Own translation ranked first in the queue", "% of pairs", 100.0),
)


def write_report(
    workdir: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    records: Records,
    metrics_path: str | Path | None = None,
    sources: str = "",
    panels: Sequence[Panel] = ALIGNMENT_PANELS,
    compare: tuple[str, str] | None = None,
    notes: str = "",
) -> Path:
    """Writes scores.json, report.md, curves.png and bars.png into the workdir and returns the path of report.md.

    Args:
      workdir: created if absent.
      title: of the report.
      facts: name -> value, in the order shown; a fact named `command` is shown as a command.
      records: scores with the keys that `evaluation.retrieval` gives them.
      metrics_path: metrics.jsonl, or the directory that holds it; None or absent: no curves.
      sources: a Markdown table of the data.
      panels: which curves; one whose metric the file lacks is left out.
      compare: the models (as the records name them) before and after; by default the first and the last.
      notes: Markdown at the end.

    Raises:
      UserError: a file cannot be written.
    """
    workdir = Path(workdir)
    models = list(dict.fromkeys(record["model"] for record in records))
    if compare is None and models:
        compare = models[0], models[-1]
    path = workdir / "report.md"
    with writing_report(workdir):
        write_records(workdir / "scores.json", records)
        parts = [f"# {title}", *_facts(facts)]
        if compare:
            parts += ["## Scores", *_scores(workdir, records, models, compare)]
        metrics = [] if metrics_path is None else _read_metrics(metrics_path)
        if plot_curves(workdir / "curves.png", metrics, panels, title="Training"):
            parts += ["## Training", "![Training curves](curves.png)"]
        if sources:
            parts += ["## Data", sources.strip()]
        if notes:
            parts += ["## Notes", notes.strip()]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def writing_report(workdir: Path) -> Iterator[None]:
    """Turns a file that cannot be written within it into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot write the report: {error.strerror or error}; free some space or give another --workdir"
        ) from error


def write_records(path: Path, records: Records) -> None:
    """Writes a JSON list of records, scores or differences; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    text = json.dumps([dict(record) for record in records], indent=1, ensure_ascii=False)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: text to the left, columns of numbers to the right; floats with two decimals, None empty."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("|", "\\|").split())

    def is_number(column: int) -> bool:
        values = [row[column] for row in rows if row[column] is not None]
        return bool(values) and all(isinstance(value, (int, float)) or _is_signed(value) for value in values)

    marks = ["---:" if is_number(i) else "---" for i in range(len(header))]
    lines = [map(cell, header), marks, *(map(cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_tables(records: Records, before: str, after: str) -> list[tuple[str, str]]:
    """(title, Markdown table) for each task, layer and pooling: both directions averaged, per language and the mean.

    With one model alone the table has its scores in each direction.
    """
    tables = []
    for key in _settings(records):
        task, layer, pooling, metric = key
        chosen = [record for record in records if _setting(record) == key]
        value = {(record["model"], record["language"], record["direction"]): record for record in chosen}
        languages = [x for x in dict.fromkeys(record["language"] for record in chosen) if x != "mean"]
        columns = ("en→xx", "xx→en", "both") if before == after else (before, after, "gain")
        rows = []
        for language in [*languages, "mean"]:
            old, new = (value.get((model, language, "both")) for model in (before, after))
            if new is None:
                continue
            if before == after:
                foreign = "xx" if language == "mean" else language
                ways = [value.get((after, language, f"{a}-{b}")) for a, b in (("en", foreign), (foreign, "en"))]
                shown = [None if way is None else float(way["value"]) for way in ways] + [float(new["value"])]
            else:
                gain = None if old is None else f"{new['value'] - old['value']:+.2f}"
                shown = [None if old is None else float(old["value"]), float(new["value"]), gain]
            name = f"**{language}**" if language == "mean" else language
            rows.append((name, *shown, new["count"]))
        if rows:
            table = markdown_table(("language", *columns, "queries"), rows)
            tables.append((_setting_title(task, layer, pooling, metric), table))
    return tables


def _facts(facts: Mapping[str, str]) -> list[str]:
    parts = []
    if "command" in facts:
        parts.append(f"```\n{_wrap_command(facts['command'])}\n```")
    rows = [(name, value) for name, value in facts.items() if name != "command"]
    return [*parts, markdown_table(("setting", "value"), rows)] if rows else parts


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


def _scores(workdir: Path, records: Records, models: list[str], compare: tuple[str, str]) -> list[str]:
    before, after = compare
    parts = [LEGEND + (ONE_MODEL if before == after else TWO_MODELS)]
    for name, table in score_tables(records, before, after):
        parts += [f"### {name}", table]
    labels, panels = _bars(records, [before] if before == after else [before, after])
    if panels:
        plot_bars(workdir / "bars.png", labels, panels, title="Retrieval by language, both directions averaged",
                  ylabel="accuracy (%)")  # fmt: skip
        parts.append("![Scores by language](bars.png)")
    if len(models) > 2:
        settings = _settings(records)
        mean = {(r["model"], _setting(r)): float(r["value"]) for r in records
                if r["language"] == "mean" and r["direction"] == "both"}  # fmt: skip
        rows = [(model, *(mean.get((model, key)) for key in settings)) for model in models]
        header = ("model", *(f"{task}, layer {layer}, {pooling}" for task, layer, pooling, _ in settings))
        parts += ["### Mean over the languages, every evaluation", markdown_table(header, rows)]
    return parts


def _bars(records: Records, models: list[str]) -> tuple[list[str], list[Bars]]:
    """Labels and panels for `plot_bars`: languages and their mean, a panel for each setting."""
    both = [record for record in records if record["direction"] == "both" and record["model"] in models]
    languages = [x for x in dict.fromkeys(record["language"] for record in both) if x != "mean"]
    labels = [*languages, "mean"]
    value = {(_setting(record), record["model"], record["language"]): record["value"] for record in both}
    panels = []
    for key in _settings(both):
        series = {model: [float(value.get((key, model, label), np.nan)) for label in labels] for model in models}
        panels.append(Bars(_setting_title(*key), series))
    return labels, panels


Setting = tuple[str, Any, Any, str]


def _setting(record: Mapping[str, Any]) -> Setting:
    return record["task"], record["layer"], record["pooling"], record["metric"]


def _settings(records: Records) -> list[Setting]:
    return list(dict.fromkeys(_setting(record) for record in records))


def _setting_title(task: str, layer: Any, pooling: Any, metric: str) -> str:
    return f"{task}: {metric}, layer {layer}, {str(pooling).replace('_', ' ')} pooling"


def _is_signed(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return str(value)[:1] in "+-"


def _read_metrics(path: str | Path) -> Records:
    path = Path(path)
    return read_metrics(path.parent if path.suffix else path)
