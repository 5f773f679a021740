"""A run's data, all known before its first step: examples cut to length, their order, and the shapes to compile for."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grain
from jax.sharding import Mesh

from ssb_jax.config import Distillation, SsbError
from ssb_jax.console import note
from ssb_jax.losses.chunked import Teacher
from ssb_jax.model.transformer import ModelConfig
from ssb_jax.records import Pair
from ssb_jax.training.batches import Batch, Example, Reader, Weighting, collate, cut, data_order
from ssb_jax.training.layout import Grid, Placement, Shape, bucket, choose_shapes, fitting, place
from ssb_jax.training.phrases import count_phrases
from ssb_jax.training.recompute import TeacherShape, teacher_input, teacher_shape

Targets = Reader


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before its first step."""

    examples: tuple[Example, ...]
    order: grain.MapDataset  # step -> indices of its examples
    grid: Grid
    shapes: tuple[Shape, ...]
    cut_prompts: int
    cut_replies: int
    epochs: int
    teacher: TeacherShape | None = None  # where the teacher is computed again in each step

    @property
    def steps(self) -> int:
        return len(self.order)

    def place(self, members: Sequence[int]) -> tuple[Placement, Shape]:
        """(placement, shape) of a step's examples."""
        placement, need = _place(self.examples, members, self.grid)
        return placement, fitting(self.shapes, need, self.grid)


def make_plan(
    config: ModelConfig,
    pairs: Sequence[Pair],
    *,
    settings: Distillation,
    seed: int,
    mesh: Mesh | None = None,
    recompute: bool = False,
) -> Plan:
    """Cuts the examples to length, fixes their order, and chooses the few shapes that the run compiles for.

    Args:
      recompute: whether the teacher is computed again in each step, which needs room for its prompts.

    Raises:
      SsbError: there are no pairs, or one has no reply.
    """
    if not pairs:
        raise SsbError("distillation: there are no pairs; run `ssb teach` until there are some")
    limit = min(settings.max_length, config.max_position_embeddings)
    examples = tuple(cut(pair, limit) for pair in pairs)
    cut_prompts = sum(len(example.prompt) < len(example.pair.student_prompt_ids) for example in examples)
    cut_replies = sum(len(example.reply) < len(example.pair.reply_ids) for example in examples)
    if cut_prompts or cut_replies:
        note(f"cut to {limit} tokens: {cut_prompts} prompts (on the left), {cut_replies} replies (on the right)")
    order = data_order(len(examples), batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)
    data, fsdp = (1, 1) if mesh is None else (mesh.shape["data"], mesh.shape["fsdp"])
    grid = Grid(
        groups=data,
        row_multiple=data * fsdp,
        packing=settings.packing,
        micro_batch=settings.micro_batch,
        attention_length=_attention_length(config),
    )
    needs = [_place(examples, order[i], grid)[1] for i in range(len(order))]
    chunk = min(settings.chunk_tokens, bucket(max(need.replies for need in needs)))
    grid = dataclasses.replace(grid, chunk=chunk)
    needs = [_place(examples, order[i], grid)[1] for i in range(len(order))]
    shapes, teacher = choose_shapes(needs, grid), None
    if recompute:
        steps = [[examples[j] for j in order[i]] for i in range(len(order))]
        teacher = teacher_shape([(step, _place(step, range(len(step)), grid)[0]) for step in steps], grid)
    return Plan(examples, order, grid, shapes, cut_prompts, cut_replies, settings.epochs, teacher)


def _place(examples: Sequence[Example], members: Sequence[int], grid: Grid) -> tuple[Placement, Shape]:
    chosen = [examples[i] for i in members]
    return place([e.tokens for e in chosen], [len(e.reply) for e in chosen], grid)


def _attention_length(config: ModelConfig) -> float:
    """T at which the products of attention (4 T N H a token, unmasked) cost as much as those with a layer's weights."""
    D, F, N, K, H = (
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    )
    weights = 2 * D * N * H + 2 * D * K * H + 3 * D * F
    return 2 * weights / (4 * N * H)


@dataclass(frozen=True)
class Prepared:
    """A batch on the host, and whose it is."""

    batch: Batch
    names: tuple[str, ...]
    reply_tokens: int
    tokens: int
    phrases: Mapping[str, float]  # see `training.phrases`


def prepared_batches(
    plan: Plan,
    targets: Targets | None,
    *,
    weighting: Weighting,
    encoding: str,
    pad_id: int,
    temperatures: tuple[float, ...] = (),
    views: Mapping[str, Targets] | None = None,
) -> grain.DatasetIterator:
    """The prepared batches in order, a few ahead of the step, from an iterator whose position can be saved.

    Args:
      targets, views: read what is stored of a pair; nothing with encoding `none`.
    """

    def prepare(members: tuple[int, ...]) -> Prepared:
        examples = [plan.examples[i] for i in members]
        placement, shape = plan.place(members)
        batch = collate(
            examples,
            None if encoding == "none" else targets,
            placement=placement,
            shape=shape,
            grid=plan.grid,
            weights=weighting(examples),
            encoding=encoding,
            pad_id=pad_id,
            temperatures=temperatures,
            views=views,
        )
        if plan.teacher is not None:
            source = teacher_input(
                examples, placement, shape=shape, teacher=plan.teacher, grid=plan.grid, pad_id=pad_id
            )
            batch = dataclasses.replace(batch, teacher=Teacher(source, encoding))
        names = tuple(example.pair.question_id for example in examples)
        reply_tokens, tokens = sum(len(e.reply) for e in examples), sum(e.tokens for e in examples)
        return Prepared(batch, names, reply_tokens, tokens, count_phrases([e.pair.solution for e in examples]))

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(plan.order.map(prepare).to_iter_dataset(options))
