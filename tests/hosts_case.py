"""What each process does in test_hosts.py: targets in shares, then distillation over the devices of all.

python tests/hosts_case.py FOLDER EPOCHS
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from distillation_case import make_config, make_model, make_pairs, make_workspace

from ssb_jax import hosts
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import model_shardings
from ssb_jax.stages import distillation, targets


def placed(model, mesh):
    """The model on a mesh, of which this process may hold a part."""

    def put(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda part: np.asarray(x)[part])

    return jax.tree.map(put, model, model_shardings(model, mesh))


def both_stages(root: Path, epochs: int, group_mesh) -> None:
    pairs = make_pairs(8)
    config = make_config(distillation={"epochs": epochs, "checkpoint_every": 1000}, targets={"batch_size": 2})
    mine = [device for device in group_mesh.devices.flat if device.process_index == jax.process_index()]
    model, mesh = make_model(), make_mesh(devices=mine)
    models = {m: placed(model, m) for m in (mesh, group_mesh)}
    workspace = SimpleNamespace(
        **vars(make_workspace(models[mesh], mesh)) | {"training_mesh": group_mesh, "model_on": models.__getitem__}
    )
    targets.run(pairs, config=config, folder=root / "targets", workspace=workspace)
    distillation.run(
        pairs, config=config, store_folder=root / "targets", folder=root / "distillation", workspace=workspace
    )


if __name__ == "__main__":
    with hosts.stopping_on_sigterm(), hosts.joined({}):
        both_stages(Path(sys.argv[1]), int(sys.argv[2]), make_mesh())
