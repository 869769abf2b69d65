"""Reads what a client asks for: query, JSON body and headers of a `_changes` request. Pure."""

import difflib
import re
import zlib
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from channelindex.reading.changes_reader import NOW
from workers.serving.http_error import HttpError, bad_request, not_implemented, since_invalid

MAX_BODY_BYTES = 1 << 20
"""Of a request, inflated: a thousand channels, or ten thousand documents."""
MAX_PARAMETERS = 64
MAX_DOC_IDS = 10_000
MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 1.0, 60.0
MAX_TIMEOUT_S = 900.0
_NEAR = 0.8
"""Similarity (`difflib`, 0 to 1) from which an unknown parameter counts as one of ours, misspelt."""

_OURS = (
    "channels", "filter", "since", "last-event-id", "feed", "limit", "heartbeat", "timeout", "seq_interval",
    "active_only", "doc_ids", "style", "include_docs", "descending", "at_least", "request_plus",
)  # fmt: skip
_ACCEPTED = frozenset({*_OURS, "conflicts", "attachments", "att_encoding_info", "view", "selector"})
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_PLACE = re.compile(r"(?:\d+-)?(?P<token>[A-Za-z0-9_-]+)(?:\.\d+)?")
"""A row's `seq`: the sum of seqnos, the last full token, and the number of rows since."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+ -]\d\d:\d\d)")
"""RFC 3339; in a URL, a plus sign is a space."""

Value = str | int | float | bool | list[object] | dict[str, object] | None


class FeedKind(Enum):
    """The form in which an answer comes."""

    NORMAL = "normal"
    LONGPOLL = "longpoll"
    CONTINUOUS = "continuous"
    EVENTSOURCE = "eventsource"


_FEED_BY_NAME = {**{feed.value: feed for feed in FeedKind}, "live": FeedKind.CONTINUOUS, "sse": FeedKind.EVENTSOURCE}


class FeedRequest(NamedTuple):
    """A `_changes` request. Without `channels`, all that are granted; `heartbeat_s` wins over `timeout_s`.

    With `since_s`, Unix time, `since` is yet to be found. `at_least` and `request_plus`: see `Demands`.
    """

    feed: FeedKind
    channels: tuple[str, ...] | None
    doc_ids: tuple[str, ...] | None
    since: str | None
    limit: int | None
    heartbeat_s: float | None
    timeout_s: float | None
    seq_interval: int | None
    active_only: bool
    since_s: float | None = None
    at_least: str | None = None
    request_plus: bool = False


def parse_query(query: bytes) -> dict[str, Value]:
    """The parameters of a URL; of one that is there twice, the last."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise bad_request("the query cannot be read: it is not UTF-8, or has too many parameters") from None
    return dict(pairs)


def parse_body(body: bytes, encoding: str) -> dict[str, Value]:
    """The JSON object in *body*; an empty one where there is none. *encoding* is the Content-Encoding.

    Raises:
        HttpError: it is none, or is too large once inflated.
    """
    if encoding in {"gzip", "deflate"}:
        body = _inflated(body)
    elif encoding not in {"", "identity"}:
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"Content-Encoding {encoding} is not understood",
        )
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Value])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("the body is no JSON object") from None


def _inflated(body: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        raise bad_request("the body does not inflate") from None
    if inflater.unconsumed_tail:
        raise too_large()
    if not inflater.eof:
        raise bad_request("the body does not inflate")
    return inflated


def too_large() -> HttpError:
    """413: the body is larger than any that makes sense."""
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"the body is larger than {MAX_BODY_BYTES} bytes"
    )


def parse_changes(query: Mapping[str, Value], body: Mapping[str, Value], headers: Mapping[bytes, bytes]) -> FeedRequest:
    """Return the `_changes` request of these; *query* wins over *body*.

    Raises:
        HttpError: it makes no sense, or is not for us.
    """
    given = {**body, **query}
    _check_names(given)
    _check_filter(given)
    accepts_events = b"text/event-stream" in headers.get(b"accept", b"")
    feed_name = str(given.get("feed") or ("eventsource" if accepts_events else "normal"))
    feed = _FEED_BY_NAME.get(feed_name)
    if feed is None:
        raise bad_request(f"feed is {feed_name!r}, must be {', '.join(_FEED_BY_NAME)}")
    last_event = headers.get(b"last-event-id", b"").decode("ascii", "replace") or given.get("last-event-id")
    since = last_event or given.get("since")
    since_s = _time_s(since)
    at_least = place_of(given.get("at_least"))
    if at_least == NOW:
        raise bad_request("at_least is 'now', must be a seq of this service; request_plus=true waits for what is now")
    return FeedRequest(
        feed,
        _names(given, "channels"),
        _names(given, "doc_ids"),
        place_of(since) if since_s is None else None,
        _number(given, "limit"),
        _heartbeat_s(given.get("heartbeat")),
        _timeout_s(given),
        _number(given, "seq_interval") or None,
        _flag(given, "active_only"),
        since_s,
        at_least,
        _flag(given, "request_plus"),
    )


