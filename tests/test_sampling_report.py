"""What the engine did is kept beside the answers and adds up over the calls that made them."""

import json

from ssb_jax.answering import EngineLog
from ssb_jax.sampling import EngineStats

FIRST = EngineStats(slots=8, programs=3, end_of_turn=5, new_tokens=100, slot_steps=200, seconds=2.0, decode_seconds=1.5)
SECOND = EngineStats(slots=4, programs=5, length=2, new_tokens=60, slot_steps=80, seconds=1.0, decode_seconds=0.5)


def test_calls_add_up_over_processes(tmp_path):
    path = tmp_path / ".engine.json"
    log = EngineLog(path)
    log.update(EngineStats(new_tokens=7))
    log.update(FIRST)  # of the same call, later
    log.end_call()
    log = EngineLog(path)  # a later process
    log.update(SECOND)
    total = log.total
    assert total == FIRST + SECOND
    assert (total.slots, total.programs) == (8, 5)
    assert (total.new_tokens, total.sequences, total.seconds) == (160, 7, 3.0)
    assert total.tokens_per_second == 160 / 3
    assert total.occupancy == 160 / 280
    assert log.shown()["tokens/s"] == 53
    assert log.shown()["cut off"] == 2
    assert json.loads(path.read_text())["new_tokens"] == 100
