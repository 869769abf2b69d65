"""A blocking client of a bucket, for what is not the feed: loading documents, looking at the bucket, tests."""

import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from channelindex.backoff import Backoff
from channelindex.errors import ChannelIndexError, ConfigInvalid, OutcomeUnknown, ProtocolError, SourceUnavailable
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.keyspace import Keyspace
from channelindex.feeds.dcp.kv_connection import KvConnection
from channelindex.feeds.dcp.operations import Document
from channelindex.feeds.dcp.topology import ClusterMap, parse_cluster_map
from channelindex.hashing import vbucket_of
from channelindex.mcbp import Frame, Status

_FIRST_RETRY_S = 0.01
_LONGEST_RETRY_S = 0.5
_FIRST_ATTEMPT_S = 0.05
_LONGEST_ATTEMPT_S = 1.0
"""Between attempts to reach a bucket at all."""
_LEAST_TIMEOUT_S = 0.1


class KvClient:
    """Connections to the nodes of a bucket, made as they are needed. Not safe for threads; closed after an error.

    *timeout_s* bounds connecting, and each call by itself. A request goes to the node that has its vbucket, and again
    to another one if it was not that any more. With one collection in the address, keys are of that one.
    """

    def __init__(self, address: SourceAddress, credentials: Credentials, timeout_s: float = 10.0) -> None:
        """Connect to one of the seeds, authenticate, select the bucket.

        Raises:
            SourceUnavailable: no seed can be reached or the bucket is not there (yet).
            AuthenticationFailed: the credentials are wrong, or not for this bucket; or the certificate is not trusted.
            ProtocolError: the answers make no sense.
        """
        assert timeout_s > 0
        self._address = address
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._connections: dict[Endpoint, KvConnection] = {}
        try:
            self._map = self._bootstrap(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise
        self._keyspace: Keyspace = next(iter(self._connections.values())).keyspace

    @property
    def source(self) -> SourceInfo:
        """The bucket's identity and shape."""
        return self._map.source

    def pipeline(self, requests: Sequence[Request]) -> list[Frame]:
        """The responses to *requests*, in their order. All of a node are sent without waiting for answers in between.

        A request without a vbucket goes to that of its key. Requests of one key are carried out in their order.

        Raises:
            OutcomeUnknown: a connection was lost; any of them may have taken effect.
            ConfigInvalid: the address names several collections, so that a key is none of one document.
        """
        if self._keyspace.several:
            raise ConfigInvalid("documents are read and written in one collection; source.collections names several")
        prefix = self._keyspace.prefix
        return self._send(
            [
                request
                if request.vb is not None
                else request._replace(vb=self.vbucket_of(request.key), key=prefix + request.key)
                for request in requests
            ],
            time.monotonic() + self._timeout_s,
        )

    def vbucket_of(self, key: bytes) -> int:
        """The vbucket that *key* belongs to."""
        return vbucket_of(key, self.source.n_vbuckets)

    # -- single operations

    def get(self, key: bytes) -> Document | None:
        """The document under *key*; None if there is none."""
        return operations.document(self._ask(operations.get(key)))

    def store(self, key: bytes, body: bytes, *, cas: int = 0) -> int | None:
        """Write a document; its new CAS, or None if *cas* is no longer its version."""
        return operations.stored(self._ask(operations.store(key, body, cas=cas)))

    def delete(self, key: bytes, *, cas: int = 0) -> int | None:
        """Delete a document; the tombstone's CAS, or None if there is none or *cas* is no longer its version."""
        return operations.stored(self._ask(operations.delete(key, cas=cas)))

    def increment(self, key: bytes, delta: int = 1, initial: int | None = None) -> int | None:
        """The counter after adding *delta*; None if there is none and no *initial* to create it with."""
        return operations.counted(self._ask(operations.increment(key, delta, initial)))

    def lookup(self, key: bytes, xattr: str) -> Document | None:
        """The document with one xattr, also where it is deleted; None if there is nothing at all."""
        return operations.looked_up(self._ask(operations.lookup(key, xattr)))

    def store_with_xattr(self, key: bytes, xattr: str, text: bytes, body: bytes, *, cas: int = 0) -> int | None:
        """Write body and xattr as one change; the new CAS, or None if *cas* is no longer the document's version."""
        return operations.stored(self._ask(operations.store_with_xattr(key, xattr, text, body, cas=cas)))

    def delete_with_xattr(self, key: bytes, xattr: str, text: bytes, *, cas: int = 0) -> int | None:
        """Make a tombstone with this xattr; its CAS, or None if there is no document of that version."""
        return operations.stored(self._ask(operations.delete_with_xattr(key, xattr, text, cas=cas)))

    def high_seqnos(self) -> dict[int, int]:
        """The high seqno of every active vbucket: of the one collection, if the address names one."""
        deadline = time.monotonic() + self._timeout_s
        owners = {self._map.owner(vb) for vb in range(len(self._map.chains))}
        request = operations.active_seqnos(self._keyspace.only_id)
        found: dict[int, int] = {}
        for endpoint in filter(None, owners):
            found.update(operations.seqnos(self._ask_node(endpoint, [request], deadline)[0]))
        return found

    def _ask(self, request: Request) -> Frame:
        return self.pipeline([request])[0]

    # -- nodes

    def _bootstrap(self, deadline: float) -> ClusterMap:
        """The map, from the first seed that can be had."""
        problems: list[SourceUnavailable | ProtocolError] = []
        for number, seed in enumerate(self._address.seeds):
            now = time.monotonic()
            share_s = (deadline - now) / (
                len(self._address.seeds) - number
            )  # one that is silent leaves time for others
            try:
                connection = KvConnection(seed, self._address, self._credentials, now + share_s)
                found = self._parse(connection)
            except (SourceUnavailable, ProtocolError) as error:
                problems.append(error)
                continue
            self._connections[found.here or seed] = connection
            return found
        raise problems[0]

    def _parse(self, connection: KvConnection) -> ClusterMap:
        try:
            return parse_cluster_map(connection.config, connection.endpoint, self._address)
        except ChannelIndexError:
            connection.close()
            raise

    def _learn(self, text: bytes, via: Endpoint) -> None:
        try:
            found = parse_cluster_map(text, via, self._address)
        except ConfigInvalid as error:  # there was a map that could be used: what the bucket sends is no wrong setting
            raise SourceUnavailable(str(error)) from error
        if found.revision > self._map.revision:
            self._map = found

    def _connection(self, endpoint: Endpoint, deadline: float) -> KvConnection:
        if endpoint not in self._connections:
            self._connections[endpoint] = KvConnection(endpoint, self._address, self._credentials, deadline)
        return self._connections[endpoint]

    def _ask_node(self, endpoint: Endpoint, requests: Sequence[Request], deadline: float) -> list[Frame]:
        try:
            return self._connection(endpoint, deadline).exchange(requests, deadline)
        except ChannelIndexError:
            self.close()
            raise

    def _send(self, requests: Sequence[Request], deadline: float) -> list[Frame]:
        """The answers, each from the node that has its vbucket; one that had it no more is asked for a newer map."""
        answers: dict[int, Frame] = {}
        backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        while True:
            pending = [number for number in range(len(requests)) if number not in answers]
            for endpoint, numbers in self._by_node(requests, pending).items():
                try:
                    found = self._ask_node(endpoint, [requests[number] for number in numbers], deadline)
                except SourceUnavailable as error:
                    if answers:
                        raise OutcomeUnknown(f"{error}; other nodes have taken their part") from error
                    raise
                for number, answer in zip(numbers, found, strict=True):
                    if answer.status != Status.NOT_MY_VBUCKET:
                        answers[number] = answer
                    elif answer.value:
                        self._learn(answer.value, endpoint)
            if len(answers) == len(requests):
                return [answers[number] for number in range(len(requests))]
            assert len(answers) < len(requests), "something is left to ask"
            pause_s = backoff.next_delay_s()
            if time.monotonic() + pause_s >= deadline:
                raise OutcomeUnknown(f"no node of {self._address} (source.url) takes all vbuckets, in time")
            time.sleep(pause_s)

    def _by_node(self, requests: Sequence[Request], numbers: Sequence[int]) -> dict[Endpoint, list[int]]:
        by_node: defaultdict[Endpoint, list[int]] = defaultdict(list)
        for number in numbers:
            # While a vbucket is nowhere, any node that is asked in vain answers with the newest map that it has.
            by_node[self._map.owner(requests[number].vb or 0) or self._map.reachable[0]].append(number)
        return by_node

    def close(self) -> None:
        """Close all connections. May be called twice."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def source_info(address: SourceAddress, credentials: Credentials, deadline: float) -> SourceInfo:
    """Ask the bucket for its UUID and number of vbuckets.

    Blocks until *deadline* (monotonic): a node may be about to start.

    Raises:
        SourceUnavailable: the node cannot be reached, or the bucket is not there.
        AuthenticationFailed: the credentials are wrong, or not for this bucket.
    """
    backoff = Backoff(_FIRST_ATTEMPT_S, _LONGEST_ATTEMPT_S)
    while True:
        try:
            with KvClient(address, credentials, max(_LEAST_TIMEOUT_S, deadline - time.monotonic())) as client:
                return client.source
        except (SourceUnavailable, ProtocolError):
            pause_s = backoff.next_delay_s()
            if time.monotonic() + pause_s >= deadline:
                raise
            time.sleep(pause_s)
