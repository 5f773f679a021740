"""The published trainer in PyTorch: transformers, peft and dense teacher logits, on our pairs, order and first adapter.

As published (design: arXiv 2512.05105): right-padded batches, a teacher tensor (B, T, V) filled with zeros outside of
the reply, student logits at every position, softmax over all of them, then the reply's rows of both; kl_div with
reduction `batchmean`, times T^2; AdamW, linear decay, clipping. Writes what `stages.distillation` writes: metrics.jsonl
and `adapter/` in PEFT's format. It has no checkpoints; an interrupted run starts again.

The weights are in the run's dtype, the adapter and its optimizer in float32. On a GPU where torch sees one.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ssb_jax.config import Config, Distillation, SsbError
from ssb_jax.console import note, progress
from ssb_jax.metrics import open_metrics
from ssb_jax.model.adapters import save_adapter
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import init_lora
from ssb_jax.model.weights import read_json
from ssb_jax.records import Pair
from ssb_jax.store import TargetStore, open_store
from ssb_jax.training.batches import Example, cut, data_order
from ssb_jax.training.step import run_keys
from ssb_jax.workspace import Workspace

try:
    import peft
    import torch
    import transformers
except ImportError as error:
    raise SsbError(f"the PyTorch baseline needs torch and peft: pip install 'ssb-jax[torch]' ({error})") from None

# What the published trainer has not: setting -> the value that switches it off.
PUBLISHED = {
    "loss": "ssb",
    "reduction": "token",
    "stop_weight": 1.0,
    "skip_first": 0,
    "ignore_special_tokens": False,
    "last_weight": 1.0,
    "rise": None,
    "fall": None,
    "select": "all",
}
Logits = Callable[[Pair], "torch.Tensor"]


def run(
    pairs: Sequence[Pair], *, config: Config, folder: Path, workspace: Workspace, store_folder: Path | None = None
) -> dict:
    """Trains an adapter on pairs; `folder` gets metrics.jsonl and `adapter/`.

    Args:
      workspace: its `model_folder`, `dtype` and `chat.pad_id` are used; the JAX model is not loaded.
      store_folder: stored targets to learn from. None: the teacher is run first, its logits kept on disk meanwhile.

    Returns:
      Counts as those of `stages.distillation.run`.

    Raises:
      SsbError: a setting that the published trainer does not have, no pairs, missing targets, a loss not finite.
    """
    settings = config.distillation
    refuse_unpublished(settings)
    if config.model.quantization != "none":
        raise SsbError("the published trainer has the whole base; set model.quantization none")
    if not pairs:
        raise SsbError("distillation: there are no pairs; run `ssb teach` until there are some")
    folder.mkdir(parents=True, exist_ok=True)
    student = load_student(config, workspace, folder / "initial_adapter")
    limit = min(settings.max_length, student.config.max_position_embeddings)
    examples = [cut(pair, limit) for pair in pairs]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".teacher_logits.") as scratch:
        if store_folder is None:
            logits = dense_teacher(student, pairs, Path(scratch))
        else:
            logits = stored_teacher(student, pairs, open_store(store_folder))
        with open_metrics(folder, tensorboard=settings.tensorboard) as log:
            rows = []
            for row in distil(
                student, examples, logits, settings=settings, seed=config.seed, pad_id=workspace.chat.pad_id
            ):
                log.write(row["step"], {name: value for name, value in row.items() if name != "step"})
                rows.append(row)
    _save(student, folder / "adapter")
    return {
        "steps": len(rows),
        "examples": len(examples),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "reply_tokens": int(sum(row["reply_tokens"] for row in rows)),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "cut_prompts": sum(len(e.prompt) < len(e.pair.student_prompt_ids) for e in examples),
        "cut_replies": sum(len(e.reply) < len(e.pair.reply_ids) for e in examples),
    }


def refuse_unpublished(settings: Distillation) -> None:
    """Raises SsbError listing the settings that this trainer would have to ignore."""
    other = [f"{name}={getattr(settings, name)!r}" for name, off in PUBLISHED.items() if getattr(settings, name) != off]
    if other:
        raise SsbError(
            f"the published trainer has no distillation.{', '.join(other)}; set them to "
            f"{', '.join(f'{name}={off!r}' for name, off in PUBLISHED.items())}"
        )


def load_student(config: Config, workspace: Workspace, adapter: Path) -> "peft.PeftModel":
    """The base model with the very adapter that our own trainer starts from, which is written to `adapter`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base_folder = workspace.model_folder
    shape = ModelConfig.from_json_dict(read_json(base_folder / "config.json", "a checkpoint needs one"))
    save_adapter(init_lora(shape, config.lora, key=run_keys(config.seed)[0]), adapter, base=config.model.path)
    base = transformers.Qwen2ForCausalLM.from_pretrained(base_folder, dtype=getattr(torch, workspace.dtype.name))
    student = peft.PeftModel.from_pretrained(base.to(device), adapter, is_trainable=True)
    if config.distillation.remat == "full":  # it knows no `dots`
        # Renamed in transformers 5.23, where the old name warns.
        enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return student


def dense_teacher(student: "peft.PeftModel", pairs: Sequence[Pair], folder: Path) -> Logits:
    """The base reads each hinted prompt and reply; its logits for the reply go to `folder`, float32, one file a pair.

    Returns:
      pair -> logits (R, V).
    """
    paths = {pair.question_id: folder / f"teacher_logits_{i}.npy" for i, pair in enumerate(pairs)}
    student.eval()
    with torch.no_grad(), student.disable_adapter(), progress("teacher logits", len(pairs)) as advance:
        for pair in pairs:
            ids = torch.tensor([pair.teacher_prompt_ids + pair.reply_ids], device=student.device)
            # The state at len(prompt) - 1 + t predicts reply token t; the last state predicts what follows the reply.
            logits = student(input_ids=ids, logits_to_keep=len(pair.reply_ids) + 1, use_cache=False).logits[0, :-1]
            np.save(paths[pair.question_id], logits.float().cpu().numpy())
            advance()
    return lambda pair: torch.from_numpy(np.load(paths[pair.question_id]))


