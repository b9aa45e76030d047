"""Dependency parsing: a biaffine graph parser (Dozat and Manning 2017, "Deep biaffine attention") on the encoder.

A word is represented by its first subword token, the root by [CLS]. Every word scores every other as its head; the
prediction is the highest-scoring tree with exactly one root, as Universal Dependencies require. Relations are scored
for pairs of words.

Axes: B windows, L tokens, D width, A width for arcs, R width for relations, T relations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ppa_jax.data.text_files import usable
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.attention import MASKED
from ppa_jax.model.families import EncoderConfig
from ppa_jax.tasks import conllu
from ppa_jax.tasks.task import IGNORE, Batch, Feature, HostOutputs, Outputs, Score, cross_entropy
from ppa_jax.tasks.words import as_strings, windows

SUFFIX: str = ".conllu"
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, str]]] = {}  # transformers has no parser

ARC_SIZE = 500  # the sizes and the dropout are the paper's
RELATION_SIZE = 100
DROPOUT = 0.33
NO_RELATION = "dep"  # in Universal Dependencies: an unspecified relation


class Example(NamedTuple):
    """A sentence and its tree. Sentences without a tree are parsed, but neither trained on nor scored."""

    words: Sequence[str]
    upos: Sequence[str]
    heads: Sequence[int]  # word numbers from 1, and 0 for the root; empty without a tree
    relations: Sequence[str]  # without subtypes ("nmod" for "nmod:poss"); empty without a tree
    language: str
    sentence: conllu.Sentence  # as read, for writing the predictions


class Tree(NamedTuple):
    """A prediction."""

    heads: list[int]
    relations: list[str]


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The sentences of a CoNLL-U file. A sentence whose heads are all "_" has no tree.

    Sentences whose heads do not form a tree with one root are skipped and counted in the log.

    Raises UserError: `read_lines`'; most sentences are unusable.
    """
    return _examples(conllu.parse(conllu.blocks(path, field=field)), path, language=language, field=field)


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The sentences of a dataset's rows, with the columns `tokens`, `head`, `deprel`, `upos` of universal_dependencies.

    Words without a head are left out: their parts follow as words of their own.
    """
    found = ((i, row if isinstance(row, str) else _from_row(row, i)) for i, row in enumerate(rows, 1))
    return _examples(found, where, language=language, field=field)


def _from_row(row: Mapping[str, Any], number: int) -> conllu.Sentence | str:
    columns = [as_strings(row.get(name), numbers=name == "head") for name in ("tokens", "head", "deprel", "upos")]
    if any(column is None or len(column) != len(columns[0] or ()) for column in columns):
        return "no tokens, head, deprel and upos, as lists of strings of equal length"
    words = [word for word in zip(*filter(None, columns), strict=True) if word[1].isdecimal()]
    forms, heads, relations, upos = zip(*words, strict=True) if words else ((),) * 4
    table = conllu.table(forms, upos, heads, relations)
    return conllu.Sentence(number, [], table, list(range(len(table))))


def _examples(
    sentences: Iterable[tuple[int, conllu.Sentence | str]], path: Path | str, *, language: str, field: str
) -> list[Example]:
    def example(sentence: conllu.Sentence) -> Example | str:
        words, upos, column = map(sentence.column, (conllu.FORM, conllu.UPOS, conllu.HEAD))
        if set(column) == {conllu.NONE}:
            return Example(words, upos, [], [], language, sentence)
        heads = [int(head) if head.isdecimal() else -1 for head in column]
        if not is_tree(heads):
            return "the heads form no tree with one root"
        relations = [relation.partition(":")[0] for relation in sentence.column(conllu.DEPREL)]
        return Example(words, upos, heads, relations, language, sentence)

    examples = ((line, found if isinstance(found, str) else example(found)) for line, found in sentences)
    return usable(examples, path, field=field, expected=conllu.EXPECTED)


def is_tree(heads: Sequence[int]) -> bool:
    """Whether the heads of words 1, 2, ... are a tree whose root, 0, has exactly one child."""
    one_root = sum(head == 0 for head in heads) == 1 and all(0 <= head <= len(heads) for head in heads)
    return one_root and not _cycle([0, *heads])


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The relations of the training data, sorted. Raises UserError if it has no tree."""
    found = {relation for example in examples for relation in example.relations}
    if not found:
        raise UserError("the training data has no trees; expected them in CoNLL-U's columns HEAD and DEPREL")
    if bare := sum(not example.heads for example in examples):
        logging.warning("%d of %d training sentences have no tree and are not trained on", bare, len(examples))
    return tuple(sorted(found))


