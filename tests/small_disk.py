"""A small file system of its own, which tests fill, enlarge and make read-only."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, *, size):
    """Mounts one of `size` at the folder, made for it; yields a function that mounts it again with other options.

    Skips the test where mounting is not allowed.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)
