import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.attention import MASKED
from ppa_jax.model.bert import EncoderConfig, rows_from_mask
from ppa_jax.tasks import parsing
from ppa_jax.tasks.conllu import Sentence
from ppa_jax.tasks.parsing import Example, Tree
from ppa_jax.tasks.task import IGNORE

TINY = EncoderConfig(vocab_size=64, hidden_size=24, num_layers=3, num_heads=4)
TASK = parsing  # of the fixture `read`
CONLLU = """\
# sent_id = 1
# text = vámonos ya.
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t0:root\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj:x\t1:obj\t_
2.1\tnada\t_\tX\t_\t_\t_\t_\t1:obj\t_
3\tya\tya\tADV\t_\t_\t1\tadvmod\t1:advmod\tSpaceAfter=No
4\t.\t.\tPUNCT\t_\t_\t1\tpunct\t1:punct\t_

"""


def sentence(heads, words=None, relations=None, upos=None):
    n = len(heads)
    relations = relations or ["root" if head == 0 else "obj" for head in heads]
    return Example(words or ["a"] * n, upos or ["X"] * n, heads, relations, "en", Sentence(1, [], [], []))


def test_words_heads_and_universal_relations(read):
    (example,) = read(CONLLU)
    assert example.words == ["vamos", "nos", "ya", "."] and example.heads == [0, 1, 1, 1]
    assert example.relations == ["root", "obj", "advmod", "punct"] and example.upos[3] == "PUNCT"
    assert parsing.labels([example]) == ("advmod", "obj", "punct", "root")


def test_written_as_read_except_for_the_tree(tmp_path, read):
    examples = read(CONLLU + CONLLU.replace("sent_id = 1", "sent_id = 2"))
    gold = [Tree([0, 1, 1, 1], ["root", "obj:x", "advmod", "punct"])] * 2
    raw = read(re.sub(r"\t[01]\t(root|obj:x|advmod|punct)\t", "\t_\t_\t", CONLLU))
    assert [(x.heads, x.relations) for x in raw] == [([], [])], "without a tree: for the parser to find"
    parsing.write(tmp_path / "p.conllu", examples, gold)
    expected = CONLLU
    for enhanced in ("0:root", "1:obj", "1:advmod", "1:punct"):
        expected = expected.replace(f"\t{enhanced}\t", "\t_\t")
    expected = expected.replace("2.1\tnada\t_\tX\t_\t_\t_\t_\t_\t_", "2.1\tnada\t_\tX\t_\t_\t_\t_\t1:obj\t_")
    assert (tmp_path / "p.conllu").read_text() == expected + expected.replace("sent_id = 1", "sent_id = 2")

    parsing.write(tmp_path / "raw.conllu", raw, gold[:1])
    assert (tmp_path / "raw.conllu").read_text() == expected

    parsing.write(tmp_path / "p.conllu", examples[:1], [Tree([3, 1, 0, 3], ["a", "b", "root", "c"])])
    (again,) = read((tmp_path / "p.conllu").read_text())
    assert (again.heads, again.relations) == ([3, 1, 0, 3], ["a", "b", "root", "c"])


@pytest.mark.parametrize(
    ("heads", "right"),
    [
        ([0], True),
        ([2, 3, 0], True),
        ([0, 0], False),  # two roots
        ([2, 1], False),  # none
        ([0, 3, 2], False),  # a cycle beside the root
        ([0, 2], False),  # a word that is its own head
        ([0, 3], False),  # a head that is not there
        ([0, -1], False),
    ],
)
def test_is_tree(heads, right):
    assert parsing.is_tree(heads) is right


