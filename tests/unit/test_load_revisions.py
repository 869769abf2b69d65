"""Files of revisions, and the generator of synthetic ones."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest

from channelindex.errors import InputInvalid
from devbucket.sync_gateway.revisions import Revision, generation, read_revisions
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.shared import shared_path

GOOD = {"id": "doc", "rev": "1-a", "channels": ["A"], "body": {"n": 1}}


def write(path: Path, *lines: object) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["history.jsonl", "history.jsonl.gz"])
def test_lines_become_revisions(tmp_path, name):
    path = write(tmp_path / name, GOOD, {"id": "ö", "rev": "2-b", "channels": [], "deleted": True})
    assert list(read_revisions(path)) == [
        Revision(id="doc", rev="1-a", channels=("A",), body={"n": 1}),
        Revision(id="ö", rev="2-b", channels=(), deleted=True),
    ]


def test_empty_file_has_no_revisions(tmp_path):
    assert list(read_revisions(write(tmp_path / "empty.jsonl"))) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "truncated"),
        ("not json", "malformed"),
        ("[]", "array"),
        ('{"id":"doc"', "truncated"),
        ({**GOOD, "id": ""}, "$.id"),
        ({**GOOD, "id": 7}, "$.id"),
        ({**GOOD, "id": "ä" * 126}, "252 bytes"),
        ({**GOOD, "id": "_sync:user:eve"}, "reserved"),
        ({**GOOD, "rev": "1"}, "$.rev"),
        ({**GOOD, "rev": "0-a"}, "$.rev"),
        ({**GOOD, "rev": "-a"}, "$.rev"),
        ({**GOOD, "channels": "A"}, "$.channels"),
        ({**GOOD, "channels": [""]}, "$.channels"),
        ({**GOOD, "body": []}, "$.body"),
        ({**GOOD, "body": {"_sync": {}}}, "_sync"),
        ({**GOOD, "deleted": 1}, "$.deleted"),
        ({**GOOD, "chanels": []}, "chanels"),
        ({"id": "doc", "rev": "1-a"}, "channels"),
        ('{"id":"doc","rev":"1-a","channels":[],"body":' + '{"a":' * 100_000, "while deserializing an object"),
    ],
)
def test_malformed_line_is_named_by_file_and_number(tmp_path, line, reason):
    path = write(tmp_path / "bad.jsonl", GOOD, line, GOOD)
    revisions = read_revisions(path)
    assert next(revisions).id == "doc"
    with pytest.raises(InputInvalid) as caught:
        next(revisions)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def test_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"id":"\xff","rev":"1-a","channels":[]}\n')
    with pytest.raises(InputInvalid, match=r"bad\.jsonl:1: .*utf-8"):
        list(read_revisions(path))


@pytest.mark.parametrize(
    "content", [b"no gzip at all\n", gzip.compress(b"x" * 1000, mtime=0)[:-4], gzip.compress(b"", mtime=0)[:5]]
)
def test_broken_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputInvalid, match=r"bad\.jsonl\.gz"):
        list(read_revisions(path))


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(InputInvalid, match="cannot be read"):
            next(read_revisions(path))


def test_real_history_is_read_whole():
    revisions = list(read_revisions(shared_path("data/repo-history.jsonl.gz")))
    assert len(revisions) == 28289
    assert sum(revision.deleted for revision in revisions) == 1216


@pytest.mark.parametrize(("rev", "number"), [("12-abc", 12), ("1-", 1), ("", 0), ("abc", 0), ("x-1", 0), ("-1", 0)])
def test_generation(rev, number):
    assert generation(rev) == number


def test_synthetic_revisions_are_the_same_for_the_same_seed():
    first, again, other = (list(islice(synthetic_revisions(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_synthetic_documents_live_all_their_lives():
    """Generations rise by one, nobody deletes what is not there, and every kind of change occurs."""
    last_by_id: dict[str, Revision] = {}
    kinds = set()
    for revision in islice(synthetic_revisions(7, n_documents=30, n_channels=5, max_channels=2), 3000):
        last = last_by_id.get(revision.id)
        assert generation(revision.rev) == (generation(last.rev) if last else 0) + 1
        assert len(revision.channels) <= 2
        if last is None:
            kinds.add("created")
            assert not revision.deleted
        elif revision.deleted:
            kinds.add("deleted")
            assert not last.deleted
            assert not revision.channels
        elif last.deleted:
            kinds.add("resurrected")
        else:
            kinds.add("updated" if last.channels == revision.channels else "moved")
        last_by_id[revision.id] = revision
    assert kinds == {"created", "deleted", "resurrected", "updated", "moved"}
    assert len(last_by_id) == 30


def test_synthetic_revisions_with_fewer_channels_than_wanted():
    assert {c for r in islice(synthetic_revisions(1, 5, n_channels=1), 200) for c in r.channels} == {"ch-000"}
