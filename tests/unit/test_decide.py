"""A node's decisions, without a process: who is started, given work, stopped, killed, and what is released when."""

import dataclasses
import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channelindex import exits
from channelindex.config import Config
from channelindex.settings import IndexSettings
from coordinator.keeper_link import KeeperReport, Scale, Trouble
from tests.support.profiles import examples
from workers.node import decide as node
from workers.node.decide import (
    COMPACTING,
    KEEPER,
    MONITORING,
    RELEASE_TIMEOUT_S,
    Action,
    Assign,
    Children,
    ChildView,
    Drain,
    EndNow,
    FinishReload,
    Kill,
    Name,
    NodeState,
    ReadConfig,
    Release,
    RenewRings,
    Rescale,
    Start,
    Stop,
)
from workers.pipeline.batch_writer import TORN
from workers.pipeline.feed_worker import ROLLED_BACK, STALE
from workers.telemetry.board import BATCH_WRITER, FEED_WORKER, NodePhase

FEEDS = Name(FEED_WORKER, 0), Name(FEED_WORKER, 1)
WRITERS = Name(BATCH_WRITER, 0), Name(BATCH_WRITER, 1)
TIMEOUT_S = 10.0
DRAIN_S = 30.0


def config(**metrics):
    base = Config()
    workers = dataclasses.replace(
        base.workers, feed_workers=2, batch_writers=2, heartbeat_timeout_s=TIMEOUT_S, drain_timeout_s=DRAIN_S
    )
    return dataclasses.replace(base, workers=workers, metrics=dataclasses.replace(base.metrics, **metrics))


def alive(name, *working, **view):
    return ChildView(name, is_alive=True, working=frozenset(working), **view)


def empty(name):
    return ChildView(name, may_start=True)


def children(feeds=None, writers=None, keeper=None, monitor=None):
    """Everybody lives and has nothing to do, but for who is named."""
    return Children(
        feeds or [alive(name) for name in FEEDS],
        writers or [alive(name) for name in WRITERS],
        keeper or alive(KEEPER),
        monitor or ChildView(MONITORING),
    )


@pytest.fixture
def state():
    return NodeState(config(), heard_at=100.0, turned_at=100.0)


def holds(state, *partitions, until=1000.0, **report):
    node.keeper_reported(
        state, KeeperReport(dict.fromkeys(partitions, until), **{"due_releases": [], **report}), state.heard_at
    )
    return state


def test_node_that_begins_starts_its_keeper_and_writers_and_no_feed_worker_without_a_lease(state):
    nobody = children([*map(empty, FEEDS)], [*map(empty, WRITERS)], empty(KEEPER), empty(MONITORING))
    assert node.decide(state, nobody, 100.0) == [Start(KEEPER), Start(WRITERS[0]), Start(WRITERS[1])]


def test_monitor_runs_where_it_is_to_listen(state):
    state.config = config(listen="127.0.0.1:9000")
    assert Start(MONITORING) in node.decide(state, children(monitor=empty(MONITORING)), 100.0)
    assert Start(MONITORING) not in node.decide(state, children(monitor=alive(MONITORING)), 100.0)


def test_a_compactor_runs_where_the_store_is_compacted_and_ends_at_once(state):
    def decided(compactor: ChildView) -> list[Action]:
        return node.decide(state, children()._replace(compactor=compactor), 100.0)

    assert Start(COMPACTING) not in decided(empty(COMPACTING)), "no store that is compacted is configured"
    state.config = dataclasses.replace(state.config, index=IndexSettings(store="redis://h"))
    assert Start(COMPACTING) in decided(empty(COMPACTING))
    assert node.child_ended(state, COMPACTING, exits.CONFIG, 100.0) == [], "the node goes on without it"
    node.signalled(state, signal.SIGTERM, 100.0)
    assert Stop(COMPACTING, 100.0 + RELEASE_TIMEOUT_S) in decided(alive(COMPACTING))
    assert Start(COMPACTING) not in decided(empty(COMPACTING))
    assert Kill(COMPACTING, "it does not stop") in decided(alive(COMPACTING)._replace(is_overdue=True))


