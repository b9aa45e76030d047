"""The report of a layer ablation: what each set of blocks is worth to the source and to the targets, and a summary.

Scores are by model, set of blocks ("none": nothing re-initialised), seed and language.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ppa_jax.evaluation.report import markdown
from ppa_jax.evaluation.report.plots import LayerCurves, plot_heat_maps, plot_layers
from ppa_jax.evaluation.scores import Difference, mean_and_spread
from ppa_jax.studies.correlation import FEWEST, GROUPS, Correlation, spearman

NONE = "none"
TARGETS = "targets"  # their mean
MARGIN = 1.0  # point: a set whose extra loss is surely below it does not widen the gap
Record = Mapping[str, Any]
Scores = Mapping[tuple[str, str, str], Mapping[int, float]]  # (model, set, language) -> {seed: percent}

LEGEND = (
    "{metric}, percent: mean over the seeds, ± their standard deviation. `gap` is the source's score minus the mean of "
    "the targets'. The blocks named on the left were re-initialised before fine-tuning; `none`: the model as it was."
)
LOSSES = (
    "Points lost against `none` with the same seed. **extra**: what the targets lose beyond the source, so how much "
    "the gap grew, with its 95% interval by Student's t over the seeds; in bold where the interval excludes zero. "
    "It says nothing of other sentences or languages, and is not corrected for the number of sets compared."
)
SUMMARY = (
    "A set of blocks **widens** the gap if the 95% interval of the extra loss (below) is above zero; it **does not** "
    f"if the interval ends below {MARGIN:g} point; all else is **undecided**. The aligner ends where, from block 1 on, "
    "the sets that widen the gap end; at the latest before the first that does not. By a single seed, which has no "
    f"interval, it ends where the extra loss falls below {MARGIN:g} point. All this asks that the source recovers: "
    "where it loses much itself, the gap says little of alignment."
)
MOVEMENT = (
    "Fine-tuning without ablation. **distance**: norm of the change of a block's parameters over their norm before. "
    "**similarity**: {measure} of the source language's sentences, to the pretrained layer; 1 where nothing changed."
)
CORRELATION = (
    "Points are a target language, a set of blocks and a seed: Spearman's coefficient of the similarity to the source "
    "({measure} of the fine-tuned model) with the gap of that language. Points of one language vary together, and "
    f"so do those of one set: the 95% interval draws both, where there are {GROUPS} or more of each. No coefficient "
    f"for fewer than {FEWEST} points, or where nothing varies."
)


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
      movement: `model`, `ablation`, `seed`, `layer`, `distance`, and each measure where there is parallel text.
      source: the language that was trained on.
      measure: the one that is shown.
      facts: name -> value.
      data: a table of what was read.
    """
    found = by_language(scores, source)
    similarity = [r for r in similarity if r["measure"] == measure]
    metric = scores[0]["metric"]
    models, sets, languages = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))
    languages = [source, *(x for x in languages if x not in (source, TARGETS)), TARGETS]
    lines = [line for model in models for line in summary(found, model, sets, source)]
    lines += border_comparison(found, models, sets, source)
    parts = ["## Data", data]
    parts += ["## Summary", "\n".join(f"- {line}" for line in lines), SUMMARY]
    tables = []
    for model in models:
        title = f"{model}: losses" if model else "Losses"
        tables += [f"### {title}", losses_table(found, model, sets, languages, source)]
    parts += ["## What each set of blocks is worth", LOSSES, *tables]
    maps = {
        model or metric: np.array([[_lost(found, model, s, x) for x in languages] for s in sets if s != NONE])
        for model in models
    }
    rows = [s for s in sets if s != NONE]
    if rows:
        plot_heat_maps(
            workdir / "losses.png", {name: -values for name, values in maps.items()}, rows, languages,
            title=f"Change of {metric} against the model as it was, points; source ({source}) and targets",
        )  # fmt: skip
        parts += ["![Losses by set of blocks and language](losses.png)"]
    parts += ["## Scores", LEGEND.format(metric=metric)]
    for model in models:
        parts += [f"### {model}"] if model else []
        parts += [scores_table(found, model, sets, languages, source)]
    if similarity:
        parts += ["## Similarity of the languages", *_similarity(workdir, similarity, models, source, measure)]
        parts += [CORRELATION.format(measure=measure)]
        parts += ["\n".join(f"- {line}" for line in correlations(found, similarity, models, source))]
    if movement:
        about = MOVEMENT.format(measure=measure)
        parts += ["## How far fine-tuning moved each block", about, movement_table(movement, models, measure)]
    title = "Where transfer lives: blocks re-initialised before fine-tuning"
    return markdown.write_report(workdir, title, facts, parts), "\n\n".join([*lines, *tables])


