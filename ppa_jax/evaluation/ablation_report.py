"""The report of a layer ablation: what each set of blocks is worth to the source and to the targets, and a summary.

Axes: everything is by model, set of blocks ("none": nothing re-initialised), seed and language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax import markdown
from ppa_jax.evaluation import report
from ppa_jax.evaluation.correlation import FEWEST, Correlation, spearman
from ppa_jax.evaluation.plots import LayerCurves, plot_heat_maps, plot_layers
from ppa_jax.evaluation.seeds import Difference, mean_and_spread

NONE = "none"
TARGETS = "targets"  # their mean
Record = Mapping[str, Any]
Scores = Mapping[tuple[str, str, str], Mapping[int, float]]  # (model, set, language) -> {seed: percent}

LEGEND = (
    "{metric}, percent: mean over the seeds, ± their standard deviation. `gap` is the source's score minus the mean of "
    "the targets'. The blocks named on the left were re-initialised before fine-tuning; `none`: the model as it was."
)
LOSSES = (
    "Points lost against `none` with the same seed. **extra**: what the targets lose beyond the source, so how much "
    "the gap grew, with its 95% interval by Student's t over the seeds; in bold where the interval is off zero. It "
    "says nothing of other sentences or languages, and is not corrected for the number of sets compared."
)
MOVEMENT = (
    "Fine-tuning without ablation. **distance**: norm of the change of a block's parameters over their norm before. "
    "**CKA**: of the source language's sentences, to the pretrained layer, in batches, too; 1 where nothing changed."
)
CORRELATION = (
    "Points are a target language, a set of blocks and a seed: Spearman's coefficient of the similarity to the source "
    "(CKA of the fine-tuned model) with the gap of that language. Points of one language vary together, and points of "
    "one set of blocks: the 95% interval holds those of the bootstraps over either. None for fewer than "
    f"{FEWEST} points, or where nothing varies."
)


def write(
    workdir: Path,
    scores: Sequence[Record],
    similarity: Sequence[Record],
    movement: Sequence[Record],
    *,
    source: str,
    facts: Mapping[str, str],
) -> tuple[Path, str]:
    """Writes report.md and its pictures; returns its path, and the summary with the tables of losses.

    Args:
      workdir: where.
      scores: `model`, `ablation`, `seed`, `language`, `metric`, `value`; the first metric is reported.
      similarity: `model`, `ablation`, `seed`, `language`, `layer`, `value`; `ablation` "" is the pretrained model.
      movement: `model`, `ablation`, `seed`, `layer`, `distance`, and `cka` where there is parallel text.
      source: the language that was trained on.
      facts: name -> value.
    """
    found = by_language(scores, source)
    metric = scores[0]["metric"]
    models, sets, languages = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))
    languages = [source, *(x for x in languages if x not in (source, TARGETS)), TARGETS]
    lines = [line for model in models for line in summary(found, model, sets, source)]
    lines += border_comparison(found, models, sets, source)
    parts = ["# Where transfer lives: blocks re-initialised before fine-tuning", *report.facts_table(facts)]
    parts += ["## Summary", "\n".join(f"- {line}" for line in lines)]
    tables = []
    for model in models:
        title = f"{model}: losses" if model else "Losses"
        tables += [f"### {title}", losses_table(found, model, sets, languages, source)]
    parts += ["## What each set of blocks is worth", LOSSES, *tables]
    with report.writing(workdir):
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
            panels = similarity_panels(similarity, models)
            plot_layers(workdir / "similarity.png", panels, title=f"Similarity of the targets to {source}, mean")
            parts += ["## Similarity of the languages", "![CKA by layer](similarity.png)", CORRELATION]
            parts += ["\n".join(f"- {line}" for line in correlations(found, similarity, models, source))]
        if movement:
            parts += ["## How far fine-tuning moved each block", MOVEMENT, *movement_tables(movement, models)]
        return report.write_text(workdir, parts), "\n\n".join([*lines, *tables])


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


def chain(sets: Sequence[str]) -> list[str]:
    """The sets that follow each other from block 1 without a hole: singles if there are two or more, else pairs."""
    spans = {(int(s.partition("-")[0]), int(s.rpartition("-")[2])): s for s in sets if s != NONE and "+" not in s}
    chains = []
    for size in (1, 2):
        found, first = [], 1
        while (one := spans.get((first, first + size - 1))) is not None:
            found.append(one)
            first += size
        if size == 2 and found and (last := spans.get((first, first))) is not None:
            found.append(last)  # of an odd depth
        chains.append(found)
    return next((found for found in chains if len(found) > 1), [])


def border(found: Scores, model: str, sets: Sequence[str], source: str) -> tuple[list[str], str | None]:
    """(the sets of the chain that widen the gap with an interval above zero; the first that does not)."""
    wide: list[str] = []
    for one in chain([s for s in sets if extra_by_seed(found, model, s, source)]):
        if not extra(found, model, one, source).low > 0:  # NaN, too
            return wide, one
        wide.append(one)
    return wide, None


def summary(found: Scores, model: str, sets: Sequence[str], source: str) -> list[str]:
    """What the numbers say of one model, in sentences."""
    name = f"**{model}**: " if model else ""
    known = [s for s in sets if s != NONE and extra_by_seed(found, model, s, source)]
    if not known:
        return [f"{name}nothing was re-initialised, or there is no target language"]
    extras = {s: extra(found, model, s, source) for s in known}
    worst = max(extras, key=lambda s: extras[s].mean)
    costs = {s: _lost(found, model, s, source) for s in known}
    lines = [
        f"{name}the gap to the targets grows most, by {extras[worst].text()} points, when blocks {worst} are "
        f"re-initialised; {source} itself loses {costs[worst]:.1f} then",
    ]
    if any(np.isnan(x.low) for x in extras.values()):
        return [*lines, f"{name}with one seed there is no interval, and no border is drawn"]
    wide, end = border(found, model, sets, source)
    ended = f"{end} does not ({extras[end].text()})" if end else "no higher set was measured after it"
    if wide:
        last = wide[-1].rpartition("-")[2]
        text = (
            f"an aligner up to block {last}: re-initialising {', '.join(wide)} widens the gap, each with an interval "
        )
        return [*lines, f"{name}{text}above zero; {ended}"]
    if end:
        return [*lines, f"{name}no border: re-initialising {end} does not widen the gap with an interval above zero"]
    return [*lines, f"{name}no border: it takes singles or pairs, from block 1 on"]


def border_comparison(found: Scores, models: Sequence[str], sets: Sequence[str], source: str) -> list[str]:
    """Of the first model and each other: where the extra loss differs, by an interval off zero; seeds are paired."""
    lines = []
    for model in models[1:]:
        moved, compared = [], 0
        for one in sets:
            first, other = (extra_by_seed(found, m, one, source) for m in (models[0], model))
            both = [other[seed] - first[seed] for seed in first if seed in other]
            if one == NONE or len(both) < 2:
                continue
            change, compared = Difference.of(both), compared + 1
            if change.off_zero:
                moved.append(f"{one} {change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}]")
        told = "; ".join(moved) or "none"
        lines.append(
            f"**{model}** against **{models[0]}**, extra loss of the targets, intervals off zero among {compared} sets "
            f"(95% each, not corrected): {told}"
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


def similarity_panels(similarity: Sequence[Record], models: Sequence[str]) -> list[LayerCurves]:
    """For each model: pretrained, fine-tuned, and fine-tuned after each set was re-initialised."""
    panels = []
    for model in models:
        mine = [r for r in similarity if r["model"] == model]
        names = {"": "pretrained", NONE: "fine-tuned"}
        curves = {
            names.get(one, f"{one} re-initialised, fine-tuned"): _curve([r for r in mine if r["ablation"] == one])
            for one in dict.fromkeys(r["ablation"] for r in mine)
        }
        panels.append(LayerCurves(model or "CKA", "CKA", curves))
    return panels


def correlation(
    found: Scores, similarity: Sequence[Record], model: str, source: str, layer: int | None = None
) -> Correlation | None:
    """Of the similarity after fine-tuning (at a layer, or the mean over all) with the gap."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for r in similarity:
        if r["model"] == model and r["ablation"] and layer in (None, r["layer"]):
            values.setdefault((r["language"], r["ablation"], r["seed"]), []).append(r["value"])
    points = []
    for (language, one, seed), cka in values.items():
        own, other = (found.get((model, one, x), {}).get(seed) for x in (source, language))
        if own is not None and other is not None:
            points.append((float(np.mean(cka)), own - other, language, one))
    groups = {"languages": [x for *_, x, _ in points], "sets of blocks": [x for *_, x in points]}
    return spearman([x for x, *_ in points], [y for _, y, *_ in points], groups)


