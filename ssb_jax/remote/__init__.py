"""Runs and inputs in object stores: any URL that fsspec opens (gs://bucket/run, s3://bucket/run).

Object stores know no append, no rename and no lock, so a run works in a folder of this machine, which is mirrored:

    start   take the lock there; unless this folder was the last one to work there, empty it and fetch everything
    run     every SSB_PUSH_SECONDS (30): upload what changed, in the order in which it was written; then delete there
            what is gone here
    end     the same once more; let go of the lock

Whatever a kill cuts off, the store holds a state that the folder was in: no manifest before its data. The next start
goes on from there, on any machine; on this one, from the folder itself. Several processes work in a folder each
(several.py). Only a URL imports this package, and fsspec.
"""

from ssb_jax.remote.inputs import fetched
from ssb_jax.remote.mirror import mirrored, working_folder
from ssb_jax.remote.store import try_out

__all__ = ["fetched", "mirrored", "try_out", "working_folder"]
