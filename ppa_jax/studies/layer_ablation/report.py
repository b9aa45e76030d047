"""The report of a layer ablation: what each set of blocks is worth to the source and to the targets, and a summary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import LayerCurves, plot_heat_maps, plot_layers
from ppa_jax.evaluation.scores import BySeed, Difference, mean_and_spread, minus
from ppa_jax.studies.correlation import FEWEST, GROUPS, Correlation, spearman

NONE = "none"  # the set of no blocks
TARGETS = "targets"  # their mean
MARGIN = 1.0  # point: a set whose extra loss is certainly below it does not widen the gap
Record = Mapping[str, Any]

LEGEND = (
    "{metric}, percent: mean over the seeds, ± their standard deviation. `gap` is the score of the source minus the "
    "mean of the targets. The blocks in the first column were re-initialised before fine-tuning; `none` is the "
    "original model."
)
LOSSES = (
    "Points lost against `none` with the same seed. **extra**: what the targets lose beyond the source, i.e. how much "
    "the gap grew, with its 95% interval by Student's t over the seeds; in bold if the interval excludes zero. The "
    "interval does not cover other sentences or languages, and is not corrected for the number of sets compared."
)
SUMMARY = (
    "A set of blocks **widens** the gap if the 95% interval of the extra loss (below) is above zero; it **does not** "
    f"if the interval ends below {MARGIN:g} point; otherwise it is **undecided**. The aligner ends with the last of "
    "the sets from block 1 on that widen the gap, at the latest before the first set that does not. A single seed has "
    f"no interval: there the aligner ends before the first set whose extra loss is below {MARGIN:g} point. All this "
    "assumes that the source recovers: if it loses much itself, the gap says little about alignment."
)
MOVEMENT = (
    "Fine-tuning without ablation. **distance**: norm of the change of a block's parameters, relative to their norm "
    "before. **similarity**: {measure} of the source language's sentences with the pretrained layer; 1 if unchanged."
)
CORRELATION = (
    "Each point is a target language, a set of blocks and a seed: Spearman's coefficient of the similarity to the "
    "source ({measure} of the fine-tuned model) with the gap of that language. Points of one language vary together, "
    f"and so do those of one set: the 95% interval resamples both, if there are at least {GROUPS} of each. There is no "
    f"coefficient for fewer than {FEWEST} points, or if nothing varies."
)


class ModelScores(NamedTuple):
    """The scores of one model. Losses and gaps are differences between scores with the same seed."""

    source: str
    scores: Mapping[str, Mapping[str, BySeed]]  # set of blocks -> language -> percent by seed

    @property
    def sets(self) -> list[str]:
        """The sets of blocks that were re-initialised."""
        return [blocks for blocks in self.scores if blocks != NONE]

    def of(self, blocks: str, language: str) -> BySeed:
        """The scores of a language."""
        return self.scores.get(blocks, {}).get(language, {})

    def gap(self, blocks: str, target: str = TARGETS) -> BySeed:
        """The source's score minus the target's."""
        return minus(self.of(blocks, self.source), self.of(blocks, target))

    def lost(self, blocks: str, language: str) -> BySeed:
        """The points that a language loses by the set."""
        return minus(self.of(NONE, language), self.of(blocks, language))

    def extra_by_seed(self, blocks: str) -> BySeed:
        """The points that the targets lose beyond the source."""
        return minus(self.lost(blocks, TARGETS), self.lost(blocks, self.source))

    def extra(self, blocks: str) -> Difference:
        """The mean of `extra_by_seed`."""
        return Difference.of(self.extra_by_seed(blocks))


def write(
    workdir: epath.Path,
    scores: Sequence[Record],
    similarity: Sequence[Record],
    movement: Sequence[Record],
    *,
    source: str,
    measure: str,
    facts: Mapping[str, str],
    data: str,
) -> tuple[epath.Path, str]:
    """Writes report.md and its pictures; returns its path, and the summary with the tables of losses.

    Args:
      workdir: where.
      scores: `model`, `ablation`, `seed`, `language`, `metric`, `value`; the first metric is reported.
      similarity: `model`, `ablation`, `seed`, `language`, `layer`, `measure`, `value`; `ablation` "" is the pretrained
        model.
      movement: `model`, `ablation`, `seed`, `layer`, `distance`, and each measure if there is parallel text.
      source: the language of the training data.
      measure: the measure of similarity that is shown.
      facts: name -> value.
      data: a table of the data.
    """
    models = by_model(scores, source)
    similarity = [r for r in similarity if r["measure"] == measure]
    metric = scores[0]["metric"]
    sets = list(dict.fromkeys(blocks for model in models.values() for blocks in model.sets))
    targets = dict.fromkeys(r["language"] for r in scores if r["metric"] == metric and r["language"] != source)
    languages = [source, *targets, TARGETS]
    lines = [line for name, model in models.items() for line in summary(name, model)] + border_comparison(models)
    parts = ["## Data", data]
    parts += ["## Summary", "\n".join(f"- {line}" for line in lines), SUMMARY]
    tables = []
    for name, model in models.items():
        tables += [f"### {name}: losses" if name else "### Losses", losses_table(model, languages)]
    parts += ["## What each set of blocks is worth", LOSSES, *tables]
    if sets:
        losses = {
            name or metric: np.array([[Difference.of(model.lost(s, x)).mean for x in languages] for s in sets])
            for name, model in models.items()
        }
        title = f"Points of {metric} lost against the original model; source ({source}) and targets"
        plot_heat_maps(workdir / "losses.png", losses, sets, languages, title=title)
        parts += ["![Losses by set of blocks and language](losses.png)"]
    parts += ["## Scores", LEGEND.format(metric=metric)]
    for name, model in models.items():
        parts += [f"### {name}"] if name else []
        parts += [scores_table(model, languages)]
    if similarity:
        parts += ["## Similarity of the languages", *_similarity(workdir, similarity, list(models), source, measure)]
        parts += [CORRELATION.format(measure=measure)]
        parts += ["\n".join(f"- {line}" for line in correlations(models, similarity))]
    if movement:
        about = MOVEMENT.format(measure=measure)
        table = movement_table(movement, list(models), measure)
        parts += ["## How far fine-tuning moved each block", about, table]
    title = "Where transfer lives: blocks re-initialised before fine-tuning"
    return markdown.write_report(workdir, title, facts, parts), "\n\n".join([*lines, *tables])


def by_model(scores: Sequence[Record], source: str) -> dict[str, ModelScores]:
    """The first metric of each model; `targets` is the mean of all languages but the source."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for r in scores:
        if r["metric"] == scores[0]["metric"]:
            languages = found.setdefault(r["model"], {}).setdefault(r["ablation"], {})
            languages.setdefault(r["language"], {})[r["seed"]] = r["value"]
    for languages in (languages for sets in found.values() for languages in sets.values()):
        targets = [values for language, values in languages.items() if language != source]
        seeds = sorted(set.intersection(*map(set, targets))) if targets else []
        languages[TARGETS] = {seed: float(np.mean([values[seed] for values in targets])) for seed in seeds}
    return {name: ModelScores(source, sets) for name, sets in found.items()}


