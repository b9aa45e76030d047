"""English sentences."""

from tools.sample.lexicon import ACTIONS, ACTIVITIES, ADJECTIVES, LANDMARKS, MASS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.words import Realisation, Word, finish, times

TIME = times("en")
AT = {
    place: (
        Word(row["en"][0], "ADP", "place.case", "in"),
        Word("the", "DET", "place.det", "the"),
        Word(row["en"][1], "NOUN", "place", place),
    )
    for place, row in PLACES.items()
}
TO = {place: (Word("to", "ADP", "place.case", "to"), *words[1:]) for place, words in AT.items()}
BE = {"past": "was", "present": "is"}
POSSESSIVES = ("my", "your", "our")


def phrase(p: Phrase, role: str) -> list[Word]:
    """A noun phrase; bare countable nouns are plural."""
    noun, determiner = NOUNS[p.noun], p.determiner
    words = []
    if noun.kind == "name":
        words.append(Word(noun.en.singular, "PROPN", role, p.noun))
    else:
        plural = determiner in ("two", "five") or (determiner == "bare" and noun.kind not in MASS)
        form = noun.en.plural if plural else noun.en.singular
        adjective = ADJECTIVES[p.adjective].en.base if p.adjective else None
        if determiner == "a":
            words.append(Word("an" if (adjective or form)[0] in "aeiou" else "a", "DET", f"{role}.det", "a"))
        elif determiner in ("two", "five"):
            words.append(Word(determiner, "NUM", f"{role}.num", determiner))
        elif determiner != "bare":
            words.append(Word(determiner, "PRON" if determiner in POSSESSIVES else "DET", f"{role}.det", determiner))
        if adjective:
            words.append(Word(adjective, "ADJ", f"{role}.amod", p.adjective))
        words.append(Word(form, "NOUN", role, p.noun))
    if p.second:
        words.append(Word("and", "CCONJ", f"{role}.conj.cc", "and"))
        words += phrase(p.second, f"{role}.conj")
    return words


def verb(m: Meaning) -> list[Word]:
    """The verb group of act, move and give."""
    assert m.action
    forms = ACTIONS[m.action].en
    plural = m.agent.second is not None
    words = []
    if m.tense == "future":
        words.append(Word("will", "AUX", "action.aux", "will"))
    elif m.negated:
        did = "did" if m.tense == "past" else "do" if plural else "does"
        words.append(Word(did, "AUX", "action.do"))
    if m.negated:
        words.append(Word("not", "PART", "action.neg", "not"))
    if words or (m.tense == "present" and plural):
        form = forms.base
    else:
        form = forms.past if m.tense == "past" else forms.present
    words.append(Word(form, "VERB", "action", m.action))
    return words + particle(m.action)


def particle(action: str) -> list[Word]:
    """The `for` of `look for`, which belongs to the verb."""
    form = ACTIONS[action].en.particle
    return [Word(form, "ADP", "action.particle", action, ("action",))] if form else []


def copula(m: Meaning, role: str) -> list[Word]:
    words = []
    if m.tense == "future":
        words.append(Word("will", "AUX", f"{role}.aux", "will"))
        if m.negated:
            words.append(Word("not", "PART", f"{role}.neg", "not"))
        words.append(Word("be", "AUX", f"{role}.cop", "be"))
    else:
        words.append(Word(BE[m.tense], "AUX", f"{role}.cop", "be"))
        if m.negated:
            words.append(Word("not", "PART", f"{role}.neg", "not"))
    return words


def timed(m: Meaning, words: list[Word]) -> list[Word]:
    """Put the time at the beginning or at the end."""
    assert m.time
    return [*TIME[m.time], *words] if m.fronted else [*words, *TIME[m.time]]


def act(m: Meaning) -> list[Word]:
    assert m.object
    words = phrase(m.agent, "agent") + verb(m) + phrase(m.object, "object")
    return timed(m, words + list(AT[m.place]) if m.place else words)


def move(m: Meaning) -> list[Word]:
    assert m.place
    return timed(m, phrase(m.agent, "agent") + verb(m) + list(TO[m.place]))


def give(m: Meaning) -> list[Word]:
    assert m.object and m.recipient
    recipient = [Word("to", "ADP", "recipient.case", "recipient"), *phrase(m.recipient, "recipient")]
    return timed(m, phrase(m.agent, "agent") + verb(m) + phrase(m.object, "object") + recipient)


def locate(m: Meaning) -> list[Word]:
    assert m.place and m.relation
    where = [
        Word(m.relation, "ADP", "place.case", m.relation),
        Word("the", "DET", "place.det", "the"),
        Word(LANDMARKS[m.place]["en"][0], "NOUN", "place", m.place),
    ]
    return timed(m, phrase(m.agent, "agent") + copula(m, "place") + where)


def describe(m: Meaning) -> list[Word]:
    assert m.quality
    words = phrase(m.agent, "agent") + copula(m, "predicate")
    if m.degree:
        words.append(Word("very", "ADV", "predicate.degree", "very"))
    words.append(Word(ADJECTIVES[m.quality].en.base, "ADJ", "predicate", m.quality))
    return timed(m, words)


def compare(m: Meaning) -> list[Word]:
    assert m.quality and m.other
    words = phrase(m.agent, "agent") + copula(m, "predicate")
    if m.degree:
        words.append(Word("much", "ADV", "predicate.degree", "much"))
    words.append(Word(ADJECTIVES[m.quality].en.comparative, "ADJ", "predicate", m.quality))
    words.append(Word("than", "ADP", "other.case", "than"))
    return words + phrase(m.other, "other")


def like(m: Meaning) -> list[Word]:
    assert m.object and m.other
    words = [*phrase(m.agent, "agent"), Word("likes", "VERB", "action", "like"), *phrase(m.object, "object")]
    words += [Word("but", "CCONJ", "other.cc", "but"), Word("not", "PART", "other.neg", "not")]
    return words + phrase(m.other, "other")


def want(m: Meaning) -> list[Word]:
    assert m.action and m.object
    words = [*phrase(m.agent, "agent"), Word("wants", "VERB", "desire", "want"), Word("to", "PART", "action.mark")]
    words += [Word(ACTIONS[m.action].en.base, "VERB", "action", m.action), *particle(m.action)]
    words += phrase(m.object, "object")
    return words + list(AT[m.place]) if m.place else words


def join(m: Meaning) -> list[Word]:
    assert m.action and m.other and m.other_action and m.link and m.time
    be = BE[m.tense]
    words = [*TIME[m.time], *phrase(m.agent, "agent"), Word(be, "AUX", "action.aux", "progressive")]
    words.append(Word(ACTIVITIES[m.action].en, "VERB", "action", m.action))
    if m.link != "because":
        words.append(Word(",", "PUNCT", "second.punct"))
    words.append(Word(m.link, "SCONJ" if m.link == "because" else "CCONJ", "second.link", m.link))
    words += [*phrase(m.other, "second.agent"), Word(be, "AUX", "second.aux", "progressive")]
    words.append(Word(ACTIVITIES[m.other_action].en, "VERB", "second", m.other_action))
    return words


PATTERNS = {f.__name__: f for f in (act, move, give, locate, describe, compare, like, want, join)}


def realise(m: Meaning) -> Realisation:
    """The English sentence."""
    return finish(PATTERNS[m.pattern](m))
