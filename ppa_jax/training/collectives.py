"""What a compiled step sends over the network: read from its HLO, not guessed."""

from __future__ import annotations

import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(pred|[subf]\d+|bf16|f8\w+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "bf16": 2}


def collective_bytes(hlo: str) -> dict[str, list[int]]:
    """Bytes of the result of every collective in optimised HLO text, by kind, largest first.

    A result is what one device holds afterwards. An asynchronous pair counts once. What stands in the body of a loop is
    counted once, whatever its number of turns.
    """
    found: dict[str, list[int]] = {}
    for line in hlo.splitlines():
        match = _OPERATION.search(line)
        if match is None:
            continue
        sizes = [_size(kind, dims) for kind, dims in _SHAPE.findall(match[1])]
        # A start of an asynchronous gather is a tuple of operand and result; a combined all-reduce one of all results.
        started = f"{match[2]}-start(" in line and match[2] != "all-reduce"
        found.setdefault(match[2], []).extend([max(sizes)] if started and sizes else sizes)
    return {kind: sorted(sizes, reverse=True) for kind, sizes in found.items()}


def _size(kind: str, dims: str) -> int:
    size = _BYTES.get(kind) or int(re.sub(r"\D", "", kind[:4]) or 8) // 8
    for dim in dims.split(","):
        size *= int(dim) if dim else 1
    return size
