"""What `top` shows: the right things first, on any width, from what nodes really tell."""

import io
import re

import pytest
from rich.console import Console

from workers.cli import top_model as top
from workers.cli.compaction_state import compaction_line, describe_compaction
from workers.cli.top_keys import CHANNELS, OVERVIEW, PARTITIONS, SORTS, Choice, pressed
from workers.cli.top_model import Trend
from workers.cli.top_screen import screen
from workers.telemetry.hot_channels import HotChannel

ROLES = ("feed_worker", "batch_writer")


def process(role, number, **words):
    common = {"pid": 100 + number, "age_s": 200.0, "silent_s": 0.1, "restarts": 0, "store_errors": 0, "ring_fill": 0}
    own = {
        "feed_worker": {"events": 5000, "lag": 3, "ring_bytes": 1000},
        "batch_writer": {"batches": 70},
        "compactor": {"compacted": 12, "looks": 3, "index_bytes": 9_000_000, "live_bytes": 5_000_000},
    }
    return {"role": role, "number": number, **common, **own[role], **words}


def hot(channel, bytes_per_s, batch_ms):
    return {"channel": channel, "bytes_per_s": bytes_per_s, "batch_ms": batch_ms, "percent": 40}


def node(name, processes, **status):
    told = {"state": "running", "rate": 120, "lag": 9, "lag_s": 0.5, "restarts": 0, "trouble": None, "behind": []}
    return {
        "node": name,
        "alive": True,
        "heard": True,
        "draining": False,
        "n_partitions": 8,
        "silent_s": 0.4,
        "status": {**told, "processes": processes, **status},
    }


@pytest.fixture
def state():
    calm = node("alpha", [process("feed_worker", 0), process("batch_writer", 0, hottest=[hot("news", 9, 700)])])
    busy = node(
        "beta",
        [
            process("feed_worker", 0, ring_fill=900),
            process("batch_writer", 0, silent_s=12.0, hottest=[hot("sport", 70, 20)]),
            process("batch_writer", 1, hottest=[hot("news", 80, 30), hot("chess", 1, 4)]),
        ],
        lag_s=75.0,
        behind=[{"partition": 3, "lag": 8, "lag_s": 75.0}, {"partition": 5, "lag": 1, "lag_s": 2.0}],
        trouble="the leases' Redis is away",
    )
    dead = {**node("gamma", []), "alive": False, "heard": False, "silent_s": 90.0}
    index = {"name": "orders", "partitions": 16, "quarantined": 2}
    lag = {"changes": 9, "seconds": 75.0}
    return {"index": index, "lag": lag, "nodes": [dead, busy, calm], "partitions": [], "unowned": [7]}


def drawn(state, width, height=50):
    text = io.StringIO()
    Console(file=text, width=width, height=height).print(screen(state, Trend(), width, height, "12:00:00"))
    return text.getvalue()


def test_what_stands_still_comes_first_then_what_is_full(state):
    order = [(name, process["role"], process["number"]) for name, process in top.processes(state)]
    assert order[:2] == [("beta", "batch_writer", 0), ("beta", "feed_worker", 0)]
    assert [name["node"] for name in top.nodes(state)] == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize("size", [(40, 8), (80, 24), (200, 60)])
def test_a_store_that_takes_no_writes_is_the_first_trouble_on_any_terminal(state, size):
    assert "takes no writes" not in drawn(state, *size)
    lines = " ".join(drawn({**state, "store": {"read_ms": 2.0, "full": "memory"}}, *size).split())
    assert lines.index("takes no writes: its memory is full") < lines.index("beta: the leases' Redis is away")


@pytest.mark.parametrize("size", [(40, 8), (80, 24), (200, 60)])
def test_an_index_without_a_node_is_shown(state, size):
    text = drawn({**state, "nodes": []}, *size)
    assert "0/0 nodes" in text
    assert re.search(r"^no\S* +sta.*\nno\S* *\n", text, re.MULTILINE)


def test_the_worst_partitions_and_the_hottest_channels_come_from_all_nodes(state):
    assert [(name, part["partition"]) for name, part in top.lagging(state, 5)] == [("beta", 3), ("beta", 5)]
    assert top.hot_channels(state, 2) == [HotChannel("news", 89, 700, 40), HotChannel("sport", 70, 20, 40)]
    assert "lag 75.0 s" in drawn(state, 120)


