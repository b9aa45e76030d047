"""Dependency parsing with a biaffine graph parser (Dozat and Manning 2017, "Deep biaffine attention") on the encoder.

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

from ppa_jax.data.text_files import Problem, tell_skipped
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.attention import MASKED
from ppa_jax.model.families import EncoderConfig
from ppa_jax.tasks import conllu
from ppa_jax.tasks.task import IGNORE, Batch, Feature, Outputs, Score, cross_entropy
from ppa_jax.tasks.words import as_strings, windows

SUFFIX: str = ".conllu"
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, str]]] = {}  # transformers has no parser

ARC_SIZE = 500  # these and the dropout are the paper's
RELATION_SIZE = 100
DROPOUT = 0.33
NO_RELATION = "dep"  # Universal Dependencies' unspecified relation


class Example(NamedTuple):
    """A sentence and its tree. A sentence without a tree is parsed, but neither trained on nor scored."""

    words: Sequence[str]
    upos: Sequence[str]
    heads: Sequence[int]  # from 1; 0 is the root; empty where there is no tree
    relations: Sequence[str]  # universal ones ("nmod" for "nmod:poss"); empty where there is no tree
    language: str
    sentence: conllu.Sentence  # as read, for writing the predictions


class Tree(NamedTuple):
    """A prediction."""

    heads: list[int]
    relations: list[str]


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The sentences of a CoNLL-U file. A sentence whose heads are all "_" has no tree and is only parsed.

    Sentences whose heads do not form a tree with one root are skipped and counted in the log.

    Raises UserError: `read_lines`'; most sentences are unusable.
    """
    sentences, problems = conllu.parse(conllu.blocks(path, field=field))
    return _examples(sentences, problems, path, language=language, field=field)


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The sentences of a dataset's rows, in the columns of universal_dependencies: `tokens`, `head`, `deprel`, `upos`.

    Words without a head are left out: their parts follow.
    """
    sentences, problems = [], []
    for number, row in enumerate(rows, 1):
        names = ("tokens", "head", "deprel", "upos")
        columns = [] if isinstance(row, str) else [as_strings(row.get(name), numbers=name == "head") for name in names]
        if not columns or any(column is None or len(column) != len(columns[0] or ()) for column in columns):
            what = "no tokens, head, deprel and upos, as lists of text and as long as each other"
            problems.append(Problem(number, row if isinstance(row, str) else what))
            continue
        words = [word for word in zip(*filter(None, columns), strict=True) if word[1].isdecimal()]
        forms, heads, relations, upos = zip(*words, strict=True) if words else ((),) * 4
        table = conllu.table(forms, upos, heads, relations)
        sentences.append(conllu.Sentence(number, [], table, list(range(len(table)))))
    return _examples(sentences, problems, where, language=language, field=field)


def _examples(
    sentences: Iterable[conllu.Sentence],
    problems: list[Problem],
    path: Path | str,
    *,
    language: str,
    field: str,
) -> list[Example]:
    examples = []
    for sentence in sentences:
        words, upos, column = map(sentence.column, (conllu.FORM, conllu.UPOS, conllu.HEAD))
        heads = [int(head) if head.isdecimal() else -1 for head in column]
        if set(column) == {conllu.NONE}:
            examples.append(Example(words, upos, [], [], language, sentence))
        elif is_tree(heads):
            relations = [relation.partition(":")[0] for relation in sentence.column(conllu.DEPREL)]
            examples.append(Example(words, upos, heads, relations, language, sentence))
        else:
            problems.append(Problem(sentence.line, "the heads form no tree with one root"))
    tell_skipped(path, problems, len(examples), field=field, expected=conllu.EXPECTED)
    return examples


def is_tree(heads: Sequence[int]) -> bool:
    """Whether the heads of words 1, 2, ... are a tree whose root, 0, has exactly one child."""
    if sum(head == 0 for head in heads) != 1 or not all(0 <= head <= len(heads) for head in heads):
        return False
    reached = {0}
    for word in range(1, len(heads) + 1):
        path = []
        while word not in reached and len(path) <= len(heads):
            path.append(word)
            word = heads[word - 1]
        if word not in reached:
            return False  # a cycle
        reached.update(path)
    return True


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

    - `words`: 1 at [CLS] and at the first pieces of the window's words, which may be heads; IGNORE elsewhere.
    - `heads`: at the first piece of a word that the window decides, the token of its head (0, [CLS], for the root);
      IGNORE elsewhere, for a head outside of the window, which cannot be trained, and in sentences without a tree.
    - `relations`: there, the number of the relation; IGNORE also for one that training did not have.
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
    """Two pairs of dense layers and the two biaffine maps.

    Dropout masks are drawn per token; the paper shares them along a sentence.
    """

    config: EncoderConfig
    labels: Sequence[str]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, seeds: jax.Array | None) -> Outputs:
        """From the states [B, L, D], with `words` and `heads` of `features` in `batch`:

        - `arcs` [B, L, L] float32: how well token j is the head of token i; MASKED where j is neither word nor root.
        - `relations` [B, L, T] float32: scores of the relations to the gold head, for the loss.
        - `best` [B, L, L] int16: the relation with the highest score for the pair. The scores of all relations for
          all pairs are never in memory at once. The loss does not read `best`, so a compiled training step omits it.
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
        # Zeros make all heads, and all relations, equally likely at the start.
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
    """[B, L, L] int16: for tokens i and j the number of the relation that scores highest with j as the head of i."""

    def step(carry: tuple[jax.Array, jax.Array], numbered: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        highest, best = carry
        number, matrix = numbered
        score = score_of(matrix)
        return (jnp.maximum(score, highest), jnp.where(score > highest, number, best)), None

    def score_of(matrix: jax.Array) -> jax.Array:
        product = jnp.einsum("bir,rs->bis", child_BxLxR, matrix)
        return jnp.einsum("bis,bjs->bij", product, parent_BxLxR, preferred_element_type=jnp.float32)

    first = score_of(relation_TxRxR[0])  # a constant could not be carried inside `shard_map`
    numbers = jnp.arange(1, len(relation_TxRxR), dtype=jnp.int16)
    return jax.lax.scan(step, (first, jnp.zeros_like(first, jnp.int16)), (numbers, relation_TxRxR[1:]))[0][1]


def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the heads and that of the relations to the gold heads, summed over words; number of words."""
    arcs, words = cross_entropy(outputs["arcs"], batch["heads"])
    relations, _ = cross_entropy(outputs["relations"], batch["relations"])
    return arcs + relations, words


def decode(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[Mapping[str, np.ndarray]],
    labels: Sequence[str],
) -> list[Tree]:
    """The best tree of each sentence.

    A word's scores come from the one window that decides it. Heads outside that window rank below all others: they are
    used only where no tree with one root exists without them, with the relation "dep".
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
        floor = known.min() - 1 - len(table) * (known.max() - known.min())  # any tree that avoids it scores higher
        heads = best_tree(np.where(np.isfinite(table), table, floor))
        chosen = [int(relation[word, head]) for word, head in enumerate(heads, 1)]
        trees.append(Tree(heads, [NO_RELATION if number < 0 else labels[number] for number in chosen]))
    return trees


def best_tree(scores: np.ndarray) -> list[int]:
    """The heads of words 1, 2, ... in the highest-scoring tree whose root has exactly one child.

    The algorithm of Chu and Liu (1965) and Edmonds (1967) allows the root several children. Subtracting more than any
    tree could gain from every arc of the root makes a second child never pay, and changes no other comparison.

    Args:
      scores: [n + 1, n + 1] of dependent and head, 0 being the root; finite. Row 0 and the diagonal are ignored.
    """
    scores = scores.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    scores[0] = -np.inf
    n = len(scores) - 1
    finite = scores[np.isfinite(scores)]
    scores[1:, 0] -= 1 + n * (finite.max() - finite.min())

    contracted = []  # of each cycle that became one node: its nodes, the best arcs into and out of it, the other nodes
    while cycle := _cycle(heads := np.r_[0, scores[1:].argmax(1)]):
        others = [node for node in range(len(scores)) if node not in set(cycle)]  # the root stays number 0
        # An arc into the cycle replaces one of the cycle's own, so its score is the gain over that one.
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


def _cycle(heads: np.ndarray) -> list[int]:
    """The nodes of a cycle in a graph where each node but 0 has one head; empty if the graph is a tree."""
    seen = np.zeros(len(heads), int)  # the node from which a node was first reached
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
    """Words with the right head (UAS), and with the right relation too (LAS); of all words and without UPOS PUNCT.

    Sentences without a gold tree are ignored; the result is empty if there are no others.
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
    """Writes CoNLL-U as read, with the predicted trees; enhanced dependencies, which repeat the gold tree, go."""
    columns = [
        {conllu.HEAD: heads, conllu.DEPREL: relations, conllu.DEPS: [conllu.NONE] * len(heads)}
        for heads, relations in predictions
    ]
    conllu.write(path, [example.sentence for example in examples], columns)
