"""A SentenceTransformer as the base: what it brings is trained, exported, or refused; the head that a base may lack."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ppa_jax import config as configs
from ppa_jax.data import sample
from ppa_jax.encoder import Encoder
from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface
from ppa_jax.interop.sentence_transformers import Settings
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.jobs.align.setup import Losses
from ppa_jax.main import main
from ppa_jax.training.checkpoint import load_latest_params
from ppa_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


@pytest.fixture(scope="module")
def sentence_transformer(shelf, tmp_path_factory):
    """The tiny model with mean pooling and Normalize, a prompt and a length, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    transformer = parts.Transformer(str(shelf / "model"), max_seq_length=30)
    modules = [transformer, parts.Pooling(32, "mean"), parts.Normalize()]
    path = tmp_path_factory.mktemp("base")
    SentenceTransformer(modules=modules, prompts={"query": "query: "}, device="cpu").save(str(path))
    return path


def test_a_sentence_transformer_keeps_its_own_vectors(command, shelf, sentence_transformer, tmp_path):
    from sentence_transformers import SentenceTransformer

    fields = {"train.steps": 2, "mesh.data": 1, "tlm.weight": 0}
    assert main(command(tmp_path / "own", fields | {"init": sentence_transformer})) == 0
    assert main(command(tmp_path / "plain", fields | {"contrastive.pooling": "mean"})) == 0
    # Its pooling is what is trained.
    own, plain = ([r["contrastive"] for r in read_metrics(tmp_path / name)] for name in ("own", "plain"))
    np.testing.assert_allclose(own, plain, rtol=1e-5)
    # And it is exported, with Normalize, the prompt and the length.
    export = SentenceTransformer(str(tmp_path / "own/export"), device="cpu")
    assert [type(module).__name__ for module in export] == ["Transformer", "Pooling", "Normalize"]
    assert (export.prompts["query"], export.max_seq_length) == ("query: ", 30)
    _, params = load_latest_params(tmp_path / "own/checkpoints")
    run = Encoder.from_pretrained(shelf / "model")
    trained = Encoder(run.config, params["encoder"], run.tokenizer, layer=1, pooling="mean", max_length=30)
    sentences = sample.sentences("de", 0, 12)
    expected = trained.encode(sentences)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(export.encode(sentences), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(Encoder.from_pretrained(tmp_path / "own").encode(sentences), expected, rtol=0, atol=1e-5)


def test_a_dense_module_is_trained_and_exported(command, shelf, tmp_path, error_line):
    """LaBSE's form: the projection reads what Dense makes of the pooled states."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    torch.manual_seed(0)
    modules = [
        parts.Transformer(str(shelf / "model"), max_seq_length=30),
        parts.Pooling(32, "cls"),
        parts.Dense(32, 20),
    ]
    SentenceTransformer(modules=[*modules, parts.Normalize()], device="cpu").save(str(tmp_path / "base"))
    fields = {"init": tmp_path / "base", "train.steps": 2, "mesh.data": 2, "tlm.weight": 0}
    assert main(command(tmp_path / "run", fields)) == 0
    export, base = (SentenceTransformer(str(tmp_path / x), device="cpu") for x in ("run/export", "base"))
    assert [type(module).__name__ for module in export] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert not torch.equal(export[2].linear.weight, base[2].linear.weight)
    _, params = load_latest_params(tmp_path / "run/checkpoints")
    assert params["projection"]["hidden"]["kernel"].shape[0] == 20
    sentences = sample.sentences("de", 0, 12)
    ours = Encoder.from_pretrained(tmp_path / "run").encode(sentences)
    np.testing.assert_allclose(ours, export.encode(sentences), rtol=0, atol=1e-5)
    # Its weights are part of what the run is.
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    (dense,) = (tmp_path / "other").glob("*_Dense")
    save_file({k: x + 1 for k, x in load_file(dense / "model.safetensors").items()}, dense / "model.safetensors")
    assert main(command(tmp_path / "run", fields | {"init": tmp_path / "other"})) == 2
    assert "content.dense" in error_line()
    # Without contrast nothing trains it, and it stays.
    fields |= {"tlm.weight": 1, "contrastive.weight": 0}
    assert main(command(tmp_path / "tlm", fields)) == 0
    untrained = SentenceTransformer(str(tmp_path / "tlm/export"), device="cpu")
    assert torch.equal(untrained[2].linear.weight, base[2].linear.weight)


def test_what_the_user_sets_goes_before_what_the_base_has(sentence_transformer, shelf):
    config = configs.load(str(ROOT / "configs/ppa.py"))
    config.data.max_length = 24
    sizes = Encoder.from_pretrained(shelf / "model").config

    def vectors(base, **fields):
        changed = copy.deepcopy(config)
        changed.contrastive.update(fields)
        found = align_setup.sentence_vectors(changed, Losses(contrastive=changed.contrastive.weight), base, sizes)
        return found and (found.layer, found.pooling, found.max_length, found.normalize)

    assert vectors(sentence_transformer) == (1, "mean", 30, True)
    assert vectors(sentence_transformer, pooling="cls") == (1, "cls", 30, True)
    assert vectors(sentence_transformer, weight=0.0) == (1, "mean", 30, True)
    assert vectors(shelf / "model") == (1, "cls", 24, False)
    assert vectors(shelf / "model", layer=-1, pooling="mean") == (1, "mean", 24, False)
    assert vectors(shelf / "model", weight=0.0) is None


def test_what_the_export_cannot_keep_is_refused(sentence_transformer, shelf, tmp_path, caplog):
    config = configs.load(str(ROOT / "configs/ppa.py"))
    sizes = Encoder.from_pretrained(shelf / "model").config
    with pytest.raises(
        UserError, match=r"data\.max_length=128: .* truncates sentences at 30 pieces .* give 30 or less"
    ):
        align_setup.sentence_vectors(config, Losses(contrastive=1.0), sentence_transformer, sizes)
    modules = [{"path": "", "type": "Transformer"}, {"path": "2_CNN", "type": "CNN"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"module CNN is not supported.*; to train .* config\.contrastive\.pooling"):
        align_setup.sentence_vectors(config, Losses(contrastive=1.0), tmp_path, sizes)
    config.contrastive.update(layer=1, pooling="mean")  # then by the encoder alone, and the log says so
    assert align_setup.sentence_vectors(config, Losses(contrastive=1.0), tmp_path, sizes) == Settings(1, "mean", 128)
    assert "module CNN is not supported" in caplog.text and "the encoder alone" in caplog.text


@pytest.mark.parametrize(
    ("weights", "advice"),
    [
        ({}, "config.tlm.weight=0 is faster"),
        ({"contrastive": 0.0}, "set config.contrastive.weight=1"),
        ({"tlm": 0.0}, None),
    ],
)
def test_a_random_masked_lm_head_is_warned_of(sentence_transformer, shelf, caplog, weights, advice):
    config = configs.load(str(ROOT / "configs/ppa.py"))
    config.init = "the-base"
    losses = Losses(**{"tlm": 1.0, "contrastive": 1.0} | weights)
    align_setup.warn_of_random_head(config, losses, huggingface.read(shelf / "model"))
    assert not caplog.records  # it has one
    align_setup.warn_of_random_head(config, losses, huggingface.read(sentence_transformer))
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == (advice is not None)
    assert all("the-base has no masked-LM head" in line and advice in line for line in lines)


# ---- values that are odd but allowed ----


ODD = [
    {
        "train.batch_size": 1, "data.max_length": 3, "contrastive.queue_size": 1, "contrastive.momentum": 1,
        "contrastive.projection_dim": 1, "train.warmup": 5, "train.clip": 0, "train.dropout": 0, "seed": 2**32 - 1,
    },
    {
        "contrastive.layer": 1, "contrastive.pooling": "mean", "contrastive.queue_size": 3, "tlm.joint": "false",
        "data.row_length": 25, "train.accumulate": 4, "checkpoint.every": 0,
    },
    {"tlm.weight": 0, "data.shuffle_sides": "false", "contrastive.key_dropout": "false"},
    {
        "data.pairs": "en-de=sample:0-1,en-ru=sample:0-300,zh-en=sample:7-9", "data.temperature": 100,
        "train.batch_size": 64, "dtype": "bfloat16", "tlm.mask_rate": 0.99, "data.max_pair_pieces": 60,
        "contrastive.weight": 0,
    },
]  # fmt: skip


@pytest.mark.parametrize("fields", ODD, ids=lambda fields: next(iter(fields)))
def test_odd_values_work(command, tmp_path, fields):
    assert main(command(tmp_path, {"mesh.data": 1, "train.steps": 2} | fields)) == 0
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [0, 1]
    for record in records:  # a loss that is not computed is null
        losses = {name: record[name] for name in ("tlm", "contrastive") if fields.get(f"{name}.weight", 1)}
        assert {name for name in ("tlm", "contrastive") if record[name] is not None} == losses.keys()
        assert record["loss"] == pytest.approx(sum(losses.values()), rel=1e-5)
    assert json.loads((tmp_path / "scores.json").read_text()) == []
    assert (tmp_path / "export/model.safetensors").exists()
