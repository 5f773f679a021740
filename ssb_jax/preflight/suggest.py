"""The mesh, teacher's batch and micro-batch that fit a slice and take least, by estimate; one of them is compiled.

All meshes of the slice that divide the model are compared: memory from the exact sizes of weights, cache and optimizer
and the estimated temporaries, time from the roofline. The number of slots is the engine's own choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssb_jax.config import Config, Mesh, SsbError
from ssb_jax.model.sharding import MeshError
from ssb_jax.preflight.chips import GIB
from ssb_jax.preflight.estimate import SAFE
from ssb_jax.preflight.job import Job, make_job
from ssb_jax.preflight.programs import stage_programs
from ssb_jax.preflight.roofline import stage_steps


@dataclass(frozen=True)
class Suggestion:
    """A job that fits by estimate, or may when compiled.

    Attributes:
      peak: estimated bytes on a chip, of the program that needs most.
      hours: of all stages, at least; None where the chip is not known.
    """

    job: Job
    peak: float
    hours: float | None

    @property
    def overrides(self) -> list[str]:
        """The settings, as arguments of a command."""
        config = self.job.config
        values = {f"mesh.{axis}": size for axis, size in config.mesh.model_dump().items()}
        values |= {"targets.batch_size": config.targets.batch_size}
        if config.distillation.micro_batch is not None:
            values |= {"distillation.micro_batch": config.distillation.micro_batch}
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def suggest(job: Job, stages: Sequence[str], *, compiling: bool = False) -> list[Suggestion]:
    """What fits, the fastest first (by the roofline; where times are not known, the smallest).

    Args:
      compiling: where nothing stays below `SAFE` of a chip's memory, returns what needs least of all that an exact
        estimate would let fit: compiling it will tell.

    Raises:
      SsbError: nothing fits; says how much the best one lacks.
    """
    memory = job.topology.chip.memory
    planned: list[Suggestion] = []
    refused: list[SsbError] = []
    for config in _meshes(job.config, len(job.topology.devices)):
        try:
            planned.append(_fitted(config, job, stages))
        except SsbError as error:  # this mesh does not divide the model, or its weights leave no room for a cache
            refused.append(error)
    planned.sort(key=lambda s: s.peak)
    found = [s for s in planned if s.peak <= SAFE * memory]
    if found:
        return sorted(found, key=lambda s: (s.peak if s.hours is None else s.hours, s.peak))
    if compiling and planned and planned[0].peak <= memory:
        return planned[:1]
    raise SsbError(
        f"nothing fits {job.topology.name} ({memory / GIB:.2f} GiB a chip): {_lacking(planned, refused)}. Take a "
        "larger slice, or lower rollouts.max_new_tokens, teaching.max_new_tokens or distillation.max_length"
    )


def _lacking(planned: Sequence[Suggestion], refused: Sequence[SsbError]) -> str:
    if planned:
        sizes = planned[0].job.config.mesh.model_dump(exclude={"rule"})
        told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        return f"the least, by estimate {planned[0].peak / GIB:.1f} GiB a chip, is needed on mesh {told}"
    return str(min(refused, key=lambda error: isinstance(error, MeshError)))  # of meshes that there are, if any


def _fitted(config: Config, job: Job, stages: Sequence[str]) -> Suggestion:
    """The job with the largest teacher's batch and micro-batch that fit, or the smallest where none does."""
    peaks, hours = [], []
    for stage in stages:
        options = {"targets": _teacher_batches, "distill": _micro_batches, "grpo": _micro_batches_of_answers}.get(
            stage, lambda config: [config]
        )
        for fitted in options(config):
            job = make_job(fitted, job.shape, job.topology, job.assumed, stage=stage)
            peak = max((p.expected for p in stage_programs(job, stage)), default=0.0)
            if peak <= SAFE * job.topology.chip.memory:
                break
        config = fitted
        peaks.append(peak)
        hours += [step.hours for step in stage_steps(job, stage)]
    return Suggestion(job, max(peaks), None if None in hours else sum(hours))


def _meshes(config: Config, devices: int) -> Iterator[Config]:
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp in itertools.product(divisors, divisors):
        if devices % (data * fsdp) == 0:
            mesh = Mesh(data=data, fsdp=fsdp, tensor=devices // (data * fsdp))
            yield config.model_copy(update={"mesh": mesh})


def _teacher_batches(config: Config) -> Iterator[Config]:
    for size in _halved(config.targets.batch_size):
        yield config.model_copy(update={"targets": config.targets.model_copy(update={"batch_size": size})})


def _micro_batches(config: Config) -> Iterator[Config]:
    return _micro_batches_from(config, config.distillation.batch_size)


def _micro_batches_of_answers(config: Config) -> Iterator[Config]:
    return _micro_batches_from(config, config.grpo.batch_questions * config.grpo.group_size)


def _micro_batches_from(config: Config, whole: int) -> Iterator[Config]:
    settings = config.distillation
    for size in _halved(settings.micro_batch or whole):
        yield config.model_copy(update={"distillation": settings.model_copy(update={"micro_batch": size})})


def _halved(size: int) -> Iterator[int]:
    while size > 1:
        yield size
        size = -(-size // 2)
    yield 1
