"""Derived languages: bijections, what moves with the words, the order of another language."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_jax.errors import UserError
from ppa_jax.studies.align_mlm.derivation import (
    CloneScript,
    Derivation,
    Tree,
    WordOrder,
    clone_vocabulary,
    moved_heads,
    moved_tags,
)

CHARACTERS = "abcdefghijklmnopqrstuvwxyzé.,!?\"'0123"
SCRIPT = CloneScript(CHARACTERS)
ORIGINAL = {ord(SCRIPT.word(letter)): letter for letter in CHARACTERS}


WORDS = ["a", "bird", "café", "x1", ".", ",", '"', "!?"]


@pytest.mark.parametrize("name", ["trans", "inv", "perm", "trans+inv", "perm+trans", "inv+perm", "trans+inv+perm"])
@given(words=st.lists(st.sampled_from(WORDS)))
def test_nothing_is_lost(name, words):
    """Every word once, in the new order; letter by letter; a random order depends on the set of words alone."""
    derivation = Derivation(name, script=SCRIPT, seed=3)
    order = derivation.order(words)
    assert sorted(order) == list(range(len(words)))
    assert len(ORIGINAL) == len(CHARACTERS)
    assert [word.translate(ORIGINAL) for word in derivation.words(words, order)] == [words[i] for i in order]
    if "inv" not in name:
        assert order == derivation.order(words[::-1])


def test_inversion_keeps_the_punctuation_at_the_ends():
    inverted = Derivation("inv")
    for words, expected in {
        "the cat sleeps .": "sleeps cat the .",
        "the cat , it sleeps": "sleeps it , cat the",
        '" Go on ! "': '" on Go ! "',
        "...": "...",
        "": "",
    }.items():
        words = words.split()
        assert inverted.words(words, inverted.order(words)) == expected.split()


def test_a_permutation_depends_on_the_seed_and_the_words():
    words = ["one", "two", "three", "four", "five", "six"]
    first, again, other = (Derivation("perm", seed=seed).order(words) for seed in (0, 0, 1))
    assert first == again != other and first != sorted(first)


def test_transliteration_shares_no_letter_and_keeps_words_apart():
    words = WORDS
    derivation = Derivation("trans", script=SCRIPT)
    derived = derivation.words(words, range(len(words)))
    assert not set("".join(words)) & set("".join(derived))
    assert len(set(words)) == len(set(derived)) and [len(w) for w in words] == [len(w) for w in derived]
    assert SCRIPT.word("aЖa")[1] == "Ж", "not of the vocabulary"
    with pytest.raises(UserError, match="cloned script: there are 7,000 characters"):
        CloneScript(map(chr, range(0x4E00, 0x4E00 + 7000)))


def test_a_cloned_vocabulary_gives_every_word_the_ids_of_its_clones(tmp_path):
    from ppa_jax.data.tokenizer import load_tokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "a", "b", "c", "##a", "##b", "##ab", "ab", ".",
              "caf", "##é", "##", "1"]  # fmt: skip
    source, target = tmp_path / "one", tmp_path / "two"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (source / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizerFast"}')
    script = clone_vocabulary(source, target)
    tokenizer = load_tokenizer(target)
    assert tokenizer.vocab_size == 2 * len(pieces)
    V = len(pieces)
    for word in ("a", "ab", "abab", "café", ".", "cab", "1b"):
        (ids,) = tokenizer.encode([word])
        assert tokenizer.encode([script.word(word)])[0] == [i + V for i in ids] and tokenizer.unk_id not in ids
    assert tokenizer.encode([script.word("abz")])[0] == tokenizer.encode(["abz"])[0] == [tokenizer.unk_id]
    both = f"ab. {script.word('ab')} {script.word('.')}"
    assert tokenizer.encode([both])[0] == [12, 13, 12 + V, 13 + V]
    (source / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"no vocab\.txt"):
        clone_vocabulary(source, target)


def test_heads_move_with_their_words():
    heads, order = [2, 0, 2, 3], [3, 1, 0, 2]
    moved = moved_heads(heads, order)
    for place, old in enumerate(order):
        if heads[old] == 0:
            assert moved[place] == 0
        else:
            assert order[moved[place] - 1] == heads[old] - 1


def test_entities_are_marked_again_and_split_ones_counted():
    tags = ["O", "B-PER", "I-PER", "O", "B-LOC"]
    assert moved_tags(tags, [4, 3, 2, 1, 0]) == (["B-LOC", "O", "B-PER", "I-PER", "O"], 0)
    assert moved_tags(tags, [1, 0, 2, 3, 4]) == (["B-PER", "O", "B-PER", "O", "B-LOC"], 1)
    assert moved_tags(["I-PER", "I-PER", "I-LOC"], [2, 1, 0])[0] == ["B-LOC", "B-PER", "I-PER"], "a lone I- begins one"
    assert moved_tags(["B-PER", "B-PER"], [0, 1])[0] == ["B-PER", "B-PER"], "neighbours stay apart"
    other = ["B-PER", "I-PER", "E-PER", "O", "S-LOC", "S-LOC"]  # IOBES
    assert moved_tags(other, [5, 4, 3, 2, 1, 0]) == (["B-LOC", "B-LOC", "O", "B-PER", "I-PER", "I-PER"], 0)
    assert moved_tags(["NOUN", "VERB"], [1, 0]) == (["VERB", "NOUN"], 0)


ENGLISH = Tree([3, 3, 0, 5, 3, 3], ["det", "nsubj", "root", "det", "obj", "punct"],
               ["DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT"])  # fmt: skip


def test_the_order_of_another_language():
    """Learned from a language that puts the verb last and the article behind its noun."""
    tree = Tree([2, 4, 4, 0, 4], ["nsubj", "obj", "advmod", "root", "punct"], ["NOUN", "NOUN", "ADV", "VERB", "PUNCT"])
    noun = Tree([0, 1], ["root", "det"], ["NOUN", "DET"])
    verb = Tree([3, 3, 0, 3], ["nsubj", "obj", "root", "punct"], ["NOUN", "NOUN", "VERB", "PUNCT"])
    order = WordOrder.learn([noun] * 20 + [verb] * 20 + [tree])
    words = ["the", "cat", "saw", "a", "mouse", "."]
    english = Tree([2, 3, 0, 5, 3, 3], *ENGLISH[1:])
    assert [words[i] for i in order.apply(english)] == ["cat", "the", "mouse", "a", "saw", "."]
    derivation = Derivation("syn+trans", script=SCRIPT, order=order)
    found = derivation.words(words, derivation.order(words, english))
    assert [word.translate(ORIGINAL) for word in found] == ["cat", "the", "mouse", "a", "saw", "."]
    with pytest.raises(UserError, match="its order needs trees"):
        derivation.order(words)


def test_an_order_by_rules(tmp_path):
    """Subject, object, verb; articles behind their nouns."""
    rules = tmp_path / "sov.tsv"
    rules.write_text("# verbs last\nVERB\tobj\tbefore\t1\nVERB\tnsubj\tbefore\t2\n\n*\tdet\tafter\n")
    order = WordOrder.read(rules, "order_from")
    assert order.kinds["VERB", "obj"] == (1.0, 1.0) and order.kinds["NOUN", "det"] == (0.0, None)
    words = ["the", "cat", "saw", "a", "mouse", "."]
    english = Tree([2, 3, 0, 5, 3, 3], *ENGLISH[1:])
    assert [words[i] for i in order.apply(english)] == ["cat", "the", "mouse", "a", "saw", "."]
    for text, said in {
        "VERB obj": "line 1: not a rule",
        "DET x after": "line 1: not a rule",
        "# x": "has no rule",
    }.items():
        rules.write_text(text)
        with pytest.raises(UserError, match=f"^order_from: .*{said}"):
            WordOrder.read(rules, "order_from")


def test_an_order_changes_nothing_it_has_not_learned():
    order = WordOrder({})
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 12, 30):
        heads = [0] * size
        spans = [(0, size, 0)]  # projective: a head in each span, and spans on both sides of it hang on it
        while spans:
            start, stop, head = spans.pop()
            if start < stop:
                word = int(rng.integers(start, stop))
                heads[word] = head
                spans += [(start, word, word + 1), (word + 1, stop, word + 1)]
        tree = Tree(heads, ["x"] * size, ["X"] * size)
        assert order.apply(tree) == list(range(size))
        crossing = Tree([0, *(int(rng.integers(1, i + 1)) for i in range(1, size))], *tree[1:])
        assert sorted(order.apply(crossing)) == list(range(size)), "no word is lost"
    right = Tree([0, 1, 2, 3], ["x"] * 4, ["X"] * 4)
    assert order.apply(right) == [0, 1, 2, 3]
    deep = Tree([*range(2, 5001), 0], ["x"] * 5000, ["X"] * 5000)
    assert order.apply(deep) == list(range(5000))


@pytest.mark.parametrize("name", ["", "inverse", "inv+inv", "trans,inv"])
def test_invalid_names(name):
    with pytest.raises(UserError, match="write steps of trans, inv, perm, syn"):
        Derivation(name, script=SCRIPT)
