"""Plans for clouds are bash scripts: what a dry run prints is what is executed, word for word."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping


def fill(template: str, values: Mapping[str, object]) -> str:
    """A script from its template: each `@name@` becomes the value, quoted for the shell."""
    return re.sub(r"@(\w+)@", lambda match: shlex.quote(str(values[match[1]])), template)


def execute(script: str) -> int:
    """Runs a script; returns its exit status. SIGINT and SIGTERM reach all that it started, and its trap cleans up."""
    process = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, process_group=0)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: os.killpg(process.pid, n)) for number in numbers}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cost(chips: int, price: float | None) -> str:
    """What is said before anything is created. Prices change and differ by zone, so they are the caller's."""
    if price is None:
        return f"cost: {chips} chips for as long as they exist; --price-per-chip-hour makes it an amount"
    return f"cost: {chips} chips x {price:g} = {chips * price:.2f} an hour for as long as they exist"
