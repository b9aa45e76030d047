import itertools
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ppa_jax.data.tokenizer import wrap
from ppa_jax.errors import UserError
from ppa_jax.model.bert import EncoderConfig
from ppa_jax.tasks import qa, qa_scores, squad
from ppa_jax.tasks.squad import Answer, Example
from ppa_jax.tasks.task import IGNORE

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789üéßñ"
HAN = "黑豹队的防守只丢了分在联赛中排名第六"
FILLER = "a long walk by the river . " * 30


def example(context, *answers, question="who ?", id="1", language="en"):
    """An example whose answers are at their first position in the context."""
    gold = tuple(Answer(text, context.find(text)) for text in answers)
    return Example(id, question, context, gold, language, language)


@pytest.fixture(scope="module")
def bert():
    """WordPiece of letters, with two longer pieces; Han characters are words."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Man", "##ning", *LETTERS, *(f"##{x}" for x in LETTERS)]
    backend = Backend(models.WordPiece({p: i for i, p in enumerate([*pieces, *HAN, *".,?()-½"])}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return wrap(PreTrainedTokenizerFast(tokenizer_object=backend, **names), [], "bert")


@pytest.fixture(scope="module")
def xlmr():
    """SentencePiece, whose pieces count the space before a word, joined as XLM-R's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, "▁", "▁river", "▁the", *LETTERS, *HAN, *".,?()-½"]
    backend = Backend(models.Unigram([(piece, -float(len(piece) < 3)) for piece in pieces], 3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")
    return wrap(PreTrainedTokenizerFast(tokenizer_object=backend, **names), [], "xlmr")


def one_hot(features):
    """The outputs of a model that is certain of the gold spans, on rows with padding."""
    length = max(len(feature.ids) for feature in features) + 3
    return [{name: np.eye(length)[feature.values[name]] for name in ("start", "end")} for feature in features]


# ---- what the encoder sees


def test_layout_of_bert(bert):
    (feature,) = qa.features([example("up Ann", "Ann", question="by")], bert, 16)
    pieces = [bert.backend.id_to_token(i) for i in feature.ids]
    assert pieces == ["[CLS]", "b", "##y", "[SEP]", "u", "##p", "A", "##n", "##n", "[SEP]"]
    assert list(feature.types) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert feature.values == {"start": 6, "end": 8}


def test_layout_of_xlmr(xlmr):
    (feature,) = qa.features([example("by the river", "river", question="the")], xlmr, 16)
    pieces = [xlmr.backend.id_to_token(i) for i in feature.ids]
    assert pieces == ["<s>", "▁the", "</s>", "</s>", "▁", "b", "y", "▁the", "▁river", "</s>"]
    assert list(feature.types) == [0] * 10
    assert feature.values == {"start": 8, "end": 8}


# Rows of 40 have 40 - 3 special tokens - 3 of the question = 34 places, half of which is less than STRIDE.
@pytest.mark.parametrize(("max_length", "shared"), [(384, 128), (40, 17)])
def test_windows_cover_the_context_and_overlap(bert, max_length, shared):
    context = " ".join(LETTERS[i % 26] for i in range(900))  # a token is one letter
    rows = qa.features([example(context, question="who")], bert, max_length)
    spans = [row.context.spans for row in rows]
    assert all(len(row.ids) == max_length for row in rows[:-1])
    assert sorted({int(start) for window in spans for start in window[:, 0]}) == list(range(0, 1800, 2))
    for before, after in itertools.pairwise(spans):
        np.testing.assert_array_equal(before[-shared:], after[:shared])
        assert before[-shared - 1, 1] < after[0, 0]  # no more than that is shared
    assert len(spans[-1]) > shared  # the last one has something new


def test_long_question_leaves_half_of_the_room(bert):
    rows = qa.features([example("abc", "abc", question="x" * 99)], bert, 13)
    assert [list(row.ids).count(bert.sep_id) for row in rows] == [2]
    assert list(rows[0].ids).index(bert.sep_id) == 6  # [CLS], 5 of the 10 places that are no special tokens
    assert rows[0].values == {"start": 7, "end": 9}


def test_context_without_a_token_is_kept(bert):
    rows = qa.features([example(" \n")], bert, 16)
    assert len(rows) == 1 and qa.decode([example(" \n")], rows, one_hot(rows)) == [""]


def test_no_room(bert):
    with pytest.raises(UserError, match="max_length=4: too short"):
        qa.features([example("abc")], bert, 4)


def test_training_data_must_have_answers():
    assert qa.labels([example("abc", "b"), example("abc")]) == ()
    with pytest.raises(UserError, match="the training data has no answers; they are under answers"):
        qa.labels([example("abc"), example("abc", "xyz")])


def test_values_of_windows_without_the_whole_answer_and_of_examples_without_gold(bert):
    rows = qa.features([example("abcdefghijkl", "hijk", question="x")], bert, 12)  # windows a-h, e-l
    assert [row.values for row in rows] == [{"start": 0, "end": 0}, {"start": 3 + 3, "end": 3 + 6}]
    rows = qa.features([example("abcdefghijkl", "cdef", question="x")], bert, 12)
    assert [row.values for row in rows] == [{"start": 3 + 2, "end": 3 + 5}, {"start": 0, "end": 0}]
    lost = Example("1", "x", "abc", (Answer("zzz", -1),), "en", "en")
    for untrained in (lost, example("abc")):
        assert qa.features([untrained], bert, 12)[0].values == {"start": IGNORE, "end": IGNORE}


GOLD = [
    example("(Güell), 6½ Maß  señor\nÑ", "6½ Maß  señor"),
    example("cafe\u0301 noir", "cafe\u0301"),  # a letter and its accent apart
    example("\ufeff黑豹队的防守 Man 6 分", "豹队的"),
    example("黑豹队的防守 Manning 6 分", "Manning 6"),
    example(FILLER + "In Cádiz, (1942).", "Cádiz, (1942)"),  # in a late window
    example("by the river the river", "the river the"),
    example("nobody", "gone", "body"),  # the first is not there
]


@pytest.mark.parametrize("max_length", [40, 384])
@pytest.mark.parametrize("name", ["bert", "xlmr"])
def test_gold_spans_give_the_gold_text(request, name, max_length):
    rows = qa.features(GOLD, request.getfixturevalue(name), max_length)
    assert qa.decode(GOLD, rows, one_hot(rows)) == [gold.answers[-1].text for gold in GOLD]
    if max_length == 40:
        late = [i for i, row in enumerate(rows) if row.example == 4 and row.values["start"] > 0]
        assert late and late[0] > [row.example for row in rows].index(4)


def test_an_answer_consists_of_whole_tokens(bert):
    inside = [example("Manning ran", "nnin")]  # Man ##ning
    rows = qa.features(inside, bert, 32)
    assert qa.decode(inside, rows, one_hot(rows)) == ["Manning"]


def test_accents_that_an_uncased_tokenizer_drops_stay_in_the_answer(bert):
    backend = Backend.from_str(bert.backend.to_str())
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    uncased = wrap(PreTrainedTokenizerFast(tokenizer_object=backend, **names), [], "uncased")
    apart = [example("Un Cafe\u0301 noir", "Cafe\u0301")]
    rows = qa.features(apart, uncased, 32)
    assert qa.decode(apart, rows, one_hot(rows)) == ["Cafe\u0301"]


# ---- the span


def logits(length, **at):
    """Zeros except for `at`: {"_3": 2.0} is 2.0 at position 3."""
    row = np.zeros(length)
    for place, value in at.items():
        row[int(place[1:])] = value
    return row


def test_best_span_ends_where_it_starts_or_later():
    # 18 for start 4 and end 2, which is no span; 9.5 for 4 and 4, 9.25 for 2 and 2
    assert qa.best_span(logits(6, _4=9, _2=0.25), logits(6, _2=9, _4=0.5)) == (9.5, 4, 4)


def test_best_span_is_no_longer_than_allowed():
    n = qa.LONGEST_ANSWER
    assert qa.best_span(logits(n, _0=5), logits(n, **{f"_{n - 1}": 5})) == (10.0, 0, n - 1)
    long = qa.best_span(logits(n + 1, _0=5), logits(n + 1, **{f"_{n}": 5}))
    assert long is not None and long[0] == 5.0


def test_best_span_is_among_the_n_best():
    n = qa.N_BEST
    starts = np.r_[0.5, np.ones(n)]  # the 21st is the only one before the best end
    assert qa.best_span(starts, logits(n + 1, _0=10)) == (1.0, 1, 1)
    assert qa.best_span(starts[:-1], logits(n, _0=10)) == (10.5, 0, 0)
    behind = np.r_[np.zeros(n), np.ones(n)]
    assert qa.best_span(behind, behind[::-1]) is None  # the best starts are all behind the best ends


def test_the_answer_comes_from_the_context_and_the_best_window(bert):
    one = [example("ab cd", question="xy")]
    twice = qa.features(one, bert, 32) * 2
    first = twice[0].context.first
    low = {"start": np.full(32, 9.0), "end": np.full(32, 9.0)}  # question and padding are not to be answers
    high = {"start": low["start"].copy(), "end": low["end"].copy()}
    for row, value in ((low, 1.0), (high, 2.0)):
        for name in row:
            row[name][first : first + 4] = 0.0
        place = first if value == 1.0 else first + 2
        row["start"][place], row["end"][place + 1] = value, value
    assert qa.decode(one, twice, [low, high]) == qa.decode(one, twice, [high, low]) == ["cd"]


# ---- head and loss


def test_head_loss_and_gradients_equal_transformers(tiny):
    model = tiny("BertForQuestionAnswering")
    rng = np.random.default_rng(0)
    ids = torch.tensor(rng.integers(0, 64, (4, 12)))
    start, end = torch.tensor([0, 3, 11, 5]), torch.tensor([0, 7, 11, 5])
    expected = model(ids, start_positions=start, end_positions=end)
    expected.loss.backward()

    hidden = jnp.array(model.bert(ids).last_hidden_state.detach().numpy())
    batch = {"mask": jnp.ones((4, 12), int), "start": jnp.array(start.numpy()), "end": jnp.array(end.numpy())}
    layer = model.qa_outputs
    dense = {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}

    def mean(dense):
        head = qa.Head(EncoderConfig(hidden_size=24))
        outputs: Any = head.apply({"params": {"qa_outputs": dense}}, hidden, batch)
        total, count = qa.loss(outputs, batch)
        return total / count, outputs

    (value, outputs), gradient = jax.value_and_grad(mean, has_aux=True)(dense)
    # float32: the sums are of 24 products of order 1
    np.testing.assert_allclose(outputs["start"], expected.start_logits.detach(), atol=1e-5)
    np.testing.assert_allclose(outputs["end"], expected.end_logits.detach(), atol=1e-5)
    np.testing.assert_allclose(value, expected.loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient["kernel"].T, layer.weight.grad, atol=1e-5)


def test_padding_changes_nothing_and_is_never_an_answer():
    rng = np.random.default_rng(1)
    hidden = jnp.array(rng.normal(size=(2, 9, 8)), jnp.bfloat16)
    head = qa.Head(EncoderConfig(hidden_size=8), dtype=jnp.bfloat16)
    batch = {"mask": (jnp.arange(9) < 6).astype(int) * jnp.ones((2, 1), int)}
    params = head.init(jax.random.key(0), hidden, batch)
    padded: Any = head.apply(params, hidden, batch)
    short: Any = head.apply(params, hidden[:, :6], {"mask": batch["mask"][:, :6]})
    gold = {"start": jnp.array([1, 0]), "end": jnp.array([5, 0])}
    assert padded["start"].dtype == jnp.float32 and (padded["start"][:, 6:] < -1e29).all()
    np.testing.assert_allclose(qa.loss(padded, gold)[0], qa.loss(short, gold)[0], rtol=1e-6)


def test_rows_without_gold_are_ignored():
    outputs = {"start": jnp.zeros((3, 4)), "end": jnp.zeros((3, 4))}
    total, count = qa.loss(outputs, {"start": jnp.array([2, IGNORE, 0]), "end": jnp.array([3, IGNORE, 0])})
    assert count == 2 and total == pytest.approx(2 * np.log(4))  # each of four places is as likely


# ---- scores


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The  U.S.\tan answer, a Bell!", "us answer bell"),
        ("en", "theatre ana", "theatre ana"),  # an article is a word
        ("squad", "The “Bell” – 5$", "“bell” – 5"),  # ASCII's punctuation alone
        ("en", "The “Bell” – 5$", "bell 5"),  # MLQA: all of Unicode's
        ("es", "¿El río, de LOS unos?", "río de"),
        ("de", "Eine „Art“ – des Bären und der 5$", "art bären und 5"),
        ("de", "the Derby", "the derby"),
        ("ar", "الكتاب، والبيت", "كتاب و بيت"),  # wherever the two letters occur, as MLQA's pattern has it
        ("vi", "Những cái áo của chiếc là bé.", "áo bé"),
        ("hi", "एक घर। the", "एक घर the"),
        ("zh", "在2007年，IBM of 美国（US-5）", "在 2007 年 ibm of 美 国 us5"),
        ("zh-CN", "的a", "的 a"),
        ("tr", "Bir “the” Şey's", "bir the şeys"),
    ],
)
def test_normalized(language, text, tokens):
    assert qa_scores.normalize(text, language) == tokens


