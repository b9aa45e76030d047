"""Checks the settings that every training has: `train`, `checkpoint`, `mesh`, `log`, `eval.every` and `dtype`."""

from jax.sharding import Mesh

from ppa_jax.config import DTYPE, NOT_NEGATIVE, POSITIVE, Config, Limit, check, entries, fields, one_of
from ppa_jax.errors import UserError
from ppa_jax.training.metrics import TRACKERS, import_tracker
from ppa_jax.training.sharding import RULES

DEVICES = Limit(lambda n: n == -1 or n >= 1, "-1 (all devices) or a number of devices")
LIMITS = {
    "train.steps": Limit(lambda n: 0 <= n < 2**31, "0 or more, below 2**31"),
    "train.epochs": NOT_NEGATIVE,
    "train.batch_size": Limit(lambda n: 0 < n <= 2**20, "greater than 0, at most 2**20"),
    "train.learning_rate": POSITIVE,
    "train.warmup": NOT_NEGATIVE,
    "train.weight_decay": NOT_NEGATIVE,
    "train.clip": NOT_NEGATIVE,
    "train.dropout": Limit(lambda x: x == -1 or 0 <= x < 1, "-1 (as pretrained) or in [0, 1)"),
    "checkpoint.every": NOT_NEGATIVE,
    "checkpoint.keep": POSITIVE,
    "eval.every": NOT_NEGATIVE,
    "mesh.data": DEVICES,
    "mesh.fsdp": DEVICES,
    "mesh.rules": one_of(*RULES),
    "dtype": DTYPE,
}


def check_training(config: Config) -> None:
    """Raises UserError, naming the field, for a value out of its limits or a package that is not installed."""
    check(config, LIMITS)
    if not (config.train.steps or config.train.epochs):
        raise UserError("config.train.steps and config.train.epochs: give one of them, and it must be greater than 0")
    for name in TRACKERS:
        if config.log[name]:
            import_tracker(name)


def check_batch_size(config: Config, field: str, mesh: Mesh) -> None:
    """Raises UserError, with a size that would do, unless the batch divides by the devices and accumulation steps."""
    size, accumulate = fields(config)[field], config.train.get("accumulate", 1)
    parts = mesh.size * accumulate
    if size % parts:
        steps = f" x {accumulate} accumulation steps" if accumulate > 1 else ""
        wanted = f"must be a multiple of {parts} ({mesh.size} devices{steps})"
        raise UserError(f"config.{field}={size}: {wanted}; the nearest is {parts * max(1, round(size / parts))}")


def parse_seeds(config: Config) -> list[int]:
    """The entries of config.seeds. Raises UserError unless they are different numbers."""
    try:
        seeds = [int(entry) for entry in entries(str(config.seeds))]
    except ValueError:
        raise UserError(f"config.seeds={config.seeds}: must be numbers with commas between, as 0,1,2") from None
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"config.seeds={config.seeds}: must be different numbers from 0 on, as 0,1,2")
    return seeds
