"""The decoder against golden documents, against a plain oracle, and against garbage."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.base import MAX_CHANNEL_BYTES, Undecodable
from channelindex.decode.removals import RemovalMemory
from channelindex.decode.sync_gateway import SyncGatewayDecoder, _find_attribute
from channelindex.errors import ProtocolError
from channelindex.feeds.base import DELETION, EXPIRATION, JSON, MUTATION, SNAPPY, XATTR
from channelindex.mcbp import join_xattrs, split_xattrs
from channelindex.model import DELETED, REMOVED, Principal, Removal, Route
from tests.support.shared import shared_path

DECODER = SyncGatewayDecoder()
PLAIN = SyncGatewayDecoder(star_channel=False)


def inline(sync: Any, **body: Any) -> bytes:
    return json.dumps({**body, "_sync": sync}).encode()


def decode(value: bytes, datatype: int = JSON, decoder: SyncGatewayDecoder = DECODER) -> Route | Principal | None:
    return decoder.decode(MUTATION, b"doc", datatype, value)


def route_of(sync: Any, decoder: SyncGatewayDecoder = DECODER) -> Route:
    route = decode(inline(sync), decoder=decoder)
    assert isinstance(route, Route)
    return route


# --- golden documents ------------------------------------------------------------------------------------------------


def golden_files() -> list[str]:
    return [
        "1_inline_accel_removal",
        "2_xattr_dedup_removal",
        "3_hlv_conflict_removal",
        "4_tombstone_xattr",
        "5_principal_user_namespaced",
    ]


def decode_golden(name: str) -> tuple[dict[str, Any], Route | Principal | None]:
    document = json.loads((shared_path("golden/decode") / f"{name}.json").read_text())
    value = document.get("dcp_value_hex")
    raw = bytes.fromhex(value) if value else json.dumps(document["value"]).encode()
    kind = {"0x57": MUTATION, "0x58": DELETION}[document["opcode"].split()[0]]
    return document, DECODER.decode(kind, document["key"].encode(), document["datatype"], raw)


def test_every_golden_document_is_tested():
    assert {path.stem for path in shared_path("golden/decode").glob("*.json")} == set(golden_files())


@pytest.mark.parametrize("name", golden_files()[:4])
def test_golden_document_decodes_as_expected(name):
    document, route = decode_golden(name)
    expected = document["expect"]
    assert isinstance(route, Route)
    assert route.rev == expected["rev"]
    assert route.flags == expected["flags"]
    sync = document["xattrs"]["_sync"] if "xattrs" in document else document["value"]["_sync"]
    assert route.sequence == sync.get("sequence", 0)
    wanted = {channel: text.partition(" ")[0].rstrip(",") for channel, text in expected["channels"].items()}
    assert {channel for channel, removal in route.channels.items() if removal is None} == {
        channel for channel, what in wanted.items() if what == "in"
    }
    memory = RemovalMemory()
    due = memory.due(0, b"doc", route)
    assert {channel for channel in route.channels if channel in due} - set(expected.get("ignored", ())) == {
        channel for channel, what in wanted.items() if what == "removed"
    }
    again = memory.due(0, b"doc", route)
    assert not any(channel in again for channel in route.channels)  # older ones were told again once


def test_golden_removals_carry_sequence_revision_and_deletion():
    _, deduplicated = decode_golden("2_xattr_dedup_removal")
    assert isinstance(deduplicated, Route)
    assert deduplicated.channels["team-x"] == Removal(1203, "3-c0c0", False)
    _, conflict = decode_golden("3_hlv_conflict_removal")
    assert isinstance(conflict, Route)
    assert conflict.channels["east"] == Removal(2001, "2-e1e1", False)
    _, tombstone = decode_golden("4_tombstone_xattr")
    assert isinstance(tombstone, Route)
    assert tombstone.channels["A"] == Removal(3005, "5-dead", True)


def test_golden_principal_is_no_document():
    document, principal = decode_golden("5_principal_user_namespaced")
    expected = document["expect"]
    assert principal == Principal(document["key"], expected["principal"], expected["metadata_id"], expected["name"])


def test_xattr_section_without_body_decodes_like_the_whole_value():
    """Buckets with extended attributes are fed without bodies; the JSON bit stays or goes with the open flags."""
    document = json.loads((shared_path("golden/decode") / "2_xattr_dedup_removal.json").read_text())
    whole = bytes.fromhex(document["dcp_value_hex"])
    xattrs, _ = split_xattrs(whole)
    section = join_xattrs(xattrs.items(), b"")
    assert decode(section, XATTR) == decode(section, XATTR | JSON) == decode(whole, XATTR | JSON)


# --- what means nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MUTATION, DELETION, EXPIRATION])
@pytest.mark.parametrize("datatype", [0, JSON, XATTR, JSON | XATTR])
def test_empty_value_means_nothing(kind, datatype):
    assert DECODER.decode(kind, b"doc", datatype, b"") is None


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b'{"type":"order"}',
        b'{"_sync":null}',
        b"[1,2]",
        b'["_sync"]',
        b"17",
        b"null",
        b'"_sync"',
        b"not json at all",
        b'{"cut":',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"nested":' * 50_000,
    ],
)
def test_document_without_metadata_means_nothing(value):
    assert decode(value) is None


def test_binary_value_means_nothing_even_if_it_looks_like_a_document():
    assert decode(inline({"rev": "1-a"}), datatype=0) is None


def test_other_extended_attributes_mean_nothing():
    value = join_xattrs([("user", b'{"_sync":1}'), ("my_sync", b'{"rev":"1-a"}')], b"")
    assert decode(value, XATTR) is None
    assert decode(value, XATTR | JSON) is None


@pytest.mark.parametrize("key", [b"_sync:seq", b"_sync:att:x", b"_idx_c:A", b"_txn:1", b"_connector:cbse:1"])
def test_internal_keys_mean_nothing(key):
    assert DECODER.decode(MUTATION, key, JSON, inline({"rev": "1-a"})) is None


@pytest.mark.parametrize("key", [b"_", b"_design", b"_syn", b"k" * 251, b"\xff\xfe", b""])
def test_any_other_key_is_a_document(key):
    assert isinstance(DECODER.decode(MUTATION, key, JSON, inline({"rev": "1-a"})), Route)


# --- where the metadata is -------------------------------------------------------------------------------------------


def test_extended_attribute_wins_over_inline_metadata():
    value = join_xattrs([("_vv", b"{}"), ("_sync", b'{"rev":"2-attr"}')], inline({"rev": "1-inline"}))
    route = decode(value, XATTR | JSON)
    assert isinstance(route, Route)
    assert route.rev == "2-attr"


def test_inline_metadata_counts_behind_foreign_attributes():
    value = join_xattrs([("user", b"1")], inline({"rev": "1-inline"}))
    route = decode(value, XATTR | JSON)
    assert isinstance(route, Route)
    assert route.rev == "1-inline"
    assert decode(value, XATTR) is None  # the server says that the body is not JSON


def test_compressed_value_is_undecodable():
    with pytest.raises(Undecodable, match="compressed"):
        decode(b"\x10whatever", SNAPPY | JSON)


@pytest.mark.parametrize(
    "value",
    [
        b"\0",
        b"\0\0\0",
        b"\0\0\0\x08ab",
        b"\xff\xff\xff\xff" + b"x" * 100,
        b"\0\0\0\x05\0\0\0\0a",
        b"\0\0\0\x0a\0\0\0\x06_sync\0",
        join_xattrs([("_sync", b"{}")], b"")[:-1] + b"}",
    ],
)
def test_malformed_attribute_section_is_undecodable(value):
    with pytest.raises(Undecodable, match="attribute"):
        decode(value, XATTR)


# --- the fields ------------------------------------------------------------------------------------------------------


def test_star_channel_holds_every_document_once():
    assert route_of({"rev": "1-a", "channels": {"A": None}}).channels == {"A": None, "*": None}
    assert route_of({"rev": "1-a"}).channels == {"*": None}
    assert route_of({"rev": "1-a", "channels": None}).channels == {"*": None}
    assert route_of({"rev": "1-a", "channels": {"*": None}}).channels == {"*": None}
    assert route_of({"rev": "2-a", "channels": {"*": {"seq": 3, "rev": "2-a"}}}).channels == {"*": None}


def test_without_star_channel_only_the_assigned_channels_count():
    assert route_of({"rev": "1-a"}, PLAIN).channels == {}
    assert route_of({"rev": "1-a", "channels": {"A": None}}, PLAIN).channels == {"A": None}
    assert route_of({"rev": "1-a", "channels": {"*": None}}, PLAIN).channels == {"*": None}


def test_channels_of_routes_are_independent():
    first, second = (route_of({"rev": "1-a", "channels": {}}) for _ in range(2))
    assert first.channels is not second.channels


def test_flags_keep_unknown_bits_but_never_removed():
    assert route_of({"rev": "1-a"}).flags == 0
    assert route_of({"rev": "1-a", "flags": 64 | 32 | DELETED}).flags == 64 | 32 | DELETED
    assert route_of({"rev": "1-a", "flags": REMOVED | DELETED}).flags == DELETED
    assert route_of({"rev": "1-a", "flags": (1 << 70) | (1 << 15)}).flags == 1 << 15


def test_legacy_deleted_property_becomes_the_flag():
    assert route_of({"rev": "1-a", "flags": 8, "deleted": True}).flags == 8 | DELETED
    assert route_of({"rev": "1-a", "deleted": False}).flags == 0


def test_removal_without_sequence_or_revision_object():
    removals = {
        "A": {"rev": "3-c"},
        "B": {},
        "C": {"seq": 7, "rev": {"rev": "2-b", "src": "x", "ver": "y"}, "del": True},
    }
    assert route_of({"rev": "3-c", "channels": removals}, PLAIN).channels == {
        "A": Removal(0, "3-c", False),
        "B": Removal(0, "", False),
        "C": Removal(7, "2-b", True),
    }


def test_duplicate_keys_last_wins():
    route = decode(b'{"_sync":{"rev":"1-a"},"_sync":{"rev":"1-b","rev":"1-c","channels":{"A":{"seq":1},"A":null}}}')
    assert route == Route("1-c", 0, 0, {"A": None, "*": None})


def test_sequence_has_64_bits():
    assert route_of({"rev": "1-a", "sequence": (1 << 64) - 1}).sequence == (1 << 64) - 1


@pytest.mark.parametrize("name", ["", "ä→𝄞", "a\0b", 'with "quotes"', "x" * MAX_CHANNEL_BYTES])
def test_channel_name_may_be_any_string_that_fits(name):
    assert route_of({"rev": "1-a", "channels": {name: None}}, PLAIN).channels == {name: None}


@pytest.mark.parametrize(
    ("sync", "reason"),
    [
        (5, "Expected"),
        ([], "Expected"),
        ({}, "rev is missing"),
        ({"rev": ""}, "rev is missing"),
        ({"rev": {}}, "rev is missing"),
        ({"rev": {"ver": "0x1"}}, "rev is missing"),
        ({"rev": 1}, "Expected"),
        ({"rev": None}, "missing or empty"),
        ({"rev": "1-a", "sequence": -1}, "Expected"),
        ({"rev": "1-a", "sequence": 1 << 64}, "64 bits"),
        ({"rev": "1-a", "sequence": "7"}, "Expected"),
        ({"rev": "1-a", "flags": -1}, "Expected"),
        ({"rev": "1-a", "flags": 1.5}, "Expected"),
        ({"rev": "1-a", "channels": ["A"]}, "Expected"),
        ({"rev": "1-a", "channels": {"A": True}}, "Expected"),
        ({"rev": "1-a", "channels": {"A": {"seq": 1 << 64}}}, "64 bits"),
        ({"rev": "1-a", "channels": {"A": {"seq": -1}}}, "Expected"),
        ({"rev": "1-a", "channels": {"ä" * 32768: None}}, "65536 bytes"),
    ],
)
def test_metadata_that_makes_no_sense_is_undecodable(sync, reason):
    with pytest.raises(Undecodable, match=reason):
        decode(inline(sync, padding="x"))


@pytest.mark.parametrize(
    "text",
    [
        b'{"rev":"1-a","history":NaN}',
        b'{"rev":"1-a","history":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}",
        b'{"rev":"1-a"',
        b"",
        b"null",
    ],
)
def test_malformed_metadata_is_undecodable_inline_and_as_attribute(text):
    with pytest.raises(Undecodable):
        decode(join_xattrs([("_sync", text)], b""), XATTR)
    if text != b"null":  # an inline null is how a body says that it has none
        with pytest.raises(Undecodable):
            decode(b'{"_sync":' + text + b"}")


def test_reason_quotes_nothing_of_the_document():
    secret = "s3cr3t"
    bad: list[Any] = [
        {"rev": "1-a", "sequence": secret},
        {"rev": "1-a", "channels": {secret: 1}},
        {"rev": "1-a", "channels": {secret: {"seq": secret}}},
        {"rev": [secret]},
        secret,
    ]
    for sync in bad:
        with pytest.raises(Undecodable) as caught:
            decode(inline(sync, **{secret: secret}))
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


# --- properties ------------------------------------------------------------------------------------------------------


def oracle(datatype: int, value: bytes, star_channel: bool) -> Route | None:
    """The rules of the decoder, written down plainly for documents that are well-formed."""
    xattrs, body = split_xattrs(value) if datatype & XATTR else ({}, value)
    if "_sync" in xattrs:
        sync = json.loads(xattrs["_sync"])
    elif datatype & JSON and body:
        document = json.loads(body)
        sync = document.get("_sync") if isinstance(document, dict) else None
    else:
        sync = None
    if sync is None:
        return None

    def text(rev: Any) -> Any:
        return rev.get("rev", "") if isinstance(rev, dict) else rev

    channels = {
        name: None
        if removal is None
        else Removal(removal.get("seq", 0), text(removal.get("rev", "")), removal.get("del", False))
        for name, removal in (sync.get("channels") or {}).items()
    }
    if star_channel:
        channels["*"] = None
    flags = (sync.get("flags", 0) | (DELETED if sync.get("deleted") else 0)) & 0xFFFD
    return Route(text(sync["rev"]), flags, sync.get("sequence", 0), channels)


U64 = st.integers(0, (1 << 64) - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
REV_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
REV = REV_TEXT | st.fixed_dictionaries({"rev": REV_TEXT, "src": TEXT, "ver": TEXT})
REMOVAL = st.fixed_dictionaries({}, optional={"seq": U64, "rev": REV, "del": st.booleans()})
SYNC = st.fixed_dictionaries(
    {"rev": REV},
    optional={
        "flags": st.integers(0, 0xFFFF),
        "sequence": U64,
        "channels": st.none() | st.dictionaries(TEXT | st.just("*"), st.none() | REMOVAL, max_size=5),
        "deleted": st.booleans(),
        "recent_sequences": st.lists(U64, max_size=3),
        "history": ANY_JSON,
        "time_saved": TEXT,
    },
)
BODY = st.dictionaries(TEXT.filter(lambda name: name != "_sync"), ANY_JSON, max_size=3)


@st.composite
def values(draw) -> tuple[int, bytes]:
    body = draw(st.just({}) | BODY)
    if draw(st.booleans()):
        body["_sync"] = draw(SYNC | st.none())
    dumped = json.dumps(draw(st.just(body) | ANY_JSON), ensure_ascii=draw(st.booleans())).encode()
    if draw(st.booleans()):
        return JSON, dumped
    names = draw(st.lists(st.sampled_from(["_sync", "_vv", "_globalSync", "user"]), unique=True))
    xattrs = [(name, json.dumps(draw(SYNC if name == "_sync" else ANY_JSON)).encode()) for name in names]
    keep_body = draw(st.booleans())
    return XATTR | draw(st.sampled_from([0, JSON])), join_xattrs(xattrs, dumped if keep_body else b"")


@given(values(), st.booleans())
def test_decoder_agrees_with_the_oracle(case, star_channel):
    datatype, value = case
    decoder = SyncGatewayDecoder(star_channel)
    assert decoder.decode(MUTATION, b"doc", datatype, value) == oracle(datatype, value, star_channel)


@given(values(), st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 7))
def test_damaged_document_raises_nothing_but_undecodable(case, rnd: random.Random, n_damages, other_datatype):
    datatype, value = case
    damaged = bytearray(value)
    for _ in range(n_damages):
        start = rnd.randrange(len(damaged) + 1)
        cut = rnd.choice([0, 0, 1, 3, 20])
        damaged[start : start + cut] = rnd.choice(
            [b"", b"\0", b"\xff", b'"', b"{", b"}", b",", b"-1", b"9" * 30, b"null"]
        )
    for bits in (datatype, other_datatype):
        try:
            route = DECODER.decode(MUTATION, b"doc", bits, bytes(damaged))
        except Undecodable:
            continue
        assert route is None or isinstance(route, Route)


@given(values(), st.integers(0, 20))
def test_attribute_section_is_taken_apart_as_the_protocol_module_does(case, cut):
    datatype, whole = case
    value = whole[: len(whole) - cut] if datatype & XATTR else whole
    try:
        xattrs, body = split_xattrs(value)
    except ProtocolError:
        return  # what is behind `_sync` is not looked at
    if value:
        assert _find_attribute(value) == (xattrs.get("_sync"), len(value) - len(body))
