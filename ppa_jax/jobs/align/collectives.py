"""The traffic of a compiled step, read from its HLO."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(pred|[subf]\d+|bf16|f8\w+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "bf16": 2}
_COMPUTATION = re.compile(r"^\s*(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r" while\(.*condition=%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(.*%([\w.\-]+)\), direction=LT")


class Collective(NamedTuple):
    """One array that a step moves between devices."""

    kind: str
    bytes: int  # of the result, which is what one device holds afterwards
    devices: int  # that take part together; 0: the program does not say
    turns: int  # how often in a step: the turns of the loops around it

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, by the ring algorithms."""
        n = self.devices
        share = (n - 1) / n if n else 1.0
        factors = {"all-reduce": 2 * share, "reduce-scatter": n - 1 if n else 1.0, "collective-permute": 1.0}
        return self.turns * self.bytes * factors.get(self.kind, share)


def collectives(hlo: str) -> list[Collective]:
    """Every collective in optimised HLO text, largest result first.

    An asynchronous collective counts once: a TPU's program names it in the fusion that starts it, in each that runs at
    the same time and in the one that waits, with the same `chain_id`. The number of turns of a loop is the compiler's
    trip count, or the limit of its counter (which `lax.scan` starts at 0); else it counts as one turn.
    """
    found, name = [], ""
    calls: dict[str, list[tuple[str, int | str]]] = {}  # of a computation: who calls it, its turns or their condition
    starts: set[str] = set()  # computations that start a chain
    constants: dict[str, int] = {}
    turns: dict[str, int] = {}  # of loops, by their condition
    for line in hlo.splitlines():
        if opened := _COMPUTATION.match(line):
            name = opened[1]
        if constant := _CONSTANT.search(line):
            constants[constant[1]] = int(constant[2])
        if below := _BELOW.search(line):
            turns[name] = constants.get(below[1], 1)
        if 'custom_call_target="AsyncCollectiveStart"' in line:
            starts.add(name)
        loop: int | str = 1
        if known := _TURNS.search(line):
            loop = int(known[1])
        elif condition := _CONDITION.search(line):
            loop = condition[1]
        for callees in _CALLED.findall(line):
            for callee in re.findall(r"%([\w.\-]+)", callees):
                calls.setdefault(callee, []).append((name, loop))
        if match := _OPERATION.search(line):
            result = match[1]
            # An asynchronous start returns (operands, results, ...); an all-reduce only its results.
            if f"{match[2]}-start(" in line and match[2] != "all-reduce":
                result = _elements(result)[1]
            n = _devices(line)
            # On a TPU, a reduce-scatter is an all-reduce fused with a slice, under this name.
            scattered = match[2] == "all-reduce" and name.startswith("all-reduce-scatter") and n
            for kind, dims in _SHAPE.findall(result):
                size = _size(kind, dims)
                x = Collective("reduce-scatter", size // n, n, 1) if scattered else Collective(match[2], size, n, 1)
                found.append((name, "chain_id=" in line, x))

    @functools.cache
    def runs(computation: str) -> int:
        if computation not in calls:
            return 1
        return sum(
            (loop if isinstance(loop, int) else turns.get(loop, 1)) * runs(caller)
            for caller, loop in calls[computation]
        )

    counted = [x._replace(turns=runs(where)) for where, chained, x in found if not chained or where in starts]
    return sorted(counted, key=lambda x: -x.bytes)


def _elements(tuple_type: str) -> list[str]:
    """`(f32[2,8]{1,0}, (s32[], f32[4]))` -> its two elements; brackets of any kind nest."""
    elements, depth = [""], 0
    for char in tuple_type.strip()[1:-1]:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            elements.append("")
        else:
            elements[-1] += char
    return elements


def _devices(line: str) -> int:
    """The number of devices in a group, in any of the three notations of HLO."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):  # {{0,1},{2,3}}
        return len(listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):  # [groups,devices]<=[...]
        return int(tiled[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):  # mesh['x'=4,'y'=2] {'x'}
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", named[2]))
    return 0


def _size(kind: str, dims: str) -> int:
    size = _BYTES.get(kind) or int(re.sub(r"\D", "", kind[:4]) or 8) // 8
    for dim in dims.split(","):
        size *= int(dim) if dim else 1
    return size
