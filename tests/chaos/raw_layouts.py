"""Where the parts of an index lie, in Redis and in a bucket: by their KEYSPACE.md, without any code of the product.

What they hold is `raw_index`'s business. Not safe for threads; `close` lets go of the connection, and the next request
makes it anew. What cannot be read now raises one of `AWAY`.
"""

import hashlib
import json
import re
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import redis
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.exceptions import CouchbaseException, DocumentNotFoundException
from couchbase.options import ClusterOptions, ClusterTimeoutOptions, GetMultiOptions
from couchbase.transcoder import Transcoder

from devbucket import DevBucketConfig
from tests.support.redis_any import open_any

AWAY = (redis.RedisError, redis.exceptions.RedisClusterException, CouchbaseException)
"""What a store raises that cannot be read now."""
AT_ONCE = 200
"""Keys asked for in one round trip."""
N_SLOTS = 64
N_LISTS = 1024
MAX_NAME_BYTES = 100

_LENGTH = struct.Struct(">I")
_CHANNEL_KEY = re.compile(rb"\{(\d+)\}:c:(.*)", re.DOTALL)


class RawRecord(NamedTuple):
    """A partition's record, its archive included, as it is stored."""

    epoch: int
    checkpoints: bytes
    history: bytes
    archived: int
    archive: bytes


class Group(NamedTuple):
    """What the directory of a channel says of one group.

    `clock` sums up what is before byte `upto` of block `active`; None: it is that block's header. `before` are the
    bytes of all earlier blocks, `dropped` of those before block `first`: they were compacted.
    """

    name: str
    active: int
    before: int
    upto: int | None
    clock: bytes | None
    first: int = 0
    dropped: int = 0


class Layout(ABC):
    """One index in one store."""

    @abstractmethod
    def meta(self) -> dict[str, Any] | None:
        """The meta record; None if there is none."""

    @abstractmethod
    def checkpoints(self, n_partitions: int, width: int) -> list[bytes | None]:
        """The checkpoints of each partition of *width* vbuckets."""

    @abstractmethod
    def record(self, n_partitions: int, width: int, partition: int) -> RawRecord:
        """The record of a partition, which is there."""

    @abstractmethod
    def channels(self) -> Iterator[str]:
        """Each channel, once."""

    @abstractmethod
    def groups(self, channel: str) -> Iterator[Group]:
        """Each group that wrote a channel."""

    @abstractmethod
    def blocks(self, channel: str, group: str, numbers: range) -> Iterator[bytes | None]:
        """Blocks of a channel in a group; None for one that is missing."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection."""


def layout_of(url: str, name: str, timeout_s: float = 5.0) -> Layout:
    """The layout of the index *name* in the store at *url*."""
    return (BucketLayout if url.startswith("couchbase") else RedisLayout)(url, name, timeout_s)


