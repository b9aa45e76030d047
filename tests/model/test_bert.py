"""Parity with transformers in PyTorch, and what packing and dropout promise."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.model import dropout as drop
from ppa_jax.model.bert import Encoder, EncoderConfig, rows_from_mask

TINY = EncoderConfig(vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=32, max_positions=32)


def packed_and_padded(seed: int = 0):
    """Three sentences, once in one row and once in a row each."""
    rng = np.random.default_rng(seed)
    sentences = [rng.integers(1, 50, n) for n in (5, 9, 3)]
    padded = np.zeros((3, 10), int), np.zeros((3, 10), int), np.zeros((3, 10), int)
    packed = np.zeros((1, 20), int), np.zeros((1, 20), int), np.zeros((1, 20), int)
    start, places = 0, []
    for s, ids in enumerate(sentences):
        n = len(ids)
        for rows, r, at in ((padded, s, 0), (packed, 0, start)):
            for array, value in zip(rows, (ids, np.arange(n), s + 1), strict=True):
                array[r, at : at + n] = value
        places.append((start, n))
        start += n
    return padded, packed, places


@pytest.mark.parametrize("dropout_seed", [None, 7])
def test_packed_sentences_equal_padded_ones_with_and_without_dropout(dropout_seed):
    padded, packed, places = packed_and_padded()
    seed = None if dropout_seed is None else jnp.uint32(dropout_seed)
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *padded)
    apart = encoder.apply(params, *padded, dropout_seed=seed)
    together = encoder.apply(params, *packed, dropout_seed=seed)
    for s, (start, n) in enumerate(places):
        np.testing.assert_allclose(together[0, start : start + n], apart[s, :n], atol=2e-6)


def test_packed_sentences_never_see_each_other():
    _, (ids, positions, segments), places = packed_and_padded()
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), ids, positions, segments)
    before = encoder.apply(params, ids, positions, segments)
    start, n = places[1]
    changed = ids.copy()
    changed[0, start : start + n] = (changed[0, start : start + n] + 7) % 50
    after = encoder.apply(params, changed, positions, segments)
    others = np.r_[0:start, start + n : 20]
    assert np.array_equal(before[0, others], after[0, others])
    assert not np.allclose(before[0, start : start + n], after[0, start : start + n], atol=1e-3)


def test_fewer_layers_are_the_first_layers():
    padded, _, _ = packed_and_padded()
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *padded)
    states = encoder.apply(params, *padded, all_hidden=True)
    assert len(states) == 3
    assert np.array_equal(states[1], encoder.apply(params, *padded, layers=1))


@pytest.mark.parametrize("scan, remat", [(True, False), (True, True), (False, True)])
def test_scan_and_remat_change_no_state_and_no_gradient(scan, remat):
    """With dropout, whose places must be those of the blocks that are written out."""
    _, packed, _ = packed_and_padded()
    written_out, other = Encoder(TINY), Encoder(TINY, scan=scan, remat=remat)
    params = written_out.init(jax.random.key(0), *packed)

    def loss(params, encoder, layers):
        states = encoder.apply(params, *packed, dropout_seed=jnp.uint32(7), all_hidden=True, layers=layers)
        return sum(jnp.mean(jnp.sin(i + x)) for i, x in enumerate(states)), states

    for layers in (0, 1, None):
        (_, wanted), gradient = jax.value_and_grad(loss, has_aux=True)(params, written_out, layers)
        (_, found), same = jax.value_and_grad(loss, has_aux=True)(params, other, layers)
        assert len(found) == len(wanted)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), (found, same), (wanted, gradient))


@pytest.mark.parametrize("scan, remat", [(False, False), (True, False), (False, True)])
def test_places_have_the_states_and_gradients_they_have_among_all(scan, remat):
    """With dropout; some places twice. The last block's feed-forward products have their rows alone."""
    _, packed, _ = packed_and_padded()
    whole, some = Encoder(TINY), Encoder(TINY, scan=scan, remat=remat)
    params, at = whole.init(jax.random.key(0), *packed), jnp.array([[16, 3, 3, 7]])

    def loss(params, encoder, at):
        states = encoder.apply(params, *packed, dropout_seed=jnp.uint32(7), all_hidden=True, output_positions=at)
        last = states[-1] if at is not None else jnp.take(states[-1], jnp.array([16, 3, 3, 7]), axis=1)
        return sum(jnp.mean(jnp.sin(i + x)) for i, x in enumerate((*states[:-1], last))), (*states[:-1], last)

    (_, wanted), gradient = jax.value_and_grad(loss, has_aux=True)(params, whole, None)
    (_, found), same = jax.value_and_grad(loss, has_aux=True)(params, some, at)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), (found, same), (wanted, gradient))
    rows = [
        str(jax.make_jaxpr(lambda p, x=x: whole.apply(p, *packed, output_positions=x))(params)).count("20,32]")
        for x in (None, at)
    ]
    assert 0 < rows[1] <= rows[0] / 2


