"""config.json of transformers and EncoderConfig, both ways."""

from __future__ import annotations

from typing import Any

from ppa_jax.errors import UserError
from ppa_jax.interop.names import ARCHITECTURES
from ppa_jax.model.bert import EncoderConfig

SIZES = {  # config.json -> EncoderConfig
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
}
CONSTANTS = {
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
}


def config_from_hf(values: dict[str, Any], where: str = "config.json") -> EncoderConfig:
    """EncoderConfig from the fields of config.json; `where` names the file in messages.

    Raises UserError for another kind of model, or for an option that would change the numbers and is not supported.
    """
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    refused = {
        "hidden_act": (values.get("hidden_act", "gelu") not in ("gelu", "gelu_python"), "only the exact 'gelu' is"),
        "position_embedding_type": (
            values.get("position_embedding_type", "absolute") != "absolute",
            "only 'absolute' is",
        ),
        "is_decoder": (values.get("is_decoder", False), "only encoders are"),
        "add_cross_attention": (values.get("add_cross_attention", False), "only encoders are"),
        "quantization_config": (values.get("quantization_config"), "only plain float weights are"),
    }
    for field, (is_refused, instead) in refused.items():
        if is_refused:
            raise UserError(f"{where}: {field}={values[field]!r} is not supported; {instead}")
    fields: dict[str, Any] = {}
    for name, ours in SIZES.items():
        size = values.get(name, 2 if name == "type_vocab_size" else None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            said = "is missing" if size is None else f"is {size!r}, not a positive whole number"
            raise UserError(f"{where}: {name} {said}; restore the config.json the model was saved with")
        fields[ours] = size
    if fields["hidden_size"] % fields["num_heads"]:
        raise UserError(
            f"{where}: hidden_size={fields['hidden_size']} does not divide by "
            f"num_attention_heads={fields['num_heads']}; one of them is wrong"
        )
    for name, ours in CONSTANTS.items():
        constant = values.get(name, getattr(EncoderConfig, ours))
        if not isinstance(constant, int | float) or isinstance(constant, bool) or constant < 0:
            raise UserError(f"{where}: {name} is {constant!r}, not a number from 0")
        fields[ours] = float(constant)
    is_bert = kind == "bert"
    pad = values.get("pad_token_id")
    pad = (0 if is_bert else 1) if pad is None else pad
    if not isinstance(pad, int) or not 0 <= pad < fields["vocab_size"]:
        raise UserError(f"{where}: pad_token_id={pad!r} lies outside the vocabulary of {fields['vocab_size']}")
    return EncoderConfig(
        model_type="bert" if is_bert else "xlm-roberta",
        pad_token_id=pad,
        position_offset=0 if is_bert else pad + 1,
        activation="gelu",
        **fields,
    )


def config_to_hf(config: EncoderConfig, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of config.json for `config`; what `base` (a config.json as read) says beyond that is kept."""
    values = dict(base or {})
    if (config.model_type, values.get("model_type")) != ("xlm-roberta", "roberta"):  # the same blocks, by two names
        values["model_type"] = config.model_type
    values |= {name: getattr(config, ours) for name, ours in (SIZES | CONSTANTS).items()}
    values |= {"hidden_act": "gelu", "pad_token_id": config.pad_token_id, "tie_word_embeddings": True}
    values["architectures"] = [ARCHITECTURES[values["model_type"]][2]]
    values.pop("torch_dtype", None)  # the older name of the next
    values["dtype"] = "float32"
    return values
