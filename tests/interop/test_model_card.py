"""The card parses as the Hub parses it, says what was done, and tells nothing of the machine."""

from pathlib import Path

from ppa_jax.interop import model_card


def write(directory: Path, **changes) -> str:
    fields = {
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
        "scores": [
            {"language": "de", "before": 12.3456, "after": 67.0},
            {"language": "a|b", "before": None, "after": 1.5},
        ],
    }
    model_card.write_card(directory, **(fields | changes))
    return (directory / "README.md").read_text()


def test_front_matter_is_what_the_hub_expects(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.language == ["de", "en", "no"]  # "no" is a language here, not a boolean of YAML
    assert (data.base_model, data.pipeline_tag) == ("some-org/some-bert", "sentence-similarity")
    assert data.library_name == "sentence-transformers"


def test_tables(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert "| language | before | after |\n| --- | ---: | ---: |\n| de | 12.35 | 67.00 |\n| a\\|b |  | 1.50 |" in text
    assert "| `train.learning_rate` | 3e-05 |" in text and "| `data.max_length` | 64 |" in text
    assert "data.cache" not in text and "train.epochs" not in text


def test_names_of_files_without_their_folders(tmp_path: Path) -> None:
    base = tmp_path / "private" / "mini-bert"
    base.mkdir(parents=True)
    text = write(tmp_path, base_model=str(base))
    assert "- en-de: train.de.txt, train.en.txt\n- en-no: hf:org/corpus/en-no\n" in text
    assert "| `data.pairs` | en-de: a.tsv; en-no: hf:org/corpus |" in text and "| `eval.tatoeba` | tatoeba |" in text
    assert 'base_model: "mini-bert"' in text
    assert "private" not in text and "/home/me" not in text and "secret" not in text


def test_a_model_from_nothing_without_sentence_vectors_claims_neither(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    text = write(tmp_path, base_model="", sentence_vectors=False, title="Pretraining of a new model: mlm")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "fill-mask", None)
    assert "# Pretraining of a new model: mlm\n" in text and "made from nothing" in text
    assert "sentence" not in text.partition("## Data")[0].replace("sentence_", "")


def test_no_scores(tmp_path: Path) -> None:
    assert "## Scores\n\nNot measured in this run.\n" in write(tmp_path, scores=[])
