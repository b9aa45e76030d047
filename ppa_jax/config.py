"""Configurations: `load` runs a recipe's `get_config(mode)` and sets fields; `check` tests fields by a table of limits.

Recipes are ml_collections files; `ml_collections.config_flags` sets the fields given on the command line. A mistake
ends in one line that names the field; for an unknown field the line also names the most similar one.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from ppa_jax.errors import UserError, reason

Config = Any  # an ml_collections.ConfigDict, whose fields have the types of their defaults: unknown to type checkers

_PACKAGE = Path(__file__).parent
# Installed with the package; in a checkout beside it.
RECIPES = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")), _PACKAGE / "configs")


# ---- loading ----


def load(file: str, overrides: Sequence[str] = ()) -> Config:
    """Loads a recipe and sets fields.

    The loaded configuration has one of `train.steps` and `train.epochs`: where `overrides`, or a file that loads a
    recipe, sets one of them, the recipe's other one is unset.

    Args:
      file: `PATH[:MODE]`, or `NAME[:MODE]` for a recipe that comes with the package, as `ppa:demo`.
      overrides: as on the command line, `--config.train.steps=100`; the text is read as the type of the field's value.

    Raises:
      UserError: no such file, mode or field; text that is not of the field's type.
    """
    path, mode = find_recipe(file)
    module = load_module(path, field="--config")
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no get_config()")
    try:
        config = module.get_config(mode) if mode else module.get_config()
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # an unknown mode; a get_config that takes none
        raise UserError(f"--config={file}: {error}") from error
    except Exception as error:  # a user's file may raise anything, for a field that does not exist, for example
        raise UserError(f"--config={file}: get_config raises {type(error).__name__}: {reason(error)}") from error
    override(config, overrides)
    return config


def override(config: Config, overrides: Sequence[str]) -> None:
    """Sets fields as `load` does. Raises UserError as it does."""
    _use_steps_or_epochs(config, _override(config, overrides))


def find_recipe(file: str) -> tuple[Path, str]:
    """(path, mode) of `PATH[:MODE]` or of a recipe's name. Raises UserError if there is no such Python file."""
    name, _, mode = file.partition(":")
    recipe = RECIPES / f"{name}.py"
    if "/" not in name and recipe.is_file():
        return recipe, mode
    path = Path(name).expanduser()
    if not path.is_file():
        recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("[!_]*.py")))
        raise UserError(f"--config: no such file: {name}; give a Python file or one of the recipes {recipes}")
    if path.suffix != ".py":
        raise UserError(f"--config: {name} is not a Python file; give one, or a recipe as in --config=ppa")
    return path, mode


def load_module(path: str | Path, *, field: str) -> Any:
    """Imports a user's Python file. Raises UserError, which begins with `field`, for any exception that it raises."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{field}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"{field}: {path} cannot be read ({type(error).__name__}: {error})") from error
    return module


def fields(config: Config, prefix: str = "") -> dict[str, Any]:
    """Every field of a configuration, or of nested dicts, by its dotted name; an empty group is a field itself."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_group = hasattr(value, "items") and len(value)
        flat |= fields(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat


def entries(text: str) -> list[str]:
    """The entries of a comma-separated list: `a, b` -> a and b. Commas in brackets separate nothing: `a[x,y]`."""
    return [entry.strip() for entry in re.split(r",(?![^\[\]]*\])", text) if entry.strip()]


def leave_out(config: Config, names: Iterable[str]) -> None:
    """Removes fields, by their dotted names, that a job sets itself: setting them would have no effect."""
    for name in names:
        group, _, last = name.rpartition(".")
        inner = config[group] if group else config
        with inner.unlocked():
            del inner[last]


def training_steps(config: Config, examples: int) -> int:
    """`train.steps`, or the steps of `train.epochs` over `examples`; the next epoch completes the last batch.

    Raises UserError for 2**31 steps or more.
    """
    train = config.train
    # Fraction, because 1.1 epochs of 100 examples are 110, not 110.00000000000001 and thus one more batch.
    steps = train.steps or math.ceil(Fraction(str(train.epochs)) * examples / train.batch_size)
    if steps >= 2**31:
        raise UserError(f"config.train.epochs={train.epochs}: {steps:.2g} steps; must be below 2**31 steps")
    return steps


# ---- fields from the command line ----


def _override(config: Config, arguments: Sequence[str]) -> dict[str, Any]:
    """Sets the fields of `--config.field=value` arguments; returns their values by name. Raises UserError."""
    from ml_collections import config_flags  # which timing a step does not need

    known = fields(config)
    for argument in arguments:
        name = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if name and name[1] not in known:
            raise UserError(_no_such_field(name[1], config))
    command = ["", *arguments]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=command)
        _, *unexpected = values(command)
    except flags.IllegalFlagValueError as error:
        flag = re.match(r"flag --config\.(?P<name>[^=]+)=(?P<text>.*?): ", str(error), re.DOTALL)
        if flag is None:
            raise UserError(str(error)) from error
        default = known[flag["name"]]
        says = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "text")
        raise UserError(f"config.{flag['name']}={flag['text']}: must be {says}, like {default!r}") from None
    except (flags.Error, ValueError) as error:  # an unknown flag, one without its value, a field of None
        raise UserError(f"{str(error).partition('. ')[0]}; arguments have the form --config.field=value") from error
    if unexpected:
        raise UserError(f"{unexpected[0]}: unexpected; arguments have the form --config.field=value")
    return config_flags.get_override_values(values["config"])


