"""How much there is to do, stage by stage, and in which static shapes: the stages' own rules, applied to lengths.

What no configuration says (how long questions and answers are, how many questions give a pair) is assumed, and said.
Memory is planned for the longest sequences that the settings allow, time for the expected ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssb_jax.config import Config, Sampling, SsbError
from ssb_jax.model.transformer import count_parameters
from ssb_jax.preflight.job import Job, abstract
from ssb_jax.records import Pair
from ssb_jax.sampling import schedule
from ssb_jax.training.layout import Grid, Shape, bucket
from ssb_jax.training.plan import Plan, make_plan
from ssb_jax.training.policy import answers_grid, place_answers

STAGES = ("rollout", "teach", "targets", "distill", "grpo", "eval")
_HINT_WORDS = 200  # tokens of the hinted prompt's own words


@dataclass(frozen=True)
class Generation:
    """Answers to prompts through the engine.

    Attributes:
      prompts, samples: how many prompts, and answers to each.
      prompt, answer: tokens, on average.
      longest_prompt, longest: tokens of the longest prompt, and of the longest sequence that comes up.
      slots: sequences decoded at once, as the engine chooses them.
      penalised: whether a repetition penalty is in force, which needs a mask of the tokens seen.
      adapter: whether LoRA is applied.
    """

    prompts: int
    samples: int
    prompt: int
    answer: int
    longest_prompt: int
    longest: int
    slots: int
    penalised: bool
    adapter: bool

    @property
    def prefill_length(self) -> int:
        return schedule.bucket(self.longest_prompt, schedule.SHORTEST_PROMPT)

    @property
    def cache_length(self) -> int:
        return schedule.bucket(self.longest, schedule.SHORTEST_CACHE)


@dataclass(frozen=True)
class Scoring:
    """The teacher's passes: the longest batch, padded to `length` tokens a row; `expected` tokens a row on average."""

    passes: int
    batch: tuple[Pair, ...]
    length: int
    expected: int

    @property
    def rows(self) -> int:
        return len(self.batch)


@dataclass(frozen=True)
class Reinforcement:
    """Method `grpo`: steps of sampling, of the reference's pass and of updates.

    Attributes:
      sampling: the answers of one step.
      answers: those of the longest batch, each after its prompt.
      grid: what the mesh asks of a batch.
      longest, expected: the shapes of a batch of the longest and of the expected answers.
      replies: tokens of a step that pass through the head at the expected lengths.
    """

    steps: int
    sampling: Generation
    answers: tuple[Pair, ...]
    grid: Grid
    longest: Shape
    expected: Shape
    replies: int


