"""Which modules `train.freeze` names, and the tree of parameters in two parts."""

import pytest

from ppa_jax.errors import UserError
from ppa_jax.training.freezing import merge, parse_freeze, split


def test_names():
    assert parse_freeze("", 12) == ()
    assert parse_freeze("embeddings", 12) == ("embeddings",)
    assert parse_freeze(" 11, 0-2, embeddings, 1", 12) == ("embeddings", "layer_0", "layer_1", "layer_11", "layer_2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("6-3", "config.train.freeze=6-3: 6-3 ends before it begins; write 3-6"),
        ("0,12-13", "config.train.freeze=0,12-13: 12-13: the model has 12 blocks, 0 to 11"),
        ("12", "12: the model has 12 blocks, 0 to 11"),
        ("layer_0", "layer_0 is neither embeddings nor blocks; write embeddings, 0-5, or embeddings,0-5"),
        ("-1", "-1 is neither"),
        ("0-", "0- is neither"),
    ],
)
def test_mistakes(text, says):
    with pytest.raises(UserError) as error:
        parse_freeze(text, 12)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_split_and_merged():
    params = {"encoder": {"embeddings": {"a": 1}, "layer_0": {"b": 2}, "layer_1": {"b": 3}}, "projection": {"c": 4}}
    trained, frozen = split(params, ("embeddings", "layer_1"))
    assert trained == {"encoder": {"layer_0": {"b": 2}}, "projection": {"c": 4}}
    assert frozen == {"encoder": {"embeddings": {"a": 1}, "layer_1": {"b": 3}}}
    assert merge(trained, frozen) == params and merge(*split(params, ())) == params