def features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, labels: Sequence[str]
) -> list[Feature]:
    """Windows of the sentences (see `words.windows`). The arrays:

    - `words`: 1 at the possible heads, which are [CLS] and the first token of each word; IGNORE elsewhere.
    - `heads`: at the first token of each word that the window decides, the position of its head (0, [CLS], for the
      root); IGNORE elsewhere, if the head is outside the window and so cannot be trained, and without a tree.
    - `relations`: at the same positions, the index of the relation; IGNORE also if it is not in the training data.
    """
    numbers = {label: i for i, label in enumerate(labels)}
    found = []
    for i, window in windows([example.words for example in examples], tokenizer, max_length):
        L = len(window.ids)
        words, heads, relations = [IGNORE] * L, [IGNORE] * L, [IGNORE] * L
        for position in (0, *window.positions):
            words[position] = 1
        for word in window.own if examples[i].heads else []:
            head = examples[i].heads[word] - 1  # numbered as `own` is, from 0
            if head == -1 or 0 <= head - window.start < len(window.positions):
                heads[window.position(word)] = 0 if head == -1 else window.position(head)
                relations[window.position(word)] = numbers.get(examples[i].relations[word], IGNORE)
        arrays = {"words": words, "heads": heads, "relations": relations}
        found.append(Feature(i, window.ids, [0] * L, arrays, {}, window))
    return found


class Head(nn.Module):
    """Two pairs of dense layers and two biaffine maps. Dropout masks differ between tokens; the paper shares them."""

    config: EncoderConfig
    labels: Sequence[str]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, seeds: jax.Array | None) -> Outputs:
        """From the states [B, L, D], and `words` and `heads` of the batch (see `features`):

        - `arcs` [B, L, L] float32: the score of token j as the head of token i; MASKED if j is neither word nor root.
        - `relations` [B, L, T] float32: the scores of the relations to the gold head, for the loss.
        - `best` [B, L, L] int16: the highest-scoring relation of each pair. The scores of all relations for all pairs
          are never in memory at once. The loss does not use `best`, so the compiled training step leaves it out.
        """
        T = len(self.labels)

        def dropped(x: jax.Array, k: int) -> jax.Array:
            return x if seeds is None else drop.drop_features(x, drop.at_site(seeds, k), DROPOUT)

        def layer(name: str, size: int, k: int) -> jax.Array:
            dense = nn.Dense(size, dtype=self.dtype, kernel_init=nn.initializers.orthogonal(), name=name)
            return dropped(nn.leaky_relu(dense(hidden), 0.1), k)

        def with_one(x: jax.Array) -> jax.Array:
            return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # for the linear and constant terms

        hidden = dropped(hidden, 0)
        dependent_BxLxA = with_one(layer("arc_dependent", ARC_SIZE, 1))
        head_BxLxA = layer("arc_head", ARC_SIZE, 2)
        child_BxLxR = with_one(layer("relation_dependent", RELATION_SIZE, 3))
        parent_BxLxR = with_one(layer("relation_head", RELATION_SIZE, 4))
        # With zeros, all heads and all relations are equally likely at the start.
        arc = self.param("arc", nn.initializers.zeros, (ARC_SIZE + 1, ARC_SIZE)).astype(self.dtype)
        relation = self.param("relation", nn.initializers.zeros, (T, RELATION_SIZE + 1, RELATION_SIZE + 1))
        relation = relation.astype(self.dtype)

        product = jnp.einsum("bia,ac->bic", dependent_BxLxA, arc)
        arcs = jnp.einsum("bic,bjc->bij", product, head_BxLxA, preferred_element_type=jnp.float32)
        arcs = jnp.where((batch["words"] != IGNORE)[:, None, :], arcs, MASKED)

        gold = jnp.maximum(batch["heads"], 0)[:, :, None]
        gold_parent_BxLxR = jnp.take_along_axis(parent_BxLxR, gold, axis=1)
        products = jnp.einsum("bir,trs->btis", child_BxLxR, relation)
        relations = jnp.einsum("btis,bis->bit", products, gold_parent_BxLxR, preferred_element_type=jnp.float32)
        best = _best_relations(*map(jax.lax.stop_gradient, (child_BxLxR, parent_BxLxR, relation)))
        return {"arcs": arcs, "relations": relations, "best": best}


