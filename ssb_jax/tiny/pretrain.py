"""Pretrains the tiny model from random weights; the defaults are the settings of the shipped checkpoint.

Next-token cross-entropy on the replies of corpus.py's dialogues (and the token that ends them); prompts are read but
not learnt to be written. Dialogues are packed several to a row, each seeing only itself. Deterministic for a seed, up
to the hardware's arithmetic. Run it with `ssb pretrain-tiny --out DIR`.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ssb_jax.chat import Chat, load_chat
from ssb_jax.model.transformer import ModelConfig, Transformer
from ssb_jax.model.weights import save_model
from ssb_jax.tiny.corpus import HINTED_SHARE, SLIP_RATE, Dialogue, draw_dialogues
from ssb_jax.tiny.tokenizer import END_OF_TEXT, TURN_END, build_tokenizer, save_tokenizer

MAX_LENGTH = 1024
_VOCABULARY_DIALOGUES = 5000
"""Dialogues whose pieces make the vocabulary: enough to hold every word of the generator many times over."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed dialogues. `segment_ids` number a row's dialogues from 1, 0 is padding; `learnt` marks reply tokens."""

    tokens: Int[np.ndarray | Array, "B T"]
    positions: Int[np.ndarray | Array, "B T"]
    segment_ids: Int[np.ndarray | Array, "B T"]
    learnt: Bool[np.ndarray | Array, "B T"]


def pretrain_tiny(
    out: Path,
    *,
    steps: int = 1000,
    schedule_steps: int = 1500,
    batch_size: int = 24,
    row_length: int = 320,
    learning_rate: float = 3e-3,
    warmup_steps: int = 100,
    seed: int = 0,
    width: int = 128,
    num_layers: int = 4,
    slip_rate: float = SLIP_RATE,
    hinted_share: float = HINTED_SHARE,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains and writes a checkpoint folder in Qwen2 format.

    Args:
      out: folder to write; made if missing.
      steps: optimizer steps. The shipped model stops after 1000, while it still errs: the pipeline needs a base that is
        right often but not always.
      schedule_steps: length of the learning rate's schedule, which `steps` may cut short.
      batch_size: rows in a step, each `row_length` tokens of packed dialogues.
      learning_rate: peak of a cosine schedule down to 1 % of it, after `warmup_steps` of linear warm-up.
      on_step: called with the step and its loss; None prints progress on stderr.

    Returns:
      The loss of every step.
    """
    started = time.monotonic()
    corpus = {"seed": seed, "slip_rate": slip_rate, "hinted_share": hinted_share}
    chat = _write_tokenizer(out, islice(draw_dialogues(**corpus), _VOCABULARY_DIALOGUES))
    config = _write_config(out, chat, width=width, num_layers=num_layers)
    model = Transformer(config, rngs=nnx.Rngs(seed), dtype=jnp.float32)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(warmup_steps, schedule_steps // 2), schedule_steps, end_value=learning_rate / 100
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    batches = pack_dialogues(draw_dialogues(**corpus), chat, batch_size=batch_size, row_length=row_length)
    model, losses = _train(model, optimizer, islice(batches, steps), on_step or _progress(steps))
    save_model(model, out, source_folder=out)
    card = {
        "made_by": "ssb pretrain-tiny",
        **{"steps": steps, "schedule_steps": schedule_steps, "warmup_steps": warmup_steps},
        **{"learning_rate": learning_rate, "batch_size": batch_size, "row_length": row_length, **corpus},
        "parameters": sum(p.size for p in jax.tree.leaves(nnx.state(model))),
        "final_loss": round(float(np.mean(losses[-50:])), 4),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return losses


def pack_dialogues(dialogues: Iterator[Dialogue], chat: Chat, *, batch_size: int, row_length: int) -> Iterator[Batch]:
    """Fills rows first-fit; a batch is done when a dialogue fits in none of its rows."""
    rows: list[list[tuple[list[int], int]]] = [[] for _ in range(batch_size)]
    for dialogue in dialogues:
        prompt = chat.encode_prompt(dialogue.messages)
        tokens = [*prompt, *chat.encode_text(dialogue.reply), chat.end_of_turn_id]
        if len(tokens) > row_length:
            raise ValueError(f"row_length must hold the longest dialogue, {len(tokens)} tokens; got {row_length}")
        room = (row for row in rows if sum(len(t) for t, _ in row) + len(tokens) <= row_length)
        row = next(room, None)
        if row is None:
            yield _to_batch(rows, row_length, chat.pad_id)
            rows = [[] for _ in range(batch_size)]
            row = rows[0]
        row.append((tokens, len(prompt)))


def _to_batch(rows: list[list[tuple[list[int], int]]], row_length: int, pad_id: int) -> Batch:
    shape = (len(rows), row_length)
    tokens, positions = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    segment_ids, learnt = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for b, row in enumerate(rows):
        start = 0
        for segment, (ids, prompt_length) in enumerate(row, start=1):
            end = start + len(ids)
            tokens[b, start:end] = ids
            positions[b, start:end] = np.arange(len(ids))
            segment_ids[b, start:end] = segment
            learnt[b, start + prompt_length : end] = True
            start = end
    return Batch(tokens, positions, segment_ids, learnt)


def next_token_loss(model: Transformer, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy (nats) of the learnt tokens, each predicted from the tokens of its own dialogue before it."""
    hidden, _ = model(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
    losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden[:, :-1]), batch.tokens[:, 1:])
    learnt = batch.learnt[:, 1:]
    return jnp.sum(losses, where=learnt) / jnp.sum(learnt)


def _train(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    batches: Iterator[Batch],
    on_step: Callable[[int, float], None],
) -> tuple[Transformer, list[float]]:
    graph, params = nnx.split(model)

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(lambda p: next_token_loss(nnx.merge(graph, p), batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for index, batch in enumerate(batches):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        on_step(index, losses[-1])
    return nnx.merge(graph, params), losses


def _progress(steps: int) -> Callable[[int, float], None]:
    started = time.monotonic()

    def show(index: int, loss: float) -> None:
        if index % 20 == 0 or index == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {index + 1}/{steps}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True)

    return show


def _write_tokenizer(out: Path, dialogues: Iterator[Dialogue]) -> Chat:
    texts = {"system\n", "user\n", "assistant\n"}
    for dialogue in dialogues:
        texts |= {message["content"] for message in dialogue.messages} | {dialogue.reply}
    save_tokenizer(build_tokenizer(texts), out, max_length=MAX_LENGTH)
    return load_chat(out)


def _write_config(out: Path, chat: Chat, *, width: int, num_layers: int) -> ModelConfig:
    """config.json and generation_config.json of a Qwen2 model: heads of size 32, two query heads to a key head."""
    pad_id, stop_id = (chat.tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TEXT, TURN_END))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": chat.vocabulary_size,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "eos_token_id": stop_id,
        "pad_token_id": pad_id,
    }
    generation = {"do_sample": True, "eos_token_id": [stop_id, pad_id], "pad_token_id": pad_id}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return ModelConfig.from_json_dict(config)
