"""The one exception class for errors that a user can act on."""


class SsbError(Exception):
    """An error a user can act on: what was expected, what came, what to do. The command line prints it and exits 1."""

    exit_status = 1
