r"""Compares two expressions with sympy, read from LaTeX by latex2sympy2-extended (the parser of math-verify).

Numbers without symbols: equal as exact rationals, else equal when no digit of their difference is found with 1,000
digits. Expressions with symbols: the same, with 200, of their values at fixed random points where both are defined.
There is no tolerance that a model could use and no `simplify`, whose run time nobody can foresee. Still, arbitrary
text can take arbitrarily long here: run it under the limits of `pool`.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy.core.function import AppliedUndef

from ssb_jax.answers.exact import repeating_decimal
from ssb_jax.answers.latex import ROW
from ssb_jax.answers.relations import Interval, Region

_DIGITS = 15
_MOST_DIGITS, _MOST_POINT_DIGITS = 1000, 200  # with which a digit of a difference is sought
_POINTS = 8
_CONFIG = ConversionConfig(lowercase_symbols=False)
_IMAGINARY = ("i", "math{i}")
_MIXED = re.compile(r"(?<![0-9A-Za-z.^_}])([0-9]+)\s*(\\frac\{\s*[0-9]+\s*\}\{\s*[0-9]+\s*\})")  # 1\frac{1}{2}x
_PRIMED = re.compile(r"(?<![a-zA-Z\\])([a-zA-Z])('+)")  # C' is not C
_ARC = re.compile(r"[0-9]\s*'(?!')")  # minutes of arc, or feet
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}")
_UNDEFINED = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)


class UnreadableError(Exception):
    """The text is no expression that the parser knows."""


@dataclass(frozen=True)
class Result:
    """Whether two expressions are equal, and how that was found."""

    equal: bool
    reason: str


def equal_expressions(gold: str, answer: str, *, factor: Fraction = Fraction(1)) -> Result:
    """Whether `gold == factor * answer`, both tidy LaTeX."""
    if _CLOCK.fullmatch(gold) and gold == answer:
        return Result(True, "same time of day, or ratio")
    try:
        left, symbols = expression(gold)
    except UnreadableError:
        same = _letters(gold) == _letters(answer)
        return Result(same, "the gold answer is no expression; the texts " + ("agree" if same else "differ"))
    try:
        right, other_symbols = expression(answer)
    except UnreadableError as error:
        return Result(False, f"not understood: {error}")
    if other_symbols and not symbols:
        return Result(False, "a free symbol is no number")
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _equal(left, right if factor == 1 else right * sympy.Rational(factor.numerator, factor.denominator))
    return Result(bool(left == right), "sympy: compared as " + type(left).__name__)


def _letters(text: str) -> str:
    return re.sub(r"\\text|[^0-9a-z]", "", text.lower())


def equal_equations(gold: tuple[str, str], answer: tuple[str, str], *, ordered: bool = False) -> Result:
    """Whether two equations `left = right` are multiples of each other; positive multiples when `ordered`."""
    try:
        differences = [expression(left)[0] - expression(right)[0] for left, right in (gold, answer)]
    except (UnreadableError, TypeError) as error:
        return Result(False, f"not understood: {error}")
    f, g = differences
    if not f.free_symbols or not g.free_symbols:
        return Result(False, "an equation without a symbol")
    points, ratios = [], []
    for point in _points(f.free_symbols | g.free_symbols):
        values = [_value_at(side, point) for side in (f, g)]
        if None in values or values[0] == 0 or values[1] == 0:
            continue
        points.append(point)
        ratios.append(values[1] / values[0])
    # g(p) / f(p) is the same at every point: g(p) f(q) - f(p) g(q) vanishes, q the first point, its symbols named anew.
    anew = {symbol: sympy.Dummy(symbol.name) for symbol in f.free_symbols | g.free_symbols}
    crossed = g * f.xreplace(anew) - f * g.xreplace(anew)
    first = {anew[symbol]: value for symbol, value in points[0].items()} if points else {}
    if len(points) < 3 or not all(_vanishes(crossed, point | first) for point in points[1:]):
        return Result(False, "sympy: other equation")
    if ordered and not (ratios[0].is_real and ratios[0] > 0):
        return Result(False, "sympy: the inequality is turned round")
    return Result(True, "sympy: same equation up to a factor")


def equal_regions(gold: Region, answer: Region) -> Result:
    """Whether two parts of the real line are equal."""
    if len(gold.intervals) == len(answer.intervals) and not gold.without and not answer.without:
        pairs = list(zip(gold.intervals, answer.intervals, strict=True))
        if all(_same_interval(*pair) for pair in pairs):
            return Result(True, "same intervals")
    try:
        sets = [_set(region) for region in (gold, answer)]
    except UnreadableError as error:
        return Result(False, f"not understood: {error}")
    return Result(None not in sets and bool(sets[0] == sets[1]), "sympy: sets of reals compared")


def combine(parts: list[Region]) -> Region:
    """Inequalities in a list: all of them hold where that is possible, else any of them (`x < 1, x > 3`)."""
    joined = Region(tuple(interval for part in parts for interval in part.intervals))
    try:
        sets = [_set(part) for part in parts]
    except UnreadableError:
        return joined
    if None in sets:
        return joined
    common = sympy.Intersection(*sets)
    if not isinstance(common, sympy.Interval):
        return joined
    latex = [sympy.latex(end) for end in (common.start, common.end)]
    return Region((Interval(*latex, not common.left_open, not common.right_open),))


def _same_interval(gold: Interval, answer: Interval) -> bool:
    if (gold.low_closed, gold.high_closed) != (answer.low_closed, answer.high_closed):
        return False
    return equal_expressions(gold.low, answer.low).equal and equal_expressions(gold.high, answer.high).equal


class _ExactReader(_Latex2Sympy):
    """The library's reader, with exact numbers; its own way makes floats, through `eval` of the digits."""

    def parse_number(self, text: str) -> sympy.Rational:
        digits, _, power = text.replace(",", "").lower().partition("e")
        value = Fraction(digits) * Fraction(10) ** int(power or "0")
        return sympy.Rational(value.numerator, value.denominator)

    def convert_func(self, func):
        """An odd root of a real number is real: the cube root of -8 is -2."""
        read = super().convert_func(func)
        if not func.FUNC_SQRT() or not func.root or not read.is_Pow or not (1 / read.exp).is_odd:
            return read
        base = read.base.doit()
        names = {symbol.name for symbol in base.free_symbols}
        if base.is_nonnegative or not names.isdisjoint(_IMAGINARY) or not (names or base.is_extended_real):
            return read
        return sympy.sign(base) * sympy.Abs(base) ** read.exp


