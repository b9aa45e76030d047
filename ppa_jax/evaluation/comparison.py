"""Compares models, or one model at several moments: which scores belong together, as tables and panels.

Every table and picture states the layer and the pooling. The role `main` is the same relative depth in every model,
with mean pooling; `own` is the layer and pooling that a model was trained with. Differences never mix them: for `own`,
the baseline is measured at the layer and pooling of the model that it is compared with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppa_jax.evaluation.embed import Request
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import Bars, LayerCurves
from ppa_jax.evaluation.scores import Difference, Record, Score, difference, draw


@dataclasses.dataclass(frozen=True)
class Measured:
    """The scores of one model."""

    source: str
    depth: int  # blocks
    main: Request
    own: Request | None  # None: unknown
    scores: list[Score]  # the mean over the trainings, if there are several
    runs: Sequence[Sequence[Score]] = ()  # the scores of each training, if there are several


Models = Mapping[str, Measured]
LOWER_IS_BETTER = ("aer",)
# Poolings of measures that have only one: shown at the main layer, or without a layer.
KINDS = ("tokens", "tokens_argmax", "mean_without_special", "input_embeddings")
WIDE = 3  # with more models, tables have no columns of differences

LEGEND = (
    "In brackets: 95% confidence interval, by bootstrap over the items (sentences, words), for CKA by Student's t over "
    "the batches. Differences are paired: both models are measured on the same samples of items. A difference whose "
    "interval excludes zero is in bold. For a model with several trainings, ± is the standard deviation over them, and "
    "the interval is that of their mean; otherwise intervals do not cover the variance between trainings. Retrieval, "
    "mining, alignment and lexicon are in percent, CKA is between 0 and 1; a lower AER (alignment error rate) is "
    "better. `both` is the mean of the two directions. [scores.json](scores.json) has every layer and direction."
)


class View(NamedTuple):
    """One table: the scores of one task and metric in one role, of every model."""

    task: str
    metric: str
    role: str  # "main" or "own"
    kind: str  # the pooling, if it is one of KINDS: a measure may have several in the same role
    scores: dict[str, list[Score]]  # by model
    differences: dict[tuple[str, str, str, str], Record]  # by baseline, model, language, direction

    @property
    def settings(self) -> set[tuple[int | None, str]]:
        """Layer and pooling of all scores."""
        return {(score.layer, score.pooling) for scores in self.scores.values() for score in scores}

    @property
    def title(self) -> str:
        """Task, metric and, if all models agree, layer and pooling."""
        if len(self.settings) > 1:
            shown = "as trained" if self.role == "own" else "two thirds of the depth"
        else:
            shown = setting_name(*next(iter(self.settings)))
        lower = " (lower is better)" if self.metric.startswith(LOWER_IS_BETTER) else ""
        return f"{self.task}: {self.metric.replace('_', ' ')}, {shown}{lower}"


def main_setting(depth: int) -> Request:
    """The setting of retrieval in XTREME: layer 8 of 12, or the same relative depth, and mean pooling."""
    return round(depth * 2 / 3), "mean"


def records_of(models: Models) -> list[Record]:
    """The records of scores.json. If a model has several trainings, they are called NAME/1, NAME/2, ..."""
    draw(score for measured in models.values() for scores in (measured.scores, *measured.runs) for score in scores)
    records = []
    for name, measured in models.items():
        records += [score.record(name) for score in measured.scores]
        for number, scores in enumerate(measured.runs, start=1):
            records += [score.record(f"{name}/{number}") for score in scores]
    return records


def views(models: Models, baselines: Sequence[str]) -> list[View]:
    """The tables of a report, in the order of measurement, with the differences from each baseline."""
    shown: dict[tuple[str, ...], View] = {}
    owns = {measured.own for measured in models.values() if measured.own}
    # For a model whose training is unknown: the layer and pooling of all others.
    common = next(iter(owns)) if len(owns) == 1 else None
    for name, measured in models.items():
        own = measured.own or common
        for score in measured.scores:
            at = score.layer, score.pooling
            without_choice = score.pooling in KINDS and score.layer in (measured.main[0], None)
            roles = ["main"] if at == measured.main or without_choice else []
            roles += ["own"] if at == own and owns != {m.main for m in models.values()} else []
            for role in roles:
                kind = score.pooling if role == "main" and score.pooling in KINDS else ""
                key = score.task, score.metric, role, kind
                shown.setdefault(key, View(*key, {}, {})).scores.setdefault(name, []).append(score)
    for view in shown.values():
        for baseline in baselines:
            view.differences.update(_differences(view, models, baseline))
    return list(shown.values())


def _differences(view: View, models: Models, baseline: str) -> dict[tuple[str, str, str, str], Record]:
    def key(score: Score) -> tuple[Any, ...]:
        at = (score.layer, score.pooling) if view.role == "own" else None
        return score.language, score.direction, at

    against = models[baseline].scores if view.role == "own" else view.scores.get(baseline, [])
    old = {key(score): score for score in against if (score.task, score.metric) == (view.task, view.metric)}
    found = {}
    for model, scores in view.scores.items():
        for score in scores if model != baseline else ():
            before = old.get(key(score))
            if before is not None and (record := difference(score, before, model, baseline)):
                found[baseline, model, score.language, score.direction] = record
    return found


def means(view: View, direction: str | None = None) -> dict[str, Score]:
    """Each model's mean over the languages; `direction` defaults to both, or to the only one."""
    found: dict[str, Score] = {}
    for name, scores in view.scores.items():
        own = [score for score in scores if score.language == "mean"] or (scores if len(scores) == 1 else [])
        if direction is not None:
            own = [score for score in own if score.direction == direction]
        if own:
            found[name] = next((score for score in own if score.direction == "both"), own[0])
    return found


