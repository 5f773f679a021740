"""Step 4: the base model reads each hinted prompt and its reply once; what it predicts for the reply is stored.

The target of reply token t is the state at index len(prompt) - 1 + t after the last norm, or the logits there. Pairs
are taken sorted by length, in batches of a few static shapes; an interrupted call continues with what is missing. Each
process computes every count-th batch on its own devices.

The views of `targets.views` are the same replies after other prompts, each in a store of its own.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ssb_jax import hosts
from ssb_jax.config import Config, SsbError, Targets
from ssb_jax.console import progress
from ssb_jax.model.sharding import spec, use_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer, abstract_model, model_shardings
from ssb_jax.records import Pair
from ssb_jax.store import Rows, StoreInfo, TargetStore, TargetWriter, check_entry, open_store, store_info
from ssb_jax.training.layout import Grid, Shape, bucket, choose_shapes, fitting
from ssb_jax.training.lowering import placed
from ssb_jax.workspace import Workspace

_TOP_BATCH = 64  # reply tokens whose logits are there at a time


def run(
    pairs: Sequence[Pair],
    *,
    config: Config,
    folder: Path,
    workspace: Workspace,
    views: Mapping[str, Sequence[Pair]] | None = None,
) -> dict:
    """Stores the targets of all pairs; those already stored are not computed again.

    Args:
      views: the pairs with other prompts for the teacher, stored in folders of these names.

    Returns:
      Counts: examples, reply tokens, bytes, bytes a token.

    Raises:
      SsbError: the folder holds another model's targets, a sequence exceeds the model's context, or the teacher's
        numbers are not finite.
    """
    settings, model = config.targets, workspace.model_on(workspace.teacher_mesh)
    dtype = workspace.dtype.name if settings.dtype == "auto" else settings.dtype
    info = store_info(
        model, encoding=settings.encoding, dtype=dtype, top_k=settings.top_k, temperatures=temperatures(config)
    )
    if settings.encoding == "none":
        _check(pairs, model)
        TargetWriter(folder, info, writer=hosts.index())
    else:
        _fill(folder, info, pairs, "targets", settings=settings, workspace=workspace)
    for view, prompted in (views or {}).items():
        _fill(folder / view, info, prompted, f"targets, view {view}", settings=settings, workspace=workspace)
    return hosts.on_first(lambda: _counts(folder, pairs))


def temperatures(config: Config) -> tuple[float, ...]:
    """At which `topk` targets keep the mass of their bucket: that of the loss, and 1 for the statistics."""
    return tuple(sorted({1.0, config.distillation.temperature}))


def _fill(
    folder: Path, info: StoreInfo, pairs: Sequence[Pair], label: str, *, settings: Targets, workspace: Workspace
) -> None:
    writer = TargetWriter(folder, info, writer=hosts.index())
    stored = hosts.on_first(lambda: sorted(_stored(folder, pairs)))
    with writer, progress(label, len(pairs), done=len(stored)) as advance:
        targets = teacher_targets(
            workspace.model_on(workspace.teacher_mesh),
            pairs,
            encoding=info.encoding,
            batch_size=settings.batch_size,
            mesh=workspace.teacher_mesh,
            skip=stored,
            share=hosts.share,
            top_k=info.width,
            temperatures=info.temperatures,
        )
        for pair, values in targets:
            if pair.question_id not in stored:
                writer.add(pair, values)
                advance()


def _stored(folder: Path, pairs: Sequence[Pair]) -> set[str]:
    """Question ids of the pairs whose targets are on disk, whichever process wrote them."""
    entries = open_store(folder).entries
    for pair in pairs:
        if pair.question_id in entries:
            check_entry(pair, entries[pair.question_id])
    return {pair.question_id for pair in pairs if pair.question_id in entries}


def _counts(folder: Path, pairs: Sequence[Pair]) -> dict:
    tokens = sum(len(pair.reply_ids) for pair in pairs)
    files = [*folder.rglob("*.safetensors"), *folder.rglob("index-*.json")]
    size = sum(path.stat().st_size for path in files)
    return {"examples": len(pairs), "tokens": tokens, "bytes": size, "bytes_per_token": round(size / tokens, 2)}


def whole_targets(
    store: TargetStore, model: Transformer, pairs: Sequence[Pair], *, mesh: Mesh | None = None
) -> tuple[Callable[[Pair], Float[np.ndarray, "R X"]], str]:
    """What reads a pair's whole distributions, and their encoding: stored, or hidden states computed again where the
    store holds less."""
    if store.info.encoding in ("hidden", "logits"):
        return store.read, store.info.encoding
    states = {pair.question_id: values for pair, values in teacher_targets(model, pairs, mesh=mesh)}
    return (lambda pair: states[pair.question_id]), "hidden"


def teacher_targets(
    model: Transformer,
    pairs: Sequence[Pair],
    *,
    encoding: str = "hidden",
    batch_size: int = 8,
    mesh: Mesh | None = None,
    skip: Sequence[str] | set[str] = (),
    share: Callable[[list], list] = list,
    top_k: int = 0,
    temperatures: tuple[float, ...] = (),
) -> Iterator[tuple[Pair, Rows]]:
    """The teacher's states (R, D) after the last norm, or logits (R, V) in float32, for each pair's reply tokens.

    With encoding `topk` the arrays `targets`, `ids` (R, top_k) and `tail` (R, temperatures), see `losses.Teacher`.

    Pairs come in order of length. A batch whose question ids are all in `skip` is left out.

    Args:
      share: picks those of the batches that are to be computed here.

    Raises:
      SsbError: two pairs share an id, a pair has no reply, or a sequence exceeds the model's context.
    """
    _check(pairs, model)
    skip = set(skip)
    encode = _encode_function(mesh, encoding, top_k, temperatures)
    for batch, shape in share(list(_batches(pairs, batch_size, mesh))):
        if skip.issuperset(pair.question_id for pair in batch):
            continue
        arrays = _arrays(batch, shape)
        with use_mesh(mesh):
            states = _states_function(mesh)(model, *(_put(x, mesh) for x in arrays))
            for row, pair in enumerate(batch):
                R = len(pair.reply_ids)
                yield pair, jax.tree.map(lambda x, R=R: np.asarray(x)[:R], encode(model, states[row]))


def lower_teacher(
    config: ModelConfig,
    mesh: Mesh,
    pairs: Sequence[Pair],
    *,
    dtype: jnp.dtype = jnp.bfloat16,
    attention: str = "auto",
) -> jax.stages.Lowered:
    """The teacher's pass over these pairs as one batch, lowered for a mesh whose devices need not be there."""
    model = abstract_model(config, dtype)
    model.attention = attention
    batch, shape = next(_batches(pairs, len(pairs), mesh))
    sharding = NamedSharding(mesh, spec("batch", "tokens"))
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in _arrays(batch, shape)]
    model = placed(model, model_shardings(model, mesh))
    with use_mesh(mesh):
        return _states_function(mesh).lower(model, *arrays)


