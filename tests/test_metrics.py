"""metrics.jsonl: one row a step, whatever happened to the process in between."""

import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

from ssb_jax.config import SsbError
from ssb_jax.metrics import METRICS, open_metrics, read_metrics


def write_steps(folder, steps, done=0, **kwargs):
    with open_metrics(folder, done=done, **kwargs) as log:
        for step in steps:
            log.write(step, {"loss": 1.0 / step})
        log.sync()


def test_rows_beyond_the_checkpoint_are_written_again_once(tmp_path):
    write_steps(tmp_path, range(1, 8), tensorboard=False)
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    write_steps(tmp_path, range(5, 11), done=4, tensorboard=False)
    assert read_metrics(tmp_path) == [{"step": step, "loss": 1.0 / step} for step in range(1, 11)]


def test_a_new_run_starts_empty(tmp_path):
    write_steps(tmp_path, (1, 2), tensorboard=False)
    write_steps(tmp_path, (), done=0, tensorboard=False)
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_same_numbers_and_forgets_what_is_done_again(tmp_path):
    write_steps(tmp_path, (1, 2, 3))
    write_steps(tmp_path, (3, 4), done=2)
    first, second = (read_events(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    scalars = [(event.step, event.summary.value[0].simple_value) for event in first if event.summary.value]
    assert scalars == [(step, pytest.approx(1.0 / step)) for step in (1, 2, 3)]
    assert any(event.session_log.status == event.session_log.START and event.step == 3 for event in second)


def test_weights_and_biases_is_refused_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SsbError, match=r"ssb-jax\[wandb\]"):
        write_steps(tmp_path, (1,), tensorboard=False, wandb_project="p")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\nnot json\n')
    with pytest.raises(SsbError, match=r"metrics\.jsonl, line 2: expected the numbers of step 2"):
        read_metrics(tmp_path)


def read_events(path):
    """The records of a TensorBoard file: length (8 bytes), checksum (4), data, checksum (4)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events
