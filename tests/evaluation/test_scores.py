"""Values, intervals and differences by hand and against SciPy."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from ppa_jax.errors import UserError
from ppa_jax.evaluation.scores import (
    Difference,
    Score,
    difference,
    draw,
    load_scores,
    mean_and_spread,
    mean_over_languages,
    minus,
    over_runs,
    per_item,
    read_records,
    save_scores,
    write_records,
)


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
    before = rng.random(500) < 0.4
    after = before | (rng.random(500) < 0.05)  # right wherever the old one was, and a little more
    old, new = score(per_item(before)), score(per_item(after))
    record = difference(new, old, "new", "old")
    assert (record["model"], record["baseline"]) == ("new", "old")
    assert record["value"] == pytest.approx(100 * (after.mean() - before.mean()), abs=1e-3)
    assert 0 < record["low"] < record["value"] < record["high"]
    assert new.interval[0] < old.interval[1], "unpaired, they overlap"


def test_only_the_same_items_are_compared():
    old = score(per_item(np.ones(5)))
    assert difference(score(per_item(np.ones(4))), old, "new", "old") is None
    assert difference(score(per_item(np.ones(5)), runs=1), old, "new", "old")["value"] == 0


def test_few_batches_have_the_interval_of_student():
    rng = np.random.default_rng(0)
    values = rng.random(7)
    cka = score(per_item(values), per_item(values + 0.1), batches=True, shared_items=True, scale=1.0)
    expected = scipy.stats.t.interval(0.95, 6, values.mean() + 0.05, scipy.stats.sem(values))
    assert cka.interval == pytest.approx(expected)
    # Of differences that are nothing but noise, one in twenty is taken for something; the bootstrap takes one in four.
    found = 0
    for _ in range(1000):
        a, b = (score(per_item(x), batches=True, scale=1.0) for x in rng.normal(size=(2, 3)))
        record = difference(a, b, "a", "b")
        found += record["low"] > 0 or record["high"] < 0
    assert 25 < found < 80


def test_several_trainings_are_one_model_with_a_spread():
    rng = np.random.default_rng(0)
    german, french = rng.random((2, 300)) < 0.3, rng.random((2, 200)) < 0.6  # [runs, sentences]
    runs = [[score(per_item(german[i]), per_item(french[i]), language="mean")] for i in range(2)]
    (mean,) = over_runs(runs)
    assert mean.by_run.tolist() == [runs[0][0].value, runs[1][0].value] and mean.count == runs[0][0].count
    assert mean.value == pytest.approx(100 * (german.mean() + french.mean()) / 2)
    # The items are the sentences, not the sentences of each run.
    joined = score(per_item(german.mean(0)), per_item(french.mean(0)))
    assert mean.interval == pytest.approx(joined.interval)
    record = difference(mean, runs[0][0], "all", "first")
    assert record["value"] == pytest.approx(mean.value - runs[0][0].value, abs=1e-3) and record["low"] is not None
    assert over_runs([runs[0], [score(per_item(np.ones(3)), language="mean")]]) == [], "not of the same items"


def test_draws_of_many_scores_are_those_of_each():
    rng = np.random.default_rng(1)

    def some():
        german, french = (per_item(rng.random(n) < 0.4) for n in (40, 30))
        f1 = rng.integers(0, 3, 40), rng.integers(0, 5, 40)
        runs = [
            [score(x, language="de"), score(x, y, language="mean")] for x, y in ((german, french), (french, german))
        ]
        return [
            *runs[0], *over_runs([runs[0], runs[0]]), score(f1), score(german, german, shared_items=True),
            score(per_item(rng.random(5)), batches=True), score(per_item(np.ones(1))),
        ]  # fmt: skip

    state = rng.bit_generator.state
    alone = some()
    rng.bit_generator.state = state
    together = some()
    draw(together)
    for one, other in zip(alone[:-2], together[:-2], strict=True):
        assert "draws" in vars(other)
        np.testing.assert_allclose(other.draws, one.draws, rtol=1e-12)
    assert not any("draws" in vars(other) for other in together[-2:])


def test_saved_scores_come_back_with_their_items(tmp_path):
    path = tmp_path / "scores.npz"
    assert load_scores(path) == {}
    models = {
        "before": [
            score(per_item(np.array([0, 1, 1]))),
            score(per_item(np.ones(4)), layer=None, scale=1.0, batches=True),
        ],
        "after": [score(per_item(np.array([1, 1, 1])), per_item(np.zeros(2)), language="mean", shared_items=True)],
    }
    save_scores(path, models)
    again = load_scores(path)
    assert list(again) == ["before", "after"]
    for name, scores in models.items():
        assert [s.record(name) for s in again[name]] == [s.record(name) for s in scores]
        assert [dataclasses.replace(s, groups=()) for s in again[name]] == [
            dataclasses.replace(s, groups=()) for s in scores
        ]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"scores.npz: damaged .*; delete it"):
        load_scores(path)


def test_records_are_read_as_written(tmp_path):
    records = [{"value": 1.5, "language": "zh-Hant"}, {"name": "größer"}]
    assert read_records(tmp_path / "scores.json") == []
    write_records(tmp_path / "scores.json", records)
    assert read_records(tmp_path / "scores.json") == records


def test_a_difference_by_hand():
    found = Difference.of({0: 7.0, 1: 8.0, 2: 9.0})  # 8 ± 4.303 / sqrt(3)
    assert found == pytest.approx((8, 8 - 4.303 / 3**0.5, 8 + 4.303 / 3**0.5), abs=1e-3)
    assert found.excludes_zero and found.text() == "**+8.0 [+5.5, +10.5]**"
    wide = Difference.of({0: -1.0, 1: 3.0})
    assert not wide.excludes_zero and wide.text(digits=2) == "+1.00 [-24.41, +26.41]"  # ± 12.706 * 2


def test_one_seed_has_no_interval_and_none_no_value():
    one = Difference.of({0: 4.0})
    assert one.mean == 4 and np.isnan(one.low) and not one.excludes_zero and one.text() == "+4.0"
    assert Difference.of({}).text() is None and mean_and_spread({}) is None


def test_mean_and_spread():
    assert mean_and_spread({0: 1.0, 1: 3.0}) == "2.0 ±1.4" and mean_and_spread({0: 1.234}, digits=2) == "1.23"


def test_differences_are_between_the_same_seeds():
    assert minus({1: 5.0, 2: 9.0}, {0: 1.0, 1: 2.0}) == {1: 3.0}


def test_records_are_written_as_csv_too(tmp_path):
    records = [{"model": "a,b", "value": 1.5, "low": None}, {"model": 'the "c"', "value": 2, "layer": 3}]
    write_records(tmp_path / "scores.json", records)
    assert json.loads((tmp_path / "scores.json").read_text()) == records
    expected = 'model,value,low,layer\n"a,b",1.5,,\n"the ""c""",2,,3\n'
    assert (tmp_path / "scores.csv").read_text() == expected
