"""Which meanings there are, and in which order: an index into a well-mixed enumeration.

The space is a list of blocks. A block is one pattern, often with one verb, and the product of its options; its
meanings are numbered in mixed radix. Every block owns as many slots as its weight, every slot holds PER_SLOT meanings,
so that rare verbs are as frequent as productive ones. Two affine permutations scatter the numbers: neighbouring indices
have little in common, and any range of some thousand indices meets all words and patterns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tools.sample.lexicon import ACTIONS, ACTIVITIES, LANDMARKS, MASS, NOUNS, PLACES, TIMES, adjectives, nouns
from tools.sample.meaning import Meaning, Phrase

PER_SLOT = 6000  # meanings of one slot; at most the capacity of the smallest block over its weight
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it spread most evenly


def coprime_near(fraction: float, modulus: int) -> int:
    """The first number from fraction * modulus upwards that shares no divisor with the modulus."""
    step = int(fraction * modulus)
    while math.gcd(step, modulus) != 1:
        step += 1
    return step


def _names(meaning: Meaning) -> bool:
    """Whether a name would follow the subject in German if the time came first: `gestern sah Anna Maria` misleads."""
    return any(NOUNS[phrase.noun].kind == "name" for phrase in (meaning.object, meaning.recipient) if phrase)


@dataclass(frozen=True)
class Block:
    build: Callable[..., Meaning]  # one argument for each list of options
    options: tuple[Sequence, ...]
    weight: int = 1
    capacity: int = 0
    step: int = 0

    def meaning(self, number: int) -> Meaning:
        code = number * self.step % self.capacity
        scattered = code * 2654435761 >> 16 & 1  # Knuth's multiplicative hash: half of the sentences are fronted
        arguments = []
        for options in self.options:
            code, digit = divmod(code, len(options))
            arguments.append(options[digit])
        meaning = self.build(*arguments)
        return replace(meaning, fronted=True) if scattered and meaning.time and not _names(meaning) else meaning


def block(build: Callable[..., Meaning], *options: Sequence, weight: int = 1) -> Block:
    capacity = math.prod(map(len, options))
    return Block(build, options, weight, capacity, coprime_near(GOLDEN, capacity))


def act(action: str, agent: Phrase, thing: Phrase, place: str | None, time: str) -> Meaning:
    return Meaning("act", agent, action, thing, place=place, time=time)


def act_on(action: str, pair: tuple[Phrase, Phrase], place: str | None, time: str) -> Meaning:
    return act(action, pair[0], pair[1], place, time)


def act_together(action: str, agents: tuple[Phrase, Phrase], thing: Phrase, place: str | None, time: str) -> Meaning:
    return act(action, replace(agents[0], second=agents[1]), thing, place, time)


def deny(agent: Phrase, done: tuple[str, Phrase], time: str) -> Meaning:
    return Meaning("act", agent, done[0], done[1], time=time, negated=True)


def move(action: str, agent: Phrase, place: str, when: tuple[str, bool]) -> Meaning:
    return Meaning("move", agent, action, place=place, time=when[0], negated=when[1])


def move_together(action: str, agents: tuple[Phrase, Phrase], place: str, when: tuple[str, bool]) -> Meaning:
    return move(action, replace(agents[0], second=agents[1]), place, when)


def give(action: str, pair: tuple[Phrase, Phrase], thing: Phrase, time: str) -> Meaning:
    return Meaning("give", pair[0], action, thing, recipient=pair[1], time=time)


def locate(agent: Phrase, where: tuple[str, str], time: str) -> Meaning:
    return Meaning("locate", agent, relation=where[0], place=where[1], time=time)


def describe(predication: tuple[Phrase, str], how: tuple[str | None, bool], time: str) -> Meaning:
    agent, quality = predication
    return Meaning("describe", agent, quality=quality, degree=how[0], negated=how[1], time=time)


def compare(pair: tuple[Phrase, Phrase], quality: str, how: tuple[str | None, bool]) -> Meaning:
    return Meaning("compare", pair[0], quality=quality, degree=how[0], negated=how[1], other=pair[1])


def like(agent: Phrase, liked: Phrase, shift: int) -> Meaning:
    position = KINDS.index(liked.noun)
    return Meaning("like", agent, "like", liked, other=Phrase(KINDS[(position + shift) % len(KINDS)], "bare"))


def want(agent: Phrase, done: tuple[str, Phrase], place: str | None) -> Meaning:
    return Meaning("want", agent, done[0], done[1], place=place)


def join(link: str, both: tuple[tuple[Phrase, str], tuple[Phrase, str]], time: str) -> Meaning:
    (agent, action), (other, other_action) = both
    return Meaning("join", agent, action, link=link, other=other, other_action=other_action, time=time, fronted=True)


PERSONS = [Phrase(noun) for noun in nouns("name", "person")]
ANIMALS = [Phrase(noun) for noun in nouns("animal")]
LIVING = PERSONS + ANIMALS
KINDS = nouns("animal", "food", "drink", "dish", "thing")
EVENT_TIMES = [time for time, row in TIMES.items() if "event" in row["uses"].split(",")]
STATE_TIMES = [time for time, row in TIMES.items() if "state" in row["uses"].split(",")]
SINGLE_TIMES = [time for time in EVENT_TIMES if TIMES[time]["tense"] != "present"]  # what is denied happens once
SOMEWHERE = [None, *PLACES]
UNSUITED = {"flower": ("new", "old"), "letter": ("big", "small")}  # adjectives that some language would not say of it
OWNERS = ("the", "this", "my", "your", "our")


def agents(group: str) -> list[Phrase]:
    return LIVING if group == "living" else PERSONS


def groups(action: str) -> list[list[str]]:
    """The objects of an action: one list of nouns for each kind, and one for the nouns named singly."""
    listed = ACTIONS[action].objects
    kinds = {entry.kind for entry in NOUNS.values()}
    single = [noun for noun in listed if noun not in kinds]
    found = [list(nouns("name", "person") if kind == "person" else nouns(kind)) for kind in listed if kind in kinds]
    return [*found, single] if single else found


def before(noun: str) -> tuple[str | None, ...]:
    """The adjectives that may stand before a noun, and none."""
    kind = NOUNS[noun].kind
    found = adjectives("thing" if kind == "fixed" else kind)
    return (None, *(adjective for adjective in found if adjective not in UNSUITED.get(noun, ())))


def objects(noun: str, *, plain: bool = False, determiners: tuple[str, ...] = ("a", "this", "two", "five")):
    """What an action can be done to: the noun with its determiners and, unless plain, its adjectives."""
    kind = NOUNS[noun].kind
    if kind in ("name", "person"):
        return [Phrase(noun)]
    choice = ("bare",) if kind in MASS else determiners
    return [Phrase(noun, word, adjective) for word in choice for adjective in ([None] if plain else before(noun))]


def distinct(first: Sequence[Phrase], second: Sequence[Phrase]) -> list[tuple[Phrase, Phrase]]:
    return [(one, other) for one in first for other in second if one.noun != other.noun]


def _acts() -> list[Block]:
    found = []
    for action, entry in ACTIONS.items():
        for group in groups(action) if entry.kind == "act" else []:
            things = [thing for noun in group for thing in objects(noun)]
            where = [None] if action in ("visit", "invite") else SOMEWHERE
            if things[0].determiner == "the":  # people, who do nothing to themselves
                pairs = distinct(agents(entry.agents), things)
                found.append(block(partial(act_on, action), pairs, where, EVENT_TIMES))
            else:
                found.append(block(partial(act, action), agents(entry.agents), things, where, EVENT_TIMES))
    return found


def _done(*determiners: str, mass: bool | None = None) -> list[tuple[str, Phrase]]:
    """Actions of people with plain things as their objects; mass: only masses, or none."""
    return [
        (action, thing)
        for action, entry in ACTIONS.items()
        if entry.kind == "act" and entry.objects != ("person",)
        for group in groups(action)
        for noun in group
        if NOUNS[noun].kind not in ("name", "person") and mass in (None, NOUNS[noun].kind in MASS)
        for thing in objects(noun, plain=True, determiners=determiners)
    ]


def _together(pairs: list[tuple[Phrase, Phrase]]) -> list[Block]:
    done: dict[str, list[Phrase]] = {}
    for action, thing in _done("a", "this", "two", "five"):
        done.setdefault(action, []).append(thing)
    return [block(partial(act_together, name), pairs, things, SOMEWHERE, EVENT_TIMES) for name, things in done.items()]


def _blocks() -> list[Block]:
    pairs = distinct(PERSONS, PERSONS)
    when = [(time, False) for time in EVENT_TIMES] + [(time, True) for time in SINGLE_TIMES]
    moves = [action for action, entry in ACTIONS.items() if entry.kind == "move"]
    gifts = [thing for noun in nouns("thing", "food") for thing in objects(noun)]
    where = [(relation, place) for place, row in LANDMARKS.items() for relation in row["relations"][0].split(",")]
    near = [(relation, place) for relation, place in where if relation in ("behind", "beside") or place == "house"]
    small = [noun for noun in nouns("thing") if noun not in ("bicycle", "car", "chair", "box", "lamp", "picture")]
    pets = [noun for noun in nouns("animal") if noun not in ("horse", "cow", "bear", "wolf")]
    living = [Phrase(noun) for noun in nouns("name")]
    living += [Phrase(noun, owner) for noun in nouns("person", "animal") for owner in OWNERS]
    large = [phrase for phrase in living if phrase.noun not in pets]
    states = [(phrase, quality) for phrase in living for quality in adjectives("state_living")]
    things = [Phrase(noun, owner) for noun in nouns("thing", "fixed") for owner in OWNERS]
    conditions = [(phrase, quality) for phrase in things for quality in adjectives("state_thing")]
    masses = [Phrase(noun, owner) for noun in nouns(*MASS) for owner in OWNERS if owner != "this"]
    conditions += [(phrase, quality) for phrase in masses for quality in adjectives("state_mass")]
    liked = [Phrase(noun, "bare", adjective) for noun in KINDS for adjective in before(noun)]
    clauses = [(agent, name) for name, entry in ACTIVITIES.items() for agent in agents(entry.agents)]
    both = [(x, y) for x in clauses for y in clauses if x[0].noun != y[0].noun and x[1] != y[1]]
    ongoing = [time for time in STATE_TIMES if TIMES[time]["tense"] != "future"]
    counted = [done for done in _done("a", "this", "two", "five", mass=False) if done[0] != "lose"]
    return [
        *_acts(),
        block(deny, PERSONS, _done("this"), SINGLE_TIMES, weight=4),
        *_together(pairs),
        *(block(partial(move, action), LIVING, list(PLACES), when) for action in moves),
        *(block(partial(move_together, action), pairs, list(PLACES), when) for action in moves),
        *(block(partial(give, name), pairs, gifts, EVENT_TIMES) for name, e in ACTIONS.items() if e.kind == "give"),
        block(
            locate,
            [Phrase(noun, owner, adjective) for noun in small for owner in OWNERS for adjective in before(noun)],
            where,
            STATE_TIMES,
            weight=3,
        ),
        block(locate, [Phrase(noun, owner) for noun in pets for owner in OWNERS], where, STATE_TIMES),
        block(locate, large, near, STATE_TIMES),
        block(describe, states, [(None, False), ("very", False), (None, True)], STATE_TIMES, weight=3),
        block(describe, conditions, [(None, False), ("very", False), (None, True)], STATE_TIMES),
        block(
            compare,
            distinct(LIVING, LIVING),
            adjectives("compare"),
            [(None, False), ("much", False), (None, True)],
            weight=5,
        ),
        block(like, PERSONS, liked, range(1, len(KINDS)), weight=4),
        block(want, PERSONS, counted, SOMEWHERE, weight=4),
        block(want, PERSONS, _done(mass=True), SOMEWHERE),
        *(block(partial(join, link), both, ongoing, weight=2) for link in ("and", "but", "because")),
    ]


BLOCKS = _blocks()
SCHEDULE = [(block, turn) for block in BLOCKS for turn in range(block.weight)]
SIZE = len(SCHEDULE) * PER_SLOT
STRIDE = coprime_near(GOLDEN, SIZE)


def meaning(index: int) -> Meaning:
    """The meaning of an index; different indices have different meanings.

    Raises IndexError outside 0 .. SIZE-1.
    """
    if not 0 <= index < SIZE:
        raise IndexError(f"sample: index {index} is outside 0..{SIZE - 1}")
    slot, number = divmod(index * STRIDE % SIZE, PER_SLOT)
    block, turn = SCHEDULE[slot]
    return block.meaning(number * block.weight + turn)
