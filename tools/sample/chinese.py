"""Chinese sentences: measure words, aspect (了, 在, 会), localisers; time and place before the verb."""

from tools.sample.lexicon import ACTIONS, ACTIVITIES, ADJECTIVES, LANDMARKS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.words import Realisation, Word, finish, times

TIME = times("zh")
DETERMINERS = {"a": ("一", "NUM", "det"), "this": ("这", "DET", "det"), "two": ("两", "NUM", "num"),
               "five": ("五", "NUM", "num")}  # fmt: skip
POSSESSIVES = {"my": "我", "your": "你", "our": "我们"}
RELATIONS = {"in": "里", "on": "上", "under": "下面", "behind": "后面", "beside": "旁边"}
LINKS = {"and": "而", "but": "但是", "because": "因为"}
AT = {
    place: (
        Word("在", "ADP", "place.case", "in"),
        Word(row["zh"][0], "NOUN", "place", place),
        Word(row["zh"][1], "ADP", "place.localiser", "in", ("place.case",)),
    )
    for place, row in PLACES.items()
}


def phrase(p: Phrase, role: str) -> list[Word]:
    """A noun phrase; what is definite, generic or a mass stands bare."""
    noun, determiner = NOUNS[p.noun], p.determiner
    words = []
    if noun.kind == "name":
        words.append(Word(noun.zh.word, "PROPN", role, p.noun))
    else:
        if determiner in DETERMINERS:
            form, tag, part = DETERMINERS[determiner]
            words.append(Word(form, tag, f"{role}.{part}", determiner))
            words.append(Word(noun.zh.measure, "NOUN", f"{role}.{part}.measure"))
        elif determiner in POSSESSIVES:
            words.append(Word(POSSESSIVES[determiner], "PRON", f"{role}.det", determiner))
            words.append(Word("的", "PART", f"{role}.det.part"))
        if p.adjective:
            form, *particle = ADJECTIVES[p.adjective].zh
            words.append(Word(form, "ADJ", f"{role}.amod", p.adjective))
            if determiner not in POSSESSIVES:  # one 的 is enough: 我的红色帽子
                words += [Word(form, "PART", f"{role}.amod.part") for form in particle]
        words.append(Word(noun.zh.word, "NOUN", role, p.noun))
    if p.second:
        words.append(Word("和", "CCONJ", f"{role}.conj.cc", "and"))
        words += phrase(p.second, f"{role}.conj")
    return words


def timed(m: Meaning, rest: list[Word]) -> list[Word]:
    """The time before or after the subject."""
    assert m.time
    agent = phrase(m.agent, "agent")
    return [*TIME[m.time], *agent, *rest] if m.fronted else [*agent, *TIME[m.time], *rest]


def predicate(m: Meaning, rest: list[Word], place: tuple[Word, ...] = ()) -> list[Word]:
    """Negation, 会, place, verb, 了; then what follows the verb."""
    assert m.action
    words = []
    if m.negated and m.tense == "past":
        words.append(Word("没有", "ADV", "action.neg", "not"))
    elif m.negated:
        words.append(Word("不", "ADV", "action.neg", "not"))
    if m.tense == "future":
        words.append(Word("会", "AUX", "action.aux", "will"))
    words += [*place, Word(ACTIONS[m.action].zh, "VERB", "action", m.action)]
    if m.tense == "past" and not m.negated:
        words.append(Word("了", "AUX", "action.aspect"))
    return words + rest


def act(m: Meaning) -> list[Word]:
    assert m.object
    return timed(m, predicate(m, phrase(m.object, "object"), AT[m.place] if m.place else ()))


def move(m: Meaning) -> list[Word]:
    assert m.place
    return timed(m, predicate(m, [AT[m.place][1]]))


def give(m: Meaning) -> list[Word]:
    assert m.object and m.recipient
    return timed(m, predicate(m, phrase(m.recipient, "recipient") + phrase(m.object, "object")))


def locate(m: Meaning) -> list[Word]:
    assert m.place and m.relation
    words = [Word("不", "ADV", "place.neg", "not")] if m.negated else []
    if m.tense == "future":
        words.append(Word("会", "AUX", "place.aux", "will"))
    words += [
        Word("在", "VERB", "place.cop", "be", ("place.cop", "place.case")),
        Word(LANDMARKS[m.place]["zh"][0], "NOUN", "place", m.place),
        Word(RELATIONS[m.relation], "ADP", "place.case", m.relation),
    ]
    return timed(m, words)


def describe(m: Meaning) -> list[Word]:
    """Adjectives are verbs of their own: 很 where nothing else stands before them."""
    assert m.quality
    words = [Word("不", "ADV", "predicate.neg", "not")] if m.negated else []
    if m.tense == "future":
        words.append(Word("会", "AUX", "predicate.aux", "will"))
    if m.degree:
        words.append(Word("非常", "ADV", "predicate.degree", "very"))
    elif not m.negated:
        words.append(Word("很", "ADV", "predicate.degree"))
    return timed(m, [*words, Word(ADJECTIVES[m.quality].zh[0], "ADJ", "predicate", m.quality)])


def compare(m: Meaning) -> list[Word]:
    assert m.quality and m.other
    words = phrase(m.agent, "agent")
    if m.negated:
        words.append(Word("不", "ADV", "predicate.neg", "not"))
    words += [Word("比", "ADP", "other.case", "than"), *phrase(m.other, "other")]
    words.append(Word(ADJECTIVES[m.quality].zh[0], "ADJ", "predicate", m.quality))
    if m.degree:
        words += [Word("得", "PART", "predicate.degree.part"), Word("多", "ADV", "predicate.degree", "much")]
    return words


def like(m: Meaning) -> list[Word]:
    assert m.object and m.other
    words = [*phrase(m.agent, "agent"), Word("喜欢", "VERB", "action", "like"), *phrase(m.object, "object")]
    words += [Word("，", "PUNCT", "other.punct"), Word("但是", "CCONJ", "other.cc", "but")]
    words.append(Word("不", "ADV", "other.neg", "not"))
    words.append(Word("喜欢", "VERB", "other.verb", "like", ("action",)))
    return words + phrase(m.other, "other")


def want(m: Meaning) -> list[Word]:
    assert m.action and m.object
    words = [*phrase(m.agent, "agent"), Word("想", "VERB", "desire", "want"), *(AT[m.place] if m.place else ())]
    words.append(Word(ACTIONS[m.action].zh, "VERB", "action", m.action))
    return words + phrase(m.object, "object")


def join(m: Meaning) -> list[Word]:
    assert m.action and m.other and m.other_action and m.link and m.time
    words = [*TIME[m.time], *phrase(m.agent, "agent"), Word("在", "AUX", "action.aux", "progressive")]
    words += [Word(ACTIVITIES[m.action].zh, "VERB", "action", m.action), Word("，", "PUNCT", "second.punct")]
    words.append(Word(LINKS[m.link], "SCONJ" if m.link == "because" else "CCONJ", "second.link", m.link))
    words += [*phrase(m.other, "second.agent"), Word("在", "AUX", "second.aux", "progressive")]
    return [*words, Word(ACTIVITIES[m.other_action].zh, "VERB", "second", m.other_action)]


PATTERNS = {f.__name__: f for f in (act, move, give, locate, describe, compare, like, want, join)}


def realise(m: Meaning) -> Realisation:
    """The Chinese sentence, written without spaces."""
    return finish(PATTERNS[m.pattern](m), stop="。", comma="，", space="")
