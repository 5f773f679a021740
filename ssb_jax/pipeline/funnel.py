"""How many questions are left after each step, and why the others are not."""

from collections import Counter
from pathlib import Path

from ssb_jax.artifacts import read_manifest
from ssb_jax.pipeline.run import Run
from ssb_jax.records import DropReason


def funnel(run: Run) -> dict[str, int]:
    """From questions to pairs: how many are left after each step, and `dropped: reason` for the others."""
    return funnel_of(run.folder)


def funnel_of(folder: Path) -> dict[str, int]:
    """The same of a run folder, from its manifests alone, however far it has come."""
    counts = {"questions": 0, "rolled out": 0, "mixed": 0, "hinted": 0, "verified": 0, "kept": 0}
    dropped: Counter[str] = Counter()
    if (questions := read_manifest(folder / "questions")) is not None:
        counts["questions"] = questions.counts["questions"]
    for block in sorted(folder.glob("blocks/*")):
        chosen, taught = read_manifest(block / "hints"), read_manifest(block / "teaching")
        if chosen is not None:
            counts["rolled out"] += chosen.counts["questions"]
            counts["mixed"] += chosen.counts["mixed"]
        if taught is not None:
            counts["hinted"] += taught.counts["hinted"]
            counts["verified"] += taught.counts["pairs"]
        for manifest in filter(None, (chosen, taught)):
            dropped.update({reason: manifest.counts.get(reason, 0) for reason in DropReason})
    pairs = read_manifest(folder / "pairs")
    counts["kept"] = 0 if pairs is None else pairs.counts["pairs"]
    return counts | {f"dropped: {reason}": number for reason, number in dropped.items() if number}
