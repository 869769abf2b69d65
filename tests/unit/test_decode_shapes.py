"""Documents in the shapes in which Sync Gateway 1.x to 4.x writes them, each decoded as it decodes them.

Read in couchbase/sync_gateway: db/document.go (1.3.1, 3.1, master of 2026-08), channels/log_entry.go, and the releases'
notes. The values are made up.
"""

import json
from typing import Any

import pytest

from channelindex.decode.base import Undecodable
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import DELETION, JSON, MUTATION, XATTR
from channelindex.mcbp import join_xattrs
from channelindex.model import DELETED, Principal, Removal, Route

DECODER = SyncGatewayDecoder(star_channel=False)
HISTORY = {"revs": ["1-a", "2-b"], "parents": [-1, 0], "channels": [["A"], None], "bodymap": {"0": "{}"}}
OBJECT_REV = {"rev": "2-b", "src": "czE0", "ver": "0x15b59cb7befc7a18"}


def inline(sync: dict[str, Any], **body: Any) -> Any:
    return DECODER.decode(MUTATION, b"doc", JSON, json.dumps({**body, "_sync": sync}).encode())


def attribute(sync: dict[str, Any], *, kind: int = MUTATION, before: tuple[str, ...] = (), datatype: int = JSON) -> Any:
    xattrs = [(name, b"{}") for name in before] + [("_sync", json.dumps(sync).encode()), ("zone", b'"x"')]
    body = b"{}" if kind == MUTATION else b""
    return DECODER.decode(kind, b"doc", datatype | XATTR, join_xattrs(xattrs, body))


def test_the_earliest_marked_a_deletion_by_a_field_of_its_own() -> None:
    sync = {
        "rev": "2-b",
        "deleted": True,
        "sequence": 5,
        "history": HISTORY,
        "channels": {"A": {"seq": 5, "rev": "2-b"}},
    }
    assert inline(sync, _deleted=True) == Route("2-b", DELETED, 5, {"A": Removal(5, "2-b", False)})


def test_a_tombstone_of_an_inline_database_is_a_mutation_with_a_flag() -> None:
    removal = {"seq": 5, "rev": "2-b", "del": True}
    sync = {"rev": "2-b", "flags": 1, "sequence": 5, "channels": {"A": removal}, "tombstoned_at": 1764000200}
    assert inline(sync, _deleted=True) == Route("2-b", DELETED, 5, {"A": Removal(5, "2-b", True)})


def test_a_bucket_shadow_and_a_losing_branch_say_nothing_of_channels() -> None:
    sync = {"rev": "2-b", "new_rev": "3-c", "flags": 24, "sequence": 5, "upstream_cas": 7, "upstream_rev": "1-a"}
    assert inline(sync) == Route("2-b", 24, 5, {})


def test_access_grants_and_everything_beside_the_channels_is_skipped() -> None:
    sync = {
        "rev": "2-b",
        "sequence": 5,
        "unused_sequences": [3],
        "recent_sequences": [4, 5],
        "access": {"alice": {"A": 5}, "bob": {"A": {"vb": 3, "seq": 9}}, "carol": ["A"]},
        "role_access": {"alice": {"role:x": 5}},
        "exp": "2027-01-01T00:00:00Z",
        "attachments": {"a.txt": {"digest": "sha1-x", "stub": True}},
        "channel_set": [{"name": "A", "start": 5}],
        "channel_set_history": [{"name": "B", "start": 1, "end": 4, "compacted": True}],
        "channels": {"A": None},
        "cluster_uuid": "6eca",
        "history": HISTORY,
    }
    for route in (inline(sync), attribute(sync)):
        assert route == Route("2-b", 0, 5, {"A": None})


@pytest.mark.parametrize("before", [(), ("_vv",), ("_globalSync", "_mou", "_vv"), ("Meta",)])
def test_metadata_is_found_behind_whatever_else_is_written_beside_it(before: tuple[str, ...]) -> None:
    assert attribute({"rev": OBJECT_REV, "sequence": 5, "channels": {"A": None}}, before=before) == Route(
        "2-b", 0, 5, {"A": None}
    )


