"""Where the bucket is: the connection string, parsed once."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from channelindex.errors import ConfigInvalid

DEFAULT_PORT = 11210
"""The port of the data service without TLS."""


@dataclass(frozen=True)
class SourceAddress:
    """One KV node and the bucket on it."""

    host: str
    port: int
    bucket: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"couchbase://{host}:{self.port}/{self.bucket}"


def parse_source_url(url: str) -> SourceAddress:
    """The address that `couchbase://host[:port]/bucket` names.

    Raises:
        ConfigInvalid: it is not of that form.
    """
    try:
        parts = urlsplit(url)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise _wrong(url, str(error)) from error
    if parts.scheme != "couchbase":
        raise _wrong(url, f"the scheme {parts.scheme!r} is not supported")
    if parts.username is not None or parts.password is not None:
        raise ConfigInvalid("source.url holds credentials; put them into source.user and source.password")
    if not parts.hostname or "," in parts.hostname:
        raise _wrong(url, "it must name one host")
    bucket = unquote(parts.path.removeprefix("/"))
    if not bucket or "/" in bucket:
        raise _wrong(url, "it must name one bucket")
    if parts.query or parts.fragment:
        raise _wrong(url, "it takes no options")
    if port == 0:
        raise _wrong(url, "port 0 cannot be connected to")
    return SourceAddress(parts.hostname, port, bucket)


def _wrong(url: str, reason: str) -> ConfigInvalid:
    return ConfigInvalid(f"source.url = {url!r}: {reason}; expected couchbase://host:port/bucket")
