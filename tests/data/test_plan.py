"""The plan: every pair once a pass, exact shares, balanced batches, the same from any step."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_jax.data import packing, plan
from ppa_jax.data.pairs import PairBatches


@given(st.integers(1, 3000), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_permutation(size, seed):
    assert sorted(plan.permute(np.arange(size), size, (seed,))) == list(range(size))


def test_permute_depends_on_its_key_and_leaves_no_order():
    a, b = (plan.permute(np.arange(1000), 1000, (0, 0, number)) for number in (0, 1))
    assert np.mean(a == b) < 0.02
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.15


def test_spread_balances_every_contiguous_share():
    order = plan.spread(64)
    assert sorted(order) == list(range(64))
    for shares in (2, 4, 8):
        means = order.reshape(shares, -1).mean(axis=1)
        assert np.ptp(means) < 64 / (64 / shares)
    assert sorted(plan.spread(12)) == list(range(12))


def make(seed=0, batch=8, temperature=2.0, sizes=(700, 90)):
    rng = np.random.default_rng(5)
    lengths = [rng.integers(3, 40, (n, 2)) for n in sizes]
    return plan.Plan(lengths, batch, seed, temperature)


def test_every_pair_is_seen_once_in_each_pass():
    p = make()
    seen = [[], []]
    for step in range(plan.WINDOW * 12):
        batch = p.batch(step)
        for s in (0, 1):
            seen[s] += batch.index[batch.source == s].tolist()
    for s, size in ((0, 700), (1, 90)):
        assert len(seen[s]) == p.drawn_before(12)[s]
        passes, rest = divmod(len(seen[s]), size)
        counts = np.bincount(seen[s], minlength=size)
        assert passes >= 5
        assert set(counts) <= {passes, passes + 1} and np.sum(counts == passes + 1) == rest


def test_languages_are_drawn_by_size_to_the_power_of_one_over_t():
    p = make(temperature=2.0)
    share = np.mean([np.mean(p.batch(step).source == 0) for step in range(plan.WINDOW * 4)])
    expected = 700**0.5 / (700**0.5 + 90**0.5)
    assert abs(share - expected) < 1e-3  # exact up to rounding, not only on average
    flat = make(temperature=1.0)
    assert np.allclose(flat.probabilities, [700 / 790, 90 / 790])


def test_a_step_is_the_same_asked_alone_and_in_order():
    walked = make()
    for step in range(100):
        last = walked.batch(step)
    alone = make().batch(99)
    elsewhere = pickle.loads(pickle.dumps(walked)).batch(99)  # as a worker process has it
    for a, b, c in zip(last, alone, elsewhere, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert not np.array_equal(make(seed=1).batch(99).index, alone.index)


def test_sides_are_swapped_at_random_with_their_lengths():
    p = make()
    batch = p.batch(3)
    for s, i, swap, got in zip(batch.source, batch.index, batch.swap, batch.lengths, strict=True):
        assert list(got) == list(p.lengths[s][i][::-1] if swap else p.lengths[s][i])
    share = np.mean([p.batch(step).swap for step in range(128)])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(128 * 8)
    fixed = plan.Plan(p.lengths, 8, 0, 2.0, shuffle_sides=False)
    assert not any(fixed.batch(step).swap.any() for step in range(8))


@pytest.mark.parametrize("batch", [32, 25, 50, 63])
def test_batches_hold_all_lengths_and_about_the_same_number_of_tokens(batch):
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.1, 0.55, (20000, 2)), 3, 120).astype(int)
    p = plan.Plan([lengths], batch, 0)
    totals = np.array([p.batch(step).lengths.sum() for step in range(plan.WINDOW)])
    drawn = lengths[rng.integers(0, 20000, (plan.WINDOW, batch))].sum(axis=(1, 2))
    assert totals.std() < drawn.std() / 5
    longest = [p.batch(step).lengths.sum(axis=1).max() for step in range(plan.WINDOW)]
    assert min(longest) > np.quantile(lengths.sum(axis=1), 0.95)


def test_each_share_gets_one_of_every_stratum_and_about_as_many_tokens():
    rng = np.random.default_rng(2)
    sizes = np.sort(np.minimum(rng.lognormal(3.8, 0.5, 32 * 100), 120).astype(int))
    dealt = plan.deal(np.arange(3200).reshape(32, 100), sizes)
    assert np.array_equal(np.sort(dealt.reshape(-1)), np.arange(3200))
    assert np.array_equal(dealt // 100, np.tile(np.arange(32), (100, 1)))
    assert np.ptp(sizes[dealt].sum(axis=1)) < sizes[dealt].sum(axis=1).mean() / 100


def test_coins_are_fair_one_by_one_and_balance_each_share():
    rng = np.random.default_rng(3)
    difference = rng.normal(0, 10, (8, 32)).astype(int)
    tossed = np.stack([plan.toss(difference, np.random.default_rng(seed)) for seed in range(400)])
    assert np.abs(tossed.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(400)
    total = np.where(tossed, difference, -difference).sum(axis=2)
    assert np.abs(total).max() < np.abs(difference).max()
    equal = plan.toss(np.zeros((50, 32), int), rng)  # coins of their own: no share falls on one side
    assert equal.any(axis=1).all() and not equal.all(axis=1).any()


def lengths_in_rows(draw_layout):
    """Lengths that a layout has room for by their sum, and the layout."""
    return draw_layout.flatmap(
        lambda layout: st.tuples(st.lists(st.integers(0, max(w for _, w in layout)), max_size=60), st.just(layout))
    )


LAYOUTS = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(
    lambda rows: tuple(zip(rows, (16, 32, 64), strict=False))
)


@given(lengths_in_rows(LAYOUTS))
@settings(max_examples=150, deadline=None)
def test_packed_sequences_never_overlap_nor_cross_a_row(drawn):
    lengths, layout = drawn
    starts = packing.pack(np.array(lengths, int), layout)
    row_of = np.repeat(np.arange(sum(r for r, _ in layout)), np.concatenate([[w] * r for r, w in layout]))
    if starts is None:
        assert 2 * sum(lengths) > packing.places(layout) or max(lengths) > layout[-1][1] / 2
        return
    taken = np.zeros(packing.places(layout), int)
    for start, n in zip(starts, lengths, strict=True):
        if n:
            assert row_of[start] == row_of[start + n - 1]
            taken[start : start + n] += 1
    assert taken.max(initial=0) <= 1


@pytest.mark.parametrize(
    ("lengths", "rows"), [([2, 5, 4, 6, 3, 4], 2), ([4, 5, 6, 3, 5, 5, 3, 3], 3), ([11, 3, 4, 6, 4, 5, 6, 3, 5], 4)]
)
def test_other_orders_find_fits_that_the_first_does_not(lengths, rows, monkeypatch):
    """Rows of 12 with no place or almost none to spare."""
    assert packing.pack(np.array(lengths), ((rows, 12),)) is not None
    monkeypatch.setattr(packing, "ATTEMPTS", 1)
    assert packing.pack(np.array(lengths), ((rows, 12),)) is None


def test_the_layout_holds_every_batch_and_is_nearly_full():
    rng = np.random.default_rng(4)
    batches = [np.clip(rng.lognormal(3.5, 0.5, 64), 5, 200).astype(int) for _ in range(20)]
    layout = packing.find_layout([[lengths] for lengths in batches], packing.widths_for(256), share=1.0)
    assert [w for _, w in layout] == [64, 128, 256]
    assert all(packing.pack(lengths, layout) is not None for lengths in batches)
    assert packing.places(layout) < 1.05 * max(lengths.sum() for lengths in batches)
    assert packing.find_layout([[np.array([0])]], [64]) == packing.find_layout([[np.zeros(0, int)]], [64]) == ((1, 64),)
    with pytest.raises(ValueError, match="257 tokens"):
        packing.find_layout([[np.array([257])]], [64, 256])


@pytest.mark.parametrize(("longest", "widths"), [(256, [64, 128, 256]), (192, [96, 192]), (25, [25]), (512, None)])
def test_widths_are_halves_down_to_the_narrowest(longest, widths):
    assert packing.widths_for(longest) == (widths or [64, 128, 256, 512])


def test_a_layout_holds_whole_batches(monkeypatch):
    """Though the blocks that it is made for are easier than some."""
    monkeypatch.setattr(packing, "SEARCHED", 1)
    rng = np.random.default_rng(0)
    many = [[rng.integers(20, 60, 12) for _ in range(4)] for _ in range(50)] + [[np.full(16, 100)] * 4] * 10
    layout = packing.find_layout(many, [64, 128], 0.98)
    assert sum(any(packing.pack(x, layout) is None for x in blocks) for blocks in many) <= 1


def test_the_ladder_rises_in_rows_that_hold_the_longest():
    ladder = packing.Ladder(packing.Shape(((64, 64), (3, 128)), ((8, 64),), 100), query_width=256, key_width=128)
    assert ladder.at(0) == ladder.base
    assert ladder.at(2) == packing.Shape(((64, 64), (3, 128), (2, 256)), ((8, 64), (2, 128)), 108)
    many = packing.Ladder(packing.Shape(((640, 64),), ((64, 64),), 1), 64, 64)
    assert many.at(1) == packing.Shape(((660, 64),), ((66, 64),), 2)


class Words:
    """A corpus of given lengths, and its tokenizer."""

    languages = ("a", "b")
    cls_id, sep_id, pad_id = 1, 2, 0

    def __init__(self, lengths):
        self.lengths = lengths

    def read(self, indices):
        return [(" ".join("x" * n for n in self.lengths[i][:1]), str(i)) for i in indices]


@pytest.mark.parametrize("shards", [1, 8])
def test_a_batch_with_longer_sentences_than_any_before_has_a_shape(shards):
    """The first window holds short pairs only: no row is wide. The long pair comes later, and must not wait forever."""
    lengths = np.full((40_000, 2), 8)
    alone = plan.Plan([lengths], 32, 0)
    late = next(i for i in range(len(lengths)) if not any(i in alone.batch(t).index for t in range(plan.WINDOW)))
    lengths[late] = 10, 100
    corpus = Words(lengths)
    batches = PairBatches(
        [corpus], plan.Plan([lengths], 32, 0), corpus, max_length=128, row_length=256, mask_rate=0.15, shards=shards
    )
    assert max(width for _, width in batches.ladder.base.query) == 64
    step = next(t for t in range(2000) if late in batches.plan.batch(t).index)
    shape, _ = batches.packed(batches.plan.batch(step))
    assert shape.query[-1][1] == 256 and shape.key[-1][1] == 128


@pytest.mark.parametrize(("batch", "shards"), [(32, 1), (256, 8), (128, 1), (50, 1)])
def test_nearly_all_batches_have_one_shape_and_little_padding(batch, shards):
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.2, 0.5, (20000, 2)), 3, 126).astype(int)
    corpus = Words(lengths)
    batches = PairBatches(
        [corpus], plan.Plan([lengths], batch, 0), corpus, max_length=128, row_length=256, mask_rate=0.15, shards=shards
    )
    shapes, real, room = [], 0, 0
    for step in range(0, 3 * plan.WINDOW, 16):
        drawn = batches.plan.batch(step)
        shapes.append(batches.packed(drawn)[0])
        real += drawn.lengths.sum() + drawn.lengths[:, 0].sum() + 7 * batch  # query, key and TLM, 7 special tokens
        room += shards * (packing.places(shapes[-1].query) + packing.places(shapes[-1].key))
    real += sum(batches.plan.batch(step).lengths[:, 1].sum() for step in range(0, 3 * plan.WINDOW, 16))
    assert real / room > 0.93
    assert len(set(shapes)) <= 2
    assert shapes.count(batches.ladder.base) > 0.8 * len(shapes)


@pytest.mark.parametrize(("batch", "share"), [(256, 32), (50, 25), (33, 11), (127, 127), (96, 32), (6, 6), (1, 1)])
def test_shares_are_the_whole_batch_where_it_has_no_good_divisor(batch, share):
    assert plan.share_of(batch) == share
