"""Pictures, as PNG: training curves, bars by language, curves by layer, models side by side. Same input, same bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Colour-blind safe, and apart in grey as well. The first is for what a model is compared with.
COLOURS = ("#a9b4c2", "#1f5fa8", "#d9822b", "#3d8f6b", "#8c5a9e", "#b8432f")
INK, GRID = "#2b2f36", "#d9dde3"

WINDOW = 20  # steps of the running mean of a training curve


class Panel(NamedTuple):
    """One curve of metrics.jsonl."""

    metric: str  # its name there
    title: str
    unit: str
    scale: float = 1.0


MEANS = ("zero-shot", "mean")  # labels, at the end, of means over the others


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


def plot_bars(path: str | Path, labels: Sequence[str], panels: Sequence[Bars], *, title: str, ylabel: str) -> None:
    """Grouped bars, one panel below the other, with a mark for each interval that is given.

    Args:
      path: the PNG to write.
      labels: of the groups, along x.
      panels: all with the same series.
      title: of the picture.
      ylabel: the quantity and its unit.
    """
    series = len(panels[0].values)
    wide = min(18.0, max(7.0, 1.6 + len(labels) * (0.34 * series + 0.25)))
    figure, axes = _figure(len(panels), 1, (wide, 0.9 + 3.1 * len(panels)))
    for axis, (name, values, intervals) in zip(axes, panels, strict=True):
        thickness = 0.8 / len(values)
        highs = [high for pairs in (intervals or {}).values() for _, high in pairs]
        highest = np.nanmax([1e-9, *highs, *(v for numbers in values.values() for v in numbers)])
        for i, (label, numbers) in enumerate(values.items()):
            at = np.arange(len(labels)) + (i - (len(values) - 1) / 2) * thickness
            bars = axis.bar(at, numbers, thickness * 0.94, label=label, color=COLOURS[i % len(COLOURS)], zorder=2)
            if intervals:
                low, high = np.array(intervals[label], float).T
                error = np.nan_to_num([np.subtract(numbers, low), np.subtract(high, numbers)]).clip(0)
                axis.errorbar(at, numbers, error, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5, zorder=3)
            elif wide / (len(labels) * len(values)) > 0.3:  # inches: room for a number over the bar
                axis.bar_label(bars, [f"{v:.1f}" if np.isfinite(v) else "" for v in numbers], fontsize=7.5, padding=1.5)
        axis.set_xticks(np.arange(len(labels)), labels, rotation=60 if len(labels) > 30 else 0)
        axis.set_xlim(-0.6, len(labels) - 0.4)
        axis.set_ylim(0, highest * 1.14)
        axis.set_ylabel(ylabel)
        axis.set_title(name, loc="left", fontsize=10.5)
        axis.grid(axis="y", color=GRID, linewidth=0.7)
        if means := sum(label in MEANS for label in labels):
            axis.axvline(len(labels) - means - 0.5, color=GRID, linewidth=1.2)
    handles, names = axes[0].get_legend_handles_labels()
    each = 0.6 + 0.08 * max(map(len, names))  # inches that an entry takes
    columns = max(1, min(series, int(wide / each)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    _save(figure, path, title, wide)


def plot_curves(path: str | Path, metrics: Sequence[Mapping[str, Any]], panels: Sequence[Panel], *, title: str) -> bool:
    """Metrics against the step: every step in a light line, the mean over the last 20 steps in a strong one.

    Returns False, and writes nothing, when no panel has a value.
    """
    curves = []
    for panel in panels:
        points = [(m["step"], m[panel.metric] * panel.scale) for m in metrics if m.get(panel.metric) is not None]
        if points:
            curves.append((panel, *np.array(points, float).T))
    if not curves:
        return False
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _figure(rows, columns, (5.2 * columns, 0.6 + 3.0 * rows))
    for axis, (panel, steps, values) in zip(axes, curves, strict=False):
        axis.plot(steps, values, color=COLOURS[0], linewidth=0.8, label="step")
        means = running_mean(values)
        if len(means) > 1:
            label = f"mean of {WINDOW} steps"
            axis.plot(steps[WINDOW - 1 :], means, color=COLOURS[1], linewidth=1.8, label=label)
            axis.legend(frameon=False, fontsize=8)
        axis.set_title(panel.title, loc="left", fontsize=10.5)
        axis.set_ylabel(panel.unit)
        axis.set_xlabel("step")
        axis.grid(color=GRID, linewidth=0.7)
        if panel.scale == 100:
            axis.set_ylim(bottom=0)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    _save(figure, path, title, 5.2 * columns)
    return True


def plot_layers(
    path: str | Path,
    panels: Sequence[LayerCurves],
    *,
    title: str,
    xlabel: str = "layer (0: embeddings)",
    marker: str = "o",
) -> None:
    """A measure against the layer (or what `xlabel` says), a line for each series, with a band for given intervals.

    Panels of one measure have one scale, and a series has one colour in all of them.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, (5.2 * columns, 1.0 + 3.0 * rows))
    series = list(dict.fromkeys(label for panel in panels for label in panel.values))
    for axis, panel in zip(axes, panels, strict=False):
        for label, values in panel.values.items():
            layers = sorted(values)
            colour = COLOURS[series.index(label) % len(COLOURS)]
            axis.plot(
                layers,
                [values[x] for x in layers],
                f"{marker}-",
                color=colour,
                label=label,
                linewidth=1.6,
                markersize=3.5,
            )
            if band := panel.intervals.get(label):
                low, high = np.array([band[x] for x in layers], float).T
                axis.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(panel.title, loc="left", fontsize=10.5)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(panel.ylabel)
        axis.grid(color=GRID, linewidth=0.7)
    for measure in {panel.ylabel for panel in panels}:
        same = [axis for axis, panel in zip(axes, panels, strict=False) if panel.ylabel == measure]
        ends = [end for axis in same for end in axis.get_ylim()]
        for axis in same:
            axis.set_ylim(min(ends), max(ends))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    names, handles = list(entries), list(entries.values())
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False, fontsize=9)
    _save(figure, path, title, 5.2 * columns)