def by_language(scores: Sequence[Record], source: str) -> Scores:
    """The first metric's value by seed; `targets` is the mean of all languages but the source."""
    metric = scores[0]["metric"]
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for r in scores:
        if r["metric"] == metric:
            found.setdefault((r["model"], r["ablation"], r["language"]), {})[r["seed"]] = r["value"]
    for model, one in dict.fromkeys(key[:2] for key in found):
        targets = [v for (m, s, x), v in found.items() if (m, s) == (model, one) and x != source]
        seeds = set.intersection(*map(set, targets)) if targets else set()
        if seeds:
            found[model, one, TARGETS] = {seed: float(np.mean([v[seed] for v in targets])) for seed in sorted(seeds)}
    return found


def _differences(found: Scores, model: str, one: str, language: str) -> dict[int, float]:
    """What the language loses by the set, by seed, in points."""
    before, after = (found.get((model, s, language), {}) for s in (NONE, one))
    return {seed: before[seed] - after[seed] for seed in before if seed in after}


def _lost(found: Scores, model: str, one: str, language: str) -> float:
    values = list(_differences(found, model, one, language).values())
    return float(np.mean(values)) if values else float("nan")


def extra_by_seed(found: Scores, model: str, one: str, source: str) -> dict[int, float]:
    """What the targets lose beyond the source, by seed."""
    own, targets = (_differences(found, model, one, language) for language in (source, TARGETS))
    return {seed: targets[seed] - own[seed] for seed in targets if seed in own}


def extra(found: Scores, model: str, one: str, source: str) -> Difference:
    """What the targets lose beyond the source."""
    return Difference.of(list(extra_by_seed(found, model, one, source).values()))


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
    """What an extra loss with an interval says of its set of blocks."""
    if change.high < MARGIN:
        return DOES_NOT
    return WIDENS if change.low > 0 else UNDECIDED


def _last_block(sets: Iterable[str], holds: Callable[[str], bool]) -> int:
    """The last block before the first set for which `holds` is false; 0 if that is the first one."""
    return max((int(s.rpartition("-")[2]) for s in itertools.takewhile(holds, sets)), default=0)


def border(changes: Mapping[str, Difference]) -> tuple[int, int]:
    """The last block of the aligner by the sets of a chain, at the earliest and at the latest; 0: there is none."""
    states = {s: state(change) for s, change in changes.items()}
    return _last_block(states, lambda s: states[s] == WIDENS), _last_block(states, lambda s: states[s] != DOES_NOT)


def describe_border(found: Scores, model: str, chain: Sequence[str], source: str) -> tuple[str, str]:
    """The border in words; and, for each single seed, the last block before an extra loss below MARGIN."""
    low, high = border({s: extra(found, model, s, source) for s in chain})
    if high == 0:
        text = "no aligner shows: the first set does not widen the gap"
    elif low == high:
        text = f"an aligner up to block {low}"
    elif low:
        text = f"an aligner up to block {low} at least, {high} at most"
    else:
        text = f"an aligner up to block {high} at most"
    extras = {s: extra_by_seed(found, model, s, source) for s in chain}
    seeds = sorted(set.intersection(*map(set, extras.values())))
    return text, ", ".join(str(_last_block(chain, lambda s: extras[s][seed] >= MARGIN)) for seed in seeds)  # noqa: B023