@lru_cache(maxsize=512)
def expression(text: str) -> tuple[sympy.Basic, bool]:
    """Reads tidy LaTeX, and says whether it is written with free symbols.

    Decimals become exact, `i` the imaginary unit; sums, derivatives and the like are carried out.

    Raises:
      UnreadableError: the parser refuses it.
    """
    if _ARC.search(text):
        raise UnreadableError(f"a prime behind a number in {text[:60]!r}")
    try:
        read = _ExactReader(is_real=None, convert_degrees=True, config=_CONFIG).parse(_for_parser(text))
    except (MemoryError, PermissionError):  # the limits of a grader, not an answer's fault
        raise
    except Exception as error:  # the parser raises bare Exception for a syntax error, and others for odd trees
        raise UnreadableError(f"{type(error).__name__} at {text[:60]!r}") from None
    if isinstance(read, sympy.MatrixBase):
        read = read.as_immutable()
    if not isinstance(read, sympy.Basic):
        raise UnreadableError(f"{type(read).__name__} at {text[:60]!r}")
    written, read = read, read.doit()
    seen = (read if written.has(sympy.Derivative) else written).free_symbols
    symbolic = any(symbol.name not in _IMAGINARY for symbol in seen)
    names = {symbol: sympy.I for symbol in read.free_symbols if symbol.name in _IMAGINARY}
    if names and isinstance(read, sympy.Expr):
        read = read.subs(names)
    return _unapplied(read), symbolic


def _for_parser(text: str) -> str:
    """Tidy LaTeX in the words that the parser knows."""
    if (repeating := repeating_decimal(text)) is not None:
        return rf"\frac{{{repeating.numerator}}}{{{repeating.denominator}}}"
    text = text.replace("°", r"^{\circ}").replace(ROW, r"\\").replace("%", "")
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", text)
    text = re.sub(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<![0-9])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)", r"\1\\frac{\2}{\3}", text)
    text = _MIXED.sub(r"(\1+\2)", text)
    text = _PRIMED.sub(lambda match: f"{match[1]}_{{prime{len(match[2])}}}", text)
    text = re.sub(r"(?<=[0-9.])[eE]([-+]?[0-9]+)(?![0-9a-zA-Z])", r" \\cdot 10^{\1}", text)
    text = re.sub(r"\)\s*\(", r")\\cdot (", text)
    text = re.sub(r"(?<![_^0-9.])([0-9.]+)\s*\(", r"\1\\cdot (", text)
    text = re.sub(r"\)\s*(?=[0-9]|\\frac)", r")\\cdot ", text)
    text = re.sub(r"\\log\s*_\s*([0-9a-z])(?=[0-9a-z(\\])", r"\\log_{\1}", text)
    text = re.sub(r"(?<=[0-9])\.(?![0-9])", "", text)
    return re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", text)


