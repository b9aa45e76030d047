"""The report of a layer ablation on numbers made by hand."""

import numpy as np
import pytest

from ppa_jax.evaluation.report.plots import plot_heat_maps
from ppa_jax.evaluation.scores import Difference
from ppa_jax.studies.layer_ablation import report


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
    found = report.by_model(records({"1": (2, 10)}, noise=0), "en")[""]
    assert found.of("none", "targets") == {0: 55, 1: 55, 2: 55} and found.gap("1") == {0: 43, 1: 43, 2: 43}
    assert found.extra_by_seed("1") == {0: 8, 1: 8, 2: 8} and found.extra("1") == (8, 8, 8)


@pytest.mark.parametrize(
    "losses, said",
    [
        (
            {"1": (1, 20), "2": (1, 9), "3": (1, 1), "4": (0, 5)},
            "by single blocks, an aligner up to block 2 (widen the gap: 1, 2, 4; do not: 3; "
            "by single seeds up to block 2, 2, 2)",
        ),
        (
            {"1-2": (1, 20), "3-4": (1, 9), "5-6": (2, 2)},
            "by pairs, an aligner up to block 4 (widen the gap: 1-2, 3-4",
        ),
        ({"1": (1, 20), "2": (1, 9)}, "by single blocks, an aligner up to block 2 (widen"),
        ({"1": (20, 20), "2": (1, 9)}, "by single blocks, no aligner shows: the first set does not widen the gap"),
        ({"1-2": (1, 20), "3-4": (1, 9), "5": (1, 9)}, "by pairs, an aligner up to block 5"),
        ({"1": (0, 20), "3-6": (1, 9), "5-6": (1, 3)}, "without the top blocks: 5-6 **+2.1 ["),
    ],
)
def test_the_border_is_where_the_gap_certainly_stops_growing(losses, said):
    found = report.by_model(records(losses), "en")
    lines = report.summary("", found[""])
    assert said in lines[-1], lines
    worst = max(losses, key=lambda s: losses[s][1] - losses[s][0])
    assert f"when blocks {worst} are re-initialised" in lines[0]


def test_singles_and_pairs_have_a_border_each_and_holes_none():
    losses = {"1-2": (1, 20), "3-4": (1, 1), "5-6": (1, 9), "1": (1, 20), "2": (1, 20), "6": (1, 20)}
    found = report.by_model(records(losses), "en")
    lines = report.summary("", found[""])
    assert "by single blocks, an aligner up to block 2" in lines[2] and "by pairs, an aligner up to block 2" in lines[3]
    assert report.chains(["none", "3", "5", "1-6", "3-6", "5-6", "1+2"]) == {}


@pytest.mark.parametrize(
    "change, state",
    [((3, 1, 5), "widens"), ((0.5, 0.1, 0.9), "does not"), ((-3, -5, -1), "does not"), ((3, -1, 7), "undecided")],
)
def test_what_is_not_certain_is_undecided(change, state):
    """A wide interval around zero does not mean that there is no loss."""
    assert report.state(Difference(*change)) == state


def test_an_undecided_set_leaves_the_border_open():
    sure, open_, none = Difference(9, 8, 10), Difference(1, -2, 4), Difference(0, -0.2, 0.2)
    assert report.border({"1": sure, "2": open_, "3": none, "4": open_}) == (1, 2)
    assert report.border({"1-2": open_, "3-4": none}) == (0, 2)
    assert report.border({"1": none, "2": sure}) == (0, 0)


def test_the_summary_if_no_set_widens_the_gap():
    found = report.by_model(records({"1": (9, 1), "2": (5, 1)}), "en")
    line = report.summary("", found[""])[0]
    assert line.startswith("no set widens the gap to the targets; 2 comes closest (**-4")


def test_one_seed_draws_no_border():
    found = report.by_model(records({"1": (1, 20)}, seeds=1), "en")
    assert "no border is drawn" in report.summary("", found[""])[-1]


def test_two_models_are_compared_seed_by_seed():
    both = records({"1": (1, 20), "2": (1, 5)}, model="a") + records({"1": (1, 10), "2": (1, 5)}, model="b")
    found = report.by_model(both, "en")
    border, line = report.border_comparison(found)
    assert "does the border move, by single blocks? a: an aligner up to block 2 (single seeds: 2, 2, 2); b: " in border
    assert "among 2 sets" in line and ": 1 **-10.0 [" in line and "; 2" not in line
    assert report.border_comparison(found | {"b": report.ModelScores("en", {})}) == []


