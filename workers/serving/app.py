"""The application: finds out who asks for what, and has it answered. One plain ASGI callable."""

import asyncio
import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from channelindex import __version__, logs
from channelindex.errors import ChannelIndexError, ConfigInvalid
from channelindex.model import STAR_CHANNEL, IndexMeta
from channelindex.reading import since_token
from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.reading.query import Query
from channelindex.settings import Config
from workers.serving.cluster_watch import ClusterWatch
from workers.serving.counters import Counters, make_counters
from workers.serving.demands import Demands, HighSeqnos
from workers.serving.feeds import Asked, Feeds
from workers.serving.grants import EVERYTHING, Access, Grants
from workers.serving.http_error import HttpError, bad_request, from_error, method_not_allowed, not_found
from workers.serving.http_exchange import JSON, Exchange, Gone, Message, Receive, Send
from workers.serving.live import LiveAnswer
from workers.serving.page import Page
from workers.serving.request import FeedKind, FeedRequest, parse_body, parse_changes, parse_query
from workers.serving.rows import seq_of
from workers.serving.scans import Scans
from workers.serving.sessions import Sessions

MAX_TARGET_BYTES = 32 * 1024
"""Of path and query."""
MAX_NAMES = 1000
"""Channels of one answer of `_channels`."""
RELOAD_S = 0.5
"""Between two looks at the file of tokens."""
NO_STORE = (b"cache-control", b"private, no-store")

_log = logs.get("serve")


class Resource(NamedTuple):
    """Names the method of `App` that serves a path, without `_serve_`, and the HTTP methods that it takes."""

    name: str
    methods: str


