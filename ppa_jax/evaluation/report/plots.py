"""Plots as PNG: training curves, bars by language, curves by layer, models side by side. Same input, same bytes.

Every function writes its file atomically, and raises UserError if it cannot be written.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppa_jax.training.workdir import atomic

# Distinguishable for the colour-blind and in grey. The first is for the baseline.
COLOURS = ("#a9b4c2", "#1f5fa8", "#d9822b", "#3d8f6b", "#8c5a9e", "#b8432f")
INK, GRID = "#2b2f36", "#d9dde3"
WINDOW = 20  # steps of the running mean of a training curve
MEANS = ("zero-shot", "mean")  # the last labels, for means over the others


class Panel(NamedTuple):
    """One curve of metrics.jsonl."""

    metric: str  # its name there
    title: str
    unit: str
    scale: float = 1.0


class Bars(NamedTuple):
    """One panel of grouped bars."""

    title: str
    values: Mapping[str, Sequence[float]]  # series -> a value for each label; NaN draws nothing
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None  # (low, high) likewise


class Scatter(NamedTuple):
    """One panel of points."""

    title: str
    xlabel: str
    ylabel: str
    points: Mapping[str, Sequence[tuple[float, float, str]]]  # series (a colour) -> (x, y, kind (a marker))


class LayerCurves(NamedTuple):
    """One panel of curves over the layers."""

    title: str
    ylabel: str
    values: Mapping[str, Mapping[int, float]]  # series -> {layer: value}
    intervals: Mapping[str, Mapping[int, tuple[float, float]]] = {}


def plot_bars(
    path: str | os.PathLike, labels: Sequence[str], panels: Sequence[Bars], *, title: str, ylabel: str
) -> None:
    """Grouped bars, one panel below the other, with error bars for the intervals if given.

    `labels` name the groups along x, `ylabel` the quantity and its unit. All panels have the same series.
    """
    series = list(panels[0].values)
    width = min(18.0, max(7.0, 1.6 + len(labels) * (0.34 * len(series) + 0.25)))
    thickness = 0.8 / len(series)
    with _figure(path, title, len(panels), columns=1, width=width, height=3.1) as (figure, axes):
        for axis, (name, values, intervals) in zip(axes, panels, strict=True):
            highs = [high for pairs in (intervals or {}).values() for _, high in pairs]
            for i, (label, numbers) in enumerate(values.items()):
                x = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * thickness
                bars = axis.bar(x, numbers, thickness * 0.94, label=label, color=COLOURS[i % len(COLOURS)], zorder=2)
                if intervals:
                    error = _whiskers(numbers, *np.array(intervals[label], float).T)
                    axis.errorbar(x, numbers, error, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5, zorder=3)
                elif width / (len(labels) * len(series)) > 0.3:  # inches: room for a number above the bar
                    text = [f"{v:.1f}" if np.isfinite(v) else "" for v in numbers]
                    axis.bar_label(bars, text, fontsize=7.5, padding=1.5)
            _describe(axis, name, ylabel=ylabel, grid="y")
            axis.set_xticks(np.arange(len(labels)), labels, rotation=60 if len(labels) > 30 else 0)
            axis.set_xlim(-0.6, len(labels) - 0.4)
            axis.set_ylim(0, np.nanmax([1e-9, *highs, *(v for numbers in values.values() for v in numbers)]) * 1.14)
            if means := sum(label in MEANS for label in labels):
                axis.axvline(len(labels) - means - 0.5, color=GRID, linewidth=1.2)
        entry = 0.6 + 0.08 * max(map(len, series))  # inches
        _legend(figure, axes[0].get_legend_handles_labels()[0], columns=max(1, int(width / entry)))


def plot_curves(
    path: str | os.PathLike, runs: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel], *, title: str
) -> bool:
    """Metrics against the step: each step as a thin line, the mean over the last WINDOW steps as a thick line.

    Of several runs, by name, the means alone, or the steps where there are fewer than 20. Returns False, and writes
    nothing, if no panel has a value.
    """
    curves = []
    for panel in panels:
        lines = {}
        for name, metrics in runs.items():
            points = [(m["step"], m[panel.metric] * panel.scale) for m in metrics if m.get(panel.metric) is not None]
            if points:
                lines[name] = np.array(points, float).T
        if lines:
            curves.append((panel, lines))
    if not curves:
        return False
    colours = _colours(runs)
    with _figure(path, title, len(curves)) as (figure, axes):
        for axis, (panel, lines) in zip(axes, curves, strict=True):
            for name, (steps, values) in lines.items():
                means = running_mean(values)
                if len(runs) > 1:
                    x, y = (steps[WINDOW - 1 :], means) if len(means) > 1 else (steps, values)
                    axis.plot(x, y, color=colours[name], linewidth=1.4, label=name)
                    continue
                axis.plot(steps, values, color=COLOURS[0], linewidth=0.8, label="step")
                if len(means) > 1:
                    label = f"mean of {WINDOW} steps"
                    axis.plot(steps[WINDOW - 1 :], means, color=COLOURS[1], linewidth=1.8, label=label)
                    axis.legend(frameon=False, fontsize=8)
            _describe(axis, panel.title, "step", panel.unit)
            if panel.scale == 100:
                axis.set_ylim(bottom=0)
        if len(runs) > 1:
            _legend(figure, axes[0].get_legend_handles_labels()[0], columns=4)
    return True


def plot_layers(
    path: str | os.PathLike,
    panels: Sequence[LayerCurves],
    *,
    title: str,
    xlabel: str = "layer (0: embeddings)",
    marker: str = "o",
) -> None:
    """A measure against the layer (or `xlabel`), a line for each series, with bands for the intervals if given.

    Panels of one measure share their scale, and a series has the same colour in all panels.
    """
    colours = _colours(label for panel in panels for label in panel.values)
    style = {"linewidth": 1.6, "markersize": 3.5}
    with _figure(path, title, len(panels)) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            for label, values in panel.values.items():
                layers = sorted(values)
                y = [values[x] for x in layers]
                axis.plot(layers, y, f"{marker}-", color=colours[label], label=label, **style)
                if band := panel.intervals.get(label):
                    low, high = np.array([band[x] for x in layers], float).T
                    axis.fill_between(layers, low, high, color=colours[label], alpha=0.15, linewidth=0)
            axis.xaxis.get_major_locator().set_params(integer=True)
            _describe(axis, panel.title, xlabel, panel.ylabel)
        for measure in {panel.ylabel for panel in panels}:
            same = [axis for axis in axes if axis.get_ylabel() == measure]
            ends = [end for axis in same for end in axis.get_ylim()]
            for axis in same:
                axis.set_ylim(min(ends), max(ends))
        lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
        _legend(figure, list(lines.values()), columns=3)


def plot_models(
    path: str | os.PathLike, panels: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]], *, title: str
) -> None:
    """Models side by side: a panel for each measure, a bar for each model with its interval.

    `panels` are (measure with its unit, {model: (value, low, high)}).
    """
    colours = _colours(name for _, values in panels for name in values)
    height = 0.9 + 0.28 * len(colours)
    with _figure(path, title, len(panels), columns=3, width=4.0, height=height) as (_, axes):
        for axis, (name, values) in zip(axes, panels, strict=True):
            for i, (model, (value, low, high)) in enumerate(values.items()):
                axis.barh(i, value, 0.75, color=colours[model], zorder=2)
                error = _whiskers([value], low, high)
                axis.errorbar(value, i, xerr=error, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, zorder=3)
                text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
                end = (np.nanmax([value, high]), i)
                axis.annotate(text, end, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
            axis.set_yticks(range(len(values)), list(values), fontsize=8.5)
            axis.invert_yaxis()
            axis.margins(x=0.16)
            _describe(axis, textwrap.fill(name, 44), grid="x", fontsize=9.5)


def plot_scatter(path: str | os.PathLike, panels: Sequence[Scatter], *, title: str) -> None:
    """Points: a colour for each series, a marker for each kind."""
    colours = _colours(name for panel in panels for name in panel.points)
    kinds = dict.fromkeys(kind for panel in panels for points in panel.points.values() for *_, kind in points)
    markers = dict(zip(kinds, "os^Dv<>Pp*hX" * len(kinds), strict=False))
    with _figure(path, title, len(panels), height=3.2) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            for name, points in panel.points.items():
                for x, y, kind in points:
                    axis.plot(x, y, markers[kind], color=colours[name], markersize=6, markeredgecolor="white")
            _describe(axis, panel.title, panel.xlabel, panel.ylabel)
        entries = [("o", {"color": colour, "label": name}) for name, colour in colours.items()]
        if len(markers) > 1:
            entries += [(x, {"color": INK, "fillstyle": "none", "label": kind}) for kind, x in markers.items()]
        _legend(figure, [axes[0].plot([], [], mark, **style)[0] for mark, style in entries], columns=4)


def plot_heat_maps(
    path: str | os.PathLike,
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    signed: bool = True,
) -> None:
    """Heat maps below each other, with a number in each cell.

    `panels` are title -> [rows, columns], where NaN stays empty. If `signed`, red is above zero and blue below, for
    losses; else one colour from pale to dark, for amounts.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in panels.values()] or [np.zeros(1)])
    limit = max(1e-9, float(np.abs(finite).max(initial=0)))
    colours, low, form = ("RdBu_r", -limit, "+.1f") if signed else ("Blues", 0.0, ".2f")
    width, height = max(6.0, 1.8 + 0.62 * len(columns)), 0.9 + 0.32 * len(rows)
    with _figure(path, title, len(panels), columns=1, width=width, height=height) as (_, axes):
        for axis, (name, values) in zip(axes, panels.items(), strict=True):
            axis.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 * limit else INK
                    axis.text(j, i, f"{value:{form}}", ha="center", va="center", fontsize=8, color=colour)
            axis.set_xticks(range(len(columns)), columns)
            axis.set_yticks(range(len(rows)), rows)
            _describe(axis, name, ylabel="blocks", grid="")
            axis.spines[["left", "bottom"]].set_visible(False)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and the WINDOW - 1 before it, from the first full window on: [max(0, N - WINDOW + 1)]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[WINDOW:] - total[:-WINDOW]) / WINDOW


