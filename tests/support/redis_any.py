"""A client for whatever Redis a URL names, of redis-py's own: no code of the product is in it."""

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel


def open_any(url: str, timeout_s: float = 5.0) -> Any:
    """A client of the server, the cluster or the Sentinels' master at *url*."""
    options: dict[str, Any] = {"socket_timeout": timeout_s, "protocol": 2}
    parts = urlsplit(url)
    named = [node.partition(":") for node in parts.netloc.split(",")] if "+" in parts.scheme else []
    nodes = [(host, int(port)) for host, _, port in named]
    if parts.scheme == "redis+cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in nodes], **options)
    if parts.scheme == "redis+sentinel":
        return Sentinel(nodes, socket_timeout=timeout_s).master_for(parts.path.split("/")[1], **options)
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