class App:
    """See the module."""

    def __init__(
        self,
        config: Config,
        reader: AsyncChangesReader,
        grants: Grants | None,
        watch: ClusterWatch,
        high_seqnos: HighSeqnos | None,
    ) -> None:
        self.max_connections = config.serve.max_connections
        self.slow_client_s = config.serve.slow_client_s
        self.counters: Counters = make_counters()
        self._settings = config.serve
        self._db = config.serve.db or config.index.name
        self._watch = watch
        self._page = Page(watch, self._db)
        self._demands = Demands(reader, high_seqnos)
        self._reader = reader
        self._grants = grants
        self._sessions = Sessions(grants, config.serve)
        scans = Scans(reader, config.serve.scans, self.counters.scans)
        self._feeds = Feeds(reader, scans, self.counters)
        self._open: dict[str, set[LiveAnswer]] = defaultdict(set)  # by digest of the token
        self._n_asking = Counter[str]()  # the same; requests that are no open feeds yet
        self._is_stopping = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http", "no websockets, no lifespan"
        exchange = Exchange(scope, receive, send)
        try:
            if answer := await self._serve(exchange):
                try:
                    await answer.run()
                finally:
                    answer.close()
        except Gone:
            pass
        except HttpError as error:
            await self._refuse(exchange, error)
        except ChannelIndexError as error:
            if not exchange.connection.transport.is_closing():
                await self._refuse(exchange, from_error(error), error)
        except Exception as error:  # noqa: BLE001 the top of a request: nothing may end the service, or pass for an end
            _log.exception("serve.request_failed", path=exchange.path)
            reason = type(error).__name__
            await self._refuse(exchange, HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", reason))

    async def _refuse(self, exchange: Exchange, refused: HttpError, why: ChannelIndexError | None = None) -> None:
        self.count_refused(refused.error)
        is_ours = refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR and refused.status != HTTPStatus.NOT_IMPLEMENTED
        if exchange.has_begun or (is_ours and not self._is_stopping):
            _log.warning("serve.refused", error=refused.error, msg=str(why or refused.reason))
        await exchange.refuse(refused)

    async def _serve(self, exchange: Exchange) -> LiveAnswer | None:
        """Answer; or return the answer that is to be run."""
        if self._is_stopping:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "shutting down", ((b"retry-after", b"1"),))
        exchange.more_headers = self._sessions.cors_headers(exchange)
        route = self._route(exchange)
        if exchange.method == "OPTIONS" and self._sessions.is_known_origin(exchange):
            await self._sessions.answer_preflight(exchange)
            return None
        if exchange.method not in route.methods.split(", "):
            raise method_not_allowed(route.methods)
        answer: LiveAnswer | None = await getattr(self, f"_serve_{route.name}")(exchange)
        return answer

    def _route(self, exchange: Exchange) -> Resource:
        """Raises HttpError for a path that is nobody's: it is matched as it was decoded once, and must be plain."""
        raw, path = exchange.raw_path, exchange.path
        if len(raw) + len(exchange.query) > MAX_TARGET_BYTES:
            raise HttpError(
                HTTPStatus.REQUEST_URI_TOO_LONG, "too_long", f"the URL is longer than {MAX_TARGET_BYTES} bytes"
            )
        segments = path.split("/")
        is_odd = "%" in path or b"%2f" in raw.lower() or not path.isascii() or not path.isprintable() or "\\" in path
        if is_odd or not path.startswith("/") or "//" in path or "." in segments or ".." in segments:
            raise not_found()
        _, first, *rest = segments
        if first == self._db:
            return _IN_DB.get("/".join(rest).rstrip("/"), _NOT_OURS)
        known = _NOT_OURS if first in _COUCHDB else _AT_ROOT.get(path)
        if known is None or (known in _OPERATORS and not exchange.door.is_operators):
            raise not_found()
        return known

    def _access(self, exchange: Exchange) -> Access:
        """Whose request this is. Raises HttpError: nobody's that we know, or of one who asks too often."""
        if not exchange.door.is_trusted:
            return self._sessions.access(exchange)
        if not is_plain_host(exchange.headers.get(b"host", b"")):
            reason = "without tokens this service answers to localhost or an address, not to another name"
            raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", reason)
        return EVERYTHING

    def _access_now(self, exchange: Exchange) -> Access:
        """Whose request this still is, after a wait: tokens are withdrawn meanwhile. Raises HttpError: nobody's."""
        return EVERYTHING if exchange.door.is_trusted else self._sessions.access(exchange, takes_one=False)

    async def _serve_root(self, exchange: Exchange) -> None:
        """Say who we are; show the page to a browser."""
        if b"text/html" in exchange.headers.get(b"accept", b""):
            is_trusted = exchange.door.is_trusted
            access = self._access(exchange) if is_trusted else self._sessions.access_or_none(exchange)
            await self._page.serve(
                exchange, may_read_all=access is not None and access.reads_all and not access.is_proxy
            )
            return
        vendor = {"name": "channelindex", "version": __version__}
        answer: dict[str, object] = {"couchdb": "Welcome", "version": __version__, "vendor": vendor}
        if exchange.door.is_trusted or self._sessions.access_or_none(exchange):
            answer["uuid"] = (await self._reader.meta()).index_uuid
        await self._json(exchange, answer)

    async def _serve_db(self, exchange: Exchange) -> None:
        """Describe the database, as far as clients of CouchDB look at it."""
        access = self._access(exchange)
        if exchange.method == "PUT":
            reason = "The database could not be created, the file already exists."
            raise HttpError(HTTPStatus.PRECONDITION_FAILED, "file_exists", reason)
        snapshot = await self._reader.snapshot()
        meta, position = snapshot.meta, snapshot.position
        await self._json(
            exchange,
            {
                "db_name": self._db,
                "update_seq": seq_of(sum(position.seqnos), since_token.encode(position, meta, since_token.ANYTHING)),
                "instance_start_time": "0",
                "doc_count": 0,
                "doc_del_count": 0,
                "purge_seq": 0,
                "compact_running": False,
                "channels": access.grants,
                "lag": await self._watch.lag(),
                "index": _described(meta),
            },
        )

    async def _serve_changes(self, exchange: Exchange) -> LiveAnswer | None:
        """Answer `_changes`, or return the answer that is to be run."""
        access = self._access(exchange)
        body = await exchange.body() if exchange.method == "POST" else b""
        encoding = exchange.headers.get(b"content-encoding", b"").decode("latin-1").lower()
        request = parse_changes(parse_query(exchange.query), parse_body(body, encoding), exchange.headers)
        asked = self._granted(request, access)
        self.counters.requests.labels(request.feed.value).inc()
        with self._asking(access):
            await self._demands.met(request)
            if request.since_s is not None:
                request = request._replace(since=await self._reader.position_at(asked.query, request.since_s))
            asked = self._granted(request, self._access_now(exchange))
            if request.limit == 0:
                await self._feeds.only_count(exchange, asked)
                return None
            if request.feed is FeedKind.NORMAL:
                await self._feeds.normal(exchange, asked)
                return None
        return await self._feeds.open_live(exchange, asked, self._open[access.digest])

    @contextmanager
    def _asking(self, access: Access) -> Iterator[None]:
        """Count a request that is not an open feed yet. Raises HttpError: the token may have no more."""
        digest = access.digest
        if digest and len(self._open[digest]) + self._n_asking[digest] >= self._settings.max_feeds_per_token:
            raise _too_many("this token has too many feeds open")
        self._n_asking[digest] += 1
        try:
            yield
        finally:
            self._n_asking[digest] -= 1
            if not self._n_asking[digest]:
                del self._n_asking[digest]

    def _granted(self, request: FeedRequest, access: Access) -> Asked:
        """Raises HttpError: a channel is not granted, or there is none, or too many."""
        channels = request.channels or access.all_granted()
        if channels is None:
            raise bad_request("name channels: what you may read ends in *, and cannot be listed")
        if len(channels) > self._settings.max_channels:
            raise bad_request(f"{len(channels)} channels, may be {self._settings.max_channels}")
        for channel in channels:
            if not access.allows(channel):
                raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", f"channel {channel!r} is not yours to read")
        query = Query.of(channels, request.doc_ids, active_only=request.active_only)
        return Asked(request, query, access.digest)

    async def _serve_channels(self, exchange: Exchange) -> None:
        """List channels with their counters, for who may read all."""
        if not self._access(exchange).reads_all:
            raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", "channels are listed for who may read all of them: *")
        query = parse_query(exchange.query)
        prefix, after = str(query.get("prefix") or ""), str(query.get("after") or "")
        names = [name for name in await self._reader.channels() if name.startswith(prefix) and name > after]
        counters = await self._reader.counters(names[:MAX_NAMES])
        listed = [{"name": name, "counter": counter} for name, counter in zip(names, counters, strict=False)]
        await self._json(exchange, {"channels": listed, "more": len(names) > MAX_NAMES})

    async def _serve_events(self, exchange: Exchange) -> None:
        """Stream what the page shows: pictures of the cluster, and what comes to one channel from now on."""
        access = self._access(exchange)
        if not access.reads_all:
            raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", "the cluster is shown to who may read all channels: *")
        channel = str(parse_query(exchange.query).get("channel") or STAR_CHANNEL)
        request = parse_changes({"feed": "eventsource", "since": "now"}, {"channels": [channel]}, exchange.headers)
        with self._asking(access):
            asked = self._granted(request, access)
        answer = await self._feeds.open_live(exchange, asked, self._open[access.digest])
        assert answer is not None, "it is no longpoll"
        pushing = asyncio.create_task(self._page.push(exchange))
        try:
            await answer.run()
        finally:
            answer.close()
            pushing.cancel()
            await asyncio.wait([pushing])

    async def _serve_asset(self, exchange: Exchange) -> None:
        """Answer with a file of the page."""
        await self._page.serve_asset(exchange)

    async def _serve_session(self, exchange: Exchange) -> None:
        """Make a cookie of a token, say whose it is, or take it back."""
        await self._sessions.serve(exchange)

    async def _serve_not_ours(self, exchange: Exchange) -> None:
        """Tell those who may ask that documents are elsewhere."""
        self._access(exchange)
        raise HttpError(
            HTTPStatus.NOT_IMPLEMENTED,
            "not_implemented",
            "channelindex serves changes, not documents: ask Sync Gateway or the bucket for them",
        )

    async def _serve_up(self, exchange: Exchange) -> None:
        """Say whether the index can be read."""
        await self._reader.stable_counter()
        await self._json(exchange, {"status": "ok"})

    async def _serve_metrics(self, exchange: Exchange) -> None:
        """Expose the metrics."""
        content = generate_latest(self.counters.registry)
        await exchange.answer(HTTPStatus.OK, content, (b"content-type", CONTENT_TYPE_LATEST.encode()), NO_STORE)

    async def _json(self, exchange: Exchange, value: object) -> None:
        await exchange.answer(HTTPStatus.OK, msgspec.json.encode(value) + b"\n", JSON, NO_STORE)

    async def watch_grants(self) -> None:
        """Look at the file of tokens for ever; end the feeds of tokens that were withdrawn or changed."""
        while self._grants is not None:
            await asyncio.sleep(RELOAD_S)
            try:
                ended = self._grants.reload()
            except ConfigInvalid as error:
                _log.error("serve.tokens_refused", msg=f"{error}; those of before stay in force")
                continue
            if ended is None:
                continue
            _log.info("serve.tokens_reloaded", ended=len(ended))
            for digest in ended:
                for feed in list(self._open.pop(digest, ())):
                    feed.end()

    def stop(self) -> None:
        """Take no request any more, and end the feeds that are open."""
        self._is_stopping = True
        for feeds in list(self._open.values()):
            for feed in list(feeds):
                feed.end()

    def count_refused(self, error: str) -> None:
        """Count a request that was refused."""
        self.counters.refused.labels(error).inc()

    def count_cut(self, reason: str) -> None:
        """Count an answer that was cut off."""
        self.counters.cut.labels(reason).inc()

    def count_connections(self, change: int) -> None:
        """Count connections that came or went, of all listeners."""
        self.counters.connections.inc(change)


