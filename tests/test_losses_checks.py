"""A loss that the targets cannot give is refused before anything is computed, with what to do."""

import jax
import jax.numpy as jnp
import pytest

from ssb_jax.config import SsbError
from ssb_jax.losses.checks import check_loss
from ssb_jax.losses.menu import MENU, resolve_loss


@pytest.mark.parametrize("name", list(MENU))
def test_every_loss_can_be_had_from_whole_distributions(name):
    for encoding in ("hidden", "logits"):
        check_loss(resolve_loss(name), encoding=encoding, views=("bare", "swapped", "hint_only"))


def test_few_words_are_enough_for_few_losses():
    for name, options in (("topk_kl", {"k": 100}), ("topk_kl", {"k": 20}), ("cross_entropy", {})):
        check_loss(resolve_loss(name, options), encoding="topk", top_k=100)
    check_loss(resolve_loss("ssb"), encoding="topk", top_k=100, kl_weight=0.0)  # cross-entropy alone
    for name in set(MENU) - {"topk_kl", "cross_entropy"}:
        with pytest.raises(
            SsbError, match=f"the loss {name} needs the teacher's whole distribution.* take distillation"
        ):
            check_loss(resolve_loss(name), encoding="topk", top_k=100)
    with pytest.raises(SsbError, match="k = 100 needs at least as many stored words, targets.top_k is 50; raise it"):
        check_loss(resolve_loss("topk_kl"), encoding="topk", top_k=50)


def test_missing_views_and_wrong_shapes_are_named():
    with pytest.raises(SsbError, match="under the prompt 'hint_only', and the targets have bare, swapped; add it"):
        check_loss(resolve_loss("purified"), encoding="hidden", views=("bare", "swapped"))
    for encoding in ("topk", "none"):
        with pytest.raises(SsbError, match="targets.views .* need whole distributions on disk; set targets.encoding"):
            check_loss(resolve_loss("cross_entropy"), encoding=encoding, views=("bare",))


def difference(teacher_logp, student_logp):
    return jnp.exp(teacher_logp) * (teacher_logp - student_logp)


def test_a_loss_of_your_own_may_need_the_whole_vocabulary():
    weights = jnp.arange(448.0)

    def weighted(teacher_logp, student_logp, info):
        top, where = jax.lax.top_k(teacher_logp, 100)
        return (weights[None] * difference(teacher_logp, student_logp)).sum(-1) + (top * where).sum(-1)

    check_loss(weighted, encoding="hidden", vocab_size=448)
    with pytest.raises(SsbError, match="the loss weighted fails in .*test_losses_checks.py, line [0-9]+: TypeError: "):
        check_loss(weighted, encoding="hidden", vocab_size=449)


@pytest.mark.parametrize(
    ("made_of", "found"),
    [
        (lambda values: values.mean(), r"shape \(\)"),
        (lambda values: values, r"shape \(17, 1024\)"),
        (lambda values: values.sum(-1, keepdims=True), r"shape \(17, 1\)"),
        (lambda values: 0.5, "a float"),
        (lambda values: None, "a NoneType"),
        (lambda values: (values.sum(-1), {}), "a tuple"),
        (lambda values: values.argmax(-1), "int32, which has no gradient"),
        (lambda values: values.sum(-1) > 0, "bool, which has no gradient"),
        (lambda values: values.sum(-1) * 1j, "complex64, which has no gradient"),
    ],
)
def test_what_is_not_one_real_number_a_token_is_refused(made_of, found):
    def loss(teacher_logp, student_logp, info):
        return made_of(difference(teacher_logp, student_logp))

    with pytest.raises(SsbError, match=rf"returned {found}; expected an array with one real number a token, \(C,\)"):
        check_loss(loss, encoding="hidden")


def raises(teacher_logp, student_logp, info):
    raise KeyError("mine")


def leaves(teacher_logp, student_logp, info):
    raise SystemExit(0)


def knows_no_info(teacher_logp, student_logp):
    return difference(teacher_logp, student_logp).sum(-1)


def takes_numbers(teacher_logp, student_logp, info):
    return jnp.array([float(x) for x in student_logp.sum(-1)])


def fixed_length(teacher_logp, student_logp, info):
    return jnp.ones(3) * student_logp.sum(-1)


@pytest.mark.parametrize("loss", [raises, leaves, knows_no_info, takes_numbers, fixed_length])
def test_a_loss_that_fails_is_named_with_its_reason(loss):
    with pytest.raises(SsbError, match=f"the loss {loss.__name__} fails.*: [A-Za-z]+: .*; expected a function of"):
        check_loss(loss, encoding="hidden")
