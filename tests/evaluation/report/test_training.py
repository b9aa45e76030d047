"""The report agrees with the scores, and its plots are valid PNGs."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppa_jax.errors import UserError
from ppa_jax.evaluation import comparison
from ppa_jax.evaluation.comparison import Measured
from ppa_jax.evaluation.report import markdown, plots
from ppa_jax.evaluation.report.plots import WINDOW, Bars, Panel, plot_bars, plot_curves, running_mean
from ppa_jax.evaluation.report.training import write_training
from ppa_jax.evaluation.scores import Score, mean_over_languages, over_runs, per_item


def score(language, hits, direction="both", layer=6, pooling="cls", **changes):
    groups = (per_item(np.array(hits)),)
    return dataclasses.replace(
        Score("tatoeba", language, direction, layer, pooling, "accuracy", groups, len(hits)), **changes
    )


def measured(*scores, main=(4, "mean"), own=(6, "cls")):
    return Measured("model", 6, main, own, list(scores))


def moment(german, swahili):
    both = [score("de", german), score("sw", swahili)]
    return measured(*both, score("de", german, direction="en-de"), mean_over_languages(both, "both"))


MODELS = {
    "before": moment([0, 0, 0, 1] * 50, [0, 0, 1, 1] * 50),
    "step 5": moment([0, 0, 1, 1] * 50, [0, 0, 1, 1] * 50),
    "after": moment([0, 1, 1, 1] * 50, [0, 0, 1, 1] * 49 + [0, 0, 0, 1]),
}


def pixels(path: Path) -> tuple[int, int, int]:
    """(width, height, number of distinct bytes of the picture) of a PNG whose checksums are right."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, image, size = 8, b"", (0, 0)
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + n]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0]
        size = struct.unpack(">II", body[:8]) if kind == b"IHDR" else size
        image += body if kind == b"IDAT" else b""
        at += 12 + n
    return *size, len(set(zlib.decompress(image)))


