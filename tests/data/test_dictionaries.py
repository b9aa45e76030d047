"""Dictionaries in MUSE's form: read, refused, cut into pieces."""

import logging

import numpy as np
import pytest

from ppa_jax.data.dictionaries import Dictionary, capitalised, read_dictionaries, translations, word_pairs
from ppa_jax.errors import UserError


@pytest.mark.parametrize("words, first, last", [(7000, 5000, 6499), (6500, 5000, 6499), (6000, 4500, 5999), (9, 0, 8)])
def test_the_test_words(words, first, last):
    chosen = Dictionary("en", "de", {str(i): ["x"] for i in range(words)}).test_words()
    assert (chosen[0], chosen[-1], len(chosen)) == (str(first), str(last), last - first + 1)


def test_reads_a_directory_and_single_files(tmp_path, caplog):
    (tmp_path / "en-de.tsv").write_bytes(
        "\ufeffice cream\tEis\r\nthe\tdie\r\nthe\tder\r\nthe\tdie\r\n\r\nlone\r\na\tb\tc\r\n".encode() + b"\xff\tx\r\n"
    )
    (tmp_path / "fr-en.txt").write_text("le the\nice  cream x\nla\u00a0the\n")
    for name in ("fr-de.txt", "en-es.0-5000.txt", "README.md"):
        (tmp_path / name).write_text("a b\n")
    with caplog.at_level(logging.INFO):
        german, french = read_dictionaries(tmp_path)
    assert german == Dictionary("en", "de", {"ice cream": ["Eis"], "the": ["die", "der"]})
    assert french == Dictionary("fr", "en", {"le": ["the"], "la": ["the"]})
    assert "en-de.tsv: 3 of 7 skipped: not `source<TAB>target`: 2 (first at line 6); not UTF-8: 1 (first" in caplog.text
    assert read_dictionaries(tmp_path / "en-de.tsv", max_words=1)[0].entries == {"ice cream": ["Eis"]}
    both = read_dictionaries(f"{tmp_path / 'en-es.0-5000.txt'}, {tmp_path / 'fr-en.txt'}")
    assert [(d.source, d.target) for d in both] == [("en", "es"), ("fr", "en")]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("other.txt", "a b\n", "has no dictionaries"),
        ("en-de.txt", "alone\n", ":1: not `source<TAB>target`; 1 of 1 unusable; each line holds a word, a tab and"),
        ("en-de.txt", "a b\nküche kitchen\nwär was\n".encode("latin-1"), ":2: not UTF-8; 2 of 3 unusable"),
        ("en-de.txt", "", "is empty"),
        ("en-de.txt", "a b\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_directories_that_cannot_be_used(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^lexica: .*{said}") as caught:
        read_dictionaries(tmp_path, field="lexica")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(tmp_path):
    for name in ("en-de.txt", "en-de.tsv", "fr-de.txt", "words.txt"):
        (tmp_path / name).write_text("a b\n")
    for spec, said in {
        "none.txt": "no such file",
        "fr-de.txt": "not a dictionary between English",
        "words.txt": "not a dictionary between English",
    }.items():
        with pytest.raises(UserError, match=f"^dictionaries: .*{said}"):
            read_dictionaries(tmp_path / spec)
    with pytest.raises(UserError, match=r"two files for en-de, the second is .*en-de\.txt"):
        read_dictionaries(tmp_path)


class Letters:
    """A tokenizer whose pieces are letters; it does not know the z."""

    unk_id = 0

    def encode(self, texts):
        return [[0 if letter == "z" else ord(letter) - 96 for letter in text] for text in texts]


def test_words_as_pieces():
    german = Dictionary("en", "de", {"cab": ["ab", "zab"], "a": ["a", "b"]})
    spanish = Dictionary("en", "es", {"cab": ["b"]})
    pieces, lengths, pairs = word_pairs([german, spanish], Letters())  # pyright: ignore
    words = [tuple(x.tolist()) for x in np.split(pieces, np.cumsum(lengths)[:-1])]
    assert words == [(3, 1, 2), (1, 2), (1,), (2,)], "each word once, in whatever language"
    assert pieces.dtype == lengths.dtype == pairs.dtype == np.int32
    found = [(words[i], words[j]) for i, j in pairs]
    assert found == [((3, 1, 2), (1, 2)), ((1,), (2,)), ((3, 1, 2), (2,))], "neither unknown pieces nor equal words"
    with pytest.raises(UserError, match="no pair whose words differ"):
        word_pairs([Dictionary("en", "de", {"a": ["a"], "z": ["b"]})], Letters())  # pyright: ignore


def test_words_with_capitals_mean_the_same():
    """Those of MUSE have none; German's nouns and the first words of sentences do."""
    german = Dictionary("en", "de", {"house": ["haus", "ßel"], "iPod": ["iPod"]}, ("house",))
    both = capitalised(german)
    assert both.entries["house"] == ["haus", "Haus", "ßel"] and both.entries["House"] == ["Haus", "haus", "ßel"]
    assert both.entries["iPod"] == ["iPod", "IPod"] and both.test_words() == ["house"]

    class Uncased(Letters):
        def encode(self, texts):
            return super().encode([text.lower() for text in texts])

    plain = Dictionary("en", "de", {"cab": ["ab", "b"]})
    one, other = (word_pairs([x], Uncased()) for x in (plain, capitalised(plain)))  # pyright: ignore
    for mine, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert len(word_pairs([capitalised(plain)], Capitals()).pairs) == 8  # pyright: ignore


class Capitals(Letters):
    def encode(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def test_translations_of_single_pieces_go_both_ways():
    class Pieces(Letters):
        vocab_size = 30
        backend = type("Backend", (), {"token_to_id": lambda self, word: 29 if word == "##q" else None})()

    german = Dictionary("en", "de", {"a": ["b", "c"], "ab": ["d"], "e": ["e"], "z": ["f"], "##q": ["g"], "##r": ["h"]})
    table = translations([german], Pieces())  # pyright: ignore
    assert {i: int(x) for i, x in enumerate(table) if x >= 0} == {1: 2, 2: 1, 3: 1, 29: 7, 7: 29}
    with pytest.raises(UserError, match="no pair of words that are one piece each"):
        translations([Dictionary("en", "de", {"ab": ["d"]})], Pieces())  # pyright: ignore


def test_no_pair_of_the_other_direction_is_among_the_first_words():
    """Who trains on the words before the test words has seen no pair of either test."""
    entries = {f"e{i}": [f"d{i}", f"d{i // 2}"] for i in range(7000)}
    whole = Dictionary("en", "de", entries)
    trained = {target for word in list(entries)[:5000] for target in entries[word]}
    turned = whole.reversed()
    assert turned.test_words() and not trained & set(turned.test_words())
    assert set(turned.test_words()) <= {target for word in whole.test_words() for target in entries[word]}
    assert turned.entries["d5000"] == ["e5000"] and turned.candidates()[0] == "e0"
