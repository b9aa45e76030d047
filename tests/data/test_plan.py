"""The plan: every pair once a pass, exact shares, balanced batches, the same from any step."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_jax.data import plan


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
    for step in range(p.window * 12):
        batch = p.batch(step)
        for s in (0, 1):
            seen[s] += batch.index[batch.source == s].tolist()
    for s, size in ((0, 700), (1, 90)):
        assert len(seen[s]) == p.drawn_before(12)[s]
        passes, rest = divmod(len(seen[s]), size)
        counts = np.bincount(seen[s], minlength=size)
        assert passes >= 5
        assert set(counts) <= {passes, passes + 1} and np.sum(counts == passes + 1) == rest


@pytest.mark.parametrize("epochs", [1, 10])
@pytest.mark.parametrize("pairs", [100, 1000, 3000])
def test_an_epoch_is_a_pass(pairs, epochs):
    """To within a window, which is about one pass over so few pairs, for each of two languages."""
    sizes = (pairs * 9 // 10, pairs // 10)
    p = make(batch=128, sizes=sizes, temperature=1.0)
    batches = [p.batch(step) for step in range(round(epochs * pairs / 128))]
    for s, size in enumerate(sizes):
        seen = np.bincount(np.concatenate([b.index[b.source == s] for b in batches]), minlength=size)
        assert epochs - 1 <= seen.min() and seen.max() <= epochs + 2 and abs(seen.mean() - epochs) < 0.5


def test_languages_are_drawn_by_size_to_the_power_of_one_over_t():
    p = make(temperature=2.0)
    share = np.mean([np.mean(p.batch(step).source == 0) for step in range(p.window * 4)])
    expected = 700**0.5 / (700**0.5 + 90**0.5)
    assert abs(share - expected) < 1e-3  # exact up to rounding, not only on average
    flat = make(temperature=1.0)
    assert np.allclose(flat.probabilities, [700 / 790, 90 / 790])


def test_lengths_in_a_file_travel_by_its_name(tmp_path):
    lengths = make(sizes=(5000,)).lengths[0]
    np.save(tmp_path / "lengths.npy", lengths)
    mapped = np.load(tmp_path / "lengths.npy", mmap_mode="r")
    for table, small in ((mapped, True), (mapped[:4000], False)):  # a part of a file has no name
        p = plan.Plan([table], 8, 0)
        packed = pickle.dumps(p)
        assert (len(packed) < 1000) == small
        assert np.array_equal(pickle.loads(packed).batch(3).index, p.batch(3).index)


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
    totals = np.array([p.batch(step).lengths.sum() for step in range(p.window)])
    drawn = lengths[rng.integers(0, 20000, (p.window, batch))].sum(axis=(1, 2))
    assert totals.std() < drawn.std() / 5
    sides = np.array([p.batch(step).lengths.sum(axis=0) for step in range(p.window)])
    assert np.abs(np.diff(sides)).max() < sides.mean() / 20, "first sentences have as many tokens as the second"
    longest = [p.batch(step).lengths.sum(axis=1).max() for step in range(p.window)]
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


def test_each_window_is_made_once_and_ahead_of_its_batches(monkeypatch):
    made, make_window = [], plan.Plan._make_window
    monkeypatch.setattr(plan.Plan, "_make_window", lambda self, n: made.append(n) or make_window(self, n))
    p = make()
    p.batch(p.window // 2 - 1)
    assert made == [0]
    p.batch(p.window // 2)
    steps = range(p.window // 2, 2 * p.window)
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(p.batch, steps))
    p.batch(2 * p.window)
    assert made == [0, 1, 2]
    other = make()
    assert all(np.array_equal(b.index, other.batch(step).index) for step, b in zip(steps, batches, strict=True))


@pytest.mark.parametrize(
    ("batch", "share"), [(256, 16), (50, 25), (33, 11), (127, 127), (96, 16), (32, 32), (6, 6), (1, 1)]
)
def test_shares_are_the_whole_batch_where_it_has_no_good_divisor(batch, share):
    assert plan.share_of(batch) == share
