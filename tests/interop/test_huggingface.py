"""Each published form of a checkpoint is read, computes what PyTorch computes, and comes back to the bit."""

import errno
import json
import logging
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface, weights
from ppa_jax.interop.names import tensor_names

StateDict = dict[str, torch.Tensor]
DECODERS = ("cls.predictions.decoder", "lm_head.decoder", "vocab_projector")


def whole(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)


def sharded(model: Any, directory: Path) -> None:
    model.save_pretrained(directory, max_shard_size="10KB")
    assert (directory / "model.safetensors.index.json").is_file()


def renamed(change: Callable[[StateDict], StateDict]) -> Callable[[Any, Path], None]:
    """A form that holds the whole state dict, tied decoder included, with other names."""

    def save(model: Any, directory: Path) -> None:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(directory)
        save_file(change({k: v.clone() for k, v in model.state_dict().items()}), directory / "model.safetensors")

    return save


def pytorch_bin(model: Any, directory: Path) -> None:
    model.config.save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def old_pytorch_bin(model: Any, directory: Path) -> None:
    model.config.save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def sharded_bin(model: Any, directory: Path) -> None:
    model.config.save_pretrained(directory)
    state, index = model.state_dict(), {}
    for i, names in enumerate(np.array_split(sorted(state), 3)):
        index |= {str(name): f"pytorch_model-{i}.bin" for name in names}
        torch.save({str(name): state[name] for name in names}, directory / f"pytorch_model-{i}.bin")
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def gamma_beta(state: StateDict) -> StateDict:
    def rename(name: str) -> str:
        return re.sub(
            r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{'gamma' if m[1] == 'weight' else 'beta'}", name
        )

    return {rename(name): tensor for name, tensor in state.items()}


def prefix_of(state: StateDict) -> str:
    """That of the encoder's tensors; empty where the encoder was saved alone."""
    return next(name for name in state if "word_embeddings" in name).split("embeddings.")[0]


def without_prefix(state: StateDict) -> StateDict:
    return {name.removeprefix(prefix_of(state)): tensor for name, tensor in state.items()}


def with_position_ids(state: StateDict) -> StateDict:
    return state | {f"{prefix_of(state)}embeddings.position_ids": torch.arange(33)[None]}


def decoder_bias_alone(state: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state.items() if name not in ("cls.predictions.bias", "lm_head.bias")}


def decoder_weight_alone(state: StateDict) -> StateDict:
    """As saved by a writer that keeps one name of each tied tensor, and not that of the embeddings."""
    has_decoder = any(f"{name}.weight" in state for name in DECODERS)
    return {k: v for k, v in state.items() if not (has_decoder and k.endswith("word_embeddings.weight"))}


def no_decoder(state: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not is_derived(name)}


def is_derived(name: str) -> bool:
    """Whether the tensor repeats another, which transformers ties to it."""
    return name.startswith(DECODERS) and name != "vocab_projector.bias"


FORMS = {
    "safetensors": whole,
    "sharded": sharded,
    "bin": pytorch_bin,
    "old bin": old_pytorch_bin,
    "sharded bin": sharded_bin,
    "gamma/beta": renamed(gamma_beta),
    "no prefix": renamed(without_prefix),
    "position_ids": renamed(with_position_ids),
    "decoder tied": renamed(dict),
    "decoder bias alone": renamed(decoder_bias_alone),
    "decoder weight alone": renamed(decoder_weight_alone),
    "decoder absent": renamed(no_decoder),
}
CLASSES = ["BertModel", "BertForMaskedLM", "BertForPreTraining", "XLMRobertaModel", "XLMRobertaForMaskedLM"]
CLASSES += ["DistilBertModel", "DistilBertForMaskedLM"]
MASKED_LMS = ["BertForMaskedLM", "XLMRobertaForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM"]