@pytest.mark.parametrize(
    ("found", "gold", "f1", "exact"),
    [
        ("the Bell.", "bell", 1.0, 1.0),
        ("red red bell", "red bell bell", 2 / 3, 0.0),  # bags: red once, bell once; 2 of 3 and 2 of 3
        ("big red bell", "bell", 0.5, 0.0),  # precision 1/3, recall 1
        ("", "bell", 0.0, 0.0),
        ("the", "a", 0.0, 1.0),  # nothing is left of either: SQuAD v1.1 finds them the same, and no token shared
    ],
)
def test_f1_and_exact_match(found, gold, f1, exact):
    assert qa_scores.f1(found, gold, "en") == pytest.approx(f1)
    assert qa_scores.exact(found, gold, "en") == exact


def test_f1_in_chinese_is_of_characters():
    assert qa_scores.f1("黑豹队", "黑豹", "zh") == pytest.approx(0.8)
    assert qa_scores.f1("黑豹队", "黑豹", "tr") == 0.0


def test_score_takes_the_best_gold_answer_and_leaves_out_questions_without():
    examples = [example("a red bell", "bell", "red bell"), example("x"), example("der Bär", "der Bär", language="de")]
    scores = qa.score(examples, ["red bell", "x", "Bär auch"], "en")
    assert scores["f1"] == (pytest.approx(100 * (1 + 2 / 3) / 2), 2)  # Bär: 1 of 2, 1 of 1, by German articles
    assert scores["em"] == (50.0, 2)
    assert qa.score(examples[1:2], ["x"], "en") == {}


