"""A run's adapter for other tools: as a PEFT folder, or merged into a checkpoint that transformers and vLLM load.

Each folder holds a model card (model_card.py), and appears whole or not at all.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ssb_jax.artifacts import read_manifest, training_folder, write_atomically
from ssb_jax.config import SsbError, load_config
from ssb_jax.console import note
from ssb_jax.model.adapters import load_adapter, save_adapter, write_base
from ssb_jax.model.lora import merge
from ssb_jax.model.weights import save_model
from ssb_jax.model_card import model_card
from ssb_jax.workspace import Workspace


def export(run_folder: Path, *, peft: Path | None = None, merged: Path | None = None) -> None:
    """Writes the adapter of a finished run to `peft`, and the base with the adapter added to `merged`.

    A quantized base is merged as it was before it was quantized. Of a run of several rounds it is the last one's
    adapter, whose base is the round before.

    Raises:
      SsbError: the run has no finished adapter, or an output folder is not empty.
    """
    config = load_config(run_folder / "config.yaml")
    if config.rounds > 1:
        run_folder = run_folder / "rounds" / f"{config.rounds:02d}"
        if not (run_folder / "config.yaml").is_file():
            raise SsbError(f"{run_folder.parent.parent} has not begun its last round; run `ssb run` to its end first")
        config = load_config(run_folder / "config.yaml")
        note(f"the adapter of {run_folder}, whose base is {config.model.path}")
    training = training_folder(run_folder, config)
    trained = read_manifest(training)
    if trained is None:
        raise SsbError(f"{run_folder} has no finished adapter; run `ssb run` or `ssb distill` first")
    outs = [out.resolve() for out in (peft, merged) if out is not None]
    if len(outs) == 2 and (outs[0] in (outs[1], *outs[1].parents) or outs[1] in outs[0].parents):
        raise SsbError(f"expected two folders beside each other, got --peft {peft} and --merged {merged}")
    for out in (peft, merged):
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise SsbError(f"{out} is not an empty folder; choose another one")
    workspace = Workspace(config)
    if workspace.model_identity != trained.made_from["model"]:
        raise SsbError(
            f"the model at {config.model.path} is not the one that {run_folder} was trained on; put that one back, or "
            f"set model.path in {run_folder / 'config.yaml'} to where it is"
        )
    lora = load_adapter(training / "adapter", workspace.model.config, mesh=workspace.mesh)
    base = config.model.path
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    if peft is not None:
        with _appearing(peft) as part:
            save_adapter(lora, part, base=base)
            write_base(part, workspace.model_folder)
            card = model_card(run_folder, config=config, trained=trained, base=base, merged=False)
            write_atomically(part / "README.md", card)
    if merged is not None:
        with _appearing(merged) as part:
            if config.model.quantization != "none":
                note(f"the adapter learnt on the base in {config.model.quantization}; it is merged into the whole base")
                whole = config.model.model_copy(update={"quantization": "none"})
                workspace = Workspace(config.model_copy(update={"model": whole}))
            save_model(merge(workspace.model, lora), part, source_folder=workspace.model_folder)
            card = model_card(run_folder, config=config, trained=trained, base=base, merged=True)
            write_atomically(part / "README.md", card)


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` in one rename: after a crash it is there whole, or not at all."""
    out = out.resolve()
    part = out.with_name(f".{out.name}.part")
    if part.exists():
        shutil.rmtree(part)  # what a killed export left
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()  # it is empty
        part.rename(out)
    finally:
        if part.exists():
            shutil.rmtree(part)
