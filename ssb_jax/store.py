"""The target store: the teacher's distribution at each reply token, on disk, by question id.

    store.json              what all examples share: encoding, dtype, fingerprints of head and model
    index-00000.json        where each example lies, and the hash of its tokens; replaced after each shard
    00000-00000.safetensors the rows of all tokens of some examples (writer, shard)

What a token's row holds depends on the encoding:

    hidden  the state after the last norm: with the frozen head the exact logits at 2 x D bytes in bfloat16
    logits  the full vocabulary, 4 x V bytes in float32
    topk    the k largest logits and their ids; all others as one bucket, its logsumexp at some temperatures
    none    nothing: the teacher is computed again inside each training step

Each file appears whole or not at all, and an example counts as stored when the index names it, so a writer that was cut
off continues where it stopped. What does not fit, is missing or is not finite raises and names the example: no training
step ever goes on without its target.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jaxtyping import Array, Float, UInt
from pydantic import Field, NonNegativeInt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ssb_jax.artifacts import read_manifest, write_atomically
from ssb_jax.config import SsbError
from ssb_jax.model.sharding import leaf_name
from ssb_jax.model.transformer import Transformer
from ssb_jax.records import Pair

STORE = "store.json"
_SHARD = r"^[0-9]{5}-[0-9]{5}\.safetensors$"
_AGAIN = "delete the targets folder and run `ssb targets` again"


@dataclass(frozen=True)
class StoreInfo:
    """What all examples of a store share.

    Attributes:
      encoding: `hidden` (width D), `logits` (width V), `topk` (width k) or `none` (width 0).
      width: numbers a token.
      head: fingerprint of the head through which hidden states become logits.
      model: fingerprint of the teacher's weights and shape.
      temperatures: at which `topk` knows the mass of its bucket.
    """

    encoding: Literal["hidden", "logits", "topk", "none"]
    dtype: Literal["float32", "bfloat16"]
    width: NonNegativeInt
    head: str
    model: str
    temperatures: tuple[float, ...] = ()

    @property
    def columns(self) -> dict[str, tuple[int, str]]:
        """Name -> (width, dtype) of the arrays of which a row is made."""
        columns = {"targets": (self.width, self.dtype)}
        if self.encoding == "topk":
            columns |= {"ids": (self.width, "int32"), "tail": (len(self.temperatures), "float32")}
        return columns

    @property
    def bytes_per_token(self) -> int:
        return sum(width * jnp.dtype(dtype).itemsize for width, dtype in self.columns.values())


# Rows of an example: one array (R, width), or for `topk` one for each column.
Rows = Float[np.ndarray, "R X"] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """Where an example's targets lie: rows start .. start + tokens of a shard. `digest` identifies its token ids."""

    shard: str
    start: int
    tokens: int
    digest: str


_INFO = pydantic.TypeAdapter(StoreInfo)
_Start, _Tokens = Annotated[int, Field(ge=0, lt=2**62)], Annotated[int, Field(gt=0, lt=2**62)]  # an index has 64 bits
_Row = tuple[Annotated[str, Field(pattern=_SHARD)], _Start, _Tokens, str]  # an Entry
_INDEX = pydantic.TypeAdapter(dict[str, _Row])


def pair_digest(pair: Pair) -> str:
    """Hash of the tokens that the teacher read: hinted prompt and reply."""
    digest = hashlib.sha256()
    for ids in (pair.teacher_prompt_ids, pair.reply_ids):
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, "<i4").tobytes())
    return digest.hexdigest()[:32]


def store_info(
    model: Transformer, *, encoding: str, dtype: str, top_k: int = 0, temperatures: Sequence[float] = ()
) -> StoreInfo:
    """What a store of this teacher's targets says of itself.

    Raises:
      SsbError: `top_k` is not smaller than the vocabulary.
    """
    V = model.config.vocab_size
    if encoding == "topk" and not 0 < top_k < V:
        raise SsbError(
            f"targets.top_k is {top_k}, the vocabulary has {V} words; expected a number from 1 to {V - 1} (all of them "
            "are targets.encoding logits)"
        )
    width = {"hidden": model.config.hidden_size, "logits": V, "topk": top_k, "none": 0}[encoding]
    known = tuple(map(float, temperatures)) if encoding == "topk" else ()
    return StoreInfo(encoding, dtype, width, head_fingerprint(model), model_fingerprint(model), known)


def head_fingerprint(model: Transformer) -> str:
    """Identifies the output projection, bit by bit, on any mesh."""
    head = model.head_weight()
    return _describe("head", head)


