"""Configurations: recipes by name, fields by type, mistakes with the nearest name, steps or epochs, help."""

import re
from pathlib import Path

import ml_collections
import pytest

from ppa_jax import config as configs
from ppa_jax import config_help
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
    with pytest.raises(UserError, match=r"^Type .* of field config.other is not supported for overriding;"):
        configs.load(str(tmp_path / "c.py"), ["--config.other=x"])


@pytest.fixture
def load(tmp_path):
    (tmp_path / "c.py").write_text(FILE)
    return lambda *overrides, mode="": configs.load(
        f"{tmp_path / 'c.py'}{mode}", [f"--config.{name}={text}" for name, text in overrides]
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True), ("flag", "False", False), ("flag", "1", True),
        ("size", "7", 7), ("size", "-1", -1),
        ("rate", "3e-5", 3e-5), ("rate", "1", 1.0),
        ("name", "", ""), ("name", "a=b,c", "a=b,c"), ("name", "a: b", "a: b"),
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
        ("train", "7", "config.train: no such field; config.train.* has epochs, steps, warmup"),
        ("train.zzz", "7", "config.train.zzz: no such field; config.train.* has epochs, steps, warmup"),
        ("zzz", "7", "config.zzz: no such field; config.* has flag, name, pretrain, rate, size, train"),
        ("size", "7.5", "config.size=7.5: must be a whole number, like 3"),
        ("size", "inf", "config.size=inf: must be a whole number"),
        ("rate", "fast", "config.rate=fast: must be a number, like 0.5"),
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


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite(load, value):
    with pytest.raises(UserError, match=f"^config.rate={value}: must be a number$"):
        configs.check(load(("rate", value)), {})


def test_limits(load):
    limits = {"size": configs.at_least(3, "a reason"), "name": configs.one_of("x", "y"), "rate": configs.POSITIVE}
    configs.check(load(), limits)
    for name, value, says in (
        ("size", 2, "config.size=2: must be 3 or more: a reason"),
        ("name", "z", "config.name=z: must be one of x, y"),
        ("rate", 0, "config.rate=0.0: must be greater than 0"),
    ):
        with pytest.raises(UserError) as error:
            configs.check(load((name, value)), limits)
        assert str(error.value) == says


def test_a_file_that_sets_the_steps_of_a_recipe(tmp_path):
    """It is not asked for one of steps and epochs, of which the recipe has the other."""
    from ppa_jax.training.limits import check_training

    path = tmp_path / "mine.py"
    path.write_text(
        "from ppa_jax.config import load\ndef get_config():\n    c = load('ppa')\n    c.train.steps = 7\n    return c\n"
    )
    config = configs.load(str(path))
    check_training(config)
    assert (config.train.steps, config.train.epochs) == (7, 0.0)
    assert configs.load(str(path), ["--config.train.epochs=2"]).train.steps == 0


@pytest.mark.parametrize(
    ("recipe", "lines", "steps", "epochs"),
    [
        ("ppa:demo", "c.train.epochs = 2.5", 0, 2.5),
        ("ppa:demo", "c.train.steps = 9", 9, 0.0),
        ("ppa:demo", "c.seed = 1", 400, 0.0),
        ("ppa", "c.train.epochs = 3", 0, 3.0),
        ("ppa:demo", "c.train.update(steps=9, epochs=2.5)", None, None),
    ],
)
def test_a_file_that_sets_epochs_over_a_recipe_with_steps(tmp_path, recipe, lines, steps, epochs):
    path = tmp_path / "mine.py"
    body = f"def get_config(mode=''):\n    c = load('{recipe}')\n    {lines}\n    return c\n"
    path.write_text(f"from ppa_jax.config import load\n{body}")
    if steps is None:
        with pytest.raises(UserError, match=r"config.train.steps and config.train.epochs: give one of them, not both"):
            configs.load(str(path))
        return
    train = configs.load(str(path)).train
    assert (train.steps, train.epochs) == (steps, epochs)


def test_commas_in_brackets_separate_nothing():
    assert configs.entries("a=x.csv[en,de], b,,c[1") == ["a=x.csv[en,de]", "b", "c[1"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.lr", "train.learning_rate"), ("lr", "train.learning_rate"), ("pretrain.lr", "pretrain.learning_rate"),
        ("train.bs", "train.batch_size"), ("train.wd", "train.weight_decay"), ("batch_size", "train.batch_size"),
        ("data.max_len", "data.max_length"), ("contrastive.queue", "contrastive.queue_size"),
        ("train.num_epochs", "train.epochs"), ("train.warmup_steps", "train.warmup"), ("train.lerning_rate",
        "train.learning_rate"), ("tlm.temperature", "data.temperature"), ("quux", ""),
    ],
)  # fmt: skip
def test_the_nearest_field(name, meant):
    assert configs.nearest(name, configs.fields(configs.load("ppa"))) == meant


def test_recipes_have_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configs.load("ppa:demo").to_dict() == configs.load(f"{RECIPE}:demo").to_dict()
    with pytest.raises(UserError, match=r"no such file: configs/ppa.py; give .* one of the recipes align_mlm, .*ppa"):
        configs.load("configs/ppa.py")
    with pytest.raises(UserError, match="no such file: pap; give"):
        configs.load("pap")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE.parent.glob("*.py")))
def test_help_shows_every_field(recipe):
    """With the comment beside it, which stands in another file where the recipe builds on one."""
    text = config_help.describe(recipe)
    for name in configs.fields(configs.load(recipe)):
        assert re.search(rf"^  --config\.{name}=.*  \S", text, re.M), f"{name} has no comment"
    shown = {
        "pretrain": "config.train.learning_rate=0.0001 +peak",
        "xnli": "config.train.clip=1.0 +global norm of the gradient; 0: none",
        "layer_ablation": "config.similarity.batch=256 +sentences; values depend on it",
        "align_mlm": "config.pretraining.train.clip=1.0 +global norm",
        "ppa": "config.contrastive.momentum=0.999 +of the key encoder",
    }
    assert re.search(shown.get(recipe, ""), text)


def test_modes(load):
    assert load(mode=":fast").size == 3
    with pytest.raises(UserError, match="unknown mode 'slow'; there is: fast"):
        load(mode=":slow")


def test_every_recipe_passes_its_own_check():
    """With what a user must add, which is all that is missing."""
    from ppa_jax.jobs.align import setup as align_setup

    align_setup.validate(configs.load(f"{RECIPE}:demo"))
    recipe = configs.load(str(RECIPE), ["--config.init=x", "--config.data.pairs=en-de=sample"])
    align_setup.validate(recipe)
    assert recipe.train.epochs == 10 and recipe.contrastive.queue_size == 32_000


def test_fields_by_dotted_name():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": {"d": 2}}})
    assert configs.fields(config) == {"a": 1, "b.c.d": 2}