def test_models_of_different_depth():
    both = records({"1": (1, 20), "2": (1, 20)}, model="a") + records(
        {"1": (1, 20), "2": (1, 9), "3": (1, 1)}, model="b"
    )
    found = report.by_model(both, "en")
    assert "up to block 2 (widen the gap: 1, 2; by" in report.summary("a", found["a"])[-1]
    assert "do not: 3" in report.summary("b", found["b"])[-1]


def test_similarity_and_gap_are_correlated_over_languages_sets_and_seeds():
    scores = records({"1": (0, 20), "2": (0, 5)}, seeds=2)
    found = report.by_model(scores, "en")
    similarity = [
        {"model": "", "ablation": name, "seed": seed, "language": language, "layer": layer,
         "value": found[""].of(name, language)[seed] / 100 + layer}
        for name in ("none", "1", "2") for seed in (0, 1) for language in ("de", "fr") for layer in (0, 1)
    ]  # fmt: skip
    similarity.append({**similarity[0], "ablation": "", "seed": "", "value": 0.9})
    correlation = report.correlation(found[""], similarity)
    assert correlation is not None and correlation.points == 12
    assert correlation.groups == {"languages": 2, "sets of blocks": 3} and np.isnan(correlation.low)
    assert correlation.rho < -0.9, "alike languages have small gaps"
    assert report.correlation(found[""], similarity[:6]) is None
    lines = report.correlations(found, similarity)
    assert len(lines) == 2 and lines[1].startswith("layer 1: "), "6 points of a language are too few"


def test_the_last_layer_is_that_of_the_model():
    scores = records({"1": (0, 20)}, model="a", seeds=4) + records({"1": (0, 20)}, model="b", seeds=4)
    found = report.by_model(scores, "en")
    similarity = [
        {"model": model, "ablation": name, "seed": seed, "language": language, "layer": layer, "value": 0.1 * seed}
        for model, depth in (("a", 1), ("b", 2)) for name in ("none", "1") for seed in range(4)
        for language in ("de", "fr") for layer in range(depth + 1)
    ]  # fmt: skip
    lines = report.correlations(found, similarity)
    assert "a, layer 1: " in lines[1] and "none" not in lines[1] and "b, layer 2: " in lines[4]
    assert lines[2].startswith("a, within each language, over sets and seeds, mean over the layers: de ")


def test_the_whole_report(tmp_path):
    scores = records({"1": (1, 20), "2": (1, 9), "3": (1, 1)})
    movement = [
        {"model": "", "ablation": "none", "seed": 0, "layer": layer, "distance": 0.1 * layer, "retrieval": 0.8}
        for layer in range(3)
    ]
    similarity = [
        {"model": "", "ablation": name, "seed": 0, "language": x, "layer": layer, "measure": measure, "value": value}
        for name in ("", "none", "1") for x in ("de", "fr") for layer in range(3)
        for measure, value in (("retrieval", 0.5), ("cka_linear", 0.25))
    ]  # fmt: skip

    def write():
        return report.write(
            tmp_path,
            scores,
            similarity,
            movement,
            source="en",
            measure="retrieval",
            facts={"task": "x"},
            data="no data",
        )

    path, summary = write()
    text = path.read_text()
    assert (
        "| block 2 | 0.2000 | 0.800 |" in text and "(retrieval of the fine-tuned model)" in text and "no data" in text
    )
    for picture in ("similarity.png", "similarity_sets.png"):
        assert (tmp_path / picture).stat().st_size > 1000 and f"({picture})" in text
    assert "| blocks | en | de | fr | targets | extra |" in text
    assert (tmp_path / "losses.png").stat().st_size > 1000 and "an aligner up to block 2" in summary
    first = (tmp_path / "losses.png").read_bytes()
    write()
    assert (tmp_path / "losses.png").read_bytes() == first
    plot_heat_maps(tmp_path / "nan.png", {"x": np.full((1, 2), np.nan)}, ["1"], ["a", "b"], title="nothing")


def test_the_map_has_the_numbers_of_the_table(tmp_path, monkeypatch):
    """Losses are positive in both."""
    drawn = {}
    monkeypatch.setattr(report, "plot_heat_maps", lambda path, panels, *_, **__: drawn.update(panels))
    _, text = report.write(
        tmp_path, records({"1": (2, 10)}, noise=0), [], [], source="en", measure="cka_linear", facts={}, data=""
    )
    np.testing.assert_allclose(drawn["accuracy"], [[2, 10, 10, 10]])
    assert "| 1 | 2.0 ±0.0 | 10.0 ±0.0 | 10.0 ±0.0 | 10.0 ±0.0 |" in text
