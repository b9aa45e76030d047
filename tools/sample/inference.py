"""NLI: pairs of meanings whose label is true by construction, and which neither sentence alone gives away.

Three indices in a row share their hypothesis; one of their premises entails it, one contradicts it, one leaves it open.
So nothing that sees only the hypothesis can be right more than a third of the time. What the premise says is drawn so
that its form (the roles that are filled) and each of its words are as likely under every label; only premise and
hypothesis together tell. A premise is two sentences: one that matters, before or after one about something else. The
latter is there for the lengths: of a pair that differs in one word only, the difference of the lengths gives it away.

What counts as true:

- What is clean is not dirty, what is happy is not sad, what is hot is not cold; there is also neither.
- Of two, one may be faster than the other, or neither.
- A thing is at one place of a landmark at a time: what is under the table is not on it.
- Where doer, deed, thing and day are the same, both sentences tell of one event. It has one place, and `this cup` has
  one colour, size and age.
- Who does something together with another does it; what happens in the evening happens on that day.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import NamedTuple

from tools.sample.lexicon import ACTIONS, LANDMARKS, MASS, NOUNS, adjectives, nouns
from tools.sample.meaning import Meaning, Phrase
from tools.sample.space import (
    LIVING,
    OWNERS,
    PERSONS,
    UNSUITED,
    Block,
    before,
    block,
    distinct,
    groups,
    meaning,
)
from tools.sample.space import SIZE as WORLD

LABELS = ("entailment", "neutral", "contradiction")  # in the order of XNLI's numbers
OPPOSITE = {"clean": "dirty", "dirty": "clean", "happy": "sad", "sad": "happy", "hot": "cold", "cold": "hot"}
EXCLUSIVE = (("big", "small"), ("new", "old"), ("red", "blue", "green", "black", "white"))
SHADES = tuple(adjective for group in EXCLUSIVE for adjective in group)
# Nobody is at two of these at once; as many as SHADES, so that a hypothesis has either as often.
APART = ("park", "school", "market", "forest", "beach", "station", "hospital", "church", "theater")
DAYS = {"yesterday": ("yesterday_evening",), "every_day": ("every_morning", "every_evening"),
        "tomorrow": ("tomorrow_evening",)}  # fmt: skip
MOMENTS = ("yesterday", "this_morning", "now", "tomorrow")  # of states; none of them is part of another
RELATIONS = ("in", "on", "under", "beside")  # not behind: what is behind may be beside, too


def _other(random: Random, choice, this):
    """Any but this one."""
    return random.choice([one for one in choice if one != this])


def _noun(random: Random, phrase: Phrase, *taken: str) -> Phrase:
    """The phrase of another noun of its kind."""
    kind = nouns(NOUNS[phrase.noun].kind)
    return replace(phrase, noun=random.choice([noun for noun in kind if noun not in (phrase.noun, *taken)]))


def _state(predication: tuple[Phrase, str], negated: bool, time: str) -> Meaning:
    return Meaning("describe", predication[0], quality=predication[1], negated=negated, time=time)


def _before_state(random: Random, hypothesis: Meaning, label: str) -> Meaning:
    """`very clean` or `clean` before `clean` or `not dirty`."""
    assert hypothesis.quality and hypothesis.time
    quality, agent, time = hypothesis.quality, hypothesis.agent, hypothesis.time
    same = (label == "entailment") != hypothesis.negated
    if label == "neutral":
        same = random.random() < 0.5
        lively = quality not in ("hot", "cold") and NOUNS[agent.noun].kind in ("name", "person", "animal")
        change = random.choice(("agent", "time", "quality") if lively else ("agent", "time"))
        if change == "agent":
            agent = _noun(random, agent)
        elif change == "time":
            time = _other(random, MOMENTS, time)
        else:
            quality = "happy" if quality in ("clean", "dirty") else "clean"
    degree = random.choice(("very", None)) if hypothesis.negated else "very"
    quality = quality if same else OPPOSITE[quality]
    return Meaning("describe", agent, quality=quality, degree=degree, time=time)


def _comparison(pair: tuple[Phrase, Phrase], quality: str, negated: bool) -> Meaning:
    return Meaning("compare", pair[0], quality=quality, other=pair[1], negated=negated)


def _before_comparison(random: Random, hypothesis: Meaning, label: str) -> Meaning:
    """`Anna is much faster than Peter` before `Anna is faster than Peter` or `Peter is not faster than Anna`."""
    assert hypothesis.quality and hypothesis.other
    one, two, quality = hypothesis.agent, hypothesis.other, hypothesis.quality
    same = (label == "entailment") != hypothesis.negated
    if label == "neutral":
        same = random.random() < 0.5
        change = random.choice(("agent", "other", "quality"))
        if change == "agent":
            one = _noun(random, one, two.noun)
        elif change == "other":
            two = _noun(random, two, one.noun)
        else:
            quality = _other(random, COMPARED, quality)
    degree = random.choice(("much", None)) if hypothesis.negated else "much"
    one, two = (one, two) if same else (two, one)
    return Meaning("compare", one, quality=quality, degree=degree, other=two)


def _location(thing: Phrase, where: tuple[str, str], negated: bool, time: str) -> Meaning:
    return Meaning("locate", thing, relation=where[0], place=where[1], negated=negated, time=time)


def _relations(landmark: str) -> list[str]:
    return [relation for relation in LANDMARKS[landmark]["relations"][0].split(",") if relation in RELATIONS]


def _before_location(random: Random, hypothesis: Meaning, label: str) -> Meaning:
    """`my white cup is under the table` before `my cup is under the table` or `my cup is not on the table`."""
    assert hypothesis.place and hypothesis.relation and hypothesis.time
    thing, relation, time = hypothesis.agent, hypothesis.relation, hypothesis.time
    same = (label == "entailment") != hypothesis.negated
    if label == "neutral":
        same = random.random() < 0.5
        if random.random() < 0.5:
            thing = replace(thing, noun=_other(random, PLACED, thing.noun))
        else:
            time = _other(random, MOMENTS, time)
    if not same:
        relation = _other(random, _relations(hypothesis.place), relation)
    thing = replace(thing, adjective=random.choice(SHADES))
    return Meaning("locate", thing, relation=relation, place=hypothesis.place, time=time)


def _event(agent: Phrase, deed: tuple[str, str], detail: str, day: str) -> Meaning:
    adjective, place = (detail, None) if detail in SHADES else (None, detail)
    return Meaning("act", agent, deed[0], Phrase(deed[1], "this", adjective), place=place, time=day)


def _before_event(random: Random, hypothesis: Meaning, label: str) -> Meaning:
    """The premise has two details, one short (an adjective, or the time of day) and one long (a place, or company).

    The hypothesis has one, an adjective or a place. Half of the premises have an adjective and a place. Of the others a
    quarter has an adjective and company, a quarter a time of day and a place, under every label: those that have what
    the hypothesis has entail or contradict it; those that lack it leave it open.
    """
    assert hypothesis.action and hypothesis.object and hypothesis.time
    agent, noun, day = hypothesis.agent, hypothesis.object.noun, hypothesis.time
    adjective, place = hypothesis.object.adjective, hypothesis.place
    told = "adjective" if adjective else "place"
    adjective, place = adjective or random.choice(SHADES), place or random.choice(APART)
    both = random.random() < 0.5
    if label == "contradiction" and told == "adjective":
        adjective = _other(random, next(group for group in EXCLUSIVE if adjective in group), adjective)
    elif label == "contradiction":
        place = _other(random, APART, place)
    elif label == "neutral" and both:
        others = [other for action, other in DEEDS if action == hypothesis.action and other != noun]
        once = day != "every_day"  # which is not another day than tomorrow
        change = random.choice(("agent", *(("noun",) if others else ()), *(("day",) if once else ())))
        if change == "agent":
            agent = _noun(random, agent)
        elif change == "noun":
            noun = random.choice(others)
        else:
            day = "tomorrow" if day == "yesterday" else "yesterday"
    if not both and (told == "adjective") == (label != "neutral"):  # company instead of the place
        place = None
        company = Phrase(_other(random, nouns("person"), agent.noun))
        first, second = random.sample((agent, company), 2)
        agent = replace(first, second=second)
    elif not both:  # the time of day instead of the adjective
        adjective = None
        day = random.choice(DAYS[day])
    return Meaning("act", agent, hypothesis.action, Phrase(noun, "this", adjective), place=place, time=day)


COMPARED = tuple(quality for quality in adjectives("compare") if quality != "slow")  # says something about `fast`
PLACED = tuple(  # can be anywhere, and be of every shade
    noun
    for noun in nouns("thing")
    if noun not in UNSUITED and noun not in LANDMARKS and noun not in ("bicycle", "lamp", "picture")
)
DEEDS = [
    (action, noun)
    for action, entry in ACTIONS.items()
    if entry.kind == "act"
    for group in groups(action)
    for noun in group
    if NOUNS[noun].kind == "thing" and set(SHADES) <= set(before(noun))
]


class Frame(NamedTuple):
    """One kind of pairs: its hypotheses, and how a premise is made for one."""

    hypotheses: Block
    premise: Callable[[Random, Meaning, str], Meaning]


def _frames() -> list[Frame]:
    living = [Phrase(noun) for noun in nouns("name")]
    living += [Phrase(noun, owner) for noun in nouns("person", "animal") for owner in OWNERS]
    states = [(phrase, quality) for phrase in living for quality in ("clean", "dirty", "happy", "sad")]
    things = [Phrase(noun, owner) for noun in nouns("thing", "fixed") for owner in OWNERS]
    conditions = [(phrase, quality) for phrase in things for quality in ("clean", "dirty")]
    masses = [Phrase(noun, owner) for noun in nouns(*MASS) for owner in OWNERS if owner != "this"]
    conditions += [(phrase, quality) for phrase in masses for quality in ("hot", "cold")]
    placed = [Phrase(noun, owner) for noun in PLACED for owner in OWNERS]
    where = [(relation, landmark) for landmark in LANDMARKS for relation in _relations(landmark)]
    polarity = (False, True)
    events = block(_event, PERSONS, DEEDS, (*SHADES, *APART), list(DAYS), weight=2)
    return [
        Frame(events, _before_event),
        Frame(block(_state, states, polarity, MOMENTS), _before_state),
        Frame(block(_location, placed, where, polarity, MOMENTS), _before_location),
        Frame(events, _before_event),
        Frame(block(_state, conditions, polarity, MOMENTS), _before_state),
        Frame(block(_comparison, distinct(LIVING, LIVING), COMPARED, polarity), _before_comparison),
    ]


FRAMES = _frames()
SIZE = 3 * min(frame.hypotheses.capacity // frame.hypotheses.weight for frame in FRAMES) * len(FRAMES)


def _aside(random: Random, hypothesis: Meaning) -> Meaning:
    """A sentence about somebody else, of another pattern: it says nothing of what the hypothesis does."""
    concerned = {phrase.noun for phrase in (hypothesis.agent, hypothesis.other) if phrase}
    while True:
        aside = meaning(random.randrange(WORLD))
        named = {phrase.noun for phrase in (aside.agent, aside.agent.second, aside.object, aside.other) if phrase}
        if aside.pattern != hypothesis.pattern and not named & concerned:
            return aside


def pair(index: int) -> tuple[tuple[Meaning, Meaning], Meaning, str]:
    """The two sentences of the premise, the hypothesis, and the label of an index; no two indices have the same.

    Raises IndexError outside 0 .. SIZE-1.
    """
    if not 0 <= index < SIZE:
        raise IndexError(f"sample: NLI index {index} is outside 0..{SIZE - 1}")
    triple, position = divmod(index, 3)
    number, slot = divmod(triple, len(FRAMES))
    frame = FRAMES[slot]
    turn = [other.hypotheses for other in FRAMES[:slot]].count(frame.hypotheses)
    hypothesis = frame.hypotheses.meaning(number * frame.hypotheses.weight + turn)
    label = Random(f"labels {triple}").sample(LABELS, 3)[position]
    random = Random(f"premise {index}")
    told = frame.premise(random, hypothesis, label)
    told = replace(told, fronted=bool(told.time) and random.random() < 0.5)
    aside = _aside(random, hypothesis)
    return (told, aside) if random.random() < 0.5 else (aside, told), hypothesis, label
