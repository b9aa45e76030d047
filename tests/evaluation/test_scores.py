"""Values, intervals and differences by hand and against SciPy."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from ppa_jax.evaluation.scores import Score, differences, mean_over_languages, per_item


def score(*groups, **changes):
    first = Score("tatoeba", "de", "both", 4, "mean", "accuracy", groups, sum(len(g[0]) for g in groups))
    return dataclasses.replace(first, **changes)


def test_value_is_a_ratio_of_sums():
    # F1 of two sentences: 2 * (1 + 0) right, of (1 + 3) + (1 + 1) found and gold; not the mean of 1 and 0
    assert score((np.array([2.0, 0.0]), np.array([4.0, 2.0]))).value == pytest.approx(100 / 3)
    assert score((np.zeros(2), np.zeros(2))).value == 0


def test_languages_weigh_the_same():
    german, french = (score(per_item(np.array(hits)), language=x) for x, hits in (("de", [1]), ("fr", [0, 0, 0])))
    mean = mean_over_languages([german, french], "en-xx")
    assert (mean.value, mean.count, mean.language, mean.direction) == (50, 4, "mean", "en-xx")


def test_interval_agrees_with_scipy():
    rng = np.random.default_rng(0)
    top, bottom = rng.poisson(2, 200).astype(float), rng.poisson(3, 200) + 1.0
    low, high = score((top, bottom), scale=1.0).interval
    expected = scipy.stats.bootstrap(
        (top, bottom), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=4000, method="percentile",
        rng=rng,
    ).confidence_interval  # fmt: skip
    assert low == pytest.approx(expected.low, abs=0.01) and high == pytest.approx(expected.high, abs=0.01)


def test_interval_narrows_with_the_root_of_the_items():
    def width(n):
        low, high = score(per_item(np.arange(n) % 2)).interval
        return high - low

    assert width(100) / width(1600) == pytest.approx(4, rel=0.15)


def test_groups_are_drawn_independently():
    hits = np.arange(400) % 2
    one = score(per_item(hits)).interval
    four = score(*[per_item(hits)] * 4).interval
    assert (one[1] - one[0]) / (four[1] - four[0]) == pytest.approx(2, rel=0.15)


def test_sentences_that_all_languages_share_are_drawn_together():
    hits = np.arange(400) % 2
    one = score(per_item(hits)).interval
    same = score(*[per_item(hits)] * 4, shared_items=True).interval  # nothing is learned from four copies
    assert same == pytest.approx(one)


def test_a_single_item_has_no_interval():
    record = score(per_item(np.array([1]))).record("m")
    assert (record["value"], record["low"], record["high"]) == (100, None, None)
    json.dumps(record)


def test_paired_differences_are_sharper_than_the_intervals():
    rng = np.random.default_rng(0)
    old = rng.random(500) < 0.4
    new = old | (rng.random(500) < 0.05)  # right wherever the old one was, and a little more
    scores = {"old": [score(per_item(old))], "new": [score(per_item(new))]}
    (record,) = differences(scores, "old")
    assert (record["model"], record["baseline"]) == ("new", "old")
    assert record["value"] == pytest.approx(100 * (new.mean() - old.mean()), abs=1e-3)
    assert 0 < record["low"] < record["value"] < record["high"]
    assert scores["new"][0].interval[0] < scores["old"][0].interval[1], "unpaired, they overlap"


def test_only_the_same_items_are_compared():
    old = [score(per_item(np.ones(5))), score(per_item(np.ones(5)), layer=2)]
    new = [score(per_item(np.ones(4))), score(per_item(np.zeros(5)), layer=2), score(per_item(np.ones(5)), layer=3)]
    assert [r["layer"] for r in differences({"old": old, "new": new}, "old")] == [2]
