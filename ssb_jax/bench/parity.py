"""Whether our trainer and the published one in PyTorch do the same: every step's numbers, and what the adapters answer.

    ssb bench parity runs/smol --steps 48

Both train on the pairs of a finished run, from the same first adapter, in the same order, with the run's settings.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from ssb_jax.artifacts import read_jsonl, write_jsonl
from ssb_jax.bench.distill import in_process, run_pairs, with_settings
from ssb_jax.bench.machine import machine
from ssb_jax.config import Config, SsbError
from ssb_jax.model.adapters import load_adapter
from ssb_jax.records import Question
from ssb_jax.sampling import Request, SamplingParams, generate
from ssb_jax.workspace import Workspace


def bench_parity(
    config: Config, folder: Path, *, steps: int = 48, prompts: int = 20, tokens: int = 64
) -> dict[str, Any]:
    """Trains both sides for at least `steps` steps (whole epochs) and lets both adapters answer.

    Args:
      folder: the run whose pairs and questions are taken.
      prompts: how many of its last questions both adapters answer greedily, with up to `tokens` tokens.

    Returns:
      The largest relative difference of losses and of gradient norms over the steps, and how many answers are equal
      token by token.
    """
    pairs = run_pairs(folder)
    epochs = math.ceil(steps / math.ceil(len(pairs) / config.distillation.batch_size))
    config = with_settings(config, distillation={"epochs": epochs, "tensorboard": False})
    with tempfile.TemporaryDirectory(prefix="ssb-bench-") as scratch:
        work = Path(scratch)
        write_jsonl(work / "pairs.jsonl", pairs)
        in_process("targets", config, work)
        ours, theirs = (in_process(side, config, work)["rows"] for side in ("ours", "torch"))
        if len(ours) != len(theirs):
            raise SsbError(f"we took {len(ours)} steps and the published trainer {len(theirs)}")
        answers = _answers(Workspace(config), folder, work, prompts=prompts, tokens=tokens)

    def difference(name: str) -> float:
        return max(abs(a[name] / b[name] - 1) for a, b in zip(ours, theirs, strict=True))

    return {
        "bench": "parity",
        "settings": {
            "model": config.model.path,
            "pairs": len(pairs),
            "steps": len(ours),
            "max_new_tokens": tokens,
            **config.distillation.model_dump(
                include={"batch_size", "learning_rate", "temperature", "packing", "remat"}
            ),
        },
        "machine": machine(("jax", "flax", "torch", "peft", "transformers")),
        "loss": {
            "first": [rows[0]["loss"] for rows in (ours, theirs)],
            "last": [rows[-1]["loss"] for rows in (ours, theirs)],
        },
        "loss_difference": difference("loss"),
        "grad_norm_difference": difference("grad_norm"),
        "answers": answers,
        "steps": [
            {name: [a[name], b[name]] for name in ("loss", "grad_norm")} for a, b in zip(ours, theirs, strict=True)
        ],
    }


def _answers(workspace: Workspace, folder: Path, work: Path, *, prompts: int, tokens: int) -> dict[str, int]:
    """How the greedy answers of the two adapters, and of the base, compare."""
    questions = read_jsonl(folder / "questions" / "questions.jsonl", Question)[-prompts:]
    params = SamplingParams(
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_new_tokens=tokens,
        stop_ids=workspace.chat.stop_ids,
    )
    requests = [
        Request(q.id, tuple(workspace.chat.encode_prompt(workspace.prompts.student_messages(q.question))), params)
        for q in questions
    ]
    model, mesh = workspace.model, workspace.mesh

    def answer(lora) -> dict[str, tuple[int, ...]]:
        settings = {"seed": 0, "lora": lora, "settings": workspace.config.engine, "mesh": mesh}
        return {done.id: done.token_ids for done in generate(model, requests, **settings)}

    base = answer(None)
    ours, theirs = (
        answer(load_adapter(work / side / "adapter", model.config, mesh=mesh)) for side in ("ours", "torch")
    )
    return {
        "prompts": len(requests),
        "same": sum(ours[r.id] == theirs[r.id] for r in requests),
        "unlike_the_base": sum(ours[r.id] != base[r.id] for r in requests),
    }
