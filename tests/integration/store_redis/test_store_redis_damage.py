"""What is said of a key that Redis lost or that somebody damaged, and how it is repaired."""

import re

import msgspec
import pytest

from channelindex import kernel
from channelindex.blocks import ENTRIES, HEADER, pack_entry, pack_frame, pack_pairs
from channelindex.epochs import new_record
from channelindex.errors import IndexCorrupt, IndexMismatch, IndexMissing, RemovalsForgotten
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.base import BlockRef, Directory, RepairedChannels
from channelindex.stores.compacting import GroupChange, Output, Switch
from channelindex.stores.records import view_of
from channelindex.stores.redis.keys import Keys
from tests.support.stores import GROUP, META, all_entries, append, checkpoints, entry

KEYS = Keys("test")


def test_an_append_to_a_block_that_was_lost_is_taken_back(backend, client):
    block, writer = KEYS.block("A", GROUP, 0), backend.writer()
    for _ in range(2):
        writer.write([append("A", 1, entry(0, 1)), append("B", 1, entry(0, 1))])
    client.delete(block)
    with pytest.raises(IndexCorrupt, match="0:A is gone"):
        writer.write([append("A", 1, entry(0, 2)), append("A", 1, entry(0, 3)), append("B", 1, entry(0, 2))])
    assert client.exists(block) == 0


def test_nobody_appends_to_a_block_without_header_whose_writer_died_before_it_took_its_append_back(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    block = KEYS.block("A", GROUP, 0)
    client.set(block, frame := pack_frame(ENTRIES, 1, b"x"))
    with pytest.raises(IndexCorrupt, match="not both there"):
        backend.writer().write([append("A", 1, entry(0, 2))])
    assert client.get(block) == frame
    (state,), found = backend.reader().channel_states(["A"]), backend.reader().blocks([BlockRef("A", GROUP, 0)])
    assert (found, state.groups[GROUP].tail) == ([None], None), "to readers it is not there"


@pytest.mark.parametrize("kernel_use", ["off", "auto"])
def test_block_that_went_and_a_former_owner_brought_back_is_gone_for_the_present_one(
    backend, client, kernel_use, monkeypatch
):
    """It appended first, and has not taken that back yet, or was killed: what joins it would be lost to readers."""
    monkeypatch.setattr(kernel, "_mode", kernel_use)
    writer, store = backend.writer(), backend.compaction()
    writer.write([append("A", 1, entry(0, 1)), append("B", 1, entry(0, 1))])
    (sizes,) = store.sizes(["A"])
    directory, active_bytes = sizes.groups[GROUP]
    taken = GroupChange(GROUP, directory, removed=True, active_bytes=active_bytes)
    assert store.switch(Switch("A", 0, [taken], None, 1, 1, b"", 60))
    client.append(KEYS.block("A", GROUP, 0), pack_frame(ENTRIES, 1, pack_entry(entry(0, 9))))
    client.append(KEYS.block("B", GROUP, 0), pack_frame(ENTRIES, 1, pack_entry(entry(0, 9))))
    writer.write([append("B", 1, entry(0, 2)), append("A", 1, entry(0, 2))])
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [2]
    assert client.exists(KEYS.block("A", GROUP, 0)) == 0
    assert {1, 2, 9} == {each.seqno for _, each in all_entries(backend.reader(), "B")}, "that block was not lost"


@pytest.mark.parametrize("keeps_group", [False, True])
def test_what_a_writer_left_of_a_block_that_was_compacted_away_harms_nobody_and_is_swept(backend, client, keeps_group):
    """It was paused for longer than the block had to live, appended, and died before it took that back."""
    owner, writer, store = backend.owner(), backend.writer(block_bytes=60), backend.compaction()
    owner.create_or_check(META)
    owner.begin_all({partition: {} for partition in range(META.n_partitions)}, 1, "n1")
    for seqno in range(1, 4):
        writer.write([append("A", 1, entry(0, seqno))])
    owner.advance(1, checkpoints({0: 3}))
    (sizes,) = store.sizes(["A"])
    directory, active_bytes = sizes.groups[GROUP]
    assert directory.number > 0
    change = GroupChange(GROUP, directory, removed=not keeps_group, active_bytes=None if keeps_group else active_bytes)
    assert store.switch(Switch("A", 0, [change], None, 1, 1, b"", 0))
    stray = KEYS.block("A", GROUP, 0)
    assert client.exists(stray) == 0, "it had no time to live"
    client.append(stray, pack_frame(ENTRIES, 1, pack_entry(entry(0, 9))))
    reader, before = backend.reader(), client.hgetall(KEYS.channel("A"))

    def told() -> list[int]:
        return [change.seqno for change in ChangesReader(reader).changes(["A"]).entries]

    left = told()
    assert left == ([3] if keeps_group else [])
    assert owner.repair_channels() == RepairedChannels()
    assert client.exists(stray) == 0
    assert client.hgetall(KEYS.channel("A")) == before
    writer.write([append("A", 1, entry(0, 4))])
    owner.advance(1, checkpoints({0: 4}))
    assert told() == [*left, 4]


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (KEYS.block("A", GROUP, 0), lambda reader: reader.blocks([BlockRef("A", GROUP, 0)])),
        (KEYS.channel("A"), lambda reader: reader.channel_states(["A"])),
    ],
    ids=["block", "channel"],
)
def test_key_of_the_wrong_type_is_named_by_writer_and_reader(backend, client, key, read):
    known = backend.writer()
    known.write([append("A", 1, entry(0, 1))])
    client.delete(key)
    client.lpush(key, "x")
    knows_better = key == KEYS.channel("A")  # who knows the block does not ask the directory
    for writer in (backend.writer(),) if knows_better else (known, backend.writer()):
        with pytest.raises(IndexCorrupt) as raised:
            writer.write([append("A", 1, entry(0, 2))])
        assert key in str(raised.value)
    reader = backend.reader()
    with pytest.raises(IndexCorrupt) as raised:
        read(reader)
    assert key in str(raised.value)


