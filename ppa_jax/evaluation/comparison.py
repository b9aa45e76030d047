"""Models side by side: scores.json, differences.json, and a report with tables and pictures.

Every table and picture says at which layer and with which pooling. `main` is the same depth in every model with mean
pooling; `own` is what each model was trained with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppa_jax.evaluation.embed import Request
from ppa_jax.evaluation.plots import Bars, LayerCurves, plot_bars, plot_layers, plot_models
from ppa_jax.evaluation.report import markdown_table, write_records, writing_report
from ppa_jax.evaluation.scores import Record, Score, differences
from ppa_jax.evaluation.similarity import spread


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    source: str
    depth: int  # blocks
    main: Request
    own: Request
    scores: list[Score]


Models = Mapping[str, Measured]
ROLES = ("main", "own")
LOWER_IS_BETTER = ("aer",)
# Of measures that have no choice of pooling: shown at the main layer, or without a layer.
KINDS = ("tokens", "tokens_argmax", "mean_without_special", "input_embeddings")


class View(NamedTuple):
    """One table: the scores of one task and metric that play one role, in every model."""

    task: str
    metric: str
    role: str
    kind: str  # of the vectors, where the measure says it: one measure may have several kinds in the same role
    scores: dict[str, list[Score]]  # by model
    differences: dict[tuple[str, str, str], Record]  # to the baseline, by model, language and direction

    @property
    def title(self) -> str:
        """Task, metric and, where all models agree, layer and pooling."""
        where = {(score.layer, score.pooling) for scores in self.scores.values() for score in scores}
        if len(where) > 1:
            shown = "each model's own layer and pooling" if self.role == "own" else "two thirds of the depth"
        else:
            layer, pooling = where.pop()
            shown = pooling.replace("_", " ") if layer is None else f"layer {layer}, {pooling.replace('_', ' ')}"
        return f"{self.task}: {self.metric.replace('_', ' ')}, {shown}"


def records_of(models: Models) -> list[Record]:
    """The records of scores.json."""
    return [score.record(name) for name, measured in models.items() for score in measured.scores]


def write(workdir: Path, models: Models, *, baseline: str) -> tuple[Path, str]:
    """Writes everything into the workdir; returns the path of report.md and the table of the means, in Markdown.

    Raises:
      UserError: a file cannot be written.
    """
    path = workdir / "report.md"
    with writing_report(workdir):
        records = records_of(models)
        write_records(workdir / "scores.json", records)
        shown = views(models, baseline)
        against = [record | {"role": view.role} for view in shown for record in view.differences.values()]
        write_records(workdir / "differences.json", against)
        parts = ["# Comparison", _models(models, baseline), LEGEND.format(baseline=baseline)]
        headline = [view for view in shown if _means(view)]
        table = _headline_table(headline, baseline) if headline else ""
        if headline:
            plot_models(workdir / "models.png", [_model_panel(view) for view in headline], title="Models side by side")
            parts += ["## Means over the languages", table, "![Models side by side](models.png)"]
        curves = _curves(models)
        if curves:
            plot_layers(workdir / "layers.png", curves, title="Mean over the languages, by layer")
            parts += ["## By layer", "![Curves by layer](layers.png)"]
        parts += ["## By language"]
        labels, panels = _bars(shown)
        if panels:
            plot_bars(workdir / "bars.png", labels, panels, title="Retrieval by language, both directions averaged",
                      ylabel="accuracy (%)")  # fmt: skip
            parts += ["![Retrieval by language](bars.png)"]
        for view in shown:
            parts += [f"### {view.title}", _language_table(view, baseline)]
        parts += [f"{len(records):,} scores, with every layer and direction, are in [scores.json](scores.json), "
                  "the differences in [differences.json](differences.json)."]  # fmt: skip
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path, table


LEGEND = (
    "In brackets: 95% confidence interval, by bootstrap over the items (sentences, words; batches for CKA). "
    "Differences are to **{baseline}**, by paired bootstrap on the same draws of items; one whose interval leaves out "
    "zero is in bold. The intervals say nothing about the spread between training runs. Retrieval, mining, alignment "
    "and lexicon in percent, CKA between 0 and 1, its spread being the standard deviation over the batches; for AER "
    "(alignment error rate) less is better."
)


def views(models: Models, baseline: str) -> list[View]:
    """What the tables show, in the order in which it was measured."""
    shown: dict[tuple[str, ...], View] = {}
    roles = ROLES if any(measured.own != measured.main for measured in models.values()) else ROLES[:1]
    for name, measured in models.items():
        for score in measured.scores:
            for role in roles:
                if _plays(score, role, measured):
                    kind = score.pooling if role == "main" and score.pooling in KINDS else ""
                    key = score.task, score.metric, role, kind
                    view = shown.setdefault(key, View(*key, {}, {}))
                    view.scores.setdefault(name, []).append(score)
    for view in shown.values():
        for record in differences(view.scores, baseline, by=("language", "direction")):
            view.differences[record["model"], record["language"], record["direction"]] = record
    return list(shown.values())


def _plays(score: Score, role: str, measured: Measured) -> bool:
    if role == "own":
        return (score.layer, score.pooling) == measured.own
    if (score.layer, score.pooling) == measured.main:
        return True
    return score.pooling in KINDS and score.layer in (measured.main[0], None)


def _means(view: View) -> dict[str, Score]:
    """The model's mean over the languages; both directions where they are averaged, else the first direction."""
    found: dict[str, Score] = {}
    for name, scores in view.scores.items():
        means = [score for score in scores if score.language == "mean"] or (scores if len(scores) == 1 else [])
        if means:
            found[name] = next((score for score in means if score.direction == "both"), means[0])
    return found


