r"""What kind of object an answer is: a list, a tuple, an interval, a matrix, an equation, words, or one expression.

Looks only at the top level of tidy text (see `latex`) and leaves the leaves as text. Pure string work.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from ssb_jax.answers.exact import plain_decimal
from ssb_jax.answers.latex import ROW


@dataclass(frozen=True)
class Atom:
    """One expression, number or quantity."""

    text: str


@dataclass(frozen=True)
class Words:
    """Prose: a name, a direction, a choice; letters and digits only, lower case."""

    text: str


@dataclass(frozen=True)
class Seq:
    r"""Several values with their brackets: "" for a bare list, "(" ")" for a tuple or an open interval, "\{" "\}"..."""

    opening: str
    closing: str
    items: tuple["Value", ...]


@dataclass(frozen=True)
class Union:
    r"""Intervals joined with `\cup`."""

    items: tuple["Value", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells, each with the same number of cells."""

    rows: tuple[tuple["Value", ...], ...]


@dataclass(frozen=True)
class Relation:
    r"""`sides[0] operators[0] sides[1] ...`; the operators are = < > \le \ge \ne \approx \in."""

    sides: tuple[str, ...]
    operators: tuple[str, ...]


Value = Atom | Words | Seq | Union | Matrix | Relation

OPENING = ("(", "[", "\\{", "\\langle")
_CLOSING = (")", "]", "\\}", "\\rangle")
_TOKEN = re.compile(r"\\begin\{[a-z*]+\}|\\end\{[a-z*]+\}|\\text\{[^{}]*\}|\\[{}]|\\[a-zA-Z]+|\\.|\.\.\.|.", re.DOTALL)
_RELATIONS = {"=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in", "\\to", "\\rightarrow", "\\equiv"}
_MATRIX = re.compile(
    r"^(.*?)\\begin\{(?:[pbBvV]?matrix|smallmatrix|array)\*?\}(.*)\\end\{[a-zA-Z*]+\}\s*(.*)$", re.DOTALL
)
_LINES = re.compile(r"\\begin\{(?:cases|aligned|align\*?|gathered|split)\}(.*)\\end\{[a-z*]+\}", re.DOTALL)
_OUTWARD = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")  # ]1, 2[ is an open interval
_COLUMNS = re.compile(r"^\s*\{[lcr| ]*\}")
_SET_BUILDER = re.compile(r"^\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||:|\\colon)\s*(.+)$")
_ARTICLE = re.compile(r"^(?:the|an|a)\s+(?=[a-z])")
_SHORT_WORDS = {
    "yes", "no", "odd", "red", "one", "two", "six", "ten", "won", "now", "net",
}  # fmt: skip
_NAME = re.compile(r"[A-Z][a-z]?[aeiouy][a-z]?")
_EITHER_SIGN = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_MAX_DEPTH = 8


@lru_cache(maxsize=4096)
def parse(text: str, depth: int = 0) -> Value:
    """The structure of tidy text."""
    text = text.strip()
    if depth > _MAX_DEPTH or plain_decimal(text) is not None:
        return Atom(text)
    if (prose := words(text)) is not None:
        return Words(prose)
    if rows := _LINES.fullmatch(text):
        text = ", ".join(row.replace("&", " ") for row in rows.group(1).split(ROW) if row.strip())
    if outward := _OUTWARD.fullmatch(text):
        left, inside, right = outward.groups()
        text = ("(" if left == "]" else "[") + inside + (")" if right == "[" else "]")
    for separators in ({";"}, {","}):
        parts = split(text, separators)
        if len(parts) > 1 and all(parts):
            return Seq("", "", _items(parts, depth))
    union = split(text, {"\\cup", "\\bigcup"})
    if len(union) > 1 and all(union):
        return Union(tuple(parse(part, depth + 1) for part in union))
    sides, operators = split_relation(text)
    if operators and all(sides):
        return Relation(tuple(sides), tuple(operators))
    if (matrix := _matrix(text, depth)) is not None:
        return matrix
    if (grouped := _grouped(text, depth)) is not None:
        return grouped
    signs = both_signs(text)
    return Seq("", "", tuple(parse(part, depth + 1) for part in signs)) if len(signs) > 1 else Atom(text)


def words(text: str) -> str | None:
    r"""The letters of prose, lower case and without article; None when the text is mathematics.

    Prose is anything in `\text{}`, and bare letters from four on (`east`): `xyz` may be a product. Shorter bare text is
    prose when it is a common answer (`yes`) or looks like a name (`Bob`).
    """
    if text.lower() in _SHORT_WORDS or (len(text) == 3 and _NAME.fullmatch(text)):
        return text.lower()
    bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    if not re.fullmatch(r"[\sA-Za-zÀ-ÿ.,'()/&!?:\"-]*", bare) or not re.search(r"[A-Za-z]{2}", bare):
        return None
    if "\\text{" not in text and (not re.search(r"[A-Za-z]{4}", bare) or re.search(r"[(,]", bare)):
        return None
    plain = _ARTICLE.sub("", " ".join(bare.lower().split()))
    return re.sub(r"[^a-zà-ÿ]", "", plain)


