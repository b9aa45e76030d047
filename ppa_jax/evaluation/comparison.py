"""Models side by side, or one model at several moments: which scores belong together, as tables and panels.

Every table and picture says at which layer and with which pooling. `main` is the same depth in every model with mean
pooling; `own` is what a model was trained with. Differences are always between scores of one kind: at `own`, the
baseline is taken at the layer and pooling of the model that is compared with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppa_jax.evaluation.embed import Request
from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import Bars, LayerCurves
from ppa_jax.evaluation.scores import Record, Score, difference, draw


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    source: str
    depth: int  # blocks
    main: Request
    own: Request | None  # None: nothing says so
    scores: list[Score]  # the mean over the runs, if it was trained several times
    runs: Sequence[Sequence[Score]] = ()  # then those of each run


Models = Mapping[str, Measured]
LOWER_IS_BETTER = ("aer",)
# Of measures that have no choice of pooling: shown at the main layer, or without a layer.
KINDS = ("tokens", "tokens_argmax", "mean_without_special", "input_embeddings")
WIDE = 3  # more models than these have no column for each difference

LEGEND = (
    "In brackets: 95% confidence interval, by bootstrap over the items (sentences, words); for CKA Student's, over the "
    "batches. Differences are paired, on the same draws of items; one whose interval leaves out zero is in bold. Where "
    "a model was trained several times, ± is the standard deviation over the trainings, and the intervals are those of "
    "their mean; otherwise they say nothing about the spread between trainings. Retrieval, mining, alignment and "
    "lexicon in percent, CKA between 0 and 1; for AER (alignment error rate) less is better. `both` is the mean of the "
    "two directions; every layer and direction is in [scores.json](scores.json)."
)


class View(NamedTuple):
    """One table: the scores of one task and metric that play one role, in every model."""

    task: str
    metric: str
    role: str  # "main" or "own"
    kind: str  # of the vectors, where the measure says it: one measure may have several kinds in the same role
    scores: dict[str, list[Score]]  # by model
    differences: dict[tuple[str, str, str, str], Record]  # by baseline, model, language, direction

    @property
    def where(self) -> set[tuple[int | None, str]]:
        """Layer and pooling of all that is in it."""
        return {(score.layer, score.pooling) for scores in self.scores.values() for score in scores}

    @property
    def title(self) -> str:
        """Task, metric and, where all models agree, layer and pooling."""
        if len(self.where) > 1:
            shown = "as trained" if self.role == "own" else "two thirds of the depth"
        else:
            shown = _place(*next(iter(self.where)))
        less = " (less is better)" if self.metric.startswith(LOWER_IS_BETTER) else ""
        return f"{self.task}: {self.metric.replace('_', ' ')}, {shown}{less}"


def main_place(depth: int) -> Request:
    """Where XTREME measures retrieval: layer 8 of 12, or the same depth, and the mean of all tokens."""
    return round(depth * 2 / 3), "mean"


def records_of(models: Models) -> list[Record]:
    """The records of scores.json. The runs of a model that has several are called NAME/1, NAME/2, ..."""
    draw(score for measured in models.values() for scores in (measured.scores, *measured.runs) for score in scores)
    records = []
    for name, measured in models.items():
        records += [score.record(name) for score in measured.scores]
        for number, scores in enumerate(measured.runs, start=1):
            records += [score.record(f"{name}/{number}") for score in scores]
    return records


def views(models: Models, baselines: Sequence[str]) -> list[View]:
    """What the tables show, in the order in which it was measured, with the differences to each baseline."""
    shown: dict[tuple[str, ...], View] = {}
    owns = {measured.own for measured in models.values() if measured.own}
    # Of a model that does not say what it was trained with: what all others were trained with.
    common = next(iter(owns)) if len(owns) == 1 else None
    for name, measured in models.items():
        own = measured.own or common
        for score in measured.scores:
            place = (score.layer, score.pooling)
            roles = [
                ("main", place == measured.main or _has_its_own_place(score, measured)),
                ("own", place == own and owns != {m.main for m in models.values()}),
            ]
            for role, plays in roles:
                if plays:
                    kind = score.pooling if role == "main" and score.pooling in KINDS else ""
                    key = score.task, score.metric, role, kind
                    shown.setdefault(key, View(*key, {}, {})).scores.setdefault(name, []).append(score)
    for view in shown.values():
        for baseline in baselines:
            view.differences.update(_differences(view, models, baseline))
    return list(shown.values())


def _has_its_own_place(score: Score, measured: Measured) -> bool:
    return score.pooling in KINDS and score.layer in (measured.main[0], None)


def _differences(view: View, models: Models, baseline: str) -> dict[tuple[str, str, str, str], Record]:
    def key(score: Score) -> tuple[Any, ...]:
        place = (score.layer, score.pooling) if view.role == "own" else None
        return score.language, score.direction, place

    against = models[baseline].scores if view.role == "own" else view.scores.get(baseline, [])
    old = {key(score): score for score in against if (score.task, score.metric) == (view.task, view.metric)}
    found = {}
    for model, scores in view.scores.items():
        for score in scores if model != baseline else ():
            before = old.get(key(score))
            record = None if before is None else difference(score, before, model, baseline)
            if record is not None:
                found[baseline, model, score.language, score.direction] = record
    return found


def means(view: View, direction: str | None = None) -> dict[str, Score]:
    """Each model's mean over the languages; without `direction` that of both, or of the only one that there is."""
    found: dict[str, Score] = {}
    for name, scores in view.scores.items():
        own = [score for score in scores if score.language == "mean"] or (scores if len(scores) == 1 else [])
        if direction is not None:
            own = [score for score in own if score.direction == direction]
        if own:
            found[name] = next((score for score in own if score.direction == "both"), own[0])
    return found


