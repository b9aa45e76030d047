"""Dependency trees of the world's sentences, in the relations of Universal Dependencies.

The roles of the words already are a tree: a dotted role hangs on the role before its last dot. What is left to say is
which role the sentence hangs on, what the relation of each role is, and where a language builds its sentence in another
way than English does.
"""

from typing import NamedTuple

from tools.sample.meaning import Meaning
from tools.sample.words import Realisation


class Tree(NamedTuple):
    """The tuples have one entry a word, the final stop being a word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]  # universal parts of speech
    heads: tuple[int, ...]  # position of the head, from 1; 0 for the root
    relations: tuple[str, ...]


ROOTS = {"act": "action", "move": "action", "give": "action", "join": "action", "like": "action", "want": "desire",
         "locate": "place", "describe": "predicate", "compare": "predicate"}  # fmt: skip
# A role without a dot hangs on the root, by these relations; the time by its part of speech.
RELATIONS = {"agent": "nsubj", "object": "obj", "place": "obl", "recipient": "obl", "action": "xcomp", "stop": "punct"}
# A part is what stands after the last dot of a role; those that are not here go by their part of speech.
PARTS = {"case": "case", "localiser": "case", "cop": "cop", "aux": "aux", "do": "aux", "aspect": "aux", "neg": "advmod",
         "mark": "mark", "particle": "compound:prt", "conj": "conj", "cc": "cc", "measure": "clf", "punct": "punct",
         "degree": "advmod", "more": "advmod", "fixed": "fixed", "agent": "nsubj", "part": "mark"}  # fmt: skip
TAGS = {"DET": "det", "NUM": "nummod", "ADJ": "amod", "ADV": "advmod", "NOUN": "nmod", "PRON": "nmod"}


def _special(m: Meaning, language: str) -> dict[str, tuple[str, str]]:
    """Roles that hang elsewhere than their names say: role -> (role of the head, relation)."""
    found = {}
    if m.pattern == "want" and language == "de":  # a modal verb is an auxiliary in German
        found |= {"action": ("", "root"), "desire": ("action", "aux"), "object": ("action", "obj")}
    elif m.pattern == "want":
        found |= {"object": ("action", "obj"), "place": ("action", "obl")}
    elif m.pattern == "like":
        found["other"] = ("object", "conj")
    elif m.pattern == "compare":  # `than` is a preposition, but que and чем are conjunctions
        found["other"] = ("predicate", "advcl" if language in ("es", "ru") else "obl")
        found["other.case"] = ("other", "mark" if language in ("es", "ru") else "case")
    elif m.pattern == "join":
        found["second"] = ("action", "advcl" if m.link == "because" else "conj")
        found["second.link"] = ("second", "mark" if m.link == "because" else "cc")
    if language in ("de", "ru", "zh"):  # the recipient is a bare dative, or an object without a preposition
        found["recipient"] = ("action", "iobj")
    if language == "es":  # `a` marks an object, which the clitic doubles
        found |= {"recipient": ("action", "iobj"), "recipient.clitic": ("action", "expl")}
        if m.pattern == "like":  # gustar: what is liked is the subject
            found |= {"agent": ("action", "iobj"), "agent.clitic": ("action", "expl"), "object": ("action", "nsubj")}
        if m.pattern == "compare":
            found["predicate.degree"] = ("predicate.more", "advmod")
    if language == "zh":
        if m.pattern == "move":
            found["place"] = ("action", "obj")
        if m.pattern == "locate":  # 在 is the verb, and what is on the table its object
            found |= {"place.cop": ("", "root"), "place": ("place.cop", "obj"), "place.neg": ("place.cop", "advmod")}
            found["place.aux"] = ("place.cop", "aux")
        if m.pattern == "like":  # the verb is said twice
            found |= {"other.verb": ("action", "conj"), "other": ("other.verb", "obj")}
            found |= {f"other.{part}": ("other.verb", PARTS[part]) for part in ("punct", "cc", "neg")}
        found |= {f"{role}.det.part": (f"{role}.det", "case") for role in ("agent", "object")}  # 我的
        found["time.unit"] = ("time.mod", "clf")  # 每天早上: the measure word hangs on what counts
    return found


def tree(m: Meaning, said: Realisation, language: str) -> Tree:
    """The tree of one realisation of a meaning."""
    special = _special(m, language)
    root = next((role for role, (head, _) in special.items() if not head), ROOTS[m.pattern])
    places: dict[str, int] = {}
    for position, role in enumerate(said.roles, 1):
        places.setdefault(role, position)
    heads, relations = [], []
    for position, (role, tag) in enumerate(zip(said.roles, said.tags, strict=True), 1):
        above, _, part = role.rpartition(".")
        if role == root:
            head, relation = 0, "root"
        elif places[role] != position:  # the second word of a preposition: debajo de
            head, relation = places[role], "fixed"
        elif role in special:
            head, relation = places[special[role][0]], special[role][1]
        elif above:
            head, relation = places[above], PARTS.get(part) or TAGS[tag]
            if (language, tag) == ("en", "PRON"):  # other languages have determiners, or 我的
                relation = "nmod:poss"
        elif role == "time":
            head, relation = places[root], "advmod" if tag == "ADV" else "obl"
        else:
            head, relation = places[root], RELATIONS[role]
        heads.append(head)
        relations.append(relation)
    return Tree(said.words, said.tags, tuple(heads), tuple(relations))
