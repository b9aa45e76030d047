"""ModernBERT's checkpoints and both forms of its configuration, as transformers understands them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface
from ppa_jax.interop.names import config_from_hf, config_to_hf
from ppa_jax.interop.verify import relative_difference
from ppa_jax.model.modernbert import FULL, SLIDING

MMBERT = {  # as its config.json was published, in the form of 2024
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean",
    "cls_token_id": 1, "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
    "eos_token_id": 1, "global_attn_every_n_layers": 3, "global_rope_theta": 160000, "hidden_activation": "gelu",
    "hidden_size": 384, "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152,
    "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 160000, "max_position_embeddings": 8192,
    "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05,
    "num_attention_heads": 6, "num_hidden_layers": 22, "pad_token_id": 0, "position_embedding_type": "sans_pos",
    "sep_token_id": 1, "sparse_prediction": False, "torch_dtype": "float32", "vocab_size": 256000,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"global_attn_every_n_layers": 2, "local_attention": 65, "global_rope_theta": 5e5, "local_rope_theta": 1e4},
        {"sliding_window": 32},
        {"layer_types": [FULL, FULL, SLIDING], "num_hidden_layers": 3},
        {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 7.0}}, "local_rope_theta": 9.0},
    ],
)
def test_configurations_mean_what_they_mean_to_transformers(changed: dict[str, Any]) -> None:
    """Both forms; what is written is today's form, and means the same."""
    given = MMBERT | changed
    theirs = transformers.ModernBertConfig.from_dict(dict(given))
    ours = config_from_hf(given)
    assert ours.layer_types == tuple(theirs.layer_types) and ours.window == theirs.sliding_window
    thetas = [theirs.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)]
    assert [ours.full_theta, ours.sliding_theta] == thetas
    written = config_to_hf(ours, given)
    again = transformers.ModernBertConfig.from_dict(dict(written))
    for name in ("layer_types", "sliding_window", "rope_parameters", "hidden_size", "norm_eps", "classifier_pooling"):
        assert getattr(again, name) == getattr(theirs, name), name
    assert not {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "sliding_window"} & set(written)
    assert config_from_hf(written) == ours


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"layer_types": [FULL]}, f"layer_types must be 22 of {FULL} and {SLIDING}, as num_hidden_layers says"),
        ({"layer_types": [FULL, "chunked"], "num_hidden_layers": 2}, "layer_types must be 2 of"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn"}}}, "rope_type='yarn' is not supported; only 'default' is"),
        ({"rope_parameters": {"rope_theta": 1e4}}, f"rope_parameters must have an object for each of {FULL} and"),
        ({"rope_parameters": {FULL: 3}}, "rope_parameters must have an object for each of"),
        ({"num_attention_heads": 128}, "heads of width 3, of which rotations need pairs; num_attention_heads is wrong"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling=.* is not supported; only rotations without scaling are"),
        ({"local_rope_theta": -1}, "rope_theta is -1, not a positive number"),
        ({"local_attention": "128"}, "local_attention is '128', not a positive whole number"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0, not a positive whole number"),
        ({"norm_bias": True}, "norm_bias=True is not supported; only layers without bias are"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu' is not supported"),
        ({"classifier_pooling": "max"}, "classifier_pooling='max' is not supported; only 'cls' and 'mean' are"),
        ({"model_type": "modernbert2"}, "supported: bert, xlm-roberta, roberta, distilbert, modernbert"),
    ],
)
def test_bad_configuration_is_one_clear_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config_from_hf(MMBERT | changed, "model/config.json")
    assert str(caught.value).startswith("model/config.json: ") and "\n" not in str(caught.value)


def without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("form", [dict, without_prefix], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("name", ["ModernBertModel", "ModernBertForMaskedLM"])
def test_round_trip_gives_every_tensor_and_every_number_back(
    name: str, form: Any, tiny: Any, tmp_path: Path, flax_outputs: Any, batch: Any
) -> None:
    model = tiny(name)
    source, target = tmp_path / "source", tmp_path / "target"
    model.config.save_pretrained(source)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}  # the tied decoder as well
    save_file(form(state), source / "model.safetensors")
    pretrained = huggingface.read(source)
    assert pretrained.initialised == (["mlm_head"] if name == "ModernBertModel" else []) and not pretrained.unused
    huggingface.write(target, pretrained)

    written = load_file(target / "model.safetensors")
    for key, tensor in state.items():
        if key != "decoder.weight":  # tied: transformers makes it again
            assert torch.equal(written[key if name == "ModernBertForMaskedLM" else f"model.{key}"], tensor), key
    auto = transformers.AutoModel if name == "ModernBertModel" else transformers.AutoModelForMaskedLM
    loaded, info = auto.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and type(loaded).__name__ == name
    ids, mask = batch
    with torch.no_grad():
        out = loaded(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    states, logits = flax_outputs(huggingface.read(target), ids, mask)
    theirs, ours = (out.last_hidden_state, states[-1]) if name == "ModernBertModel" else (out.logits, logits)
    assert relative_difference(theirs.numpy()[mask > 0], ours[mask > 0]) < 1e-5


def test_an_encoder_cut_off_below_the_last_layer_gives_that_layers_states(
    tiny: Any, tmp_path: Path, flax_outputs: Any, batch: Any
) -> None:
    """The final norm is part of the state after every layer, so AutoModel of the truncated encoder gives it."""
    ids, mask = batch
    tiny("ModernBertForMaskedLM").save_pretrained(tmp_path)
    pretrained = huggingface.read(tmp_path)
    states, _ = flax_outputs(pretrained, ids, mask)
    for layers in (1, 2):
        huggingface.write_truncated(tmp_path / str(layers), pretrained, layers=layers, files_from=tmp_path)
        config = json.loads((tmp_path / str(layers) / "config.json").read_text())
        assert config["layer_types"] == [FULL, SLIDING][:layers]
        cut = transformers.AutoModel.from_pretrained(tmp_path / str(layers))
        with torch.no_grad():
            out = cut(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
        assert relative_difference(out.numpy()[mask > 0], states[layers][mask > 0]) < 1e-5
        assert np.abs(states[layers] - states[-1])[mask > 0].max() > 0.1


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"num_hidden_layers": 4, "layer_types": None},
            "layers.3.attn_norm.weight and 5 more missing from the weights",
        ),
        ({"intermediate_size": 41}, r"mlp.Wi.weight has shape \[80, 24\], config.json asks for \[82, 24\]"),
        ({"vocab_size": 63}, "vocab_size=63, but .*tok_embeddings.weight has 64 rows"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(
    changed: dict[str, Any], message: str, tiny: Any, tmp_path: Path
) -> None:
    tiny("ModernBertForMaskedLM").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=message):
        huggingface.read(tmp_path)
