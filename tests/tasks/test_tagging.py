import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.bert import EncoderConfig, rows_from_mask
from ppa_jax.tasks import tagging
from ppa_jax.tasks.tagging import UPOS, Example
from ppa_jax.tasks.task import IGNORE
from ppa_jax.tasks.words import windows

TINY = EncoderConfig(vocab_size=64, hidden_size=24, num_layers=3, num_heads=4, hidden_dropout=0.5)
TASK = tagging  # of the fixture `read`
CONLLU = """\
# sent_id = 1
# text = vámonos ya
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tnada\t_\tX\t_\t_\t_\t_\t_\t_
3\tde acá\tya\tADV\t_\t_\t1\tadvmod\t_\t_
"""


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_conllu_words_are_neither_multiword_tokens_nor_empty_nodes(read, end):
    (found,) = read(CONLLU + end)
    assert found[:3] == (["vamos", "nos", "de acá"], ["VERB", "PRON", "ADV"], "es")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#\tO\nde acá\tB-LOC\n\n:\tO\n", [["#", "de acá"], [":"]]),
        ("es:#\tO\nes::\tB-LOC\n\n\nes:es:a\tO\n\n", [["#", ":"], ["es:a"]]),
        ("es:a\tO\nb\tB-LOC\n\nes:c\tO\n", [["es:a", "b"], ["es:c"]]),
        ("-DOCSTART- -X- -X- O\n\n# NN X O\nb NN X B-LOC\n\nc NN X O\n", [["#", "b"], ["c"]]),
        ("# sent_id = 1\n# text = # b\n#\tO\nb\tB-LOC\n\n# newdoc id = x\n\nc\tO\n", [["#", "b"], ["c"]]),
        ("#a=b\tO\n# x = y\tB-LOC\n\nc\tO\n", [["#a=b", "# x = y"], ["c"]]),
        ("# newdoc\n1\t#\tO\t-\ts\n2\tb\tB-LOC\tB-LOC#x\ts\n\n1\tc\tO\n", [["#", "b"], ["c"]]),
    ],
)
def test_columns(read, text, words):
    found = read(text)
    assert [example.words for example in found] == words
    assert [example.tags for example in found] == [["O", "B-LOC"], ["O"]]


def test_sentences_without_a_tag_are_skipped_and_counted(read, caplog):
    assert len(read("a\tX\n\nb\tX\nc\n\nd\t\n\ne\tX\n")) == 2
    assert "file: 2 of 4 skipped: a row that is not a word and its tag: 2 (first at line 4)" in caplog.text


def test_words_without_a_tag_are_neither_trained_nor_scored(tmp_path, read, tokenizer):
    """Raw CoNLL-U is still tagged, and written as read except for the tags."""
    text = CONLLU + "\n"
    raw = re.sub("VERB|PRON|ADV", "_", text)
    partly, none = read(text.replace("PRON", "_") + raw)
    assert tagging.score([partly, none], [["VERB", "X", "X"], ["X"] * 3], "es")["accuracy"] == (50.0, 2)
    assert tagging.score([none], [["X"] * 3], "es") == {}
    assert tagging.labels([partly]) == UPOS
    rows = tagging.features([partly, none], tokenizer, 99, UPOS)
    assert [sum(label != IGNORE for label in row.arrays["labels"]) for row in rows] == [2, 0]
    with pytest.raises(UserError, match="the training data has no tags"):
        tagging.labels([none])
    entities = Example(["a", "b", "c"], ["B-A", "_", "O"], "en")
    assert tagging.score([entities], [["B-A", "I-A", "O"]], "en")["f1"] == (100.0, 1)

    tagging.write(tmp_path / "p.tsv", [none], [["VERB", "PRON", "ADV"]])
    assert (tmp_path / "p.conllu").read_text() == text and not (tmp_path / "p.tsv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one word a line\nlonely\n", "file:2: a row that is not a word and its tag; 1 of 1 unusable; tagging files"),
        (CONLLU.replace("3\tde", "4\tde"), "file:1: words not numbered 1, 2, ...; 1 of 1 unusable; CoNLL-U has"),
        (CONLLU.replace("\tADV\t_", "\tADV"), "file:1: a row without ten columns; 1 of 1 unusable; CoNLL-U has"),
    ],
)
def test_unusable_file(read, text, message):
    with pytest.raises(UserError, match=rf"^data.test: \S*{message}[^\n]*$"):
        read(text)