@contextlib.contextmanager
def _figure(
    path: str | os.PathLike, title: str, panels: int, *, columns: int = 2, width: float = 5.2, height: float = 3.0
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and an axis for each panel of `width` x `height` inches, in rows of `columns`; saved after the block."""
    # The Agg canvas works whatever backend the calling program uses.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, 0.9 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(rows, columns)))
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes:
        axis.tick_params(colors=INK, labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#8a919c")
        axis.set_axisbelow(True)
    yield figure, axes[:panels]
    lines = textwrap.wrap(title, max(20, int(width * columns * 8)))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    with atomic(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=130, metadata={"Software": None})  # a version would change bytes


def _describe(
    axis: Any, title: str, xlabel: str = "", ylabel: str = "", *, grid: str = "both", fontsize: float = 10.5
) -> None:
    axis.set_title(title, loc="left", fontsize=fontsize)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if grid:
        axis.grid(axis=grid, color=GRID, linewidth=0.7)


def _legend(figure: Any, handles: Sequence[Any], *, columns: int) -> None:
    rows = -(-len(handles) // columns)  # filled evenly: no row for the last name alone
    columns = -(-len(handles) // max(1, rows))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _colours(names: Iterable[str]) -> dict[str, str]:
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def _whiskers(values: Any, low: Any, high: Any) -> np.ndarray:
    """[2, N]: how far the interval extends below and above each value; 0 where it is NaN."""
    error = np.array([np.subtract(values, low), np.subtract(high, values)], float)
    return np.nan_to_num(error).reshape(2, -1).clip(0)
