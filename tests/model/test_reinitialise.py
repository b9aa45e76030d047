"""Re-initialised blocks: exactly those that are named, from the stated distribution."""

import functools

import jax
import numpy as np
import pytest

from ppa_jax.interop.names import config_from_hf, tensor_names
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.families import make_encoder
from ppa_jax.model.reinitialise import reinitialise, relative_distance

CONFIG = EncoderConfig(vocab_size=50, hidden_size=64, num_layers=4, num_heads=4, intermediate_size=128)


@pytest.fixture(scope="module")
def params():
    ones = np.ones((1, 2), np.int32)
    drawn = Encoder(CONFIG).init(jax.random.key(0), ones, ones, ones)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), drawn)  # nothing as BERT begins


def test_exactly_the_named_blocks_change(params):
    before = jax.tree.map(np.copy, params)
    changed = reinitialise(params, CONFIG, (2, 4), seed=0)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for name in params:
        if name in ("layer_1", "layer_3"):
            for old, new in zip(jax.tree.leaves(params[name]), jax.tree.leaves(changed[name]), strict=True):
                assert old.shape == new.shape and old.dtype == new.dtype and not np.isin(new, old).any()
        else:
            jax.tree.map(np.testing.assert_array_equal, params[name], changed[name])
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, reinitialise(params, CONFIG, (), seed=0), params)


def test_the_draw_is_as_bert_begins_and_hangs_on_seed_and_block_alone(params):
    first, again, other = (
        reinitialise(params, CONFIG, blocks, seed) for blocks, seed in (((1, 2), 0), ((2,), 0), ((2,), 1))
    )
    jax.tree.map(np.testing.assert_array_equal, first["layer_1"], again["layer_1"])
    flat = jax.tree_util.tree_leaves_with_path(first["layer_1"])
    kernels = {jax.tree_util.keystr(path): x for path, x in flat if x.ndim == 2}
    assert len(kernels) == 6
    for name, kernel in kernels.items():
        bound = 5 / np.sqrt(kernel.size)  # five standard errors of the mean; of the deviation it is less
        assert abs(kernel.mean() / 0.02) < bound and abs(kernel.std() / 0.02 - 1) < bound, name
        assert np.abs(kernel).max() > 0.05, "not truncated"
    for path, x in flat:
        if x.ndim == 1:
            assert (x == (1 if "scale" in jax.tree_util.keystr(path) else 0)).all()
    kernel = ("layer_1", "attention", "query", "kernel")
    values = []
    for tree in (first, other):
        for part in kernel:
            tree = tree[part]
        values.append(tree)
    assert not np.array_equal(*values)
    assert not np.array_equal(first["layer_0"]["attention"]["query"]["kernel"], values[0])


def test_layer_norms_may_stay(params):
    changed = reinitialise(params, CONFIG, (3,), seed=0, keep_layer_norm=True)["layer_2"]
    for part in ("attention", "feed_forward"):
        jax.tree.map(np.testing.assert_array_equal, changed[part]["layer_norm"], params["layer_2"][part]["layer_norm"])
    assert not np.array_equal(
        changed["attention"]["query"]["kernel"], params["layer_2"]["attention"]["query"]["kernel"]
    )


def test_no_such_block(params):
    with pytest.raises(ValueError, match="block 5: this encoder has blocks 1 to 4"):
        reinitialise(params, CONFIG, (5,), seed=0)


def test_relative_distance_by_hand():
    assert relative_distance({"a": np.array([3.0, 0]), "b": np.array([4.0])},
                             {"a": np.array([3.0, 3]), "b": np.array([0.0])}) == pytest.approx(1.0)  # fmt: skip


def test_modernbert_begins_as_in_transformers():
    """Deviations of each matrix, the bound of their normal distribution, LayerNorms that stay where there are any."""
    import torch
    import transformers

    torch.manual_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    theirs = transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
            initializer_range=0.3, pad_token_id=0, **special,
        )
    )  # fmt: skip
    config = config_from_hf(theirs.config.to_dict())
    ones = np.ones((1, 2), np.int32)
    params = jax.tree.map(
        lambda x: np.full(x.shape, 7, np.float32), make_encoder(config).init(jax.random.key(0), ones, ones, ones)
    )["params"]
    changed = reinitialise(params, config, (1, 2), seed=0)
    for name, (tree, *path) in tensor_names(config).items():
        if tree == "encoder" and path[0] in ("layer_0", "layer_1"):
            ours = functools.reduce(lambda tree, key: tree[key], path, changed)
            wanted = theirs.get_parameter(name.removeprefix("model.")).detach().numpy()
            if wanted.ndim == 2:
                assert abs(ours.std() / wanted.std() - 1) < 5 / np.sqrt(wanted.size), name
                assert abs(np.abs(ours).max() / np.abs(wanted).max() - 1) < 0.02, name
            else:
                assert (ours == wanted).all(), name
    kept = reinitialise(params, config, (1, 2), seed=0, keep_layer_norm=True)
    assert "layer_norm" not in kept["layer_0"]["attention"]
    assert (kept["layer_1"]["attention"]["layer_norm"]["scale"] == 7).all()
