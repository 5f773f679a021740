r"""Equations and inequalities: what they name, what value they give, which part of the real line they describe.

Looks at structure only: `x = 5` gives the value 5 to the name x, `2 < x \le 5` is the interval from 2 (open) to 5.
"""

import re
from dataclasses import dataclass

from ssb_jax.answers.quantities import last_place, number, split_quantity, units_ratio
from ssb_jax.answers.structure import Atom, Relation, Seq, Union, Value, Words, parse

INEQUALITIES = {"<", ">", "\\le", "\\ge", "\\ne"}

_SUBSCRIPT = r"(?:_\s*(?:\{[^{}]*\}|[a-zA-Z0-9]))?"
_SYMBOL = rf"(?:\\?[a-zA-Z]+|\\(?:text|vec|hat|bar|overline|overrightarrow|mathbf)\s*\{{[^{{}}]*\}}){_SUBSCRIPT}'*"
_NAME = re.compile(
    rf"\|?\s*(?:m?\s*\\(?:angle|triangle)\s*)?(?P<name>{_SYMBOL})(?:\s*[A-Z])*\s*\|?"
    r"(?:(?:(?<=[A-Z])|(?=[^(]*\())\^\s*\{?\s*-1\s*\}?)?"
    # P(X = 2), but x(x - 1) is a product
    r"(?:\s*\((?:(?!(?<!\\)(?P=name)(?![a-z]))(?:[^()]|\([^()]*\)))*\))?(?:\\text\{[^{}]*\})?"
    r"|\[\s*[A-Z]{3,}\s*\]"  # an area
)
_TUPLE = re.compile(rf"\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)")
_TERM = re.compile(rf"(?:\\[a-zA-Z]+|[a-zA-Z]){_SUBSCRIPT}")
_OPERATOR = re.compile(r"\\(?:frac|cdot|times)")
_JOINED_NAME = re.compile(r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|theta|lambda|mu|omega|phi)(?![a-zA-Z])).*")
_JOINED = re.compile(r"(?:[-+*/(){}\s]|\^[0-9]*|(?<=\^\{)[0-9]+)*")
_VARIABLE = re.compile(rf"(?:[a-zA-Z]|\\[a-z]+){_SUBSCRIPT}(?:\([a-z]\))?")
_CONSTANT = re.compile(r"e|i|\\pi|\\infty|\\emptyset")
_WITHOUT = re.compile(r"(.*\S)\s*(?:\\setminus|\\backslash|\\smallsetminus|-|/)\s*\\\{(.*)\\\}")
_ABSOLUTE = re.compile(r"\|\s*[a-z]\s*\|")
_LETTER = re.compile(r"(?<![\\a-zA-Z])(?![ei](?![a-zA-Z]))[a-zA-Z]")


@dataclass(frozen=True)
class Interval:
    """Part of the real line; the ends are text."""

    low: str
    high: str
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """Intervals joined (or intersected) and points taken out."""

    intervals: tuple[Interval, ...]
    without: tuple[str, ...] = ()


REALS = Region((Interval("-\\infty", "\\infty", False, False),))


def is_name(text: str) -> bool:
    """Whether a side of an equation only names what the other side gives: `x`, `f(x)`, `|z|`, `(x, y)`, `m + n`, words.

    A question may ask for a combination of two names or more (`xy`, `a^2 + b^2`), but `x^2` and `-x` only hide x.
    """
    text = text.strip()
    if _CONSTANT.fullmatch(text):
        return False
    if _TUPLE.fullmatch(text) or all(_NAME.fullmatch(part.strip()) for part in text.split(":")):
        return True
    names = {term for term in _TERM.findall(text) if not _OPERATOR.fullmatch(term) and not _CONSTANT.fullmatch(term)}
    combined = len(names) > 1 and not text.startswith("-") and all(map(_JOINED_NAME.fullmatch, names))
    return combined and bool(_JOINED.fullmatch(_TERM.sub(" ", text)))


def name_and_values(relation: Relation) -> tuple[str | None, list[Value]]:
    """The name that an equation gives a value to, and the value; several when they are said to be about equal.

    No values when the equation is a condition and no definition (`2x + 3 = 7`), or contradicts itself (`x = 12 = 18`).
    A chain ends in its value.
    """
    if set(relation.operators) & INEQUALITIES or _contradicts_itself(relation):
        return None, []
    sides = list(relation.sides)
    name = None
    if is_name(sides[0]):
        name = sides.pop(0)
    elif any(isinstance(parse(side), Words) for side in sides):
        return None, []
    elif len(sides) == 2 and is_name(sides[1]):
        name = sides.pop()
    elif any(_LETTER.search(re.sub(r"\\text\{[^{}]*\}", "", side)) for side in sides):
        return None, []
    either = "\\approx" in relation.operators or any("\\text" in side for side in sides)  # 3 hours = 180 minutes
    texts = sides if either else sides[-1:]
    return name and re.sub(r"\s|\\left|\\right", "", name), [parse(text) for text in texts]


