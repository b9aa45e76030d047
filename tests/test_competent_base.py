import jax
import numpy as np

from benchmarks import competent_base
from ppa_jax.interop import huggingface


def test_each_language_has_its_lines_once_and_none_of_the_test_sets(tmp_path):
    files = {
        "bible/deu1912.txt": "Am Anfang\n\n<range>\nEs werde Licht\n",
        "multi30k/train.de": "Ein Hund\nAm Anfang\n",
        "multi30k/test_2016_flickr.de": "Ein Test\n",
        "tldr/en-hi.tsv": "List files\tसूची\n",
        "wikiann/train-zh.tsv": "北\tB-LOC\n京\tI-LOC\n\n人\tO\n",
        "wikiann/dev-zh.tsv": "东\tB-LOC\n",
        "ud/en_ewt-ud-train.conllu": "# sent_id = 1\n# text = It rains.\n1\tIt\t_\n\n",
    }
    for name in competent_base.NTREX:  # 1,000 sentences to test on, and one more
        lines = [f"test {i}" for i in range(1000)] + [f"{name} one more"]
        files[f"ntrex/{name.replace('_', '-')}.txt"] = "\n".join(lines) + "\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    competent_base.write_texts(tmp_path, tmp_path / "text")

    written = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "text").iterdir()}
    assert written["de"] == ["Am Anfang", "Es werde Licht", "Ein Hund", "deu one more"]
    assert written["hi"] == ["सूची", "hin one more"]
    assert written["zh"] == ["北京", "人", "zho_CN one more"]
    assert written["en"] == ["List files", "It rains.", "eng one more"]
    assert written["th"] == ["tha one more"]


def test_the_top_blocks_are_re_initialised_and_nothing_below(tiny, add_tokenizer, tmp_path):
    model = tmp_path / "model"
    tiny("BertForMaskedLM").save_pretrained(model)
    add_tokenizer(model)

    competent_base.write_reinitialised(model, tmp_path / "base", count=2, seed=0)

    before, after = (huggingface.read(path).params["encoder"] for path in (model, tmp_path / "base"))
    for part in ("embeddings", "layer_0"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    for part in ("layer_1", "layer_2"):
        one, other = (params[part]["feed_forward"] for params in (before, after))
        assert np.abs(other["output"]["kernel"]).max() < 0.15 < np.abs(one["output"]["kernel"]).max()
        assert (other["layer_norm"]["scale"] == 1).all() and (one["layer_norm"]["scale"] != 1).any()