def _shown(score: Score) -> str:
    """`12.34 (11.20-13.50)`; three decimals for what is not in percent."""
    low, high = score.interval
    digits = 2 if score.scale == 100 else 3
    text = f"{score.value:.{digits}f}"
    text = text if math.isnan(low) else f"{text} ({low:.{digits}f}–{high:.{digits}f})"
    return f"{text}, spread {spread(score):.3f}" if score.metric.startswith("cka") else text


def _gain(record: Record | None) -> str | None:
    if record is None:
        return None
    digits = 3 if record["metric"].startswith("cka") else 2
    text = f"{record['value']:+.{digits}f}"
    if record["low"] is None:
        return text
    text += f" ({record['low']:+.{digits}f}…{record['high']:+.{digits}f})"
    return f"**{text}**" if record["low"] > 0 or record["high"] < 0 else text


def _models(models: Models, baseline: str) -> str:
    rows = [
        (f"{name} (baseline)" if name == baseline else name, m.source, m.depth, f"layer {m.main[0]}, {m.main[1]}",
         f"layer {m.own[0]}, {m.own[1]}")
        for name, m in models.items()
    ]  # fmt: skip
    return markdown_table(("model", "source", "layers", "main", "own"), rows)


def _headline_table(headline: Sequence[View], baseline: str) -> str:
    names = list(dict.fromkeys(name for view in headline for name in view.scores))
    rows = []
    for view in headline:
        means = _means(view)
        direction = next(iter(means.values())).direction
        less = " (less is better)" if view.metric.startswith(LOWER_IS_BETTER) else ""
        first = next(iter(means.values()))
        row: list[Any] = [view.title + less, direction]
        for name in names:
            row.append(_shown(means[name]) if name in means else None)
            if name != baseline:
                row.append(_gain(view.differences.get((name, first.language, direction))))
        rows.append([*row, first.count])
    header = ["measure", "direction"]
    for name in names:
        header += [name] if name == baseline else [name, "difference"]
    return markdown_table([*header, "items"], rows)


def _language_table(view: View, baseline: str) -> str:
    names = list(view.scores)
    lines = list(dict.fromkeys((s.language, s.direction) for scores in view.scores.values() for s in scores))
    if {"both"} < {direction for _, direction in lines}:
        lines = [line for line in lines if line[1] == "both"]  # each direction by itself is in scores.json
    score = {(name, s.language, s.direction): s for name, scores in view.scores.items() for s in scores}
    rows = []
    for language, direction in lines:
        row: list[Any] = [f"**{language}**" if language == "mean" else language, direction]
        items = None
        for name in names:
            own = score.get((name, language, direction))
            items = items if own is None else own.count
            row.append(None if own is None else _shown(own))
            if name != baseline:
                row.append(_gain(view.differences.get((name, language, direction))))
        rows.append([*row, items])
    header = ["language", "direction"]
    for name in names:
        header += [name] if name == baseline else [name, "difference"]
    return markdown_table([*header, "items"], rows)


def _model_panel(view: View) -> tuple[str, dict[str, tuple[float, float, float]]]:
    less = ", less is better" if view.metric.startswith(LOWER_IS_BETTER) else ""
    return view.title + less, {name: (score.value, *score.interval) for name, score in _means(view).items()}


def _curves(models: Models) -> list[LayerCurves]:
    """A panel for each task and metric that was measured at several layers with one pooling."""
    panels: dict[tuple[str, str, str], dict[str, dict[int, Score]]] = {}
    for name, measured in models.items():
        for score in measured.scores:
            if score.language == "mean" and score.layer is not None and score.direction in ("both", "en-xx", "all"):
                lines = panels.setdefault((score.task, score.metric, score.pooling), {}).setdefault(name, {})
                if score.direction != "en-xx" or score.layer not in lines:
                    lines[score.layer] = score
    wanted: Callable[[str], bool] = lambda metric: not metric.startswith(("precision", "recall"))  # noqa: E731
    return [
        LayerCurves(
            f"{task}, {pooling.replace('_', ' ')}",
            metric.replace("_", " ") + (" (%)" if next(iter(next(iter(lines.values())).values())).scale == 100 else ""),
            {name: {layer: score.value for layer, score in line.items()} for name, line in lines.items()},
            {name: {layer: score.interval for layer, score in line.items()} for name, line in lines.items()},
        )
        for (task, metric, pooling), lines in panels.items()
        if wanted(metric) and max(map(len, lines.values())) >= 2
    ]


def _bars(shown: Sequence[View]) -> tuple[list[str], list[Bars]]:
    """Labels and panels: retrieval by language, a panel for each test set and role."""
    chosen = [view for view in shown if view.metric == "accuracy"]
    languages = list(dict.fromkeys(s.language for view in chosen for scores in view.scores.values() for s in scores))
    labels = [language for language in languages if language != "mean"] + ["mean"]
    nothing = float("nan"), float("nan")
    panels = []
    for view in chosen:
        values, intervals = {}, {}
        for name, scores in view.scores.items():
            own = {score.language: score for score in scores if score.direction == "both"}
            values[name] = [own[x].value if x in own else float("nan") for x in labels]
            intervals[name] = [own[x].interval if x in own else nothing for x in labels]
        panels.append(Bars(view.title, values, intervals))
    return labels, panels
