"""Draws `channelindex top`: tables beside each other on a wide terminal, below each other on a narrow one.

Rows that do not fit are left out from the end, and each table counts them. Lines are counted before anything is drawn:
a terminal that is too low would cut off the end of the picture, and with it whole tables.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from workers.cli import top_model as top
from workers.cli.compaction_state import compaction_line
from workers.cli.node_state import DEAD, NOBODY, SILENT, state_of
from workers.cli.store_state import problems as store_problems
from workers.cli.top_keys import HELP, OVERVIEW, PARTITIONS, Choice
from workers.cli.top_model import State, Trend
from workers.telemetry.board import BATCH_WRITER, COMPACTOR, FEED_WORKER

WIDE = 120
"""Columns from which processes and hot channels fit beside each other."""
MEDIUM = 80
"""Columns below which a table leaves out less important columns."""
_WITH_KEYS = 16
"""Lines from which the keys are named; they work on any terminal."""
_WITH_AGE = 105
_WITH_USE = 95
_NARROW = 60
ROOMY = 20
"""Lines from which tables are separated by empty lines."""
_HOT_ROWS = 5
_HOT_ROWS_WIDE = 15
_WARN_FILL, _BAD_FILL = 0.5, 0.8
_WARN_CPU, _BAD_CPU = 0.7, 0.95
_WARN_LAG_S, _BAD_LAG_S = 5.0, 60.0
_WARN_BATCH_MS, _BAD_BATCH_MS = 500, 5000
_NARROW_NAME, _MEDIUM_NAME, _LONGEST_CHANNEL = 12, 18, 40
_CHANNEL_NUMBERS = 44
"""Largest width of the numbers of a hot channel."""
_GUTTER = 3
_SHORT_ROLES = {FEED_WORKER: "feed", BATCH_WRITER: "writer", COMPACTOR: "compactor"}
_HOT_COLUMNS = 60
"""Width of the hot channels beside the processes."""


class _Room(NamedTuple):
    """The most rows of each table, without its header."""

    nodes: int
    processes: int
    hot: int
    channels: int


def screen(
    state: State, trend: Trend, width: int, height: int, clock: str, view: Choice | None = None
) -> RenderableType:
    """The whole picture for a terminal of *width* by *height*. Without a *view* nobody can press a key."""
    headlines = [_headline(state, trend, clock), *_history(state, trend, width, height), *_troubles(state)]
    if view and height >= _WITH_KEYS:
        headlines.insert(1, _keys(view))
    view = view or Choice()
    state = top.of_node(state, view.node)
    n_lines = sum(-(-text.cell_len // width) for text in headlines)
    workers = top.processes(state, view.sort, trend.cpu_by_pid)
    gap = [Text("")] if height - n_lines >= ROOMY else []
    room = _room(height - n_lines, width, len(state["nodes"]), len(workers))
    head: list[RenderableType] = [*headlines, *gap, _nodes(state, width, room.nodes), *gap]
    if view.focus != OVERVIEW:
        rows = max(1, height - n_lines - room.nodes - 2 - 2 * len(gap))
        only = _lagging(state, width, rows) if view.focus == PARTITIONS else _channels(state, width, rows)
        return Group(*head, only)
    hot = [_lagging(state, width, room.hot), _vbuckets(trend, room.hot)]
    if width >= WIDE:
        left = _processes(workers, trend, width - _HOT_COLUMNS, room.processes)
        channels = _channels(state, _HOT_COLUMNS - _GUTTER, room.channels)
        return Group(*head, _beside(left, Group(hot[0], *gap, channels, *gap, hot[1])))
    processes = _processes(workers, trend, width, room.processes)
    return Group(*head, processes, *gap, _beside(*hot), *gap, _channels(state, width, room.channels))


def _keys(view: Choice) -> Text:
    """Name the keys, and what was chosen by them."""
    text = Text(HELP, style="dim")
    text.append(f"  by {view.sort}" + (f", of {view.node}" if view.node else ""), style="cyan")
    return text


def _history(state: State, trend: Trend, width: int, height: int) -> list[Text]:
    """Sparklines of the last updates, the store and its compaction; nothing on a low terminal."""
    if height < ROOMY or len(trend.rates) < 2:
        return []
    store = state.get("store", {})
    bars = max(8, (width - 60) // 2)
    text = Text("changes/s ", style="dim")
    text.append(top.sparkline(trend.rates, bars).rjust(bars), style="green")
    text.append(f" {_short(round(max(trend.rates)))} at most   lag ", style="dim")
    text.append(top.sparkline(trend.lags, bars).rjust(bars), style="yellow")
    text.append(f"   store {store.get('read_ms', 0):.0f} ms", style="dim")
    if store.get("memory_bytes"):
        text.append(f", {_short_bytes(store['memory_bytes'])}", style="dim")
    if store.get("operations_per_s") is not None:
        text.append(f", {_short(store['operations_per_s'])}/s", style="dim")
    compaction = Text(compaction_line(state.get("compaction")), style="dim")
    for line in (text, compaction):
        line.truncate(width, overflow="ellipsis")
    return [text, compaction]


def _room(height: int, width: int, n_nodes: int, n_processes: int) -> _Room:
    """Share out *height* lines: up to a third for nodes, what hot channels need, the rest for processes."""
    n_headers, n_gaps = (2, 2) if width >= WIDE else (4, 4)
    free = height - n_headers - (n_gaps if height >= ROOMY else 0)
    nodes = max(1, min(n_nodes + (n_nodes > 1), max(2, height // 3)))
    free -= nodes
    if width >= WIDE:
        hot = max(1, min(_HOT_ROWS_WIDE, (free - 4) // 3))
        return _Room(nodes, max(1, free), hot, hot)
    hot = max(1, min(_HOT_ROWS, free // 4))
    channels = max(1, min(_HOT_ROWS, free // 3))
    return _Room(nodes, max(1, min(n_processes, free - hot - channels)), hot, channels)


def _headline(state: State, trend: Trend, clock: str) -> Text:
    index, lag_s = state["index"], state["lag"]["seconds"]
    heard = sum(node["heard"] for node in state["nodes"])
    text = Text(f"{index['name']}  ", style="bold")
    text.append(f"{clock}  ", style="dim")
    text.append(f"{heard}/{len(state['nodes'])} nodes  ", style="" if heard == len(state["nodes"]) else "yellow")
    unowned = len(state["unowned"])
    text.append(f"{index['partitions'] - unowned}/{index['partitions']} partitions  ", style="red" if unowned else "")
    text.append(f"{sum(trend.per_s()):,.0f} changes/s  ")
    if lag_s is None:
        text.append("lag unknown", style="red")
    else:
        text.append(f"lag {lag_s:.1f} s", style=_style(lag_s, _WARN_LAG_S, _BAD_LAG_S))
    if index["quarantined"]:
        text.append(f"  {index['quarantined']} quarantined", style="yellow")
    return text


def _troubles(state: State) -> list[Text]:
    reported = [(node["node"], node["status"].get("trouble")) for node in state["nodes"] if node["heard"]]
    of_nodes = [f"{name}: {trouble}" for name, trouble in reported if trouble]
    return [Text(line, style="red") for line in (*store_problems(state.get("store", {})), *of_nodes)]


def _nodes(state: State, width: int, rows: int) -> Table:
    columns = ["node", "state", "parts", "changes/s", "lag", "lag s", "ring", "restarts", "seen"]
    dropped = {"lag", "restarts"} if width < MEDIUM else set()
    longest_name = _NARROW_NAME if width < MEDIUM else _MEDIUM_NAME if width < WIDE else None
    table = _table(columns, dropped, left={"node", "state"}, longest_name=longest_name)
    left_out = len(state["nodes"]) - rows
    if len(state["nodes"]) > 1 and rows > len(state["nodes"]):
        table.add_row(*_kept(columns, dropped, _total(state)))
    for node in top.worst_nodes(state, rows if left_out <= 0 else rows - 1):
        status = node["status"] if node["heard"] else {}
        ring = top.node_fill(node)
        cells = [
            Text(node["node"]),
            _condition(node),
            Text(str(node["n_partitions"])),
            _number(status.get("rate")),
            _number(status.get("lag")),
            _seconds(status.get("lag_s")),
            Text(f"{ring:.0%}", style=_style(ring, _WARN_FILL, _BAD_FILL)),
            _number(status.get("restarts")),
            Text(f"{node['silent_s']:.0f} s"),
        ]
        table.add_row(*_kept(columns, dropped, cells))
    if left_out > 0:
        table.add_row(Text(f"… {left_out + 1} more", style="dim"))
    if not state["nodes"]:
        table.add_row(Text("none", style="red"))
    return table


def _total(state: State) -> list[Text]:
    """The row that adds up the nodes that report."""
    heard = [node["status"] for node in state["nodes"] if node["heard"]]
    sums = [sum(status.get(name, 0) for status in heard) for name in ("rate", "lag", "restarts")]
    lag_s = max((status.get("lag_s", 0.0) for status in heard), default=0.0)
    owned = sum(node["n_partitions"] for node in state["nodes"])
    words = ["all", "", str(owned), _short(sums[0]), _short(sums[1]), f"{lag_s:.1f}", "", _short(sums[2]), ""]
    return [Text(word, style="bold") for word in words]


def _condition(node: State) -> Text:
    word = state_of(node)
    return Text(word, style="" if word == "running" else "red" if word in {DEAD, SILENT} else "yellow")


def _processes(workers: Sequence[top.Worker], trend: Trend, width: int, rows: int) -> Table:
    columns = ["process", "node", "pid", "up", "cpu", "memory", "ring", "lag", "work", "errors", "died"]
    dropped = {"up"} if width < _WITH_AGE else set()
    if width < _WITH_USE:
        dropped |= {"pid", "died", "errors"} if width < MEDIUM else {"pid"}
    if width < _NARROW:
        dropped |= {"memory", "cpu"}
    longest_name = _NARROW_NAME if width < MEDIUM else _MEDIUM_NAME
    table = _table(columns, dropped, left={"process", "node"}, longest_name=longest_name)
    n_shown = len(workers) if len(workers) <= rows else rows - 1
    for name, process in workers[:n_shown]:
        is_feed = process["role"] == FEED_WORKER
        ring = top.fill(process)
        cells = [
            Text(f"{_SHORT_ROLES[process['role']]} {process['number']}"),
            Text(name),
            Text(str(process["pid"])),
            Text(_age(process["age_s"])),
            _cpu(trend.cpu_by_pid.get(process["pid"])),
            Text(_short_bytes(process.get("memory_bytes", 0))),
            Text(f"{ring:.0%}" if is_feed else "", style=_style(ring, _WARN_FILL, _BAD_FILL)),
            _number(process.get("lag")) if is_feed else Text(""),
            Text(f"stalled {process['silent_s']:.0f} s", style="red")
            if top.is_stalled(process)
            else Text(_work(process)),
            Text(str(process["store_errors"]), style="yellow" if process["store_errors"] else ""),
            Text(str(process["restarts"]), style="yellow" if process["restarts"] else ""),
        ]
        table.add_row(*_kept(columns, dropped, cells))
    if n_shown < len(workers):
        table.add_row(Text(f"… {len(workers) - n_shown} more", style="dim"))
    return table


def _work(process: State) -> str:
    """Counts of the process's work in this life."""
    if process["role"] == FEED_WORKER:
        return f"{_short(process['events'])} changes"
    if process["role"] == COMPACTOR:
        return f"{_short(process['compacted'])} channels"
    return f"{_short(process['batches'])} batches"