def plot_models(
    path: str | Path, panels: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]], *, title: str
) -> None:
    """Models side by side: a panel for each measure, a bar for each model with its interval.

    Args:
      path: the PNG to write.
      panels: (measure with its unit, {model: (value, low, high)}).
      title: of the picture.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    models = list(dict.fromkeys(name for _, values in panels for name in values))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(models)}
    figure, axes = _figure(rows, columns, (4.0 * columns, 0.8 + (0.9 + 0.28 * len(models)) * rows))
    for axis, (name, values) in zip(axes, panels, strict=False):
        for i, (model, (value, low, high)) in enumerate(values.items()):
            axis.barh(i, value, 0.75, color=colour[model], zorder=2)
            error = np.nan_to_num([[value - low], [high - value]]).clip(0)
            axis.errorbar(value, i, xerr=error, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, zorder=3)
            end = np.nanmax([value, high])
            text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
            axis.annotate(text, (end, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_yticks(range(len(values)), list(values), fontsize=8.5)
        axis.invert_yaxis()
        axis.margins(x=0.16)
        axis.set_title(textwrap.fill(name, 44), loc="left", fontsize=9.5)
        axis.grid(axis="x", color=GRID, linewidth=0.7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _save(figure, path, title, 4.0 * columns)


def plot_scatter(path: str | Path, panels: Sequence[Scatter], *, title: str) -> None:
    """Points: a colour for each series, a marker for each kind."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    every = [point for panel in panels for series in panel.points.values() for point in series]
    markers = dict(zip(dict.fromkeys(kind for *_, kind in every), "os^Dv<>Pp*hX" * len(every), strict=False))
    colours = dict.fromkeys(name for panel in panels for name in panel.points)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(colours)}
    figure, axes = _figure(rows, columns, (5.2 * columns, 1.1 + 3.2 * rows))
    for axis, panel in zip(axes, panels, strict=False):
        for name, points in panel.points.items():
            for x, y, kind in points:
                axis.plot(x, y, markers[kind], color=colours[name], markersize=6, markeredgecolor="white")
        axis.set_title(panel.title, loc="left", fontsize=10.5)
        axis.set_xlabel(panel.xlabel)
        axis.set_ylabel(panel.ylabel)
        axis.grid(color=GRID, linewidth=0.7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    shown = [axes[0].plot([], [], "o", color=colour, label=name)[0] for name, colour in colours.items()]
    if len(markers) > 1:
        shown += [
            axes[0].plot([], [], mark, color=INK, fillstyle="none", label=kind)[0] for kind, mark in markers.items()
        ]
    figure.legend(handles=shown, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _save(figure, path, title, 5.2 * columns)


def plot_heat_maps(
    path: str | Path,
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    signed: bool = True,
) -> None:
    """A map for each panel, one below the other, each cell with its number.

    Args:
      path: the PNG to write.
      panels: title -> [rows, columns]; NaN stays empty.
      rows: names, down.
      columns: names, across.
      title: of the picture.
      signed: changes, losses and gains in two colours around zero; else amounts, pale to dark.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in panels.values()] or [np.zeros(1)])
    limit = max(1e-9, float(np.abs(finite).max(initial=0)))
    wide, high = 1.8 + 0.62 * len(columns), 0.9 + (0.9 + 0.32 * len(rows)) * len(panels)
    figure, axes = _figure(len(panels), 1, (max(6.0, wide), high))
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        colours, low = ("RdBu", -limit) if signed else ("Blues", 0.0)
        axis.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * limit else INK
                axis.text(
                    j,
                    i,
                    f"{value:+.1f}" if signed else f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylabel("blocks")
        axis.set_title(name, loc="left", fontsize=10.5)
        axis.spines[["left", "bottom"]].set_visible(False)
    _save(figure, path, title, max(6.0, wide))


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and the WINDOW - 1 before it, from the first full window on: [max(0, N - WINDOW + 1)]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure on the Agg canvas, whatever backend the program that calls uses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(rows, columns)))
    for axis in axes:
        axis.tick_params(colors=INK, labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#8a919c")
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: str | Path, title: str, wide: float) -> None:
    lines = textwrap.wrap(title, max(20, int(wide * 8)))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path, dpi=130, metadata={"Software": None})  # no version inside: same picture, same bytes
