"""The same as `Link` for a Redis Cluster: finds the node of each key, and follows where it moves to.

Requests for several nodes are sent to all of them before the first reply is read. A node that answers MOVED has done
nothing, so the request goes to the right one, once the layout has been asked for anew. ASK means that a slot is on its
way to another node. A command with one key may follow there; a script must not: where it is going, keys that have not
arrived yet look absent, and the script would begin them anew. So scripts name a key that never exists, which makes the
old node answer ASK to all of them until the slot has moved, and their caller waits as it does for any store.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import redis
from redis.crc import key_slot

from channelindex.errors import StoreUnavailable, Transient
from channelindex.redis_url import RedisAddress
from channelindex.stores.redis.endpoints import node_of
from channelindex.stores.redis.failures import judged
from channelindex.stores.redis.keys import SETTING
from channelindex.stores.redis.link import Link, ScriptCall
from channelindex.stores.redis.scripts import script

MAX_REDIRECTIONS = 5
"""How often a request follows MOVED: each time the layout is new, so more than two means that nodes disagree."""

Node = tuple[str, int]
"""(host, port)."""


class _Layout(NamedTuple):
    """Which master has which slots: `nodes[i]` those from `firsts[i]` on; None where nobody has them."""

    firsts: list[int]
    nodes: list[Node | None]

    def node_of(self, slot: int) -> Node | None:
        """The master of *slot*."""
        return self.nodes[bisect_right(self.firsts, slot) - 1]


class _Request(NamedTuple):
    """A command, and the key that says where it goes. Only one that may `follow` goes to where a slot is moving."""

    key: str
    command: Sequence[Any]
    follows: bool


class ClusterLink:
    """Links to the masters of a cluster, each made when it is first needed. See `Link` for its errors and arguments."""

    spans_slots = False
    """One script may touch the keys of one slot only."""

    def __init__(self, address: RedisAddress, where: str, lost: type[Transient], *, reconnects: bool = True) -> None:
        self.where = where
        self._address = address
        self._lost = lost
        self._reconnects = reconnects
        self._layout: _Layout | None = None
        self._link_by_node: dict[Node, Link] = {}
        self._n_layouts = 0

    @property
    def session(self) -> int:
        """Changes whenever a connection to any master is made or given up, or the masters change.

        Raises:
            StoreUnavailable: one of them has hung up, and we do not reconnect.
        """
        for link in list(self._link_by_node.values()):
            link.check()
        return self._n_layouts + sum(link.session for link in self._link_by_node.values())

    def servers(self) -> Iterator[Link]:
        """A link to each master."""
        nodes = {node for node in self._known_layout().nodes if node is not None}
        yield from [self._link(node) for node in sorted(nodes)]

    def server_of(self, key: str) -> Link:
        """The link to the master that has *key* now."""
        return self._link(self._node(key))

    def execute(self, *command: Any) -> Any:
        """The reply to one command, which has its key behind its name; see `Link.execute`."""
        (reply,) = self.pipeline([command])
        return reply

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to *commands*, each of which has its key behind its name; see `Link.pipeline`."""
        replies = self._exchange([_Request(str(command[1]), command, follows=True) for command in commands])
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise judged(self.where, command, reply) from reply
        return replies

    def run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """The reply of a script whose first key says where it runs; see `Link.run`."""
        (reply,) = self.run_all(name, [(keys, arguments)])
        return reply

    def run_all(self, name: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of a script to several calls of it, wherever each has to run."""
        loaded = script(name)
        requests = [
            _Request(keys[0], ("EVALSHA", loaded.sha, len(keys), *keys, *arguments), follows=False)
            for keys, arguments in calls
        ]
        replies = self._exchange(requests)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if unknown:
            for server in self.servers():
                server.execute("SCRIPT", "LOAD", loaded.source)
            again = self._exchange([requests[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for (keys, _), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                raise judged(self.where, (f"{name}.lua", *keys), reply) from reply
        return replies

    def close(self) -> None:
        """Close all connections. May be called twice; the next call opens them again."""
        for link in self._link_by_node.values():
            link.close()

    def _exchange(self, requests: Sequence[_Request]) -> list[Any]:
        """The reply to each request, an exception where a node answered with an error that is not about where it is."""
        replies: list[Any] = [None] * len(requests)
        waiting = list(range(len(requests)))
        for _ in range(MAX_REDIRECTIONS):
            self._exchange_once(requests, waiting, replies)
            moved = [index for index in waiting if isinstance(replies[index], redis.exceptions.MovedError)]
            if not moved:
                break
            self._layout = None
            waiting = moved
        else:
            raise StoreUnavailable(f"{SETTING} {self.where}: its nodes disagree about where slots are")
        for index, (request, reply) in enumerate(zip(requests, replies, strict=True)):
            if isinstance(reply, redis.exceptions.AskError) and request.follows:
                replies[index] = self._asked(request, reply)
        return replies

    def _exchange_once(self, requests: Sequence[_Request], waiting: Sequence[int], replies: list[Any]) -> None:
        indices_by_node: dict[Node, list[int]] = {}
        for index in waiting:
            indices_by_node.setdefault(self._node(requests[index].key), []).append(index)
        try:
            for node, indices in indices_by_node.items():
                self._link(node).send([requests[index].command for index in indices])
            for node, indices in indices_by_node.items():
                for index, reply in zip(indices, self._link(node).receive(len(indices)), strict=True):
                    replies[index] = reply
        except BaseException:
            self._layout = None  # a master that is gone has a successor
            self.close()  # replies that nobody reads now must not answer what comes next
            raise

    def _asked(self, request: _Request, error: Any) -> Any:
        """The reply of the node to which the slot of *request* is moving."""
        _, reply = self._link((error.host, error.port)).exchange([("ASKING",), request.command])
        return reply

    def _node(self, key: str) -> Node:
        slot = key_slot(key.encode())
        node = self._known_layout().node_of(slot)
        if node is None:
            raise StoreUnavailable(f"{SETTING} {self.where}: no node of the cluster has slot {slot}, of key {key}")
        return node

    def _link(self, node: Node) -> Link:
        link = self._link_by_node.get(node)
        if link is None:
            connect = node_of(self._address, *node)
            where = f"{self.where} ({node[0]}:{node[1]})"
            link = self._link_by_node[node] = Link(connect, where, self._lost, reconnects=self._reconnects)
        return link

    def _known_layout(self) -> _Layout:
        if self._layout is None:
            self._layout = self._asked_layout()
            self._n_layouts += 1
        return self._layout

    def _asked_layout(self) -> _Layout:
        """The layout as the first node that answers knows it: those that we know, then those of the URL."""
        failure: Transient | None = None
        for node in dict.fromkeys((*self._link_by_node, *self._address.nodes)):
            try:
                ranges = self._link(node).execute("CLUSTER", "SLOTS")
            except Transient as error:
                failure = error
            else:
                return _layout(ranges, node)
        raise StoreUnavailable(f"{SETTING} {self.where}: no node of the cluster can be reached ({failure})")


def _layout(ranges: Sequence[Any], asked: Node) -> _Layout:
    """The layout that CLUSTER SLOTS says. A node that does not know its own name leaves it empty."""
    firsts: list[int] = [0]
    nodes: list[Node | None] = [None]
    for first, last, (host, port, *_), *_ in sorted(ranges, key=lambda item: item[0]):
        node = (host.decode() if host else asked[0], port)
        if first == firsts[-1]:
            nodes[-1] = node
        else:
            firsts.append(first)
            nodes.append(node)
        firsts.append(last + 1)
        nodes.append(None)
    return _Layout(firsts, nodes)
