"""The schedule: every pair once a pass, exact shares, balanced batches, the same from any step."""

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_jax.data import schedule


@given(st.integers(1, 3000), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_permutation(size, seed):
    assert sorted(schedule.permute(np.arange(size), size, (seed,))) == list(range(size))


def test_permute_depends_on_its_key_and_leaves_no_order():
    a, b = (schedule.permute(np.arange(1000), 1000, (0, 0, number)) for number in (0, 1))
    assert np.mean(a == b) < 0.02
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.15


def test_bit_reversal_balances_every_contiguous_part():
    order = schedule.bit_reversal_order(64)
    assert sorted(order) == list(range(64))
    for parts in (2, 4, 8):
        means = order.reshape(parts, -1).mean(axis=1)
        assert np.ptp(means) < 64 / (64 / parts)
    assert sorted(schedule.bit_reversal_order(12)) == list(range(12))


def test_draws_of_an_epoch():
    assert schedule.draws_per_epoch([700, 90], 1.0) == [700, 90]
    assert schedule.draws_per_epoch([49] * 49, 1.0) == [49] * 49  # 48 whole draws and 0.99... each in floating point
    # Weights 20 : 10 : 1 of 501 draws: 323.2, 161.6, 16.2. The largest remainder is the second's.
    assert schedule.draws_per_epoch([400, 100, 1], 2.0) == [323, 162, 16]
    assert schedule.draws_per_epoch([1000, 10], 0.5) == [1009, 1]  # 1009.9 and 0.1: no source is left out


def test_sources_are_spread_evenly_over_an_epoch():
    # 4 : 2 : 1. Rounded shares of what is left: 1 x 4/7, 0 x 2/3; 2 x 4/7, 1 x 2/3; 3 x 4/7, 1 x 2/3; ...
    assert [schedule.draws_before(n, [4, 2, 1]) for n in range(8)] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 1, 1], [3, 1, 1], [3, 2, 1], [4, 2, 1],
    ]  # fmt: skip


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_no_source_gives_draws_back(per_epoch):
    drawn = np.array([schedule.draws_before(n, per_epoch) for n in range(sum(per_epoch) + 1)])
    assert set(np.unique(np.diff(drawn, axis=0))) <= {0, 1}
    assert drawn.sum(axis=1).tolist() == list(range(sum(per_epoch) + 1))
    assert drawn[-1].tolist() == per_epoch


def make(seed=0, batch=8, temperature=2.0, sizes=(700, 90)):
    rng = np.random.default_rng(5)
    lengths = [rng.integers(3, 40, (n, 2)) for n in sizes]
    return schedule.Schedule(lengths, batch, seed, temperature)


def count_draws(p, steps):
    """How often each pair of each source is in the batches of the first `steps` steps."""
    counts = [np.zeros(len(table), int) for table in p.lengths]
    for step in range(steps):
        batch = p.batch(step)
        assert batch.index.shape == (p.batch_size,)
        for s, count in enumerate(counts):
            np.add.at(count, batch.index[batch.source == s], 1)
    return counts


def check_epochs(sizes, batch_size, temperature, epochs, seed=0):
    """After each epoch, every pair of a source was seen as often as any other of it, or once more.

    With temperature 1 that is once an epoch, but for the surplus of the epoch's last batch.
    """
    lengths = [np.random.default_rng(s).integers(3, 40, (n, 2)) for s, n in enumerate(sizes)]
    p = schedule.Schedule(lengths, batch_size, seed, temperature)
    for epoch in range(1, epochs + 1):
        steps = -(-epoch * p.pairs // batch_size)
        surplus = steps * batch_size - epoch * p.pairs
        counts = count_draws(p, steps)
        for count, per_epoch in zip(counts, p.draws_per_epoch, strict=True):
            assert count.max() - count.min() <= 1
            assert 0 <= count.sum() - epoch * per_epoch <= surplus
        if temperature == 1 and surplus < p.pairs:
            seen = np.concatenate(counts)
            assert set(seen) <= {epoch, epoch + 1} and np.sum(seen == epoch + 1) == surplus


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 70),
    st.sampled_from([1.0, 1.0, 0.1, 0.7, 2.0, 5.0, 100.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_pair_is_seen_once_an_epoch(sizes, batch_size, temperature, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "WINDOW", 5)  # several windows an epoch
        check_epochs(sizes, batch_size, temperature, 2, seed)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "epochs"),
    [
        ([29_000], 64, 1),
        ([3_072], 8, 2),
        ([1_000] * 112, 32, 1),
        ([160] * 51, 8, 2),
        ([3] * 10, 4, 7),
        ([49] * 49, 49, 3),
        ([1] * 200 + [5_000], 8, 2),
    ],
)
def test_corpora_that_are_not_whole_windows(sizes, batch_size, epochs):
    check_epochs(sizes, batch_size, 1.0, epochs)


