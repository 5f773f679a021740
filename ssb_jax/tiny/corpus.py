r"""The text that the tiny model was pretrained on: dialogues about problems of the pretrain split.

Two kinds. *Hint-free*: a bare question and a solution in which each step carries a slip with probability 0.2 (a total
off by one, two or ten, or a wrong operation), as text from the web does; what follows a slip builds on it. *Hinted*:
the question with a right and a wrong solution, and a solution without slips. No dialogue is about a question of the
train or test split. Prompts are made by `ssb_jax.prompts`, so they are exactly what the pipeline sends.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ssb_jax.config import Prompts
from ssb_jax.prompts import Message, PromptSet, load_prompts
from ssb_jax.tiny.problems import Problem, draw_problems

PROMPTS = Prompts(system="tiny_tutor", question="question", hinted="tiny_hinted")
"""As in configs/tiny.yaml."""
SLIP_RATE = 0.2
HINTED_SHARE = 0.4

_STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_BOXED = re.compile(r"\\boxed\{(\d+)\}")


@dataclass(frozen=True)
class Dialogue:
    """What the model reads (`messages`) and learns to write (`reply`)."""

    problem: Problem
    messages: tuple[Message, ...]
    reply: str
    hinted: bool


def draw_dialogues(
    *, seed: int, slip_rate: float = SLIP_RATE, hinted_share: float = HINTED_SHARE, prompts: PromptSet | None = None
) -> Iterator[Dialogue]:
    """Dialogues without end, deterministic from the seed."""
    prompts = load_prompts(PROMPTS) if prompts is None else prompts
    rng = random.Random(f"{seed}/dialogues")
    for problem in draw_problems("pretrain", seed=seed):
        if rng.random() < hinted_share:
            correct, incorrect = write_solution(problem, rng, slip_rate=0.0), _wrong_solution(problem, rng, slip_rate)
            messages = prompts.teacher_messages(problem.text, correct, incorrect)
            yield Dialogue(problem, tuple(messages), write_solution(problem, rng, slip_rate=0.0), hinted=True)
        else:
            reply = write_solution(problem, rng, slip_rate=slip_rate)
            yield Dialogue(problem, tuple(prompts.student_messages(problem.text)), reply, hinted=False)


def write_solution(problem: Problem, rng: random.Random, *, slip_rate: float) -> str:
    """A step-by-step solution in one of three wordings; each step's total is wrong with probability `slip_rate`."""
    steps, total = [], problem.start
    for change in problem.changes:
        before, total = total, total + change
        if total < 0 or rng.random() < slip_rate:  # below 0 only after a slip: it cannot be written, so slip again
            total = _slip(before, change, rng)
        steps.append((change, f"{before} {'+' if change > 0 else '-'} {abs(change)} = {total}"))
    wording = rng.randrange(3)
    if wording == 0:
        openers = ["First,", *["Then"] * (len(steps) - 1)]
        lines = [f"{opener} {step}." for opener, (_, step) in zip(openers, steps, strict=True)]
        return " ".join([*lines, f"So the answer is \\boxed{{{total}}}."])
    if wording == 1:
        lines = [f"We {'add' if c > 0 else 'take away'} {abs(c)}: {step}." for c, step in steps]
        return " ".join([f"We start with {problem.start}.", *lines, f"The answer is \\boxed{{{total}}}."])
    lines = [f"{abs(c)} {'more' if c > 0 else 'less'} makes {step}." for c, step in steps]
    return " ".join([*lines, f"That leaves \\boxed{{{total}}} {problem.thing}."])


def _slip(before: int, change: int, rng: random.Random) -> int:
    """A wrong total of `before + change`, not below 0: off by one, two or ten, or the wrong operation."""
    right = before + change
    choices = {right - 1: 3, right + 1: 3, right - 2: 1, right + 2: 1, right - 10: 1, right + 10: 1, before - change: 2}
    possible = {total: weight for total, weight in choices.items() if total >= 0 and total != right}
    return rng.choices(list(possible), weights=list(possible.values()))[0]


def _wrong_solution(problem: Problem, rng: random.Random, slip_rate: float) -> str:
    """A solution that ends wrong, as likely as solutions with slips do."""
    while True:
        text = write_solution(problem, rng, slip_rate=max(slip_rate, 0.05))
        if read_solution(text)[1] != problem.answer:
            return text


def read_solution(text: str) -> tuple[list[bool], int]:
    """The solution parsed back from its text alone: whether each step's arithmetic is right, and the boxed answer."""
    operations = {"+": int.__add__, "-": int.__sub__}
    steps = [operations[op](int(a), int(b)) == int(total) for a, op, b, total in _STEP.findall(text)]
    return steps, int(_BOXED.findall(text)[-1])
