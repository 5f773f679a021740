"""Many processes, one run: how they find each other, agree, share work, and stop together.

Every process runs the same command and goes through the same steps in the same order. Process 0 alone decides, grades
and writes what a folder has one of (`on_first`); answers and targets are made in shares, by each process on its own
devices, and written to files of its own; distillation is one program over all devices. All processes see one run
folder: on a disk that they share, or each a copy of what is in a bucket, which are alike after every `gather`
(folder.py). A run of one process goes the same ways, and none of this costs it anything.
"""

from ssb_jax.hosts.folder import take_url
from ssb_jax.hosts.group import (
    count,
    gather,
    index,
    is_first,
    joined,
    on_first,
    refuse_many,
    refuse_unseen,
    settle,
    share,
)
from ssb_jax.hosts.stopping import STOPPED, stop_if_asked, stopping_between_steps, stopping_on_sigterm

__all__ = [
    "STOPPED",
    "count",
    "gather",
    "index",
    "is_first",
    "joined",
    "on_first",
    "refuse_many",
    "refuse_unseen",
    "settle",
    "share",
    "stop_if_asked",
    "stopping_between_steps",
    "stopping_on_sigterm",
    "take_url",
]