def _unapplied(read: sympy.Basic) -> sympy.Basic:
    """Unknown functions become symbols, `f(x + 1)` the symbol of that name, so that they can be evaluated."""
    applied = read.atoms(AppliedUndef)
    return read.xreplace({call: sympy.Symbol(f"<{call}>") for call in applied}) if applied else read


def _equal(gold: sympy.Expr, answer: sympy.Expr) -> Result:
    symbols = gold.free_symbols | answer.free_symbols
    if symbols:
        return _equal_at_points(gold, answer, symbols)
    if gold.is_Rational and answer.is_Rational:
        return Result(gold == answer, "exact rationals" + ("" if gold == answer else " differ"))
    if gold in _UNDEFINED or answer in _UNDEFINED:
        return Result(gold == answer and gold.is_extended_real is True, "infinite or undefined")
    if None in (_number(gold), _number(answer)):
        return Result(False, "sympy: no numerical value")
    equal = _vanishes(gold - answer)
    return Result(equal, f"sympy: {'equal to' if equal else 'differ within'} {_MOST_DIGITS} digits")


def _number(side: sympy.Expr, point: dict | None = None, *, most: int = 100) -> sympy.Expr | None:
    """The numerical value, complex or real; None when there is none."""
    value = side.evalf(_DIGITS, subs=point, maxn=most)
    parts = value.as_real_imag() if value.is_number else ()
    return value if parts and all(part.is_Float or part.is_Rational for part in parts) else None


def _vanishes(difference: sympy.Expr, point: dict | None = None) -> bool:
    """Whether its digits cannot be found, and it is tiny: sympy goes on with more digits until as many are sure as were
    asked for, or gives a number of lower precision, which is what errors of rounding left."""
    most = _MOST_DIGITS if point is None else _MOST_POINT_DIGITS
    value, sure = _number(difference, point, most=most), sympy.Float(1, _DIGITS)._prec
    tiny = sympy.Float(f"1e-{most // 2}")
    return value is not None and all(
        part == 0 or (part.is_Float and part._prec < sure and abs(part) < tiny) for part in value.as_real_imag()
    )


def _equal_at_points(gold: sympy.Expr, answer: sympy.Expr, symbols: Iterable[sympy.Symbol]) -> Result:
    used = 0
    for point in _points(symbols):
        values = [_value_at(side, point) for side in (gold, answer)]
        if None in values:
            continue
        if not _vanishes(gold - answer, point):
            return Result(False, "sympy: differ at a point")
        used += 1
    if used < 2:
        equal = gold.equals(answer) is True
        return Result(equal, "sympy: " + ("equal" if equal else "not shown equal"))
    return Result(True, f"sympy: equal at {used} points")


def _points(symbols: Iterable[sympy.Symbol]) -> Iterable[dict[sympy.Symbol, sympy.Rational]]:
    """The same points for everybody; the first half is positive, where roots and logarithms are defined."""
    generator = random.Random(2512)
    ordered = sorted(symbols, key=lambda symbol: symbol.name)
    for i in range(_POINTS):
        low = 1 if i < _POINTS // 2 else -3000
        yield {symbol: sympy.Rational(generator.randint(low, 3000), 1009) for symbol in ordered}


def _value_at(side: sympy.Expr, point: dict[sympy.Symbol, sympy.Rational]) -> sympy.Expr | None:
    """The value at a point; None where it is undefined or leaves the reals inside a root or a logarithm."""
    bases = [power.base for power in side.atoms(sympy.Pow) if power.exp.is_integer is not True]
    bases += [log.args[0] for log in side.atoms(sympy.log)]
    for base in bases:
        inside = base.evalf(15, subs=point)
        if inside.is_comparable and inside < 0:
            return None
    return _number(side, point)


def _set(region: Region) -> sympy.Set | None:
    """A set of reals, None when an end is not a real number."""
    joined: sympy.Set = sympy.S.EmptySet
    for interval in region.intervals:
        ends = [_real(end) for end in (interval.low, interval.high)]
        if None in ends:
            return None
        joined = joined + _interval(interval, *ends)
    points = [_real(point) for point in region.without]
    return None if None in points else joined - sympy.FiniteSet(*points)


def _interval(interval: Interval, low: sympy.Expr, high: sympy.Expr) -> sympy.Set:
    return sympy.Interval(low, high, not interval.low_closed, not interval.high_closed)


def _real(text: str) -> sympy.Expr | None:
    value, _ = expression(text)
    return value if isinstance(value, sympy.Expr) and value.is_extended_real and not value.free_symbols else None
