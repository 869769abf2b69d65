"""What the log says of documents that go into quarantine."""

import logging

from channelindex import logs
from channelindex.stores.base import Quarantined
from workers.pipeline.quarantine_log import INTERVAL_S, QuarantineLog


def documents(*seqnos: int) -> list[Quarantined]:
    return [Quarantined(7, seqno, b"order::%d" % seqno, f"Undecodable: reason {seqno}", 0.0) for seqno in seqnos]


def written(caplog) -> list[dict[str, object]]:
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "feed.quarantined"]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    caplog.clear()
    return lines


def test_the_first_is_reported_at_once_and_the_rest_once_a_minute_with_their_number(caplog):
    log = QuarantineLog(logs.get("feed"))
    log.write_if_due(0.0)
    assert written(caplog) == []
    log.note(documents(1, 2))
    log.write_if_due(0.5)
    (line,) = written(caplog)
    assert (line["documents"], line["vb"], line["seqno"], line["key"]) == (2, 7, 2, "order::2")
    assert "reason 2" in str(line["msg"])
    for seqno in range(3, 503):
        log.note(documents(seqno))
        log.write_if_due(1.0)
    assert written(caplog) == []
    log.write_if_due(0.5 + INTERVAL_S)
    assert [line["documents"] for line in written(caplog)] == [500]
    log.write_if_due(0.5 + 5 * INTERVAL_S)
    assert written(caplog) == []