def means_table(shown: Sequence[View], models: Sequence[str]) -> str:
    """A line for each measure and direction, a column for each model."""
    rows = []
    for view in shown:
        scores = [score for own in view.scores.values() for score in own if score.language == "mean"]
        for direction in dict.fromkeys(score.direction for score in scores) or [None]:
            by_model = means(view, direction)
            if by_model:
                first = next(iter(by_model.values()))
                cells = [_shown(by_model[name], view) if name in by_model else None for name in models]
                rows.append([view.title, first.direction, *cells, first.count])
    return markdown.table(["measure", "direction", *models, "items"], rows)


def differences_table(shown: Sequence[View], models: Sequence[str], baseline: str) -> str:
    """A line for each measure, a column for each model: its mean over the languages minus the baseline's."""
    others = [name for name in models if name != baseline]
    rows = []
    for view in shown:
        by_model = means(view)
        cells = [_gain(view, baseline, by_model.get(name), name) for name in others]
        if any(cells):
            rows.append([view.title, next(iter(by_model.values())).direction, *cells])
    return markdown.table(["measure", "direction", *others], rows)


def settings_table(models: Models) -> str:
    """Retrieval with every layer and pooling that was measured, the exported one in bold: means over the languages.

    `models` are one model at its moments; the last column compares the settings at the last of them.
    """
    measured = list(models.values())[-1]
    moments = [_retrieval_means(moment) for moment in models.values()]
    gains = _over_exported(measured)
    rows = []
    for key in moments[-1]:
        task, *setting = key
        place = _place(*setting)
        cells = [_value(scores[key]) if key in scores else None for scores in moments]
        gain = _difference(gains[key]) if key in gains else None
        rows.append((task, f"**{place}**" if tuple(setting) == measured.own else place, *cells, gain))
    return markdown.table(("task", "layer and pooling", *models, "against the export"), rows)


def better_setting(measured: Measured) -> str:
    """One line on the best layer and pooling, if it beats what is exported beyond the interval; else nothing."""
    better = {key: gain for key, gain in _over_exported(measured).items() if (gain["low"] or 0) > 0}
    if measured.own is None or not better:
        return ""
    task, layer, pooling = best = max(better, key=lambda key: better[key]["value"])
    return (
        f"{_place(layer, pooling)} is better than what is exported, {_place(*measured.own)}: {task} "
        f"{_difference(better[best])}. To use it, Encoder.from_pretrained(..., layer={layer}, pooling={pooling!r}); "
        f"to train and export it, contrastive.layer={layer} and contrastive.pooling={pooling}."
    )