def test_leases_are_spread_over_feed_workers(state):
    holds(state, 0, 1, 2, 3)
    actions = node.decide(state, children([*map(empty, FEEDS)]), 100.0)
    assert actions == [Start(FEEDS[0], frozenset({0, 1})), Start(FEEDS[1], frozenset({2, 3}))]


def test_partition_that_another_feed_worker_still_works_on_is_not_assigned(state):
    holds(state, 0, 1)
    actions = node.decide(state, children([alive(FEEDS[0], 0, 1), empty(FEEDS[1])]), 100.0)
    assert state.targets == [{0}, {1}]
    assert actions == [Assign(FEEDS[0], frozenset({0}))], "and the other one does not begin before it is let go"
    actions = node.decide(state, children([alive(FEEDS[0], 0), empty(FEEDS[1])]), 100.0)
    assert actions == [Assign(FEEDS[0], frozenset({0})), Start(FEEDS[1], frozenset({1}))]


def test_feed_worker_begins_with_what_no_other_one_works_on(state):
    holds(state, 0, 1, 2, 3)
    view = children([alive(FEEDS[0], 0, 1, 2), empty(FEEDS[1])])
    assert node.decide(state, view, 100.0)[-1] == Start(FEEDS[1], frozenset({3}))


def test_live_feed_worker_does_not_get_what_another_one_still_works_on(state):
    holds(state, 0, 1)
    both_live = children([alive(FEEDS[0], 0, 1), alive(FEEDS[1])])
    actions = node.decide(state, both_live, 100.0)
    assert actions == [Assign(FEEDS[0], frozenset({0})), Assign(FEEDS[1], frozenset())]


def test_worker_without_a_lease_is_killed_also_after_a_pause_of_ours(state):
    holds(state, 0, 1, until=150.0)
    state.targets = [frozenset({0, 1}), frozenset()]
    actions = node.decide(state, children([alive(FEEDS[0], 0, 1), alive(FEEDS[1])]), 149.9)
    assert not any(isinstance(action, Kill) for action in actions)
    actions = node.decide(state, children([alive(FEEDS[0], 0, 1), alive(FEEDS[1])]), 150.0)
    assert actions[0] == Kill(FEEDS[0], "the lease of partition 0 expired (coordination.ttl_s)")
    assert Stop(FEEDS[0], 150.0 + DRAIN_S) in actions, "and gets nothing more"


def test_silent_processes_are_killed_unless_we_were_paused_ourselves(state):
    state.turned_at = state.heard_at = 200.0
    silent = children(
        [alive(FEEDS[0], silent_s=10.1), alive(FEEDS[1], silent_s=10.0)],
        [alive(WRITERS[0], silent_s=12.0), alive(WRITERS[1])],
        monitor=alive(MONITORING, silent_s=11.0),
    )
    killed = [action for action in node.decide(state, silent, 205.0) if isinstance(action, Kill)]
    assert [kill.name for kill in killed] == [FEEDS[0], WRITERS[0], MONITORING]
    assert killed[1].why == "no heartbeat for 12 s (workers.heartbeat_timeout_s)"
    assert not any(isinstance(action, Kill) for action in node.decide(state, silent, 205.1))


def test_keeper_that_reports_nothing_is_killed_once_per_timeout(state):
    state.turned_at = 130.0
    limit_s = max(TIMEOUT_S, state.config.coordination.ttl_s)
    assert not any(isinstance(action, Kill) for action in node.decide(state, children(), 100.0 + limit_s))
    state.turned_at = 131.0
    (kill,) = [action for action in node.decide(state, children(), 131.0) if isinstance(action, Kill)]
    assert kill == Kill(KEEPER, "no report from the lease keeper for 31 s (workers.heartbeat_timeout_s)")
    assert not any(isinstance(action, Kill) for action in node.decide(state, children(), 131.2))


def test_partition_that_a_peer_is_due_is_released_when_nobody_works_on_it_any_more(state):
    holds(state, 0, 1, due_releases=[1])
    both = children([alive(FEEDS[0], 0, 1), empty(FEEDS[1])])
    assert node.decide(state, both, 100.0) == [Assign(FEEDS[0], frozenset({0}))]
    one = children([alive(FEEDS[0], 0), empty(FEEDS[1])])
    assert node.decide(state, one, 100.0) == [Assign(FEEDS[0], frozenset({0})), Release([1])]
    assert not any(isinstance(action, Release) for action in node.decide(state, one, 100.0)), "once"


