"""The losses against plain NumPy and PyTorch, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ppa_jax.model.heads import decode
from ppa_jax.objectives import contrastive, masked_lm, masking
from ppa_jax.training.sharding import BATCH_AXES, make_mesh


def info_nce(devices, query, key, hashes, queue, filled, own=None, **options):
    """`contrastive.info_nce` on so many shards: the losses and wins of all pairs."""
    rows, own_specs = P(BATCH_AXES), None if own is None else (P(), P(BATCH_AXES))
    on_shards = jax.shard_map(
        functools.partial(contrastive.info_nce, temperature=0.05, axes=BATCH_AXES, **options),
        mesh=make_mesh(devices),
        in_specs=(rows, rows, rows, contrastive.queue_specs(BATCH_AXES), P(), own_specs),
        out_specs=(rows, rows),
    )
    return on_shards(query, key, hashes, jax.tree.map(jnp.asarray, queue), jnp.int32(filled), own)


def sequences_and_slots(lengths, middles, rate):
    lengths, middles = np.asarray(lengths), np.asarray(middles)
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    counts = masking.masked_count(lengths - 2 - (middles > 0), rate)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    rank = np.concatenate([np.arange(c) for c in counts])
    spare = 3
    slots = masking.Slots(np.r_[sequence, np.zeros(spare, int)], np.r_[rank, -np.ones(spare, int)])
    return masking.Sequences(np.arange(len(lengths)) + 10, starts, lengths, middles), slots, counts


def test_dict_mlm_shows_or_asks_for_the_translation():
    """Of the masked tokens with a translation about half; all others as in masked LM, by the same draws."""
    lengths, V = [60] * 20, 100
    sequences, slots, _ = sequences_and_slots(lengths, [0] * 20, 0.3)
    ids = np.random.default_rng(0).integers(5, V, sum(lengths))
    table = np.full(V, -1)
    table[5:60] = np.arange(5, 60) + V

    def mask(**options):
        found = masking.mask_tokens(
            jax.random.key(1), ids, sequences, slots, longest=64, mask_id=4, vocab_size=V, **options
        )
        return jax.tree.map(np.asarray, found)

    plain, shown, asked = mask(), mask(translations=table, form="input"), mask(translations=table, form="label")
    used = plain.weights == 1
    at, original = plain.at[used], plain.labels[used]
    assert (shown.labels == plain.labels).all() and (asked.ids == plain.ids).all()
    by_input, by_label = shown.ids[at] != plain.ids[at], asked.labels[used] != original
    assert (by_input == by_label).all(), "the same tokens, whatever the form"
    assert (shown.ids[at][by_input] == table[original][by_input]).all()
    assert (asked.labels[used][by_label] == table[original][by_label]).all()
    assert not by_label[table[original] < 0].any()
    assert 0.35 < by_label[table[original] >= 0].mean() < 0.65
    elsewhere = np.ones(len(ids), bool)
    elsewhere[at] = False
    assert (shown.ids[elsewhere] == ids[elsewhere]).all()


def test_masks_exactly_the_rounded_share_of_each_sequence_and_never_special_tokens():
    lengths, middles = [30, 7, 50, 4], [11, 3, 0, 2]
    sequences, slots, counts = sequences_and_slots(lengths, middles, 0.15)
    assert list(counts) == [4, 1, 7, 0]  # of 27, 4, 48 and 1 real tokens: 4.05, 0.6, 7.2, 0.15
    ids = np.arange(1000, 1000 + sum(lengths))
    chosen = []
    for seed in range(200):
        masked = masking.mask_tokens(
            jax.random.key(seed), ids, sequences, slots, longest=64, mask_id=4, vocab_size=2000
        )
        used = np.asarray(masked.weights) == 1
        at = np.asarray(masked.at)[used]
        assert len(set(at)) == counts.sum() == used.sum()
        owner = np.searchsorted(np.cumsum(lengths), at, side="right")
        assert np.array_equal(np.bincount(owner, minlength=4), counts)
        places = at - sequences.start[owner]
        assert not np.any((places == 0) | (places == np.array(lengths)[owner] - 1))
        assert not np.any((places == np.array(middles)[owner]) & (np.array(middles)[owner] > 0))
        assert np.array_equal(np.asarray(masked.labels)[used], ids[at])
        untouched = np.setdiff1d(np.arange(len(ids)), at)
        assert np.array_equal(np.asarray(masked.ids)[untouched], ids[untouched])
        chosen.append(np.stack([at, np.asarray(masked.ids)[at]], 1))
    at, became = np.concatenate(chosen).T
    n = len(at)
    # 80% [MASK], 10% kept, 10% from the whole vocabulary, within 4 deviations
    for share, hits in ((0.8, became == 4), (0.1, became == ids[at])):
        assert abs(hits.mean() - share) < 4 * np.sqrt(share * (1 - share) / n)
    random = became[(became != 4) & (became != ids[at])]
    assert random.min() < 100 and random.max() > 1900
    # every ordinary token is drawn about as often as any other of its sequence
    often = np.bincount(at, minlength=len(ids))[1:11]
    assert often.min() > 0.4 * often.mean()


def test_random_pieces_are_the_tokenizers_and_never_special_tokens():
    """20 ids of which 4 are special: the 16 others as often as each other, no row that pads an embedding table."""
    lengths, special = [200] * 50, (0, 4, 7, 19)
    sequences, slots, _ = sequences_and_slots(lengths, [0] * 50, 0.5)
    ids = np.full(sum(lengths), 1000)  # no id below 20: what is drawn differs from what stays
    masked = masking.mask_tokens(
        jax.random.key(0), ids, sequences, slots, longest=200, mask_id=4, vocab_size=20, special_ids=special
    )
    became = np.asarray(masked.ids)[np.asarray(masked.at)[np.asarray(masked.weights) == 1]]
    counts = np.bincount(became[(became != 4) & (became != 1000)], minlength=20)
    assert len(counts) == 20 and not counts[list(special)].any()
    counts = np.delete(counts, special)
    chi_square = np.sum((counts - counts.mean()) ** 2) / counts.mean()
    assert counts.sum() > 400 and chi_square < 44.3  # 15 degrees of freedom: once in 10,000 above


def test_a_sequence_is_masked_alike_wherever_it_lies():
    sequences, slots, _ = sequences_and_slots([12, 20], [5, 0], 0.3)
    ids = np.arange(100, 132)
    mask = jax.jit(
        lambda ids, sequences: masking.mask_tokens(
            jax.random.key(1), ids, sequences, slots, longest=32, mask_id=4, vocab_size=50
        )
    )
    here = mask(ids, sequences).ids
    moved = np.concatenate([ids[12:], ids[:12]])
    there = mask(moved, sequences._replace(start=np.array([20, 0]))).ids
    assert np.array_equal(here, np.concatenate([there[20:], there[:20]]))


@pytest.mark.parametrize("chunked", [False, True])
def test_cross_entropy_and_gradient_equal_pytorch(chunked, monkeypatch):
    import torch

    monkeypatch.setattr(masked_lm, "CHUNK", 4)  # of seven positions: the last chunk is not full

    rng = np.random.default_rng(0)
    states, bias, words = (rng.normal(size=size).astype("f") for size in ((7, 5), (11,), (11, 5)))
    labels, weights = rng.integers(0, 11, 7), rng.random(7).astype("f")

    def total(*parameters):
        loss = masked_lm.in_chunks if chunked else masked_lm.cross_entropy
        return jnp.sum(loss(*parameters, jnp.asarray(labels)) * weights)

    loss, grads = jax.value_and_grad(total, (0, 1, 2))(*map(jnp.asarray, (states, bias, words)))
    x, b, w = (torch.tensor(value, requires_grad=True) for value in (states, bias, words))
    nll = torch.nn.functional.cross_entropy(x @ w.T + b, torch.tensor(labels), reduction="none")
    expected = (nll * torch.tensor(weights)).sum()
    expected.backward()
    assert np.isclose(loss, expected.item(), rtol=1e-6)
    for grad, theirs in zip(grads, (x, b, w), strict=True):
        np.testing.assert_allclose(grad, theirs.grad.numpy(), atol=2e-6)


def test_in_chunks_no_array_of_all_logits_is_made():
    M, V = 4 * masked_lm.CHUNK, 1000
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((M, 8), (V,), (V, 8))]
    labels = jnp.zeros(M, int)
    memory = []
    for loss in (masked_lm.cross_entropy, masked_lm.in_chunks):
        total = lambda *given, loss=loss: jnp.sum(loss(*given, labels))  # noqa: E731
        compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[0] >= M * V * 4 and memory[1] < M * V * 4


def test_cross_entropy_in_bfloat16_keeps_float32_where_it_counts():
    rng = np.random.default_rng(0)
    states, bias, words = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 16), (300,), (300, 16)))
    labels = rng.integers(0, 300, 5)

    def total(x, b, w):
        return jnp.mean(masked_lm.cross_entropy(x, b, w, labels))

    exact = jax.grad(total, (0, 1, 2))(states, bias, words)
    rounded = jax.grad(total, (0, 1, 2))(states.astype(jnp.bfloat16), bias, words)
    logits = decode(states.astype(jnp.bfloat16), bias, words)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    got = masked_lm.cross_entropy(states.astype(jnp.bfloat16), bias, words, labels)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert [g.dtype for g in rounded] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for a, b in zip(exact, rounded, strict=True):
        error = jnp.linalg.norm(a - b.astype(jnp.float32)) / jnp.linalg.norm(a)
        assert error < 0.02, "bfloat16 has 8 bits: 0.4% a factor"


def contrast_case(seed=0, B=16, S=3, width=5):
    rng = np.random.default_rng(seed)

    def unit(*shape):
        x = rng.normal(size=shape).astype("f")
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    hashes = rng.integers(1, 9, B).astype("u4")
    queue = contrastive.Queue(unit(S, B, width), rng.integers(1, 9, (S, B)).astype("u4"))
    return unit(B, width), unit(B, width), hashes, queue


def info_nce_by_hand(query, key, hashes, queue, filled, temperature, mask_duplicates):
    losses, wins = [], []
    for q, k, h in zip(query, key, hashes, strict=True):
        negatives = [
            float(q @ other) / temperature
            for slot in range(filled)
            for other, other_hash in zip(queue.keys[slot], queue.hashes[slot], strict=True)
            if not (mask_duplicates and other_hash == h)
        ]
        positive = float(q @ k) / temperature
        losses.append(np.logaddexp.reduce([positive, *negatives]) - positive)
        wins.append(all(positive > n for n in negatives) if filled else np.nan)
    return np.array(losses), np.array(wins, float)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("filled, duplicates", [(0, False), (2, False), (3, True)])
def test_info_nce_equals_the_formula(devices, filled, duplicates):
    query, key, hashes, queue = contrast_case()
    loss, wins = info_nce(devices, query, key, hashes, queue, filled, mask_duplicates=duplicates)
    expected, expected_wins = info_nce_by_hand(query, key, hashes, queue, filled, 0.05, duplicates)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(wins, expected_wins, equal_nan=True)


@pytest.mark.parametrize("devices, accumulate", [(1, 1), (2, 1), (2, 4)])
def test_in_batch_negatives_are_all_other_keys_of_the_batch(devices, accumulate):
    """The batch's keys stand in a slot of the queue already; the own key is the positive and no negative."""
    query, key, hashes, queue = contrast_case(2)
    slot, B = 1, len(query)
    queue = contrastive.enqueue(
        jax.tree.map(jnp.asarray, queue), jnp.int32(slot), jnp.asarray(key), jnp.asarray(hashes)
    )
    # The places of one accumulation step: device d has the pairs d*A*b + a*b + i of the global batch.
    b = B // (devices * accumulate)
    part = np.concatenate([np.arange(b) + (d * accumulate + accumulate - 1) * b for d in range(devices)])
    column = part % (accumulate * b)
    own = jnp.int32(slot), jnp.asarray(column)
    loss, wins = info_nce(devices, query[part], key[part], hashes[part], queue, 2, own, mask_duplicates=False)
    for place, n in enumerate(part):
        negatives = [queue.keys[0], np.delete(np.asarray(queue.keys[slot]), n, axis=0)]
        logits = np.concatenate([[query[n] @ key[n]], *(np.asarray(x) @ query[n] for x in negatives)]) / 0.05
        assert np.isclose(loss[place], np.logaddexp.reduce(logits) - logits[0], rtol=1e-4, atol=1e-5)
        assert wins[place] == (logits[0] > logits[1:].max())


