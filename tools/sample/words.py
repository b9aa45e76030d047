"""What a sentence is made of: words with their part of speech, role and concept, and the finished realisation."""

from dataclasses import dataclass
from typing import NamedTuple

from tools.sample.lexicon import TIMES


class Word(NamedTuple):
    """One word before capitalisation.

    `role` is its place in the sentence, the same in every language: `object` is the noun of the object, `object.amod`
    its adjective. A dotted role hangs on the role before its last dot, so that roles also give the dependency tree.
    `concept` is None for a word that has no counterpart elsewhere. `links` are the roles the word stands for, where
    these are not its own role alone: German `im` is the preposition and the article of its place.
    """

    form: str
    tag: str  # universal part of speech
    role: str
    concept: str | None = None
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Realisation:
    """One sentence in one language; the tuples have one entry a word, the final stop being a word."""

    text: str  # detokenised
    words: tuple[str, ...]  # as they stand in the text
    tags: tuple[str, ...]  # universal parts of speech
    concepts: tuple[str | None, ...]
    roles: tuple[str, ...]
    links: tuple[tuple[str, ...], ...]  # roles the word is aligned by; empty for a word without counterpart
    forms: tuple[str, ...]  # the words without the capital of the first


def finish(words: list[Word], stop: str = ".", comma: str = ",", space: str = " ") -> Realisation:
    """Add the stop, capitalise, join."""
    words = [*words, Word(stop, "PUNCT", "stop", "stop")]
    forms, tags, roles, concepts, _ = zip(*words, strict=True)
    links = tuple([word[4] or (word[2],) if word[3] is not None else () for word in words])
    first = forms[0]
    surface = (first[0].upper() + first[1:], *forms[1:])
    text = space.join(surface)
    if space:
        text = text.replace(space + comma, comma).replace(space + stop, stop)
    return Realisation(text, surface, tags, concepts, roles, links, forms)


def _time(row: dict[str, str], language: str) -> tuple[Word, ...]:
    """Words of a time from its cell: `form/TAG/part`, where part `.` is the head, `mod` what specifies it."""
    concepts = {".": row["head"], "mod": row["mod"]}
    words = []
    for token in row[language].split(" "):
        form, tag, part = token.split("/")
        if part == ".+mod":  # one word for both, as in 去年
            words.append(Word(form, tag, "time", f"{row['mod']}_{row['head']}", ("time", "time.mod")))
        else:
            words.append(Word(form, tag, "time" if part == "." else f"time.{part}", concepts.get(part)))
    return tuple(words)


def times(language: str) -> dict[str, tuple[Word, ...]]:
    """The words of every time in one language."""
    return {time: _time(row, language) for time, row in TIMES.items()}
