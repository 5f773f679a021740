r"""Numbers with a currency, a percent sign, a unit or a base: what is the value, and what is around it.

    \$1,234.50        value 1,234.50   unit dollar
    12 \text{ cm}^2   value 12         unit cm^2
    10\%              value 10         percent
    2516_8            value 2516       base 8

A unit that is not in the table (eggs, points, pounds that may be money) is dropped: the question fixes it. Two units
of the table are compared, with conversion inside a dimension (100 cm is 1 m). Pure string work.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from ssb_jax.answers.exact import exact_number, plain_decimal

Dimension = tuple[tuple[str, int], ...]

_INCH = Fraction("0.0254")
_TABLE: list[tuple[str, str, Fraction]] = [
    ("length", "m meter metre", Fraction(1)),
    ("length", "mm millimeter millimetre", Fraction(1, 1000)),
    ("length", "cm centimeter centimetre", Fraction(1, 100)),
    ("length", "dm decimeter decimetre", Fraction(1, 10)),
    ("length", "km kilometer kilometre", Fraction(1000)),
    ("length", "in inch inche", _INCH),
    ("length", "ft foot feet", 12 * _INCH),
    ("length", "yd yard", 36 * _INCH),
    ("length", "mi mile", 63360 * _INCH),
    ("time", "s sec second", Fraction(1)),
    ("time", "min minute", Fraction(60)),
    ("time", "h hr hour", Fraction(3600)),
    ("time", "day", Fraction(86400)),
    ("time", "wk week", Fraction(604800)),
    ("years", "month", Fraction(1)),
    ("years", "yr year", Fraction(12)),
    ("mass", "g gram", Fraction(1)),
    ("mass", "mg milligram", Fraction(1, 1000)),
    ("mass", "kg kilogram kilo", Fraction(1000)),
    ("mass", "oz ounce", Fraction("28.349523125")),
    ("mass", "lb pound", Fraction("453.59237")),
    ("volume", "l liter litre", Fraction(1)),
    ("volume", "ml milliliter millilitre", Fraction(1, 1000)),
    ("gallons", "cup", Fraction(1, 16)),
    ("gallons", "pint", Fraction(1, 8)),
    ("gallons", "quart", Fraction(1, 4)),
    ("gallons", "gal gallon", Fraction(1)),
    ("money", "$ dollar usd buck", Fraction(1)),
    ("money", "¢ cent penny pennie", Fraction(1, 100)),
    ("euros", "€ euro eur", Fraction(1)),
    ("rupees", "₹ rupee rs", Fraction(1)),
    ("yen", "¥ yen yuan jpy", Fraction(1)),
    ("angle", "° degree deg", Fraction(1)),
    ("radians", "radian rad", Fraction(1)),
    ("before noon", "am", Fraction(1)),
    ("after noon", "pm", Fraction(1)),
    ("celsius", "°c celsius", Fraction(1)),
    ("fahrenheit", "°f fahrenheit", Fraction(1)),
]
_UNITS = {name: (dimension, size) for dimension, names, size in _TABLE for name in names.split()}
_UNIT_OF_MONEY = ((("money", 1),), Fraction(1))
_SPEEDS = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "mps": "m/s", "fps": "ft/s"}
_BARE = (
    {name for name in _UNITS if len(name) > 1 and name.isalpha()}
    | set(_SPEEDS)
    | {"am", "pm", "sq", "pct", "st", "nd", "rd", "th"}
)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SUFFIXES = {"k": 1000, "K": 1000, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}  # m is a metre, but of money
_BASE_NAMES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
_BASE_NAMES |= {"nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}

_POWER = r"(?:\s*\^\s*\{?\s*(-?[1-9])\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(/?)\s*\\text\{{([^{{}}]*)\}}{_POWER}$")
_FRACTION_UNIT = re.compile(r"\\frac\{\s*\\text\{([^{}]*)\}\s*\}\{\s*\\text\{([^{}]*)\}\s*\}$")
_BARE_UNIT = re.compile(rf"(?:(?<=[0-9.}})%])|(?<=[a-zA-Z°])(?=[\s/]))(\s*/?\s*)([a-zA-Z][a-zA-Z']*)\.?{_POWER}$")
_BASE = re.compile(r"^(.*[0-9A-Za-z)}\]])\s*_\s*(?:\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\}|([0-9]))$")
_CURRENCY = re.compile(
    r"^([-+]?)\s*(?:(?:US|CA|A)?\s*([$€£¥₹])|\\text\{\s*(?:US)?\s*([$€£¥₹]|Rs\.?|USD)\s*\}|(USD|EUR|Rs\.?)\s+(?=[0-9]))\s*"
)
_PREFIX = re.compile(r"\\text\{([^{}0-9]*)\}\s*:?\s*(?=[-+$€£.0-9]|\\(?:frac|sqrt|pi))")
_PROSE = re.compile(r"([A-Za-z][A-Za-z ,.':]*[ :])(?=[-+$€£.]*[0-9])")
_NO_PREFIX = {
    "not", "no", "never", "than", "least", "most", "except", "between", "or", "over", "under", "base", "minus",
    "negative", "without", "log", "ln", "sin", "cos", "tan", "lcm", "gcd", "min", "max", "mod", "vol", "half",
    "cannot", "neither", "nor", "neg", "but", "up", "almost", "nearly", "roughly", "by",
}  # fmt: skip
# Words that change the number after them, unless a verb is between: `the inverse is 5`
_OPERATIONS = {
    "twice", "thrice", "double", "triple", "quadruple", "third", "thirds", "quarter", "fourth", "fifth", "sixth",
    "seventh", "eighth", "ninth", "tenth", "hundredth", "square", "squared", "cube", "cubed", "root", "opposite",
    "inverse", "reciprocal", "factorial", "above", "below", "before", "beyond", "plus", "times", "modulo", "twenty",
    "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million", "billion",
}  # fmt: skip
_OPERATIONS_OF = {
    "multiple", "multiples", "factor", "factors", "divisor", "divisors", "power", "powers", "sum", "product",
    "difference", "quotient",
}  # fmt: skip
_VERBS = {
    "is", "are", "was", "were", "be", "equals", "equal", "has", "have", "had", "gives", "get", "gets", "got",
    "becomes",
}  # fmt: skip
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_NO_UNIT = {
    "base", "or", "and", "not", "if", "unless", "factorial", "incorrect", "wrong", "false", "isn", "isnt", "least",
    "most", "less", "fewer", "short", "minus", "plus", "than", "but", "except", "root", *_BASE_NAMES,
}  # fmt: skip
_PARTS = {
    "half", "halve", "third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "hundredth",
    "thousandth", "millionth", "billionth",
}  # fmt: skip
_POWERS = {"squared", "cubed"}  # of the number, where no unit stands before or after
_TEXTS = re.compile(r"\\text\{([^{}]*)\}")
_COMPOUND_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\.?(?:\s*,|\s+and(?![a-z]))?\s*")
_COMPOUND = re.compile(rf"(?:{_COMPOUND_PART.pattern}){{2,3}}")
_REPEATED = re.compile(r"(\S.*\S|[0-9]) \(\s*(?:=|\\approx)?\s*([^()]+)\)")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*[0-9][^{}]*)\}")
_PERCENT_WORDS = {"percent", "percentage", "pct"}
_SIGNS = "€£$¢₹¥"
_WORD = re.compile(r"[A-Za-z°$€£¥₹¢]+")


@dataclass(frozen=True)
class Quantity:
    """`value` is the tidy text without what is around it; `unit` is None when there is none in the table."""

    value: str
    percent: bool = False
    unit: tuple[Dimension, Fraction] | None = None
    base: str | None = None
    scale: int = 1


@lru_cache(maxsize=4096)
def split_quantity(text: str, *, letters: bool = False) -> Quantity:
    """Takes tidy text apart; with `letters`, a single letter after a space may be a unit (`5 m`) and no symbol."""
    value = _drop_prose(_PREFIX, _without_repetition(in_one_unit(text)))
    if whole := _WHOLE_TEXT.fullmatch(value):
        value = _drop_prose(_PROSE, whole.group(1).strip())
    sign, currency, value = _peel_currency(value)
    value, words = _peel_units(value, letters=letters, money=bool(currency))
    scale, words = _peel_scale(words, money=bool(currency))
    percent = value.endswith("%") or not _PERCENT_WORDS.isdisjoint(words.split())
    value = value.rstrip("% ")
    if value.endswith("°") and not _TRIGONOMETRIC.search(value):
        value, words = value.rstrip("° "), f"°{words}" if words in ("c", "f") else f"{words} °"
    if value[1:] and value[-1] in _SIGNS:
        currency, value = value[-1], value[:-1].strip()
    value, base = _split_base(value)
    return Quantity((sign + value).strip(), percent, _unit(f"{currency} {words}"), base, scale)


def in_one_unit(text: str) -> str:
    r"""`1 hour 30 minutes` -> `90 \text{ minutes}`: parts of one dimension, each less than one of the unit before."""
    if text.isdecimal() or not _COMPOUND.fullmatch(plain := _TEXTS.sub(r" \1 ", text).strip()):
        return text
    parts = [(Fraction(part[1]), _UNITS.get(part[2].lower()), part[2]) for part in _COMPOUND_PART.finditer(plain)]
    units = [unit or _UNITS.get(name.lower().removesuffix("s")) for _, unit, name in parts]
    if None in units or len({dimension for dimension, _ in units}) > 1:
        return text
    sizes = [size for _, size in units]
    falling = all(parts[i][0] * sizes[i] < sizes[i - 1] for i in range(1, len(parts)))
    total = sum(count * size for (count, *_), size in zip(parts, sizes, strict=True)) / sizes[-1]
    return rf"{total} \text{{ {parts[-1][2]}}}" if falling else text


def _without_repetition(text: str) -> str:
    r"""`\frac{3}{4} (0.75)` -> `\frac{3}{4}`: the same number again, in brackets after a space."""
    match = _REPEATED.fullmatch(text) if " (" in text else None
    if match is None or (first := number(split_quantity(match[1]))) is None:
        return text
    return match[1] if number(split_quantity(match[2])) == first else text


def _drop_prose(pattern: re.Pattern[str], text: str) -> str:
    """`\\text{Ben has } 12` -> `12`; words that may change the number stay, and make the answer unreadable."""
    match = pattern.match(text)
    if match is None or not re.search(r"[a-zA-Z]{2}", match.group(1)):
        return text
    said = re.findall(r"[a-z]+", match.group(1).lower().replace("n't", " not "))
    changed = not _NO_PREFIX.isdisjoint(said) or (said[-1] not in _VERBS and not _OPERATIONS.isdisjoint(said))
    changed = changed or (said[-1] == "of" and not _OPERATIONS_OF.isdisjoint(said))
    return text if changed else text[match.end() :]


def _peel_currency(value: str) -> tuple[str, str, str]:
    """The sign, the currency (empty if none) and what follows."""
    match = _CURRENCY.match(value)
    if match is None:
        return "", "", value
    currency = next(name for name in match.groups()[1:] if name)
    return match.group(1), currency.lower().rstrip("."), value[match.end() :]


def _peel_units(value: str, *, letters: bool, money: bool) -> tuple[str, str]:
    """Cuts words off the end; returns what is left and the words, powers written `^2`."""
    words = ""
    while True:
        value = value.rstrip()
        if match := _FRACTION_UNIT.search(value):
            found = f"{match.group(1)}/{match.group(2)}"
        elif (match := _TEXT_UNIT.search(value)) and _may_be_unit(value[: match.start()], match.group(2), words):
            found = match.group(1) + match.group(2).strip() + (f"^{match.group(3)}" if match.group(3) else "")
        elif (
            (match := _BARE_UNIT.search(value))
            and (
                _is_bare_unit(match.group(2), spaced=bool(match.group(1)), letters=letters)
                or _is_scale(match.group(2), value[: match.start()], letters=letters, money=money)
            )
            and _may_be_unit(value[: match.start()], match.group(2), words)
        ):
            found = match.group(1).strip() + match.group(2) + (f"^{match.group(3)}" if match.group(3) else "")
        else:
            return value, words.strip()
        words = f"{found} {words}"
        value = value[: match.start()]


def _may_be_unit(before: str, words: str, after: str) -> bool:
    if not before.strip() or before.rstrip()[-1] in "^_{(+-*/=<>,|":
        return False
    return _NO_UNIT.isdisjoint(re.findall(r"[a-z]+", words.lower())) and not _changes_number(before, words, after)


def _changes_number(before: str, words: str, after: str) -> bool:
    r"""Whether words right behind a number change it: `5 squared` and `5 tenths`, not `5 cm squared`."""
    said = re.findall(r"[a-z]+", words.lower())
    if not said or before.rstrip()[-1:].isalpha() or re.search(r"\\text\{[^{}]*\}$", before.rstrip()):
        return False
    alone = len(said) == 1 and not after
    first = said[0].removesuffix("s")
    part = first in _PARTS and (alone or said[0] != first)
    return part or (alone and said[0] in _POWERS | {"factorial", "pi", "tens"})


def _is_bare_unit(word: str, *, spaced: bool, letters: bool) -> bool:
    r"""Whether a word without `\text` is a unit and not a product of symbols: `5 m` and `5cm`, not `5m` or `5xy`."""
    lower = word.lower()
    if lower in _BARE or (len(word) > 2 and lower.removesuffix("s") in _BARE):
        return True
    if len(word) == 1:
        return letters and spaced and word in "mgshL"
    return spaced and len(word) > 2 and any(vowel in lower for vowel in "aeiouy")


def _is_scale(word: str, before: str, *, letters: bool, money: bool) -> bool:
    r"""Whether letters behind a number are a scale and no symbol: `\$5m`, and `5M` against a number."""
    known = (word in _SUFFIXES and (letters or money)) or (word == "m" and money)
    return known and exact_number(before) is not None


def _peel_scale(words: str, *, money: bool) -> tuple[int, str]:
    """What a first word such as `million` or `k` multiplies by, and the other words, lower case."""
    first, _, rest = words.partition(" ")
    scale = _SUFFIXES.get(first) or _SCALES.get(first.lower().removesuffix("s"))
    if first == "m" and (money or _unit(rest) == _UNIT_OF_MONEY):
        scale = 10**6
    return (scale, rest.lower()) if scale else (1, words.lower())


def _split_base(value: str) -> tuple[str, str | None]:
    match = _BASE.match(value)
    if match is None:
        return value, None
    name = re.sub(r"\\text\{([^{}]*)\}", r"\1", match.group(2) or match.group(3)).strip().lower()
    name = re.sub(r"^\(?\s*base\s*|\)$", "", name)
    digits = re.sub(r"\\text|[{}()]", "", match.group(1)).strip()
    name = _BASE_NAMES.get(name, name)
    if not name.isdecimal() or not re.fullmatch(r"-?[0-9A-Fa-f., ]*[0-9][0-9A-Fa-f., ]*", digits):
        return value, None
    return digits, name


def _unit(words: str) -> tuple[Dimension, Fraction] | None:
    """The dimension and size of a unit, None when a word is not in the table."""
    words = " ".join(_SPEEDS.get(word, word) for word in words.lower().replace("·", " ").split())
    words = words.replace(" per ", "/").replace("per ", "/").replace("squared", "^2").replace("cubed", "^3")
    powers: dict[str, int] = {}
    size, sign, factor = Fraction(1), 1, 1
    for token in re.findall(rf"/|{_WORD.pattern}|\^-?[0-9]", words):
        if token == "/":
            sign = -1
        elif token in ("square", "sq", "cubic", "cu"):
            factor = 2 if token.startswith("s") else 3
        elif token.startswith("^"):
            if not powers:
                return None
            extra = int(token[1:]) - 1
            powers[dimension] += sign * extra
            size *= unit_size ** (sign * extra)
        else:
            found = _UNITS.get(token) or _UNITS.get(token.removesuffix("s"))
            if found is None:
                return None
            dimension, unit_size = found
            powers[dimension] = powers.get(dimension, 0) + sign * factor
            size *= unit_size ** (sign * factor)
            factor = 1
    return (tuple(sorted(powers.items())), size) if powers and all(powers.values()) else None


def _clock(gold: Quantity, answer: Quantity) -> tuple[Quantity, Quantity]:
    """`6 pm` beside a time with minutes is `6:00 pm`."""
    noon = ((("after noon", 1),), (("before noon", 1),))
    if not (":" in gold.value or ":" in answer.value):
        return gold, answer
    hours = (side.unit is not None and side.unit[0] in noon and side.value.isdecimal() for side in (gold, answer))
    return tuple(
        replace(side, value=f"{side.value}:00") if hour else side
        for side, hour in zip((gold, answer), hours, strict=True)
    )


def split_pair(gold: str, answer: str) -> tuple[Quantity, Quantity]:
    """Takes two sides apart: a letter is a unit on one side only when the other is a number."""
    left, right = _clock(split_quantity(gold), split_quantity(answer))
    if exact_number(left.value) is not None:
        return left, split_quantity(answer, letters=True)
    if exact_number(right.value) is not None:
        return split_quantity(gold, letters=True), right
    return left, right


def number(quantity: Quantity) -> Fraction | None:
    """The exact number that a quantity stands for in its unit, None when its value is something else."""
    value = exact_number(quantity.value) if quantity.base is None else None
    return None if value is None else value * quantity.scale / (100 if quantity.percent else 1)


def last_place(quantity: Quantity) -> Fraction:
    """One in the last decimal of a decimal number, 0 for other values."""
    digits = quantity.value.lstrip("-+ ")
    if plain_decimal(digits) is None:
        return Fraction(0)
    return Fraction(quantity.scale, 10 ** len(digits.partition(".")[2]) * (100 if quantity.percent else 1))


def units_ratio(gold: Quantity, answer: Quantity) -> Fraction | None:
    r"""The factor that takes the answer's value to the gold unit; None when the units contradict each other.

    A rate may leave its denominator out (\$5 for \$5 per hour), then there is nothing to convert.
    """
    if gold.unit is None or answer.unit is None:
        return Fraction(1)
    (gold_powers, gold_size), (powers, size) = gold.unit, answer.unit
    if gold_powers == powers:
        return size / gold_size
    shared = dict(gold_powers).keys() & dict(powers).keys()
    within = set(gold_powers) < set(powers) or set(powers) < set(gold_powers)
    return Fraction(1) if shared and within else None
