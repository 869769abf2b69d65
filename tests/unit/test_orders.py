"""Worker counts that were ordered replace the configured ones; partitions without an owner raise an alarm in time."""

import pytest

from channelindex import exits
from channelindex.config import Config
from coordinator.keeper_link import KeeperReport, Scale, Trouble
from workers.node import orders
from workers.node.orders import ALARM_INTERVAL_S, TROUBLE_INTERVAL_S, TroubleLog, UnownedAlarm, scaled


@pytest.fixture
def told(monkeypatch):
    """The events that are logged."""
    events = []

    class Log:
        def error(self, event, **fields):
            events.append((event, fields.get("partitions")))

        def warning(self, event, **fields):
            events.append((event, fields["msg"]))

        def info(self, event, **fields):
            events.append((event, None))

    monkeypatch.setattr(orders, "_log", Log())
    return events


def _held(**ages: float) -> KeeperReport:
    return KeeperReport({}, [], unowned={int(name[1:]): age_s for name, age_s in ages.items()})


def test_scale_replaces_both_counts_and_nothing_else():
    config = Config()
    assert scaled(config, None) is config
    changed = scaled(config, Scale(5, 7)).workers
    assert (changed.feed_workers, changed.batch_writers, changed.ring_bytes) == (5, 7, config.workers.ring_bytes)


def test_alarm_waits_for_a_take_over_to_be_over(told):
    alarm = UnownedAlarm(ttl_s=10.0)
    alarm.check(_held(p3=12.0), 100.0)
    assert told == []
    alarm.check(_held(p3=12.1, p4=1.0), 101.0)
    assert told == [("partitions.unowned", [3])]


def test_alarm_is_repeated_now_and_then_and_its_end_is_reported(told):
    alarm = UnownedAlarm(ttl_s=10.0)
    for now in (100.0, 101.0, 100.0 + ALARM_INTERVAL_S):
        alarm.check(_held(p3=50.0), now)
    alarm.check(_held(), 120.0)
    alarm.check(_held(), 121.0)
    assert [event for event, _ in told] == ["partitions.unowned", "partitions.unowned", "partitions.owned"]


def test_trouble_is_logged_again_while_it_lasts_and_its_end_once(told):
    log, away, taken = TroubleLog(), Trouble(exits.COORDINATION, "away"), Trouble(exits.NAME_TAKEN, "taken")
    for now in (0.0, 1.0, TROUBLE_INTERVAL_S - 0.1, TROUBLE_INTERVAL_S):
        log.note(away, now)
    log.note(taken, TROUBLE_INTERVAL_S + 1)
    log.note(None, TROUBLE_INTERVAL_S + 2)
    log.note(None, TROUBLE_INTERVAL_S + 3)
    assert told == [
        ("leases.trouble", "away"),
        ("leases.trouble", "away"),
        ("leases.trouble", "taken"),
        ("leases.recovered", None),
    ]