def test_partitions_of_which_nobody_reports_come_first(state):
    state["partitions"] = [
        {"partition": 3, "owner": "beta", "lag": 8},
        {"partition": 4, "owner": "beta", "lag": 7},
        {"partition": 5, "owner": "beta", "lag": 1},
        {"partition": 6, "owner": "gamma", "lag": 10},
        {"partition": 7, "owner": None, "lag": 20},
        {"partition": 8, "owner": "alpha", "lag": 0},
    ]
    worst = [(name, part["partition"], part["lag_s"]) for name, part in top.lagging(state, 9)]
    assert worst == [("", 7, None), ("gamma", 6, None), ("beta", 3, 75.0), ("beta", 5, 2.0)]
    assert "NOBODY" in drawn(state, 120)


def test_rates_come_from_the_stable_clock_and_a_rollback_is_no_negative_work():
    trend = Trend()
    assert trend.per_s() == []
    trend.add(10.0, [100, 50, 7])
    trend.add(12.0, [140, 20, 7])
    assert trend.per_s() == [20, 0, 0]
    assert trend.hot_vbuckets(5) == [(0, 20.0)]


def test_a_trend_begins_again_where_an_index_was_made_anew_with_other_vbuckets():
    trend = Trend()
    trend.add(10.0, [100, 50, 7])
    trend.add(12.0, [40, 20])
    assert trend.per_s() == []
    trend.add(13.0, [41, 25])
    assert trend.per_s() == [1, 5]


def test_a_trend_forgets_what_is_older_than_its_window():
    trend = Trend()
    for second in range(20):
        trend.add(float(second), [0 if second < 12 else 100])
    assert trend.per_s() == [0]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_everything_that_matters_fits_every_width(state, width):
    text = drawn(state, width)
    assert max(map(len, text.splitlines())) <= width
    for needed in (
        "2/3 nodes",
        "15/16 partitions",
        "75.0",
        "stalled 12 s",
        "90%",
        "partition 3",
        "news",
        "dead",
        "Redis is away",
    ):
        assert needed in " ".join(text.split()), needed


def test_a_low_terminal_shows_the_worst_processes_and_counts_the_rest(state):
    assert "3 more" in drawn(state, 60, height=16)
    assert "stalled 12 s" in drawn(state, 60, height=16)