def _check(pairs: Sequence[Pair], model: Transformer) -> None:
    seen: set[str] = set()
    limit = model.config.max_position_embeddings
    for pair in pairs:
        name, length = pair.question_id, len(pair.teacher_prompt_ids) + len(pair.reply_ids)
        if name in seen:
            raise SsbError(f"two pairs have the id {name}; question ids must be unique")
        if not pair.reply_ids or not pair.teacher_prompt_ids:
            raise SsbError(f"pair {name}: expected a hinted prompt and a reply of at least one token each")
        if length > limit:
            raise SsbError(
                f"pair {name}: hinted prompt and reply have {length} tokens, the model's context {limit}; remove the "
                "pair, or lower rollouts.max_new_tokens and teaching.max_new_tokens"
            )
        seen.add(name)


def _batches(pairs: Sequence[Pair], batch_size: int, mesh: Mesh | None) -> Iterator[tuple[list[Pair], Shape]]:
    """Batches of similar length, each with one of a few shapes."""
    multiple = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-min(batch_size, len(pairs)) // multiple) * multiple
    ordered = sorted(pairs, key=lambda pair: len(pair.teacher_prompt_ids) + len(pair.reply_ids))
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]

    def need(batch: list[Pair]) -> Shape:
        length = max(len(pair.teacher_prompt_ids) + len(pair.reply_ids) for pair in batch)
        return Shape(1, rows, bucket(length), bucket(max(len(pair.reply_ids) for pair in batch)))

    needs = [need(batch) for batch in batches]
    shapes = choose_shapes(needs, Grid())
    return ((batch, fitting(shapes, need, Grid())) for batch, need in zip(batches, needs, strict=True))


