"""The samplers that the engine is compared with. Each is imported only when asked for; the product needs none.

A peer is made from a workspace and answers one batch: it returns how many tokens each sequence has, up to and with
the first stop token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax

from ssb_jax.config import SsbError
from ssb_jax.sampling import Request, SamplingParams
from ssb_jax.workspace import Workspace


@dataclass(frozen=True)
class Row:
    """One sequence to be sampled."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams


Peer = Callable[[Sequence[Row]], list[int]]


def rows_of(request: Request) -> list[Row]:
    return [Row(request.prompt_ids, request.params) for _ in request.samples]


def without_stops(params: SamplingParams) -> SamplingParams:
    return replace(params, stop_ids=())


def token_counts(sampled: Sequence[Sequence[int]], params: SamplingParams) -> list[int]:
    """Tokens of each sequence up to and with its first stop token."""
    counts = []
    for ids in sampled:
        ids = list(ids)[: params.max_new_tokens]
        stop = next((i for i, token in enumerate(ids) if token in params.stop_ids), len(ids) - 1)
        counts.append(stop + 1)
    return counts


def transformers(workspace: Workspace) -> Peer:
    """transformers' `generate` on left-padded batches, on the GPU where JAX has one."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise SsbError(f"--against transformers needs torch: pip install ssb-jax[test] ({error})") from None
    place = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, workspace.dtype.name)
    model = AutoModelForCausalLM.from_pretrained(workspace.model_folder, dtype=dtype).to(place).eval()
    pad = workspace.chat.pad_id

    def sample(rows: Sequence[Row]) -> list[int]:
        params, width = rows[0].params, max(len(row.prompt_ids) for row in rows)
        padded = [[pad] * (width - len(row.prompt_ids)) + list(row.prompt_ids) for row in rows]
        mask = [[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows]
        random = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
        out = model.generate(
            torch.tensor(padded, device=place),
            attention_mask=torch.tensor(mask, device=place),
            do_sample=params.temperature > 0,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=list(params.stop_ids) or [-1],
            pad_token_id=pad,
            repetition_penalty=params.repetition_penalty,
            **(random | ({"min_p": params.min_p} if params.min_p else {}) if params.temperature > 0 else {}),
        )
        return token_counts(out[:, width:].tolist(), params)

    return sample


def tunix(workspace: Workspace) -> Peer:
    """google-tunix's sampler, which fixes a batch's shapes: prompts and cache are padded to the batch's longest."""
    try:
        from tunix.generate.sampler import CacheConfig, Sampler
        from tunix.models.qwen2 import model as qwen2
        from tunix.models.qwen2.params import create_model_from_safe_tensors
    except ImportError as error:
        raise SsbError(f"--against tunix needs google-tunix: pip install google-tunix ({error})") from None
    config, dtype = workspace.model.config, workspace.dtype
    network = create_model_from_safe_tensors(
        str(workspace.model_folder),
        qwen2.ModelConfig(
            num_layers=config.num_layers,
            vocab_size=config.vocab_size,
            embed_dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            num_kv_heads=config.num_kv_heads,
            rope_theta=int(config.rope_theta),
            norm_eps=config.rms_norm_eps,
            use_tied_embedding=config.tie_word_embeddings,
            dtype=dtype,
            param_dtype=dtype,
        ),
        dtype=dtype,
    )
    samplers: dict[int, Sampler] = {}  # by cache length, so that a shape is compiled once

    def sample(rows: Sequence[Row]) -> list[int]:
        params, width = rows[0].params, max(len(row.prompt_ids) for row in rows)
        width = 1 << width.bit_length()  # the sampler adds a token, and compiles for each length it meets
        length = width + params.max_new_tokens
        if length not in samplers:
            cache = CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
            samplers[length] = Sampler(network, _Numbers(workspace.chat.pad_id), cache)
        out = samplers[length](
            [" ".join(map(str, row.prompt_ids)) for row in rows],
            max_generation_steps=params.max_new_tokens,
            max_prompt_length=width,
            # Without stop ids an id that no token has: an empty list would mean the tokenizer's own.
            eos_tokens=list(params.stop_ids) or [config.vocab_size],
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k or config.vocab_size,
        )
        # The sampler leaves the stop token out, or has none: it counts where the sequence ended before the limit.
        return [min(len(ids) + bool(params.stop_ids), params.max_new_tokens) for ids in out.tokens]

    return sample


@dataclass(frozen=True)
class _Numbers:
    """A tokenizer of texts that are the ids themselves, so that the peer reads exactly our prompts."""

    pad: int

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return self.pad

    def pad_id(self) -> int:
        return self.pad
