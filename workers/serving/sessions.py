"""Finds out whose a request is: by token, cookie or proxy; and what scripts of other origins may do."""

import time
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from channelindex.settings import ServeSettings
from workers.serving.grants import Access, Grants, tokens_in
from workers.serving.http_error import Headers, HttpError, bad_request, method_not_allowed
from workers.serving.http_exchange import JSON, Exchange
from workers.serving.request import parse_body, parse_query

COOKIE = "ChannelindexSession"
COOKIE_S = 30 * 86400
PROXY_CHANNELS = b"channelindex-channels"
"""Header in which a proxy names the channels of its user: as the parameter channels, with commas or as JSON."""
_CHALLENGE: Headers = (
    (b"www-authenticate", b'Basic realm="channelindex", charset="UTF-8"'),
    (b"www-authenticate", b'Bearer realm="channelindex"'),
)
_NO_STORE = (b"cache-control", b"private, no-store")
MAX_ALLOWANCES = 100_000


class Allowance(NamedTuple):
    """Requests that a token has left as of *at*, monotonic."""

    left: float
    at: float


class Sessions:
    """See the module. Without *grants* everybody may do everything."""

    def __init__(self, grants: Grants | None, settings: ServeSettings) -> None:
        self._grants = grants
        self._origins = frozenset(filter(None, settings.origins.encode().split(b",")))
        self._is_secure = bool(settings.tls_cert_file)
        self._allowance_by_digest: dict[str, Allowance] = {}

    def access(self, exchange: Exchange, *, takes_one: bool = True) -> Access:
        """The access that the request has; unless *takes_one*, it counts as none of those that the rate allows.

        Raises:
            HttpError: it has no token that is known, or more come than its rate allows.
        """
        access = self.access_or_none(exchange)
        if access is None:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "unauthorized", "a token is needed", _CHALLENGE)
        if takes_one:
            self._take_one(access)
        if not access.is_proxy:
            return access
        named = exchange.headers.get(PROXY_CHANNELS)
        if not named:
            reason = "a proxy must name its user's channels in Channelindex-Channels"
            raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", reason)
        return access.narrowed(_listed(named))

    def access_or_none(self, exchange: Exchange) -> Access | None:
        """The access of the token in the request; None without one that is known."""
        if self._grants is None:
            return None
        token = tokens_in(exchange.headers, COOKIE)
        return self._grants.find(token) if token else None

    def _take_one(self, access: Access) -> None:
        """Take one of the requests that *access* has left: at most those of a second, or one."""
        if access.rate is None:
            return
        now = time.monotonic()
        most = max(1.0, access.rate)
        assert access.rate > 0, "a file with another rate is refused"
        left, at = self._allowance_by_digest.get(access.digest, Allowance(most, now))
        left = min(most, left + (now - at) * access.rate)
        if left < 1:
            wait_s = round((1 - left) / access.rate) + 1
            reason = f"{access.name} may make {access.rate:g} requests a second"
            after = (b"retry-after", str(wait_s).encode())
            raise HttpError(HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", reason, (after,))
        if len(self._allowance_by_digest) >= MAX_ALLOWANCES:
            self._allowance_by_digest.clear()
        self._allowance_by_digest[access.digest] = Allowance(left - 1, now)

    async def serve(self, exchange: Exchange) -> None:
        """Answer /_session."""
        match exchange.method:
            case "POST":
                await self._log_in(exchange)
            case "DELETE":
                cookie = self._cookie("", 0)
                await exchange.answer(HTTPStatus.OK, b'{"ok":true}\n', JSON, _NO_STORE, cookie)
            case "GET":
                access = self.access_or_none(exchange)
                context: dict[str, object] = {"name": access.name if access else None, "roles": []}
                body = {"ok": True, "userCtx": context, "info": {"authentication_handlers": ["cookie", "default"]}}
                await exchange.answer(HTTPStatus.OK, msgspec.json.encode(body) + b"\n", JSON, _NO_STORE)
            case _:
                raise method_not_allowed("GET, POST, DELETE")

    async def _log_in(self, exchange: Exchange) -> None:
        body = await exchange.body()
        kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip()
        given = parse_query(body) if kind == b"application/x-www-form-urlencoded" else parse_body(body, "")
        token = str(given.get("password") or given.get("token") or "")
        access = self._grants.find(token) if self._grants else None
        if self._grants is not None and access is None:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "unauthorized", "no such token")
        cookie = self._cookie(token if access else "", COOKIE_S)
        if kind == b"application/x-www-form-urlencoded" and b"text/html" in exchange.headers.get(b"accept", b""):
            await exchange.answer(HTTPStatus.SEE_OTHER, b"", (b"location", b"/"), _NO_STORE, cookie)
            return
        name = msgspec.json.encode({"ok": True, "name": access.name if access else None, "roles": []})
        await exchange.answer(HTTPStatus.OK, name + b"\n", JSON, _NO_STORE, cookie)

    def _cookie(self, token: str, age_s: int) -> tuple[bytes, bytes]:
        assert age_s >= 0, "0 ends it"
        site = "; SameSite=None; Secure" if self._origins and self._is_secure else "; SameSite=Strict"
        site += "; Secure" if self._is_secure and not self._origins else ""
        return b"set-cookie", f"{COOKIE}={token}; Path=/; Max-Age={age_s}; HttpOnly{site}".encode()

    def is_known_origin(self, exchange: Exchange) -> bool:
        """True if the request is of a script of one of `serve.origins`."""
        return exchange.headers.get(b"origin", b"") in self._origins

    def cors_headers(self, exchange: Exchange) -> Headers:
        """Headers that let a script of one of `serve.origins` read the answer."""
        if not self.is_known_origin(exchange):
            return ()
        return (
            (b"access-control-allow-origin", exchange.headers[b"origin"]),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", b"etag, retry-after, channelindex-seq, channelindex-up-to-date"),
            (b"vary", b"Origin"),
        )

    async def answer_preflight(self, exchange: Exchange) -> None:
        """Answer what a browser asks before a request of another origin."""
        await exchange.begin(
            HTTPStatus.NO_CONTENT,
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
            (b"access-control-allow-headers", b"authorization, content-type, last-event-id"),
            (b"access-control-max-age", b"600"),
        )
        await exchange.end()


def _listed(header: bytes) -> list[str]:
    text = header.decode(errors="replace").strip()
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:
        raise bad_request("Channelindex-Channels is no list of names") from None
