"""The same as `ServerLink` for a Redis Cluster: finds the node of each key, and follows where it moves to.

Requests for several nodes are sent to all of them before the first reply is read. A node that answers MOVED has done
nothing, so the request goes to the right one, once the layout has been asked for anew. ASK means that a slot is on its
way to another node. A command with one key may follow there; a script must not: where it is going, keys that have not
arrived yet look absent, and the script would begin them anew. So scripts name a key that never exists, which makes the
old node answer ASK to all of them until the slot has moved, and their caller waits as it does for any store.

After any failure that may mean that a master has a successor, the layout is asked for anew before the next request, of
the nodes that answered last rather than of the one that failed (docs/design/012-redis.md).
"""

import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import redis
from redis.crc import key_slot

from channelindex.errors import Transient
from channelindex.redis.endpoints import node_of
from channelindex.redis.errors import Purpose
from channelindex.redis.link import Link, PackedCall, ServerLink
from channelindex.redis.watchful import ask_once
from channelindex.redis_url import RedisAddress

MAX_REDIRECTIONS = 5
"""Most times that a request follows MOVED: the layout is new each time, so more than two means that nodes disagree."""

Node = tuple[str, int]
"""(host, port)."""


class _SlotLayout(NamedTuple):
    """Which master has which slots: `nodes[i]` those from `firsts[i]` on; None where nobody has them.

    `replicas` answer no requests of ours, but know the layout when their master is gone.
    """

    firsts: list[int]
    nodes: list[Node | None]
    replicas: list[Node]

    def node_of(self, slot: int) -> Node | None:
        """The master of *slot*."""
        assert 0 <= slot < 1 << 14, "a cluster has 16,384 slots"
        return self.nodes[bisect_right(self.firsts, slot) - 1]

    @property
    def masters(self) -> list[Node]:
        """All masters, in a fixed order."""
        return sorted({node for node in self.nodes if node is not None})


