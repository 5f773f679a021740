"""Arithmetic word problems: a start of 3 to 20 of something, then one to three changes by 1 to 9.

Deterministic from a seed. A problem belongs to a split by a hash of its *chain of numbers* ("12+7-4"), so a chain of
the train or test split occurs in no other split, whatever the names and phrases around it. Pretraining text is made
from the pretrain split alone (see corpus.py). Knows no model and no tokens.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ssb_jax.config import SsbError
from ssb_jax.records import Question

SEED = 2512_05105
"""Of the published train and test sets."""
SET_SIZE = 1000
"""Questions in each of them, no two with the same chain of numbers."""
BUCKETS = {"test": (0,), "train": (1,), "pretrain": (2, 3, 4, 5, 6, 7, 8, 9)}
"""Split -> tenths of the hash."""
LEVEL_WEIGHTS = {1: 2, 2: 5, 3: 3}
"""Number of changes -> how often it is drawn."""

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jack", "Kira", "Liam", "Mona")
THINGS = (
    *("apples", "balls", "books", "cards", "coins", "eggs", "flowers", "lemons", "marbles", "nuts", "pears"),
    *("pencils", "plums", "shells", "stamps", "stones", "stickers", "tickets"),
)


@dataclass(frozen=True)
class Story:
    """The phrases of one setting; `{n}` is a number, `{name}` and `{thing}` are drawn once a problem."""

    subject: str
    opening: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    question: str


STORIES = (
    Story(
        "owner",
        "{name} has {n} {thing}.",
        ("{name} buys {n} more.", "{name} finds {n} more.", "A friend gives {name} {n} more."),
        ("{name} loses {n}.", "{name} sells {n}.", "{name} gives {n} to a friend."),
        "How many {thing} does {name} have now?",
    ),
    Story(
        "box",
        "There are {n} {thing} in a box.",
        ("{name} puts {n} more into the box.", "{name} adds {n} to the box."),
        ("{name} takes {n} out of the box.", "{name} removes {n} from the box."),
        "How many {thing} are in the box now?",
    ),
    Story(
        "shop",
        "A shop has {n} {thing}.",
        ("The shop gets {n} more.", "{name} brings {n} more to the shop."),
        ("The shop sells {n}.", "{name} buys {n} from the shop."),
        "How many {thing} does the shop have now?",
    ),
    Story(
        "bus",
        "A bus leaves with {n} people.",
        ("At a stop {n} get on.", "{n} more get on."),
        ("At a stop {n} get off.", "{n} of them get off."),
        "How many people are on the bus now?",
    ),
)


@dataclass(frozen=True)
class Problem:
    """A start and signed changes, in the words of a story. `totals` are the right totals after each change."""

    subject: str
    text: str
    thing: str
    start: int
    changes: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(accumulate(self.changes, initial=self.start))[1:]

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def chain(self) -> str:
        """The numbers and operations alone, such as "12+7-4"; what the splits are disjoint in."""
        return f"{self.start}" + "".join(f"{change:+d}" for change in self.changes)

    @property
    def split(self) -> str:
        bucket = int.from_bytes(hashlib.sha256(self.chain.encode()).digest()[:8], "big") % 10
        return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


def draw_problem(rng: random.Random) -> Problem:
    """One problem of any split. No total is below 0."""
    story, name, thing = rng.choice(STORIES), rng.choice(NAMES), rng.choice(THINGS)
    start = total = rng.randint(3, 20)
    count = rng.choices(list(LEVEL_WEIGHTS), weights=list(LEVEL_WEIGHTS.values()))[0]
    changes: list[int] = []
    sentences = [story.opening.format(name=name, thing=thing, n=start)]
    for _ in range(count):
        gain = total == 0 or rng.random() < 0.5
        amount = rng.randint(1, 9) if gain else rng.randint(1, min(9, total))
        phrase = rng.choice(story.gains if gain else story.losses)
        sentences.append(phrase.format(name=name, thing=thing, n=amount))
        changes.append(amount if gain else -amount)
        total += changes[-1]
    sentences.append(story.question.format(name=name, thing=thing))
    thing = "people" if story.subject == "bus" else thing
    return Problem(story.subject, " ".join(sentences), thing, start, tuple(changes))


def draw_problems(split: str, *, seed: int) -> Iterator[Problem]:
    """Problems of one split without end, repetitions possible."""
    if split not in BUCKETS:
        raise SsbError(f"builtin:arithmetic has the splits {', '.join(BUCKETS)}; got {split!r}")
    rng = random.Random(f"{seed}/{split}")
    while True:
        problem = draw_problem(rng)
        if problem.split == split:
            yield problem


def load_split(split: str, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a fixed set of 1000, no two with the same chain of numbers.

    Args:
      split: "train" (for self-teaching) or "test" (for evaluation). "pretrain" shows what the model was pretrained on.
      limit: None for the whole set.

    Raises:
      SsbError: there is no such split.
    """
    wanted = SET_SIZE if limit is None else min(limit, SET_SIZE)
    questions: dict[str, Question] = {}
    problems = draw_problems(split, seed=SEED)
    while len(questions) < wanted:
        problem = next(problems)
        if problem.chain not in questions:
            questions[problem.chain] = to_question(problem)
    return list(questions.values())


def to_question(problem: Problem) -> Question:
    """The record; its id is made from the text, so it stays the same wherever the problem turns up."""
    digest = hashlib.sha256(problem.text.encode()).hexdigest()[:12]
    return Question(
        id=f"arithmetic-{problem.split}-{digest}",
        question=problem.text,
        answer=str(problem.answer),
        subject=problem.subject,
        level=str(len(problem.changes)),
    )
