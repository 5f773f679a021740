"""The loss menu: how far the student is from the teacher at one reply token.

A loss is one pure function of a chunk of C tokens, about five lines:

    def my_loss(teacher_logp, student_logp, info, *, option=1.0):   # (C, V), (C, V), TokenInfo -> (C,)

Both arguments are log-probabilities at the loss's temperature. Chunking, masking, sharding, temperature, its square and
gradients come from `ssb_jax.losses.chunked`; the teacher gets no gradient. Each token's loss may depend on that token
alone. A function of your own is named in the settings as `module:function` or `path/to/file.py:function`.

Some losses look at the base model under further prompts, the views of `targets.views`: `info.views[name]`, (C, V).

Notation: p_T teacher, p_S student, sg stop-gradient, y the reply token.
"""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssb_jax.config import SsbError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenInfo:
    """What a loss may know of each token of a chunk besides the two distributions."""

    reply_ids: Int[Array, "*C"]  # y, the token that the reply has here
    position: Int[Array, "*C"]  # 0 is the reply's first token
    length: Int[Array, "*C"]  # tokens in this token's reply; 0 marks padding
    views: Mapping[str, Float[Array, "*C V"]] = field(default_factory=dict)  # log-probabilities at the temperature

    def view(self, name: str) -> Float[Array, "*C V"]:
        """The base model's log-probabilities under another prompt.

        Raises:
          SsbError: the targets were made without it.
        """
        if name not in self.views:
            raise SsbError(
                f"the loss looks at the base model under the prompt {name!r}, and the targets have "
                f"{', '.join(self.views) or 'no further prompt'}; add it to targets.views and make the targets again"
            )
        return self.views[name]


# Log-probability of a word that is not there: no probability, and finite in every formula.
ABSENT = -1e30

LogProbs = Float[Array, "C V"]
PerToken = Float[Array, "C"]
Loss = Callable[[LogProbs, LogProbs, TokenInfo], PerToken]


def kl(p: Float[Array, "*C V"], q: Float[Array, "*C V"]) -> Float[Array, "*C"]:
    """KL(p, q) = sum_v p log(p / q) of log-probabilities."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def entropy(p: Float[Array, "*C V"]) -> Float[Array, "*C"]:
    """H(p) = -sum_v p log p of log-probabilities, in nats."""
    return -jnp.sum(jnp.exp(p) * p, axis=-1)


def ssb(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo) -> PerToken:
    """KL(p_T, p_S): the published loss (times T^2), arXiv 2512.05105."""
    return kl(teacher_logp, student_logp)


def reverse_kl(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo) -> PerToken:
    """KL(p_S, p_T): seeks the teacher's modes; MiniLLM, arXiv 2306.08543."""
    return kl(student_logp, teacher_logp)


def kl_mix(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, forward: float = 0.5) -> PerToken:
    """forward * KL(p_T, p_S) + (1 - forward) * KL(p_S, p_T)."""
    return forward * kl(teacher_logp, student_logp) + (1 - forward) * kl(student_logp, teacher_logp)


def jsd(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, beta: float = 0.5) -> PerToken:
    """Generalised Jensen-Shannon: beta KL(p_T, m) + (1 - beta) KL(p_S, m), m = beta p_T + (1 - beta) p_S.

    GKD, arXiv 2306.13649. Divided by beta it tends to KL(p_T, p_S) as beta -> 0, and likewise to the reverse at 1.
    """
    mixture = _log_mixture(teacher_logp, student_logp, beta)
    return beta * kl(teacher_logp, mixture) + (1 - beta) * kl(student_logp, mixture)


def skew_kl(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, alpha: float = 0.1) -> PerToken:
    """KL(p_T, alpha p_T + (1 - alpha) p_S): bounded by -log alpha. DistiLLM, arXiv 2402.03898."""
    return kl(teacher_logp, _log_mixture(teacher_logp, student_logp, alpha))


def skew_reverse_kl(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, alpha: float = 0.1) -> PerToken:
    """KL(p_S, (1 - alpha) p_T + alpha p_S). DistiLLM, arXiv 2402.03898."""
    return kl(student_logp, _log_mixture(student_logp, teacher_logp, alpha))


