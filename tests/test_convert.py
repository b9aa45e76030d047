"""The command line: there and back, side by side with PyTorch, and a plain word for every mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from ppa_jax import convert
from ppa_jax.interop import huggingface, sentence_transformers, verify
from ppa_jax.storage import staged
from ppa_jax.training import checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny BertForPreTraining with a tokenizer of the letters in the sentences that `verify` uses."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    letters = sorted({letter for text in verify.SENTENCES for letter in text if not letter.isspace()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForPreTraining(BertConfig(vocab_size=len(vocab), **sizes))
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}')
    return tmp_path / "source"


def run(command: str, source: Path, target: Path | None = None) -> int:
    return convert.main([command, f"--source={source}", *([f"--target={target}"] if target else [])])


def test_there_and_back_is_the_same_file(source: Path, tmp_path: Path) -> None:
    sentence_transformers.write_settings(source, sentence_transformers.Settings(1, "mean", 20, normalize=True))
    assert run("to-flax", source, tmp_path / "flax") == 0
    assert not list((tmp_path / "flax").glob("model*"))
    assert run("to-hf", tmp_path / "flax", tmp_path / "back") == 0
    for name in ("model.safetensors", "vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name
    assert (tmp_path / "back" / "0_Transformer" / "model.safetensors").is_file()  # the settings came along
    assert sentence_transformers.normalizes(tmp_path / "back")


def save_run(run: Path | epath.Path, source: Path) -> huggingface.Pretrained:
    """A run's workdir with two checkpoints of the model, whose bias is the step."""
    pretrained = huggingface.read(source)
    with staged(run / "base") as base:
        huggingface.save_base(base, pretrained, files_from=source)
    checkpoints = checkpoint.Checkpoints(run / "checkpoints", every=1, keep=2)
    params = {name: pretrained.params[name] for name in ("encoder", "mlm_head")}
    for step in (1, 2):
        params["mlm_head"]["bias"] = np.full(pretrained.config.vocab_size, step, np.float32)
        checkpoints.save(step, {"params": params}, force=True)
    checkpoints.wait()
    checkpoints.close()
    return pretrained


def test_to_hf_takes_the_newest_checkpoint_of_a_run(source: Path, tmp_path: Path) -> None:
    pretrained = save_run(tmp_path / "run", source)
    assert run("to-hf", tmp_path / "run", tmp_path / "hf") == 0
    exported = huggingface.read(tmp_path / "hf")
    assert (exported.params["mlm_head"]["bias"] == 2).all()
    np.testing.assert_array_equal(exported.params["pooler"]["kernel"], pretrained.params["pooler"]["kernel"])
    assert exported.unused == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]


def test_to_hf_reads_a_bucket(source: Path, tmp_path: Path, storage: Any, home: Path) -> None:
    save_run(epath.Path("gs://bucket/run"), source)
    assert run("to-flax", source, tmp_path / "flax") == 0
    for path in filter(Path.is_file, (tmp_path / "flax").rglob("*")):
        storage.put(f"flax/{path.relative_to(tmp_path / 'flax').as_posix()}", path.read_bytes())
    for name, bias in (("run", 2), ("flax", 0)):
        assert convert.main(["to-hf", f"--source=gs://bucket/{name}", f"--target={tmp_path / name}.hf"]) == 0
        assert (huggingface.read(tmp_path / f"{name}.hf").params["mlm_head"]["bias"] == bias).all()
    assert convert.main(["to-hf", "--source=gs://bucket/none", f"--target={tmp_path / 'none'}"]) == 2


def test_verify_passes(source: Path, capsys: Any) -> None:
    assert run("verify", source) == 0
    out = capsys.readouterr().out
    assert out.count("layer ") == 2 and "masked-LM logits" in out and "passed" in out


@pytest.mark.parametrize(
    ("path", "first_wrong"),
    [
        (("encoder", "layer_1", "attention", "output", "bias"), "layer 2"),
        (("mlm_head", "transform", "bias"), verify.LOGITS),
    ],
)
def test_verify_finds_a_wrong_weight(
    source: Path, path: tuple, first_wrong: str, capsys: Any, monkeypatch: Any
) -> None:
    read = huggingface.read

    def read_with_a_mistake(directory: Path) -> huggingface.Pretrained:
        pretrained = read(directory)
        leaf = pretrained.params
        for key in path:
            leaf = leaf[key]
        leaf[3] += 0.02
        return pretrained

    monkeypatch.setattr(huggingface, "read", read_with_a_mistake)
    assert run("verify", source) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "TOO LARGE" in line]
    assert wrong[0].startswith(first_wrong) and "FAILED" not in wrong[0]


def test_relative_difference_by_hand() -> None:
    # Rows of length 5 and 10, off by 1 and by 1: a fifth and a tenth.
    expected, got = np.array([[3.0, 4.0], [6.0, 8.0]]), np.array([[4.0, 4.0], [6.0, 9.0]])
    assert verify.relative_difference(expected, got) == pytest.approx(0.2)
    assert verify.relative_difference(expected, np.full((2, 2), np.nan)) == float("inf")


def test_mistakes_are_one_line_and_status_2(source: Path, tmp_path: Path, capsys: Any) -> None:
    def said(*call: Any) -> str:
        assert run(*call) == 2
        *facts, err = capsys.readouterr().err.strip().split("\n")  # what was read of the checkpoint may come before
        assert err.startswith("error: ") and not any("rror" in fact for fact in facts)
        return err

    assert "no such directory" in said("to-flax", tmp_path / "absent", tmp_path / "t")
    assert "no such directory" in said("to-hf", tmp_path / "absent", tmp_path / "t")
    assert "neither the workdir of a run" in said("to-hf", source, tmp_path / "t")
    assert "not an empty directory" in said("to-flax", source, source)
    (source / "vocab.txt").unlink()
    assert "tokenizer" in said("verify", source)
    assert not (tmp_path / "t").exists()


@pytest.mark.shared_data
def test_verify_a_pretrained_model(shared: Path) -> None:
    rows = dict(verify.compare(shared / "models" / "minimbert"))
    assert len(rows) == 8
    assert max(rows.values()) < 2e-5  # float32, six layers; measured 3e-6
