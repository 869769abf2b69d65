"""Says in the log that documents went into quarantine: a feed that goes on without them looks healthy otherwise."""

from collections.abc import Sequence

from channelindex.logs import EventLog
from channelindex.reading.query import document_id
from channelindex.stores.base import Quarantined

INTERVAL_S = 60.0
"""Between two lines. A decoder that understands nothing would fill a disk with one for each document."""


class QuarantineLog:
    """Counts what goes into quarantine. `write_if_due` is called at every report of the feed worker."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._n_documents = 0
        self._newest: Quarantined | None = None
        self._due_at = 0.0

    def note(self, documents: Sequence[Quarantined]) -> None:
        """Count *documents*, which went into quarantine, oldest first."""
        if documents:
            self._n_documents += len(documents)
            self._newest = documents[-1]

    def write_if_due(self, now: float) -> None:
        """Log what was counted since the last line, with the newest as an example, if there is any and it is time."""
        if self._newest is None or now < self._due_at:
            return
        self._log.warning(
            "feed.quarantined",
            documents=self._n_documents,
            vb=self._newest.vb,
            seqno=self._newest.seqno,
            key=document_id(self._newest.key),
            msg=f"in no channel, the newest because: {self._newest.reason}; see channelindex quarantine list",
        )
        self._n_documents, self._newest = 0, None
        self._due_at = now + INTERVAL_S