def model_fingerprint(model: Transformer) -> str:
    """Identifies all weights and the shape of a model, bit by bit, on any mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    parts = sorted(_describe(leaf_name(path), leaf) for path, leaf in leaves)
    shape = json.dumps(dataclasses.asdict(model.config), sort_keys=True)
    return hashlib.sha256("\n".join([shape, *parts]).encode()).hexdigest()[:32]


def _describe(name: str, x: Array) -> str:
    low, high = np.asarray(_checksum(x))
    return f"{name} {x.dtype.name} {'x'.join(map(str, x.shape))} {high:08x}{low:08x}"


@jax.jit
def _checksum(x: Array) -> UInt[Array, "2"]:
    """Sum over elements of a hash of (position, bits), in wrapping 32-bit integers: the order does not matter."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)

    def mixed(seed: int) -> Array:
        h = bits ^ (position * jnp.uint32(0x9E3779B1) + jnp.uint32(seed))
        for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finalizer of MurmurHash3
            h = (h ^ (h >> 16)) * jnp.uint32(factor)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([mixed(0x243F6A88), mixed(0x13198A2E)])


class TargetWriter:
    """Adds examples to a store; a new one, or one that an interrupted writer left.

    Use as a context manager; examples reach the disk in shards, and `flush` writes what is pending.
    """

    def __init__(
        self,
        folder: Path,
        info: StoreInfo,
        *,
        writer: int = 0,
        shard_bytes: int = 256 << 20,
        flush_seconds: float = 30.0,
    ):
        """
        Args:
          writer: number of this process; each writes its own shards and index.
          shard_bytes, flush_seconds: a shard is written once it is this large or this old.

        Raises:
          SsbError: the folder holds targets of another model, encoding or dtype.
        """
        self.folder, self.info, self.writer = folder, info, writer
        self._shard_bytes, self._flush_seconds = shard_bytes, flush_seconds
        if (folder / STORE).exists():
            _refuse_other(folder, _read_info(folder), info)
        else:
            write_atomically(folder / STORE, json.dumps(dataclasses.asdict(info), indent=1))
        self._index = folder / f"index-{writer:05d}.json"
        self.entries = _read_index(self._index) if self._index.exists() else {}
        self._shards = len({entry.shard for entry in self.entries.values()})
        self._pending: list[tuple[str, str, dict[str, np.ndarray]]] = []
        self._last = time.monotonic()

    def __enter__(self) -> "TargetWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.flush()

    def has(self, pair: Pair) -> bool:
        """Whether this pair's targets are on disk.

        Raises:
          SsbError: targets are stored under its id for other tokens.
        """
        entry = self.entries.get(pair.question_id)
        if entry is not None:
            check_entry(pair, entry)
        return entry is not None

    def add(self, pair: Pair, values: Rows) -> None:
        """Takes the targets of a pair, one row a reply token.

        Raises:
          SsbError: the rows are not one a reply token, or one of them is not finite.
        """
        values, rows = dict(values) if isinstance(values, Mapping) else {"targets": values}, {}
        for name, (width, dtype) in self.info.columns.items():
            expected = (len(pair.reply_ids), width)
            if values[name].shape != expected:
                raise SsbError(f"targets of {pair.question_id}: expected shape {expected}, got {values[name].shape}")
            _check_finite(pair, values[name], "check the weights of the model, and its dtype")
            rows[name] = values[name].astype(jnp.dtype(dtype))
        self._pending.append((pair.question_id, pair_digest(pair), rows))
        size = sum(column.nbytes for _, _, rows in self._pending for column in rows.values())
        if size >= self._shard_bytes or time.monotonic() - self._last > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes pending examples as one shard, then the index that names them."""
        self._last = time.monotonic()
        if not self._pending:
            return
        shard = f"{self.writer:05d}-{self._shards:05d}.safetensors"
        pending = [rows for _, _, rows in self._pending]
        data = save({name: np.concatenate([rows[name] for rows in pending]) for name in self.info.columns})
        write_atomically(self.folder / shard, data)
        start = 0
        for question_id, digest, rows in self._pending:
            tokens = len(rows["targets"])
            self.entries[question_id] = Entry(shard, start, tokens, digest)
            start += tokens
        listing = {key: dataclasses.astuple(entry) for key, entry in self.entries.items()}
        write_atomically(self._index, json.dumps(listing, separators=(",", ":")))
        self._shards += 1
        self._pending = []


@dataclass(frozen=True)
class TargetStore:
    """A store open for reading, by question id."""

    folder: Path
    info: StoreInfo
    entries: dict[str, Entry]

    def read(self, pair: Pair) -> Rows:
        """The targets of a pair, one row a reply token, in the store's dtype.

        Raises:
          SsbError: naming the example: no targets, targets of other tokens, a damaged file, a number not finite.
        """
        entry = self.entries.get(pair.question_id)
        if entry is None:
            raise SsbError(f"no targets for {pair.question_id} in {self.folder}; run `ssb targets` again")
        check_entry(pair, entry)
        path = self.folder / entry.shard
        try:
            with safe_open(path, "np") as file:
                here = slice(entry.start, entry.start + entry.tokens)
                rows = {name: file.get_slice(name)[here] for name in self.info.columns}
        except (OSError, SafetensorError) as error:
            raise SsbError(f"targets of {pair.question_id}: {path} cannot be read ({error}); {_AGAIN}") from None
        for name, (width, dtype) in self.info.columns.items():
            if rows[name].shape != (entry.tokens, width):
                raise SsbError(f"targets of {pair.question_id}: {path} holds too few rows; {_AGAIN}")
            if rows[name].dtype != jnp.dtype(dtype):
                raise SsbError(f"targets of {pair.question_id}: {path} holds {rows[name].dtype} numbers; {_AGAIN}")
            _check_finite(pair, rows[name], _AGAIN)
        return rows if self.info.encoding == "topk" else rows["targets"]

    def check(self, pairs: Iterable[Pair], model: Transformer) -> None:
        """Says before the first step whether every pair has targets of its own tokens, made by this very model.

        Raises:
          SsbError: listing what does not match.
        """
        info = self.info
        made_with = store_info(
            model, encoding=info.encoding, dtype=info.dtype, top_k=info.width, temperatures=info.temperatures
        )
        _refuse_other(self.folder, info, made_with)
        if info.encoding == "none":
            return
        pairs = list(pairs)
        missing = [pair.question_id for pair in pairs if pair.question_id not in self.entries]
        if missing:
            raise SsbError(
                f"{len(missing)} of {len(pairs)} pairs have no targets in {self.folder} ({_first(missing)}); "
                "run `ssb targets` again"
            )
        for pair in pairs:
            check_entry(pair, self.entries[pair.question_id])


def open_store(folder: Path) -> TargetStore:
    """Opens a store for reading.

    Raises:
      SsbError: there is none in the folder, its index is damaged, or a file is not what the manifest of a complete
        store vouches for.
    """
    read_manifest(folder)
    info = _read_info(folder)
    entries: dict[str, Entry] = {}
    for index in sorted(folder.glob("index-*.json")):
        entries.update(_read_index(index))
    return TargetStore(folder, info, entries)


def _read_info(folder: Path) -> StoreInfo:
    try:
        return _INFO.validate_json((folder / STORE).read_bytes())
    except FileNotFoundError:
        raise SsbError(f"no targets in {folder} (no {STORE}); run `ssb targets` first") from None
    except (OSError, ValueError) as error:
        raise SsbError(f"{folder / STORE} cannot be read ({error}); {_AGAIN}") from None


def _read_index(path: Path) -> dict[str, Entry]:
    try:
        return {key: Entry(*values) for key, values in _INDEX.validate_json(path.read_bytes()).items()}
    except (OSError, ValueError) as error:
        raise SsbError(f"{path} cannot be read ({error}); {_AGAIN}") from None


def _refuse_other(folder: Path, stored: StoreInfo, wanted: StoreInfo) -> None:
    fields = [field.name for field in dataclasses.fields(StoreInfo)]
    different = [name for name in fields if getattr(stored, name) != getattr(wanted, name)]
    if different:
        what = "; ".join(f"{name}: stored {getattr(stored, name)}, now {getattr(wanted, name)}" for name in different)
        raise SsbError(f"{folder} holds targets of another model or setting ({what}); {_AGAIN}")


def check_entry(pair: Pair, entry: Entry) -> None:
    """Refuses targets that are stored under a pair's id for other tokens."""
    if entry.digest != pair_digest(pair) or entry.tokens != len(pair.reply_ids):
        raise SsbError(
            f"targets of {pair.question_id} were made for other tokens (another prompt, reply or tokenizer); {_AGAIN}"
        )


def _check_finite(pair: Pair, values: np.ndarray, fix: str) -> None:
    bad = ~np.isfinite(values.astype(np.float32)).all(axis=-1)
    if bad.any():
        raise SsbError(
            f"targets of {pair.question_id} are not finite at {bad.sum()} of {len(bad)} reply tokens, the first at "
            f"{bad.argmax()}; {fix}"
        )


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
