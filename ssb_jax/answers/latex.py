r"""One spelling for the many ways to write the same LaTeX: `tidy`. Pure string work on short text.

What it drops has no mathematical meaning (spacing, sizes, fonts, math delimiters, final full stop); what it rewrites
has one (`\dfrac` is `\frac`, `\frac12` is `\frac{1}{2}`, `10,\!080` is `10080`, `½` is `\frac{1}{2}`). Words are kept
in `\text{...}`, whatever font command they came in. Units, percent and currency signs are left for `quantities`.
"""

import re
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "±": r"\pm ", "√": r"\sqrt ",
        "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ",
        "º": "°", "˚": "°", "⟨": r"\langle ", "⟩": r"\rangle ", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⁰": "^{0}", "¹": "^{1}", "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "⁵": "^{5}", "⁶": "^{6}", "⁷": "^{7}",
        "⁸": "^{8}", "⁹": "^{9}", "，": ",", "：": ":", "；": ";", "（": "(", "）": ")", "。": ".", "％": "%",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2002": " ", "\u2003": " ", "\t": " ", "\n": " ", "\r": " ",
    }
)  # fmt: skip

# Characters of which `tidy` makes a command, a power or an operator.
SIGNS = "".join(chr(code) for code, written in _CHARACTERS.items() if written[0] in "\\^-/")

ROW = "␤"  # stands for LaTeX's row separator, two backslashes

_FONTS = "text|mbox|hbox|textbf|textit|textrm|texttt|textsf|textnormal|textup|mathrm|mathbf|mathit|mathsf|mathtt"
_FONTS += "|mathnormal|boldsymbol|bm|emph|rm|bf|operatorname\\*?"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min"
_SIZES = "left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|strut|mathstrut|bold"
_SIZES += "|normalsize|small|large|Large|LARGE|huge|Huge"
_ORDINAL = "(?:st|nd|rd|th)"