def _best_relations(child_BxLxR: jax.Array, parent_BxLxR: jax.Array, relation_TxRxR: jax.Array) -> jax.Array:
    """[B, L, L] int16: for tokens i and j, the index of the relation that scores highest with j as the head of i."""

    def step(carry: tuple[jax.Array, jax.Array], numbered: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        highest, best = carry
        number, matrix = numbered
        score = score_of(matrix)
        return (jnp.maximum(score, highest), jnp.where(score > highest, number, best)), None

    def score_of(matrix: jax.Array) -> jax.Array:
        product = jnp.einsum("bir,rs->bis", child_BxLxR, matrix)
        return jnp.einsum("bis,bjs->bij", product, parent_BxLxR, preferred_element_type=jnp.float32)

    first = score_of(relation_TxRxR[0])  # `shard_map` does not accept a constant as the initial carry
    numbers = jnp.arange(1, len(relation_TxRxR), dtype=jnp.int16)
    return jax.lax.scan(step, (first, jnp.zeros_like(first, jnp.int16)), (numbers, relation_TxRxR[1:]))[0][1]


def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy of heads and of relations to the gold heads, summed over words; number of words)."""
    arcs, words = cross_entropy(outputs["arcs"], batch["heads"])
    relations, _ = cross_entropy(outputs["relations"], batch["relations"])
    return arcs + relations, words


def decode(
    examples: Sequence[Example], features: Sequence[Feature], outputs: HostOutputs, labels: Sequence[str]
) -> list[Tree]:
    """The highest-scoring tree of each sentence.

    The scores of a word come from the window that decides it. Heads outside that window score below all others: they
    are used, with the relation "dep", only if there is no tree with one root without them.
    """
    scores = [np.full((len(e.words) + 1, len(e.words) + 1), -np.inf) for e in examples]  # [dependent, head]
    best = [np.full(table.shape, -1) for table in scores]
    for feature, output in zip(features, outputs, strict=True):
        window = feature.context
        positions = [0, *window.positions]
        heads = [0, *range(window.start + 1, window.start + 1 + len(window.positions))]
        for word in window.own:
            position = window.position(word)
            scores[feature.example][word + 1, heads] = output["arcs"][position, positions]
            best[feature.example][word + 1, heads] = output["best"][position, positions]
    trees = []
    for table, relation in zip(scores, best, strict=True):
        known = table[np.isfinite(table)]
        floor = known.min() - 1 - len(table) * (known.max() - known.min())  # below every tree without such heads
        heads = best_tree(np.where(np.isfinite(table), table, floor))
        chosen = [int(relation[word, head]) for word, head in enumerate(heads, 1)]
        trees.append(Tree(heads, [NO_RELATION if number < 0 else labels[number] for number in chosen]))
    return trees


def best_tree(scores: np.ndarray) -> list[int]:
    """The heads of words 1, 2, ... in the highest-scoring tree whose root has exactly one child.

    The algorithm of Chu and Liu (1965) and Edmonds (1967) allows the root several children. From every arc of the root,
    more is subtracted than any tree could gain: a second child then never pays, and no other comparison changes.

    Args:
      scores: [n + 1, n + 1] by dependent and head, where 0 is the root; finite. Row 0 and the diagonal are ignored.
    """
    scores = scores.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    scores[0] = -np.inf
    n = len(scores) - 1
    finite = scores[np.isfinite(scores)]
    scores[1:, 0] -= 1 + n * (finite.max() - finite.min())

    contracted = []  # for each contracted cycle: its nodes, their heads, the best arcs into and out of it, other nodes
    while cycle := _cycle(heads := np.r_[0, scores[1:].argmax(1)]):
        others = [node for node in range(len(scores)) if node not in set(cycle)]  # the root stays number 0
        # An arc into the cycle replaces one of the cycle's arcs, so its score is the gain over that arc.
        gains = scores[np.ix_(cycle, others)] - scores[cycle, heads[cycle]][:, None]
        leaving = scores[np.ix_(others, cycle)]
        smaller = np.full((len(others) + 1, len(others) + 1), -np.inf)
        smaller[:-1, :-1] = scores[np.ix_(others, others)]
        smaller[-1, :-1], smaller[:-1, -1] = gains.max(0), leaving.max(1)
        contracted.append((cycle, heads[cycle], gains.argmax(0), leaving.argmax(1), others))
        scores = smaller
    for cycle, within, entered, left, others in reversed(contracted):
        whole = np.zeros(len(others) + len(cycle), int)
        whole[cycle] = within
        for i, head in enumerate(heads[:-1]):
            whole[others[i]] = cycle[left[i]] if head == len(others) else others[head]
        whole[cycle[entered[heads[-1]]]] = others[heads[-1]]
        heads = whole
    return heads[1:].tolist()


def _cycle(heads: Sequence[int] | np.ndarray) -> list[int]:
    """The nodes of a cycle in a graph in which each node but 0 has one head; empty if the graph is a tree."""
    seen = np.zeros(len(heads), int)  # the start of the walk that first reached the node
    for start in range(1, len(heads)):
        node = start
        while node and not seen[node]:
            seen[node] = start
            node = heads[node]
        if node and seen[node] == start:
            cycle = [int(node)]
            while (node := heads[node]) != cycle[0]:
                cycle.append(int(node))
            return cycle
    return []


def score(examples: Sequence[Example], predictions: Sequence[Tree], language: str) -> dict[str, Score]:
    """Percentage of words with the correct head (UAS), and also the correct relation (LAS); with and without PUNCT.

    Sentences without a gold tree are ignored; if there are no others, there are no scores.
    """
    rows = [
        (head == gold, head == gold and relation == gold_relation, upos != "PUNCT")
        for example, tree in zip(examples, predictions, strict=True)
        if example.heads
        for head, relation, gold, gold_relation, upos in zip(
            *tree, example.heads, example.relations, example.upos, strict=True
        )
    ]
    if not rows:
        logging.warning("%s: no sentence has a gold tree; the predictions are written but not scored", language)
        return {}
    uas, las, counts = np.array(rows).T
    tables = {"las": las, "uas": uas, "las_no_punct": las[counts], "uas_no_punct": uas[counts]}
    return {name: Score(100 * float(hits.mean()) if len(hits) else 0.0, len(hits)) for name, hits in tables.items()}


def write(path: Path, examples: Sequence[Example], predictions: Sequence[Tree]) -> None:
    """Writes CoNLL-U as read, with the predicted trees and without enhanced dependencies: these show the gold tree."""
    columns = [
        {conllu.HEAD: heads, conllu.DEPREL: relations, conllu.DEPS: [conllu.NONE] * len(heads)}
        for heads, relations in predictions
    ]
    conllu.write(path, [example.sentence for example in examples], columns)
