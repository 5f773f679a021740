"""Checkpoints: what comes back is what went in, and damage is passed over, said, and never trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from ssb_jax.checkpoint import checkpoints, restore, save
from ssb_jax.config import SsbError
from ssb_jax.model.sharding import make_mesh


def make_state(step, sharding=None):
    weights = jax.random.normal(jax.random.key(step), (16, 8))
    return {"weights": jax.device_put(weights, sharding), "step": jnp.int32(step)}


def saved(folder, steps, keep=2, **kwargs):
    with checkpoints(folder, keep=keep) as manager:
        for step in steps:
            save(manager, step, state=make_state(step, **kwargs), data={"next_index": step})


def read(folder, keep=2, **kwargs):
    with checkpoints(folder, keep=keep) as manager:
        return restore(manager, like=make_state(0, **kwargs))


def damage(folder, step):
    """Flips one bit of the arrays."""
    path = max((folder / str(step) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def assert_is_step(found, step):
    state, data = found
    assert data == {"next_index": step}
    assert state["step"] == step
    np.testing.assert_array_equal(state["weights"], make_state(step)["weights"])


def test_the_newest_comes_back_and_old_ones_go(tmp_path):
    assert read(tmp_path) is None
    saved(tmp_path, (3, 6, 9))
    assert_is_step(read(tmp_path), 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "9", "digests"]
    assert sorted(path.name for path in (tmp_path / "digests").iterdir()) == ["6.json", "9.json"]


def test_arrays_come_back_on_the_mesh_that_asks(tmp_path):
    sharding = NamedSharding(make_mesh(data=2, fsdp=4), Spec("fsdp", "data"))
    saved(tmp_path, (1,))
    state, _ = read(tmp_path, sharding=sharding)
    assert state["weights"].sharding == sharding
    np.testing.assert_array_equal(state["weights"], make_state(1)["weights"])


def test_a_damaged_checkpoint_is_passed_over_said_and_replaced(tmp_path, capsys):
    saved(tmp_path, (3, 6))
    damage(tmp_path, 6)
    assert_is_step(read(tmp_path), 3)
    assert "the checkpoint of step 6" in capsys.readouterr().err
    assert not (tmp_path / "6").exists()
    saved(tmp_path, (6,))
    assert_is_step(read(tmp_path), 6)


def test_a_whole_checkpoint_that_cannot_be_read_is_kept(tmp_path):
    """No older one takes its place: the files are as they were written, so something else is wrong."""
    saved(tmp_path, (3, 6))
    with checkpoints(tmp_path, keep=2) as manager:
        other = make_state(0) | {"more": jnp.zeros(3)}
        with pytest.raises(SsbError, match=r"checkpoint of step 6 .* is as it was written, and cannot be read"):
            restore(manager, like=other)
    assert_is_step(read(tmp_path), 6)


def test_what_a_kill_leaves_is_passed_over(tmp_path):
    saved(tmp_path, (3,))
    (tmp_path / "6.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    (tmp_path / "9" / "state").mkdir(parents=True)
    assert_is_step(read(tmp_path), 3)
    saved(tmp_path, (6, 9))
    assert_is_step(read(tmp_path), 9)


def test_without_any_readable_checkpoint_it_does_not_start_anew_by_itself(tmp_path):
    saved(tmp_path, (3, 6))
    damage(tmp_path, 3)
    damage(tmp_path, 6)
    with pytest.raises(SsbError, match=r"none of the checkpoints .* \(steps 3, 6\) can be read; delete"):
        read(tmp_path)