def test_nothing_is_released_while_no_keeper_lives(state):
    holds(state, 0, 1, due_releases=[1])
    view = children([alive(FEEDS[0], 0), empty(FEEDS[1])], keeper=ChildView(KEEPER))
    assert not any(isinstance(action, Release) for action in node.decide(state, view, 100.0))
    assert Release([1]) in node.decide(state, view._replace(keeper=alive(KEEPER)), 100.0)


def test_drain_follows_the_data(state):
    holds(state, 0, 1)
    assert node.signalled(state, signal.SIGTERM, 100.0) == [Drain("SIGTERM received")]
    kill_at = 100.0 + DRAIN_S
    working = children([alive(FEEDS[0], 0), alive(FEEDS[1], 1)])
    assert node.decide(state, working, 101.0) == [Stop(FEEDS[0], kill_at), Stop(FEEDS[1], kill_at)]
    half = children([empty(FEEDS[0]), alive(FEEDS[1], 1, is_stopping=True)])
    assert node.decide(state, half, 102.0) == [Stop(FEEDS[1], kill_at), Release([0])]
    drained = children([*map(empty, FEEDS)])
    assert node.decide(state, drained, 103.0) == [Stop(WRITERS[0], kill_at), Stop(WRITERS[1], kill_at), Release([1])]
    no_writers = children([*map(empty, FEEDS)], [*map(empty, WRITERS)], monitor=alive(MONITORING))
    assert node.decide(state, no_writers, 104.0) == [Stop(MONITORING, 104.0 + node.RELEASE_TIMEOUT_S)]
    assert not node.is_over(state, no_writers, 104.0)
    nobody = children([*map(empty, FEEDS)], [*map(empty, WRITERS)], empty(KEEPER), empty(MONITORING))
    assert node.decide(state, nobody, 105.0) == []
    assert node.is_over(state, nobody, 105.0)
    assert state.exit_code == exits.OK


def test_second_signal_ends_at_once(state):
    node.signalled(state, signal.SIGINT, 100.0)
    assert not node.is_over(state, children(), 100.0)
    assert node.signalled(state, signal.SIGTERM, 101.0) == [EndNow()]
    assert node.is_over(state, children(), 101.0)
    assert state.exit_code == exits.INTERRUPTED


def test_drain_whose_time_is_over_ends_with_its_own_code(state):
    node.signalled(state, signal.SIGTERM, 100.0)
    stuck = children([alive(FEEDS[0], is_stopping=True, is_overdue=True), empty(FEEDS[1])])
    state.turned_at = state.heard_at = 131.0
    assert node.decide(state, stuck, 131.0)[0] == Kill(FEEDS[0], "still running after workers.drain_timeout_s")
    assert state.exit_code == exits.DRAIN_TIMEOUT
    assert not node.is_over(state, stuck, 100.0 + DRAIN_S + node.RELEASE_TIMEOUT_S - 0.1)
    assert node.is_over(state, stuck, 100.0 + DRAIN_S + node.RELEASE_TIMEOUT_S)


def test_worker_that_is_overdue_outside_of_a_drain_is_killed_and_the_node_goes_on(state):
    slow = children([alive(FEEDS[0], is_stopping=True, is_overdue=True), alive(FEEDS[1])])
    assert node.decide(state, slow, 100.0)[0] == Kill(FEEDS[0], "still running after workers.drain_timeout_s")
    assert state.exit_code == exits.OK


@pytest.mark.parametrize("code", [*node.FATAL_CODES, exits.MISSING])
def test_child_that_cannot_run_ends_the_node_with_its_code(state, code):
    why = f"feed_worker cannot run: exit code {code}, see its log line"
    assert node.child_ended(state, FEEDS[0], code, 100.0) == [Drain(why)]
    assert (state.phase, state.exit_code) == (NodePhase.DRAINING, code)
    assert node.child_ended(state, WRITERS[0], code, 101.0) == []


