"""Broken versions of good files, for the fuzz tests: bytes changed anywhere, and JSON with hostile values in it."""

import copy
import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ssb_jax.config import SsbError

Result = TypeVar("Result")

# How many times the usual number of examples a fuzz test tries; the README's figures were made with 20.
FACTOR = float(os.environ.get("SSB_FUZZ", "1"))

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "../../../etc/passwd", "/dev/zero", "\x00", "𝟙", "NaN", "1", "${oc.env:HOME}", "{{ 1 }}", "a" * 5000),
    *([], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"a": {"a": []}}}, [0] * 200),
)
CHUNKS = (b"", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"{", b"[" * 3000, b'{"a":' * 3000, b'"', b"null\n", b"9" * 5000)


def fuzz(examples: int):
    """Settings of a fuzz test; a test that reads files takes what time it takes."""
    return settings(
        max_examples=max(1, int(examples * FACTOR)),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def refused(call: Callable[[], Result], named: str) -> Result | None:
    """What a call gives; None where it raises an SsbError, which must match `named`. Any other exception is a bug."""
    try:
        return call()
    except SsbError as error:
        message = str(error)
    assert re.search(named, message), message
    return None


@st.composite
def broken_bytes(draw, data: bytes) -> bytes:
    """One to three changes of a file: cut, overwritten, put in, taken out, or a part twice."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 40))
        change = draw(st.sampled_from(("cut", "overwrite", "insert", "remove", "double")))
        if change == "cut":
            data = data[:at]
        elif change == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            data = data[:at] + new + data[at + len(new) :]
        elif change == "insert":
            data = data[:at] + draw(st.one_of(st.sampled_from(CHUNKS), st.binary(max_size=16))) + data[at:]
        elif change == "remove":
            data = data[:at] + data[at + size :]
        else:
            data = data[: at + size] + data[at:]
    return data


@st.composite
def broken_json(draw, value: Any) -> Any:
    """One to three changes of a JSON value: something in it becomes hostile, goes away, or gets a neighbour."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(st.sampled_from(HOSTILE))
        holder, name = draw(st.sampled_from(places))
        change = draw(st.sampled_from(("replace", "replace", "delete", "add")))
        if change == "replace":
            holder[name] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        elif change == "delete":
            del holder[name]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("extra", "__class__", "", "id", "r", "data_offsets")))] = 1
        else:
            holder.append(copy.deepcopy(holder[name]))
    return value


def broken_json_bytes(value: Any) -> st.SearchStrategy[bytes]:
    """Broken JSON values as text, and broken texts of the good value."""
    good = json.dumps(value).encode()
    return st.one_of(broken_json(value).map(lambda x: json.dumps(x).encode()), broken_bytes(good))


def _places(value: Any):
    """(holder, key or index) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield value, name
        yield from _places(inner)
