"""Derived languages: English (or any language) changed in one respect at a time, to study what transfer depends on.

ALIGN-MLM (Tang et al. 2022) and Dufter and Schütze (2020) derive languages with known properties:

- `trans`: every word in another script, letter by letter; no token is shared (`CloneScript`, `clone_vocabulary`).
- `inv`: the words of a sentence in reverse order; punctuation at its ends stays there.
- `perm`: the words in a random order, which depends only on the words.
- `syn`: the dependents of verbs and nouns in the order of another language, from dependency trees (`WordOrder`).

They compose: `trans+inv`. A derived language is ordinary text with spaces between words, so tokenizers, tasks and
measures need no change. Annotation (tags, heads, entities) moves with its words.
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

# Tokenizers do not change these letters: they have no case and no accents, and get no spaces, as Chinese characters do.
_SCRIPT = range(0x17000, 0x187F8)  # Tangut
_STEPS = ("trans", "inv", "perm", "syn")
_RULE = re.compile(r"(\S+)\s+(\S+)\s+(before|after)(?:\s+(\d+(?:\.\d+)?))?")


class Tree(NamedTuple):
    """A dependency tree of words 1, 2, ...; head 0 is the root."""

    heads: Sequence[int]
    relations: Sequence[str]
    upos: Sequence[str]


class CloneScript:
    """Maps the characters of a vocabulary, in their order, one to one to letters of another script."""

    def __init__(self, characters: Iterable[str]) -> None:
        """Raises UserError for more characters than the script has letters."""
        chosen = sorted(set(characters))
        if len(chosen) > len(_SCRIPT):
            raise UserError(
                f"a cloned script: there are {len(chosen):,} characters but only {len(_SCRIPT):,} letters for them; "
                "clone a vocabulary with fewer characters, such as that of a single language"
            )
        self._clone = {ord(char): _SCRIPT[i] for i, char in enumerate(chosen)}

    def word(self, word: str) -> str:
        """The word in the other script; characters that are not in the vocabulary do not change."""
        return word.translate(self._clone)

    def piece(self, piece: str) -> str:
        """The token in the other script; the prefix ## does not change."""
        start = "##" if piece.startswith("##") and len(piece) > 2 else ""
        return start + self.word(piece.removeprefix(start))


def clone_vocabulary(directory: Path, target: Path) -> CloneScript:
    """Writes a WordPiece tokenizer in which every token also exists in the cloned script; returns the script.

    The clone of token i of V is V + i; the clones of special and unused tokens never occur in text. A word and its
    clone have the same number of tokens. Raises UserError without vocab.txt, or for more characters than can be cloned.
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
    same = {name: found[name] for name in ("do_lower_case", "strip_accents", "tokenizer_class") if name in found}
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast"} | same) + "\n")
    return script


def is_special(piece: str) -> bool:
    """Whether it is a token like [CLS] or [unused1]."""
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


class Derivation:
    """A derived language: `trans`, `inv`, `perm`, `syn` and their compositions, as `trans+inv`."""

    def __init__(
        self, name: str, *, script: CloneScript | None = None, order: WordOrder | None = None, seed: int = 0
    ) -> None:
        """
        Args:
          name: steps joined by +. `syn` is always the first change of order, because it needs the original trees.
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
        """The words' new order, as indices of `words`. Raises UserError for `syn` without a tree."""
        order = list(range(len(words)))
        for step in self._steps:
            if step == "syn" and self._order is not None:
                if tree is None:
                    raise UserError(
                        f"derived language {self.name}: its order needs trees, but a text has none; "
                        "give only CoNLL-U files"
                    )
                order = self._order.apply(tree)
            elif step == "inv":  # only the words between the punctuation at both ends
                inner = [i for i, word in enumerate(order) if not is_punctuation(words[word])]
                start, stop = (inner[0], inner[-1] + 1) if inner else (0, 0)
                order = [*order[:start], *order[start:stop][::-1], *order[stop:]]
            elif step == "perm":  # depends on the set of words, not on their order
                content = zlib.crc32("\0".join(sorted(words)).encode("utf-8", "surrogatepass"))
                order = [order[i] for i in np.random.default_rng((self._seed, content)).permutation(len(order))]
        return order

    def words(self, words: Sequence[str], order: Sequence[int]) -> list[str]:
        """The words in a new order, and in the other script for `trans`."""
        moved = [words[i] for i in order]
        return [self._script.word(word) for word in moved] if self._script and "trans" in self._steps else moved


def is_punctuation(word: str) -> bool:
    """Whether a word consists of punctuation."""
    return bool(word) and all(unicodedata.category(char).startswith("P") for char in word)


# ---- the annotation of words

_BEGINS, _GOES_ON = ("B-", "S-"), ("I-", "E-")  # of IOB and IOBES


