"""The families of encoders: by `model_type`, the classes and functions by which everything else uses them.

A new family is a module beside bert.py, an entry here, and one in interop/names.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ppa_jax.model import bert, heads, modernbert

EncoderConfig = bert.EncoderConfig | modernbert.EncoderConfig
Features = Callable[[Any, Any, Any], Any]  # (config, states, dtype) -> states; called within a Flax module


class Family(NamedTuple):
    """What one family is made of.

    Attributes:
        Config: sizes and constants.
        Encoder: (config, dtype, remat, scan, frozen); its arguments are those of `bert.Encoder`.
        MaskedLMHead: (config, dtype); its result is that of `heads.MaskedLMHead`.
        sentence_features: what a classifier of sentences reads, from the sentence's state [B, 1, D].
        token_features: what a classifier of tokens reads, from their states [B, L, D].
    """

    Config: Any
    Encoder: Callable[..., nn.Module]
    MaskedLMHead: Callable[..., nn.Module]
    sentence_features: Features
    token_features: Features


BERT = Family(bert.EncoderConfig, bert.Encoder, heads.MaskedLMHead, bert.pooler, lambda config, states, dtype: states)
MODERNBERT = Family(
    modernbert.EncoderConfig,
    modernbert.Encoder,
    modernbert.MaskedLMHead,
    modernbert.prediction_head,
    modernbert.prediction_head,
)
FAMILIES = {  # by EncoderConfig.model_type
    "bert": BERT,
    "xlm-roberta": BERT,
    "distilbert": BERT,
    "modernbert": MODERNBERT,
}


def family_of(config: EncoderConfig) -> Family:
    """The family that an encoder belongs to."""
    return FAMILIES[config.model_type]


def make_encoder(
    config: EncoderConfig,
    dtype: Any = jnp.float32,
    remat: bool = False,
    scan: bool = False,
    frozen: tuple[str, ...] = (),
) -> Any:
    """The encoder, a Flax module; see `bert.Encoder` for its arguments."""
    return family_of(config).Encoder(config, dtype, remat, scan, frozen)


def make_masked_lm_head(config: EncoderConfig, dtype: Any = jnp.float32) -> Any:
    """The masked-LM head, a Flax module: states [*M, D] -> what `heads.decode` takes with the word embeddings."""
    return family_of(config).MaskedLMHead(config, dtype)