def at(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CLASSES)
def test_round_trip_gives_every_tensor_back(name: str, form: str, tiny: Any, tmp_path: Path) -> None:
    model = tiny(name)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    FORMS[form](model, source)
    huggingface.write(target, huggingface.read(source))

    written = load_file(target / "model.safetensors")
    for key, tensor in model.state_dict().items():
        if name.endswith("Model"):
            key = f"{model.base_model_prefix}.{key}"
        if not is_derived(key):  # transformers makes it again
            assert torch.equal(written[key], tensor), key
    loaded, info = type(model).from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", MASKED_LMS)
def test_writes_the_file_that_transformers_writes(name: str, tiny: Any, tmp_path: Path) -> None:
    tiny(name).save_pretrained(tmp_path / "theirs")
    huggingface.write(tmp_path / "ours", huggingface.read(tmp_path / "theirs"))
    for file in ("model.safetensors", "config.json"):
        theirs, ours = (tmp_path / who / file for who in ("theirs", "ours"))
        if file.endswith(".json"):
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("name", MASKED_LMS)
def test_hidden_states_and_logits_equal_pytorch(name: str, tiny: Any, batch: Any, flax_outputs: Any, tmp_path: Path):
    model, (ids, mask) = tiny(name, pad_token_id=1), batch
    model.save_pretrained(tmp_path)
    states, logits = flax_outputs(huggingface.read(tmp_path), ids, mask)
    with torch.no_grad():
        out = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask), output_hidden_states=True)
    for ours, theirs in zip([*states, logits], [*out.hidden_states, out.logits], strict=True):
        theirs = theirs.numpy()[mask > 0]
        np.testing.assert_allclose(ours[mask > 0], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_table_covers_the_model_and_nothing_twice(tiny: Any, tmp_path: Path) -> None:
    model = tiny("BertForPreTraining")
    table = tensor_names(huggingface.config_from_hf(model.config.to_dict()))
    others = {name for name in model.state_dict() if ".decoder." in name or "seq_relationship" in name}
    assert table.keys() == model.state_dict().keys() - others
    assert len(set(table.values())) == len(table)


def test_lacking_head_is_initialised_named_and_reproducible(tiny: Any, tmp_path: Path, caplog: Any) -> None:
    tiny("BertModel", initializer_range=0.5).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="absl"):
        first = huggingface.read(tmp_path, seed=3)
    assert first.initialised == ["mlm_head"] and "initialised: mlm_head" in caplog.text
    head = first.params["mlm_head"]
    assert not head["bias"].any() and (head["layer_norm"]["scale"] == 1).all()
    assert 0.4 < head["transform"]["kernel"].std() < 0.6  # initializer_range
    again, other = (huggingface.read(tmp_path, seed=seed).params["mlm_head"] for seed in (3, 4))
    assert np.array_equal(again["transform"]["kernel"], head["transform"]["kernel"])
    assert not np.array_equal(other["transform"]["kernel"], head["transform"]["kernel"])


def test_part_of_a_head_is_kept_and_the_rest_initialised(tiny: Any, tmp_path: Path) -> None:
    model = tiny("XLMRobertaForMaskedLM")
    renamed(lambda state: {k: v for k, v in state.items() if k != "lm_head.layer_norm.bias"})(model, tmp_path)
    pretrained = huggingface.read(tmp_path)
    assert pretrained.initialised == ["mlm_head/layer_norm/bias"]
    np.testing.assert_array_equal(
        pretrained.params["mlm_head"]["transform"]["kernel"], model.lm_head.dense.weight.T.detach()
    )


