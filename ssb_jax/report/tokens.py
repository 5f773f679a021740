"""At each reply token: the KL between teacher and student, and what each of them would have said.

The teacher's distribution is the stored target, the student's one forward pass with the adapter over what it reads.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssb_jax.artifacts import digest, read_jsonl, read_manifest, write_atomically
from ssb_jax.chat import Chat
from ssb_jax.config import Config
from ssb_jax.console import note, progress
from ssb_jax.losses.menu import kl
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.records import Pair, parse_json
from ssb_jax.stages.targets import whole_targets
from ssb_jax.store import open_store
from ssb_jax.workspace import Workspace

ALTERNATIVES = 5
_LONGEST = 1024  # reply tokens shown
_CHUNK = 128  # reply tokens that pass through the head at a time
CACHE = "report/tokens.json"


def shaded_tokens(folder: Path, config: Config, *, limit: int) -> dict[str, list[list[Any]]]:
    """Question id -> its reply's tokens as [text, KL, teacher's alternatives, student's], of the first `limit` pairs.

    An alternative is [text, probability]. Kept in the run folder for the next report, where that can be written.

    Raises:
      SsbError: the run has no adapter or targets yet, or the model is not the one that they were made with.
    """
    pairs = read_jsonl(folder / "pairs" / "pairs.jsonl", Pair)[:limit]
    identity, cache = made_from(folder, pairs), folder / CACHE
    if (kept := _kept(cache)) is not None and kept["made_from"] == identity:
        return kept["tokens"]
    workspace = Workspace(config)
    store = open_store(folder / "targets")
    store.check(pairs, workspace.model)
    lora = load_adapter(folder / "distillation" / "adapter", workspace.model.config, mesh=workspace.mesh)
    read, encoding = whole_targets(store, workspace.model, pairs, mesh=workspace.mesh)
    tokens = {}
    with progress("replies shaded", len(pairs)) as advance, use_mesh(workspace.mesh):
        for pair in pairs:
            tokens[pair.question_id] = _shade(pair, read(pair), encoding, lora, workspace)
            advance()
    try:
        write_atomically(cache, json.dumps({"made_from": identity, "tokens": tokens}, ensure_ascii=False))
    except OSError as error:
        note(f"{cache} cannot be written ({error.strerror}); the next report computes it again")
    return tokens


def _kept(cache: Path) -> dict[str, Any] | None:
    """What an earlier report kept; None where there is nothing, or nothing that can be read: it is computed again."""
    try:
        kept = parse_json(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"made_from", "tokens"} <= kept.keys() else None


def made_from(folder: Path, pairs: Sequence[Pair]) -> str:
    """Identifies what the shaded tokens of these pairs depend on."""
    manifests = [read_manifest(folder / stage) for stage in ("targets", "distillation")]
    return digest([[m and m.digest for m in manifests], [pair.question_id for pair in pairs], _LONGEST])


def _shade(
    pair: Pair, targets: Float[np.ndarray, "R X"], encoding: str, lora: Lora, workspace: Workspace
) -> list[list[Any]]:
    reply = pair.reply_ids[:_LONGEST]
    ids = np.asarray(pair.student_prompt_ids + reply, np.int32)
    hidden = _student_states(workspace.model, lora, _padded(ids, 64)[None])
    start = len(pair.student_prompt_ids) - 1
    student = np.asarray(hidden)[0, start : start + len(reply)]
    teacher = targets[: len(reply)]
    rows = []
    for at in range(0, len(reply), _CHUNK):
        part = slice(at, at + _CHUNK)
        found = _compare(workspace.model, _padded(teacher[part], _CHUNK), _padded(student[part], _CHUNK), encoding)
        rows += _rows(reply[part], [np.asarray(x) for x in found], workspace.chat)
    return rows


def _padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros behind the first axis, so that a few compiled shapes do for all replies."""
    return np.pad(x, ((0, -len(x) % multiple), *[(0, 0)] * (x.ndim - 1)))


@jax.jit
def _student_states(model: Transformer, lora: Lora, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model(tokens, positions=positions, lora=lora)[0]


@functools.partial(jax.jit, static_argnames="encoding")
def _compare(
    model: Transformer, teacher: Float[Array, "C X"], student: Float[Array, "C D"], encoding: str
) -> tuple[Array, ...]:
    """KL(teacher, student) of each token at temperature 1, and the likeliest tokens of both."""
    logits = model.logits(teacher) if encoding == "hidden" else teacher.astype(jnp.float32)
    teacher_logp, student_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(model.logits(student))
    best = [x for logp in (teacher_logp, student_logp) for x in jax.lax.top_k(logp, ALTERNATIVES)]
    return kl(teacher_logp, student_logp), *best


def _rows(reply: Sequence[int], found: Sequence[np.ndarray], chat: Chat) -> list[list[Any]]:
    divergence, *best = found

    def alternatives(i: int, logp: np.ndarray, ids: np.ndarray) -> list[list[Any]]:
        return [[_text(chat, int(t)), round(float(np.exp(p)), 4)] for p, t in zip(logp[i], ids[i], strict=True)]

    return [
        [_text(chat, token), round(float(divergence[i]), 4), alternatives(i, *best[:2]), alternatives(i, *best[2:])]
        for i, token in enumerate(reply)
    ]


def _text(chat: Chat, token: int) -> str:
    return chat.decode([token], keep_special=True)
