"""Questions about a few sentences: who, what, where and when, with the span of the context that answers.

Four indices in a row ask about the same context, so that the answer follows from the question. All sentences of a
context are of one kind, each with a person, a deed, a thing, a place and a time: whoever only looks for a place finds
as many as there are sentences. One of these may be the same in all sentences, and is then not asked for; the others
differ from sentence to sentence, so that there is one answer.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random
from typing import NamedTuple

from tools.sample import chinese, english, german, russian, spanish
from tools.sample.grammars import LANGUAGES, join, realise
from tools.sample.lexicon import ACTIONS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.space import EVENT_TIMES, PERSONS, groups, objects
from tools.sample.words import Realisation, Word, finish

SIZE = 60_000
KINDS = ("agent", "object", "place", "time")  # who, what, where, when
ASKING = {
    "en": {"agent": "who", "object": "what", "place": "where", "time": "when"},
    "de": {"agent": "wer", "object": "was", "place": "wo", "time": "wann"},
    "es": {"agent": "quién", "object": "qué", "place": "dónde", "time": "cuándo"},
    "ru": {"agent": "кто", "object": "что", "place": "где", "time": "когда"},
    "zh": {"agent": "谁", "object": "什么", "place": "在 哪里", "time": "什么时候"},
}
THINGS = {  # of every action, what is neither person nor animal: for `what` and was and что
    action: [noun for group in groups(action) for noun in group if NOUNS[noun].kind not in ("name", "person", "animal")]
    for action, entry in ACTIONS.items()
    if entry.kind == "act"
}


class Question(NamedTuple):
    """In one language."""

    question: str
    context: str
    answer: str  # context[start : start + len(answer)], and nowhere else in the context
    start: int  # in characters


class Asked(NamedTuple):
    """In none."""

    events: tuple[Meaning, ...]  # the sentences of the context
    target: int  # the one the question is about
    kind: str  # what of it is asked for
    told: tuple[str, ...]  # what of it the question tells, of KINDS


def _kept(words: list[Word], roles: tuple[str, ...]) -> list[Word]:
    """The words of these roles and of the verb."""
    return [word for word in words if word.role.split(".")[0] in ("action", *roles)]


def _asking(kind: str, language: str) -> list[Word]:
    return [Word(form, "PRON", kind) for form in ASKING[language][kind].split(" ")]


def _english(m: Meaning, kind: str, told: tuple[str, ...]) -> list[Word]:
    """`Who read it?`, but `Where did Anna read it?`"""
    assert m.action
    words = _kept(english.act(m), told)
    if kind == "agent":
        return _asking(kind, "en") + words
    agent = [word for word in words if word.role.startswith("agent")]
    rest = [word for word in words if not word.role.startswith(("agent", "action"))]
    auxiliary = Word({"past": "did", "present": "does", "future": "will"}[m.tense], "AUX", "action.aux")
    verb = [Word(ACTIONS[m.action].en.base, "VERB", "action"), *english.particle(m.action)]
    return [*_asking(kind, "en"), auxiliary, *agent, *verb, *rest]


def _german(m: Meaning, kind: str, told: tuple[str, ...]) -> list[Word]:
    """The finite verb is second, here, too: what stands before it changes places with what is asked for."""
    words = _kept(german.act(m), told)
    finite = next(i for i, word in enumerate(words) if word.tag in ("VERB", "AUX"))
    return [*_asking(kind, "de"), words[finite], *words[:finite], *words[finite + 1 :]]


def _spanish(m: Meaning, kind: str, told: tuple[str, ...]) -> list[Word]:
    """The subject follows the verb."""
    words = _kept(spanish.act(m), told)
    parts: dict[str, list[Word]] = {"action": [], "agent": [], "rest": []}
    for word in words:
        head = word.role.split(".")[0]
        parts[head if head in parts else "rest"].append(word)
    return [*_asking(kind, "es"), *parts["action"], *parts["agent"], *parts["rest"]]


def _russian(m: Meaning, kind: str, told: tuple[str, ...]) -> list[Word]:
    """The order of the statement behind кто, which is masculine whoever it is."""
    words = russian.act(replace(m, agent=Phrase("man")) if kind == "agent" else m)
    return _asking(kind, "ru") + _kept(words, told)


def _chinese(m: Meaning, kind: str, told: tuple[str, ...]) -> list[Word]:
    """What is asked for stands where it stands in the statement."""
    words = []
    for word in _kept(chinese.act(m), (*told, kind)):
        if word.role == kind:
            words += _asking(kind, "zh")
        elif not word.role.startswith(f"{kind}."):
            words.append(word)
    return words


ASK: dict[str, Callable[[Meaning, str, tuple[str, ...]], list[Word]]] = {
    "en": _english, "de": _german, "es": _spanish, "ru": _russian, "zh": _chinese,
}  # fmt: skip


def ask(m: Meaning, kind: str, told: tuple[str, ...], language: str) -> str:
    """The question for one part of what was done (of KINDS), which tells the parts `told`."""
    words = ASK[language](replace(m, fronted=False), kind, told)
    if language == "zh":
        return finish(words, stop="？", comma="，", space="").text
    text = finish(words, stop="?").text
    return f"¿{text}" if language == "es" else text


def span(said: Realisation, role: str) -> tuple[int, int]:
    """Where in the text of a sentence the words of one role begin and end; they stand together."""
    places = [i for i, found in enumerate(said.roles) if found.split(".")[0] == role]
    assert places == list(range(places[0], places[-1] + 1)), said
    start = end = 0
    for i, word in enumerate(said.words[: places[-1] + 1]):
        begin = said.text.index(word, end)
        end = begin + len(word)
        start = begin if i == places[0] else start
    return start, end


def _events(random: Random, same: str | None) -> list[Meaning]:
    """Two to four events that have `same` in common and nothing else."""
    number = random.randint(2, 4)
    if same == "action":
        action = random.choice([action for action, things in THINGS.items() if len(things) >= number])
        deeds = [(action, noun) for noun in random.sample(THINGS[action], number)]
    else:
        actions = random.sample([action for action, things in THINGS.items() if things], number)
        deeds = [(action, random.choice(THINGS[action])) for action in actions]
    agents, places = random.sample(PERSONS, number), random.sample(list(PLACES), number)
    times = random.sample(EVENT_TIMES, number)
    return [
        Meaning(
            "act",
            agents[0 if same == "agent" else i],
            action=action,
            object=random.choice(objects(noun)),
            place=places[0 if same == "place" else i],
            time=times[0 if same == "time" else i],
            fronted=random.random() < 0.5,
        )
        for i, (action, noun) in enumerate(deeds)
    ]


def _unique(events: list[Meaning], kinds: list[str]) -> bool:
    """Whether no thing is in two events, and no answer in the context twice, as `tea` is where there is a teacher."""
    if len({event.object.noun for event in events if event.object}) < len(events):
        return False
    for language in LANGUAGES:
        said = [realise(event, language) for event in events]
        context = join([sentence.text for sentence in said], language).casefold()
        for sentence in said:
            for kind in kinds:
                start, end = span(sentence, kind)
                if context.count(sentence.text[start:end].casefold()) != 1:
                    return False
    return True


def asked(index: int) -> Asked:
    """The context and the question of an index. Raises IndexError outside 0 .. SIZE-1."""
    if not 0 <= index < SIZE:
        raise IndexError(f"sample: question {index} is outside 0..{SIZE - 1}")
    number, turn = divmod(index, 4)
    for attempt in count():
        random = Random(f"context {number} {attempt}")
        same = random.choice((None, "action", "agent", "place", "time"))
        events = _events(random, same)
        kinds = [kind for kind in KINDS if kind != same]
        if _unique(events, kinds):
            break
    questions = [(target, kind) for target in range(len(events)) for kind in kinds]
    target, kind = random.sample(questions, 4)[turn]
    told = [part for part in ("agent", "object") if part != kind]
    told += [part for part in ("place", "time") if part != kind and random.random() < 0.5]
    if same == "agent" and kind == "object" and told == ["agent"]:  # she did it all
        told.append(random.choice(("place", "time")))
    return Asked(tuple(events), target, kind, tuple(told))


def question(index: int) -> dict[str, Question]:
    """The question of an index in all languages."""
    events, target, kind, told = asked(index)
    found = {}
    for language in LANGUAGES:
        said = [realise(event, language) for event in events]
        context = join([sentence.text for sentence in said], language)
        start, end = span(said[target], kind)
        before = len(join([*(sentence.text for sentence in said[:target]), ""], language))
        answer = said[target].text[start:end]
        found[language] = Question(ask(events[target], kind, told, language), context, answer, before + start)
    return found