def cluster(n_nodes):
    """A cluster of which one node is dead and one is far behind."""
    nodes = [
        node(f"node-{number}.example.com", [process(role, worker) for role in ROLES for worker in range(3)], lag_s=0.1)
        for number in range(n_nodes)
    ]
    worst = [{"partition": number, "lag": 10**9, "lag_s": 3600.0} for number in range(5)]
    names = [hot("a channel with quite a long name, number " + "1" * 40, 10**8, 10**5) for _ in range(5)]
    nodes[-2]["status"] |= {"lag_s": 3600.0, "behind": worst}
    nodes[-2]["status"]["processes"][-1]["hottest"] = names
    nodes[-1] |= {"alive": False, "heard": False}
    index = {"name": "orders", "partitions": 1024, "quarantined": 10**6}
    lag = {"changes": 10**9, "seconds": 3600.0}
    return {"index": index, "lag": lag, "nodes": nodes, "partitions": [], "unowned": []}


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (100, 24), (120, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("n_nodes", [2, 3, 40])
def test_every_table_is_on_every_terminal_whatever_the_cluster(width, height, n_nodes):
    lines = drawn(cluster(n_nodes), width, height).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    text = "\n".join(lines)
    for title in ("process", "largest lag", "hot vbuckets", "hot channels", "slowest batch", "part of it"):
        assert title in text
    for needed in ("dead", "partition 0", "3600.0", "100,000 ms"):
        assert needed in text
    assert "more" in text or n_nodes < 40


def viewed(state, trend, width, height, view):
    text = io.StringIO()
    Console(file=text, width=width, height=height).print(screen(state, trend, width, height, "12:00:00", view))
    return text.getvalue()


def test_keys_change_the_view_and_others_nothing():
    view, nodes = Choice(), ["alpha", "beta"]
    assert pressed(view, "x", nodes) == view
    assert pressed(view, "q", nodes).is_over
    assert [pressed(view, key, nodes).focus for key in "pc"] == [PARTITIONS, CHANNELS]
    assert pressed(pressed(view, "p", nodes), "p", nodes).focus == OVERVIEW
    for sort in (*SORTS[1:], SORTS[0]):
        view = pressed(view, "s", nodes)
        assert view.sort == sort
    for node in ("alpha", "beta", ""):
        view = pressed(view, "n", nodes)
        assert view.node == node
    assert pressed(Choice(node="gone"), "n", nodes).node == "alpha"


@pytest.mark.parametrize("sort", SORTS)
def test_a_stalled_process_is_first_in_every_order(state, sort):
    first, *_ = top.processes(state, sort)
    assert top.is_stalled(first[1])


def test_processes_can_be_ordered_by_what_they_use(state):
    for node in state["nodes"]:
        for process in node["status"]["processes"]:
            process["silent_s"] = 0.1
            process["memory_bytes"] = 50_000_000 if (node["node"], process["number"]) == ("beta", 1) else 1_000_000
    assert top.processes(state, "memory")[0][1]["number"] == 1
    assert top.processes(state, "cpu", {101: 0.9})[0][1]["pid"] == 101


def test_one_node_alone_is_shown_when_it_was_chosen(state):
    shown = viewed(state, Trend(), 120, 40, Choice(node="beta"))
    assert "beta" in shown
    assert "alpha" not in shown
    assert "alpha" in viewed(state, Trend(), 120, 40, Choice(node="gone"))


@pytest.mark.parametrize(
    ("focus", "there", "gone"), [(PARTITIONS, "largest lag", "hot"), (CHANNELS, "hot ch", "largest")]
)
def test_what_has_the_focus_has_the_room(state, focus, there, gone):
    shown = viewed(state, Trend(), 100, 30, Choice(focus=focus))
    assert there in shown
    assert gone not in shown
    assert "writer" not in shown


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 16), (80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("focus", [OVERVIEW, PARTITIONS, CHANNELS])
def test_the_picture_with_history_is_never_higher_than_the_terminal(state, width, height, focus):
    trend = Trend()
    for second in range(300):
        trend.add(float(second), [second * 10] * 64)
        trend.note({**state, "nodes": []})
    assert viewed(state, trend, width, height, Choice(focus=focus)).count("\n") <= height


def test_cpu_is_measured_between_two_reports_of_a_node(state):
    trend = Trend()
    node = next(node for node in state["nodes"] if node["node"] == "alpha")
    process = node["status"]["processes"][0]
    for at, cpu_s in ((100.0, 5.0), (100.0, 5.0), (102.0, 6.0), (102.0, 6.0)):
        node["status"]["at"], process["cpu_s"] = at, cpu_s
        trend.note({**state, "nodes": [node]})
    assert trend.cpu_by_pid[process["pid"]] == 0.5


def test_compaction_is_reported_by_all_compactors_that_report(state):
    alpha, beta, gamma = (
        node for name in ("alpha", "beta", "gamma") for node in state["nodes"] if node["node"] == name
    )
    assert describe_compaction(state["nodes"]) is None
    assert compaction_line(None) == "compaction: no node that reports has a compactor"
    alpha["status"]["processes"].append(process("compactor", 0, due=2, oldest_due_s=40.0, refused=1))
    beta["status"]["processes"].append(process("compactor", 0, compacted=0, looks=0, index_bytes=0, live_bytes=0))
    gamma["status"]["processes"].append(process("compactor", 0, due=900))
    told = describe_compaction(state["nodes"])
    assert told is not None
    assert compaction_line(told) == (
        "compaction: 9.0 MB in blocks at its last look, 4.0 MB of it not compacted; 12 channels compacted, "
        "2 due, the oldest for 40 s, 1 refused"
    )
    assert compaction_line({**told, "looks": 0}) == "compaction: no look at the index yet"
    trend = Trend()
    for at in (1.0, 2.0):
        trend.add(at, [0])
        trend.note({**state, "nodes": []})
    shown = viewed({**state, "compaction": told}, trend, 200, 60, Choice())
    assert "9.0 MB in blocks" in shown
    assert "compactor 0" in shown
    assert "12 channels" in shown


def test_a_sparkline_shows_the_newest_values_against_the_largest():
    assert top.sparkline([9.0, 0.0, 3.5, 7.0], 3) == "▁▅█"
    assert top.sparkline([0.0, 0.0], 5) == "▁▁"
    assert top.sparkline([], 5) == ""
