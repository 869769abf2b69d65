"""Which removals are indexed: none is lost, whatever the feed leaves out and whoever wrote the document."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.removals import RemovalMemory
from channelindex.model import Removal, Route

A_OUT = Removal(100, "3-c", False)


def route(sequence: int = 0, rev: str = "9-z", **channels: Removal | None) -> Route:
    return Route(rev, 0, sequence, channels)


def due(memory: RemovalMemory, route: Route, key: bytes = b"doc") -> set[str]:
    owed = memory.due(7, key, route)
    return {channel for channel in route.channels if channel in owed}


def test_a_document_that_was_never_brought_has_all_its_removals_indexed() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(500, a=A_OUT, b=Removal(0, "", False), c=None)) == {"a", "b"}


def test_a_removal_is_indexed_once_however_often_the_document_changes_then() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(100, "3-c", a=A_OUT)) == {"a"}
    assert due(memory, route(100, "3-c", a=A_OUT)) == set()
    assert due(memory, route(101, "4-d", a=A_OUT, b=None)) == set()
    assert due(memory, route(102, "5-e", a=A_OUT, b=Removal(102, "5-e", False))) == {"b"}
    assert due(memory, route(103, "6-f", a=A_OUT, b=Removal(102, "5-e", False))) == set()


def test_a_removal_that_differs_in_anything_is_another_one() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(100, "3-c", a=A_OUT)) == {"a"}
    for other in (Removal(101, "3-c", False), Removal(100, "3-d", False), Removal(100, "3-c", True)):
        assert due(memory, route(200, "4-d", a=other)) == {"a"}, other
        assert due(memory, route(201, "5-e", a=A_OUT)) == {"a"}, "and so is the first one then"


def test_a_removal_under_an_old_sequence_is_indexed() -> None:
    """A resync rewrites `channels` under the document's sequence; the feed sees the next update only."""
    memory = RemovalMemory(16)
    assert due(memory, route(100, "3-c", a=None, b=None)) == set()
    assert due(memory, route(60_000, "4-d", a=A_OUT, b=None)) == {"a"}


def test_a_removal_under_an_old_sequence_beside_one_that_was_indexed_is_indexed() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(200, "4-d", a=A_OUT, b=None)) == {"a"}
    assert due(memory, route(60_000, "5-e", a=A_OUT, b=Removal(200, "4-d", False))) == {"b"}


def test_a_channel_that_is_entered_again_has_no_other_removal_indexed_again() -> None:
    memory = RemovalMemory(16)
    both = route(100, "3-c", a=A_OUT, b=Removal(100, "3-c", False))
    assert due(memory, both) == {"a", "b"}
    assert due(memory, route(101, "4-d", a=A_OUT, b=None)) == set()
    assert due(memory, route(102, "5-e", a=A_OUT, b=Removal(102, "5-e", False))) == {"b"}


def test_a_document_that_left_very_many_channels_has_the_new_one_indexed_only() -> None:
    memory = RemovalMemory(16)
    left: dict[str, Removal | None] = {}
    for number in range(1, 101):
        left[f"stage-{number}"] = Removal(number, f"{number}-x", False)
        assert due(memory, Route(f"{number}-x", 0, number, dict(left))) == {f"stage-{number}"}
    resynced = {**left, "stage-0": Removal(50, "50-x", False)}
    assert due(memory, Route("101-x", 0, 101, resynced)) == set(resynced)


def test_a_channel_that_was_left_twice_under_one_sequence_is_reported_twice() -> None:
    memory = RemovalMemory(16)
    for _ in range(2):
        assert due(memory, route(100, "3-c", a=A_OUT)) == {"a"}
        assert due(memory, route(100, "3-c", a=None)) == set()


def test_sequences_of_another_database_hide_nothing() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(9_000_000, "2-x", a=None), key=b"copied") == set()
    assert due(memory, route(5_001, "4-d", a=A_OUT, b=Removal(4_000, "2-b", False))) == {"a", "b"}


def test_documents_that_share_a_slot_are_distinguished() -> None:
    memory = RemovalMemory(1)
    for _ in range(2):
        for key in (b"one", b"two"):
            assert due(memory, route(500, a=A_OUT), key) == {"a"}
    assert due(memory, route(500, a=A_OUT), b"two") == set()


def test_what_was_cleared_is_indexed_again() -> None:
    memory = RemovalMemory(16)
    assert due(memory, route(500, a=A_OUT)) == {"a"}
    memory.clear()
    assert due(memory, route(500, a=A_OUT)) == {"a"}


# -- against an oracle that sees every write

CHANNELS = ("a", "b", "c", *(f"d{number}" for number in range(40)))


@dataclass
class Written:
    """A document as its writers leave it."""

    sequence: int = 0
    generation: int = 0
    channels: dict[str, Removal | None] = field(default_factory=dict)

    def assign(self, members: frozenset[str], *, sequence: int, generation: int) -> None:
        """Write as Sync Gateway does; with the sequence and generation that it has, as a resync does."""
        self.sequence, self.generation = sequence, generation
        for channel, removal in list(self.channels.items()):
            if removal is None and channel not in members:
                self.channels[channel] = Removal(sequence, f"{generation}-x", False)
        self.channels.update(dict.fromkeys(members))

    def route(self) -> Route:
        return Route(f"{self.generation}-x", 0, self.sequence, dict(self.channels))


WRITES = st.lists(
    st.tuples(
        st.integers(0, 2),  # the document
        st.frozensets(st.sampled_from(CHANNELS)),
        st.sampled_from(["update", "resync", "unsequenced", "copied"]),
        st.booleans(),  # whether the feed sees it before the next write
        st.integers(0, 12).map(lambda number: number == 0),  # whether the feed begins anew behind it
    ),
    max_size=30,
)


@given(WRITES, st.sampled_from([1, 2, 64]))
def test_a_reader_of_any_channel_knows_who_is_in_it(writes, n_rows: int) -> None:
    """Whatever a bucket leaves out: the last entry of each channel says what the document says."""
    memory = RemovalMemory(n_rows)
    documents = [Written() for _ in range(3)]
    index: dict[tuple[int, str], bool] = {}

    def feed(number: int) -> None:
        shown = documents[number].route()
        owed = memory.due(0, b"%d" % number, shown)
        for channel, removal in shown.channels.items():
            if removal is None or channel in owed:
                index[number, channel] = removal is None

    for count, (number, members, kind, is_seen, begins_anew) in enumerate(writes, 1):
        document = documents[number]
        resync = kind == "resync" and document.generation
        sequence = document.sequence if resync else {"unsequenced": 0, "copied": 10**6 - count}.get(kind, count)
        document.assign(members, sequence=sequence, generation=document.generation + (not resync))
        if is_seen:
            feed(number)
        if begins_anew:
            memory.clear()
    for number in range(3):
        feed(number)
        for channel, removal in documents[number].channels.items():
            assert index[number, channel] is (removal is None)
