"""Examples of the built-in sample are those of its own functions, in every language."""

import re

import pytest

from ppa_jax.data import world
from ppa_jax.errors import UserError
from ppa_jax.tasks import conllu, nli, parsing, qa, sample, tagging


@pytest.mark.parametrize("language", world.LANGUAGES)
def test_examples_are_those_of_the_world(language):
    for number, example in enumerate(sample.read(nli, "world:7-13", language=language, field="f"), start=7):
        texts, label = world.nli(number)
        assert (example.premise, example.hypothesis, example.label) == (*texts[language], label)
        assert (example.id, example.language) == (str(number), language)
    for number, example in enumerate(sample.read(qa, "world:4-9", language=language, field="f"), start=4):
        asked = world.question(number)[language]
        assert (example.question, example.context) == (asked.question, asked.context)
        assert example.id == str(number) and [a.text for a in example.answers] == [asked.answer]
    for number, example in enumerate(sample.read(tagging, "world:3-9", language=language, field="f"), start=3):
        said = world.sentence(number)[language]
        assert (list(example.words), list(example.tags)) == (list(said.forms), list(said.tags))
    for number, example in enumerate(sample.read(parsing, "world:3-9", language=language, field="f"), start=3):
        tree = world.tree(number)[language]
        assert (list(example.words), list(example.heads)) == (list(tree.words), list(tree.heads))


def test_two_sides_and_kinds():
    found = sample.read(nli, "world:0-36:act", language="de/en", field="f")
    assert [int(example.id) for example in found] == [0, 1, 2, 9, 10, 11, 18, 19, 20, 27, 28, 29]
    for example in found:
        texts, label = world.nli(int(example.id))
        assert (example.premise, example.hypothesis, example.label) == (texts["de"][0], texts["en"][1], label)
    kinds = [{world.nli_kind(3 * i + j) for j in range(3)} for i in range(200)]
    assert all(len(found) == 1 for found in kinds), "three in a row share their hypothesis"
    assert set.union(*kinds) == set(sample._NLI_KINDS)
    (example,) = sample.read(qa, "world:4-5", language="de/en", field="f")
    asked = world.question(4)
    assert (example.context, example.question) == (asked["de"].context, asked["en"].question)
    assert example.answers[0].text == asked["de"].answer
    assert (example.language, example.question_language) == ("de", "en")


@pytest.mark.parametrize(
    "task, source, language, said",
    [
        (conllu, "world:0-1", "en", "has examples of nli, qa, tagging, parsing, not of conllu"),
        (nli, "world:0-1", "fr", "has en, de, es, ru, zh, not fr"),
        (nli, "world", "en", "write world:A-B, with numbers up to"),
        (nli, "world:5-5", "en", "write world:A-B"),
        (nli, "world:0-9:acts", "en", "only NLI has kinds: act, describe, describe_not, locate"),
        (qa, "world:0-9:act", "en", "only NLI has kinds"),
        (tagging, "world:0-9", "de/en", "has en, de, es, ru, zh, not de/en"),
        (tagging, f"world:0-{world.size() + 1}", "en", f"with numbers up to {world.size()}"),
    ],
)
def test_mistakes(task, source, language, said):
    with pytest.raises(UserError, match=re.escape(said)):
        sample.read(task, source, language=language, field="f")
