"""A bucket in one SQLite file, so that it outlives its process.

Changes are written some time after they were answered, all of one moment in one transaction, as a real server's flusher
does. A process that was killed therefore loses its last changes, never a part of the file: whoever opens it next finds
out by the mark of a clean end, which is missing, and begins new histories as a real server does.

Tables: `meta` (name, value); `vbuckets`, one row each; `items`, all versions that a vbucket keeps.
"""

import sqlite3
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from channelindex.errors import ConfigInvalid
from devbucket.bucket import Bucket
from devbucket.items import Item
from devbucket.vbucket import Saved, VBucket

FORMAT = 2
_FILE_MODE = 0o600
_APPLICATION_ID = 0x43494456  # "CIDV"

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE vbuckets (
    vb INTEGER PRIMARY KEY, state INTEGER, high_seqno INTEGER, purge_seqno INTEGER, kept_from INTEGER,
    max_cas INTEGER, max_deleted_rev INTEGER, failover_log BLOB);
CREATE TABLE items (
    vb INTEGER, seqno INTEGER, key BLOB, rev INTEGER, cas INTEGER, value BLOB, datatype INTEGER, flags INTEGER,
    expiry INTEGER, fate INTEGER, changed_at INTEGER, compressed INTEGER, PRIMARY KEY (vb, seqno)) WITHOUT ROWID;
"""


class Storage:
    """The file. Used from one thread, and by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file or make it.

        Raises:
            ConfigInvalid: it cannot be opened, is in use, or is something else.
        """
        self._path = path
        try:
            path.touch(_FILE_MODE)  # SQLite gives its log the same mode
            self._link = sqlite3.connect(path, isolation_level=None, timeout=0)
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigInvalid(f"{path} cannot hold a dev bucket: {reason}") from error
        try:
            self._prepare()
        except (sqlite3.Error, ConfigInvalid) as error:
            self._link.close()
            raise ConfigInvalid(f"{path} cannot hold a dev bucket: {error}") from error

    def _prepare(self) -> None:
        self._link.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._link.execute("PRAGMA journal_mode = WAL")
        self._link.execute("PRAGMA synchronous = NORMAL")
        (tables,) = self._link.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            self._require_ours()
            return
        self._link.executescript(
            f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {_SCHEMA} COMMIT;"
        )

    def _require_ours(self) -> None:
        (application,) = self._link.execute("PRAGMA application_id").fetchone()
        (version,) = self._link.execute("PRAGMA user_version").fetchone()
        if (application, version) != (_APPLICATION_ID, FORMAT):
            raise ConfigInvalid(f"it is no file of a dev bucket of format {FORMAT}")

    def load(self, bucket: Bucket) -> Bucket:
        """*bucket*, which is a new one, filled with what the file holds. From now on that was not ended cleanly.

        Raises:
            ConfigInvalid: the file holds a bucket of another name or number of vbuckets.
        """
        meta = dict(self._link.execute("SELECT name, value FROM meta"))
        if not meta:
            self.replace(bucket)
            return bucket
        if (meta["bucket"], int(meta["vbuckets"])) != (bucket.name, len(bucket.vbuckets)):
            raise ConfigInvalid(
                f"{self._path} holds the bucket {meta['bucket']!r} with {meta['vbuckets']} vbuckets,"
                f" not {bucket.name!r} with {len(bucket.vbuckets)}"
            )
        self._learn_collections(bucket, orjson.loads(meta["collections"]))
        bucket.uuid = meta["uuid"]
        self._read_into(bucket)
        if meta["clean"] != "1":
            for vbucket in bucket.vbuckets:
                vbucket.failover(0)
        self._link.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")
        self.flush(bucket)
        return bucket

    def _learn_collections(self, bucket: Bucket, kept: list[str]) -> None:
        """Let *bucket* have the collections that were created while it was running; the file has their events."""
        configured = bucket.collections
        if kept[: len(configured)] != configured or (kept and bucket.manifest is None):
            raise ConfigInvalid(f"{self._path} holds a bucket with the collections {kept}, not {configured}")
        if bucket.manifest is not None:
            for path in kept[len(configured) :]:
                bucket.manifest.create(path)

    def replace(self, bucket: Bucket) -> None:
        """Hold *bucket* and nothing of what was there."""
        self.clear()
        meta = {"bucket": bucket.name, "vbuckets": len(bucket.vbuckets), "uuid": bucket.uuid, "clean": "0"}
        meta["collections"] = _names(bucket)
        with self._link:
            self._link.execute("BEGIN")
            self._link.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            for vbucket in bucket.vbuckets:
                self._write(vbucket)
        for vbucket in bucket.vbuckets:
            vbucket.mark_saved()

    def clear(self) -> None:
        """Hold no bucket."""
        with self._link:
            self._link.execute("BEGIN")
            for table in ("meta", "vbuckets", "items"):
                self._link.execute(f"DELETE FROM {table}")  # noqa: S608 - the names are our own

    def flush(self, bucket: Bucket) -> None:
        """Write all that changed since the last time."""
        changed = [vbucket for vbucket in bucket.vbuckets if vbucket.unsaved]
        if not changed:
            return
        with self._link:
            self._link.execute("BEGIN")
            self._link.execute("UPDATE meta SET value = ? WHERE name = 'collections'", (_names(bucket),))
            for vbucket in changed:
                self._write(vbucket)
        for vbucket in changed:
            vbucket.mark_saved()

    def close(self, bucket: Bucket | None) -> None:
        """Write the rest and mark the end as a clean one; twice does no harm."""
        if bucket is not None:
            self.flush(bucket)
            self._link.execute("UPDATE meta SET value = '1' WHERE name = 'clean'")
        self._link.close()

    def _write(self, vbucket: VBucket) -> None:
        if vbucket.rewritten:
            self._link.execute("DELETE FROM items WHERE vb = ?", (vbucket.vb,))
        self._link.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_row_of, vbucket.unsaved_items())
        )
        row = (vbucket.vb, *vbucket.saved())
        self._link.execute("INSERT OR REPLACE INTO vbuckets VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _read_into(self, bucket: Bucket) -> None:
        items = groupby(map(_item_of, self._link.execute("SELECT * FROM items ORDER BY vb, seqno")), _vb_of)
        items_by_vb = {vb: list(group) for vb, group in items}
        for vb, *columns in self._link.execute("SELECT * FROM vbuckets"):
            bucket.vbuckets[vb].restore(Saved(*columns), items_by_vb.get(vb, []))
        for vbucket in bucket.vbuckets:
            for item in vbucket.items_after(0):
                bucket.note_expiry(vbucket.vb, item.key, 0 if item.deleted else item.expiry)


def _names(bucket: Bucket) -> str:
    return orjson.dumps(bucket.collections).decode()


def _row_of(item: Item) -> tuple[Any, ...]:
    return (
        item.vb,
        item.seqno,
        item.key,
        item.rev,
        item.cas,
        item.value,
        item.datatype,
        item.flags,
        item.expiry,
        item.fate,
        item.changed_at,
        item.compressed,
    )


def _item_of(row: tuple[Any, ...]) -> Item:
    vb, seqno, key, rev, cas, value, datatype, flags, expiry, fate, changed_at, compressed = row
    return Item(
        vb,
        key,
        seqno,
        rev,
        cas,
        value=value,
        datatype=datatype,
        flags=flags,
        expiry=expiry,
        fate=fate,
        changed_at=changed_at,
        compressed=bool(compressed),
    )


def _vb_of(item: Item) -> int:
    return item.vb
