"""SentenceTransformer(export) gives the vectors of our encoder, at the layer and with the pooling of the training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppa_jax import Encoder
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.data.vocabulary import leave_out_token_types
from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface, sentence_transformers
from ppa_jax.interop.sentence_transformers import Settings

TEXTS = ["a short one", "b", "this sentence runs on for quite a while longer than ten pieces"]
MAX_LENGTH = 12
PAD = 1
PLAIN = {
    "model_type": "SentenceTransformer",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def our_vectors(directory: Path, settings: Settings, flax_outputs: Any) -> np.ndarray:
    tokenizer, pretrained = load_tokenizer(directory), huggingface.read(directory)
    rows = [[tokenizer.cls_id, *row[: settings.max_length - 2], tokenizer.sep_id] for row in tokenizer.encode(TEXTS)]
    L = max(map(len, rows))
    ids = np.array([row + [PAD] * (L - len(row)) for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (L - len(row)) for row in rows], np.int32)
    hidden = flax_outputs(pretrained, ids, mask)[0][settings.layer]
    if settings.pooling == "cls":
        return hidden[:, 0]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def make_export(name: str, directory: Path, tiny: Any, add_tokenizer: Any) -> huggingface.Pretrained:
    (directory / "source").mkdir()
    add_tokenizer(directory / "source", pad=PAD)
    if name.startswith("ModernBert"):
        leave_out_token_types(directory / "source")
    tiny(name, pad_token_id=PAD).save_pretrained(directory / "source")
    pretrained = huggingface.read(directory / "source")
    huggingface.write(directory / "export", pretrained, files_from=directory / "source")
    return pretrained


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layer", [3, 2])
@pytest.mark.parametrize(
    "name", ["BertForPreTraining", "XLMRobertaForMaskedLM", "DistilBertForMaskedLM", "ModernBertForMaskedLM"]
)
def test_gives_our_vectors(
    name: str, layer: int, pooling: str, tiny: Any, add_tokenizer: Any, flax_outputs: Any, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    pretrained = make_export(name, tmp_path, tiny, add_tokenizer)
    export, settings = tmp_path / "export", Settings(layer, pooling, MAX_LENGTH)
    sentence_transformers.write_modules(export, pretrained, settings)
    assert sentence_transformers.read_settings(export) == dataclasses.replace(settings, options=PLAIN)

    model = SentenceTransformer(str(export), device="cpu")
    has_pooler = name == "BertForPreTraining" and layer == 3  # else none, rather than one made up
    assert (getattr(model[0].model, "pooler", None) is not None) == has_pooler
    theirs, ours = model.encode(TEXTS), our_vectors(export, settings, flax_outputs)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
    # The whole model stays at the top, whatever the layer.
    assert huggingface.read(export).config.num_layers == 3

    # What sentence-transformers itself saves has none of our settings, only its own layout.
    model.save(str(tmp_path / "saved"))
    assert sentence_transformers.OUR_KEY not in (tmp_path / "saved/config_sentence_transformers.json").read_text()
    read = sentence_transformers.read_settings(tmp_path / "saved")
    assert read and dataclasses.replace(read, options={}) == settings
    ours = our_vectors(tmp_path / "saved", settings, flax_outputs)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForMaskedLM"])
@pytest.mark.parametrize("model", ["BertForPreTraining", "ModernBertForMaskedLM"])
def test_top_directory_loads_in_transformers(
    model: str, name: str, tiny: Any, add_tokenizer: Any, tmp_path: Path
) -> None:
    import transformers

    pretrained = make_export(model, tmp_path, tiny, add_tokenizer)
    sentence_transformers.write_modules(tmp_path / "export", pretrained, Settings(1, "mean", 8))
    cls = getattr(transformers, name)
    _, info = cls.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer("ab")["input_ids"] == [2, 5, 32, 3]  # [CLS] a ##b [SEP]


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_what_sentence_transformers_saved_is_written_again(
    activation: str, tiny: Any, add_tokenizer: Any, tmp_path: Path
) -> None:
    """Dense and Normalize, prompts, the similarity, what is pooled of a prompt, and the length."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    pretrained = make_export("BertModel", tmp_path, tiny, add_tokenizer)
    modules = [
        parts.Transformer(str(tmp_path / "source"), max_seq_length=9),
        parts.Pooling(24, "mean", include_prompt=False),
        parts.Dense(24, 10, activation_function=getattr(torch.nn, activation)()),
        parts.Normalize(),
    ]
    base = SentenceTransformer(
        modules=modules, prompts={"q": "ab "}, default_prompt_name=None, similarity_fn_name="dot", device="cpu"
    )
    base.save(str(tmp_path / "base"))
    settings = sentence_transformers.read_settings(tmp_path / "base")
    assert settings is not None and settings.dense == activation.lower()
    pretrained.params["dense"] = sentence_transformers.read_dense(tmp_path / "base")
    sentence_transformers.write_modules(tmp_path / "export", pretrained, settings)
    assert sentence_transformers.read_settings(tmp_path / "export") == settings
    export = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    assert [type(module).__name__ for module in export] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert (export.prompts["q"], export.similarity_fn_name, export.max_seq_length) == ("ab ", "dot", 9)
    for prompt in (None, "q"):
        np.testing.assert_array_equal(
            export.encode(TEXTS, prompt_name=prompt), base.encode(TEXTS, prompt_name=prompt), strict=True
        )
    ours = Encoder.from_pretrained(tmp_path / "base")
    np.testing.assert_allclose(ours.encode(TEXTS), base.encode(TEXTS), atol=1e-5)
    # What `evaluate` measures: at the model's own layer and pooling, after Dense.
    found = ours.embedder.embed(ours.params, TEXTS, [(3, "mean"), (3, "cls")])
    lengths = np.linalg.norm(found[3, "mean"], axis=1, keepdims=True)
    np.testing.assert_allclose(found[3, "mean"] / lengths, base.encode(TEXTS), atol=1e-5)
    assert found[3, "cls"].shape[1] == 24
    assert ours.encode(TEXTS, layer=1).shape == (3, 24), "of another layer it is the encoder's vector"