def _arrays(batch: list[Pair], shape: Shape) -> tuple[Int[np.ndarray, "B T"], ...]:
    """Tokens, positions, segments (B, T), and the column (B, R) whose state predicts each reply token."""
    tokens, positions, segments = (np.zeros((shape.rows, shape.length), np.int32) for _ in range(3))
    index = np.zeros((shape.rows, shape.replies), np.int32)
    for row, pair in enumerate(batch):
        ids, R = pair.teacher_prompt_ids + pair.reply_ids, len(pair.reply_ids)
        tokens[row, : len(ids)] = ids
        positions[row, : len(ids)] = np.arange(len(ids))
        segments[row, : len(ids)] = 1
        index[row, :R] = len(ids) - R - 1 + np.arange(R)
    return tokens, positions, segments, index


@functools.cache
def _states_function(mesh: Mesh | None) -> Callable[..., Float[Array, "B R D"]]:
    def states(model, tokens, positions, segment_ids, index):
        hidden, _ = model(tokens, positions=positions, segment_ids=segment_ids)
        return jnp.take_along_axis(hidden, index[..., None], axis=1)

    return _replicated(states, mesh)


@functools.cache
def head_function(mesh: Mesh | None) -> Callable[..., Float[Array, "R V"]]:
    """The compiled head: (model, states (R, D)) -> logits (R, V) in float32."""

    def logits(model, states):
        return jnp.einsum("rd,vd->rv", states, model.head_weight(), preferred_element_type=jnp.float32)

    return _replicated(logits, mesh)


@functools.cache
def _encode_function(
    mesh: Mesh | None, encoding: str, top_k: int, temperatures: tuple[float, ...]
) -> Callable[[Transformer, Float[Array, "R D"]], Any]:
    """(model, states) -> what is stored of them."""

    def top(model, states):
        def of_token(state):
            logits = jnp.einsum("d,vd->v", state, model.head_weight(), preferred_element_type=jnp.float32)
            return largest(logits, top_k, temperatures)

        return jax.lax.map(of_token, states, batch_size=_TOP_BATCH)

    match encoding:
        case "hidden":
            return lambda model, states: states
        case "logits":
            return head_function(mesh)
        case "topk":
            return _replicated(top, mesh)
    raise ValueError(f"no encoding {encoding!r}")


def largest(logits: Float[Array, " V"], k: int, temperatures: tuple[float, ...]) -> dict[str, Array]:
    """The k largest logits less the largest, their ids, and the logsumexp of all others at each temperature."""
    values, ids = jax.lax.top_k(logits, k)
    others = jnp.where(jnp.zeros(logits.shape, bool).at[ids].set(True), -jnp.inf, logits - values[0])
    tail = jnp.stack([jax.nn.logsumexp(others / temperature) for temperature in temperatures])
    return {"targets": values - values[0], "ids": ids, "tail": tail}


def _replicated(function: Callable, mesh: Mesh | None) -> Callable:
    """Jitted, with a result that every process holds whole."""
    return jax.jit(function) if mesh is None else jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _put(x: np.ndarray, mesh: Mesh | None) -> Array:
    if mesh is None:
        return jnp.asarray(x)
    sharding = NamedSharding(mesh, spec("batch", "tokens"))
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])
