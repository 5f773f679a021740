"""A run of two hosts in a bucket, each with a folder of its own: killed, moved, damaged, in the end as on a disk."""

import json
import subprocess
import sys
from pathlib import Path

from hosts_faults import differences
from run_content import check_folder
from test_hosts import ENVIRONMENT

CASE = Path(__file__).with_name("hosts_remote_case.py")


def test_two_hosts_in_a_bucket_killed_and_moved_end_as_on_a_shared_disk(tmp_path):
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, CASE, tmp_path], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    done = json.loads(result.stdout)
    logs = {name: (tmp_path / f"{name}-0.log").read_text() for name in ("straight", "rollouts", "training", "end")}
    for name, status in {"straight": 0, "rollouts": -9, "training": -9, "end": 0}.items():
        assert done[name] == [status, status], logs[name]
    assert 12 <= done["rows"] < 24
    whole, damaged = done["damaged"]
    assert f"the checkpoint of step {damaged} " in logs["end"]
    assert f"continues after step {whole} of 24" in logs["end"]
    assert check_folder(tmp_path / "bucket") == []
    assert len(list((tmp_path / "bucket").glob("blocks/0000/rollouts/part-*.jsonl"))) == 2
    assert differences(tmp_path / "straight", tmp_path / "bucket", exactly=True) == []