@pytest.mark.parametrize("devices", [1, 8])
def test_info_nce_gradient_equals_pytorch_and_spares_the_key(devices):
    import torch

    query, key, hashes, queue = contrast_case(1)

    def ours(query, key):
        return info_nce(devices, query, key, hashes, queue, 2, mask_duplicates=False)[0].mean()

    grad, key_grad = jax.jit(jax.grad(ours, (0, 1)))(query, key)
    q, k = torch.tensor(query, requires_grad=True), torch.tensor(key)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ torch.tensor(queue.keys[:2].reshape(-1, 5)).T], 1) / 0.05
    torch.nn.functional.cross_entropy(logits, torch.zeros(16, dtype=torch.long)).backward()
    np.testing.assert_allclose(grad, q.grad.numpy(), atol=1e-5)
    assert not np.any(key_grad)


def ranking(devices, query, key, hashes, **options):
    """`contrastive.ranking` on so many shards: the losses and wins of all pairs."""
    rows = P(BATCH_AXES)
    on_shards = jax.shard_map(
        functools.partial(contrastive.ranking, axes=BATCH_AXES, **options),
        mesh=make_mesh(devices),
        in_specs=(rows, rows, rows),
        out_specs=(rows, rows),
    )
    return on_shards(query, key, hashes)