def clipped_kl(
    teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, tau: float = 0.05, clip: str = "vocab"
) -> PerToken:
    """Forward KL whose large terms are cut off, so that no few tokens rule the gradient. OPSD, arXiv 2601.18734.

    clip="vocab": sum_v min(p_T log(p_T / p_S), tau), as published; can be negative, since only positive terms are cut.
    clip="token": min(KL(p_T, p_S), tau); a token beyond tau gives no gradient.
    """
    terms = jnp.exp(teacher_logp) * (teacher_logp - student_logp)
    match clip:
        case "vocab":
            return jnp.sum(jnp.minimum(terms, tau), axis=-1)
        case "token":
            return jnp.minimum(jnp.sum(terms, axis=-1), tau)
    raise SsbError(f"clipped_kl: clip must be vocab or token, got {clip!r}")


def topk_kl(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, k: int = 100) -> PerToken:
    """Forward KL over the teacher's k most likely words and one bucket for all others. SDPO, arXiv 2601.20802.

    At most the full KL (words are lumped), and equal to it for k = V. Words as likely as the k-th count among the k.
    """
    top = teacher_logp >= jax.lax.top_k(teacher_logp, min(int(k), teacher_logp.shape[-1]))[0][:, -1:]
    terms = jnp.exp(teacher_logp) * (teacher_logp - student_logp)
    rest_t, rest_s = (jax.nn.logsumexp(jnp.where(top, ABSENT, x), axis=-1) for x in (teacher_logp, student_logp))
    return jnp.sum(jnp.where(top, terms, 0.0), axis=-1) + jnp.exp(rest_t) * (rest_t - rest_s)


def entropy_gate(
    teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, tau: float = 0.8, k: int = 16
) -> PerToken:
    """KL(p_S, p_T) + 1[H(p_T) > tau] * topk_kl: covers the teacher where it hesitates. arXiv 2603.07079.

    The paper estimates the first term from the sampled token, and in the second it renormalises the teacher's k words
    but not the student's, which is not zero where they agree. Here the first is the whole KL, the second has a bucket.
    """
    gate = entropy(teacher_logp) > tau
    return kl(student_logp, teacher_logp) + jnp.where(gate, topk_kl(teacher_logp, student_logp, info, k=k), 0.0)


def contrast(
    teacher_logp: LogProbs,
    student_logp: LogProbs,
    info: TokenInfo,
    *,
    strength: float = 0.5,
    scale: float = 0.02,
    on: str = "kl",
) -> PerToken:
    """(1 + strength * tanh(e / scale)) times a loss, e = log p_T(y) - log p_swapped(y). RLCSD, arXiv 2606.11709.

    Tokens count more that the teacher likes better when its hint is right than when it is wrong; what any hint changes
    (style) cancels. The wrong hint is the teacher's own prompt with the right and the wrong answer exchanged (view
    `swapped`); the paper averages over several wrong ones. The reply is verified, so its advantage is +1 and the factor
    is never negative.
    on="kl": KL(p_T, p_S). on="advantage": -log p_S(y), the paper's policy gradient on these tokens, without clipping.
    """
    e = _at(teacher_logp, info.reply_ids) - _at(info.view("swapped"), info.reply_ids)
    factor = jnp.maximum(1 + strength * jnp.tanh(e / scale), 0.0)
    match on:
        case "kl":
            return factor * kl(teacher_logp, student_logp)
        case "advantage":
            return -factor * _at(student_logp, info.reply_ids)
    raise SsbError(f"contrast: on must be kl or advantage, got {on!r}")


def purified(
    teacher_logp: LogProbs,
    student_logp: LogProbs,
    info: TokenInfo,
    *,
    strength: float = 1.0,
    clip: float = 10.0,
    beta: float = 0.5,
) -> PerToken:
    """JSD to p* ~ p_bare exp(strength * d), d = log p_T - log p_hint_only, a PMI target. arXiv 2607.02234.

    What the hint says without the question is taken out, what question and hint say together is left and added to the
    base model's own answer. d is centred over the vocabulary and squashed, clip * tanh(d / clip). Views `bare` (the
    question alone) and `hint_only` (the teacher's prompt without the question).
    """
    exists = teacher_logp > ABSENT / 2
    difference = jnp.where(exists, teacher_logp - info.view("hint_only"), 0.0)
    centred = difference - jnp.sum(difference, axis=-1, keepdims=True) / jnp.sum(exists, axis=-1, keepdims=True)
    target = jax.nn.log_softmax(info.view("bare") + strength * clip * jnp.tanh(centred / clip))
    return jsd(jax.lax.stop_gradient(target), student_logp, info, beta=beta)


