"""An untrained encoder for `init=""`: a vocabulary, and random weights of the sizes in `config.model`."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from ppa_jax import storage
from ppa_jax.config import POSITIVE, Config, check, entries, one_of
from ppa_jax.data import prepare, sources, vocabulary
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, huggingface
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.interop.names import config_to_hf
from ppa_jax.model.families import FAMILIES, EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.training import hosts
from ppa_jax.training.workdir import check_identity, write_identity

FAMILY_NAMES = ("bert", "modernbert")
SPEC = "made_of"  # the settings of the model; written last
VOCABULARY_SENTENCES = 400_000  # maximum for training the vocabulary; the same number from each source


def validate(config: Config) -> None:
    """Checks `config.model`. Raises UserError naming the field."""
    sizes = dict.fromkeys(("model.vocab_size", "model.hidden_size", "model.num_layers", "model.num_heads"), POSITIVE)
    check(config, sizes | {"model.family": one_of(*FAMILY_NAMES), "model.vocabulary": one_of(*vocabulary.TRAINERS)})
    width, heads = config.model.hidden_size, config.model.num_heads
    if width % heads:
        raise UserError(f"config.model.hidden_size={width}: must divide by model.num_heads={heads}")


def encoder_config(config: Config, vocab_size: int, token_types: int = 2) -> EncoderConfig:
    """The sizes of the new model."""
    return FAMILIES[config.model.family].Config.small(
        vocab_size=vocab_size,
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        num_heads=config.model.num_heads,
        token_types=token_types,
    )


def is_random(directory: str | epath.Path) -> bool:
    """Whether the directory holds an untrained model that `make_random` wrote."""
    return (epath.Path(directory) / SPEC).is_dir()


def matches_spec(config: Config, directory: epath.Path, token_types: int = 2) -> bool:
    """Whether `make_random` has finished in the directory. Raises UserError if it did with other settings."""
    return check_identity(directory / SPEC, _spec(config, token_types))


def _spec(config: Config, token_types: int) -> dict[str, Any]:
    """The settings of a new model, including its pretraining if the job pretrains it."""
    spec = {"model": config.model.to_dict(), "seed": config.seed, "token_types": token_types}
    spec["data"] = {name: config.data[name] for name in ("pairs", "max_characters", "skip_lines")}
    return spec | ({"pretrain": config.pretrain.to_dict()} if "pretrain" in config else {})


def make_random(config: Config, directory: epath.Path, token_types: int = 2) -> None:
    """Writes the model on process 0, unless it is there already; all processes wait for it.

    Raises UserError if it was made with other settings.
    """
    if jax.process_index() == 0 and not matches_spec(config, directory, token_types):
        logging.info("a new model with random weights")
        directory.rmtree(missing_ok=True)
        with storage.staged(directory) as staged:
            write_random(config, staged, token_types)
        write_identity(directory / SPEC, _spec(config, token_types))
    hosts.barrier("new model written")


def write_random(config: Config, directory: Path, token_types: int = 2) -> None:
    """Writes an untrained model and its tokenizer in the Hugging Face format."""
    directory.mkdir(parents=True, exist_ok=True)
    if config.model.tokenizer:
        tokenizer = load_tokenizer(hub.resolve(config.model.tokenizer, weights=False))
        vocab_size = tokenizer.vocab_size
        for file in tokenizer.files:
            shutil.copy(file, directory / file.name)
    else:
        train = vocabulary.TRAINERS[config.model.vocabulary]
        vocab_size = train(_sentences(config), config.model.vocab_size, directory)
    sizes = encoder_config(config, vocab_size, token_types)
    if not sizes.type_vocab_size and not config.model.tokenizer:
        vocabulary.leave_out_token_types(directory)
    encoder_key, head_key = jax.random.split(jax.random.key(config.seed))
    token = jnp.zeros((1, 1), jnp.int32)
    params = {
        "encoder": make_encoder(sizes).init(encoder_key, token, token, token)["params"],
        "mlm_head": make_masked_lm_head(sizes).init(head_key, jnp.zeros((1, sizes.hidden_size)))["params"],
    }
    huggingface.write(directory, Pretrained(sizes, params, hf_config=config_to_hf(sizes)))


def _sentences(config: Config) -> Iterator[str]:
    """Sentences of all sources, all sides, the same number from each source."""
    cleaning = sources.Cleaning(config.data.max_characters, tuple(entries(config.data.skip_lines)))
    cache = storage.on_disk(config.data.cache or storage.cache_directory(), "config.data.cache=")
    given = sources.parse_pairs(config.data.pairs)
    for source in given:
        sources.check(source)
        prepared = prepare.prepare(source, cleaning, cache)
        decoded = (prepare.decode(block, prepared.columns) for block in prepared.blocks())
        texts = (text for block in decoded for sides in block for text in sides if text)
        yield from itertools.islice(texts, VOCABULARY_SENTENCES // len(given))
