"""Compares PyTorch and Flax: the same checkpoint and sentences, the difference at every layer."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.interop import hub, huggingface
from ppa_jax.model.bert import rows_from_mask
from ppa_jax.model.families import EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.model.heads import decode

TOLERANCE = 1e-4  # reordered float32 sums differ a hundred times less, a wrong weight far more
LOGITS = "masked-LM logits"
BATCH = 5  # sentences, whose logits over a large vocabulary take under 100 MB

SENTENCES = (  # of different lengths, so that every batch has padding
    "The ferry to the island leaves at half past six, unless the wind has turned by then.",
    "No.",
    "Die Bäckerin am Markt verkauft das Brot vom Vortag zum halben Preis.",
    "Mi hermana aprendió a nadar en el río, mucho antes de ver el mar.",
    "明天早上我们坐火车去看爷爷。",
    "Ce vieux pont de pierre a résisté à toutes les crues du siècle dernier.",
    "Кошка спит на подоконнике, пока дети строят крепость из снега.",
    "أغلقت المكتبة أبوابها مبكرا بسبب العاصفة.",
    "किसान ने बारिश से पहले खेत जोत लिया।",
    "Mwalimu aliwasimulia wanafunzi hadithi ya simba na sungura.",
    "Ο ψαράς επιδιόρθωσε τα δίχτυα του.",
    "Yarın sabah erkenden yola çıkarsak öğleye kadar dağın eteğine varırız.",
    "駅前の小さな本屋は、雨の日だけ遅くまで開いている。",
    "เธอปลูกมะม่วงไว้หลังบ้าน",
    "다리를 건너면 오래된 시장이 나온다. 🙂",
)


def compare(source: str | Path) -> list[tuple[str, float]]:
    """The largest relative difference at the embeddings, after every layer, and in the masked-LM logits.

    The relative difference of a token is |torch - flax| / |torch|, with the Euclidean norm over the width (or the
    vocabulary); the result is the maximum over all real tokens of SENTENCES. Without a masked-LM head, logits are not
    compared.

    Raises:
        UserError: the checkpoint or its tokenizer cannot be read, or PyTorch or transformers is missing.
    """
    directory = hub.resolve(source)
    pretrained = huggingface.read(directory)
    has_head = "mlm_head" not in pretrained.initialised
    ids, mask = _tokens(load_tokenizer(directory), pretrained.config)
    torch_forward = _torch_model(directory, has_head)
    names = ["embeddings", *(f"layer {i + 1}" for i in range(pretrained.config.num_layers))]
    names += [LOGITS] if has_head else []
    worst = dict.fromkeys(names, 0.0)
    for start in range(0, len(ids), BATCH):
        rows = slice(start, start + BATCH)
        real = mask[rows] > 0
        theirs = torch_forward(ids[rows], mask[rows])
        with jax.default_matmul_precision("highest"):  # by default accelerators round the operands of float32 products
            ours = _flax_forward(pretrained.params, ids[rows], mask[rows], pretrained.config, has_head)
        for name, expected, got in zip(names, theirs, ours, strict=True):
            worst[name] = max(worst[name], relative_difference(expected[real], np.asarray(got)[real]))
    return list(worst.items())


def relative_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest |expected - got| / |expected| over rows [N, D]; infinite if any value is not finite."""
    difference = np.linalg.norm(expected.astype(np.float64) - got, axis=-1)
    norm = np.linalg.norm(expected.astype(np.float64), axis=-1)
    worst = float(np.max(difference / np.maximum(norm, 1e-30)))
    return worst if np.isfinite(worst) else float("inf")


def _tokens(tokenizer: Any, config: EncoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Padded ids and mask [N, L] of SENTENCES with special tokens."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, config.json says vocab_size={config.vocab_size}; "
            "they belong to different models"
        )
    pieces = tokenizer.encode(list(SENTENCES))
    rows = [[tokenizer.cls_id, *row[: config.max_length - 2], tokenizer.sep_id] for row in pieces]
    ids = np.array([*itertools.zip_longest(*rows, fillvalue=config.pad_token_id)], np.int32).T
    lengths = np.array([len(row) for row in rows])
    return ids, (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)


def _torch_model(directory: Path, has_head: bool) -> Any:
    """A function from ids and mask [B, L] to hidden states and logits, computed by transformers."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"verify compares with PyTorch: `pip install torch transformers` ({error.name} is missing)"
        ) from None
    before, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # it lists the weights that it does not use
    transformers.logging.disable_progress_bar()
    try:
        auto = transformers.AutoModelForMaskedLM if has_head else transformers.AutoModel
        model = auto.from_pretrained(directory, dtype=torch.float32).eval()
    finally:
        transformers.logging.set_verbosity(before)
        if bar:
            transformers.logging.enable_progress_bar()

    # Our states after each layer include the final norm; theirs do only after the last layer.
    final_norm = getattr(model.base_model, "final_norm", lambda states: states)

    def forward(ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            inputs = {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(mask).long()}
            out = model(**inputs, output_hidden_states=True)
            first, *middle, last = out.hidden_states
            states = [first, *map(final_norm, middle), last]
        return [state.numpy() for state in (*states, *([out.logits] if has_head else []))]

    return forward


@partial(jax.jit, static_argnums=(3, 4))
def _flax_forward(params: Any, ids: jax.Array, mask: jax.Array, config: EncoderConfig, has_head: bool) -> list[Any]:
    """The same, computed by this project."""
    positions, segments = rows_from_mask(mask)
    states = make_encoder(config).apply({"params": params["encoder"]}, ids, positions, segments, all_hidden=True)
    if not has_head:
        return list(states)
    words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    predicted: Any = make_masked_lm_head(config).apply({"params": params["mlm_head"]}, states[-1])
    transformed, bias = predicted
    return [*states, decode(transformed, bias, words)]
