r"""Exact numbers: text -> `Fraction`, with no parser and no floating point.

Integers, decimals, fractions (`a/b`, `\frac{a}{b}`), mixed numbers, thousands separators, scientific notation,
repeating decimals. The caps of `limits` bound the cost. Only ASCII digits are digits.
"""

import re
from fractions import Fraction

_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]{1,3}(?: [0-9]{3})+"
_UNSIGNED = rf"(?:{_THOUSANDS}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_MAX_POWER = 400

_DECIMAL = re.compile(_UNSIGNED)
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*\{([0-9]{1,40})\}")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_SLASH = re.compile(rf"({_UNSIGNED})\s*/\s*(-?\s*(?:{_UNSIGNED}))")
_MIXED = re.compile(r"([0-9]+)\s*\\frac\{\s*([0-9]+)\s*\}\{\s*([0-9]+)\s*\}|([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_SCIENTIFIC = re.compile(
    rf"(?:({_UNSIGNED})\s*(?:\\times|\\cdot|x)\s*)?10\s*\^\s*(?:\{{\s*([-+]?\s*[0-9]+)\s*\}}|([0-9]+))"
    rf"|({_UNSIGNED})[eE]([-+]?[0-9]+)"
)
_SIGNS = re.compile(r"\s*([-+])\s*")


def exact_number(text: str) -> Fraction | None:
    """The number that tidy text spells out, None when it is anything else."""
    text, negative = text.strip(), False
    while (enclosed := _enclosed(text)) is not None:
        text = enclosed
    if sign := _SIGNS.match(text):
        text, negative = text[sign.end() :], sign.group(1) == "-"
        while (enclosed := _enclosed(text)) is not None:
            text = enclosed
    value = _unsigned(text)
    return -value if negative and value is not None else value


def plain_decimal(text: str) -> Fraction | None:
    """Digits with optional thousands separators and decimal point, unsigned."""
    if not _DECIMAL.fullmatch(text):
        return None
    digits = text.replace(",", "").replace(" ", "")
    whole, _, decimals = digits.partition(".")
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals))


def repeating_decimal(text: str) -> Fraction | None:
    r"""`0.1\overline{6}` is 1/6."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, fixed, period = match.groups()
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))


def _unsigned(text: str) -> Fraction | None:
    if (value := plain_decimal(text)) is not None:
        return value
    if match := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        return _quotient(exact_number(match.group(1)), exact_number(match.group(2)))
    if match := _MIXED.fullmatch(text):
        whole, over, under = (int(part) for part in match.groups() if part is not None)
        part = _quotient(Fraction(over), Fraction(under))
        return None if part is None else whole + part
    if match := _SCIENTIFIC.fullmatch(text):
        return _scientific(*match.groups())
    return repeating_decimal(text)


def _quotient(over: Fraction | None, under: Fraction | None) -> Fraction | None:
    return over / under if over is not None and under else None


def _scientific(*groups: str | None) -> Fraction | None:
    factor, braced, bare, e_factor, e_power = groups
    power = int((braced or bare or e_power or "0").replace(" ", ""))
    if abs(power) > _MAX_POWER:
        return None
    value = plain_decimal(factor or e_factor or "1")
    return None if value is None else value * Fraction(10) ** power


def _enclosed(text: str) -> str | None:
    """The inside of one pair of brackets around everything."""
    inside = text[1:-1]
    whole = text[:1] + text[-1:] in ("()", "{}") and not any(bracket in inside for bracket in "(){}")
    return inside.strip() if whole else None
