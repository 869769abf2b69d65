"""The loader over a bucket in memory: order, versions, sequences, other writers."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

from channelindex.decode.principals import principal_of
from channelindex.errors import SourceUnavailable
from channelindex.feeds.dcp.exchange import Request
from channelindex.mcbp import RESPONSE, Frame, Op, Status
from devbucket.sync_gateway import loader as loader_module
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import SEQUENCE_BATCH, SEQUENCE_KEY, WINDOW, Loader
from devbucket.sync_gateway.revisions import Revision, generation
from devbucket.sync_gateway.synthetic import synthetic_revisions


class MemoryBucket:
    """GET, ADD, SET and INCREMENT on a dict. `before` may change the bucket, or answer, ahead of a request."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, tuple[bytes, int]] = {}
        self.written: list[bytes] = []
        self.rounds: list[list[int]] = []
        self.before: Callable[[Request], int | None] = lambda _: None
        self._cas = 0

    def pipeline(self, requests: Sequence[Request]) -> list[Frame]:
        self.rounds.append([request.opcode for request in requests])
        return [self._answer(request) for request in requests]

    def put(self, key: bytes, body: bytes) -> int:
        self._cas += 1
        self.bodies[key] = body, self._cas
        return self._cas

    def document(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.bodies[id_.encode()][0])
        return found

    def _answer(self, request: Request) -> Frame:
        status = self.before(request)
        if status is not None:
            return response(request, status)
        body, cas = self.bodies.get(request.key, (b"", 0))
        if request.opcode == Op.INCREMENT:
            counter = int(body or 0) + int.from_bytes(request.extras[:8], "big")
            self.put(request.key, str(counter).encode())
            return response(request, value=counter.to_bytes(8, "big"))
        if request.opcode == Op.GET:
            return response(request, Status.SUCCESS if cas else Status.KEY_ENOENT, body, cas)
        if request.opcode == Op.ADD and cas:
            return response(request, Status.KEY_EEXISTS)
        if request.opcode == Op.SET and request.cas and request.cas != cas:
            return response(request, Status.KEY_EEXISTS if cas else Status.KEY_ENOENT)
        assert request.opcode in (Op.ADD, Op.SET)
        self.written.append(request.key)
        return response(request, cas=self.put(request.key, request.value))


def response(request: Request, status: int = Status.SUCCESS, value: bytes = b"", cas: int = 0) -> Frame:
    return Frame(RESPONSE, request.opcode, status, 0, 0, cas, b"", b"", value)


def revision(id_: str, generation_: int, *channels: str, deleted: bool = False) -> Revision:
    return Revision(id=id_, rev=f"{generation_}-x", channels=channels, body={"n": generation_}, deleted=deleted)


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def loader(bucket: MemoryBucket) -> Loader:
    return Loader(bucket, InlineLayout())


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_BACKOFF_S", 0.0)


def test_revisions_are_stored_with_their_metadata(bucket, loader):
    assert loader.load([revision("a", 1, "A"), revision("b", 1, "B"), revision("a", 2, "B")]) == 3
    document = bucket.document("a")
    assert document["n"] == 2
    assert document["_sync"]["rev"] == "2-x"
    assert document["_sync"]["sequence"] == 3
    assert document["_sync"]["channels"] == {"A": {"seq": 3, "rev": "2-x"}, "B": None}


def test_inline_deletion_is_a_document_that_says_so(bucket, loader):
    loader.load([revision("a", 1, "A"), revision("a", 2, deleted=True)])
    document = bucket.document("a")
    assert document["_deleted"] is True
    assert document["_sync"]["flags"] == 1
    loader.load([revision("a", 3, "A")])
    assert "_deleted" not in bucket.document("a")


def test_order_of_the_input_is_kept(bucket, loader):
    revisions = list(islice(synthetic_revisions(3, n_documents=40), 500))
    progress: list[int] = []
    assert loader.load(revisions, progress.append) == 500
    assert bucket.written == [each.id.encode() for each in revisions]
    assert progress == sorted(progress)
    assert progress[-1] == 500
    sequences = [bucket.document(each.id)["_sync"]["sequence"] for each in revisions]
    assert max(sequences) == 500


def test_windows_hold_each_document_once_and_are_bounded(bucket, loader):
    loader.load(revision(f"d{n}", 1) for n in range(WINDOW + 5))
    sizes = [len(opcodes) for opcodes in bucket.rounds if opcodes[0] == Op.ADD]
    assert sizes == [WINDOW, 5]


def test_remembered_documents_are_not_read_again(bucket, loader):
    loader.load(revision("a", n) for n in range(1, 10))
    assert sum(opcodes.count(Op.GET) for opcodes in bucket.rounds) == 1


def test_memory_is_bounded(bucket, loader, monkeypatch):
    monkeypatch.setattr(loader_module, "CACHED_DOCUMENTS", 3)
    loader.load(revision(f"d{n}", 1, "A") for n in range(10))
    bucket.rounds.clear()
    loader.load(revision(f"d{n}", 2) for n in range(10))
    assert sum(opcodes.count(Op.GET) for opcodes in bucket.rounds) == 7
    assert all(bucket.document(f"d{n}")["_sync"]["channels"]["A"]["rev"] == "2-x" for n in range(10))


def test_repeated_load_changes_nothing(bucket, loader):
    revisions = list(islice(synthetic_revisions(3, n_documents=10), 100))
    loader.load(revisions)
    before = dict(bucket.bodies)
    assert Loader(bucket, InlineLayout()).load(revisions) == 0
    assert bucket.bodies == before


