"""The settings that every training has: `train`, `checkpoint`, `mesh`, `log`, `eval.every` and `dtype`."""

from ppa_jax.config import Config, one_of, require
from ppa_jax.errors import UserError
from ppa_jax.training.mesh import RULES
from ppa_jax.training.metrics import import_wandb


def check_training(config: Config) -> None:
    """Raises UserError, naming the field, for what is out of its limits, and for a package that is not there."""
    for name in ("train.batch_size", "train.learning_rate", "checkpoint.keep", "mesh.model"):
        require(config, name, lambda x: x > 0, "greater than 0")
    for name in ("train.steps", "train.epochs", "train.warmup", "train.weight_decay", "train.clip"):
        require(config, name, lambda x: x >= 0, "0 or more")
    for name in ("checkpoint.every", "eval.every"):
        require(config, name, lambda x: x >= 0, "0 or more")
    require(config, "train.dropout", lambda x: x == -1 or 0 <= x < 1, "-1 (as pretrained) or in [0, 1)")
    require(config, "train.steps", lambda n: n < 2**31, "below 2**31")
    require(config, "train.batch_size", lambda n: n <= 2**20, "at most 2**20")
    for name in ("mesh.data", "mesh.fsdp"):
        require(config, name, lambda n: n == -1 or n >= 1, "-1 (all devices) or a number of devices")
    one_of(config, "dtype", ("float32", "bfloat16"))
    one_of(config, "mesh.rules", RULES)
    if bool(config.train.steps) == bool(config.train.epochs):
        raise UserError("config.train.steps and config.train.epochs: give one of them, and it must be greater than 0")
    if config.log.wandb:
        import_wandb()
