"""The report of fine-tuning: means, spread, differences and the grid."""

import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation.report import tasks as task_report


def record(value, language="de", seed=0, model="", metric="accuracy"):
    named = {"model": model} if model else {}
    return named | {
        "task": "nli", "seed": seed, "language": language, "metric": metric, "value": value, "count": 10,
    }  # fmt: skip


def test_mean_and_spread_over_the_seeds(tmp_path):
    records = [
        record(v, x, s) for s, row in enumerate([(50, 70), (60, 90)]) for v, x in zip(row, ("en", "de"), strict=True)
    ]
    path, table = task_report.write(tmp_path, records, facts={"model": "m"}, sources="data")
    assert "| en | 55.00 ±7.07 | 10 |" in table and "| de | 80.00 ±14.14 | 10 |" in table
    assert "| **mean** | 67.50 ±10.61 |" in table, "the mean of the languages, seed by seed: 60 and 75"
    text = path.read_text()
    assert table in text and "(bars.png)" in text and (tmp_path / "bars.png").stat().st_size > 1000


def test_the_zero_shot_mean_leaves_out_what_was_trained_on():
    records = [record(v, x) for x, v in (("en", 90), ("de", 60), ("fr-mlqa", 50), ("en-mlqa", 80))]
    found = task_report.by_language(records, ["en"])
    assert found["", "accuracy", "zero-shot"] == {0: 55} and found["", "accuracy", "mean"] == {0: 70}
    two = task_report.by_language(records[2:], ["en"])
    assert [x for _, _, x in two] == ["fr-mlqa", "en-mlqa", "mean"], "one target is no mean"
    assert ("", "accuracy", "zero-shot") not in task_report.by_language(records)
    longer = [record(v, x) for x, v in (("en", 90), ("zh-Hans", 80), ("de", 50), ("de/zh", 40))]
    assert task_report.by_language(longer, ["en-mnli", "zh"])["", "accuracy", "zero-shot"] == {0: 45}


def test_models_side_by_side(tmp_path):
    values = {"before": (50.0, 52.0, 54.0), "after": (60.0, 63.0, 63.0), "same": (50.0, 53.0, 53.0)}
    records = [record(v, seed=s, model=m) for m, row in values.items() for s, v in enumerate(row)]
    _, table = task_report.write(tmp_path, records, facts={}, sources="")
    assert "| language | before | after | same | items |" in table
    assert "| de | 52.00 ±2.00 | 62.00 ±1.73 | 52.00 ±1.73 | 10 |" in table
    # differences 10, 11, 9: mean 10, standard error 1/sqrt(3), t(2, 97.5%) = 4.303
    assert "**+10.00 [+7.52, +12.48]**" in table and "+0.00 [-2.48, +2.48]" in table


def test_no_mean_where_a_language_lacks_a_seed():
    found = task_report.by_language([record(1.0, "en"), record(2.0, "de"), record(3.0, "de", seed=1)])
    assert ("", "accuracy", "mean") not in found


def test_the_grid_of_context_and_question():
    records = [record(v, x, metric="f1") for x, v in {"de": 1.0, "de/en": 2.0, "en/de": 3.0, "en": 4.0}.items()]
    title, table = task_report.grids(task_report.by_language(records))
    assert title == "### f1 by language of context (down) and question"
    assert table.splitlines()[0] == "|  | de | en |"
    assert table.splitlines()[2:] == ["| **de** | 1.00 | 2.00 |", "| **en** | 3.00 | 4.00 |"]
    assert task_report.grids(task_report.by_language([record(1.0)])) == []


def test_without_scores(tmp_path):
    path, table = task_report.write(tmp_path, [], facts={"task": "nli"}, sources="the data")
    assert table == "" and "the data" in path.read_text()
    with pytest.raises(UserError, match=r"report.md/\S+: cannot be written"):
        task_report.write(path / "x", [record(1.0)], facts={}, sources="")
