"""German sentences: verb second, verb final after `weil`, separable prefixes, case, gender and adjective endings."""

from tools.sample.lexicon import ACTIONS, ACTIVITIES, ADJECTIVES, LANDMARKS, MASS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.words import Realisation, Word, finish, times

TIME = times("de")
# By case and gender; the possessives and `kein` inflect like `ein`.
DETERMINERS = {
    "the": {"nom": {"m": "der", "f": "die", "n": "das"}, "acc": {"m": "den", "f": "die", "n": "das"},
            "dat": {"m": "dem", "f": "der", "n": "dem"}},
    "this": {"nom": {"m": "dieser", "f": "diese", "n": "dieses"}, "acc": {"m": "diesen", "f": "diese", "n": "dieses"}},
}  # fmt: skip
EIN = {"nom": {"m": "", "f": "e", "n": ""}, "acc": {"m": "en", "f": "e", "n": ""}}
EIN_WORDS = {"a": "ein", "my": "mein", "your": "dein", "our": "unser", "not": "kein"}
# Endings of adjectives: weak after der and dieser, else mixed, which in these two cases is also the strong ending.
WEAK = {"nom": {"m": "e", "f": "e", "n": "e"}, "acc": {"m": "en", "f": "e", "n": "e"}}
MIXED = {"nom": {"m": "er", "f": "e", "n": "es"}, "acc": {"m": "en", "f": "e", "n": "es"}}
NUMBERS = {"two": "zwei", "five": "fünf"}
CASES = {"nom": "nominative", "acc": "accusative", "dat": "dative"}
RELATIONS = {"in": "in", "on": "auf", "under": "unter", "behind": "hinter", "beside": "neben"}
LINKS = {"and": "und", "but": "aber", "because": "weil"}
BE = {"past": "war", "present": "ist", "future": "wird"}


def _at(words: str, noun: str, place: str, concept: str) -> tuple[Word, ...]:
    """`in der` is two words; `im` is one that stands for both."""
    preposition, _, article = words.partition(" ")
    if article:
        case = (Word(preposition, "ADP", "place.case", concept), Word(article, "DET", "place.det", "the"))
    else:
        case = (Word(preposition, "ADP", "place.case", concept, ("place.case", "place.det")),)
    return (*case, Word(noun, "NOUN", "place", place))


AT = {place: _at(row["de"][0], row["de"][1], place, "in") for place, row in PLACES.items()}
TO = {place: _at(row["de_goal"][0], row["de_goal"][1], place, "to") for place, row in PLACES.items()}


def phrase(p: Phrase, role: str, case: str) -> list[Word]:
    """A noun phrase; bare countable nouns are plural; determiner `not` is kein."""
    noun, determiner = NOUNS[p.noun], p.determiner
    words = []
    if noun.kind == "name":
        words.append(Word(noun.de.nominative, "PROPN", role, p.noun))
    else:
        gender = noun.de.gender
        plural = determiner in NUMBERS or (determiner in ("bare", "not") and noun.kind not in MASS)
        endings = MIXED
        if determiner in NUMBERS:
            words.append(Word(NUMBERS[determiner], "NUM", f"{role}.num", determiner))
        elif determiner in EIN_WORDS:
            form = EIN_WORDS[determiner] + ("e" if plural else EIN[case][gender])
            links = (f"{role}.neg", "action.neg") if determiner == "not" else ()
            words.append(Word(form, "DET", f"{role}.det", determiner, links))
        elif determiner != "bare":
            words.append(Word(DETERMINERS[determiner][case][gender], "DET", f"{role}.det", determiner))
            endings = WEAK
        if p.adjective:
            ending = "e" if plural else endings[case][gender]
            words.append(Word(ADJECTIVES[p.adjective].de.stem + ending, "ADJ", f"{role}.amod", p.adjective))
        words.append(Word(noun.de.plural if plural else getattr(noun.de, CASES[case]), "NOUN", role, p.noun))
    if p.second:
        words.append(Word("und", "CCONJ", f"{role}.conj.cc", "and"))
        words += phrase(p.second, f"{role}.conj", case)
    return words


def clause(m: Meaning, middle: list[Word]) -> list[Word]:
    """Verb second around `middle`, what stands between the subject and the end of the clause."""
    assert m.action and m.time
    forms = ACTIONS[m.action].de
    plural = m.agent.second is not None
    end = []
    if m.tense == "future":
        finite = Word("werden" if plural else "wird", "AUX", "action.aux", "will")
        end.append(Word(forms.prefix + forms.infinitive, "VERB", "action", m.action))
    else:
        if m.tense == "past":
            form = forms.past_plural if plural else forms.past
        else:
            form = forms.infinitive if plural else forms.present
        finite = Word(form, "VERB", "action", m.action)
        if forms.prefix:
            end.append(Word(forms.prefix, "ADP", "action.particle", m.action, ("action",)))
    return second(m, finite, middle + end)


