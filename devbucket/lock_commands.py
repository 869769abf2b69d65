"""The commands that lock documents. No I/O. Source: couchbase/kv_engine docs/BinaryProtocol.md."""

from channelindex.mcbp import Frame, Op, Status
from devbucket.client_session import ClientSession, Command
from devbucket.items import Item
from devbucket.kv_commands import document_reply, find_active
from devbucket.replies import Malformed, Refused, Reply
from devbucket.vbucket import VBucket

LONGEST_LOCK_S = 30
DEFAULT_LOCK_S = 15
"""A real server's: what it makes of a time of 0 or above the longest."""


def _get_locked(session: ClientSession, request: Frame) -> Reply:
    """Lock a document and return it, with the CAS that unlocks it."""
    if len(request.extras) not in (0, 4):
        raise Malformed
    vbucket, item = _existing(session, request)
    if vbucket.locks.of(request.key) is not None:
        raise Refused(Status.LOCKED)
    requested_s = int.from_bytes(request.extras, "big")
    cas = vbucket.next_cas()
    vbucket.locks.take(request.key, cas, requested_s if 0 < requested_s <= LONGEST_LOCK_S else DEFAULT_LOCK_S)
    return document_reply(session, item, cas=cas)


def _unlock(session: ClientSession, request: Frame) -> Reply:
    vbucket, _ = _existing(session, request)
    lock = vbucket.locks.of(request.key)
    if lock is None:
        raise Refused(Status.ETMPFAIL)
    if request.cas != lock.cas:
        raise Refused(Status.LOCKED)
    vbucket.locks.release(request.key)
    return Reply()


def _existing(session: ClientSession, request: Frame) -> tuple[VBucket, Item]:
    vbucket, item = find_active(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    return vbucket, item


COMMANDS: dict[int, Command] = {
    Op.GET_LOCKED: _get_locked,
    Op.UNLOCK: _unlock,
}