def test_bad_sentences_are_skipped_and_counted(read, caplog):
    cycle = CONLLU.replace("PUNCT\t_\t_\t1", "PUNCT\t_\t_\t4")
    no_head = CONLLU.replace("PUNCT\t_\t_\t1", "PUNCT\t_\t_\t_")
    cut = CONLLU.replace("\tSpaceAfter=No", "")
    assert len(read(CONLLU + cycle + CONLLU + no_head + CONLLU + cut)) == 3
    assert "file: 3 of 6 skipped: the heads form no tree with one root: 2 (first at line 10); a row" in caplog.text
    with pytest.raises(UserError, match=r"^data.test: \S*file:1: the heads form no tree with one root; 1 of 1 un"):
        read(cycle)
    with pytest.raises(UserError, match=r"^data.test: \S*file:1: a row without ten columns; 1 of 1 .* ten tab"):
        read("word\ttag\n")


def all_trees(n):
    return [h for h in itertools.product(range(n + 1), repeat=n) if parsing.is_tree(h)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_best_tree_of_all_trees(n):
    trees = np.array(all_trees(n))
    assert len(trees) == n ** (n - 1)  # Cayley's formula, for trees with a root
    rng = np.random.default_rng(n)
    for spread in (0.0, 1.0, 10.0):
        for _ in range(60):
            scores = rng.normal(size=(n + 1, n + 1)) * 3
            scores[:, 0] += rng.choice([-spread, spread])  # the root may be everybody's dearest or last choice
            scores[rng.permutation(n + 1), rng.permutation(n + 1)] += spread  # makes cycles likely
            heads = parsing.best_tree(scores)
            assert parsing.is_tree(heads)
            totals = scores[np.arange(1, n + 1), trees].sum(1)
            assert totals.max() == pytest.approx(scores[np.arange(1, n + 1), heads].sum())
            assert heads == trees[totals.argmax()].tolist()


def test_best_tree_of_a_long_sentence():
    n = 400
    scores = np.random.default_rng(0).normal(size=(n + 1, n + 1))
    order = np.random.default_rng(1).permutation(n) + 1
    gold = np.zeros(n + 1, int)
    gold[order[1:]] = order[:-1]  # a chain, as deep as can be
    scores[np.arange(n + 1), gold] += 20
    scores[:, 0] -= 40  # the root is dear, a cycle back would be cheap
    scores[order[0], order[-1]] += 20
    assert parsing.best_tree(scores) == gold[1:].tolist()


def test_features_point_to_first_pieces(tokenizer):
    example = sentence([2, 0, 2], words=["ab", "c", "de"], relations=["obj", "root", "unseen"])
    (feature,) = parsing.features([example], tokenizer, 99, ("obj", "root"))
    assert feature.arrays == {
        "words": [1, 1, IGNORE, 1, 1, IGNORE, IGNORE],
        "heads": [IGNORE, 3, IGNORE, 0, 3, IGNORE, IGNORE],
        "relations": [IGNORE, 0, IGNORE, 1, IGNORE, IGNORE, IGNORE],
    }
    assert feature.types == [0] * 7


def test_heads_outside_a_window_are_not_trained(tokenizer):
    example = sentence([0, *[1] * 9])  # all hang on the first word; windows: words 1-6, 4-9, 7-10
    found = parsing.features([example], tokenizer, 8, ("obj", "root"))
    assert [feature.context.own for feature in found] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
    assert found[0].arrays["heads"] == [IGNORE, 0, 1, 1, 1, 1, IGNORE, IGNORE]
    for feature in found[1:]:
        assert set(feature.arrays["heads"]) == set(feature.arrays["relations"]) == {IGNORE}


def one_hot(feature, T):
    """The outputs of a head that is certain of the gold; heads that are IGNORE point to the last token."""
    L = len(feature.ids)
    best = np.zeros((L, L), np.int16)
    best[np.arange(L), feature.arrays["heads"]] = feature.arrays["relations"]
    return {"arcs": np.eye(L, dtype=np.float32)[feature.arrays["heads"]], "best": best}


@pytest.mark.parametrize("max_length", [12, 20, 99])
def test_one_hot_scores_decode_to_gold(tokenizer, max_length):
    rng = np.random.default_rng(0)
    names = ("det", "obj", "root")
    examples = []
    for n in (1, 6, 30):
        root = int(rng.integers(1, n + 1))
        # Towards the root, word by word: no window is so short that a head is outside.
        heads = [0 if i == root else i + 1 if i < root else i - 1 for i in range(1, n + 1)]
        relations = ["root" if head == 0 else names[rng.integers(2)] for head in heads]
        examples.append(sentence(heads, ["ab"[: rng.integers(1, 3)] for _ in range(n)], relations))
    rows = parsing.features(examples, tokenizer, max_length, names)
    assert sum(head != IGNORE for row in rows for head in row.arrays["heads"]) == 37
    trees = parsing.decode(examples, rows, [one_hot(row, 3) for row in rows], names)
    assert trees == [Tree(list(example.heads), list(example.relations)) for example in examples]


def test_a_head_outside_the_window_is_used_only_if_no_tree_exists_without_it(tokenizer):
    example = sentence([0, *[1] * 9])
    names = ("obj", "root")
    rows = parsing.features([example], tokenizer, 8, names)
    outputs = []
    for row in rows:  # every word wants the root; the first word the most
        arcs = np.zeros((len(row.ids),) * 2, np.float32)
        arcs[:, 0] = 5
        outputs.append({"arcs": arcs, "best": np.zeros_like(arcs, np.int16)})
    outputs[0]["arcs"][1, 0] = 9
    (tree,) = parsing.decode([example], rows, outputs, names)
    assert parsing.is_tree(tree.heads) and tree.heads[0] == 0
    assert "dep" not in tree.relations  # the windows overlap: a tree needs no head from outside

    (lonely,) = parsing.decode(
        [sentence([0, 1])],
        parsing.features([sentence([0, 1])], tokenizer, 3, names),
        [
            {"arcs": np.float32([[0, 0, 0], [8, 0, 0], [0, 0, 0]]), "best": np.ones((3, 3), np.int16)},
            {"arcs": np.float32([[0, 0, 0], [7, 0, 0], [0, 0, 0]]), "best": np.ones((3, 3), np.int16)},
        ],
        names,
    )
    assert lonely.heads == [0, 1] and sorted(lonely.relations) == ["dep", "root"]


@pytest.fixture(scope="module")
def parser():
    """(head, random parameters, states, batch)."""
    head = parsing.Head(TINY, ("det", "obj", "punct", "root"), jnp.float32)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 6, 24)), jnp.float32)
    batch = {
        "words": jnp.asarray([[1, 1, IGNORE, 1, 1, IGNORE], [1, 1, 1, IGNORE, IGNORE, IGNORE]]),
        "heads": jnp.asarray([[IGNORE, 3, IGNORE, 0, 1, IGNORE], [IGNORE, IGNORE, 0, IGNORE, IGNORE, IGNORE]]),
        "relations": jnp.asarray([[IGNORE, 2, IGNORE, 3, IGNORE, IGNORE], [IGNORE, IGNORE, 3, IGNORE, IGNORE, IGNORE]]),
    }
    shapes = jax.eval_shape(head.init, jax.random.key(0), hidden, batch, None)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), shapes)
    return head, params, hidden, batch


