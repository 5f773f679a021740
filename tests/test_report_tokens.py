"""The report's shading against numpy: the KL of each reply token, and the likeliest tokens of both models."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from model_helpers import CONFIG, make_lora, make_model

from ssb_jax.report.tokens import _compare, _student_states


def test_kl_and_alternatives_equal_numpys():
    model, lora = make_model(), make_lora()
    tokens = np.arange(10, 22, dtype=np.int32)[None]
    teacher = np.asarray(model(tokens, positions=jnp.arange(12)[None])[0])[0]
    student = np.asarray(_student_states(model, lora, tokens))[0]
    head = np.asarray(model.head_weight(), np.float64)
    p, q = (scipy.special.softmax(states.astype(np.float64) @ head.T, axis=-1) for states in (teacher, student))
    found = [np.asarray(x) for x in _compare(model, teacher, student, "hidden")]
    assert found[0] == pytest.approx(scipy.special.rel_entr(p, q).sum(-1), abs=2e-5)
    assert found[0].max() > 0.01
    for probabilities, logp, ids in ((p, *found[1:3]), (q, *found[3:])):
        assert np.array_equal(ids, np.argsort(-probabilities, axis=-1)[:, : ids.shape[1]])
        assert np.exp(logp) == pytest.approx(np.take_along_axis(probabilities, ids, axis=-1), abs=1e-5)
    assert CONFIG.vocab_size == p.shape[1]
    dense = _compare(model, teacher @ head.T.astype(np.float32), student, "logits")
    assert np.asarray(dense[0]) == pytest.approx(found[0], abs=2e-5)
