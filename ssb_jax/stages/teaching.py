"""Hints -> Lessons: the same model, shown the hints, writes a solution; a verified one becomes a training Pair.

Both of a pair's prompts end where the assistant's reply begins. The student's holds the question and no hint.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssb_jax import hosts
from ssb_jax.answering import answer, grade_rollouts, load_rollouts
from ssb_jax.artifacts import write_jsonl
from ssb_jax.records import DropReason, Hint, Lesson, Outcome, Pair, Question, Rollout, StopReason, Verdict
from ssb_jax.workspace import Workspace

_TEACHING_SEED = 7_919  # the teacher's random keys differ from the rollouts' of the same question


def run(
    questions: Sequence[Question],
    hints: Sequence[Hint],
    folder: Path,
    *,
    workspace: Workspace,
    description: str = "teaching",
) -> dict:
    """Writes the teacher's solutions as they finish and then `lessons.jsonl`; returns counts by drop reason.

    Each process writes the solutions of its share of the questions; process 0 verifies and writes the lessons.
    """
    config = workspace.config
    by_id = {q.id: q for q in questions}
    prompts = {h.question_id: _teacher_prompt(by_id[h.question_id], h, workspace) for h in hints if h.dropped is None}
    longest = workspace.model.config.max_position_embeddings if prompts else 0
    fitting = {key: ids for key, ids in prompts.items() if len(ids) < longest}
    counts = answer(
        fitting,
        num_samples=config.teaching.attempts,
        params=workspace.sampling_params(config.teaching),
        folder=folder,
        workspace=workspace,
        seed=config.seed + _TEACHING_SEED,
        description=description,
    )
    engine = {"engine": counts["engine"]} if "engine" in counts else {}
    return hosts.on_first(lambda: _verify(questions, hints, folder, prompts, workspace, description)) | engine


def _verify(
    questions: Sequence[Question],
    hints: Sequence[Hint],
    folder: Path,
    prompts: Mapping[str, Sequence[int]],
    workspace: Workspace,
    description: str,
) -> dict:
    """Grades the solutions in `folder` and writes `lessons.jsonl`; `prompts` are the hinted ones, by question id."""
    solutions = load_rollouts(folder, list(prompts))
    gold = {q.id: q.answer for q in questions}
    grading = workspace.config.grading
    verdicts = grade_rollouts(solutions, gold, settings=grading, description=f"{description}: verification")
    lessons = _lessons(solutions, verdicts, {q.id: q for q in questions}, prompts, workspace)
    solved = {solution.question_id for solution in solutions}
    lessons += [_too_long(key) for key in prompts if key not in solved]
    rank = {hint.question_id: i for i, hint in enumerate(hints)}
    lessons.sort(key=lambda lesson: rank[lesson.question_id])
    write_jsonl(folder / "lessons.jsonl", lessons)
    dropped = Counter(lesson.dropped for lesson in lessons if lesson.dropped is not None)
    return {
        "hinted": len(solved),
        "pairs": sum(lesson.pair is not None for lesson in lessons),
        "tokens": sum(len(s.token_ids) for s in solutions),
        **{reason.value: count for reason, count in sorted(dropped.items())},
    }


def make_pair(question: Question, solution: Rollout, *, teacher_prompt: Sequence[int], workspace: Workspace) -> Pair:
    """The pair of a verified solution, with the student's prompt as `prompts.student_prompt` says."""
    settings = workspace.config.prompts
    messages = workspace.prompts.student_messages(question.question)
    flat = settings.student_prompt == "flat"
    student_prompt = workspace.chat.encode_flat(messages) if flat else workspace.chat.encode_prompt(messages)
    # A solution that the length limit cut off never ended its turn, so there is no end to teach.
    stop = settings.teach_stop and solution.stop is StopReason.END_OF_TURN
    return Pair(
        question_id=question.id,
        question=question.question,
        answer=question.answer,
        solution=solution.text,
        teacher_prompt_ids=tuple(teacher_prompt),
        student_prompt_ids=tuple(student_prompt),
        reply_ids=solution.token_ids + ((workspace.chat.end_of_turn_id,) if stop else ()),
        teacher_stop=stop,
    )


def _teacher_prompt(question: Question, hint: Hint, workspace: Workspace) -> list[int]:
    messages = workspace.prompts.teacher_messages(question.question, hint.correct_text, hint.incorrect_text)
    return workspace.chat.encode_prompt(messages)


def _lessons(
    solutions: Sequence[Rollout],
    verdicts: Sequence[Verdict],
    questions: Mapping[str, Question],
    prompts: Mapping[str, Sequence[int]],
    workspace: Workspace,
) -> list[Lesson]:
    """One lesson a question: its first solution to keep, or else the first of those that came nearest, and why not."""
    whole = workspace.config.teaching.truncated == "drop"
    nearness = {None: 0, DropReason.TEACHER_TRUNCATED: 1, DropReason.TEACHER_NOT_CORRECT: 2}
    chosen: dict[str, tuple[Rollout, Verdict, DropReason | None]] = {}
    for solution, verdict in zip(solutions, verdicts, strict=True):
        held, dropped = chosen.get(solution.question_id), _why_dropped(solution, verdict, whole=whole)
        if held is None or nearness[dropped] < nearness[held[2]]:
            chosen[solution.question_id] = (solution, verdict, dropped)
    lessons = []
    for key, (solution, verdict, dropped) in chosen.items():
        pair = None
        if dropped is None:
            pair = make_pair(questions[key], solution, teacher_prompt=prompts[key], workspace=workspace)
        lessons.append(
            Lesson(
                question_id=key,
                text=solution.text,
                outcome=verdict.outcome,
                extracted=verdict.extracted,
                reason=verdict.reason,
                dropped=dropped,
                pair=pair,
            )
        )
    return lessons


def _why_dropped(solution: Rollout, verdict: Verdict, *, whole: bool) -> DropReason | None:
    """Why a solution makes no pair; `whole`: one that was cut off makes none, though its box is right."""
    if verdict.outcome is not Outcome.CORRECT:
        return DropReason.TEACHER_NOT_CORRECT
    return DropReason.TEACHER_TRUNCATED if whole and solution.stop is StopReason.LENGTH else None


def _too_long(question_id: str) -> Lesson:
    return Lesson(
        question_id=question_id,
        text="",
        outcome=None,
        extracted=None,
        reason="the hinted prompt fills the model's context",
        dropped=DropReason.PROMPT_TOO_LONG,
        pair=None,
    )