def means_table(shown: Sequence[View], models: Sequence[str]) -> str:
    """A row for each measure and direction, a column for each model."""
    rows = []
    for view in shown:
        scores = [score for own in view.scores.values() for score in own if score.language == "mean"]
        for direction in dict.fromkeys(score.direction for score in scores) or [None]:
            by_model = means(view, direction)
            if by_model:
                first = next(iter(by_model.values()))
                cells = [_cell(by_model[name], view) if name in by_model else None for name in models]
                rows.append([view.title, first.direction, *cells, first.count])
    return markdown.table(["measure", "direction", *models, "items"], rows)


def differences_table(shown: Sequence[View], models: Sequence[str], baseline: str) -> str:
    """A row for each measure, a column for each model: its mean over the languages minus the baseline's."""
    others = [name for name in models if name != baseline]
    rows = []
    for view in shown:
        by_model = means(view)
        cells = [_gain(view, baseline, by_model.get(name), name) for name in others]
        if any(cells):
            rows.append([view.title, next(iter(by_model.values())).direction, *cells])
    return markdown.table(["measure", "direction", *others], rows)


def settings_table(models: Models) -> str:
    """Retrieval at every measured layer and pooling, with the exported one in bold: means over the languages.

    `models` are one model at several moments; the last column compares the settings at the last moment.
    """
    measured = list(models.values())[-1]
    moments = [_retrieval_means(moment) for moment in models.values()]
    gains = _over_exported(measured)
    rows = []
    for key in moments[-1]:
        task, layer, pooling = key
        name = setting_name(layer, pooling)
        cells = [_value(scores[key]) if key in scores else None for scores in moments]
        gain = gains[key].text(digits=2) if key in gains else None
        rows.append((task, f"**{name}**" if (layer, pooling) == measured.own else name, *cells, gain))
    return markdown.table(("task", "layer and pooling", *models, "against the export"), rows)


def best_setting(measured: Measured, task: str = "") -> tuple[str, int | None, str, Difference] | None:
    """(task, layer, pooling, gain) of the best retrieval if it is significantly better than at the exported setting.

    `task` restricts it to one test set.
    """
    gains = {key: gain for key, gain in _over_exported(measured).items() if gain.low > 0 and task in ("", key[0])}
    if not gains:
        return None
    best = max(gains, key=lambda key: gains[key].mean)
    return *best, gains[best]


def better_setting(measured: Measured) -> str:
    """One line on the best layer and pooling if it is significantly better than the exported one, else ""."""
    best = best_setting(measured)
    if measured.own is None or best is None:
        return ""
    task, layer, pooling, gain = best
    return (
        f"{setting_name(layer, pooling)} is better than the exported {setting_name(*measured.own)}: {task} "
        f"{gain.text(digits=2)}. To use it, Encoder.from_pretrained(..., layer={layer}, pooling={pooling!r}); "
        f"to train and export it, contrastive.layer={layer} and contrastive.pooling={pooling}."
    )


def _over_exported(measured: Measured) -> dict[tuple[str, int | None, str], Difference]:
    """The paired differences between retrieval at other settings and at the exported one."""
    found, gains = _retrieval_means(measured), {}
    for (task, *setting), score in found.items():
        exported = found.get((task, *measured.own)) if measured.own else None
        if exported is not None and exported is not score and (gain := difference(score, exported, "", "")):
            gains[task, *setting] = Difference.of_record(gain)
    return gains


def _retrieval_means(measured: Measured) -> dict[tuple[str, int | None, str], Score]:
    """The mean over the languages, both directions, by task, layer and pooling."""
    return {
        (score.task, score.layer, score.pooling): score
        for score in measured.scores
        if (score.language, score.direction, score.metric) == ("mean", "both", "accuracy")
    }


