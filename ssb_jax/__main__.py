"""`python -m ssb_jax` is the command `ssb`."""

from ssb_jax.cli import main

main(prog_name="ssb")