def test_directory_without_sentence_transformers_files(tmp_path: Path) -> None:
    assert sentence_transformers.read_settings(tmp_path) is None


@pytest.mark.parametrize(
    ("module", "pooling", "message"),
    [
        (
            "CNN",
            {"pooling_mode_cls_token": True},
            "module CNN is not supported; only Transformer, Pooling, Dense, Norm",
        ),
        (
            "Dense",
            {"pooling_mode_cls_token": True},
            "2_Dense/config.json: activation_function .*ReLU' is not supported",
        ),
        ("Normalize", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens is not supported"),
        ("Normalize", {"pooling_mode": ["cls", "mean"]}, "pooling cls and mean is not supported"),
    ],
)
def test_more_than_pooling_is_refused(module: str, pooling: dict, message: str, tiny: Any, tmp_path: Path) -> None:
    tiny("BertModel").save_pretrained(tmp_path)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", module: f"2_{module}"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.ReLU"}')
    with pytest.raises(UserError, match=message):
        sentence_transformers.read_settings(tmp_path)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("file", "values", "refused"),
    [
        ("0_Transformer/sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q", "prompts": {"q": "query: "}},
            "default_prompt_name 'q'",
        ),
        ("config_sentence_transformers.json", {"default_prompt_name": "q", "prompts": {"q": "", "p": "passage: "}}, ""),
        ("config_sentence_transformers.json", {"default_prompt_name": None, "prompts": {"q": "query: "}}, ""),
    ],
)
def test_a_change_of_the_text_is_refused(
    file: str, values: dict, refused: str, own: bool, tiny: Any, add_tokenizer: Any, tmp_path: Path
) -> None:
    pretrained, export = make_export("BertForMaskedLM", tmp_path, tiny, add_tokenizer), tmp_path / "export"
    sentence_transformers.write_modules(export, pretrained, Settings(2, "cls", 8))
    if not own:  # as sentence-transformers saves it
        (export / "config_sentence_transformers.json").write_text("{}")
    written = json.loads((export / file).read_text())
    (export / file).write_text(json.dumps(written | values))
    if refused:
        with pytest.raises(UserError, match=f"{file}: {refused}"):
            sentence_transformers.read_settings(export)
    else:
        read = sentence_transformers.read_settings(export)
        assert read is not None and (read.layer, read.pooling, read.max_length) == (2, "cls", 8)


@pytest.mark.parametrize(("layer", "pooling"), [(0, "cls"), (4, "cls"), (3, "max")])
def test_layer_and_pooling_out_of_range(
    layer: int, pooling: str, tiny: Any, add_tokenizer: Any, tmp_path: Path
) -> None:
    pretrained = make_export("BertForMaskedLM", tmp_path, tiny, add_tokenizer)
    with pytest.raises(UserError, match=r"contrastive\.(layer|pooling)"):
        sentence_transformers.write_modules(tmp_path, pretrained, Settings(layer, pooling, 8))
