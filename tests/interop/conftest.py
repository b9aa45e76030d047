"""Tiny models of transformers with random weights everywhere, LayerNorm and biases too: a mix-up of any two shows."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ppa_jax.model.bert import Encoder, rows_from_mask
from ppa_jax.model.heads import MaskedLMHead, decode

SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 33,
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """tiny("BertForMaskedLM", **config fields) -> the model, in evaluation mode, seeded."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def build(name: str, **fields: Any) -> Any:
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**(SIZES | fields)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def add_tokenizer() -> Callable[..., None]:
    """add_tokenizer(directory, pad=0): a WordPiece tokenizer of single letters; `pad` is the id of [PAD]."""

    def add(directory: Path, pad: int = 0) -> None:
        special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        special.insert(pad, "[PAD]")
        vocab = special + list(string.ascii_lowercase) + [f"##{letter}" for letter in string.ascii_lowercase]
        (directory / "vocab.txt").write_text("\n".join(vocab) + "\n")
        (directory / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "BertTokenizerFast", "do_lower_case": true}'
        )

    return add


@pytest.fixture(scope="session")
def flax_outputs() -> Callable[..., tuple[list[np.ndarray], np.ndarray]]:
    """flax_outputs(pretrained, ids, mask) -> hidden states (embeddings first) and masked-LM logits."""

    def run(pretrained: Any, ids: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        positions, segments = rows_from_mask(jax.numpy.asarray(mask))
        encoder = Encoder(pretrained.config)
        states = encoder.apply({"params": pretrained.params["encoder"]}, ids, positions, segments, all_hidden=True)
        words = pretrained.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        predictions = MaskedLMHead(pretrained.config).apply({"params": pretrained.params["mlm_head"]}, states[-1])
        logits = decode(*predictions, words)
        return [np.asarray(state) for state in states], np.asarray(logits)

    return run


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and mask [3, 9]: a full row, a padded one, the shortest possible. Padding holds id 1."""
    mask = (np.arange(9) < np.array([9, 6, 2])[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(5, SIZES["vocab_size"], mask.shape).astype(np.int32)
    return np.where(mask, ids, 1).astype(np.int32), mask
