"""What must hold of each loss of the menu, whatever its formula."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssb_jax.cli.losses import _resolved, _split
from ssb_jax.config import SsbError
from ssb_jax.losses import menu
from ssb_jax.losses.menu import MENU, TokenInfo, loss_identity, resolve_loss

C, V = 6, 11
IDS = jnp.arange(C, dtype=jnp.int32)
VIEWS = {
    name: jax.nn.log_softmax(jnp.asarray(np.random.default_rng(i).normal(size=(C, V)), jnp.float32))
    for i, name in enumerate(("swapped", "hint_only", "bare"), 100)
}
INFO = TokenInfo(IDS, IDS, jnp.full(C, C, jnp.int32), VIEWS)
DIVERGENCES = [name for name in MENU if name not in ("cross_entropy", "purified")]


def distributions(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return (jax.nn.log_softmax(jnp.asarray(rng.normal(size=(C, V)) * scale, jnp.float32)) for _ in range(2))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_zero_where_student_equals_teacher(name):
    teacher, _ = distributions()
    np.testing.assert_allclose(MENU[name](teacher, teacher, INFO), jnp.zeros(C), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "clipped_kl"])
def test_a_divergence_is_positive_elsewhere(name):
    for seed in range(5):
        assert (MENU[name](*distributions(seed), INFO) > 0).all()


@pytest.mark.parametrize("name", [name for name in MENU if name != "barycentre"])  # it has a stop-gradient
def test_gradient_is_the_numerical_one(name):
    teacher, student = distributions()
    check_grads(
        lambda s: MENU[name](teacher, jax.nn.log_softmax(s), INFO),
        (student,),
        order=1,
        modes="rev",
        rtol=2e-2,
        eps=1e-2,
    )


@pytest.mark.parametrize("name", list(MENU))
def test_words_of_probability_zero_do_no_harm(name):
    """Rows that only fill up a sharded vocabulary have logit -1e30: same value, finite gradient."""
    teacher, student = distributions()
    filled = [jnp.pad(x, ((0, 0), (0, 3)), constant_values=-1e30) for x in (teacher, student, *VIEWS.values())]
    info = dataclasses.replace(INFO, views=dict(zip(VIEWS, filled[2:], strict=True)))
    expected = MENU[name](teacher, student, INFO)
    np.testing.assert_allclose(MENU[name](*filled[:2], info), expected, rtol=2e-6, atol=1e-6)
    gradient = jax.grad(lambda s: jnp.sum(MENU[name](filled[0], jax.nn.log_softmax(s), info)))(filled[1])
    assert jnp.isfinite(gradient).all()
    assert not gradient[:, V:].any()


def test_limits_of_the_generalised_jsd():
    teacher, student = distributions()
    small = 1e-3
    near_forward = menu.jsd(teacher, student, INFO, beta=small) / small
    near_reverse = menu.jsd(teacher, student, INFO, beta=1 - small) / small
    np.testing.assert_allclose(near_forward, menu.ssb(teacher, student, INFO), rtol=0.02)
    np.testing.assert_allclose(near_reverse, menu.reverse_kl(teacher, student, INFO), rtol=0.02)
    assert (menu.jsd(teacher, student, INFO) <= np.log(2)).all()


def test_skew_kl_is_bounded_and_tends_to_the_kl():
    teacher, student = distributions(scale=20.0)
    assert (menu.skew_kl(teacher, student, INFO, alpha=0.1) <= -np.log(0.1) + 1e-5).all()
    teacher, student = distributions()
    near = menu.skew_kl(teacher, student, INFO, alpha=1e-6)
    np.testing.assert_allclose(near, menu.ssb(teacher, student, INFO), rtol=1e-3)
    mirrored = menu.skew_reverse_kl(teacher, student, INFO, alpha=0.3)
    np.testing.assert_allclose(mirrored, menu.skew_kl(student, teacher, INFO, alpha=0.3), rtol=1e-6)


def test_clipping_at_infinity_is_no_clipping_and_clips_no_more_than_asked():
    teacher, student = distributions()
    plain = menu.ssb(teacher, student, INFO)
    for clip in ("vocab", "token"):
        np.testing.assert_allclose(menu.clipped_kl(teacher, student, INFO, tau=1e9, clip=clip), plain, rtol=1e-6)
        assert (menu.clipped_kl(teacher, student, INFO, clip=clip) <= plain).all()
    assert (menu.clipped_kl(teacher, student, INFO, tau=0.05, clip="token") <= 0.05).all()
    with pytest.raises(SsbError, match="vocab or token, got 'row'"):
        menu.clipped_kl(teacher, student, INFO, clip="row")


def test_topk_kl_is_the_kl_of_lumped_distributions():
    teacher, student = distributions()
    np.testing.assert_allclose(menu.topk_kl(teacher, student, INFO, k=V), menu.ssb(teacher, student, INFO), rtol=1e-5)
    order = jnp.argsort(-teacher, axis=-1)
    lumped = []
    for x in (teacher, student):
        p = jnp.take_along_axis(jnp.exp(x), order, axis=-1)
        lumped.append(jnp.log(jnp.concatenate([p[:, :3], p[:, 3:].sum(-1, keepdims=True)], axis=-1)))
    np.testing.assert_allclose(menu.topk_kl(teacher, student, INFO, k=3), menu.kl(*lumped), rtol=1e-4)
    assert (menu.topk_kl(teacher, student, INFO, k=3) <= menu.ssb(teacher, student, INFO) + 1e-6).all()


def test_the_entropy_gate_opens_where_the_teacher_hesitates():
    teacher, student = distributions()
    reverse = menu.reverse_kl(teacher, student, INFO)
    tau = float(jnp.median(menu.entropy(teacher)))
    gated = menu.entropy_gate(teacher, student, INFO, tau=tau, k=3)
    hesitates = menu.entropy(teacher) > tau
    assert hesitates.any()
    assert not hesitates.all()
    np.testing.assert_allclose(gated, reverse + hesitates * menu.topk_kl(teacher, student, INFO, k=3), rtol=1e-6)


def test_contrast_weighs_tokens_by_what_the_right_hint_adds():
    teacher, student = distributions()
    e = teacher[IDS, IDS] - VIEWS["swapped"][IDS, IDS]
    factor = 1 + 0.5 * np.tanh(e / 0.02)
    kl = menu.ssb(teacher, student, INFO)
    np.testing.assert_allclose(menu.contrast(teacher, student, INFO), factor * kl, rtol=1e-5)
    np.testing.assert_allclose(
        menu.contrast(teacher, student, INFO, on="advantage"), -factor * student[IDS, IDS], rtol=1e-5
    )
    same = dataclasses.replace(INFO, views={"swapped": teacher})
    np.testing.assert_allclose(menu.contrast(teacher, student, same), kl, rtol=1e-6)  # nothing but style
    assert (menu.contrast(teacher, student, INFO, strength=3.0) >= 0).all()  # never unlearns a right reply
    with pytest.raises(SsbError, match="kl or advantage, got 'both'"):
        menu.contrast(teacher, student, INFO, on="both")


def test_purified_is_zero_at_its_target_and_takes_the_hint_alone_out():
    """Limits: a teacher that says no more than its hint leaves the base model; strength 0 too."""
    teacher, student = distributions()
    difference = np.asarray(teacher - VIEWS["hint_only"], np.float64)
    clipped = 10 * np.tanh((difference - difference.mean(-1, keepdims=True)) / 10)
    target = jax.nn.log_softmax(jnp.asarray(VIEWS["bare"] + clipped, jnp.float32))
    np.testing.assert_allclose(menu.purified(teacher, target, INFO), jnp.zeros(C), atol=1e-6)
    expected = menu.jsd(target, student, INFO)
    np.testing.assert_allclose(menu.purified(teacher, student, INFO), expected, rtol=1e-4)
    assert (menu.purified(teacher, student, INFO) > 0).all()
    to_the_base = menu.jsd(VIEWS["bare"], student, INFO)
    for found in (
        menu.purified(VIEWS["hint_only"], student, INFO),
        menu.purified(teacher, student, INFO, strength=0.0),
    ):
        np.testing.assert_allclose(found, to_the_base, rtol=1e-5)


def test_the_barycentre_lies_between_and_scales_the_gradient_of_the_reverse_kl():
    teacher, student = distributions()
    reverse = menu.reverse_kl(teacher, student, INFO)
    np.testing.assert_allclose(menu.barycentre(teacher, student, INFO, alpha_max=0.0), reverse, rtol=1e-5)
    a = 0.15 * (2 / (1 + np.exp(-10 * menu.jsd(teacher, student, INFO))) - 1)
    target = jax.nn.log_softmax((1 - a[:, None]) * teacher + a[:, None] * student)
    found = menu.barycentre(teacher, student, INFO)
    np.testing.assert_allclose(found, menu.kl(student, target), rtol=1e-5)
    assert (found < reverse).all()

    def gradient(loss):
        return jax.grad(lambda s: jnp.sum(loss(teacher, jax.nn.log_softmax(s), INFO)))(student)

    expected = (1 - a[:, None]) * gradient(menu.reverse_kl)
    np.testing.assert_allclose(gradient(menu.barycentre), expected, rtol=1e-4, atol=1e-6)


def test_a_view_that_is_not_stored_is_named():
    teacher, student = distributions()
    with pytest.raises(SsbError, match="prompt 'swapped', and the targets have no further prompt; add it to targets.v"):
        menu.contrast(teacher, student, dataclasses.replace(INFO, views={}))


def test_mixture_weights_of_zero_and_one_are_refused():
    teacher, student = distributions()
    with pytest.raises(SsbError, match="between 0 and 1, got 1"):
        menu.jsd(teacher, student, INFO, beta=1)


@pytest.mark.parametrize("name", list(MENU))
def test_each_loss_has_the_same_signature_and_a_docstring(name):
    parameters = list(inspect.signature(MENU[name]).parameters.values())
    assert [p.name for p in parameters[:3]] == ["teacher_logp", "student_logp", "info"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[3:])
    assert MENU[name].__doc__


def test_names_and_options_are_resolved():
    teacher, student = distributions()
    resolved = resolve_loss("jsd", {"beta": 0.25})
    np.testing.assert_array_equal(resolved(teacher, student, INFO), menu.jsd(teacher, student, INFO, beta=0.25))
    with pytest.raises(SsbError, match="did you mean reverse_kl"):
        resolve_loss("revers_kl")
    with pytest.raises(SsbError, match=r"jsd has no alpha; it has \['beta'\]"):
        resolve_loss("jsd", {"alpha": 0.5})


def test_a_loss_of_your_own_is_named_by_module_or_file(tmp_path, monkeypatch):
    source = "def twice(teacher_logp, student_logp, info, *, factor=2.0):\n    return factor * info.position\n"
    (tmp_path / "my_own_loss.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    for name in ("my_own_loss:twice", f"{tmp_path}/my_own_loss.py:twice"):
        np.testing.assert_array_equal(resolve_loss(name, {"factor": 3.0})(None, None, INFO), 3.0 * INFO.position)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    for name in ("no_such_module:f", f"{tmp_path}/missing.py:twice", "broken.py:f", "leaves.py:f"):
        with pytest.raises(SsbError, match="cannot be imported"):
            resolve_loss(name)
    with pytest.raises(SsbError, match="my_own_loss has no thrice"):
        resolve_loss("my_own_loss:thrice")


def test_a_loss_of_your_own_is_told_from_an_earlier_one_by_its_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def zero(teacher_logp, student_logp, info): ...\n")
    before = loss_identity(f"{file}:zero")
    assert before == loss_identity(f"{file}:zero") != {}
    file.write_text("def zero(teacher_logp, student_logp, info): return 1\n")
    assert loss_identity(f"{file}:zero") != before
    assert loss_identity("ssb") == {}


def test_a_function_that_does_not_say_what_it_takes_is_refused():
    with pytest.raises(SsbError, match="builtins:max' does not say what it takes"):
        resolve_loss("builtins:max")


def test_an_option_without_a_default_must_be_set(tmp_path):
    (tmp_path / "mine.py").write_text("def scaled(teacher_logp, student_logp, info, *, alpha): ...\n")
    with pytest.raises(SsbError, match=r"scaled needs alpha; set distillation.loss_options.alpha"):
        resolve_loss(f"{tmp_path}/mine.py:scaled")
    assert resolve_loss(f"{tmp_path}/mine.py:scaled", {"alpha": 1.0}).keywords == {"alpha": 1.0}


def test_a_list_of_losses_is_parted_outside_of_parentheses():
    assert _split("ssb, jsd(beta=0.1),kl, ssb") == ["ssb", "jsd(beta=0.1)", "kl"]
    for text in ("jsd(beta=0.1", "reverse_kl,jsd(beta=0.1"):
        with pytest.raises(SsbError, match=r"^--losses: 'jsd\(beta=0.1' is not a loss; expected a name"):
            [_resolved(name) for name in _split(text)]
