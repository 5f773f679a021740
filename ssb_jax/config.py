class SsbError(Exception):
    """An error a user can act on: what was expected, what came, what to do."""
