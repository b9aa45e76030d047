"""Parity with transformers in PyTorch, and what packing, windows, scan and dropout promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.model import attention
from ppa_jax.model.bert import rows_from_mask
from ppa_jax.model.modernbert import SLIDING, Encoder, EncoderConfig, MaskedLMHead

DROPOUT = dict(embedding_dropout=0.2, attention_dropout=0.3, mlp_dropout=0.1)
TINY = EncoderConfig(
    vocab_size=50, hidden_size=16, num_layers=6, num_heads=2, intermediate_size=24, window=2, initializer_range=0.3
)


@pytest.fixture(scope="module")
def rows():
    """Three sentences, longer than the window, in one row of 32 tokens and in a row each."""
    rng = np.random.default_rng(0)
    packed, padded, spans = np.zeros((3, 1, 32), int), np.zeros((3, 3, 20), int), []
    start = 0
    for i, n in enumerate((7, 18, 4)):
        values = rng.integers(1, 50, n), np.arange(n), np.full(n, i + 1)
        packed[:, 0, start : start + n], padded[:, i, :n] = values, values
        spans.append(slice(start, start + n))
        start += n
    return packed, padded, spans


@pytest.fixture(scope="module")
def params(rows):
    return Encoder(TINY).init(jax.random.key(0), *rows[0])


@pytest.mark.parametrize("whole", [1, 100], ids=["chunks", "masked"])
@pytest.mark.parametrize("dropped", [False, True])
def test_packed_sentences_equal_padded_ones(rows, params, dropped, whole, monkeypatch):
    packed, padded, spans = rows
    monkeypatch.setattr(attention, "LONGEST_WHOLE", whole)
    encoder = Encoder(EncoderConfig(**vars(TINY) | DROPOUT))
    seed = jnp.uint32(7) if dropped else None
    together = encoder.apply(params, *packed, dropout_seed=seed)
    apart = encoder.apply(params, *padded, dropout_seed=seed)
    for i, span in enumerate(spans):
        np.testing.assert_allclose(together[0, span], apart[i, : span.stop - span.start], atol=1e-5)
    if dropped:
        assert not np.allclose(together, encoder.apply(params, *packed), atol=0.1)


def test_chunks_of_a_window_equal_masked_attention(rows, params, monkeypatch):
    """States and gradients, with dropout: what is computed chunk by chunk has the same pairs of tokens."""
    packed, _, _ = rows
    encoder = Encoder(EncoderConfig(**vars(TINY) | DROPOUT))

    def loss(params):
        return jnp.sum(jnp.sin(encoder.apply(params, *packed, dropout_seed=jnp.uint32(3)))[packed[2] > 0])

    found = []
    for whole in (1, 100):
        monkeypatch.setattr(attention, "LONGEST_WHOLE", whole)
        found.append(jax.value_and_grad(loss)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *found)


def test_a_token_sees_its_window_and_no_further(monkeypatch):
    """One layer of neighbours within 2: a changed token reaches two tokens on either side."""
    monkeypatch.setattr(attention, "LONGEST_WHOLE", 1)
    config = EncoderConfig(**vars(TINY) | dict(num_layers=1, layer_types=(SLIDING,)))
    ids = np.arange(1, 20)[None]
    positions, segments = rows_from_mask(jnp.ones_like(ids))
    params = Encoder(config).init(jax.random.key(0), ids, positions, segments)
    changed = ids.copy()
    changed[0, 9] = 40
    before, after = (Encoder(config).apply(params, x, positions, segments) for x in (ids, changed))
    assert np.flatnonzero(np.any(before[0] != after[0], axis=-1)).tolist() == [7, 8, 9, 10, 11]


def test_the_state_of_a_layer_is_the_result_of_the_encoder_that_ends_there(rows, params):
    states = Encoder(TINY).apply(params, *rows[0], all_hidden=True)
    assert len(states) == 7
    for layer in range(7):
        assert np.array_equal(states[layer], Encoder(TINY).apply(params, *rows[0], layers=layer))
    np.testing.assert_allclose(np.var(states[3], axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize("scan, remat", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("at", [None, [[16, 3, 3, 7]]])
def test_scan_remat_and_output_positions_change_no_state_and_no_gradient(rows, params, scan, remat, at):
    """With dropout, whose places must be those of the blocks that are written out."""
    config = EncoderConfig(**vars(TINY) | DROPOUT)
    packed, at = rows[0], None if at is None else jnp.array(at)

    def loss(params, encoder, layers, at, pick):
        states = encoder.apply(
            params, *packed, dropout_seed=jnp.uint32(7), all_hidden=True, layers=layers, output_positions=at
        )
        states = (*states[:-1], states[-1] if pick is None else states[-1][:, pick])
        return sum(jnp.mean(jnp.sin(i + x)) for i, x in enumerate(states)), states

    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(1, 2))
    for layers in (1, 6):
        (_, wanted), gradient = gradients(params, Encoder(config), layers, None, None if at is None else at[0])
        (_, found), same = gradients(params, Encoder(config, scan=scan, remat=remat), layers, at, None)
        assert len(found) == len(wanted) == layers + 1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), (found, same), (wanted, gradient))


def test_scan_compiles_the_pattern_once(rows, params):
    """Of 6 blocks: the first, and a loop over SLIDING SLIDING FULL whose rest, two blocks, is written out."""
    program = str(jax.make_jaxpr(lambda p: Encoder(TINY, scan=True).apply(p, *rows[0]))(params))
    assert "scan[" in program
    deeper = EncoderConfig(**vars(TINY) | dict(num_layers=12))
    more = Encoder(deeper).init(jax.random.key(0), *rows[0])
    longer = str(jax.make_jaxpr(lambda p: Encoder(deeper, scan=True).apply(p, *rows[0]))(more))
    assert longer.count(":: dot_general") == program.count(":: dot_general")


def test_flops_are_those_of_the_matmuls():
    """Counted by hand: 10 tokens, window 2: 10 * 5 - 2 * 3 = 44 pairs in each of four layers, 100 in two."""
    D, F = 16, 24
    assert TINY.flops(np.array([10])) == 6 * 10 * (8 * D * D + 6 * D * F) + 4 * D * (4 * 44 + 2 * 100)
    assert TINY.flops(np.array([2]), 2) == 2 * 2 * (8 * D * D + 6 * D * F) + 4 * D * (4 + 4)
    assert TINY.flops(np.array([10]), 1, read=1) == (10 * 6 * D * D + 2 * D * D + 6 * D * F + 4 * D * 100)


def test_hidden_states_logits_and_gradients_equal_pytorch(tmp_path):
    """Sentences longer than the window of 4 on either side; two kinds of layers, two thetas; padding."""
    import torch
    import transformers

    from ppa_jax.interop import huggingface
    from ppa_jax.model.heads import decode
    from ppa_jax.objectives import masked_lm

    torch.manual_seed(0)
    theirs = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=200, num_hidden_layers=6, hidden_size=96, num_attention_heads=4, intermediate_size=144,
            local_attention=8, pad_token_id=0, bos_token_id=None, eos_token_id=None, cls_token_id=None,
            sep_token_id=None, attn_implementation="eager",
        )
    )  # fmt: skip
    with torch.no_grad():  # LayerNorm and biases start at 1 and 0, where a mistake would not show
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    pretrained = huggingface.read(tmp_path)
    config, params = pretrained.config, pretrained.params

    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 200, (3, 40)), np.ones((3, 40), int)
    for row, length in enumerate((40, 31, 9)):
        ids[row, length:], mask[row, length:] = config.pad_token_id, 0
    labels = np.where((rng.random(ids.shape) < 0.3) & (mask == 1), ids, -100)
    out = theirs(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), labels=torch.from_numpy(labels),
        output_hidden_states=True,
    )  # fmt: skip
    out.loss.backward()
    positions, segments = rows_from_mask(jnp.asarray(mask))

    def loss_fn(params):
        hidden = Encoder(config).apply({"params": params["encoder"]}, ids, positions, segments, all_hidden=True)
        words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        states, bias = MaskedLMHead(config).apply({"params": params["mlm_head"]}, hidden[-1])
        nll = masked_lm.cross_entropy(states, bias, words, jnp.maximum(labels, 0))
        return jnp.sum(nll * (labels >= 0)) / jnp.sum(labels >= 0), (hidden, decode(states, bias, words))

    (loss, (hidden, logits)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)

    def relative(ours, theirs):
        ours, theirs = np.asarray(ours), theirs.detach().numpy()
        return np.abs(ours - theirs)[mask == 1].max() / np.abs(theirs[mask == 1]).max()

    first, *middle, last = out.hidden_states
    expected = [first, *map(theirs.model.final_norm, middle), last]
    assert len(hidden) == len(expected) == 7
    for ours, wanted in zip(hidden, expected, strict=True):
        assert relative(ours, wanted) < 1e-5
    assert relative(logits, out.logits) < 1e-5
    assert abs(float(loss) - out.loss.item()) < 1e-5 * out.loss.item()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    paths = huggingface.tensor_names(config)
    assert expected.keys() == paths.keys() and len(paths) == 6 * 6 - 1 + 3 + 3
    for name, gradient in expected.items():
        ours = functools.reduce(lambda tree, key: tree[key], paths[name], grads)
        ours = np.asarray(ours).T if paths[name][-1] == "kernel" else np.asarray(ours)
        assert np.abs(ours - gradient).max() < 1e-4 * np.abs(gradient).max(), name