def test_running_text_is_not_tagged_words(read):
    with pytest.raises(UserError, match="a row that is not a word and its tag"):
        read("A cat sleeps .\nIt rains .\nNo one knows why it does .\n")
    with pytest.raises(UserError, match="a row that is not a word and its tag"):
        read('{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}\n{"tokens": ["it"], "tags": ["O"]}\n')


def test_the_gold_tags_decide_whether_entities_are_scored():
    gold = [Example(["a", "b"], ["B-LOC", "O"], "en")]
    assert tagging.score(gold, [["LOC", "O"]], "en")["recall"] == (0.0, 1)
    assert tagging.score([Example(["a"], ["LOC"], "en")], [["O"]], "en")["accuracy"] == (0.0, 1)


def test_other_tags_among_entity_tags_are_refused(read):
    with pytest.raises(UserError, match=r"file: '0' is not an entity tag, but other tags are \(B-PER\); correct"):
        read("Ann\tB-PER\nran\t0\n")


def test_an_underscore_in_place_of_o_is_refused(read):
    """Otherwise only entities would be trained on and scored."""
    with pytest.raises(UserError, match="no word is tagged 'O' and some '_', which is not a tag; write O outside"):
        read("Ann\tB-PER\nran\t_\n")


def test_bilou_is_read_as_iobes(read):
    (found,) = read("Ann\tB-PER\nLee\tL-PER\nin\tO\nBonn\tU-LOC\n")
    assert found.tags == ["B-PER", "E-PER", "O", "S-LOC"]
    assert tagging.score([found], [["B-PER", "E-PER", "O", "O"]], "en")["recall"] == (50.0, 2)


def test_labels():
    pos, ner = Example(["a", "b"], ["X", "ADJ"], "en"), Example(["a", "b"], ["O", "B-PER"], "en")
    assert tagging.labels([pos]) == UPOS and len(UPOS) == 17
    assert tagging.labels([ner, pos]) == ("ADJ", "B-PER", "O", "X")


def test_the_first_piece_carries_the_label(tokenizer):
    example = Example(["ab", "\u200b", "c", "d"], ["NOUN", "SYM", "VERB", "unseen"], "en")
    (feature,) = tagging.features([example], tokenizer, 99, UPOS)
    cls, sep, unk = tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id
    (ab,), (c,), (d,) = (tokenizer.encode([word]) for word in ("ab", "c", "d"))
    assert feature.ids == [cls, *ab, unk, *c, *d, sep] and len(ab) == 2
    noun, sym, verb = (UPOS.index(tag) for tag in ("NOUN", "SYM", "VERB"))
    assert feature.arrays["labels"] == [IGNORE, noun, IGNORE, sym, verb, IGNORE, IGNORE]
    assert feature.types == [0] * 7


def test_each_word_belongs_to_the_window_with_most_context(tokenizer):
    found = [window for _, window in windows([list("abcdefghij")], tokenizer, 8)]  # six words fit
    assert [(w.start, len(w.positions)) for w in found] == [(0, 6), (3, 6), (6, 4)]
    assert [w.own for w in found] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
    with pytest.raises(UserError, match="max_length 2 leaves no room"):
        list(windows([["a"]], tokenizer, 2))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(3, 14))
def test_no_word_is_dropped_whatever_the_lengths(tokenizer, sizes, max_length):
    words = ["abcdefghijklmnop"[:size] or "\u200b" for size in sizes]
    pieces = [ids or [tokenizer.unk_id] for ids in tokenizer.encode(words)]
    found = list(windows([[], words], tokenizer, max_length))
    assert sorted(word for _, window in found for word in window.own) == list(range(len(words)))
    for i, window in found:
        assert i == 1 and len(window.ids) <= max_length and window.own == sorted(window.own)
        held = range(window.start, window.start + len(window.positions))
        assert [window.ids[window.position(word)] for word in held] == [pieces[word][0] for word in held]
        whole = [piece for word in held for piece in pieces[word][: max_length - 2]]
        assert window.ids == [tokenizer.cls_id, *whole, tokenizer.sep_id]
    if sum(map(len, pieces)) <= max_length - 2:
        assert len(found) == 1


