"""Memory, collectives and compile time of a program, as its compiler says."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax

from ssb_jax.config import SsbError
from ssb_jax.preflight.programs import Program

_ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}  # others end in their bits: f32, s8, u64, ...
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all)"
    r"(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|branch_computations|true_computation|false_computation)=\{?([%\w., -]+)\}?"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)")
# "... total memory required for HLO temporaries (20.00G) exceeds available HBM": its arguments are counted there too.
_REFUSED = re.compile(
    r"required[^(]*\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Collectives:
    """What a chip receives from others in one call, by kind: bytes and number of operations.

    Attributes:
      open_loops: loops with collectives whose length the text does not tell; their bodies are counted once.
      unread: why the text could not be read, if so.
    """

    bytes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    open_loops: int = 0
    unread: str = ""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Compiled:
    """What one program takes, in bytes a chip.

    Attributes:
      seconds, processor: of compiling, by the clock and of processor time.
      inputs: arguments that are neither weights, cache, adapter nor optimizer.
      temporaries: of the program, results that are new arrays included.
      total: everything in memory while it runs.
      refused: whether the compiler itself said that it does not fit; then `temporaries` follows from its message.
    """

    program: Program
    seconds: float
    processor: float
    inputs: int
    temporaries: int
    total: int
    collectives: Collectives
    refused: bool = False


def compile_program(program: Program) -> Compiled:
    """Compiles a program for its devices.

    Raises:
      SsbError: the compiler fails for another reason than memory.
    """
    lowered = program.lower()
    clocks = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return _refused(program, str(error), *_passed(clocks))
    seconds, processor = _passed(clocks)
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + new
    arguments = memory.argument_size_in_bytes
    return Compiled(
        program,
        seconds,
        processor,
        inputs=max(0, arguments - sum(program.held.values())),
        temporaries=temporaries,
        total=arguments + temporaries + sum(program.beside.values()),
        collectives=_collectives_of(compiled),
    )


def estimated(program: Program) -> Compiled:
    """A program that is not compiled, as `estimate.py` expects it."""
    unread = Collectives(unread="not compiled")
    return Compiled(program, 0.0, 0.0, 0, int(program.temporaries), int(program.expected), unread)


def _passed(since: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - since[0], time.process_time() - since[1]


def _refused(program: Program, message: str, seconds: float, processor: float) -> Compiled:
    found = _REFUSED.search(message)
    if found is None:
        raise SsbError(f"{program.stage}, {program.name}: it does not compile: {message.strip().splitlines()[0]}")
    number, unit = (group for group in found.groups() if group is not None)
    used = float(number) * _UNITS[unit]
    total = int(used) + sum(program.beside.values())
    temporaries = max(0, int(used) - sum(program.held.values()))
    unread = Collectives(unread="the program was not compiled to its end")
    return Compiled(program, seconds, processor, 0, temporaries, total, unread, refused=True)


def _collectives_of(compiled: jax.stages.Compiled) -> Collectives:
    try:
        return read_collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:  # some of libtpu's fusions cannot be printed
        return Collectives(unread=str(error).strip().splitlines()[0])


def read_collectives(text: str) -> Collectives:
    """Reads compiled HLO: a loop's body counts as often as it is known to go round, a called computation per call."""
    computations = dict(_computations(text))
    entry = next((name for name in computations if name.startswith("ENTRY ")), None)
    sizes: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    open_loops = 0

    def visit(name: str, times: int) -> bool:
        """Adds up a computation; whether it holds any collective."""
        nonlocal open_loops
        found = False
        for line in computations.get(name, ()):
            own = _COLLECTIVE.search(line)
            if own is not None:
                sizes[own["kind"]] += times * _received(line, own)
                counts[own["kind"]] += times
                found = True
            loop = " while(" in line
            trips = _trips(line, computations) if loop else None
            inside = times * (trips or 1)
            below = False
            for called in _CALLED.findall(line):
                for part in called.split(","):
                    below |= visit(part.strip().lstrip("%"), inside)
            if loop and trips is None and below:
                open_loops += 1
            found |= below
        return found

    if entry is not None:
        visit(entry, 1)
    return Collectives(
        bytes={kind: int(size) for kind, size in sorted(sizes.items())},
        counts={kind: int(count) for kind, count in sorted(counts.items())},
        open_loops=open_loops,
    )


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop goes round: as annotated, or from a condition `i < constant` (a scan counts from 0 by ones)."""
    annotated = _TRIPS.search(line)
    if annotated:
        return int(annotated[1])
    condition = computations.get(re.search(r"condition=%?([\w.-]+)", line)[1], [])
    constants = dict(match.groups() for row in condition if (match := _CONSTANT.search(row)))
    root = next((row for row in condition if "ROOT" in row), "")
    compared = re.search(r"compare\(([^)]*)\), direction=LT", root)
    bound = compared[1].split(",")[-1].split("%")[-1].strip() if compared else ""
    return int(constants[bound]) if bound in constants else None


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, instruction lines); the entry's name begins with `ENTRY `."""
    name, lines = None, []
    for line in text.splitlines():
        if name is None:
            if line.endswith("{") and not line.startswith("HloModule"):
                words = line.split()
                entry = words[0] == "ENTRY"
                name = ("ENTRY " if entry else "") + words[1 if entry else 0].lstrip("%")
                lines = []
        elif line.rstrip() == "}" or line.startswith("}, execution_thread"):  # attributes may break lines, too
            yield name, lines
            name = None
        else:
            lines.append(line)


def _received(line: str, found: re.Match) -> float:
    """Bytes that a chip receives in one collective, if each is sent once around (a ring)."""
    arrays = [_size(*array) for array in _ARRAY.findall(found["type"])]
    kind, group = found["kind"], _group(line)
    # Of a started gather or permute the type lists operand, result and flags.
    started = found["start"] and kind in ("all-gather", "collective-permute")
    result = max(arrays, default=0) if started else sum(arrays)
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "all-reduce": 2 * result * share,
        "reduce-scatter": result * (group - 1),
        "collective-permute": result,
    }.get(kind, result * share)


def _size(kind: str, dimensions: str) -> float:
    digits = re.search(r"\d+", kind)
    bits = _ITEM_BITS.get(kind) or (int(digits[0]) if digits else 32)
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits / 8


def _group(line: str) -> int:
    """How many chips take part in one group."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else 2