def test_ranking_by_hand():
    """Three pairs, the keys of the last two one sentence: cosines 0.8, 0.6 | 1, 0 | 0.6, 0.8."""
    query = np.array([[0.8, 0.6], [1, 0], [0.6, 0.8]], "f")
    key = np.array([[1, 0], [0, 1], [0, 1]], "f")
    hashes, options = np.array([1, 2, 2], "u4"), {"temperature": 0.5, "margin": 0.1}
    loss, wins = ranking(1, query, key, hashes, **options, mask_duplicates=True)
    # exponents (cosine - margin of the own key) / 0.5: 1.4 against 1.2, 1.2; -0.2 against 2; 1.4 against 1.2
    expected = np.log([np.e**1.4 + 2 * np.e**1.2, np.e**-0.2 + np.e**2, np.e**1.4 + np.e**1.2]) - [1.4, -0.2, 1.4]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert list(wins) == [1, 0, 1], "by the cosines, without the margin"
    loss, wins = ranking(1, query, key, hashes, **options, mask_duplicates=False)
    expected[1:] = np.log([np.e**-0.2 + 1 + np.e**2, np.e**1.4 + np.e**1.6 + np.e**1.2]) - [-0.2, 1.4]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert list(wins) == [1, 0, 0], "a draw is no win"