def test_lost_partition_record_is_corruption_and_not_a_beginning(backend, client):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    client.delete(KEYS.partition(1))
    with pytest.raises(IndexCorrupt, match="p:1"):
        backend.reader().partition_records()
    with pytest.raises(IndexCorrupt, match="p:1"):
        owner.begin(1, 2, "n1")
    with pytest.raises(IndexCorrupt, match=r"p:1.*channelindex repair"):
        owner.advance(1, checkpoints({4: 1}))


def test_lost_stable_view_stops_readers_and_owners_and_is_written_anew(backend, client):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    owner.advance(1, checkpoints({4: 3, 6: 5}))
    whole = backend.reader().stable_view()
    client.setrange(KEYS.view, 1000, "x")
    with pytest.raises(IndexCorrupt, match=r"view.*channelindex repair"):
        backend.reader().stable_view()
    client.delete(KEYS.view)
    acts = (
        backend.reader().stable_view,
        lambda: owner.begin(1, 2, "n1"),
        lambda: owner.advance(1, checkpoints({4: 4})),
    )
    for act in acts:
        with pytest.raises(IndexCorrupt, match=r"view.*channelindex repair"):
            act()
    assert not client.exists(KEYS.view), "half of it would pass for all"
    assert owner.restore(META) == (META, False, ())
    assert backend.reader().stable_view() == whole
    assert view_of(META, backend.reader().partition_records()) == whole


@pytest.mark.parametrize("damage", ["delete", "garble", "retype", "archive"])
def test_what_was_lost_of_a_partition_record_is_written_anew(backend, client, damage):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    whole = list(backend.reader().partition_records())
    key = KEYS.partition(1)
    if damage == "archive":
        client.hset(key, "archived", 1)
    else:
        client.hset(key, "ck", "x") if damage == "garble" else client.delete(key)
    if damage == "retype":
        client.set(key, "foreign")
    assert owner.restore(META) == (META, False, (1,))
    found = list(backend.reader().partition_records())
    assert found[1] == new_record(4, 4)
    assert found[:1] + found[2:] == whole[:1] + whole[2:]


