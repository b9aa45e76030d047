"""Packing: nothing overlaps or crosses a row, layouts hold whole batches, and there is a shape for any batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_jax.data import packing
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.schedule import WINDOW, Schedule


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
        assert 2 * sum(lengths) > packing.capacity(layout) or max(lengths) > layout[-1][1] / 2
        return
    taken = np.zeros(packing.capacity(layout), int)
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
    assert packing.capacity(layout) < 1.05 * max(lengths.sum() for lengths in batches)
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


@pytest.mark.parametrize("rows", [6, 5, 4])
def test_many_blocks_at_once_lie_as_each_alone(rows):
    """Those that fit in the first order, those that need another one, and those that never fit."""
    lengths = np.random.default_rng(2).integers(0, 40, (40, 16))
    layout = ((2, 32), (rows, 64))
    alone = [packing.pack(block, layout) for block in lengths]
    fits = [i for i, starts in enumerate(alone) if starts is not None]
    assert (len(fits) == 40) == (packing.pack_blocks(lengths, layout) is not None)
    together = packing.pack_blocks(lengths[np.resize(fits, 40)], layout)
    np.testing.assert_array_equal(together, [alone[i] for i in np.resize(fits, 40)])


def test_the_ladder_rises_in_rows_that_hold_the_longest():
    ladder = packing.Ladder(packing.Shape(((64, 64), (3, 128)), ((8, 64),), 100), query_width=256, key_width=128)
    assert ladder.at(0) == ladder.base
    assert ladder.at(2) == packing.Shape(((64, 64), (3, 128), (2, 256)), ((8, 64), (2, 128)), 108)
    many = packing.Ladder(packing.Shape(((640, 64),), ((64, 64),), 1), 64, 64)
    assert many.at(1) == packing.Shape(((660, 64),), ((66, 64),), 2)
    assert many.at(6) == packing.Shape(((640 + 32 * 20, 64),), ((64 + 32 * 2, 64),), 33)


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
    alone = Schedule([lengths], 32, 0)
    late = next(i for i in range(len(lengths)) if not any(i in alone.batch(t).index for t in range(WINDOW)))
    lengths[late] = 10, 100
    corpus = Words(lengths)
    batches = PairBatches(
        [corpus],
        Schedule([lengths], 32, 0),
        corpus,
        max_length=128,
        row_length=256,
        mask_rate=0.15,
        shards=shards,
    )
    assert max(width for _, width in batches.ladder.base.query) == 64
    step = next(t for t in range(2000) if late in batches.schedule.batch(t).index)
    shape, _ = batches.packed(batches.schedule.batch(step))
    assert shape.query[-1][1] == 256 and shape.key[-1][1] == 128


def test_few_shapes_whatever_the_lengths():
    """A corpus sorted by length, say: batches of all lengths there are, from the shortest to the longest."""
    corpus = Words(np.full((4_000, 2), 8))
    batches = PairBatches(
        [corpus], Schedule([corpus.lengths], 32, 0), corpus, max_length=128, row_length=256, mask_rate=0.15
    )
    usual, shapes = batches.schedule.batch(0), set()
    for length in range(8, 127):
        shapes.add(batches.packed(usual._replace(lengths=np.full_like(usual.lengths, length)))[0])
    assert len(shapes) <= 1 + 1 + 5 + np.log2(126 / 8)  # the base; a thirty-second more; doubled up to 16 bases


# With eight shards one row is 2% of a shard's places, and some corpora take one more: the mean of three.
@pytest.mark.parametrize(("batch", "shards", "corpora"), [(32, 1, 1), (256, 8, 3), (128, 1, 1), (50, 1, 1)])
def test_nearly_all_batches_have_one_shape_and_little_padding(batch, shards, corpora):
    filled = []
    for seed in range(1, 1 + corpora):
        rng = np.random.default_rng(seed)
        lengths = np.clip(rng.lognormal(3.2, 0.5, (20000, 2)), 3, 126).astype(int)
        corpus, schedule = Words(lengths), Schedule([lengths], batch, 0)
        batches = PairBatches([corpus], schedule, corpus, max_length=128, row_length=256, mask_rate=0.15, shards=shards)
        shapes, real, room = [], 0, 0
        for step in range(0, 3 * WINDOW, 16):
            drawn = schedule.batch(step)
            shapes.append(batches.packed(drawn)[0])
            # query, key, and TLM of both; 7 special tokens
            real += 2 * drawn.lengths.sum() + 7 * batch
            room += shards * (packing.capacity(shapes[-1].query) + packing.capacity(shapes[-1].key))
        assert len(set(shapes)) <= 2
        assert shapes.count(batches.ladder.base) > 0.8 * len(shapes)
        filled.append(real / room)
    assert np.mean(filled) > 0.93, filled
