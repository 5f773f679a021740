"""Whether a loss can be had from the targets that there will be, said before anything is computed."""

import functools
import inspect
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssb_jax.config import SsbError
from ssb_jax.losses.chunked import make_objective
from ssb_jax.losses.menu import Loss, TokenInfo, cross_entropy, topk_kl


def check_loss(
    loss: Loss,
    *,
    encoding: str,
    top_k: int = 0,
    views: Sequence[str] = (),
    kl_weight: float = 1.0,
    vocab_size: int | None = None,
) -> None:
    """Traces the objective on a made-up chunk; nothing is computed.

    Args:
      vocab_size: the model's; a user's loss may count on it. None: any.

    Raises:
      SsbError: `topk` targets do not determine the loss, it asks for a view that is not stored, it fails, or it does
        not return one real number a token.
    """
    if encoding == "topk" and kl_weight > 0:
        _check_topk(loss, top_k)
    if encoding in ("topk", "none") and views:
        raise SsbError(
            f"targets.views {list(views)} need whole distributions on disk; set targets.encoding to hidden or logits "
            f"instead of {encoding}"
        )
    C, V = 17, vocab_size or 1024
    logits, tokens = jax.ShapeDtypeStruct((C, V), jnp.float32), jax.ShapeDtypeStruct((C,), jnp.int32)
    info = TokenInfo(tokens, tokens, tokens, dict.fromkeys(views, logits))
    try:
        jax.eval_shape(make_objective(loss, kl_weight=kl_weight), logits, logits, info)
    except SsbError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function does
        raise SsbError(_failure(loss, error)) from error


def _failure(loss: Loss, error: BaseException) -> str:
    """What went wrong in a loss, and on which of its lines."""
    function, _ = _function_and_options(loss)
    file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    first, *_ = str(error).strip().splitlines() or [""]
    name, where = getattr(function, "__name__", function), f" in {file}, line {lines[-1]}" if lines else ""
    return (
        f"the loss {name} fails{where}: {type(error).__name__}: {first.rstrip('.')}; expected a function of "
        "(teacher_logp (C, V), student_logp (C, V), info), its options keyword-only, that jax.jit can trace: jax.numpy "
        "on whole arrays, no Python numbers from them"
    )


def _check_topk(loss: Loss, top_k: int) -> None:
    function, options = _function_and_options(loss)
    if function is cross_entropy:
        return
    if function is not topk_kl:
        raise SsbError(
            f"the loss {getattr(function, '__name__', function)} needs the teacher's whole distribution, and "
            "targets.encoding topk keeps only the most likely words and the mass of all others; take distillation.loss "
            "topk_kl or cross_entropy, or targets.encoding hidden or logits"
        )
    k = options.get("k", 100)
    if k > top_k:
        raise SsbError(
            f"topk_kl with k = {k} needs at least as many stored words, targets.top_k is {top_k}; raise it, or lower "
            "distillation.loss_options.k"
        )


def _function_and_options(loss: Loss) -> tuple[Loss, Mapping[str, Any]]:
    return (loss.func, loss.keywords) if isinstance(loss, functools.partial) else (loss, {})