def moved_heads(heads: Sequence[int], order: Sequence[int]) -> list[int]:
    """The heads (from 1; 0 is the root) of words in a new order."""
    new = {old: position for position, old in enumerate(order, 1)}
    return [0 if heads[old] == 0 else new[heads[old] - 1] for old in order]


def moved_tags(tags: Sequence[str], order: Sequence[int]) -> tuple[list[str], int]:
    """(the tags of words in a new order, the number of entities that it splits).

    Entities may be in IOB1, IOB2 or IOBES (tasks/tagging.py turns BILOU into it), and become IOB2: each starts with B-
    in the new order, and one that is no longer contiguous becomes several.
    """
    entity, number = [-1] * len(tags), -1
    for i, tag in enumerate(tags):
        if tag[:2] in _BEGINS + _GOES_ON:
            before = tags[i - 1] if i else ""
            number += tag[:2] in _BEGINS or before[:2] not in ("B-", "I-") or before[2:] != tag[2:]
            entity[i] = number
    moved, pieces = [], Counter()
    for position, old in enumerate(order):
        tag = tags[old]
        if entity[old] >= 0:
            goes_on = position > 0 and entity[order[position - 1]] == entity[old]
            pieces[entity[old]] += not goes_on
            tag = f"{'I' if goes_on else 'B'}-{tag[2:]}"
        moved.append(tag)
    return moved, sum(count > 1 for count in pieces.values())


# ---- the order of another language


class WordOrder:
    """On which side of their heads dependents are, and how close: learned from a treebank, or given as rules.

    For every part of speech of a head (HEADS) and every relation, it has the share of dependents before the head and
    their distance from it, counted in dependents. A sentence is reordered head by head: each dependent moves, with its
    subtree, to the side and distance that are usual in the other language. Dependents of other heads, and kinds with
    fewer than `fewest` examples, keep their side and order. Wang and Eisner (2016) sample; this is deterministic.
    """

    HEADS = ("VERB", "NOUN", "PROPN", "AUX", "ADJ")  # whose dependents move

    def __init__(self, kinds: Mapping[tuple[str, str], tuple[float, float | None]]) -> None:
        """`kinds`: (part of speech of the head, relation) -> (share before the head, mean distance in dependents).

        With a distance of None, a dependent keeps its own.
        """
        self.kinds = dict(kinds)

    @classmethod
    def read(cls, path: Path, field: str) -> WordOrder:
        """From rules: lines `part of speech<TAB>relation<TAB>before` or `after`; `*` means all of HEADS.

        A number may follow: the distance from the head, where 1 is next to it; without it a dependent keeps its own.
        The last rule for a kind counts. Raises UserError, starting with `field`, for any other line.
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
        """From the trees of a language. Subtypes of relations are ignored."""
        found: dict[tuple[str, str], list[tuple[bool, int]]] = defaultdict(list)
        for tree in trees:
            for head, children in _children(tree).items():
                if head == 0 or tree.upos[head - 1] not in cls.HEADS:
                    continue
                for child, distance in _distances(head, children).items():
                    kind = tree.upos[head - 1], tree.relations[child - 1].partition(":")[0]
                    found[kind].append((child < head, distance))
        return cls({
            kind: (float(np.mean([side for side, _ in seen])), float(np.mean([distance for _, distance in seen])))
            for kind, seen in found.items()
            if len(seen) >= fewest
        })  # fmt: skip

    def apply(self, tree: Tree) -> list[int]:
        """The words' new order, as indices from 0; final punctuation stays at the end."""
        children = _children(tree)
        order: list[int] = []
        # Depth first, without recursion: a word is expanded once, then output.
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
        own_distances = _distances(head, children)
        for child in children:
            kind = tree.upos[head - 1], tree.relations[child - 1].partition(":")[0]
            share, distance = self.kinds.get(kind, (float(child < head), None))
            distance = own_distances[child] if distance is None else distance
            # A kind that is about as often on either side stays where it is.
            is_before = share > 0.5 if abs(share - 0.5) > 0.1 else child < head
            (before if is_before else after).append((distance, abs(child - head), child))
        return [c for *_, c in sorted(before, reverse=True)], [c for *_, c in sorted(after)]


def _distances(head: int, children: Sequence[int]) -> dict[int, int]:
    """The distance of each dependent from its head, in dependents on the same side; the nearest has 1."""
    distances = {}
    for is_before in (False, True):
        nearest_first = sorted((c for c in children if (c < head) == is_before), key=lambda c: abs(c - head))
        distances |= {child: distance for distance, child in enumerate(nearest_first, 1)}
    return distances


def _children(tree: Tree) -> defaultdict[int, list[int]]:
    """Head -> its dependents from left to right, numbered from 1."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for word, head in enumerate(tree.heads, 1):
        children[head].append(word)
    return children
