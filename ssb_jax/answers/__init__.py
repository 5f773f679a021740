r"""Extracts final answers and decides whether they are right. Knows no model.

    grade(response, gold)          one response, in this process
    GraderPool().grade_many(...)   many responses, in processes that a hostile answer cannot leave
    verify_file, explain           for people
    strict_equal                   the published scripts' rule (equal strings), for reporting side by side

What an answer passes through: `extraction` finds the box, `limits` refuses what is too large, `latex` brings it into
one spelling, `exact` and `quantities` read numbers with units, `structure` finds its kind, `relations` reads equations
and inequalities, `equivalence` applies the rules, `symbolic` compares what is left with sympy.

Rules
-----

Pairs are written gold answer first.

| about | rule | equal | not equal |
| --- | --- | --- | --- |
| extraction | the last balanced `\boxed{}` or `\fbox{}` outside `<think>...</think>`; an empty box is no answer | | |
| integers, rationals | exact, never through floats | `6/8` `\frac34` | `9007199254740992` `9007199254740993` |
| decimals | exact, no rounding | `0.5` `\frac12`, `0.\overline{3}` `\frac13` | `0.333` `\frac13` |
| leading zeros | dropped | `025` `25` | |
| thousands | `,` `{,}` `,\!` and thin spaces between groups of three | `1,234` `1234` | `1,23` `123` |
| decimal comma | read when the gold answer has no comma | `0.5` `0,5` | |
| mixed numbers | the fraction is added | `1\frac45` `\frac95`, `1\frac12x` `1.5x` | `1\frac45` `\frac45` |
| scientific | `a \times 10^n` and `aEn` | `6.7 \times 10^{-5}` `.000067` | |
| percent | `p\%` is `p/100`, and `p` (not when the gold number is below 1) | `50\%` `50` `\frac12` | `0.5` `0.5\%` |
| currency, units | dropped against none, converted inside a dimension | `18` `\$18`, `1 m` `100 cm` | `5 cm` `5 kg` |
| compound quantities | added, in one dimension | `1 hour 30 minutes` `90 minutes` | `3 hours 30 minutes` `3` |
| letters after a number | units only after a space, against a number | `5` `5 m` | `5` `5m` |
| other words | dropped, unless they change it | `18` `18 \text{ eggs}` | `5` `5 \text{ squared}`, `5` `up to 5` |
| scale words | multiply | `3 \text{ million}` `3000000` | `3 \text{ million}` `3` |
| scale letters | k, K, M, mn, B, bn against a number; m of money | `\$5M` `5000000`, `70000` `70k` | `5` `5k` |
| degrees | `^\circ` is a unit, or pi/180 | `90^\circ` `90`, `60^\circ` `\frac{\pi}{3}` | `60^\circ` `\frac{\pi}{4}` |
| repeated in brackets | after a space, the same number is said twice | `\frac34` `\frac34 (75\%)` | `5` `5 (4)` |
| times, ratios | as they stand | `2:45` `2{:}45`, `3:5` `3 \text{ to } 5` | `6:30 pm` `6:30 am` |
| full hours | may leave `:00` out | `6:00 pm` `6 pm` | `6:00 pm` `6 am` |
| bases | digits and base are compared; a base missing on one side is not | `52_8` `52` | `52_8` `52_9`, `52_8` `42` |
| tuples, vectors | order counts | `(1, 2)` `(1,2)` | `(1,2)` `(2,1)` |
| sets, bare lists | order does not count; sets ignore repetition | `\{1,2\}` `2, 1` | `(1,2)` `\{1,2\}` |
| tuple and bare list | in the same order | `(1,2)` `1,2` | `(1,2)` `2,1` |
| `\pm` | two values, or two points | `1 \pm \sqrt2` `1+\sqrt2, 1-\sqrt2`, `(\pm 1, 0)` `(1,0),(-1,0)` | |
| odd roots | `\sqrt[n]` with odd n of a real number is real | `-2` `\sqrt[3]{-8}` | `-2` `(-8)^{1/3}` |
| intervals | ends and their kind count; inequalities and unions are intervals | `(2,5]` `2<x\le5` | `(2,5]` `[2,5]` |
| matrices | shape and cells; a tuple is a column | a column, a tuple | a row, a column |
| definitions | `name = value` is the value; two names must agree | `x=5` `5`, `.2` `P(X=2)=.2` | `x=5` `y=5` |
| combinations | of two names or more are names, so is a modulus | `33` `m+n=33`, `6` `xy=6` | `4` `x^2=4`, `3` `-x=3` |
| conditions | no value | | `5` `x+1=5` |
| chains | two different numbers are no value | `5` `x=2+3=5` | `18` `x=12=18` |
| `\approx` | differs by less than one in the last decimal | `\frac13` `x=\frac13\approx 0.33` | `18` `18\approx 20` |
| equations | equal up to a factor | `2x+y=3` `y=3-2x` | `2x+y=3` `2x+y=4` |
| expressions | equal wherever both are defined | `x(x+1)` `x^2+x` | `\sqrt{x^2}` `x` |
| symbols | case counts; a free symbol is no number | `3R^2` `3R \cdot R` | `3R^2` `3r^2`, `R` `r`, `5x` `5` |
| words | case, articles and punctuation do not count | `\text{Evelyn}` `evelyn` | `True` `1`, `7` `seven` |
| letters in order | as they stand | `SAS` `SAS` | `SAS` `SSA` |
| multiple choice | one letter, or the value behind it | `\text{(C)}` `C`, `(C) 42` `42` | `C` `D`, `A` `A. B` |
| infinity | equals itself only | `\infty` `\infty` | `\infty` any number |

Outcomes: correct, incorrect; unanswered and truncated (no box; truncated when the token limit was reached); timeout
(the grader's limit, never incorrect); failed (too large, out of memory, or the algebra system broke; the reason says
which).
"""

from ssb_jax.answers.extraction import extract_answer
from ssb_jax.answers.files import explain, verify_file
from ssb_jax.answers.grading import Grade, grade, strict_equal
from ssb_jax.answers.pool import GraderPool
from ssb_jax.records import Outcome

__all__ = ["Grade", "GraderPool", "Outcome", "explain", "extract_answer", "grade", "strict_equal", "verify_file"]