def barycentre(
    teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo, *, alpha_max: float = 0.15, beta: float = 10.0
) -> PerToken:
    """KL(p_S, p*), p* ~ p_T^(1-a) sg(p_S)^a, a = alpha_max (2 sigmoid(beta * JSD) - 1). DemoPSD, arXiv 2607.02502.

    The farther the two are apart, the more the target leans to the student. Its gradient is (1 - a) times that of
    KL(p_S, p_T). The paper tunes beta for each domain.
    """
    fixed = jax.lax.stop_gradient(student_logp)
    a = alpha_max * (2 * jax.nn.sigmoid(beta * jsd(teacher_logp, fixed, info)) - 1)[:, None]
    return kl(student_logp, jax.nn.log_softmax((1 - a) * teacher_logp + a * fixed))


def cross_entropy(teacher_logp: LogProbs, student_logp: LogProbs, info: TokenInfo) -> PerToken:
    """-log p_S(y): supervised fine-tuning on the reply, the control. Always at temperature 1."""
    return -_at(student_logp, info.reply_ids)


def _at(logp: LogProbs, ids: Int[Array, "C"]) -> PerToken:
    return jnp.take_along_axis(logp, ids[:, None], axis=-1)[:, 0]


def _log_mixture(a: LogProbs, b: LogProbs, weight: float) -> LogProbs:
    """log(weight * exp(a) + (1 - weight) * exp(b)), 0 < weight < 1."""
    if not 0 < weight < 1:
        raise SsbError(f"a mixture of teacher and student needs a weight between 0 and 1, got {weight}")
    return jnp.logaddexp(a + jnp.log(weight), b + jnp.log1p(-weight))


MENU: dict[str, Loss] = {
    function.__name__: function
    for function in (
        ssb,
        reverse_kl,
        kl_mix,
        jsd,
        skew_kl,
        skew_reverse_kl,
        clipped_kl,
        topk_kl,
        entropy_gate,
        contrast,
        purified,
        barycentre,
        cross_entropy,
    )
}


def resolve_loss(name: str, options: Mapping[str, Any] | None = None) -> Loss:
    """The loss of a setting: a name of `MENU`, `module:function` or `path/to/file.py:function`, with its options bound.

    Raises:
      SsbError: there is no such loss, or it has no such option.
    """
    function = _import_loss(name) if ":" in name else MENU.get(name)
    if function is None:
        near = difflib.get_close_matches(name, MENU, n=1)
        raise SsbError(
            f"distillation.loss: no loss {name!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f". Known: {', '.join(MENU)}, or module:function of your own"
        )
    options = dict(options or {})
    keywords = [p for p in _signature(name, function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [p.name for p in keywords]
    unknown = sorted(set(options) - set(known))
    missing = [p.name for p in keywords if p.default is p.empty and p.name not in options]
    if unknown:
        raise SsbError(f"distillation.loss_options: {name} has no {', '.join(unknown)}; it has {known or 'no options'}")
    if missing:
        raise SsbError(
            f"distillation.loss_options: {name} needs {', '.join(missing)}; set distillation.loss_options.{missing[0]}"
        )
    return functools.partial(function, **options) if options else function


def loss_identity(name: str) -> dict[str, str]:
    """What tells a loss of the user's own from an earlier one of the same name: its file. Empty for the menu's."""
    file = getattr(_import_module(name), "__file__", None) if ":" in name else None
    return {} if file is None else {"loss_file": hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def _import_module(name: str) -> ModuleType:
    """Imports the module of a user's function; modules are also looked for in the current folder."""
    place = name.rpartition(":")[0]
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location("ssb_jax_user_loss", place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(os.getcwd())
    except (Exception, SystemExit) as error:  # whatever a user's file does
        raise SsbError(
            f"distillation.loss: {name!r} cannot be imported ({type(error).__name__}: {error}); expected "
            f"module:function or path/to/file.py:function"
        ) from None


def _import_loss(name: str) -> Loss:
    """A user's function."""
    place, _, attribute = name.rpartition(":")
    function = getattr(_import_module(name), attribute, None)
    if function is None:
        raise SsbError(f"distillation.loss: {name!r}: {place} has no {attribute or 'function named after the colon'}")
    if not callable(function):
        raise SsbError(f"distillation.loss: {name!r} is not a function")
    return function


def _signature(name: str, function: Loss) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # of a function in C
        raise SsbError(
            f"distillation.loss: {name!r} does not say what it takes; expected a Python function of "
            "(teacher_logp, student_logp, info)"
        ) from None
