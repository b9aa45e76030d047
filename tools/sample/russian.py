"""Russian sentences: six cases in use, animacy, past tense by gender, numerals with their cases, no present copula."""

from tools.sample.lexicon import ACTIONS, ACTIVITIES, ADJECTIVES, ANIMATE, LANDMARKS, MASS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.words import Realisation, Word, finish, times

TIME = times("ru")
AT = {
    place: (Word(row["ru"][0], "ADP", "place.case", "in"), Word(row["ru"][1], "NOUN", "place", place))
    for place, row in PLACES.items()
}
TO = {
    place: (Word(row["ru_goal"][0], "ADP", "place.case", "to"), Word(row["ru_goal"][1], "NOUN", "place", place))
    for place, row in PLACES.items()
}
DETERMINERS = {  # nominative
    "this": {"m": "этот", "f": "эта", "n": "это"},
    "my": {"m": "мой", "f": "моя", "n": "моё"},
    "your": {"m": "твой", "f": "твоя", "n": "твоё"},
    "our": {"m": "наш", "f": "наша", "n": "наше"},
}
THIS_ACCUSATIVE = {"m": "этот", "f": "эту", "n": "это"}
RELATIONS = {"in": ("в", 0), "on": ("на", 0), "under": ("под", 1), "behind": ("за", 1), "beside": ("возле", 2)}
LINKS = {"and": "а", "but": "но", "because": "потому что"}
WAS = {"m": "был", "f": "была", "n": "было"}


def _accusative(noun, p: Phrase, role: str) -> list[Word]:
    """Determiner, adjective and noun in the accusative: where animacy, gender and number meet."""
    forms, gender, animate, determiner = noun.ru, noun.ru.gender, noun.kind in ANIMATE, p.determiner
    adjective = ADJECTIVES[p.adjective].ru if p.adjective else None
    words, quality = [], ""
    if determiner in ("two", "five"):
        form = forms.genitive_plural
        quality = adjective.genitive_plural if adjective else ""
        if determiner == "five":
            number = "пять"
        elif animate:
            number = "двух"
        else:  # два, две: the noun in the genitive singular; adjectives of feminines in the plural nominative
            number, form = "две" if gender == "f" else "два", forms.genitive
            if adjective and gender == "f":
                quality = adjective.plural
        words.append(Word(number, "NUM", f"{role}.num", determiner))
    elif determiner == "bare" and noun.kind not in MASS:
        form = forms.genitive_plural if animate else forms.plural
        if adjective:
            quality = adjective.genitive_plural if animate else adjective.plural
    else:
        form = forms.accusative
        if determiner == "this":
            demonstrative = "этого" if animate and gender == "m" else THIS_ACCUSATIVE[gender]
            words.append(Word(demonstrative, "DET", f"{role}.det", "this"))
        if adjective and gender == "m":
            quality = adjective.genitive_m if animate else adjective.nominative_m
        elif adjective:
            quality = adjective.accusative_f if gender == "f" else adjective.nominative_n
    if p.adjective:
        words.append(Word(quality, "ADJ", f"{role}.amod", p.adjective))
    words.append(Word(form, "NOUN", role, p.noun))
    return words


def phrase(p: Phrase, role: str, case: str) -> list[Word]:
    """A noun phrase in the nominative, accusative or dative (the last without determiner and adjective)."""
    noun = NOUNS[p.noun]
    words = []
    if noun.kind == "name":
        words.append(Word(getattr(noun.ru, case), "PROPN", role, p.noun))
    elif case == "accusative":
        words += _accusative(noun, p, role)
    else:
        gender = noun.ru.gender
        if p.determiner in DETERMINERS:
            words.append(Word(DETERMINERS[p.determiner][gender], "DET", f"{role}.det", p.determiner))
        if p.adjective:
            form = getattr(ADJECTIVES[p.adjective].ru, f"nominative_{gender}")
            words.append(Word(form, "ADJ", f"{role}.amod", p.adjective))
        words.append(Word(getattr(noun.ru, case), "NOUN", role, p.noun))
    if p.second:
        words.append(Word("и", "CCONJ", f"{role}.conj.cc", "and"))
        words += phrase(p.second, f"{role}.conj", case)
    return words


def gender_of(p: Phrase) -> str:
    return NOUNS[p.noun].ru.gender


def verb(m: Meaning) -> list[Word]:
    """The verb group: past by gender, future perfective or with будет."""
    assert m.action
    forms = ACTIONS[m.action].ru
    plural = m.agent.second is not None
    words = [Word("не", "PART", "action.neg", "not")] if m.negated else []
    if m.tense == "past":
        form = forms.past_plural if plural else forms.past_f if gender_of(m.agent) == "f" else forms.past_m
    elif m.tense == "present":
        form = forms.present_plural if plural else forms.present
    elif forms.future == "будет":
        words.append(Word(forms.future_plural if plural else forms.future, "AUX", "action.aux", "will"))
        form = forms.infinitive
    else:
        form = forms.future_plural if plural else forms.future
    return [*words, Word(form, "VERB", "action", m.action)]