def second(m: Meaning, finite: Word, rest: list[Word]) -> list[Word]:
    """The finite verb in second place, after the time or after the subject."""
    assert m.time
    agent = phrase(m.agent, "agent", "nom")
    if m.fronted:
        return [*TIME[m.time], finite, *agent, *rest]
    return [*agent, finite, *TIME[m.time], *rest]


def arrange(m: Meaning) -> list[Word]:
    """Object and place: a definite object goes before the place, an indefinite one after it."""
    assert m.object
    definite = m.object.determiner in ("the", "this")
    if m.negated and not definite:
        return phrase(Phrase(m.object.noun, "not", m.object.adjective), "object", "acc")
    thing = phrase(m.object, "object", "acc")
    place = list(AT[m.place]) if m.place else []
    if m.negated:
        thing.append(Word("nicht", "PART", "action.neg", "not"))
    return thing + place if definite else place + thing


def act(m: Meaning) -> list[Word]:
    return clause(m, arrange(m))


def move(m: Meaning) -> list[Word]:
    assert m.place
    negation = [Word("nicht", "PART", "action.neg", "not")] if m.negated else []
    return clause(m, negation + list(TO[m.place]))


def give(m: Meaning) -> list[Word]:
    assert m.object and m.recipient
    return clause(m, phrase(m.recipient, "recipient", "dat") + phrase(m.object, "object", "acc"))


def copula(m: Meaning, role: str, rest: list[Word]) -> list[Word]:
    if m.tense == "future":
        finite = Word("wird", "AUX", f"{role}.aux", "will")
        return second(m, finite, [*rest, Word("sein", "AUX", f"{role}.cop", "be")])
    return second(m, Word(BE[m.tense], "AUX", f"{role}.cop", "be"), rest)


def locate(m: Meaning) -> list[Word]:
    assert m.place and m.relation
    gender, noun = LANDMARKS[m.place]["de"]
    preposition, article = RELATIONS[m.relation], DETERMINERS["the"]["dat"][gender]
    case = "im" if (preposition, article) == ("in", "dem") else f"{preposition} {article}"
    negation = [Word("nicht", "PART", "place.neg", "not")] if m.negated else []
    return copula(m, "place", [*negation, *_at(case, noun, m.place, m.relation)])


def describe(m: Meaning) -> list[Word]:
    assert m.quality
    words = [Word("nicht", "PART", "predicate.neg", "not")] if m.negated else []
    if m.degree:
        words.append(Word("sehr", "ADV", "predicate.degree", "very"))
    words.append(Word(ADJECTIVES[m.quality].de.predicate, "ADJ", "predicate", m.quality))
    return copula(m, "predicate", words)


def compare(m: Meaning) -> list[Word]:
    assert m.quality and m.other
    words = [*phrase(m.agent, "agent", "nom"), Word("ist", "AUX", "predicate.cop", "be")]
    if m.negated:
        words.append(Word("nicht", "PART", "predicate.neg", "not"))
    if m.degree:
        words.append(Word("viel", "ADV", "predicate.degree", "much"))
    words.append(Word(ADJECTIVES[m.quality].de.comparative, "ADJ", "predicate", m.quality))
    words.append(Word("als", "ADP", "other.case", "than"))
    return words + phrase(m.other, "other", "nom")


def like(m: Meaning) -> list[Word]:
    assert m.object and m.other
    words = [*phrase(m.agent, "agent", "nom"), Word("mag", "VERB", "action", "like")]
    words += [*phrase(m.object, "object", "acc"), Word(",", "PUNCT", "other.punct")]
    words.append(Word("aber", "CCONJ", "other.cc", "but"))
    return words + phrase(Phrase(m.other.noun, "not"), "other", "acc")


def want(m: Meaning) -> list[Word]:
    assert m.action
    forms = ACTIONS[m.action].de
    words = [*phrase(m.agent, "agent", "nom"), Word("will", "AUX", "desire", "want"), *arrange(m)]
    words.append(Word(forms.prefix + forms.infinitive, "VERB", "action", m.action))
    return words


def join(m: Meaning) -> list[Word]:
    assert m.action and m.other and m.other_action and m.link and m.time
    tense = 0 if m.tense == "past" else 1
    finite = Word(ACTIVITIES[m.action].de[tense], "VERB", "action", m.action)
    words = second(m, finite, [])
    if m.link != "and":
        words.append(Word(",", "PUNCT", "second.punct"))
    words.append(Word(LINKS[m.link], "SCONJ" if m.link == "because" else "CCONJ", "second.link", m.link))
    agent = phrase(m.other, "second.agent", "nom")
    finite = Word(ACTIVITIES[m.other_action].de[tense], "VERB", "second", m.other_action)
    # verb final after weil, verb second after und and aber: the same order, since nothing follows the verb
    return [*words, *agent, finite]


PATTERNS = {f.__name__: f for f in (act, move, give, locate, describe, compare, like, want, join)}


def realise(m: Meaning) -> Realisation:
    """The German sentence."""
    return finish(PATTERNS[m.pattern](m))
