"""The bench of the engine runs as a process of its own and prints one object."""

import json
import os
import subprocess
import sys
from pathlib import Path

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"


def test_bench_rollout_prints_one_object():
    few = "--questions.limit 2 --rollouts.num_samples 2 --rollouts.max_new_tokens 4 --compilation_cache null"
    result = subprocess.run(
        [sys.executable, "-m", "ssb_jax", "bench", "rollout", TINY, "--forced", *few.split()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": ""},  # one device, as a process of its own has
    )
    report = json.loads(result.stdout)
    assert report["warm"]["new_tokens"] == 2 * 2 * 4
    assert report["warm"]["tokens_per_second"] > 0
    assert report["settings"]["forced_length"]
    assert "tokens_per_second" in result.stderr
