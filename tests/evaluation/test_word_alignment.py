"""Word alignment by hand, against PyTorch's softmax and the definition, gold of every form, and a real model."""

import itertools
import re

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation.word_alignment import (
    GoldSet,
    align_argmax,
    align_softmax,
    counts,
    evaluate_word_alignment,
    join_words,
    read_gold,
)


def test_rates_by_hand():
    # Found 3 links: one sure, one only possible, one wrong; of two sure links one is missed.
    found, sure, possible = {(0, 0), (1, 1), (2, 2)}, {(0, 0), (3, 3)}, {(0, 0), (3, 3), (1, 1)}
    assert counts(found, sure, possible) == {"aer": (5 - 1 - 2, 5), "precision": (2, 3), "recall": (1, 2)}
    assert counts(sure, sure, possible)["aer"] == (0, 4)
    assert counts(set(), sure, possible) == {"aer": (2, 2), "precision": (0, 0), "recall": (0, 2)}


def test_softmax_needs_both_directions():
    # Source 0 has products 8, 0 with the targets, source 1 has 8, 9: from 0 the way leads to target 0 alone, from 1 to
    # both (e^-1 = 0.37); from target 0 to both sources, from target 1 (0 against 9: 0.0001) to source 1 alone.
    source, target = np.eye(2), np.array([[8.0, 8.0], [0.0, 9.0]])
    assert align_softmax(source, target).tolist() == [[True, False], [True, True]]
    # Above 0.3: source 1 to target 0 has 0.27 forward, 0.5 back.
    assert align_softmax(source, target, 0.3).tolist() == [[True, False], [False, True]]


def test_argmax_needs_both_directions_and_no_length():
    source = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    target = np.array([[0.2, 0.0], [20.0, 30.0]])
    assert align_argmax(source, target).tolist() == [[True, False], [False, False], [False, True]]


def test_softmax_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for _ in range(20):
        source, target = (rng.normal(size=(rng.integers(1, 9), 5)).astype(np.float32) * 2 for _ in range(2))
        product = torch.from_numpy(source) @ torch.from_numpy(target).T
        expected = (product.softmax(0) > 1e-3) & (product.softmax(1) > 1e-3)
        assert np.array_equal(align_softmax(source, target), expected.numpy())


def test_sides_without_pieces_have_no_links():
    for align in (align_softmax, align_argmax):
        assert align(np.ones((0, 4)), np.ones((3, 4))).shape == (0, 3)
        assert align(np.ones((3, 4)), np.ones((0, 4))).shape == (3, 0)


def test_words_are_joined_by_any_of_their_pieces():
    aligned = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    assert join_words(aligned, [0, 0, 1, 2], [0, 1, 1]) == {(0, 0), (1, 1)}


class Letters:
    """A fake embedder: each letter is a token, whose state is a scaled unit vector, equal for both cases."""

    def __init__(self, max_length=12):
        self.tokenizer, self.max_length = self, max_length
        self.calls = []

    def encode(self, texts):
        return [[ord(letter) for letter in text if letter != "-"] for text in texts]

    def token_states(self, params, sequences, layers):
        self.calls.append(len(sequences))
        for number in reversed(range(len(sequences))):  # they come in no order
            states = np.array([np.eye(26)[(x | 32) - 97] for x in sequences[number]]).reshape(-1, 26)
            kept = states[: self.max_length - 2] * 30
            yield number, {layer: kept if layer else 0 * kept for layer in layers}


def gold_set(*rows) -> GoldSet:
    source, target, sure, possible = zip(*rows, strict=True)
    return GoldSet([x.split() for x in source], [x.split() for x in target], list(sure), list(possible))