@pytest.mark.parametrize("devices", [1, 8])
def test_ranking_and_its_gradients_equal_pytorch(devices):
    """For queries, keys and the temperature; the gradient for a key gathers those of all shards."""
    import torch

    query, key, hashes, _ = contrast_case(3)

    def ours(query, key, temperature):
        options = {"temperature": temperature, "margin": 0.2, "mask_duplicates": True}
        return ranking(devices, query, key, hashes, **options)[0].mean()

    loss, grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(query, key, 0.05)
    q, k, t = (torch.tensor(x, requires_grad=True) for x in (query, key, np.float32(0.05)))
    same = torch.tensor(hashes[:, None] == hashes) & ~torch.eye(16, dtype=torch.bool)
    assert same.any()
    logits = ((q @ k.T - 0.2 * torch.eye(16)) / t).masked_fill(same, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(16))
    expected.backward()
    assert np.isclose(loss, expected.item(), rtol=1e-5)
    for grad, theirs in zip(grads, (q, k, t), strict=True):
        np.testing.assert_allclose(grad, theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_margin_lowers_the_positive_alone(devices):
    query, key, hashes, queue = contrast_case()
    loss, wins = info_nce(devices, query, key, hashes, queue, 2, mask_duplicates=False, margin=0.3)
    positive, share = np.sum(query * key, axis=1) / 0.05, np.exp(np.einsum("bp,snp->bsn", query, queue.keys[:2]) / 0.05)
    expected = np.log1p(share.sum((1, 2)) / np.exp(positive - 0.3 / 0.05))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    _, without = info_nce(devices, query, key, hashes, queue, 2, mask_duplicates=False)
    assert np.array_equal(wins, without)


def test_queue_drops_the_oldest_batch_first():
    queue = contrastive.empty_queue(contrastive.slots_for(5, 2), 2, 3)
    assert queue.keys.shape == (3, 2, 3)  # 5 rounded up to whole batches
    for step in range(4):
        queue = contrastive.enqueue(queue, jnp.int32(step), jnp.full((2, 3), step + 1.0), jnp.full(2, step, "u4"))
    assert [float(slot[0, 0]) for slot in queue.keys] == [4.0, 2.0, 3.0]
    assert list(np.asarray(queue.hashes[:, 0])) == [3, 1, 2]


def test_ema_by_hand_and_at_rest():
    key, query = {"a": jnp.float32(2.0)}, {"a": jnp.float32(4.0)}
    assert float(contrastive.ema(key, query, 0.75)["a"]) == 2.5
    same = jnp.float32(0.1234567)
    assert contrastive.ema(same, same, 0.999) == same