def _over_exported(measured: Measured) -> dict[tuple[str, int | None, str], Record]:
    """The paired differences of retrieval with other settings to that with the exported one."""
    if measured.own is None:
        return {}
    found, gains = _retrieval_means(measured), {}
    for (task, *setting), score in found.items():
        exported = found.get((task, *measured.own))
        if exported is not None and exported is not score and (gain := difference(score, exported, "", "")):
            gains[task, *setting] = gain
    return gains


def _retrieval_means(measured: Measured) -> dict[tuple[str, int | None, str], Score]:
    """The mean over the languages, both directions, by task, layer and pooling."""
    return {
        (score.task, score.layer, score.pooling): score
        for score in measured.scores
        if (score.language, score.direction, score.metric) == ("mean", "both", "accuracy")
    }


def language_table(view: View, baseline: str) -> str:
    """A line for each language, a column for each model; with few models one for each difference, too.

    With many, a score stands in bold where its difference to the baseline does.
    """
    names = list(view.scores)
    lines = list(dict.fromkeys((s.language, s.direction) for scores in view.scores.values() for s in scores))
    if {"both"} < {direction for _, direction in lines}:
        lines = [line for line in lines if line[1] == "both"]
    by_line = {(name, s.language, s.direction): s for name, scores in view.scores.items() for s in scores}
    few = len(names) <= WIDE
    rows = []
    for language, direction in lines:
        row: list[Any] = [f"**{language}**" if language == "mean" else language, direction]
        items = None
        for name in names:
            score = by_line.get((name, language, direction))
            items = items if score is None else score.count
            gain = _gain(view, baseline, score, name)
            cell = None if score is None else _shown(score, view)
            row.append(f"**{cell}**" if cell and gain and gain.startswith("**") and not few else cell)
            if few and name != baseline:
                row.append(gain)
        rows.append([*row, items])
    header = ["language", "direction"]
    for name in names:
        header += [name] if name == baseline or not few else [name, "difference"]
    return markdown.table([*header, "items"], rows)


def _place(layer: int | None, pooling: str) -> str:
    pooling = pooling.replace("_", " ")
    return pooling if layer is None else f"layer {layer}, {pooling}"


def _shown(score: Score, view: View) -> str:
    """The score, with its place where not all of the view have the same."""
    text = _value(score)
    return text if len(view.where) == 1 else f"{text} [{_place(score.layer, score.pooling)}]"


def _value(score: Score) -> str:
    """`12.34 (11.20–13.50)`; three decimals for what is not in percent."""
    low, high = score.interval
    digits = 2 if score.scale == 100 else 3
    text = f"{score.value:.{digits}f}"
    text += "" if math.isnan(low) else f" ({low:.{digits}f}–{high:.{digits}f})"
    text += f" ±{score.by_run.std(ddof=1):.{digits}f}" if score.runs > 1 else ""
    text += f", spread {score.by_batch.std(ddof=1):.3f}" if score.batches and min(score.sizes) > 1 else ""
    return text


def _gain(view: View, baseline: str, score: Score | None, model: str) -> str | None:
    """The difference, with the baseline's value and place where its column does not show them: see `_differences`."""
    if score is None or (record := view.differences.get((baseline, model, score.language, score.direction))) is None:
        return None
    digits = 2 if score.scale == 100 else 3
    text, place = _difference(record, digits), (score.layer, score.pooling)
    if view.role == "own" and place not in {(other.layer, other.pooling) for other in view.scores.get(baseline, [])}:
        text += f", {baseline} there: {score.value - record['value']:.{digits}f}"
    return text


def _difference(record: Record, digits: int = 2) -> str:
    """`+1.50 (+0.60…+2.40)`, bold where zero is outside."""
    text = f"{record['value']:+.{digits}f}"
    if record["low"] is None:
        return text
    text += f" ({record['low']:+.{digits}f}…{record['high']:+.{digits}f})"
    return f"**{text}**" if record["low"] > 0 or record["high"] < 0 else text


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
    nothing = float("nan"), float("nan")
    panels = []
    for view in chosen:
        values, intervals = {}, {}
        for name in names:
            own = {score.language: score for score in view.scores.get(name, []) if score.direction == "both"}
            values[name] = [own[x].value if x in own else float("nan") for x in labels]
            intervals[name] = [own[x].interval if x in own else nothing for x in labels]
        panels.append(Bars(view.title, values, intervals))
    return labels, panels
