"""Reports in Markdown: tables, and the file report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ppa_jax.training.provenance import made_with
from ppa_jax.training.workdir import atomic


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: text is left-aligned, numbers right-aligned; floats have two decimals, None is empty."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("|", "\\|").split())

    def is_number(column: int) -> bool:
        values = [row[column] for row in rows if row[column] is not None]
        return bool(values) and all(isinstance(value, (int, float)) or _is_score(str(value)) for value in values)

    marks = ["---:" if is_number(i) else "---" for i in range(len(header))]
    lines = [map(cell, header), marks, *(map(cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_score(text: str) -> bool:
    """Whether text like `+1.2`, `**+1.2**` or `1.2 (0.9–1.5)` starts with a number."""
    try:
        float(text.strip("*").split(" ")[0])
    except ValueError:
        return False
    return True


def write_report(workdir: epath.Path, title: str, facts: Mapping[str, str], parts: Sequence[str]) -> epath.Path:
    """Writes report.md with `facts`, setting -> value, below the title, then `parts` as paragraphs; returns its path.

    The facts are followed by what made the result: version, commit and processor. Raises UserError if the file cannot
    be written.
    """
    head = [f"# {title}", table(("setting", "value"), list({**facts, **made_with()}.items()))]
    path = workdir / "report.md"
    with atomic(path) as unfinished:
        unfinished.write_text("\n\n".join([*head, *parts]) + "\n", encoding="utf-8")
    return path