def place_of(value: Value) -> str | None:
    """The token in a `since`, or "now"; None for the beginning."""
    if value in (None, "", 0, -1):
        return None
    text = str(value).strip('"')
    if text in {"", "0", "-1"}:
        return None
    if text == NOW:
        return NOW
    match = _PLACE.fullmatch(text)
    if match is None or text.isdigit():
        raise since_invalid(f"since is {text[:80]!r}, must be a seq of this service, 0, now or a time with its zone")
    token = match["token"]
    return None if token == "0" else token  # noqa: S105 the beginning is no secret


def _time_s(value: Value) -> float | None:
    """The Unix time that *value* is; None where it is none."""
    text = str(value).strip('"')
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.replace(" ", "+").upper()).timestamp()
    except (ValueError, OverflowError):
        raise since_invalid(f"since is {text!r}, which is no time") from None


def _check_names(given: Mapping[str, Value]) -> None:
    for name in given:
        if name not in _ACCEPTED:
            near = difflib.get_close_matches(name, _OURS, 1, _NEAR)
            if near:
                raise bad_request(f"unknown parameter {name!r}: did you mean {near[0]!r}?")


def _check_filter(given: Mapping[str, Value]) -> None:
    if _flag(given, "include_docs"):
        raise not_implemented("include_docs")
    if _flag(given, "descending"):
        raise bad_request("descending: changes come in the order in which they can be continued")
    name = given.get("filter")
    if name in (None, "", "sync_gateway/bychannel"):
        if name and not given.get("channels"):
            raise bad_request("filter=sync_gateway/bychannel needs channels")
    elif name == "_doc_ids":
        if given.get("doc_ids") is None:
            raise bad_request("filter=_doc_ids needs doc_ids")
    else:
        raise bad_request(f"filter {str(name)[:80]!r} needs documents, which are not here: only channels and _doc_ids")


def _names(given: Mapping[str, Value], name: str) -> tuple[str, ...] | None:
    """A list of names: JSON, or for channels also with commas between them."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        value = _listed(name, value)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise bad_request(
            f"{name} must be a list of names" + (", with commas or as JSON" if name == "channels" else "")
        )
    names = tuple(dict.fromkeys(map(str, value)))
    if name == "doc_ids" and len(names) > MAX_DOC_IDS:
        raise bad_request(f"doc_ids has {len(names)} ids, may have {MAX_DOC_IDS}")
    return names


def _listed(name: str, text: str) -> list[object] | None:
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[object])
        except (msgspec.DecodeError, RecursionError):
            return None
    if name == "doc_ids":
        return None
    return [part for part in text.split(",") if part]


def _number(given: Mapping[str, Value], name: str) -> int | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 16):
        raise bad_request(f"{name} is {text[:80]!r}, must be a whole number from 0 on")
    return int(text)


def _flag(given: Mapping[str, Value], name: str) -> bool:
    value = str(given.get(name, "false")).lower()
    if value not in {"true", "false", "", "none"}:
        raise bad_request(f"{name} is {value[:80]!r}, must be true or false")
    return value == "true"


def _heartbeat_s(value: Value) -> float | None:
    if value in (None, "", False) or str(value).lower() == "false":
        return None
    if str(value).lower() == "true":
        return MAX_HEARTBEAT_S
    return min(MAX_HEARTBEAT_S, max(MIN_HEARTBEAT_S, _milliseconds("heartbeat", value)))


def _timeout_s(given: Mapping[str, Value]) -> float | None:
    value = given.get("timeout")
    return None if value in (None, "") else min(MAX_TIMEOUT_S, _milliseconds("timeout", value))


def _milliseconds(name: str, value: Value) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise bad_request(f"{name} is {str(value)[:80]!r}, must be milliseconds")
    return number / 1000
