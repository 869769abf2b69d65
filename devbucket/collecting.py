"""The commands that tell of collections. No I/O. Source: couchbase/kv_engine docs/Collections.md."""

import struct

from channelindex.mcbp import Frame, Op, Status
from devbucket.keyspace import Keyspace
from devbucket.replies import Refused, Reply
from devbucket.session import Command, Session

_COLLECTION_ID = struct.Struct(">QI")  # manifest, collection


def _get_manifest(session: Session, _request: Frame) -> Reply:
    return Reply(_keyspace(session).manifest(), datatype=session.json_datatype)


def _get_id(session: Session, request: Frame) -> Reply:
    """The number of `scope.collection`, which clients send as the value, older ones as the key."""
    keyspace = _keyspace(session)
    number = keyspace.number_of((request.value or request.key).decode(errors="replace"))
    if number is None:
        raise Refused(Status.UNKNOWN_COLLECTION, keyspace.unknown_context(), session.json_datatype)
    return Reply(extras=_COLLECTION_ID.pack(keyspace.manifest_uid, number))


def _keyspace(session: Session) -> Keyspace:
    if session.bucket.keyspace is None:
        raise Refused(Status.NOT_SUPPORTED)
    return session.bucket.keyspace


COMMANDS: dict[int, Command] = {
    Op.COLLECTIONS_GET_MANIFEST: _get_manifest,
    Op.COLLECTIONS_GET_ID: _get_id,
}
