"""The page: the map of vbuckets, the nodes, and the tail of a channel; one event stream keeps it up to date."""

from collections.abc import Mapping
from functools import cache
from html import escape
from http import HTTPStatus
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import quote

import msgspec

from channelindex.model import STAR_CHANNEL
from workers.serving.cluster_watch import COLOURS, ClusterWatch
from workers.serving.http_error import Headers
from workers.serving.http_exchange import Exchange
from workers.serving.request import parse_query

_HTML = (b"content-type", b"text/html; charset=utf-8")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SAFE: Headers = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_TYPE_BY_PATH = {"/_page.css": b"text/css; charset=utf-8", "/_page.js": b"text/javascript; charset=utf-8"}
_NO_STORE = (b"cache-control", b"private, no-store")


class Page:
    """See the module. *db* is the database in the paths of the service."""

    def __init__(self, watch: ClusterWatch, db: str) -> None:
        self._watch = watch
        self._db = db

    async def serve(self, exchange: Exchange, *, may_read_all: bool) -> None:
        """Answer with the page as of now, or with the question who asks.

        Raises:
            ChannelIndexError: the cluster cannot be read.
        """
        if not may_read_all:
            await exchange.answer(HTTPStatus.UNAUTHORIZED, _file("login.html").encode(), _HTML, _NO_STORE, *SAFE)
            return
        channel = str(parse_query(exchange.query).get("channel") or STAR_CHANNEL)
        page = _filled(await self._watch.now(), self._db, channel, _origin(exchange))
        await exchange.answer(HTTPStatus.OK, page.encode(), _HTML, _NO_STORE, *SAFE)

    async def serve_asset(self, exchange: Exchange) -> None:
        """Answer with a file of the page."""
        content = _file(exchange.path.removeprefix("/_")).encode()
        kind = (b"content-type", _TYPE_BY_PATH[exchange.path])
        await exchange.answer(HTTPStatus.OK, content, kind, (b"cache-control", b"no-cache"), *SAFE)

    async def push(self, exchange: Exchange) -> None:
        """Write pictures of the cluster into the event stream of *exchange*, for ever."""
        self._watch.join()
        try:
            while True:
                state = await self._watch.next()
                if exchange.has_begun:
                    await exchange.write(b"event: cluster\ndata: %s\n\n" % state)
        finally:
            self._watch.leave()


@cache
def _file(name: str) -> str:
    return (files("workers.serving") / "page_files" / name).read_text(encoding="utf-8")


def _origin(exchange: Exchange) -> str:
    host = exchange.headers.get(b"host", b"").decode("latin-1")
    return f"{'https' if exchange.is_tls else 'http'}://{host}"


def _filled(state: Mapping[str, Any], db: str, channel: str, origin: str) -> str:
    """The page of *state*. All that comes from outside is escaped."""
    n_columns = 1 << (state["vbuckets"].bit_length() // 2)
    asked = quote(msgspec.json.encode([channel]).decode(), safe="")
    quoted = f"{origin}/{db}/_changes?feed=continuous&since=now&heartbeat=30000&channels={asked}".replace("'", r"'\''")
    texts = {
        "index": state["index"],
        "db": db,
        "width": n_columns,
        "behind": state["behind"],
        "rate": f"{state['rate']:,}",
        "stable": f"{state['stable']:,}",
        "alive": state["alive"],
        "channel": channel,
        "curl": f"curl -N '{quoted}'",
    }
    markup = {
        "cells": "\n".join(_cells(state, first, n_columns) for first in range(0, state["vbuckets"], n_columns)),
        "nodes": "\n".join(_node(node) for node in state["nodes"]),
    }
    return Template(_file("index.html")).substitute({name: escape(str(text)) for name, text in texts.items()} | markup)


def _cells(state: Mapping[str, Any], first: int, n_columns: int) -> str:
    cells = "".join(_cell(state, vb) for vb in range(first, min(first + n_columns, state["vbuckets"])))
    return f'<div role="row">{cells}</div>'


def _cell(state: Mapping[str, Any], vb: int) -> str:
    owner = state["owners"][vb // state["per_partition"]]
    name = "nobody" if owner is None else state["nodes"][owner]["name"]
    colour = "" if owner is None else f' data-owner="{owner % COLOURS}"'
    tab = 0 if vb == 0 else -1
    return f'<span role="gridcell" tabindex="{tab}" aria-label="{escape(f"vbucket {vb}: {name}")}"{colour}></span>'


def _node(node: Mapping[str, Any]) -> str:
    gone = "" if node["is_alive"] else ' class="gone"'
    texts = (node["name"], node["state"], f"{node['vbuckets']:,}", f"{node['rate']:,}", f"{node['lag']:,}")
    return (
        f'<tr data-owner="{node["colour"]}"{gone}>'
        + "".join(f"<td>{escape(str(text))}</td>" for text in texts)
        + "</tr>"
    )
