"""`mesh: auto`: sizes that the devices have and the model divides, by the documented rule."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.config import SsbError, config_from_dict, dump_config, load_config
from ssb_jax.model.mesh import GENERATION, TRAINING, WEIGHTS_SHARE, auto_sizes, mesh_for
from ssb_jax.model.transformer import parameter_count
from ssb_jax.preflight.models import published_shapes

SHAPES = published_shapes()
TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"
GIB = 2**30


def sizes(name, devices, memory, stage=GENERATION, rows=4):
    shape = SHAPES[f"qwen2.5-{name}"]
    weights = 2 * parameter_count(shape)
    return tuple(auto_sizes(shape, weights=weights, devices=devices, memory=memory, stage=stage, rows=rows).values())


@pytest.mark.parametrize(
    ("name", "devices", "memory", "stage", "expected"),
    [
        ("0.5b", 4, 15.75, GENERATION, (2, 1, 2)),  # two key/value heads
        ("3b", 4, 15.75, GENERATION, (2, 1, 2)),
        ("3b", 1, 15.75, GENERATION, (1, 1, 1)),
        ("7b", 16, 15.75, GENERATION, (4, 1, 4)),
        ("32b", 16, 15.75, GENERATION, (1, 2, 8)),  # an eighth of the weights is more than 40 % of a chip
        ("32b", 8, 95.73, GENERATION, (1, 1, 8)),
        ("3b", 4, 15.75, TRAINING, (4, 1, 1)),
        ("3b", 16, 15.75, TRAINING, (4, 1, 4)),  # four examples have no use for more copies
        ("32b", 8, 95.73, TRAINING, (4, 1, 2)),
        ("32b", 4, 15.75, TRAINING, (1, 4, 1)),  # does not fit, whatever the mesh: preflight says so
    ],
)
def test_the_rule(name, devices, memory, stage, expected):
    assert sizes(name, devices, memory * GIB, stage) == expected


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(1, 64),
    st.sampled_from([16, 32, 95]),
    st.sampled_from([GENERATION, TRAINING]),
    st.integers(1, 32),
)
def test_every_choice_is_possible(name, devices, memory, stage, rows):
    shape = SHAPES[name]
    data, fsdp, tensor = sizes(name.removeprefix("qwen2.5-"), devices, memory * GIB, stage, rows)
    assert data * fsdp * tensor == devices
    assert shape.hidden_size % fsdp == 0
    assert shape.num_heads % tensor == shape.intermediate_size % tensor == shape.vocab_size % tensor == 0
    if fsdp > 1:
        assert 2 * parameter_count(shape) / tensor > WEIGHTS_SHARE * memory * GIB


def test_the_word_auto_is_a_setting():
    config = load_config(TINY, ["--mesh", "auto", "--model.path", "m"])
    assert config.mesh.rule == "auto"
    assert config_from_dict(config.model_dump(mode="json")) == config
    assert "rule: auto" in dump_config(config)
    mesh = mesh_for(config.mesh, SHAPES["qwen2.5-0.5b"], itemsize=4, memory=16 * GIB)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    with pytest.raises(SsbError, match="leave out data, fsdp and tensor"):
        load_config(TINY, ["--mesh.rule", "auto", "--mesh.tensor", "2"])
