"""Translates the SDK's errors into ours."""

from collections.abc import Collection

from couchbase import exceptions as sdk

from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    ConfigInvalid,
    IndexCorrupt,
    OutcomeUnknown,
    StoreUnavailable,
)
from channelindex.stores.couchbase.keys import SETTING

_VALUE_TOO_LARGE = 104
"""The SDK's number for it; it has no exception of its own."""

_NO_DURABILITY = (
    "; a server that takes no durable writes (before 6.5, a memcached bucket) has them canceled by the SDK: "
    'then set index.durability = "none"'
)
_NOTHING_HAPPENED = (
    sdk.UnAmbiguousTimeoutException,
    sdk.TemporaryFailException,
    sdk.DurabilitySyncWriteInProgressException,
    sdk.DurabilityImpossibleException,
    sdk.DocumentLockedException,
)
_CANNOT_WORK = (
    sdk.UnsupportedOperation,
    sdk.FeatureUnavailableException,
    sdk.ScopeNotFoundException,
    sdk.CollectionNotFoundException,
    sdk.DurabilityInvalidLevelException,
    sdk.InvalidArgumentException,
)


def translate_error(where: str, key: str, error: Exception, *, changes: bool) -> ChannelIndexError:
    """Translate *error* of one operation; *changes* is true if the operation changes anything.

    What is not known for certain is taken as an unknown outcome, because repeating is always safe.
    """
    what = f"{SETTING} {where}: {key}: {_text_of(error)}"
    if isinstance(error, sdk.AuthenticationException):
        return AuthenticationFailed(f"{what}: check index.user, index.password and the user's rights")
    if getattr(error, "error_code", None) == _VALUE_TOO_LARGE:
        limit = "a document has at most 20 MB: lower index.block_bytes and workers.batch_bytes"
        return ConfigInvalid(f"{what}: {limit}")
    if isinstance(error, _CANNOT_WORK):
        return ConfigInvalid(f"{what}: check index.scope, index.collection and index.durability")
    if isinstance(error, sdk.DeltaInvalidException):
        return IndexCorrupt(f"{key}: it is no counter")
    if changes and isinstance(error, sdk.RequestCanceledException):
        what += _NO_DURABILITY
    if not changes or isinstance(error, _NOTHING_HAPPENED):
        return StoreUnavailable(what)
    return OutcomeUnknown(what)


def worst(errors: Collection[ChannelIndexError], n_done: int) -> ChannelIndexError:
    """The one error of an operation on many documents, of which *n_done* were done.

    First what cannot be cured by asking again. If only some were refused, more than nothing happened.
    """
    assert errors, "something failed"
    for error in errors:
        if not isinstance(error, StoreUnavailable | OutcomeUnknown):
            return error
    for error in errors:
        if isinstance(error, OutcomeUnknown):
            return error
    first = next(iter(errors))
    return OutcomeUnknown(f"{first} ({n_done} other operations were done)") if n_done else first


def translate_connect_error(where: str, error: Exception) -> ChannelIndexError:
    """Translate *error* of a connection attempt."""
    if isinstance(error, sdk.AuthenticationException):
        return AuthenticationFailed(
            f"{SETTING} {where} refuses us: check index.user, index.password and the user's right to the bucket"
        )
    if isinstance(error, sdk.BucketNotFoundException | sdk.InvalidArgumentException):
        return ConfigInvalid(f"{SETTING} {where}: {_text_of(error)}")
    return StoreUnavailable(f"{SETTING} {where} cannot be reached: {_text_of(error)}")


def _text_of(error: Exception) -> str:
    """The kind of error and why the SDK retried, on one line, without the rest of what it knows."""
    reasons = getattr(getattr(error, "context", None), "retry_reasons", None)
    text = f"{type(error).__name__} {getattr(error, 'message', '') or ''}".strip()
    return f"{text} ({', '.join(sorted(map(str, reasons)))})" if reasons else text
