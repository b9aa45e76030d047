"""The alignment of a ModernBERT, from a model that is made here to the vectors of its export."""

from typing import Any

import numpy as np
import pytest

from ppa_jax import Encoder
from ppa_jax import config as configs
from ppa_jax.data import sample
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.interop import huggingface
from ppa_jax.interop.verify import compare
from ppa_jax.jobs import new_model
from ppa_jax.main import main
from ppa_jax.training.checkpoint import load_latest_params
from ppa_jax.training.metrics import read_metrics

FIELDS = {
    "train.steps": 3, "train.dropout": 0.1, "train.freeze": "1", "contrastive.layer": 2, "contrastive.pooling": "mean",
    "rtl.weight": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compilation(compilation):
    return compilation


@pytest.fixture(scope="module")
def model(shelf, tmp_path_factory):
    directory = tmp_path_factory.mktemp("modernbert")
    config = configs.load("ppa")
    config.data.update(pairs="en-de=sample:0-300", cache=str(shelf / "corpora"))
    config.model.update(family="modernbert", vocab_size=400, hidden_size=32, num_layers=4, num_heads=2)
    new_model.write_random(config, directory)
    return directory


@pytest.fixture(scope="module")
def run(model, command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert main(command(workdir, FIELDS | {"init": model, "mesh.data": 1})) == 0
    return workdir


def test_two_devices_scan_remat_and_accumulation_train_the_same(model, run, command, tmp_path):
    """With dropout; every quantity that is logged."""
    other = {"mesh.data": 2, "mesh.rules": "fsdp", "train.accumulate": 2, "train.scan": True, "train.remat": True}
    assert main(command(tmp_path, FIELDS | other | {"init": model})) == 0
    for name in ("tlm", "contrastive", "rtl", "gradient_norm"):
        found, wanted = ([record[name] for record in read_metrics(workdir)] for workdir in (tmp_path, run))
        assert len(wanted) == 3
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)  # the first contrast is 0


def test_the_exported_vectors_are_those_that_were_trained(model, run):
    """Layer 2 of 4, through the final norm: in SentenceTransformer, in AutoModel, and in our Encoder."""
    from sentence_transformers import SentenceTransformer

    _, params = load_latest_params(run / "checkpoints")
    before = huggingface.read(model)
    moved: Any = params["encoder"]["final_norm"]["scale"] - before.params["encoder"]["final_norm"]["scale"]
    assert np.abs(moved).max() > 0
    tokenizer = load_tokenizer(model)
    trained = Encoder(before.config, params["encoder"], tokenizer, layer=2, pooling="mean", max_length=24)
    texts = sample.sentences("de", 0, 12)
    expected = trained.encode(texts)
    np.testing.assert_allclose(
        SentenceTransformer(str(run / "export"), device="cpu").encode(texts), expected, atol=1e-5
    )
    np.testing.assert_allclose(Encoder.from_pretrained(run).encode(texts), expected, atol=1e-5)


def test_transformers_computes_the_same_with_the_export(run):
    """Its own tokenizer, all layers and the logits."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    assert all(difference < 1e-5 for _, difference in compare(run / "export"))
    inputs = AutoTokenizer.from_pretrained(run / "export")("Guten Morgen", "Hallo", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}, "ModernBERT has no token types"
    assert AutoModelForMaskedLM.from_pretrained(run / "export")(**inputs).logits.isfinite().all()
