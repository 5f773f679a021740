"""How many questions are left after each step, and why the others are not."""

from collections import Counter

from ssb_jax.artifacts import read_manifest
from ssb_jax.pipeline.run import Run, blocks, load_questions
from ssb_jax.records import DropReason


def funnel(run: Run) -> dict[str, int]:
    """From questions to pairs: how many are left after each step, and `dropped: reason` for the others."""
    counts = {"questions": len(load_questions(run)), "rolled out": 0, "mixed": 0, "hinted": 0, "verified": 0, "kept": 0}
    dropped: Counter[str] = Counter()
    for block, _ in blocks(run):
        chosen = read_manifest(run.block_folder(block, "hints"))
        taught = read_manifest(run.block_folder(block, "teaching"))
        if chosen is not None:
            counts["rolled out"] += chosen.counts["questions"]
            counts["mixed"] += chosen.counts["mixed"]
        if taught is not None:
            counts["hinted"] += taught.counts["hinted"]
            counts["verified"] += taught.counts["pairs"]
        for manifest in filter(None, (chosen, taught)):
            dropped.update({reason: manifest.counts.get(reason, 0) for reason in DropReason})
    pairs = read_manifest(run.folder / "pairs")
    counts["kept"] = 0 if pairs is None else pairs.counts["pairs"]
    return counts | {f"dropped: {reason}": number for reason, number in dropped.items() if number}
