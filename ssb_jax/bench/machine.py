"""What a figure was measured on, and the most memory that a process has had."""

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssb_jax.config import SsbError

STATUS = Path("/proc/self/status")


def machine(packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """Cores that this process may use, system, versions and date, for a benchmark's result."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in packages},
        "date": datetime.date.today().isoformat(),
        **more,
    }


def peak_memory() -> int:
    """The most memory that this process has held at once (its resident set's high-water mark), in bytes.

    From VmHWM: getrusage's ru_maxrss would start from what the parent process held when it forked.

    Raises:
      SsbError: this is not Linux.
    """
    if not STATUS.exists():
        raise SsbError(f"a process's peak memory is read from {STATUS}, which only Linux has; measure there")
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
