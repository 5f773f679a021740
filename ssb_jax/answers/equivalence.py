"""Whether two answers are equal: the rules of the package docstring over the structures of `structure`.

The rules decide by kind (list, tuple, interval, matrix, relation, words, quantity); what is left are pairs of
expressions, which `symbolic` compares with the computer algebra system. Run it where that may be killed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ssb_jax.answers import symbolic
from ssb_jax.answers.choices import choice, same_letter
from ssb_jax.answers.exact import exact_number
from ssb_jax.answers.latex import key, tidy
from ssb_jax.answers.quantities import Quantity, in_one_unit, split_pair, units_ratio
from ssb_jax.answers.relations import INEQUALITIES, Region, name_and_values, region, same_names, variable
from ssb_jax.answers.structure import Atom, Matrix, Relation, Seq, Union, Value, Words, parse, words

_MAX_UNORDERED = 64
_ORDERED = re.compile(r"[A-Z]{3}|[IVXLCDM]{2}")  # SAS, VI: no products; AB is the segment BA
_TIGHT_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9]|,[0-9])")
_TO = re.compile(r"\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*")  # 3 to 5, a ratio
_DECIMAL_COMMA = re.compile(r"^(-?[0-9]+),([0-9]{1,2}|[0-9]{4,})(?![0-9,])")
_SYNONYMS = {
    "nosolutions": "nosolution", "nosolutionsexist": "nosolution", "nosolutionexists": "nosolution",
    "norealsolution": "nosolution", "norealsolutions": "nosolution", "none": "nosolution",
    "dne": "doesnotexist", "allrealnumbers": "reals", "allreals": "reals", "realnumbers": "reals",
    "infinitelymanysolutions": "infinitelymany",
}  # fmt: skip
_UNIT_VECTOR = re.compile(r"\\(?:hat|widehat|vec)\s*\{\s*\\?([ijk])(?:math)?\s*\}|(?<![a-zA-Z\\])([ijk])(?![a-zA-Z])")
_EMPTY = "\\emptyset"


@dataclass(frozen=True)
class Match:
    """Whether two answers are equal, and why."""

    equal: bool
    reason: str


def compare(gold: str, answer: str) -> Match:
    """Compares two answers as they stand in their boxes.

    Raises whatever the algebra system raises when it breaks; a text that it cannot read is only unequal.
    """
    gold, answer = tidy(gold), tidy(answer)
    if key(gold) == key(answer):
        return Match(True, "same text")
    if (match := compare_choices(gold, answer)) is not None:
        return match
    first = None
    for gold_text, answer_text in readings(gold, answer):
        match = _same(parse(gold_text), parse(answer_text))
        if match.equal:
            return match
        first = first or match
    return first


def readings(gold: str, answer: str) -> list[tuple[str, str]]:
    """The ways to read commas: 1,234 is a number and may be a list; 0,5 may be a decimal; 1 hour, 30 minutes is 90."""
    numbers = (_without_thousands(gold), _without_thousands(answer))
    pairs = [numbers, (gold, answer), (numbers[0], answer), (gold, numbers[1])]
    if ":" in gold and _TO.search(answer):
        pairs.append((gold, _TO.sub(":", answer)))
    pairs.append((in_one_unit(gold), in_one_unit(answer)))
    if "," not in gold and (decimal := _DECIMAL_COMMA.match(answer)):
        pairs.append((gold, decimal.expand(r"\1.\2") + answer[decimal.end() :]))
    return list(dict.fromkeys(pairs))


def compare_choices(gold: str, answer: str) -> Match | None:
    """Multiple choice: the letter decides where both have one; `(C) 42` is the choice C and the value 42."""
    gold_letter, gold_rest = choice(gold)
    letter, rest = choice(answer)
    if gold_letter and letter:
        equal = same_letter(gold_letter, letter, is_symbol=gold == gold_letter.lower())
        if equal or gold_rest or rest or gold_letter.upper() <= "J":
            return Match(equal, f"choice {letter}" if equal else f"choice {letter}, not {gold_letter}")
    if gold_letter and gold_rest and not letter:
        return compare(gold_rest, answer)
    if letter and rest and not gold_letter:
        return compare(gold, rest)
    return None


def _without_thousands(text: str) -> str:
    return _TIGHT_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def _same(gold: Value, answer: Value) -> Match:
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relations(gold, answer)
    if isinstance(gold, Union) or isinstance(answer, Union):
        return _same_regions(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        if isinstance(gold, Seq) or isinstance(answer, Seq):
            return _same_regions(gold, answer)  # all real numbers
        return _same_words(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_matrices(gold, answer)
    if isinstance(gold, Seq) or isinstance(answer, Seq):
        return _same_sequences(gold, answer)
    if _ORDERED.fullmatch(gold.text) and _ORDERED.fullmatch(answer.text):
        return Match(gold.text == answer.text, "letters in order")
    return same_quantities(*split_pair(gold.text, answer.text))


def same_quantities(gold: Quantity, answer: Quantity) -> Match:
    """Compares values, units, percent signs, bases and scale words."""
    ratio = units_ratio(gold, answer)
    if (radians := _in_radians(gold, answer)) is not None:
        return radians
    if ratio is None or (gold.percent != answer.percent and (gold.unit or answer.unit)):
        return Match(False, "the units differ")
    if gold.base != answer.base and gold.base and answer.base:
        return Match(False, f"base {answer.base}, not {gold.base}")
    if gold.base or answer.base:
        equal = gold.value.upper().replace(" ", "") == answer.value.upper().replace(" ", "")
        return Match(equal, f"digits in base {gold.base or answer.base}" + ("" if equal else " differ"))
    factor = ratio * Fraction(answer.scale, gold.scale)
    factors = {factor}
    if gold.percent != answer.percent:
        hundredth = Fraction(1, 100) if answer.percent else Fraction(100)
        small = answer.percent and (value := exact_number(gold.value)) is not None and abs(value) < 1
        factors = {factor * hundredth} if small else {factor, factor * hundredth}
    results = [symbolic.equal_expressions(gold.value, answer.value, factor=factor) for factor in sorted(factors)]
    found = next((result for result in results if result.equal), results[-1])
    return Match(found.equal, found.reason)


def _in_radians(gold: Quantity, answer: Quantity) -> Match | None:
    """Degrees against a multiple of pi; None for other pairs."""
    degrees = [side.unit is not None and side.unit[0] == (("angle", 1),) for side in (gold, answer)]
    multiple = ["\\pi" in side.value and side.unit is None for side in (gold, answer)]
    if not (degrees[0] and multiple[1]) and not (degrees[1] and multiple[0]):
        return None
    texts = [
        rf"({side.value})\cdot\frac{{\pi}}{{180}}" if is_degrees else side.value
        for side, is_degrees in zip((gold, answer), degrees, strict=True)
    ]
    result = symbolic.equal_expressions(*texts)
    return Match(result.equal, f"in radians: {result.reason}")


def _same_words(gold: Value, answer: Value) -> Match:
    texts = []
    for value in (gold, answer):
        text = value.text if isinstance(value, Words | Atom) else ""
        plain = value.text if isinstance(value, Words) else words(text)
        if text.strip() in (_EMPTY, "\\mathbb{R}"):
            plain = "nosolution" if text.strip() == _EMPTY else "reals"
        if plain is None:
            plain = re.sub(r"[\s().]", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text)).lower()
        texts.append(_SYNONYMS.get(plain, plain))
    if texts[0] == texts[1] and texts[0]:
        return Match(True, "same words")
    return Match(False, "different words" if type(gold) is type(answer) else "words and mathematics")


def _same_relations(gold: Value, answer: Value) -> Match:
    if _is_inequality(gold) or _is_inequality(answer):
        return _same_inequalities(gold, answer)
    gold_name, gold_values = name_and_values(gold) if isinstance(gold, Relation) else (None, [gold])
    name, values = name_and_values(answer) if isinstance(answer, Relation) else (None, [answer])
    both = isinstance(gold, Relation) and isinstance(answer, Relation)
    if both and not (gold_name is name is None or (gold_name and name and same_names(gold_name, name))):
        gold_values = []  # the names differ, or only one is a definition: compare them as equations
    for one in gold_values:
        for other in values:
            if (match := _same(one, other)).equal:
                return Match(True, f"{name or gold_name or 'value'}: {match.reason}")
    if not both:
        return Match(False, "the values differ" if gold_values and values else "an equation, not a value")
    if len(gold.sides) == len(answer.sides) == 2:
        result = symbolic.equal_equations(gold.sides, answer.sides)
        return Match(result.equal, result.reason)
    return Match(False, "other equations")


def _is_inequality(value: Value) -> bool:
    return isinstance(value, Relation) and bool(set(value.operators) & INEQUALITIES)


def _same_inequalities(gold: Value, answer: Value) -> Match:
    names = [variable(gold), variable(answer)]
    if None not in names and names[0] != names[1]:
        return Match(False, f"about {names[1]}, not {names[0]}")
    match = _same_regions(gold, answer)
    both = isinstance(gold, Relation) and isinstance(answer, Relation)
    if match.equal or not both or len(gold.sides) != len(answer.sides):
        return match
    if len(gold.sides) > 2:
        pairs = [(parse(one), parse(other)) for one, other in zip(gold.sides, answer.sides, strict=True)]
        return _all_same(pairs, "sides") if gold.operators == answer.operators else match
    gold_sides, sides = (_ascending(value) for value in (gold, answer))
    if gold_sides[0] != sides[0]:
        return Match(False, "another kind of inequality")
    result = symbolic.equal_equations(gold_sides[1], sides[1], ordered=gold_sides[0] != "\\ne")
    return Match(result.equal, result.reason)


def _ascending(relation: Relation) -> tuple[str, tuple[str, str]]:
    """An inequality written with < or \\le."""
    operator = relation.operators[0]
    turned = {">": "<", "\\ge": "\\le"}
    if operator in turned:
        return turned[operator], (relation.sides[1], relation.sides[0])
    return operator, (relation.sides[0], relation.sides[1])


def _same_regions(gold: Value, answer: Value) -> Match:
    regions = [_region(gold), _region(answer)]
    if None in regions:
        return Match(False, "an interval and something else")
    result = symbolic.equal_regions(*regions)
    return Match(result.equal, result.reason)


def _region(value: Value) -> Region | None:
    """Also reads a list of inequalities: `x < 1, x > 3` are two pieces, `x > 1, x < 3` bound one."""
    if isinstance(value, Relation) and value.operators[0] in ("=", "\\in"):
        _, values = name_and_values(value)
        return _region(values[0]) if values else None
    if isinstance(value, Seq) and value.opening == "" and all(_is_inequality(item) for item in value.items):
        parts = [region(item) for item in value.items]
        return symbolic.combine(parts) if None not in parts else None
    return region(value)


def _same_matrices(gold: Value, answer: Value) -> Match:
    if isinstance(gold, Atom) or isinstance(answer, Atom):
        result = symbolic.equal_expressions(_unit_vectors(gold), _unit_vectors(answer))
        return Match(result.equal, result.reason)
    gold_rows, rows = _rows(gold), _rows(answer)
    if gold_rows is None or rows is None:
        return Match(False, "a matrix and something else")
    if not (isinstance(gold, Matrix) and isinstance(answer, Matrix)) and len(gold_rows[0]) != 1:
        gold_rows, rows = (list(zip(*rows_, strict=True)) if len(rows_) == 1 else rows_ for rows_ in (gold_rows, rows))
    if [len(row) for row in gold_rows] != [len(row) for row in rows]:
        return Match(False, f"matrix of {_shape(rows)}, not {_shape(gold_rows)}")
    pairs = [pair for two in zip(gold_rows, rows, strict=True) for pair in zip(*two, strict=True)]
    return _all_same(pairs, "matrix cells")


def _unit_vectors(value: Value) -> str:
    r"""A vector as an expression in symbols for the unit vectors, which `\mathbf{i}, \hat{j}, ...` are read as."""
    if isinstance(value, Atom):
        return _UNIT_VECTOR.sub(lambda match: f"u_{{{match[1] or match[2]}}}", value.text)
    cells = [cell for row in _rows(value) or [] for cell in row]
    if len(cells) > 3 or not all(isinstance(cell, Atom) for cell in cells):
        return "\\text{matrix}"
    return " + ".join(f"({cell.text}) u_{{{name}}}" for cell, name in zip(cells, "ijk", strict=False))


def _rows(value: Value) -> list[tuple[Value, ...]] | None:
    """A matrix as rows; a tuple of coordinates counts as a column, a tuple of tuples as rows."""
    if isinstance(value, Matrix):
        return list(value.rows)
    if isinstance(value, Seq) and value.opening in ("(", "[", "\\langle"):
        if all(isinstance(item, Seq) for item in value.items):
            return [item.items for item in value.items]
        return [(item,) for item in value.items]
    return None


def _shape(rows: Sequence[Sequence[Value]]) -> str:
    return f"{len(rows)} x {len(rows[0])}"


def _same_sequences(gold: Value, answer: Value) -> Match:
    if any(isinstance(value, Seq) and _sequence_kind(value) == "interval" for value in (gold, answer)):
        return _same_regions(gold, answer)
    gold, answer = _flat(gold), _flat(answer)
    if any(_is_inequality(item) for item in (*gold.items, *answer.items)):
        return _same_regions(gold, answer)
    if (match := _same_named(gold, answer)) is not None:
        return match
    sides = [_sequence_kind(value) for value in (gold, answer)]
    if gold.opening == "[" != answer.opening and len(gold.items) == 2 and answer.opening:
        return Match(False, "a closed interval and something else")
    if gold.opening == "[" and len(gold.items) == 2 and not answer.opening:
        return Match(False, "a list and a closed interval")
    if answer.opening == "[" != gold.opening and len(answer.items) == 2 and gold.opening:
        return Match(False, "a closed interval and something else")
    if set(sides) == {"tuple", "set"}:
        return Match(False, "a tuple is no set")
    gold_items, items = list(gold.items), list(answer.items)
    if sides == ["tuple", "list"] or sides == ["list", "tuple"] or sides == ["tuple", "tuple"]:
        if len(gold_items) != len(items):
            return Match(False, f"{len(items)} elements, not {len(gold_items)}")
        return _all_same(list(zip(gold_items, items, strict=True)), "elements in order")
    if len(gold_items) == 1 and not gold.opening and not answer.opening and len(items) > 1:
        return _all_same([(gold_items[0], item) for item in items], "values said to be the answer")
    if "set" in sides:
        gold_items, items = _distinct(gold_items), _distinct(items)
    return _same_unordered(gold_items, items)


def _same_named(gold: Seq, answer: Seq) -> Match | None:
    """Lists of equations on one side only: `x = 1, y = 2` is (1, 2), `x = 1, 2` is the list 1, 2."""
    gold, answer = _unnamed_first(gold), _unnamed_first(answer)
    gold_named, named = _named(gold), _named(answer)
    if bool(gold_named) == bool(named):
        return None
    plain, pairs, from_gold = (answer, gold_named, True) if gold_named else (gold, named, False)
    orders = [[value for _, value in pairs]]
    if len({name for name, _ in pairs}) == len(pairs) and _sequence_kind(plain) == "tuple":
        orders.append([value for _, value in sorted(pairs, key=lambda pair: pair[0])])
    for values in orders:
        values = Seq("", "", tuple(values))
        match = _same_sequences(values, plain) if from_gold else _same_sequences(plain, values)
        if match.equal:
            break
    return match


def _named(value: Seq) -> list[tuple[str, Value]]:
    """(name, value) of each element when all are equations that give a value to a name, else nothing."""
    pairs = []
    for item in value.items:
        name, values = name_and_values(item) if isinstance(item, Relation) else (None, [])
        if name is None or not values:
            return []
        pairs.append((name, values[-1]))
    return pairs


def _unnamed_first(value: Seq) -> Seq:
    """`x = 1, 2` -> `1, 2`."""
    first = value.items[0]
    if not isinstance(first, Relation) or any(isinstance(item, Relation) for item in value.items[1:]):
        return value
    name, values = name_and_values(first)
    if name is None or len(value.items) < 2:
        return value
    return Seq(value.opening, value.closing, (values[0], *value.items[1:]))


def _flat(value: Value) -> Seq:
    """A single value is a list of one."""
    return value if isinstance(value, Seq) else Seq("", "", (value,))


def _sequence_kind(value: Seq) -> str:
    if value.opening in ("\\{", ""):
        return "set" if value.opening else "list"
    mixed = (value.opening == "(") != (value.closing == ")")
    infinite = any(isinstance(item, Atom) and "\\infty" in item.text for item in value.items)
    return "interval" if len(value.items) == 2 and value.opening in "([" and (mixed or infinite) else "tuple"


def _distinct(items: list[Value]) -> list[Value]:
    kept: list[Value] = []
    for item in items[:_MAX_UNORDERED]:
        if not any(_same(other, item).equal for other in kept):
            kept.append(item)
    return kept


def _all_same(pairs: Sequence[tuple[Value, Value]], what: str) -> Match:
    for i, (gold, answer) in enumerate(pairs):
        match = _same(gold, answer)
        if not match.equal:
            return Match(False, f"{what}: number {i + 1}: {match.reason}")
    return Match(True, f"{what}: all {len(pairs)} equal")


def _same_unordered(gold: list[Value], answer: list[Value]) -> Match:
    if len(gold) != len(answer):
        return Match(False, f"{len(answer)} elements, not {len(gold)}")
    if len(gold) == 1:
        return _same(gold[0], answer[0])
    if len(gold) > _MAX_UNORDERED:
        return Match(False, f"more than {_MAX_UNORDERED} elements")
    left = list(answer)
    for item in gold:
        found = next((other for other in left if _same(item, other).equal), None)
        if found is None:
            return Match(False, "a gold element is missing")
        left.remove(found)
    return Match(True, f"same {len(gold)} elements")
