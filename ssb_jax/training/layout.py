"""Where the examples of a batch lie: rows, lengths, and the few static shapes that a run compiles for.

A batch of examples becomes `micros` forward passes of B rows of T tokens. Without packing a row holds one example, with
packing several after each other, each a segment of its own. Rows come in `groups`, one for each slice of the mesh's
data axis, and the reply tokens of a group in P slots. Only numbers here; `batches.py` fills the arrays.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

MAX_SHAPES = 4  # compilations of a run; more would save a little padding and cost minutes of compiling
MIN_GAIN = 0.05  # share of a run's arithmetic that one more shape must save
_SMALLEST = 16


@dataclass(frozen=True)
class Shape:
    """The static sizes of a batch: `micros` passes of B rows of T tokens, P slots for reply tokens in each group."""

    micros: int
    rows: int
    length: int
    replies: int

    def covers(self, other: "Shape") -> bool:
        return all(a >= b for a, b in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True)
class Grid:
    """What the mesh and the settings ask of every batch.

    Attributes:
      groups: size of the mesh's data axis.
      row_multiple: B must be a multiple of it (data x fsdp).
      chunk: P must be a multiple of it.
      packing: whether a row may hold several examples.
      micro_batch: examples in one forward pass; None: the whole batch.
      attention_length: T at which attention costs as much as the matrix products with the weights.
    """

    groups: int = 1
    row_multiple: int = 1
    chunk: int = _SMALLEST
    packing: bool = True
    micro_batch: int | None = None
    attention_length: float = math.inf


# Of each micro-batch, of each group, of each row: the indices of its examples.
Rows = tuple[tuple[int, ...], ...]
Placement = tuple[tuple[Rows, ...], ...]


def bucket(n: int) -> int:
    """n rounded up to an eighth of its octave (at least 16): at most 12.5 % more, eight sizes an octave."""
    if n <= _SMALLEST:
        return _SMALLEST
    eighth = 1 << max((n - 1).bit_length() - 4, 0)
    return -(-n // eighth) * eighth


def place(totals: Sequence[int], replies: Sequence[int], grid: Grid) -> tuple[Placement, Shape]:
    """Puts examples into rows; the Shape is the smallest that holds them.

    Args:
      totals: tokens of each example, prompt and reply.
      replies: reply tokens of each example.
    """
    step = grid.micro_batch or len(totals)
    placement, needs = [], []
    for start in range(0, len(totals), step):
        members = range(start, min(start + step, len(totals)))
        rows, length = _pack({i: totals[i] for i in members}, grid)
        grouped = _spread(rows, replies, grid.groups)
        placement.append(grouped)
        per_group = max(max(map(len, grouped)), grid.row_multiple // grid.groups)
        B = grid.groups * per_group
        slots = max(sum(replies[i] for row in group for i in row) for group in grouped)
        needs.append((-(-B // grid.row_multiple) * grid.row_multiple, length, slots))
    rows, length, slots = map(max, zip(*needs, strict=True))
    chunks = -(-slots // grid.chunk)
    return tuple(placement), Shape(len(needs), rows, length, grid.chunk << (chunks - 1).bit_length())


def _pack(totals: dict[int, int], grid: Grid) -> tuple[list[list[int]], int]:
    """Rows of example indices, and the row length that costs least."""
    longest, tokens = max(totals.values()), sum(totals.values())
    if not grid.packing:
        return [[i] for i in totals], bucket(longest)
    most = -(-len(totals) // grid.row_multiple)
    wanted = {round(x) * grid.row_multiple for x in np.linspace(1, most, 8)}
    options = {bucket(max(longest, -(-tokens // rows))) for rows in wanted}

    def cost(length: int) -> float:
        rows = -(-len(first_fit(totals, length)) // grid.row_multiple) * grid.row_multiple
        return rows * length * (1 + length / grid.attention_length)

    length = min(sorted(options), key=cost)
    return first_fit(totals, length), length


def first_fit(totals: dict[int, int], length: int) -> list[list[int]]:
    """First-fit decreasing: each example, longest first, goes into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(totals, key=lambda i: (-totals[i], i)):
        r = next((r for r, left in enumerate(room) if totals[i] <= left), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(length)
        rows[r].append(i)
        room[r] -= totals[i]
    return rows


def _spread(rows: list[list[int]], replies: Sequence[int], groups: int) -> tuple[Rows, ...]:
    """Deals rows to groups: as many rows to each, and about as many reply tokens."""
    weight = [sum(replies[i] for i in row) for row in rows]
    most = -(-len(rows) // groups)
    dealt: list[list[int]] = [[] for _ in range(groups)]
    for r in sorted(range(len(rows)), key=lambda r: (-weight[r], r)):
        open_groups = [g for g in dealt if len(g) < most]
        min(open_groups, key=lambda g: sum(weight[k] for k in g)).append(r)
    return tuple(tuple(tuple(rows[r]) for r in sorted(group)) for group in dealt)


def choose_shapes(needs: Sequence[Shape], grid: Grid, *, limit: int = MAX_SHAPES) -> tuple[Shape, ...]:
    """At most `limit` shapes that cover every need at little cost, chosen greedily; the first covers all."""
    distinct = list(dict.fromkeys(needs))
    times = np.array([sum(need == other for other in needs) for need in distinct])
    union = Shape(*(max(sizes) for sizes in zip(*map(astuple, distinct), strict=True)))
    options = [union, *(need for need in distinct if need != union)]
    price = np.array([[_cost(o, grid) if o.covers(need) else math.inf for need in distinct] for o in options])
    chosen = [0]
    while len(chosen) < min(limit, len(options)):
        now = price[chosen].min(axis=0)
        totals = np.minimum(price, now).dot(times)
        best = int(totals.argmin())
        if totals[best] > (1 - MIN_GAIN) * now.dot(times):
            break
        chosen.append(best)
    return tuple(options[i] for i in chosen)


def fitting(shapes: Sequence[Shape], need: Shape, grid: Grid) -> Shape:
    """The cheapest of `shapes` that covers a need."""
    return min((shape for shape in shapes if shape.covers(need)), key=lambda shape: _cost(shape, grid))


def _cost(shape: Shape, grid: Grid) -> float:
    tokens = shape.micros * shape.rows * shape.length
    return tokens * (1 + shape.length / grid.attention_length) + 1e-3 * shape.micros * shape.replies
