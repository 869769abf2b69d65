"""How `channelindex top` looks: tables beside each other on a wide terminal, below each other on a narrow one."""

from collections.abc import Iterable, Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from workers import top
from workers.board import FEED_WORKER
from workers.top import State, Trend

WIDE = 120
"""Columns from which there is room for two tables beside each other."""
MEDIUM = 80
"""Columns below which a table leaves out what one can do without."""
_HOT_ROWS = 5
_WARN_FILL, _BAD_FILL = 0.5, 0.8
_WARN_LAG_S, _BAD_LAG_S = 5.0, 60.0
_NARROW_NAME = 12


def screen(state: State, trend: Trend, width: int, height: int, clock: str) -> RenderableType:
    """The whole picture for a terminal of *width* by *height*."""
    hot = [_behind(state), _hot(state, trend)]
    head: list[RenderableType] = [
        _headline(state, trend, clock),
        *_troubles(state),
        Text(""),
        _nodes(state, width),
        Text(""),
    ]
    used = len(head) + len(state["nodes"]) + 1
    if width >= WIDE:
        rows = max(1, height - used - 3)
        return Group(*head, _beside(_processes(state, width // 2, rows), Group(hot[0], Text(""), hot[1])))
    rows = max(1, height - used - 2 * _HOT_ROWS - 6)
    return Group(*head, _processes(state, width, rows), Text(""), hot[0], Text(""), hot[1])


def _headline(state: State, trend: Trend, clock: str) -> Text:
    index, lag_s = state["index"], top.lag_s(state)
    alive = sum(node["alive"] for node in state["nodes"])
    text = Text(f"{index['name']}  ", style="bold")
    text.append(f"{clock}  ", style="dim")
    text.append(f"{alive}/{len(state['nodes'])} nodes  ", style="" if alive == len(state["nodes"]) else "yellow")
    unowned = len(state["unowned"])
    text.append(f"{index['partitions'] - unowned}/{index['partitions']} partitions  ", style="red" if unowned else "")
    text.append(f"{sum(trend.per_s()):,.0f} changes/s  ")
    text.append(f"lag {lag_s:.1f} s  ", style=_style(lag_s, _WARN_LAG_S, _BAD_LAG_S))
    text.append(f"{index['quarantined']} quarantined", style="yellow" if index["quarantined"] else "")
    return text


def _troubles(state: State) -> list[Text]:
    told = [(node["node"], node["status"].get("trouble")) for node in state["nodes"] if node["alive"]]
    return [Text(f"{name}: {trouble}", style="red") for name, trouble in told if trouble]


def _nodes(state: State, width: int) -> Table:
    columns = ["node", "state", "parts", "changes/s", "lag", "lag s", "ring", "restarts", "seen"]
    dropped = {"lag", "restarts"} if width < MEDIUM else set()
    table = _table(columns, dropped, left={"node", "state"}, width=width)
    for node in top.nodes(state):
        told = node["status"] if node["alive"] else {}
        ring = top.node_fill(node)
        cells = [
            Text(node["node"]),
            _condition(node),
            Text(str(node["n_partitions"])),
            _number(told.get("rate")),
            _number(told.get("lag")),
            Text(f"{told.get('lag_s', 0):.1f}", style=_style(told.get("lag_s", 0), _WARN_LAG_S, _BAD_LAG_S)),
            Text(f"{ring:.0%}", style=_style(ring, _WARN_FILL, _BAD_FILL)),
            _number(told.get("restarts")),
            Text(f"{node['silent_s']:.0f} s"),
        ]
        table.add_row(*_kept(columns, dropped, cells))
    return table


def _condition(node: State) -> Text:
    if not node["alive"]:
        return Text("dead", style="red")
    state = "draining" if node["draining"] else node["status"].get("state", "starting")
    return Text(state, style="" if state == "running" else "yellow")


def _processes(state: State, width: int, rows: int) -> Table:
    columns = ["process", "node", "pid", "up", "ring", "lag", "work", "errors", "died"]
    dropped = {"pid", "up", "died"} if width < MEDIUM else set()
    table = _table(columns, dropped, left={"process", "node"}, width=width)
    workers = top.processes(state)
    for name, process in workers[:rows]:
        is_feed = process["role"] == FEED_WORKER
        ring = top.fill(process)
        work = f"{process['events']:,} changes" if is_feed else f"{process['batches']:,} batches"
        cells = [
            Text(f"{'feed' if is_feed else 'writer'} {process['number']}"),
            Text(name),
            Text(str(process["pid"])),
            Text(_age(process["age_s"])),
            Text(f"{ring:.0%}" if is_feed else "", style=_style(ring, _WARN_FILL, _BAD_FILL)),
            _number(process.get("lag")) if is_feed else Text(""),
            Text(f"silent {process['silent_s']:.0f} s", style="red") if top.is_silent(process) else Text(work),
            Text(str(process["store_errors"]), style="yellow" if process["store_errors"] else ""),
            Text(str(process["restarts"]), style="yellow" if process["restarts"] else ""),
        ]
        table.add_row(*_kept(columns, dropped, cells))
    if len(workers) > rows:
        table.add_row(Text(f"… {len(workers) - rows} more", style="dim"))
    return table


def _behind(state: State) -> Table:
    table = _table(["furthest behind", "node", "lag", "lag s"], set(), left={"furthest behind", "node"})
    worst = top.behind(state, _HOT_ROWS)
    for name, part in worst:
        lag_s = Text(f"{part['lag_s']:.1f}", style=_style(part["lag_s"], _WARN_LAG_S, _BAD_LAG_S))
        table.add_row(f"partition {part['partition']}", name, f"{part['lag']:,}", lag_s)
    if not worst:
        table.add_row(Text("nothing waits", style="dim"))
    return table


def _hot(state: State, trend: Trend) -> Table:
    table = _table(["busiest", "how much"], set(), left={"busiest"})
    hot = [*top.hot_channels(state, _HOT_ROWS), *trend.hot_vbuckets(_HOT_ROWS)]
    for thing in hot:
        table.add_row(Text(thing.name, overflow="ellipsis", no_wrap=True), f"{thing.per_s:,.0f} {thing.unit}")
    if not hot:
        table.add_row(Text("nothing changes", style="dim"))
    return table


def _beside(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(padding=(0, 3))
    grid.add_row(left, right)
    return grid


def _table(columns: Sequence[str], dropped: set[str], left: set[str], width: int = MEDIUM) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        if column not in dropped:
            longest = _NARROW_NAME if column == "node" and width < MEDIUM else None
            side: JustifyMethod = "left" if column in left else "right"
            table.add_column(column, justify=side, no_wrap=True, max_width=longest)
    return table


def _kept(columns: Sequence[str], dropped: set[str], cells: Iterable[Text]) -> list[Text]:
    return [cell for column, cell in zip(columns, cells, strict=True) if column not in dropped]


def _number(value: int | None) -> Text:
    return Text("?" if value is None else f"{value:,}")


def _style(value: float, warn: float, bad: float) -> str:
    return "red" if value >= bad else "yellow" if value >= warn else ""


def _age(seconds: float) -> str:
    """Seconds in short form: 42 s, 3 min, 5 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
