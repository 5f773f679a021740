"""A loss that the targets cannot give is refused before anything is computed, with what to do."""

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
    with pytest.raises(SsbError, match=r"returned shape \(\); expected one number a token, \(3,\): sum over the voc"):
        check_loss(lambda teacher_logp, student_logp, info: (teacher_logp - student_logp).mean(), encoding="hidden")
