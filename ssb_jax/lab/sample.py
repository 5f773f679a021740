"""Some pairs of a run as one batch on the device, in micro-batches of one shape, with their targets in any encoding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
from jaxtyping import Array

from ssb_jax.config import Distillation
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer
from ssb_jax.records import Pair
from ssb_jax.training.batches import Batch, Reader, Weighting
from ssb_jax.training.plan import Plan, Prepared, make_plan, prepared_batches
from ssb_jax.training.step import put_batch, reply_states

_MICRO = 4  # pairs in a forward pass


@dataclass(frozen=True)
class Sample:
    """Pairs that make up one step, and how they are laid out."""

    plan: Plan
    mesh: jax.sharding.Mesh | None
    pad_id: int

    def batch(
        self,
        read: Reader | None,
        *,
        encoding: str,
        temperatures: tuple[float, ...] = (),
        views: Mapping[str, Reader] | None = None,
    ) -> Prepared:
        """The step's batch with targets as `read` gives them; each reply token weighs the same."""
        batches = prepared_batches(
            self.plan,
            read,
            weighting=Weighting(),
            encoding=encoding,
            pad_id=self.pad_id,
            temperatures=temperatures,
            views=views,
        )
        return next(batches)

    def micros(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches, each without the leading axis, on the device."""
        for m in range(batch.tokens.shape[0]):
            one = put_batch(jax.tree.map(lambda x, m=m: x[m : m + 1], batch), self.mesh)
            yield jax.tree.map(lambda x: x[0], one)


def states_and_pulls(
    sample: Sample, batch: Batch, model: Transformer, lora: Lora, *, remat: str
) -> list[tuple[Array, Callable[[Array], tuple[Lora]]]]:
    """Of each micro-batch the student's states (groups, P, D), and what takes their gradient to the adapter's."""
    states_of = jax.jit(lambda lora, model, micro: reply_states(model, lora, micro, remat=remat))
    with use_mesh(sample.mesh):
        return [
            jax.vjp(lambda lora, micro=micro: states_of(lora, model, micro), lora) for micro in sample.micros(batch)
        ]


def take_sample(
    config: ModelConfig,
    pairs: Sequence[Pair],
    *,
    settings: Distillation,
    mesh: jax.sharding.Mesh | None = None,
    pad_id: int = 0,
    recompute: bool = False,
) -> Sample:
    """These pairs, cut as the settings say, in one step.

    Args:
      recompute: with room for the teacher's prompts, for encoding `none`.
    """
    size = len(pairs)
    one_step = settings.model_copy(update={"batch_size": size, "micro_batch": min(_MICRO, size), "epochs": 1})
    plan = make_plan(config, pairs, settings=one_step, seed=0, mesh=mesh, recompute=recompute)
    return Sample(plan, mesh, pad_id)