def span(blocks: str) -> tuple[int, int] | None:
    """(first block, last block) of a set like `3` or `3-4`; None for `none` and `1+4`."""
    if blocks == NONE or "+" in blocks:
        return None
    first, _, last = blocks.partition("-")
    return int(first), int(last or first)


def chains(sets: Sequence[str]) -> dict[str, list[str]]:
    """The single blocks, and the pairs, that follow each other from block 1 without a gap, if there are two or more."""
    spans = {span(s): s for s in sets if span(s)}
    found: dict[str, list[str]] = {}
    for name, size in (("single blocks", 1), ("pairs", 2)):
        chain, first = [], 1
        while (following := spans.get((first, first + size - 1))) is not None:
            chain.append(following)
            first += size
        if size == 2 and chain and (last := spans.get((first, first))) is not None:
            chain.append(last)  # of an odd depth
        if len(chain) > 1:
            found[name] = chain
    return found


WIDENS, UNDECIDED, DOES_NOT = "widens", "undecided", "does not"


def state(change: Difference) -> str:
    """What an extra loss with an interval says about its set of blocks."""
    if change.high < MARGIN:
        return DOES_NOT
    return WIDENS if change.low > 0 else UNDECIDED


def _last_block(sets: Iterable[str], holds: Callable[[str], bool]) -> int:
    """The last block before the first set for which `holds` is false; 0 if that is the first set."""
    return max((int(s.rpartition("-")[2]) for s in itertools.takewhile(holds, sets)), default=0)


def border(changes: Mapping[str, Difference]) -> tuple[int, int]:
    """The last block of the aligner by the sets of a chain, at the earliest and at the latest; 0: there is none."""
    states = {s: state(change) for s, change in changes.items()}
    return _last_block(states, lambda s: states[s] == WIDENS), _last_block(states, lambda s: states[s] != DOES_NOT)


def describe_border(model: ModelScores, chain: Sequence[str]) -> tuple[str, str]:
    """The border in words; and, for each single seed, the last block before an extra loss below MARGIN."""
    low, high = border({s: model.extra(s) for s in chain})
    if high == 0:
        text = "no aligner shows: the first set does not widen the gap"
    elif low == high:
        text = f"an aligner up to block {low}"
    elif low:
        text = f"an aligner up to block {low} at least, {high} at most"
    else:
        text = f"an aligner up to block {high} at most"
    extras = {s: model.extra_by_seed(s) for s in chain}
    seeds = sorted(set.intersection(*map(set, extras.values())))
    return text, ", ".join(str(_last_block(chain, lambda s: extras[s][seed] >= MARGIN)) for seed in seeds)  # noqa: B023


