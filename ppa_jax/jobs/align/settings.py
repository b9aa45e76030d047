"""The settings of the main job's step, as `jobs/align/method.py` reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ppa_jax.model.families import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """The settings of the step. A loss of weight 0 is not computed."""

    tlm_weight: float = 1.0
    contrastive_weight: float = 1.0
    rtl_weight: float = 0.0
    word_alignment_weight: float = 0.0  # with a dictionary
    distill_weight: float = 0.0  # with a teacher's vectors
    distill_loss: str = "mse"  # or "cosine"
    objective: str = "momentum"  # of the contrast; or "ranking"
    symmetric: bool = False  # momentum in both directions
    queue_size: int = 32_000  # keys; rounded up to whole batches
    momentum: float = 0.999
    temperature: float = 0.05
    learn_temperature: bool = False  # from that value on
    margin: float = 0.0  # subtracted from the cosine of a pair
    projection_dim: int = 300
    layer: int = 12  # whose states are pooled, from 1
    pooling: str = "cls"  # or "mean", over all tokens with the special ones
    dense: str = ""  # the activation of a SentenceTransformer's Dense module, which the projection reads; "": none
    normalize: bool = False  # sentence vectors, as distillation compares them; the projection reads others
    mask_duplicates: bool = True
    in_batch: bool = False  # the other keys of the batch are negatives, too
    key_dropout: bool = True  # MoCo keeps the key encoder in training mode
    max_tlm_length: int = 131  # of a TLM sequence
    dict_mlm: str = ""  # DICT-MLM with a dictionary: "input" or "label" (see masking.py)
    mask_id: int = 103
    vocab_size: int | None = None  # of the tokenizer; None: as many as the word embeddings
    special_ids: tuple[int, ...] = ()  # of the tokenizer
    frozen: tuple[str, ...] = ()  # modules of the encoder that are not trained, as "embeddings" and "layer_0"
    remat: bool = False  # keep less for the backward pass and compute it again
    scan: bool = False  # compile one block, and loop over the layers
    dtype: Any = jnp.float32  # of the matmuls

    @property
    def ranking(self) -> bool:
        """Whether the contrast, if there is one, is without key encoder and queue."""
        return self.objective == "ranking"

    @property
    def sides(self) -> int:
        """How many sentences of a pair are queries."""
        return 2 if self.ranking or self.symmetric or self.distill_weight else 1

    @property
    def has_keys(self) -> bool:
        """Whether there is a key encoder with its queue."""
        return bool(self.contrastive_weight) and not self.ranking

    @property
    def pools(self) -> bool:
        """Whether a loss reads the vectors of sentences."""
        return bool(self.contrastive_weight or self.distill_weight)

    def blocks(self, config: EncoderConfig) -> int:
        """How many blocks the query encoder runs: none above the contrast's layer, unless for TLM."""
        return config.num_layers if self.tlm_weight else self.layer

    def reads_all(self, config: EncoderConfig) -> bool:
        """Whether a loss reads all of the last states that the query encoder computes."""
        reads_tokens = self.rtl_weight or (self.pools and self.pooling != "cls")
        return bool(reads_tokens) and self.layer == self.blocks(config)

    def pools_last(self, config: EncoderConfig) -> bool:
        """Whether vectors of sentences are made of the last of the states that the query encoder computes."""
        return self.pools and self.layer == self.blocks(config)