@dataclass(frozen=True)
class Training:
    """The distillation: its steps, and what the stage plans for a batch of the longest and of the expected pairs.

    Attributes:
      pairs: those of the longest batch.
    """

    steps: int
    pairs: tuple[Pair, ...]
    longest: Plan
    expected: Plan


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of a method that are planned; what `ssb-torch` and `on-policy` do otherwise than `ssb` is not."""
    own = {"grpo": ("grpo", "eval"), "rft": ("rollout", "targets", "distill", "eval")}
    return own.get(config.method, ("rollout", "teach", "targets", "distill", "eval"))


def check_amounts(job: Job, stages: Sequence[str]) -> None:
    """Whether the settings say how much there is to do.

    Raises:
      SsbError: they do not say how many pairs or questions there are.
    """
    if "grpo" in stages:
        _questions(job)
    if not {"rollout", "teach", "targets", "distill"}.isdisjoint(stages):
        pairs_wanted(job)


def _questions(job: Job) -> int:
    if job.config.questions.limit is None:
        raise SsbError("preflight: how many questions does grpo ask? set questions.limit")
    return job.config.questions.limit


def pairs_wanted(job: Job) -> int:
    """Training pairs: what the settings ask for, or what the questions give."""
    questions = job.config.questions.limit
    found = None if questions is None else max(1, math.floor(questions * job.assumed.pair_share))
    wanted = job.config.teaching.max_pairs
    if wanted is None and found is None:
        raise SsbError("preflight: how many pairs? set teaching.max_pairs or questions.limit")
    return min(x for x in (wanted, found) if x is not None)


def rollouts(job: Job) -> Generation:
    """Step 1, in whole blocks of questions."""
    settings = job.config.rollouts
    questions = math.ceil(pairs_wanted(job) / job.assumed.pair_share)
    if settings.block_size is not None:
        questions = math.ceil(questions / settings.block_size) * settings.block_size
    questions = min(questions, job.config.questions.limit or questions)
    tokens = job.assumed.question_tokens
    return _generation(
        job,
        settings,
        prompts=questions,
        together=min(questions, settings.block_size or questions),
        samples=settings.num_samples,
        prompt=tokens,
        longest=tokens,
    )


def teaching(job: Job) -> Generation:
    """Step 3: half of the hinted solutions are taken to verify."""
    settings, answer = job.config.teaching, _expected(job, job.config.rollouts)
    prompt = job.assumed.question_tokens + _HINT_WORDS
    longest = prompt + 2 * _longest(job, job.config.rollouts)
    return _generation(
        job,
        settings,
        prompts=2 * pairs_wanted(job),
        together=min(2 * pairs_wanted(job), job.config.rollouts.block_size or 2 * pairs_wanted(job)),
        samples=settings.attempts,
        prompt=prompt + 2 * answer,
        longest=min(longest, job.shape.max_position_embeddings - 1),
    )


def evaluations(job: Job) -> list[Generation]:
    """Step 6: each set, answered by base and adapter; planned with the adapter."""
    sets = job.config.evaluation.sets
    tokens = job.assumed.question_tokens
    return [
        _generation(
            job,
            s.sampling,
            prompts=2 * (s.data.limit or job.assumed.set_size),
            together=s.data.limit or job.assumed.set_size,
            samples=s.num_samples,
            prompt=tokens,
            longest=tokens,
            adapter=True,
        )
        for s in sets
    ]


def scoring(job: Job) -> Scoring:
    """Step 4."""
    pairs, context = pairs_wanted(job), job.shape.max_position_embeddings
    prompt = job.assumed.question_tokens + _HINT_WORDS
    reply = min(_longest(job, job.config.teaching), context - 1)
    longest = min(prompt + 2 * _longest(job, job.config.rollouts) + reply, context)
    expected = prompt + 2 * _expected(job, job.config.rollouts) + _expected(job, job.config.teaching)
    parts = schedule.row_parts(job.mesh)
    rows = math.ceil(min(job.config.targets.batch_size, pairs) / parts) * parts
    pair = Pair("", "", "", "", (0,) * (longest - reply), (0,), (0,) * reply, True)
    batch = tuple(dataclasses.replace(pair, question_id=f"{i}") for i in range(rows))
    return Scoring(math.ceil(pairs / rows), batch, bucket(longest), expected)


def training(job: Job) -> Training:
    """Step 5, planned by the stage's own code for pairs of the longest and of the expected length."""
    settings, prompt = job.config.distillation, job.assumed.question_tokens
    limit = min(settings.max_length, job.shape.max_position_embeddings)
    count = min(settings.batch_size, pairs_wanted(job))

    def pairs(reply: int) -> tuple[Pair, ...]:
        pair = Pair("", "", "", "", (0,), (0,) * min(prompt, limit - reply), (0,) * reply, True)
        return tuple(dataclasses.replace(pair, question_id=f"{i}") for i in range(count))

    def plan(members: tuple[Pair, ...]) -> Plan:
        return make_plan(job.shape, members, settings=settings, seed=0, mesh=job.mesh)

    reply = min(_longest(job, job.config.teaching), max(1, limit - prompt))
    longest, expected = pairs(reply), pairs(min(_expected(job, job.config.teaching), reply))
    steps = math.ceil(pairs_wanted(job) / settings.batch_size) * settings.epochs
    return Training(steps, longest, plan(longest), plan(expected))


