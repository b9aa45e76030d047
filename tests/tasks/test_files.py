"""Where examples come from: entries, patterns, MLQA's grid, datasets of the Hub and of TFDS."""

import json
import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppa_jax.errors import UserError
from ppa_jax.tasks import files, nli, parsing, qa, squad, tagging


def test_entries_and_patterns(tmp_path):
    for name in ("dev.de.tsv", "dev.zh-Hans.tsv", "dev.genre_label.tsv", "test-context-de-question-en.json",
                 "test-context-de-question-de.json", "test-context-en-question-de.json"):  # fmt: skip
        (tmp_path / name).write_text("x")
    assert files.language_files("en=a.tsv, de=b.tsv|c.tsv", "f") == [("en", "a.tsv"), ("de", "b.tsv"), ("de", "c.tsv")]
    found = files.language_files(f"{tmp_path}/dev.{{lang}}.tsv", "f")
    assert found == [("de", f"{tmp_path}/dev.de.tsv"), ("zh-Hans", f"{tmp_path}/dev.zh-Hans.tsv")]
    grid = files.language_files(f"{tmp_path}/test-context-{{lang}}-question-{{question}}.json", "f")
    assert [language for language, _ in grid] == ["de", "de/en", "en/de"]
    diagonal = files.language_files(f"{tmp_path}/test-context-{{lang}}-question-{{lang}}.json", "f")
    assert diagonal == [("de", f"{tmp_path}/test-context-de-question-de.json")]