def stored_teacher(student: "peft.PeftModel", pairs: Sequence[Pair], store: TargetStore) -> Logits:
    """pair -> logits (R, V) from our target store; hidden states go through the head."""
    missing = [pair.question_id for pair in pairs if pair.question_id not in store.entries]
    if missing:
        raise SsbError(
            f"{len(missing)} pairs have no targets in {store.folder}, the first {missing[0]}; run `ssb targets`"
        )
    encoding = store.info.encoding
    if encoding not in ("hidden", "logits"):
        raise SsbError(f"the published trainer needs hidden states or logits; {store.folder} holds {encoding}")
    head = student.get_output_embeddings().weight

    def read(pair: Pair) -> "torch.Tensor":
        values = torch.from_numpy(store.read(pair).astype(np.float32))
        if encoding == "logits":
            return values
        with torch.no_grad():
            return (values.to(head.device, head.dtype) @ head.T).float()

    return read


def distil(
    student: "peft.PeftModel",
    examples: Sequence[Example],
    logits: Logits,
    *,
    settings: Distillation,
    seed: int,
    pad_id: int,
) -> Iterator[dict[str, float]]:
    """Trains the student in place; gives the numbers of each step as it is done."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    order = data_order(len(examples), batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    schedule = transformers.get_scheduler(name, optimizer, settings.warmup_steps, len(order))
    student.train()
    with progress("torch distillation", len(order)) as advance:
        for number, members in enumerate(order, 1):
            start, rate = time.monotonic(), schedule.get_last_lr()[0]
            batch = collate([examples[i] for i in members], logits, pad_id=pad_id, width=student.config.vocab_size)
            batch = {key: value.to(student.device) for key, value in batch.items()}
            optimizer.zero_grad()
            loss = published_loss(student, batch, temperature=settings.temperature, kl_weight=settings.kl_weight)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
            values = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
            if not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"]):
                names = ", ".join(examples[i].pair.question_id for i in members)
                raise SsbError(f"step {number}: the loss of {names} is not finite ({values}); lower the learning rate")
            optimizer.step()
            schedule.step()
            seconds, replies = time.monotonic() - start, [len(examples[i].reply) for i in members]
            advance(loss=values["loss"])
            yield {
                "step": number,
                **values,
                "epoch": number * settings.epochs / len(order),
                "reply_tokens": sum(replies),
                "reply_length": sum(replies) / len(replies),
                "tokens_per_second": sum(examples[i].tokens for i in members) / seconds,
                "seconds": seconds,
            }


def collate(examples: Sequence[Example], logits: Logits, *, pad_id: int, width: int) -> dict[str, "torch.Tensor"]:
    """input_ids, attention_mask, labels (B, T), -100 outside of the reply; teacher_logits (B, T, V), zeros there."""
    B, T = len(examples), max(example.tokens for example in examples)
    batch = {
        "input_ids": torch.full((B, T), pad_id, dtype=torch.long),
        "attention_mask": torch.zeros(B, T, dtype=torch.long),
        "labels": torch.full((B, T), -100, dtype=torch.long),
        "teacher_logits": torch.zeros(B, T, width),
    }
    for row, example in enumerate(examples):
        batch["input_ids"][row, : example.tokens] = torch.tensor(example.prompt + example.reply)
        batch["attention_mask"][row, : example.tokens] = 1
        predicting = slice(len(example.prompt) - 1, example.tokens - 1)
        batch["labels"][row, predicting] = torch.tensor(example.reply)
        batch["teacher_logits"][row, predicting] = logits(example.pair)[: len(example.reply)].cpu()
    return batch


def published_loss(
    student: "peft.PeftModel", batch: Mapping[str, "torch.Tensor"], *, temperature: float, kl_weight: float
) -> "torch.Tensor":
    """kl_weight * T^2 * KL(p_T, p_S) at temperature T + (1 - kl_weight) * cross-entropy, means over reply tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    student_logits = student(**inputs, use_cache=False).logits.float()
    reply = batch["labels"] != -100
    loss = torch.zeros((), device=student_logits.device)
    if kl_weight > 0:
        student_logp = torch.log_softmax(student_logits / temperature, dim=-1)
        with torch.no_grad():
            teacher_p = torch.softmax(batch["teacher_logits"] / temperature, dim=-1)
        kl = torch.nn.functional.kl_div(student_logp[reply], teacher_p[reply], reduction="batchmean")
        loss = loss + kl_weight * temperature**2 * kl
    if kl_weight < 1:
        cross_entropy = torch.nn.functional.cross_entropy(student_logits[reply], batch["labels"][reply])
        loss = loss + (1 - kl_weight) * cross_entropy
    return loss


def _save(student: "peft.PeftModel", folder: Path) -> None:
    """The adapter's folder appears with all its files, or not at all."""
    parts = folder.with_name(f".{folder.name}.part")
    for leftover in (parts, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    student.save_pretrained(parts, save_embedding_layers=False)  # they are the base's
    (parts / "README.md").unlink(missing_ok=True)  # peft's model card, empty
    parts.rename(folder)
    note(f"adapter: {folder}")
