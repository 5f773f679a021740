"""Operations and bytes counted from shapes, and the time that no program can beat.

XLA's own counts see the body of a scan once, so these are sums over the model's shape. They follow what our programs
compute: padding and recomputation included, and masked attention where no kernel skips it. A step takes at least the
longest of: its operations at the chip's peak, its traffic with the HBM, and what it receives from other chips. Real
steps take longer; a share of the peak of 40 to 60 % is common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import lora_shapes
from ssb_jax.preflight import workload
from ssb_jax.preflight.chips import Chip
from ssb_jax.preflight.estimate import fused_attention
from ssb_jax.preflight.job import Job
from ssb_jax.preflight.workload import Generation
from ssb_jax.sampling import schedule
from ssb_jax.training.layout import Shape

# Of one attention score without a kernel: written in float32, read by the softmax, written and read as a probability.
_SCORE_BYTES = 12


@dataclass(frozen=True)
class Step:
    """One kind of step of a stage, per chip.

    Attributes:
      count: how many the stage makes.
      flops, memory, links: operations, bytes of HBM traffic, bytes received from other chips, in one step.
      seconds: at least, for one step; None where the chip's peaks are not known.
      bound: which of the three takes longest.
    """

    stage: str
    name: str
    count: int
    flops: float
    memory: float
    links: float
    seconds: float | None
    bound: str

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.count / 3600


def stage_steps(job: Job, stage: str) -> list[Step]:
    """The steps of a stage at the expected lengths; of hosts that share it, those of one."""
    steps = _stage_steps(job, stage)
    return [replace(step, count=math.ceil(step.count / job.shares)) for step in steps]


def _stage_steps(job: Job, stage: str) -> list[Step]:
    if stage == "targets":
        return [_scoring(job)]
    if stage == "distill":
        return [_training(job)]
    if stage == "grpo":
        return _reinforcement(job)
    if stage == "eval":
        return [step for work in workload.evaluations(job) for step in _generation(job, stage, work)]
    return _generation(job, stage, workload.rollouts(job) if stage == "rollout" else workload.teaching(job))


def layer_flops(shape: ModelConfig, tokens: float) -> float:
    """Products of `tokens` tokens with the weights of all layers."""
    return 2.0 * shape.num_layers * sum(i * o for i, o in lora_shapes(shape).values()) * tokens


def attention_flops(shape: ModelConfig, queries: float, keys: float) -> float:
    """Scores and weighted sums of all layers, masked ones included."""
    return 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * queries * keys


def causal_flops(job: Job, rows: int, length: int) -> float:
    """Attention of rows over themselves: a kernel skips the masked half."""
    share = 0.5 if fused_attention(job, length) else 1.0
    return share * attention_flops(job.shape, rows * length, length)


def head_flops(shape: ModelConfig, tokens: float) -> float:
    """Logits of `tokens` tokens."""
    return 2.0 * shape.hidden_size * shape.vocab_size * tokens


def _generation(job: Job, stage: str, work: Generation) -> list[Step]:
    shape, mesh = job.shape, job.mesh
    parts, tensor = schedule.row_parts(mesh), mesh.shape["tensor"]
    sequences = work.prompts * work.samples
    slots = min(work.slots, math.ceil(sequences / parts) * parts)
    S = min(schedule.bucket(work.prompt + 2 * work.answer, schedule.SHORTEST_CACHE), work.cache_length)
    T = min(schedule.bucket(work.prompt, schedule.SHORTEST_PROMPT), work.prefill_length)
    P = workload.prefill_rows(job, work, T)
    item = job.dtype.itemsize
    kv_parts = tensor if shape.num_kv_heads % tensor == 0 else 1
    cache = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * item * slots * S / (parts * kv_parts)
    logits = slots / parts * shape.vocab_size / tensor * 4
    decode = _step(
        job,
        (stage, "decode step", math.ceil(max(sequences / slots, 1) * work.answer)),
        flops=layer_flops(shape, slots) + attention_flops(shape, slots, S) + head_flops(shape, slots),
        memory=_weights(job, head=True) + cache + 3 * logits,
        links=_links(job, slots / parts, passes=1),
    )
    prefill = _step(
        job,
        (stage, "prefill", math.ceil(work.prompts / P)),
        flops=layer_flops(shape, P * T) + causal_flops(job, P, T),
        memory=_weights(job) + _activations(job, P, T),
        links=_links(job, P * T / parts, passes=1),
    )
    return [prefill, decode]


def _scoring(job: Job) -> Step:
    work = workload.scoring(job)
    logits = job.config.targets.encoding in ("logits", "topk")
    answer = work.rows * job.assumed.answer_tokens if logits else 0
    return _pass(job, ("targets", "teacher's pass", work.passes), work.rows, work.expected, replies=answer)


def _training(job: Job) -> Step:
    work = workload.training(job)
    size = work.expected.shapes[0]
    replies = size.micros * size.replies * work.expected.grid.groups
    # The student's and the gradient's; and the teacher's, where its states are stored.
    heads = 3 if job.config.targets.encoding in ("hidden", "none") else 2
    return _update(job, ("distill", "step", work.steps), size, heads=heads, replies=replies)


def _reinforcement(job: Job) -> list[Step]:
    """The expected answers of each step; the longest of them, for which the others wait, are not known."""
    work, updates = workload.reinforcement(job), job.config.grpo.updates
    size, scores = work.expected, 1 if updates == 1 else 2  # the base's, and the policy's before its second update
    sampling = [replace(step, count=step.count * work.steps) for step in _generation(job, "grpo", work.sampling)]
    passes = work.steps * scores * size.micros
    return [
        *sampling,
        _pass(job, ("grpo", "reference", passes), size.rows, size.length, replies=work.replies // size.micros),
        _update(job, ("grpo", "update", work.steps * updates), size, heads=3, replies=work.replies),
    ]


def _pass(job: Job, what: tuple[str, str, int], rows: int, length: int, *, replies: int) -> Step:
    """One pass over whole sequences; `replies` of their tokens go through the head."""
    shape, tokens = job.shape, rows * length
    return _step(
        job,
        what,
        flops=layer_flops(shape, tokens) + causal_flops(job, rows, length) + head_flops(shape, replies),
        memory=_weights(job, head=replies > 0) + _activations(job, rows, length),
        links=_links(job, tokens / schedule.row_parts(job.mesh), passes=1),
    )


def _update(job: Job, what: tuple[str, str, int], size: Shape, *, heads: int, replies: int) -> Step:
    """Forward, backward and optimizer; `replies` tokens go `heads` times through the head."""
    shape, config = job.shape, job.config
    tokens = size.micros * size.rows * size.length
    # What `dots` computes again is not products of weights.
    again = {"none": 0, "dots": 0, "full": 1}[config.distillation.remat]
    adapter = 2.0 * shape.num_layers * config.lora.rank * tokens
    adapter *= sum(sum(lora_shapes(shape)[name]) for name in config.lora.target_modules)
    passes = 2 + again  # forward, again, and the gradient of the activations: the weights are frozen
    return _step(
        job,
        what,
        flops=passes * layer_flops(shape, tokens)
        + (3 + again) * causal_flops(job, size.micros * size.rows, size.length)
        + (passes + 1) * adapter
        + heads * head_flops(shape, replies),
        memory=size.micros * passes * _weights(job, head=True)
        + passes * _activations(job, size.micros * size.rows, size.length),
        links=size.micros * _links(job, tokens / size.micros / schedule.row_parts(job.mesh), passes=passes),
    )


def _step(job: Job, what: tuple[str, str, int], *, flops: float, memory: float, links: float) -> Step:
    """The step of a chip; `flops` are of the whole slice, the other two of a chip."""
    stage, name, count = what
    flops /= job.mesh.size
    seconds, bound = _longest(job.topology.chip, flops, memory, links)
    return Step(stage, name, count, flops, memory, links, seconds, bound)


def _longest(chip: Chip, flops: float, memory: float, links: float) -> tuple[float | None, str]:
    if chip.flops is None or chip.bandwidth is None or chip.links is None:
        return None, ""
    times = {"products": flops / chip.flops, "memory": memory / chip.bandwidth, "links": links / chip.links}
    bound = max(times, key=times.get)
    return times[bound], bound


def _weights(job: Job, *, head: bool = False) -> float:
    """Bytes of weights that a chip reads in one pass: those of the other fsdp shards are brought to it first."""
    shape, item = job.shape, job.dtype.itemsize
    layers = shape.num_layers * sum(i * o for i, o in lora_shapes(shape).values())
    return (layers + (shape.vocab_size * shape.hidden_size if head else 0)) * item / job.mesh.shape["tensor"]


def _activations(job: Job, rows: int, length: int) -> float:
    """Bytes of HBM traffic of activations and attention scores in one forward pass, per chip."""
    shape, tensor = job.shape, job.mesh.shape["tensor"]
    tokens = rows * length / schedule.row_parts(job.mesh)
    width = 8 * shape.hidden_size + 4 * shape.intermediate_size / tensor
    scores = 0.0 if fused_attention(job, length) else tokens * length * shape.num_heads / tensor * _SCORE_BYTES
    return shape.num_layers * (tokens * width * job.dtype.itemsize + scores)


def _links(job: Job, tokens: float, *, passes: int) -> float:
    """Bytes a chip receives in one step: shards of the weights (fsdp), sums of partial products (tensor)."""
    shape, fsdp, tensor = job.shape, job.mesh.shape["fsdp"], job.mesh.shape["tensor"]
    gathered = _weights(job) * (fsdp - 1) / fsdp
    # After attention and after the feed-forward layer: an all-reduce of (tokens, D).
    reduced = 2 * shape.num_layers * tokens * shape.hidden_size * job.dtype.itemsize * 2 * (tensor - 1) / tensor
    return passes * (gathered + reduced)
