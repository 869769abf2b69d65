"""`channelindex devbucket`: serves a bucket for development on loopback, which fails on command."""

import argparse
import sys
import textwrap
from pathlib import Path

from channelindex import exits, logs
from channelindex.errors import ConfigInvalid
from devbucket import admin, ctl
from devbucket.bucket_config import DevBucketConfig, TlsFiles
from devbucket.process import serve
from devbucket.vbucket import COMPRESSION_MODES
from workers.cli import options, output

_DEFAULTS = DevBucketConfig(port=11210)

_EPILOG = """\
examples:
  channelindex devbucket
  channelindex devbucket --port 0 --vbuckets 64 --nodes 3 --admin 11290
  channelindex devbucket ctl --admin 11290 failover 17 lose=3

For development: listens on loopback only and has no replicas. Without --file it
keeps everything in memory. The first line on stdout is its URL, for
source.url; log lines go to stderr. With --admin, `devbucket ctl` makes it fail:
`channelindex devbucket ctl --help` lists all operations.
"""

_CTL_EPILOG = """\
examples:
  channelindex devbucket ctl --admin 11290 nodes
  channelindex devbucket ctl --admin 11290 failover 17 lose=3
  channelindex devbucket ctl --admin 11290 move 0-31,64 node=1
  channelindex devbucket ctl --admin /run/dev.sock stall on name=channelindex

operations:
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--host", default=_DEFAULTS.host, help="loopback address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=options.port,
        default=_DEFAULTS.port,
        help="port of the first node, the others have the next ones; 0 takes free ones (default: %(default)s)",
    )
    parser.add_argument("--bucket", default=_DEFAULTS.bucket, help="the bucket's name (default: %(default)s)")
    parser.add_argument("--user", default=_DEFAULTS.user, help="the user that may log in (default: %(default)s)")
    parser.add_argument("--password", default=_DEFAULTS.password, help="that user's password (default: %(default)s)")
    parser.add_argument(
        "--vbuckets",
        type=options.positive,
        default=_DEFAULTS.n_vbuckets,
        help="number of vbuckets (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes", type=options.positive, default=_DEFAULTS.n_nodes, help="number of nodes (default: %(default)s)"
    )
    parser.add_argument(
        "--replicas",
        type=options.whole,
        default=_DEFAULTS.n_replicas,
        help="replicas of each vbucket, in name only (default: %(default)s)",
    )
    parser.add_argument(
        "--alternate-host", default="", metavar="HOST", help="the nodes' alternate address, for ?network=external"
    )
    parser.add_argument("--file", type=Path, help="SQLite file that keeps the bucket (default: in memory only)")
    parser.add_argument(
        "--collection",
        action="append",
        default=[],
        metavar="SCOPE.COLLECTION",
        help="a collection besides the default one; may be repeated",
    )
    parser.add_argument(
        "--compression-mode",
        choices=COMPRESSION_MODES,
        default=_DEFAULTS.compression_mode,
        help="what memory holds compressed: nothing, what clients compressed, or all (default: %(default)s)",
    )
    _add_tls(parser)
    parser.add_argument("--admin", default="", metavar="ADDRESS", help="socket path or loopback port for `ctl`")
    _add_ctl(parser)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM file: each node has a TLS port too")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file with the certificate's key")
    parser.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="ask clients for a certificate of this CA")
    parser.add_argument(
        "--tls-port",
        type=options.port,
        default=_DEFAULTS.tls_port,
        help="TLS port of the first node; 0 takes free ones (default: %(default)s)",
    )


def _add_ctl(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ctl", help="make a running dev bucket fail")
    command = actions.add_parser(
        "ctl",
        description="Make a running dev bucket fail.",
        epilog=_CTL_EPILOG + _list_operations(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--admin", required=True, metavar="ADDRESS", help="the --admin address of the dev bucket")
    command.add_argument(
        "operation", metavar="OPERATION", choices=list(ctl.OPERATIONS), help="an operation listed below"
    )
    command.add_argument(
        "arguments", metavar="ARGUMENT", nargs="*", default=(), help="in the operation's order, or as name=value"
    )


def _list_operations() -> str:
    """Usage and summary of every operation."""
    return "".join(
        f"  {ctl.usage(name)}\n{textwrap.indent(textwrap.fill(ctl.summary(name), 72), ' ' * 6)}\n"
        for name in ctl.OPERATIONS
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, or send an operation to a running dev bucket."""
    return _control(args) if args.action == "ctl" else _serve(args)


def _control(args: argparse.Namespace) -> int:
    answer = admin.ask(args.admin, args.operation, ctl.arguments_of(args.operation, args.arguments))
    for line in answer if isinstance(answer, list) and answer and isinstance(answer[0], dict) else [answer]:
        if line is not None:
            output.json_line(line)
    return exits.OK


def _tls_of(args: argparse.Namespace) -> TlsFiles | None:
    if args.tls_certificate and args.tls_key:
        return TlsFiles(args.tls_certificate, args.tls_key, args.tls_client_ca)
    if args.tls_certificate or args.tls_key or args.tls_client_ca:
        raise ConfigInvalid("TLS needs both --tls-certificate and --tls-key")
    return None


def _serve(args: argparse.Namespace) -> int:
    logs.configure(stream=sys.stderr, role="devbucket")
    config = DevBucketConfig(
        host=args.host,
        port=args.port,
        bucket=args.bucket,
        user=args.user,
        password=args.password,
        n_vbuckets=args.vbuckets,
        n_nodes=args.nodes,
        n_replicas=args.replicas,
        tls=_tls_of(args),
        tls_port=args.tls_port,
        alternate_host=args.alternate_host,
        admin=args.admin,
        file=args.file,
        collections=tuple(args.collection),
        compression_mode=args.compression_mode,
    )
    serve(config, ready=output.line)
    return exits.OK
