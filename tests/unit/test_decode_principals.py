"""Keys of users and roles, and of everything else that is Sync Gateway's own."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.principals import is_internal, principal_key, principal_of
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import DELETION, EXPIRATION, MUTATION
from channelindex.model import Principal

LONG = "n" * 40


@pytest.mark.parametrize(
    ("key", "kind", "metadata_id", "name"),
    [
        ("_sync:user:alice", "user", "", "alice"),
        ("_sync:role:editor", "role", "", "editor"),
        ("_sync:user:db1:alice", "user", "db1", "alice"),
        ("_sync:role:db1:editor", "role", "db1", "editor"),
        ("_sync:user:", "user", "", ""),  # the guest
        ("_sync:user:db1:", "user", "db1", ""),
        ("_sync:user:" + LONG, "user", "", LONG),
        ("_sync:user:jürgen@example.org", "user", "", "jürgen@example.org"),
        ("_sync:user:m_db1", "user", "", "m_db1"),
    ],
)
def test_user_and_role_keys(key, kind, metadata_id, name):
    assert principal_of(key.encode()) == Principal(key, kind, metadata_id, name)
    assert principal_key(kind, name, metadata_id) == key


@pytest.mark.parametrize(
    "key",
    [
        "_sync:useremail:a@b.c",
        "_sync:useremail:db1:a@b.c",
        "_sync:session:0123",
        "_sync:seq",
        "_sync:m_db1:seq",
        "_sync:m_db1:user:alice",
        "_sync:unusedSeq:7",
        "_sync:unusedSeqs:7:9",
        "_sync:sgrStatus:x",
        "_sync:cfg",
        "_sync:hb:1",
        "_sync:heartbeat_timeout:1",
        "_sync:dcp_ck:12",
        "_sync:background_process:heartbeat:x",
        "_sync:resync_hb:1",
        "_sync:state",
        "_sync:rb:doc",
        "_sync:rev:doc:34:1-a",
        "_sync:att:sha1-x",
        "_sync:att2:x:sha1-x",
        "_sync:registry",
        "_sync:syncInfo",
        "_sync:dbconfig:default",
        "_sync:syncdata",
        "_sync:syncdata_collection:1",
        "_sync:user",
        "_sync:users:alice",
        "_idx_c:A:block0",
        "_txn:client-record",
        "_connector:cbse:x",
    ],
)
def test_other_internal_keys_are_no_principals(key):
    assert is_internal(key.encode())
    assert principal_of(key.encode()) is None


@pytest.mark.parametrize("key", ["sync:user:alice", "_syncuser:alice", "_sync", "doc", "_", "", "x_sync:user:a"])
def test_documents_are_not_internal(key):
    assert not is_internal(key.encode())
    assert principal_of(key.encode()) is None


def test_name_that_is_not_utf8_is_no_principal():
    assert principal_of(b"_sync:user:\xff") is None


@pytest.mark.parametrize("kind", [MUTATION, DELETION, EXPIRATION])
@pytest.mark.parametrize(("datatype", "value"), [(0, b""), (1, b"{}"), (1, b"garbage"), (4, b"\xff"), (2, b"\0")])
def test_principal_changes_whatever_happens_to_its_document(kind, datatype, value):
    decoded = SyncGatewayDecoder().decode(kind, b"_sync:role:db1:editor", datatype, value)
    assert decoded == Principal("_sync:role:db1:editor", "role", "db1", "editor")


def test_long_name_is_hashed_in_a_namespaced_key_only():
    digest = hashlib.sha1(LONG.encode()).hexdigest()
    assert principal_key("user", LONG, "db1") == f"_sync:user:db1:{digest}"
    assert principal_key("user", LONG[1:], "db1") == f"_sync:user:db1:{LONG[1:]}"
    assert principal_key("user", LONG) == f"_sync:user:{LONG}"


NAME = st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=9)


@given(st.sampled_from(["user", "role"]), NAME, NAME)
def test_key_and_principal_are_inverse(kind, name, metadata_id):
    key = principal_key(kind, name, metadata_id)
    assert principal_of(key.encode()) == Principal(key, kind, metadata_id, name)