def test_lost_meta_record_stops_the_owner_and_is_written_anew_with_its_uuid(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    whole = list(backend.reader().partition_records())
    client.delete(KEYS.meta)
    wanted = msgspec.structs.replace(META, index_uuid="another")
    for act in (lambda: owner.advance(1, checkpoints({0: 1})), lambda: backend.owner().create_or_check(wanted)):
        with pytest.raises(IndexCorrupt, match=r"meta.*channelindex repair"):
            act()
    assert backend.owner().restore(wanted) == (META, True, ())
    owner.advance(1, checkpoints({0: 1}))
    found = list(backend.reader().partition_records())
    assert found[1:] == whole[1:]
    assert found[0].stable[0] == 1


def test_records_of_another_type_are_written_anew_and_the_uuid_is_found_in_those_that_are_whole(backend, client):
    backend.owner().create_or_check(META)
    whole = list(backend.reader().partition_records())
    for key in (KEYS.meta, KEYS.partition(0)):
        client.delete(key)
        client.rpush(key, "foreign")
    assert backend.owner().restore(msgspec.structs.replace(META, index_uuid="another")) == (META, True, (0,))
    assert list(backend.reader().partition_records()) == whole


@pytest.mark.parametrize("n_partitions", [1, 2, 8, 16])
def test_lost_meta_record_is_not_written_anew_in_another_shape(backend, client, n_partitions):
    """Else the records of the old shape would be read as damaged, and each replaced."""
    backend.owner().create_or_check(META)
    whole = list(backend.reader().partition_records())
    client.hset(KEYS.partition(0), "ck", bytes(40 * (16 // n_partitions)))  # garbled, and it looks right
    client.delete(KEYS.meta)
    wanted = msgspec.structs.replace(META, n_partitions=n_partitions)
    message = rf"of 4 vbuckets, and index.partitions = {n_partitions} expects {16 // n_partitions}: .*partitions = 4"
    with pytest.raises(IndexMismatch, match=message):
        backend.owner().restore(wanted, [0])
    assert not client.exists(KEYS.meta)
    assert backend.owner().restore(META) == (META, True, (0,))
    assert list(backend.reader().partition_records()) == whole


def test_lost_meta_record_of_an_index_of_a_larger_bucket_names_the_bucket(backend, client):
    backend.owner().create_or_check(META)
    client.delete(KEYS.meta)
    wanted = msgspec.structs.replace(META, n_vbuckets=2, n_partitions=2)
    with pytest.raises(IndexMismatch, match=r"source\.url"):
        backend.owner().restore(wanted)


def test_index_that_is_gone_as_a_whole_is_missing_and_not_damaged(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    client.flushall()
    with pytest.raises(IndexMissing):
        owner.advance(1, checkpoints({0: 1}))


@pytest.mark.parametrize("field", ["ck", "hist"])
def test_garbled_partition_record_is_corruption(backend, client, field):
    client.hset(KEYS.partition(0), field, b"x" * 41)
    with pytest.raises(IndexCorrupt, match="p:0"):
        backend.reader().partition_records()


def test_a_block_that_is_gone_stops_every_writer_and_is_not_begun_anew(backend, client):
    """A block without header would hide all before it; the next one that locates it would take it for whole."""
    block = KEYS.block("A", GROUP, 0)
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 1))])
    client.delete(block)
    for each in (writer, writer, backend.writer()):
        with pytest.raises(IndexCorrupt):
            each.write([append("A", 1, entry(0, 2))])
        assert not client.exists(block)
    with pytest.raises(IndexCorrupt, match="missing"):
        ChangesReader(backend.reader()).changes(["A"])


def test_a_directory_that_is_gone_stops_the_writer_and_its_block_is_kept(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    block = client.get(KEYS.block("A", GROUP, 0))
    client.delete(KEYS.channel("A"))
    with pytest.raises(IndexCorrupt, match=re.escape(KEYS.channel("A"))):
        backend.writer().write([append("A", 1, entry(0, 2))])
    assert client.get(KEYS.block("A", GROUP, 0)) == block


def test_a_reader_tells_a_channel_that_lost_its_directory_from_one_that_never_was(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.delete(KEYS.channel("A"))
    reader = backend.reader()
    assert reader.channel_states(["never"]) == [None]
    with pytest.raises(IndexCorrupt, match=re.escape(f"{KEYS.channel('A')} is gone")):
        reader.channel_states(["never", "A"])
    backend.owner().repair_channels(["A"])
    assert [state is None for state in reader.channel_states(["never", "A"])] == [True, False]


def test_notes_of_compaction_that_went_with_a_directory_are_missed_and_replaced(backend, client):
    """A late switch of a compactor must not fit, no number of a block be used twice, and old tokens be refused."""
    owner, writer, reader, store = backend.owner(), backend.writer(), backend.reader(), backend.compaction()
    writer.write([append("A", 1, entry(0, 5))])
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 5}))
    since = ChangesReader(reader).changes(["A"]).since
    store.write_blocks("A", "compact-01", 0, [pack_frame(HEADER, 1, b"")])
    (sizes,) = store.sizes(["A"])
    output = Output("compact-01", [17], Directory(0, 1, 0, 17), pack_frame(HEADER, 1, b""))
    store.switch(
        Switch("A", 0, [GroupChange(GROUP, sizes.groups[GROUP].directory, removed=True)], output, 1, 1, b"", 60)
    )
    late = Switch("A", 1, [], None, 1, 1, b"", 60)
    client.delete(KEYS.channel("A"))
    owner.repair_channels(["A"], pack_pairs({0: 9}))
    assert not store.switch(late)
    backend.writer().write([append("A", 1, entry(0, 10))])
    (state,) = reader.channel_states(["A"])
    assert state.groups[GROUP].directory.number == 1
    with pytest.raises(RemovalsForgotten):
        ChangesReader(reader).changes(["A"], since)
    before = state.compacted
    client.hdel(KEYS.channel("A"), "gcompact-01")
    owner.repair_channels(["A"], b"")
    assert reader.channel_states(["A"])[0].compacted == before, "what is there stays"