def test_unused_weights_are_named_and_carried(tiny: Any, tmp_path: Path, caplog: Any) -> None:
    renamed(lambda state: state | {"classifier.weight": torch.ones(3, 24)})(tiny("BertForPreTraining"), tmp_path)
    with caplog.at_level(logging.INFO, logger="absl"):
        pretrained = huggingface.read(tmp_path)
    assert set(pretrained.unused) == {"classifier.weight", "cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    assert "classifier.weight" in caplog.text and pretrained.untouched.keys() == set(pretrained.unused)
    assert "pooler" in pretrained.params and "decoder" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_half_precision_is_read_to_float32(dtype: Any, form: str, tiny: Any, tmp_path: Path, caplog: Any) -> None:
    model = tiny("BertForMaskedLM").to(dtype)
    FORMS[form](model, tmp_path)
    with caplog.at_level(logging.INFO, logger="absl"):
        pretrained = huggingface.read(tmp_path)
    assert str(dtype).removeprefix("torch.") in caplog.text
    embedding = pretrained.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, model.bert.embeddings.word_embeddings.weight.detach().float())
    huggingface.write(tmp_path / "target", pretrained)
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "target").dtype == torch.float32


def edit_config(**fields: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text()) | fields
        (directory / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return edit


def edit_weights(change: Callable[[StateDict], StateDict]) -> Callable[[Path], None]:
    return lambda directory: save_file(
        change(load_file(directory / "model.safetensors")), directory / "model.safetensors"
    )


def truncate(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", (directory / "model.safetensors").stat().st_size - 100)


def replace_weights(name: str, content: Any) -> Callable[[Path], None]:
    def replace(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        elif content is not None:
            torch.save(content, directory / name)

    return replace


class RunsCode:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("code-from-the-checkpoint-ran",))


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
BREAKAGES = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("{\n oops"), r"config.json:2: not JSON"),
    "another model": (
        edit_config(model_type="gpt2"),
        "model_type 'gpt2' is not supported; supported: bert, xlm-roberta",
    ),
    "approximate gelu": (edit_config(hidden_act="gelu_new"), "hidden_act='gelu_new'"),
    "relative positions": (edit_config(position_embedding_type="relative_key"), "position_embedding_type"),
    "decoder model": (edit_config(is_decoder=True), "is_decoder=True"),
    "size missing": (edit_config(num_hidden_layers=...), "num_hidden_layers is missing"),
    "size of another type": (edit_config(hidden_size="24"), "hidden_size is '24'"),
    "heads do not divide": (edit_config(num_attention_heads=5), "hidden_size=24 is not divisible"),
    "vocabulary": (edit_config(vocab_size=63), r"vocab_size=63, but .*word_embeddings.weight has 64 rows"),
    "too few layers": (
        edit_config(num_hidden_layers=4),
        "encoder.layer.3.attention.self.query.weight and 15 more missing",
    ),
    "too many layers": (edit_config(num_hidden_layers=2), "config.json says 2 layers, the weights have 3"),
    "tensor missing": (edit_weights(lambda s: {k: v for k, v in s.items() if k != QUERY}), f"tensor {QUERY} missing"),
    "tensor misshaped": (edit_weights(lambda s: s | {QUERY: torch.ones(24, 23)}), rf"{QUERY} has shape \[24, 23\]"),
    "whole numbers": (edit_weights(lambda s: s | {QUERY: torch.ones(24, 24).to(torch.int8)}), "is of type int8"),
    "untied decoder": (edit_weights(lambda s: s | {DECODER: s[WORDS] + 1}), f"{DECODER} differs from {WORDS}"),
    "two of one": (edit_weights(lambda s: s | {QUERY.removeprefix("bert."): s[QUERY].clone()}), "are the same tensor"),
    "truncated": (truncate, "model.safetensors: truncated or damaged"),
    "no weights": (replace_weights("", None), "no weights; expected model.safetensors or pytorch_model.bin"),
    "LFS pointer": (
        replace_weights("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "code in bin": (replace_weights("pytorch_model.bin", {"a": RunsCode()}), "not a plain weights file"),
    "bin of something else": (replace_weights("pytorch_model.bin", [1, 2]), "not a plain weights file"),
    "bin damaged": (replace_weights("pytorch_model.bin", b"PK\x03\x04 cut off"), "truncated or damaged PyTorch file"),
    "shard missing": (
        replace_weights("model.safetensors.index.json", b'{"weight_map": {"a": "model-1.safetensors"}}'),
        "model-1.safetensors: missing shard",
    ),
    "shard elsewhere": (
        replace_weights("model.safetensors.index.json", b'{"weight_map": {"a": "../model-1.safetensors"}}'),
        "not a plain file name",
    ),
}


@pytest.mark.parametrize("case", BREAKAGES)
def test_bad_checkpoint_is_one_clear_line(case: str, tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    tiny("BertForMaskedLM").save_pretrained(source)
    damage, message = BREAKAGES[case]
    damage(source)
    with pytest.raises(UserError, match=message) as caught:
        huggingface.read(source)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not (tmp_path / "code-from-the-checkpoint-ran").exists()


def test_source_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        huggingface.read(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        huggingface.read(tmp_path / "file")


def test_every_type_and_layout_of_array_is_written_as_it_is(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.int64)[::3],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float16),
        "bool": np.array([True, False]),
        "bfloat16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        "big-endian": np.array([1.0, 2.0], ">f4"),
    }
    weights.write_safetensors(tmp_path / "a.safetensors", arrays)
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        expected = torch.tensor(arrays[name].astype(np.float64)).to(tensor.dtype)
        assert torch.equal(tensor, expected) and tuple(tensor.shape) == arrays[name].shape, name
    read = weights.read_safetensors(tmp_path / "a.safetensors")
    assert {name: array.dtype.name for name, array in read.items()} == {n: a.dtype.name for n, a in arrays.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_that_cannot_be_written_leave_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights.write_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores the signal: the write fails
    try:
        with pytest.raises(UserError, match=r"a.safetensors: cannot be written: File too large"):
            weights.write_safetensors(path, {"a": np.ones(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_the_earlier_export(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    pretrained, before = huggingface.read(tmp_path), (tmp_path / "model.safetensors").read_bytes()
    pretrained.params["mlm_head"]["bias"] += 1

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"model.safetensors: no space left on the device \(0 MB"):
        huggingface.write(tmp_path, pretrained)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*unfinished"))


def test_base_and_trained_parameters_join(tiny: Any, tmp_path: Path, add_tokenizer: Any) -> None:
    source, base = tmp_path / "source", tmp_path / "base"
    model = tiny("BertForPreTraining")
    model.save_pretrained(source)
    add_tokenizer(source)
    pretrained = huggingface.read(source)
    huggingface.save_base(base, pretrained, files_from=source)
    assert not (base / "model.safetensors").exists()

    trained = {name: pretrained.params[name] for name in ("encoder", "mlm_head")}
    dense = {"kernel": np.full((24, 5), 2.0, np.float32), "bias": np.ones(5, np.float32)}
    trained["projection"] = {"hidden": dense, "output": dense}
    huggingface.write(tmp_path / "export", huggingface.load_base(base, trained), files_from=base)

    for name, tensor in transformers.BertForPreTraining.from_pretrained(tmp_path / "export").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert (tmp_path / "export" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    again = huggingface.read(tmp_path / "export")
    np.testing.assert_array_equal(at(again.params, ("projection", "output", "kernel")), dense["kernel"])
    assert again.initialised == [] and again.unused == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]


@pytest.mark.parametrize("save", [whole, sharded, pytorch_bin])
def test_the_digest_sees_every_tensor(tiny, tmp_path, save):
    model = tiny("BertForMaskedLM")
    save(model, tmp_path / "a")
    save(model, tmp_path / "b")
    digest = huggingface.digest(tmp_path / "a")
    assert huggingface.digest(tmp_path / "b") == digest
    for number, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            old = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] += 1
            save(model, tmp_path / f"c{number}")
            parameter.view(-1)[-1] = old
        assert huggingface.digest(tmp_path / f"c{number}") != digest
    save_file({"input.bias": torch.zeros(1)}, tmp_path / "a" / "projection.safetensors")
    assert huggingface.digest(tmp_path / "a") != digest
