"""What the report of a layer ablation says, on numbers made by hand."""

import numpy as np
import pytest

from ppa_jax.evaluation import ablation_report
from ppa_jax.evaluation.plots import plot_heat_maps


def records(losses, *, model="", seeds=3, noise=0.1):
    """Source 90, targets 60 and 50, less what a set costs each: losses = {set: (source, target)}."""
    rng = np.random.default_rng(0)
    found = []
    for name, (source, target) in {"none": (0, 0), **losses}.items():
        for seed in range(seeds):
            for language, value in (("en", 90 - source), ("de", 60 - target), ("fr", 50 - target)):
                value = value + (noise * rng.normal() if name != "none" else 0)
                own = {"model": model, "ablation": name, "seed": seed, "language": language}
                found.append(own | {"metric": "accuracy", "value": value})
    return found


def test_the_extra_loss_by_hand():
    found = ablation_report.by_language(records({"1": (2, 10)}, noise=0), "en")
    assert found["", "none", "targets"] == {0: 55, 1: 55, 2: 55}
    assert ablation_report.extra_by_seed(found, "", "1", "en") == {0: 8, 1: 8, 2: 8}
    assert ablation_report.extra(found, "", "1", "en") == (8, 8, 8)


@pytest.mark.parametrize(
    "losses, said",
    [
        (
            {"1": (1, 20), "2": (1, 9), "3": (1, 1), "4": (0, 5)},
            "an aligner up to block 2: re-initialising 1, 2 widens",
        ),
        ({"1-2": (1, 20), "3-4": (1, 9), "5-6": (2, 2)}, "an aligner up to block 4"),
        ({"1": (1, 20), "2": (1, 9)}, "an aligner up to block 2"),
        ({"1": (20, 20), "2": (1, 9)}, "no border: re-initialising 1 does not widen the gap"),
        ({"3": (1, 20), "5": (1, 9)}, "no border: it takes singles or pairs, from block 1 on"),
        ({"1-6": (1, 20), "3-6": (1, 9), "5-6": (1, 9)}, "no border: it takes singles"),
        (
            {"1-2": (1, 20), "3-4": (1, 1), "5-6": (1, 9), "1": (1, 20), "6": (1, 20)},
            "up to block 2: re-initialising 1-2",
        ),
        ({"1-2": (1, 20), "3-4": (1, 9), "5": (1, 9)}, "an aligner up to block 5"),
    ],
)
def test_the_border_is_where_the_gap_stops_to_grow_for_sure(losses, said):
    found = ablation_report.by_language(records(losses), "en")
    lines = ablation_report.summary(found, "", ["none", *losses], "en")
    assert said in lines[-1]
    worst = max(losses, key=lambda s: losses[s][1] - losses[s][0])
    assert f"when blocks {worst} are re-initialised" in lines[0]


def test_one_seed_draws_no_border():
    found = ablation_report.by_language(records({"1": (1, 20)}, seeds=1), "en")
    assert "no border is drawn" in ablation_report.summary(found, "", ["none", "1"], "en")[-1]


def test_two_models_are_compared_seed_by_seed():
    both = records({"1": (1, 20), "2": (1, 5)}, model="a") + records({"1": (1, 10), "2": (1, 5)}, model="b")
    found = ablation_report.by_language(both, "en")
    (line,) = ablation_report.border_comparison(found, ["a", "b"], ["none", "1", "2"], "en")
    assert "among 2 sets" in line and ": 1 -10.0" in line and "; 2" not in line


def test_models_of_different_depth():
    both = records({"1": (1, 20), "2": (1, 20)}, model="a") + records(
        {"1": (1, 20), "2": (1, 9), "3": (1, 1)}, model="b"
    )
    found = ablation_report.by_language(both, "en")
    sets = ["none", "1", "2", "3"]
    assert "no higher set" in ablation_report.summary(found, "a", sets, "en")[-1]
    assert "3 does not" in ablation_report.summary(found, "b", sets, "en")[-1]


def test_similarity_and_gap_are_correlated_over_languages_sets_and_seeds():
    scores = records({"1": (0, 20), "2": (0, 5)}, seeds=2)
    found = ablation_report.by_language(scores, "en")
    similarity = [
        {"model": "", "ablation": name, "seed": seed, "language": language, "layer": layer,
         "value": found["", name, language][seed] / 100 + layer}
        for name in ("none", "1", "2") for seed in (0, 1) for language in ("de", "fr") for layer in (0, 1)
    ]  # fmt: skip
    similarity.append({**similarity[0], "ablation": "", "seed": "", "value": 0.9})
    correlation = ablation_report.correlation(found, similarity, "", "en")
    assert correlation is not None and correlation.points == 12
    assert correlation.groups == {"languages": 2, "sets of blocks": 3} and np.isnan(correlation.low)
    assert correlation.rho < -0.9, "alike languages have small gaps"
    assert ablation_report.correlation(found, similarity[:6], "", "en") is None


def test_the_whole_report(tmp_path):
    scores = records({"1": (1, 20), "2": (1, 9), "3": (1, 1)})
    movement = [
        {"model": "", "ablation": "none", "seed": 0, "layer": layer, "distance": 0.1 * layer} for layer in range(3)
    ]
    path, summary = ablation_report.write(tmp_path, scores, [], movement, source="en", facts={"task": "tagging"})
    text = path.read_text()
    assert "| blocks | en | de | fr | targets | extra |" in text and "| block 2 | 0.2000 |" in text
    assert (tmp_path / "losses.png").stat().st_size > 1000 and "an aligner up to block 2" in summary
    first = (tmp_path / "losses.png").read_bytes()
    ablation_report.write(tmp_path, scores, [], movement, source="en", facts={})
    assert (tmp_path / "losses.png").read_bytes() == first
    plot_heat_maps(tmp_path / "nan.png", {"x": np.full((1, 2), np.nan)}, ["1"], ["a", "b"], title="nothing")