# ---- files


def squad_file(tmp_path, questions, context="Ann saw Ann.", name="x.json"):
    path = tmp_path / name
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}), encoding="utf-8")
    return path


def question(*answers, **fields):
    return {"id": "q", "question": "who?", "answers": [{"text": t, "answer_start": s} for t, s in answers], **fields}


def test_read(tmp_path):
    path = squad_file(tmp_path, [question(("Ann", 8), (" saw ", 3)), question(("", 0), id=7)])
    assert squad.read(path, language="en", field="test") == [
        Example("q", "who?", "Ann saw Ann.", (Answer("Ann", 8), Answer("saw", 4)), "en", "en"),
        Example("7", "who?", "Ann saw Ann.", (), "en", "en"),
    ]
    blind = squad_file(tmp_path, [{"id": "q", "question": "who?"}])
    assert squad.read(blind, language="en", field="test")[0].answers == ()


def test_misplaced_answers_are_found_or_counted(tmp_path, caplog):
    path = squad_file(tmp_path, [question(("Ann", 7), ("Ann", 2), ("Ann", -4), ("Bob", 0), ("saw", 4))])
    with caplog.at_level(logging.WARNING, logger="absl"):
        (found,) = squad.read(path, language="en", field="test")
    assert [answer.start for answer in found.answers] == [8, 0, 0, -1, 4]
    assert "4 of 5 answers" in caplog.text and "3 were found elsewhere" in caplog.text and "1 nowhere" in caplog.text


