"""What is said, apart from any language: roles filled with concepts."""

from dataclasses import dataclass

from tools.sample.lexicon import TENSE


@dataclass(frozen=True, slots=True)
class Phrase:
    """Who or what takes part: a noun with what stands before it."""

    noun: str
    determiner: str = "the"  # the, a, this, my, your, our, two, five; bare: a mass (milk) or a kind (dogs)
    adjective: str | None = None
    second: "Phrase | None" = None  # `Anna and the boy`


@dataclass(frozen=True, slots=True)
class Meaning:
    """One proposition. The pattern says which roles are filled.

    act      agent action object [place] time, may be negated     move     agent action place time, may be negated
    give     agent action object recipient time                   locate   agent relation place time, may be negated
    describe agent quality [degree] time, may be negated          compare  agent quality [degree] other, may be negated
    like     agent object other: likes the one but not the other  want     agent action object [place]
    join     agent action link other other_action time
    """

    pattern: str
    agent: Phrase
    action: str | None = None
    object: Phrase | None = None
    recipient: Phrase | None = None
    place: str | None = None
    relation: str | None = None  # in, on, under, behind, beside
    quality: str | None = None
    degree: str | None = None  # very, much
    link: str | None = None  # and, but, because
    other: Phrase | None = None
    other_action: str | None = None
    time: str | None = None
    negated: bool = False
    fronted: bool = False  # the sentence begins with its time

    @property
    def tense(self) -> str:
        """past, present or future; it follows from the time."""
        return TENSE[self.time] if self.time else "present"
