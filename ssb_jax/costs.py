"""What it took to make an adapter: questions, generated tokens, FLOPs, device time. Evaluation is not part of it.

FLOPs are counted from shapes and token counts, 2 for a multiplication with its addition, as the method needs them:
nothing for padding, for what a backward pass computes again (remat), for norms, softmax, rotary angles, the optimizer.

    generation   every prompt once, however many samples share it; the head once a sampled token
    scoring      one forward pass; the head on the scored tokens where probabilities are wanted
    training     forward, and backward with respect to activations and adapter: the frozen weights get no gradient

A run that is not made by the stages of `ssb run` (a baseline) says what it spent in its folder's `cost.json`, a `Cost`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssb_jax.artifacts import Manifest, read_jsonl, read_manifest, training_folder, write_atomically
from ssb_jax.config import Config, Lora, SsbError, load_config
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import lora_shapes
from ssb_jax.model.weights import read_config, resolve_model
from ssb_jax.records import Pair, Rollout, Trial, parse_json

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What one adapter cost.

    Attributes:
      questions: different questions that the method looked at, those it then dropped included.
      generated_tokens: sampled, whether used or not.
      flops: see the module's docstring.
      device_seconds: seconds times devices.
    """

    questions: int
    generated_tokens: int
    flops: float
    device_seconds: float


def generation_flops(config: ModelConfig, requests: Iterable[tuple[int, Sequence[int]]]) -> float:
    """FLOPs of sampling.

    Args:
      requests: of each prompt, its tokens and those of each of its answers.
    """
    total = 0.0
    for prompt, replies in requests:
        total += _body(config, prompt)
        total += sum(_body(config, reply, after=prompt) + _head(config, reply) for reply in replies)
    return total


def scoring_flops(config: ModelConfig, sequences: Iterable[tuple[int, int]], *, head: bool = False) -> float:
    """FLOPs of one forward pass over each (prompt tokens, reply tokens); with `head`, up to the reply's logits."""
    return sum(_body(config, prompt + reply) + (_head(config, reply) if head else 0.0) for prompt, reply in sequences)


def training_flops(
    config: ModelConfig, sequences: Iterable[tuple[int, int]], *, lora: Lora, teacher_head: bool = True
) -> float:
    """FLOPs of one forward and backward pass over each (prompt tokens, reply tokens).

    Args:
      teacher_head: whether stored states of the teacher pass through the head as well.
    """
    sizes = lora_shapes(config)
    adapter = 2 * config.num_layers * lora.rank * sum(sum(sizes[module]) for module in lora.target_modules)
    heads = 3 if teacher_head else 2  # the student's forward and backward, and the teacher's
    return sum(
        2 * _linear(config, prompt + reply)
        + 3 * _attention(config, prompt + reply)  # both factors of its products have a gradient
        + 3 * adapter * (prompt + reply)
        + heads * _head(config, reply)
        for prompt, reply in sequences
    )


def run_cost(folder: Path, *, devices: int = 1) -> Cost | None:
    """What the adapter of a run folder cost; None while it is not trained.

    Args:
      devices: on how many the stages ran; their manifests say seconds. A stage that was cut off counts from its last
        start, distillation from its first.
    """
    recorded = read_cost(folder)
    if recorded is not None or not (folder / "config.yaml").exists():
        return recorded
    config = load_config(folder / "config.yaml")
    trained = read_manifest(training_folder(folder, config))
    if trained is None:
        return None
    shape = read_config(resolve_model(config.model.path, config.model.revision))
    if config.method == "grpo":
        return _grpo_cost(folder, config, shape, seconds=devices * float(trained.counts["seconds"]))
    if config.method == "on-policy":
        return _on_policy_cost(folder, config, shape, seconds=devices * _seconds(folder, trained, targets=False))
    pairs = read_jsonl(folder / "pairs" / "pairs.jsonl", Pair)
    rollouts = _generated(folder, "rollouts")
    asked = [*rollouts, *_generated(folder, "teaching")]
    read_by_teacher = [(len(pair.teacher_prompt_ids), len(pair.reply_ids)) for pair in pairs]
    learns_text = config.method in ("sft", "rft")  # what targets they have serve their logs alone
    dense = config.method == "ssb-torch" or config.targets.encoding == "logits"
    flops = generation_flops(shape, asked) + training_flops(
        shape, _seen(pairs, config), lora=config.lora, teacher_head=not (learns_text or dense)
    )
    if not learns_text:
        flops += scoring_flops(shape, read_by_teacher, head=dense)
    return Cost(
        questions=len(rollouts),
        generated_tokens=sum(sum(replies) for _, replies in asked),
        flops=flops,
        device_seconds=devices * _seconds(folder, trained, targets=not learns_text),
    )


