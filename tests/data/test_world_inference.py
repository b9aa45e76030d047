"""NLI of the built-in sample: the labels are true by a judge of its own, and only both sentences give them away."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.tree import DecisionTreeClassifier

from ppa_jax.data import world
from ppa_jax.data.world import Meaning, inference

TRAIN, ALL = 6000, 9000
CHANCE = 0.40  # a third, and what an honest guesser may have by luck


@pytest.fixture(scope="module")
def pairs():
    return [inference.pair(index) for index in range(ALL)]


@pytest.fixture(scope="module")
def texts():
    return [world.nli(index)[0] for index in range(ALL)]


@pytest.fixture(scope="module")
def gold(pairs):
    return np.array([inference.LABELS.index(label) for *_, label in pairs])


SCALES = {"clean": ("dirt", 1), "dirty": ("dirt", -1), "happy": ("mood", 1), "sad": ("mood", -1),
          "hot": ("heat", 1), "cold": ("heat", -1)}  # fmt: skip
LOOKS = {"big": "size", "small": "size", "new": "age", "old": "age"}
DAY = {"yesterday_evening": "yesterday", "tomorrow_evening": "tomorrow", "every_morning": "every_day",
       "every_evening": "every_day"}  # fmt: skip


def possible(m: Meaning) -> dict[tuple, set]:
    """What the sentence, without its `not`, says of the world: the values it leaves to each variable."""
    if m.pattern == "describe":
        scale, sign = SCALES.get(m.quality or "", (m.quality, 1))
        return {("state", m.agent, m.time, scale): {2 * sign} if m.degree else {sign, 2 * sign}}
    if m.pattern == "compare":
        assert m.other
        one, two = sorted([m.agent.noun, m.other.noun])
        sign = 1 if one == m.agent.noun else -1
        return {("ahead", one, two, m.quality): {2 * sign} if m.degree else {sign, 2 * sign}}
    if m.pattern == "locate":
        thing = (m.agent.noun, m.agent.determiner)
        said = {("where", thing, m.time, m.place): {m.relation}}
        return said | ({("look", thing, LOOKS.get(m.agent.adjective or "", "color")): {m.agent.adjective}}
                       if m.agent.adjective else {})  # fmt: skip
    if m.pattern == "act":
        assert m.object and m.time
        said: dict[tuple, set] = {}
        for doer in (m.agent, m.agent.second):
            if doer:
                event = (doer.noun, m.action, m.object.noun, m.object.determiner, DAY.get(m.time, m.time))
                said |= {("happens", event): {True}} | ({("place", event): {m.place}} if m.place else {})
                said |= {("hour", event): {m.time}} if m.time in DAY else {}
        if m.object.adjective:
            look = LOOKS.get(m.object.adjective, "color")
            said[("look", m.object.noun, m.object.determiner, look)] = {m.object.adjective}
        return said
    return {}


def judge(premise: Meaning, hypothesis: Meaning) -> str:
    """Entailment if the hypothesis holds in all worlds of the premise, contradiction if in none."""
    assert not premise.negated
    given, asked = possible(premise), possible(hypothesis)
    everywhere = all(variable in given and given[variable] <= values for variable, values in asked.items())
    nowhere = any(variable in given and not given[variable] & values for variable, values in asked.items())
    if hypothesis.negated:
        everywhere, nowhere = nowhere, everywhere
    return "entailment" if everywhere else "contradiction" if nowhere else "neutral"


def test_every_label_is_true(pairs):
    for premise, hypothesis, label in pairs:
        # the sentence that is told of something else speaks of no variable of the hypothesis
        about = [sentence for sentence in premise if sentence.pattern == hypothesis.pattern]
        aside = [sentence for sentence in premise if sentence.pattern != hypothesis.pattern]
        assert len(about) == len(aside) == 1
        assert not possible(aside[0]).keys() & possible(hypothesis).keys()
        assert judge(about[0], hypothesis) == label, [world.realise(m, "en").text for m in (*about, hypothesis)]


def test_the_judge_is_not_easily_pleased(pairs):
    """A premise with one thing changed has another label, so the test above does see what is wrong."""
    about, hypothesis, _ = next(
        (sentence, hypothesis, label)
        for premise, hypothesis, label in pairs
        for sentence in premise
        if label == "entailment" and sentence.pattern == hypothesis.pattern == "act" and hypothesis.place
    )
    assert judge(replace(about, place="kitchen"), hypothesis) == "contradiction"
    assert judge(replace(about, time="last_year"), hypothesis) == "neutral"
    assert judge(replace(about, place=None), hypothesis) == "neutral"


def test_three_in_a_row_share_their_hypothesis_and_have_the_three_labels(pairs):
    """Hence whoever sees only the hypothesis is right exactly once in three."""
    orders = Counter()
    for first in range(0, ALL, 3):
        three = pairs[first : first + 3]
        assert len({hypothesis for _, hypothesis, _ in three}) == 1
        orders[tuple(label for *_, label in three)] += 1
        assert sorted(label for *_, label in three) == sorted(inference.LABELS)
    assert len(orders) == 6 and min(orders.values()) > ALL / 18 * 0.8


def test_pairs_are_distinct_and_reproducible(texts):
    for language in world.LANGUAGES:
        assert len({pair[language] for pair in texts}) == ALL
        assert len({pair[language][1] for pair in texts}) == ALL // 3
    assert world.nli(77) == world.nli(77)
    last, label = world.nli(world.nli_size() - 1)
    assert label in inference.LABELS and all(premise and hypothesis for premise, hypothesis in last.values())
    for index in (-1, world.nli_size()):
        with pytest.raises(IndexError):
            world.nli(index)


def words(text: str) -> list[str]:
    """Words and their neighbours; of Chinese, which has no spaces, characters and theirs."""
    units = text.split() if " " in text else list(text)
    return units + [" ".join(two) for two in pairwise(units)]


def accuracy(rows: list[str], gold: np.ndarray) -> float:
    counts = CountVectorizer(analyzer=words, min_df=3).fit_transform(rows)  # pyright: ignore[reportArgumentType]
    model = MultinomialNB().fit(counts[:TRAIN], gold[:TRAIN])
    return model.score(counts[TRAIN:], gold[TRAIN:])


@pytest.mark.parametrize("language", world.LANGUAGES)
def test_one_sentence_does_not_give_the_label_away(texts, gold, language):
    for side in (0, 1):
        rows = [f"{pair[language][side]} length{len(pair[language][side]) // 4}" for pair in texts]
        assert accuracy(rows, gold) < CHANCE


@pytest.mark.parametrize("language", world.LANGUAGES)
def test_lengths_do_not_give_the_label_away(texts, gold, language):
    rows = []
    for premise, hypothesis in (pair[language] for pair in texts):
        sizes = [len(premise), len(hypothesis), len(premise.split()), len(hypothesis.split())]
        rows.append([*sizes, sizes[0] - sizes[1], sizes[2] - sizes[3]])
    model = DecisionTreeClassifier(min_samples_leaf=20, random_state=0).fit(np.array(rows[:TRAIN]), gold[:TRAIN])
    assert model.score(np.array(rows[TRAIN:]), gold[TRAIN:]) < CHANCE


def test_both_sentences_do(texts, gold):
    """The same guesser, told which words only one of the two sentences has: so it is not the guesser that is blind."""
    rows = []
    for premise, hypothesis in (pair["en"] for pair in texts):
        p, h = (set(text.lower().replace(".", "").split()) for text in (premise, hypothesis))
        rows.append(" ".join([*(f"p:{word}" for word in p - h), *(f"h:{word}" for word in h - p)]))
    assert accuracy(rows, gold) > 0.55


HAND = [  # read by a person: index, label, the sentence that matters and the hypothesis
    (1800, "entailment",
     ("Anna steals this new ball at the station every day.", "Anna steals this ball at the station every day."),
     ("Anna stiehlt jeden Tag diesen neuen Ball am Bahnhof.", "Anna stiehlt jeden Tag diesen Ball am Bahnhof.")),
    (1801, "contradiction",
     ("Anna steals this small ball in the theater every day.", "Anna steals this ball at the station every day."),
     ("Anna stiehlt jeden Tag diesen kleinen Ball im Theater.", "Anna stiehlt jeden Tag diesen Ball am Bahnhof.")),
    (1802, "neutral",
     ("Every day the student and Anna steal this old ball.", "Anna steals this ball at the station every day."),
     ("Jeden Tag stehlen der Student und Anna diesen alten Ball.", "Anna stiehlt jeden Tag diesen Ball am Bahnhof.")),
    (1803, "neutral",
     ("The cook was very clean this morning.", "Tomorrow the cook will be clean."),
     ("Der Koch war heute Morgen sehr sauber.", "Morgen wird der Koch sauber sein.")),
    (1804, "entailment",
     ("Tomorrow the cook will be very clean.", "Tomorrow the cook will be clean."),
     ("Morgen wird der Koch sehr sauber sein.", "Morgen wird der Koch sauber sein.")),
    (1805, "contradiction",
     ("The cook will be very dirty tomorrow.", "Tomorrow the cook will be clean."),
     ("Der Koch wird morgen sehr schmutzig sein.", "Morgen wird der Koch sauber sein.")),
    (1806, "neutral",
     ("Now the new spoon is beside the cupboard.", "Tomorrow the spoon will be beside the cupboard."),
     ("Jetzt ist der neue Löffel neben dem Schrank.", "Morgen wird der Löffel neben dem Schrank sein.")),
    (1807, "entailment",
     ("Tomorrow the white spoon will be beside the cupboard.", "Tomorrow the spoon will be beside the cupboard."),
     ("Morgen wird der weiße Löffel neben dem Schrank sein.", "Morgen wird der Löffel neben dem Schrank sein.")),
    (1808, "contradiction",
     ("Tomorrow the old spoon will be in the cupboard.", "Tomorrow the spoon will be beside the cupboard."),
     ("Morgen wird der alte Löffel im Schrank sein.", "Morgen wird der Löffel neben dem Schrank sein.")),
    (1815, "contradiction",
     ("The grandmother is much lazier than the wolf.", "The grandmother is not lazier than the wolf."),
     ("Die Großmutter ist viel fauler als der Wolf.", "Die Großmutter ist nicht fauler als der Wolf.")),
    (1816, "entailment",
     ("The wolf is much lazier than the grandmother.", "The grandmother is not lazier than the wolf."),
     ("Der Wolf ist viel fauler als die Großmutter.", "Die Großmutter ist nicht fauler als der Wolf.")),
    (1817, "neutral",
     ("The dog is lazier than the grandmother.", "The grandmother is not lazier than the wolf."),
     ("Der Hund ist fauler als die Großmutter.", "Die Großmutter ist nicht fauler als der Wolf.")),
    (24, "neutral",
     ("Now my big toy is under the box.", "Now my bag is under the box."),
     ("Jetzt ist mein großes Spielzeug unter der Kiste.", "Jetzt ist meine Tasche unter der Kiste.")),
    (25, "entailment",
     ("My small bag is under the box now.", "Now my bag is under the box."),
     ("Meine kleine Tasche ist jetzt unter der Kiste.", "Jetzt ist meine Tasche unter der Kiste.")),
    (26, "contradiction",
     ("Now my blue bag is beside the box.", "Now my bag is under the box."),
     ("Jetzt ist meine blaue Tasche neben der Kiste.", "Jetzt ist meine Tasche unter der Kiste.")),
]  # fmt: skip


@pytest.mark.parametrize("index, label, english, german", HAND, ids=lambda value: str(value)[:20])
def test_pairs_by_hand(index, label, english, german):
    said, found = world.nli(index)
    assert found == label
    for language, (told, hypothesis) in (("en", english), ("de", german)):
        premise, second = said[language]
        assert told in premise and second == hypothesis