def test_windows_are_nearly_equal_parts_of_an_epoch():
    p = make(batch=1, temperature=1.0)  # 790 batches an epoch: 197 or 198 in each of four windows
    windows = [p.window_of(0)]
    while windows[-1].stop < 3 * 790:
        windows.append(p.window_of(windows[-1].stop))
    assert {len(window) for window in windows} == {197, 198}
    assert {790, 1580, 2370} <= {window.stop for window in windows}
    for window in windows:
        assert all(p.window_of(step) == window for step in window)


def test_sources_are_drawn_by_size_to_the_power_of_one_over_t():
    p = make(temperature=2.0)
    assert p.draws_per_epoch == [581, 209]  # weights 700**0.5 and 90**0.5: 581.49 and 208.51
    counts = count_draws(p, 10 * 790 // 8 + 1)
    assert abs(counts[0].sum() - 5810) <= 4 and abs(counts[1].sum() - 2090) <= 4  # a surplus of 4 draws


def test_two_sides_by_hand():
    lengths = np.array([[3, 4, 5]] * 4 + [[0, 2, 2]] * 2 + [[1, 0, 9]])
    found = schedule.two_sides(lengths, np.array([0, 1, 2, 3, 0, 7, 1]))
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [0, 1], [1, 2], [1, 2], [0, 2]]


@given(st.integers(2, 5), st.integers(1, 9), st.integers(1, 7), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_line_of_several_languages_gives_all_its_pairs_in_turn(languages, batch_size, batches, has_holes, seed):
    """Once a pass; over as many passes as a line has pairs, each of them once. All lines have the pairs alike."""
    rng = np.random.default_rng(seed)
    n, passes = batch_size * batches, languages * (languages - 1) // 2
    lengths = rng.integers(1, 20, (n, languages))
    for line in lengths if has_holes else ():
        line[rng.permutation(languages)[: rng.integers(0, languages - 1)]] = 0
    p = schedule.Schedule([lengths, lengths[:, :2] + 1] if languages == 2 else [lengths], batch_size, seed)
    per_pass = len(p.lengths) * batches
    seen = [[] for _ in range(n)]
    for number in range(passes):
        kinds = []
        for step in range(number * per_pass, (number + 1) * per_pass):
            plan = p.batch(step)
            for s, i, sides, pieces, swap in zip(
                plan.source, plan.index, plan.sides, plan.lengths, plan.swap, strict=True
            ):
                assert pieces.tolist() == p.lengths[s][i, sides].tolist() and pieces.min() > 0
                assert (sides[0] > sides[1]) == swap
                if s == 0:
                    seen[i].append(frozenset(sides.tolist()))
                    kinds.append(tuple(sorted(sides.tolist())))
        assert all(len(pairs) == number + 1 for pairs in seen)
        if not has_holes:
            counts = [kinds.count(pair) for pair in itertools.combinations(range(languages), 2)]
            assert max(counts) - min(counts) <= 1
    for line, pairs in zip(lengths, seen, strict=True):
        own = [frozenset(pair) for pair in itertools.combinations(np.flatnonzero(line).tolist(), 2)]
        counts = [pairs.count(pair) for pair in own]
        assert sum(counts) == passes and max(counts) - min(counts) <= 1
    alone = schedule.Schedule(p.lengths, batch_size, seed).batch(per_pass * passes - 1)
    assert all(np.array_equal(a, b) for a, b in zip(alone, plan, strict=True))


def test_lengths_in_a_file_travel_by_its_name(tmp_path):
    lengths = make(sizes=(5000,)).lengths[0]
    np.save(tmp_path / "lengths.npy", lengths)
    mapped = np.load(tmp_path / "lengths.npy", mmap_mode="r")
    for table, small in ((mapped, True), (mapped[:4000], False)):  # a part of a file has no name
        p = schedule.Schedule([table], 8, 0)
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
    fixed = schedule.Schedule(p.lengths, 8, 0, 2.0, shuffle_sides=False)
    assert not any(fixed.batch(step).swap.any() for step in range(8))


@pytest.mark.parametrize("batch", [32, 25, 50, 63])
def test_batches_hold_all_lengths_and_about_the_same_number_of_tokens(batch):
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.1, 0.55, (20000, 2)), 3, 120).astype(int)
    p = schedule.Schedule([lengths], batch, 0)
    totals = np.array([p.batch(step).lengths.sum() for step in p.window_of(0)])
    drawn = lengths[rng.integers(0, 20000, (len(p.window_of(0)), batch))].sum(axis=(1, 2))
    assert totals.std() < drawn.std() / 5
    sides = np.array([p.batch(step).lengths.sum(axis=0) for step in p.window_of(0)])
    assert np.abs(np.diff(sides)).max() < sides.mean() / 20, "first sentences have as many tokens as the second"
    longest = [p.batch(step).lengths.sum(axis=1).max() for step in p.window_of(0)]
    assert min(longest) > np.quantile(lengths.sum(axis=1), 0.95)


