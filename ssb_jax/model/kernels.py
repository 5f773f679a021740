"""Attention kernels that others keep: JAX's splash attention for TPU, cuDNN's through JAX for GPU.

Both are for prefill and training, where scores of (B, N, T, S) would be large. Decoding reads each key once whatever
the kernel, and stays with XLA.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Int

from ssb_jax.config import SsbError
from ssb_jax.model.sharding import fitted_spec

HOME = {"splash": "tpu", "cudnn": "gpu"}  # kernel -> the devices it runs on
LANES = 128  # of a TPU's vector unit: blocks are multiples of it
LONGEST_BLOCK = 512
SHARDED = ("batch", "heads", "tokens", "head_dim")


def choose(wanted: str, q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], *, start: int | None) -> str:
    """The kernel for these shapes: the wanted one ("auto": the device's) where its conditions hold, else "xla".

    Raises:
      SsbError: the wanted kernel is not for this kind of device.
    """
    platform = _platform()
    if wanted in HOME and HOME[wanted] != platform:
        raise SsbError(f"model.attention: {wanted} needs a {HOME[wanted]}, the devices are {platform}; use auto or xla")
    (_, T, _, H), S = q.shape, k.shape[1]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    suits = {
        "splash": start is not None and T >= LANES,  # shorter ones would be mostly padding
        "cudnn": half and T > 1 and T % 2 == S % 2 == H % 8 == 0 and H <= 128,
    }
    return next((name for name, home in HOME.items() if home == platform and wanted != "xla" and suits[name]), "xla")


def _platform() -> str:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def fused(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    visible: Bool[Array, "B T S"] | None,
    *,
    implementation: str,
) -> Float[Array, "B T N H"]:
    """`jax.nn.dot_product_attention`; causal where `visible` is None."""
    mask = None if visible is None else visible[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=visible is None, implementation=implementation)


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    start: int,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Splash attention: query t sees keys up to start + t, of its own segment. Lengths are padded to whole blocks.

    On a mesh every device runs it on its own rows and heads; key/value heads fewer than the devices on the tensor
    axis, which are replicated, are dealt out to the query heads they serve.
    """
    B, T, _, H = q.shape
    scale = jnp.asarray(1 / np.sqrt(H), q.dtype)
    # Keys beyond S are seen by queries beyond T alone, whose results are cut off.
    q, k, v = (_padded(jnp.swapaxes(x, 1, 2), axis=2) for x in (q * scale, k, v))
    segments = None if segment_ids is None else _padded(segment_ids, axis=1)
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_splash_rows, start=start, interpret=interpret)
    if not mesh.empty and mesh.size > 1:
        copies = max(1, mesh.shape["tensor"] // k.shape[1])
        k, v = (jnp.repeat(x, copies, axis=1) for x in (k, v))
        heads, rows = fitted_spec(SHARDED, q.shape, mesh), fitted_spec(("batch", "tokens"), (B, T), mesh)
        run = jax.shard_map(run, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return jnp.swapaxes(run(q, k, v, segments)[:, :, :T], 1, 2)


def _splash_rows(q, k, v, segment_ids, *, start, interpret):
    """q (B, N, T, H), k and v (B, K, S, H): all of one device."""
    (_, N, T, _), S = q.shape, k.shape[2]
    rows, columns = (next(b for b in (LONGEST_BLOCK, 256, LANES) if size % b == 0) for size in (T, S))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((T, S), offset=start)] * N),
        block_sizes=splash_attention.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    if segment_ids is None:
        return jax.vmap(kernel)(q, k, v)
    return jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(segment_ids, segment_ids))


def _padded(x, *, axis):
    room = [(0, 0)] * x.ndim
    room[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, room)
