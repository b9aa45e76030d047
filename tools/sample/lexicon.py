"""The words of the small world: inflected forms written out in TSV tables beside this file, one row a concept.

A cell holds the forms of one language, separated by blanks, in the order of the fields below; `-` is no form. Genders
are m, f, n; `fel` is a Spanish feminine that takes `el` and `un` (el agua fría).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MASS = ("drink", "dish")  # kinds of nouns without a plural
ANIMATE = ("name", "person", "animal")  # Russian animates take the genitive form as accusative


class EnglishNoun(NamedTuple):
    singular: str
    plural: str = ""


class GermanNoun(NamedTuple):
    gender: str
    nominative: str
    accusative: str
    dative: str
    plural: str  # nominative and accusative plural, which are always equal


class SpanishNoun(NamedTuple):
    gender: str
    singular: str
    plural: str


class RussianNoun(NamedTuple):
    gender: str
    nominative: str
    accusative: str
    genitive: str
    dative: str
    plural: str
    genitive_plural: str


class ChineseNoun(NamedTuple):
    word: str
    measure: str


class Noun(NamedTuple):
    kind: str
    en: EnglishNoun
    de: GermanNoun
    es: SpanishNoun
    ru: RussianNoun
    zh: ChineseNoun


class EnglishVerb(NamedTuple):
    past: str
    present: str  # third person singular
    base: str
    particle: str = ""  # the `for` of `look for`


class GermanVerb(NamedTuple):
    past: str
    past_plural: str
    present: str
    infinitive: str  # without the separable prefix; equals the present plural
    prefix: str = ""


class SpanishVerb(NamedTuple):
    past: str
    past_plural: str
    present: str
    present_plural: str
    infinitive: str


class RussianVerb(NamedTuple):
    past_m: str
    past_f: str
    past_plural: str
    present: str
    present_plural: str
    future: str  # `будет` where the future is formed with the infinitive
    future_plural: str
    infinitive: str


class Action(NamedTuple):
    kind: str  # the pattern it belongs to
    agents: str  # "person" or "living" (persons and animals)
    objects: tuple[str, ...]  # kinds of nouns, or single nouns
    en: EnglishVerb
    de: GermanVerb
    es: SpanishVerb
    ru: RussianVerb
    zh: str


class Activity(NamedTuple):
    """An intransitive verb in its progressive reading; singular subjects."""

    agents: str
    en: str  # the -ing form
    de: tuple[str, ...]  # past, present
    es: tuple[str, ...]  # imperfect, present
    ru: tuple[str, ...]  # past masculine, past feminine, present
    zh: str


class EnglishAdjective(NamedTuple):
    base: str
    comparative: str = ""


class GermanAdjective(NamedTuple):
    predicate: str
    stem: str
    comparative: str = ""


class SpanishAdjective(NamedTuple):
    m: str
    f: str
    m_plural: str
    f_plural: str


class RussianAdjective(NamedTuple):
    nominative_m: str
    nominative_f: str
    nominative_n: str
    accusative_f: str
    genitive_m: str  # also the accusative of a masculine animate
    plural: str
    genitive_plural: str
    instrumental_m: str  # also neuter
    instrumental_f: str
    comparative: str = ""


class Adjective(NamedTuple):
    uses: tuple[str, ...]
    en: EnglishAdjective
    de: GermanAdjective
    es: SpanishAdjective
    ru: RussianAdjective
    zh: tuple[str, ...]  # the word, and 的 where it needs it before a noun


# Endings in the order of RussianAdjective. Stems in г, к, х, ж, ч, ш, щ take и for ы.
RUSSIAN_ENDINGS = {
    "hard": "ый ая ое ую ого ые ых ым ой",
    "stressed": "ой ая ое ую ого ые ых ым ой",
    "velar": "ий ая ое ую ого ие их им ой",
    "velar_stressed": "ой ая ое ую ого ие их им ой",
    "sibilant": "ий ая ее ую его ие их им ей",
    "sibilant_stressed": "ой ая ое ую ого ие их им ой",
    "soft": "ий яя ее юю его ие их им ей",
}


def rows(table: str) -> Iterator[dict[str, str]]:
    """The rows of one TSV table of this folder, by column name."""
    lines = (Path(__file__).parent / f"{table}.tsv").read_text(encoding="utf-8").splitlines()
    columns = lines[0].split("\t")
    for line in lines[1:]:
        yield dict(zip(columns, line.split("\t"), strict=True))


def _forms(cell: str) -> list[str]:
    return ["" if form == "-" else form for form in cell.split(" ")]


def _prefixed(cell: str) -> list[str]:
    return [form.lstrip("+") for form in cell.split(" ")]


def _russian_adjective(cell: str) -> RussianAdjective:
    stem, declension, *comparative = cell.split(" ")
    return RussianAdjective(*(stem + ending for ending in RUSSIAN_ENDINGS[declension].split(" ")), *comparative)


NOUNS = {
    row["id"]: Noun(
        row["class"],
        EnglishNoun(*_forms(row["en"])),
        GermanNoun(*_forms(row["de"])),
        SpanishNoun(*_forms(row["es"])),
        RussianNoun(*_forms(row["ru"])),
        ChineseNoun(*_forms(row["zh"])),
    )
    for row in rows("nouns")
}

ACTIONS = {
    row["id"]: Action(
        row["kind"],
        row["agents"],
        tuple(row["objects"].split(",")),
        EnglishVerb(*(cell.split(" ")[0] for cell in row["en"].split("|")), *row["en"].split("|")[2].split(" ")[1:]),
        GermanVerb(*_prefixed(row["de"])),
        SpanishVerb(*_forms(row["es"])),
        RussianVerb(*_forms(row["ru"])),
        row["zh"],
    )
    for row in rows("actions")
}

ACTIVITIES = {
    row["id"]: Activity(
        row["agents"],
        row["en"],
        tuple(row["de"].split(" ")),
        tuple(row["es"].split(" ")),
        tuple(row["ru"].split(" ")),
        row["zh"],
    )
    for row in rows("activities")
}

ADJECTIVES = {
    row["id"]: Adjective(
        tuple(row["uses"].split(",")),
        EnglishAdjective(*_forms(row["en"])),
        GermanAdjective(*_forms(row["de"])),
        SpanishAdjective(*_forms(row["es"])),
        _russian_adjective(row["ru"]),
        tuple(row["zh"].split(" ")),
    )
    for row in rows("adjectives")
}

# Cells of places are `preposition|noun` (Spanish `gender|noun`, Chinese `noun|localiser`); `de_goal` and `ru_goal`
# are the phrases of motion. Landmarks carry the cases that the relations of the locate pattern ask for.
PLACES = {row["id"]: {column: cell.split("|") for column, cell in row.items()} for row in rows("places")}
LANDMARKS = {row["id"]: {column: cell.split(" ") for column, cell in row.items()} for row in rows("landmarks")}
TIMES = {row["id"]: row for row in rows("times")}
TENSE = {time: row["tense"] for time, row in TIMES.items()}


def nouns(*kinds: str) -> tuple[str, ...]:
    """The nouns of these kinds, in the order of the table."""
    return tuple(noun for noun, entry in NOUNS.items() if entry.kind in kinds)


def adjectives(use: str) -> tuple[str, ...]:
    """The adjectives for one use: a kind of noun they stand before, a state_..., or compare."""
    return tuple(adjective for adjective, entry in ADJECTIVES.items() if use in entry.uses)
