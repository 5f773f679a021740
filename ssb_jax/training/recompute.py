"""The teacher's side of a batch for `targets.encoding: none`: hinted prompts and replies, to be read again in the step.

Its rows are packed like the student's, but apart from them: prompts differ in length. An example stays in the same
micro-batch and group, and its reply tokens in the same slots, so the two sides meet slot by slot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from ssb_jax.training.batches import Example
from ssb_jax.training.layout import Grid, Placement, Shape, bucket, first_fit


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TeacherInput:
    """What the teacher reads; `index` is where the state lies that predicts each reply token, as in `Batch`."""

    tokens: Int[np.ndarray, "M B T"]
    positions: Int[np.ndarray, "M B T"]
    segment_ids: Int[np.ndarray, "M B T"]
    index: Int[np.ndarray, "M groups P"]


@dataclass(frozen=True)
class TeacherShape:
    """B rows of T tokens in a micro-batch; one shape for the whole run."""

    rows: int
    length: int


def teacher_shape(batches: Sequence[tuple[Sequence[Example], Placement]], grid: Grid) -> TeacherShape:
    """The smallest shape that holds the teacher's side of every step."""
    length = bucket(max(_length(example) for examples, _ in batches for example in examples))
    most = max(
        len(first_fit({i: _length(examples[i]) for i in members}, length))
        for examples, placement in batches
        for _, _, members in _groups(placement)
    )
    rows = -(-grid.groups * most // grid.row_multiple) * grid.row_multiple
    return TeacherShape(rows, length)


def teacher_input(
    examples: Sequence[Example], placement: Placement, *, shape: Shape, teacher: TeacherShape, grid: Grid, pad_id: int
) -> TeacherInput:
    """Fills the arrays of a step; `shape` is the student's."""
    M, B, T = shape.micros, teacher.rows, teacher.length
    tokens = np.full((M, B, T), pad_id, np.int32)
    positions, segment_ids = (np.zeros((M, B, T), np.int32) for _ in range(2))
    index = np.zeros((M, grid.groups, shape.replies), np.int32)
    for m, g, members in _groups(placement):
        place = {}
        for r, row in enumerate(first_fit({i: _length(examples[i]) for i in members}, T)):
            start = 0
            for segment, i in enumerate(row, 1):
                ids = examples[i].pair.teacher_prompt_ids + examples[i].reply
                here = (m, g * (B // grid.groups) + r, slice(start, start + len(ids)))
                tokens[here], positions[here], segment_ids[here] = ids, np.arange(len(ids)), segment
                start += len(ids)
                place[i] = r * T + start - len(examples[i].reply) - 1
        slot = 0
        for i in members:  # in the order of the student's slots
            R = len(examples[i].reply)
            index[m, g, slot : slot + R] = place[i] + np.arange(R)
            slot += R
    return TeacherInput(tokens, positions, segment_ids, index)


def _groups(placement: Placement) -> Iterator[tuple[int, int, list[int]]]:
    for m, grouped in enumerate(placement):
        for g, rows in enumerate(grouped):
            if members := [i for row in rows for i in row]:
                yield m, g, members


def _length(example: Example) -> int:
    return len(example.pair.teacher_prompt_ids) + len(example.reply)