# In this order: a rule may rely on those before it. No pattern can backtrack more than quadratically.
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # thousands separators that cannot be anything else
        (r"(?<=[0-9])\s*,\s*\\!\s*(?=[0-9])", ""),
        (r"(?<=[0-9])\{,\}(?=[0-9]{3})", ""),
        (r"(?<=[0-9])\{,\}(?=[0-9])", "."),
        (r"\{:\}", ":"),
        (r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<=[0-9])\{\s*\\[,;:]\s*\}(?=[0-9]{3}(?![0-9]))", ""),
        # spacing and sizes
        (r"\\!", ""),
        (r"\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\(?:en|thin|med|thick)space(?![a-zA-Z])", " "),
        (r"\\[hv]space\*?\{[^{}]*\}", " "),
        (r"\\[hv]?phantom\s*\{[^{}]*\}", " "),
        (r"\\(?:left|right)\s*\.", " "),
        (rf"\\(?:{_SIZES})(?![a-zA-Z])", " "),
        (r"\\(?:label|tag)\*?\{[^{}]*\}", " "),
        (r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:therefore|checkmark|blacksquare)(?![a-zA-Z])", " "),
        (r"\s+", " "),  # before the rules that look around optional spaces
        # one name for each thing
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\{([^{}]+)\\choose\s*([^{}]+)\}", r"\\binom{\1}{\2}"),
        (r"\\[lr]?[vV]ert(?![a-zA-Z])|\\mid(?![a-zA-Z])|\\\|", "|"),
        (r"^\s*\\(?:implies|iff|(?:[Ll]ong)?[Rr]ightarrow)(?![a-zA-Z])", " "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\lbrack(?![a-zA-Z])", "["),
        (r"\\rbrack(?![a-zA-Z])", "]"),
        (r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])|<=|=<", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\(?:neq|not\s*=)(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:simeq|sim|doteq|cong)(?![a-zA-Z])", r"\\approx "),
        (r"\\ast(?![a-zA-Z])|(?<!\*)\*(?!\*)", r"\\cdot "),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:ldots|cdots|dots|dotsc|dotsb)(?![a-zA-Z])", "..."),
        (r"\\(?:Bbb|mathbf|mathrm|text)\s*\{R\}|\\R(?![a-zA-Z])|\\Re(?:als)?(?![a-zA-Z{])", r"\\mathbb{R}"),
        (r"\\(?:mathbf|mathrm|text)\s*\{Z\}|\\Z(?![a-zA-Z])", r"\\mathbb{Z}"),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))", "°"),
        (r"\\(?:text)?degrees?(?![a-zA-Z])", "°"),
        (r"\\(?:euro|texteuro)(?![a-zA-Z])", "€"),
        (r"\\(?:pounds|textsterling)(?![a-zA-Z])", "£"),
        (r"\\%", "%"),
        (r"\\p?mod\s*\{([^{}]*)\}|\\pmod\s*([0-9a-z])", r"\\text{ mod \1\2}"),
        (r"\\(?:operatorname|text|mathrm)\s*\{\s*a(?:rc)?(sin|cos|tan)\s*\}", r"\\arc\1 "),
        (r"(?<=[\s0-9{])([aApP])\.\s?[mM]\.?(?![a-zA-Z])", r"\1m"),
        # behind a number these are minutes and seconds, unless there is something to apply a function to
        (
            r"(?<=[0-9}.)])(\s*)"
            r"(?:\\(?:operatorname|mathrm|text|textrm)\s*\{\s*(min|sec)\.?\s*\}|(min|sec)(?![a-zA-Z])\.?)"
            r"(?!\s*(?:[({^_]|\\(?!text|mathrm)|[a-zA-Z](?![a-zA-Z])))",
            r"\1\\text{\2\3.}",  # with a point, so that the rules below leave them words
        ),
        # fonts: a single letter loses its font, words become \text{...}
        (rf"\{{\s*\\(?:{_FONTS})(?![a-zA-Z])\s+([^{{}}]*)\}}", r"\\text{\1}"),
        (rf"\\(?:operatorname|mathrm|text|textrm)\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (rf"\\(?:{_FONTS})\s*\{{", r"\\text{"),
        (r"\\text\{\s*\}", " "),
        (r"\\text\{([^{}]*=[^{}]*)\}", r" \1 "),
        (rf"(?<=[0-9])\s*\^\s*\{{\s*(\\text\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL})\s*\}}", r"\\text{th}"),
        (rf"(?<=[0-9])\s*\^\s*\\text\{{\s*{_ORDINAL}\s*\}}", r"\\text{th}"),
        (r"°\s*([CF])(?![a-zA-Z])", r"°\\text{\1}"),
        (r"(?<=[^\s,])\s*,?\s*\\text\{\s*,?\s*(?:since|because)(?![a-zA-Z]).*$", ""),  # the reason is no answer
        (r"\\text\{\s*pi\s*\}", r"\\pi "),
        (r"\\underline\s*\{([^{}]*)\}", r"\1"),
        (r"\\over(?:line|leftrightarrow)\s*\{\s*([A-Z]{2})\s*\}", r"\1"),
        (r"\\log\s*_\s*(?:e(?![a-zA-Z])|\{\s*e\s*\})", r"\\ln "),
        (r"\\math(?:cal|frak|scr)\s*\{([^{}]*)\}", r"\1"),
        # and, or
        (r"\s*,?\s*\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}\s*", ", "),
        (r"(?<=[0-9a-zA-Z)}\]])\s*,?\s+(?:and|or)\s+(?=[-+0-9a-zA-Z(\\])", ", "),
        (r"(?<=[)\]}])\s*(?:and|or)\s*(?=[(\[\\])", ", "),
        (r"\\(?:lor|vee)(?![a-zA-Z])", ","),
        # plain text mathematics
        (rf"(?<![\\a-zA-Z])({_FUNCTIONS}|sqrt|pi)(?=\s*[\s0-9({{^)\\,/*+-]|$)", r"\\\1"),
        (r"\^\s*(-\s*[0-9]+)", r"^{\1}"),
    ]
]  # fmt: skip

_ROOT = re.compile(r"√\s*([0-9]+)")
_TEXT = re.compile(r"\\text\{[^{}]*\}")
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_AND = re.compile(r"\s*,?\s+(?:and|or)\s+|\s*,\s*")
_LISTED = re.compile(
    r"\\text\{\s*((?:-?[0-9]+|\(?[A-Z]\)?)(?:(?:\s*,\s*|\s*,?\s+(?:and|or)\s+)(?:-?[0-9]+|\(?[A-Z]\)?))+)\s*\}"
)
_EMPHASIS = re.compile(r"^\s*\*\*(.*)\*\*\s*$", re.DOTALL)
_SPACES = re.compile(r"\s+")
_TEXT_WITH_MATH = re.compile(r"\\text\{([^{}$]*)\$([^{}$]*)\$([^{}$]*)\}")


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    """The text in our spelling."""
    text = text.strip()
    text = _TEXT_WITH_MATH.sub(r"\\text{\1} \2 \\text{\3}", text)
    text = _undollar(_ROOT.sub(r"\\sqrt{\1}", text).translate(_CHARACTERS).strip())
    if "\\\\begin" in text:
        text = text.replace("\\\\", "\\")  # backslashes doubled, as inside JSON
    elif "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z{}%$])", r"\\", text)
    text = text.replace("\\\\", ROW)
    text = _EMPHASIS.sub(r"\1", text.replace("\\$", "$"))
    text = _unwrap(_unwrap(text, "\\boxed"), "\\fbox")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _single_letters(text)
    text = _parenthesised_exponents(text)
    for command, count in (("\\frac", 2), ("\\binom", 2), ("\\sqrt", 1)):
        text = _brace_arguments(text, command, count)
    text = _SPACES.sub(" ", text).strip()
    return _trim(text)


def key(text: str) -> str:
    """Equal keys are equal answers: tidy text without its spaces, but for those between digits."""
    return _IDLE_SPACE.sub("", tidy(text))


def closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one at `start`."""
    depth = 0
    i = start
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
        i += 1
    return None


def _undollar(text: str) -> str:
    """Drops math delimiters; a dollar sign that is left is a currency."""
    text = re.sub(r"\\[()\[\]](?!\w)|\\[(\[]", " ", text) if re.search(r"(?<!\\)\\[(\[]", text) else text
    bare = re.findall(r"(?<!\\)\$", text)
    return re.sub(r"(?<!\\)\$", " ", text) if len(bare) % 2 == 0 else text


def _unwrap(text: str, command: str) -> str:
    r"""`\boxed{x}` -> `x`, wherever it stands."""
    while (start := text.find(command + "{")) >= 0:
        opening = start + len(command)
        end = closing_brace(text, opening)
        if end is None:
            return text
        text = text[:start] + text[opening + 1 : end] + text[end + 1 :]
    return text


def _single_letters(text: str) -> str:
    r"""`\text{x}` -> `x`, except for a unit after a number; `\text{12}` -> `12`; `\text{A and B}` -> `A, B`."""
    if match := _LISTED.fullmatch(text):
        return _AND.sub(", ", match.group(1))
    text = re.sub(r"\\text\{\s*([abefijknpqruvwxyz])\s*\}", r"\1", text)
    text = re.sub(r"(?<![0-9}°) ])\s*\\text\{\s*([a-zA-Z])\s*\}", r"\1", text)
    return re.sub(r"\\text\{\s*([-+]?[0-9][0-9.,/:]*)\s*\}", r"\1", text)


def _parenthesised_exponents(text: str) -> str:
    """`x^(n+1)` -> `x^{n+1}`."""
    start = 0
    while (at := text.find("^(", start)) >= 0:
        depth = 0
        for i in range(at + 1, len(text)):
            depth += (text[i] == "(") - (text[i] == ")")
            if depth == 0:
                text = text[: at + 1] + "{" + text[at + 2 : i] + "}" + text[i + 1 :]
                break
        start = at + 1
    return text


def _brace_arguments(text: str, command: str, count: int) -> str:
    r"""`\frac12`, `\frac\pi2`, `\sqrt3` -> with braces. From the right, so that inner arguments are braced first."""
    at = len(text)
    while (at := text.rfind(command, 0, at)) >= 0:
        i = at + len(command)
        if i < len(text) and text[i].isalpha():
            continue
        optional = ""
        rest = text[i:].lstrip()
        if command == "\\sqrt" and rest.startswith("[") and "]" in rest:
            optional, rest = rest[: rest.index("]") + 1], rest[rest.index("]") + 1 :]
        arguments = ""
        for _ in range(count):
            argument, rest = _argument(rest.lstrip(), whole_parentheses=command == "\\sqrt")
            arguments += "{" + argument + "}"
        text = text[:at] + command + optional + arguments + rest
    return text


def _argument(text: str, *, whole_parentheses: bool) -> tuple[str, str]:
    """Splits TeX's next argument off: a group, a command with its groups, or one character."""
    if text.startswith("{"):
        end = closing_brace(text, 0)
        return (text[1:end], text[end + 1 :]) if end is not None else (text[1:], "")
    if whole_parentheses and text.startswith("("):
        depth = 0
        for i, character in enumerate(text):
            depth += (character == "(") - (character == ")")
            if depth == 0:
                return text[1:i], text[i + 1 :]
    if command := re.match(r"\\[a-zA-Z]+(?:\[[^\]]*\])?", text):
        end = command.end()
        while text[end : end + 1] == "{" and (closing := closing_brace(text, end)) is not None:
            end = closing + 1
        return text[:end], text[end:]
    return text[:1], text[1:]


def _trim(text: str) -> str:
    """Drops what frames an answer: outer braces, quotes, final punctuation, a leading equals sign."""
    while True:
        before = text
        text = text.strip().strip('"`')
        if text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text[-1:] in (".", ",", ";", ROW, "\\") and not text.endswith("..."):
            text = text[:-1]
        text = text.removeprefix("=").removeprefix("\\approx")
        if text == before:
            return text