def timed(m: Meaning, rest: list[Word]) -> list[Word]:
    """The time before or after the subject."""
    assert m.time
    agent = phrase(m.agent, "agent", "nominative")
    return [*TIME[m.time], *agent, *rest] if m.fronted else [*agent, *TIME[m.time], *rest]


def act(m: Meaning) -> list[Word]:
    assert m.object
    words = verb(m) + phrase(m.object, "object", "accusative")
    return timed(m, words + list(AT[m.place]) if m.place else words)


def move(m: Meaning) -> list[Word]:
    assert m.place
    return timed(m, verb(m) + list(TO[m.place]))


def give(m: Meaning) -> list[Word]:
    assert m.object and m.recipient
    return timed(m, verb(m) + phrase(m.recipient, "recipient", "dative") + phrase(m.object, "object", "accusative"))


def copula(m: Meaning, role: str) -> list[Word]:
    words = [Word("не", "PART", f"{role}.neg", "not")] if m.negated else []
    if m.tense == "past":
        words.append(Word(WAS[gender_of(m.agent)], "AUX", f"{role}.cop", "be"))
    elif m.tense == "future":
        words.append(Word("будет", "AUX", f"{role}.cop", "be", (f"{role}.aux", f"{role}.cop")))
    return words


def locate(m: Meaning) -> list[Word]:
    assert m.place and m.relation
    preposition, form = RELATIONS[m.relation]
    where = [
        Word(preposition, "ADP", "place.case", m.relation),
        Word(LANDMARKS[m.place]["ru"][form], "NOUN", "place", m.place),
    ]
    return timed(m, copula(m, "place") + where)


def describe(m: Meaning) -> list[Word]:
    """The predicate is nominative in the present, instrumental with a copula."""
    assert m.quality
    words, gender = copula(m, "predicate"), gender_of(m.agent)
    if m.degree:
        words.append(Word("очень", "ADV", "predicate.degree", "very"))
    forms = ADJECTIVES[m.quality].ru
    if m.tense == "present":
        form = getattr(forms, f"nominative_{gender}")
    else:
        form = forms.instrumental_f if gender == "f" else forms.instrumental_m
    return timed(m, [*words, Word(form, "ADJ", "predicate", m.quality)])


def compare(m: Meaning) -> list[Word]:
    assert m.quality and m.other
    words = phrase(m.agent, "agent", "nominative")
    if m.negated:
        words.append(Word("не", "PART", "predicate.neg", "not"))
    if m.degree:
        words.append(Word("гораздо", "ADV", "predicate.degree", "much"))
    words.append(Word(ADJECTIVES[m.quality].ru.comparative, "ADJ", "predicate", m.quality))
    words += [Word(",", "PUNCT", "other.punct"), Word("чем", "SCONJ", "other.case", "than")]
    return words + phrase(m.other, "other", "nominative")


def like(m: Meaning) -> list[Word]:
    assert m.object and m.other
    words = [*phrase(m.agent, "agent", "nominative"), Word("любит", "VERB", "action", "like")]
    words += [*phrase(m.object, "object", "accusative"), Word(",", "PUNCT", "other.punct")]
    words += [Word("но", "CCONJ", "other.cc", "but"), Word("не", "PART", "other.neg", "not")]
    return words + phrase(m.other, "other", "accusative")


def want(m: Meaning) -> list[Word]:
    assert m.action and m.object
    words = [*phrase(m.agent, "agent", "nominative"), Word("хочет", "VERB", "desire", "want")]
    words.append(Word(ACTIONS[m.action].ru.infinitive, "VERB", "action", m.action))
    words += phrase(m.object, "object", "accusative")
    return words + list(AT[m.place]) if m.place else words


def _activity(action: str, p: Phrase, tense: str, role: str) -> Word:
    past_m, past_f, present = ACTIVITIES[action].ru
    form = present if tense == "present" else past_f if gender_of(p) == "f" else past_m
    return Word(form, "VERB", role, action)


def join(m: Meaning) -> list[Word]:
    assert m.action and m.other and m.other_action and m.link and m.time
    words = [*TIME[m.time], *phrase(m.agent, "agent", "nominative"), _activity(m.action, m.agent, m.tense, "action")]
    words.append(Word(",", "PUNCT", "second.punct"))
    if m.link == "because":
        words.append(Word("потому", "ADV", "second.link", "because"))
        words.append(Word("что", "SCONJ", "second.link.fixed", "because", ("second.link",)))
    else:
        words.append(Word(LINKS[m.link], "CCONJ", "second.link", m.link))
    words += phrase(m.other, "second.agent", "nominative")
    return [*words, _activity(m.other_action, m.other, m.tense, "second")]


PATTERNS = {f.__name__: f for f in (act, move, give, locate, describe, compare, like, want, join)}


def realise(m: Meaning) -> Realisation:
    """The Russian sentence."""
    return finish(PATTERNS[m.pattern](m))
