r"""Units, scales, words and equations around a number: what is dropped, what counts, what makes the answer wrong."""

import pytest

from ssb_jax.answers import Grade, Outcome, grade
from ssb_jax.answers.grading import grade_cheaply, grade_fully
from ssb_jax.answers.relations import is_name


def _is_correct(gold: str, answer: str) -> bool:
    """The verdict, after checking that the cheap and the full path agree."""
    response = rf"\boxed{{{answer}}}"
    full, _ = grade_fully(answer, gold)
    cheap = grade_cheaply(response, gold)
    assert not isinstance(cheap, Grade) or cheap.outcome is full, (gold, answer, cheap)
    return grade(response, gold).outcome is Outcome.CORRECT


# Gold answer, then answers split at ` ; `.
EQUAL = [
    # minutes and seconds, not the functions
    ("45", r"45 \text{ min} ; 45 min ; 45\,\mathrm{min} ; 45 min/mile ; 45 \text{ sec} ; 45\text{min}"),
    (r"45 \text{ min}", r"45 ; 45 minutes ; 0.75 hours ; 45 min"),
    (r"5\sec x", r"5\sec(x) ; 5 sec x ; \frac{5}{\cos x}"),
    ("2", r"\min(2,3) ; min(2,3)"),
    # scales
    ("5000000", r"5M ; \$5M ; 5\text{M} ; \$5m ; 5\text{ m dollars} ; 5 mn"),
    ("5,000,000,000", r"5 bn ; 5\text{ bn} ; 5B ; \$5\text{ billion}"),
    ("70000", r"70k ; 70K ; \$70\text{k} ; 70\text{ k}"),
    (r"\$70{,}000", r"70k ; \$70k"),
    ("5k", r"5k ; 5 k ; 5\cdot k"),
    ("5K", r"5K ; 5\text{ K}"),
    (r"5\text{ m}", "5 ; 500 cm"),
    # several units
    ("3.5 hours", r"3 \text{ hours and } 30 \text{ minutes} ; 3 hours 30 minutes ; 210 minutes"),
    (r"90\text{ minutes}", r"1 hour 30 minutes ; 1 \text{ hour}, 30 \text{ minutes} ; 1\text{ h }30\text{ min}"),
    ("5 feet 6 inches", r"66 inches ; 5.5 feet ; 5\text{ ft }6\text{ in}"),
    (r"\$5.50", r"5\text{ dollars and }50\text{ cents}"),
    ("5 m/s", r"5\text{ m}/\text{s} ; 5\text{ m/s}"),
    ("18", r"\$18/\text{day} ; \$18/day ; 18/\text{day}"),
    # times, temperatures, ordinals
    ("6:00 PM", r"6 PM ; 6\text{ p.m.}"),
    ("9 a.m.", "9:00 AM"),
    ("20", r"20^{\circ} C ; 20°C ; 20^{\circ}\mathrm{C}"),
    ("3", r"3^{\text{rd}} ; 3^{rd} ; 3^\text{rd} ; 3rd"),
    # formatting, reasons, repetition
    ("5", r"\mathbf{x = 5} ; \large 5 ; 5, \text{ since } n>0 ; 5 \text{ because } n>0"),
    (r"\frac34", r"\frac{3}{4}\ (0.75) ; \frac{3}{4} (75\%)"),
    ("5", r"\text{number of factors: }5 ; \text{a total of }5 ; \text{the sum is }5 ; 5 more apples"),
    # roots
    ("-2", r"\sqrt[3]{-8} ; \sqrt[5]{-32}"),
    (r"-\frac12", r"\sqrt[3]{-\frac18}"),
    (r"-\sqrt[3]{2}", r"\sqrt[3]{-2}"),
    ("1", r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}"),
    (r"-\sqrt[3]{x}", r"\sqrt[3]{-x}"),
    ("x", r"\sqrt[3]{x^3}"),
    (r"\sqrt[3]{8i}", r"2\sqrt[3]{i}"),
    # two points
    (r"(\pm 1, 0)", r"(1,0),(-1,0) ; (-1,0),(1,0)"),
    (r"(1,0),(-1,0)", r"(\pm 1, 0)"),
    (r"\{\pm 1, 0\}", "0,1,-1"),
    # definitions
    ("5", r"x=5 ; 5=x ; f(2)=5 ; f(\frac12)=5 ; f(g(2))=5"),
    ("5", r"m+n=5 ; a^2+b^2=5 ; a^{2}+b^{10}=5 ; xy=5 ; \alpha+\beta=5 ; a_1+a_2=5"),
    ("5", r"P(X=2)=5 ; [ABC]=5 ; \lVert v\rVert=5 ; \|v\|=5 ; |AB|=5 ; |z|=5 ; \implies x = 5 ; \Rightarrow 5"),
    ("5", r"x=2+3=5 ; x=y=5 ; x = 5 = 5.0 ; f^{-1}(2)=5 ; 5\text{ dollars}=500\text{ cents}"),
    (r"\frac83", r"\frac83\approx 2.67 ; \frac83 \approx 2.66"),
]
DIFFERENT = [
    (r"45 \text{ min}", "45 sec ; 46 min"),
    ("5", r"5\sec x ; 5 sec(x) ; 5\max(2,3)"),
    ("5", r"5M ; 5\text{M} ; \$5M ; 5 bn ; 5\text{ bn} ; 5k ; 5K ; 5\text{ K} ; 5\text{ m dollars} ; \$5m ; 5m"),
    ("3", "3 hours 30 minutes"),
    ("30", "3 hours 30 minutes"),
    ("90 minutes", "1 hour 20 minutes"),
    ("6:00 PM", "6 AM ; 7 PM ; 6:30 PM"),
    ("5", r"5/\text{seven} ; 5/seven ; 5^{th} root ; 5'"),
    (r"20^\circ C", r"20^\circ F"),
    (r"\frac34", r"\frac{3}{4} (0.7) ; \frac{3}{4}(0.75)"),
    ("2", r"\sqrt[3]{-8} ; \sqrt[3]{8i}"),
    ("2i", r"\sqrt[3]{-8}"),
    ("-2", r"\sqrt[4]{-16}"),
    ("(1,0),(-1,0)", r"(0,\pm 1) ; (1,0)"),
    ("3", r"-x=3 ; 3=\text{wrong} ; 2x=3 ; x^{-1}=3 ; x(x-1)=3"),
    ("4", r"x^2=4 ; x^3=4 ; x^2+x=4 ; -xy=4 ; \frac1x=4 ; \sqrt{x}=4"),
    ("18", r"x = 12 = 18 ; 12=18 ; x=12, x=18 ; 18 \sim 20 ; 18\approx 20"),
    ("12", "x=12=18"),
    ("5", r"5\text{ is incorrect} ; 5\text{ is wrong} ; 5\text{ is not correct} ; \text{anything but }5"),
    ("5", r"\text{up to }5 ; 5\text{ at most} ; 5\text{ at least} ; 5 at most ; 5\text{ short} ; 5\text{ less}"),
    ("5", r"\text{a multiple of }5 ; \text{multiples of }5 ; \text{divisible by }5 ; \text{factor of }5"),
    ("5", r"\text{sum of }5 ; \text{product of }5 ; 5\text{ quarters} ; 5\text{ minus} ; 5 minus"),
    ("5", r"\text{almost }5 ; \text{nearly }5 ; \text{roughly }5"),
]


def _pairs(rows):
    return [(gold, answer) for gold, answers in rows for answer in answers.split(" ; ")]


def test_reading_a_name_takes_no_exponential_time():
    for piece in ("^{", "x^{", "x(", "f(x)", "a_{", "x,"):
        assert not is_name(piece * 500 + "!")


@pytest.mark.parametrize(("gold", "answer"), _pairs(EQUAL))
def test_the_same_said_otherwise_is_correct(gold, answer):
    assert _is_correct(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), _pairs(DIFFERENT))
def test_a_changed_number_or_a_condition_is_incorrect(gold, answer):
    assert not _is_correct(gold, answer)