def test_scores_of_an_embedder_by_hand():
    gold = gold_set(
        ("ab c", "AB C", {(0, 0)}, {(0, 0), (1, 1)}),  # finds both: AER 3 - 1 - 2 of 3
        # "-" has no piece. Finds 0-1, wrong, and 2-0, possible (b is as near to either letter): AER 3 - 0 - 1 of 3.
        ("a - b", "C A", {(0, 0)}, {(0, 0), (2, 0)}),
    )
    embedder = Letters()
    scores = evaluate_word_alignment(embedder, None, {"de-en": gold, "en-fr": gold, "de-fr": gold}, [0, 4])
    shown = {(s.language, s.direction, s.layer, s.metric): (s.value, s.count) for s in scores}
    assert len(shown) == len(scores) == 4 * 2 * 3
    for language, direction, count in [
        ("de", "de-en", 2),
        ("fr", "en-fr", 2),
        ("de-fr", "de-fr", 2),
        ("mean", "all", 6),
    ]:
        assert shown[language, direction, 4, "aer"] == (pytest.approx(100 / 3), count)
        assert shown[language, direction, 4, "precision"] == (75, count)
        assert shown[language, direction, 4, "recall"] == (50, count)
    # States of zeros: all words that have pieces are aligned, 4 links in either pair, 1 sure and 2 possible.
    assert shown["de", "de-en", 0, "aer"] == (pytest.approx(100 * (5 - 3 + 5 - 3) / 10), 2)
    assert {(s.task, s.pooling) for s in scores} == {("word_alignment", "tokens")}
    assert embedder.calls == [4, 4, 4]  # one pass for all layers
    per_sentence = next(s for s in scores if (s.layer, s.metric) == (4, "aer")).groups[0]
    assert [x.tolist() for x in per_sentence] == [[0, 2], [3, 3]]


def test_the_order_of_many_sentences_is_kept():
    letters = "abcdefgh"
    rows = [(f"{a} {b}", f"{b} {a}", {(0, 1)}, {(0, 1), (1, 0)}) for a, b in itertools.permutations(letters, 2)] * 5
    scores = evaluate_word_alignment(Letters(), None, {"de-en": gold_set(*rows)}, [1], method="argmax")
    assert {(s.metric, s.value) for s in scores} == {("aer", 0.0), ("precision", 100.0), ("recall", 100.0)}
    assert (scores[0].count, scores[0].pooling) == (280, "tokens_argmax")


def test_truncated_words_are_unaligned(caplog):
    gold = {"de-en": gold_set(("abc d", "d", {(1, 0)}, {(1, 0)}), ("d", "d", {(0, 0)}, {(0, 0)}))}
    scores = evaluate_word_alignment(Letters(max_length=5), None, gold, [1])
    assert {s.metric: s.value for s in scores}["recall"] == 50
    assert "de-en: 1 sentences have more than 3 tokens" in caplog.text


def test_no_layer_and_no_such_method():
    assert evaluate_word_alignment(Letters(), None, {"de-en": gold_set(("a", "a", set(), set()))}, []) == []
    with pytest.raises(UserError, match="method 'max': choose from softmax, argmax"):
        evaluate_word_alignment(Letters(), None, {}, [1], method="max")


def write(directory, files: dict[str, str | bytes]):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


TEXTS = {"test.de": "ein  Haus\nja\n", "test.en": "one house\r\nyes yes\r\n"}
EXPECTED = GoldSet(
    [["ein", "Haus"], ["ja"]],
    [["one", "house"], ["yes", "yes"]],
    [{(0, 0), (1, 1)}, {(0, 1)}],
    [{(0, 0), (1, 1)}, {(0, 1), (0, 0)}],
)


@pytest.mark.parametrize(
    "name, links",
    [
        ("test.pharaoh", "0-0 1-1\n0p0 0-1\n"),
        ("align.txt", "0-0 1-1\n0p0 0-1"),
        ("test.align", "1-1 2-2\n1p1 1-2\n"),  # no 0, and a 2 where there are two words: counted from 1
        ("alignv2.txt", "0 1 1 S\n0 2 2 S\n1 1 1 P\n1 1 2 S\n"),
        ("alignv2.txt", "1 0 0 S\n1 1 1 S\n2 0 0 P\n2 0 1 S\n"),
        ("alignv2.txt", "0001 1 1\n0001 2 2\n\n0002 1 1 p\n0002 1 2\n"),
        ("alignv2.txt", "0001 1 1\n0001 2 2\n0001 1 -99 S\n0002 1 1 p\n0002 1 2\n"),
    ],
)
def test_gold_of_every_form_and_base(tmp_path, name, links):
    write(tmp_path / "de-en", {**TEXTS, name: links})
    assert read_gold(tmp_path) == read_gold(tmp_path / "de-en") == {"de-en": EXPECTED}


def test_the_file_with_sure_and_possible_is_preferred_and_bases_can_be_set(tmp_path, caplog):
    caplog.set_level("INFO")
    # Counted from 1 with 0 for no partner, which cannot be told from a count from 0.
    files = {**TEXTS, "align.txt": "1 1 1\n", "alignv2.txt": "2 1 2 P\n2 0 1 S\n"}
    gold = read_gold(write(tmp_path / "de-en", files), word_base=1, sentence_base=1)["de-en"]
    assert gold == GoldSet([["ja"]], [["yes", "yes"]], [set()], [{(0, 1)}])
    assert "skipped 1 links to no word" in caplog.text
    assert "left out 1 sentences without links" in caplog.text


