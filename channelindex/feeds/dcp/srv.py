"""Finds the data nodes that a name stands for: DNS SRV records, as every SDK looks them up.

`couchbase://cluster.example.com/bucket`, one name without a port, may be the name of `_couchbase._tcp` records
(`_couchbases._tcp` with TLS), whose targets are data nodes. Where there are none, or nobody answers in time, the name
is taken for a host's.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress

if TYPE_CHECKING:
    from dns.resolver import Resolver

LOOKUP_S = 3.0
"""Longest wait for the name servers, all attempts together: a start must not hang on them."""


def find_nodes(address: SourceAddress, resolver: "Resolver | None" = None) -> SourceAddress:
    """Return *address* with the nodes that SRV records name for it, the preferred ones first; unchanged without any.

    Blocks, at most LOOKUP_S. *resolver* is by default the system's configuration.
    """
    if not address.srv_name:
        return address
    import dns.exception  # noqa: PLC0415 - most addresses need no lookup, and it would cost each start 50 ms
    import dns.resolver  # noqa: PLC0415

    try:
        records = (resolver or dns.resolver.Resolver()).resolve(address.srv_name, "SRV", lifetime=LOOKUP_S)
    except (dns.exception.DNSException, OSError):
        return address
    found = sorted((record.priority, -record.weight, str(record.target).rstrip("."), record.port) for record in records)
    nodes = tuple(Endpoint(host, port) for _, _, host, port in found if host)
    return replace(address, seeds=nodes) if nodes else address
