"""What a bucket says of itself, asked once before anything is built on it."""

import time

from channelindex.backoff import Backoff
from channelindex.errors import ProtocolError, SourceUnavailable
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import SourceAddress
from channelindex.feeds.dcp.kv import KvClient

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0
_LEAST_TIMEOUT_S = 0.1


def source_info(address: SourceAddress, credentials: Credentials, deadline: float) -> SourceInfo:
    """The bucket's UUID and number of vbuckets. Blocks until *deadline* (monotonic): a node may be about to start.

    Raises:
        SourceUnavailable: the node cannot be reached, or the bucket is not there.
        AuthenticationFailed: the credentials are wrong, or not for this bucket.
    """
    backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
    while True:
        try:
            with KvClient(address, credentials, max(_LEAST_TIMEOUT_S, deadline - time.monotonic())) as client:
                return client.source
        except (SourceUnavailable, ProtocolError):
            pause_s = backoff.next_delay_s()
            if time.monotonic() + pause_s >= deadline:
                raise
            time.sleep(pause_s)