def summary(found: Scores, model: str, sets: Sequence[str], source: str) -> list[str]:
    """What the numbers say of one model, in sentences."""
    known = [s for s in sets if s != NONE and extra_by_seed(found, model, s, source)]
    if not known:
        lines = ["nothing was re-initialised, or there is no target language"]
        return [f"**{model}**: {line}" if model else line for line in lines]
    extras = {s: extra(found, model, s, source) for s in known}
    costs = {s: _lost(found, model, s, source) for s in known}
    worst = max(known, key=lambda s: extras[s].mean)
    by_cost = sorted(known, key=lambda s: costs[s])
    least, most = by_cost[0], by_cost[-1]
    if extras[worst].mean > 0:
        lines = [
            f"the gap to the targets grows most, by {extras[worst].text()} points, when blocks {worst} are "
            f"re-initialised; {source} itself loses {costs[worst]:.1f} then"
        ]
    else:
        lines = [f"no set widens the gap to the targets; {worst} comes nearest ({extras[worst].text()})"]
    lines.append(
        f"{source} loses most, {costs[most]:.1f} points, with {most}, and least, {costs[least]:.1f}, with {least}"
    )
    if any(np.isnan(x.low) for x in extras.values()):
        lines.append("with one seed there is no interval, and no border is drawn")
        return [f"**{model}**: {line}" if model else line for line in lines]
    for kind, chain in chains(known).items():
        groups = {"widen the gap": WIDENS, "undecided": UNDECIDED, "do not": DOES_NOT}
        members = {words: [s for s in chain if state(extras[s]) == one] for words, one in groups.items()}
        listed = "; ".join(f"{words}: {', '.join(own)}" for words, own in members.items() if own)
        text, seeds = describe_border(found, model, chain, source)
        lines.append(f"by {kind}, {text} ({listed}; by single seeds up to block {seeds})")
    spans = {s: ends for s in known if (ends := span(s))}
    top = max((last for _, last in spans.values()), default=0)
    upwards = sorted((s for s, (first, last) in spans.items() if last == top and first > 1), key=lambda s: -spans[s][0])
    if len(upwards) > 1:
        listed = "; ".join(f"{s} {extras[s].text()}" for s in upwards)
        lines.append(f"extra loss of the targets without the blocks at the top: {listed}")
    return [f"**{model}**: {line}" if model else line for line in lines]


def border_comparison(found: Scores, models: Sequence[str], sets: Sequence[str], source: str) -> list[str]:
    """Compares the first model with each other one: the borders, and the extra losses; seeds are paired."""
    lines = []
    for model in models[1:]:
        pair = (models[0], model)
        changes = {}
        for one in (s for s in sets if s != NONE):
            first, other = (extra_by_seed(found, m, one, source) for m in pair)
            both = [other[seed] - first[seed] for seed in first if seed in other]
            if len(both) > 1:
                changes[one] = Difference.of(both)
        if not changes:
            continue
        for kind, chain in chains(list(changes)).items():
            borders = {m: describe_border(found, m, chain, source) for m in pair}
            listed = "; ".join(f"{m}: {text} (single seeds: {seeds})" for m, (text, seeds) in borders.items())
            lines.append(f"does the border move, by {kind}? {listed}")
        moved = [f"{s} {change.text()}" for s, change in changes.items() if change.excludes_zero]
        lines.append(
            f"**{model}** against **{models[0]}**, extra loss of the targets, intervals that exclude zero among "
            f"{len(changes)} sets (95% each, not corrected): {'; '.join(moved) or 'none'}"
        )
    return lines


def _shown(values: Mapping[int, float] | None) -> str | None:
    return mean_and_spread(list((values or {}).values()))


def scores_table(found: Scores, model: str, sets: Sequence[str], languages: Sequence[str], source: str) -> str:
    """A line for each set, a column for each language, and the gap."""
    rows = []
    for one in sets:
        own, targets = (found.get((model, one, x), {}) for x in (source, TARGETS))
        gap = {seed: own[seed] - targets[seed] for seed in own if seed in targets}
        rows.append([one, *(_shown(found.get((model, one, x))) for x in languages), _shown(gap)])
    return markdown.table(["blocks", *languages, "gap"], rows)


