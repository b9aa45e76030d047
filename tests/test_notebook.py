"""The notebook runs from the first cell to the last, in its tiny mode."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_cell_runs(tmp_path):
    cells = json.loads((ROOT / "notebooks/align_and_encode.ipynb").read_text(encoding="utf-8"))["cells"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    environment = os.environ | {
        "NOTEBOOK_SIZE": "tiny", "NOTEBOOK_WORKDIR": str(tmp_path / "run"), "MPLBACKEND": "agg", "XLA_FLAGS": "",
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:FigureCanvasAgg is non-interactive",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "greatest relative difference to PyTorch" in done.stdout
    assert (tmp_path / "run/export/model.safetensors").is_file()
