"""Defines the configuration of a dev bucket, and checks it."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from channelindex.errors import ConfigInvalid
from devbucket.accounts import Account
from devbucket.bucket import MAX_VBUCKETS
from devbucket.vbucket import COMPRESSION_MODES

IDLE_TIMEOUT_S = 360.0
"""A real server's: how long a DCP client may say nothing while no-ops are on."""

MAX_NODES = 16


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key; with a client CA, clients have to show a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what the TLS listeners use.

        Raises:
            ConfigInvalid: a file cannot be read, or holds something else.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # an SSLError is one
            raise ConfigInvalid(f"TLS files of the dev bucket: {error}") from error
        return context


@dataclass(frozen=True)
class DevBucketConfig:
    """The configuration of a dev bucket. `more_accounts` are for tests of access control.

    `port` and `tls_port` are those of the first node, the other nodes have the following ones; 0 takes free ones.
    `admin` is where operators are listened to: a path with a slash, or a loopback port; nowhere if it is empty.
    `alternate_host` is what each node says is its address from outside, for `?network=external`: "localhost" works.
    `n_replicas` of each vbucket are in the map; they follow at once, see `Controls.stall_replicas`.
    With a `file` the bucket outlives its process. With `collections` (`scope.collection`) it has these besides the
    default one, and offers the feature; without any it is a bucket of a server that knows none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    bucket: str = "default"
    user: str = "Administrator"
    password: str = "password"  # noqa: S105 - what a development cluster has, and it is on loopback
    n_vbuckets: int = MAX_VBUCKETS
    more_accounts: tuple[Account, ...] = ()
    idle_timeout_s: float = IDLE_TIMEOUT_S
    n_nodes: int = 1
    n_replicas: int = 0
    tls: TlsFiles | None = None
    tls_port: int = 0
    alternate_host: str = ""
    admin: str = ""
    file: Path | None = None
    collections: tuple[str, ...] = ()
    compression_mode: str = COMPRESSION_MODES[0]

    def __post_init__(self) -> None:
        """Refuse what cannot be served, and what would put a server without protection on a network.

        Raises:
            ConfigInvalid: the host is not loopback, or a number is out of range.
        """
        if not _is_loopback(self.host):
            raise ConfigInvalid(f"the dev bucket listens on loopback only: host {self.host!r}, use 127.0.0.1")
        if not 1 <= self.n_vbuckets <= MAX_VBUCKETS:
            raise ConfigInvalid(f"a bucket has 1 to {MAX_VBUCKETS} vbuckets, not {self.n_vbuckets}")
        if self.compression_mode not in COMPRESSION_MODES:
            raise ConfigInvalid(f"compression mode {self.compression_mode!r} is none of {', '.join(COMPRESSION_MODES)}")
        if not 1 <= self.n_nodes <= MAX_NODES:
            raise ConfigInvalid(f"a dev bucket has 1 to {MAX_NODES} nodes, not {self.n_nodes}")
        if not 0 <= self.n_replicas < self.n_nodes:
            raise ConfigInvalid(
                f"of {self.n_nodes} nodes, 0 to {self.n_nodes - 1} can have a replica, not {self.n_replicas}"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