def language_table(view: View, baseline: str) -> str:
    """A row for each language, a column for each model, and with few models a column for each difference.

    With many models, a score is in bold if its difference from the baseline is.
    """
    names = list(view.scores)
    by_row = {(name, s.language, s.direction): s for name, scores in view.scores.items() for s in scores}
    keys = list(dict.fromkeys(key[1:] for key in by_row))
    if {"both"} < {direction for _, direction in keys}:
        keys = [key for key in keys if key[1] == "both"]
    few = len(names) <= WIDE
    rows = []
    for language, direction in keys:
        row: list[Any] = [f"**{language}**" if language == "mean" else language, direction]
        items = None
        for name in names:
            score = by_row.get((name, language, direction))
            items = items if score is None else score.count
            gain = _gain(view, baseline, score, name)
            cell = None if score is None else _cell(score, view)
            row.append(f"**{cell}**" if cell and gain and gain.startswith("**") and not few else cell)
            if few and name != baseline:
                row.append(gain)
        rows.append([*row, items])
    header = ["language", "direction"]
    for name in names:
        header += [name] if name == baseline or not few else [name, "difference"]
    return markdown.table([*header, "items"], rows)


def setting_name(layer: int | None, pooling: str) -> str:
    """Layer and pooling as text."""
    pooling = pooling.replace("_", " ")
    return pooling if layer is None else f"layer {layer}, {pooling}"


def _cell(score: Score, view: View) -> str:
    """The score, with its layer and pooling if the view has several."""
    text = _value(score)
    return text if len(view.settings) == 1 else f"{text} [{setting_name(score.layer, score.pooling)}]"


def _value(score: Score) -> str:
    """`12.34 (11.20–13.50)`; three decimals for scores that are not in percent."""
    low, high = score.interval
    digits = _digits(score)
    text = f"{score.value:.{digits}f}"
    text += "" if math.isnan(low) else f" ({low:.{digits}f}–{high:.{digits}f})"
    text += f" ±{score.by_run.std(ddof=1):.{digits}f}" if score.runs > 1 else ""
    text += f", spread {score.by_batch.std(ddof=1):.3f}" if score.batches and min(score.sizes) > 1 else ""
    return text


def _digits(score: Score) -> int:
    return 2 if score.scale == 100 else 3


def _gain(view: View, baseline: str, score: Score | None, model: str) -> str | None:
    """The difference, with the baseline's value if the baseline's column shows another layer or pooling."""
    if score is None or (record := view.differences.get((baseline, model, score.language, score.direction))) is None:
        return None
    text, at = Difference.of_record(record).text(_digits(score)), (score.layer, score.pooling)
    if view.role == "own" and at not in {(other.layer, other.pooling) for other in view.scores.get(baseline, [])}:
        text = f"{text}, {baseline} there: {score.value - record['value']:.{_digits(score)}f}"
    return text


def model_panels(shown: Sequence[View]) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
    """For `plots.plot_models`: the means over the languages."""
    return [
        (view.title, {name: (score.value, *score.interval) for name, score in means(view).items()}) for view in shown
    ]


def layer_curves(models: Models) -> list[LayerCurves]:
    """A panel for each task, metric and pooling that was measured at several layers: the means over the languages."""
    panels: dict[tuple[str, str, str], dict[str, dict[int, Score]]] = {}
    for name, measured in models.items():
        for score in measured.scores:
            if score.language == "mean" and score.layer is not None and score.direction in ("both", "en-xx", "all"):
                lines = panels.setdefault((score.task, score.metric, score.pooling), {}).setdefault(name, {})
                if score.direction != "en-xx" or score.layer not in lines:
                    lines[score.layer] = score
    curves = []
    for (task, metric, pooling), lines in panels.items():
        if max(map(len, lines.values())) >= 2 and not metric.startswith(("precision", "recall")):
            scale = next(iter(next(iter(lines.values())).values())).scale
            curves.append(
                LayerCurves(
                    f"{task}, {pooling.replace('_', ' ')}",
                    metric.replace("_", " ") + (" (%)" if scale == 100 else ""),
                    {name: {layer: score.value for layer, score in line.items()} for name, line in lines.items()},
                    {name: {layer: score.interval for layer, score in line.items()} for name, line in lines.items()},
                )
            )
    return curves


def retrieval_bars(shown: Sequence[View]) -> tuple[list[str], list[Bars]]:
    """Labels and panels for `plots.plot_bars`: retrieval by language, a panel for each test set and role."""
    chosen = [view for view in shown if view.metric == "accuracy"]
    names = dict.fromkeys(name for view in chosen for name in view.scores)
    languages = dict.fromkeys(s.language for view in chosen for scores in view.scores.values() for s in scores)
    labels = [language for language in languages if language != "mean"] + ["mean"]
    nan = float("nan")
    panels = []
    for view in chosen:
        values, intervals = {}, {}
        for name in names:
            own = {score.language: score for score in view.scores.get(name, []) if score.direction == "both"}
            values[name] = [own[x].value if x in own else nan for x in labels]
            intervals[name] = [own[x].interval if x in own else (nan, nan) for x in labels]
        panels.append(Bars(view.title, values, intervals))
    return labels, panels