@pytest.mark.parametrize(
    "name, links, assumed, settings",
    [
        # Four words each, of which the last have no link.
        (
            "a.pharaoh",
            "1-1 2-2 3-3\n",
            "no word has the number 0, .* counted from 0; .*config.word_base=1",
            {"word": 0},
        ),
        ("alignv2.txt", "1 2 2 S\n", "no word has the number 0, .* counted from 1; .*config.word_base=0", {"word": 1}),
        ("alignv2.txt", "1 0 0 S\n", "", {"word": 0, "sentence": 1}),
        ("a.pharaoh", "1-1 4-4\n", "", {"word": 1}),
    ],
)
def test_an_undetectable_base_is_assumed_with_a_warning(tmp_path, caplog, name, links, assumed, settings):
    files = {"test.de": "a b c d\n", "test.en": "e f g h\n", name: links}
    found = read_gold(write(tmp_path / "de-en", files))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(assumed)
    assert all(re.search(f"word_alignment: .*{name}: {assumed}$", text) for text in warnings)
    caplog.clear()
    given = {f"{what}_base": base for what, base in settings.items()}
    assert read_gold(tmp_path / "de-en", **given) == found
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_undetectable_sentence_base_is_assumed_with_a_warning(tmp_path, caplog):
    files = {"test.de": "a\nb\nc\n", "test.en": "d\ne\nf\n", "alignv2.txt": "2 1 1\n"}
    assert read_gold(write(tmp_path / "de-en", files))["de-en"].source == [["b"]]
    assert "alignv2.txt: no sentence has the number 0" in caplog.text and "set config.sentence_base=0" in caplog.text
    caplog.clear()
    assert read_gold(tmp_path, sentence_base=0)["de-en"].source == [["c"]]
    assert "config.sentence_base" not in caplog.text


def read_words(tmp_path, language, text):
    """The words of each line as gold links count them."""
    lines = text.splitlines()
    directory = tmp_path / f"{language}-en"
    files = {f"test.{language}": text, "test.en": "word\n" * len(lines), "a.align": "0-0\n" * len(lines)}
    return read_gold(write(directory, files))[f"{language}-en"].source


def test_a_segmented_file_may_have_lines_of_one_word(tmp_path):
    assert read_words(tmp_path, "zh", "谢谢\n我们 喜欢 吃 鱼\n") == [["谢谢"], ["我们", "喜欢", "吃", "鱼"]]


def test_characters_are_the_words_of_a_file_that_is_not_segmented(tmp_path):
    # A space beside a foreign name, as usual in Chinese, cuts nothing into words.
    text = "谢谢\n请用 Excel 打开这个文件，再把里面的数字全部加起来。\n"
    first, second = read_words(tmp_path, "zh", text)
    assert (first, second) == (["谢", "谢"], list(text.splitlines()[1].replace(" ", "")))
    assert read_words(tmp_path, "de", "Donaudampfschifffahrt\n") == [["Donaudampfschifffahrt"]]


def test_vowel_signs_and_tone_marks_stay_with_their_letter(tmp_path):
    # "The water is very good", "thank you, mother": a space between phrases, as Thai has it.
    assert read_words(tmp_path, "th", "น้ำที่นี่ดีมาก\nขอบคุณครับ คุณแม่\n") == [
        ["น้ำ", "ที่", "นี่", "ดี", "ม", "า", "ก"],
        ["ข", "อ", "บ", "คุ", "ณ", "ค", "รั", "บ", "คุ", "ณ", "แ", "ม่"],
    ]


def test_a_line_without_links_is_an_annotated_sentence(tmp_path):
    gold = read_gold(write(tmp_path / "de-en", {**TEXTS, "a.pharaoh": "\n0-0\n"}))["de-en"]
    assert (len(gold.source), gold.sure) == (2, [set(), {(0, 0)}])


