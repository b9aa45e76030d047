"""Configurations: read from a file with `get_config(mode)`, changed on the command line, checked once.

A mistake is answered with the field's name and, for a name that does not exist, the nearest one that does.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_collections

from ppa_jax.errors import UserError

Config = Any  # an ml_collections.ConfigDict; its fields are typed by their defaults, which no checker sees


def load(file: str, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """The configuration of `path[:mode]` with `(dotted field, text)` overrides applied.

    The text is read as the type of the field's default. `train.steps` and `train.epochs` exclude each other: giving one
    unsets the recipe's other.

    Raises:
      UserError: no such file, mode or field; text that is not of the field's type.
    """
    path, _, mode = file.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config: no such file: {path}; give one of configs/, as in --config=configs/ppa.py")
    if not path.endswith(".py"):
        raise UserError(f"--config: {path} is not a Python file; give one of configs/, as in --config=configs/ppa.py")
    module = load_module(path, field="--config")
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no get_config(mode)")
    try:
        config = module.get_config(mode)
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # an unknown mode; a get_config that takes none
        raise UserError(f"--config={file}: {error}") from error
    except Exception as error:  # whatever a file of the user's may raise: a field that does not exist, say
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--config={file}: get_config raises {type(error).__name__}: {reason}") from error
    given = dict(overrides)
    for name, text in given.items():
        set_field(config, name, text)
    both = [name for name in ("train.steps", "train.epochs") if name in given and float(given[name] or 0) != 0]
    if len(both) == 2:
        raise UserError("config.train.steps and config.train.epochs: give one of them, not both")
    if both:
        other = "epochs" if both == ["train.steps"] else "steps"
        config.train[other] = type(config.train[other])(0)
    return config


def load_module(path: str | Path, *, field: str) -> Any:
    """A Python file of the user's as a module. Raises UserError, which begins with `field`, for whatever it raises."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{field}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of the user's may raise
        raise UserError(f"{field}: {path} cannot be read ({type(error).__name__}: {error})") from error
    return module


def fields(config: Config, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, ml_collections.ConfigDict)
        flat |= fields(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat


def leave_out(config: Config, names: Iterable[str]) -> None:
    """Removes fields, by their dotted names, that a job sets itself: what a user gives them would do nothing."""
    for name in names:
        group, _, last = name.rpartition(".")
        inner = config[group] if group else config
        with inner.unlocked():
            del inner[last]


def set_field(config: Config, name: str, text: str) -> None:
    """Sets one field from text. An empty string and `none` mean unset for fields of text."""
    known = fields(config)
    if name not in known:
        # A right name in the wrong group is nearer than any spelling.
        same_leaf = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
        near = difflib.get_close_matches(name, same_leaf or known, n=1, cutoff=0.0 if same_leaf else 0.6)
        there_are = f"the nearest is config.{near[0]}" if near else f"there are {', '.join(config)}"
        raise UserError(f"config.{name}: no such field; {there_are}")
    default = known[name]
    if type(default) not in _READ:
        raise UserError(
            f"config.{name}: its default is {default!r}, of which no type can be told that a command line could give; "
            "let get_config have text, a number, true or false there"
        )
    try:
        value = _READ[type(default)](text)
    except ValueError:
        raise UserError(f"config.{name}={text}: must be {_SAYS[type(default)]}, like {default!r}") from None
    *groups, leaf = name.split(".")
    for group in groups:
        config = config[group]
    config[leaf] = value


def _read_bool(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = float(text)  # 1e6 is a whole number, too
        if not value.is_integer():
            raise
        return int(value)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # passes every check of a range, or none
        raise ValueError(text)
    return value


_READ: dict[type, Callable[[str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: lambda text: "" if text.lower() == "none" else text,
}
_SAYS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def training_steps(config: Config, examples: int) -> int:
    """`train.steps`, or those of `train.epochs` over `examples`, the last batch completed from the epoch after.

    Raises UserError for more than can be counted.
    """
    train = config.train
    # Fraction: 1.1 epochs of 100 examples are 110, not 110.00000000000001 and one batch more.
    steps = train.steps or math.ceil(Fraction(str(train.epochs)) * examples / train.batch_size)
    if steps >= 2**31:
        raise UserError(f"config.train.epochs={train.epochs}: {steps:.2g} steps; must be below 2**31 steps")
    return steps


def require(config: Config, name: str, good: Callable[[Any], bool], wanted: str) -> None:
    """Raises UserError unless `good(value)`: "config.NAME=VALUE: must be WANTED"."""
    value = fields(config)[name]
    if not good(value):
        raise UserError(f"config.{name}={value}: must be {wanted}")


def one_of(config: Config, name: str, choices: Iterable[str]) -> None:
    """Raises UserError unless the field is one of `choices`."""
    choices = list(choices)
    require(config, name, lambda value: value in choices, "one of " + ", ".join(choices))