def test_questions_in_another_language_than_their_context(tmp_path):
    content = {"data": [{"paragraphs": [{"context": "Anna sah Bob.", "qas": [{"id": "1", "question": "who?"}]}]}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    ((language, (found,)),) = files.read(qa, f"de/en={tmp_path}/x.json", field="f").items()
    assert (language, found.language, found.question_language) == ("de/en", "de", "en")


XNLI = [  # the two forms in which a row holds several languages, and a label that is none
    {"premise": {"en": "A dog runs.", "de": "Ein Hund rennt."}, "label": 0,
     "hypothesis": {"language": ["de", "en"], "translation": ["Ein Tier rennt.", "An animal runs."]}},
    {"premise": {"en": "A cat.", "de": "Eine Katze."}, "label": 2,
     "hypothesis": {"language": ["en", "de"], "translation": ["A dog.", "Ein Hund."]}},
    {"premise": {"en": "x", "de": "x"}, "label": -1, "hypothesis": {"language": ["de"], "translation": ["x"]}},
]  # fmt: skip


def test_nli_from_parquet(tmp_path):
    """The layout of datasets on the hub: data/SPLIT-00000-of-00001.parquet."""
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(XNLI), tmp_path / "data/validation-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(XNLI[:1]), tmp_path / "data/test-00000-of-00001.parquet")
    found = files.read(nli, f"de=hf:{tmp_path}@validation", field="config.data.test")["de"]
    assert [(e.premise, e.hypothesis, e.label) for e in found] == [
        ("Ein Hund rennt.", "Ein Tier rennt.", "entailment"),
        ("Eine Katze.", "Ein Hund.", "contradiction"),
    ]
    assert len(files.read(nli, f"en=hf:{tmp_path}", field="config.data.test")["en"]) == 1
    assert len(files.read(nli, f"en=hf:{tmp_path}", field="config.data.dev")["en"]) == 2
    with pytest.raises(UserError, match=f"^config.data.train: hf:{tmp_path}: no file of a split named train below"):
        files.read(nli, f"en=hf:{tmp_path}", field="config.data.train")
    with pytest.raises(UserError, match="premise or hypothesis is missing; 3 of 3 unusable"):
        files.read(nli, f"fr=hf:{tmp_path}@validation", field="f")


def write_tfds(directory, name, features, splits):
    """A dataset of tensorflow-datasets as ArrayRecord: split -> rows."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name, Builder.__module__ = name, name  # see test_sources.py
    Builder(data_dir=directory, file_format="array_record").download_and_prepare()


def test_nli_from_csv(tmp_path):
    (tmp_path / "x.csv").write_text('label;premise;hypothesis\n1;"A ""dog""; runs.";It moves.\n2;x\n')
    (found,) = files.read(nli, f"en=hf:{tmp_path}/x.csv", field="config.data.train")["en"]
    assert (found.premise, found.hypothesis, found.label) == ('A "dog"; runs.', "It moves.", "neutral")


def test_nli_from_tfds(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({
        "premise": tfds.features.Translation(languages=["en", "de"]),
        "hypothesis": tfds.features.TranslationVariableLanguages(),
        "label": tfds.features.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    })  # fmt: skip
    rows = []
    for row in XNLI[:2]:
        sides = row["hypothesis"]
        rows.append(row | {"hypothesis": dict(zip(sides["language"], sides["translation"], strict=True))})
    write_tfds(tmp_path, "inference", features, {"validation": rows, "test": rows})
    found = files.read(nli, f"de=tfds:{tmp_path}/inference", field="config.data.dev")["de"]
    assert [(e.hypothesis, e.label) for e in found] == [
        ("Ein Tier rennt.", "entailment"),
        ("Ein Hund.", "contradiction"),
    ]
    with pytest.raises(UserError, match="no split named train, but"):
        files.read(nli, f"de=tfds:{tmp_path}/inference", field="config.data.train")


def test_questions_from_parquet(tmp_path):
    rows = [
        {"id": "a", "question": "who?", "context": "Ann saw Bob.", "answers": {"text": ["Bob"], "answer_start": [8]}},
        {"id": "b", "question": "who?", "context": "Ann saw Bob.", "answers": {"text": [], "answer_start": []}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    first, second = files.read(qa, f"en=hf:{tmp_path}/train.parquet", field="config.data.train")["en"]
    assert first == squad.Example("a", "who?", "Ann saw Bob.", (squad.Answer("Bob", 8),), "en", "en")
    assert second.answers == ()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="no question, context and answers; 1 of 1 unusable"):
        files.read(qa, f"en=hf:{tmp_path}", field="config.data.train")


def test_tags_by_the_names_that_a_dataset_gives_them(tmp_path):
    names = ["O", "B-PER", "I-PER"]
    label = {"names": names, "_type": "ClassLabel"}
    features = {"tokens": {"feature": {"dtype": "string"}}, "ner_tags": {"feature": label, "_type": "Sequence"}}
    table = pa.table({"tokens": [["Ann", "Lee", "ran"], ["x"]], "ner_tags": [[1, 2, 0], [0, 0]]})
    for metadata, kept in (({"huggingface": json.dumps({"info": {"features": features}})}, 1), (None, 0)):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "test.parquet")
        if kept:
            (found,) = files.read(tagging, f"en=hf:{tmp_path}", field="config.data.test")["en"]
            assert found == tagging.Example(["Ann", "Lee", "ran"], ["B-PER", "I-PER", "O"], "en")
        else:
            with pytest.raises(UserError, match="tags that are numbers, without their names; 2 of 2 unusable"):
                files.read(tagging, f"en=hf:{tmp_path}", field="config.data.test")


TREEBANK = [
    {"tokens": ["It", "don't", "do", "n't", "rain"], "upos": ["PRON", "_", "AUX", "PART", "VERB"],
     "head": ["4", "None", "4", "4", "0"], "deprel": ["expl", "_", "aux", "advmod", "root:x"]},
    {"tokens": ["a", "b"], "upos": ["X", "X"], "head": ["2", "1"], "deprel": ["dep", "dep"]},
]  # fmt: skip


def test_a_treebank_from_json_lines(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [TREEBANK[0], *TREEBANK]))
    spec = f"en=hf:{tmp_path}/train.jsonl"
    _, found = files.read(parsing, spec, field="config.data.train")["en"]
    assert (found.words, found.heads) == (["It", "do", "n't", "rain"], [4, 4, 4, 0])
    assert found.relations == ["expl", "aux", "advmod", "root"]
    parsing.write(tmp_path / "out.conllu", [found], [parsing.Tree([4, 4, 4, 0], ["a", "b", "c", "root"])])
    (again,) = parsing.read(tmp_path / "out.conllu", language="en", field="f")
    assert (again.words, again.upos, again.heads) == (found.words, found.upos, found.heads)
    assert files.read(tagging, spec, field="config.data.train")["en"][0].tags == ["PRON", "AUX", "PART", "VERB"]


@pytest.mark.parametrize("task", [tagging, parsing])
def test_rows_that_are_words_or_numbers_are_reported_in_one_line(task, tmp_path):
    """A dataset with one row per word, a missing word, or parts of speech as numbers."""
    broken = [TREEBANK[0] | change for change in ({"head": 2, "upos": 3}, {"tokens": ["It", None, "do", "n't", "rain"]},
                                                  {"upos": [1, 2, 3, 4, 5]}, {"tokens": "It"})]  # fmt: skip
    for row in broken:
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=r"train.jsonl:1: .*; 1 of 1 unusable"):
            files.read(task, f"en=hf:{tmp_path}/train.jsonl", field="config.data.train")


def test_a_directory_of_several_configurations_is_refused(tmp_path):
    for language in ("de", "en"):
        (tmp_path / language).mkdir()
        pq.write_table(
            pa.table({"premise": ["a"], "hypothesis": ["b"], "label": [0]}), tmp_path / language / "test.parquet"
        )
    with pytest.raises(UserError, match=r"holds several configurations \(de, en\); give the directory of one"):
        files.read(nli, f"en=hf:{tmp_path}@test", field="config.data.test")


def test_tags_from_tfds(tmp_path):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["O", "B-LOC"])
    features = tfds.features.FeaturesDict({
        "tokens": tfds.features.Sequence(tfds.features.Text()), "tags": tfds.features.Sequence(label),
    })  # fmt: skip
    write_tfds(tmp_path, "entities", features, {"train": [{"tokens": ["In", "Bonn"], "tags": ["O", "B-LOC"]}]})
    found = files.read(tagging, f"en=tfds:{tmp_path}/entities", field="config.data.train")["en"]
    assert found == [tagging.Example(["In", "Bonn"], ["O", "B-LOC"], "en")]


@pytest.mark.parametrize(
    "task, spec, said",
    [
        (nli, "x.tsv", "'x.tsv' is not of the form LANGUAGE=FILE"),
        (nli, "english=x.tsv", "'english=x.tsv' is not of the form"),
        (nli, ",", "f is empty: give LANGUAGE=FILE"),
        (nli, "en=none.tsv", "no such file: none.tsv"),
        (nli, "none.{lang}.tsv", "no file none.{lang}.tsv, with a language for {lang}"),
        (SimpleNamespace(), "en=hf:wikiann/en", "hf:wikiann/en: this task only reads files"),
        (nli, "en=hf:", "write hf:NAME"),
    ],
)
def test_mistakes(task, spec, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        files.read(task, spec, field="f")