def summary(name: str, model: ModelScores) -> list[str]:
    """What the numbers say about one model, in sentences."""
    return [f"**{name}**: {line}" if name else line for line in _summary(model)]


def _summary(model: ModelScores) -> list[str]:
    known = [s for s in model.sets if model.extra_by_seed(s)]
    if not known:
        return ["nothing was re-initialised, or there is no target language"]
    extras = {s: model.extra(s) for s in known}
    costs = {s: Difference.of(model.lost(s, model.source)).mean for s in known}
    worst = max(known, key=lambda s: extras[s].mean)
    by_cost = sorted(known, key=lambda s: costs[s])
    least, most = by_cost[0], by_cost[-1]
    if extras[worst].mean > 0:
        lines = [
            f"the gap to the targets grows most, by {extras[worst].text()} points, when blocks {worst} are "
            f"re-initialised; {model.source} itself then loses {costs[worst]:.1f}"
        ]
    else:
        lines = [f"no set widens the gap to the targets; {worst} comes closest ({extras[worst].text()})"]
    lines.append(
        f"{model.source} loses most with {most}, {costs[most]:.1f} points, and least with {least}, {costs[least]:.1f}"
    )
    if any(np.isnan(x.low) for x in extras.values()):
        return [*lines, "with one seed there is no interval, and no border is drawn"]
    for kind, chain in chains(known).items():
        groups = {"widen the gap": WIDENS, "undecided": UNDECIDED, "do not": DOES_NOT}
        members = {words: [s for s in chain if state(extras[s]) == one] for words, one in groups.items()}
        listed = "; ".join(f"{words}: {', '.join(own)}" for words, own in members.items() if own)
        text, seeds = describe_border(model, chain)
        lines.append(f"by {kind}, {text} ({listed}; by single seeds up to block {seeds})")
    spans = {s: ends for s in known if (ends := span(s))}
    top = max((last for _, last in spans.values()), default=0)
    upwards = sorted((s for s, (first, last) in spans.items() if last == top and first > 1), key=lambda s: -spans[s][0])
    if len(upwards) > 1:
        listed = "; ".join(f"{s} {extras[s].text()}" for s in upwards)
        lines.append(f"extra loss of the targets without the top blocks: {listed}")
    return lines


def border_comparison(models: Mapping[str, ModelScores]) -> list[str]:
    """Compares the first model with each other one: the borders, and the extra losses; seeds are paired."""
    lines = []
    base, *others = models
    for name in others:
        first, other = models[base], models[name]
        moves = {s: minus(other.extra_by_seed(s), first.extra_by_seed(s)) for s in first.sets}
        changes = {s: Difference.of(move) for s, move in moves.items() if len(move) > 1}
        if not changes:
            continue
        for kind, chain in chains(list(changes)).items():
            borders = {x: describe_border(models[x], chain) for x in (base, name)}
            listed = "; ".join(f"{x}: {text} (single seeds: {seeds})" for x, (text, seeds) in borders.items())
            lines.append(f"does the border move, by {kind}? {listed}")
        moved = [f"{s} {change.text()}" for s, change in changes.items() if change.excludes_zero]
        lines.append(
            f"**{name}** against **{base}**, extra loss of the targets, intervals that exclude zero among "
            f"{len(changes)} sets (95% each, not corrected): {'; '.join(moved) or 'none'}"
        )
    return lines


def scores_table(model: ModelScores, languages: Sequence[str]) -> str:
    """A row for each set, a column for each language, and the gap."""
    rows = [
        [blocks, *(mean_and_spread(model.of(blocks, x)) for x in languages), mean_and_spread(model.gap(blocks))]
        for blocks in model.scores
    ]
    return markdown.table(["blocks", *languages, "gap"], rows)


def losses_table(model: ModelScores, languages: Sequence[str]) -> str:
    """A row for each set but `none`: what each language loses, and the extra loss of the targets."""
    rows = [
        [blocks, *(mean_and_spread(model.lost(blocks, x)) for x in languages), model.extra(blocks).text()]
        for blocks in model.sets
    ]
    return markdown.table(["blocks", *languages, "extra"], rows)


def _curve(records: Sequence[Record]) -> dict[int, float]:
    """Mean over languages and seeds, by layer."""
    layers = sorted({r["layer"] for r in records})
    return {layer: float(np.mean([r["value"] for r in records if r["layer"] == layer])) for layer in layers}


