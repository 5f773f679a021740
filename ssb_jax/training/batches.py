"""Examples -> the arrays of a step, and the order in which examples come.

An example is what the student reads and is scored on: a pair whose prompt and reply were cut to the length limit.
Token weights are settled here, on the host, with their normaliser, so that a step's loss is one weighted sum: the same
token mean with or without packing and micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
import scipy.special
from jaxtyping import Float, Int

from ssb_jax.config import SsbError
from ssb_jax.losses.chunked import Teacher
from ssb_jax.losses.menu import TokenInfo
from ssb_jax.records import Pair
from ssb_jax.training.layout import Grid, Placement, Shape

Reader = Callable[[Pair], Any]  # what is stored of a pair, one row a reply token; see `store.Rows`


@dataclass(frozen=True)
class Example:
    """A pair as the student sees it. The hidden state at index len(prompt) - 1 + t predicts reply token t."""

    pair: Pair
    prompt: tuple[int, ...]
    reply: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.reply)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The arrays of one step; the leading axis counts its micro-batches (M).

    Attributes:
      index: where the state lies that predicts each reply token: row * T + column, within the group's rows.
      example: which example of the batch each reply token belongs to.
      weight: of each token's loss; they add up to 1 over the batch, and are 0 for padding.
      chunks: how many chunks of reply slots hold tokens.
    """

    tokens: Int[np.ndarray, "M B T"]
    positions: Int[np.ndarray, "M B T"]
    segment_ids: Int[np.ndarray, "M B T"]
    index: Int[np.ndarray, "M groups P"]
    info: TokenInfo  # arrays (M, groups, P)
    example: Int[np.ndarray, "M groups P"]
    weight: Float[np.ndarray, "M groups P"]
    teacher: Teacher  # values (M, groups, P, X); with encoding `none` a TeacherInput
    chunks: Int[np.ndarray, " M"]


def cut(pair: Pair, max_length: int) -> Example:
    """Fits a pair into max_length tokens as the published trainer does: first the reply on the right, leaving at least
    one token of prompt, then the prompt on the left.

    Raises:
      SsbError: prompt or reply is empty.
    """
    if not pair.student_prompt_ids or not pair.reply_ids:
        empty = "reply" if pair.student_prompt_ids else "student prompt"
        raise SsbError(f"pair {pair.question_id}: the {empty} has no tokens; remove it, or make the pairs again")
    reply = pair.reply_ids[: max_length - 1]
    prompt = pair.student_prompt_ids[-(max_length - len(reply)) :]
    return Example(pair, prompt, reply)


@dataclass(frozen=True)
class Weighting:
    """How much each reply token counts.

    Attributes:
      reduction: `token`: mean over all reply tokens of the batch, as published. `sequence`: mean of each reply's mean.
      stop_weight: of the end-of-turn token, where the reply ends with it.
      skip_first: so many first tokens of each reply do not count.
      ignored_ids: tokens of the reply that do not count (special tokens).
      last_weight: of a reply's last token relative to its first, linear in between.
      rise: (least, middle, width): a token at the share x of its reply weighs least + (1 - least) *
        sigmoid((x - middle) / width), times the above. PW-OPSD, arXiv 2605.21606.
    """

    reduction: str = "token"
    stop_weight: float = 1.0
    skip_first: int = 0
    ignored_ids: frozenset[int] = frozenset()
    last_weight: float = 1.0
    rise: tuple[float, float, float] | None = None

    def __call__(self, examples: Sequence[Example]) -> list[Float[np.ndarray, "R"]]:
        """Weights of each example's reply tokens; they add up to 1 over the batch.

        Raises:
          SsbError: nothing counts.
        """
        weights = [self._raw(example) for example in examples]
        if self.reduction == "sequence":
            weights = [w / max(w.sum(), 1e-30) for w in weights]
        total = sum(w.sum() for w in weights)
        if not total > 0:
            names = ", ".join(example.pair.question_id for example in examples[:3])
            raise SsbError(
                f"no reply token of the batch with {names} counts in the loss; lower distillation.skip_first, raise "
                "stop_weight, or switch ignore_special_tokens off"
            )
        return [(w / total).astype(np.float32) for w in weights]

    def _raw(self, example: Example) -> np.ndarray:
        ids = example.reply
        weight = np.linspace(1.0, self.last_weight, len(ids))
        if self.rise is not None:
            least, middle, width = self.rise
            share = (np.arange(len(ids)) + 0.5) / len(ids)
            weight *= least + (1 - least) * scipy.special.expit((share - middle) / width)
        if self.ignored_ids:
            weight[[token in self.ignored_ids for token in ids]] = 0.0
        if example.pair.teacher_stop and len(ids) == len(example.pair.reply_ids):
            weight[-1] *= self.stop_weight
        weight[: self.skip_first] = 0.0
        return weight


