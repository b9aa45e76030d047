"""Spanish sentences: gender and number agreement, del and al, personal a, clitic le, gustar with its inverted roles."""

from tools.sample.lexicon import ACTIONS, ACTIVITIES, ADJECTIVES, LANDMARKS, MASS, NOUNS, PLACES
from tools.sample.meaning import Meaning, Phrase
from tools.sample.words import Realisation, Word, finish, times

TIME = times("es")
DETERMINERS = {  # by gender; `fel` is a feminine that begins with a stressed a
    "the": {"m": "el", "f": "la", "fel": "el"},
    "a": {"m": "un", "f": "una", "fel": "un"},
    "this": {"m": "este", "f": "esta", "fel": "esta"},
    "my": {"m": "mi", "f": "mi", "fel": "mi"},
    "your": {"m": "tu", "f": "tu", "fel": "tu"},
    "our": {"m": "nuestro", "f": "nuestra", "fel": "nuestra"},
}
THE_PLURAL = {"m": "los", "f": "las"}
NUMBERS = {"two": "dos", "five": "cinco"}
RELATIONS = {"in": ("en",), "on": ("sobre",), "under": ("debajo", "de"), "behind": ("detrás", "de"),
             "beside": ("junto", "a")}  # fmt: skip
LINKS = {"and": "y", "but": "pero", "because": "porque"}
BE = {"past": "estaba", "present": "está"}


def case(preposition: str, words: list[Word], role: str, concept: str | None) -> list[Word]:
    """Put a preposition before a noun phrase, contracting `de el` and `a el`."""
    if preposition in ("a", "de") and words[0].form == "el":
        links = (f"{role}.case", f"{role}.det") if concept else (f"{role}.det",)
        return [Word(f"{preposition}l", "ADP", f"{role}.case", concept or "the", links), *words[1:]]
    return [Word(preposition, "ADP", f"{role}.case", concept), *words]


def _place(noun: str, gender: str, place: str) -> list[Word]:
    article = DETERMINERS["the"][gender]
    return [Word(article, "DET", "place.det", "the"), Word(noun, "NOUN", "place", place)]


def _relation(relation: str, noun: list[Word]) -> list[Word]:
    """One or two words of location before the noun: en, debajo de."""
    first, *rest = RELATIONS[relation]
    if not rest:
        return case(first, noun, "place", relation)
    adverb = Word(first, "ADV", "place.case", relation)
    return [adverb, *case(rest[0], noun, "place", relation)]


AT = {place: case("en", _place(row["es"][1], row["es"][0], place), "place", "in") for place, row in PLACES.items()}
TO = {place: case("a", _place(row["es"][1], row["es"][0], place), "place", "to") for place, row in PLACES.items()}


def gender_of(p: Phrase) -> str:
    """m or f, for what agrees with the noun."""
    return NOUNS[p.noun].es.gender[0]


def phrase(p: Phrase, role: str, generic: bool = False) -> list[Word]:
    """A noun phrase. With `generic`, a bare noun takes the article of its kind: las manzanas, la leche."""
    noun, determiner = NOUNS[p.noun], p.determiner
    words = []
    if noun.kind == "name":
        words.append(Word(noun.es.singular, "PROPN", role, p.noun))
    else:
        gender = noun.es.gender
        plural = determiner in NUMBERS or (determiner == "bare" and noun.kind not in MASS)
        if determiner in NUMBERS:
            words.append(Word(NUMBERS[determiner], "NUM", f"{role}.num", determiner))
        elif determiner != "bare":
            words.append(Word(DETERMINERS[determiner][gender], "DET", f"{role}.det", determiner))
        elif generic:
            article = THE_PLURAL[gender] if plural else DETERMINERS["the"][gender]
            words.append(Word(article, "DET", f"{role}.det"))
        words.append(Word(noun.es.plural if plural else noun.es.singular, "NOUN", role, p.noun))
        if p.adjective:
            forms = ADJECTIVES[p.adjective].es
            form = forms[(gender != "m") + 2 * plural]
            words.append(Word(form, "ADJ", f"{role}.amod", p.adjective))
    if p.second:
        words.append(Word("y", "CCONJ", f"{role}.conj.cc", "and"))
        words += phrase(p.second, f"{role}.conj")
    return words


def verb(m: Meaning) -> list[Word]:
    """The verb group; the future is ir a with the infinitive. Giving doubles its recipient with the clitic le."""
    assert m.action
    forms = ACTIONS[m.action].es
    plural = m.agent.second is not None
    words = [Word("no", "ADV", "action.neg", "not")] if m.negated else []
    if m.recipient:
        words.append(Word("le", "PRON", "recipient.clitic"))
    if m.tense == "future":
        words += [Word("van" if plural else "va", "AUX", "action.aux", "will"), Word("a", "ADP", "action.mark")]
        form = forms.infinitive
    elif m.tense == "past":
        form = forms.past_plural if plural else forms.past
    else:
        form = forms.present_plural if plural else forms.present
    return [*words, Word(form, "VERB", "action", m.action)]


