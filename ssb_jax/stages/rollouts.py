"""Questions -> K rollouts each, sampled from the base model on the bare question."""

from collections.abc import Sequence
from pathlib import Path

from ssb_jax.answering import answer
from ssb_jax.records import Question
from ssb_jax.workspace import Workspace


def run(questions: Sequence[Question], folder: Path, *, workspace: Workspace, description: str = "rollouts") -> dict:
    """Appends the rollouts to `folder`, continuing what is there; returns counts by stop reason."""
    config = workspace.config
    prompts = {q.id: workspace.chat.encode_prompt(workspace.prompts.student_messages(q.question)) for q in questions}
    return answer(
        prompts,
        num_samples=config.rollouts.num_samples,
        params=workspace.sampling_params(config.rollouts),
        folder=folder,
        workspace=workspace,
        seed=config.seed,
        description=description,
        attempts=config.rollouts.attempts,
    )
