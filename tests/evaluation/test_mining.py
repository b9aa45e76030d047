"""Mining by hand, against scikit-learn and a plain search through all pairs, files of the BUCC form, bad input."""

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation import mining
from ppa_jax.evaluation.mining import Bitext, best_threshold, evaluate_mining, margin_scores, mine, read_bucc


def test_margin_by_hand():
    # cos 0.9 over the mean of 0.6 and 0.4; cos 0.5 over that of 0.6 and 0.65.
    scores = margin_scores(np.array([[0.9, 0.5]]), np.array([[1, 0]]), np.array([0.6]), np.array([0.65, 0.4]))
    np.testing.assert_allclose(scores, [[1.8, 0.8]])
    assert margin_scores(np.array([[0.9]]), np.array([[0]]), np.array([0.5]), np.array([-0.5])).tolist() == [[0]]


def mine_plainly(source, target, k):
    """All pairs at once, and Python's own sort."""
    source, target = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source, target))
    cosine = source @ target.T
    near, far = np.sort(cosine, 1)[:, -k:].mean(1), np.sort(cosine, 0)[-k:].mean(0)
    score = cosine / ((near[:, None] + far) / 2)
    proposals = set()
    for i in range(len(source)):
        proposals.add(max((score[i, j], i, j) for j in np.argsort(cosine[i])[-k:]))
    for j in range(len(target)):
        proposals.add(max((score[i, j], i, j) for i in np.argsort(cosine[:, j])[-k:]))
    taken = []
    for _, i, j in sorted(proposals, reverse=True):
        if i not in [a for a, _ in taken] and j not in [b for _, b in taken]:
            taken.append((i, j))
    return taken


@pytest.mark.parametrize("sizes, k", [((40, 30), 4), ((9, 25), 3), ((1, 2), 4)])
def test_pairs_agree_with_a_search_through_all(sizes, k):
    rng = np.random.default_rng(1)
    source, target = (rng.normal(size=(n, 6)) + 1 for n in sizes)  # + 1: no mean cosine is negative
    found = mine(source, target, k, block=7)
    assert list(zip(found.source.tolist(), found.target.tolist(), strict=True)) == mine_plainly(source, target, k)
    assert (np.diff(found.score) <= 0).all()
    assert len(set(found.source)) == len(found.source) and len(set(found.target)) == len(found.target)


@pytest.mark.parametrize(
    "score, right, gold, expected",
    [
        ([5, 4, 3, 2, 1], [1, 1, 0, 1, 0], 3, 1.5),  # F1 of 4 pairs 6/7; of 2 pairs 4/5
        ([5, 4, 3, 2, 1], [1, 1, 0, 0, 1], 3, 3.5),  # F1 of 2 pairs 4/5; of 5 pairs 6/8
        ([5, 4], [1, 1], 2, 4),  # all are taken
        ([5, 4, 4, 3], [0, 1, 0, 0], 1, 3.5),  # equals cannot be parted
        ([5, 4], [1, 0], 1, 4.5),
        ([5, 4], [0, 0], 2, np.inf),
        ([], [], 2, np.inf),
    ],
)
def test_threshold_by_hand(score, right, gold, expected):
    assert best_threshold(np.array(score), np.array(right, bool), gold) == expected


def test_threshold_is_the_best_of_all():
    rng = np.random.default_rng(2)
    for _ in range(50):
        n, missed = rng.integers(1, 30, 2)
        score = -np.sort(-rng.integers(0, 12, n) / 7)
        right = rng.random(n) < 0.4

        def f1(threshold, score=score, right=right, missed=missed):
            taken = score >= threshold
            return 2 * (right & taken).sum() / (taken.sum() + right.sum() + missed)

        best = f1(best_threshold(score, right, right.sum() + missed))
        assert best == pytest.approx(max(f1(t) for t in [*score, np.inf]))


class Angles:
    """Stands for an embedder: the sentence is an angle in degrees, after a letter that tells equal ones apart."""

    def __init__(self):
        self.calls = []

    def embed(self, params, sentences, requests):
        self.calls.append(list(requests))
        angle = np.radians([float(sentence[1:]) for sentence in sentences])
        return {request: np.stack([np.cos(angle), np.sin(angle)], 1) for request in requests}


def bitext(split, source, target, gold):
    return Bitext(split, source.split(), target.split(), np.array(gold))