def test_a_channel_of_which_nothing_is_left_may_begin_again_once_it_was_mended(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.delete(KEYS.channel("A"), KEYS.block("A", GROUP, 0))
    owner, reader = backend.owner(), backend.reader()
    assert owner.repair_channels() == RepairedChannels()
    assert reader.channel_states(["A"]) == [None]
    backend.writer().write([append("A", 1, entry(0, 2))])
    assert owner.repair_channels() == RepairedChannels()
    assert reader.channel_states(["A"]) != [None]


@pytest.mark.parametrize("value", [b"", b"7", b"0:x:0:0", b"0:0000000000000001:0"])
def test_a_garbled_directory_is_corruption(backend, client, value):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.hset(KEYS.channel("A"), "g" + GROUP, value)
    with pytest.raises(IndexCorrupt, match="no directory"):
        backend.reader().channel_states(["A"])


@pytest.mark.parametrize("value", [b"7", b"3:0000000000000001:9:9:4:9"])
@pytest.mark.parametrize("has_blocks", [True, False])
def test_a_garbled_directory_is_made_anew_from_its_blocks(backend, client, value, has_blocks):
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 1))])
    client.hset(KEYS.channel("A"), "g" + GROUP, value)
    if not has_blocks:
        client.delete(KEYS.block("A", GROUP, 0))
    assert backend.owner().repair_channels() == RepairedChannels((KEYS.channel("A"),))
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == ([1] if has_blocks else [])
    backend.writer().write([append("A", 1, entry(0, 2))])
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")][-1] == 2


def test_a_channel_without_groups_is_corruption(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.hset(KEYS.channel("A"), "k" + GROUP, b"")
    client.hdel(KEYS.channel("A"), "g" + GROUP)
    with pytest.raises(IndexCorrupt, match="no group"):
        backend.reader().channel_states(["A"])


def test_a_block_that_lost_its_end_is_corruption(backend, client):
    """The directory counts more of it than is there."""
    writer = backend.writer(block_bytes=100)
    for seqno in (1, 2, 3, 4):
        writer.write([append("A", 1, entry(0, seqno))])
    client.set(KEYS.block("A", GROUP, 1), b"H")
    with pytest.raises(IndexCorrupt, match="missing"):
        ChangesReader(backend.reader()).changes(["A"])


def test_garbled_meta_and_quarantine_are_corruption(backend, client):
    client.lpush(KEYS.quarantine, b"\xc1")
    with pytest.raises(IndexCorrupt, match="quarantine"):
        backend.reader().quarantined()
    client.set(KEYS.meta, "{}")
    with pytest.raises(IndexCorrupt, match="meta"):
        backend.reader().meta()