def _range(records: Sequence[Record]) -> dict[int, tuple[float, float]]:
    """Lowest and highest of the languages' means over the seeds, by layer."""
    languages = list(dict.fromkeys(r["language"] for r in records))
    curves = [_curve([r for r in records if r["language"] == language]) for language in languages]
    return {layer: (min(c[layer] for c in curves), max(c[layer] for c in curves)) for layer in curves[0]}


def _similarity(
    workdir: epath.Path, similarity: Sequence[Record], models: Sequence[str], source: str, measure: str
) -> list[str]:
    """Two pictures: curves before and after fine-tuning, and every set of blocks in a map."""
    panels, maps = [], {}
    names = {"": "pretrained", NONE: "fine-tuned"}
    sets = list(dict.fromkeys(r["ablation"] for r in similarity))
    layers = sorted({r["layer"] for r in similarity})
    for model in models:
        own = {s: [r for r in similarity if (r["model"], r["ablation"]) == (model, s)] for s in sets}
        shown = {names[s]: own[s] for s in names if own.get(s)}
        curves = {name: _curve(x) for name, x in shown.items()}
        bands = {name: _range(x) for name, x in shown.items()}
        panels.append(LayerCurves(model or measure, measure, curves, bands))
        rows = [_curve(own[s]) for s in sets]
        maps[model or measure] = np.array([[row.get(layer, np.nan) for layer in layers] for row in rows])
    title = f"Similarity of the targets to {source}: their mean, and from the lowest to the highest of them"
    plot_layers(workdir / "similarity.png", panels, title=title)
    rows, columns = [names.get(s, f"{s} re-initialised") for s in sets], [str(layer) for layer in layers]
    title = f"{measure} of the targets with {source}, by layer (0: embeddings); rows: the re-initialised blocks"
    plot_heat_maps(workdir / "similarity_sets.png", maps, rows, columns, signed=False, title=title)
    return ["![Similarity by layer](similarity.png)", "![Similarity by set of blocks and layer](similarity_sets.png)"]


def correlation(
    model: ModelScores, similarity: Sequence[Record], layer: int | None = None, language: str | None = None
) -> Correlation | None:
    """Spearman's correlation of the similarity after fine-tuning with the gap.

    Args:
      model: its gaps.
      similarity: the records of this model.
      layer: None: the mean over all layers.
      language: None: all languages.
    """
    values: dict[tuple[str, str, int], list[float]] = {}
    for r in similarity:
        if r["ablation"] and layer in (None, r["layer"]) and language in (None, r["language"]):
            values.setdefault((r["language"], r["ablation"], r["seed"]), []).append(r["value"])
    points = []
    for (target, blocks, seed), alike in values.items():
        gap = model.gap(blocks, target).get(seed)
        if gap is not None:
            points.append((float(np.mean(alike)), gap, target, blocks))
    groups = {"languages": [x for *_, x, _ in points], "sets of blocks": [x for *_, x in points]}
    if language:
        groups.pop("languages")
    return spearman([x for x, *_ in points], [y for _, y, *_ in points], groups)


def correlations(models: Mapping[str, ModelScores], similarity: Sequence[Record]) -> list[str]:
    """For each model: over all languages, by the mean of the layers and by the last one; then within each language."""
    lines = []
    for name, model in models.items():
        own = [r for r in similarity if r["model"] == name]
        start, last = f"{name}, " if name else "", max(r["layer"] for r in own)
        for kind, layer in {"mean over the layers": None, f"layer {last}": last}.items():
            lines.append(f"{start}{kind}: {correlation(model, own, layer) or 'none'}")
        within = {x: correlation(model, own, language=x) for x in dict.fromkeys(r["language"] for r in own)}
        listed = ", ".join(f"{x} {c.rho:+.2f}" for x, c in within.items() if c is not None)
        if listed:
            lines.append(f"{start}within each language, over sets and seeds, mean over the layers: {listed}")
    return lines


def movement_table(movement: Sequence[Record], models: Sequence[str], measure: str) -> str:
    """Rows are blocks, columns models; without ablation, mean over the seeds."""
    rows = []
    for layer in sorted({r["layer"] for r in movement}):
        row: list[Any] = [f"block {layer}" if layer else "embeddings"]
        for model in models:
            own = [r for r in movement if (r["model"], r["ablation"], r["layer"]) == (model, NONE, layer)]
            row.append(f"{np.mean([r['distance'] for r in own]):.4f}" if own else None)
            row.append(f"{np.mean([r[measure] for r in own]):.3f}" if own and measure in own[0] else None)
        rows.append(row)
    columns = [f"{model} {kind}".strip() for model in models for kind in ("distance", "similarity")]
    return markdown.table(["", *columns], rows)