def data_order(count: int, *, batch_size: int, epochs: int, seed: int) -> grain.MapDataset:
    """The indices of the examples of each step: every epoch in a new order, its last batch what is left over."""
    source = grain.MapDataset.source(range(count)).shuffle(seed=seed)
    batches = source.batch(batch_size, drop_remainder=False, batch_fn=lambda parts: tuple(map(int, parts)))
    return batches.repeat(epochs)


def collate(
    examples: Sequence[Example],
    targets: Reader | None,
    *,
    placement: Placement,
    shape: Shape,
    grid: Grid,
    weights: Sequence[Float[np.ndarray, "R"]],
    encoding: str,
    pad_id: int,
    temperatures: tuple[float, ...] = (),
    views: Mapping[str, Reader] | None = None,
) -> Batch:
    """Fills the arrays of a step; padding has segment 0, weight 0 and length 0.

    Args:
      targets, views: read what is stored of a pair; without `targets` the teacher's values stay None.
    """
    M, B, T, P, groups = shape.micros, shape.rows, shape.length, shape.replies, grid.groups
    tokens = np.full((M, B, T), pad_id, np.int32)
    positions, segment_ids = (np.zeros((M, B, T), np.int32) for _ in range(2))
    index, example_of, reply_ids, position, length = (np.zeros((M, groups, P), np.int32) for _ in range(5))
    weight = np.zeros((M, groups, P), np.float32)
    readers = {"": targets, **(views or {})} if targets is not None else {}
    stored, chunks = dict.fromkeys(readers), np.zeros(M, np.int32)
    for spot in _spots(examples, placement):
        example, i, m = examples[spot.example], spot.example, spot.micro
        R = len(example.reply)
        here = (m, spot.group * (B // groups) + spot.row, slice(spot.start, spot.start + example.tokens))
        tokens[here] = example.prompt + example.reply
        positions[here] = np.arange(example.tokens)
        segment_ids[here] = spot.segment
        slots = (m, spot.group, slice(spot.slot, spot.slot + R))
        index[slots] = spot.row * T + spot.start + len(example.prompt) - 1 + np.arange(R)
        reply_ids[slots], position[slots], length[slots] = example.reply, np.arange(R), R
        example_of[slots], weight[slots] = i, weights[i]
        for name, read in readers.items():
            stored[name] = _put_rows(stored[name], read(example.pair), slots, (M, groups, P))
        chunks[m] = max(chunks[m], -(-(spot.slot + R) // grid.chunk))
    teacher = Teacher(stored.pop("", None), encoding, temperatures, stored)
    info = TokenInfo(reply_ids, position, length)
    return Batch(tokens, positions, segment_ids, index, info, example_of, weight, teacher, chunks)


def _put_rows(arrays: Any, rows: Any, slots: tuple, shape: tuple[int, ...]) -> Any:
    """Puts the rows of an example (an array, or several by name) into arrays of the batch, made with the first."""
    if arrays is None:
        arrays = jax.tree.map(lambda x: np.zeros((*shape, x.shape[-1]), x.dtype), rows)
    for array, values in zip(jax.tree.leaves(arrays), jax.tree.leaves(rows), strict=True):
        array[slots] = values[: slots[-1].stop - slots[-1].start]
    return arrays


@dataclass(frozen=True)
class _Spot:
    """Where one example lies: row and reply slots count within its group."""

    micro: int
    group: int
    row: int
    start: int  # column
    slot: int
    segment: int
    example: int


def _spots(examples: Sequence[Example], placement: Placement) -> Iterator[_Spot]:
    for m, grouped in enumerate(placement):
        for g, rows in enumerate(grouped):
            slot = 0
            for r, row in enumerate(rows):
                start = 0
                for segment, i in enumerate(row, 1):
                    yield _Spot(m, g, r, start, slot, segment, i)
                    start += examples[i].tokens
                    slot += len(examples[i].reply)