def test_broken_off_load_is_completed_by_another(bucket, loader):
    revisions = list(islice(synthetic_revisions(3, n_documents=10), 100))
    loader.load(revisions[:37])
    progress: list[int] = []
    assert Loader(bucket, InlineLayout()).load(revisions, progress.append) == 63
    assert progress[-1] == 100
    newest = {each.id: each.rev for each in revisions}
    assert {id_: bucket.document(id_)["_sync"]["rev"] for id_ in newest} == newest


def test_sequences_are_taken_in_batches_and_never_twice(bucket, loader):
    other = Loader(bucket, InlineLayout())
    for n in range(1, 2 * SEQUENCE_BATCH + 2):
        loader.load([revision(f"a{n}", 1)])
        other.load([revision(f"b{n}", 1)])
    sequences = [
        json.loads(body)["_sync"]["sequence"] for key, (body, _) in bucket.bodies.items() if key != SEQUENCE_KEY
    ]
    assert len(set(sequences)) == len(sequences)
    assert sum(opcodes.count(Op.INCREMENT) for opcodes in bucket.rounds) == 6


def test_document_that_somebody_else_wrote_is_read_again(bucket, loader):
    loader.load([revision("a", 1, "A"), revision("b", 1, "A")])
    Loader(bucket, InlineLayout()).load([revision("a", 2, "B")])
    assert loader.load([revision("a", 3, "C"), revision("b", 2, "C")]) == 2
    channels = bucket.document("a")["_sync"]["channels"]
    assert channels["A"]["rev"] == "2-x"
    assert channels["B"]["rev"] == "3-x"
    assert channels["C"] is None


def test_document_that_appears_in_between_is_not_overwritten(bucket, loader):
    intruders: Iterator[int] = iter([1])

    def intrude(request: Request) -> None:
        if request.opcode == Op.ADD and next(intruders, None):
            bucket.put(b"a", json.dumps({"_sync": {"rev": "1-other", "channels": {"Z": None}}}).encode())

    bucket.before = intrude
    assert loader.load([revision("a", 2, "A")]) == 1
    assert bucket.document("a")["_sync"]["channels"]["Z"]["rev"] == "2-x"


def test_document_that_vanishes_in_between_is_created_again(bucket, loader):
    loader.load([revision("a", 1, "A")])
    del bucket.bodies[b"a"]
    assert loader.load([revision("a", 2, "B")]) == 1
    assert bucket.document("a")["_sync"]["channels"] == {"B": None}


def test_revision_that_somebody_else_overtook_is_left_out(bucket, loader):
    loader.load([revision("a", 1)])
    Loader(bucket, InlineLayout()).load([revision("a", 5)])
    assert loader.load([revision("a", 2)]) == 0
    assert bucket.document("a")["_sync"]["rev"] == "5-x"


def test_busy_bucket_is_tried_again(bucket, loader):
    refusals = iter([Status.ETMPFAIL, Status.ENOMEM, Status.EBUSY])
    bucket.before = lambda request: next(refusals, None) if request.opcode == Op.ADD else None
    assert loader.load([revision("a", 1), revision("b", 1)]) == 2


def test_bucket_that_never_accepts_is_reported(bucket, loader):
    bucket.before = lambda request: Status.ETMPFAIL if request.key == b"b" and request.opcode == Op.ADD else None
    with pytest.raises(SourceUnavailable, match="1 documents, 'b'"):
        loader.load([revision("a", 1), revision("b", 1)])
    assert bucket.document("a")["_sync"]["rev"] == "1-x"


@pytest.mark.parametrize("body", [b"\xff\0", b"[1]", b'{"n":1}', b'{"_sync":7}', b"[" * 100_000])
def test_foreign_document_is_replaced(bucket, loader, body):
    bucket.put(b"a", body)
    assert loader.load([revision("a", 1, "A")]) == 1
    assert bucket.document("a")["_sync"]["channels"] == {"A": None}


def test_progress_follows_an_endless_input(bucket, loader):
    class Stop(Exception):
        pass

    def stop_at_1000(n_done: int) -> None:
        if n_done >= 1000:
            raise Stop

    with pytest.raises(Stop):
        loader.load(synthetic_revisions(1), stop_at_1000)
    assert (
        sum(generation(bucket.document(key.decode())["_sync"]["rev"]) for key in bucket.bodies if key != SEQUENCE_KEY)
        >= 1000
    )


def test_users_and_roles(bucket, loader):
    loader.put_role("editor", ["news"])
    loader.put_user("alice", ["A"], roles=["editor"])
    loader.put_user("alice", ["B"], roles=["editor"])
    assert bucket.document("_sync:role:editor") == {
        "name": "editor",
        "admin_channels": {"news": 1},
        "all_channels": {"!": 1, "news": 1},
        "sequence": 1,
    }
    assert bucket.document("_sync:user:alice") == {
        "name": "alice",
        "admin_channels": {"B": 3},
        "all_channels": {"!": 1, "B": 3},
        "sequence": 3,
        "explicit_roles": {"editor": 3},
        "rolesSince": {"editor": 3},
    }
    principals = [principal_of(key) for key in bucket.bodies if key != SEQUENCE_KEY]
    assert [(p.kind, p.name) for p in principals if p] == [("role", "editor"), ("user", "alice")]
