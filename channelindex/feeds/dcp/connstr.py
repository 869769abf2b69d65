"""Parses the connection string that names a bucket and its nodes."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from channelindex.errors import ConfigInvalid
from channelindex.feeds.dcp.tls import TlsOptions
from channelindex.urls import split_url

DEFAULT_PORT = 11210
DEFAULT_TLS_PORT = 11207
"""The ports of the data service, without TLS and with it."""
AUTO = "auto"

_SEED = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:@/\s,]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_EXPECTED = "expected couchbase://host[:port][,host[:port]…]/bucket[?network=…]"


class Endpoint(NamedTuple):
    """One KV node's address."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SourceAddress:
    """The addresses at which to look for the bucket, the options of its connections, and the collections to stream.

    *network* names which of the addresses that the nodes announce is for us: "default", "external", another that the
    cluster knows, or "auto": the one that the seeds belong to. *tls* None: no encryption. *collections* are names
    "scope.collection" or "scope.*"; none: the default collection. *srv_name* is where SRV records may name the nodes
    (`feeds.dcp.srv`); "" where the seeds are hosts for sure: several, or with a port, or an address.
    """

    seeds: tuple[Endpoint, ...]
    bucket: str
    network: str = AUTO
    tls: TlsOptions | None = None
    collections: tuple[str, ...] = ()
    srv_name: str = field(default="", compare=False)

    def __str__(self) -> str:
        """The URL, without options."""
        scheme = "couchbase" if self.tls is None else "couchbases"
        return f"{scheme}://{','.join(map(str, self.seeds))}/{self.bucket}"


def parse_source_url(url: str, tls: TlsOptions | None = None) -> SourceAddress:
    """The address that `couchbase://host[:port],…/bucket?network=…` names; `couchbases://` is with TLS as *tls* says.

    Raises:
        ConfigInvalid: it is not of that form.
    """
    if "@" in url:
        raise ConfigInvalid("source.url holds credentials; put them into source.user and source.password")
    try:
        parts = split_url(url)
    except ValueError as error:
        raise _wrong(url, str(error)) from error
    if parts.scheme not in {"couchbase", "couchbases"}:
        raise _wrong(url, f"the scheme {parts.scheme!r} is not supported")
    encrypted = parts.scheme == "couchbases"
    bucket = unquote(parts.path.removeprefix("/"))
    if not bucket or "/" in bucket or parts.fragment:
        raise _wrong(url, "it must name one bucket")
    port = DEFAULT_TLS_PORT if encrypted else DEFAULT_PORT
    seeds = tuple(_seed(url, text, port) for text in parts.netloc.split(","))
    network = _network(url, parts.query)
    srv_name = _srv_name(parts.scheme, parts.netloc)
    return SourceAddress(seeds, bucket, network, (tls or TlsOptions()) if encrypted else None, srv_name=srv_name)


def _srv_name(scheme: str, hosts: str) -> str:
    """Return the name of the SRV records that may stand behind *hosts*: of one name without a port."""
    if re.search(r"[,:\[]", hosts) or re.fullmatch(r"[0-9.]+|localhost", hosts):
        return ""
    return f"_{scheme}._tcp.{hosts.lower()}"


def _seed(url: str, text: str, default_port: int) -> Endpoint:
    match = _SEED.fullmatch(text)
    if match is None:
        raise _wrong(url, f"{text!r} is no host" if text else "it must name a host")
    port = int(match["port"] or default_port)
    if not 0 < port < 65536:
        raise _wrong(url, f"port {port} cannot be connected to")
    return Endpoint((match["v6"] or match["host"]).lower(), port)


def _network(url: str, query: str) -> str:
    options = dict(parse_qsl(query, keep_blank_values=True))
    network = options.pop("network", AUTO)
    if options:
        raise _wrong(url, f"the option {next(iter(options))!r} is not known, only network is")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", network):
        raise _wrong(url, "network must be a name: auto, default, external")
    return network


def _wrong(url: str, reason: str) -> ConfigInvalid:
    return ConfigInvalid(f"source.url = {url!r}: {reason}; {_EXPECTED}")