_NOT_OURS = Resource("not_ours", "GET, HEAD, POST, PUT, DELETE, COPY")
_IN_DB = {
    "": Resource("db", "GET, HEAD, PUT"),
    "_changes": Resource("changes", "GET, POST"),
    "_channels": Resource("channels", "GET"),
}
_COUCHDB = frozenset(
    f"_{name}"
    for name in (
        *("active_tasks", "all_dbs", "cluster_setup", "db_updates", "dbs_info", "membership", "node", "replicate"),
        *("reshard", "scheduler", "utils", "uuids"),
    )
)
"""Paths of a CouchDB beside those of databases."""
_AT_ROOT = {
    "/": Resource("root", "GET, HEAD"),
    "/_session": Resource("session", "GET, POST, DELETE"),
    "/_events": Resource("events", "GET"),
    "/_page.css": Resource("asset", "GET, HEAD"),
    "/_page.js": Resource("asset", "GET, HEAD"),
    "/_up": Resource("up", "GET, HEAD"),
    "/metrics": Resource("metrics", "GET"),
}
_OPERATORS = frozenset({_AT_ROOT["/_up"], _AT_ROOT["/metrics"]})


def is_plain_host(host: bytes) -> bool:
    """True if a Host header is empty, localhost or an IP address, with or without a port.

    A page of anybody can make its own name resolve to 127.0.0.1; the browser then sends that name.
    """
    if not host:
        return True
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _too_many(reason: str) -> HttpError:
    return HttpError(HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", reason, ((b"retry-after", b"10"),))


def _described(meta: IndexMeta) -> dict[str, object]:
    return {"uuid": meta.index_uuid, "vbuckets": meta.n_vbuckets, "partitions": meta.n_partitions}
