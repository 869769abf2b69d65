"""One connection to a bucket, by the SDK, and the few operations on many documents that the store is made of.

The SDK reconnects and asks again by itself what the server refused for the moment (TMPFAIL, a vbucket that has moved)
until the timeout. What it does not know the outcome of it reports, and so do we: nothing is repeated here.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from couchbase import exceptions as sdk
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.constants import FMT_BYTES
from couchbase.durability import DurabilityLevel, ServerDurability
from couchbase.options import (
    AppendMultiOptions,
    ClusterOptions,
    ClusterTimeoutOptions,
    DeltaValue,
    GetMultiOptions,
    IncrementMultiOptions,
    IncrementOptions,
    InsertMultiOptions,
    ReplaceMultiOptions,
    ReplaceOptions,
    SignedInt64,
)
from couchbase.transcoder import Transcoder

from channelindex.errors import ConfigInvalid, Transient
from channelindex.settings import IndexSettings
from channelindex.stores.couchbase.errors import translate_connect_error, translate_error, worst
from channelindex.stores.couchbase.keys import SETTING
from channelindex.urls import split_url

CONNECT_TIMEOUT_S = 10.0
"""For finding the cluster, encryption and login included."""

MAX_CALL_DOCUMENTS = 1000
"""Documents in one call of the SDK: each has a timeout of its own, which counts from the call."""

_DURABILITY_ATTEMPTS = 4
_DURABILITY_PAUSE_S = 0.25

_T = TypeVar("_T")


class Stored(NamedTuple):
    """A document's bytes, and the number that the bucket gave to this version of it."""

    value: bytes
    cas: int


class _Bytes(Transcoder):  # type: ignore[misc]
    """Documents are bytes; counters, which the server writes as digits, are read as such."""

    def encode_value(self, value: bytes) -> tuple[bytes, int]:
        """The value and the flags that say that it is binary."""
        return value, FMT_BYTES

    def decode_value(self, value: bytes, flags: int) -> bytes:  # noqa: ARG002 the SDK asks for it
        """The value as it is."""
        return value


