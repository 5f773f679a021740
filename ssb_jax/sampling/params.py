"""What the engine is asked and what it answers. Knows no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssb_jax.config import SsbError
from ssb_jax.records import StopReason

NOTHING, BROKEN = -1, -2  # in place of a sampled token: the row had ended; its logits were not finite


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a sequence are drawn: transformers' meaning of each name.

    Raises SsbError for a value outside its range.
    """

    temperature: float = 1.0  # 0 = greedy: the filters are ignored, the repetition penalty is not
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    min_p: float = 0.0  # 0 = off
    repetition_penalty: float = 1.0  # 1 = off; over prompt and generated tokens
    max_new_tokens: int = 1024
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_k": (self.top_k >= 0, "at least 0 (0 is off)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1 (0 is off)"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 is off)"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        wrong = [
            f"{name} must be {rule}, got {getattr(self, name)}" for name, (good, rule) in ranges.items() if not good
        ]
        if wrong:
            raise SsbError("sampling: " + "; ".join(wrong))


@dataclass(frozen=True)
class Request:
    """A prompt, and which samples of it are wanted. `id` and the sample's index choose the random numbers."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    samples: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Completion:
    """One finished sequence. `token_ids` are the sampled ids without the stop token."""

    id: str
    sample: int
    token_ids: tuple[int, ...]
    stop: StopReason
    detail: str = ""  # why it failed, when it failed


def check_request(request: Request, *, vocab_size: int, context: int) -> None:
    """Refuses what cannot be generated.

    Args:
      vocab_size: V of the model.
      context: the greatest number of tokens, prompt and answer together.

    Raises:
      SsbError: an empty prompt, one that leaves no room for an answer, an id outside the vocabulary, no samples.
    """
    where, length = f"request {request.id}", len(request.prompt_ids)
    if not length:
        raise SsbError(f"{where}: the prompt is empty; expected at least one token")
    if length >= context:
        raise SsbError(
            f"{where}: the prompt has {length:,} tokens and fills the context of {context:,}; shorten it by at least "
            f"{length - context + 1:,} or leave the question out"
        )
    for what, ids in (("prompt", request.prompt_ids), ("stop", request.params.stop_ids)):
        outside = next((i for i in ids if not 0 <= i < vocab_size), None)
        if outside is not None:
            raise SsbError(
                f"{where}: {what} id {outside} is outside the vocabulary of {vocab_size:,} ids; does the tokenizer "
                f"belong to this model?"
            )
    if not request.samples or min(request.samples) < 0 or len(set(request.samples)) != len(request.samples):
        raise SsbError(f"{where}: expected distinct sample indices from 0, got {request.samples}")


def token_limit(request: Request, context: int) -> int:
    """How many tokens may be sampled: max_new_tokens, or what the prompt leaves of the context."""
    return min(request.params.max_new_tokens, context - len(request.prompt_ids))


def completion(request: Request, sample: int, emitted: Sequence[int]) -> Completion:
    """The completion of a sequence from what was sampled: a stop token, or BROKEN, comes last."""
    last = emitted[-1]
    if last == BROKEN:
        detail = f"the logits of token {len(emitted) - 1} were not finite (NaN or infinite)"
        return Completion(request.id, sample, tuple(emitted[:-1]), StopReason.FAILED, detail)
    if last in request.params.stop_ids:
        return Completion(request.id, sample, tuple(emitted[:-1]), StopReason.END_OF_TURN)
    return Completion(request.id, sample, tuple(emitted), StopReason.LENGTH)
