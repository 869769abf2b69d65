"""The answers of the service that are no success, as CouchDB's clients understand them."""

from http import HTTPStatus

import msgspec

from channelindex.errors import (
    ChangesForgotten,
    ChannelIndexError,
    IndexMissing,
    TokenAhead,
    TokenInvalid,
    Transient,
)

DOCS = "https://github.com/channelindex/channelindex/blob/main/docs/changes-feed.md"
Headers = tuple[tuple[bytes, bytes], ...]
RETRY_S = 5
"""Told to clients that find the store away, or us too busy."""


class HttpError(Exception):
    """An answer to a request that cannot be served: *status*, and CouchDB's `error` and `reason`.

    *more* goes into the JSON object, *headers* into the head. `error` is the word by which refusals are counted.
    """

    def __init__(
        self,
        status: HTTPStatus,
        error: str,
        reason: str,
        headers: Headers = (),
        more: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status.value} {error}: {reason}")
        self.status = status
        self.error = error
        self.reason = reason
        self.headers = headers
        self.more = more or {}

    @property
    def body(self) -> bytes:
        """The JSON object, with a line end."""
        answer = {"error": self.error, "reason": self.reason, **self.more, "docs": DOCS}
        return msgspec.json.encode(answer) + b"\n"


def bad_request(reason: str) -> HttpError:
    """400: the client asks for what makes no sense."""
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", reason)


def since_invalid(reason: str) -> HttpError:
    """400: the client has a token that is good for nothing here."""
    return HttpError(HTTPStatus.BAD_REQUEST, "since_invalid", reason)


def not_implemented(what: str) -> HttpError:
    """501: part of CouchDB, and not of this service."""
    reason = f"{what}: channelindex serves changes, not documents: ask Sync Gateway or the bucket for them"
    return HttpError(HTTPStatus.NOT_IMPLEMENTED, "not_implemented", reason)


def not_found() -> HttpError:
    """404: there is no such database, or no such path."""
    return HttpError(HTTPStatus.NOT_FOUND, "not_found", "no_db_file")


def unavailable(reason: str) -> HttpError:
    """503: the same request may be served later, here or by another service."""
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", reason, ((b"retry-after", str(RETRY_S).encode()),))


def method_not_allowed(allowed: str) -> HttpError:
    """405: the path is there, and not for this method."""
    return HttpError(
        HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", f"Only {allowed} allowed", ((b"allow", allowed.encode()),)
    )


def from_error(error: ChannelIndexError) -> HttpError:
    """The answer that *error* of the reader leads to."""
    match error:
        case ChangesForgotten():
            return HttpError(HTTPStatus.BAD_REQUEST, "since_expired", str(error), more={"restart": "0"})
        case TokenAhead():
            return unavailable(str(error))  # a store that lost its newest writes is caught up within moments
        case TokenInvalid():
            return since_invalid(str(error))
        case IndexMissing() | Transient():
            return unavailable("the index cannot be read now")
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", "the index cannot be read")
