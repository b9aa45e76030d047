"""The plan: every pair once a pass, exact shares, balanced batches, the same from any step."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_jax.data import packing, plan


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


def test_batches_hold_all_lengths_and_about_the_same_number_of_tokens():
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.1, 0.55, (20000, 2)), 3, 120).astype(int)
    p = plan.Plan([lengths], 32, 0)
    totals = np.array([p.batch(step).lengths.sum() for step in range(plan.WINDOW)])
    drawn = lengths[rng.integers(0, 20000, (plan.WINDOW, 32))].sum(axis=(1, 2))
    assert totals.std() < drawn.std() / 5
    longest = [p.batch(step).lengths.sum(axis=1).max() for step in range(plan.WINDOW)]
    assert min(longest) > np.quantile(lengths.sum(axis=1), 0.95)


@given(st.lists(st.integers(0, 64), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_packed_sequences_never_overlap_nor_cross_a_row(lengths):
    starts, rows = packing.pack(np.array(lengths), 64)
    taken = np.zeros(max(rows, 1) * 64, int)
    for start, n in zip(starts, lengths, strict=True):
        if n:
            assert start // 64 == (start + n - 1) // 64
            taken[start : start + n] += 1
    assert taken.max(initial=0) <= 1
    assert rows <= 11 / 9 * -(-sum(lengths) // 64) + 1 or rows <= 2 * -(-sum(lengths) // 64)


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="65 tokens"):
        packing.pack(np.array([65]), 64)


def test_ladder_gives_the_first_shape_that_holds_the_need():
    ladder = packing.Ladder(packing.Shape(32, 8, 100))
    assert ladder.smallest(packing.Shape(32, 8, 100)) == ladder.base
    assert ladder.smallest(packing.Shape(33, 1, 1)) == packing.Shape(34, 9, 107)
    assert ladder.smallest(packing.Shape(1, 20, 1)) == ladder.at(12)