@pytest.mark.parametrize("code", [exits.OK, ROLLED_BACK, STALE, exits.INTERNAL, -9])
def test_child_that_ends_otherwise_is_replaced(state, code):
    assert node.child_ended(state, WRITERS[0], code, 100.0) == []
    view = children(writers=[empty(WRITERS[0]), alive(WRITERS[1])])
    assert Start(WRITERS[0]) in node.decide(state, view, 100.0)


def test_monitor_never_ends_the_node(state):
    assert node.child_ended(state, MONITORING, exits.CONFIG, 100.0) == []


def test_torn_ring_ends_all_workers_and_starts_over_with_new_rings(state):
    actions = node.child_ended(state, WRITERS[0], TORN, 100.0)
    assert {action.name for action in actions if isinstance(action, Kill)} == {*FEEDS, *WRITERS}
    assert actions[-1] == RenewRings()
    nobody = children([*map(empty, FEEDS)], [*map(empty, WRITERS)])
    assert node.decide(state, nobody, 100.0) == [FinishReload()]
    node.reloaded(state, state.config)
    assert Start(WRITERS[0]) in node.decide(state, nobody, 100.0)


def test_torn_ring_in_a_drain_is_a_drain_that_failed(state):
    node.signalled(state, signal.SIGTERM, 100.0)
    assert RenewRings() not in node.child_ended(state, WRITERS[0], TORN, 100.0)
    assert state.exit_code == exits.DRAIN_TIMEOUT


def test_reload_ends_the_workers_first_and_starts_none_meanwhile(state):
    holds(state, 0)
    assert node.signalled(state, signal.SIGHUP, 100.0) == [ReadConfig()]
    node.reload(state)
    view = children([alive(FEEDS[0], 0), empty(FEEDS[1])])
    assert node.decide(state, view, 100.0) == [Stop(FEEDS[0], 100.0 + DRAIN_S)]
    view = children([*map(empty, FEEDS)], [alive(WRITERS[0]), empty(WRITERS[1])])
    assert node.decide(state, view, 100.0) == [Stop(WRITERS[0], 100.0 + DRAIN_S)]


def test_draining_node_does_not_reload(state):
    node.signalled(state, signal.SIGTERM, 100.0)
    assert node.signalled(state, signal.SIGHUP, 100.0) == []
    node.reload(state)
    assert state.is_draining


def test_ordered_worker_counts_are_gone_over_to_once(state):
    assert node.keeper_reported(state, KeeperReport({}, [], scale=Scale(3, 2)), 100.0) == [Rescale(Scale(3, 2))]
    assert node.keeper_reported(state, KeeperReport({}, [], scale=Scale(3, 2)), 100.0) == []
    node.reloaded(state, dataclasses.replace(config(), workers=dataclasses.replace(config().workers, feed_workers=3)))
    assert node.keeper_reported(state, KeeperReport({}, [], scale=Scale(3, 2)), 100.0) == []
    assert len(state.targets) == 3


def test_trouble_that_a_restart_does_not_help_ends_the_node(state):
    assert node.keeper_reported(state, KeeperReport({}, [], trouble=Trouble(exits.COORDINATION, "away")), 100.0) == []
    assert node.keeper_reported(state, KeeperReport({}, [], trouble=Trouble(exits.AUTH, "refused")), 100.0) == [
        Drain("refused")
    ]
    assert state.exit_code == exits.AUTH


