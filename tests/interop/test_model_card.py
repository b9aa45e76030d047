"""The card parses as on the Hub, says what was done, and reveals no directory of the machine."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ppa_jax import __version__
from ppa_jax.interop import model_card


def score(language: str, direction: str, value: float) -> dict[str, Any]:
    """A record of scores.json."""
    place = {"layer": 8, "pooling": "mean", "metric": "accuracy"}
    return {"task": "tatoeba", "language": language, "direction": direction, **place, "value": value, "low": 60.0}


def write(directory: Path, **changes: Any) -> str:
    fields = {
        "training_time": "0:12:30",
        "title": "Alignment of some-bert",
        "losses": "translation language model x 1",
        "sentence_vectors": True,
        "base_model": "some-org/some-bert",
        "languages": ["no", "en", "de"],
        "sources": ["en-de=/home/me/data/train.de.txt|/home/me/data/train.en.txt", "en-no=hf:org/corpus/en-no"],
        "settings": {
            "init": "some-org/some-bert",
            "data": {"pairs": "en-de=/home/me/a.tsv,en-no=hf:org/corpus", "max_length": 64, "cache": ""},
            "train": {"learning_rate": 3e-5, "epochs": None},
            "eval": {"tatoeba": "../secret/tatoeba"},
            "dtype": "float32",
        },
        "scores": [score("de", "both", 67.0), score("de", "de-en", 70.125), score("a|b", "both", 1.5) | {"low": None}],
    }
    model_card.write_card(directory, **(fields | changes))
    return (directory / "README.md").read_text()


def test_front_matter_is_what_the_hub_expects(tmp_path: Path) -> None:
    text = write(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.language == ["de", "en", "no"]  # "no" is a language here, not a boolean of YAML
    assert (data.base_model, data.pipeline_tag) == ("some-org/some-bert", "sentence-similarity")
    assert data.library_name == "sentence-transformers"
    assert f"- Made with ppa_jax {__version__}" in text and "in 0:12:30 of training on " in text
    assert data.datasets == ["org/corpus"] and data.license is None
    found = [(x.dataset_type, x.dataset_config, x.metric_type, x.metric_value) for x in data.eval_results]
    assert found == [("tatoeba", "de", "accuracy", 67.0), ("tatoeba", "a|b", "accuracy", 1.5)]


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# mini", "apache-2.0"),
        ("# mini", None),
        ("---\nlicense: [\n---\n", None),  # not YAML: no reason for an export to fail
        ("---\n- license\n---\n", None),
    ],
)
def test_the_license_is_that_of_the_base_model(tmp_path: Path, card: str, license: str | None) -> None:
    base = tmp_path / "mini"
    base.mkdir()
    (base / "README.md").write_text(card)
    text = write(tmp_path, base_model=str(base))
    assert ModelCard.load(tmp_path / "README.md").data.license == license
    assert ("- License: apache-2.0, as of the base model" in text) == (license is not None)


def test_tables(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert "| task | language | direction | layer | pooling | metric | value | low |" in text
    assert "| tatoeba | de | both | 8 | mean | accuracy | 67.00 | 60.00 |" in text
    assert "| tatoeba | a\\|b | both | 8 | mean | accuracy | 1.50 |  |" in text
    assert "| `train.learning_rate` | 3e-05 |" in text and "| `data.max_length` | 64 |" in text
    assert "data.cache" not in text and "train.epochs" not in text


def test_names_of_files_without_their_folders(tmp_path: Path) -> None:
    base = tmp_path / "private" / "mini-bert"
    base.mkdir(parents=True)
    text = write(tmp_path, base_model=str(base))
    assert "- en-de: train.de.txt, train.en.txt\n- en-no: hf:org/corpus/en-no\n" in text
    assert "| `data.pairs` | en-de: a.tsv; en-no: hf:org/corpus |" in text and "| `eval.tatoeba` | tatoeba |" in text
    assert "base_model: mini-bert\n" in text
    assert "private" not in text and "/home/me" not in text and "secret" not in text


def test_a_model_trained_from_scratch_without_sentence_vectors_claims_neither(tmp_path: Path) -> None:
    text = write(tmp_path, base_model="", sentence_vectors=False, title="Pretraining of a new model: mlm")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "fill-mask", None)
    assert "# Pretraining of a new model: mlm\n" in text and "trained from scratch" in text
    assert "sentence" not in text.partition("## Data")[0].replace("sentence_", "")


def test_no_scores(tmp_path: Path) -> None:
    assert "## Scores\n\nNot measured in this run.\n" in write(tmp_path, scores=[])