def losses_table(found: Scores, model: str, sets: Sequence[str], languages: Sequence[str], source: str) -> str:
    """A line for each set but `none`: what each language loses, and the extra loss of the targets."""
    rows = []
    for one in (s for s in sets if s != NONE):
        lost = (_shown(_differences(found, model, one, x)) for x in languages)
        rows.append([one, *lost, extra(found, model, one, source).text()])
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
        mine = {s: [r for r in similarity if (r["model"], r["ablation"]) == (model, s)] for s in sets}
        shown = {names[s]: mine[s] for s in names if mine.get(s)}
        curves = {name: _curve(x) for name, x in shown.items()}
        bands = {name: _range(x) for name, x in shown.items()}
        panels.append(LayerCurves(model or measure, measure, curves, bands))
        rows = [_curve(mine[s]) for s in sets]
        maps[model or measure] = np.array([[row.get(layer, np.nan) for layer in layers] for row in rows])
    plot_layers(
        workdir / "similarity.png", panels,
        title=f"Similarity of the targets to {source}: their mean, and from the lowest to the highest of them",
    )  # fmt: skip
    rows = [names.get(s, f"{s} re-initialised") for s in sets]
    plot_heat_maps(
        workdir / "similarity_sets.png", maps, rows, [str(layer) for layer in layers], signed=False,
        title=f"{measure} of the targets with {source}, by layer (0: embeddings); rows: the re-initialised blocks",
    )  # fmt: skip
    return ["![Similarity by layer](similarity.png)", "![Similarity by set of blocks and layer](similarity_sets.png)"]


def correlation(
    found: Scores,
    similarity: Sequence[Record],
    model: str,
    source: str,
    layer: int | None = None,
    language: str | None = None,
) -> Correlation | None:
    """Of the similarity after fine-tuning (at a layer, or the mean of all) with the gap, over all languages or one."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for r in similarity:
        if r["model"] == model and r["ablation"] and layer in (None, r["layer"]) and language in (None, r["language"]):
            values.setdefault((r["language"], r["ablation"], r["seed"]), []).append(r["value"])
    points = []
    for (target, one, seed), alike in values.items():
        own, other = (found.get((model, one, x), {}).get(seed) for x in (source, target))
        if own is not None and other is not None:
            points.append((float(np.mean(alike)), own - other, target, one))
    groups = {"languages": [x for *_, x, _ in points], "sets of blocks": [x for *_, x in points]}
    if language:
        groups.pop("languages")
    return spearman([x for x, *_ in points], [y for _, y, *_ in points], groups)


def correlations(found: Scores, similarity: Sequence[Record], models: Sequence[str], source: str) -> list[str]:
    """For each model: over all languages, by the mean of the layers and by the last one; then within each language."""
    lines = []
    for model in models:
        mine = [r for r in similarity if r["model"] == model]
        name, last = f"{model}, " if model else "", max(r["layer"] for r in mine)
        for kind, layer in {"mean over the layers": None, f"layer {last}": last}.items():
            lines.append(f"{name}{kind}: {correlation(found, mine, model, source, layer) or 'none'}")
        languages = dict.fromkeys(r["language"] for r in mine)
        within = {x: correlation(found, mine, model, source, language=x) for x in languages}
        listed = ", ".join(f"{x} {c.rho:+.2f}" for x, c in within.items() if c is not None)
        if listed:
            lines.append(f"{name}within each language, over sets and seeds, mean over the layers: {listed}")
    return lines


def movement_table(movement: Sequence[Record], models: Sequence[str], measure: str) -> str:
    """Blocks down, models across; without ablation, mean over the seeds."""
    layers = sorted({r["layer"] for r in movement})
    rows = []
    for layer in layers:
        row: list[Any] = ["embeddings" if layer == 0 else f"block {layer}"]
        for model in models:
            mine = [r for r in movement if (r["model"], r["ablation"], r["layer"]) == (model, NONE, layer)]
            row.append(f"{np.mean([r['distance'] for r in mine]):.4f}" if mine else None)
            row.append(f"{np.mean([r[measure] for r in mine]):.3f}" if mine and measure in mine[0] else None)
        rows.append(row)
    columns = [f"{model} {kind}".strip() for model in models for kind in ("distance", "similarity")]
    return markdown.table(["", *columns], rows)