class ClusterLink(Link):
    """Links to the masters of a cluster, each made when it is first needed. See `ServerLink` for the arguments."""

    spans_slots = False

    def __init__(
        self,
        address: RedisAddress,
        purpose: Purpose,
        where: str,
        *,
        reconnects: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(purpose, where)
        self._address = address
        self._reconnects = reconnects
        self._timeout_s = timeout_s
        self._layout: _SlotLayout | None = None
        self._known_nodes: tuple[Node, ...] = ()
        self._failed_at: dict[Node, float] = {}
        self._link_by_node: dict[Node, ServerLink] = {}
        self._retired_sessions = 0

    @property
    def session(self) -> int:
        """See `Link.session`."""
        for link in list(self._link_by_node.values()):
            link.check()
        return self._retired_sessions + sum(link.session for link in self._link_by_node.values())

    def servers(self) -> Sequence[ServerLink]:
        """A link to each master, in a fixed order."""
        return [self._link(node) for node in self._known_layout().masters]

    def server_of(self, key: str) -> ServerLink:
        """The link to the master that has *key* now."""
        return self._link(self._node(key))

    def close(self) -> None:
        """See `Link.close`. Forget the layout: a master that lives on as a replica would be taken for one."""
        self._layout = None
        for link in self._link_by_node.values():
            link.close()

    def _exchange(self, commands: Sequence[Sequence[Any]], keys: Sequence[str], *, follows: bool) -> list[Any]:
        assert len(keys) == len(commands), "each command goes after its key"
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        for _ in range(MAX_REDIRECTIONS):
            self._exchange_once(commands, keys, waiting, replies)
            waiting = [index for index in waiting if isinstance(replies[index], redis.exceptions.MovedError)]
            if not waiting:
                break
            self._layout = None
        else:
            raise self._unavailable("its nodes disagree about where slots are")
        if follows:
            for index, reply in enumerate(replies):
                if isinstance(reply, redis.exceptions.AskError):
                    replies[index] = self._asked(commands[index], reply)
        return replies

    def _exchange_once(
        self, commands: Sequence[Sequence[Any]], keys: Sequence[str], waiting: Sequence[int], replies: list[Any]
    ) -> None:
        indices_by_node: dict[Node, list[int]] = {}
        for index in waiting:
            indices_by_node.setdefault(self._node(keys[index]), []).append(index)
        try:
            for node, indices in indices_by_node.items():
                self._link(node).send([commands[index] for index in indices])
            for node, indices in indices_by_node.items():
                for index, reply in zip(indices, self._link(node).receive(len(indices)), strict=True):
                    replies[index] = reply
        except BaseException:
            self.close()  # replies that nobody reads now must not answer what comes next
            raise

    def _exchange_packed(self, calls: Sequence[PackedCall]) -> list[bytes]:
        """Follow a slot that has moved, if nothing of the call was executed: none may be sent twice unnoticed."""
        replies = [b""] * len(calls)
        waiting = list(range(len(calls)))
        for _ in range(MAX_REDIRECTIONS):
            self._exchange_packed_once(calls, waiting, replies)
            waiting = [index for index in waiting if b"-MOVED " in replies[index]]
            if not waiting:
                return replies
            self._layout = None
            if any(replies[index].count(b"-MOVED ") != calls[index][2] for index in waiting):
                break
        raise self._unavailable("a slot has moved to another node meanwhile")

    def _exchange_packed_once(self, calls: Sequence[PackedCall], waiting: Sequence[int], replies: list[bytes]) -> None:
        assert all(not replies[index] or b"-MOVED " in replies[index] for index in waiting), "none is sent twice"
        indices_by_node: dict[Node, list[int]] = {}
        for index in waiting:
            indices_by_node.setdefault(self._node(calls[index][0]), []).append(index)
        try:
            for node, indices in indices_by_node.items():
                self._link(node).send_packed([calls[index] for index in indices])
            for node, indices in indices_by_node.items():
                lines = self._link(node).receive_lines([calls[index] for index in indices])
                for index, of_call in zip(indices, lines, strict=True):
                    replies[index] = of_call
        except BaseException:
            self.close()  # as above
            raise

    def _asked(self, command: Sequence[Any], error: Any) -> Any:
        """The reply to *command* of the node to which its slot is moving."""
        assert command[0] not in {"EVAL", "EVALSHA"}, "a script waits until the slot has moved"
        link = self._link((error.host, error.port))
        link.send([("ASKING",), command])
        _, reply = link.receive(2)
        return reply

    def _node(self, key: str) -> Node:
        slot = key_slot(key.encode())
        node = self._known_layout().node_of(slot)
        if node is None:
            self._layout = None
            raise self._unavailable(f"no node of the cluster has slot {slot}, of key {key}")
        return node

    def _link(self, node: Node) -> ServerLink:
        link = self._link_by_node.get(node)
        if link is None:
            link = self._link_by_node[node] = ServerLink(
                node_of(self._address, *node, self._timeout_s, look=lambda _: self._is_replaced(node)),
                self.purpose,
                f"{self.where} ({node[0]}:{node[1]})",
                reconnects=self._reconnects,
                is_suspect=True,  # where one hangs, others can be asked
                on_trouble=partial(self._distrust, node),
            )
        return link

    def _distrust(self, node: Node) -> None:
        """Ask for the layout before the next request, and *node* last: it may be gone, and have a successor."""
        self._failed_at[node] = time.monotonic()
        self._layout = None

    def _is_replaced(self, node: Node) -> bool:
        """Ask the node that failed longest ago whether *node*, of which we wait for something, is a master no more."""
        others = [other for other in self._known_nodes if other != node]
        if node not in self._known_nodes or not others:
            return False
        asked = min(others, key=lambda other: self._failed_at.get(other, 0.0))
        assert asked != node, "it is silent"
        ranges = ask_once(node_of(self._address, *asked, self._timeout_s)(), "CLUSTER", "SLOTS")
        if ranges is None:
            self._failed_at[asked] = time.monotonic()  # another one is asked next
            return False
        masters = _layout(ranges, asked).masters
        return bool(masters) and node not in masters  # one that was taken out of the cluster knows none

    def _known_layout(self) -> _SlotLayout:
        if self._layout is None:
            layout = self._ask_layout()
            self._known_nodes = (*layout.masters, *layout.replicas)
            masters = set(layout.masters)
            for node in [node for node in self._link_by_node if node not in masters]:
                link = self._link_by_node.pop(node)
                link.close()
                self._retired_sessions += link.session
            self._retired_sessions += 1
            self._layout = layout
        return self._layout

    def _ask_layout(self) -> _SlotLayout:
        """The layout as the first node that answers knows it: those that we know, then those of the URL.

        Nodes that failed are asked last, the latest of them at the end: one that hangs takes its time to be given up.
        """
        nodes = dict.fromkeys((*self._known_nodes, *self._address.nodes))
        failure: Transient | None = None
        for node in sorted(nodes, key=lambda node: self._failed_at.get(node, 0.0)):
            try:
                (ranges,) = self._link(node).pipeline([("CLUSTER", "SLOTS")])
            except Transient as error:
                failure = error
            else:
                self._failed_at.pop(node, None)
                return _layout(ranges, node)
        raise self._unavailable(f"no node of the cluster can be reached ({failure})")

    def _unavailable(self, why: str) -> Transient:
        return self.purpose.unavailable(f"{self.purpose.setting} {self.where}: {why}")


def _layout(ranges: Sequence[Any], asked: Node) -> _SlotLayout:
    """The layout in the answer to CLUSTER SLOTS. A node that does not know its own name leaves it empty."""
    firsts: list[int] = [0]
    nodes: list[Node | None] = [None]
    replicas: dict[Node, None] = {}
    for first, last, master, *others in sorted(ranges, key=lambda item: item[0]):
        node = _node(master, asked)
        replicas |= dict.fromkeys(_node(other, asked) for other in others)
        if first == firsts[-1]:
            nodes[-1] = node
        else:
            firsts.append(first)
            nodes.append(node)
        firsts.append(last + 1)
        nodes.append(None)
    assert len(firsts) == len(nodes), "each range has a master, or None"
    return _SlotLayout(firsts, nodes, list(replicas))


def _node(described: Sequence[Any], asked: Node) -> Node:
    host, port = described[:2]
    return host.decode() if host else asked[0], port