def timed(m: Meaning, words: list[Word]) -> list[Word]:
    """Put the time at the beginning or at the end."""
    assert m.time
    return [*TIME[m.time], *words] if m.fronted else [*words, *TIME[m.time]]


def thing(m: Meaning) -> list[Word]:
    """The object, with the personal a before people."""
    assert m.object
    words = phrase(m.object, "object")
    return case("a", words, "object", None) if NOUNS[m.object.noun].kind in ("name", "person") else words


def act(m: Meaning) -> list[Word]:
    words = phrase(m.agent, "agent") + verb(m) + thing(m)
    return timed(m, words + AT[m.place] if m.place else words)


def move(m: Meaning) -> list[Word]:
    assert m.place
    return timed(m, phrase(m.agent, "agent") + verb(m) + TO[m.place])


def give(m: Meaning) -> list[Word]:
    assert m.recipient
    recipient = case("a", phrase(m.recipient, "recipient"), "recipient", "recipient")
    return timed(m, phrase(m.agent, "agent") + verb(m) + thing(m) + recipient)


def copula(m: Meaning, role: str) -> list[Word]:
    words = [Word("no", "ADV", f"{role}.neg", "not")] if m.negated else []
    if m.tense == "future":
        words += [Word("va", "AUX", f"{role}.aux", "will"), Word("a", "ADP", f"{role}.mark")]
        return [*words, Word("estar", "AUX", f"{role}.cop", "be")]
    return [*words, Word(BE[m.tense], "AUX", f"{role}.cop", "be")]


def locate(m: Meaning) -> list[Word]:
    assert m.place and m.relation
    gender, noun = LANDMARKS[m.place]["es"]
    where = _relation(m.relation, _place(noun, gender, m.place))
    return timed(m, phrase(m.agent, "agent") + copula(m, "place") + where)


def describe(m: Meaning) -> list[Word]:
    assert m.quality
    words = phrase(m.agent, "agent") + copula(m, "predicate")
    if m.degree:
        words.append(Word("muy", "ADV", "predicate.degree", "very"))
    words.append(Word(getattr(ADJECTIVES[m.quality].es, gender_of(m.agent)), "ADJ", "predicate", m.quality))
    return timed(m, words)


def compare(m: Meaning) -> list[Word]:
    assert m.quality and m.other
    words = phrase(m.agent, "agent")
    if m.negated:
        words.append(Word("no", "ADV", "predicate.neg", "not"))
    words.append(Word("es", "AUX", "predicate.cop", "be"))
    if m.degree:
        words.append(Word("mucho", "ADV", "predicate.degree", "much"))
    words.append(Word("más", "ADV", "predicate.more", m.quality, ("predicate",)))
    words.append(Word(getattr(ADJECTIVES[m.quality].es, gender_of(m.agent)), "ADJ", "predicate", m.quality))
    words.append(Word("que", "SCONJ", "other.case", "than"))
    return words + phrase(m.other, "other")


def like(m: Meaning) -> list[Word]:
    assert m.object and m.other
    form = "gusta" if NOUNS[m.object.noun].kind in MASS else "gustan"
    words = [*case("a", phrase(m.agent, "agent"), "agent", None), Word("le", "PRON", "agent.clitic")]
    words += [Word(form, "VERB", "action", "like"), *phrase(m.object, "object", generic=True)]
    words += [Word(",", "PUNCT", "other.punct"), Word("pero", "CCONJ", "other.cc", "but")]
    return [*words, Word("no", "ADV", "other.neg", "not"), *phrase(m.other, "other", generic=True)]


def want(m: Meaning) -> list[Word]:
    assert m.action
    words = [*phrase(m.agent, "agent"), Word("quiere", "VERB", "desire", "want")]
    words += [Word(ACTIONS[m.action].es.infinitive, "VERB", "action", m.action), *thing(m)]
    return words + AT[m.place] if m.place else words


def join(m: Meaning) -> list[Word]:
    assert m.action and m.other and m.other_action and m.link and m.time
    tense = 0 if m.tense == "past" else 1
    words = [*TIME[m.time], *phrase(m.agent, "agent")]
    words.append(Word(ACTIVITIES[m.action].es[tense], "VERB", "action", m.action))
    if m.link == "but":
        words.append(Word(",", "PUNCT", "second.punct"))
    words.append(Word(LINKS[m.link], "SCONJ" if m.link == "because" else "CCONJ", "second.link", m.link))
    words += phrase(m.other, "second.agent")
    return [*words, Word(ACTIVITIES[m.other_action].es[tense], "VERB", "second", m.other_action)]


PATTERNS = {f.__name__: f for f in (act, move, give, locate, describe, compare, like, want, join)}


def realise(m: Meaning) -> Realisation:
    """The Spanish sentence."""
    return finish(PATTERNS[m.pattern](m))