class Link:
    """A connection that is made when it is first needed. Each process has its own, made after its fork."""

    def __init__(self, settings: IndexSettings) -> None:
        parts = split_url(settings.store)
        keyspace = f"{settings.scope}.{settings.collection}"
        self.where = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if keyspace != "_default._default":
            self.where += f" {keyspace}"
        self._settings = settings
        self._cluster: Any = None
        self._collection: Any = None
        self._transcoder = _Bytes()
        level = DurabilityLevel[settings.durability.upper()]
        self._durability: dict[str, Any] = {"durability": ServerDurability(level)} if level.value else {}

    def get(self, keys: Sequence[str]) -> list[Stored | None]:
        """Each document, in the order asked; None for one that does not exist.

        Raises:
            StoreUnavailable: any of them could not be read.
        """
        found: dict[str, Any] = {}
        options = GetMultiOptions(transcoder=self._transcoder)
        for chunk in _chunks(dict.fromkeys(keys)):
            results, _ = self._call(
                lambda keys: self._opened().get_multi(keys, options),
                chunk,
                expected=sdk.DocumentNotFoundException,
                changes=False,
            )
            found |= results
        return [Stored(found[key].value, found[key].cas) if key in found else None for key in keys]

    def append(self, values: Mapping[str, bytes]) -> set[str]:
        """Append to documents; the keys of those that do not exist, to which nothing was appended."""
        options = AppendMultiOptions(**self._durability)
        _, missing = self._change(
            values,
            lambda chunk: self._opened().binary().append_multi(chunk, options),
            sdk.DocumentNotFoundException,
        )
        return missing

    def insert(self, values: Mapping[str, bytes]) -> set[str]:
        """Create documents; the keys of those that existed and are as they were."""
        options = InsertMultiOptions(transcoder=self._transcoder, **self._durability)
        _, existing = self._change(
            values, lambda chunk: self._opened().insert_multi(chunk, options), sdk.DocumentExistsException
        )
        return existing

    def replace(self, values: Mapping[str, Stored]) -> set[str]:
        """Replace each document if it still has this CAS; the keys of those that have changed, or are gone."""

        def replace(chunk: Mapping[str, Stored]) -> Any:
            per_key = {key: ReplaceOptions(cas=new.cas) for key, new in chunk.items()}
            options = ReplaceMultiOptions(transcoder=self._transcoder, per_key_options=per_key, **self._durability)
            return self._opened().replace_multi({key: new.value for key, new in chunk.items()}, options)

        _, changed = self._change(values, replace, (sdk.CasMismatchException, sdk.DocumentNotFoundException))
        return changed

    def expire(self, keys: Collection[str], after_s: int) -> None:
        """Let documents go in *after_s* seconds, at once if that is 0; one that does not exist is none of them.

        Not durable: after a failover they may stay.
        """
        assert after_s >= 0

        def expire(chunk: Sequence[str]) -> Any:
            if after_s:
                return self._opened().touch_multi(chunk, timedelta(seconds=after_s))
            return self._opened().remove_multi(chunk)

        for chunk in _chunks(keys):
            self._call(expire, chunk, expected=sdk.DocumentNotFoundException, changes=True)

    def increment(self, deltas: Mapping[str, int], initial: int | None = None) -> dict[str, int]:
        """Raise counters; what they are now. One that is not there is created at *initial*, else at its delta."""
        assert all(delta > 0 for delta in deltas.values()), "counters rise"

        def increment(chunk: Mapping[str, int]) -> Any:
            per_key = {
                key: IncrementOptions(delta=DeltaValue(delta), initial=SignedInt64(initial or delta))
                for key, delta in chunk.items()
            }
            options = IncrementMultiOptions(per_key_options=per_key, **self._durability)
            return self._opened().binary().increment_multi(list(chunk), options)

        results, _ = self._change(deltas, increment, ())
        return {key: int(result.content) for key, result in results.items()}

    def check_durability(self, key: str) -> None:
        """Append nothing to *key*, durably if so configured, to see if the server knows durability; nothing changes.

        One that does not (before 6.5) takes such a write for no frame and closes the connection, and the SDK cancels
        the write. So may a connection that is lost: hence several attempts, and a read that succeeds between them.

        Raises:
            ConfigInvalid: each durable write is canceled, and each read is answered.
            StoreUnavailable: a read is not.
        """
        for _ in range(_DURABILITY_ATTEMPTS if self._durability else 0):
            try:
                self.append({key: b""})
            except Transient as error:
                if not isinstance(error.__cause__, sdk.RequestCanceledException):
                    return  # it passes, or the write that matters fails
            else:
                return
            time.sleep(_DURABILITY_PAUSE_S)
            self.get([key])
        if self._durability:
            raise ConfigInvalid(
                f"index.durability = {self._settings.durability!r}: the server of {SETTING} {self.where} answers "
                'reads, and takes no durable write (one before 6.5): set it to "none", or name another bucket'
            )

    def close(self) -> None:
        """Close the connection; the SDK's threads end. May be called twice, the next operation connects again."""
        cluster, self._cluster, self._collection = self._cluster, None, None
        if cluster is not None:
            cluster.close()

    def _change(
        self, values: Mapping[str, _T], call: Callable[[dict[str, _T]], Any], expected: Any
    ) -> tuple[dict[str, Any], set[str]]:
        results: dict[str, Any] = {}
        refused: set[str] = set()
        for chunk in _chunks(values):
            part = {key: values[key] for key in chunk}
            of_chunk, refused_of_chunk = self._call(call, part, expected=expected, changes=True, n_done=len(results))
            results |= of_chunk
            refused |= refused_of_chunk
        return results, refused

    def _call(
        self, call: Callable[[Any], Any], documents: Any, *, expected: Any, changes: bool, n_done: int = 0
    ) -> tuple[dict[str, Any], set[str]]:
        """The results by key, and the keys that failed by an *expected* exception; any other one is raised, judged."""
        try:
            multi = call(documents)
        except sdk.CouchbaseException as error:  # of the call as a whole
            raise translate_error(self.where, "call", error, changes=changes) from error
        results: dict[str, Any] = multi.results
        failed: dict[str, Exception] = multi.exceptions
        assert results.keys().isdisjoint(failed), "an operation was done, or failed"
        unexpected = {key: error for key, error in failed.items() if not isinstance(error, expected)}
        if unexpected:
            errors = [translate_error(self.where, key, error, changes=changes) for key, error in unexpected.items()]
            raise worst(errors, len(results) + n_done if changes else 0) from next(iter(unexpected.values()))
        return results, set(failed)

    def _opened(self) -> Any:
        if self._collection is None:
            try:
                self._open()
            except (sdk.CouchbaseException, ValueError) as error:
                self.close()
                raise translate_connect_error(self.where, error) from error
        return self._collection

    def _open(self) -> None:
        settings, parts = self._settings, split_url(self._settings.store)
        timeout, connect = timedelta(seconds=settings.timeout_s), timedelta(seconds=CONNECT_TIMEOUT_S)
        options = ClusterOptions(
            PasswordAuthenticator(settings.user, settings.password, cert_path=settings.ca_file or None),
            timeout_options=ClusterTimeoutOptions(
                bootstrap_timeout=connect, connect_timeout=connect, kv_timeout=timeout, kv_durable_timeout=timeout
            ),
            enable_tracing=False,
            enable_metrics=False,
        )
        query = f"?{parts.query}" if parts.query else ""
        self._cluster = Cluster.connect(f"{parts.scheme}://{parts.netloc}{query}", options)
        bucket = self._cluster.bucket(unquote(parts.path.removeprefix("/")))
        self._collection = bucket.scope(settings.scope).collection(settings.collection)


def append_or_create(link: Link, values: Mapping[str, bytes]) -> None:
    """Append to documents, created where they do not exist."""
    missing = link.append(values)
    if missing:
        link.insert(dict.fromkeys(missing, b""))
        link.append({key: values[key] for key in missing})


def _chunks(keys: Iterable[str]) -> Iterable[list[str]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, MAX_CALL_DOCUMENTS)):
        yield chunk
