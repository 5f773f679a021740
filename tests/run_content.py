"""What must hold of a run folder, whatever befell the run."""

import hashlib
import json
from pathlib import Path

from safetensors.numpy import load_file

from ssb_jax.artifacts import file_digest, read_jsonl
from ssb_jax.records import Rollout
from ssb_jax.store import open_store


def check_folder(folder: Path) -> list[str]:
    """No manifest without its data, no row twice, whatever befell the run."""
    wrong = []
    for path in folder.rglob("manifest.json"):
        for name, facts in json.loads(path.read_bytes())["files"].items():
            file = path.parent / name
            if not file.is_file() or file_digest(file) != facts["sha256"]:
                wrong.append(f"{path} vouches for {name}, which is not that")
    for path in folder.rglob("part-*.jsonl"):
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        keys = [(row["question_id"], row["sample"]) for row in rows]
        if len(set(keys)) < len(keys):
            wrong.append(f"{path} has a row twice")
    return wrong


def content(folder: Path) -> dict[str, str]:
    """Name -> digest of everything in a run folder that must not depend on interruptions."""
    found: dict[str, object] = {  # whichever process a row is of
        str(place.relative_to(folder)): sorted(
            repr(row) for path in place.glob("part-*.jsonl") for row in read_jsonl(path, Rollout)
        )
        for place in {path.parent for path in folder.rglob("part-*.jsonl")}
    }
    for pattern in ("verdicts.jsonl", "hints.jsonl", "lessons.jsonl", "pairs.jsonl", "questions.jsonl"):
        for path in sorted(folder.rglob(pattern)):
            found[str(path.relative_to(folder))] = path.read_bytes()
    store = open_store(folder / "targets")
    for name, entry in sorted(store.entries.items()):
        rows = load_file(store.folder / entry.shard)["targets"][entry.start : entry.start + entry.tokens]
        found[f"targets/{name}"] = rows.tobytes()
    rows = map(json.loads, (folder / "distillation/metrics.jsonl").read_text().splitlines())
    timed = ("seconds", "tokens_per_second")
    found["losses"] = [sorted((k, v) for k, v in row.items() if k not in timed) for row in rows]
    found["adapter"] = (folder / "distillation/adapter/adapter_model.safetensors").read_bytes()
    found["results"] = json.loads((folder / "evaluation/results.json").read_text())["sets"]
    return {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in found.items()}
