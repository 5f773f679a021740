"""What the stages share: one copy of the weights, on the mesh that the stage at work wants."""

import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from ssb_jax.config import load_config
from ssb_jax.workspace import Workspace

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"


@pytest.fixture
def workspace():
    return Workspace(load_config(TINY, ["--mesh.rule", "auto", "--distillation.batch_size", "8"]))


def test_weights_are_laid_out_anew_for_training_and_back(workspace):
    """On 8 devices answering splits the heads, training copies the weights; numbers stay, and there is one copy."""
    answering, training = workspace.mesh, workspace.training_mesh
    assert (answering.shape["tensor"], training.shape["tensor"]) == (2, 1)
    kernel = workspace.model.attention
    before = jax.tree.map(np.array, workspace.model)
    old = [weakref.ref(leaf) for leaf in jax.tree.leaves(workspace.model)]
    for mesh in (training, answering):
        model = workspace.model_on(mesh)
        assert {leaf.sharding.mesh for leaf in jax.tree.leaves(model)} == {mesh}
        assert model.attention == kernel
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, model), before)
        assert workspace.model_on(mesh) is model
    assert {leaf() for leaf in old} == {None}


def test_equal_meshes_share_the_weights():
    one = Workspace(load_config(TINY, ["--mesh.data", "4", "--mesh.tensor", "2"]))
    assert one.model_on(one.training_mesh) is one.model
