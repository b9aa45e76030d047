"""Text and labelled tasks in a derived language: what the written files say, read again by the tasks."""

import pytest

from ppa_jax.errors import UserError
from ppa_jax.studies.align_mlm import derived_tasks
from ppa_jax.studies.align_mlm.derivation import CloneScript, Derivation, WordOrder
from ppa_jax.tasks import nli, parsing, tagging

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'!"
SCRIPT = CloneScript(CHARACTERS)
ORIGINAL = {ord(SCRIPT.word(letter)): letter for letter in CHARACTERS}
BOTH = Derivation("trans+inv", script=SCRIPT)

TREE = """\
1\tAnn\t_\tPROPN\t_\t_\t2\tnsubj\t_\t_
2\tsees\t_\tVERB\t_\t_\t0\troot\t_\t_
3\tn't\t_\tPART\t_\t_\t2\tadvmod\t_\t_
4\tBo\t_\tPROPN\t_\t_\t2\tobj\t_\t_
5\t.\t_\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""


def split(text):
    """As BERT's: at spaces and around punctuation."""
    return "".join(f" {c} " if c in ".,'!" else c for c in text).split()


def write(path, *given):
    """Writes derived examples; returns the number of entities that are split."""
    text, count = derived_tasks.examples_text(*given)
    path.write_text(text, encoding="utf-8")
    return count


def back(text):
    return " ".join(text.translate(ORIGINAL).split())


@pytest.fixture
def conllu(tmp_path):
    path = tmp_path / "en.conllu"
    path.write_text(TREE)
    return str(path)


def test_text_of_every_kind(tmp_path, conllu):
    (tmp_path / "a.txt").write_text("Go on, Ann!\n\nYes.\n")
    (tmp_path / "b.tsv").write_text("en:Ann\tB-PER\nen:sees\tO\n\n")
    spec = f"{tmp_path}/a.txt,{tmp_path}/b.tsv,{conllu},sample:0-3"
    sentences = derived_tasks.read_text(spec, field="f")
    assert [len(x.words) for x in sentences[:4]] == [5, 2, 2, 5] and len(sentences) == 7
    assert [x.tree is not None for x in sentences] == [False] * 3 + [True] * 4
    plain, derived = derived_tasks.derive_text(sentences[0], BOTH, split)
    assert plain == "Go on , Ann !" and back(derived) == "Ann , on Go !" and derived != back(derived)
    with pytest.raises(UserError, match="f: no text"):
        derived_tasks.read_text(" , ", field="f")


def test_words_of_plain_text_stand_between_spaces_and_punctuation():
    """And so is their order in a derived language: what is within a word stays in it."""
    assert derived_tasks.words_of('"Don\'t go (in 1980-81)!" ...') == [
        '"', "Don't", "go", "(", "in", "1980-81", ")", "!", '"', ".", ".", "."
    ]  # fmt: skip
    plain, derived = derived_tasks.derive_text(
        derived_tasks.Sentence(derived_tasks.words_of("they don't go.")), BOTH, split
    )
    assert plain == "they don't go ." and back(derived) == "go don ' t they ."


def test_tags_go_with_their_words_and_a_word_keeps_its_parts(tmp_path, conllu):
    examples = derived_tasks.read_examples("tagging", conllu, field="f")
    path = tmp_path / "xx.tsv"
    assert write(path, "tagging", examples, BOTH, split) == 0
    (found,) = tagging.read(path, language="xx", field="f")
    assert [back(word) for word in found.words] == ["Bo", "n ' t", "sees", "Ann", "."]
    assert list(found.tags) == ["PROPN", "PART", "VERB", "PROPN", "PUNCT"]
    write(path, "tagging", examples, None, split)
    (plain,) = tagging.read(path, language="en", field="f")
    assert list(plain.words) == ["Ann", "sees", "n't", "Bo", "."]


def test_entities_that_the_order_splits_are_counted(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("Ann\tB-PER\nBo\tI-PER\nsees\tO\nParis\tB-LOC\n\n")
    examples = derived_tasks.read_examples("tagging", str(path), field="f")
    assert write(tmp_path / "xx.tsv", "tagging", examples, BOTH, split) == 0
    (found,) = tagging.read(tmp_path / "xx.tsv", language="xx", field="f")
    assert list(found.tags) == ["B-LOC", "O", "B-PER", "I-PER"], "an entity is reversed, not torn"
    torn = [write(tmp_path / "p.tsv", "tagging", examples, Derivation("perm", seed=seed), split) for seed in range(8)]
    assert 0 < sum(torn) < 8


def test_trees_move_and_remain_trees(tmp_path, conllu):
    order = WordOrder.learn([derived_tasks.read_text(conllu, field="f")[0].tree] * 20, fewest=20)  # English as it is
    examples = derived_tasks.read_examples("parsing", conllu, field="f")
    path = tmp_path / "xx.conllu"
    write(path, "parsing", examples, Derivation("trans+inv+syn", script=SCRIPT, order=order), split)
    (found,) = parsing.read(path, language="xx", field="f")
    assert parsing.is_tree(found.heads)
    heads = {
        back(word): back(found.words[head - 1]) for word, head in zip(found.words, found.heads, strict=True) if head
    }
    assert heads == {"Ann": "sees", "n ' t": "sees", "Bo": "sees", ".": "sees"}


def test_both_sides_of_a_pair_are_derived(tmp_path):
    path = tmp_path / "nli.tsv"
    path.write_text("Ann sees Bo.\tBo, go!\tneutral\nA b\tc d\tentailment\n")
    examples = derived_tasks.read_examples("nli", str(path), field="f")
    write(tmp_path / "xx.tsv", "nli", examples, BOTH, split)
    first, second = nli.read(tmp_path / "xx.tsv", language="xx", field="f")
    assert (back(first.premise), back(first.hypothesis), first.label) == ("Bo sees Ann .", "go , Bo !", "neutral")
    assert (back(second.premise), second.label) == ("b A", "entailment")


def test_an_order_from_trees_needs_trees(tmp_path):
    path = tmp_path / "nli.tsv"
    path.write_text("Ann sees Bo.\tBo, go!\tneutral\n")
    examples = derived_tasks.read_examples("nli", str(path), field="f")
    with pytest.raises(UserError, match=r"trans\+syn: its order needs trees"):
        derivation = Derivation("trans+syn", script=SCRIPT, order=WordOrder({}))
        write(tmp_path / "xx.tsv", "nli", examples, derivation, split)
