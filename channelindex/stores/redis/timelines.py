"""The timelines of partitions in Redis: hashes with a field for each moment, its time and its epoch."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from channelindex import timeline
from channelindex.model import IndexMeta
from channelindex.redis.link import Link, ScriptCall
from channelindex.stores.records import pack_moment, unpack_checkpoints, unpack_moments
from channelindex.stores.redis.keys import Keys
from channelindex.timeline import Moment


class Due(NamedTuple):
    """Checkpoints of a partition that are to become a moment, and the fields of the moments that are there, by time."""

    checkpoints: bytes
    fields: Sequence[bytes]


class TimelineWriter:
    """Notes moments for the owner of one process, and remembers what it noted last."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._noted: dict[int, bytes] = {}

    def due(self, epoch: int, partitions: Collection[int]) -> dict[int, Due]:
        """Of *partitions*, those in *epoch* whose checkpoints are not noted yet, or whose timeline was lost."""
        asked = list(partitions)
        records = [("HMGET", self._keys.partition(partition), "epoch", "ck") for partition in asked]
        times = [("HKEYS", self._keys.timeline(partition)) for partition in asked]
        replies = self._link.pipeline([*records, *times])
        found = zip(asked, replies[: len(asked)], replies[len(asked) :], strict=True)
        return {
            partition: Due(checkpoints, sorted(fields, key=_time_ms))
            for partition, (current, checkpoints), fields in found
            if current is not None
            and int(current) == epoch
            and not (fields and checkpoints == self._noted.get(partition))
        }

    def note(self, meta: IndexMeta, epoch: int, due: Mapping[int, Due], mark: int, now_s: float) -> None:
        """Add a moment to the timelines of the partitions that are *due*; one that left *epoch* since is left out."""
        assert mark >= 0, "0 stands for none"
        calls: list[ScriptCall] = []
        for partition, (checkpoints, fields) in due.items():
            key = self._keys.partition(partition)
            times_ms = [_time_ms(field) for field in fields]
            now_ms = timeline.next_time(times_ms, int(now_s * 1000))
            gone = [fields[position] for position in timeline.superseded(times_ms, now_ms)]
            assert len(gone) < len(fields) or not fields, "one stays, however old"
            unpacked = unpack_checkpoints(checkpoints, meta.partition_width, key)
            packed = pack_moment(Moment(now_ms, epoch, mark, unpacked))
            keys = (key, self._keys.timeline(partition))
            calls.append((keys, (epoch, f"{now_ms}:{epoch}", packed, *gone)))
        replies = self._link.run_all("note", calls)
        self._noted |= {p: each.checkpoints for (p, each), noted in zip(due.items(), replies, strict=True) if noted}


def read_timelines(link: Link, keys: Keys, partitions: Iterable[int], width: int) -> list[list[Moment]]:
    """The moments of each of *partitions*, of *width* vbuckets, ascending by time."""
    names = [keys.timeline(partition) for partition in partitions]
    found = link.pipeline([("HVALS", name) for name in names])
    return [unpack_moments(b"".join(moments), width, name) for name, moments in zip(names, found, strict=True)]


def read_epochs(link: Link, keys: Keys, partitions: Iterable[int]) -> set[int]:
    """The epochs of all moments of *partitions*."""
    found = link.pipeline([("HKEYS", keys.timeline(partition)) for partition in partitions])
    return {int(field.partition(b":")[2]) for fields in found for field in fields}


def _time_ms(field: bytes) -> int:
    return int(field.partition(b":")[0])