def split(text: str, separators: set[str]) -> list[str]:
    """Splits at the separators that are outside all brackets. `|` is not a bracket: `|x|` has no separators inside."""
    parts, start, depth = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if depth == 0 and token in separators:
            parts.append(text[start : match.start()].strip())
            start = match.end()
        elif token in OPENING or token == "{" or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token == "}" or token.startswith("\\end"):
            depth = max(0, depth - 1)
    return [*parts, text[start:].strip()]


def split_relation(text: str) -> tuple[list[str], list[str]]:
    """The sides and the operators of a relation, at the top level."""
    sides, operators, start, depth = [], [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if depth == 0 and token in _RELATIONS:
            sides.append(text[start : match.start()].strip())
            operators.append({"\\to": "=", "\\rightarrow": "=", "\\equiv": "="}.get(token, token))
            start = match.end()
        elif token in OPENING or token == "{" or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token == "}" or token.startswith("\\end"):
            depth = max(0, depth - 1)
    sides.append(text[start:].strip())
    if operators and not sides[0]:  # a leading sign: "= 5", "\approx 5"
        sides, operators = sides[1:], operators[1:]
    return sides, operators


def both_signs(text: str) -> list[str]:
    r"""`a \pm b` -> the two values; anything else -> itself."""
    if not _EITHER_SIGN.search(text):
        return [text]
    upper = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text))
    return [re.sub(r"(^|[(,])\s*\+", r"\1", side) for side in (upper, lower)]


def _items(parts: list[str], depth: int) -> tuple[Value, ...]:
    """The parsed parts; one that stands for two values (a sign `\\pm`) gives both."""
    items: list[Value] = []
    for part in parts:
        value = parse(part, depth + 1)
        twice = isinstance(value, Seq) and not value.opening and len(both_signs(part)) > 1
        items.extend(value.items if twice else [value])
    return tuple(items)


def _grouped(text: str, depth: int) -> Value | None:
    """What is inside brackets that enclose the whole text."""
    tokens = list(_TOKEN.finditer(text))
    if not tokens or tokens[0].group() not in OPENING or tokens[-1].group() not in _CLOSING or len(tokens) < 3:
        return None
    level = 0
    for match in tokens[:-1]:
        level += (match.group() in OPENING or match.group() == "{") - (
            match.group() in _CLOSING or match.group() == "}"
        )
        if level == 0:
            return None
    opening, closing = tokens[0].group(), tokens[-1].group()
    inside = text[tokens[0].end() : tokens[-1].start()].strip()
    if opening == "\\{" and (builder := _SET_BUILDER.match(inside)):
        return parse(builder.group(2), depth + 1)
    separators = {";"} if len(split(inside, {";"})) > 1 else {","}
    parts = split(inside, separators)
    if not all(parts):
        return None
    if opening == "(" and closing == ")":
        if len(parts) == 1:
            return parse(inside, depth + 1)
        if len(both_signs(text)) > 1 and len(_EITHER_SIGN.findall(text)) == 1:  # two points
            return Seq("", "", tuple(parse(point, depth + 1) for point in both_signs(text)))
    return Seq(opening, closing, _items(parts, depth))


def _matrix(text: str, depth: int) -> Matrix | None:
    found = _MATRIX.match(text)
    if found is None or "\\begin" in found.group(2):
        return None
    before, body, after = (part.strip() for part in found.groups())
    if re.search(r"\\begin\{[vV]matrix", text):
        return None  # a determinant is a number
    factor = re.sub(r"[\[(]$|^\\mathbf\{[a-z]\}$", "", before).strip()
    transposed = bool(re.search(r"\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{T\})\s*\}?$", after))
    if re.sub(r"^[\])]|\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{T\})\s*\}?$", "", after).strip():
        return None
    factor = re.sub(r"\\(?:cdot|times)$", "", factor).strip()
    body = _COLUMNS.sub("", body)
    rows = [[cell.strip() for cell in split(row, {"&"})] for row in re.split(rf"{ROW}+|\\cr", body) if row.strip()]
    if not rows or any(len(row) != len(rows[0]) or not all(row) for row in rows):
        return None
    if transposed:
        rows = [list(column) for column in zip(*rows, strict=True)]
    cells = [[f"({factor})({cell})" if factor else cell for cell in row] for row in rows]
    return Matrix(tuple(tuple(parse(cell, depth + 1) for cell in row) for row in cells))