def _contradicts_itself(relation: Relation) -> bool:
    """Whether neighbours are different numbers; about equal ones differ by less than one in their last decimal."""
    sides = [split_quantity(side) for side in relation.sides]
    for one, other, operator in zip(sides, sides[1:], relation.operators, strict=False):
        left, right, ratio = number(one), number(other), units_ratio(one, other)
        if left is None or right is None:
            continue
        step = max(last_place(one), last_place(other)) if operator == "\\approx" else 0
        if ratio is None or (left != right * ratio and abs(left - right * ratio) >= step):
            return True
    return False


def same_names(gold: str, answer: str) -> bool:
    """Equal names; `y` and `f(x)` both name the value of a function."""
    if gold.lower() == answer.lower() and len(gold) > 1:
        return True
    return gold == answer or (("(" in gold) != ("(" in answer) and "y" in (gold, answer))


def region(value: Value) -> Region | None:
    """The part of the real line that a value describes, None when it describes something else."""
    if isinstance(value, Words):
        return REALS if value.text in ("reals", "allrealnumbers", "allreals", "realnumbers") else None
    if isinstance(value, Atom):
        return _named_region(value.text)
    if isinstance(value, Relation):
        return _inequality(value)
    if isinstance(value, Union):
        return _joined([region(item) for item in value.items])
    if isinstance(value, Seq) and len(value.items) == 2 and value.opening in ("(", "["):
        ends = [item.text for item in value.items if isinstance(item, Atom)]
        if len(ends) == 2:
            return Region((Interval(ends[0], ends[1], value.opening == "[", value.closing == "]"),))
    if isinstance(value, Seq) and value.opening == "\\{" and all(isinstance(item, Atom) for item in value.items):
        return Region(tuple(Interval(item.text, item.text, True, True) for item in value.items))
    return None


def variable(value: Value) -> str | None:
    """The variable of an inequality, when it stands alone on a side."""
    if not isinstance(value, Relation):
        return None
    return next((side for side in value.sides if _is_variable(side)), None)


def _is_variable(text: str) -> bool:
    return bool(_VARIABLE.fullmatch(text)) and not _CONSTANT.fullmatch(text)


def _named_region(text: str) -> Region | None:
    if text == "\\mathbb{R}":
        return REALS
    if text == "\\emptyset":
        return Region(())
    if (found := _WITHOUT.fullmatch(text)) and (whole := region(parse(found.group(1)))) is not None:
        return Region(whole.intervals, tuple(point.strip() for point in found.group(2).split(",")))
    return None


def _joined(regions: list[Region | None]) -> Region | None:
    if any(part is None or part.without for part in regions):
        return None
    return Region(tuple(interval for part in regions for interval in part.intervals))


def _inequality(relation: Relation) -> Region | None:
    sides, operators = relation.sides, relation.operators
    if operators == ("\\in",) and _is_variable(sides[0]):
        return region(parse(sides[1]))
    if not set(operators) <= INEQUALITIES:
        return None
    if len(sides) == 2 and _is_variable(sides[1]) and not _is_variable(sides[0]):
        turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
        sides, operators = sides[::-1], (turned[operators[0]],)
    if len(sides) == 2 and _ABSOLUTE.fullmatch(sides[0]):
        return _around_zero(sides[1], operators[0])
    if len(sides) == 2 and _is_variable(sides[0]):
        return _half_line(sides[1], operators[0])
    if len(sides) != 3 or not _is_variable(sides[1]):
        return None
    if set(operators) <= {">", "\\ge"}:
        sides, operators = sides[::-1], tuple({">": "<", "\\ge": "\\le"}[o] for o in operators[::-1])
    if not set(operators) <= {"<", "\\le"}:
        return None
    return Region((Interval(sides[0], sides[2], operators[0] == "\\le", operators[1] == "\\le"),))


def _around_zero(end: str, operator: str) -> Region | None:
    """`|x| < end` and its kin."""
    low, closed = f"-({end})", operator in ("\\le", "\\ge")
    if operator in ("<", "\\le"):
        return Region((Interval(low, end, closed, closed),))
    if operator in (">", "\\ge"):
        return Region((Interval("-\\infty", low, False, closed), Interval(end, "\\infty", closed, False)))
    return None


def _half_line(end: str, operator: str) -> Region | None:
    if operator == "\\ne":
        value = parse(end)
        points = value.items if isinstance(value, Seq) else (value,)
        if all(isinstance(point, Atom) for point in points):
            return Region(REALS.intervals, tuple(point.text for point in points))
        return None
    closed = operator in ("\\le", "\\ge")
    if operator in ("<", "\\le"):
        return Region((Interval("-\\infty", end, False, closed),))
    return Region((Interval(end, "\\infty", closed, False),))
