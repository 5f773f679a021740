"""Starts `ssb` on many hosts: on this machine, TPU VMs, GKE, or through SkyPilot. `python -m launch --help`.

Needs click and PyYAML, not JAX: a laptop can launch. Every backend first makes a plan, a text that says exactly what
will be executed; `--dry-run` prints it, and without it the same text is executed.
"""
