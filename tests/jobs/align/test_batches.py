"""What is in a batch: the sentences of the plan, in its order of sides, with their positions and token types."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from step_fixtures import BATCH, METHOD

from ppa_jax.data.batches import sentence_hash
from ppa_jax.objectives import masking
from ppa_jax.training import sharding


def test_batches_say_what_the_plan_says(make, number_pairs):
    """Content, not shape: every query, key and TLM sequence stands in the rows, in the plan's order of sides."""
    sources = [number_pairs(300, seed=0), number_pairs(80, seed=1)]
    setting = make(2, accumulate=2)
    batch, plan = setting.batches.make(5), setting.batches.schedule.batch(5)
    assert 0 < plan.swap.sum() < BATCH
    for a in range(2):
        for s in range(2):
            rows, keys = (jax.tree.map(lambda x: x[a, s].reshape(-1), r) for r in (batch.rows, batch.key_rows))  # noqa: B023
            for i in range(BATCH // 4):
                n = (s * 2 + a) * (BATCH // 4) + i
                texts = sources[plan.source[n]].texts[plan.index[n]]
                first, second = ([int(w) for w in t.split()] for t in (texts[::-1] if plan.swap[n] else texts))
                query = rows.ids[rows.segments == n + 1]
                assert query.tolist() == [1, *first, 2]
                start = batch.query.start[a, s, i]
                assert rows.ids[start : start + batch.query.length[a, s, i]].tolist() == query.tolist()
                assert keys.ids[keys.segments == n + 1].tolist() == [1, *second, 2]
                tlm = rows.segments == BATCH + n + 1
                assert rows.ids[tlm].tolist() == [1, *first, 2, *second, 2]
                assert rows.positions[tlm].tolist() == list(range(tlm.sum()))  # running on, not reset
    assert (batch.slots.rank >= 0).sum() == masking.masked_count(plan.lengths.sum(axis=1), 0.15).sum()


@pytest.mark.usefixtures("hasty")
def test_text_of_one_language_beside_pairs(make, params, number_pairs, number_tokenizer):
    """Its sentences are masked alone, pairs in one sequence, in the same batch; and the step takes it."""
    pairs, text = number_pairs(300, seed=0), number_pairs(200, seed=1)
    text.languages = ("en",)
    setting = make(2, method=dataclasses.replace(METHOD, contrastive_weight=0.0), sources=[pairs, text])
    batch, plan = setting.batches.make(3), setting.batches.schedule.batch(3)
    ids, segments = batch.rows.ids.reshape(-1), batch.rows.segments.reshape(-1)
    assert 0 < plan.source.sum() < BATCH
    for n in range(BATCH):
        texts = (pairs, text)[plan.source[n]].texts[plan.index[n]]
        first, second = ([int(w) for w in t.split()] for t in (texts[::-1] if plan.swap[n] else texts))
        found = [ids[segments == BATCH + 2 * n + side + 1].tolist() for side in range(2)]
        assert found == ([[1, *first, 2], [1, *second, 2]] if plan.source[n] else [[1, *first, 2, *second, 2], []])
    counts = [masking.masked_count(x if plan.source[n] else x.sum(), 0.15).sum() for n, x in enumerate(plan.lengths)]
    assert (batch.slots.rank >= 0).sum() == sum(counts)
    state, metrics = setting.step(setting.state, sharding.put_batch(batch, setting.mesh))
    assert np.isfinite(metrics["tlm"]) and state.step == 1


@pytest.mark.usefixtures("hasty")
def test_xlm_tells_the_language_and_counts_positions_anew(make, number_pairs):
    """In the second sentence of a pair; text of one language is of that language alone."""
    pairs, text = number_pairs(300, seed=0), number_pairs(200, seed=1)
    text.languages = ("b",)
    method = dataclasses.replace(METHOD, contrastive_weight=0.0)
    for sources in ([pairs, text], [pairs]):
        setting = make(2, method=method, sources=sources, languages=("a", "b"))
        batch, plan = setting.batches.make(3), setting.batches.schedule.batch(3)
        rows = jax.tree.map(lambda x: x.reshape(-1), batch.rows)
        types, n = batch.types.reshape(-1), len(sources)
        for i in range(BATCH):
            here = rows.segments == BATCH + n * i + 1
            first, second = plan.lengths[i]
            a = int(plan.swap[i]) if plan.source[i] == 0 else 1
            if plan.source[i] == 0:
                assert types[here].tolist() == [a] * (first + 2) + [1 - a] * (second + 1)
                assert rows.positions[here].tolist() == [*range(first + 2), *range(second + 1)]
            else:
                assert types[here].tolist() == [1] * (first + 2)
                assert rows.positions[here].tolist() == list(range(first + 2))
    _, metrics = setting.step(setting.state, sharding.put_batch(batch, setting.mesh))
    assert np.isfinite(metrics["tlm"])


def test_lines_of_several_languages_are_pairs_of_two_of_them(make, number_pairs):
    """The texts, XLM's languages, and one hash for all sentences of a line: they are no negatives of each other."""
    lines = number_pairs(64, seed=2)
    lines.languages = ("a", "b", "c")
    lines.texts = [(*pair, pair[0] + " 7") if i % 4 else ("", *pair) for i, pair in enumerate(lines.texts)]
    lines.lengths = np.array([[len(text.split()) for text in line] for line in lines.texts])
    setting = make(2, sources=[lines], languages=("b", "c", "a"))
    found, kinds = {}, set()
    for step in range(3 * 64 // BATCH):
        batch, plan = setting.batches.make(step), setting.batches.schedule.batch(step)
        keys, rows, types = batch.key_rows, batch.rows, batch.types
        for n in range(BATCH):
            line, (first, second) = lines.texts[plan.index[n]], plan.sides[n]
            kinds.add((int(first), int(second)))
            assert keys.ids[keys.segments == n + 1].tolist() == [1, *map(int, line[second].split()), 2]
            here = rows.segments == BATCH + n + 1
            assert rows.ids[here].tolist() == [1, *map(int, line[first].split()), 2, *map(int, line[second].split()), 2]
            of = [(2, 0, 1)[side] for side in (first, second)]
            one, other = plan.lengths[n]
            assert types[here].tolist() == [of[0]] * (one + 2) + [of[1]] * (other + 1)
            found.setdefault(int(plan.index[n]), set()).add(int(batch.hashes.reshape(-1)[n]))
    assert kinds == set(itertools.permutations(range(3), 2)), "every language is anchor and partner of every other"
    assert len(found) == 64 and all(len(hashes) == 1 for hashes in found.values())
    assert len({*map(min, found.values())}) == len({next(filter(None, line)) for line in lines.texts})


def test_ranking_has_both_sides_in_the_query_encoder_alone(make, number_pairs):
    """All first sentences of a block before its second ones, and the hashes of their translations in that order."""
    pairs = number_pairs(300, seed=0)
    setting = make(2, accumulate=2, method=dataclasses.replace(METHOD, objective="ranking"), sources=[pairs])
    batch, plan = setting.batches.make(5), setting.batches.schedule.batch(5)
    assert batch.key_rows is None and batch.key is None and batch.hashes.shape == (2, 2, 2 * BATCH // 4)
    order = setting.batches.order()
    for (a, s, i), n in np.ndenumerate(order):
        for side in range(2):
            place = a, s, side * (BATCH // 4) + i
            start, length = (x[place] for x in batch.query)
            text, translation = (pairs.texts[plan.index[n]][plan.sides[n][x]] for x in (side, 1 - side))
            assert batch.rows.ids[a, s, start : start + length].tolist() == [1, *map(int, text.split()), 2]
            assert batch.hashes[place] == sentence_hash(translation)


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_rtl_reads_the_translation_and_predicts_the_target(make, number_pairs, contrast):
    """Language a of lines in a, b and c, whichever side it is; a pair of b and c has no sequence."""
    lines = number_pairs(64, seed=2)
    lines.languages = ("b", "a", "c")
    lines.texts = [(*pair, pair[0] + " 7") for pair in lines.texts]
    lines.lengths = np.array([[len(text.split()) for text in line] for line in lines.texts])
    method = dataclasses.replace(METHOD, contrastive_weight=contrast, rtl_weight=1.0)
    setting = make(2, accumulate=2, method=method, sources=[lines])
    batch, plan = setting.batches.make(1), setting.batches.schedule.batch(1)
    kinds = set()
    for (a, s, _), n in np.ndenumerate(setting.batches.order()):
        rows, of = jax.tree.map(lambda x: x[a, s], (batch.rows, batch.translation))  # noqa: B023
        here, sides = of.rows.segments == n + 1, plan.sides[n].tolist()
        encoded = [bool((rows.segments == 3 * BATCH * k + n + 1).any()) for k in range(2)]
        kinds.add(tuple(sides))
        if 1 not in sides:
            assert not here.any() and encoded == [bool(contrast), False]
            continue
        target = sides.index(1)
        assert encoded == [bool(contrast) or target == 1, target == 0]
        read, predicted = ([*map(int, lines.texts[plan.index[n]][sides[k]].split())] for k in (1 - target, target))
        assert of.rows.positions[here].tolist() == [*range(1, len(read) + 2), *range(1, len(predicted) + 1)]
        source, places = of.source[here], np.flatnonzero(here)
        assert rows.ids[source[: len(read) + 1]].tolist() == [*read, 2], "without [CLS]"
        assert (source[len(read) + 1 :] == rows.ids.size).all() and (of.rows.ids[here] == 3).all()
        own = np.isin(of.at, places)
        assert of.at[own].tolist() == places[len(read) + 1 :].tolist() and of.labels[own].tolist() == predicted
    assert kinds == set(itertools.permutations(range(3), 2))
    with_target = (plan.sides == 1).any(axis=1)
    assert batch.translation.used.sum() == plan.lengths[plan.sides == 1].sum() and not with_target.all()


def test_masked_lm_control_never_joins_a_pair(make):
    setting = make(method=dataclasses.replace(METHOD, contrastive_weight=0.0), joint=False)
    batch = setting.batches.make(0)
    ids, segments = batch.rows.ids.reshape(-1), batch.rows.segments.reshape(-1)
    for segment in set(segments.tolist()) - {0}:
        assert (ids[segments == segment] == 2).sum() == 1  # one [SEP], so one sentence
    assert len(set(segments.tolist()) - {0}) == 2 * BATCH