def test_head_is_the_biaffine_map(parser):
    head, params, hidden, batch = parser
    outputs = head.apply(params, hidden, batch, None)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])

    def layer(name):
        x = np.asarray(hidden, np.float64) @ p[name]["kernel"] + p[name]["bias"]
        return np.where(x > 0, x, 0.1 * x)

    dependent, child, parent = (
        np.pad(layer(name), [(0, 0), (0, 0), (0, 1)], constant_values=1)
        for name in ("arc_dependent", "relation_dependent", "relation_head")
    )
    arcs = dependent @ p["arc"] @ layer("arc_head").swapaxes(1, 2)
    pairs = np.einsum("bir,trs,bjs->btij", child, p["relation"], parent)
    allowed = np.asarray(batch["words"]) != IGNORE
    # float32 sums of thousands of products of the order of 1
    np.testing.assert_allclose(np.moveaxis(outputs["arcs"], 2, 1)[allowed], arcs.swapaxes(1, 2)[allowed], atol=2e-3)
    assert (np.moveaxis(outputs["arcs"], 2, 1)[~allowed] == MASKED).all()
    assert (outputs["best"] == pairs.argmax(1)).all() and outputs["best"].dtype == jnp.int16
    assert len(np.unique(outputs["best"])) == 4
    gold = np.maximum(batch["heads"], 0)
    expected = np.take_along_axis(pairs, gold[:, None, :, None], axis=3)[..., 0].swapaxes(1, 2)
    np.testing.assert_allclose(outputs["relations"], expected, atol=2e-3)