def equations(jaxpr):
    """All of them, inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def products(jaxpr):
    """The dimension numbers of every dot_general."""
    return [e.params["dimension_numbers"] for e in equations(jaxpr) if e.primitive.name == "dot_general"]


def test_blocks_compute_on_one_axis_of_tokens():
    """An axis of size 1 beside it took 5.5 GiB more at mBERT's size on a TPU (docs/performance.md)."""
    _, packed, _ = packed_and_padded()
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *packed)
    apply = functools.partial(encoder.apply, dropout_seed=jnp.uint32(7), all_hidden=True)
    program = list(equations(jax.make_jaxpr(apply)(params, *packed).jaxpr))
    N, D = packed[0].size, TINY.hidden_size
    made_by = [[e.primitive.name for e in program if e.outvars[0].aval.shape == s] for s in ((1, N, D), (N, D))]
    assert made_by[0] == ["reshape"] * (TINY.num_layers + 1)  # the results
    assert made_by[1].count("dot_general") >= 4 * TINY.num_layers


def test_gradients_of_kernels_sum_over_one_dimension():
    """Over rows and tokens apart, XLA for CPUs copies an operand and multiplies more slowly (docs/performance.md)."""
    padded, _, _ = packed_and_padded()
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *padded)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(encoder.apply(p, *padded))))
    dense = [contracted for contracted, (batch, _) in products(jax.make_jaxpr(gradient)(params).jaxpr) if not batch]
    assert len(dense) >= 3 * 6 * TINY.num_layers - 3
    assert all(len(left) == len(right) == 1 for left, right in dense)


def test_attention_multiplies_with_the_heads_beside_the_batch():
    """Of [B, L, H, d] XLA for CPUs makes plain loops, four times as slow (docs/performance.md)."""
    padded, _, _ = packed_and_padded()
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *padded)
    jaxpr = jax.make_jaxpr(encoder.apply)(params, *padded).jaxpr
    batches = [batch for _, (batch, _) in products(jaxpr) if batch]
    assert batches == [(0, 1)] * 2 * TINY.num_layers


def test_sentences_whose_positions_restart_share_no_dropout():
    """XLM's form of TLM: the same words at the same position ids twice, in one sequence, wherever it lies."""
    ids, positions, languages = np.tile([7, 8, 9, 10], 2), np.tile(np.arange(4), 2), np.repeat([0, 1], 4)
    alone = [x[None] for x in (ids, positions, np.full(8, 5), languages)]
    later = [np.concatenate([[first] * 3, x[0], [0]])[None] for first, x in zip((3, 0, 2, 1), alone, strict=True)]
    encoder = Encoder(TINY)
    params = encoder.init(jax.random.key(0), *alone)
    embedded, *_, last = encoder.apply(params, *alone, all_hidden=True, dropout_seed=jnp.uint32(7))
    dropped = np.asarray(embedded[0] == 0)
    assert dropped[:4].any() and dropped[4:].any() and not (dropped[:4] == dropped[4:]).all()
    again = encoder.apply(params, *later, dropout_seed=jnp.uint32(7))
    np.testing.assert_allclose(again[:, 3:11], last, atol=2e-6)


def test_dropout_has_its_rate_and_scale_and_no_pattern():
    segments = jnp.arange(1, 65)[:, None] * jnp.ones((1, 32), int)
    positions = jnp.broadcast_to(jnp.arange(32), (64, 32))
    seeds = drop.token_seeds(jnp.uint32(3), positions, segments)
    kept = np.asarray(drop.drop_features(jnp.ones((64, 32, 96)), drop.at_site(seeds, 0), 0.1))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.9)}
    keep = kept > 0
    n = keep.size
    assert abs(keep.mean() - 0.9) < 4 * np.sqrt(0.09 / n)
    for axis in range(3):  # neighbours along every axis are uncorrelated
        a, b = np.moveaxis(keep, axis, 0)[1:].ravel() - 0.9, np.moveaxis(keep, axis, 0)[:-1].ravel() - 0.9
        assert abs(np.mean(a * b) / 0.09) < 5 / np.sqrt(n)
    other_site = np.asarray(drop.drop_features(jnp.ones((64, 32, 96)), drop.at_site(seeds, 1), 0.1)) > 0
    assert abs(np.mean((keep - 0.9) * (other_site - 0.9)) / 0.09) < 5 / np.sqrt(n)
    probs = np.asarray(drop.drop_attention(jnp.ones((64, 4, 32, 32)), seeds, 0.25)) > 0
    assert abs(probs.mean() - 0.75) < 4 * np.sqrt(0.1875 / probs.size)
    for axis in range(4):
        a, b = np.moveaxis(probs, axis, 0)[1:].ravel() - 0.75, np.moveaxis(probs, axis, 0)[:-1].ravel() - 0.75
        assert abs(np.mean(a * b) / 0.1875) < 5 / np.sqrt(probs.size)