def _cpu(share: float | None) -> Text:
    return Text("") if share is None else Text(f"{share:.0%}", style=_style(share, _WARN_CPU, _BAD_CPU))


def _lagging(state: State, width: int, rows: int) -> Table:
    columns = ["largest lag", "node", "lag", "lag s"]
    dropped = {"node"} if width < MEDIUM else set()
    table = _table(columns, dropped, left={"largest lag", "node"}, longest_name=_MEDIUM_NAME)
    worst = top.lagging(state, rows)
    for name, part in worst:
        owner = Text(name) if name else Text(NOBODY, style="bold red")
        cells = [Text(f"partition {part['partition']}"), owner, _number(part["lag"]), _seconds(part["lag_s"])]
        table.add_row(*_kept(columns, dropped, cells))
    if not worst:
        known = state["lag"]["seconds"] == 0
        table.add_row(Text("no lag" if known else "unknown", style="dim" if known else "red"))
    return table


def _vbuckets(trend: Trend, rows: int) -> Table:
    table = _table(["hot vbuckets", "changes/s"], set(), left={"hot vbuckets"})
    hot = trend.hot_vbuckets(rows)
    for vb, per_s in hot:
        table.add_row(f"vb {vb}", f"{per_s:,.0f}")
    if not hot:
        table.add_row(Text("no changes", style="dim"))
    return table


