"""Configurations: fields by type, mistakes with the nearest name, steps or epochs."""

from pathlib import Path

import ml_collections
import pytest

from ppa_jax import config as configs
from ppa_jax.errors import UserError

RECIPE = Path(__file__).resolve().parents[1] / "configs/ppa.py"
FILE = """
import ml_collections
def get_config(mode=""):
    if mode not in ("", "fast"):
        raise ValueError(f"unknown mode {mode!r}; there is: fast")
    return ml_collections.ConfigDict({
        "name": "x", "flag": False, "size": 3, "rate": 0.5, "train": {"steps": 0, "epochs": 2.0, "warmup": 0.1},
        "pretrain": {"steps": 0},
    })
"""


def test_what_a_file_raises_is_one_line(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(FILE.replace("return ml", "c = ml").rstrip() + "\n    c.lock()\n    c.nope = 1\n    return c\n")
    with pytest.raises(UserError, match=r"^--config=\S*c.py: get_config raises AttributeError: .*nope.*$"):
        configs.load(str(path))


def test_a_default_without_a_type(tmp_path):
    (tmp_path / "c.py").write_text(
        FILE.replace("return ml", "c = ml").rstrip() + "\n    c.other = None\n    return c\n"
    )
    with pytest.raises(UserError, match=r"^config.other: its default is None, .*; let get_config have text"):
        configs.load(str(tmp_path / "c.py"), [("other", "x")])


@pytest.fixture
def load(tmp_path):
    (tmp_path / "c.py").write_text(FILE)
    return lambda *overrides, mode="": configs.load(f"{tmp_path / 'c.py'}{mode}", overrides)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True), ("flag", "NO", False), ("flag", "1", True),
        ("size", "7", 7), ("size", "1e6", 1_000_000), ("size", "-1", -1),
        ("rate", "3e-5", 3e-5), ("rate", "1", 1.0),
        ("name", "", ""), ("name", "none", ""), ("name", "a=b,c", "a=b,c"),
    ],
)  # fmt: skip
def test_text_is_read_as_the_type_of_the_default(load, name, text, value):
    read = load((name, text))[name]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("siez", "7", "config.siez: no such field; the nearest is config.size"),
        ("warmup", "7", "config.warmup: no such field; the nearest is config.train.warmup"),
        ("train", "7", "config.train: no such field"),
        ("zzz", "7", "config.zzz: no such field; there are flag, name, pretrain, "),
        ("size", "7.5", "config.size=7.5: must be a whole number, like 3"),
        ("size", "inf", "config.size=inf: must be a whole number"),
        ("rate", "nan", "config.rate=nan: must be a number, like 0.5"),
        ("flag", "7", "config.flag=7: must be true or false, like False"),
    ],
)
def test_a_mistake_names_the_field(load, name, text, says):
    with pytest.raises(UserError) as error:
        load((name, text))
    assert str(error.value).startswith(says)


def test_steps_and_epochs_exclude_each_other(load):
    train = lambda *given: load(*given).train  # noqa: E731
    assert (train().steps, train().epochs) == (0, 2.0)
    assert train(("train.steps", "5")).to_dict() == {"steps": 5, "epochs": 0.0, "warmup": 0.1}
    assert train(("train.epochs", "0.5")).to_dict() == {"steps": 0, "epochs": 0.5, "warmup": 0.1}
    assert train(("train.epochs", "0"), ("train.steps", "5")).steps == 5
    with pytest.raises(UserError, match=r"config.train.steps and config.train.epochs: give one of them, not both"):
        load(("train.steps", "5"), ("train.epochs", "1"))


@pytest.mark.parametrize(
    ("epochs", "examples", "steps"),
    [(1.0, 29_000, 454), (10.0, 640, 100), (1.1, 640, 11), (0.001, 640, 1)],  # 453.1, 100, 11 and 0.01 batches of 64
)
def test_epochs_end_with_a_whole_batch(epochs, examples, steps):
    train = {"steps": 0, "epochs": epochs, "batch_size": 64}
    assert configs.training_steps(ml_collections.ConfigDict({"train": train}), examples) == steps


def test_modes(load):
    assert load(mode=":fast").size == 3
    with pytest.raises(UserError, match="unknown mode 'slow'; there is: fast"):
        load(mode=":slow")


def test_every_recipe_passes_its_own_check():
    """With what a user must add, which is all that is missing."""
    from ppa_jax.jobs import align_inputs

    align_inputs.validate(configs.load(f"{RECIPE}:demo"))
    recipe = configs.load(str(RECIPE), [("init", "x"), ("data.pairs", "en-de=sample")])
    align_inputs.validate(recipe)
    assert recipe.train.epochs == 10 and recipe.contrastive.queue_size == 32_000


def test_fields_by_dotted_name():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": {"d": 2}}})
    assert configs.fields(config) == {"a": 1, "b.c.d": 2}