def test_loss_equals_torch(parser):
    import torch

    head, params, hidden, batch = parser
    outputs = head.apply(params, hidden, batch, None)
    expected = sum(
        torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(outputs[name])).flatten(0, 1),
            torch.tensor(np.asarray(batch[label])).long().flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        ).item()
        for name, label in (("arcs", "heads"), ("relations", "relations"))
    )
    total, count = parsing.loss(outputs, batch)
    assert count == 4 and total == pytest.approx(expected, rel=1e-5)


def scans(program):
    """Whether it has a loop, not counting the loop that XLA makes of a scatter on CPUs."""
    return any(" while(" in line and "scatter" not in line for line in program.splitlines())


def test_training_reaches_every_parameter_and_never_scores_all_pairs(parser):
    head, params, hidden, batch = parser
    gradient = jax.jit(jax.grad(lambda p: parsing.loss(head.apply(p, hidden, batch, None), batch)[0]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any(), path
    # The scan over relations is the only loop of the head; what the loss does not use is left out.
    forward = jax.jit(head.apply).lower(params, hidden, batch, None)
    assert [scans(lowered.compile().as_text()) for lowered in (forward, gradient.lower(params))] == [True, False]


def test_dropout_depends_on_the_seeds(parser):
    head, params, hidden, batch = parser

    def arcs(seed):
        seeds = drop.token_seeds(jnp.uint32(seed), *rows_from_mask(jnp.ones((2, 6), jnp.int32)))
        return np.asarray(head.apply(params, hidden, batch, seeds)["arcs"])

    assert (arcs(1) == arcs(1)).all()
    assert (arcs(1) != arcs(2))[arcs(1) != MASKED].all()


def test_sentences_without_a_tree_are_neither_trained_nor_scored(tokenizer):
    bare = sentence([0, 1])._replace(heads=[], relations=[])
    (row,) = parsing.features([bare], tokenizer, 99, ("obj", "root"))
    assert set(row.arrays["heads"]) == set(row.arrays["relations"]) == {IGNORE} and row.arrays["words"][:3] == [1] * 3
    assert parsing.score([bare], [Tree([0, 1], ["root", "obj"])], "en") == {}
    both = [Tree([0, 1], ["root", "obj"]), Tree([0], ["root"])]
    assert parsing.score([bare, sentence([0])], both, "en")["las"] == (100.0, 1)
    with pytest.raises(UserError, match="the training data has no trees"):
        parsing.labels([bare])


def test_attachment_scores_by_hand():
    examples = [
        sentence([2, 0, 2, 2], relations=["det", "root", "unseen", "punct"], upos=["DET", "VERB", "X", "PUNCT"]),
        sentence([0], relations=["root"], upos=["X"]),
    ]
    trees = [Tree([2, 0, 2, 1], ["obj", "root", "dep", "punct"]), Tree([0], ["root"])]
    assert parsing.score(examples, trees, "en") == {
        "las": (40.0, 5),
        "uas": (80.0, 5),
        "las_no_punct": (50.0, 4),
        "uas_no_punct": (100.0, 4),
    }
