"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: text to the left, columns of numbers to the right; floats with two decimals, None empty."""

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
    """`+1.2`, `**+1.2**`, `1.2 (0.9–1.5)`: right-aligned like numbers."""
    try:
        float(text.strip("*").split(" ")[0])
    except ValueError:
        return False
    return True
