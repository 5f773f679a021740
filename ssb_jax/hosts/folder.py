"""The run folder of several processes where it is a URL: each works in a folder of its own machine.

A disk that all share shows what a process wrote before a `gather` to all that have come out of it. So does this: going
in, each process uploads what it wrote; coming out, it fetches what the others did. Nothing else knows of it.
"""

import contextlib
from pathlib import Path

from ssb_jax.hosts import group


def take_url(url: str, *, stack: contextlib.ExitStack, lasting: contextlib.ExitStack) -> Path:
    """This process's folder of the run at a URL, until `stack` ends.

    Args:
      lasting: ends after all processes have left the run (`joined`); until then process 0 keeps the lock.

    Raises:
      SsbError: on all processes, when one is refused.
    """
    from ssb_jax.remote import several  # imports fsspec, which a run on a disk does without

    found = []

    def lead() -> str:
        found.extend(lasting.enter_context(several.leading(url)))
        return found[1].card.token

    token = group.on_first(lead)
    mirror, lock = found or stack.enter_context(several.following(url, group.index(), token))
    part = stack.enter_context(several.working(mirror, lock))
    group.gather(None)
    stack.enter_context(group.exchanging(part))
    return part.folder
