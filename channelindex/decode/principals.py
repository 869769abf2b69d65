"""Keys of Sync Gateway's own documents: which keys hold no user's document, and which are a user or a role.

Decided by the key alone, so that a deleted user counts as a changed one. In databases with a metadata id, the keys of
users and roles have it behind the type, most others before it, as `m_<id>`. Source: couchbase/sync_gateway 4.1.1,
base/constants_syncdocs.go.
"""

import hashlib

from channelindex.model import Principal

_INTERNAL_PREFIXES = (b"_sync:", b"_idx", b"_txn:", b"_connector:")
_PRINCIPAL_PREFIXES = {"user": b"_sync:user:", "role": b"_sync:role:"}
_HASHED_FROM_BYTES = 40
"""A namespaced key holds the SHA-1 (40 hex digits) of a name that is not shorter than one."""


def is_internal(key: bytes) -> bool:
    """True if *key* belongs to Sync Gateway, an index, a transaction or a connector rather than to an application."""
    return key.startswith(_INTERNAL_PREFIXES)


def principal_of(key: bytes) -> Principal | None:
    """The user or role that the document *key* holds; None for any other document.

    `name` is as the key has it: in a namespaced database a long name is replaced by its SHA-1. The guest user's name
    is empty. A name cannot hold a colon, so the last one ends the metadata id.
    """
    for kind, prefix in _PRINCIPAL_PREFIXES.items():
        if key.startswith(prefix):
            try:
                text = key.decode()
            except UnicodeDecodeError:
                return None  # no name that Sync Gateway accepts
            metadata_id, _, name = text[len(prefix) :].rpartition(":")
            return Principal(text, kind, metadata_id, name)
    return None


def principal_key(kind: str, name: str, metadata_id: str = "") -> str:
    """The key of the document of a user or role (*kind*), by which its counter is asked for."""
    prefix = _PRINCIPAL_PREFIXES[kind].decode()
    if not metadata_id:
        return prefix + name
    if len(name.encode()) >= _HASHED_FROM_BYTES:
        name = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return f"{prefix}{metadata_id}:{name}"
