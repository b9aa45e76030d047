"""The report says what the records say, and its pictures are pictures."""

import json
import shlex
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation.plots import Bars, Panel, plot_bars, plot_curves
from ppa_jax.evaluation.report import markdown_table, score_tables, write_report


def record(model, language, direction, value, layer=6, pooling="cls", count=2000):
    return {
        "model": model, "task": "tatoeba", "language": language, "direction": direction, "layer": layer,
        "pooling": pooling, "metric": "accuracy", "value": value, "count": count,
    }  # fmt: skip


RECORDS = [
    record("before", "de", "en-de", 10.0, count=1000),
    record("before", "de", "de-en", 20.0, count=1000),
    record("before", "de", "both", 15.0),
    record("before", "sw", "both", 8.25),
    record("before", "mean", "both", 11.625),
    record("step 5", "mean", "both", 12.0),
    record("after", "de", "both", 22.5),
    record("after", "sw", "both", 8.0),
    record("after", "mean", "both", 15.25),
]


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


def test_gains_have_their_sign_and_their_place():
    ((title, table),) = score_tables(RECORDS, "before", "after")
    assert title == "tatoeba: accuracy, layer 6, cls pooling"
    assert table.splitlines() == [
        "| language | before | after | gain | queries |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| de | 15.00 | 22.50 | +7.50 | 2000 |",
        "| sw | 8.25 | 8.00 | -0.25 | 2000 |",
        "| **mean** | 11.62 | 15.25 | +3.62 | 2000 |",
    ]


def test_one_model_is_shown_by_direction():
    ((_, table),) = score_tables(RECORDS[:3], "before", "before")
    assert table.splitlines()[2:] == ["| de | 10.00 | 20.00 | 15.00 | 2000 |"]


def test_a_table_for_each_request_and_a_language_without_a_before():
    records = [*RECORDS, record("after", "de", "both", 3.0, layer=4, pooling="mean")]
    tables = dict(score_tables(records, "before", "after"))
    assert tables["tatoeba: accuracy, layer 4, mean pooling"].splitlines()[2:] == ["| de |  | 3.00 |  | 2000 |"]
    assert len(tables) == 2


def test_cells_cannot_break_a_table():
    table = markdown_table(("a", "b"), [("x|y\nz", 1)])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y z | 1 |"]


def test_the_whole_report(tmp_path):
    metrics = write_metrics(tmp_path, 60)
    command = "python -m ppa_jax.main --config=configs/ppa.py --workdir='runs/my run' " + " ".join(
        f"--config.data.option_{i}=value" for i in range(12)
    )
    arguments = {
        "title": "Alignment",
        "facts": {"command": command, "steps": "60"},
        "records": RECORDS,
        "metrics_path": metrics,
        "sources": "| source | pairs |\n| --- | ---: |\n| en-de=x.tsv | 12 |",
    }
    path = write_report(tmp_path / "run", **arguments)
    text = path.read_text()
    assert json.loads((tmp_path / "run/scores.json").read_text()) == RECORDS
    for part in ("# Alignment\n", "| steps | 60 |", "+7.50", "-0.25", "(curves.png)", "(bars.png)", "en-de=x.tsv | 12"):
        assert part in text
    assert "| step 5 | 12.00 |" in text  # evaluations in between
    shown = text.split("```")[1]
    assert max(map(len, shown.splitlines())) < 150
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)  # wrapped, and still the command
    for name in ("curves.png", "bars.png"):
        width, height, values = pixels(tmp_path / "run" / name)
        assert width > 600
        assert height > 300
        assert values > 20
    write_report(tmp_path / "again", **arguments)
    for name in ("report.md", "scores.json", "curves.png", "bars.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_without_scores_and_without_curves(tmp_path):
    text = write_report(tmp_path, title="T", facts={"a": "b"}, records=[], metrics_path=tmp_path / "none").read_text()
    assert "png" not in text
    assert json.loads((tmp_path / "scores.json").read_text()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.md", "scores.json"]


def test_curves_leave_out_what_was_not_measured(tmp_path):
    metrics = [{"step": 1, "loss": 2.0, "tlm": None}, {"step": 2, "loss": 1.0}]
    path = tmp_path / "c.png"
    assert not plot_curves(path, metrics, [Panel("tlm", "TLM", "nats")], title="none")
    assert not path.exists()
    assert plot_curves(path, metrics, [Panel("tlm", "TLM", "nats"), Panel("loss", "Loss", "nats")], title="one")
    one = pixels(path)
    metrics = [m | {"tlm": 3.0} for m in metrics]
    plot_curves(path, metrics, [Panel("tlm", "TLM", "nats"), Panel("loss", "Loss", "nats")], title="two")
    assert pixels(path)[0] > one[0]


def test_bars_grow_with_the_languages_and_bear_gaps(tmp_path):
    widths = []
    for n in (3, 40):
        path = tmp_path / f"{n}.png"
        values = {"before": [1.0] * (n - 1) + [float("nan")], "after": [2.0] * n}
        plot_bars(path, [f"l{i}" for i in range(n)], [Bars("layer 6", values)], title="t " * 90, ylabel="accuracy (%)")
        widths.append(pixels(path)[0])
    assert widths[1] > 2 * widths[0]


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot write the report: .*--workdir"):
        write_report(tmp_path / "file", title="T", facts={}, records=[])
