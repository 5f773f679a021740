"""What XLA is told of training programs: the same numbers, not by the library that stores every intermediate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssb_jax.losses.closed import softened_kl
from ssb_jax.training import compiling


@pytest.fixture(autouse=True)
def forgotten():
    compiling._cpu_options.cache_clear()
    yield
    compiling._cpu_options.cache_clear()


def test_only_products_go_to_the_library():
    options = compiling.compiler_options("cpu")
    if options is None:
        pytest.skip("this XLA does not know the option")
    rng = np.random.default_rng(0)
    hidden, head, student = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((16, 64), (64, 512), (16, 512)))

    def value(hidden, head, student):
        return softened_kl(hidden @ head, student, 2.0)

    plain = jax.jit(value).lower(hidden, head, student).compile()
    chosen = jax.jit(value, compiler_options=options).lower(hidden, head, student).compile()
    np.testing.assert_allclose(chosen(hidden, head, student), plain(hidden, head, student), rtol=1e-5)

    library = "kind=kCustom"  # a fusion that XLA does not compile itself
    assert plain.as_text().count(library) > chosen.as_text().count(library) == 1  # the product


def test_other_platforms_are_left_alone():
    assert compiling.compiler_options("tpu") is None
    assert compiling.compiler_options("gpu") is None
    assert compiling.compiler_options() == compiling.compiler_options(jax.default_backend())


def test_an_xla_without_the_option_compiles_in_its_own_way(monkeypatch):
    monkeypatch.setattr(compiling, "_CPU", {"xla_cpu_of_a_later_year": "1"})
    assert compiling.compiler_options("cpu") is None


def test_a_value_that_it_refuses_is_an_error(monkeypatch):
    monkeypatch.setattr(compiling, "_CPU", {"xla_cpu_experimental_ynn_fusion_type": "NO_SUCH_KIND"})
    with pytest.raises(jax.errors.JaxRuntimeError):
        compiling.compiler_options("cpu")
