"""The views of `targets.views`: the pairs again, with other prompts before the same replies.

bare       the student's prompt: what the base model would say without any hint
swapped    the hinted prompt with the right and the wrong answer exchanged
hint_only  the hinted prompt without the question
"""

from collections.abc import Sequence
from dataclasses import replace

from ssb_jax.artifacts import read_jsonl
from ssb_jax.config import SsbError
from ssb_jax.pipeline.run import Run
from ssb_jax.records import Hint, Pair


def view_pairs(run: Run, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs with the teacher's prompt of each view.

    Raises:
      SsbError: a view needs a pair's hint, and the run has none.
    """
    wanted = run.config.targets.views
    hints = hints_by_id(run) if set(wanted) - {"bare"} else {}
    return {view: [_prompted(run, pair, hints, view) for pair in pairs] for view in wanted}


def _prompted(run: Run, pair: Pair, hints: dict[str, Hint], view: str) -> Pair:
    if view == "bare":
        return replace(pair, teacher_prompt_ids=pair.student_prompt_ids)
    hint = hints.get(pair.question_id)
    if hint is None:
        raise SsbError(
            f"pair {pair.question_id}: its hint is not in {run.folder / 'blocks'}, and targets.views {view} needs it; "
            "take the view away, or make the pairs again"
        )
    right, wrong = hint.correct_text, hint.incorrect_text
    question, first, second = (pair.question, wrong, right) if view == "swapped" else ("", right, wrong)
    messages = run.workspace.prompts.teacher_messages(question, first, second)
    return replace(pair, teacher_prompt_ids=tuple(run.workspace.chat.encode_prompt(messages)))


def hints_by_id(run: Run) -> dict[str, Hint]:
    """The hint of each mixed question."""
    files = sorted((run.folder / "blocks").glob("*/hints/hints.jsonl"))
    return {hint.question_id: hint for file in files for hint in read_jsonl(file, Hint) if hint.dropped is None}