def test_flops_are_those_of_the_compiled_matmuls():
    config = dataclasses.replace(TINY, num_layers=1)
    encoder, L = Encoder(config), 32
    rows = jnp.ones((1, L), int), jnp.arange(L)[None], jnp.ones((1, L), int)
    params = encoder.init(jax.random.key(0), *rows)
    # Counted in the jaxpr: every dot_general is 2 * output size * contracted size.
    total = 0
    for eqn in jax.make_jaxpr(lambda p: encoder.apply(p, *rows))(params).eqns:
        for inner in [eqn, *(e for j in eqn.params.values() if hasattr(j, "eqns") for e in j.eqns)]:
            if inner.primitive.name == "dot_general":
                (contract, _), _ = inner.params["dimension_numbers"]
                size = np.prod([inner.invars[0].aval.shape[i] for i in contract])
                total += 2 * int(np.prod(inner.outvars[0].aval.shape) * size)
    assert total == config.flops(np.array([L]))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert"])
def test_hidden_states_logits_and_gradients_equal_pytorch_at_base_size(kind, tmp_path):
    """Width 768, random weights, padding, token types: the tolerances are the project's promise."""
    import torch
    import transformers

    from ppa_jax.interop import huggingface
    from ppa_jax.model.heads import MaskedLMHead, decode
    from ppa_jax.objectives import masked_lm

    torch.manual_seed(0)
    common = dict(vocab_size=500, num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    if kind == "bert":
        theirs = transformers.BertForMaskedLM(transformers.BertConfig(**common))
    elif kind == "distilbert":
        theirs = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(vocab_size=500))
    else:
        extra = dict(max_position_embeddings=514, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
        theirs = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**common, **extra))
    with torch.no_grad():  # LayerNorm and biases start at 1 and 0, where a mistake would not show
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    pretrained = huggingface.read(tmp_path)
    config, params = pretrained.config, pretrained.params

    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 500, (3, 24)), np.ones((3, 24), int)
    for row, length in enumerate((24, 17, 9)):
        ids[row, length:], mask[row, length:] = config.pad_token_id, 0
    types = (np.arange(24)[None] > 6) * mask if kind == "bert" else np.zeros_like(ids)
    labels = np.where((rng.random(ids.shape) < 0.3) & (mask == 1), ids, -100)
    to_torch = torch.from_numpy
    out = theirs(
        to_torch(ids),
        attention_mask=to_torch(mask),
        **({} if kind == "distilbert" else {"token_type_ids": to_torch(types)}),
        labels=to_torch(labels),
        output_hidden_states=True,
    )
    out.loss.backward()

    positions, segments = rows_from_mask(jnp.asarray(mask))

    def loss_fn(params):
        hidden = Encoder(config).apply({"params": params["encoder"]}, ids, positions, segments, types, all_hidden=True)
        words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        states, bias = MaskedLMHead(config).apply({"params": params["mlm_head"]}, hidden[-1])
        nll = masked_lm.cross_entropy(states, bias, words, jnp.maximum(labels, 0))
        return jnp.sum(nll * (labels >= 0)) / jnp.sum(labels >= 0), (hidden, decode(states, bias, words))

    (loss, (hidden, logits)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)

    def relative(ours, theirs):
        ours, theirs = np.asarray(ours), theirs.detach().numpy()
        return np.abs(ours - theirs)[mask == 1].max() / np.abs(theirs[mask == 1]).max()

    for ours, expected in zip(hidden, out.hidden_states, strict=True):
        assert relative(ours, expected) < 1e-5
    assert relative(logits, out.logits) < 1e-5
    assert abs(float(loss) - out.loss.item()) < 1e-5 * out.loss.item()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    paths = huggingface.tensor_names(config)
    if "lm_head.decoder.weight" in expected:  # tied, and named after whichever module comes first
        expected["roberta.embeddings.word_embeddings.weight"] = expected.pop("lm_head.decoder.weight")
    assert expected.keys() <= paths.keys()
    assert len(expected) == 16 * config.num_layers + (9 if kind == "distilbert" else 10)
    for name, gradient in expected.items():
        ours = functools.reduce(lambda tree, key: tree[key], paths[name], grads)
        ours = np.asarray(ours).T if paths[name][-1] == "kernel" else np.asarray(ours)
        scale = np.abs(gradient).max()
        # A key bias shifts all scores of a query alike, so its true gradient is zero: compare with the query bias.
        if name.endswith(("key.bias", "k_lin.bias")):
            scale = np.abs(expected[name.replace("key", "query").replace("k_lin", "q_lin")]).max()
        assert np.abs(ours - gradient).max() < 1e-4 * scale, name