def test_head_and_loss_equal_transformers(tiny):
    import torch

    model = tiny("BertForTokenClassification", num_labels=5)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 7, 24)).astype(np.float32)
    label = rng.integers(-1, 5, (4, 7))
    assert (label == IGNORE).any()
    with torch.no_grad():
        logits = model.classifier(torch.tensor(hidden))
        expected = torch.nn.functional.cross_entropy(
            logits.reshape(-1, 5), torch.tensor(label).reshape(-1), ignore_index=IGNORE, reduction="sum"
        ).item()
    classifier = model.classifier
    params = {"kernel": classifier.weight.detach().numpy().T, "bias": classifier.bias.detach().numpy()}
    head = tagging.Head(TINY, tuple("abcde"), jnp.float32)
    batch = {"labels": jnp.asarray(label)}
    outputs = head.apply({"params": {"classifier": params}}, jnp.asarray(hidden), batch, None)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)  # float32, 24 summands of about 0.3
    total, count = tagging.loss(outputs, batch)
    assert count == (label != IGNORE).sum() and total == pytest.approx(expected, rel=1e-5)


def test_dropout_depends_on_the_seeds():
    head = tagging.Head(TINY, ("a",), jnp.float32)
    hidden = jnp.ones((2, 5, 24))
    seeds = drop.token_seeds(jnp.uint32(3), *rows_from_mask(jnp.ones((2, 5), jnp.int32)))
    params = head.init(jax.random.key(0), hidden, {}, None)
    params["params"]["classifier"]["kernel"] = jnp.ones((24, 1))  # the logits count what is kept
    kept = head.apply(params, hidden, {}, seeds)["logits"] / 2
    assert len(np.unique(kept)) > 3 and kept.min() > 0 and kept.max() < 24
    assert (head.apply(params, hidden, {}, None)["logits"] == 24).all()


@pytest.mark.parametrize("max_length", [5, 9, 99])
def test_one_hot_logits_decode_to_gold(tokenizer, max_length):
    rng = np.random.default_rng(0)
    names = ("B-A", "I-A", "O")
    examples = []
    for n in (1, 7, 25):
        words = ["abcd"[: rng.integers(1, 4)] for _ in range(n)]
        examples.append(Example(words, [names[i] for i in rng.integers(0, 3, n)], "en"))
    rows = tagging.features(examples, tokenizer, max_length, names)
    # At IGNORE (-1) stands the last label, "O": a prediction from a wrong place shows.
    outputs = [{"logits": np.eye(3)[row.arrays["labels"]]} for row in rows]
    assert tagging.decode(examples, rows, outputs, names) == [example.tags for example in examples]


def test_accuracy_counts_unseen_tags_as_wrong():
    examples = [Example(["a", "b", "c"], ["X", "NOUN", "other"], "en"), Example(["d"], ["VERB"], "en")]
    assert tagging.score(examples, [["X", "VERB", "X"], ["VERB"]], "en") == {"accuracy": (50.0, 4)}


@pytest.mark.parametrize(
    ("gold", "predicted", "right", "of_predicted"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", 2, 2),
        ("B-A I-A O B-B", "B-A O O B-B", 1, 2),  # cut short
        ("B-A I-A O B-B", "B-A I-A O B-A", 1, 2),  # another type
        ("B-A I-A O B-B", "I-A I-A O I-B", 2, 2),  # I- without B- begins an entity
        ("B-A I-A O B-B", "B-A I-B O B-B", 1, 3),  # I- of another type begins one too
        ("B-A I-A O B-B", "B-A B-A O O", 0, 2),  # two entities in place of one
        ("B-A I-A O B-B", "O O O O", 0, 0),
    ],
)
def test_entities_by_hand(gold, predicted, right, of_predicted):
    # An entity ends with its sentence: the I-A that follows is one of its own.
    examples = [Example(list("abcd"), gold.split(), "en"), Example(["e"], ["I-A"], "en")]
    found = tagging.score(examples, [predicted.split(), ["I-A"]], "en")
    precision, recall = (right + 1) / (of_predicted + 1), (right + 1) / 3
    assert list(found) == ["f1", "precision", "recall"]
    assert found["precision"] == (pytest.approx(100 * precision), of_predicted + 1)
    assert found["recall"] == (pytest.approx(100 * recall), 3)
    assert found["f1"] == (pytest.approx(100 * 2 * precision * recall / (precision + recall)), 3)


def test_written_and_read_again(tmp_path, read):
    examples = [Example(["a", "b"], ["O", "B-A"], "es"), Example(["#"], ["O"], "es")]
    tagging.write(tmp_path / "p.tsv", examples, [["O", "I-A"], ["O"]])
    text = (tmp_path / "p.tsv").read_text()
    assert text == "a\tO\tO\nb\tB-A\tI-A\n\n#\tO\tO\n\n"
    assert [example.tags for example in read(text)] == [["O", "I-A"], ["O"]]