class RedisLayout(Layout):
    """An index in a Redis, a cluster, or the Sentinels' master."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._prefix = f"ci:{name}:".encode()
        self._opened: Any = None

    @property
    def _client(self) -> Any:
        self._opened = self._opened or open_any(self._url, self._timeout_s)
        return self._opened

    def meta(self) -> dict[str, Any] | None:
        """See `Layout`."""
        return json.loads(self._client.get(self._prefix + b"{i}:meta") or b"null")  # type: ignore[no-any-return]

    def checkpoints(self, n_partitions: int, width: int) -> list[bytes | None]:
        """See `Layout`."""
        more = {} if "+cluster" in self._url else {"transaction": False}
        asked = self._client.pipeline(**more)
        for partition in range(n_partitions):
            asked.hget(self._prefix + b"{i}:p:%d" % partition, "ck")
        return asked.execute()  # type: ignore[no-any-return]

    def record(self, n_partitions: int, width: int, partition: int) -> RawRecord:
        """See `Layout`."""
        fields = self._client.hgetall(self._prefix + b"{i}:p:%d" % partition)
        archive = self._client.get(self._prefix + b"{i}:h:%d" % partition) or b""
        return RawRecord(int(fields[b"epoch"]), fields[b"ck"], fields[b"hist"], int(fields[b"archived"]), archive)

    def moments(self, partition: int) -> set[bytes]:
        """The times and epochs of the moments of a partition, as they are stored."""
        return set(self._client.hkeys(self._prefix + b"{i}:t:%d" % partition))

    def keys(self, pattern: str) -> list[bytes]:
        """The keys of the index that match *pattern* behind its prefix, in order."""
        return sorted(set(self._client.scan_iter(match=self._prefix + pattern.encode(), count=1000)))

    def exists(self, key: bytes) -> bool:
        """Whether there is a key."""
        return bool(self._client.exists(key))

    def delete(self, key: bytes) -> bool:
        """Delete a key; whether it was there."""
        return bool(self._client.delete(key))

    def directory_key(self, channel: str) -> bytes:
        """The key of a channel's directory."""
        return self._key(channel, b"c:")

    def block_key(self, channel: str, group: str, number: int) -> bytes:
        """The key of a block."""
        return self._key(channel, b"b:%s:%d:" % (group.encode(), number))

    def channels(self) -> Iterator[str]:
        """See `Layout`. One under another slot than its own, no reader could find."""
        for key in sorted(set(self._client.scan_iter(match=self._prefix + b"{*}:c:*", count=1000))):
            found = _CHANNEL_KEY.fullmatch(key.removeprefix(self._prefix))
            if found and int(found[1]) == _slot_of(found[2]):
                yield found[2].decode()

    def groups(self, channel: str) -> Iterator[Group]:
        """See `Layout`."""
        fields = self._client.hgetall(self.directory_key(channel))
        for name, value in sorted(fields.items()):
            if name.startswith(b"g"):
                number, _, *sizes = value.split(b":")
                before, upto, first, dropped = map(int, sizes)
                clock = fields.get(b"k" + name[1:], b"")
                yield Group(name[1:].decode(), int(number), before, upto, clock, first, dropped)

    def blocks(self, channel: str, group: str, numbers: range) -> Iterator[bytes | None]:
        """See `Layout`."""
        keys = (self.block_key(channel, group, number) for number in numbers)
        while chunk := list(islice(keys, AT_ONCE)):
            yield from getattr(self._client, "mget_nonatomic", self._client.mget)(chunk)

    def _key(self, channel: str, kind: bytes) -> bytes:
        name = channel.encode()
        return self._prefix + b"{%d}:" % _slot_of(name) + kind + name

    def close(self) -> None:
        """See `Layout`."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def _slot_of(name: bytes) -> int:
    return zlib.crc32(name) % N_SLOTS


class _Bytes(Transcoder):  # type: ignore[misc]
    """Documents are bytes."""

    def encode_value(self, value: bytes) -> tuple[bytes, int]:
        """The value as it is."""
        return value, 0

    def decode_value(self, value: bytes, flags: int) -> bytes:
        """The value as it is."""
        return value


class BucketLayout(Layout):
    """An index in a dev bucket."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        self._url = url
        self._prefix = f"ci:{name}:"
        self._timeout = timedelta(seconds=timeout_s)
        self._cluster: Any = None
        self._collection: Any = None

    def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        if self._collection is None:
            self._open()
        options = GetMultiOptions(transcoder=_Bytes(), return_exceptions=True)
        found = self._collection.get_multi([self._prefix + key for key in keys], options)
        for error in found.exceptions.values():
            if not isinstance(error, DocumentNotFoundException):
                raise error
        return [result.value if (result := found.results.get(self._prefix + key)) else None for key in keys]

    def _open(self) -> None:
        parts, account = urlsplit(self._url), DevBucketConfig()
        timeouts = ClusterTimeoutOptions(kv_timeout=self._timeout, bootstrap_timeout=timedelta(seconds=10))
        options = ClusterOptions(PasswordAuthenticator(account.user, account.password), timeout_options=timeouts)
        self._cluster = Cluster.connect(f"{parts.scheme}://{parts.netloc}", options)
        self._collection = self._cluster.bucket(parts.path.removeprefix("/")).default_collection()

    def meta(self) -> dict[str, Any] | None:
        """See `Layout`."""
        return json.loads(self._get(["meta"])[0] or b"null")  # type: ignore[no-any-return]

    def checkpoints(self, n_partitions: int, width: int) -> list[bytes | None]:
        """See `Layout`."""
        stored = self._get([f"p:{n_partitions}x{width}:{partition}" for partition in range(n_partitions)])
        return [msgspec.msgpack.decode(record)[2] if record else None for record in stored]

    def record(self, n_partitions: int, width: int, partition: int) -> RawRecord:
        """See `Layout`."""
        record, archive = self._get([f"p:{n_partitions}x{width}:{partition}", f"a:{partition}"])
        epoch, _, checkpoints, history, archived = msgspec.msgpack.decode(record or b"")[:5]
        return RawRecord(epoch, checkpoints, history, archived, archive or b"")

    def channels(self) -> Iterator[str]:
        """See `Layout`. One that is in another list than its own, no reader could find."""
        names: set[bytes] = set()
        lists = [f"l:{number}" for number in range(N_LISTS)]
        while lists:
            chunk, lists = lists[:AT_ONCE], lists[AT_ONCE:]
            for key, stored in zip(chunk, self._get(chunk), strict=True):
                names |= {name for name in _names_in(stored or b"") if f"l:{zlib.crc32(name) % N_LISTS}" == key}
        yield from (name.decode() for name in sorted(names))

    def groups(self, channel: str) -> Iterator[Group]:
        """See `Layout`. A channel whose name is listed may have none: its writer had not come to that."""
        (stored,) = self._get([f"c:{_short(channel)}"])
        groups = msgspec.msgpack.decode(stored)["active_by_group"] if stored else {}
        for name, (number, _, before, first, dropped) in sorted(groups.items()):
            yield Group(name, number, before, None, None, first, dropped)

    def blocks(self, channel: str, group: str, numbers: range) -> Iterator[bytes | None]:
        """See `Layout`."""
        keys = (f"b:{group}:{number}:{_short(channel)}" for number in numbers)
        while chunk := list(islice(keys, AT_ONCE)):
            yield from self._get(chunk)

    def close(self) -> None:
        """See `Layout`."""
        cluster, self._cluster, self._collection = self._cluster, None, None
        if cluster is not None:
            with suppress(CouchbaseException):
                cluster.close()


def _names_in(stored: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(stored):
        (size,) = _LENGTH.unpack_from(stored, offset)
        offset += _LENGTH.size + size
        yield stored[offset - size : offset]


def _short(name: str) -> str:
    raw = name.encode()
    return f"={name}" if len(raw) <= MAX_NAME_BYTES else f"#{hashlib.sha256(raw).hexdigest()}"