def _use_steps_or_epochs(config: Config, given: Mapping[str, Any]) -> None:
    """Leaves one of `steps` and `epochs` in each group `train`: the one on the command line, else the one in the file.

    A file that loads a recipe and sets the other one is recognised by what `load` left there, remembered beside the
    fields. Raises UserError for both.
    """
    for name in fields(config):
        group = name.removesuffix(".steps")
        if group == name or group.split(".")[-1] != "train" or f"{group}.epochs" not in fields(config):
            continue
        train = config
        for part in group.split("."):
            train = train[part]
        loaded = getattr(train, "_as_loaded", {})
        present = [length for length in ("steps", "epochs") if train[length]]
        chosen = (
            [length for length in present if given.get(f"{group}.{length}")]
            or [length for length in present if train[length] != loaded.get(length)]
            or present
        )
        if len(chosen) > 1:
            raise UserError(f"config.{group}.steps and config.{group}.epochs: give one of them, not both")
        if chosen == ["steps"]:
            train.epochs = 0.0
        elif chosen:
            train.steps = 0
        object.__setattr__(train, "_as_loaded", {"steps": train.steps, "epochs": train.epochs})


REMOVED = {"mesh.model": "matrix products are not split over devices; mesh.rules=fsdp splits the parameters"}


def _no_such_field(name: str, config: Config) -> str:
    known = fields(config)
    if name in REMOVED:
        return f"config.{name}: this setting was removed: {REMOVED[name]}"
    group = name
    while group and not any(field.startswith(f"{group}.") for field in known):
        group = group.rpartition(".")[0]
    near = "" if group == name else nearest(name, known)
    if near:
        return f"config.{name}: no such field; the nearest is config.{near}"
    prefix = f"{group}." if group else ""
    within = {field.removeprefix(prefix).split(".")[0] for field in known if field.startswith(prefix)}
    return f"config.{name}: no such field; config.{prefix}* has {', '.join(sorted(within))}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The field most similar to `name`: in another group, abbreviated or misspelled; "" if there is none."""
    group, _, leaf = name.rpartition(".")

    def likeness(candidate: str) -> tuple[float, int]:
        its_group, _, its_leaf = candidate.rpartition(".")
        if leaf == its_leaf:
            alike = 1.0
        elif len(leaf) > 1 and _abbreviates(leaf, its_leaf.split("_")):
            alike = 0.9
        else:
            alike = difflib.SequenceMatcher(None, leaf, its_leaf).ratio()
        if alike < 0.6:
            return 0.0, 0
        return alike + 0.1 * difflib.SequenceMatcher(None, group, its_group).ratio(), -len(candidate)

    best = max(known, key=likeness, default="")
    return best if best and likeness(best) > (0.0, 0) else ""


def _abbreviates(short: str, words: Sequence[str]) -> bool:
    """Whether `short` consists of prefixes of the words, in order: `lr`, `learn_rate`, `rate` for learning, rate."""
    prefixes = ("".join(f"(?:{letter}" for letter in word) + ")?" * len(word) for word in words)
    return re.fullmatch("_?".join(prefixes), short) is not None


# ---- limits ----


class Limit(NamedTuple):
    """A test of a field's value, and the text for "must be ..."."""

    holds: Callable[[Any], bool]
    wanted: str


def at_least(low: float, why: str = "") -> Limit:
    """`low` or more."""
    return Limit(lambda x: x >= low, f"{low} or more{why and f': {why}'}")


def one_of(*choices: Any) -> Limit:
    """One of the values listed."""
    return Limit(lambda x: x in choices, f"one of {', '.join(map(str, choices))}")


POSITIVE = Limit(lambda x: x > 0, "greater than 0")
NOT_NEGATIVE = at_least(0)
SEED = Limit(lambda n: 0 <= n < 2**32, "0 or more, below 2**32")
DTYPE = one_of("float32", "bfloat16")


def check(config: Config, limits: Mapping[str, Limit]) -> None:
    """Raises UserError, "config.NAME=VALUE: must be WANTED", for a field out of its limits or not finite."""
    values = fields(config)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):  # infinity would pass some limits
            raise UserError(f"config.{name}={value}: must be a number")
    for name, limit in limits.items():
        if not limit.holds(values[name]):
            raise UserError(f"config.{name}={values[name]}: must be {limit.wanted}")