def _channels(state: State, width: int, rows: int) -> Table:
    """Table of the channels with the most bytes written, and those in the slowest batch."""
    table = _table(["hot channels", "KB/s", "slowest batch", "part of it"], set(), left={"hot channels"})
    hot = top.hot_channels(state, rows)
    longest_name = min(_LONGEST_CHANNEL, width - _CHANNEL_NUMBERS)
    for channel, bytes_per_s, batch_ms, percent in hot:
        name = Text(channel)
        name.truncate(longest_name, overflow="ellipsis")
        slowest = Text(f"{batch_ms:,} ms", style=_style(batch_ms, _WARN_BATCH_MS, _BAD_BATCH_MS))
        table.add_row(name, f"{bytes_per_s / 1000:,.1f}", slowest, f"{percent} %")
    if not hot:
        table.add_row(Text("no writes", style="dim"))
    return table


def _beside(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(padding=(0, _GUTTER))
    grid.add_row(left, right)
    return grid


def _table(columns: Sequence[str], dropped: set[str], left: set[str], longest_name: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        if column not in dropped:
            longest = longest_name if column == "node" else None
            side: JustifyMethod = "left" if column in left else "right"
            table.add_column(column, justify=side, no_wrap=True, max_width=longest)
    return table


def _kept(columns: Sequence[str], dropped: set[str], cells: Iterable[Text]) -> list[Text]:
    return [cell for column, cell in zip(columns, cells, strict=True) if column not in dropped]


def _seconds(value: float | None) -> Text:
    return Text("?") if value is None else Text(f"{value:.1f}", style=_style(value, _WARN_LAG_S, _BAD_LAG_S))


def _number(value: int | None) -> Text:
    return Text("?" if value is None else _short(value))


def _short(count: int) -> str:
    """*count* in a few characters: 999, 10.3 k, 1.2 M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _short_bytes(count: int) -> str:
    """*count* of bytes in MB, as people count memory."""
    return f"{count / 1e6:,.0f} MB"


def _style(value: float, warn: float, bad: float) -> str:
    return "red" if value >= bad else "yellow" if value >= warn else ""


def _age(seconds: float) -> str:
    """Seconds in short form: 42 s, 3 min, 5 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
