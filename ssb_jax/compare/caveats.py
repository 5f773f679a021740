"""What a reader must know before believing a comparison: sentences, and the questions that all results share."""

from collections.abc import Iterator, Mapping, Sequence

from ssb_jax.compare.files import Result
from ssb_jax.config import SsbError

_SHOWN = 3  # names in a sentence


def common_questions(members: Sequence[Result]) -> list[str]:
    """The questions of a set that all of its results have.

    Raises:
      SsbError: there is none.
    """
    common = [key for key in members[0].scores if all(key in r.scores for r in members)]
    if not common:
        shared = [sum(not r.scores.keys().isdisjoint(other.scores) for other in members) for r in members]
        lonely = members[shared.index(min(shared))]
        others = [r.source for r in members if r is not lonely]
        raise SsbError(
            f"{lonely.set}: {lonely.source} and {_some(others)} have no question in common; compare equal sets"
        )
    return common


def caveats(members: Sequence[Result], questions: Sequence[str]) -> Iterator[str]:
    """Sentences on the results of one set, of which `questions` are compared."""
    found = [
        *_missing(members, questions),
        *_graded(members),
        *_other_texts(members),
        *_models(members),
        *_seeds_apart(members),
        *_remarks(members),
    ]
    return (f"{members[0].set}: {sentence}" for sentence in found)


def _missing(members: Sequence[Result], questions: Sequence[str]) -> Iterator[str]:
    everything = set().union(*(r.scores for r in members))
    if len(questions) < len(everything):
        short = [r.source for r in members if len(r.scores) < len(everything)]
        yield (
            f"only the {len(questions)} of {len(everything)} questions that all results have are compared; some are "
            f"missing in {_some(short)}"
        )
    if len(questions) == 1:
        yield "one question: intervals over questions say nothing"


def _graded(members: Sequence[Result]) -> Iterator[str]:
    """Where two results were not drawn and graded alike, as far as they say how."""
    for key in dict.fromkeys(key for r in members for key in r.graded):
        values = {str(r.graded[key]): r.source for r in members if key in r.graded}
        if len(values) > 1:
            told = "; ".join(f"{value} in {source}" for value, source in list(values.items())[:_SHOWN])
            yield f"graded differently: {key} is {told}"
    changed = _changed([r.gold for r in members])
    if changed:
        yield f"graded differently: the gold answers of {len(changed)} questions differ, such as {_some(changed)}"


def _other_texts(members: Sequence[Result]) -> Iterator[str]:
    changed = _changed([r.texts for r in members])
    if changed:
        yield f"{len(changed)} questions of one id have different texts, such as {_some(changed)}"


def _changed(values: Sequence[Mapping[str, str]]) -> list[str]:
    first: dict[str, str] = {}
    return sorted({key for some in values for key, value in some.items() if first.setdefault(key, value) != value})


def _models(members: Sequence[Result]) -> Iterator[str]:
    """Where methods start from different models: their accuracies differ by that too."""
    methods: dict[str, list[str]] = {}
    for result in members:
        if not result.is_base and "model" in result.settings:
            methods.setdefault(str(result.settings["model"]), []).append(result.method)
    if len(methods) > 1:
        told = "; ".join(f"{_some(names)} from {model}" for model, names in methods.items())
        yield f"different models before training: {told}"


def _seeds_apart(members: Sequence[Result]) -> Iterator[str]:
    """Where a curve looks like seeds that used different numbers of questions."""
    for method in dict.fromkeys(r.method for r in members if not r.is_base):
        budgets: dict[float | None, set[int]] = {}
        for result in members:
            if result.method == method:
                budgets.setdefault(result.budget, set()).add(result.seed)
        seeds = [seed for found in budgets.values() for seed in found]
        if len(budgets) > 1 and len(set(seeds)) == len(seeds):
            sizes = ", ".join("unknown" if size is None else f"{size:g}" for size in budgets)
            yield (
                f"the runs of {method} have no seed in common at {sizes} questions, and are taken for a curve; if they "
                "are seeds of each other, say the same `limit` in each file of results"
            )


def _remarks(members: Sequence[Result]) -> Iterator[str]:
    found = {remark: r.source for r in reversed(members) for remark in r.remarks}
    yield from (f"{remark} ({source})" for remark, source in reversed(found.items()))


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