def test_revisions_of_version_4_are_objects_and_older_removals_beside_them_are_not() -> None:
    channels = {
        "A": {"seq": 3, "rev": "1-a"},
        "B": {"seq": 5, "rev": OBJECT_REV},
        "C": {"seq": 4, "rev": {"rev": "2-x"}},
    }
    expected = {"A": Removal(3, "1-a", False), "B": Removal(5, "2-b", False), "C": Removal(4, "2-x", False)}
    assert attribute({"rev": OBJECT_REV, "sequence": 5, "channels": channels}) == Route("2-b", 0, 5, expected)


def test_a_tombstone_keeps_its_metadata_and_no_body() -> None:
    sync = {"rev": "2-b", "flags": 1, "sequence": 5, "channels": {"A": {"seq": 5, "rev": "2-b", "del": True}}}
    route = attribute(sync, kind=DELETION, datatype=0)
    assert route == Route("2-b", DELETED, 5, {"A": Removal(5, "2-b", True)})


def test_a_resync_leaves_sequence_and_revision_as_they_were() -> None:
    resynced = {"rev": "2-b", "sequence": 5, "channels": {"A": {"seq": 5, "rev": "2-b"}, "B": None}}
    assert attribute(resynced, before=("_mou",)) == Route("2-b", 0, 5, {"A": Removal(5, "2-b", False), "B": None})


def test_a_document_known_by_its_version_vector_alone_is_undecodable() -> None:
    """Sync Gateway takes metadata without a revision of the tree for invalid (db/document.go, HasValidSyncData)."""
    with pytest.raises(Undecodable, match="missing or empty"):
        attribute({"rev": {"src": "czE0", "ver": "0x15b59cb7befc7a18"}, "sequence": 5})


@pytest.mark.parametrize(
    "key",
    [
        "_sync:seq", "_sync:m_db1:seq", "_sync:unusedSeq:7", "_sync:unusedSeqs:7:9", "_sync:m_db1:unusedSeqs:7:9",
        "_sync:dcp_ck:", "_sync:dcp_ck:m_db1:g:3", "_sync:cfg", "_sync:m_db1:cfgdefault", "_sync:hb:n1",
        "_sync:m_db1:hb:n1",
        "_sync:resync_cfg:x", "_sync:resync_hb:x", "_sync:m_db1:db_config:g", "_sync:background_process:status:resync",
        "_sync:useremail:a@b", "_sync:session:abc", "_sync:session:db1:abc", "_sync:rev:doc:34:1-a", "_sync:att:sha1-x",
        "_sync:att2:doc:sha1-x", "_sync:rb:abc", "_sync:sgrStatus:abc", "_sync:registry", "_sync:syncdata",
        "_sync:state",
        "_sync:local:x", "_sync:backfill:complete:0", "_idx_c:x:block0", "_txn:client-record",
    ],
)  # fmt: skip
def test_no_key_of_sync_gateways_own_is_a_document(key: str) -> None:
    assert DECODER.decode(MUTATION, key.encode(), JSON, b'{"_sync":{"rev":"1-a","channels":{"A":null}}}') is None


@pytest.mark.parametrize(
    ("key", "kind", "metadata_id", "name"),
    [
        ("_sync:user:alice", "user", "", "alice"),
        ("_sync:user:", "user", "", ""),
        ("_sync:user:db1:alice", "user", "db1", "alice"),
        ("_sync:role:editor", "role", "", "editor"),
        ("_sync:role:db1:editor", "role", "db1", "editor"),
    ],
)
def test_users_and_roles_are_counted_also_where_they_are_deleted(
    key: str, kind: str, metadata_id: str, name: str
) -> None:
    principal = Principal(key, kind, metadata_id, name)
    for value in (b'{"name":"x","all_channels":["A"]}', b'{"deleted":true}'):
        assert DECODER.decode(MUTATION, key.encode(), JSON, value) == principal
    assert DECODER.decode(DELETION, key.encode(), 0, b"") == principal