def test_languages_of_the_grid(tmp_path):
    assert squad.grid_languages("a/test-context-de-question-es.json") == ("de", "es")
    assert squad.grid_languages("xquad.de.json") is None
    path = squad_file(tmp_path, [question()], name="dev-context-de-question-es.json")
    (found,) = squad.read(path, language="es", field="test")
    assert (found.language, found.question_language) == ("de", "es")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [\n{"paragraphs"}]}', r"x.json:2: not JSON \(.*column 14"),
        ('[{"paragraphs": []}]', "x.json: no key 'data'"),
        ('{"data": [{"title": "x"}]}', r"x.json: data\[0\]: no key 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": 5, "qas": []}]}]}', r"paragraphs\[0\]: 'context' is '5'"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "k"}]}]}]}',
            r"qas\[0\] \(id k\): no key 'question'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "k", "answers": [{"text": "x"}]}]}]}]}',
            r"\(id k\).answers\[0\]: no key 'answer_start'",
        ),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        squad.read(path, language="en", field="config.data.test")
    assert str(error.value).startswith(f"config.data.test: {path}") and "\n" not in str(error.value)


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"data":\n "M\xfcll"}')
    with pytest.raises(UserError, match=r"x\.json:2: not UTF-8"):
        squad.read(path, language="en", field="test")


def test_written_predictions(tmp_path):
    examples = [example("x", id="a"), example("x", id="b")]
    squad.write(tmp_path / "en", examples, ["Güell", ""])
    text = (tmp_path / "en").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": "Güell", "b": ""} and "Güell" in text