DEV = bitext("dev", "a0 a30 a60 a90", "b2 b33 b60 b170", [[0, 0], [1, 1], [2, 2]])


def values(scores, language):
    return {s.metric: s.value for s in scores if s.language == language}


def test_scores_by_hand_on_the_set_of_the_threshold():
    # Pairs come as 2-2, 0-0, 1-1 or so, all with a score near 1; 90 and 170 are left for each other, far below.
    scores = evaluate_mining(Angles(), None, {"zh-en": (DEV, DEV)}, [(3, "mean")], k=2)
    assert values(scores, "zh") == {
        "f1_best_threshold": 100,
        "precision_best_threshold": 100,
        "recall_best_threshold": 100,
    }
    first = scores[0]
    assert (first.task, first.direction, first.layer, first.pooling, first.count) == ("bucc", "zh-en", 3, "mean", 3)
    assert [x.tolist() for x in first.groups[0]] == [[2, 2, 2, 0], [2, 2, 2, 0]]


def test_the_threshold_of_dev_is_applied_to_test():
    # In the test set the pairs are as near as those of dev, but one is wrong, and one gold pair is far.
    test = bitext("test", "a0 a30 a60 a90", "b2 b33 b60 b170", [[0, 0], [1, 2], [3, 3], [2, 1], [2, 2]])
    fake = Angles()
    scores = evaluate_mining(fake, None, {"zh-en": (DEV, test), "de-en": (DEV, DEV)}, [(3, "mean"), (1, "cls")], k=2)
    assert values(scores, "zh") == {
        "f1": pytest.approx(100 * 4 / 8),  # 2 right, 3 found, 5 gold
        "precision": pytest.approx(100 * 2 / 3),
        "recall": pytest.approx(100 * 2 / 5),
    }
    f1 = next(s for s in scores if s.metric == "f1")
    assert [x.tolist() for x in f1.groups[0]] == [[2, 0, 2, 0], [2, 2, 3, 1]]
    # The two kinds are never averaged with each other.
    mean = {(s.layer, s.metric): s.count for s in scores if s.language == "mean"}
    assert mean[3, "f1"] == 5 and mean[1, "f1_best_threshold"] == 3 and len(mean) == 12
    assert fake.calls == [[(3, "mean"), (1, "cls")]] * 3


@pytest.mark.parametrize(
    "pairs, languages, mean",
    [
        (["de-en", "zh-en"], ["de", "zh"], "xx-en"),
        (["en-de"], ["de"], "en-xx"),
        (["en-de", "zh-en"], ["de", "zh"], "all"),
        (["de-fr", "zh-en"], ["de-fr", "zh"], "all"),
    ],
)
def test_english_on_either_side(pairs, languages, mean):
    scores = evaluate_mining(Angles(), None, dict.fromkeys(pairs, (DEV, DEV)), [(3, "mean")], k=2)
    found = [(s.language, s.direction, s.count) for s in scores if s.metric == "f1_best_threshold"]
    expected = [(language, pair, 3) for language, pair in zip(languages, pairs, strict=True)]
    assert found == [*expected, ("mean", mean, 3 * len(pairs))]


def test_texts_that_repeat_are_never_reported_but_missed(caplog):
    caplog.set_level("INFO")
    twice = bitext("dev", "a0 a30 a60 a0", "b1 b31 b62", [[0, 0], [1, 1], [2, 2]])
    scores = evaluate_mining(Angles(), None, {"zh-en": (twice, twice)}, [(3, "mean")], k=2)
    assert values(scores, "zh")["recall_best_threshold"] == pytest.approx(200 / 3)
    assert values(scores, "zh")["precision_best_threshold"] == 100
    assert "1 source and 0 target texts appear more than once" in caplog.text


def test_large_sets_take_one_request_at_a_time_and_join_items(monkeypatch):
    monkeypatch.setattr(mining, "LARGE", 7)
    monkeypatch.setattr(mining, "MAX_ITEMS", 2)
    fake = Angles()
    scores = evaluate_mining(fake, None, {"zh-en": (DEV, DEV)}, [(3, "mean"), (1, "cls")], k=2)
    assert fake.calls == [[(3, "mean")], [(1, "cls")]]
    assert values(scores, "zh")["f1_best_threshold"] == 100
    assert [x.tolist() for x in scores[0].groups[0]] == [[4, 2], [4, 2]]


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def split(name, *, gold="z2\te1\n", pair="zh-en"):
    code = pair[:2]
    files = {f"{pair}.{name}.{code}": "z1\teins\r\nz2\tzwei\r\n", f"{pair}.{name}.en": "e1\ttwo\n"}
    return files | ({f"{pair}.{name}.gold": gold} if gold else {})