def write_metrics(directory: Path, steps: int) -> Path:
    path = directory / "metrics.jsonl"
    rng = np.random.default_rng(0)
    lines = [
        {"step": i, "loss": 9 - i / 50 + rng.normal() / 5, "tlm": 6.5, "contrastive_accuracy": i / steps}
        for i in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_gains_have_their_sign_their_place_and_their_weight():
    (view,) = comparison.views({name: MODELS[name] for name in ("before", "after")}, ["before"])
    assert view.title == "tatoeba: accuracy, layer 6, cls"
    header, marks, german, swahili, mean = cells(comparison.language_table(view, "before"))
    assert header == ["language", "direction", "before", "after", "difference", "items"]
    assert marks == ["---", "---", "---:", "---:", "---:", "---:"]
    assert german[:2] == ["de", "both"] and german[2].startswith("25.00 (") and german[3].startswith("75.00 (")
    assert german[4].startswith("**+50.00 [+4") and german[4].endswith("]**"), "half of the sentences"
    assert swahili[4].startswith("-0.50 [-1.50, +0.00]"), "a single sentence: nothing to speak of"
    assert mean[0] == "**mean**" and mean[4].startswith("**+24.75") and mean[5] == "400"
    assert not any("en-de" in line for line in comparison.language_table(view, "before").splitlines())


def test_many_models_have_no_column_for_each_difference():
    models = {f"m{i}": MODELS["after" if i == 3 else "before"] for i in range(5)}
    (view,) = comparison.views(models, ["m0"])
    header, _, german, *_ = cells(comparison.language_table(view, "m0"))
    assert header == ["language", "direction", "m0", "m1", "m2", "m3", "m4", "items"]
    assert [cell.startswith("**") for cell in german[2:7]] == [False, False, False, True, False]


def test_what_was_trained_is_compared_at_its_own_place():
    """A model of unknown training is not compared across poolings: the same weights have no difference."""
    hits = [0, 1] * 100
    better = [1, 1] * 100
    plain = measured(score("mean", hits), score("mean", better, layer=4, pooling="mean"), own=None)
    same = measured(score("mean", hits), score("mean", better, layer=4, pooling="mean"))
    main, own = sorted(comparison.views({"plain": plain, "same": same}, ["plain"]), key=lambda view: view.role)
    assert (main.role, own.role, own.title) == ("main", "own", "tatoeba: accuracy, layer 6, cls")
    for view in (main, own):
        assert view.differences["plain", "same", "mean", "both"]["value"] == 0
    # With several kinds of training, the baseline is taken at the place of the model that is compared with it.
    other = measured(score("mean", hits), score("mean", better, layer=4, pooling="mean"), own=(4, "mean"))
    shown = comparison.views({"plain": plain, "same": same, "other": other}, ["plain"])
    (own,) = (view for view in shown if view.role == "own")
    assert own.title == "tatoeba: accuracy, as trained" and set(own.scores) == {"same", "other"}
    assert {key[1]: record["value"] for key, record in own.differences.items()} == {"same": 0, "other": 0}
    assert "[layer 4, mean]" in comparison.language_table(own, "plain")


def test_a_difference_states_the_baseline_it_was_computed_from():
    """As trained: the baseline's column shows its own setting, the difference is at the other one, where it has 25."""
    half, quarter, most = [0, 1] * 100, [0, 0, 0, 1] * 50, [0, 1, 1, 1] * 50
    base = measured(score("mean", half), score("mean", quarter, layer=4, pooling="mean"))
    other = measured(score("mean", quarter), score("mean", most, layer=4, pooling="mean"), own=(4, "mean"))
    shown = comparison.views({"base": base, "other": other, "same": base}, ["base"])
    (own,) = (view for view in shown if view.role == "own")
    assert own.title == "tatoeba: accuracy, as trained"
    header, _, mean = cells(comparison.language_table(own, "base"))
    assert header[2:] == ["base", "other", "difference", "same", "difference", "items"]
    assert mean[2].startswith("50.00 ") and mean[3].startswith("75.00 ") and mean[5].startswith("50.00 ")
    assert mean[4].startswith("**+50.00 [") and mean[4].endswith("]**, base there: 25.00")
    assert mean[6] == "+0.00 [+0.00, +0.00]", "the columns' own difference"
    assert "**, base there: 25.00" in comparison.differences_table([own], ["base", "other", "same"], "base")


def test_a_better_setting_than_the_exported_one_is_named():
    """The mean at layer 4 has 40 hits more than [CLS], of 200, and loses none: far beyond the interval."""
    exported, better = [1, 0, 0, 0, 0] * 40, [1, 1, 0, 0, 0] * 40
    after = measured(score("mean", exported), score("mean", better, layer=4, pooling="mean"))
    line = comparison.better_setting(after)
    assert line.startswith("layer 4, mean is better than the exported layer 6, cls: tatoeba **+20.00 [+1")
    assert "contrastive.layer=4 and contrastive.pooling=mean" in line
    # Ahead by one sentence is no more than chance, and what is exported is not compared with itself.
    by_chance = measured(score("mean", exported), score("mean", [*exported[:-1], 1], layer=4, pooling="mean"))
    assert comparison.better_setting(by_chance) == ""
    assert comparison.better_setting(measured(score("mean", better), score("mean", exported, layer=4))) == ""
    assert comparison.better_setting(dataclasses.replace(after, own=None)) == ""

    before = measured(score("mean", exported))  # of a run that measured less then
    table = cells(comparison.settings_table({"before": before, "after": after}))
    assert table[0] == ["task", "layer and pooling", "before", "after", "against the export"]
    assert [row[1] for row in table[2:]] == ["**layer 6, cls**", "layer 4, mean"]
    assert [row[4][:10] for row in table[2:]] == ["", "**+20.00 ["] and table[3][2] == ""


def test_every_baseline_has_its_differences():
    shown = comparison.views(MODELS, ["before", "step 5"])
    table = cells(comparison.differences_table(shown, list(MODELS), "step 5"))
    assert table[0] == ["measure", "direction", "before", "after"]
    assert [cell.split(" ")[0] for cell in table[2][2:]] == ["**-12.50", "**+12.25"]


def test_several_trainings_show_their_spread():
    runs = [[score("mean", [1, 0] * 50)], [score("mean", [1, 1] * 50)]]
    models = {"one": measured(score("mean", [1, 0] * 50)),
              "two": dataclasses.replace(measured(*over_runs(runs)), runs=runs)}  # fmt: skip
    (view,) = comparison.views(models, ["one"])
    assert " ±35.36 " in comparison.means_table([view], list(models)).replace("|", " ")
    records = comparison.records_of(models)
    assert [(r["model"], r["value"]) for r in records] == [("one", 50), ("two", 75), ("two/1", 50), ("two/2", 100)]


def test_cells_cannot_break_a_table():
    table = markdown.table(("a", "b"), [("x|y\nz", 1)])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y z | 1 |"]


def test_the_whole_report(tmp_path):
    arguments = {
        "title": "Alignment",
        "facts": {"steps": "60"},
        "sources": "| source | pairs |\n| --- | ---: |\n| en-de=x.tsv | 12 |",
    }
    for name in ("run", "again"):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name, 60)
        path, written = write_training(tmp_path / name, MODELS, **arguments)
    text = path.read_text()
    assert json.loads((tmp_path / "run/scores.json").read_text()) == comparison.records_of(MODELS)
    differences = json.loads((tmp_path / "run/differences.json").read_text())
    assert {(d["model"], d["baseline"]) for d in differences} == {("step 5", "before"), ("after", "before")}
    for part in ("# Alignment\n", "| steps | 60 |", "+50.00", "(curves.png)", "(bars.png)", "en-de=x.tsv | 12"):
        assert part in text
    (title, table), (_, settings) = written
    assert "| tatoeba | **layer 6, cls** |" in settings and settings in text
    assert title in text and table in text
    assert "| measure | direction | before | step 5 | after | items |" in text  # evaluations in between
    for name in ("curves.png", "bars.png"):
        width, height, values = pixels(tmp_path / "run" / name)
        assert width > 600
        assert height > 300
        assert values > 20
    for name in ("report.md", "scores.json", "differences.json", "curves.png", "bars.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_without_scores_and_without_curves(tmp_path):
    path, written = write_training(tmp_path, {}, title="T", facts={"a": "b"})
    assert "png" not in path.read_text() and written == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "differences.csv", "differences.json", "report.md", "scores.csv", "scores.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "scores.json").read_text()) == []


def spy(method, drawn):
    """`method` of Axes, which also notes what it draws."""

    def plot(axis, x, y, *args, **options):
        drawn.append((options["label"], x, y))
        return method(axis, x, y, *args, **options)

    return plot


def test_curves_leave_out_what_was_not_measured(tmp_path):
    metrics = [{"step": 1, "loss": 2.0, "tlm": None}, {"step": 2, "loss": 1.0}]
    path = tmp_path / "c.png"
    assert not plot_curves(path, {"": metrics}, [Panel("tlm", "TLM", "nats")], title="none")
    assert not path.exists()
    assert plot_curves(path, {"": metrics}, [Panel("tlm", "TLM", "nats"), Panel("loss", "Loss", "nats")], title="one")
    one = pixels(path)
    metrics = [m | {"tlm": 3.0} for m in metrics]
    plot_curves(path, {"": metrics}, [Panel("tlm", "TLM", "nats"), Panel("loss", "Loss", "nats")], title="two")
    assert pixels(path)[0] > one[0]


def test_curves_of_several_runs_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", spy(Axes.plot, drawn))
    runs = {f"seed-{i}": [{"step": s, "loss": float(s + i)} for s in range(22)] for i in range(4)}
    assert plot_curves(tmp_path / "c.png", runs, [Panel("loss", "Loss", "nats")], title="all")
    assert [(label, list(x), list(y)) for label, x, y in drawn] == [
        (f"seed-{i}", [19, 20, 21], [9.5 + i, 10.5 + i, 11.5 + i]) for i in range(4)
    ]


def test_the_running_mean_starts_at_its_first_full_window():
    assert WINDOW == 20
    assert running_mean(np.arange(19.0)).tolist() == []
    assert running_mean(np.arange(22.0)).tolist() == [9.5, 10.5, 11.5]  # of 0..19, 1..20, 2..21


def test_bars_grow_with_the_languages_and_may_have_gaps(tmp_path):
    widths = []
    for n in (3, 40):
        path = tmp_path / f"{n}.png"
        values = {"before": [1.0] * (n - 1) + [float("nan")], "after": [2.0] * n}
        plot_bars(path, [f"l{i}" for i in range(n)], [Bars("layer 6", values)], title="t " * 90, ylabel="accuracy (%)")
        widths.append(pixels(path)[0])
    assert widths[1] > 2 * widths[0]


def test_bars_have_room_for_their_whiskers(tmp_path, monkeypatch):
    figures = []

    def savefig(figure, path, **_):
        figures.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    values, nothing = {"a": [50.0, float("nan")], "b": [40.0, 20.0]}, (float("nan"), float("nan"))
    intervals = {"a": [(30.0, 91.0), nothing], "b": [(30.0, 50.0), (10.0, 30.0)]}
    plot_bars(tmp_path / "x.png", ["de", "sw"], [Bars("", values, intervals)], title="", ylabel="")
    assert figures[0].axes[0].get_ylim()[1] > 91


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/\S+: cannot be written: .*; choose another folder"):
        write_training(tmp_path / "file", MODELS, title="T", facts={})


@pytest.mark.parametrize(("names", "columns", "filled"), [(4, 3, 2), (3, 3, 3), (7, 3, 3), (2, 4, 2), (5, 4, 3)])
def test_a_legend_leaves_no_name_alone(names, columns, filled):
    figure = Figure()
    plots._legend(figure, [Line2D([], [], label=str(i)) for i in range(names)], columns=columns)
    assert figure.legends[0]._ncols == filled
