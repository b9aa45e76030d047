"""MTEB with an encoder in JAX: the scores that MTEB gives sentence-transformers, prompts, MTEB's own result files."""

import json
import re

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="mteb is not installed; requirements-test.txt has it")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from ppa_jax import Encoder, evaluate_mteb  # noqa: E402
from ppa_jax.data import sample  # noqa: E402
from ppa_jax.evaluate_mteb import MtebEncoder  # noqa: E402
from ppa_jax.interop import huggingface, sentence_transformers  # noqa: E402
from ppa_jax.interop.sentence_transformers import Settings  # noqa: E402

LANGUAGES = ["de", "es"]


class SampleBitextMining(AbsTaskBitextMining):
    """Sentences of the built-in sample."""

    metadata = mteb.TaskMetadata(
        name="SampleBitextMining", description="The built-in sample.", reference=None, type="BitextMining",
        dataset={"path": "local", "revision": "1"}, eval_splits=["test"], main_score="f1", category="t2t",
        eval_langs={"deu-eng": ["deu-Latn", "eng-Latn"], "spa-eng": ["spa-Latn", "eng-Latn"]},
    )  # fmt: skip

    def load_data(self, **_):
        sides = {x: sample.sentences(x)[-20:] for x in ("en", *LANGUAGES)}
        self.dataset = DatasetDict(
            {
                subset: DatasetDict({"test": Dataset.from_dict({"sentence1": sides[x], "sentence2": sides["en"]})})
                for x, subset in zip(LANGUAGES, ("deu-eng", "spa-eng"), strict=True)
            }
        )
        self.data_loaded = True


@pytest.fixture(scope="module")
def model(tiny, add_tokenizer, tmp_path_factory):
    """A SentenceTransformer with prompts."""
    path = tmp_path_factory.mktemp("run") / "st"
    tiny("BertForMaskedLM").save_pretrained(path)
    add_tokenizer(path)
    prompts = {"BitextMining": "translate: ", "query": "query: "}
    # At layer 1 the tiny model still tells sentences apart clearly: no rank depends on rounding.
    settings = Settings(1, "mean", 32, options={"prompts": prompts})
    sentence_transformers.write_modules(path, huggingface.read(path), settings)
    return path


def scores(path):
    """{subset: scores} of a result file."""
    found = json.loads(path.read_text())["scores"]["test"]
    return {x["hf_subset"]: {m: x[m] for m in ("f1", "accuracy", "precision", "recall")} for x in found}


def test_the_scores_and_files_are_those_of_mteb(model, tmp_path, monkeypatch, capsys):
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(mteb, "get_tasks", lambda tasks, languages: [SampleBitextMining()])
    arguments = [f"--model={model}", "--tasks=SampleBitextMining", f"--output={tmp_path}/ours"]
    assert evaluate_mteb.main(arguments) == 0
    shown = capsys.readouterr().out
    [file] = (tmp_path / "ours/results").rglob("SampleBitextMining.json")
    assert file.parent.parent.name == "local__st" and str(file.parent) in shown
    assert "SampleBitextMining deu-eng test: 0." in shown
    mteb.evaluate(SentenceTransformer(str(model), device="cpu"), SampleBitextMining(),
                  cache=mteb.ResultCache(tmp_path / "theirs"))  # fmt: skip
    [expected] = (tmp_path / "theirs/results").rglob("SampleBitextMining.json")
    assert scores(file) == scores(expected) and set(scores(file)) == {"deu-eng", "spa-eng"}

    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("measured again"))
    assert evaluate_mteb.main(arguments) == 0


def test_the_prompt_is_chosen_as_mteb_chooses(model):
    encoder = Encoder.from_pretrained(model)
    own, given = MtebEncoder(encoder, "a/b", "1"), MtebEncoder(encoder, "a/b", "1", {"SampleBitextMining": "x "})
    assert isinstance(own, mteb.EncoderProtocol)
    metadata, batches = SampleBitextMining.metadata, [{"text": ["a b", "c"]}, {"text": ["d"]}]
    options = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "deu-eng"}
    for wrapped, prompt in ((own, "translate: "), (given, "x ")):
        vectors = wrapped.encode(batches, **options, prompt_type=PromptType.query)
        np.testing.assert_allclose(vectors, encoder.encode([prompt + x for x in ("a b", "c", "d")]), atol=1e-5)
    retrieval = metadata.model_copy(update={"type": "Retrieval", "name": "Other"})
    vectors = own.encode(batches, **(options | {"task_metadata": retrieval}), prompt_type=PromptType.query)
    np.testing.assert_allclose(vectors, encoder.encode([f"query: {x}" for x in ("a b", "c", "d")]), atol=1e-5)
    matrix = own.similarity(vectors, vectors)
    np.testing.assert_allclose(own.similarity_pairwise(vectors, vectors[::-1]), np.diag(matrix[:, ::-1]), atol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "failure", "said"),
    [
        ("Nonsense", None, "error: --tasks=Nonsense: .*Nonsense"),
        ("SampleBitextMining", OSError("no network"), r"error: --tasks: OSError: no network; the same command"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, monkeypatch, capsys, tasks, failure, said):
    if failure:
        monkeypatch.setattr(mteb, "get_tasks", lambda tasks, languages: [SampleBitextMining()])
        monkeypatch.setattr(SampleBitextMining, "load_data", lambda *_, **__: (_ for _ in ()).throw(failure))
    assert evaluate_mteb.main([f"--model={model}", f"--tasks={tasks}", f"--output={tmp_path}"]) == 2
    assert re.search(said, capsys.readouterr().err)