def test_reads_pairs_and_splits(tmp_path):
    write(tmp_path, {**split("dev"), **split("test"), **split("sample", pair="de-en"), "README": "no set"})
    sets = read_bucc(tmp_path)
    assert {pair: (a.split, b.split) for pair, (a, b) in sets.items()} == {
        "de-en": ("sample", "sample"),
        "zh-en": ("dev", "test"),
    }
    dev = sets["zh-en"][0]
    assert (dev.source, dev.target, dev.gold.tolist()) == (["eins", "zwei"], ["two"], [[1, 0]])
    assert list(read_bucc(tmp_path / "zh-en")) == ["zh-en"]
    assert read_bucc(tmp_path / "zh-en.dev")["zh-en"][1].split == "dev"


@pytest.mark.parametrize(
    "present, used",
    [
        ({"dev": True, "training": True}, ("dev", "training")),
        ({"dev": True, "training": True, "test": False}, ("dev", "training")),
        ({"sample": True, "test": True, "training": True}, ("sample", "test")),
        ({"training": True, "test": True}, ("training", "test")),
        ({"training": True, "test": False}, ("training", "training")),
        ({"test": True}, ("test", "test")),
    ],
)
def test_which_split_chooses_and_which_is_scored(tmp_path, present, used):
    for name, gold in present.items():
        write(tmp_path, split(name, gold="z1\te1\n" if gold else ""))
    tuning, scored = read_bucc(tmp_path)["zh-en"]
    assert (tuning.split, scored.split) == used
    assert (tuning is scored) == (used[0] == used[1])


def test_lines_without_an_id_are_skipped_and_counted(tmp_path, caplog):
    write(tmp_path, split("dev") | {"zh-en.dev.zh": "nothing\nz1\teins\n\nz2\tzwei\tdrei\n\tvier\n"})
    assert read_bucc(tmp_path)["zh-en"][0].source == ["eins", "zwei\tdrei"]
    assert "zh-en.dev.zh: 2 lines are not id<TAB>sentence" in caplog.text


@pytest.mark.parametrize(
    "files, said",
    [
        ({"zh-en.dev.gold": "z1\te1\nz9\te1\n"}, r"dev.gold:2: no sentence z9 in zh-en.dev.zh;"),
        ({"zh-en.dev.gold": "z1\tz2\n"}, r"dev.gold:1: no sentence z2 in zh-en.dev.en;"),
        ({"zh-en.dev.gold": "z1 e1 e1\n"}, r"dev.gold:1: not id<TAB>id;"),
        ({"zh-en.dev.gold": "\n"}, r"dev.gold: no gold pair in it"),
        ({"zh-en.dev.gold": ""}, r"dev.gold is empty"),
        ({"zh-en.dev.gold": None}, r"no .gold file"),
        ({"zh-en.dev.en": None}, r"no such file: .*zh-en.dev.en"),
        ({"zh-en.dev.en": "one\ntwo\n"}, r"zh-en.dev.en: no line is id<TAB>sentence"),
        ({"zh-en.dev.zh": "z1\ta\nz1\tb\n"}, r"zh-en.dev.zh:2: id z1 appears twice;"),
        ({"zh-en.dev.zh": b"z1\ta\nz2\t\xff\n"}, r"zh-en.dev.zh:2: not UTF-8"),
        (dict.fromkeys(split("dev")), r"no files xx-en.SPLIT.xx"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, said):
    write(tmp_path, {name: content for name, content in (split("dev") | files).items() if content is not None})
    with pytest.raises(UserError, match=f"^eval.mining: .*{said}") as caught:
        read_bucc(tmp_path, field="eval.mining")
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"mining: .*no files xx-en.SPLIT.xx"):
        read_bucc(tmp_path / "nowhere" / "zh-en")


@pytest.mark.shared_data
def test_reads_the_real_set(shared):
    tuning, scored = read_bucc(shared / "data/bucc")["zh-en"]
    assert tuning is scored
    assert (tuning.split, len(tuning.source), len(tuning.target), len(tuning.gold)) == ("dev", 8624, 13589, 257)