def reinforcement(job: Job) -> Reinforcement:
    """Method `grpo`, planned by the stage's own code for answers of the longest and of the expected length."""
    settings, prompt = job.config.grpo, job.assumed.question_tokens
    count, context = settings.batch_questions * settings.group_size, job.shape.max_position_embeddings
    grid = answers_grid(job.config.distillation, job.mesh)
    longest, expected = min(_longest(job, settings), context - prompt), _expected(job, settings)

    def shape(reply: int) -> Shape:
        return place_answers([prompt + reply] * count, [reply] * count, grid)[1]

    of_group = math.ceil((grid.micro_batch or count) / grid.groups) * expected
    size = shape(expected)
    return Reinforcement(
        steps=math.ceil(_questions(job) / settings.batch_questions) * settings.epochs,
        sampling=_generation(
            job,
            settings,
            prompts=settings.batch_questions,
            together=settings.batch_questions,
            samples=settings.group_size,
            prompt=prompt,
            longest=prompt,
            adapter=True,
        ),
        answers=tuple(Pair(f"{i}", "", "", "", (0,), (0,) * prompt, (0,) * longest, False) for i in range(count)),
        grid=grid,
        longest=shape(longest),
        expected=size,
        replies=size.micros * grid.groups * math.ceil(of_group / grid.chunk) * grid.chunk,
    )


def prefill_rows(job: Job, work: Generation, length: int) -> int:
    """How many prompts of `length` tokens the engine reads at a time."""
    parts = schedule.row_parts(job.mesh)
    most = schedule.PREFILL_TOKENS_CPU if schedule.on_cpu(job.mesh) else schedule.PREFILL_TOKENS
    rows = schedule.prefill_rows(length, parts=parts, tokens=most)
    return min(rows, max(parts, 1 << (work.prompts - 1).bit_length()))


def slots_for(job: Job, *, wanted: int | None, sequences: int, longest: int) -> int:
    """Slots as the engine chooses them on these chips.

    Raises:
      SsbError: not one row of slots fits beside the weights.
    """
    weights = count_parameters(abstract(job.shape, job.dtype)) * job.dtype.itemsize
    total = job.topology.chip.memory * job.mesh.size
    on_cpu = schedule.on_cpu(job.mesh)  # there the engine counts one copy, of the whole machine's memory
    weights *= 1 if on_cpu else job.mesh.shape["data"]
    weights *= 2 if schedule.cache_parts(job.shape, job.mesh) > 1 else 1
    budget = schedule.budget_of(job.shape, free=total - weights, itemsize=job.dtype.itemsize, mesh=job.mesh)
    return schedule.choose_slots(wanted=wanted, sequences=sequences, longest=longest, budget=budget, mesh=job.mesh)[0]


def _generation(
    job: Job,
    settings: Sampling,
    *,
    prompts: int,
    together: int,
    samples: int,
    prompt: int,
    longest: int,
    adapter: bool = False,
) -> Generation:
    """`together` is how many of the prompts are given to the engine in one call."""
    context = job.shape.max_position_embeddings
    reach = min(longest + settings.max_new_tokens, context)  # what the engine makes room for
    return Generation(
        prompts=prompts,
        samples=samples,
        prompt=prompt,
        answer=_expected(job, settings),
        longest_prompt=longest,
        longest=min(longest + _longest(job, settings), context),
        slots=slots_for(job, wanted=job.config.engine.slots, sequences=together * samples, longest=reach),
        penalised=settings.repetition_penalty != 1.0,  # None: generation_config.json's, which for Qwen2.5 is not 1
        adapter=adapter,
    )


def _longest(job: Job, settings: Sampling) -> int:
    return min(settings.max_new_tokens, job.assumed.longest_answer or settings.max_new_tokens)


def _expected(job: Job, settings: Sampling) -> int:
    return min(job.assumed.answer_tokens, _longest(job, settings))