class NodeModel(RuleBasedStateMachine):
    """A node's decisions against children that obey late, die, and hold on to partitions; time only passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.state = NodeState(config(), heard_at=self.now, turned_at=self.now)
        self.views = children([*map(empty, FEEDS)], [*map(empty, WRITERS)], empty(KEEPER))
        self.kill_at: dict[Name, float] = {}
        self.killed: set[Name] = set()

    @initialize()
    def begins(self) -> None:
        self.turns()

    def _set(self, view: ChildView) -> None:
        feeds = [view if child.name == view.name else child for child in self.views.feeds]
        writers = [view if child.name == view.name else child for child in self.views.writers]
        keeper = view if view.name == KEEPER else self.views.keeper
        self.views = Children(feeds, writers, keeper, self.views.monitor)

    def _view(self, name: Name) -> ChildView:
        views: list[ChildView] = [*self.views.feeds, *self.views.writers, self.views.keeper]
        return next(view for view in views if view.name == name)

    @rule(leases=st.frozensets(st.integers(0, 5)), releases=st.frozensets(st.integers(0, 5)), ttl_s=st.integers(1, 40))
    def keeper_reports(self, leases: frozenset[int], releases: frozenset[int], ttl_s: int) -> None:
        if self.views.keeper.is_alive:
            report = KeeperReport(dict.fromkeys(leases, self.now + ttl_s), sorted(leases & releases))
            node.keeper_reported(self.state, report, self.now)

    @rule(seconds=st.sampled_from([0.2, 0.2, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def turns(self) -> None:
        for name in sorted(self.killed):
            self._end(name)
            self._carry_out(node.child_ended(self.state, name, -9, self.now))
        for name, kill_at in self.kill_at.items():
            if self._view(name).is_alive:
                self._set(self._view(name)._replace(is_overdue=self.now >= kill_at))
        self._carry_out(node.decide(self.state, self.views, self.now))
        self.state.turned_at = self.now

    def _carry_out(self, actions: list[node.Action]) -> None:
        for action in actions:
            match action:
                case Kill(name) if self._view(name).is_alive:
                    self.killed.add(name)  # it is reaped on the next turn: until then it works on
                case Stop(name, kill_at):
                    assert name in FEEDS or not any(feed.is_alive for feed in self.views.feeds), "feeds stop first"
                    self.kill_at.setdefault(name, kill_at)
                    self._set(self._view(name)._replace(is_stopping=True))
                case Assign(name, partitions):
                    view = self._view(name)
                    assert view.is_alive
                    self._set(view._replace(working=view.working | partitions))
                case Start(name, partitions):
                    assert not self.state.is_draining
                    assert self._view(name).may_start
                    self._set(alive(name, *partitions))
                case Release(partitions):
                    worked_on = {p for feed in self.views.feeds for p in feed.working}
                    assert worked_on.isdisjoint(partitions), "somebody of ours works on what a peer is to have"
                case FinishReload():
                    assert not any(child.is_alive for child in (*self.views.feeds, *self.views.writers))
                    node.reloaded(self.state, self.state.config)

    def _end(self, name: Name) -> None:
        self.kill_at.pop(name, None)
        self.killed.discard(name)
        self._set(empty(name))

    @rule(name=st.sampled_from([*FEEDS, *WRITERS, KEEPER]), code=st.sampled_from([0, 1, ROLLED_BACK, STALE, TORN, -9]))
    def child_ends(self, name: Name, code: int) -> None:
        if self._view(name).is_alive:
            self._end(name)
            self._carry_out(node.child_ended(self.state, name, code, self.now))

    @rule(number=st.integers(0, 1))
    def feed_worker_lets_go_of_what_is_not_its_target(self, number: int) -> None:
        view = self.views.feeds[number]
        self._set(view._replace(working=view.working & self.state.targets[number]))

    @precondition(lambda self: self.now > 130.0)
    @rule()
    def sighup(self) -> None:
        if ReadConfig() in node.signalled(self.state, signal.SIGHUP, self.now):
            node.reload(self.state)

    @precondition(lambda self: self.now > 160.0 and not self.state.is_draining)
    @rule()
    def sigterm(self) -> None:
        node.signalled(self.state, signal.SIGTERM, self.now)

    @invariant()
    def no_partition_has_two_workers(self) -> None:
        working = [partition for feed in self.views.feeds for partition in feed.working]
        assert len(working) == len(set(working))

    def teardown(self) -> None:
        """A node that is told to end does, with children that obey."""
        if not self.state.is_draining:
            node.signalled(self.state, signal.SIGTERM, self.now)
        for _ in range(3):
            self.turns()
            for name in [*self.kill_at]:
                self._end(name)
        assert not any(child.is_alive for child in (*self.views.feeds, *self.views.writers))
        if self.state.report and self.views.keeper.is_alive:
            assert not self.state.report.leases, "all is given back"
        self._end(KEEPER)
        assert node.is_over(self.state, self.views, self.now)


TestNodeModel = NodeModel.TestCase
TestNodeModel.settings = settings(max_examples=examples(2), stateful_step_count=40, deadline=None)