def read_cost(folder: Path) -> Cost | None:
    """The recorded cost of a run folder, None where there is none."""
    path = folder / COST
    if not path.exists():
        return None
    try:
        return Cost(**parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SsbError(f"{path}: expected {', '.join(Cost.__dataclass_fields__)} as JSON; {error}") from None


def write_cost(folder: Path, cost: Cost) -> None:
    """Records what a run cost that the stages of `ssb run` did not make."""
    write_atomically(folder / COST, json.dumps(asdict(cost), indent=1))


def _body(config: ModelConfig, tokens: int, *, after: int = 0) -> float:
    """All layers on so many tokens that come after others, whose keys and values are there."""
    return _linear(config, tokens) + _attention(config, tokens, after=after)


def _linear(config: ModelConfig, tokens: int) -> float:
    """The products with the layers' weights."""
    D, F = config.hidden_size, config.intermediate_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    return 2.0 * config.num_layers * (2 * D * N * H + 2 * D * K * H + 3 * D * F) * tokens


def _attention(config: ModelConfig, tokens: int, *, after: int = 0) -> float:
    """Scores and weighted sums: token t of them sees `after + t` others and itself."""
    seen = tokens * after + tokens * (tokens + 1) / 2
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * seen


def _head(config: ModelConfig, tokens: int) -> float:
    return 2.0 * config.hidden_size * config.vocab_size * tokens


def _generated(folder: Path, stage: str) -> list[tuple[int, list[int]]]:
    """Tokens of each prompt and of its answers, of all blocks."""
    asked: dict[str, tuple[int, list[int]]] = {}
    for path in sorted(folder.glob(f"blocks/*/{stage}/part-*.jsonl")):
        for row in read_jsonl(path, Rollout):
            asked.setdefault(row.question_id, (row.prompt_tokens, []))[1].append(len(row.token_ids))
    return list(asked.values())


def _seen(pairs: Sequence[Pair], config: Config) -> list[tuple[int, int]]:
    """(prompt, reply) tokens of all epochs, cut to length as training cuts them."""
    limit = config.distillation.max_length
    lengths = []
    for pair in pairs:
        reply = min(len(pair.reply_ids), limit - 1)
        lengths.append((min(len(pair.student_prompt_ids), limit - reply), reply))
    return lengths * config.distillation.epochs


def _grpo_cost(folder: Path, config: Config, shape: ModelConfig, *, seconds: float) -> Cost:
    """Answers, the reference's pass over them (and the policy's before its second update), the updates."""
    settings, asked = config.grpo, []
    for path in sorted((training_folder(folder, config) / "trials").glob("step-*.jsonl")):
        step: dict[str, tuple[int, list[int]]] = {}
        for row in read_jsonl(path, Trial):
            step.setdefault(row.question_id, (row.prompt_tokens, []))[1].append(len(row.token_ids))
        asked.append(step)
    answers = [(prompt, reply) for step in asked for prompt, replies in step.values() for reply in replies]
    flops = generation_flops(shape, (request for step in asked for request in step.values()))
    flops += scoring_flops(shape, answers, head=True) * (1 if settings.updates == 1 else 2)
    flops += training_flops(shape, answers, lora=config.lora, teacher_head=False) * settings.updates
    return Cost(
        questions=len({key for step in asked for key in step}),
        generated_tokens=sum(reply for _, reply in answers),
        flops=flops,
        device_seconds=seconds,
    )


def _on_policy_cost(folder: Path, config: Config, shape: ModelConfig, *, seconds: float) -> Cost:
    """Rollouts for the hints, answers, the teacher's pass over them after the hinted prompt, the updates."""
    steps = sorted((training_folder(folder, config) / "answers").glob("step-*.jsonl"))
    asked = _generated(folder, "rollouts")
    for path in steps:
        step: dict[str, tuple[int, list[int]]] = {}
        for pair in read_jsonl(path, Pair):
            prompt, reply = len(pair.student_prompt_ids), len(pair.reply_ids) - pair.teacher_stop
            step.setdefault(pair.question, (prompt, []))[1].append(reply)
        asked += step.values()
    pairs = [pair for path in steps for pair in read_jsonl(path, Pair)]
    lengths = [(len(pair.student_prompt_ids), len(pair.reply_ids)) for pair in pairs]
    flops = generation_flops(shape, asked) + training_flops(shape, lengths, lora=config.lora)
    flops += scoring_flops(shape, [(len(pair.teacher_prompt_ids), len(pair.reply_ids)) for pair in pairs])
    return Cost(
        questions=len(_generated(folder, "rollouts")),
        generated_tokens=sum(sum(replies) for _, replies in asked),
        flops=flops,
        device_seconds=seconds,
    )


def _seconds(folder: Path, trained: Manifest, *, targets: bool) -> float:
    stages = [read_manifest(path.parent) for path in folder.glob("blocks/*/*/manifest.json")]
    if targets:
        stages.append(read_manifest(folder / "targets"))
    # PyTorch's trainer runs the teacher too, between its start and its first step.
    training = trained.seconds if "trainer" in trained.made_from else float(trained.counts["seconds"])
    return sum(manifest.seconds for manifest in stages if manifest is not None) + training
