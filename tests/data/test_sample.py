"""The built-in sample: what its files hold, checked without the code that wrote them."""

import re
from collections import Counter
from itertools import combinations

import pytest

from ppa_jax.data import sample
from ppa_jax.errors import UserError

SCRIPTS = {"en": "A-Za-z", "de": "A-Za-zÄÖÜäöüß", "es": "A-Za-záéíóúñü", "ru": "А-Яа-яЁё"}
SOME = (30_000, 30_600)  # of the test sentences of the demos


def test_sentences_are_distinct_and_in_the_right_script():
    for language in sample.LANGUAGES:
        texts = sample.sentences(language)
        # No two are the same, so a range that is tested shares no sentence with one that is trained on.
        assert len(set(texts)) == len(texts) == sample.size()
        letters = SCRIPTS.get(language)
        form = rf"[A-ZÄÖÜÁÉÍÓÚА-Я][{letters} ,]+\." if letters else "[\u4e00-\u9fff，]+。"
        assert all(re.fullmatch(form, text) for text in texts[:: sample.size() // 300])


def test_by_hand():
    assert sample.pairs("en", "zh", 3, 4) == [
        ("The farmer likes small cars but not cucumbers.", "农民喜欢小汽车，但是不喜欢黄瓜。")
    ]
    (english,), (chinese,) = sample.trees("en", 3, 4), sample.trees("zh", 3, 4)
    assert english.words == ("The", *english.forms[1:])
    assert english.forms == ("the", "farmer", "likes", "small", "cars", "but", "not", "cucumbers", ".")
    assert english.tags == ("DET", "NOUN", "VERB", "ADJ", "NOUN", "CCONJ", "PART", "NOUN", "PUNCT")
    assert english.heads == (2, 3, 0, 5, 3, 8, 8, 5, 3)
    assert english.relations == ("det", "nsubj", "root", "amod", "obj", "cc", "advmod", "conj", "punct")
    (links,) = sample.alignments("en", "zh", 3, 4)
    assert {(english.words[i], chinese.words[j]) for i, j in links} == {
        ("farmer", "农民"), ("likes", "喜欢"), ("small", "小"), ("cars", "汽车"), ("but", "但是"), ("not", "不"),
        ("cucumbers", "黄瓜"), (".", "。"),
    }  # fmt: skip
    assert sample.sentences("en", sample.size() - 2) == sample.sentences("en")[-2:]


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_trees_are_projective_trees_of_the_sentences(language):
    for tree, text in zip(sample.trees(language, *SOME), sample.sentences(language, *SOME), strict=True):
        joined = ("" if language == "zh" else " ").join(tree.words)
        assert re.sub(r" ([.,])", r"\1", joined) == text
        assert len({len(column) for column in tree}) == 1
        assert tree.heads.count(0) == 1 and tree.relations[tree.heads.index(0)] == "root"
        above = {position: ancestors(tree.heads, position) for position in range(1, len(tree.heads) + 1)}
        for position, head in enumerate(tree.heads, 1):
            first, last = sorted((position, head)) if head else (0, 0)
            assert all(head in above[between] for between in range(first + 1, last)), tree


def ancestors(heads: tuple[int, ...], position: int) -> list[int]:
    """The heads above a word up to the root."""
    found = []
    while position:
        position = heads[position - 1]
        assert position not in found, "a cycle"
        found.append(position)
    return found


@pytest.mark.parametrize("pair", list(combinations(sample.LANGUAGES, 2)), ids="-".join)
def test_alignments_are_valid_and_cover_nouns(pair):
    first, second = pair
    found = sample.alignments(first, second, *SOME)
    assert found == [{(i, j) for j, i in links} for links in sample.alignments(second, first, *SOME)]
    sides = zip(sample.trees(first, *SOME), sample.trees(second, *SOME), strict=True)
    for links, trees in zip(found, sides, strict=True):
        for side, tree in enumerate(trees):
            covered = {link[side] for link in links}
            assert covered <= set(range(len(tree.words)))
            names = {i for i, tag in enumerate(tree.tags) if tag == "PROPN" or (tag == "VERB" and tree.heads[i] == 0)}
            assert names <= covered, tree


def test_dictionary():
    found = sample.dictionary("en", "ru")
    assert found == sorted(set(found)) and len(found) > 500
    assert sample.dictionary("ru", "en") == sorted((russian, english) for english, russian in found)
    assert ("red", "红色") in sample.dictionary("en", "zh")


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_nli_is_balanced(language):
    rows = sample.nli(language)
    labels = {"entailment", "neutral", "contradiction"}
    for start in range(0, len(rows), 3):  # so that the hypothesis alone says nothing about the label
        assert len({hypothesis for _, hypothesis, _ in rows[start : start + 3]}) == 1
        assert {label for *_, label in rows[start : start + 3]} == labels
    assert len(set(rows)) == len(rows) and len({hypothesis for _, hypothesis, _ in rows}) == len(rows) // 3
    assert [label for *_, label in rows] == [label for *_, label in sample.nli("en")]
    first = Counter(label for *_, label in rows[::3])
    assert min(first.values()) > len(rows) / 9 * 0.9, "the place among the three says nothing, either"


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_questions_have_one_answer_in_their_context(language):
    rows = sample.questions(language)
    assert len(rows) % 4 == 0
    for start in range(0, len(rows), 4):
        four = rows[start : start + 4]
        assert len({row.context for row in four}) == 1 and len({row.question for row in four}) == 4
        for row in four:
            assert row.answer and row.context.lower().count(row.answer.lower()) == 1
            assert row.context[row.start :].startswith(row.answer)


def test_unknown_language():
    for read in (sample.sentences, sample.trees, sample.nli, sample.questions):
        with pytest.raises(ValueError, match="has en, de, es, ru, zh, not fr"):
            read("fr")
    with pytest.raises(ValueError, match="not fr"):
        sample.dictionary("en", "fr")


def test_range():
    assert [sample.parse_range(text, 90, where="f") for text in ("sample", "sample:3-9")] == [(0, 90), (3, 9)]
    for text in ("sample:9-3", "sample:5-5", "sample:0-91", "sample:1", "sample:", "sample:a-b", "sample:0-9:act"):
        assert sample.is_source(text)
        with pytest.raises(UserError, match=f"^f={text}: write sample or sample:A-B with 0 <= A < B <= 90$"):
            sample.parse_range(text, 90, where=f"f={text}")
    with pytest.raises(UserError, match=r"^f: the built-in sample is named sample, not world; write sample or"):
        sample.parse_range("world:0-9", 90, where="f")
    assert not any(map(sample.is_source, ("samples", "sample.tsv", "./sample", "a/sample:0-3")))