def correlations(found: Scores, similarity: Sequence[Record], models: Sequence[str], source: str) -> list[str]:
    """A line for each model: the mean over the layers, and the last one."""
    last = max(r["layer"] for r in similarity)
    lines = []
    for model in models:
        kinds = {"mean over the layers": None, f"layer {last}": last}
        told = [
            f"{kind}: {correlation(found, similarity, model, source, layer) or 'none'}" for kind, layer in kinds.items()
        ]
        lines.append((f"{model}, " if model else "") + "; ".join(told))
    return lines


def movement_tables(movement: Sequence[Record], models: Sequence[str]) -> list[str]:
    """Blocks down, models across; without ablation, mean over the seeds."""
    layers = sorted({r["layer"] for r in movement})
    rows = []
    for layer in layers:
        row: list[Any] = ["embeddings" if layer == 0 else f"block {layer}"]
        for model in models:
            mine = [r for r in movement if (r["model"], r["ablation"], r["layer"]) == (model, NONE, layer)]
            row.append(f"{np.mean([r['distance'] for r in mine]):.4f}" if mine else None)
            row.append(f"{np.mean([r['cka'] for r in mine]):.3f}" if mine and "cka" in mine[0] else None)
        rows.append(row)
    columns = [f"{model} {kind}".strip() for model in models for kind in ("distance", "CKA")]
    return [markdown.table(["", *columns], rows)]
