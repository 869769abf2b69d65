"""Says what state a node is in, in the one word that all commands use for it, and in which colour."""

from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.cluster_state import MemberState
from workers.cli.output import RED, YELLOW, Tinted

Node = Mapping[str, Any]
"""A node as `channelindex status --json` prints it."""

DEAD, SILENT = "dead", "silent"
NOBODY = "NOBODY"
"""The owner of a partition that has none."""
_TINT_BY_STATE = {"running": "", DEAD: RED, SILENT: RED}


def describe_node(member: MemberState, ttl_s: float) -> dict[str, Any]:
    """Return *member* as `--json` prints it: its last report decoded, whether it still reports, and its state."""
    node = {**member._asdict(), "status": msgspec.json.decode(member.status) if member.status else {}}
    node["heard"] = is_heard(node, ttl_s)
    return node | {"state": state_of(node)}


def is_heard(node: Node, ttl_s: float) -> bool:
    """Tell whether a node reported within a tick and a half. Nodes report every third of *ttl_s*."""
    return bool(node["alive"]) and node["silent_s"] <= ttl_s / 2


def state_of(node: Node) -> str:
    """Return starting, running, reloading, draining, drained, silent or dead."""
    if not node["alive"]:
        return DEAD
    if not node["heard"]:
        return SILENT
    if node["draining"]:
        return "draining" if node["n_partitions"] else "drained"
    return str(node["status"].get("state", "starting"))


def tinted(state: str) -> Tinted:
    """Return the word *state* in its colour."""
    return Tinted(state, _TINT_BY_STATE.get(state, YELLOW))
