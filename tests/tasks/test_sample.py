"""Examples of the built-in sample are those of its own functions, in every language."""

import re

import pytest

from ppa_jax.data import sample
from ppa_jax.errors import UserError
from ppa_jax.tasks import conllu, nli, parsing, qa, tagging
from ppa_jax.tasks import sample as examples


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_examples_are_those_of_the_sample(language):
    found = examples.read(nli, "sample:7-13", language=language, field="f")
    assert [(x.premise, x.hypothesis, x.label) for x in found] == sample.nli(language, 7, 13)
    assert [(x.id, x.language) for x in found] == [(str(number), language) for number in range(7, 13)]
    found = examples.read(qa, "sample:4-9", language=language, field="f")
    for number, (example, asked) in enumerate(zip(found, sample.questions(language, 4, 9), strict=True), start=4):
        assert (example.question, example.context) == (asked.question, asked.context)
        assert example.id == str(number) and [a.text for a in example.answers] == [asked.answer]
    trees = sample.trees(language, 3, 9)
    for example, tree in zip(examples.read(tagging, "sample:3-9", language=language, field="f"), trees, strict=True):
        assert (list(example.words), list(example.tags)) == (list(tree.forms), list(tree.tags))
    for example, tree in zip(examples.read(parsing, "sample:3-9", language=language, field="f"), trees, strict=True):
        assert (list(example.words), list(example.heads)) == (list(tree.words), list(tree.heads))


def test_two_sides():
    found = examples.read(nli, "sample:0-36", language="de/en", field="f")
    german, english = sample.nli("de", 0, 36), sample.nli("en", 0, 36)
    assert [(x.premise, x.hypothesis, x.label) for x in found] == [
        (de[0], *en[1:]) for de, en in zip(german, english, strict=True)
    ]
    (example,) = examples.read(qa, "sample:4-5", language="de/en", field="f")
    (german,), (english,) = sample.questions("de", 4, 5), sample.questions("en", 4, 5)
    assert (example.context, example.question) == (german.context, english.question)
    assert example.answers[0].text == german.answer
    assert (example.language, example.question_language) == ("de", "en")


@pytest.mark.parametrize(
    "task, source, language, said",
    [
        (conllu, "sample:0-1", "en", "has examples of nli, qa, tagging, parsing, not of conllu"),
        (nli, "sample:0-1", "fr", "has en, de, es, ru, zh, not fr"),
        (nli, "world:0-9", "en", "f: world:0-9: the built-in sample is named sample, not world; write sample"),
        (nli, "sample:5-5", "en", "f: sample:5-5: write sample or sample:A-B with 0 <= A < B <= 7443"),
        (qa, "sample:0-12601", "en", "0 <= A < B <= 12600"),
        (tagging, "sample:0-9", "de/en", "has en, de, es, ru, zh, not de/en"),
        (parsing, f"sample:0-{sample.size() + 1}", "en", f"B <= {sample.size()}"),
    ],
)
def test_mistakes(task, source, language, said):
    with pytest.raises(UserError, match=re.escape(said)):
        examples.read(task, source, language=language, field="f")
