"""The generator of the built-in sample: a small world of people, animals, food, things, places, actions and times.

`python -m tools.sample` writes the files that the package reads (ppa_jax/data/sample). Every index below `size()` is
one meaning, and `sentence(index)` says it in English, German, Spanish, Russian and Chinese: grammatical, deterministic,
with parts of speech and gold word alignments that are true by construction, since all five are made from the same
roles. The words are in TSV tables, the grammar in one file a language, and what can be said in `space`. Two different
indices never share a text in any language. `nli`, `question` and `tree` are built on the same meanings.
"""

from functools import cache

from tools.sample import inference, questions, trees
from tools.sample.grammars import LANGUAGES, join, realise
from tools.sample.questions import Question, question
from tools.sample.space import SIZE, meaning
from tools.sample.trees import Tree
from tools.sample.words import Realisation

__all__ = [
    "LANGUAGES",
    "Question",
    "Realisation",
    "Tree",
    "dictionary",
    "nli",
    "nli_kind",
    "nli_size",
    "question",
    "question_size",
    "sentence",
    "size",
    "tree",
]

CONTENT = ("NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM")
DICTIONARY_SAMPLE = 15_000  # sentences the dictionary is read from: enough to meet every pair of forms in use


def size() -> int:
    """How many meanings there are."""
    return SIZE


def sentence(index: int) -> dict[str, Realisation]:
    """The meaning of an index in all languages. Raises IndexError outside 0 .. size()-1."""
    what = meaning(index)
    return {language: realise(what, language) for language in LANGUAGES}


def tree(index: int) -> dict[str, Tree]:
    """The dependency trees of `sentence(index)`, in the relations of Universal Dependencies."""
    what = meaning(index)
    return {language: trees.tree(what, realise(what, language), language) for language in LANGUAGES}


def align(first: Realisation, second: Realisation) -> frozenset[tuple[int, int]]:
    """Pairs (word of first, word of second) that play the same role in two realisations of one meaning."""
    places: dict[str, list[int]] = {}
    for j, roles in enumerate(second.links):
        for role in roles:
            places.setdefault(role, []).append(j)
    return frozenset((i, j) for i, roles in enumerate(first.links) for role in roles for j in places.get(role, ()))


@cache
def _dictionary(first: str, second: str) -> tuple[tuple[str, str], ...]:
    found = set()
    for index in range(DICTIONARY_SAMPLE):
        what = meaning(index)
        one, other = realise(what, first), realise(what, second)
        links = align(one, other)
        left, right = [i for i, _ in links], [j for _, j in links]
        found |= {
            (one.forms[i], other.forms[j])
            for i, j in links
            if left.count(i) == right.count(j) == 1 and one.tags[i] in CONTENT and other.tags[j] in CONTENT
        }
    return tuple(sorted(found))


def dictionary(first: str, second: str) -> list[tuple[str, str]]:
    """Pairs of content words, in the forms in use, that translate each other one to one; sorted, many to many."""
    return list(_dictionary(first, second))


def nli_size() -> int:
    """How many NLI pairs there are."""
    return inference.SIZE


def nli_kind(index: int) -> str:
    """What the hypothesis of an NLI pair says: act, describe, locate or compare, with "_not" where it is negated."""
    hypothesis = inference.pair(index)[1]
    return hypothesis.pattern + ("_not" if hypothesis.negated else "")


def nli(index: int) -> tuple[dict[str, tuple[str, str]], str]:
    """The NLI pair of an index: {language: (premise, hypothesis)}, and entailment, neutral or contradiction.

    Three indices from a multiple of three on share their hypothesis and have the three labels in some order: cut
    between threes, and no hypothesis is in both parts. Raises IndexError outside 0 .. nli_size()-1.
    """
    premise, hypothesis, label = inference.pair(index)
    texts = {}
    for language in LANGUAGES:
        said = [realise(sentence, language).text for sentence in (*premise, hypothesis)]
        texts[language] = (join(said[:-1], language), said[-1])
    return texts, label


def question_size() -> int:
    """How many questions there are."""
    return questions.SIZE