def test_each_block_gets_one_of_every_stratum_and_about_as_many_tokens():
    rng = np.random.default_rng(2)
    sizes = np.sort(np.minimum(rng.lognormal(3.8, 0.5, 32 * 100), 120).astype(int))
    blocks = schedule.balance_blocks(np.arange(3200).reshape(32, 100), sizes)
    assert np.array_equal(np.sort(blocks.reshape(-1)), np.arange(3200))
    assert np.array_equal(blocks // 100, np.tile(np.arange(32), (100, 1)))
    assert np.ptp(sizes[blocks].sum(axis=1)) < sizes[blocks].sum(axis=1).mean() / 100


def test_sides_are_fair_one_by_one_and_balance_each_block():
    rng = np.random.default_rng(3)
    difference = rng.normal(0, 10, (8, 32)).astype(int)
    sides = np.stack([schedule.sample_sides(difference, np.random.default_rng(seed)) for seed in range(400)])
    assert np.abs(sides.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(400)
    total = np.where(sides, difference, -difference).sum(axis=2)
    assert np.abs(total).max() < np.abs(difference).max()
    equal = schedule.sample_sides(np.zeros((50, 32), int), rng)  # random signs: no block has all of one kind
    assert equal.any(axis=1).all() and not equal.all(axis=1).any()


def test_each_window_is_computed_once_and_ahead_of_its_batches(monkeypatch):
    computed, compute = [], schedule.Schedule._compute
    monkeypatch.setattr(schedule.Schedule, "_compute", lambda self, w: computed.append(w) or compute(self, w))
    p = make()  # 99 batches an epoch, the last of which takes two draws of the next
    windows = [range(99), range(99, 198), range(198, 297)]
    p.batch(48)
    assert computed == windows[:1]
    p.batch(49)
    steps = range(49, 198)
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(p.batch, steps))
    p.batch(198)
    assert computed == windows
    other = make()
    assert all(np.array_equal(b.index, other.batch(step).index) for step, b in zip(steps, batches, strict=True))


@pytest.mark.parametrize(
    ("batch", "size"), [(256, 16), (50, 25), (33, 11), (127, 127), (96, 16), (32, 32), (6, 6), (1, 1)]
)
def test_a_batch_without_a_good_divisor_is_one_block(batch, size):
    assert schedule.block_size(batch) == size
