"""Derived languages: English (or any language) made foreign in one respect at a time, so that transfer can be studied.

ALIGN-MLM (Tang et al. 2022) and Dufter and Schütze (2020) derive a language whose every property is known:

- `trans`: every word in another script, letter by letter; no word piece is shared (`CloneScript`, `clone_vocabulary`).
- `inv`: the words of a sentence in reverse order; punctuation at its end stays there, and at its beginning, too.
- `perm`: the words in a random order, always the same one for the same words.
- `syn`: the dependents of verbs and nouns in the order of another language, from dependency trees (`WordOrder`).

They compose: `trans+inv`. A derived language is text like any other, words with spaces between, so that tokenizers,
tasks and measures take it as it is. What hangs on words (tags, heads, entities) moves with them.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppa_jax.data import text_files
from ppa_jax.errors import UserError

# Letters that tokenizers leave alone: no case, no accents, no spaces around them as around Chinese characters.
_SCRIPT = range(0x17000, 0x187F8)  # Tangut
_STEPS = ("trans", "inv", "perm", "syn")
_RULE = re.compile(r"(\S+)\s+(\S+)\s+(before|after)(?:\s+(\d+(?:\.\d+)?))?")


class Tree(NamedTuple):
    """A dependency tree: of words 1, 2, ...; head 0 is the root."""

    heads: Sequence[int]
    relations: Sequence[str]
    upos: Sequence[str]


class CloneScript:
    """A bijection of characters: those of a vocabulary, in their order, to as many letters of another script."""

    def __init__(self, characters: Iterable[str]) -> None:
        """Raises UserError for more characters than the script has letters."""
        chosen = sorted(set(characters))
        if len(chosen) > len(_SCRIPT):
            raise UserError(
                f"a cloned script: {len(chosen):,} characters, and there are {len(_SCRIPT):,} letters for them; "
                "clone a vocabulary of fewer, of one language say"
            )
        self._clone = {ord(char): _SCRIPT[i] for i, char in enumerate(chosen)}
        self._original = {clone: char for char, clone in self._clone.items()}

    def word(self, word: str) -> str:
        """The word in the other script; characters that are not of the vocabulary stay."""
        return word.translate(self._clone)

    def piece(self, piece: str) -> str:
        """The word piece in the other script; the mark of one within a word stays."""
        start = "##" if piece.startswith("##") and len(piece) > 2 else ""
        return start + self.word(piece.removeprefix(start))

    def original(self, word: str) -> str:
        """The inverse of `word`."""
        return word.translate(self._original)


def clone_vocabulary(directory: Path, target: Path) -> CloneScript:
    """Writes a WordPiece tokenizer that has every piece twice, as it is and in the cloned script; returns the script.

    Piece i of the V in `directory` is cloned to V + i; special tokens and unused ones are cloned to rows that no text
    reaches. Any word and its clone have the same number of pieces, i and V + i.

    Raises UserError: no vocab.txt, or more characters than can be cloned.
    """
    path = directory / "vocab.txt"
    if not path.is_file():
        raise UserError(f"{directory}: no vocab.txt; only a WordPiece vocabulary can be cloned")
    pieces = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    plain = [piece for piece in pieces if not is_special(piece)]
    script = CloneScript(char for piece in plain for char in piece.removeprefix("##"))
    clones = []
    for i, piece in enumerate(pieces):
        clones.append(f"[clone {i}]" if is_special(piece) else script.piece(piece))
    target.mkdir(parents=True, exist_ok=True)
    (target / "vocab.txt").write_text("\n".join([*pieces, *clones]) + "\n", encoding="utf-8")
    settings = directory / "tokenizer_config.json"
    found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    kept = {name: found[name] for name in ("do_lower_case", "strip_accents", "tokenizer_class") if name in found}
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast"} | kept) + "\n")
    return script


def is_special(piece: str) -> bool:
    """[CLS], [unused1] and their like."""
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


class Derivation:
    """A derived language: `trans`, `inv`, `perm`, `syn` and their compositions, as `trans+inv`."""

    def __init__(
        self, name: str, *, script: CloneScript | None = None, order: WordOrder | None = None, seed: int = 0
    ) -> None:
        """
        Args:
          name: steps with + between. Of the orders the trees' comes first, whatever the name: it needs them whole.
          script: for `trans`.
          order: for `syn`.
          seed: for `perm`.

        Raises:
          UserError: an unknown step, one twice, or one without what it needs.
        """
        steps = name.split("+")
        if not set(steps) <= set(_STEPS) or len(set(steps)) < len(steps):
            raise UserError(f"derived language {name!r}: write steps of {', '.join(_STEPS)}, as trans+inv")
        for step, needed in (("trans", script), ("syn", order)):
            if step in steps and needed is None:
                raise ValueError(f"{name}: {step} needs its {'script' if step == 'trans' else 'order'}")
        self.name = name
        self._steps = sorted(steps, key=("syn", "inv", "perm", "trans").index)
        self._script, self._order, self._seed = script, order, seed

    def order(self, words: Sequence[str], tree: Tree | None = None) -> list[int]:
        """The words in their new order, by their places in the old one. Raises ValueError: `syn` without a tree."""
        places = list(range(len(words)))
        for step in self._steps:
            if step == "syn" and self._order is not None:
                if tree is None:
                    raise ValueError(f"{self.name}: a sentence without a tree")
                places = self._order.apply(tree)
            elif step == "inv":
                places = _inverted(places, words)
            elif step == "perm":
                places = _permuted(places, words, self._seed)
        return places

    def words(self, words: Sequence[str], order: Sequence[int]) -> list[str]:
        """The words in a new order, and in the new script if there is one."""
        moved = [words[i] for i in order]
        return [self._script.word(word) for word in moved] if self._script and "trans" in self._steps else moved

    def underived(self, words: Sequence[str]) -> list[str]:
        """The inverse of all steps but `syn`, whose trees are gone. Raises ValueError with `syn`."""
        if "syn" in self._steps:
            raise ValueError(f"{self.name}: the order of the trees cannot be undone without them")
        found = list(words)
        if "trans" in self._steps and self._script:
            found = [self._script.original(word) for word in found]
        for step in reversed(self._steps):
            if step in ("inv", "perm"):
                places = list(range(len(found)))
                moved = _inverted(places, found) if step == "inv" else _permuted(places, found, self._seed, back=True)
                found = [found[i] for i in moved]
        return found


def is_punctuation(word: str) -> bool:
    """Whether a word has no other characters."""
    return bool(word) and all(unicodedata.category(char).startswith("P") for char in word)


def _inverted(places: list[int], words: Sequence[str]) -> list[int]:
    """Its own inverse: what is between the punctuation at both ends begins and ends with words, reversed too."""
    inner = [i for i, place in enumerate(places) if not is_punctuation(words[place])]
    start, stop = (inner[0], inner[-1] + 1) if inner else (0, 0)
    return [*places[:start], *places[start:stop][::-1], *places[stop:]]


def _permuted(places: list[int], words: Sequence[str], seed: int, *, back: bool = False) -> list[int]:
    """A permutation that hangs on the seed and on the words, not on their order: so it can be undone."""
    content = zlib.crc32("\0".join(sorted(words)).encode("utf-8", "surrogatepass"))
    drawn = np.random.default_rng((seed, content)).permutation(len(places))
    return [places[i] for i in (np.argsort(drawn) if back else drawn).tolist()]


# ---- what hangs on words

_BEGINS, _GOES_ON = ("B-", "S-"), ("I-", "E-")  # IOBES's names beside IOB's


def moved_heads(heads: Sequence[int], order: Sequence[int]) -> list[int]:
    """The heads (from 1; 0 is the root) of words in a new order."""
    new = {old: place for place, old in enumerate(order, 1)}
    return [0 if heads[old] == 0 else new[heads[old] - 1] for old in order]


def moved_tags(tags: Sequence[str], order: Sequence[int]) -> tuple[list[str], int]:
    """(the tags of words in a new order, number of entities that it tore).

    Tags of no entity go with their words. Entities may be tagged as IOB1, IOB2 or IOBES, which BILOU is
    read as (tasks/tagging.py), and come out as IOB2: one that is still in one piece begins with B- again, wherever its
    first word went; one in several pieces becomes as many entities.
    """
    entity, number = [-1] * len(tags), -1
    for i, tag in enumerate(tags):
        if tag[:2] in _BEGINS + _GOES_ON:
            before = tags[i - 1] if i else ""
            number += tag[:2] in _BEGINS or before[:2] not in ("B-", "I-") or before[2:] != tag[2:]
            entity[i] = number
    moved, pieces = [], Counter()
    for place, old in enumerate(order):
        tag = tags[old]
        if entity[old] >= 0:
            goes_on = place > 0 and entity[order[place - 1]] == entity[old]
            pieces[entity[old]] += not goes_on
            tag = f"{'I' if goes_on else 'B'}-{tag[2:]}"
        moved.append(tag)
    return moved, sum(count > 1 for count in pieces.values())


# ---- the order of another language


class WordOrder:
    """On which side of verbs and nouns their dependents stand, and how near: learned from a treebank, or given.

    For every part of speech of a head (VERB, NOUN and their like) and every relation: the share of dependents before
    the head, and how many dependents from it they stand. A sentence is put in order head by head: each dependent with
    all its words goes to the side where most of its kind stand in the other language, nearer or farther as they do
    there. Words whose head is of another kind, and kinds that the treebank has fewer than `fewest` times, keep their
    side and their order. Deterministic, where the method of Wang and Eisner (2016) draws.
    """

    HEADS = ("VERB", "NOUN", "PROPN", "AUX", "ADJ")  # whose dependents move

    def __init__(self, kinds: Mapping[tuple[str, str], tuple[float, float | None]]) -> None:
        """`kinds`: (part of speech of the head, relation) -> (share before the head, mean distance in dependents).

        A distance of None keeps the dependent as near as it stands.
        """
        self.kinds = dict(kinds)

    @classmethod
    def read(cls, path: Path, field: str) -> WordOrder:
        """From rules, each line `part of speech<TAB>relation<TAB>before` or `after`; `*` stands for all of HEADS.

        A number may follow: how near to the head, 1 the nearest; without it a dependent is as near as it was. Of two
        rules for one kind the later counts. Raises UserError, which begins with `field`, for any other line.
        """
        kinds: dict[tuple[str, str], tuple[float, float | None]] = {}
        if not path.is_file():
            raise UserError(f"{field}: no such file: {path}")
        for number, line in enumerate(text_files.lines(path, 4096), start=1):
            rule = _RULE.fullmatch((line or b"\xff").decode(errors="replace").strip())
            if rule is None or rule[1] not in ("*", *cls.HEADS):
                if line is not None and (not line.strip() or line.startswith(b"#")):
                    continue
                raise UserError(f"{field}: {path}, line {number}: not a rule like `VERB<TAB>obj<TAB>before`, of "
                                f"{', '.join(cls.HEADS)} or *, before or after, and a number or none")  # fmt: skip
            for head in cls.HEADS if rule[1] == "*" else (rule[1],):
                kinds[head, rule[2]] = (float(rule[3] == "before"), float(rule[4]) if rule[4] else None)
        if not kinds:
            raise UserError(f"{field}: {path} has no rule; a line is `VERB<TAB>obj<TAB>before` or `after`")
        return cls(kinds)

    @classmethod
    def learn(cls, trees: Iterable[Tree], *, fewest: int = 20) -> WordOrder:
        """From the trees of a language. Relations are taken without their subtypes."""
        found: dict[tuple[str, str], list[tuple[bool, int]]] = defaultdict(list)
        for tree in trees:
            for head, children in _children(tree).items():
                if head == 0 or tree.upos[head - 1] not in cls.HEADS:
                    continue
                for side in (False, True):  # after the head, before it; nearest first
                    near = sorted((c for c in children if (c < head) == side), key=lambda c: abs(c - head))
                    for distance, child in enumerate(near, 1):
                        kind = tree.upos[head - 1], tree.relations[child - 1].partition(":")[0]
                        found[kind].append((side, distance))
        return cls({
            kind: (float(np.mean([side for side, _ in seen])), float(np.mean([distance for _, distance in seen])))
            for kind, seen in found.items()
            if len(seen) >= fewest
        })  # fmt: skip

    def apply(self, tree: Tree) -> list[int]:
        """The places, from 0, of the words in their new order; final punctuation stays at the end."""
        children = _children(tree)
        order: list[int] = []
        # Depth first without recursion: a word that was expanded stands for itself.
        stack = [(child, False) for child in reversed(children[0])]
        while stack:
            word, expanded = stack.pop()
            if expanded:
                order.append(word - 1)
                continue
            before, after = self._sides(word, children[word], tree)
            stack += [(child, False) for child in reversed(after)]
            stack.append((word, True))
            stack += [(child, False) for child in reversed(before)]
        last = len(tree.heads) - 1
        if tree.upos and tree.upos[last] == "PUNCT":
            order = [*(i for i in order if i != last), last]
        return order

    def _sides(self, head: int, children: Sequence[int], tree: Tree) -> tuple[list[int], list[int]]:
        """The dependents before and after the head, from left to right."""
        before, after = [], []
        rank = {  # how near a dependent stands among those of its side, as in `learn`
            child: i
            for side in (False, True)
            for i, child in enumerate(
                sorted((c for c in children if (c < head) == side), key=lambda c: abs(c - head)), 1
            )
        }
        for child in children:
            kind = tree.upos[head - 1], tree.relations[child - 1].partition(":")[0]
            share, distance = self.kinds.get(kind, (float(child < head), None))
            distance = rank[child] if distance is None else distance
            # A kind on both sides about as often stays where it is.
            is_before = share > 0.5 if abs(share - 0.5) > 0.1 else child < head
            (before if is_before else after).append((distance, abs(child - head), child))
        return [c for *_, c in sorted(before, reverse=True)], [c for *_, c in sorted(after)]


def _children(tree: Tree) -> defaultdict[int, list[int]]:
    """Head -> its dependents from left to right, numbered from 1."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for word, head in enumerate(tree.heads, 1):
        children[head].append(word)
    return children