@pytest.mark.parametrize(
    "files, said",
    [
        (
            {"alignv2.txt": "1 1 1 S\n1 3 1 S\n"},
            r"alignv2.txt:2: word 3, counted from 1, but test.de:1 has 2; .* release$",
        ),
        (
            {"alignv2.txt": "1 0 0 S\n2 0 2 S\n"},
            r"alignv2.txt:2: word 2, counted from 0, but test.en:2 has 2; .*, or set config.word_base=1$",
        ),
        (
            {"alignv2.txt": "0 1 1 S\n2 1 1 S\n"},
            r"alignv2.txt:2: sentence 2, counted from 0, but there are 2; .*, or set config.sentence_base=1$",
        ),
        ({"alignv2.txt": "1 1 1 S\n3 1 1 S\n"}, r"sentence 3, counted from 1, but there are 2; .* release$"),
        ({"alignv2.txt": "1 1 1 S\n1 2\n"}, r"alignv2.txt:2: neither .sentence source target"),
        ({"alignv2.txt": "1 1 1 X\n"}, r"alignv2.txt:1: neither"),
        ({"alignv2.txt": "\n"}, r"alignv2.txt: no link in it"),
        ({"a.align": "0-0\n0-0 1=1\n"}, r"a.align:2: '1=1' is not a link like 0-0"),
        ({"a.align": "0-0\n"}, r"a.align has 1 lines and test.de has 2; they must"),
        ({"a.align": "0-0\n0-3\n"}, r"a.align:2: word 3, counted from 0, but test.en:2 has 2"),
        ({"a.align": "", "b.pharaoh": ""}, r"needs one file align\* or .*, there is a.align, b.pharaoh;"),
        ({}, r"needs one file align\* or .*, there is none;"),
        ({"dev.de": "x\n", "a.align": "0-0\n0-0\n"}, r"needs one file \*.de, there is dev.de, test.de;"),
        ({"test.en": "one\n", "a.align": "0-0\n0-0\n"}, r"test.de has 2 lines and test.en has 1;"),
        ({"test.en": b"one\n\xff\n", "a.align": "0-0\n0-0\n"}, r"test.en:2: not UTF-8"),
    ],
)
def test_gold_that_cannot_be_used(tmp_path, files, said):
    write(tmp_path / "de-en", TEXTS | files)
    with pytest.raises(UserError, match=f"^eval.gold: .*{said}") as caught:
        read_gold(tmp_path, field="eval.gold")
    assert "\n" not in str(caught.value)


def test_directories_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"word_alignment: no such directory: .*nowhere"):
        read_gold(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither named like de-en nor holding"):
        read_gold(tmp_path)


@pytest.mark.shared_data
def test_finds_what_pytorch_finds_in_a_real_model(shared):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from ppa_jax.data.tokenizer import load_tokenizer
    from ppa_jax.evaluation.embed import Embedder
    from ppa_jax.interop import huggingface

    gold = read_gold(shared / "data/word_alignment")
    size = {pair: (len(g.source), sum(map(len, g.sure)), sum(map(len, g.possible))) for pair, g in gold.items()}
    # One link of de-en leads to no word.
    assert size == {"de-en": (508, 9612, 10533), "en-fr": (447, 4038, 4038 + 13400)}

    directory, layer = shared / "models/minimbert", 3
    some = GoldSet(*(column[:16] for column in gold["de-en"]))
    pretrained = huggingface.read(directory)
    embedder = Embedder(pretrained.config, load_tokenizer(directory), max_length=128)
    scores = evaluate_word_alignment(embedder, pretrained.params["encoder"], {"de-en": some}, [layer])
    got = np.array(next(s for s in scores if s.metric == "aer").groups[0])

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    peer = transformers.AutoModel.from_pretrained(directory).eval()

    def states(words):
        pieces = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        ids = [tokenizer.cls_token_id, *itertools.chain(*pieces), tokenizer.sep_token_id]
        with torch.no_grad():
            hidden = peer(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0, 1:-1]
        return hidden, [number for number, of in enumerate(pieces) for _ in of]

    expected = []
    for source, target, sure, possible in zip(*some, strict=True):
        (x, source_word), (y, target_word) = states(source), states(target)
        product = x @ y.T
        pieces = ((product.softmax(0) > 1e-3) & (product.softmax(1) > 1e-3)).nonzero().tolist()
        links = {(source_word[i], target_word[j]) for i, j in pieces}
        hits = len(links & sure) + len(links & possible)
        expected.append((len(links) + len(sure) - hits, len(links) + len(sure)))
    # A link whose probability is at the threshold within rounding may differ.
    assert np.abs(got - np.array(expected).T).sum() <= 2
